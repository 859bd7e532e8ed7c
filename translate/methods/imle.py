"""Implicit maximum likelihood: each real sample pulls the nearest of many fakes (Li & Malik 2018, arXiv 1809.09087).

repeat for each batch of samples x_1 ... x_n:
    z_1 ... z_m ~ p(z)
    nearest(i) <- the j that minimises | x_i - G(z_j) |²
    G: minimise mean over i of | x_i - G(z_nearest(i)) |²

Algorithm 1, with fresh fakes in each step. No real sample is without a fake beside it, so no mode is lost; what is
paid is sharpness.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from translate.data import DataSettings, FolderSettings, ToySettings
from translate.methods.base import Turn
from translate.methods.generative import GenerativeMethod, LatentSettings, samples_of
from translate.networks import LatentGeneratorSettings
from translate.networks.mlp import MLPGeneratorSettings
from translate.settings import Settings


class IMLESettings(Settings):
    """A generator that learns from the nearest of its own samples."""

    kind: Literal["imle"] = "imle"
    generator: LatentGeneratorSettings = MLPGeneratorSettings()
    latent: LatentSettings = LatentSettings()
    candidates: int = Field(default=1024, ge=1)
    """m: samples drawn in each step, of which each real one takes its nearest; at least the batch is of use."""

    def build(self, data: DataSettings, *, inference: bool = False) -> IMLE:
        """The method for a data set."""
        return IMLE(self, samples_of(data, "imle"))


class IMLE(GenerativeMethod):
    """The algorithm box above: one player."""

    def __init__(self, settings: IMLESettings, data: FolderSettings | ToySettings) -> None:
        super().__init__(settings.generator, settings.latent, data)
        self.candidates = settings.candidates
        self.weights = {"distance": 1.0}

    def turns(self, step: int) -> Sequence[Turn]:
        return (Turn("generator"),)

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        real = batch[self.side]
        with torch.no_grad():
            latents = self.draw(self.candidates, device=real.device)
            fakes = torch.cat([self.generate(part) for part in torch.split(latents, len(real))])
            # Squared distances (n, m) by |x|² - 2 x·g + |g|², in float32: they differ by little. |x|² moves no minimum.
            x, g = real.flatten(1).float(), fakes.flatten(1).float()
            with torch.autocast(real.device.type, enabled=False):
                distances = g.square().sum(dim=1) - 2 * x @ g.T
        return {"latent": latents[distances.argmin(dim=1)]}

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fake = self.generate(shared["latent"])
        return {"distance": (fake.float() - batch[self.side]).square().flatten(1).sum(dim=1).mean()}
