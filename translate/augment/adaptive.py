"""Adaptive discriminator augmentation (Karras et al., arXiv 2006.06676)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed
from pydantic import Field, field_validator
from torch import Tensor

from translate.augment.base import Augmentation, exact, image_shape
from translate.errors import UserError
from translate.settings import Settings, Share

Transforms = Literal["blit", "geometric", "colour"]

LUMA = 1 / math.sqrt(3)
"""Each entry of the grey axis (1, 1, 1) / sqrt(3), around which hues turn."""


class AdaptiveSettings(Settings):
    """Each transform happens with a probability p that rises while the discriminator is too sure of real images."""

    kind: Literal["adaptive"] = "adaptive"
    transforms: list[Transforms] = Field(default=["blit", "geometric", "colour"], min_length=1)
    """`blit`: flips, quarter turns, whole pixels; `geometric`: scale, rotation, stretch, fractions of pixels;
    `colour`: brightness, contrast, luma, hue, saturation. All three are the paper's choice, bgc (section 2.3)."""
    target: Share = 0.6
    """Of r_t = E[sign D(real)], the measure of overfitting (section 3, eq. 1). It needs logits around 0: neither
    energies nor a Wasserstein critic's."""
    images: int = Field(default=500_000, ge=1)
    """In how many images p can rise from 0 to 1 (section 3)."""
    interval: int = Field(default=4, ge=1)
    """Batches between two changes of p (section 3)."""
    start: float = Field(default=0.0, ge=0, le=1)
    """p at the start."""

    @field_validator("transforms")
    @classmethod
    def _each_once(cls, transforms: list[Transforms]) -> list[Transforms]:
        if len(set(transforms)) < len(transforms):
            raise ValueError(f"expected each group once, not {', '.join(transforms)}")
        return transforms

    def build(self, shape: tuple[int, ...]) -> AdaptiveAugmentation:
        """For images (C, H, W) in [-1, 1], of 1 or 3 channels where `colour` is among the transforms.

        Raises:
            UserError: points, or colour transforms of other channels.
        """
        channels, _, _ = image_shape(self.kind, shape)
        if "colour" in self.transforms and channels not in (1, 3):
            raise UserError(
                f"augmentation 'adaptive' knows the colours of grey and RGB images, not of {channels} channels; "
                "set transforms to [blit, geometric]"
            )
        return AdaptiveAugmentation(self)


class AdaptiveAugmentation(Augmentation):
    """Geometry is gathered into one warp and colour into one matrix for each example, as in the paper's appendix B,
    whose numbers these are.

    Where it differs: the warp is kornia's, bilinear and mirrored at the border, without the paper's wavelet filters
    against aliasing. kornia's own colour functions cut at the ends of the range, where gradients would stop: the
    matrices here do not. Examples that no transform chose stay bit for bit as they are.
    """

    p: Tensor
    signs: Tensor
    images: Tensor
    batches: Tensor

    def __init__(self, settings: AdaptiveSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("p", torch.tensor(settings.start, dtype=torch.float32))
        # Since the last change of p: the sum over images of sign D, images and batches.
        self.register_buffer("signs", torch.zeros(()))
        self.register_buffer("images", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y = exact(x)
            if "blit" in self.settings.transforms or "geometric" in self.settings.transforms:
                y = self._warped(y)
            if "colour" in self.settings.transforms:
                y = self._coloured(y)
        return y.to(x.dtype)

    @torch.no_grad()
    def update(self, real_logits: Tensor) -> dict[str, Tensor]:
        """Every `interval` batches p moves by images seen / `images`, up if r_t exceeds the target, else down; it
        stays in [0, 1]. Over several processes all see all logits."""
        signs = real_logits.float().sign().flatten(1).mean(dim=1).sum()
        seen = torch.stack([signs, torch.full_like(signs, len(real_logits))])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(seen)
        self.signs += seen[0]
        self.images += seen[1]
        self.batches += 1
        overfitting = self.signs / self.images
        move = torch.sign(overfitting - self.settings.target) * self.images / self.settings.images
        due = self.batches >= self.settings.interval
        self.p.copy_(torch.where(due, (self.p + move).clamp(0, 1), self.p))
        for counter in (self.signs, self.images, self.batches):
            counter.masked_fill_(due, 0)
        return {"augmentation_p": self.p.clone(), "overfitting": overfitting}

    def _chosen(self, x: Tensor, probability: Tensor | None = None) -> Tensor:
        """(N,) of whether a transform happens to each example: with probability p if none is given."""
        return torch.rand(len(x), device=x.device) < (self.p if probability is None else probability)

    def _warped(self, x: Tensor) -> Tensor:
        from kornia.geometry.transform import warp_affine  # takes a while to load

        height, width = x.shape[2:]
        zero, one = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)

        def scaled(across: Tensor, down: Tensor) -> Tensor:
            return _matrix([[across, zero, zero], [zero, down, zero], [zero, zero, one]])

        def turned(angle: Tensor) -> Tensor:
            cosine, sine = angle.cos(), angle.sin()
            return _matrix([[cosine, -sine, zero], [sine, cosine, zero], [zero, zero, one]])

        def moved(across: Tensor, down: Tensor) -> Tensor:
            return _matrix([[one, zero, across], [zero, one, down], [zero, zero, one]])

        warp = _Chain(len(x), x.device)  # of pixels (across, down, 1), (0, 0) in the middle of the image
        if "blit" in self.settings.transforms:
            flipped = torch.rand_like(one) < 0.5
            warp.then(self._chosen(x), scaled(torch.where(flipped, -one, one), one))
            quarters = torch.randint(4, (len(x),), device=x.device) * (math.pi / 2)
            warp.then(self._chosen(x), turned(quarters).round())
            offsets = [((torch.rand_like(one) * 2 - 1) * 0.125 * side).round() for side in (width, height)]
            warp.then(self._chosen(x), moved(*offsets))
        if "geometric" in self.settings.transforms:
            size = torch.exp2(0.2 * torch.randn_like(one))
            warp.then(self._chosen(x), scaled(size, size))
            # One rotation before the stretch and one behind it: that any happens has probability p.
            rotation = 1 - torch.sqrt(1 - self.p)
            warp.then(self._chosen(x, rotation), turned((torch.rand_like(one) * 2 - 1) * math.pi))
            stretch = torch.exp2(0.2 * torch.randn_like(one))
            warp.then(self._chosen(x), scaled(stretch, 1 / stretch))
            warp.then(self._chosen(x, rotation), turned((torch.rand_like(one) * 2 - 1) * math.pi))
            offsets = [0.125 * side * torch.randn_like(one) for side in (width, height)]
            warp.then(self._chosen(x), moved(*offsets))

        # kornia's first pixel is (0, 0).
        centre = ((width - 1) / 2 * one, (height - 1) / 2 * one)
        matrix = _product(_product(moved(*centre), warp.matrix), moved(-centre[0], -centre[1]))[:, :2]
        warped: Tensor = warp_affine(
            x, matrix.to(x.dtype), (height, width), padding_mode="reflection", align_corners=False
        )
        return torch.where(warp.touched[:, None, None, None], warped, x)

    def _coloured(self, x: Tensor) -> Tensor:
        one = torch.ones(len(x), device=x.device)
        identity = torch.eye(3, device=x.device)
        grey = torch.full((3, 3), LUMA**2, device=x.device)  # projects on the grey axis
        change = _Chain(len(x), x.device)  # of RGB
        brightened = self._chosen(x)
        brightness = torch.where(brightened, 0.2 * torch.randn_like(one), 0 * one)
        contrast = torch.exp2(0.5 * torch.randn_like(one))[:, None, None]
        change.then(self._chosen(x), contrast * identity)
        # Luma flip: mirrored at the plane across the grey axis.
        change.then(self._chosen(x) & (torch.rand_like(one) < 0.5), identity - 2 * grey)
        if x.shape[1] == 3:
            change.then(self._chosen(x), _hue((torch.rand_like(one) * 2 - 1) * math.pi))
            saturation = torch.exp2(torch.randn_like(one))[:, None, None]
            change.then(self._chosen(x), grey + (identity - grey) * saturation)
        # Brightness comes first, so the matrix changes it too.
        shift = change.matrix.sum(dim=2) * brightness[:, None]  # (N, 3)
        if x.shape[1] == 3:
            coloured = (change.matrix[..., None, None] * x[:, None]).sum(dim=2) + shift[..., None, None]
        else:
            # As RGB, and back to its mean.
            gain, offset = change.matrix.sum(dim=(1, 2)) / 3, shift.mean(dim=1)
            coloured = x * gain[:, None, None, None] + offset[:, None, None, None]
        return torch.where((brightened | change.touched)[:, None, None, None], coloured.to(x.dtype), x)


class _Chain:
    """One 3x3 matrix for each of `count` examples, the product of what happened to it."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.matrix = torch.eye(3, device=device).expand(count, 3, 3)
        self.touched = torch.zeros(count, dtype=torch.bool, device=device)

    def then(self, chosen: Tensor, transform: Tensor) -> None:
        """`transform` (N, 3, 3) or (3, 3) happens next, to the examples that are chosen (N,)."""
        self.matrix = torch.where(chosen[:, None, None], _product(transform, self.matrix), self.matrix)
        self.touched = self.touched | chosen


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    """Numbers (N,) in rows and columns: (N, rows, columns)."""
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of small matrices in full float32: a matrix multiplication on tensor cores may keep only 10 bits."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(dim=-2)


def _hue(angle: Tensor) -> Tensor:
    """Rotations (N, 3, 3) of RGB around the grey axis, by Rodrigues' formula."""
    identity = torch.eye(3, device=angle.device)
    cross = LUMA * (identity.roll(1, dims=0) - identity.roll(1, dims=1))  # cross @ v is the grey axis x v
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cosine * identity + sine * cross + (1 - cosine) * LUMA**2
