"""A codebook's use, by hand and against SciPy."""

from __future__ import annotations

import math

import pytest
import torch

from translate.errors import UserError
from translate.metrics.codebook import CodeUse


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.uint16])
def test_by_hand(dtype: torch.dtype) -> None:
    use = CodeUse(8)
    use.add(torch.tensor([[0, 0], [3, 7]]).to(dtype))
    # Shares 1/2, 1/4, 1/4: entropy 1.5 log 2.
    assert use.scores() == {"codes-used": pytest.approx(3 / 8), "perplexity": pytest.approx(2**1.5)}


def test_even_use_and_collapse() -> None:
    even, one = CodeUse(16), CodeUse(16)
    even.add(torch.arange(16).repeat(3, 1))
    one.add(torch.full((2, 5, 5), 9))
    assert even.scores() == {"codes-used": 1.0, "perplexity": pytest.approx(16)}
    assert one.scores() == {"codes-used": pytest.approx(1 / 16), "perplexity": pytest.approx(1)}


def test_batches_merge_and_the_entropy_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    codes = torch.randint(100, (40, 8, 8), generator=torch.Generator().manual_seed(0)) ** 2 // 100
    first, second = CodeUse(1024), CodeUse(1024)
    for grid in codes[:15]:
        first.add(grid)
    second.add(codes[15:])
    first.merge(second)
    counts = codes.unique(return_counts=True)[1].numpy()
    expected = {"codes-used": len(counts) / 1024, "perplexity": math.exp(stats.entropy(counts))}
    assert first.scores() == pytest.approx(expected, rel=1e-12)


def test_what_can_not_be_counted() -> None:
    use = CodeUse(8)
    for bad in (8, -1):
        with pytest.raises(UserError, match=f"from 0 to 7, not {bad}"):
            use.add(torch.tensor([3, bad]))
    with pytest.raises(UserError, match="no tokens"):
        use.scores()
    with pytest.raises(ValueError, match="of 8"):
        use.merge(CodeUse(9))
