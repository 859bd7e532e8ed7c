"""How images are measured: what a number depends on besides the images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from translate.settings import Settings

Resize = Literal["tensorflow", "clean", "pytorch"]


class ProtocolSettings(Settings):
    """The choices that every number is printed with."""

    channels: Literal["rgb", "luma"] = "rgb"
    """What PSNR, SSIM, MS-SSIM and L1 look at: all channels, or Y of BT.601 (16 to 235), as super-resolution does."""
    border: int = Field(default=0, ge=0)
    """Pixels left out at each side for the same measures (super-resolution leaves out its factor)."""
    features: str = "inception"
    """The network of the set measures: `inception`, or `package.module:callable` that returns one."""
    resize: Resize = "tensorflow"
    """How images come to Inception's 299x299: as the first FID did (TensorFlow 1, bilinear without half pixels), as
    clean-fid (bicubic with antialiasing), or as pytorch-fid (bilinear with half pixels)."""
    crop: int | None = Field(default=None, ge=1)
    """Set measures see the central square of this side, the shorter side resized to it before; null for all."""
    kept: int = Field(default=10_000, ge=2)
    """Images of a set whose features are kept, for KID, precision, recall, density and coverage; FID takes all."""
