"""Measures of results, in float32, higher or lower as their docstrings say."""

from translate.metrics.images import l1, psnr, ssim

__all__ = ["l1", "psnr", "ssim"]
