"""The Kernel Inception Distance: a squared distance of two sets of features without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from translate.devices import exact_float32


@torch.no_grad()
def kid(predicted: Tensor, reference: Tensor, *, block: int = 1024) -> float:
    """Squared maximum mean discrepancy of features (N, D) and (M, D) under the kernel (x.y / D + 1)³ (Bińkowski et al.
    2018, arXiv 1801.01401, section 4), unbiased (Gretton et al. 2012, JMLR 13, eq. 3): its mean is 0 where both sets
    have one law, and a value can be below it.

    Over all pairs at once, not as the mean of 100 random subsets of 1000: that has the same expectation, more variance
    and a seed. Products are taken in the features' own format (float32 at least) and summed in float64; memory goes by
    block². Raises ValueError for other shapes and for less than two rows of a side.
    """
    if predicted.ndim != 2 or reference.ndim != 2 or predicted.shape[1] != reference.shape[1]:
        raise ValueError(
            f"expected features (N, D) and (M, D), not {tuple(predicted.shape)} and {tuple(reference.shape)}"
        )
    if min(len(predicted), len(reference)) < 2:
        raise ValueError(f"expected at least 2 features of a side, not {len(predicted)} and {len(reference)}")
    common = torch.promote_types(torch.promote_types(predicted.dtype, reference.dtype), torch.float32)
    with exact_float32(predicted.device):
        x, y = (torch.split(z.to(predicted.device, common), block) for z in (predicted, reference))
        across = torch.stack([_kernel(a, b).sum(dtype=torch.float64) for a in x for b in y]).sum()
        pairs = len(predicted) * len(reference)
        return float(_mean_within(x) + _mean_within(y) - 2 * across / pairs)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(n, D), (m, D) -> (n, m)."""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def _mean_within(blocks: tuple[Tensor, ...]) -> Tensor:
    """Mean of the kernel over the pairs of different rows of one set, each pair computed once."""
    count = sum(len(block) for block in blocks)
    total = torch.zeros((), dtype=torch.float64, device=blocks[0].device)
    for i, a in enumerate(blocks):
        own = _kernel(a, a)
        total += own.sum(dtype=torch.float64) - own.diagonal().sum(dtype=torch.float64)
        for b in blocks[i + 1 :]:
            total += 2 * _kernel(a, b).sum(dtype=torch.float64)
    return total / (count * (count - 1))
