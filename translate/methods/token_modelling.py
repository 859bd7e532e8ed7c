"""What is learnt about tokens: a transformer over the grids that tokenizers make, whatever it is conditioned on.

The first stage is a tokenizer's, as VQGAN's algorithm box has it; or it is taken from a run that has one. The second
(Esser et al. 2021, arXiv 2012.09841, section 3.2; Chang et al. 2022, arXiv 2202.04200, section 3.1):

repeat for each batch of images x, with what they are conditioned on, c:
    s <- tokens( x )
    causal: minimise -sum_t log p( s_t | s_<t, c )                      (equation 9)
    masked: r ~ U(0, 1); mask ceil( cos(pi r / 2) L ) of the L tokens at random, M;
            minimise -sum_{t in M} log p( s_t | s_not M, c )            (equations 1 and 2)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from translate.data import DataSettings
from translate.data.spec import ImageSpec
from translate.data.transforms import AugmentSettings
from translate.errors import UserError
from translate.methods.tokenising import TokenisingSettings
from translate.networks.token_sampling import SamplingSettings
from translate.networks.token_transformer import TokenTransformer, TokenTransformerSettings
from translate.networks.tokenizer import Tokenizer
from translate.settings import Settings

if TYPE_CHECKING:
    from translate.run import Weights

IGNORED = -100
"""The target that torch's cross entropy leaves out."""


class TokenModelSettings(Settings):
    """A tokenizer and a transformer over its tokens."""

    tokenizer: TokenisingSettings = TokenisingSettings()
    """The tokenizer and how it learns; with `trained` its networks are that run's."""
    trained: Path | None = None
    """A run or weights file of method vqgan whose tokenizer is taken as it is: no stage trains one then, and neither
    its discriminator nor LPIPS is needed."""
    transformer: TokenTransformerSettings = TokenTransformerSettings()
    decoding: Literal["causal", "masked"] = "causal"
    """One token after another, or all at once in some steps (MaskGIT)."""
    sampling: SamplingSettings = SamplingSettings()
    """How tokens are drawn, where nobody says otherwise."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target's probability that all codes get alike; MaskGIT has 0.1 (appendix A)."""

    @abstractmethod
    def resolved(self, data: DataSettings) -> TokenModelSettings:
        """The settings with the networks of a trained tokenizer written into them; UserError where it does not fit the
        data."""


def trained_tokenizer(path: Path, key: str) -> Weights:
    """The weights of a vqgan run; UserError, naming the setting, where it is none."""
    from translate.methods.vqgan import VQGANSettings
    from translate.run import load_weights

    weights = load_weights(path)
    if not isinstance(weights.config.method, VQGANSettings):
        raise UserError(
            f"{key}: {path} is a run of method {weights.config.method.kind}; expected one of method vqgan, "
            "which trains a tokenizer"
        )
    return weights


def resolved_tokenizer(
    settings: TokenisingSettings, path: Path | None, key: str, spec: ImageSpec
) -> TokenisingSettings:
    """The settings with the networks of a trained tokenizer in them, so that weights need no other file to be read.

    Raises:
        UserError: it was trained on images of another kind than `spec`.
    """
    if path is None:
        return settings
    config = trained_tokenizer(path, key).config
    assert isinstance(config.method, TokenisingSettings)
    (learnt,) = config.data.specs().values()
    if (learnt.kind, learnt.width) != (spec.kind, spec.width):
        raise UserError(
            f"{key}: the tokenizer of {path} knows {learnt.kind} data of {learnt.width} channels, not {spec.kind} data "
            f"of {spec.width}; train one on such images"
        )
    return settings.model_copy(
        update={"tokenizer": config.method.tokenizer, "reconstruction": config.method.reconstruction}
    )


def take_over(tokenizer: Tokenizer, path: Path, key: str) -> None:
    """Fill a tokenizer with a trained one's weights; UserError where they are of another architecture."""
    from translate.run import fill

    prefix = "tokenizer."
    weights = trained_tokenizer(path, key)
    tensors = {name.removeprefix(prefix): t for name, t in weights.tensors.items() if name.startswith(prefix)}
    fill(tokenizer, tensors, f"{key}: {weights.path}")


def grid_of(augment: AugmentSettings, reduction: int) -> tuple[int, int]:
    """Rows and columns of tokens of a training image; UserError where images keep sizes of their own."""
    size = augment.crop or (augment.resize if augment.resize_by == "squash" else None)
    if size is None:
        raise UserError("data.augment.crop: a transformer needs images of one size to learn from; set it")
    if size % reduction:
        raise UserError(
            f"data.augment.crop: {size} pixels are no whole number of tokens of {reduction} pixels; "
            f"set it to {-(-size // reduction) * reduction}"
        )
    return size // reduction, size // reduction


def token_loss(
    transformer: TokenTransformer,
    tokens: Tensor,
    source: Tensor | None = None,
    label: Tensor | None = None,
    *,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """-log p of the tokens that are to be predicted, and the share of them that is most probable; float32 scalars.

    Args:
        tokens: (N, h, w) of the images that are learnt.
        source: (N, h', w') of the images that they are conditioned on.
        label: classes (N,).
        smoothing: see `TokenModelSettings.label_smoothing`.
    """
    flat = tokens.flatten(1)  # (N, L)
    given = None if source is None else source.flatten(1)
    wanted = flat
    if not transformer.causal:
        masked = drawn_mask(flat)
        wanted = torch.where(masked, flat, IGNORED)
        flat = torch.where(masked, transformer.mask_index, flat)
    logits = transformer(flat, given, label, (tokens.shape[1], tokens.shape[2])).float()  # (N, L, K)
    # Row by row: over a transposed view it takes three times as long.
    loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), label_smoothing=smoothing, ignore_index=IGNORED)
    with torch.no_grad():
        counted = wanted != IGNORED
        right = ((logits.argmax(dim=2) == wanted) & counted).sum() / counted.sum()
    return loss, right.float()


@torch.no_grad()
def bits_per_token(
    transformer: TokenTransformer, tokens: Tensor, source: Tensor | None = None, label: Tensor | None = None
) -> Tensor:
    """How surprising images are, (N,) float32: the mean of -log2 p over their tokens, each given those before it; of a
    masked transformer given every second one, like the squares of a chessboard."""
    flat = tokens.flatten(1)
    given = flat
    counted = torch.ones_like(flat)
    if not transformer.causal:
        rows, columns = (torch.arange(side, device=flat.device) for side in tokens.shape[1:])
        hidden = ((rows[:, None] + columns) % 2 == 0).flatten().expand_as(flat)
        given, counted = torch.where(hidden, transformer.mask_index, flat), hidden.to(flat.dtype)
    grid = (tokens.shape[1], tokens.shape[2])
    logits = transformer(given, None if source is None else source.flatten(1), label, grid).float()
    surprise = F.cross_entropy(logits.flatten(0, 1), flat.flatten(), reduction="none").view_as(flat) / math.log(2)
    return (surprise * counted).sum(1) / counted.sum(1)


def drawn_mask(tokens: Tensor) -> Tensor:
    """(N, L) bool: of each row ceil( cos(pi r / 2) L ) random places, r uniform (Chang et al., equation 1)."""
    count, length = tokens.shape
    share = torch.cos(math.pi / 2 * torch.rand(count, 1, device=tokens.device))
    number = (share * length).ceil().clamp(1, length)
    rank = torch.rand(count, length, device=tokens.device).argsort(dim=1).argsort(dim=1)
    return rank < number
