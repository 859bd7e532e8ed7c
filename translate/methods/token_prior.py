"""A prior over tokens: images made of noise, by a transformer that knows which tokens go together (Esser et al. 2021,
arXiv 2012.09841, section 3.2; masked: MaskGIT, Chang et al. 2022, arXiv 2202.04200).

first:  a tokenizer learns by reconstructing (VQGAN's box in `vqgan`), or is taken from a trained run
then:   repeat for each batch of images x, perhaps of classes c:
            minimise -log p( tokens(x) | c )                            (the box in `token_modelling`)
to sample: draw s ~ p( s | c ), decode s
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from translate.data import DataSettings, FolderSettings
from translate.data.images import visible
from translate.data.spec import ImageSpec
from translate.devices import exact_float32
from translate.errors import UserError
from translate.methods.base import Comparison, Renewed, Turn
from translate.methods.generative import COLUMNS, SamplingMethod
from translate.methods.token_modelling import (
    TokenModelSettings,
    bits_per_token,
    grid_of,
    resolved_tokenizer,
    take_over,
    token_loss,
)
from translate.methods.tokenising import Tokenising, TokenizerMethod
from translate.networks.token_sampling import sample
from translate.networks.token_transformer import TokenTransformer
from translate.networks.tokenizer import tokens_of

_HALF = 1 << 16
"""A seed of 32 bits as two numbers that float32 holds exactly."""


class TokenPriorSettings(TokenModelSettings):
    """A tokenizer, and a transformer that predicts the tokens of an image from nothing or from its class."""

    kind: Literal["token-prior"] = "token-prior"
    conditioning: bool = False
    """Learn the tokens of each class (`data.classes`)."""

    def resolved(self, data: DataSettings) -> TokenPriorSettings:
        """The settings with the networks of a trained tokenizer written into them; UserError where it does not fit."""
        if not isinstance(data, FolderSettings):  # `build` will say so
            return self
        (spec,) = data.specs().values()
        return self.model_copy(
            update={"tokenizer": resolved_tokenizer(self.tokenizer, self.trained, "method.trained", spec)}
        )

    def build(self, data: DataSettings, *, inference: bool = False) -> TokenPrior:
        """The method for a data set; for `inference` nothing is loaded that only a loss needs."""
        if not isinstance(data, FolderSettings):
            raise UserError(
                f"method token-prior learns from single images: data.kind must be 'folder', not '{data.kind}'"
            )
        return TokenPrior(self, data, inference=inference)


class TokenPrior(TokenizerMethod, SamplingMethod):
    """The algorithm box above, term by term. What a sample is made of is the seed of its tokens' chance."""

    differentiates = ("tokenizer", "transformer")
    samples_with = ("tokenizer", "transformer")
    exact = True

    spec: ImageSpec
    samples: Tensor

    def __init__(self, settings: TokenPriorSettings, data: FolderSettings, *, inference: bool = False) -> None:
        super().__init__()
        self.settings, self.sampling = settings, settings.sampling
        ((self.side, spec),) = data.specs().items()
        self.spec = spec
        self.shape = data.shape()
        self.class_names = data.class_names if settings.conditioning else ()
        if settings.conditioning and not self.class_names:
            raise UserError(
                "method.conditioning: the data has no classes; set data.classes to 'folders' (one folder a class)"
            )
        self.compares = {"": False, "reconstruction": True}
        recipe = settings.tokenizer
        tokenizer = recipe.build_tokenizer(spec)
        players: dict[str, nn.Module] = {"tokenizer": tokenizer}
        learns = settings.trained is None and not inference
        if recipe.discriminator is not None and learns:
            players["discriminator"] = recipe.discriminator.build(spec.width)
        players["transformer"] = settings.transformer.build(
            tokenizer.codes,
            grid_of(data.augment, tokenizer.reduction),
            causal=settings.decoding == "causal",
            classes=len(self.class_names),
        )
        self.players = nn.ModuleDict(players)
        self.taken = () if settings.trained is None else ("tokenizer",)
        self.untrained = ("transformer",) if self.taken else ("tokenizer", "transformer")
        self.tokenising = Tokenising(recipe, spec, tokenizer.codes, self.shape[1], inference=not learns)
        self.weights = {"tokens": 1.0, **({} if self.taken else self.tokenising.weights())}
        # Whether the transformer has moved: before, there is no sample to be measured or shown.
        self.register_buffer("samples", torch.zeros((), dtype=torch.bool))

    @property
    def transformer(self) -> TokenTransformer:
        return cast(TokenTransformer, self.players["transformer"])

    def begin(self) -> None:
        if self.settings.trained is not None:
            take_over(self.tokenizer, self.settings.trained, "method.trained")

    def turns(self, step: int) -> Sequence[Turn]:
        return (*(() if self.taken else super().turns(step)), Turn("transformer"))

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        images = batch[self.side]
        found: dict[str, Tensor] = {}
        if "tokenizer" in moving or "discriminator" in moving:
            found |= self.tokenising.shared(self.tokenizer, images, learns="tokenizer" in moving)
        if "transformer" in moving:
            found["target"] = tokens_of(self.tokenizer, images)
        return found

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if turn.player != "transformer":
            return super().losses(turn, batch, shared)
        if not self.active("tokens"):
            return {}
        loss, right = token_loss(
            self.transformer, shared["target"], label=self._label(batch), smoothing=self.settings.label_smoothing
        )
        self.report("tokens guessed", right)
        return {"tokens": loss}

    def moved(self, turn: Turn) -> Renewed:
        if turn.player == "transformer":
            self.samples.fill_(True)
        return super().moved(turn)

    def check(self, batch: Mapping[str, Tensor]) -> None:
        SamplingMethod.check(self, batch)
        TokenizerMethod.check(self, batch)

    # ---- samples ---------------------------------------------------------------------------------------------------

    def draw(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        truncation: float | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """(count, 2) float32: the two halves of each sample's seed, whole numbers below 65,536. UserError for a
        truncation: the sampling's temperature, top-k and top-p are its like here."""
        if truncation is not None:
            raise UserError("truncation is of latents, which a token prior has not; use a temperature, top-k or top-p")
        return torch.randint(_HALF, (count, 2), generator=generator).float().to(device or torch.device("cpu"))

    @torch.no_grad()
    def generate(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """(N, 2) of `draw`, and (N,) class numbers where there are classes -> images (N, C, H, W), float32.

        A size that is not the trained one is made in windows: see `networks.token_sampling.sample`.
        """
        seeds = [int(high) * _HALF + int(low) for high, low in latent.tolist()]
        side = self.tokenizer.reduction
        grid = (-(-self.shape[1] // side), -(-self.shape[2] // side))
        with exact_float32(latent.device):
            drawn = sample(self.transformer, grid, self.sampling, seeds, label=label if self.class_names else None)
            made = self.tokenizer.decode_tokens(drawn.tokens)
        return made[..., : self.shape[1], : self.shape[2]]

    def interpolate(self, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
        raise UserError("between two samples of a token prior there is nothing: leave the interpolation out")

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the tokenizer makes of images; samples, of each class in a column, once the transformer learns."""
        images = batch[self.side]
        if not bool(self.samples):
            again = self.tokenizer(images).clamp(-1, 1)
            return {"input": visible(images, self.spec), "reconstruction": visible(again, self.spec)}
        names = self.class_names[:COLUMNS] or ("samples",)
        latent = self.draw(max(1, len(images) // len(names)), generator=torch.Generator().manual_seed(0))
        latent = latent.to(images.device)
        shown = {}
        for number, name in enumerate(names):
            label = torch.full((len(latent),), number, device=images.device) if self.class_names else None
            shown[name] = visible(self.generate(latent, label).clamp(-1, 1), self.spec)
        return shown

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        """Once there are some, samples as a set, if such measures are taken, and how surprising the images' tokens are;
        beside them what the tokenizer loses, which chooses no weights."""
        images = batch[self.side]
        beside: dict[str, Tensor] = {}
        if bool(self.samples):
            tokens = tokens_of(self.tokenizer, images)
            beside["bits per token"] = bits_per_token(self.transformer, tokens, label=self._label(batch))
        again = Comparison(self.tokenizer(images), images, self.spec, beside, chooses=False)
        if not bool(self.samples) or "" not in self.compared:
            return {"reconstruction": again}
        return {**super().comparisons(batch, chance), "reconstruction": again}

    def exported(self) -> nn.ModuleDict:
        return nn.ModuleDict({name: self.players[name] for name in self.samples_with})

    def averaged(self) -> nn.ModuleDict:
        """The transformer alone: it learns the tokens of the tokenizer as it is, not as it was on average."""
        return nn.ModuleDict({"transformer": self.transformer})
