from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from translate.augment import AdaptiveAugmentation, AdaptiveSettings
from translate.augment.adaptive import Transforms, _hue
from translate.errors import UserError

GROUPS: list[Transforms] = ["blit", "geometric", "colour"]


def images(count: int, side: int = 8, channels: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, channels, side, side) * 2 - 1


def built(*transforms: Transforms, p: float, shape: tuple[int, ...] = (3, 8, 8)) -> AdaptiveAugmentation:
    return AdaptiveSettings(transforms=list(transforms), start=p).build(shape)


def seeded(augment: Callable[[Tensor], Tensor], x: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return augment(x)


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_happens_at_p_0(channels: int) -> None:
    x = images(16, channels=channels)
    assert torch.equal(built(*GROUPS, p=0, shape=(channels, 8, 8))(x), x)


@pytest.mark.parametrize("group", GROUPS)
def test_the_seed_decides(group: Transforms) -> None:
    x, augment = images(16), built(group, p=0.8)
    assert torch.equal(seeded(augment, x), seeded(augment, x))
    assert not torch.equal(seeded(augment, x), seeded(augment, x, 1))


def test_each_example_is_chosen_by_itself() -> None:
    # Of 3 blit transforms each with probability p, an example escapes with (1 - p)³.
    x, p = images(1).expand(3000, 3, 8, 8), 0.3
    untouched = (seeded(built("blit", p=p), x) == x).flatten(1).all(dim=1).float().mean().item()
    # Chosen transforms may still be the identity: no flip, no turn, no move in a range of +-1 pixel (a rounded
    # uniform of (-1, 1) is 0 half of the time, in both directions a quarter). Warped by the identity, an image is the
    # same to 1e-6 but not to the bit, so that it may count on either side.
    low = (1 - p) ** 3
    high = (1 - p / 2) * (1 - p * 3 / 4) * (1 - p * 3 / 4)
    assert low - 0.03 < untouched < high + 0.03


def test_blit_moves_whole_pixels() -> None:
    x = images(1).expand(200, 3, 8, 8)
    torch.manual_seed(0)
    # Mirrored at the border, each pixel of the result is one of the image, to the rounding of coordinates.
    every = x[0].flatten(1).T  # (64, 3)
    for y in built("blit", p=1)(x)[:50]:
        distance = (y.flatten(1).T[:, None] - every).abs().amax(dim=2)  # (64, 64)
        assert distance.min(dim=1).values.max() < 1e-4


def test_blit_knows_eight_symmetries() -> None:
    # A pattern in the middle that no move of one pixel pushes out of its mirror images' reach.
    x = images(1, side=4)
    augment = built("blit", p=1, shape=(3, 4, 4))
    symmetries = [torch.rot90(flipped, turns, (1, 2)) for flipped in (x[0], x[0].flip(2)) for turns in range(4)]
    # Side 4: moves of +-0.5 pixels are rounded to 0 (a half goes to even).
    counts = torch.zeros(8)
    for y in seeded(augment, x.expand(400, 3, 4, 4)):
        near = torch.stack([(y - s).abs().max() for s in symmetries])
        assert near.min() < 1e-4
        counts[near.argmin()] += 1
    # 400 draws of 8 equal kinds: 50 each, deviation 6.6.
    assert counts.min() > 25


def test_geometry_keeps_constants_and_its_statistics() -> None:
    torch.manual_seed(0)
    flat = torch.full((64, 1, 8, 8), 0.3)
    torch.testing.assert_close(built("geometric", p=1, shape=(1, 8, 8))(flat), flat)
    # Ramps show the warp's matrix: the stretch and the rotations have determinant 1, so that of the whole is the
    # isotropic scale's alone.
    side, count = 32, 1000
    line = torch.arange(side) - (side - 1) / 2
    ramps = torch.stack([line[None, :].expand(side, side), line[:, None].expand(side, side)]) / side
    augment = built("geometric", p=1, shape=(2, side, side))
    y = augment(ramps.expand(count, 2, side, side))
    middle = y[:, :, side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1] * side  # (N, 2, 2, 2)
    down, across = middle[:, :, 1, 0] - middle[:, :, 0, 0], middle[:, :, 0, 1] - middle[:, :, 0, 0]
    # Pixels of the result look up their place in the image: the determinant is 1 / scale², negative in a mirror.
    scale = (across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]).abs().rsqrt().log2()
    inner = scale[scale.isfinite() & (scale.abs() < 1)]  # a fold of the mirror through the middle is none of these
    assert len(inner) > 0.9 * count
    # 1000 normal numbers: their mean is known to 0.2 / 32 = 0.006, their deviation to 2.2 %.
    assert inner.mean().abs() < 0.03
    assert inner.std().item() == pytest.approx(0.2, rel=0.1)


def test_hue_turns_around_grey() -> None:
    angles = torch.tensor([0.0, 2 * math.pi / 3, -2 * math.pi / 3, 1.0])
    matrices = _hue(angles)
    torch.testing.assert_close(matrices[0], torch.eye(3))
    # A third of a turn sends red to green, green to blue, blue to red.
    cycle = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    torch.testing.assert_close(matrices[1], cycle, atol=1e-6, rtol=0)
    torch.testing.assert_close(matrices[2], cycle.T, atol=1e-6, rtol=0)
    torch.testing.assert_close(matrices[3] @ matrices[3].T, torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrices[3] @ torch.ones(3), torch.ones(3))


def test_colour_statistics() -> None:
    # White (1, 1, 1): hue and saturation leave it; brightness b, contrast c and luma flip make it +-c (1 + b).
    torch.manual_seed(0)
    y = built("colour", p=1, shape=(3, 1, 1))(torch.ones(20_000, 3, 1, 1)).squeeze()
    torch.testing.assert_close(y[:, 0], y[:, 1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(y[:, 0], y[:, 2], atol=1e-4, rtol=1e-4)
    level = y[:, 0]
    assert (level < 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    # |level| = 2^(0.5 N) (1 + 0.2 N'): its median is 1, and the logarithms' variances add up (the second to 3 %).
    size = level.abs()
    assert size.median().item() == pytest.approx(1, abs=0.02)
    assert size.log2().quantile(0.8413).item() == pytest.approx(math.hypot(0.5, 0.2 / math.log(2)), rel=0.08)


def test_grey_images_change_like_grey_rgb() -> None:
    x = images(64, channels=1)
    # p = 1 and other draws: compare distributions by the share of dark and of strong images.
    grey = seeded(built("colour", p=1, shape=(1, 8, 8)), x.expand(64, 1, 8, 8).repeat(40, 1, 1, 1))
    rgb = seeded(built("colour", p=1), x.expand(64, 3, 8, 8).repeat(40, 1, 1, 1)).mean(dim=1, keepdim=True)
    # 2560 images: deviations of means of a spread of 1 are 0.02.
    assert (grey.flatten(1).std(dim=1).mean() - rgb.flatten(1).std(dim=1).mean()).abs() < 0.05
    assert (grey.mean(dim=(1, 2, 3)).std() - rgb.mean(dim=(1, 2, 3)).std()).abs() < 0.05


@pytest.mark.parametrize("group", GROUPS)
def test_gradients_are_those_of_an_affine_map(group: Transforms) -> None:
    # With the draws held, the second derivative of |T(x)|² / 2 along v is |T'v|²: what R1 through it needs.
    augment = built(group, p=1)
    x, direction = images(4).double().requires_grad_(), torch.randn(4, 3, 8, 8, dtype=torch.double)
    (gradient,) = torch.autograd.grad(seeded(augment, x).square().sum() / 2, x, create_graph=True)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    (second,) = torch.autograd.grad((gradient * direction).sum(), x)
    change = seeded(augment, x + direction) - seeded(augment, x)
    torch.testing.assert_close((second * direction).sum(), change.square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
def test_number_format_is_kept(precision: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = built(*GROUPS, p=1)(images(4).to(precision))
    assert y.dtype == precision
    assert y.isfinite().all()


def test_p_moves_at_the_stated_speed() -> None:
    augment = AdaptiveSettings(images=1000, interval=4).build((3, 8, 8))
    sure = torch.full((25, 1), 3.0)
    seen = [float(augment.update(sure)["augmentation_p"]) for _ in range(12)]
    # 4 batches of 25 images are a tenth of 1000.
    assert seen == pytest.approx([0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3])
    for _ in range(8):
        reported = augment.update(-sure)
    assert float(reported["overfitting"]) == -1
    assert float(augment.p) == pytest.approx(0.1)


def test_p_stays_a_probability() -> None:
    augment = AdaptiveSettings(images=10, interval=1).build((3, 8, 8))
    for logits, p in ((-1.0, 0), (1.0, 1), (1.0, 1)):
        augment.update(torch.full((25, 1), logits))
        assert float(augment.p) == p


@pytest.mark.parametrize(("above", "direction"), [(81, 1), (79, -1)])
def test_the_target_is_a_share_of_signs(above: int, direction: int) -> None:
    # r_t = 0.62 of 81 % positive logits, 0.58 of 79 %; their size does not count.
    augment = AdaptiveSettings(images=1000, interval=2, start=0.5).build((3, 8, 8))
    logits = torch.where(torch.arange(100) < above, 1e-3, -50.0)[:, None]
    augment.update(logits[:50])
    assert float(augment.p) == 0.5
    reported = augment.update(logits[50:])
    assert float(reported["overfitting"]) == pytest.approx(above / 50 - 1, abs=1e-6)
    assert float(augment.p) == pytest.approx(0.5 + 0.1 * direction)


def test_patches_count_as_one_image() -> None:
    one = AdaptiveSettings(images=100, interval=1).build((3, 8, 8))
    one.update(torch.ones(10, 1, 5, 5))
    assert float(one.p) == pytest.approx(0.1)


def test_state_goes_on_where_it_was() -> None:
    settings = AdaptiveSettings(images=100, interval=3)
    first, second = settings.build((3, 8, 8)), settings.build((3, 8, 8))
    for _ in range(4):
        first.update(torch.ones(10, 1))
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        first.update(torch.ones(10, 1))
        second.update(torch.ones(10, 1))
    assert float(second.p) == float(first.p) == pytest.approx(0.6)


def test_mistakes_are_said_in_one_line() -> None:
    with pytest.raises(UserError, match="'adaptive' is for images"):
        AdaptiveSettings().build((2,))
    with pytest.raises(UserError, match=r"not of 4 channels; set transforms to \[blit, geometric\]"):
        AdaptiveSettings().build((4, 8, 8))
    assert AdaptiveSettings(transforms=["blit"]).build((4, 8, 8))(torch.zeros(2, 4, 8, 8)).shape == (2, 4, 8, 8)
    with pytest.raises(ValidationError, match="each group once"):
        AdaptiveSettings(transforms=["blit", "blit"])
