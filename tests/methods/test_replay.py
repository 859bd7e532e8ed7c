"""The pool of past samples."""

from __future__ import annotations

import torch

from translate.methods.replay import HistoryPool


def test_it_returns_what_comes_until_it_is_full_then_swaps_half() -> None:
    torch.manual_seed(0)
    pool = HistoryPool(50)
    first = torch.arange(50.0)[:, None]
    assert torch.equal(pool(first)[0], first)
    old = 0
    for step in range(100):
        new = torch.full((10, 1), 1000.0 + step)
        (shown,) = pool(new)
        assert shown.shape == new.shape
        old += int((shown != new).sum())
    # 1000 draws at 1/2, deviation 16; a swapped-in sample may be of this very batch (1 in 50 or less).
    assert 430 < old < 560


def test_rows_stay_together() -> None:
    torch.manual_seed(0)
    pool = HistoryPool(8)
    for _ in range(20):
        samples = torch.randn(4, 3)
        shown, label = pool(samples, samples.sum(dim=1))
        torch.testing.assert_close(shown.sum(dim=1), label)


def test_its_state_goes_on() -> None:
    torch.manual_seed(0)
    one, two = HistoryPool(6), HistoryPool(6)
    for _ in range(5):
        one(torch.randn(4, 2))
    two.load_state_dict(one.state_dict())
    new = torch.randn(4, 2)
    torch.manual_seed(1)
    expected = one(new)[0]
    torch.manual_seed(1)
    assert torch.equal(two(new)[0], expected)


def test_what_is_no_number_is_not_kept() -> None:
    pool = HistoryPool(2)
    pool(torch.full((2, 1), torch.nan))
    assert all(value.isfinite().all() for row in pool.kept for value in row)
