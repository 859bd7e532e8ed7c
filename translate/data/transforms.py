"""What happens to the pixels of a sample in the worker: one resize, crop and flip for all sides, colour for
one.

Geometry runs on OpenCV directly. An `albumentations.Compose` with the same crop and flip gives the same bytes
(a test compares them), but costs about 55 microseconds of calls per pair, and seeding it for each sample 80
more: with cached images that is more than all the pixel work. Colour, where the pixel work is the cost, runs
on Albumentations' ColorJitter; its factors are drawn here, so that a sample depends on nothing but its own
generator.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from translate.data.spec import ImageSpec
from translate.settings import Settings

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

# Area or cubic? Against PIL's bicubic, which widens its filter when shrinking (the published recipes'
# resize), RMS error on 12 BSDS500 photos in grey levels, cubic / area: scale 0.5 5.8 / 1.5; 0.8 2.0 / 1.5;
# 0.85 1.6 / 1.6; 0.9 1.3 / 1.7; 1.12 1.0 / 1.6. OpenCV's cubic has no antialiasing, so it loses as soon as
# much is shrunk.
_AREA_BELOW = 0.85


class ColourSettings(Settings):
    """Random change of colour, as in torchvision's ColorJitter; the four changes come in random order."""

    brightness: float = Field(default=0.0, ge=0)
    """Brightness is multiplied by a factor from [max(0, 1 - value), 1 + value]."""
    contrast: float = Field(default=0.0, ge=0)
    """Contrast is multiplied by a factor from [max(0, 1 - value), 1 + value]."""
    saturation: float = Field(default=0.0, ge=0)
    """Saturation is multiplied by a factor from [max(0, 1 - value), 1 + value]."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Hue is turned by a share of the colour circle from [-value, value]."""

    @model_validator(mode="after")
    def _changes_something(self) -> ColourSettings:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("set at least one of brightness, contrast, saturation, hue above 0, or leave 'colour' out")
        return self


class AugmentSettings(Settings):
    """Resize, random crop and flip, the same for all sides of a sample. Defaults are pix2pix's jitter."""

    resize: int | None = Field(default=286, ge=1)
    """Images are resized to this many pixels before the crop; null leaves them as they are."""
    resize_by: Literal["squash", "shorter"] = "squash"
    """`squash`: both sides become `resize`. `shorter`: the shorter side does, the aspect ratio stays."""
    crop: int | None = Field(default=256, ge=1)
    """Training sees a random square of this many pixels; null takes the whole image. A smaller image is
    scaled up."""
    flip: bool = True
    """Mirror left and right, for half of the samples."""
    colour: ColourSettings | None = None
    """Random change of colour of one side; null changes none."""

    @model_validator(mode="after")
    def _crop_fits(self) -> AugmentSettings:
        if self.crop is not None and self.resize is not None and self.crop > self.resize:
            raise ValueError(f"'crop' is {self.crop} but 'resize' is {self.resize}; 'resize' must be at least as large")
        return self


class SampleTransform(Protocol):
    """What happens to the samples of one split, in two parts."""

    training: bool

    @property
    def specs(self) -> Mapping[str, ImageSpec]:
        """The sides that a prepared sample has."""

    @property
    def key(self) -> list[Any]:
        """All that `prepare` depends on: a part of the name of a disk cache."""

    def fixed(self) -> SampleTransform:
        """The same without any chance: as of a split that is evaluated."""

    def prepare(self, sample: Mapping[str, Pixels]) -> dict[str, Pixels]:
        """The deterministic part, whose result a cache may keep."""

    def augment(self, sample: Mapping[str, Pixels], generator: np.random.Generator) -> dict[str, Pixels]:
        """The random part, in training alone; draws from `generator` alone."""


class Transform:
    """The geometry and colour of one split.

    `prepare` is the deterministic part, whose result a cache may keep; `augment` the random one. Evaluation
    has no random part: with `resize` set, an image is resized to `crop` (to `resize` without a crop; by the
    shorter side, then the middle is cut out); without `resize` the middle of `crop` pixels is cut out.

    Args:
        settings: what to do.
        specs: the sides; label maps are resized to the nearest pixel and never change colour.
        training: random, or the fixed evaluation transform.
        colour_side: the side whose colours change; an image of 1 to 4 channels (alpha stays as it is).
    """

    def __init__(
        self,
        settings: AugmentSettings,
        specs: Mapping[str, ImageSpec],
        *,
        training: bool,
        colour_side: str | None = None,
    ) -> None:
        self.settings = settings
        self.specs = dict(specs)
        self.training = training
        self.labels = {side for side, spec in specs.items() if spec.kind == "labels"}
        self.colour_side = colour_side if training and settings.colour is not None else None
        # Made here, in the main process: workers that are forked need not import Albumentations (seconds)
        # again.
        self._jitter = _colour_jitter() if self.colour_side is not None else None

    @property
    def key(self) -> list[Any]:
        """All that `prepare` depends on: a part of the name of a disk cache."""
        settings = self.settings
        return [self.training, settings.resize, settings.resize_by, settings.crop]

    def fixed(self) -> Transform:
        """The same without any chance: as of a split that is evaluated."""
        return Transform(self.settings, self.specs, training=False)

    def prepare(self, sample: Mapping[str, Pixels]) -> dict[str, Pixels]:
        """Resize all sides, for evaluation also crop: arrays (H, W, C) of one height and width in, the same
        out."""
        height, width = next(iter(sample.values())).shape[:2]
        size = self._resized(height, width)
        out = {side: resize(pixels, size, labels=side in self.labels) for side, pixels in sample.items()}
        crop = self.settings.crop
        if self.training or crop is None:
            return out
        top, left = (size[0] - crop) // 2, (size[1] - crop) // 2
        return {side: pixels[top : top + crop, left : left + crop] for side, pixels in out.items()}

    def augment(self, sample: Mapping[str, Pixels], generator: np.random.Generator) -> dict[str, Pixels]:
        """Crop, flip and change the colour of a prepared sample; draws from `generator` alone."""
        settings = self.settings
        # All numbers are drawn at once and always: one call, and no option shifts what another one draws.
        vertical, horizontal, mirror = generator.random(3)
        out = dict(sample)
        if settings.crop is not None:
            crop = settings.crop
            height, width = next(iter(sample.values())).shape[:2]
            top, left = int(vertical * (height - crop + 1)), int(horizontal * (width - crop + 1))
            out = {side: pixels[top : top + crop, left : left + crop] for side, pixels in out.items()}
        if settings.flip and mirror < 0.5:
            out = {side: _mirrored(pixels) for side, pixels in out.items()}
        if self.colour_side is not None:
            out[self.colour_side] = self._change_colour(out[self.colour_side], generator)
        return out

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the crop; at least the crop in both."""
        settings = self.settings
        crop = settings.crop
        if settings.resize is None:
            if crop is None or min(height, width) >= crop:
                return height, width
            return _by_shorter(height, width, crop)
        size = settings.resize if self.training or crop is None else crop
        return (size, size) if settings.resize_by == "squash" else _by_shorter(height, width, size)

    def _change_colour(self, pixels: Pixels, generator: np.random.Generator) -> Pixels:
        colour = self.settings.colour
        assert colour is not None and self._jitter is not None
        draws = generator.random(4)
        factors = {}
        for name, draw in zip(("brightness", "contrast", "saturation"), draws, strict=False):
            reach = getattr(colour, name)
            low = max(0.0, 1 - reach)
            factors[name] = low + float(draw) * (1 + reach - low)
        hue = (2 * float(draws[3]) - 1) * colour.hue
        order = generator.permutation(4).tolist()
        count = 3 if pixels.shape[2] >= 3 else 1
        light = np.ascontiguousarray(pixels[:, :, :count])
        if light.dtype == np.uint16:  # Albumentations' colour space changes take uint8 or float32 in [0, 1]
            changed = self._jitter.apply(light.astype(np.float32) / 65535, **factors, hue=hue, order=order)
            changed = np.rint(np.clip(changed, 0, 1) * 65535).astype(np.uint16)
        else:
            changed = self._jitter.apply(light, **factors, hue=hue, order=order)
        changed = changed.reshape(light.shape)
        if pixels.shape[2] == count:
            return changed  # type: ignore[no-any-return]  # Albumentations is untyped
        return np.concatenate([changed, pixels[:, :, count:]], axis=2)


def resize(pixels: Pixels, size: tuple[int, int], *, labels: bool) -> Pixels:
    """Resize (H, W, C) pixels to `size` = (height, width).

    Light by cubic interpolation, or by area where much is shrunk; labels take the nearest pixel.
    """
    height, width, channels = pixels.shape
    if (height, width) == size:
        return pixels
    smaller = (min(size[0], height), min(size[1], width))
    if not labels and smaller not in (size, (height, width)):
        # One axis shrinks, the other grows: OpenCV's area filter is none there, so each gets its own turn.
        return resize(resize(pixels, smaller, labels=False), size, labels=False)
    if labels:
        # Not INTER_NEAREST, which takes the pixel's corner and so shifts labels against light.
        method = cv2.INTER_NEAREST_EXACT
    elif min(size[0] / height, size[1] / width) < _AREA_BELOW:
        method = cv2.INTER_AREA
    else:
        method = cv2.INTER_CUBIC
    target = (size[1], size[0])
    if channels <= 4:
        return cv2.resize(pixels, target, interpolation=method).reshape(*size, channels)  # type: ignore[return-value]
    # OpenCV's area filter takes no more than four channels.
    parts = [
        cv2.resize(np.ascontiguousarray(pixels[:, :, start : start + 4]), target, interpolation=method)
        for start in range(0, channels, 4)
    ]
    return np.concatenate([part.reshape(*size, -1) for part in parts], axis=2)


def _mirrored(pixels: Pixels) -> Pixels:
    if pixels.shape[2] > 4:  # OpenCV 5 takes no more than 128 channels
        return pixels[:, ::-1]
    # A single channel's axis is dropped by OpenCV; the reshape brings it back.
    return cv2.flip(pixels, 1).reshape(pixels.shape)  # type: ignore[return-value]  # the dtype stays


def _by_shorter(height: int, width: int, shorter: int) -> tuple[int, int]:
    scale = shorter / min(height, width)
    return max(shorter, round(height * scale)), max(shorter, round(width * scale))


def _colour_jitter() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its newest version otherwise
    import albumentations

    return albumentations.ColorJitter(p=1.0)
