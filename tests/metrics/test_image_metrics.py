"""Metrics against scikit-image (a development dependency only) and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from translate.errors import UserError
from translate.metrics import l1, ms_ssim, psnr, ssim
from translate.metrics.images import inner, luma

ndimage = pytest.importorskip("scipy.ndimage")


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


def by_scikit_image(fake: Tensor, target: Tensor) -> list[float]:
    """SSIM of each image. Its Gaussian reaches 3.5 sigma = 5 pixels, so 11x11; its mean omits a border of 5: our valid
    region."""
    metrics = pytest.importorskip("skimage.metrics")
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return [
        metrics.structural_similarity(as_array(t), as_array(f), data_range=1, channel_axis=-1, **settings)
        for f, t in zip(fake, target, strict=True)
    ]


def ms_ssim_in_numpy(x: np.ndarray, y: np.ndarray, last_border: int = 5) -> float:
    """Of one channel (H, W) in [0, 1], float64, as Wang, Simoncelli and Bovik wrote it: five blurred maps, products.
    At the last scale `last_border` pixels are left out: 5 are those whose window leaves the image."""

    def blurred(image: np.ndarray, border: int) -> np.ndarray:
        whole = ndimage.gaussian_filter(image, 1.5, radius=5, mode="mirror")
        return whole[border : len(whole) - border, border : whole.shape[1] - border]

    def halved(image: np.ndarray) -> np.ndarray:
        height, width = image.shape
        whole = np.pad(image, ((0, height % 2), (0, width % 2)), mode="symmetric")
        return whole.reshape(whole.shape[0] // 2, 2, whole.shape[1] // 2, 2).mean(axis=(1, 3))

    result = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            x, y = halved(x), halved(y)
        border = last_border if scale == 4 else 5
        mx, my, xx, yy, xy = (blurred(image, border) for image in (x, y, x * x, y * y, x * y))
        vx, vy, covariance = xx - mx * mx, yy - my * my, xy - mx * my
        value = (2 * covariance + 0.03**2) / (vx + vy + 0.03**2)
        if scale == 4:
            value = value * (2 * mx * my + 0.01**2) / (mx * mx + my * my + 0.01**2)
        result *= max(value.mean(), 0.0) ** weight
    return result


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
    fake, target = batch(height, width, channels)
    assert ssim(fake, target).tolist() == pytest.approx(by_scikit_image(fake, target), abs=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_float64_is_exact_and_float32_nearly(channels: int) -> None:
    """In float64 only the order of sums differs. In float32 a pixel's terms are rounded to 6e-8 of at most 1, which
    stands against a constant of 9e-4 where an image is flat: up to 1e-4 there, either sign, so that the mean of
    thousands is below 1e-6."""
    metrics = pytest.importorskip("skimage.metrics")
    for noise in (0.01, 0.1):
        fake, target = (side.double() for side in batch(40, 57, channels, noise))
        fake[0], target[0] = fake[0] / 30 + 0.9, target[0] / 30 + 0.9  # flat and bright
        expected = by_scikit_image(fake, target)
        assert ssim(fake, target).dtype is torch.float64
        assert ssim(fake, target).tolist() == pytest.approx(expected, abs=1e-10)
        assert ssim(fake.float(), target.float()).tolist() == pytest.approx(expected, abs=1e-6)
        ratios = [
            metrics.peak_signal_noise_ratio(as_array(t), as_array(f), data_range=1)
            for f, t in zip(fake, target, strict=True)
        ]
        assert psnr(fake, target).tolist() == pytest.approx(ratios, abs=1e-10)
        means = [np.abs(as_array(f) - as_array(t)).mean() for f, t in zip(fake, target, strict=True)]
        assert l1(fake, target).tolist() == pytest.approx(means, abs=1e-14)


@pytest.mark.parametrize(("height", "width"), [(176, 192), (161, 167), (163, 190)])
def test_ms_ssim_is_that_of_the_paper(height: int, width: int) -> None:
    fake, target = (side.double() for side in batch(height, width))
    x, y = ((side + 1) / 2 for side in (fake, target))
    expected = [np.mean([ms_ssim_in_numpy(x[i, c].numpy(), y[i, c].numpy()) for c in range(3)]) for i in range(3)]
    assert min(expected) < 0.9  # there is something to measure
    assert ms_ssim(fake, target).tolist() == pytest.approx(expected, abs=1e-10)
    # Float32: the error of a scale's mean (see above), times powers that add up to one.
    assert ms_ssim(fake.float(), target.float()).tolist() == pytest.approx(expected, abs=1e-6)


def test_ms_ssim_without_likeness_is_zero_not_nan() -> None:
    """The negative of an image has negative structure; its power would be no number."""
    _, target = batch(161, 161)
    assert ms_ssim(-target, target).tolist() == [0, 0, 0]


@pytest.mark.slow  # torchmetrics takes seconds to import
def test_ms_ssim_differs_from_that_of_torchmetrics_by_its_last_border() -> None:
    """It mirrors the image at its borders, and leaves those pixels out again but at the last scale, whose mean has
    them. So the writing above equals it with them, and ours without; they differ by up to 3e-3 here.

    Even sizes, since it drops an odd last row; one channel, since it takes the mean of the channels before the powers.
    Its variances are differences in float32: 1e-4 / 9e-4 where an image is flat, far less in the mean."""
    functional = pytest.importorskip("torchmetrics.functional.image")
    fake, target = batch(192, 256, channels=1)
    for x, y, value in zip((fake + 1) / 2, (target + 1) / 2, ms_ssim(fake, target).tolist(), strict=True):
        theirs = functional.multiscale_structural_similarity_index_measure(x[None], y[None], data_range=1.0).item()
        pictures = x[0].double().numpy(), y[0].double().numpy()
        assert theirs == pytest.approx(ms_ssim_in_numpy(*pictures, last_border=0), abs=1e-5)
        assert value == pytest.approx(ms_ssim_in_numpy(*pictures), abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(160, 300), (300, 160), (11, 11)])
def test_ms_ssim_says_which_size_it_needs(height: int, width: int) -> None:
    with pytest.raises(UserError, match=rf"at least 161 pixels, not {width}x{height}"):
        ms_ssim(*batch(height, width))


def test_luma_of_known_colours() -> None:
    # ITU-R BT.601, 8 bit: white 235, black 16, red, green, blue as MATLAB's rgb2ycbcr before it rounds.
    colours = {(1, 1, 1): 235.0, (0, 0, 0): 16.0, (1, 0, 0): 81.481, (0, 1, 0): 144.553, (0, 0, 1): 40.966}
    images = torch.tensor([list(rgb) for rgb in colours], dtype=torch.float64).reshape(5, 3, 1, 1) * 2 - 1
    levels = (luma(images).flatten() + 1) * 127.5
    assert levels.tolist() == pytest.approx(list(colours.values()), abs=1e-9)
    assert luma(images.bfloat16()).dtype is torch.float32
    assert torch.equal(luma(3 * images), luma(images))  # as everywhere, what no file could hold is clamped


def test_grey_passes_luma_and_grey_as_rgb_gains() -> None:
    fake, target = (side.double() for side in batch(16, 16, channels=1, noise=0.05))
    assert torch.equal(luma(fake), fake)
    gain = psnr(*(luma(side.expand(-1, 3, -1, -1)) for side in (fake, target))) - psnr(fake, target)
    assert gain.tolist() == pytest.approx([20 * math.log10(255 / 219)] * 3)


def test_luma_needs_grey_or_colours() -> None:
    with pytest.raises(UserError, match="not 4 channels"):
        luma(torch.zeros(1, 4, 2, 2))


def test_inner_leaves_the_border_out() -> None:
    images = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert inner(images, 1).tolist() == [[[[7, 8, 9, 10], [13, 14, 15, 16]]]]
    assert inner(images, 0).shape == images.shape
    with pytest.raises(UserError, match="2 pixels at each side leave nothing of an image of 6x4"):
        inner(images, 2)


@pytest.mark.parametrize("metric", [l1, psnr, ssim, ms_ssim])
def test_what_is_no_number_stays_with_its_image(metric: object) -> None:
    assert callable(metric)
    fake, target = batch(161, 161)
    fake[1, 2, 80, 80] = math.nan
    assert metric(fake, target).isnan().tolist() == [False, True, False]


def test_ssim_ignores_autocast() -> None:
    fake, target = batch(24, 24)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim(fake, target)
    assert torch.equal(inside, ssim(fake, target))


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
