"""An exponential moving average of the exported networks, with its half-life in images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.settings import Settings, SpanField


class EMASettings(Settings):
    """Averaging of the generator's weights: steadier results, and what is exported if it is on."""

    half_life: SpanField
    """After this length a weight's old value counts half."""
    ramp: float | None = Field(default=0.05, gt=0, le=1)
    """The half-life is at most this share of the images seen, so that the start is forgotten (StyleGAN2: 0.05)."""


class EMA:
    """average <- average + (1 - 2^(-images / half-life)) (weights - average); buffers are copied.

    Averaged batch norm statistics would belong to networks that never were; the copy is what the last network saw.
    """

    def __init__(self, networks: nn.Module, settings: EMASettings) -> None:
        self.networks = networks
        self.settings = settings
        self.parameters = dict(networks.named_parameters())
        self.buffers = dict(networks.named_buffers())
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.average_buffers = {name: b.detach().clone() for name, b in self.buffers.items()}

    @torch.no_grad()
    def update(self, images: int, seen: int, *, batch: int, epoch: int, finite: Tensor) -> None:
        """Take in the weights after a step of `images`, `seen` counted with them; stays still where not `finite`."""
        half_life = float(self.settings.half_life.images(batch=batch, epoch=epoch))
        if self.settings.ramp is not None:
            half_life = min(half_life, max(seen * self.settings.ramp, 1e-8))
        share = 1.0 - 0.5 ** (images / half_life)
        averages, weights = list(self.average.values()), list(self.parameters.values())
        if finite.device.type == "cpu":
            if not finite:
                return
            torch._foreach_lerp_(averages, list[Tensor](weights), share)
        else:
            masked_share = finite.float() * share  # on the device: no wait for the host
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, masked_share)
        for name, buffer in self.buffers.items():
            self.average_buffers[name].copy_(buffer)

    @torch.no_grad()
    def renew(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Begin the average of some rows of a parameter anew, with their values: (rows,) bool."""
        for name, own in self.parameters.items():
            if own is parameter:
                kept = self.average[name]
                kept.copy_(torch.where(_along_rows(rows, kept), parameter, kept))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the networks have the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, kept in ((self.parameters, self.average), (self.buffers, self.average_buffers)):
            for name, tensor in live.items():
                tensor.data, kept[name] = kept[name], tensor.data

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.average, **self.average_buffers}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for kept in (self.average, self.average_buffers):
            for name, tensor in kept.items():
                tensor.copy_(state[name])


def _along_rows(rows: Tensor, like: Tensor) -> Tensor:
    """(rows,) as a mask of a tensor (rows, ...)."""
    return rows.reshape(-1, *[1] * (like.ndim - 1))
