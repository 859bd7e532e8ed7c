"""The second-order degradation: kernels against closed forms, noise against its moments, JPEG against libjpeg."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from kornia.enhance import jpeg_codec_differentiable
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from translate.data.degradation import SecondOrderSettings, second_order
from translate.data.degradation.jpeg import _constants, jpeg, steps
from translate.data.degradation.kernels import generalised_gaussian, mahalanobis, plateau, pulse, sinc
from translate.data.degradation.noise import gaussian_noise, luma, poisson_noise
from translate.data.degradation.second_order import BlurSettings, blur_kernels

LARGEST = {1: 10.8, 2: 13.8, 7: 24.3}
"""Of chi-square by its degrees of freedom: a thousandth of all draws exceed it (tables of the distribution)."""


def chi_square(seen: Mapping[Any, int], expected: Mapping[Any, float]) -> float:
    """Counts against shares."""
    assert set(seen) <= set(expected)
    total = sum(seen.values())
    return sum((seen.get(key, 0) - share * total) ** 2 / (share * total) for key, share in expected.items())


def photographs(count: int, height: int, width: int, channels: int = 3) -> list[np.ndarray]:
    """(H, W, C) uint8 with the falling spectrum of photographs: noise at several scales, stronger the coarser."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        picture = np.full((height, width, channels), 128.0)
        for octave in (2, 4, 8, 16, 32):
            coarse = generator.normal(size=(height // octave + 2, width // octave + 2, channels))
            grown = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(picture.shape)
            picture += grown * 4 * octave**0.6
        found.append(picture.round().clip(0, 255).astype(np.uint8))
    return found


def as_tensor(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


# ------------------------------------------------------------------------------------------------ kernels


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def by_hand(size: int, deviations: tuple[float, float], angle: float) -> np.ndarray:
    """x^T S^-1 x with S = U D U^T, in matrices as the paper has it."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag(np.square(deviations)) @ turn.T)
    found = np.empty((size, size))
    for row, column in itertools.product(range(size), repeat=2):
        x = np.array([column - size // 2, row - size // 2])
        found[row, column] = x @ inverse @ x
    return found


def test_kernels_against_matrices() -> None:
    deviations, angle, shape = (0.7, 2.2), 0.6, 1.7
    distance = mahalanobis(11, torch.tensor([deviations], dtype=torch.float64), number(angle))
    plain = by_hand(11, deviations, angle)
    np.testing.assert_allclose(distance[0].numpy(), plain, rtol=1e-12, atol=1e-12)
    inside = np.zeros((11, 11))
    inside[2:-2, 2:-2] = 1  # a support of 7 pixels
    for kernel, law in (
        (generalised_gaussian, lambda d: np.exp(-0.5 * d**shape)),
        (plateau, lambda d: 1 / (1 + d**shape)),
    ):
        expected = law(plain) * inside
        found = kernel(distance, number(shape), torch.tensor([7]))[0].numpy()
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("angle", [0.0, 0.5, -2.0])
def test_a_gaussian_has_the_covariance_that_was_asked_for(angle: float) -> None:
    """Sampled at whole pixels and cut at 5 deviations, its moments are off by less than 1e-4 of themselves."""
    distance = mahalanobis(21, torch.tensor([[1.2, 2.0]], dtype=torch.float64), number(angle))
    kernel = generalised_gaussian(distance, number(1.0), torch.tensor([21]))[0].numpy()
    down, across = np.mgrid[-10:11, -10:11]
    assert kernel.sum() == pytest.approx(1)
    found = [[(kernel * a * b).sum() for b in (across, down)] for a in (across, down)]
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    np.testing.assert_allclose(found, turn @ np.diag([1.44, 4.0]) @ turn.T, atol=4e-4)


def test_sinc_against_bessels_integral() -> None:
    """J1(x) = 1/pi * integral of cos(t - x sin t) from 0 to pi; the mean of a periodic function's samples is exact."""
    cutoff, size, support = 1.3, 11, 9
    angles = (np.arange(400) + 0.5) * math.pi / 400
    expected = np.zeros((size, size))
    for row, column in itertools.product(range(1, 10), repeat=2):
        radius = math.hypot(row - 5, column - 5)
        bessel = np.cos(angles - cutoff * radius * np.sin(angles)).mean()
        expected[row, column] = cutoff * bessel / (2 * math.pi * radius) if radius else cutoff**2 / (4 * math.pi)
    found = sinc(size, number(cutoff), torch.tensor([support]))[0].numpy()
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-7)  # torch's J1 is good to some 1e-8


def test_sinc_lets_low_frequencies_pass() -> None:
    """A long one: waves below the cut-off stay, those above go, whatever their direction; it rings by a tenth."""
    kernel = sinc(61, number(math.pi / 2), torch.tensor([61]))[0]
    place = torch.arange(61, dtype=torch.float64) - 30
    for angle in (0.0, 0.4, 0.8):
        along = math.cos(angle) * place + math.sin(angle) * place[:, None]
        assert (kernel * torch.cos(0.3 * math.pi * along)).sum().item() == pytest.approx(1, abs=0.1)
        assert (kernel * torch.cos(0.7 * math.pi * along)).sum().item() == pytest.approx(0, abs=0.1)


def test_kernels_as_often_as_asked() -> None:
    """Only sinc kernels have negative values; round ones are their own quarter turn, and longish ones are not."""
    kernels = blur_kernels(BlurSettings(), 1500, torch.Generator().manual_seed(0))
    assert kernels.shape == (1500, 21, 21) and kernels.isfinite().all()
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(1500, dtype=torch.float64))
    torch.testing.assert_close(kernels, kernels.flip(1, 2))  # nothing moves
    ringing = (kernels < 0).any(2).any(1)
    turned = (kernels - kernels.rot90(1, (1, 2))).abs().amax((1, 2)) < 1e-9
    seen = Counter(
        "sinc" if a else "iso" if b else "aniso" for a, b in zip(ringing.tolist(), turned.tolist(), strict=True)
    )
    # Even the narrowest longish Gaussian differs from its turn: deviations are drawn apart.
    assert chi_square(seen, {"sinc": 0.1, "iso": 0.9 * 0.69, "aniso": 0.9 * 0.31}) < LARGEST[2]


def test_every_size_is_as_likely() -> None:
    settings = BlurSettings(shapes={"plateau-iso": 1.0}, sinc=0)
    kernels = blur_kernels(settings, 2000, torch.Generator().manual_seed(0))
    seen = Counter((kernels[:, 10] > 0).sum(1).tolist())
    assert chi_square(seen, dict.fromkeys(range(7, 22, 2), 1 / 8)) < LARGEST[7]


# -------------------------------------------------------------------------------------------------- noise


def test_gaussian_noise_has_its_deviation() -> None:
    """Of 3 x 96 x 96 values the deviation is known to 1 / sqrt(2 n) = 0.4 %; four times that is allowed."""
    deviation = torch.tensor([1.0, 10.0, 30.0, 5.0])
    grey = torch.tensor([False, False, False, True])
    torch.manual_seed(0)
    noise = gaussian_noise(torch.zeros(4, 3, 96, 96), deviation, grey) * 255
    torch.testing.assert_close(noise[:3].flatten(1).std(1), deviation[:3], rtol=0.017, atol=0)
    assert noise[3, 0].std().item() == pytest.approx(5, rel=0.03)  # a third as many values
    assert noise.flatten(1).mean(1).abs().le(4 * deviation / 96).all()
    assert torch.equal(noise[3, 0], noise[3, 1]) and torch.equal(noise[3, 0], noise[3, 2])
    correlation = torch.corrcoef(noise[0].flatten(1))
    assert (correlation - torch.eye(3)).abs().max() < 4 / 96
    assert not torch.equal(noise[0] / deviation[0], noise[1] / deviation[1])


@pytest.mark.parametrize(("levels", "counts"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (129, 256), (256, 256)])
def test_poisson_noise_is_that_of_counting(levels: int, counts: int) -> None:
    """Of a mean count of m = counts * light, a share of the count has the variance light / counts.

    n = 3 x 128 x 128 values: the mean is known to sqrt(variance / n), and the variance to sqrt((2 + 1 / m) / n) of
    itself, m the smallest mean count; four times that is allowed.
    """
    line = torch.arange(256.0) if levels == 256 else torch.arange(levels) * (200 // levels) + 50.0
    light = (line[torch.arange(128 * 128) % levels] / 255).view(1, 1, 128, 128).expand(1, 3, -1, -1)
    torch.manual_seed(0)
    noise = poisson_noise(light, torch.tensor([1.0]), torch.tensor([False]))
    variance = light.mean() / counts
    assert noise.mean().abs() < 4 * (variance / noise.numel()).sqrt()
    smallest = counts * float(light[light > 0].min())
    bound = 4 * math.sqrt((2 + 1 / smallest) / noise.numel())
    assert noise.square().mean().item() == pytest.approx(float(variance), rel=bound)
    torch.manual_seed(0)
    torch.testing.assert_close(poisson_noise(light, torch.tensor([0.5]), torch.tensor([False])), 0.5 * noise)


def test_grey_poisson_noise_is_that_of_the_luma() -> None:
    colour = torch.tensor([1.0, 0.2, 0.6]).view(1, 3, 1, 1).expand(1, 3, 96, 96)
    torch.manual_seed(0)
    noise = poisson_noise(colour, torch.tensor([1.0]), torch.tensor([True]))
    assert torch.equal(noise[:, 0], noise[:, 1]) and torch.equal(noise[:, 0], noise[:, 2])
    light = round((0.299 + 0.587 * 0.2 + 0.114 * 0.6) * 255) / 255
    assert luma(colour).mean().item() * 255 == pytest.approx(light * 255, abs=0.5)
    assert noise[:, 0].var().item() == pytest.approx(light, rel=4 * math.sqrt((2 + 1 / light) / 96**2))


# --------------------------------------------------------------------------------------------------- JPEG


def libjpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, C) through a file that OpenCV's libjpeg writes and reads."""
    channels = picture.shape[2]
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    found = cv2.imdecode(data, cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE)
    return found.reshape(picture.shape)[..., ::-1]


@pytest.mark.parametrize("quality", [1, 10, 30, 49, 50, 51, 75, 95, 100])
def test_the_steps_are_those_in_a_file(quality: int) -> None:
    _, data = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    content = data.tobytes()
    # Coefficients stand along the diagonals, to and fro (T.81, figure A.6).
    order = sorted(np.ndindex(8, 8), key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))
    tables: dict[int, np.ndarray] = {}
    at = content.index(b"\xff\xdb")
    while content[at + 1] == 0xDB:
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        for begin in range(at + 4, at + 2 + length, 65):
            table = np.empty((8, 8))
            for place, step in zip(order, content[begin + 1 : begin + 65], strict=True):
                table[place] = step
            tables[content[begin]] = table
        at += 2 + length
    constants = _constants(torch.device("cpu"))
    for number, table in enumerate((constants.luma, constants.chroma)):
        np.testing.assert_array_equal(steps(table, torch.tensor([float(quality)]))[0], tables[number])


@pytest.mark.parametrize("size", [(96, 96), (50, 71), (8, 8), (3, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_against_libjpeg(size: tuple[int, int], channels: int) -> None:
    """Each image at its own quality. A few coefficients are rounded to the other side, by libjpeg's integer transforms,
    and so are colours between the resolutions: less than a level on average, where JPEG itself changes five and more.
    (In colour, pictures of less than a block lie wholly where libjpeg fills up with other rows: within 2.5.)"""
    pictures = photographs(4, *size, channels)
    qualities = [30, 50, 75, 95]
    expected = as_tensor([libjpeg(each, quality) for each, quality in zip(pictures, qualities, strict=True)])
    found = jpeg(as_tensor(pictures), torch.tensor(qualities).float())
    difference = 255 * (found - expected).abs()
    if channels == 3 and max(size) < 16:
        assert difference.mean() < 2.5
        return
    assert difference.mean() < (0.4 if channels == 1 else 1.0)
    assert (difference > 3).float().mean() < 0.05
    lost = 255 * (as_tensor(pictures) - expected).abs()
    assert difference.mean() < lost.mean() / 5


def test_jpeg_is_nearer_than_kornias() -> None:
    """The reason why it is written here: rounding that lets gradients pass leaves a part of what a file loses."""
    pictures = photographs(4, 96, 96)
    qualities = torch.tensor([30.0, 50.0, 75.0, 95.0])
    expected = as_tensor([libjpeg(each, int(quality)) for each, quality in zip(pictures, qualities, strict=True)])
    ours = (jpeg(as_tensor(pictures), qualities) - expected).abs().mean()
    theirs = (jpeg_codec_differentiable(as_tensor(pictures), qualities) - expected).abs().mean()
    assert ours < theirs / 2


def test_a_grey_picture_is_grey_as_rgb_too() -> None:
    grey = as_tensor(photographs(2, 32, 40, 1))
    quality = torch.tensor([40.0, 80.0])
    as_rgb = jpeg(grey.expand(-1, 3, -1, -1), quality)
    torch.testing.assert_close(as_rgb, jpeg(grey, quality).expand(-1, 3, -1, -1))


# -------------------------------------------------------------------------------------------------- whole

OFF: dict[str, Any] = {"blur": None, "resize": None, "noise": None, "jpeg": None}


def degradation(first: Any = None, second: Any = None, scale: int = 1, **keys: Any) -> second_order.SecondOrder:
    """With nothing but the parts that are named."""
    whole = {"first": {**OFF, **(first or {})}, "second": {**OFF, **(second or {})}, "final_sinc": 0, **keys}
    return SecondOrderSettings.model_validate(whole).build(scale)


def test_everything_off_changes_nothing() -> None:
    high = as_tensor(photographs(2, 24, 32)) * 2 - 1
    torch.testing.assert_close(degradation()(high), high, atol=1e-6, rtol=0)


def test_one_part_alone() -> None:
    pictures = photographs(2, 40, 48)
    high = as_tensor(pictures) * 2 - 1
    levels = as_tensor(pictures) * 255

    blur = {"shapes": {"iso": 1}, "deviation": [1.5, 1.5], "sizes": [21, 21], "sinc": 0, "probability": 1}
    expected = as_tensor(
        [cv2.GaussianBlur(each, (21, 21), 1.5, borderType=cv2.BORDER_REFLECT_101) for each in pictures]
    )
    for part in (degradation(first={"blur": blur}), degradation(second={"blur": blur})):
        found = (part(high) + 1) / 2
        assert (found - expected).abs().max() * 255 < 1.01  # rounded on both sides
    stored = jpeg(as_tensor(pictures), torch.tensor([60.0, 60.0]))
    for part in (degradation(first={"jpeg": [60, 60]}), degradation(second={"jpeg": [60, 60]})):
        torch.testing.assert_close((part(high) + 1) / 2, stored, atol=1e-6, rtol=0)
    noisy = degradation(first={"noise": {"gaussian": 1, "deviation": [4, 4]}})
    torch.manual_seed(0)
    difference = (noisy(high) + 1) * 127.5 - levels
    inside = (levels > 20) & (levels < 235)
    # Rounding adds a variance of 1/12 to 16. 4 / sqrt(2 n), n a third of the values where noise is grey.
    assert difference[inside].std().item() == pytest.approx(math.sqrt(16 + 1 / 12), rel=0.06)
    ringing = degradation(final_sinc=1)
    torch.manual_seed(0)
    assert not torch.equal(ringing(high), high)
    smaller = degradation(first={"resize": {"up": 0, "down": 1, "keep": 0, "range": [0.5, 1]}})
    torch.manual_seed(0)
    assert 0 < (smaller(high) - high).abs().mean() < 0.2


def test_the_seed_decides() -> None:
    high = as_tensor(photographs(3, 32, 32)) * 2 - 1
    part = SecondOrderSettings().build(4)

    def seen(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return part(high)

    assert torch.equal(seen(0), seen(0))
    assert not torch.equal(seen(0), seen(1))
    before = torch.get_rng_state()
    assert torch.equal(part(high, torch.Generator().manual_seed(1)), seen(1))
    torch.set_rng_state(before)
    part(high, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)  # a generator of one's own leaves torch's alone


def test_images_of_a_batch_differ() -> None:
    high = as_tensor(photographs(1, 32, 32)).expand(6, -1, -1, -1) * 2 - 1
    torch.manual_seed(0)
    low = SecondOrderSettings().build(2)(high)
    assert len(torch.unique(low.flatten(1), dim=0)) == 6


def test_branches_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called, in which order, over 250 batches of a small image, against the shares of Real-ESRGAN."""
    calls: list[tuple[str, Any]] = []

    def recorded(name: str, function: Any, what: Any = lambda *arguments, **keys: None) -> Any:
        def call(*arguments: Any, **keys: Any) -> Any:
            calls.append((name, what(*arguments, **keys)))
            return function(*arguments, **keys)

        return call

    for name in ("gaussian_noise", "poisson_noise", "jpeg", "blur_kernels"):
        monkeypatch.setattr(second_order, name, recorded(name, getattr(second_order, name)))

    def told(x: Tensor, size: tuple[int, int], mode: str) -> tuple[int, int, str]:
        return x.shape[2], size[0], mode

    monkeypatch.setattr(F, "interpolate", recorded("resize", F.interpolate, told))
    part = SecondOrderSettings().build(2)
    torch.manual_seed(0)
    seen: dict[str, Counter[Any]] = {
        name: Counter() for name in ("first", "second", "modes", "noise", "blur", "last", "range")
    }
    for _ in range(250):
        calls.clear()
        part(torch.zeros(1, 1, 64, 8))
        names = [name for name, _ in calls]
        resizes = [what for name, what in calls if name == "resize"]
        assert len(resizes) == 3 and names.count("jpeg") == 2 and resizes[-1][1] == 32
        for key, size, own in (("first", resizes[0][1], 64), ("second", resizes[1][1], 32)):
            seen[key]["down" if size < own else "up" if size > own else "keep"] += 1
        assert 64 * 0.15 - 1 < resizes[0][1] <= 64 * 1.5 and 32 * 0.3 - 1 < resizes[1][1] <= 32 * 1.2
        seen["modes"].update(mode for *_, mode in resizes)
        seen["noise"].update(name for name in names if name.endswith("noise"))
        seen["blur"][names.count("blur_kernels")] += 1
        seen["last"]["jpeg" if names[-1] == "jpeg" else "resize"] += 1
    # A factor just above 1 is rounded down to none: a 32nd of (1, 1.5) of 64 pixels, a sixth of (1, 1.2) of 32.
    up, second_up = 0.2 * (1 - 1 / 32), 0.3 * (1 - 1 / 6.4)
    assert chi_square(seen["first"], {"up": up, "down": 0.7, "keep": 0.3 - up}) < LARGEST[2]
    assert chi_square(seen["second"], {"up": second_up, "down": 0.4, "keep": 0.6 - second_up}) < LARGEST[2]
    assert chi_square(seen["modes"], dict.fromkeys(second_order.MODES, 1 / 3)) < LARGEST[2]
    assert chi_square(seen["noise"], {"gaussian_noise": 0.5, "poisson_noise": 0.5}) < LARGEST[1]
    assert chi_square(seen["blur"], {1: 0.2, 2: 0.8}) < LARGEST[1]
    assert chi_square(seen["last"], {"jpeg": 0.5, "resize": 0.5}) < LARGEST[1]


def test_tiny_and_odd_crops_stay_finite() -> None:
    part = SecondOrderSettings().build(4)
    torch.manual_seed(0)
    for _ in range(12):
        for shape in ((1, 3, 8, 8), (2, 1, 4, 12), (1, 3, 20, 4)):
            low = part(torch.rand(shape) * 2 - 1)
            assert low.isfinite().all() and low.shape[2:] == (shape[2] // 4, shape[3] // 4)
    for flat in (-1.0, 1.0):  # no light, no room above
        assert part(torch.full((1, 3, 8, 8), flat)).isfinite().all()


def test_a_pulse_changes_nothing() -> None:
    x = torch.rand(2, 3, 30, 30)
    torch.testing.assert_close(second_order._filtered(x, pulse(2, 21)), x)


def test_keys_of_the_second_stage_keep_their_own_defaults() -> None:
    settings = SecondOrderSettings.model_validate({"second": {"blur": {"sinc": 0}, "noise": None}})
    assert settings.second.blur is not None and settings.second.resize is not None
    assert settings.second.blur.deviation == (0.2, 1.5) and settings.second.blur.probability == 0.8
    assert settings.second.noise is None and settings.second.resize.range == (0.3, 1.2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"first": {"jpeg": [95, 30]}}, "its lower end first, not 95 to 30"),
        ({"first": {"jpeg": [0, 30]}}, "greater than or equal to 1"),
        ({"first": {"blur": {"sizes": [8, 21]}}}, "expected odd numbers"),
        ({"first": {"blur": {"shapes": {"iso": 0}}}}, "'shapes' needs a share above 0"),
        ({"first": {"blur": {"generalised": [2, 3]}}}, "a range around 1"),
        ({"second": {"resize": {"range": [1.1, 1.2]}}}, "a range around 1"),
        ({"second": {"resize": {"up": 0, "down": 0, "keep": 0}}}, "must be above 0"),
        ({"final_sinc": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense(keys: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SecondOrderSettings.model_validate(keys)
