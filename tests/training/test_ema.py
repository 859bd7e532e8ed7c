"""The moving average against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from translate.settings import parse_span
from translate.training.ema import EMA, EMASettings

YES, NO = torch.tensor(True), torch.tensor(False)


def network(value: float = 0.0) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def make(half_life: str, ramp: float | None = None) -> tuple[nn.Module, EMA]:
    module = network()
    ema = EMA(module, EMASettings(half_life=parse_span(half_life), ramp=ramp))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    return module, ema


@pytest.mark.parametrize(("half_life", "images"), [("40 images", 40), ("10 steps", 40), ("2 epochs", 100)])
def test_towards_a_constant_it_comes_by_the_half_life(half_life: str, images: int) -> None:
    """After n images of weights that stay at 1, the average that began at 0 is 1 - 2^(-n / half-life)."""
    _, ema = make(half_life)
    for step in range(1, 31):
        ema.update(4, 4 * step, batch=4, epoch=50, finite=YES)
        for average in ema.average.values():
            torch.testing.assert_close(average, torch.full_like(average, 1 - 2 ** (-4 * step / images)))


def test_the_ramp_forgets_the_start() -> None:
    """With a share r of the images seen as half-life, what is left of the start is a product of 2^(-batch/(r seen))."""
    _, ema = make("1000000 images", ramp=0.05)
    left = 1.0
    for step in range(1, 21):
        ema.update(4, 4 * step, batch=4, epoch=50, finite=YES)
        left *= 2 ** (-4 / (0.05 * 4 * step))
        average = ema.average["0.weight"]
        torch.testing.assert_close(average, torch.full_like(average, 1 - left))
    assert left < 1e-20  # sum over 1/n steps: the first weights are gone though the half-life is a million images


def test_the_ramp_ends_at_the_half_life() -> None:
    _, ema = make("8 images", ramp=0.5)
    ema.update(4, 4000, batch=4, epoch=50, finite=YES)
    torch.testing.assert_close(ema.average["0.bias"], torch.full((2,), 1 - 2**-0.5))


def test_buffers_are_copied() -> None:
    module, ema = make("40 images")
    module(torch.randn(8, 2))
    ema.update(4, 4, batch=4, epoch=50, finite=YES)
    assert torch.equal(ema.average_buffers["1.running_mean"], module[1].running_mean)
    assert ema.average_buffers["1.num_batches_tracked"] == 1
    assert ema.average_buffers["1.num_batches_tracked"].dtype == torch.int64


def test_it_stays_still_after_a_bad_step() -> None:
    _, ema = make("40 images")
    before = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    ema.update(4, 4, batch=4, epoch=50, finite=NO)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ema.state_dict().items())


def test_in_place_lends_the_average_and_gives_the_weights_back() -> None:
    module, ema = make("4 images")
    ema.update(4, 4, batch=4, epoch=50, finite=YES)
    parameters, pointers = list(module.parameters()), [p.data_ptr() for p in module.parameters()]
    with pytest.raises(RuntimeError, match="inside"), ema.in_place():
        assert all((p == 0.5).all() for p in module.parameters())
        assert all(one is two for one, two in zip(module.parameters(), parameters, strict=True))  # optimisers hold them
        raise RuntimeError("inside")
    assert all((p == 1).all() for p in module.parameters())
    assert [p.data_ptr() for p in module.parameters()] == pointers
    assert all((average == 0.5).all() for average in ema.average.values())


def test_a_state_read_back_is_the_same() -> None:
    _, ema = make("4 images")
    ema.update(4, 4, batch=4, epoch=50, finite=YES)
    _, other = make("4 images")
    other.load_state_dict({name: tensor.clone() for name, tensor in ema.state_dict().items()})
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in ema.state_dict().items())


def test_rows_that_are_renewed_begin_with_their_values() -> None:
    """Their average is the new value, and stays it while they do; the others' goes on as if nothing were."""
    module, ema = make("4 images")
    ema.update(4, 4, batch=4, epoch=50, finite=YES)
    rows = torch.tensor([False, True])
    with torch.no_grad():
        module[0].weight[1] = 7.0
    ema.renew(module[0].weight, rows)
    assert ema.average["0.weight"].tolist() == [[0.5, 0.5], [7, 7]]
    assert ema.average["0.bias"].tolist() == [0.5, 0.5]
    ema.update(4, 8, batch=4, epoch=50, finite=YES)
    assert ema.average["0.weight"].tolist() == [[0.75, 0.75], [7, 7]]
    ema.renew(module[0].bias, rows)  # of one dimension
    assert ema.average["0.bias"].tolist() == [0.75, 1]
    ema.renew(nn.Parameter(torch.zeros(2, 2)), rows)  # not averaged: nothing happens
    assert ema.average["0.weight"].tolist() == [[0.75, 0.75], [7, 7]]
