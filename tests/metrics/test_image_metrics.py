"""Metrics against scikit-image (a development dependency only) and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from translate.metrics import l1, psnr, ssim


def batch(height: int, width: int, channels: int = 3, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """A batch of 3 images with structure, and noisier and noisier copies; both within [-1, 1]."""
    generator = torch.Generator().manual_seed(height * width)
    target = torch.rand(3, channels, height + 4, width + 4, generator=generator) * 2 - 1
    target = (2 * avg_pool2d(target, 5, stride=1)).clamp(-1, 1)
    steps = torch.tensor([0.2, 1, 3]).reshape(3, 1, 1, 1)
    fake = target + noise * steps * torch.randn(target.shape, generator=generator)
    return fake.clamp(-1, 1), target


def as_array(image: Tensor) -> np.ndarray:
    return ((image.double() + 1) / 2).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_is_that_of_scikit_image(channels: int) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    fake, target = batch(32, 48, channels)
    expected = [
        metrics.peak_signal_noise_ratio(as_array(t), as_array(f), data_range=1)
        for f, t in zip(fake, target, strict=True)
    ]
    assert psnr(fake, target).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (11, 11), (17, 11)])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels: int, height: int, width: int) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    fake, target = batch(height, width, channels)
    # Its Gaussian reaches 3.5 sigma = 5 pixels, so 11x11; its mean omits a border of 5: our valid region.
    expected = [
        metrics.structural_similarity(
            as_array(t),
            as_array(f),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        for f, t in zip(fake, target, strict=True)
    ]
    assert ssim(fake, target).tolist() == pytest.approx(expected, abs=1e-4)


def test_values_by_hand() -> None:
    target = torch.zeros(2, 3, 16, 16)
    fake = target + torch.tensor([0.2, -1.0]).reshape(2, 1, 1, 1)  # 0.1 and 0.5 on the scale of 0 to 1
    assert l1(fake, target).tolist() == pytest.approx([0.1, 0.5])
    assert psnr(fake, target).tolist() == pytest.approx([20, 20 * math.log10(2)])
    # Flat images have no variance: the luminance term alone, (2 a b + C1) / (a² + b² + C1).
    expected = [(2 * 0.5 * a + 1e-4) / (0.25 + a**2 + 1e-4) for a in (0.6, 0.0)]
    assert ssim(fake, target).tolist() == pytest.approx(expected, abs=1e-4)


def test_an_exact_copy_has_the_best_and_finite_values() -> None:
    _, target = batch(16, 16)
    assert l1(target, target).tolist() == [0, 0, 0]
    assert psnr(target, target).tolist() == pytest.approx([100] * 3)
    assert ssim(target, target).tolist() == pytest.approx([1] * 3)


@pytest.mark.parametrize("metric", [l1, psnr, ssim])
def test_one_float32_value_per_image_whatever_its_mates(metric: object) -> None:
    assert callable(metric)
    fake, target = batch(24, 24)
    values = metric(fake.bfloat16(), target)
    assert values.shape == (3,)
    assert values.dtype is torch.float32
    fake.requires_grad_()
    alone = torch.cat([metric(fake[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(metric(fake, target), alone)
    assert not alone.requires_grad
    # Values beyond [-1, 1] cannot be written to a file: they count as the nearest that can.
    torch.testing.assert_close(metric(3 * target, fake), metric((3 * target).clamp(-1, 1), fake))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (10, 64), (8, 8), (1, 64)])
def test_images_below_the_window_have_an_ssim_in_order(height: int, width: int) -> None:
    # Noise enough for a fair difference, even of one pixel.
    target = torch.linspace(-1, 0, height * width * 3).reshape(1, 3, height, width)
    values = [ssim(target + step, target).item() for step in (0.0, 0.2, 0.8)]
    assert values[0] == pytest.approx(1)
    assert 1 > values[1] > values[2] > -1


@pytest.mark.parametrize("metric", [l1, psnr, ssim])
def test_shapes_must_agree(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="one shape"):
        metric(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))
