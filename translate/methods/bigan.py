"""BiGAN: a game over pairs of sample and latent, which teaches an encoder (Donahue et al. 2017, arXiv 1605.09782).

repeat for each batch of samples x:
    z ~ p(z)
    D:      minimise L_D( D(x, E(x)), D(G(z), z) )
    G and E: minimise L_D with the roles exchanged               (eq. 3 and algorithm 1: both flip the labels)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.data import DataSettings, FolderSettings, ToySettings
from translate.data.images import visible
from translate.losses.adversarial import NonSaturatingSettings, ObjectiveField
from translate.methods.base import Comparison, Turn
from translate.methods.generative import GenerativeMethod, LatentSettings, samples_of, scatter
from translate.networks import CriticSettings, LatentGenerator, LatentGeneratorSettings
from translate.networks.dcgan import DCGANCriticSettings, DCGANGeneratorSettings
from translate.networks.joint import Encoder, JointCritic
from translate.settings import Settings


class BiGANSettings(Settings):
    """Generator and encoder, each the other's inverse where the game is won."""

    kind: Literal["bigan"] = "bigan"
    generator: LatentGeneratorSettings = DCGANGeneratorSettings()
    encoder: CriticSettings = DCGANCriticSettings()
    """The architecture of a critic, whose features a linear layer turns into a latent."""
    discriminator: CriticSettings = DCGANCriticSettings()
    """Judges the sample; what it finds is joined with the latent."""
    joint_width: int = Field(default=1024, ge=1)
    """Width of the layers that join sample and latent."""
    latent: LatentSettings = LatentSettings()
    objective: ObjectiveField = NonSaturatingSettings()
    """The adversarial game; its discriminator loss serves all players."""

    def build(self, data: DataSettings, *, inference: bool = False) -> BiGAN:
        """The method for a data set."""
        return BiGAN(self, samples_of(data, "bigan"))


class BiGAN(GenerativeMethod):
    """The algorithm box above. Generator and encoder move together: they are one player."""

    def __init__(self, settings: BiGANSettings, data: FolderSettings | ToySettings) -> None:
        super().__init__(settings.generator, settings.latent, data)
        width = settings.latent.width
        makers = nn.ModuleDict(
            {"generator": self.players["generator"], "encoder": Encoder(settings.encoder.build(self.shape), width)}
        )
        discriminator = JointCritic(settings.discriminator.build(self.shape), width, settings.joint_width)
        self.players = nn.ModuleDict({"discriminator": discriminator, "generator": makers})
        self.objective = settings.objective.build()
        self.weights = {"discriminator": 1.0, "adversarial": 1.0}
        if self.compares:
            self.compares = {**self.compares, "rebuilt": True}

    @property
    def generator(self) -> LatentGenerator:
        maker = self.players["generator"]
        return cast(LatentGenerator, maker["generator"] if isinstance(maker, nn.ModuleDict) else maker)

    @property
    def encoder(self) -> Encoder:
        return cast(Encoder, cast(nn.ModuleDict, self.players["generator"])["encoder"])

    def turns(self, step: int) -> Sequence[Turn]:
        return (Turn("discriminator"), Turn("generator"))

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        real = batch[self.side]
        latent = self.draw(len(real), device=real.device)
        with torch.set_grad_enabled("generator" in moving):
            return {"latent": latent, "fake": self.generate(latent), "encoded": self.encoder(real)}

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        real, latent, fake, encoded = batch[self.side], shared["latent"], shared["fake"], shared["encoded"]
        discriminator = self.players["discriminator"]
        if turn.player == "discriminator":
            of_real, of_fake = discriminator(real, encoded.detach()), discriminator(fake.detach(), latent)
            return {"discriminator": self.discriminator_loss(self.objective, of_real, of_fake)}
        of_real, of_fake = discriminator(real, encoded), discriminator(fake, latent)
        return {"adversarial": self.objective.discriminator(of_fake, of_real)}

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        """Samples; and what the generator makes of the encoder's latents, which at the optimum are the real samples."""
        real = batch[self.side]
        rebuilt = Comparison(self.generate(self.encoder(real)), real, self.spec)
        return {**super().comparisons(batch, chance), "rebuilt": rebuilt}

    def exported(self) -> nn.ModuleDict:
        return nn.ModuleDict({"generator": self.generator, "encoder": self.encoder})

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Real samples, and what generator and encoder make of them; and fresh samples."""
        real = batch[self.side]
        rebuilt = self.generate(self.encoder(real))
        if self.spec.kind == "points":
            rebuilt_points = {"rebuilt": scatter(rebuilt, 1.25 * float(real.abs().max()))[None]}
            return {**super().previews(batch), **rebuilt_points}
        return {"real": visible(real, self.spec), "rebuilt": visible(rebuilt, self.spec), **super().previews(batch)}
