"""The transformer over the tokens of an image: one after another (VQGAN's second stage) or all at once (MaskGIT).

Positions are learnt rows and columns. What a position predicts is conditioned on nothing, on a class, or on the tokens
of another image.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.settings import Settings

_DEVIATION = 0.02
"""Of the weights and embeddings of a new transformer, as GPT-2 and minGPT draw them."""


class TokenTransformerSettings(Settings):
    """The transformer's size; VQGAN's by default (Esser et al., arXiv 2012.09841): 302 M weights in its blocks."""

    layers: int = Field(default=24, ge=1)
    heads: int = Field(default=16, ge=1)
    width: int = Field(default=1024, ge=1)
    """Channels of a token; divisible by `heads`."""
    mlp_ratio: int = Field(default=4, ge=1)
    """Channels inside a block's MLP, in multiples of the width."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Rate of the dropout behind the embeddings and at the end of each attention and each MLP."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> TokenTransformerSettings:
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not divisible by heads {self.heads}: each head has as many channels"
            )
        return self

    def build(
        self,
        codes: int,
        grid: tuple[int, int],
        *,
        causal: bool,
        classes: int = 0,
        source: tuple[int, tuple[int, int]] | None = None,
    ) -> TokenTransformer:
        """A new transformer, weights drawn.

        Args:
            codes: size of the codebook whose tokens are predicted.
            grid: rows and columns of the largest image seen at once.
            causal: one token after another in raster order; else all at once, some of them masked.
            classes: number of classes; 0 for none.
            source: codes and grid of the image that is translated; None for none.

        Raises:
            UserError: masked decoding with a source whose grid is another one.
        """
        return TokenTransformer(self, codes, grid, causal=causal, classes=classes, source=source)


class Cache:
    """What a causal transformer remembers of one image's tokens: keys and values of each layer.

    Attributes:
        length: inputs seen so far, those of the prefix among them.
        places: (N or 1, L, width), what is added to the embedding of the token before each position.
    """

    def __init__(self, capacity: int, layers: int, places: Tensor) -> None:
        self.capacity, self.places, self.length = capacity, places, 0
        self._stored: list[Tensor | None] = [None] * layers
        self._turned: dict[nn.Linear, Tensor] = {}

    def append(self, layer: int, new: Tensor) -> Tensor:
        """Keys and values (2, N, heads, T, d) of the next T inputs -> those of all so far, a view of the storage.

        The storage is allocated once, at the first call, and in the number format that autocast chose. `length` is the
        caller's to move on, when all layers have seen the inputs.
        """
        stored = self._stored[layer]
        if stored is None:
            stored = self._stored[layer] = new.new_empty(*new.shape[:3], self.capacity, new.shape[4])
        end = self.length + new.shape[3]
        stored[:, :, :, self.length : end] = new
        return stored[:, :, :, :end]

    def turned(self, layer: nn.Linear) -> Tensor:
        """The layer's weight transposed, (in, out), contiguous: made once."""
        if layer not in self._turned:
            self._turned[layer] = layer.weight.detach().t().contiguous()
        return self._turned[layer]


def _linear(layer: nn.Linear, x: Tensor, cache: Cache | None) -> Tensor:
    """layer(x), (N, T, in) -> (N, T, out).

    Of a lone token on a CPU by the transposed weight where it has more outputs than inputs: the product of a matrix and
    a vector by rows, torch's way, then takes two to three times as long (MKL, AMD EPYC, one thread).
    """
    alone = cache is not None and x.device.type == "cpu" and x.shape[0] * x.shape[1] == 1
    if cache is None or not alone or layer.out_features <= layer.in_features or x.dtype != layer.weight.dtype:
        made: Tensor = layer(x)
        return made
    product = x[0] @ cache.turned(layer)
    return (product if layer.bias is None else product + layer.bias)[None]


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), over (N, T, width)."""

    def __init__(self, settings: TokenTransformerSettings) -> None:
        super().__init__()
        width, inner = settings.width, settings.mlp_ratio * settings.width
        self.heads = settings.heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, cache: Cache | None, layer: int) -> Tensor:
        """One layer's pass.

        Args:
            mask: (T, keys), True where an input sees another.
            causal: instead of a mask, each input sees those before it and itself.
            cache: what holds the keys and values of the inputs before x.
            layer: this block's number, under which the cache knows it.
        """
        count, length, width = x.shape
        parts = _linear(self.qkv, self.norm1(x), cache).view(count, length, 3, self.heads, width // self.heads)
        parts = parts.permute(2, 0, 3, 1, 4)
        query, pairs = parts[0], parts[1:]  # (N, heads, T, d), (2, N, heads, T, d)
        if cache is not None:
            pairs = cache.append(layer, pairs)
        seen: Tensor = F.scaled_dot_product_attention(query, pairs[0], pairs[1], attn_mask=mask, is_causal=causal)
        attended: Tensor = self.dropout(self.output(seen.transpose(1, 2).reshape(count, length, width)))
        x = x + attended
        inner: Tensor = self.dropout(self.narrow(F.gelu(_linear(self.widen, self.norm2(x), cache))))
        return x + inner


class GridPositions(nn.Module):
    """A learnt vector for each place of a grid: its row's plus its column's."""

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(grid[0], width))
        self.columns = nn.Parameter(torch.empty(grid[1], width))
        nn.init.normal_(self.rows, 0.0, _DEVIATION)
        nn.init.normal_(self.columns, 0.0, _DEVIATION)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(h * w, width) of the h rows and w columns at the top left, in raster order."""
        return (self.rows[: grid[0], None] + self.columns[None, : grid[1]]).flatten(0, 1)


class TokenTransformer(nn.Module):
    """Logits of the tokens of an image, (N, L, codes), in raster order.

    Causal: the input of the step that predicts position t is the embedding of token t - 1 (at t = 0 the start vector,
    or the class's) plus the place of t itself. The tokens of a source stand before them all as a prefix with places of
    their own. The prefix is given as a whole, so its tokens see each other in both directions (a prefix language
    model), where minGPT in VQGAN lets each see only those before it.

    Masked: the input at a position is the embedding of its token, or of the mask, plus its place plus the start vector
    or the class's (Chang et al., arXiv 2202.04200); all see all. The source needs no prefix: see below.

    Aligned, that is if the source has the grid of the target: the embedding of the source's token at position t is
    added to the input of the step that predicts t. What belongs together need not be found by attention.

    Any grid up to `window` is taken: its rows and columns are the first ones of the window.

    Attributes:
        codes: size of the codebook; also the index of the mask.
        window: rows and columns of the largest image seen at once.
        source_window: those of the source, or None.
        classes: number of classes; 0 for none.
    """

    def __init__(
        self,
        settings: TokenTransformerSettings,
        codes: int,
        grid: tuple[int, int],
        *,
        causal: bool,
        classes: int = 0,
        source: tuple[int, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.codes, self.window, self.causal, self.classes = codes, grid, causal, classes
        self.source_window = None if source is None else source[1]
        self.aligned = self.source_window == grid
        if source is not None and not causal and not self.aligned:
            raise UserError(
                f"masked decoding needs aligned grids: the source has {source[1][0]}x{source[1][1]} tokens, the target "
                f"{grid[0]}x{grid[1]}; use images of the same size and codebooks of the same factor, or causal decoding"
            )
        width = settings.width
        self.tokens = nn.Embedding(codes if causal else codes + 1, width)
        self.places = GridPositions(grid, width)
        self.start = nn.Embedding(max(1, classes), width)
        if source is not None:
            self.source = nn.Embedding(source[0], width)
            if causal:
                self.source_places = GridPositions(source[1], width)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codes, bias=False)
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                nn.init.normal_(layer.weight, 0.0, _DEVIATION)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    @property
    def mask_index(self) -> int:
        """The token that says "not known yet" to a masked transformer."""
        return self.codes

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(
        self,
        tokens: Tensor,
        source: Tensor | None = None,
        label: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Tokens (N, T) int64 -> logits (N, T, codes), in float32 under autocast too.

        Args:
            tokens: in [0, codes), masked: in [0, codes]. Masked: T = h * w. Causal: at most that, the first ones; the
                logits of position t have seen those before t alone.
            source: tokens (N, P) int64 of the image that is translated; aligned: P = h * w.
            label: classes (N,) int64.
            grid: (h, w) of the tokens, at most the window, which it is by default.
        """
        count, length = tokens.shape
        grid = grid or self.window
        expected = grid[0] * grid[1]
        if length > expected or (length < expected and not self.causal):
            raise ValueError(f"expected {expected} tokens of a {grid[0]}x{grid[1]} grid, not {length}")
        prefix, start, places = self._given(count, source, label, grid)
        if not self.causal:
            return self._logits(self._run(self.tokens(tokens) + places + start))
        x = torch.cat([start, self.tokens(tokens[:, :-1])], 1) + places[:, :length]
        before = 0 if prefix is None else prefix.shape[1]
        return self._logits(self._run(x, prefix)[:, before:])

    def begin(
        self,
        count: int,
        source: Tensor | None = None,
        label: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        given: Tensor | None = None,
    ) -> tuple[Cache, Tensor]:
        """Starts `count` sequences: their cache and the logits (N, codes) of the first position (causal only).

        Args:
            source, label, grid: as `forward` has them.
            given: tokens (N, G) that are known to be first, G < h * w: the logits are those of position G.
        """
        if not self.causal:
            raise ValueError("a masked transformer has no order in which a cache could grow")
        prefix, start, places = self._given(count, source, label, grid or self.window)
        x = start if given is None else torch.cat([start, self.tokens(given)], 1)
        x = x + places[:, : x.shape[1]]
        before = 0 if prefix is None else prefix.shape[1]
        cache = Cache(before + places.shape[1], len(self.blocks), places)
        return cache, self._logits(self._run(x, prefix, cache)[:, -1:])[:, 0]

    def extend(self, cache: Cache, tokens: Tensor) -> Tensor:
        """The next tokens (N,) of the sequences -> logits (N, codes) of the position after them."""
        position = cache.length - (cache.capacity - cache.places.shape[1])  # the one that is predicted
        if cache.length == cache.capacity:
            raise ValueError("the grid is full: nothing comes after its last token")
        x = self.tokens(tokens)[:, None] + cache.places[:, position : position + 1]
        return self._logits(self._run(x, cache=cache)[:, -1:], cache)[:, 0]

    def _given(
        self, count: int, source: Tensor | None, label: Tensor | None, grid: tuple[int, int]
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Of the condition: prefix (N, P, width) or None, start (N, 1, width), places (N or 1, h * w, width)."""
        if grid[0] > self.window[0] or grid[1] > self.window[1]:
            raise ValueError(f"the window has {self.window[0]}x{self.window[1]} tokens, fewer than {grid[0]}x{grid[1]}")
        if (source is None) != (self.source_window is None):
            raise ValueError("expected source tokens" if source is None else "this transformer has no source")
        if (label is None) != (self.classes == 0):
            raise ValueError("expected a label" if label is None else "this transformer has no classes")
        classes = torch.zeros(count, dtype=torch.int64, device=self.device) if label is None else label
        places = self.places(grid)[None]
        prefix = None
        if source is not None and self.source_window is not None:
            shape = grid if self.aligned else self.source_window
            if source.shape[1] != shape[0] * shape[1]:
                raise ValueError(f"expected {shape[0]}x{shape[1]} source tokens, not {source.shape[1]}")
            embedded = self.source(source)
            if self.causal:
                prefix = embedded + self.source_places(shape)
            if self.aligned:
                places = places + embedded
        return prefix, self.start(classes)[:, None], places

    def _run(self, x: Tensor, prefix: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The blocks over (N, T, width), behind the prefix (N, P, width), if any: (N, P + T, width)."""
        mask = None
        causal = self.causal and x.shape[1] > 1  # one input alone sees all that the cache holds
        if prefix is not None:
            before, x = prefix.shape[1], torch.cat([prefix, x], 1)
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril_()
            mask[:before, :before] = True
            causal = False
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, causal, cache, layer)
        if cache is not None:
            cache.length += x.shape[1]
        return x

    def _logits(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return _linear(self.head, self.norm(x).to(self.head.weight.dtype), cache)
