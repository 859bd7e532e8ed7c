"""Which sample stands where in the endless stream of training: nothing but a position decides, so that a run resumes
exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class SampleOrder:
    """Which sample stands at which position of the endless stream.

    Epoch e is a permutation of all samples, seeded by (seed, e); position p is entry p mod n of epoch p div
    n.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._permutation = np.zeros(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.count)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self.seed, 0, epoch)).permutation(self.count)
        return int(self._permutation[offset])


class UnpairedOrder:
    """One order a side, each with epochs of its own length: what stands together at a position is chance.

    Position p has entry p of each side's stream.

    Args:
        orders: with a seed each; with one seed for all, sides of equal length would stay side by side.
    """

    def __init__(self, orders: Sequence[SampleOrder]) -> None:
        self.orders = orders

    def __getitem__(self, position: int) -> tuple[int, ...]:
        return tuple(order[position] for order in self.orders)
