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

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from translate.data import DataSettings, FolderSettings
from translate.data.images import visible
from translate.errors import UserError
from translate.methods.base import Comparison, run_padded
from translate.methods.tokenising import Tokenising, TokenisingSettings, TokenizerMethod

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


class VQGAN(TokenizerMethod):
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

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        return self.tokenising.shared(self.tokenizer, batch[self.side], learns="tokenizer" in moving)

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
