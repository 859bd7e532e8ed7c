"""MATLAB's imresize against its own results, a plain writing of its algorithm, cases by hand and Pillow."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from translate.data.files import find_images
from translate.data.images import read_pixels
from translate.data.matlab import Convention, contributions, imresize
from translate.data.spec import ImageSpec

SETS = Path(__file__).parents[3] / "shared/data/sr_test"
"""Research data that the repository cannot hold: beside it, where it was developed."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def line_by_hand(line: list[float], out: int, scale: float) -> list[float]:
    """One line as MATLAB's documentation of imresize tells it, pixel by pixel, counted from 1."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    stretch = min(scale, 1.0)
    mirrored = [*line, *reversed(line)]
    resized: list[float] = []
    for number in range(1, out + 1):
        centre = number / scale + (1 - 1 / scale) / 2
        total = norm = 0.0
        for pixel in range(math.ceil(centre - 2 / stretch), math.floor(centre + 2 / stretch) + 1):
            share = cubic(stretch * (centre - pixel))
            total += share * mirrored[(pixel - 1) % len(mirrored)]
            norm += share
        resized.append(total / norm)
    return resized


def rounded(values: list[float]) -> list[float]:
    return [min(255, max(0, math.floor(value + 0.5))) for value in values]


def by_hand(image: Tensor, scale: float, convention: Convention) -> Tensor:
    """(H, W) of whole numbers -> float64: the columns, then the rows."""
    lines = image.T.tolist()
    for _ in range(2):
        lines = [line_by_hand(line, math.ceil(len(line) * scale), scale) for line in lines]
        if convention == "uint8":
            lines = [rounded(line) for line in lines]
        lines = [list(line) for line in zip(*lines, strict=True)]
    return torch.tensor(lines, dtype=torch.float64).T


SCALES = [1 / 4, 1 / 2, 1 / 8, 2, 4, 8, 1]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(13, 18), (1, 9), (37, 3)])
def test_bytes_are_those_of_the_plain_writing(scale: float, shape: tuple[int, int]) -> None:
    """Powers of 2: no rounding error decides about halves, in float32 (all but 1/8) or float64. Sizes need not divide;
    some are smaller than the kernel, which then sees the mirrored line several times."""
    image = noise(*shape)
    expected = by_hand(image, scale, "uint8")
    assert torch.equal(imresize(image[None, None], scale, convention="uint8")[0, 0].double(), expected)
    assert torch.equal(imresize(image[None, None].float(), scale, convention="uint8")[0, 0].double(), expected)


@pytest.mark.parametrize("scale", [*SCALES, 1 / 3, 1.5, 0.7])
def test_doubles_are_those_of_the_plain_writing(scale: float) -> None:
    image = noise(12, 19)
    expected = by_hand(image, scale, "double")
    found = imresize(image[None, None].double(), scale)[0, 0]
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)  # 255 times some 2^-52, per tap
    single = imresize(image[None, None].float(), scale)[0, 0]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, atol=2e-4, rtol=0)  # 255 times some 2^-24, per tap


@pytest.mark.parametrize("scale", [1 / 4, 2])
def test_blocks_meet_without_a_seam(scale: float) -> None:
    line = noise(1, 333)
    expected = by_hand(line, scale, "double")
    torch.testing.assert_close(imresize(line[None, None].double(), scale)[0, 0], expected, atol=1e-11, rtol=0)


def test_a_literal_case() -> None:
    """8 bytes to 2, worked on paper. The kernel spreads over 16 pixels: the 8, and their mirror images at both ends.

    The centres lie between pixels 1 and 2, and 5 and 6. The weight at a distance of d = 0.5, 1.5 ... 7.5 is
    cubic(d / 4) / 4, in 4096ths as below.
    """
    weights = [987, 745, 399, 93, -49, -75, -45, -7]
    assert sum(weights) * 2 == 4096
    line = [10, 200, 30, 90, 0, 255, 17, 60]
    mirrored = [*line[::-1], *line, *line[::-1]]
    expected = []
    for left in (8 + 1, 8 + 5):
        total = sum(weight * (mirrored[left - d] + mirrored[left + 1 + d]) for d, weight in enumerate(weights))
        expected.append((total + 2048) // 4096)
    image = torch.tensor(line, dtype=torch.uint8)
    assert imresize(image.view(1, 1, 1, 8), 0.25, size=(1, 2), convention="uint8").flatten().tolist() == expected
    assert imresize(image.view(1, 1, 8, 1), 0.25, size=(2, 1), convention="uint8").flatten().tolist() == expected


def test_halves_go_up_and_both_passes_are_rounded() -> None:
    """Where nothing is resized along one side, a pass there must still do nothing to whole numbers; halves go up."""
    pair = torch.tensor([[[[0.0, 1.0]]]])  # to one pixel: 1/2
    assert imresize(pair, 0.5, convention="uint8").item() == 1
    assert imresize(pair, 0.5).item() == 0.5
    square = torch.tensor(
        [[[[0.0, 0.0], [0.0, 1.0]]]]
    )  # 1/4 in all; rounded after the first pass 1/2 -> 1, then 1/2 -> 1
    assert imresize(square, 0.5).item() == 0.25
    assert imresize(square, 0.5, convention="uint8").item() == 1


def test_the_side_that_shrinks_more_comes_first() -> None:
    """`imresize(image, [rows columns])`: MATLAB sorts the factors, and rounding between the passes tells the order."""
    image = noise(16, 16)[None, None]

    def resized(*sizes: tuple[int, int]) -> Tensor:
        x = image
        for size in sizes:
            x = imresize(x, 1, size=size, convention="uint8")
        return x

    assert torch.equal(resized((8, 4)), resized((16, 4), (8, 4)))
    assert not torch.equal(resized((8, 4)), resized((8, 16), (8, 4)))
    assert torch.equal(resized((4, 8)), resized((4, 16), (4, 8)))
    assert torch.equal(resized((8, 8)), resized((8, 16), (8, 8)))  # of equals the vertical one
    assert not torch.equal(resized((8, 8)), resized((16, 8), (8, 8)))


def test_the_inside_is_that_of_pillow() -> None:
    """Pillow's bicubic has a = -1/2 and widens the kernel too, but cuts it off at borders, where MATLAB mirrors."""
    image = noise(40, 32).float()
    for scale, border in ((0.25, 2), (4, 8)):
        size = (int(40 * scale), int(32 * scale))
        expected = np.asarray(Image.fromarray(image.numpy()).resize(size[::-1], Image.Resampling.BICUBIC))
        inside = (slice(border, -border), slice(border, -border))
        found = imresize(image[None, None], scale)[0, 0].numpy()
        np.testing.assert_allclose(found[inside], expected[inside], atol=1e-3)  # float32 on both sides
        assert np.abs(found - expected).max() > 1


def test_constants_and_straight_lines_stay() -> None:
    """Keys' kernel interpolates straight lines exactly, away from the mirrors: two pixels at each end."""
    line = torch.arange(9, dtype=torch.float64).view(1, 1, 1, 9)
    centres = (torch.arange(36, dtype=torch.float64) + 0.5) / 4 - 0.5
    found = imresize(line, 4, size=(1, 36)).flatten()
    torch.testing.assert_close(found[8:-8], centres[8:-8])
    torch.testing.assert_close(imresize(torch.full((1, 1, 7, 5), 3.0), 0.3), torch.full((1, 1, 3, 2), 3.0))


def test_float32_has_room_for_every_sum() -> None:
    """The argument for float32: weights are whole numbers of 2^-14, and no sum of bytes reaches 2^9."""
    for scale in (0.25, 0.5, 2.0, 4.0, 8.0):
        weights = contributions(96, math.ceil(96 * scale), scale).weights
        assert torch.equal(weights * 2**14, (weights * 2**14).round())
        assert weights.abs().sum(1).max() * 255 < 2**9
    eighth = contributions(96, 12, 0.125).weights
    assert not torch.equal(eighth * 2**14, (eighth * 2**14).round())


def test_gradients_are_the_transposed_resize() -> None:
    """Of a linear map A: <A x, y> = <x, grad>."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 40, 36, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(2, 3, 10, 9, dtype=torch.float64, generator=generator)
    (imresize(x, 0.25) * y).sum().backward()
    assert x.grad is not None
    v = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close((imresize(v, 0.25) * y).sum(), (v * x.grad).sum())


def test_what_inference_keeps_serves_training() -> None:
    """Matrices are kept: made inside inference mode they could not be saved for a backward pass."""
    with torch.inference_mode():
        imresize(torch.rand(1, 1, 52, 44), 0.25)
    x = torch.rand(1, 1, 52, 44, requires_grad=True)
    imresize(x, 0.25).sum().backward()
    assert x.grad is not None


def test_autocast_and_memory_format_change_nothing() -> None:
    image = noise(2, 3, 24, 20).float()
    expected = imresize(image, 0.25, convention="uint8")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(imresize(image, 0.25, convention="uint8"), expected)
    last = image.contiguous(memory_format=torch.channels_last)
    assert torch.equal(imresize(last, 0.25, convention="uint8"), expected)
    assert torch.equal(last, image)  # what came in is left alone
    assert imresize(image.bfloat16(), 0.25).dtype == torch.float32


def compare(name: str, low: str) -> list[Tensor]:
    """Of each picture whether a byte of its low resolution differs, (h, w, 3)."""
    spec = ImageSpec()
    differ: list[Tensor] = []
    for high, small in zip(find_images(SETS / name / "HR"), find_images(SETS / name / low), strict=True):
        pixels = torch.from_numpy(read_pixels(high, spec)).permute(2, 0, 1)[None]
        found = imresize(pixels, 1 / 4, convention="uint8")[0].permute(1, 2, 0)
        differ.append(found != torch.from_numpy(read_pixels(small, spec)))
    return differ


@pytest.mark.skipif(not (SETS / "Set5_matlab").is_dir(), reason="the test sets are not part of the repository")
def test_matlabs_own_bytes() -> None:
    differ = compare("Set5_matlab", "LR_x4")
    assert len(differ) == 5 and not any(each.any() for each in differ)


@pytest.mark.skipif(not (SETS / "Set14").is_dir(), reason="the test sets are not part of the repository")
@pytest.mark.parametrize(("name", "share"), [("Set5/x4", 0.0139), ("Set14/x4", 0.0119)])
def test_the_usual_test_sets(name: str, share: float) -> None:
    """Their pictures were cropped after the resize: all that differs lies within two pixels of a border."""
    differ = compare(name, "LR")
    assert not any(each[2:-2, 2:-2].any() for each in differ)
    found = sum(int(each.sum()) for each in differ) / sum(each.numel() for each in differ)
    assert found == pytest.approx(share, abs=1e-4)
