"""VQGAN's terms and the gradients of every weight against the algorithm written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from translate.data import FolderSettings, PairedSettings
from translate.errors import UserError
from translate.losses.logit_laplace import logit_laplace
from translate.methods.base import Turn
from translate.methods.vqgan import VQGAN, VQGANSettings

torch.set_num_threads(1)

NETWORK = {"kind": "convolutional", "width": 4, "multipliers": [1, 2], "blocks": 1, "latent": 4, "attention": []}
VIT = {"kind": "transformer", "patch": 4, "width": 8, "layers": 1, "heads": 2, "mlp": 16, "latent": 4}
PATCH = {"kind": "patch", "layers": 1, "width": 4, "norm": "instance"}
CODES = {"kind": "codebook", "size": 16}
MOVE, GAME = Turn("tokenizer"), Turn("discriminator")
BOTH = {"tokenizer", "discriminator"}


def make(
    network: dict[str, Any] = NETWORK,
    quantiser: dict[str, Any] = CODES,
    image: dict[str, Any] | None = None,
    **settings: Any,
) -> VQGAN:
    raw = {
        "tokenizer": {"network": network, "quantiser": quantiser},
        "discriminator": PATCH,
        "lpips": None,
        **settings,
    }
    data = {"root": "x", "image": image or {}, "augment": {"resize": None, "crop": 16}}
    torch.manual_seed(0)
    return VQGANSettings.model_validate(raw).build(FolderSettings.model_validate(data))


def images_of(count: int = 2, side: int = 16, channels: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, side, side), generator=generator) / 127.5 - 1


def total(method: VQGAN, terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([method.weights[name] * term for name, term in terms.items()]).sum()


# ---- the algorithm, written out --------------------------------------------------------------------------------------


def written_out(method: VQGAN, images: Tensor, *, adaptive: bool = True) -> tuple[dict[str, Tensor], Tensor, nn.Module]:
    """Equations 2, 4, 6 and 7 in float64: the terms, lambda (1 where it is not asked for) and the tokenizer that has
    one plain backward pass behind it."""
    tokenizer, critic = copy.deepcopy(method.tokenizer).double(), copy.deepcopy(method.discriminator).double()
    for parameter in critic.parameters():
        parameter.requires_grad_(False)
    x, quantiser = images.double(), tokenizer.quantiser
    z, codes = tokenizer.encoder(x), quantiser.codebook
    if isinstance(quantiser.project_in, nn.Conv2d):
        z = quantiser.project_in(z)
    if quantiser.settings.normalise:
        z, codes = F.normalize(z, dim=1), F.normalize(codes, dim=1)
    flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    tokens = torch.cdist(flat.detach(), codes.detach()).argmin(1)
    e = codes[tokens].reshape(len(x), *z.shape[2:], -1).permute(0, 3, 1, 2)
    losses = {"quantiser": 0.25 * (z - e.detach()).square().mean()}
    if quantiser.settings.update == "gradient":
        losses["quantiser"] = losses["quantiser"] + (z.detach() - e).square().mean()
    passed = z + (e - z).detach()
    if isinstance(quantiser.project_out, nn.Conv2d):
        passed = quantiser.project_out(passed)
    raw = tokenizer.decoder(passed)
    made = raw
    if tokenizer.spread:
        mean, log_scale = raw.chunk(2, 1)
        made = (torch.sigmoid(mean) - 0.5) / 0.4
        laplace = torch.distributions.Laplace(mean, log_scale.exp())
        squashed = torch.distributions.TransformedDistribution(laplace, [torch.distributions.SigmoidTransform()])
        losses["reconstruction"] = -squashed.log_prob(0.5 + 0.4 * x).mean()
    else:
        losses["reconstruction"] = (x - made).abs().mean()
    losses["adversarial"] = -critic(made).mean()

    def slope(name: str) -> Tensor:
        (found,) = torch.autograd.grad(losses[name], tokenizer.last_layer, retain_graph=True)
        return found.norm()

    weight = slope("reconstruction") / (slope("adversarial") + 1e-4) if adaptive else torch.ones(())
    losses["adversarial"] = weight * losses["adversarial"]
    (losses["reconstruction"] + losses["quantiser"] + 0.8 * losses["adversarial"]).backward()
    return losses, weight, tokenizer


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "factorised": {"quantiser": {**CODES, "width": 2, "normalise": True}},
    "moving average": {"quantiser": {**CODES, "update": "average"}},
    "not adaptive": {"adaptive": False},
    "logit-laplace": {"reconstruction": {"kind": "logit-laplace"}},
    "transformer": {"network": VIT},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_terms_and_every_gradient_are_the_paper_s(variant: str) -> None:
    """Float32 in several backward passes against float64 in one: each gradient to 1e-4 of its size, with room for
    those that are nothing but rounding (of what stands before a norm)."""
    settings = VARIANTS[variant]
    method, images = make(**settings), images_of()
    batch = {method.side: images}
    assert method.weights == {
        "reconstruction": 1.0, "quantiser": 1.0, "discriminator": 0.5, "adversarial": 0.8
    }  # fmt: skip
    for parameter in method.players["discriminator"].parameters():
        parameter.requires_grad_(False)  # as the trainer does in the tokenizer's turn
    shared = method.shared(batch, BOTH)
    terms = method.losses(MOVE, batch, shared)
    total(method, terms).backward()

    wanted, weight, tokenizer = written_out(method, images, adaptive=settings.get("adaptive", True))
    assert set(terms) == set(wanted)
    for name, term in terms.items():
        assert term.item() == pytest.approx(wanted[name].item(), rel=1e-4, abs=1e-6), name
        assert term.dtype == torch.float32 and term.ndim == 0
    reports = method.take_reports()
    assert ("adaptive weight" in reports) == settings.get("adaptive", True)
    assert reports.get("adaptive weight", torch.ones(())).item() == pytest.approx(weight.item(), rel=1e-4)
    for (name, ours), theirs in zip(method.tokenizer.named_parameters(), tokenizer.parameters(), strict=True):
        difference, size = (ours.grad - theirs.grad).norm().item(), theirs.grad.norm().item()
        assert difference <= 1e-4 * size + 1e-6, name
    assert sum(p.grad.norm() > 1e-4 for p in tokenizer.parameters()) > 10


def test_the_halved_hinge_moves_the_discriminator_alone() -> None:
    method, images = make(), images_of()
    batch = {method.side: images}
    shared = method.shared(batch, {"discriminator"})
    assert not shared["raw"].requires_grad
    terms = method.losses(GAME, batch, shared)
    total(method, terms).backward()
    critic = copy.deepcopy(method.discriminator).double()
    critic.zero_grad()
    made = method.tokenizer(images).detach().double()
    hinge = (F.relu(1 - critic(images.double())).mean() + F.relu(1 + critic(made)).mean()) / 2
    hinge.backward()
    assert list(terms) == ["discriminator"]
    assert (method.weights["discriminator"] * terms["discriminator"]).item() == pytest.approx(hinge.item(), rel=1e-5)
    for ours, theirs in zip(method.discriminator.parameters(), critic.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in method.tokenizer.parameters())


# ---- who moves, and what is left out ---------------------------------------------------------------------------------


def test_the_tokenizer_moves_first_and_penalties_have_their_rhythm() -> None:
    method = make(penalties=[{"kind": "r1", "every": 2}])
    assert method.turns(0) == (MOVE, Turn("discriminator", ("r1",)))
    assert method.turns(1) == (MOVE, GAME)
    alone = make(discriminator=None)
    assert alone.turns(0) == (MOVE,)
    assert alone.weights == {"reconstruction": 1.0, "quantiser": 1.0}
    assert not alone.surveys(MOVE)
    batch = {alone.side: images_of()}
    assert set(alone.losses(MOVE, batch, alone.shared(batch, {"tokenizer"}))) == {"reconstruction", "quantiser"}
    assert list(alone.exported()) == ["tokenizer"]


def test_what_has_no_weight_is_not_computed() -> None:
    method = make()
    batch = {method.side: images_of()}
    shared = method.shared(batch, BOTH)
    asked: list[int] = []
    method.discriminator.register_forward_pre_hook(lambda *_: asked.append(1))
    method.weights |= {"adversarial": 0.0, "discriminator": 0.0}
    assert set(method.losses(MOVE, batch, shared)) == {"reconstruction", "quantiser"}
    assert method.losses(GAME, batch, shared) == {}
    assert asked == [] and not method.surveys(MOVE) and method.take_reports() == {}
    method.weights |= {"adversarial": 0.8, "reconstruction": 0.0, "quantiser": 0.0}
    assert set(method.losses(MOVE, batch, shared)) == {"adversarial"}
    assert method.take_reports()["adaptive weight"] == 0  # as much say as a reconstruction that has none


def test_the_gradient_without_a_discriminator_is_the_plain_loss_s() -> None:
    method, images = make(), images_of()
    method.weights["adversarial"] = 0.0
    batch = {method.side: images}
    total(method, method.losses(MOVE, batch, method.shared(batch, {"tokenizer"}))).backward()
    other = copy.deepcopy(method.tokenizer)
    other.zero_grad()
    quantised = other.encode(images)
    ((other.decode(quantised.quantised) - images).abs().mean() + quantised.loss).backward()
    for ours, theirs in zip(method.tokenizer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_step_s_batches_have_one_weight() -> None:
    """lambda of the mean gradients, not the mean of two lambdas; what was just looked at counts for no code."""
    method = make(quantiser={**CODES, "update": "average"})
    method.discriminator.requires_grad_(False)
    batches = [{method.side: images_of(seed=seed)} for seed in (1, 2)]
    assert method.surveys(MOVE) and not method.surveys(GAME)
    for batch in batches:
        method.survey(MOVE, batch, method.shared(batch, {"tokenizer"}))
    reports = []
    for batch in batches:
        method.losses(MOVE, batch, method.shared(batch, {"tokenizer"}))
        reports.append(method.take_reports()["adaptive weight"].item())
    _, weight, _ = written_out(method, torch.cat([batch[method.side] for batch in batches]))
    assert reports == [pytest.approx(weight.item(), rel=1e-4)] * 2
    lone = [written_out(method, batch[method.side])[1].item() for batch in batches]
    assert abs(sum(lone) / 2 / weight.item() - 1) > 1e-3
    before = method.tokenizer.quantiser.counts.clone()
    method.moved(MOVE)
    counts = (method.tokenizer.quantiser.counts - 0.99 * before) * 100
    assert counts.sum().item() == pytest.approx(2 * 2 * 8 * 8, rel=1e-3)  # two batches of two images of 8x8 tokens
    method.losses(MOVE, batches[0], method.shared(batches[0], {"tokenizer"}))  # the next step's is its own
    alone = method.take_reports()["adaptive weight"].item()
    assert alone == pytest.approx(written_out(method, batches[0][method.side])[1].item(), rel=1e-4)


# ---- the tokenizer that comes of it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"network": VIT},
        {"quantiser": {**CODES, "width": 2, "normalise": True}},
        {"quantiser": {"kind": "lookup-free", "bits": 4}},
        {"quantiser": {"kind": "gumbel", "size": 16}, "reconstruction": {"kind": "logit-laplace"}},
    ],
)
def test_tokens_hold_all_that_forward_makes(settings: dict[str, Any]) -> None:
    tokenizer, images = make(**settings).tokenizer.eval(), images_of()
    with torch.no_grad():
        tokens = tokenizer.encode(images).indices
        assert torch.equal(tokenizer.decode_tokens(tokens), tokenizer(images))
    assert tokens.dtype == torch.int64 and tokens.shape == (2, 16 // tokenizer.reduction, 16 // tokenizer.reduction)


def test_any_size_is_compared_and_shown() -> None:
    method = make(reconstruction={"kind": "logit-laplace"}).eval()
    images = images_of(side=17)[..., :13]
    found = method.comparisons({method.side: images}, torch.Generator())[""]
    assert found.output.shape == images.shape and found.chooses
    padded = F.pad(images, (0, 1, 0, 1), mode="reflect")
    torch.testing.assert_close(found.output, method.tokenizer(padded)[..., :17, :13])
    pictures = method.previews({method.side: images})
    assert list(pictures) == ["input", "reconstruction"]
    assert all(picture.shape == images.shape and picture.abs().max() <= 1 for picture in pictures.values())
    assert method.translator("reconstruction") is method.tokenizer
    assert method.ends("reconstruction") == (method.side, method.side)


def test_an_epoch_of_few_codes_is_warned_of() -> None:
    """Images of one colour are one token, at the corners and edges a few more."""
    method = make(quantiser={"kind": "codebook", "size": 64}, least_used=0.5)
    for level in (-0.5, -0.4):
        batch = {method.side: torch.full((8, 3, 16, 16), level)}
        method.losses(MOVE, batch, method.shared(batch, BOTH))
    numbers, _ = method.summary()
    tokens = method.tokenizer.encode(batch[method.side]).indices
    assert numbers["codebook/tokens for each code"] == 2 * 8 * 8 * 8 / 64
    assert numbers["codebook/codes-used"] >= len(tokens.unique()) / 64
    assert numbers["codebook/codes-used"] < 0.5
    (line,) = method.warnings(numbers)
    assert "of the codes were used in the last epoch" in line
    assert method.warnings(numbers) == [] and method.warnings({"tokenizer/quantiser": 1.0}) == []


def test_autocast_leaves_losses_in_float32() -> None:
    method, batch = make(), {"image": images_of()}
    with torch.autocast("cpu", torch.bfloat16):
        shared = method.shared(batch, BOTH)
        terms = {**method.losses(MOVE, batch, shared), **method.losses(GAME, batch, shared)}
    assert shared["raw"].dtype == torch.float32
    assert all(term.dtype == torch.float32 and term.ndim == 0 and term.isfinite() for term in terms.values())


def test_logit_laplace_is_the_term_of_that_name() -> None:
    method = make(reconstruction={"kind": "logit-laplace", "weight": 2.0})
    assert method.weights["reconstruction"] == 2.0
    batch = {method.side: images_of()}
    shared = method.shared(batch, BOTH)
    assert shared["raw"].shape == (2, 6, 16, 16)
    found = method.losses(MOVE, batch, shared)["reconstruction"]
    assert found.item() == logit_laplace(shared["raw"], batch[method.side]).item()


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match=r"^method vqgan learns from single images: data\.kind must be 'folder', not"):
        VQGANSettings().build(PairedSettings(root="x"))
    with pytest.raises(ValidationError, match="'penalties' is for a discriminator, but 'discriminator' is null"):
        VQGANSettings.model_validate({"discriminator": None, "penalties": [{"kind": "r1"}]})
    method = make(network={**NETWORK, "multipliers": [1, 1, 1, 1]})
    method.check({method.side: images_of()})
    with pytest.raises(UserError, match="images of 20x20 do not fit the tokenizer, which takes multiples of 8"):
        method.check({method.side: images_of(side=20)})


def test_lpips_is_for_pictures_alone_and_inference_loads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"kind": "labels", "classes": 5}
    assert "lpips" not in make(image=labels, lpips={"network": "alex"}).weights
    settings = VQGANSettings()
    assert settings.lpips is not None
    method = settings.model_copy(update={"tokenizer": make().tokenising.settings.tokenizer})
    built = method.build(FolderSettings(root="x"), inference=True)
    assert list(built.players) == ["tokenizer"] and built.tokenising.lpips is None
