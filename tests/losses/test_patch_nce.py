"""PatchNCE against loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from translate.errors import UserError
from translate.losses.patch_nce import (
    PatchNCESettings,
    draw_positions,
    features_at,
    mirrored_positions,
    patch_nce,
)

TAPS = {"input": 3, "down1": 8, "block1": 16}


def test_the_loss_is_the_papers_double_sum() -> None:
    torch.manual_seed(0)
    query, key = (normalize(torch.randn(2, 5, 7), dim=-1) for _ in range(2))
    tau = 0.07
    total = 0.0
    for image in range(2):
        for s in range(5):
            similar = [math.exp(float(query[image, s] @ key[image, other]) / tau) for other in range(5)]
            total -= math.log(similar[s] / sum(similar))
    assert float(patch_nce(query, key, tau)) == pytest.approx(total / 10, rel=1e-5)  # float32 against float64


def test_closed_forms() -> None:
    # Where all positions look alike, each of P keys is as likely.
    same = normalize(torch.ones(2, 256, 32), dim=-1)
    assert float(patch_nce(same, same, 0.07)) == pytest.approx(math.log(256), rel=1e-6)
    # Positions at right angles: the own key has e^(1 / tau), each of 255 others 1. Of 1 + e^-14 float32 has two digits.
    one_hot = torch.eye(256)[None]
    assert float(patch_nce(one_hot, one_hot, 1.0)) == pytest.approx(math.log(1 + 255 * math.exp(-1)), rel=1e-6)
    assert float(patch_nce(one_hot, one_hot, 0.07)) == pytest.approx(math.log1p(255 * math.exp(-1 / 0.07)), rel=1e-2)
    # Every query finds its key at another position.
    assert float(patch_nce(one_hot, one_hot.roll(1, 1), 0.5)) == pytest.approx(math.log(math.exp(2) + 255), rel=1e-6)


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    query, key = (normalize(torch.randn(3, 6, 4), dim=-1) for _ in range(2))
    alone = torch.stack([patch_nce(query[i : i + 1], key[i : i + 1], 0.1) for i in range(3)]).mean()
    torch.testing.assert_close(patch_nce(query, key, 0.1), alone)


def test_layers_count_alike_and_points_are_of_length_one() -> None:
    torch.manual_seed(0)
    projections = PatchNCESettings(layers=["input", "block1"], width=32, temperature=0.2).build(TAPS)
    assert [tuple(p.shape) for p in projections.parameters()] == [
        (32, 3), (32,), (32, 32), (32,),
        (32, 16), (32,), (32, 32), (32,),
    ]  # fmt: skip
    with torch.no_grad():  # as drawn, points are of 1e-4, of which the added 1e-7 is a thousandth
        for parameter in projections.parameters():
            parameter.mul_(50)
    queries, keys = ({"input": torch.randn(2, 4, 3), "block1": torch.randn(2, 6, 16)} for _ in range(2))
    losses = []
    for layer in queries:
        first, _, second = projections.layers[layer]
        points = []
        for features in (queries[layer], keys[layer]):
            point = torch.relu(features @ first.weight.T + first.bias) @ second.weight.T + second.bias
            points.append(point / point.square().sum(-1, keepdim=True).sqrt())
        losses.append(patch_nce(*points, 0.2))
        lengths = projections.project(layer, queries[layer]).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-5, rtol=0)
    torch.testing.assert_close(projections(queries, keys), (losses[0] + losses[1]) / 2, atol=1e-4, rtol=0)


def test_keys_teach_nothing() -> None:
    torch.manual_seed(0)
    projections = PatchNCESettings(layers=["input"], width=8).build(TAPS)
    query, key = (torch.randn(1, 5, 3, requires_grad=True) for _ in range(2))
    projections({"input": query}, {"input": key}).backward()
    assert key.grad is None
    assert query.grad is not None and query.grad.abs().sum() > 0
    found = [p.grad.clone() for p in projections.parameters() if p.grad is not None]
    # The projections learn by the queries alone: keys given as numbers leave the same gradient.
    constant = projections.project("input", key).detach()
    patch_nce(projections.project("input", query), constant, 0.07).backward()
    for before, parameter in zip(found, projections.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * before)


def test_a_point_at_zero_has_a_finite_gradient() -> None:
    projections = PatchNCESettings(layers=["input"], width=8).build(TAPS)
    features = torch.zeros(1, 4, 3, requires_grad=True)  # grey pixels; biases begin at 0
    loss = projections({"input": features}, {"input": torch.randn(1, 4, 3)})
    loss.backward()
    assert features.grad is not None
    assert all(torch.isfinite(p.grad).all() for p in [features, *projections.parameters()] if p.grad is not None)


def test_float32_under_autocast() -> None:
    torch.manual_seed(0)
    projections = PatchNCESettings(layers=["down1"], width=8).build(TAPS)
    query, key = (torch.randn(1, 5, 8).bfloat16() for _ in range(2))
    plain = projections({"down1": query.float()}, {"down1": key.float()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = projections({"down1": query}, {"down1": key})
        again = patch_nce(query, key, 0.07)
    assert found.dtype == again.dtype == torch.float32
    assert torch.equal(found, plain)


def test_positions_are_drawn_once_each() -> None:
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    some = draw_positions(7, 9, 20, cpu)
    assert some.shape == (20,) and len(set(some.tolist())) == 20 and some.min() >= 0 and some.max() < 63
    assert sorted(draw_positions(3, 4, 256, cpu).tolist()) == list(range(12))
    assert not torch.equal(draw_positions(7, 9, 20, cpu), some)


@pytest.mark.parametrize("channels_last", [False, True])
def test_features_are_those_of_their_rows_and_columns(channels_last: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    at = draw_positions(4, 5, 11, x.device)
    found = features_at(x, at)
    for number, position in enumerate(at.tolist()):
        assert torch.equal(found[:, number], x[:, :, position // 5, position % 5])
    assert torch.equal(features_at(x.flip(3), mirrored_positions(at, 5)), found)


def test_settings_are_the_papers_and_mistakes_are_told() -> None:
    settings = PatchNCESettings()
    assert (settings.patches, settings.width, settings.temperature) == (256, 256, 0.07)
    assert settings.layers == ["input", "down1", "down2", "block1", "block5"]
    with pytest.raises(ValidationError, match="stands there twice"):
        PatchNCESettings(layers=["input", "input"])
    with pytest.raises(UserError, match="no layer 'block5'; it has input, down1, block1"):
        PatchNCESettings(layers=["input", "block5"]).build(TAPS)
