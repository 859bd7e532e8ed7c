"""Measures of results: of pairs, of sets, of segmentations, codes and points; and numbers with their protocol.

Importing `translate.metrics` loads no torch, so that `scores` and `protocol` serve where there is nothing to compute.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from translate.metrics.images import l1 as l1
    from translate.metrics.images import ms_ssim as ms_ssim
    from translate.metrics.images import psnr as psnr
    from translate.metrics.images import ssim as ssim

__all__ = ["l1", "ms_ssim", "psnr", "ssim"]


def __getattr__(name: str) -> object:
    """Load the measures of pairs on first use."""
    if name in __all__:
        from translate.metrics import images

        return getattr(images, name)
    raise AttributeError(f"module 'translate.metrics' has no attribute {name!r}")
