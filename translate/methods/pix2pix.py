"""pix2pix: translation learnt from pairs (Isola et al. 2017, arXiv 1611.07004).

repeat for each batch of pairs (x, y):
    fake <- G(x)
    D: minimise 1/2 [ L_D( D(x, y), D(x, fake) ) ]                      (section 3.3: D's objective halved)
    G: minimise L_G( D(x, fake) ) + 100 * | y - fake |                   (equation 4; lambda = 100)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.data import DataSettings, PairedSettings
from translate.data.images import visible
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.losses.feature_matching import feature_matching
from translate.losses.perceptual import PerceptualSettings
from translate.losses.reconstruction import ReconstructionSettings
from translate.methods.adversary import Adversary, AdversarySettings, discriminator_losses, pair
from translate.methods.base import Comparison, Method, Turn, check_sizes, run_padded
from translate.networks import Discriminator, DiscriminatorSettings, Generator, GeneratorSettings
from translate.networks.patch import PatchSettings
from translate.networks.unet import UNetSettings


class Pix2PixSettings(AdversarySettings):
    """A generator that maps x to y, and a discriminator that judges pairs (x, y).

    Augmentations change both images of a pair alike, the pool remembers pairs, and penalties look at the slope along y,
    with x held fixed. (With batch norm in the discriminator a penalty is sound for batches of one alone.)
    """

    kind: Literal["pix2pix"] = "pix2pix"
    generator: GeneratorSettings = UNetSettings()
    discriminator: DiscriminatorSettings = PatchSettings()
    discriminator_weight: float = Field(default=0.5, ge=0)
    """The paper halves the discriminator's loss, which slows it against the generator (section 3.3)."""
    adversarial_weight: float = Field(default=1.0, ge=0)
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    perceptual: PerceptualSettings | None = None
    """Distance of VGG features as one more term of the generator."""
    feature_matching_weight: float = Field(default=0.0, ge=0)
    """Distance of the discriminator's own features (pix2pixHD uses 10)."""

    def build(self, data: DataSettings, *, inference: bool = False) -> Pix2Pix:
        """The method for a data set; for `inference` nothing is loaded that only a loss needs."""
        if not isinstance(data, PairedSettings):
            raise UserError(f"method pix2pix learns from pairs: data.kind must be 'paired', not '{data.kind}'")
        return Pix2Pix(self, data, inference=inference)


class Pix2Pix(Method):
    """The algorithm box above, term by term."""

    def __init__(self, settings: Pix2PixSettings, data: PairedSettings, *, inference: bool = False) -> None:
        super().__init__()
        specs: dict[str, ImageSpec] = data.specs()
        self.sides = (data.source, data.target)
        self.directions = (data.direction,)
        self.compares = {"": True}
        self.source_spec, self.target_spec = specs[data.source], specs[data.target]
        source_width, target_width = self.source_spec.width, self.target_spec.width
        discriminator = settings.discriminator.build(source_width + target_width)
        generator = settings.generator.build(source_width, target_width)
        self.players = nn.ModuleDict({"discriminator": discriminator, "generator": generator})
        size = data.augment.crop or data.augment.resize or 0
        self.adversary = Adversary(settings, (target_width, size, size), given=source_width)
        self.reconstruction = settings.reconstruction.build()
        self.perceptual: nn.Module | None = None
        if settings.perceptual is not None and not inference:
            if target_width != 3 or self.target_spec.kind != "image":
                raise UserError("method.perceptual compares RGB pictures: the target side must have 3 channels")
            self.perceptual = settings.perceptual.build()
        self.weights = {
            "discriminator": settings.discriminator_weight,
            "adversarial": settings.adversarial_weight,
            "reconstruction": settings.reconstruction.weight,
            "feature_matching": settings.feature_matching_weight,
            **self.adversary.weights,
        }
        if settings.perceptual is not None:
            self.weights["perceptual"] = settings.perceptual.weight

    @property
    def discriminator(self) -> Discriminator:
        return cast(Discriminator, self.players["discriminator"])

    @property
    def generator(self) -> Generator:
        return cast(Generator, self.players["generator"])

    def turns(self, step: int) -> Sequence[Turn]:
        self.adversary.advance(step)
        return (Turn("discriminator", self.adversary.due(step)), Turn("generator"))

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        source, _ = self.sides
        with torch.set_grad_enabled("generator" in moving):
            return {"fake": self.generator(batch[source])}

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        source, target = (batch[side] for side in self.sides)
        fake = shared["fake"]
        if turn.player == "discriminator":
            return discriminator_losses(
                self, self.adversary, self.discriminator, target, fake, turn.terms, given=source
            )
        return self._generator_losses(source, target, fake)

    def _generator_losses(self, source: Tensor, target: Tensor, fake: Tensor) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        discriminator = self.discriminator
        if self.active("adversarial") or self.active("feature_matching"):
            needs_real = self.active("feature_matching") or self.adversary.objective.needs_real
            fake_pair, real_pair = self._seen(source, fake, target if needs_real else None)
            fake_features = discriminator.features(fake_pair)
            real_features = None
            if real_pair is not None:
                with torch.no_grad():
                    real_features = discriminator.features(real_pair)
            if self.active("adversarial"):
                terms["adversarial"] = self.adversary.objective.generator(
                    fake_features[-1], real_features[-1] if real_features else None
                )
            if real_features is not None and self.active("feature_matching"):
                terms["feature_matching"] = feature_matching(real_features, fake_features)
        if self.active("reconstruction"):
            terms["reconstruction"] = self.reconstruction(fake, target)
        if self.perceptual is not None and self.active("perceptual"):
            terms["perceptual"] = self.perceptual(fake, target)
        return terms

    def _seen(self, source: Tensor, fake: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Fake and real pairs as the discriminator sees them: changed alike, since their features are compared."""
        if target is None:
            return self.adversary.seen(pair(source, fake)), None
        both = self.adversary.seen(torch.cat([source, fake, target], dim=1))
        given, made, wanted = torch.split(both, [side.shape[1] for side in (source, fake, target)], dim=1)
        return pair(given, made), pair(given, wanted)

    def check(self, batch: Mapping[str, Tensor]) -> None:
        source, target = self.sides
        check_sizes(batch, {"generator": (source, self.generator), "discriminator": (target, self.discriminator)})

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        source, target = (batch[side] for side in self.sides)
        fake = run_padded(self.generator, source)
        return {
            "input": visible(source, self.source_spec),
            "output": visible(fake, self.target_spec),
            "target": visible(target, self.target_spec),
        }

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        source, target = (batch[side] for side in self.sides)
        return {"": Comparison(run_padded(self.generator, source), target, self.target_spec)}

    def exported(self) -> nn.ModuleDict:
        return nn.ModuleDict({"generator": self.generator})

    def translator(self, direction: str) -> nn.Module:
        return self.generator
