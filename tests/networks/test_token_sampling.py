from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.networks import token_sampling
from translate.networks.token_sampling import (
    Chance,
    Sampled,
    SamplingSettings,
    draw,
    entropy,
    filtered,
    sample,
    sample_causal,
    sample_masked,
    starts,
    still_masked,
)
from translate.networks.token_transformer import TokenTransformer, TokenTransformerSettings

CODES, GRID = 16, (4, 4)
SOURCE_CODES = 7
Source = tuple[int, tuple[int, int]] | None
PLAIN = SamplingSettings()
SEEDS = [11, 5, 8]


def transformer(*, causal: bool, classes: int = 0, source: Source = None) -> TokenTransformer:
    torch.manual_seed(0)
    settings = TokenTransformerSettings(layers=2, heads=2, width=32)
    net = settings.build(CODES, GRID, causal=causal, classes=classes, source=source).eval()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, 0.2)
    return net


def source_tokens(grid: tuple[int, int], count: int = len(SEEDS)) -> Tensor:
    return torch.randint(SOURCE_CODES, (count, *grid), generator=torch.Generator().manual_seed(3))


def same(one: Sampled, other: Sampled) -> None:
    assert torch.equal(one.tokens, other.tokens)
    # Logits differ by rounding (1e-5), a change d of which moves the entropy by about d * log2 K.
    torch.testing.assert_close(one.entropy, other.entropy, atol=1e-4, rtol=0)


# -- one distribution --------------------------------------------------------------------------------------------------


def test_entropy_has_its_closed_forms() -> None:
    logits = torch.tensor([[0.0] * 8, [0.0] + [-math.inf] * 7, [math.log(2.0)] + [0.0] * 2 + [-math.inf] * 5])
    # 1/2, 1/4, 1/4 have 1.5 bits
    torch.testing.assert_close(entropy(logits), torch.tensor([3.0, 0.0, 1.5]))
    assert entropy(torch.tensor([100.0] + [-100.0] * 15)) == 0


def test_a_filter_keeps_what_it_should() -> None:
    probability = torch.tensor([0.125, 0.5, 0.0625, 0.25, 0.0625])  # exact in floats
    logits = probability.log()

    def kept(**values: float) -> list[int]:
        return filtered(logits, SamplingSettings.model_validate(values)).isfinite().nonzero()[:, 0].tolist()

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_k=4) == [0, 1, 2, 3]  # of equal ones the first
    assert kept(top_k=9) == [0, 1, 2, 3, 4]
    assert kept(top_p=1e-9) == [1]
    assert kept(top_p=0.49) == [1]
    assert kept(top_p=0.51) == [1, 3]
    assert kept(top_p=0.74) == [1, 3]
    assert kept(top_p=0.76) == [0, 1, 3]
    assert kept(top_p=1.0) == [0, 1, 2, 3, 4]
    assert kept(top_k=2, top_p=0.7) == [1, 3]  # 2/3 is not enough
    assert kept(top_k=2, top_p=0.66) == [1]  # ... but here: the nucleus is that of the top-k distribution
    assert kept(temperature=0) == [1]
    assert kept(temperature=0.5, top_p=0.7) == [1]  # squared and normalised: 64 of 64 + 16 + 4 + 1 + 1
    assert kept(temperature=0.5, top_p=0.8) == [1, 3]
    found = filtered(logits, SamplingSettings(temperature=2, top_k=3))
    torch.testing.assert_close(found[[0, 1, 3]], logits[[0, 1, 3]] / 2)


def test_settings_out_of_range_are_refused() -> None:
    for values in ({"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"steps": 0}):
        with pytest.raises(ValidationError):
            SamplingSettings.model_validate(values)


def test_settings_are_changed_as_they_are_made() -> None:
    settings = SamplingSettings(top_k=7, steps=5)
    assert settings.changed({"temperature": 0.5, "steps": 3}, causal=False) == SamplingSettings(
        temperature=0.5, top_k=7, steps=3
    )
    assert settings.changed({"top_k": None}, causal=True) == SamplingSettings(steps=5)
    assert settings.changed({}, causal=True) == settings == SamplingSettings(top_k=7, steps=5)
    for values in ({"temperature": -1}, {"choice_temperature": -1}, {"top_p": 0}, {"temprature": 1}):
        with pytest.raises(ValidationError):
            settings.changed(values, causal=False)
    for name in ("steps", "choice_temperature"):
        with pytest.raises(UserError, match=f"^{name}: this model draws token after token"):
            settings.changed({name: 3}, causal=True)


def test_draw_inverts_the_distribution_function() -> None:
    logits = torch.tensor([-math.inf, math.log(0.5), -math.inf, math.log(0.25), math.log(0.25), -math.inf])
    numbers = torch.tensor([0.0, 0.4999, 0.5001, 0.7499, 0.7501, 1 - 2**-24])
    assert draw(logits.expand(6, -1), numbers).tolist() == [1, 1, 3, 3, 4, 4]
    # Whatever the number, what has no probability is not drawn; not even by the largest float64 below 1.
    assert draw(logits, torch.tensor(1 - 2**-53, dtype=torch.float64)) == 4
    assert draw(torch.tensor([-math.inf, 7.0, -math.inf]), torch.tensor(0.0)) == 1


@pytest.mark.parametrize("values", [{}, {"top_k": 4}, {"top_p": 0.8}, {"temperature": 0.5, "top_k": 8, "top_p": 0.9}])
def test_frequencies_are_the_filtered_probabilities(values: dict[str, float]) -> None:
    settings = SamplingSettings.model_validate(values)
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 1.5
    # Independently: each token alone decides by sums over its betters.
    probability = (logits.double() / settings.temperature).softmax(0)
    by_rank = sorted(range(12), key=lambda token: -float(probability[token]))[: settings.top_k]
    mass = sum(float(probability[token]) for token in by_rank)
    expected, before = torch.zeros(12, dtype=torch.float64), 0.0
    for token in by_rank:
        if before < (settings.top_p or 1.0):
            expected[token] = probability[token]
        before += float(probability[token]) / mass
    expected /= expected.sum()
    count = 20_000
    drawn = draw(filtered(logits, settings).expand(count, -1), Chance([2]).uniforms(count)[0])
    found = torch.bincount(drawn, minlength=12).double()
    assert (found[expected == 0] == 0).all()
    some = expected > 0
    chi_square = ((found - count * expected)[some].square() / (count * expected)[some]).sum().item()
    # Of d degrees of freedom mean d and variance 2 d: five deviations beyond the mean (the numbers are seeded).
    freedom = int(some.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_a_row_is_drawn_by_itself() -> None:
    logits, numbers = torch.randn(50, 9), torch.rand(50)
    alone = torch.cat([draw(logits[n : n + 1], numbers[n : n + 1]) for n in range(50)])
    assert torch.equal(draw(logits, numbers), alone)
    assert torch.equal(draw(logits.view(5, 10, 9), numbers.view(5, 10)).flatten(), alone)


def test_chance_is_a_matter_of_the_row() -> None:
    first = Chance([3, 4, 3])
    numbers = torch.cat([first.uniforms(2, 3), first.uniforms(2, 3)], 1)
    assert numbers.shape == (3, 4, 3)
    assert torch.equal(numbers[0], numbers[2])
    assert not torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0, :2], numbers[0, 2:])  # a stream goes on
    assert torch.equal(numbers[1, :2], Chance([4]).uniforms(2, 3)[0])


# -- images ------------------------------------------------------------------------------------------------------------

CONDITIONS = [(0, None), (3, None), (0, (SOURCE_CODES, GRID)), (3, (SOURCE_CODES, (2, 3)))]


@pytest.mark.parametrize(("classes", "source"), CONDITIONS)
def test_a_cache_changes_no_token(classes: int, source: Source) -> None:
    net = transformer(causal=True, classes=classes, source=source)
    start = None if source is None else source_tokens(source[1])
    label = torch.tensor([0, 2, 1]) if classes else None
    settings = SamplingSettings(top_k=12, top_p=0.95, temperature=0.9)
    cached = sample_causal(net, GRID, settings, SEEDS, start, label)
    same(cached, sample_causal(net, GRID, settings, SEEDS, start, label, cached=False))
    assert len(cached.tokens.unique()) > 4  # no trivial model
    known = cached.tokens.clone()
    known[0, 1:3] = known[1, 2:] = known[2, 3, :2] = -1
    again = sample_causal(net, GRID, settings, SEEDS, start, label, known)
    same(again, sample_causal(net, GRID, settings, SEEDS, start, label, known, cached=False))
    assert torch.equal(again.tokens[known >= 0], known[known >= 0])
    assert (again.entropy[known >= 0] == 0).all()
    assert (again.entropy[known < 0] > 0).all()
    # Chance belongs to the position: with the same tokens before it, each is drawn as it was.
    assert torch.equal(again.tokens, cached.tokens)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("classes", "source"), CONDITIONS[:3])
def test_a_row_does_not_depend_on_its_batch(classes: int, source: Source, causal: bool) -> None:
    net = transformer(causal=causal, classes=classes, source=source)
    grid = (6, 5)
    start = None if source is None else source_tokens(grid)
    label = torch.tensor([0, 2, 1]) if classes else None
    together = sample(net, grid, PLAIN, SEEDS, start, label)
    for n in range(3):
        row = slice(n, n + 1)
        alone = sample(
            net, grid, PLAIN, SEEDS[row], None if start is None else start[row], None if label is None else label[row]
        )
        same(Sampled(together.tokens[row], together.entropy[row]), alone)
    assert not torch.equal(together.tokens[0], together.tokens[1])


def test_entropy_is_the_models_own() -> None:
    net = transformer(causal=True)
    made = sample_causal(net, GRID, SamplingSettings(temperature=0.3, top_k=2), SEEDS)
    with torch.no_grad():
        expected = entropy(net(made.tokens.flatten(1))).view(3, *GRID)
    torch.testing.assert_close(made.entropy, expected, atol=1e-4, rtol=0)
    greedy = sample_causal(net, GRID, SamplingSettings(temperature=0), [1, 2])
    assert torch.equal(greedy.tokens[0], greedy.tokens[1])
    with torch.no_grad():
        assert torch.equal(net(greedy.tokens.flatten(1)).argmax(-1), greedy.tokens.flatten(1))


def test_the_schedule_is_a_cosine() -> None:
    assert [still_masked(256, step, 8) for step in range(1, 9)] == [251, 236, 212, 181, 142, 97, 49, 0]
    assert still_masked(100, 2, 3) == 50 or still_masked(100, 2, 3) == 49  # cos(pi / 3) is 1 / 2 but for rounding
    for count in (1, 3, 16):
        left = [count, *(still_masked(count, step, 12) for step in range(1, 13))]
        assert left == sorted(left, reverse=True)
        assert left[-1] == 0


class Watched(nn.Module):
    """A masked transformer that notes what it is shown."""

    def __init__(self, net: TokenTransformer) -> None:
        super().__init__()
        self.net, self.shown = net, []
        self.device, self.mask_index, self.causal = net.device, net.mask_index, net.causal

    def forward(self, tokens: Tensor, *condition: object) -> Tensor:
        self.shown.append(tokens)
        return self.net(tokens, *condition)


def test_masked_steps_fill_as_the_schedule_says() -> None:
    net = Watched(transformer(causal=False))
    known = torch.full((3, *GRID), -1)
    known[1, 0], known[2] = 5, 9
    known[2, 0, 0] = -1
    steps, seen = 8, []
    made = sample_masked(
        net, GRID, SamplingSettings(steps=steps), SEEDS, known=known, on_step=lambda *at: seen.append(at)
    )
    assert seen == [(step, steps) for step in range(1, steps + 1)]
    shown = [*net.shown, made.tokens.flatten(1)]
    wanted = (16, 12, 1)
    # A step that decides nothing is not computed; with 16 unknown tokens each of 8 decides one at least.
    expected = [wanted, *(tuple(still_masked(count, step, steps) for count in wanted) for step in range(1, steps + 1))]
    assert [tuple((tokens == net.mask_index).sum(1).tolist()) for tokens in shown] == expected
    for before, after in itertools.pairwise(shown):
        decided = before != net.mask_index
        assert torch.equal(before[decided], after[decided])
    assert torch.equal(made.tokens[known >= 0], known[known >= 0])
    assert ((made.tokens >= 0) & (made.tokens < CODES)).all()
    assert ((made.entropy > 0) == (known < 0)).all()


def test_without_noise_the_most_probable_tokens_stay() -> None:
    net = transformer(causal=False)
    watched = Watched(net)
    sample_masked(watched, GRID, SamplingSettings(temperature=0, choice_temperature=0, steps=4), [1])
    with torch.no_grad():
        best, token = net(watched.shown[0]).log_softmax(-1).max(-1)
    keep = 16 - still_masked(16, 1, 4)
    chosen = best.topk(keep).indices
    expected = torch.full((1, 16), net.mask_index).scatter(1, chosen, token.gather(1, chosen))
    assert torch.equal(watched.shown[1], expected)


@pytest.mark.parametrize("causal", [True, False])
def test_at_temperature_0_no_seed_matters(causal: bool) -> None:
    net = transformer(causal=causal)
    made = sample(net, (4, 6), SamplingSettings(temperature=0, choice_temperature=4.5, steps=5), range(4))
    assert (made.tokens == made.tokens[:1]).all() and len(made.tokens.unique()) > 1
    warm = sample(net, (4, 6), SamplingSettings(temperature=1e-6, choice_temperature=4.5, steps=5), range(4))
    assert (warm.tokens == warm.tokens[:1]).all() == causal  # here the noise still chooses which tokens stay


@pytest.mark.parametrize("side", range(1, 30))
@pytest.mark.parametrize("window", [1, 2, 4, 5])
def test_windows_cover_a_side(side: int, window: int) -> None:
    window = min(side, window)
    found = starts(side, window)
    assert found[0] == 0
    assert found[-1] == side - window
    assert all(0 < b - a <= max(1, window // 2) for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("grid", [(4, 4), (2, 3), (9, 7), (3, 8)])
@pytest.mark.parametrize("source", [None, (SOURCE_CODES, GRID)], ids=["no source", "source"])
def test_images_of_any_size(grid: tuple[int, int], causal: bool, source: Source) -> None:
    net = transformer(causal=causal, source=source)
    start = None if source is None else source_tokens(grid)
    seen: list[tuple[int, int]] = []
    made = sample(net, grid, PLAIN, SEEDS, start, on_step=lambda *at: seen.append(at))
    assert made.tokens.shape == made.entropy.shape == (3, *grid)
    assert ((made.tokens >= 0) & (made.tokens < CODES)).all()
    assert (made.entropy > 0).all()
    windows = len(starts(grid[0], min(4, grid[0]))) * len(starts(grid[1], min(4, grid[1])))
    total = grid[0] * grid[1] if causal else windows * PLAIN.steps
    assert seen == [(done, total) for done in range(1, total + 1)]
    if grid[0] <= 4 and grid[1] <= 4:  # one window: the plain result
        same(made, (sample_causal if causal else sample_masked)(net, grid, PLAIN, SEEDS, start))


def test_windows_know_what_earlier_ones_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    net, start = transformer(causal=True, source=(SOURCE_CODES, GRID)), source_tokens((6, 6))
    calls, plain = [], token_sampling._causal

    def noted(*given: object) -> Sampled:
        calls.append((given[4], given[6].clone(), plain(*given)))
        return calls[-1][2]

    monkeypatch.setattr(token_sampling, "_causal", noted)
    made = sample(net, (6, 6), PLAIN, SEEDS, start)
    corners = [(0, 0), (0, 2), (2, 0), (2, 2)]
    assert [int((known < 0).sum()) // 3 for _, known, _ in calls] == [16, 8, 8, 4]
    for (top, left), (source, known, part) in zip(corners, calls, strict=True):
        cut = (slice(None), slice(top, top + 4), slice(left, left + 4))
        assert torch.equal(source, start[cut])
        assert torch.equal(part.tokens, made.tokens[cut])  # nothing is decided twice
        assert torch.equal(known[known >= 0], made.tokens[cut][known >= 0])


def test_a_source_that_does_not_fit_is_said() -> None:
    aligned, other = (transformer(causal=True, source=(SOURCE_CODES, grid)) for grid in (GRID, (2, 3)))
    with pytest.raises(UserError, match="the source has 4x5 tokens, the target 4x4"):
        sample(aligned, (4, 4), PLAIN, SEEDS, source_tokens((4, 5)))
    with pytest.raises(UserError, match="translates 2x3 tokens into 4x4, not 4x6 into 8x8"):
        sample(other, (8, 8), PLAIN, SEEDS, source_tokens((4, 6)))
    assert sample(other, GRID, PLAIN, SEEDS, source_tokens((2, 3))).tokens.shape == (3, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_a_table_is_learnt(causal: bool) -> None:
    # The target is the source with its codes exchanged: exactly one answer, and its entropy is 0.
    torch.manual_seed(0)
    table = torch.randperm(CODES)
    settings = TokenTransformerSettings(layers=2, heads=2, width=32)
    net = settings.build(CODES, GRID, causal=causal, source=(CODES, GRID))
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(200):
        source = torch.randint(CODES, (32, 16))
        target = table[source]
        hidden = torch.ones(32, 16, dtype=torch.bool)
        if not causal:
            hidden = torch.rand(32, 16) < torch.cos(torch.rand(32, 1) * math.pi / 2)
            hidden[:, 0] = True
        shown = target if causal else torch.where(hidden, net.mask_index, target)
        loss = F.cross_entropy(net(shown, source)[hidden], target[hidden])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    source = torch.randint(CODES, (8, *GRID))
    made = sample(net.eval(), GRID, PLAIN, range(8), source)
    assert (made.tokens == table[source]).float().mean() > 0.95
    assert made.entropy.mean() < 1
