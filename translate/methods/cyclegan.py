"""CycleGAN: translation learnt without pairs (Zhu et al. 2017, arXiv 1703.10593).

G: A -> B and F: B -> A are one player, their discriminators D_B and D_A the other.

repeat for each a of A and b of B, which belong together by chance alone:
    fake_B <- G(a), fake_A <- F(b)
    G, F: minimise     L_G( D_B(fake_B) ) + L_G( D_A(fake_A) )                        (equation 1)
                       + lambda ( | F(fake_B) - a | + | G(fake_A) - b | )             (equations 2 and 3; lambda = 10)
                       + lambda / 2 ( | F(a) - a | + | G(b) - b | )                   (section 5.2, identity)
    D_A, D_B: minimise 1/2 L_D( D_A(a), D_A(pool(fake_A)) ) + 1/2 L_D( D_B(b), D_B(pool(fake_B)) )   (section 4)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.data import DataSettings, UnpairedSettings
from translate.data.images import visible
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.losses.adversarial import LeastSquaresSettings, ObjectiveField
from translate.losses.lpips import LPIPSSettings
from translate.losses.reconstruction import ReconstructionSettings
from translate.methods.adversary import (
    Adversary,
    AdversarySettings,
    apart,
    discriminator_losses,
    per_sample,
    unpaired_shape,
)
from translate.methods.base import Comparison, Method, Turn, check_sizes, run_padded
from translate.methods.watch import StallWatch, flat, kept_light
from translate.networks import Discriminator, DiscriminatorSettings, Generator, GeneratorSettings
from translate.networks.patch import PatchSettings
from translate.networks.resnet import ResNetSettings
from translate.settings import Settings

OTHER = {"A": "B", "B": "A"}
DIRECTION = {"A": "AtoB", "B": "BtoA"}
"""The direction that starts at a side."""


class SideWeights(Settings):
    """Factors of one side's cycle and identity terms, for sides that differ: an easier one can count less."""

    A: float = Field(default=1.0, ge=0)
    B: float = Field(default=1.0, ge=0)


class CycleGANSettings(AdversarySettings):
    """Two generators, there and back, and a discriminator of each side."""

    kind: Literal["cyclegan"] = "cyclegan"
    generator: GeneratorSettings = ResNetSettings()
    discriminator: DiscriminatorSettings = PatchSettings(norm="instance")
    objective: ObjectiveField = LeastSquaresSettings()
    """The adversarial game, by name or with its own settings."""
    replay: int = Field(default=50, ge=0)
    """Past fakes of each side that its discriminator sees again, half of the time (section 4: 50); 0 for none."""
    discriminator_weight: float = Field(default=0.5, ge=0)
    """The objective is divided by 2, which slows the discriminators (section 4)."""
    adversarial_weight: float = Field(default=1.0, ge=0)
    cycle: ReconstructionSettings = ReconstructionSettings(weight=10.0)
    """Cycle consistency: how far a -> B -> A ends from a (equation 2, lambda = 10)."""
    cycle_lpips: LPIPSSettings | None = None
    """One more distance of the cycle: how different its ends look, instead of pixel by pixel."""
    identity_weight: float = Field(default=0.5, ge=0)
    """How much of the cycle's weight keeps a generator from changing what is of its target's side already (section
    5.2: 0.5). It holds colours in place. 0 for sides of different channels, and for free changes of colour."""
    side_weights: SideWeights = SideWeights()

    def build(self, data: DataSettings, *, inference: bool = False) -> CycleGAN:
        """The method for a data set; for `inference` nothing is loaded that only a loss needs."""
        if not isinstance(data, UnpairedSettings):
            raise UserError(f"method cyclegan learns from two folders: data.kind must be 'unpaired', not '{data.kind}'")
        return CycleGAN(self, data, inference=inference)


class CycleGAN(Method):
    """The algorithm box above, term by term. Terms and reports of a side are named after it: `cycle_A` is
    | F(G(a)) - a |, `identity_A` is | F(a) - a |, `adversarial_A` judges what F makes of b."""

    directions = ("AtoB", "BtoA")
    differentiates = ("generators",)

    def __init__(self, settings: CycleGANSettings, data: UnpairedSettings, *, inference: bool = False) -> None:
        super().__init__()
        self.specs: dict[str, ImageSpec] = data.specs()
        widths = {side: spec.width for side, spec in self.specs.items()}
        if settings.identity_weight and widths["A"] != widths["B"]:
            raise UserError(
                f"method.identity_weight: side A has {widths['A']} channels, side B {widths['B']}, so a generator "
                "cannot take images of its target's side; set it to 0"
            )
        self.players = nn.ModuleDict(
            {
                "generators": nn.ModuleDict(
                    {DIRECTION[side]: settings.generator.build(widths[side], widths[OTHER[side]]) for side in "AB"}
                ),
                "discriminators": nn.ModuleDict({side: settings.discriminator.build(widths[side]) for side in "AB"}),
            }
        )
        self.adversaries = nn.ModuleDict(
            {side: Adversary(settings, unpaired_shape(settings, widths[side], data.augment)) for side in "AB"}
        )
        self.distance = settings.cycle.build()
        self.lpips: nn.Module | None = None
        if settings.cycle_lpips is not None and not inference:
            self.lpips = settings.cycle_lpips.build(list(self.specs.values()))
        self.watch = StallWatch(
            {f"generators/{term}_{side}": f"flat picture/{side}" for term in ("cycle", "identity") for side in "AB"}
        )
        # Classes have no brightness.
        self.of_light = all(spec.kind == "image" for spec in self.specs.values())
        # As the reference: images pass alone where a batch would mix them.
        self.together = per_sample(self.players["generators"])
        factors = {"A": settings.side_weights.A, "B": settings.side_weights.B}
        self.weights = {}
        for side, factor in factors.items():
            cycle = settings.cycle.weight * factor
            self.weights |= {
                f"adversarial_{side}": settings.adversarial_weight,
                f"cycle_{side}": cycle,
                f"identity_{side}": cycle * settings.identity_weight,
                f"discriminator_{side}": settings.discriminator_weight,
                **{f"{name}_{side}": weight for name, weight in self._adversary(side).weights.items()},
            }
            if settings.cycle_lpips is not None:
                self.weights[f"cycle_lpips_{side}"] = settings.cycle_lpips.weight * factor
        self.compares = {"AtoB": False, "BtoA": False, "cycle A": True, "cycle B": True}

    def generator(self, start: str) -> Generator:
        """The generator that starts at a side: G at A, F at B."""
        return cast(Generator, cast(nn.ModuleDict, self.players["generators"])[DIRECTION[start]])

    def discriminator(self, side: str) -> Discriminator:
        return cast(Discriminator, cast(nn.ModuleDict, self.players["discriminators"])[side])

    def _adversary(self, side: str) -> Adversary:
        return cast(Adversary, self.adversaries[side])

    def turns(self, step: int) -> Sequence[Turn]:
        for side in "AB":
            self._adversary(side).advance(step)
        self.watch.advance()
        # Both sides have the same penalties.
        return (Turn("generators"), Turn("discriminators", self._adversary("A").due(step)))

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        with torch.set_grad_enabled("generators" in moving):
            for start, end in OTHER.items():
                generator = self.generator(start)
                if self.active(f"identity_{end}") and "generators" in moving:
                    made[f"fake_{end}"], made[f"same_{end}"] = apart(
                        generator, batch[start], batch[end], together=self.together
                    )
                else:
                    made[f"fake_{end}"] = generator(batch[start])
        return made

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for side in "AB":
            if turn.player == "generators":
                terms |= self._generator_losses(side, batch[side], shared)
            else:
                terms |= discriminator_losses(
                    self,
                    self._adversary(side),
                    self.discriminator(side),
                    batch[side],
                    shared[f"fake_{side}"],
                    turn.terms,
                    of=side,
                )
        return terms

    def _generator_losses(self, side: str, real: Tensor, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms that images of one side, real and fake ones, are in."""
        terms: dict[str, Tensor] = {}
        adversary, fake, translated = self._adversary(side), shared[f"fake_{side}"], shared[f"fake_{OTHER[side]}"]
        if self.active(f"adversarial_{side}"):
            terms[f"adversarial_{side}"] = adversary.generator_loss(self.discriminator(side), fake, real)
        of_pixels = self.active(f"cycle_{side}")
        of_looks = self.lpips is not None and self.active(f"cycle_lpips_{side}")
        if of_pixels or of_looks:
            back = self.generator(OTHER[side])(translated)  # a -> B -> A
            if of_pixels:
                terms[f"cycle_{side}"] = self.distance(back, real)
            if of_looks and self.lpips is not None:
                terms[f"cycle_lpips_{side}"] = self.lpips(back, real)
        if self.active(f"identity_{side}"):
            terms[f"identity_{side}"] = self.distance(shared[f"same_{side}"], real)
        if of_pixels or self.active(f"identity_{side}"):
            with torch.no_grad():
                self.report(f"flat picture/{side}", self.distance(flat(real), real))
        if self.of_light:
            self.report(f"light kept/{DIRECTION[side]}", kept_light(real, translated))
        return terms

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        found: list[str] = self.watch(values)
        return found

    def check(self, batch: Mapping[str, Tensor]) -> None:
        for side in "AB":
            networks = {"generator": (side, self.generator(side)), "discriminator": (side, self.discriminator(side))}
            check_sizes(batch, networks)

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A -> B -> A, and B -> A -> B."""
        strips: dict[str, Tensor] = {}
        for side, other in OTHER.items():
            there = run_padded(self.generator(side), batch[side])
            back = run_padded(self.generator(other), there)
            strips |= {
                side: visible(batch[side], self.specs[side]),
                f"{side} to {other}": visible(there, self.specs[other]),
                f"{side} to {other} to {side}": visible(back, self.specs[side]),
            }
        return strips

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        found: dict[str, Comparison] = {}
        for side, other in OTHER.items():
            there = run_padded(self.generator(side), batch[side])
            back = run_padded(self.generator(other), there)
            found[DIRECTION[side]] = Comparison(there, batch[other], self.specs[other])
            found[f"cycle {side}"] = Comparison(back, batch[side], self.specs[side])
        return {name: found[name] for name in self.compares}

    def exported(self) -> nn.ModuleDict:
        return cast(nn.ModuleDict, self.players["generators"])

    def translator(self, direction: str) -> nn.Module:
        return cast(nn.ModuleDict, self.players["generators"])[direction]
