"""Image files and data sets: from folders to batches."""

from translate.data.datasets import (
    AnyDataset,
    DataSettings,
    FolderSettings,
    ImageDataset,
    PairedSettings,
    UnpairedSettings,
)
from translate.data.toys import PointDataset, ToySettings

__all__ = [
    "AnyDataset",
    "DataSettings",
    "FolderSettings",
    "ImageDataset",
    "PairedSettings",
    "PointDataset",
    "ToySettings",
    "UnpairedSettings",
]
