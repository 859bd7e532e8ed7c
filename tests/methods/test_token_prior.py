"""The prior over tokens: what it learns, what its samples depend on, and that sampling commands take it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from translate import config as configs
from translate.errors import UserError
from translate.inference.sampler import SampleOptions, Sampler, check
from translate.losses.lpips import LPIPSSettings
from translate.methods.base import Turn
from translate.methods.token_modelling import bits_per_token, drawn_mask, token_loss
from translate.methods.token_prior import TokenPrior
from translate.networks.patch import PatchSettings
from translate.networks.tokenizer import tokens_of
from translate.run import write_weights

torch.set_num_threads(1)

TOKENIZER: dict[str, Any] = {
    "tokenizer": {
        "network": {"kind": "convolutional", "width": 8, "multipliers": [1, 2], "blocks": 1, "latent": 8},
        "quantiser": {"kind": "codebook", "size": 16, "width": 4, "normalise": True},
    },
    "discriminator": None,
    "lpips": None,
}


def config(**method: Any) -> configs.Config:
    raw = {
        "method": {
            "kind": "token-prior",
            "tokenizer": TOKENIZER,
            "transformer": {"layers": 1, "heads": 2, "width": 16},
            **method,
        },
        "data": {
            "kind": "folder",
            "classes": ["cat", "dog"] if method.get("conditioning") else None,
            "augment": {"resize": None, "crop": 8},
        },
        "training": {"stages": [{"length": "1 steps", "optimiser": {"lr": 1e-3}}]},
    }
    return configs.validate(raw, "test")


def built(**method: Any) -> TokenPrior:
    torch.manual_seed(0)
    made = config(**method)
    prior = made.method.build(made.data)
    assert isinstance(prior, TokenPrior)
    with torch.no_grad():  # a new transformer is nearly indifferent: make it mean something
        for parameter in prior.transformer.parameters():
            parameter.mul_(4)
    return prior.eval()


@pytest.mark.parametrize("decoding", ["causal", "masked"])
def test_learns_the_tokens_that_its_tokenizer_makes(decoding: str) -> None:
    prior = built(decoding=decoding)
    batch = {"image": torch.rand(3, 3, 8, 8) * 2 - 1}
    turn = Turn("transformer")
    shared = prior.shared(batch, {"transformer"})
    assert torch.equal(shared["target"], tokens_of(prior.tokenizer, batch["image"]))

    torch.manual_seed(5)
    found = prior.losses(turn, batch, shared)["tokens"]
    torch.manual_seed(5)
    flat = shared["target"].flatten(1)
    counted = torch.ones_like(flat, dtype=torch.bool)
    given = flat
    if decoding == "masked":
        counted = drawn_mask(flat)
        given = torch.where(counted, prior.transformer.mask_index, flat)
    with torch.no_grad():
        logits = prior.transformer(given)
    chosen = logits.double().log_softmax(-1).gather(-1, flat[..., None])[..., 0]
    assert found.item() == pytest.approx(-chosen[counted].mean().item(), rel=1e-5)  # float32 against float64


def test_label_smoothing_shares_the_probability_out() -> None:
    prior = built()
    tokens = torch.randint(16, (2, 4, 4))
    with torch.no_grad():
        found, _ = token_loss(prior.transformer, tokens, smoothing=0.2)
        log_p = prior.transformer(tokens.flatten(1)).double().log_softmax(-1)
    hard = -log_p.gather(-1, tokens.flatten(1)[..., None]).mean()
    assert found.item() == pytest.approx((0.8 * hard - 0.2 * log_p.mean()).item(), rel=1e-5)


def test_share_that_is_masked_follows_the_cosine() -> None:
    torch.manual_seed(0)
    share = drawn_mask(torch.zeros(4000, 64, dtype=torch.int64)).float().mean(1)
    assert share.min() >= 1 / 64  # never nothing
    # E cos(pi r / 2) = 2 / pi, and rounding up adds half a place of 64; four deviations of .308 / sqrt(4000).
    assert share.mean().item() == pytest.approx(2 / math.pi + 0.5 / 64, abs=0.02)


def test_sample_depends_on_its_own_seed_and_class_alone() -> None:
    prior = built(conditioning=True)
    latent = prior.draw(4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(latent, latent.round()) and latent.min() >= 0 and latent.max() < 65536
    labels = torch.tensor([0, 1, 0, 1])
    together = prior.generate(latent, labels)
    assert together.shape == (4, 3, 8, 8)
    for row in range(4):
        alone = prior.generate(latent[row : row + 1], labels[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)  # float32 in another batch
    assert not torch.equal(prior.generate(latent, 1 - labels), together)
    assert not torch.equal(together[0], together[2])


def test_samples_larger_than_the_window() -> None:
    prior = built()
    prior.shape = (3, 12, 20)  # 6x10 tokens, and the window has 4x4
    made = prior.generate(prior.draw(1, generator=torch.Generator().manual_seed(0)))
    assert made.shape == (1, 3, 12, 20) and made.isfinite().all()


def test_what_it_cannot_do_is_said_in_a_line() -> None:
    prior = built()
    with pytest.raises(UserError, match="truncation"):
        prior.draw(1, truncation=0.5)
    with pytest.raises(UserError, match="nothing"):
        prior.interpolate(torch.zeros(2), torch.ones(2), torch.zeros(1))
    paired = config().model_dump(mode="json")
    paired["data"] = {"kind": "paired", "augment": {"crop": 8}}
    wrong = configs.validate(paired, "test")
    with pytest.raises(UserError, match=r"data\.kind must be .folder."):
        wrong.method.build(wrong.data)
    classless = config().model_dump(mode="json")
    classless["method"]["conditioning"] = True
    wrong = configs.validate(classless, "test")
    with pytest.raises(UserError, match="no classes"):
        wrong.method.build(wrong.data)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    made = config(conditioning=True)
    prior = built(conditioning=True)
    path = tmp_path / "prior.safetensors"
    write_weights(path, made, prior.exported(), 3, 12)
    return path


def test_sampling_command_s_side(weights: Path, tmp_path: Path) -> None:
    sampler = Sampler.load(weights, device="cpu")
    first = sampler.sample(4, seed=2)
    assert first.shape == (4, 8, 8, 3) and first.dtype == np.uint8
    assert np.array_equal(first[:2], sampler.sample(2, seed=2))  # number i of a seed stays what it is
    assert not np.array_equal(first, sampler.sample(4, seed=3))
    direct = built(conditioning=True)
    assert np.array_equal(Sampler(direct, device="cpu").sample(4, seed=2), first)  # what the file holds is all of it

    greedy = Sampler.load(weights, device="cpu", sampling={"temperature": 0.0}, size=(6, 10))
    shown = greedy.sample(4)
    assert shown.shape == (4, 6, 10, 3)
    assert np.array_equal(shown[0], shown[2])  # of one class: nothing is drawn, so nothing differs
    for options in (SampleOptions(interpolate=3), SampleOptions(arithmetic="0-1+2")):
        with pytest.raises(UserError, match="tokens"):
            check(sampler, tmp_path / "out", options)
    with pytest.raises(UserError, match="fp32"):
        Sampler.load(weights, device="cpu", precision="bf16")


def test_masked_places_alone_are_predicted() -> None:
    """Known tokens are given: the loss of a masked model does not look at what it says of them."""
    prior = built(decoding="masked")
    tokens = torch.randint(16, (1, 4, 4))
    torch.manual_seed(3)
    mask = drawn_mask(tokens.flatten(1))
    torch.manual_seed(3)
    with torch.no_grad():
        loss, right = token_loss(prior.transformer, tokens)
        logits = prior.transformer(torch.where(mask, 16, tokens.flatten(1)))
    assert loss.item() == pytest.approx(F.cross_entropy(logits[mask], tokens.flatten(1)[mask]).item(), rel=1e-5)
    hits = (logits.argmax(-1) == tokens.flatten(1))[mask].float().mean()
    assert right.item() == pytest.approx(hits.item())


@pytest.mark.parametrize("decoding", ["causal", "masked"])
def test_samples_are_drawn_where_sets_are_measured_and_bits_always(
    decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits by hand: float64's mean of -log2 p over all tokens, or over those that the others must tell of."""
    prior = built(decoding=decoding, conditioning=True, sampling={"steps": 2})
    drawn: list[int] = []
    plain = prior.generate
    monkeypatch.setattr(prior, "generate", lambda latent, label: drawn.append(len(latent)) or plain(latent, label))
    batch = {"image": torch.rand(3, 3, 8, 8) * 2 - 1, "label": torch.tensor([0, 1, 0])}
    prior.compared = ["", "reconstruction"]
    first = prior.comparisons(batch, torch.Generator())
    assert list(first) == ["reconstruction"] and not first["reconstruction"].beside and not drawn

    prior.moved(Turn("transformer"))
    tokens = tokens_of(prior.tokenizer, batch["image"]).flatten(1)
    hidden = torch.tensor([decoding == "causal" or (k // 4 + k % 4) % 2 == 0 for k in range(16)])
    given = tokens if decoding == "causal" else tokens.masked_fill(hidden, prior.transformer.mask_index)
    with torch.no_grad():
        p = prior.transformer(given, None, batch["label"]).double().softmax(2)
    bits = -p.gather(2, tokens[..., None])[..., 0].log2()[:, hidden].mean(1)
    for prior.compared in (["reconstruction"], [], ["", "reconstruction"]):
        found = prior.comparisons(batch, torch.Generator().manual_seed(0))
        assert drawn == ([3] if "" in prior.compared else [])
        assert list(found) == [*([""] if drawn else []), "reconstruction"]
        torch.testing.assert_close(found["reconstruction"].beside["bits per token"].double(), bits, rtol=1e-5, atol=0)
        assert not found["reconstruction"].chooses
    assert found[""].output.shape == (3, 3, 8, 8) and found[""].chooses
    other = bits_per_token(prior.transformer, tokens.view(3, 4, 4), label=1 - batch["label"])
    assert (other.double() - bits).abs().min() > 1e-4  # the class counts


def test_beside_a_trained_tokenizer_nothing_stands_that_only_trains_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(LPIPSSettings, "build", refuse)
    monkeypatch.setattr(PatchSettings, "build", refuse)
    tokenizer = {**TOKENIZER, "discriminator": {"kind": "patch", "layers": 1, "width": 4}, "lpips": {}}
    with pytest.raises(AssertionError):
        built(tokenizer=tokenizer)
    prior = built(tokenizer=tokenizer, trained="x")
    assert list(prior.players) == ["tokenizer", "transformer"] and prior.untrained == ("transformer",)
    assert prior.tokenising.lpips is None and prior.turns(0) == (Turn("transformer"),)


def test_steps_are_of_masked_decoding(weights: Path) -> None:
    with pytest.raises(UserError, match=r"^steps: this model draws token after token"):
        Sampler.load(weights, device="cpu", sampling={"steps": 3})
