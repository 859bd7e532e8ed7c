"""Toy data: points in the plane from mixtures of Gaussians whose law is known, so that a generator can be measured
against the law itself."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from translate.data.cache import Progress
from translate.data.order import SampleOrder
from translate.data.spec import PointSpec, Sample, Split
from translate.settings import Settings

Layout = Literal["ring8", "grid25"]

# VEEGAN (Srivastava et al. 2017, arXiv 1705.07761), section 4.1, with the numbers that PacGAN (Lin et al. 2018, arXiv
# 1712.04086), section 4.1, gives for the same two sets: variances 1e-4 on the ring, 0.0025 on the grid.
_RADIUS = 1.0
_GRID = (-4.0, -2.0, 0.0, 2.0, 4.0)
_DEVIATIONS: dict[Layout, float] = {"ring8": 0.01, "grid25": 0.05}
_HELD_OUT = 10  # one point of validation and of test for so many of training


class PointDataset(Dataset[Sample]):
    """Points drawn beforehand, read by index.

    Args:
        points: (N, D) float32.
    """

    def __init__(self, points: NDArray[np.float32]) -> None:
        self.points = points
        self.specs = {"point": PointSpec(dimensions=points.shape[1])}

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """One point, `{"point": (D,), "name": its number}`: `dataset[index]`, or in training `dataset[index,
        position]`, which is the same one."""
        index = key[0] if isinstance(key, tuple) else key
        return {"point": self.points[index], "name": str(index)}

    def order(self, seed: int) -> SampleOrder:
        """Which index stands where in the endless stream of training samples."""
        return SampleOrder(len(self), seed)


class ToySettings(Settings):
    """Points in the plane: equally likely Gaussians on a ring or a grid, to see which modes a method loses."""

    kind: Literal["toy"] = "toy"
    layout: Layout = "grid25"
    """`ring8`: eight modes on a circle of radius 1. `grid25`: 5 x 5 modes, 2 apart, around 0."""
    deviation: float | None = Field(default=None, gt=0)
    """Standard deviation of each mode in each direction; null: the papers' (0.01 on the ring, 0.05 on the grid)."""
    samples: int = Field(default=100_000, ge=1)
    """Points of the training split, drawn once; validation and test have further ones, a tenth as many each."""
    workers: int = Field(default=0, ge=0)
    """Processes that load data; the points lie in memory, so the main process is the fastest."""
    cache: ClassVar[Literal["none"]] = "none"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: the points have no labels."""
        return ()

    def resolved(self) -> ToySettings:
        """The settings as they are: nothing in them waits for files."""
        return self

    def specs(self) -> dict[str, PointSpec]:
        """What the samples are: `{"point": ...}`."""
        return {"point": PointSpec(dimensions=2)}

    def shape(self) -> tuple[int, ...]:
        """The shape of each sample: (2,)."""
        return (2,)

    def modes(self) -> tuple[Tensor, float]:
        """The law: centres of the modes (K, 2), float32, all equally likely, and their standard deviation in each
        direction."""
        if self.layout == "ring8":
            angles = [2 * math.pi * number / 8 for number in range(8)]
            centres = [(_RADIUS * math.cos(angle), _RADIUS * math.sin(angle)) for angle in angles]
        else:
            centres = [(x, y) for x in _GRID for y in _GRID]
        return torch.tensor(centres), self.deviation or _DEVIATIONS[self.layout]

    def open(self, split: Split, seed: int, *, progress: Progress | None = None) -> PointDataset:
        """The points of a split, the same ones for the same seed; `progress` is not called."""
        number = ("train", "validation", "test").index(split)
        count = self.samples if split == "train" else -(-self.samples // _HELD_OUT)
        generator = np.random.default_rng((seed, 3, number))
        centres, deviation = self.modes()
        which = generator.integers(len(centres), size=count)
        points = centres.numpy()[which] + deviation * generator.standard_normal((count, 2))
        return PointDataset(points.astype(np.float32))
