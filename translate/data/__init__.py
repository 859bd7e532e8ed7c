"""Image files and data sets: from folders to batches."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from translate.data.datasets import (
    AnyDataset,
    FolderSettings,
    ImageDataset,
    PairedSettings,
    UnpairedSettings,
)
from translate.data.super_resolution import SuperResolutionSettings
from translate.data.toys import PointDataset, ToySettings

DataSettings = Annotated[
    PairedSettings | UnpairedSettings | FolderSettings | SuperResolutionSettings | ToySettings,
    Field(discriminator="kind"),
]
"""What `data` of a config can be."""

__all__ = [
    "AnyDataset",
    "DataSettings",
    "FolderSettings",
    "ImageDataset",
    "PairedSettings",
    "PointDataset",
    "SuperResolutionSettings",
    "ToySettings",
    "UnpairedSettings",
]
