"""How one samples images of tokens from a transformer: token by token, or masked in a dozen steps; of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from translate.errors import UserError
from translate.networks.token_transformer import Cache, TokenTransformer
from translate.settings import Settings

Grid = tuple[int, int]
Hook = Callable[[int, int], None]
"""Told how many steps are done, and of how many."""


class SamplingSettings(Settings):
    """How tokens are drawn from the logits."""

    temperature: float = Field(default=1.0, ge=0)
    """Divides the logits; 0 takes the most probable token."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw from this many most probable tokens alone."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the fewest tokens that have this probability together (Holtzman et al., arXiv 1904.09751)."""
    steps: int = Field(default=12, ge=1)
    """Of masked decoding; the paper has 8 to 16."""
    choice_temperature: float = Field(default=4.5, ge=0)
    """Masked decoding: scale of the noise on the confidence that says which tokens stay; it falls linearly to 0."""

    def changed(self, given: Mapping[str, Any], *, causal: bool) -> SamplingSettings:
        """These with some of them set anew, as somebody asks who samples.

        Raises:
            UserError: what is asked for is of masked decoding, and the model draws token after token.
        """
        for name in ("steps", "choice_temperature"):
            if causal and name in given:
                raise UserError(f"{name}: this model draws token after token, not in steps; leave the option out")
        return SamplingSettings(**{**self.model_dump(), **given})


@dataclass(frozen=True)
class Sampled:
    """Images of tokens.

    Attributes:
        tokens: (N, h, w) int64.
        entropy: (N, h, w) float32, in bits: that of the model's own distribution (temperature 1, nothing left out) when
            the token was chosen, in [0, log2 codes]; 0 where it was known.
    """

    tokens: Tensor
    entropy: Tensor


class Chance:
    """Uniform numbers, a stream for each row that depends on the row's seed alone, whatever batch it stands in."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def uniforms(self, *shape: int) -> Tensor:
        """The next numbers of the streams, (N, *shape) float32 in [0, 1), drawn on the CPU."""
        return torch.stack([torch.rand(shape, generator=generator) for generator in self._generators])


def filtered(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits (..., K), divided by the temperature, then -inf where top-k, then the nucleus, leave a token out.

    Of equal logits the lower index is the more probable one. The nucleus is the smallest set of most probable tokens
    whose probabilities, after temperature and top-k, add up to `top_p`; it has one token at least.
    """
    top_k = 1 if settings.temperature == 0 else settings.top_k
    if settings.temperature > 0:
        logits = logits / settings.temperature
    top_k = None if top_k is not None and top_k >= logits.shape[-1] else top_k
    top_p = None if settings.top_p == 1 else settings.top_p
    if top_k is None and top_p is None:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[..., top_k:] = -math.inf
    if top_p is not None:
        probability = ordered.double().softmax(-1)
        before = probability.cumsum(-1) - probability  # of the tokens that are more probable
        ordered[..., 1:] = ordered[..., 1:].masked_fill(before[..., 1:] >= top_p, -math.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """Tokens (...) from logits (..., K) and uniform numbers (...) in [0, 1): the inverse of the distribution function.

    A row's token depends on that row alone. Computed in float64; a token with the logit -inf is never drawn.
    """
    probability = logits.double().softmax(-1)
    # Nothing but a probable token can be the first one whose cumulated probability exceeds the number.
    cumulated = probability.cumsum(-1).masked_fill(probability == 0, -1.0)
    total = cumulated.amax(-1)
    below = torch.minimum(u.double() * total, torch.nextafter(total, torch.zeros_like(total)))
    return (cumulated > below[..., None]).to(torch.uint8).argmax(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy (...) float32 in bits of the distributions with logits (..., K): 0 to log2 K."""
    bits: Tensor = torch.special.entr(logits.float().softmax(-1)).sum(-1) / math.log(2)
    return bits


def still_masked(count: int, step: int, steps: int) -> int:
    """How many of `count` unknown tokens are still so after step `step`, from 1, of `steps`; 0 after the last.

    floor(count * cos(pi / 2 * step / steps)), MaskGIT's schedule (Chang et al., arXiv 2202.04200, section 3.3).
    """
    return 0 if step == steps else math.floor(count * math.cos(math.pi / 2 * step / steps))


@torch.no_grad()
def sample_causal(
    model: TokenTransformer,
    grid: Grid,
    settings: SamplingSettings,
    seeds: Sequence[int],
    source: Tensor | None = None,
    label: Tensor | None = None,
    known: Tensor | None = None,
    cached: bool = True,
    on_step: Hook | None = None,
) -> Sampled:
    """One image a seed, token after token, from a causal model in evaluation mode.

    Args:
        grid: (h, w), at most the model's window.
        seeds: N of them; a row's result depends on its own seed and condition alone.
        source: tokens (N, h', w') of the images that are translated.
        label: classes (N,).
        known: tokens (N, h, w) that stay as they are; -1 for those to draw.
        cached: remember keys and values; else compute the whole sequence anew for each token (slow, the same tokens).
        on_step: called after each position.
    """
    return _causal(model, grid, settings, Chance(seeds), source, label, known, cached, on_step)


@torch.no_grad()
def sample_masked(
    model: TokenTransformer,
    grid: Grid,
    settings: SamplingSettings,
    seeds: Sequence[int],
    source: Tensor | None = None,
    label: Tensor | None = None,
    known: Tensor | None = None,
    on_step: Hook | None = None,
) -> Sampled:
    """One image a seed, all positions at once in `settings.steps` steps, from a masked model in evaluation mode.

    Each step draws a token for each unknown position, and keeps those of the highest confidence: the model's own log
    probability of the token plus choice_temperature * (1 - step / steps) times Gumbel noise (Chang et al., arXiv
    2202.04200, section 3.2, and the authors' code). `still_masked` says how many stay unknown. Arguments as
    `sample_causal` has them.
    """
    return _masked(model, grid, settings, Chance(seeds), source, label, known, on_step)


@torch.no_grad()
def sample(
    model: TokenTransformer,
    grid: Grid,
    settings: SamplingSettings,
    seeds: Sequence[int],
    source: Tensor | None = None,
    label: Tensor | None = None,
    on_step: Hook | None = None,
) -> Sampled:
    """One image a seed of any size, from any model in evaluation mode.

    What is larger than the model's window is made in windows, which move over the grid in raster order by half of their
    side, the last one flush with the border: what earlier windows decided is known to the later ones (VQGAN, Esser et
    al., arXiv 2012.09841, section 3.2, moves its window by one token). A source is cut by the same window.

    Args:
        source, label, seeds: as `sample_causal` has them.
        on_step: called after each position (causal) or each step (masked).

    Raises:
        UserError: the source has another grid than the target, and the grid is not the model's.
    """
    _check_source(model, grid, source)
    height, width = min(grid[0], model.window[0]), min(grid[1], model.window[1])
    corners = [(top, left) for top in starts(grid[0], height) for left in starts(grid[1], width)]
    total = grid[0] * grid[1] if model.causal else len(corners) * settings.steps
    done = 0

    def step(_done: int, _total: int) -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, total)

    chance = Chance(seeds)
    tokens = torch.full((len(chance), *grid), -1, device=model.device)
    bits = torch.zeros(tokens.shape, device=model.device)
    for top, left in corners:
        window = (slice(None), slice(top, top + height), slice(left, left + width))
        known = tokens[window]
        cut = source[window] if source is not None and model.aligned else source
        if model.causal:
            made = _causal(model, (height, width), settings, chance, cut, label, known, True, step)
        else:
            made = _masked(model, (height, width), settings, chance, cut, label, known, step)
        bits[window] = torch.where(known < 0, made.entropy, bits[window])
        tokens[window] = made.tokens
    return Sampled(tokens, bits)


def starts(side: int, window: int) -> list[int]:
    """Where windows begin along a side: every half window, and one flush with the end."""
    return [*range(0, side - window, max(1, window // 2)), side - window]


def _check_source(model: TokenTransformer, grid: Grid, source: Tensor | None) -> None:
    if source is None or model.source_window is None:
        return  # a model says itself what it lacks
    if model.aligned:
        if tuple(source.shape[1:]) != tuple(grid):
            raise UserError(
                f"the source has {source.shape[1]}x{source.shape[2]} tokens, the target {grid[0]}x{grid[1]}: this "
                "model was trained on grids that are the same; give it such"
            )
    elif tuple(grid) != tuple(model.window) or tuple(source.shape[1:]) != tuple(model.source_window):
        (h, w), (rows, columns) = model.window, model.source_window
        raise UserError(
            f"this model translates {rows}x{columns} tokens into {h}x{w}, not {source.shape[1]}x{source.shape[2]} into "
            f"{grid[0]}x{grid[1]}: grids that differ can be of the trained size only; resize the images to it"
        )


def _prepared(
    model: TokenTransformer, count: int, grid: Grid, source: Tensor | None, label: Tensor | None, known: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Known tokens (N, h * w), -1 for the others, source (N, P) and label (N,), all on the model's device."""
    if known is None:
        known = torch.full((count, *grid), -1)
    return (
        known.to(model.device).reshape(count, grid[0] * grid[1]),
        None if source is None else source.to(model.device).flatten(1),
        None if label is None else label.to(model.device),
    )


def _causal(
    model: TokenTransformer,
    grid: Grid,
    settings: SamplingSettings,
    chance: Chance,
    source: Tensor | None,
    label: Tensor | None,
    known: Tensor | None,
    cached: bool,
    on_step: Hook | None,
) -> Sampled:
    count, length = len(chance), grid[0] * grid[1]
    given, source, label = _prepared(model, count, grid, source, label, known)
    tokens, bits = given.clamp(min=0), torch.zeros(given.shape, device=model.device)
    numbers = chance.uniforms(length).to(model.device)
    unknown = (given < 0).any(0).tolist()  # the only thing that the host waits for
    wanted = [position for position in range(length) if unknown[position]]
    if not wanted:
        return Sampled(tokens.view(count, *grid), bits.view(count, *grid))
    cache: Cache | None = None
    done = 0
    for position in range(wanted[0], wanted[-1] + 1):
        if not cached:
            logits = model(tokens[:, : position + 1], source, label, grid)[:, position]
        elif cache is None:
            cache, logits = model.begin(count, source, label, grid, tokens[:, :position])
        else:
            logits = model.extend(cache, tokens[:, position - 1])
        if not unknown[position]:
            continue
        new = given[:, position] < 0
        drawn = draw(filtered(logits, settings), numbers[:, position])
        tokens[:, position] = torch.where(new, drawn, tokens[:, position])
        bits[:, position] = torch.where(new, entropy(logits), 0.0)
        done += 1
        if on_step is not None:
            on_step(done, len(wanted))
    return Sampled(tokens.view(count, *grid), bits.view(count, *grid))


def _masked(
    model: TokenTransformer,
    grid: Grid,
    settings: SamplingSettings,
    chance: Chance,
    source: Tensor | None,
    label: Tensor | None,
    known: Tensor | None,
    on_step: Hook | None,
) -> Sampled:
    count, length, steps = len(chance), grid[0] * grid[1], settings.steps
    given, source, label = _prepared(model, count, grid, source, label, known)
    tokens, bits = torch.where(given < 0, model.mask_index, given), torch.zeros(given.shape, device=model.device)
    numbers = chance.uniforms(steps, 2, length).to(model.device)
    wanted = (given < 0).sum(1).tolist()  # the only thing that the host waits for
    left = list(wanted)
    for step in range(1, steps + 1):
        then = [still_masked(total, step, steps) for total in wanted]
        if then != left:  # of few tokens some steps decide none
            logits = model(tokens, source, label, grid)
            drawn = draw(filtered(logits, settings), numbers[:, step - 1, 0])
            confidence = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
            gumbel = -(-numbers[:, step - 1, 1].clamp(min=torch.finfo(torch.float32).tiny).log()).log()
            noise = settings.choice_temperature if settings.temperature > 0 else 0.0
            confidence = confidence + noise * (1 - step / steps) * gumbel
            masked = tokens == model.mask_index
            rank = (
                confidence.masked_fill(~masked, -math.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            )
            keep = torch.tensor([before - after for before, after in zip(left, then, strict=True)])
            chosen = masked & (rank < keep.to(model.device)[:, None])
            tokens = torch.where(chosen, drawn, tokens)
            bits = torch.where(chosen, entropy(logits), bits)
            left = then
        if on_step is not None:
            on_step(step, steps)
    return Sampled(tokens.view(count, *grid), bits.view(count, *grid))
