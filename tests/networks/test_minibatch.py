from __future__ import annotations

import math
from itertools import groupby

import pytest
import torch
from torch import nn

from translate.networks.minibatch import MinibatchDeviation, MinibatchDiscrimination


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(8, [4, 4]), (4, [4]), (3, [3]), (1, [1]), (6, [6]), (7, [7]), (9, [5, 4]), (13, [5, 4, 4]), (14, [5, 5, 4])],
)
@pytest.mark.parametrize("pixels", [(), (2, 3)])
def test_deviation_equals_a_loop_over_groups(count: int, sizes: list[int], pixels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(count, 5, *pixels) * 2 + 1
    got = MinibatchDeviation(group=4)(x)
    assert got.shape == (count, 6, *pixels)
    assert torch.equal(got[:, :5], x)
    found = _group_sizes(got.view(count, 6, -1)[:, 5, 0].tolist())
    assert sorted(found, reverse=True) == sizes
    start = 0
    for size in found:
        group = x[start : start + size]
        expected = (group.var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(got[start : start + size, 5], expected.expand(size, *pixels))
        start += size


def _group_sizes(numbers: list[float]) -> list[int]:
    """Lengths of the runs of equal numbers: two groups of random examples never have the same deviation."""
    return [len(list(run)) for _, run in groupby(numbers)]


def test_equal_examples_have_no_deviation_and_finite_gradients() -> None:
    x = torch.ones(4, 3, 2, 2, requires_grad=True)
    got = MinibatchDeviation()(x)
    assert got[:, 3].max().item() == pytest.approx(1e-4)  # the root of 1e-8
    got.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_discrimination_equals_a_loop() -> None:
    torch.manual_seed(0)
    net = MinibatchDiscrimination(6, kernels=3, dimensions=2)
    x = torch.randn(4, 6)
    got = net(x)
    assert torch.equal(got[:, :6], x)
    rows = [(net.project.weight @ example).detach().view(3, 2) for example in x]
    for i in range(4):
        for kernel in range(3):
            nearness = sum(math.exp(-sum(abs(rows[i][kernel] - other[kernel]).tolist())) for other in rows)
            assert got[i, 6 + kernel].item() == pytest.approx(nearness, rel=1e-5)


def test_discrimination_counts_copies() -> None:
    torch.manual_seed(0)
    net = MinibatchDiscrimination(6)
    nn.init.normal_(net.project.weight, 0, 100)  # other examples are too far to count
    one, other = torch.randn(2, 1, 6)
    got = net(torch.cat([one, other, one, one]))
    torch.testing.assert_close(got[:, 6:], torch.tensor([3.0, 1, 3, 3])[:, None].expand(-1, 100))


@pytest.mark.parametrize("net", [MinibatchDeviation(), MinibatchDiscrimination(2, 2, 2)])
def test_double_backward(net: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(net.double(), x)


@pytest.mark.parametrize("net", [MinibatchDeviation(), MinibatchDiscrimination(8)])
def test_bfloat16_changes_the_statistic_by_its_rounding_only(net: nn.Module) -> None:
    torch.manual_seed(0)
    net.float()
    x = torch.randn(8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x)
    assert got.dtype == torch.bfloat16
    # 8 bits of T, M and the result: 1 % and a little.
    torch.testing.assert_close(got.float(), net(x.float()), atol=0.02, rtol=0.02)
