from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from translate.errors import UserError
from translate.losses.regularisers import (
    Historical,
    HistoricalSettings,
    OrthogonalSettings,
    Player,
    RegulariserSettings,
    clip_weights,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def player() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def rows_at_right_angles(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(columns, rows)).Q.T


# ---- orthogonal ------------------------------------------------------------------------------------------------------


def test_orthogonal_rows_cost_their_norms_alone() -> None:
    layer = nn.Linear(7, 4)
    full, off_diagonal = (OrthogonalSettings(form=form).build(layer) for form in ("full", "off-diagonal"))
    scales = torch.tensor([1.0, 2.0, 0.5, 3.0])
    with torch.no_grad():
        layer.weight.copy_(scales[:, None] * rows_at_right_angles(4, 7))
    assert off_diagonal(layer).item() == pytest.approx(0, abs=1e-8)
    assert full(layer).item() == pytest.approx((scales**2 - 1).square().sum().item())
    with torch.no_grad():
        layer.weight.copy_(rows_at_right_angles(4, 7))
    assert full(layer).item() == pytest.approx(0, abs=1e-10)


def test_orthogonal_by_hand_and_its_gradient() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]]))  # W Wᵀ = [[5, 2], [2, 5]]
    loss = OrthogonalSettings(form="off-diagonal").build(layer)(layer)
    assert loss.item() == 2 * 2**2
    assert OrthogonalSettings(form="full").build(layer)(layer).item() == 2 * 4**2 + 2 * 2**2
    (gradient,) = torch.autograd.grad(loss, layer.weight)
    # BigGAN's own step: 4 (W Wᵀ ∘ (1 - I)) W.
    torch.testing.assert_close(gradient, 4 * torch.tensor([[0.0, 2.0], [2.0, 0.0]]) @ layer.weight)


def test_orthogonal_sums_over_filters_of_convolutions_and_linear_layers() -> None:
    convolution, transposed, linear = nn.Conv2d(3, 5, 4), nn.ConvTranspose2d(3, 5, 4), nn.Linear(6, 2)
    with torch.no_grad():
        transposed.weight.copy_(convolution.weight.transpose(0, 1))  # the same five filters
    for form in get_args(OrthogonalSettings.model_fields["form"].annotation):
        regulariser = OrthogonalSettings(form=form).build(linear)
        cost = [regulariser(layer) for layer in (convolution, transposed, linear)]
        torch.testing.assert_close(cost[0], cost[1])
        w = convolution.weight.detach().reshape(5, 48).double()
        beyond = w @ w.T - torch.eye(5, dtype=torch.float64)
        if form == "off-diagonal":
            beyond.fill_diagonal_(0)
        assert cost[0].item() == pytest.approx(beyond.square().sum().item())
        others = [nn.Embedding(4, 3), nn.BatchNorm2d(5), nn.GroupNorm(1, 5)]
        whole = nn.ModuleList([convolution, linear, *others])
        torch.testing.assert_close(regulariser(whole), cost[0] + cost[2])


def test_orthogonal_takes_the_stored_weight_under_spectral_norm() -> None:
    plain = nn.Linear(6, 4)
    layer = spectral_norm(nn.Linear(6, 4)).train()
    held: Any = layer.parametrizations["weight"]
    with torch.no_grad():
        held.original.copy_(5 * plain.weight)
        plain.weight.mul_(5)
    before = held[0]._u.clone()
    regulariser = OrthogonalSettings().build(layer)
    loss = regulariser(layer)
    torch.testing.assert_close(loss, regulariser(plain))
    assert torch.equal(held[0]._u, before)  # no power iteration
    loss.backward()
    assert held.original.grad.any()


def test_orthogonal_under_autocast_is_float32() -> None:
    layer = nn.Conv2d(16, 32, 3)
    regulariser = OrthogonalSettings().build(layer)
    plain = regulariser(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(1, 16, 3, 3))
        lowered = regulariser(layer)
    assert lowered.dtype is torch.float32
    assert torch.equal(lowered, plain)


def test_nothing_to_hold_orthogonal_is_an_error() -> None:
    with pytest.raises(UserError, match="the discriminator has no convolution or linear layer"):
        OrthogonalSettings(player="discriminator").build(nn.Sequential(nn.Embedding(3, 2), nn.BatchNorm1d(2)))


# ---- historical averaging --------------------------------------------------------------------------------------------


def test_historical_mean_is_the_mean_of_all_weights_so_far() -> None:
    module = player()
    regulariser = HistoricalSettings(player="generator").build(module)
    assert regulariser(module).item() == 0
    history = [[p.detach().clone() for p in module.parameters()]]
    for _ in range(7):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        regulariser.update(module)
        history.append([p.detach().clone() for p in module.parameters()])
    means = [torch.stack(values).mean(0) for values in zip(*history, strict=True)]
    distances = [p - mean for p, mean in zip(module.parameters(), means, strict=True)]
    loss = regulariser(module)
    torch.testing.assert_close(loss, torch.stack([d.square().sum() for d in distances]).sum())
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    torch.testing.assert_close(list(gradients), [2 * d.detach() for d in distances])


def test_historical_averaging_damps_a_cycle() -> None:
    # min over a, max over b of a b (Salimans et al., section 3.3: a game where gradient descent goes round): the
    # equilibrium (0, 0) is reached with the term and circled without it.
    ends = {}
    for weight in (0.0, 0.5):
        game = nn.ParameterDict({"a": torch.ones(()), "b": torch.ones(())})
        regulariser = HistoricalSettings(player="generator", weight=weight).build(game)
        for _ in range(400):
            for name, sign in (("a", 1), ("b", -1)):
                loss = sign * game["a"] * game["b"] + weight * regulariser(game)
                (gradient,) = torch.autograd.grad(loss, game[name])
                with torch.no_grad():
                    game[name] -= 0.1 * gradient
            regulariser.update(game)
        ends[weight] = torch.stack([game["a"], game["b"]]).norm().item()
    assert ends[0.0] > 1
    assert ends[0.5] < 0.3


def test_historical_state_comes_back() -> None:
    module = player()
    first = HistoricalSettings(player="generator").build(module)
    with torch.no_grad():
        module[0].weight.add_(1)
    first.update(module)
    second = Historical(player())
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        assert torch.equal(first(module), second(module))
        with torch.no_grad():
            module[0].weight.mul_(2)
        first.update(module)
        second.update(module)


# ---- both ------------------------------------------------------------------------------------------------------------

KINDS = get_args(get_args(RegulariserSettings)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_regulariser_owns_no_weights(kind: Any) -> None:
    module = player()
    regulariser = kind(player="generator").build(module)
    assert list(regulariser.parameters()) == []
    assert list(regulariser.children()) == []
    loss = regulariser(module)
    assert loss.dtype is torch.float32
    assert loss.shape == ()
    assert loss.requires_grad
    before = [p.clone() for p in module.parameters()]
    regulariser.update(module)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    # What it keeps is a copy, not the weights themselves.
    own = {buffer.data_ptr() for buffer in regulariser.buffers()}
    assert own.isdisjoint(p.data_ptr() for p in module.parameters())


def test_settings() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(RegulariserSettings)
    names = set()
    for kind in KINDS:
        for side in get_args(Player):
            settings = kind(player=side, weight=2.0, every=4)
            assert adapter.validate_python(settings.model_dump(mode="json")) == settings
            names.add(settings.name)
        with pytest.raises(ValidationError):
            kind(player="critic")
        with pytest.raises(ValidationError):
            kind(player="generator", every=0)
    assert names == {
        f"{kind}_{side}" for kind in ("orthogonal", "historical") for side in ("generator", "discriminator")
    }


# ---- clipping --------------------------------------------------------------------------------------------------------


def test_clip_weights() -> None:
    module = player()
    kept = module[0].weight.detach().clone()
    clip_weights(module, 0.1)
    torch.testing.assert_close(module[0].weight.detach(), kept.clamp(-0.1, 0.1), rtol=0, atol=0)
    assert max(p.abs().max().item() for p in module.parameters()) == pytest.approx(0.1)
    assert all(p.requires_grad and p.grad_fn is None for p in module.parameters())
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above zero"):
            clip_weights(module, limit)
