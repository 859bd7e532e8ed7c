"""Learning rate schedules: a factor on the base rate as a function of the images seen."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from translate.settings import Settings, Share, SpanField


class _Schedule(Settings):
    """What all schedules share. `batch` and `epoch` are images in a step and in an epoch."""

    warmup: SpanField | None = None
    """The rate rises linearly from zero over this span first."""

    def factor(self, images: int, *, total: int, batch: int, epoch: int) -> float:
        """The factor for the step that begins after `images` of a stage's `total` images, in [0, 1]."""
        rise = self.warmup.images(batch=batch, epoch=epoch) if self.warmup else 0
        start = min(1.0, (images + batch) / rise) if rise else 1.0
        return start * self._shape(images, total, batch, epoch)

    @abstractmethod
    def _shape(self, images: int, total: int, batch: int, epoch: int) -> float:
        """The factor without the warm-up."""


class ConstantSchedule(_Schedule):
    """The same rate from beginning to end."""

    kind: Literal["constant"] = "constant"

    def _shape(self, images: int, total: int, batch: int, epoch: int) -> float:
        return 1.0


class LinearSchedule(_Schedule):
    """Constant for `hold`, then in a straight line down to `end` of the rate where the stage ends.

    pix2pix and CycleGAN in PyTorch hold for 100 epochs and fall over 100, moving the rate once an epoch.
    """

    kind: Literal["linear"] = "linear"
    hold: SpanField | None = None
    end: float = Field(default=0.0, ge=0, le=1)

    def _shape(self, images: int, total: int, batch: int, epoch: int) -> float:
        hold = self.hold.images(batch=batch, epoch=epoch) if self.hold else 0
        if images < hold or total <= hold:
            return 1.0
        return 1.0 + (self.end - 1.0) * (images - hold) / (total - hold)


class CosineSchedule(_Schedule):
    """Half a cosine from the rate down to `end` of it (Loshchilov & Hutter 2017, equation 5, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    end: float = Field(default=0.0, ge=0, le=1)

    def _shape(self, images: int, total: int, batch: int, epoch: int) -> float:
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, images / total)))


class StepSchedule(_Schedule):
    """Multiplied by `gamma` once every `every`."""

    kind: Literal["step"] = "step"
    every: SpanField
    gamma: float = Field(default=0.1, gt=0, lt=1)

    def _shape(self, images: int, total: int, batch: int, epoch: int) -> float:
        return float(self.gamma ** (images // self.every.images(batch=batch, epoch=epoch)))


class DelayedSchedule(_Schedule):
    """Nothing before `start`, then all of it, or rising in a straight line over `ramp`.

    For the weights of losses: with `discriminator` delayed less than `adversarial` is, a discriminator trains alone for
    a while before a generator listens to it.
    """

    kind: Literal["delayed"] = "delayed"
    start: Share | SpanField  # in this order: what writes a length would take any value
    """A length, or a share of the stage."""
    ramp: SpanField | None = None

    def _shape(self, images: int, total: int, batch: int, epoch: int) -> float:
        start = self.start * total if isinstance(self.start, float) else self.start.images(batch=batch, epoch=epoch)
        if images < start:
            return 0.0
        ramp = self.ramp.images(batch=batch, epoch=epoch) if self.ramp else 0
        return min(1.0, (images - start + batch) / ramp) if ramp else 1.0


ScheduleSettings = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | StepSchedule | DelayedSchedule, Field(discriminator="kind")
]
