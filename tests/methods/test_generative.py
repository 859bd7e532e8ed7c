"""Latents, conditions, interpolation and what one looks at."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from translate.data import FolderSettings, PairedSettings, ToySettings
from translate.errors import UserError
from translate.methods.gan import GAN, GANSettings
from translate.methods.generative import CodeSettings, information_loss, one_hot_codes, scatter

torch.set_num_threads(1)

MLP = {
    "generator": {"kind": "mlp", "hidden": [16]},
    "discriminator": {"kind": "mlp", "hidden": [16]},
    "latent": {"width": 4},
}


def folder(**data: Any) -> FolderSettings:
    augment = {"resize": 8, "crop": 8, "flip": False}
    return FolderSettings.model_validate({"root": "x", "image": {"channels": 1}, "augment": augment, **data})


def make(data: FolderSettings | ToySettings | None = None, **settings: Any) -> GAN:
    torch.manual_seed(0)
    return GANSettings.model_validate({**MLP, **settings}).build(data or ToySettings())


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- latents -----------------------------------------------------------------------------------------------------


def test_the_priors() -> None:
    normal = make(latent={"width": 3}).draw(50_000, generator=chance())
    uniform = make(latent={"width": 3, "prior": "uniform"}).draw(50_000, generator=chance())
    assert normal.mean().abs() < 0.01 and abs(float(normal.std()) - 1) < 0.01  # 150,000 values: deviation 0.003
    assert uniform.abs().max() <= 1 and abs(float(uniform.std()) - 1 / math.sqrt(3)) < 0.01


def test_truncation_is_the_normal_distribution_cut_off() -> None:
    drawn = make(latent={"width": 3}).draw(50_000, generator=chance(), truncation=0.7)
    assert drawn.abs().max() <= 0.7
    # Variance of N(0, 1) cut off at +-t: 1 - 2 t phi(t) / (2 Phi(t) - 1).
    phi, share = math.exp(-0.245) / math.sqrt(2 * math.pi), math.erf(0.7 / math.sqrt(2))
    assert float(drawn.var()) == pytest.approx(1 - 2 * 0.7 * phi / share, rel=0.02)


def test_truncation_of_a_uniform_prior_is_refused() -> None:
    with pytest.raises(UserError, match="normal prior"):
        make(latent={"width": 3, "prior": "uniform"}).draw(4, truncation=0.5)
    with pytest.raises(UserError, match="above 0"):
        make().draw(4, truncation=0.0)


def test_codes_follow_the_noise() -> None:
    codes = {"categorical": [3, 2], "continuous": 2}
    latent = make(codes=codes).draw(1000, generator=chance())
    assert latent.shape == (1000, 4 + 3 + 2 + 2)
    for part in latent[:, 4:9].split([3, 2], dim=1):
        assert torch.equal(part.sum(dim=1), torch.ones(1000)) and set(part.unique().tolist()) == {0.0, 1.0}
        assert part.mean(dim=0).sub(1 / part.shape[1]).abs().max() < 0.06
    assert latent[:, 9:].abs().max() <= 1
    categorical, continuous = one_hot_codes(latent, 4, CodeSettings.model_validate(codes))
    assert torch.equal(F.one_hot(categorical[0], 3).float(), latent[:, 4:7])
    assert torch.equal(continuous, latent[:, 9:])


def test_interpolation_keeps_the_norm_and_meets_its_ends() -> None:
    method = make(latent={"width": 64})
    start, end = method.draw(2, generator=chance())
    path = method.interpolate(start, end, torch.linspace(0, 1, 9))
    torch.testing.assert_close(path[0], start)
    torch.testing.assert_close(path[-1], end)
    norms = path.norm(dim=1)
    assert norms.min() > 0.95 * min(start.norm(), end.norm())  # a straight line would fall to about 0.7 of it
    unit_start, unit_end = start / start.norm(), end / end.norm()
    angles = (method.interpolate(unit_start, unit_end, torch.linspace(0, 1, 9)) @ unit_start).clamp(-1, 1).acos()
    torch.testing.assert_close(angles, torch.linspace(0, 1, 9) * angles[-1], atol=1e-3, rtol=0)
    same = method.interpolate(start, start, torch.tensor([0.5]))
    torch.testing.assert_close(same[0], start)


def test_a_uniform_prior_and_codes_go_straight() -> None:
    method = make(latent={"width": 4, "prior": "uniform"}, codes={"continuous": 2})
    start, end = method.draw(2, generator=chance())
    torch.testing.assert_close(method.interpolate(start, end, torch.tensor([0.25]))[0], 0.75 * start + 0.25 * end)


# ---- classes -----------------------------------------------------------------------------------------------------


def test_the_class_is_a_one_hot_beside_the_latent() -> None:
    method = make(folder(classes=["cat", "dog"]), conditioning={"generator": "concat"})
    assert method.class_names == ("cat", "dog") and method.generator.latent == 6
    latent, label = method.draw(3, generator=chance()), torch.tensor([1, 0, 1])
    wanted = method.generator(torch.cat([latent, torch.tensor([[0.0, 1], [1, 0], [0, 1]])], dim=1))
    torch.testing.assert_close(method.generate(latent, label), wanted)


def test_a_condition_needs_classes() -> None:
    for data in (ToySettings(), folder()):
        with pytest.raises(UserError, match=r"data\.classes"):
            make(data, conditioning={})


def test_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="'folder' or 'toy'"):
        GANSettings.model_validate(MLP).build(PairedSettings(root="x"))


def test_samples_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match="shape"):
        make(folder()).check({"image": torch.zeros(2, 1, 16, 16)})


# ---- InfoGAN -------------------------------------------------------------------------------------------------------


def test_information_loss_by_hand() -> None:
    codes = CodeSettings(categorical=[3], continuous=1, categorical_weight=2.0, continuous_weight=0.5)
    latent = torch.tensor([[9.0, 0, 1, 0, 0.25], [9.0, 1, 0, 0, -0.5]])
    logits, means = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([[0.0], [0.5]])
    entropy = -0.5 * (1 - math.log(2 + math.e) + 2 - math.log(2 + math.exp(2)))
    squares = 0.5 * (0.25**2 + 1.0) / 2
    found = information_loss(latent, 1, codes, [logits], means)
    assert float(found) == pytest.approx(2 * entropy + 0.5 * squares, rel=1e-6)


# ---- previews ----------------------------------------------------------------------------------------------------


def test_previews_are_the_same_each_time() -> None:
    method = make(folder()).eval()
    batch = {"image": torch.zeros(7, 1, 8, 8)}
    first, second = method.previews(batch)["samples"], method.previews(batch)["samples"]
    assert first.shape == (7, 3, 8, 8) and torch.equal(first, second)


def test_previews_have_a_column_for_each_class_and_a_row_for_each_latent() -> None:
    method = make(folder(classes=["a", "b", "c"]), conditioning={"generator": "concat"}).eval()
    shown = method.previews({"image": torch.zeros(7, 1, 8, 8)})
    assert list(shown) == ["a", "b", "c"]
    latent = method.draw(2, generator=chance())
    for number, images in enumerate(shown.values()):
        wanted = method.generate(latent, torch.full((2,), number))
        torch.testing.assert_close(images, wanted.expand(-1, 3, -1, -1))


def test_previews_have_a_column_for_each_value_of_a_code() -> None:
    method = make(folder(), codes={"categorical": [2], "continuous": 1}).eval()
    shown = method.previews({"image": torch.zeros(6, 1, 8, 8)})
    assert list(shown) == ["code 0", "code 1"]
    latent = method.draw(3, generator=chance())
    latent[:, 4:6] = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(shown["code 1"], method.generate(latent).expand(-1, 3, -1, -1))


def test_points_are_a_picture() -> None:
    picture = scatter(torch.tensor([[1.0, 1.0], [5.0, 0.0]]), limit=2.0, size=8)
    assert picture.shape == (3, 8, 8)
    assert picture[0, 1, 6] < 0.01  # (1, 1) of +-2: three quarters to the right, three quarters up
    assert picture.amax() == 1 and (picture < 1).sum() == 3 * 9  # what lies outside is not shown
