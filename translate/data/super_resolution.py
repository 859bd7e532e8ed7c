"""Low and high resolution images: high ones alone, which the low ones are made from, or both as files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from translate.data.cache import Progress
from translate.data.datasets import ImageDataset, ListedSettings, SideSettings, check_splits, refusal
from translate.data.degradation import BicubicSettings, Degradation, DegradationSettings
from translate.data.files import find_images, stem_key
from translate.data.images import normalise, probe, read_pixels, to_pixels
from translate.data.pairing import Item, Pairing, pair_folders
from translate.data.spec import ImageSpec, Split
from translate.data.transforms import Pixels
from translate.errors import ImageError, UserError
from translate.settings import Scale, Settings

LOW, HIGH = "A", "B"


class CropSettings(Settings):
    """What happens to training images: crop, flip and turn, the same for both resolutions. There is no resize."""

    crop: int | None = Field(default=96, ge=1)
    """Training sees a random square of so many pixels of the high resolution (SRGAN, section 3.2: 96); null takes whole
    images."""
    flip: bool = True
    """Mirror left and right, for half of the samples."""
    rotate: bool = True
    """Turn by a random number of quarter turns."""
    validation: int | None = Field(default=480, ge=1)
    """Validation sees the middle of an image, at most so many pixels of the high resolution along either side: enough
    to judge by, where a photograph of a camera would take minutes and all the memory; null takes whole images, as a
    test split does."""


class SuperResolutionSettings(ListedSettings):
    """Images of a high resolution (B), and of a low one (A) that are made from them or lie beside them."""

    kind: Literal["super-resolution"] = "super-resolution"
    scale: Scale = 4
    """Pixels of the high resolution per pixel of the low one, along either side."""
    high: SideSettings = SideSettings()
    """The images of high resolution; `path` is `{split}` by default."""
    low: str | None = None
    """Folder of their low resolutions, under the same names (`0001.png`, or `0001x4.png` as DIV2K has them); null: they
    are made by `degradation`, in training on the device."""
    degradation: DegradationSettings = BicubicSettings()
    """How low resolutions are made. For evaluation what is random in it follows from the picture alone."""
    augment: CropSettings = CropSettings()

    @model_validator(mode="after")
    def _is_sound(self) -> SuperResolutionSettings:
        check_splits(self._patterns(), self.validation)
        if self.high.kind != "image":
            raise ValueError("'high.kind' must be 'image': labels have no higher resolution")
        for key in ("crop", "validation"):
            size = getattr(self.augment, key)
            if size is not None and size % self.scale:
                raise ValueError(f"'augment.{key}' is {size}, no multiple of 'scale', which is {self.scale}")
        if self.degradation.kind == "second-order" and self.high.channels not in (1, 3):
            raise ValueError(
                f"'degradation' of the kind second-order knows grey and RGB: 'high.channels' must be 1 or 3, "
                f"not {self.high.channels}"
            )
        if self.low is not None and "degradation" in self.model_fields_set and self.degradation != BicubicSettings():
            raise ValueError("'degradation' makes the images that 'low' names: leave one of the two out")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: there are no labels."""
        return ()

    def resolved(self) -> SuperResolutionSettings:
        """The settings as they are: nothing in them waits for files."""
        return self

    def specs(self) -> dict[str, ImageSpec]:
        """What both resolutions are: `{"A": ..., "B": ...}`."""
        return {LOW: self.high.spec(), HIGH: self.high.spec()}

    def open(self, split: Split, seed: int, *, progress: Progress | None = None) -> ImageDataset | None:
        """The data set of a split, its cache built; None if there is no such split (validation and test alone).

        Training samples lack A where the method is to make it on the device. Evaluation has whole images, cut at the
        bottom and the right to a multiple of the scale; of the validation split the middle.

        What is smaller than the crop is left out of training (`ImageDataset.notes` says so).

        Raises UserError for folders that do not fit.
        """
        pairing = self.pairing(split)
        if pairing.problems:
            raise UserError(refusal(split, pairing.problems))
        if not pairing.items:
            if split == "train":
                raise UserError("data, train: no image of high resolution (`translate data check`)")
            return None
        training = split == "train"
        middle = self.augment.validation if split == "validation" else None
        transform = ResolutionTransform(self, training=training, middle=middle)
        read = _ReadResolutions(self, training=training)
        items = [item for item in pairing.items if self._is_large_enough(item)] if training else pairing.items
        small = len(pairing.items) - len(items)
        told = f"{small} of {len(pairing.items)} images are smaller than the {self.augment.crop} pixels of a crop"
        if not items:
            raise UserError(f"data, train: {told}; lower data.augment.crop")
        dataset = ImageDataset(items, transform.specs, read, transform, seed)
        if small:
            dataset.notes.append(f"{told} and left out (data.augment.crop)")
        return self._with_cache(dataset, [self.scale, self.smallest(training=training)], progress)

    def _is_large_enough(self, item: Item) -> bool:
        """For training, by the header; who cannot read it will hear from the reader."""
        try:
            header = probe(item.paths[HIGH])
        except ImageError:
            return True
        return min(header.height, header.width) >= self.smallest(training=True)

    def smallest(self, *, training: bool) -> int:
        """Pixels of the high resolution that an image must have along either side."""
        return max(self.scale, self.augment.crop or 1) if training else self.scale

    def misfit(self, sizes: Mapping[str, tuple[int, int]], *, training: bool) -> tuple[str, str] | None:
        """The side whose size is wrong, and why; None if the (height, width) of B, and of A where it is there, fit."""
        height, width = sizes[HIGH]
        smallest = self.smallest(training=training)
        if min(height, width) < smallest:
            key = "data.augment.crop" if smallest > self.scale else "data.scale"
            return HIGH, f"is {width}x{height} pixels, expected at least {smallest} along either side ({key})"
        if LOW in sizes and sizes[LOW] != (height // self.scale, width // self.scale):
            given, expected = (
                f"{size[1]}x{size[0]}" for size in (sizes[LOW], (height // self.scale, width // self.scale))
            )
            return LOW, f"is {given} pixels, expected {expected}: 1/{self.scale} of {width}x{height} (data.scale)"
        return None

    def _patterns(self) -> list[str]:
        high = self.high.path or "{split}"
        return [high] if self.low is None else [self.low, high]

    def _find(self, split: str) -> Pairing:
        folders = [self._folder(pattern, split) for pattern in self._patterns()]
        if self.low is not None:
            return pair_folders(dict(zip((LOW, HIGH), folders, strict=True)), endings={LOW: f"x{self.scale}"})
        return Pairing([Item(stem_key(path, folders[0]), {HIGH: path}) for path in find_images(folders[0])], [])


class ResolutionTransform:
    """The geometry of one split of images in two resolutions: `translate.data.transforms.Transform` is that of one."""

    def __init__(self, settings: SuperResolutionSettings, *, training: bool, middle: int | None = None) -> None:
        self.settings = settings
        self.training = training
        self.middle = middle
        self.makes_low = settings.low is None and not training
        specs = settings.specs()
        self.specs = specs if settings.low is not None or self.makes_low else {HIGH: specs[HIGH]}
        self._degradation: Degradation | None = settings.degradation.build(settings.scale) if self.makes_low else None

    @property
    def key(self) -> list[Any]:
        """All that `prepare` depends on: a part of the name of a disk cache."""
        degradation = self.settings.degradation.model_dump(mode="json") if self.makes_low else None
        return [self.training, self.middle, degradation]

    def fixed(self) -> ResolutionTransform:
        """The same without any chance: as of a split that is evaluated."""
        return ResolutionTransform(self.settings, training=False)

    def prepare(self, sample: Mapping[str, Pixels]) -> dict[str, Pixels]:
        """Cut out the middle, and add the low resolution where evaluation needs it: (H, W, C) -> (H / scale, W / scale,
        C) of uint8."""
        if self.middle is not None:
            units = {side: self.settings.scale if side == HIGH else 1 for side in sample}
            cut = self.middle // self.settings.scale  # pixels of the low resolution
            sample = {side: _middle(pixels, cut * units[side], units[side]) for side, pixels in sample.items()}
        if self._degradation is None:
            return dict(sample)
        high = sample[HIGH]
        spec = self.specs[HIGH]
        # By the picture: the same under any name and index. A generator of its own: threads that build a cache share
        # torch's.
        chance = torch.Generator().manual_seed(zlib.crc32(high.tobytes()))
        low = self._degradation(normalise(torch.from_numpy(np.ascontiguousarray(high))[None], spec), chance)
        return {LOW: to_pixels(low, spec)[0], HIGH: high}

    def augment(self, sample: Mapping[str, Pixels], generator: np.random.Generator) -> dict[str, Pixels]:
        """Crop, flip and turn a prepared sample; draws from `generator` alone."""
        augment, scale = self.settings.augment, self.settings.scale
        vertical, horizontal, mirror, turn = generator.random(4)
        high = sample[HIGH]
        unit = scale if LOW in sample else 1  # crops of both resolutions begin at one place
        height, width = high.shape[0] // unit, high.shape[1] // unit
        tall, wide = (height, width) if augment.crop is None else (augment.crop // unit, augment.crop // unit)
        top, left = int(vertical * (height - tall + 1)), int(horizontal * (width - wide + 1))
        out: dict[str, Pixels] = {}
        for side, pixels in sample.items():
            size = unit if side == HIGH else 1
            part = pixels[top * size : (top + tall) * size, left * size : (left + wide) * size]
            if augment.flip and mirror < 0.5:
                part = part[:, ::-1]
            out[side] = np.rot90(part, int(turn * 4)) if augment.rotate else part
        return out


def _middle(pixels: Pixels, size: int, unit: int) -> Pixels:
    """The middle of (H, W, C), at most `size` along either side; begins at a multiple of `unit`."""
    height, width = pixels.shape[:2]
    top, left = (max(0, (side - size) // unit // 2) * unit for side in (height, width))
    return pixels[top : top + size, left : left + size]


class _ReadResolutions:
    """Reads the high resolution, and the low one where it is a file; cut to a multiple of the scale."""

    def __init__(self, settings: SuperResolutionSettings, *, training: bool) -> None:
        self.settings = settings
        self.training = training

    def __call__(self, item: Item) -> dict[str, Pixels]:
        spec, scale = self.settings.high.spec(), self.settings.scale
        sample = {side: read_pixels(path, spec) for side, path in item.paths.items()}
        sizes = {side: (pixels.shape[0], pixels.shape[1]) for side, pixels in sample.items()}
        misfit = self.settings.misfit(sizes, training=self.training)
        if misfit is not None:
            raise ImageError(item.paths[misfit[0]], misfit[1])
        height, width = (side // scale * scale for side in sizes[HIGH])
        return {**sample, HIGH: sample[HIGH][:height, :width]}
