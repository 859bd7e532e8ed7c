"""How low resolution images come from high ones: on the device, whole batches at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from translate.data.degradation.base import Degradation
from translate.data.degradation.bicubic import BicubicSettings
from translate.data.degradation.second_order import SecondOrderSettings

DegradationSettings = Annotated[BicubicSettings | SecondOrderSettings, Field(discriminator="kind")]

__all__ = ["BicubicSettings", "Degradation", "DegradationSettings", "SecondOrderSettings"]
