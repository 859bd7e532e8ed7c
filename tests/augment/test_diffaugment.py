from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from translate.augment import AugmentationSettings, DiffAugmentSettings
from translate.augment.diffaugment import Transform, colour, cutout, translation
from translate.errors import UserError

POLICIES: list[list[Transform]] = [["colour"], ["translation"], ["cutout"], ["colour", "translation", "cutout"]]

STEPS = range(-2, 3)


def images(count: int = 4, side: int = 16) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(count, 3, side, side) * 2 - 1


@pytest.mark.parametrize("policy", POLICIES)
def test_every_example_changes_and_the_seed_decides(policy: list[Transform]) -> None:
    augment = DiffAugmentSettings(policy=policy).build((3, 16, 16))
    x = images(8)

    def seen(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return augment(x)

    assert seen(0).shape == x.shape
    assert torch.equal(seen(0), seen(0))
    assert not torch.equal(seen(0), seen(1))
    same = images(1).expand(8, 3, 16, 16)
    assert len(torch.unique(augment(same).flatten(1), dim=0)) > 4  # each example by itself


def test_colour_is_linear_around_the_means() -> None:
    # Of one image, 4000 times. Brightness moves the mean by U(-0.5, 0.5), the others leave it.
    x = images(1, side=4)
    torch.manual_seed(0)
    y = colour(x.expand(4000, 3, 4, 4))
    moved = y.mean(dim=(1, 2, 3)) - x.mean()
    assert moved.abs().max() <= 0.5 + 1e-6
    assert moved.std().item() == pytest.approx(12**-0.5, rel=0.05)
    # What is left of each pixel's grey is the contrast alone, of its saturation contrast times saturation.
    grey, chroma = y.mean(dim=1), y - y.mean(dim=1, keepdim=True)
    contrast = (grey - grey.mean(dim=(1, 2), keepdim=True)).flatten(1).norm(dim=1)
    contrast = contrast / (x.mean(dim=1) - x.mean()).norm()
    saturation = chroma.flatten(1).norm(dim=1) / (x - x.mean(dim=1, keepdim=True)).norm() / contrast
    assert 0.5 - 1e-4 <= contrast.min() < 0.51
    assert 1.49 < contrast.max() <= 1.5 + 1e-4
    assert saturation.min() < 0.02
    assert 1.98 < saturation.max() <= 2 + 1e-3
    # A uniform mean of 4000 is known to 0.58 / 63 = 0.009.
    assert saturation.mean().item() == pytest.approx(1, abs=0.04)


def test_translation_moves_by_whole_pixels() -> None:
    x = images(1)
    framed = torch.nn.functional.pad(x[0], (2, 2, 2, 2))  # what comes in is 0
    moves = torch.stack([framed[:, 2 - down :, 2 - across :][:, :16, :16] for down in STEPS for across in STEPS])
    torch.manual_seed(0)
    y = translation(x.expand(300, 3, 16, 16))
    equal = (y[:, None] == moves).flatten(2).all(dim=2)  # (300, 25)
    assert (equal.sum(dim=1) == 1).all()
    assert equal.any(dim=0).all()  # each of the 5 x 5 moves of up to 16 / 8 pixels


@pytest.mark.parametrize("side", [8, 10])
def test_cutout_is_one_rectangle(side: int) -> None:
    torch.manual_seed(0)
    half = side // 2
    holes = cutout(torch.ones(500, 2, side, side)) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    rows, columns = holes[:, 0].any(dim=2), holes[:, 0].any(dim=1)  # (500, side)
    assert torch.equal(holes[:, 0], rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        # Connected, at most half the side; less only at a border.
        assert (line.int().diff(dim=1).abs().sum(dim=1) <= 2).all()
        length = line.sum(dim=1)
        assert length.max() == half
        assert (length[~line[:, 0] & ~line[:, -1]] == half).all()
        assert (length >= half // 2).all()
        assert line.any(dim=0).all()  # any place can be hit


def test_gradients_are_those_of_a_linear_map() -> None:
    # With the draws held, the augmentation is affine: the second derivative of |T(x)|² / 2 along v is |T'v|².
    augment = DiffAugmentSettings().build((3, 8, 8))
    x, direction = images(2, 8).double().requires_grad_(), torch.randn(2, 3, 8, 8, dtype=torch.double)

    def seen(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return augment(x)

    (gradient,) = torch.autograd.grad(seen(x).square().sum() / 2, x, create_graph=True)
    (second,) = torch.autograd.grad((gradient * direction).sum(), x)
    change = seen(x + direction) - seen(x)
    torch.testing.assert_close((second * direction).sum(), change.square().sum())


def test_number_format_is_kept() -> None:
    augment = DiffAugmentSettings().build((3, 8, 8))
    assert augment(images(2, 8).bfloat16()).dtype == torch.bfloat16


def test_settings() -> None:
    union = TypeAdapter(AugmentationSettings)
    assert isinstance(union.validate_python({"kind": "diffaugment"}), DiffAugmentSettings)
    with pytest.raises(ValidationError, match="each transform once"):
        DiffAugmentSettings(policy=["colour", "colour"])
    with pytest.raises(ValidationError):
        DiffAugmentSettings(policy=[])
    with pytest.raises(UserError, match="'diffaugment' is for images, not for points of 2 numbers"):
        DiffAugmentSettings().build((2,))
