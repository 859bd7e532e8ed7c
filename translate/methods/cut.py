"""CUT and FastCUT: translation learnt without pairs and without a way back (Park et al. 2020, "Contrastive learning for
unpaired image-to-image translation", arXiv 2007.15651).

repeat for each x of the source's side and y of the target's side, which belong together by chance alone:
    fake <- G(x), same <- G(y)
    D: minimise  1/2 L_D( D(y), D(fake) )
    G and the projections H of its encoder's layers:
       minimise  L_G( D(fake) )                                            (equation 1)
                 + lambda_X NCE( H(encoder(fake)), H(encoder(x)) )         (equations 3 and 5)
                 + lambda_Y NCE( H(encoder(same)), H(encoder(y)) )         (equation 5)

FastCUT has no `same` (lambda_Y = 0). In half of its steps G sees x mirrored, and NCE mirrors the fake's features back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.data import DataSettings, UnpairedSettings
from translate.data.images import visible
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.losses.adversarial import LeastSquaresSettings, ObjectiveField
from translate.losses.patch_nce import PatchNCESettings, Projections, draw_positions, features_at, mirrored_positions
from translate.methods.adversary import (
    Adversary,
    AdversarySettings,
    discriminator_losses,
    per_sample,
    unpaired_shape,
)
from translate.methods.base import Comparison, Method, Turn, check_sizes, run_padded
from translate.methods.watch import StallWatch, kept_light
from translate.networks import Discriminator, DiscriminatorSettings, GeneratorSettings
from translate.networks.layers import InitialisationSettings, TappedGenerator
from translate.networks.patch import PatchSettings
from translate.networks.resnet import ResNetSettings
from translate.settings import Direction

XAVIER = InitialisationSettings(kind="xavier")
"""The authors' code draws all networks so, with gain 0.02."""
COMPARED = {"nce": "fake", "nce_identity": "same"}
"""Term -> what G made, whose patches are held against those of what it was made of."""


class CUTSettings(AdversarySettings):
    """One generator, whose encoder has to recognise the patches of its input in its output, and a discriminator."""

    kind: Literal["cut"] = "cut"
    direction: Direction = "AtoB"
    """Which side becomes which; there is no way back."""
    generator: GeneratorSettings = ResNetSettings(
        downsampling="anti-aliased", upsampling="anti-aliased", initialisation=XAVIER
    )
    discriminator: DiscriminatorSettings = PatchSettings(
        norm="instance", downsampling="anti-aliased", initialisation=XAVIER
    )
    objective: ObjectiveField = LeastSquaresSettings()
    """The adversarial game, by name or with its own settings."""
    discriminator_weight: float = Field(default=0.5, ge=0)
    """The objective is divided by 2, as CycleGAN's (the authors' code)."""
    adversarial_weight: float = Field(default=1.0, ge=0)
    nce: PatchNCESettings = PatchNCESettings()
    identity_weight: float = Field(default=0.5, ge=0)
    """lambda_Y: the same loss of the target's images and what G makes of them, which keeps it from changing them. As of
    lambda_X, half of the paper's 1; FastCUT has 0 (and lambda_X = 10)."""
    flip_equivariance: bool = False
    """Whether G sees its input mirrored in half of the steps, and the features of what it makes are mirrored back
    (FastCUT)."""

    def build(self, data: DataSettings, *, inference: bool = False) -> CUT:
        """The method for a data set. `inference` changes nothing: there is nothing that only a loss would load."""
        if not isinstance(data, UnpairedSettings):
            raise UserError(f"method cut learns from two folders: data.kind must be 'unpaired', not '{data.kind}'")
        return CUT(self, data)


class CUT(Method):
    """The algorithm box above, term by term: `nce` and `nce_identity` are its second and third line of G's.

    One difference from the authors' code: of the layer `input` they draw positions in the image with the generator's
    reflected border of 3 pixels, which makes some negatives equal the positive; here they are of the image itself.
    """

    def __init__(self, settings: CUTSettings, data: UnpairedSettings) -> None:
        super().__init__()
        source, _, target = settings.direction.partition("to")
        specs = data.specs()
        self.sides = (source, target)
        self.directions = (settings.direction,)
        self.compares = {"": False}
        self.source_spec: ImageSpec = specs[source]
        self.target_spec: ImageSpec = specs[target]
        width = self.target_spec.width
        if self.source_spec.width != width:
            raise UserError(
                f"data: side {source} has {self.source_spec.width} channels, side {target} {width}; CUT's encoder "
                "reads images of both, so give both the same number of channels"
            )
        generator = settings.generator.build(width, width)
        if not isinstance(generator, TappedGenerator):
            raise UserError(
                "method.generator: CUT compares layers of the generator's encoder, which "
                f"{settings.generator.kind!r} does not give; use kind: resnet"
            )
        projections = settings.nce.build(generator.taps)
        self.players = nn.ModuleDict(
            {
                "discriminator": settings.discriminator.build(width),
                "generator": nn.ModuleDict({"generator": generator, "projections": projections}),
            }
        )
        self.layers, self.patches = settings.nce.layers, settings.nce.patches
        self.flips = settings.flip_equivariance
        self.adversary = Adversary(settings, unpaired_shape(settings, width, data.augment))
        self.watch = StallWatch({f"generator/{term}": f"chance/{term}" for term in COMPARED})
        # Classes have no brightness.
        self.of_light = all(spec.kind == "image" for spec in specs.values())
        self.together = per_sample(generator)
        self.weights = {
            "discriminator": settings.discriminator_weight,
            "adversarial": settings.adversarial_weight,
            "nce": settings.nce.weight,
            "nce_identity": settings.identity_weight,
            **self.adversary.weights,
        }

    @property
    def generator(self) -> TappedGenerator:
        return cast(TappedGenerator, cast(nn.ModuleDict, self.players["generator"])["generator"])

    @property
    def projections(self) -> Projections:
        return cast(Projections, cast(nn.ModuleDict, self.players["generator"])["projections"])

    @property
    def discriminator(self) -> Discriminator:
        return cast(Discriminator, self.players["discriminator"])

    def turns(self, step: int) -> Sequence[Turn]:
        self.adversary.advance(step)
        self.watch.advance()
        return (Turn("discriminator", self.adversary.due(step)), Turn("generator"))

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        """`fake` and `same`, `seen` (what the fake was made of), and for each term of NCE and each layer the keys
        (N, P, C) and where in the output's layer (P,) to look for them."""
        # Drawn whoever moves, so that a step's turns have the same; on the CPU, so that nothing waits for a device.
        mirrored = self.flips and bool(torch.rand(()) < 0.5)
        source, target = self.sides
        learns = "generator" in moving
        terms = [term for term in COMPARED if learns and self.active(term)]
        images = [batch[source]] + ([batch[target]] if "nce_identity" in terms else [])
        seen = [image.flip(3) for image in images] if mirrored else images
        with torch.set_grad_enabled(learns):
            made = self._each(self._translated if terms else lambda x: {"output": self.generator(x)}, seen)
        encoded = made
        if mirrored and terms:
            # Keys are of the image as it is: G(mirrored x) must be the mirrored G(x), not any image that resembles it.
            with torch.no_grad():
                encoded = self._each(self._features, images)

        shared = {name: output["output"] for name, output in zip(COMPARED.values(), made, strict=False)}
        shared["seen"] = seen[0]
        for term, layers in zip(COMPARED, encoded, strict=False):
            for layer in self.layers if term in terms else ():
                height, width = layers[layer].shape[2:]
                at = draw_positions(height, width, self.patches, layers[layer].device)
                shared[f"{term}/{layer}"] = features_at(layers[layer].detach(), at)
                shared[f"{term}/{layer}/at"] = mirrored_positions(at, width) if mirrored else at
        return shared

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        _, target = self.sides
        if turn.player == "generator":
            return self._generator_losses(batch[target], shared)
        return discriminator_losses(self, self.adversary, self.discriminator, batch[target], shared["fake"], turn.terms)

    def _generator_losses(self, real: Tensor, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        fake = shared["fake"]
        if self.active("adversarial"):
            terms["adversarial"] = self.adversary.generator_loss(self.discriminator, fake, real)
        compared = [term for term in COMPARED if self.active(term)]
        encoded = self._each(self._features, [shared[COMPARED[term]] for term in compared]) if compared else []
        for term, layers in zip(compared, encoded, strict=True):
            keys = {layer: shared[f"{term}/{layer}"] for layer in self.layers}  # (N, P, C) each
            queries = {layer: features_at(layers[layer], shared[f"{term}/{layer}/at"]) for layer in self.layers}
            terms[term] = self.projections(queries, keys)
            # What it costs to know nothing: each of P keys with probability 1 / P.
            chance = sum(math.log(key.shape[1]) for key in keys.values()) / len(keys)
            self.report(f"chance/{term}", torch.full((), chance, device=fake.device))
        if self.of_light:
            self.report(f"light kept/{self.directions[0]}", kept_light(shared["seen"], fake))
        return terms

    def _translated(self, x: Tensor) -> dict[str, Tensor]:
        """G(x), as `output`, and its encoder's layers on the way there."""
        output, features = self.generator.tapped(x, self.layers)
        return {**features, "output": output}

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        return self.generator.features(x, self.layers)

    def _each(self, run: Callable[[Tensor], dict[str, Tensor]], images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What `run` gives of each batch: `apart` for several tensors."""
        if len(images) == 1 or not self.together or len({image.shape[1:] for image in images}) > 1:
            return [run(image) for image in images]
        sizes = [len(image) for image in images]
        found = {name: torch.split(tensor, sizes) for name, tensor in run(torch.cat(list(images))).items()}
        return [{name: parts[number] for name, parts in found.items()} for number in range(len(images))]

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        found: list[str] = self.watch(values)
        return found

    def check(self, batch: Mapping[str, Tensor]) -> None:
        source, target = self.sides
        check_sizes(batch, {"generator": (source, self.generator), "discriminator": (target, self.discriminator)})
        check_sizes(batch, {"generator": (target, self.generator)})  # identity

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The source and what becomes of it; with the identity term also the target and what becomes of that."""
        source, target = self.sides
        pictures = {
            "input": visible(batch[source], self.source_spec),
            "output": visible(run_padded(self.generator, batch[source]), self.target_spec),
        }
        if self.active("nce_identity"):
            pictures["target"] = visible(batch[target], self.target_spec)
            pictures["identity"] = visible(run_padded(self.generator, batch[target]), self.target_spec)
        return pictures

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        source, target = self.sides
        return {"": Comparison(run_padded(self.generator, batch[source]), batch[target], self.target_spec)}

    def exported(self) -> nn.ModuleDict:
        return nn.ModuleDict({"generator": self.generator})

    def translator(self, direction: str) -> nn.Module:
        return self.generator
