"""KID by hand, against torchmetrics, and its lack of bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from translate.metrics.kernel import kid


def draws(count: int, dimension: int, seed: int, mean: float = 0.0) -> Tensor:
    return mean + torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    # D = 1. Within {0, 1}: k(0, 1) = 1. Within {1, 2}: k(1, 2) = 3³ = 27. Across: k(0, .) = 1 twice, k(1, 1) = 8,
    # k(1, 2) = 27, so 37 / 4.
    found = kid(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]]))
    assert found == pytest.approx(1 + 27 - 2 * 37 / 4, rel=1e-6)


class Identity(nn.Module):
    """Features as they are, for torchmetrics."""

    num_features = 20

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_equals_torchmetrics_with_one_subset_of_everything() -> None:
    image = pytest.importorskip("torchmetrics.image.kid")
    x, y = draws(120, 20, 1), draws(120, 20, 2, 0.3)
    metric = image.KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=120).set_dtype(torch.float64)
    metric.update(x.double(), real=True)
    metric.update(y.double(), real=False)
    expected = float(metric.compute()[0])
    assert kid(x.double(), y.double()) == pytest.approx(expected, rel=1e-9)
    # In float32: each product, near 1 here, is rounded by some 1e-7, which the mean of 120² makes no larger.
    assert kid(x, y) == pytest.approx(expected, abs=3e-7)


def definition(x: Tensor, y: Tensor) -> Tensor:
    """In float64, whole matrices."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    return (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1)) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize("block", [3, 7, 50, 80, 1000])
def test_blocks_and_order_change_no_more_than_rounding(block: int) -> None:
    x, y = draws(50, 6, 3), draws(80, 6, 4, 0.5)
    expected = float(definition(x, y))
    assert kid(x.double(), y.double(), block=block) == pytest.approx(expected, rel=1e-12)
    assert kid(y.flip(0).double(), x.double(), block=block) == pytest.approx(expected, rel=1e-12)
    assert kid(x, y, block=block) == pytest.approx(expected, abs=1e-6)


def test_features_like_those_of_inception_keep_their_digits_in_float32() -> None:
    # 2048 dimensions, none below zero, mean 0.4: kernels near 1.6, distances near 1e-3, printed with 5 decimals.
    x, y = (draws(300, 2048, seed).abs() * 0.5 + shift for seed, shift in ((5, 0.0), (6, 0.02)))
    expected = float(definition(x, y))
    assert 1e-4 < expected < 1e-2
    assert kid(x, y) == pytest.approx(expected, abs=1e-6)


def test_no_bias() -> None:
    # 2000 pairs of sets of one law, of 5 and 8: the mean is 0 within 3 standard errors (this seed's), and far from what
    # the biased estimate has, which keeps the diagonals: (E k(x, x) - E k(x, x')) (1/5 + 1/8).
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor(
        [kid(*(1 + torch.randn(n, 3, generator=generator) for n in (5, 8))) for _ in range(2000)], dtype=torch.float64
    )
    error = float(found.std()) / 2000**0.5
    assert abs(float(found.mean())) < 3 * error
    assert (found < 0).double().mean() > 0.3
    x = 1 + torch.randn(20_000, 2, 3, generator=generator, dtype=torch.float64)
    own = ((x[:, 0].square().sum(1) / 3 + 1) ** 3).mean() - (((x[:, 0] * x[:, 1]).sum(1) / 3 + 1) ** 3).mean()
    assert float(own) * (1 / 5 + 1 / 8) > 10 * error


def test_autocast_changes_nothing() -> None:
    x, y = draws(40, 6, 3), draws(30, 6, 4, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = kid(x, y)
    assert inside == kid(x, y)
    # Half-precision features are taken at float32.
    assert kid(x.bfloat16(), y) == pytest.approx(kid(x.bfloat16().float(), y), abs=0)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        kid(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at least 2"):
        kid(torch.zeros(1, 3), torch.zeros(4, 3))
