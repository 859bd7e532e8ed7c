from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.networks.token_transformer import TokenTransformer, TokenTransformerSettings

SMALL = TokenTransformerSettings(layers=2, heads=2, width=32)
CODES, GRID, LENGTH = 16, (4, 4), 16
SOURCE_CODES = 7
Source = tuple[int, tuple[int, int]] | None
SOURCES: list[Source] = [None, (SOURCE_CODES, GRID), (SOURCE_CODES, (2, 3))]
NAMES = ["no source", "aligned source", "other source"]


def transformer(*, causal: bool, classes: int = 0, source: Source = None, deviation: float = 0.2) -> TokenTransformer:
    """With weights large enough that whatever can have an influence has a visible one."""
    torch.manual_seed(0)
    net = SMALL.build(CODES, GRID, causal=causal, classes=classes, source=source).eval()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, deviation)
    return net


def tokens(count: int = 2, length: int = LENGTH, codes: int = CODES) -> Tensor:
    return torch.randint(codes, (count, length), generator=torch.Generator().manual_seed(3))


def given(net: TokenTransformer, count: int = 2) -> dict[str, Tensor]:
    """A source and a label, as the transformer asks for them."""
    found = {}
    if net.source_window:
        found["source"] = tokens(count, net.source_window[0] * net.source_window[1], SOURCE_CODES)
    if net.classes:
        found["label"] = torch.arange(count) % net.classes
    return found


def moved(net: TokenTransformer, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
    """(L,) whether the logits of a position differ between two inputs, by more than the rounding (1e-5)."""
    with torch.no_grad():
        return (net(**before) - net(**after)).abs().amax((0, 2)) > 1e-5


def changed(ids: Tensor, position: int, codes: int = CODES) -> Tensor:
    other = ids.clone()
    other[:, position] = (other[:, position] + 1) % codes
    return other


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_causal_position_sees_exactly_the_tokens_before_it(source: Source) -> None:
    net, ids = transformer(causal=True, source=source), tokens()
    for position in range(LENGTH):
        seen = moved(net, {"tokens": ids, **given(net)}, {"tokens": changed(ids, position), **given(net)})
        assert seen.tolist() == [later > position for later in range(LENGTH)]


def test_a_masked_position_sees_all_tokens() -> None:
    net, ids = transformer(causal=False), tokens()
    for position in range(LENGTH):
        assert moved(net, {"tokens": ids}, {"tokens": changed(ids, position)}).all()


@pytest.mark.parametrize(("causal", "source"), [(True, SOURCES[1]), (True, SOURCES[2]), (False, SOURCES[1])])
def test_all_positions_see_each_source_token(causal: bool, source: Source) -> None:
    net, ids = transformer(causal=causal, source=source), tokens()
    start = given(net)["source"]
    for position in range(start.shape[1]):
        other = changed(start, position, SOURCE_CODES)
        assert moved(net, {"tokens": ids, "source": start}, {"tokens": ids, "source": other}).all()


@pytest.mark.parametrize("causal", [True, False])
def test_the_label_is_seen_everywhere(causal: bool) -> None:
    net, ids = transformer(causal=causal, classes=3), tokens()
    label = torch.tensor([0, 1])
    assert moved(net, {"tokens": ids, "label": label}, {"tokens": ids, "label": label + 1}).all()


def plain_causal(net: TokenTransformer, ids: Tensor, source: Tensor | None) -> Tensor:
    """The class's docstring, written out for one image, with an attention spelled out: (L, codes)."""
    sources = net.source_window or (0, 0)
    before = sources[0] * sources[1]
    inputs = []
    for place in range(before):
        assert source is not None
        row, column = divmod(place, sources[1])
        inputs.append(
            net.source.weight[source[place]] + net.source_places.rows[row] + net.source_places.columns[column]
        )
    for place in range(len(ids)):
        row, column = divmod(place, GRID[1])
        last = net.tokens.weight[ids[place - 1]] if place else net.start.weight[0]
        inputs.append(last + net.places.rows[row] + net.places.columns[column])
        if source is not None and net.aligned:
            inputs[-1] = inputs[-1] + net.source.weight[source[place]]
    x = torch.stack(inputs)
    for block in net.blocks:
        query, key, value = F.linear(block.norm1(x), block.qkv.weight, block.qkv.bias).split(32, 1)
        heads = []
        for head in (slice(0, 16), slice(16, 32)):
            score = query[:, head] @ key[:, head].T / 4  # sqrt(16)
            for i in range(len(x)):
                for j in range(len(x)):
                    if j > i and j >= before:
                        score[i, j] = float("-inf")
            heads.append(score.softmax(1) @ value[:, head])
        x = x + block.output(torch.cat(heads, 1))
        x = x + block.narrow(F.gelu(block.widen(block.norm2(x))))
    return net.norm(x[before:]) @ net.head.weight.T


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
@torch.no_grad()
def test_causal_equals_a_loop_over_inputs(source: Source) -> None:
    net, ids = transformer(causal=True, source=source), tokens()
    condition = given(net)
    got = net(ids, **condition)
    for n in range(2):
        expected = plain_causal(net, ids[n], condition["source"][n] if source else None)
        torch.testing.assert_close(got[n], expected, atol=1e-5, rtol=1e-5)  # float32, sums of 128 at most


@torch.no_grad()
def test_masked_adds_the_aligned_source_at_its_position() -> None:
    # The same as a transformer without a source whose tokens are pairs, with a table of all sums.
    net, ids = transformer(causal=False, source=(SOURCE_CODES, GRID)), tokens(codes=CODES + 1)
    plain, source = transformer(causal=False), given(net)["source"]
    plain.load_state_dict(net.state_dict(), strict=False)
    table = net.tokens.weight[:, None] + net.source.weight[None]
    plain.tokens = nn.Embedding.from_pretrained(table.flatten(0, 1))
    torch.testing.assert_close(net(ids, source), plain(SOURCE_CODES * ids + source), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
@torch.no_grad()
def test_cached_logits_equal_those_of_one_pass(source: Source, classes: int) -> None:
    net, ids = transformer(causal=True, classes=classes, source=source), tokens()
    condition = given(net)
    expected = net(ids, **condition)
    cache, logits = net.begin(2, **condition)
    found = [logits]
    storage = cache.append(0, torch.empty(2, 2, 2, 0, 16)).data_ptr()
    for position in range(LENGTH - 1):
        found.append(net.extend(cache, ids[:, position]))
    assert cache.append(0, torch.empty(2, 2, 2, 0, 16)).data_ptr() == storage  # never allocated again
    # The same products in another order: rounding errors of float32 in logits of a few units.
    torch.testing.assert_close(torch.stack(found, 1), expected, atol=2e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="grid is full"):
        net.extend(cache, ids[:, -1])


@torch.no_grad()
def test_a_cache_may_begin_with_tokens() -> None:
    net, ids = transformer(causal=True, source=(SOURCE_CODES, GRID)), tokens()
    condition = given(net)
    expected = net(ids, **condition)
    cache, logits = net.begin(2, **condition, given=ids[:, :9])
    torch.testing.assert_close(logits, expected[:, 9], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(net.extend(cache, ids[:, 9]), expected[:, 10], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_smaller_grid_is_the_top_left_of_the_window() -> None:
    net, ids = transformer(causal=False), tokens(length=6)
    small = transformer(causal=False)
    small.window = (2, 3)
    small.places.rows = nn.Parameter(net.places.rows[:2])
    small.places.columns = nn.Parameter(net.places.columns[:3])
    assert torch.equal(net(ids, grid=(2, 3)), small(ids))
    assert not torch.allclose(net(ids, grid=(2, 3)), net(ids, grid=(3, 2)))


@torch.no_grad()
def test_fewer_tokens_are_the_first_ones() -> None:
    net, ids = transformer(causal=True), tokens()
    torch.testing.assert_close(net(ids[:, :5]), net(ids)[:, :5], atol=1e-5, rtol=1e-5)


def test_a_new_one_is_drawn_small() -> None:
    torch.manual_seed(0)
    net = TokenTransformerSettings(layers=2, heads=4, width=128).build(64, (8, 8), causal=True, source=(64, (8, 8)))
    assert net.head.bias is None
    for name, parameter in net.named_parameters():
        if "norm" in name:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.numel() >= 1024:  # of n numbers the deviation is known to 1 / sqrt(2 n): 2.2 %, four times
            assert abs(parameter.std().item() / 0.02 - 1) < 0.09, name
    blocks = 2 * 12 * 128**2
    assert sum(p.numel() for p in net.blocks.parameters() if p.dim() > 1) == blocks


def test_the_logits_are_float32_under_autocast() -> None:
    net = transformer(causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        cache, first = net.begin(2)
        assert net(tokens()).dtype == first.dtype == net.extend(cache, tokens()[:, 0]).dtype == torch.float32


@pytest.mark.parametrize("causal", [True, False])
def test_weights_can_be_assigned_to_one_without_memory(causal: bool) -> None:
    net = transformer(causal=causal, classes=3, source=(SOURCE_CODES, GRID))
    with torch.device("meta"):
        empty = SMALL.build(CODES, GRID, causal=causal, classes=3, source=(SOURCE_CODES, GRID)).eval()
    empty.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(empty(tokens(), **given(net)), net(tokens(), **given(net)))


def test_every_weight_has_a_gradient() -> None:
    for causal, source in ((True, SOURCES[1]), (True, SOURCES[2]), (False, SOURCES[1])):
        net = transformer(causal=causal, classes=2, source=source)
        F.cross_entropy(net(tokens(), **given(net)).flatten(0, 1), tokens().flatten()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_dropout_is_in_training_alone() -> None:
    settings = TokenTransformerSettings(layers=1, heads=1, width=32, dropout=0.5)
    net, ids = settings.build(CODES, GRID, causal=True), tokens()
    assert not torch.equal(net(ids), net(ids))
    assert torch.equal(net.eval()(ids), net(ids))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UserError, match="masked decoding needs aligned grids"):
        SMALL.build(CODES, GRID, causal=False, source=(7, (4, 5)))
    with pytest.raises(ValidationError, match="not divisible by heads 3"):
        TokenTransformerSettings(width=32, heads=3)
    net = transformer(causal=True)
    with pytest.raises(ValueError, match="no source"):
        net(tokens(), source=tokens())
    with pytest.raises(ValueError, match="no classes"):
        net(tokens(), label=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected a label"):
        transformer(causal=True, classes=2)(tokens())
    with pytest.raises(ValueError, match="expected 4x4 source tokens, not 15"):
        transformer(causal=True, source=(7, GRID))(tokens(), source=tokens(length=15, codes=7))
    with pytest.raises(ValueError, match="window has 4x4"):
        net(tokens(), grid=(5, 4))
    with pytest.raises(ValueError, match="expected 16 tokens"):
        transformer(causal=False)(tokens(length=15))
    with pytest.raises(ValueError, match="no order"):
        transformer(causal=False).begin(2)
