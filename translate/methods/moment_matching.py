"""Generative moment matching: no discriminator, all moments at once (Li et al. 2015, arXiv 1502.02761, algorithm 2).

repeat for each batch of samples x:
    z ~ p(z)
    G: minimise MMD( x, G(z) )                                      (section 3: the square root of the squared MMD)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from translate.data import DataSettings, FolderSettings, ToySettings
from translate.losses.moment_matching import mmd
from translate.methods.base import Turn
from translate.methods.generative import GenerativeMethod, LatentSettings, samples_of
from translate.networks import LatentGeneratorSettings
from translate.networks.mlp import MLPGeneratorSettings
from translate.settings import Settings


class MomentMatchingSettings(Settings):
    """A generator whose batches shall have the moments of real batches: large batches tell more."""

    kind: Literal["moment-matching"] = "moment-matching"
    generator: LatentGeneratorSettings = MLPGeneratorSettings()
    latent: LatentSettings = LatentSettings(width=10, prior="uniform")
    """Section 5: a uniform prior of few dimensions."""
    bandwidths: list[float] = Field(default=[8.0, 20.0, 40.0, 80.0, 160.0, 320.0], min_length=1)
    """s of the Gaussian kernels exp(-|x - y|² / 2s) whose sum is compared: section 5's 2 to 80, for pixels in [0, 1],
    times 4, as ours lie in [-1, 1]."""

    def build(self, data: DataSettings, *, inference: bool = False) -> MomentMatching:
        """The method for a data set."""
        return MomentMatching(self, samples_of(data, "moment-matching"))


class MomentMatching(GenerativeMethod):
    """The algorithm box above: one player."""

    def __init__(self, settings: MomentMatchingSettings, data: FolderSettings | ToySettings) -> None:
        super().__init__(settings.generator, settings.latent, data)
        self.bandwidths = settings.bandwidths
        self.weights = {"mmd": 1.0}

    def turns(self, step: int) -> Sequence[Turn]:
        return (Turn("generator"),)

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        real = batch[self.side]
        fake = self.generate(self.draw(len(real), device=real.device))
        squared = mmd(real.flatten(1), fake.flatten(1), self.bandwidths, unbiased=False)
        # The root keeps the gradient from vanishing near the goal (section 3); its slope at zero is infinite.
        return {"mmd": squared.clamp(min=1e-12).sqrt()}
