"""Translation in token space: the tokens of an image, learnt given those of its partner (Esser et al. 2021, arXiv
2012.09841, section 3.2, "conditioned synthesis").

first:  tokenizers learn by reconstructing A and B (VQGAN's box in `vqgan`), one for both or one each; or are taken from
        trained runs
then:   repeat for each batch of pairs (a, b):
            minimise -log p( tokens(b) | tokens(a) )                    (the box in `token_modelling`)
to translate a: draw s ~ p( s | tokens(a) ), decode s: another seed is another answer
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from translate.data import DataSettings, PairedSettings
from translate.data.images import visible
from translate.devices import exact_float32
from translate.errors import UserError
from translate.methods.base import Comparison, Method, Renewed, Summary, Turn, check_sizes, run_padded
from translate.methods.token_modelling import (
    TokenModelSettings,
    bits_per_token,
    grid_of,
    resolved_tokenizer,
    take_over,
    token_loss,
)
from translate.methods.tokenising import Tokenising, TokenisingSettings
from translate.networks import Discriminator
from translate.networks.layers import DrawingGenerator, Drawn
from translate.networks.token_sampling import SamplingSettings, sample
from translate.networks.token_transformer import TokenTransformer
from translate.networks.tokenizer import Tokenizer, tokens_of


class TokenTranslationSettings(TokenModelSettings):
    """Tokenizers of both sides, and a transformer from the tokens of one to those of the other."""

    kind: Literal["token-translation"] = "token-translation"
    tokenizers: Literal["shared", "two"] = "shared"
    """One tokenizer for both sides, which must have the same channels; or one each."""
    tokenizer_B: TokenisingSettings | None = None
    """Of two: side B's; null for the settings of `tokenizer`, which is A's then."""
    trained_B: Path | None = None
    """Of two: the run of side B's tokenizer."""

    @model_validator(mode="after")
    def _two_are_two(self) -> TokenTranslationSettings:
        if self.tokenizers == "shared":
            for name in ("tokenizer_B", "trained_B"):
                if getattr(self, name) is not None:
                    raise ValueError(f"'{name}' is for 'tokenizers: two'; with a shared one leave it out")
        elif (self.trained is None) != (self.trained_B is None):
            raise ValueError("'trained' and 'trained_B' belong together: name the runs of both tokenizers, or none")
        return self

    def recipe(self, side: str) -> TokenisingSettings:
        """What the tokenizer of a side is, and how it learns."""
        return self.tokenizer_B if side == "B" and self.tokenizer_B is not None else self.tokenizer

    def resolved(self, data: DataSettings) -> TokenTranslationSettings:
        """The settings with the networks of trained tokenizers written into them; UserError where these do not fit."""
        if not isinstance(data, PairedSettings):  # `build` will say so
            return self
        specs = data.specs()
        update = {"tokenizer": resolved_tokenizer(self.tokenizer, self.trained, "method.trained", specs["A"])}
        if self.trained_B is not None:
            update["tokenizer_B"] = resolved_tokenizer(self.recipe("B"), self.trained_B, "method.trained_B", specs["B"])
        return self.model_copy(update=update)

    def build(self, data: DataSettings, *, inference: bool = False) -> TokenTranslation:
        """The method for a data set; for `inference` nothing is loaded that only a loss needs."""
        if not isinstance(data, PairedSettings):
            raise UserError(
                f"method token-translation learns from pairs: data.kind must be 'paired', not '{data.kind}'"
            )
        return TokenTranslation(self, data, inference=inference)


class TokenTranslation(Method):
    """The algorithm box above, term by term."""

    differentiates = ("tokenizer", "transformer")

    translates: Tensor

    def __init__(self, settings: TokenTranslationSettings, data: PairedSettings, *, inference: bool = False) -> None:
        super().__init__()
        self.settings = settings
        self.sides = (data.source, data.target)
        self.directions = (data.direction,)
        self.compares = {"": True, "reconstruction": True}
        self.specs = data.specs()
        names = ["A", "B"] if settings.tokenizers == "two" else [""]
        kinds = [f"{spec.kind}, {spec.width} channels" for spec in self.specs.values()]
        if names == [""] and len(set(kinds)) > 1:
            raise UserError(f"method.tokenizers: one cannot serve A ({kinds[0]}) and B ({kinds[1]}): set it to two")
        size = data.augment.crop or data.augment.resize or 0
        learns = settings.trained is None and not inference
        tokenizers: dict[str, nn.Module] = {}
        discriminators: dict[str, nn.Module] = {}
        parts: dict[str, Tokenising] = {}
        for name in names:
            recipe, spec = settings.recipe(name), self.specs[name or data.target]
            tokenizer = recipe.build_tokenizer(spec)
            tokenizers[name or "both"] = tokenizer
            if recipe.discriminator is not None and learns:
                discriminators[name or "both"] = recipe.discriminator.build(spec.width)
            of = f"_{name}" if name else ""
            part = Tokenising(recipe, spec, tokenizer.codes, size, of=of, inference=not learns)
            parts[name or "both"] = part
        self.tokenising = nn.ModuleDict(parts)
        players: dict[str, nn.Module] = {"tokenizer": nn.ModuleDict(tokenizers)}
        if discriminators:
            players["discriminator"] = nn.ModuleDict(discriminators)
        source, target = (self._tokenizer_of(tokenizers, side) for side in self.sides)
        grids = [grid_of(data.augment, tokenizer.reduction) for tokenizer in (source, target)]
        players["transformer"] = settings.transformer.build(
            target.codes, grids[1], causal=settings.decoding == "causal", source=(source.codes, grids[0])
        )
        self.players = nn.ModuleDict(players)
        self.taken = () if settings.trained is None else ("tokenizer",)
        self.untrained = ("transformer",) if self.taken else ("tokenizer", "transformer")
        self.weights = {"tokens": 1.0}
        for part in () if self.taken else self.parts.values():
            self.weights |= part.weights()
        # Whether the transformer has moved: before, there is no translation to be measured or shown.
        self.register_buffer("translates", torch.zeros((), dtype=torch.bool))

    @staticmethod
    def _tokenizer_of(tokenizers: Mapping[str, nn.Module] | nn.ModuleDict, side: str) -> Tokenizer:
        return cast(Tokenizer, tokenizers[side if side in tokenizers else "both"])

    def tokenizer(self, side: str) -> Tokenizer:
        """The tokenizer of a side of the data."""
        return self._tokenizer_of(cast(nn.ModuleDict, self.players["tokenizer"]), side)

    @property
    def parts(self) -> dict[str, Tokenising]:
        """What each tokenizer learns by, under its name: `both`, or `A` and `B`."""
        return {name: cast(Tokenising, part) for name, part in self.tokenising.items()}

    @property
    def transformer(self) -> TokenTransformer:
        return cast(TokenTransformer, self.players["transformer"])

    def begin(self) -> None:
        for side, path in (("A", self.settings.trained), ("B", self.settings.trained_B)):
            if path is not None:
                take_over(self.tokenizer(side), path, "method.trained" if side == "A" else "method.trained_B")

    def advance(self, progress: float) -> None:
        for name in self.tokenising:
            self.tokenizer(name).quantiser.advance(progress)

    def turns(self, step: int) -> Sequence[Turn]:
        if self.taken:
            return (Turn("transformer"),)
        moves = [Turn("tokenizer")]
        if "discriminator" in self.players:
            due: list[str] = []
            for part in self.parts.values():
                part.adversary.advance(step)
                due += [term + part.of for term in part.adversary.due(step)]
            moves.append(Turn("discriminator", tuple(due)))
        return (*moves, Turn("transformer"))

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "tokenizer" in moving or "discriminator" in moving:
            for name, part in self.parts.items():
                images = self._images(batch, name)
                found |= part.shared(self.tokenizer(name), images, learns="tokenizer" in moving)
        if "transformer" in moving:
            for what, side in zip(("source", "target"), self.sides, strict=True):
                found[what] = tokens_of(self.tokenizer(side), batch[side])
        return found

    def _images(self, batch: Mapping[str, Tensor], name: str) -> Tensor:
        """What the tokenizer of this name learns from: a side's images (N, C, H, W), or both sides' (2 N, C, H, W)."""
        return batch[name] if name in batch else torch.cat([batch[side] for side in self.sides])

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if turn.player == "transformer":
            if not self.active("tokens"):
                return {}
            smoothing = self.settings.label_smoothing
            loss, right = token_loss(self.transformer, shared["target"], shared["source"], smoothing=smoothing)
            self.report("tokens guessed", right)
            return {"tokens": loss}
        terms: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            tokenizer, discriminator, images = (
                self.tokenizer(name),
                self._discriminator(name),
                self._images(batch, name),
            )
            if turn.player == "tokenizer":
                terms |= part.tokenizer_losses(self, tokenizer, discriminator, images, shared)
            elif discriminator is not None:
                due = [term.removesuffix(part.of) for term in turn.terms if term.endswith(part.of)]
                terms |= part.discriminator_losses(self, tokenizer, discriminator, images, shared, due)
        return terms

    def _discriminator(self, name: str) -> Discriminator | None:
        if "discriminator" not in self.players:
            return None
        found = cast(nn.ModuleDict, self.players["discriminator"])
        return cast(Discriminator, found[name]) if name in found else None

    def surveys(self, turn: Turn) -> bool:
        return turn.player == "tokenizer" and any(part.surveys(self) for part in self.parts.values())

    def survey(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
        for name, part in self.parts.items():
            if part.surveys(self) and (discriminator := self._discriminator(name)) is not None:
                part.survey(self, self.tokenizer(name), discriminator, self._images(batch, name), shared)
            else:  # its images went through all the same
                self.tokenizer(name).quantiser.forget()

    def moved(self, turn: Turn) -> Renewed:
        if turn.player == "transformer":
            self.translates.fill_(True)
        if turn.player != "tokenizer":
            return ()
        return [row for name, part in self.parts.items() for row in part.moved(self, self.tokenizer(name))]

    def summary(self) -> Summary:
        numbers: dict[str, float] = {}
        histograms: dict[str, Tensor] = {}
        for part in self.parts.values():
            found = part.summary()
            numbers |= found.numbers
            histograms |= found.histograms
        return Summary(numbers, histograms)

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        return [line for part in self.parts.values() for line in part.warnings(values)]

    def check(self, batch: Mapping[str, Tensor]) -> None:
        networks: dict[str, tuple[str, nn.Module]] = {}
        for side in self.sides:
            networks[f"tokenizer of {side}"] = (side, self.tokenizer(side))
            name = side if side in self.tokenising else "both"
            if (discriminator := self._discriminator(name)) is not None:
                networks[f"discriminator of {side}"] = (side, discriminator)
        check_sizes(batch, networks)

    # ---- what one looks at and what conversion runs -----------------------------------------------------------------

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        source, target = (batch[side] for side in self.sides)
        first, second = (self.specs[side] for side in self.sides)
        again = [run_padded(self.tokenizer(side), batch[side]).clamp(-1, 1) for side in self.sides]
        shown = {"input": visible(source, first)}
        if bool(self.translates):
            drawn = self.translator(self.directions[0]).draws(source, range(len(source)))
            shown["output"] = visible(drawn.images.clamp(-1, 1), second)
            shown["uncertainty"] = uncertainty_image(drawn.uncertainty, (target.shape[2], target.shape[3]))
        else:
            shown["input reconstructed"] = visible(again[0], first)
        return shown | {"target reconstructed": visible(again[1], second), "target": visible(target, second)}

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        """The translation once there is one, with its bits per token beside it; else what the tokenizers lose of the
        target. (What a tokenizer reconstructs must not choose the weights of a translation.)"""
        source, target = (batch[side] for side in self.sides)
        spec = self.specs[self.sides[1]]
        if not bool(self.translates):
            made = run_padded(self.tokenizer(self.sides[1]), target)
            return {"reconstruction": Comparison(made, target, spec, chooses=False)}
        seeds = torch.randint(2**31, (len(source),), generator=chance).tolist()
        translator = self.translator(self.directions[0])
        drawn = translator.draws(source, seeds)
        first, second = (tokens_of(self.tokenizer(side), batch[side]) for side in self.sides)
        beside = {"bits per token": bits_per_token(self.transformer, second, first)} if self._fits(second) else {}
        return {"": Comparison(drawn.images, target, spec, beside)}

    def _fits(self, tokens: Tensor) -> bool:
        """Whether the transformer takes a target of these tokens (N, h, w) at once."""
        grid, window = tuple(tokens.shape[1:]), self.transformer.window
        return grid == window or (self.transformer.aligned and grid[0] <= window[0] and grid[1] <= window[1])

    def exported(self) -> nn.ModuleDict:
        return nn.ModuleDict({name: self.players[name] for name in ("tokenizer", "transformer")})

    def averaged(self) -> nn.ModuleDict:
        """The transformer alone: it learns the tokens of the tokenizers as they are, not as they were on average."""
        return nn.ModuleDict({"transformer": self.transformer})

    def exported_for(self, direction: str) -> nn.ModuleDict:
        return self.exported()

    def translator(self, direction: str) -> TokenTranslator:
        source, target = (self.tokenizer(side) for side in self.sides)
        return TokenTranslator(source, target, self.transformer, self.settings.sampling)


class TokenTranslator(DrawingGenerator):
    """Encodes, draws the target's tokens, decodes: (N, C, H, W) in [-1, 1] -> (N, C', H, W).

    Images larger than those of training are made in windows (`networks.token_sampling.sample`).
    """

    scale = 1

    def __init__(
        self, source: Tokenizer, target: Tokenizer, transformer: TokenTransformer, sampling: SamplingSettings
    ) -> None:
        super().__init__()
        self.source, self.target, self.transformer = source, target, transformer
        self.sampling = sampling
        self.part, self.most_uncertain = target.reduction, math.log2(target.codes)
        self.multiple = self.smallest = max(source.multiple, target.multiple)
        if not transformer.aligned:  # of grids that differ just the trained size can be had
            self.multiple = self.smallest = transformer.window[0] * target.reduction

    def change_sampling(self, given: Mapping[str, Any]) -> None:
        self.sampling = self.sampling.changed(given, causal=self.transformer.causal)

    @torch.no_grad()
    def draws(self, images: Tensor, seeds: Sequence[int]) -> Drawn:
        height, width = images.shape[2:]
        down, right = (max(self.smallest, -(-n // self.multiple) * self.multiple) - n for n in (height, width))
        padded = nn.functional.pad(images, (0, right, 0, down), mode="replicate")
        tokens = tokens_of(self.source, padded)
        grid = (padded.shape[2] // self.target.reduction, padded.shape[3] // self.target.reduction)
        with exact_float32(images.device):
            drawn = sample(self.transformer, grid, self.sampling, list(seeds), source=tokens, on_step=self.on_step)
            made = self.target.decode_tokens(drawn.tokens)
        return Drawn(made[..., :height, :width], drawn.entropy)


def uncertainty_image(entropy: Tensor, size: tuple[int, int]) -> Tensor:
    """Bits (N, h, w) as pictures (N, 3, *size) in [-1, 1]: black where there is no doubt, white at the batch's most."""
    shown = 2 * entropy / entropy.amax().clamp(min=1e-6) - 1
    return nn.functional.interpolate(shown[:, None], size=size, mode="nearest").expand(-1, 3, -1, -1)
