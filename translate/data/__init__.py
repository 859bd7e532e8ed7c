"""Image files and data sets: from folders to batches."""

from translate.data.datasets import DataSettings, FolderSettings, ImageDataset, PairedSettings

__all__ = ["DataSettings", "FolderSettings", "ImageDataset", "PairedSettings"]
