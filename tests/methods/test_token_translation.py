"""Token translation: its losses by hand, who learns from what, and what it makes and measures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from translate.data import FolderSettings, PairedSettings
from translate.data.transforms import AugmentSettings
from translate.errors import UserError
from translate.losses.lpips import LPIPSSettings
from translate.methods.base import Turn
from translate.methods.token_modelling import bits_per_token, drawn_mask, grid_of, token_loss
from translate.methods.token_translation import TokenTranslation, TokenTranslationSettings, uncertainty_image
from translate.networks.patch import PatchSettings
from translate.networks.token_transformer import TokenTransformer, TokenTransformerSettings
from translate.networks.tokenizer import tokens_of

torch.set_num_threads(1)

NETWORK = {"kind": "convolutional", "width": 4, "multipliers": [1, 2], "blocks": 1, "latent": 4, "attention": []}
TOKENISING: dict[str, Any] = {
    "tokenizer": {"network": NETWORK, "quantiser": {"kind": "codebook", "size": 16}},
    "discriminator": {"kind": "patch", "layers": 1, "width": 4, "norm": "instance"},
    "lpips": None,
}
TRANSFORMER = {"layers": 1, "heads": 2, "width": 8}
CODER, CRITIC, MODEL = Turn("tokenizer"), Turn("discriminator"), Turn("transformer")


def make(data: dict[str, Any] | None = None, **settings: Any) -> TokenTranslation:
    raw = {"tokenizer": TOKENISING, "transformer": TRANSFORMER, **settings}
    sides = {"root": "x", "augment": {"resize": None, "crop": 16}, **(data or {})}
    torch.manual_seed(0)
    return TokenTranslationSettings.model_validate(raw).build(PairedSettings.model_validate(sides))


def batch_of(count: int = 2, side: int = 16, b_channels: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randint(256, (count, channels, side, side), generator=generator) / 127.5 - 1
        for name, channels in (("A", 3), ("B", b_channels))
    }


def transformer_of(*, causal: bool, codes: int = 11, spread: float = 1.0) -> TokenTransformer:
    """Over 4x5 tokens given as many of a codebook of 7; with weights that make its guesses differ."""
    torch.manual_seed(2)
    settings = TokenTransformerSettings.model_validate(TRANSFORMER)
    built = settings.build(codes, (4, 5), causal=causal, source=(7, (4, 5)))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(spread * 0.3 * torch.randn_like(parameter))
    return built.eval()


def tokens_and_source(count: int = 3, codes: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (torch.randint(codes, (count, 4, 5), generator=generator),
            torch.randint(7, (count, 4, 5), generator=generator))  # fmt: skip


# ---- the losses, by hand ---------------------------------------------------------------------------------------------


def test_the_masked_loss_counts_masked_places_alone() -> None:
    """-log p of each masked token, one after another in float64, from the logits that the transformer gave."""
    model, (tokens, source) = transformer_of(causal=False), tokens_and_source(8)
    seen: list[tuple[Tensor, Tensor]] = []
    model.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output.detach().double())))
    for smoothing in (0.0, 0.1):
        torch.manual_seed(4)
        loss, right = token_loss(model, tokens, source, smoothing=smoothing)
        given, logits = seen.pop()
        costs, hits = [], []
        for row in range(8):
            for place in range(20):
                token = int(tokens[row].flatten()[place])
                if given[row, place] != 11:
                    assert given[row, place] == token  # what is not masked is shown as it is
                    continue
                p = logits[row, place].exp() / logits[row, place].exp().sum()
                costs.append(-(1 - smoothing) * math.log(p[token]) - smoothing * p.log().mean().item())
                hits.append(int(p.argmax()) == token)
        assert 8 <= len(costs) < 160
        assert loss.item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)
        assert right.item() == pytest.approx(sum(hits) / len(hits))
        assert loss.dtype == torch.float32 and not right.requires_grad
    # What stands at the unmasked places of the targets' logits changes nothing: it gets no gradient.
    torch.manual_seed(4)
    logits = torch.zeros(8, 20, 11, requires_grad=True)
    model.forward = lambda given, *_: seen.append((given, given)) or logits  # type: ignore[assignment]
    token_loss(model, tokens, source)[0].backward()
    touched = logits.grad.abs().sum(2) > 0
    assert torch.equal(touched, seen[-1][0] == 11)


def test_the_causal_loss_is_each_token_s_given_those_before_it() -> None:
    """Position by position, each from a pass that does not see what comes behind it."""
    model, (tokens, source) = transformer_of(causal=True), tokens_and_source()
    loss, right = token_loss(model, tokens, source)
    flat, costs, hits = tokens.flatten(1), [], []
    for place in range(20):
        known = flat.clone()[:, : place + 1]
        known[:, place] = 0
        logits = model(known, source.flatten(1), None, (4, 5))[:, place].detach().double()
        logs = logits - logits.exp().sum(1, keepdim=True).log()
        costs += [-logs[row, flat[row, place]].item() for row in range(3)]
        hits += (logits.argmax(1) == flat[:, place]).tolist()
    assert loss.item() == pytest.approx(sum(costs) / 60, rel=1e-5)
    assert right.item() == pytest.approx(sum(hits) / 60)


@pytest.mark.parametrize("causal", [True, False])
def test_bits_per_token_are_counted_by_hand(causal: bool) -> None:
    """-log2 p of each token given the ones before it, or of every second given the others, in float64."""
    model, (tokens, source) = transformer_of(causal=causal), tokens_and_source()
    found = bits_per_token(model, tokens, source)
    hidden = torch.tensor([[causal or (row + column) % 2 == 0 for column in range(5)] for row in range(4)]).flatten()
    flat = tokens.flatten(1)
    given = flat if causal else flat.masked_fill(hidden, 11)
    p = model(given, source.flatten(1), None, (4, 5)).detach().double().softmax(2)
    for row in range(3):
        bits = [-math.log2(p[row, place, flat[row, place]]) for place in range(20) if hidden[place]]
        assert len(bits) == (20 if causal else 10)
        assert found[row].item() == pytest.approx(sum(bits) / len(bits), rel=1e-5)
    assert found.dtype == torch.float32 and not found.requires_grad


def test_the_mask_has_a_cosine_s_share_of_each_row() -> None:
    """ceil(cos(pi r / 2) L), r uniform: between 1 and L, 2 / pi of all on average, no place before another. Over 4,000
    rows of 20 the mean's deviation is 0.31 / 63 and a place's is 0.48 / 63; four of them are allowed."""
    torch.manual_seed(0)
    masked = drawn_mask(torch.zeros(4000, 20, dtype=torch.int64))
    counts = masked.sum(1)
    assert counts.min() == 1 and counts.max() == 20
    torch.manual_seed(0)
    share = (torch.rand(4000, dtype=torch.float32).double() * math.pi / 2).cos()
    assert torch.equal(counts, (share * 20).ceil().long())
    mean = sum(math.acos(k / 20) for k in range(20)) * 2 / math.pi / 20  # of the ceil: sum of P(count > k)
    assert masked.double().mean().item() == pytest.approx(mean, abs=4 * 0.31 / 63)
    assert (masked.double().mean(0) - mean).abs().max() < 4 * 0.48 / 63


# ---- who learns from what --------------------------------------------------------------------------------------------


def test_the_transformer_learns_the_target_s_tokens_given_the_source_s() -> None:
    for direction, (source, target) in {"AtoB": "AB", "BtoA": "BA"}.items():
        method, batch = make({"direction": direction}, tokenizers="two"), batch_of()
        assert method.directions == (direction,)
        shared = method.shared(batch, {"transformer"})
        assert torch.equal(shared["source"], tokens_of(method.tokenizer(source), batch[source]))
        assert torch.equal(shared["target"], tokens_of(method.tokenizer(target), batch[target]))
        assert set(shared) == {"source", "target"}
        terms = method.losses(MODEL, batch, shared)
        wanted = token_loss(method.transformer, shared["target"], shared["source"])[0]
        assert list(terms) == ["tokens"] and terms["tokens"].item() == wanted.item()
        terms["tokens"].backward()
        assert all(p.grad is None for p in method.players["tokenizer"].parameters())
        assert method.transformer.source.weight.grad.norm() > 0
        method.weights["tokens"] = 0.0
        assert method.losses(MODEL, batch, shared) == {}


def test_tokens_are_the_same_in_training_and_under_autocast() -> None:
    method, batch = make(), batch_of()
    wanted = method.eval().tokenizer("A").encode(batch["A"]).indices
    method.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.shared(batch, {"transformer"})["source"], wanted)
    assert method.tokenizer("A").training and method.tokenizer("A").quantiser.training


def test_a_shared_tokenizer_learns_from_both_sides_and_two_from_one_each() -> None:
    batch = batch_of()
    shared = make()
    assert list(shared.weights) == ["tokens", "reconstruction", "quantiser", "discriminator", "adversarial"]
    assert shared.tokenizer("A") is shared.tokenizer("B")
    found = shared.shared(batch, {"tokenizer", "discriminator"})
    both = torch.cat([batch["A"], batch["B"]])
    torch.testing.assert_close(found["raw"], shared.tokenizer("A")(both))
    terms = shared.losses(CODER, batch, found)
    assert set(terms) == {"reconstruction", "quantiser", "adversarial"}
    assert terms["reconstruction"].item() == pytest.approx((found["raw"] - both).abs().mean().item(), rel=1e-5)
    assert set(shared.losses(CRITIC, batch, found)) == {"discriminator"}

    two = make(tokenizers="two", tokenizer_B={**TOKENISING, "adversarial_weight": 0.1})
    assert two.weights["adversarial_A"] == 0.8 and two.weights["adversarial_B"] == 0.1
    found = two.shared(batch, {"tokenizer", "discriminator"})
    terms = two.losses(CODER, batch, found) | two.losses(CRITIC, batch, found)
    names = ("reconstruction", "quantiser", "adversarial", "discriminator")
    assert set(terms) == {f"{name}_{side}" for name in names for side in "AB"}
    for side in "AB":
        made = two.tokenizer(side)(batch[side])
        wanted = (made - batch[side]).abs().mean().item()
        assert terms[f"reconstruction_{side}"].item() == pytest.approx(wanted, rel=1e-5)
    assert {"adaptive weight_A", "adaptive weight_B", "D_A(real)", "D_B(fake)"} <= set(two.take_reports())
    assert two.turns(0) == (CODER, CRITIC, MODEL)
    two.moved(CODER)
    assert set(two.summary().numbers) == {
        f"codebook_{side}/{name}" for side in "AB" for name in ("codes-used", "perplexity", "tokens for each code")
    }


def test_a_look_at_all_batches_counts_for_no_code() -> None:
    """Also not where just one of two tokenizers listens to its discriminator: the other is looked at beside it."""
    average = {"network": NETWORK, "quantiser": {"kind": "codebook", "size": 16, "update": "average"}}
    method, batch = make(tokenizers="two", tokenizer={**TOKENISING, "tokenizer": average}), batch_of()
    method.weights["adversarial_A"] = 0.0
    assert method.surveys(CODER) and not method.surveys(CRITIC) and not method.surveys(MODEL)
    before = {side: method.tokenizer(side).quantiser.counts.clone() for side in "AB"}
    method.survey(CODER, batch, method.shared(batch, {"tokenizer"}))
    method.losses(CODER, batch, method.shared(batch, {"tokenizer"}))
    method.moved(CODER)
    for side in "AB":
        counted = (method.tokenizer(side).quantiser.counts - 0.99 * before[side]) * 100
        assert counted.sum().item() == pytest.approx(2 * 8 * 8, rel=1e-3), side


def test_each_of_two_tokenizers_has_its_own_game() -> None:
    """One without a discriminator beside one that has; one penalty in two rhythms."""
    batch = batch_of()
    method = make(tokenizers="two", tokenizer_B={**TOKENISING, "discriminator": None})
    method.check(batch)
    found = method.shared(batch, {"tokenizer", "discriminator"})
    assert set(method.losses(CRITIC, batch, found)) == {"discriminator_A"}
    names = {"reconstruction_A", "quantiser_A", "adversarial_A", "reconstruction_B", "quantiser_B"}
    assert set(method.losses(CODER, batch, found)) == names
    method.survey(CODER, batch, method.shared(batch, {"tokenizer"}))

    often, seldom = ({**TOKENISING, "penalties": [{"kind": "r1", "every": every}]} for every in (1, 2))
    method = make(tokenizers="two", tokenizer=seldom, tokenizer_B=often)
    assert method.weights["r1_A"] == 2 * method.weights["r1_B"]
    for step, wanted in enumerate([{"r1_A", "r1_B"}, {"r1_B"}]):
        terms = method.losses(method.turns(step)[1], batch, found)
        assert set(terms) == {"discriminator_A", "discriminator_B"} | wanted


# ---- what it makes and measures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", ["causal", "masked"])
def test_reconstructions_choose_nothing_and_translations_do(decoding: str) -> None:
    method, batch = make(decoding=decoding, sampling={"steps": 3}).eval(), batch_of()
    (name, found), *rest = method.comparisons(batch, torch.Generator().manual_seed(0)).items()
    assert (name, rest, found.chooses) == ("reconstruction", [], False)
    assert torch.equal(found.output, method.tokenizer("B")(batch["B"])) and torch.equal(found.target, batch["B"])
    assert list(method.previews(batch)) == ["input", "input reconstructed", "target reconstructed", "target"]

    method.moved(CODER)
    assert "" not in method.comparisons(batch, torch.Generator())
    method.moved(MODEL)
    (name, found), *rest = method.comparisons(batch, torch.Generator().manual_seed(0)).items()
    assert (name, rest, found.chooses) == ("", [], True)
    seeds = torch.randint(2**31, (2,), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = method.translator("AtoB").draws(batch["A"], seeds)
    assert torch.equal(found.output, drawn.images)
    source, target = (tokens_of(method.tokenizer(side), batch[side]) for side in "AB")
    assert list(found.beside) == ["bits per token"]
    assert torch.equal(found.beside["bits per token"], bits_per_token(method.transformer, target, source))
    pictures = method.previews(batch)
    assert list(pictures) == ["input", "output", "uncertainty", "target reconstructed", "target"]
    assert all(picture.shape == (2, 3, 16, 16) for picture in pictures.values())


def test_what_is_drawn_is_decoded_from_codes_of_the_target() -> None:
    """Of two tokenizers: B's codebook makes the picture, whatever A's is."""
    small = {**TOKENISING, "tokenizer": {"network": NETWORK, "quantiser": {"kind": "codebook", "size": 4}}}
    method, batch = make(tokenizers="two", tokenizer_B=small).eval(), batch_of()
    translator = method.translator("AtoB")
    drawn = translator.draws(batch["A"], [1, 2])
    again = method.tokenizer("B").encode(batch["B"]).indices
    assert translator.most_uncertain == 2 and drawn.uncertainty.max() <= 2
    assert drawn.images.shape == (2, 3, 16, 16) and again.max() < 4
    lone = [translator.draws(batch["A"][k : k + 1], [seed]).images for k, seed in enumerate((1, 2))]
    torch.testing.assert_close(torch.cat(lone), drawn.images, rtol=0, atol=1e-5)


def test_doubt_is_black_to_white() -> None:
    bits = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    shown = uncertainty_image(bits, (4, 4))
    assert shown.shape == (1, 3, 4, 4)
    torch.testing.assert_close(shown[0, 2, ::2, ::2], torch.tensor([[-1.0, -0.5], [0.0, 1.0]]))
    assert torch.equal(shown[..., 0::2, 0::2], shown[..., 1::2, 1::2])
    assert (uncertainty_image(torch.zeros(1, 2, 2), (2, 2)) == -1).all()


def test_the_average_is_the_transformer_s_and_the_file_holds_both() -> None:
    method = make()
    assert list(method.averaged()) == ["transformer"] and list(method.exported()) == ["tokenizer", "transformer"]
    assert method.untrained == ("tokenizer", "transformer")
    settings = TokenTranslationSettings.model_validate({"tokenizer": TOKENISING, "transformer": TRANSFORMER})
    data = PairedSettings.model_validate({"root": "x", "augment": {"resize": None, "crop": 16}})
    built = settings.build(data, inference=True)
    assert list(built.players) == ["tokenizer", "transformer"]


def test_beside_a_trained_tokenizer_nothing_stands_that_only_trains_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(LPIPSSettings, "build", refuse)
    monkeypatch.setattr(PatchSettings, "build", refuse)
    tokenizer = {**TOKENISING, "lpips": {}}
    with pytest.raises(AssertionError):
        make(tokenizer=tokenizer)
    for settings in ({"trained": "x"}, {"tokenizers": "two", "trained": "x", "trained_B": "y"}):
        method = make(tokenizer=tokenizer, **settings)
        assert list(method.players) == ["tokenizer", "transformer"] and method.untrained == ("transformer",)
        assert method.turns(0) == (MODEL,)
        assert all(part.lpips is None for part in method.parts.values())
        batch = batch_of()
        assert set(method.losses(MODEL, batch, method.shared(batch, {"transformer"}))) == {"tokens"}


def test_a_name_means_the_terms_of_both_sides() -> None:
    two, shared = make(tokenizers="two", tokenizer_B={**TOKENISING, "discriminator": None}), make()
    assert two.terms("quantiser") == ("quantiser_A", "quantiser_B")
    assert two.terms("adversarial") == ("adversarial_A",)  # B has no discriminator
    assert two.terms("quantiser_B") == ("quantiser_B",) and two.terms("tokens") == ("tokens",)
    assert shared.terms("quantiser") == ("quantiser",)
    assert shared.terms("quantiser_A") == two.terms("quant") == two.terms("") == two.terms("quantiser_C") == ()


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokenizer_B": TOKENISING}, "'tokenizer_B' is for 'tokenizers: two'; with a shared one leave it out"),
        ({"trained_B": "x"}, "'trained_B' is for 'tokenizers: two'"),
        ({"tokenizers": "two", "trained": "x"}, "'trained' and 'trained_B' belong together"),
        ({"tokenizers": "two", "trained_B": "x"}, "'trained' and 'trained_B' belong together"),
    ],
)
def test_settings_that_contradict_each_other_are_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TokenTranslationSettings.model_validate(settings)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match=r"learns from pairs: data\.kind must be 'paired', not 'folder'"):
        TokenTranslationSettings().build(FolderSettings(root="x"))
    labels = {"kind": "labels", "classes": 3}
    for side, said in ((labels, "labels, 3 channels"), ({"channels": 1}, "image, 1 channels")):
        with pytest.raises(UserError, match=rf"^method\.tokenizers: one cannot serve A \({said}\) and B \(image, 3"):
            make({"A": side})
    assert make({"B": {"channels": 1}}, tokenizers="two").transformer.aligned
    coarse = {**TOKENISING, "tokenizer": {"network": {**NETWORK, "multipliers": [1, 1, 1]}}}
    with pytest.raises(
        UserError, match="masked decoding needs aligned grids: the source has 8x8 tokens, the target 4x4"
    ):
        make(tokenizers="two", tokenizer_B=coarse, decoding="masked")
    assert make(tokenizers="two", tokenizer_B=coarse).translator("AtoB").multiple == 16  # the trained size alone
    with pytest.raises(
        UserError, match=r"^data\.augment\.crop: 18 pixels are no whole number of tokens of 4 pixels; set"
    ):
        grid_of(AugmentSettings(resize=None, crop=18), 4)
    with pytest.raises(UserError, match=r"^data\.augment\.crop: a transformer needs images of one size"):
        grid_of(AugmentSettings(resize=None, crop=None), 4)
    with pytest.raises(UserError, match="images of 15x15 do not fit the tokenizer of A, which takes multiples of 2"):
        make().check(batch_of(side=15))
