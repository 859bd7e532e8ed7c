"""The endless streams: each epoch is a permutation, a position needs no past, two sides are strangers."""

from __future__ import annotations

import numpy as np
import pytest

from translate.data.order import SampleOrder, UnpairedOrder


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_an_epoch_is_a_permutation(count: int) -> None:
    order = SampleOrder(count, seed=3)
    epochs = [[order[epoch * count + offset] for offset in range(count)] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert all(type(index) is int for epoch in epochs for index in epoch)
    if count >= 7:  # two equal ones of 7! have the chance 10 / 5040
        assert len({tuple(epoch) for epoch in epochs}) == 5


def test_a_position_needs_no_past() -> None:
    """Read backwards, from the middle, or by another object: the same stream."""
    order = SampleOrder(5, seed=1)
    stream = [order[position] for position in range(40)]
    again = SampleOrder(5, seed=1)
    assert [again[position] for position in reversed(range(40))] == stream[::-1]
    assert SampleOrder(5, seed=1)[33] == stream[33]
    assert [SampleOrder(5, seed=2)[position] for position in range(40)] != stream


def test_every_place_is_equally_likely() -> None:
    """Over 6000 epochs of 6 each entry is at the first place a sixth of the time: 1000, deviation 29; 5 of these."""
    order = SampleOrder(6, seed=0)
    firsts = np.bincount([order[6 * epoch] for epoch in range(6000)], minlength=6)
    assert np.abs(firsts - 1000).max() < 5 * (6000 * 1 / 6 * 5 / 6) ** 0.5


def test_sides_are_streams_of_their_own() -> None:
    orders = SampleOrder(3, seed=1), SampleOrder(5, seed=2)
    both = UnpairedOrder(orders)
    for position in [*range(31), 1000, 7]:
        assert both[position] == (orders[0][position], orders[1][position])
    stream = [both[position] for position in range(30)]
    assert all({a for a, _ in stream[start : start + 3]} == {0, 1, 2} for start in range(0, 30, 3))
    assert all({b for _, b in stream[start : start + 5]} == {0, 1, 2, 3, 4} for start in range(0, 30, 5))
