"""The second-order degradation of Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833): what pictures go through.

    x <- blur(HR)                      each image with a kernel of its own
    x <- resize(x)                     up, down or not at all: one decision for a batch
    x <- noise(x)                      Gaussian or Poisson: one decision for a batch
    x <- JPEG(x)
    the same again, with other numbers, around the size of the low resolution; and last, in one order or the other,
    LR <- JPEG( sinc( resize(x) ) )    or    sinc( resize( JPEG(x) ) )

Where it differs from the authors' code: JPEG is nearer to libjpeg (whole qualities, hard rounding). Grey Gaussian noise
is drawn for each image, not once for a batch. No pool mixes the pairs of past batches: it would be a state that
checkpoints have to carry, 180 pairs of it. Crops are degraded as they are, not cut out of larger ones afterwards, so
the mirrored border of a kernel's reach is learnt too. Sharpening the target (USM) is a loss's affair and left out.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from translate.data.degradation.base import Degradation
from translate.data.degradation.jpeg import jpeg
from translate.data.degradation.kernels import generalised_gaussian, mahalanobis, plateau, pulse, sinc
from translate.data.degradation.noise import gaussian_noise, poisson_noise
from translate.devices import exact_float32
from translate.settings import Settings

Chance = torch.Generator | None
Mode = Literal["area", "bilinear", "bicubic"]
Shape = Literal["iso", "aniso", "generalised-iso", "generalised-aniso", "plateau-iso", "plateau-aniso"]

MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")
"""Of a resize, equally likely (realesrgan_model.py)."""
_SHORT = 13
"""A sinc kernel of fewer pixels has a cut-off from pi / 3, others from pi / 5, the last one always from pi / 3
(realesrgan_dataset.py)."""
_FINAL_SIZES = (7, 21)
"""Pixels of the smallest and the largest kernel of the last filter (realesrgan_dataset.py)."""
_SHAPES: dict[Shape, float] = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalised-iso": 0.12,
    "generalised-aniso": 0.03,
    "plateau-iso": 0.12,
    "plateau-aniso": 0.03,
}
"""`kernel_prob` of train_realesrgan_x4plus.yml."""


def _in_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"expected a range, its lower end first, not {value[0]:g} to {value[1]:g}")
    return value


Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_in_order)]
Quality = Annotated[int, Field(ge=1, le=100)]
Qualities = Annotated[tuple[Quality, Quality], AfterValidator(_in_order)]


class BlurSettings(Settings):
    """Each image is blurred by a kernel of its own. The numbers, unless said, are in train_realesrgan_x4plus.yml."""

    probability: Probability = 1.0
    """Share of the batches that are blurred (realesrgan_model.py: the first time all)."""
    sizes: tuple[int, int] = (7, 21)
    """Pixels of the smallest and the largest kernel; each odd number between is as likely (realesrgan_dataset.py)."""
    sinc: Probability = 0.1
    """Share of sinc kernels, which leave rings (`sinc_prob`)."""
    shapes: dict[Shape, Annotated[float, Field(ge=0)]] = Field(default=_SHAPES)
    """How often each of the others comes: Gaussians, round or longish, with other tails, or flat on top."""
    deviation: Range = (0.2, 3.0)
    """Standard deviation along either axis in pixels (`blur_sigma`)."""
    generalised: Range = (0.5, 4.0)
    """Exponent of the generalised ones: half of the time below 1, else above (`betag_range`)."""
    plateau: Range = (1.0, 2.0)
    """Exponent of the flat ones, drawn alike (`betap_range`)."""

    @model_validator(mode="after")
    def _is_sound(self) -> BlurSettings:
        smallest, largest = self.sizes
        if not (1 <= smallest <= largest and smallest % 2 and largest % 2):
            raise ValueError(f"'sizes' is {smallest} to {largest}; expected odd numbers, the smaller first")
        if not sum(self.shapes.values()) > 0:
            raise ValueError("'shapes' needs a share above 0")
        for key in ("generalised", "plateau"):
            low, high = getattr(self, key)
            if not low <= 1 <= high:
                raise ValueError(f"'{key}' is {low:g} to {high:g}; expected a range around 1, which is the Gaussian")
        return self


class SecondBlurSettings(BlurSettings):
    """The second blur."""

    probability: Probability = 0.8
    """Share of the batches that are blurred (`second_blur_prob`)."""
    deviation: Range = (0.2, 1.5)
    """Standard deviation along either axis in pixels (`blur_sigma2`)."""


class ResizeSettings(Settings):
    """A batch is made larger, smaller or neither, by a kind of interpolation that is drawn."""

    up: float = Field(default=0.2, ge=0)
    """How often, beside `down` and `keep`, it grows (`resize_prob`)."""
    down: float = Field(default=0.7, ge=0)
    """How often it shrinks."""
    keep: float = Field(default=0.1, ge=0)
    """How often it keeps its size."""
    range: Range = (0.15, 1.5)
    """The smallest and the largest factor (`resize_range`)."""

    @model_validator(mode="after")
    def _is_sound(self) -> ResizeSettings:
        if not self.up + self.down + self.keep > 0:
            raise ValueError("one of 'up', 'down' and 'keep' must be above 0")
        if not self.range[0] <= 1 <= self.range[1]:
            raise ValueError(f"'range' is {self.range[0]:g} to {self.range[1]:g}; expected a range around 1")
        return self


class SecondResizeSettings(ResizeSettings):
    """The second resize; factors are of the low resolution's size."""

    up: float = Field(default=0.3, ge=0)
    """How often, beside `down` and `keep`, it is larger (`resize_prob2`)."""
    down: float = Field(default=0.4, ge=0)
    """How often it is smaller."""
    keep: float = Field(default=0.3, ge=0)
    """How often it has that size."""
    range: Range = (0.3, 1.2)
    """The smallest and the largest factor (`resize_range2`)."""


class NoiseSettings(Settings):
    """A batch has Gaussian or Poisson noise, each image as much as is drawn for it."""

    gaussian: Probability = 0.5
    """Share of the batches with Gaussian noise; others have Poisson noise (`gaussian_noise_prob`)."""
    deviation: Range = (1.0, 30.0)
    """Standard deviation of the Gaussian one, of 255 levels (`noise_range`)."""
    poisson: Range = (0.05, 3.0)
    """Factor of the Poisson one (`poisson_scale_range`)."""
    grey: Probability = 0.4
    """Share of the images whose channels have the same noise (`gray_noise_prob`)."""


class SecondNoiseSettings(NoiseSettings):
    """The second noise."""

    deviation: Range = (1.0, 25.0)
    """Standard deviation of the Gaussian one, of 255 levels (`noise_range2`)."""
    poisson: Range = (0.05, 2.5)
    """Factor of the Poisson one (`poisson_scale_range2`)."""


class PassSettings(Settings):
    """The first time that a picture is stored or sent. Null leaves a part out."""

    blur: BlurSettings | None = BlurSettings()
    """A kernel for each image."""
    resize: ResizeSettings | None = ResizeSettings()
    """A factor for each batch."""
    noise: NoiseSettings | None = NoiseSettings()
    """A kind for each batch, a strength for each image."""
    jpeg: Qualities | None = (30, 95)
    """Lowest and highest quality (`jpeg_range`)."""


class SecondPassSettings(Settings):
    """The second time. Null leaves a part out; without `resize` the size becomes the low resolution's at once."""

    blur: SecondBlurSettings | None = SecondBlurSettings()
    """A kernel for each image."""
    resize: SecondResizeSettings | None = SecondResizeSettings()
    """A factor for each batch."""
    noise: SecondNoiseSettings | None = SecondNoiseSettings()
    """A kind for each batch, a strength for each image."""
    jpeg: Qualities | None = (30, 95)
    """Lowest and highest quality (`jpeg_range2`)."""


class SecondOrderSettings(Settings):
    """Blur, resize, noise and JPEG, twice, and a sinc filter: Real-ESRGAN's, for photographs of any past (grey or RGB).

    Defaults are those of its train_realesrgan_x4plus.yml.
    """

    kind: Literal["second-order"] = "second-order"
    first: PassSettings = PassSettings()
    """Around the size of the high resolution."""
    second: SecondPassSettings = SecondPassSettings()
    """Around the size of the low resolution."""
    final_sinc: Probability = 0.8
    """Share of the images that end with a sinc filter (`final_sinc_prob`)."""
    jpeg_last: Probability = 0.5
    """Share of the batches whose second JPEG comes after the last resize and the sinc filter (realesrgan_model.py)."""

    def build(self, scale: int) -> SecondOrder:
        """The degradation for networks that enlarge so many times."""
        return SecondOrder(self, scale)


class SecondOrder(Degradation):
    """The steps in the module's docstring, for images of 1 or 3 channels."""

    def __init__(self, settings: SecondOrderSettings, scale: int) -> None:
        super().__init__(scale)
        self.settings = settings

    def forward(self, high: Tensor, chance: Chance = None) -> Tensor:
        first, second = self.settings.first, self.settings.second
        height, width = high.shape[2] // self.scale, high.shape[3] // self.scale
        x = (high.float().contiguous() + 1) / 2
        with exact_float32(x.device):
            x = _blurred(x, first.blur, chance)
            if first.resize is not None:
                x = _resized(x, x.shape[2], x.shape[3], chance, first.resize)
            x = _noisy(x, first.noise, chance)
            x = _stored(x, first.jpeg, chance)

            x = _blurred(x, second.blur, chance)
            x = _resized(x, height, width, chance, second.resize)
            x = _noisy(x, second.noise, chance)
            jpeg_last = _happens(self.settings.jpeg_last, chance)
            if not jpeg_last:
                x = _stored(x, second.jpeg, chance)
            x = _resized(x, height, width, chance)
            x = _filtered(x, self._final_kernels(len(x), chance))
            if jpeg_last:
                x = _stored(x, second.jpeg, chance)
        return (x * 255).round().clamp(0, 255) / 127.5 - 1

    def _final_kernels(self, count: int, chance: Chance) -> Tensor:
        support = _sizes(_FINAL_SIZES, count, chance)
        size = _FINAL_SIZES[1]
        ringing = sinc(size, _uniform((math.pi / 3, math.pi), count, chance), support)
        chosen = _share(self.settings.final_sinc, count, chance)
        return torch.where(chosen[:, None, None], ringing, pulse(count, size))


def blur_kernels(settings: BlurSettings, count: int, chance: Chance = None) -> Tensor:
    """Kernels as `settings` has them: (count, size, size), float64, on the CPU; size is the largest of `sizes`."""
    size = settings.sizes[1]
    support = _sizes(settings.sizes, count, chance)
    shapes: dict[Shape, float] = settings.shapes
    drawn = torch.multinomial(
        torch.tensor(list(shapes.values()), dtype=torch.float64), count, replacement=True, generator=chance
    )

    def is_one_of(*names: Shape) -> Tensor:
        return torch.tensor([name in names for name in shapes])[drawn]

    across = _uniform(settings.deviation, count, chance)
    aniso = is_one_of("aniso", "generalised-aniso", "plateau-aniso")
    down = torch.where(aniso, _uniform(settings.deviation, count, chance), across)
    distance = mahalanobis(size, torch.stack([across, down], 1), _uniform((-math.pi, math.pi), count, chance))
    generalised = is_one_of("generalised-iso", "generalised-aniso")
    exponent = torch.where(generalised, _around_one(settings.generalised, count, chance), torch.ones(count))
    kernels = generalised_gaussian(distance, exponent, support)
    flat = plateau(distance, _around_one(settings.plateau, count, chance), support)
    kernels = torch.where(is_one_of("plateau-iso", "plateau-aniso")[:, None, None], flat, kernels)

    lowest = torch.where(support < _SHORT, math.pi / 3, math.pi / 5)
    cutoff = lowest + (math.pi - lowest) * _uniform((0, 1), count, chance)
    chosen = _share(settings.sinc, count, chance)
    return torch.where(chosen[:, None, None], sinc(size, cutoff, support), kernels)


def _blurred(x: Tensor, settings: BlurSettings | None, chance: Chance) -> Tensor:
    if settings is None or not _happens(settings.probability, chance):
        return x
    return _filtered(x, blur_kernels(settings, len(x), chance))


def _filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """Each image (N, C, H, W) by its own kernel (N, size, size); mirrored at the border, repeated if too small."""
    from kornia.filters import filter2d  # takes a while to load

    border = "reflect" if min(x.shape[2:]) > kernels.shape[-1] // 2 else "replicate"
    found: Tensor = filter2d(x, _sent(kernels.float(), x.device), border)
    return found


def _resized(x: Tensor, height: int, width: int, chance: Chance, settings: ResizeSettings | None = None) -> Tensor:
    """To a height and width, times the factor that `settings` has drawn."""
    factor = 1.0
    if settings is not None:
        shares = torch.tensor([settings.up, settings.down, settings.keep])
        draw = _uniform((0, 1), 1, chance).item()
        smallest, largest = settings.range
        ends = ((1.0, largest), (smallest, 1.0), (1.0, 1.0))[int(torch.multinomial(shares, 1, generator=chance))]
        factor = ends[0] + (ends[1] - ends[0]) * draw
    mode = MODES[int(torch.randint(len(MODES), (), generator=chance))]
    size = max(1, int(height * factor)), max(1, int(width * factor))
    return F.interpolate(x, size, mode=mode)


def _noisy(x: Tensor, settings: NoiseSettings | None, chance: Chance) -> Tensor:
    if settings is None:
        return x
    count = len(x)
    grey = _sent(_share(settings.grey, count, chance), x.device)
    if _happens(settings.gaussian, chance):
        strength = _sent(_uniform(settings.deviation, count, chance), x.device)
        noise = gaussian_noise(x, strength, grey, chance)
    else:
        strength = _sent(_uniform(settings.poisson, count, chance), x.device)
        noise = poisson_noise(x, strength, grey, chance)
    return (x + noise).clamp(0, 1)


def _stored(x: Tensor, quality: tuple[int, int] | None, chance: Chance) -> Tensor:
    if quality is None:
        return x
    drawn = torch.randint(quality[0], quality[1] + 1, (len(x),), generator=chance).float()
    return jpeg(x.clamp(0, 1), _sent(drawn, x.device))


# What decides is drawn on the CPU and sent from pinned memory: nothing waits for the device.


def _happens(probability: float, chance: Chance) -> bool:
    return bool(torch.rand((), generator=chance) < probability)


def _share(probability: float, count: int, chance: Chance) -> Tensor:
    return torch.rand(count, generator=chance) < probability


def _uniform(ends: tuple[float, float], count: int, chance: Chance) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * torch.rand(count, generator=chance)


def _around_one(ends: tuple[float, float], count: int, chance: Chance) -> Tensor:
    """Half of the time from the lower end to 1, else from 1 to the higher one."""
    below = _share(0.5, count, chance)
    return torch.where(below, _uniform((ends[0], 1), count, chance), _uniform((1, ends[1]), count, chance))


def _sizes(ends: tuple[int, int], count: int, chance: Chance) -> Tensor:
    """Odd numbers, equally likely."""
    return torch.randint(ends[0] // 2, ends[1] // 2 + 1, (count,), generator=chance) * 2 + 1


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)
