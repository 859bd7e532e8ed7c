"""What happens to samples between a generator and its discriminator: on the device, to real and fake alike."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from translate.augment.adaptive import AdaptiveAugmentation, AdaptiveSettings
from translate.augment.base import Augmentation
from translate.augment.diffaugment import DiffAugment, DiffAugmentSettings
from translate.augment.noise import InstanceNoise, InstanceNoiseSettings

AugmentationSettings = Annotated[
    DiffAugmentSettings | AdaptiveSettings | InstanceNoiseSettings, Field(discriminator="kind")
]

__all__ = [
    "AdaptiveAugmentation",
    "AdaptiveSettings",
    "Augmentation",
    "AugmentationSettings",
    "DiffAugment",
    "DiffAugmentSettings",
    "InstanceNoise",
    "InstanceNoiseSettings",
]
