"""VQGAN: images as grids of tokens out of a learnt codebook (Esser et al. 2021, arXiv 2012.09841).

repeat for each batch of images x:
    z_q, tokens <- q( E(x) )                                            (equation 2: the nearest codes)
    x^ <- G(z_q)
    E, G, Z: minimise L_rec( x, x^ ) + |sg[E(x)] - z_q|² + beta |sg[z_q] - E(x)|²   (equation 4; L_rec = L1 + LPIPS)
                    + lambda L_G( D(x^) ),   lambda = |grad L_rec| / (|grad L_G| + delta)   (equations 6 and 7)
    D: minimise L_D( D(x), D(x^) )                                      (equation 5)
    Z: codes that nothing uses begin anew

When D begins, and when the others begin to listen to it, is a matter of the weights' schedules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from translate.data import DataSettings, FolderSettings
from translate.data.images import visible
from translate.errors import UserError
from translate.methods.base import Comparison, Method, Renewed, Summary, Turn, check_sizes, run_padded
from translate.methods.tokenising import Tokenising, TokenisingSettings
from translate.networks import Discriminator
from translate.networks.tokenizer import Tokenizer

RECONSTRUCTION = "reconstruction"
"""The one direction: to tokens and back."""


class VQGANSettings(TokenisingSettings):
    """An image tokenizer that learns from a folder of images."""

    kind: Literal["vqgan"] = "vqgan"

    def build(self, data: DataSettings, *, inference: bool = False) -> VQGAN:
        """The method for a data set; for `inference` nothing is loaded that only a loss needs."""
        if not isinstance(data, FolderSettings):
            raise UserError(f"method vqgan learns from single images: data.kind must be 'folder', not '{data.kind}'")
        return VQGAN(self, data, inference=inference)


class VQGAN(Method):
    """The algorithm box above, term by term."""

    directions = (RECONSTRUCTION,)
    differentiates = ("tokenizer",)

    def __init__(self, settings: VQGANSettings, data: FolderSettings, *, inference: bool = False) -> None:
        super().__init__()
        ((self.side, self.spec),) = data.specs().items()
        self.compares = {"": True}
        tokenizer = settings.build_tokenizer(self.spec)
        players: dict[str, nn.Module] = {"tokenizer": tokenizer}
        if settings.discriminator is not None and not inference:
            players["discriminator"] = settings.discriminator.build(self.spec.width)
        self.players = nn.ModuleDict(players)
        size = data.augment.crop or data.augment.resize or 0
        self.tokenising = Tokenising(settings, self.spec, tokenizer.codes, size, inference=inference)
        self.weights = self.tokenising.weights()

    @property
    def tokenizer(self) -> Tokenizer:
        return cast(Tokenizer, self.players["tokenizer"])

    @property
    def discriminator(self) -> Discriminator | None:
        return cast(Discriminator, self.players["discriminator"]) if "discriminator" in self.players else None

    def advance(self, progress: float) -> None:
        self.tokenizer.quantiser.advance(progress)

    def turns(self, step: int) -> Sequence[Turn]:
        if self.discriminator is None:
            return (Turn("tokenizer"),)
        self.tokenising.adversary.advance(step)
        return (Turn("tokenizer"), Turn("discriminator", self.tokenising.adversary.due(step)))

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        return self.tokenising.shared(self.tokenizer, batch[self.side], learns="tokenizer" in moving)

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images = batch[self.side]
        if turn.player == "tokenizer":
            return self.tokenising.tokenizer_losses(self, self.tokenizer, self.discriminator, images, shared)
        assert self.discriminator is not None
        return self.tokenising.discriminator_losses(
            self, self.tokenizer, self.discriminator, images, shared, turn.terms
        )

    def surveys(self, turn: Turn) -> bool:
        return turn.player == "tokenizer" and self.discriminator is not None and self.tokenising.surveys(self)

    def survey(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
        assert self.discriminator is not None
        self.tokenising.survey(self, self.tokenizer, self.discriminator, batch[self.side], shared)

    def moved(self, turn: Turn) -> Renewed:
        return self.tokenising.moved(self, self.tokenizer) if turn.player == "tokenizer" else ()

    def summary(self) -> Summary:
        return self.tokenising.summary()

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        return self.tokenising.warnings(values)

    def check(self, batch: Mapping[str, Tensor]) -> None:
        networks: dict[str, tuple[str, nn.Module]] = {"tokenizer": (self.side, self.tokenizer)}
        if self.discriminator is not None:
            networks["discriminator"] = (self.side, self.discriminator)
        check_sizes(batch, networks)

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images = batch[self.side]
        made = run_padded(self.tokenizer, images)
        return {"input": visible(images, self.spec), "reconstruction": visible(made.clamp(-1, 1), self.spec)}

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        images = batch[self.side]
        return {"": Comparison(run_padded(self.tokenizer, images), images, self.spec)}

    def exported(self) -> nn.ModuleDict:
        return nn.ModuleDict({"tokenizer": self.tokenizer})

    def ends(self, direction: str) -> tuple[str, str]:
        return self.side, self.side

    def translator(self, direction: str) -> nn.Module:
        return self.tokenizer
