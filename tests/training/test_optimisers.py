"""Any optimiser by name, its arguments checked, clipping, and the fused kernels' results."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import same
from torch import nn

from translate.errors import UserError
from translate.training.optimisers import OptimiserSettings, PlayerOptimiser, _optimiser_classes
from translate.training.schedules import ConstantSchedule

NAMES = sorted(set(_optimiser_classes()) - {"Muon"})  # Muon takes matrices alone, and says so


def player() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 1))


def steps(optimiser: PlayerOptimiser, module: nn.Module, count: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimiser.backward(module(torch.randn(4, 2, 4, 4, generator=generator)).square().mean())
        _, finite = optimiser.step()
        assert finite


def make(module: nn.Module, clip: float | None = None, **settings: Any) -> PlayerOptimiser:
    return PlayerOptimiser(module, OptimiserSettings(**settings), ConstantSchedule(), clip=clip, dtype=torch.float32)


@pytest.mark.parametrize("kind", NAMES)
def test_any_name_of_torch_optim_steps_as_torch_does(kind: str) -> None:
    module, twin = player(), player()
    steps(make(module, kind=kind, lr=1e-2), module)
    plain = getattr(torch.optim, kind)(twin.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        plain.zero_grad()
        twin(torch.randn(4, 2, 4, 4, generator=generator)).square().mean().backward()
        plain.step()
    start = list(player().parameters())
    for ours, theirs, before in zip(module.parameters(), twin.parameters(), start, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert not torch.equal(ours, before)


@pytest.mark.parametrize("kind", NAMES)
def test_a_state_read_back_goes_on_alike(kind: str) -> None:
    module, twin = player(), player()
    one, two = make(module, kind=kind, lr=1e-2), make(twin, kind=kind, lr=1e-2)
    steps(one, module)
    twin.load_state_dict(module.state_dict())
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    steps(one, module)
    steps(two, twin)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "Adm"}, "torch.optim has no 'Adm'; did you mean 'Adam'?"),
        ({"kind": "adamw"}, "torch.optim has no 'adamw'; did you mean 'AdamW'?"),
        ({"kind": "LBFGS"}, "torch.optim has no 'LBFGS'"),
        ({"kind": "Optimizer"}, "torch.optim has no 'Optimizer'"),
        ({"kind": "Adam", "beta": [0.5, 0.9]}, "Adam has no argument 'beta'; did you mean 'betas'?"),
        ({"kind": "SGD", "betas": [0.5, 0.9]}, "SGD has no argument 'betas'; it takes"),
        ({"kind": "Adam", "betas": [0.5, 1.9]}, "Adam refuses these arguments (ValueError: Invalid beta parameter"),
        ({"kind": "Adam", "betas": [0.5]}, "Adam refuses these arguments"),
        ({"kind": "Adam", "betas": {}}, "Adam refuses these arguments"),
        ({"kind": "Adam", "betas": "high"}, "Adam refuses these arguments"),
        ({"kind": "Adam", "differentiable": True}, "Adam refuses these arguments"),
        ({"kind": "Muon"}, "Muon refuses these arguments"),
    ],
)
def test_what_torch_would_refuse_is_told_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises((ValidationError, UserError)) as raised:
        OptimiserSettings(lr=1e-3, **settings).try_out("training.stages.0.optimiser")
    error = raised.value
    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    assert said in text and "\n" not in text


def test_arguments_reach_torch_and_survive_a_dump() -> None:
    settings = OptimiserSettings(kind="Adam", lr=2e-4, betas=[0.5, 0.999], weight_decay=0.1)
    group = settings.build(list(player().parameters())).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (2e-4, (0.5, 0.999), 0.1)
    assert group["fused"] is True
    assert OptimiserSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_clipping_scales_the_gradient_to_its_norm_and_reports_the_norm_before() -> None:
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.zero_()
    optimiser = make(module, kind="SGD", lr=1.0, clip=1.0)
    optimiser.backward(module(torch.tensor([[3.0, 4.0]])).sum())
    norm, finite = optimiser.step()
    assert norm == pytest.approx(5.0) and finite
    torch.testing.assert_close(module.weight, torch.tensor([[-0.6, -0.8]]))
    assert module.weight.grad is None


def test_the_rate_follows_the_factor() -> None:
    optimiser = make(player(), kind="Adam", lr=2e-4)
    for factor in (0.5, 0.25, 1.0):
        optimiser.set_rate(factor)
        assert optimiser.rate == pytest.approx(2e-4 * factor)


def test_a_loss_that_is_no_number_spoils_the_step_though_its_gradient_is_fine() -> None:
    module = player()
    before = [p.clone() for p in module.parameters()]
    optimiser = make(module, kind="Adam", lr=1e-2)
    optimiser.backward(module(torch.ones(1, 2, 4, 4)).sum() + float("inf"))
    _, finite = optimiser.step()
    assert not finite
    assert all(map(torch.equal, before, module.parameters()))
    assert not optimiser.optimiser.state


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "SGD", "Adafactor"])
def test_what_is_forgotten_of_some_rows_is_all_of_them_and_of_no_others(kind: str) -> None:
    """Two rows of a 3-row weight, whatever the optimiser keeps in the weight's shape; a step count is no row's."""
    module = player()
    optimiser = make(module, kind=kind, lr=1e-2, **({"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}))
    steps(optimiser, module)
    weight, rows = module[0].weight, torch.tensor([True, False, True])
    before = copy.deepcopy(optimiser.state_dict()["optimiser"]["state"])
    values = weight.detach().clone()
    optimiser.forget(weight, rows)
    after = optimiser.state_dict()["optimiser"]["state"]
    shaped = [name for name, value in before[0].items() if torch.is_tensor(value) and value.shape == weight.shape]
    assert len(shaped) == {"Adam": 2, "AdamW": 2, "RMSprop": 2, "SGD": 1, "Adafactor": 0}[kind]
    for number, state in before.items():
        for name, value in state.items():
            wanted = value.clone() if torch.is_tensor(value) else value
            if number == 0 and name in shaped:
                assert (value[rows] != 0).any()
                wanted[rows] = 0
            assert same(after[number][name], wanted), (number, name)
    assert torch.equal(weight, values)


def test_a_parameter_that_never_moved_has_nothing_to_forget() -> None:
    module = player()
    optimiser = make(module, kind="Adam", lr=1e-2)
    optimiser.forget(module[0].weight, torch.tensor([True, False, True]))
    assert not optimiser.optimiser.state.get(module[0].weight)


def test_forgotten_rows_go_on_as_if_new() -> None:
    """But for Adam's count of steps: without a gradient a row without moments stays, one with them moves on."""
    module = nn.Embedding(4, 3)
    optimiser = make(module, kind="Adam", lr=0.1)
    optimiser.backward(module(torch.arange(4)).square().sum())
    optimiser.step()
    optimiser.forget(module.weight, torch.tensor([True, False, False, True]))
    before = module.weight.detach().clone()
    optimiser.backward(module(torch.tensor([1])).sum())
    optimiser.step()
    assert (module.weight == before).all(dim=1).tolist() == [True, False, False, True]
