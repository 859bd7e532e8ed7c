"""SRGAN's terms against its algorithm written out, and what each stage computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from translate.data import PairedSettings, SuperResolutionSettings
from translate.errors import UserError
from translate.methods.base import Turn
from translate.methods.srgan import SRGAN, SRGANSettings
from translate.networks.srgan_discriminator import SRGANDiscriminator
from translate.pretrained.lpips import _NETWORKS, LPIPS

torch.set_num_threads(1)

Array = NDArray[np.float64]
GENERATOR = {"kind": "srresnet", "blocks": 1, "width": 4}
PATCH = {"kind": "patch", "layers": 1, "width": 4, "norm": "none"}
UNET = {"kind": "unet", "width": 4}
GAME = Turn("discriminator")
MOVE = Turn("generator")
BOTH = {"discriminator", "generator"}


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two convolutions of a VGG19 of random weights."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for position, before in ((0, 3), (2, 64)):
        tensors[f"features.{position}.weight"] = torch.randn(64, before, 3, 3, generator=generator) / (3 * before**0.5)
        tensors[f"features.{position}.bias"] = torch.randn(64, generator=generator) / 10
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(tensors, path)
    return path


def make(data: dict[str, Any] | None = None, **settings: Any) -> SRGAN:
    raw = {"generator": GENERATOR, "discriminator": PATCH, **settings}
    sides = {"root": "x", "augment": {"crop": 16}, **(data or {})}
    torch.manual_seed(0)
    return SRGANSettings.model_validate(raw).build(SuperResolutionSettings.model_validate(sides))


@torch.no_grad()
def leave_the_range(generator: nn.Module) -> None:
    """Make its outputs go beyond [-1, 1], which no term may hide."""
    for parameter in list(generator.parameters())[-2:]:
        parameter.mul_(20)


def high_of(count: int = 2, side: int = 16, channels: int = 3, seed: int = 1) -> Tensor:
    """Bytes, as files hold them, in [-1, 1]."""
    levels = np.random.default_rng(seed).integers(0, 256, (count, channels, side, side))
    return torch.from_numpy(levels).float() / 127.5 - 1


def batch_of(**how: int) -> dict[str, Tensor]:
    return {"B": high_of(**how)}


# ---- the algorithm, written out --------------------------------------------------------------------------------------


def shrinking(length: int, scale: int) -> Array:
    """Keys' kernel, `scale` times as wide, over a line that is mirrored beyond its ends: weight by weight."""
    matrix = np.zeros((length // scale, length))
    mirrored = [*range(length), *reversed(range(length))] * 3
    for row in range(length // scale):
        centre = (row + 0.5) * scale - 0.5
        for position in range(-length, 2 * length):
            x = abs(position - centre) / scale
            weight = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0
            matrix[row, mirrored[position % (2 * length)]] += weight / scale
    return matrix


def small(levels: Array, scale: int = 4, *, rounded: bool) -> Array:
    """(..., H, W) on the scale of bytes -> (..., H / scale, W / scale), of bytes rounded after each pass."""
    keep = (lambda x: np.clip(np.floor(x + 0.5), 0, 255)) if rounded else (lambda x: x)
    levels = keep(shrinking(levels.shape[-2], scale) @ levels)
    return np.asarray(keep(levels @ shrinking(levels.shape[-1], scale).T))


def made_small(images: Tensor) -> Tensor:
    """The same of images with a graph, of doubles."""
    rows = torch.from_numpy(shrinking(images.shape[-2], 4)).float()
    return rows @ images @ torch.from_numpy(shrinking(images.shape[-1], 4)).float().T


def vgg_features(x: Tensor, path: Path) -> Tensor:
    """relu1_2."""
    from safetensors.torch import load_file

    held = load_file(path)
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = ((x + 1) / 2 - mean) / deviation
    for position in (0, 2):
        x = F.relu(F.conv2d(x, held[f"features.{position}.weight"], held[f"features.{position}.bias"], padding=1))
    return x


def said(logits: Tensor, real: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))


GAMES = {
    "non-saturating": (
        lambda real, fake: said(real, 1) + said(fake, 0),
        lambda real, fake: said(fake, 1),
    ),
    "relativistic-average": (  # equations 1 and 2 of ESRGAN (arXiv 1809.00219)
        lambda real, fake: said(real - fake.mean(), 1) + said(fake - real.mean(), 0),
        lambda real, fake: said(real - fake.mean(), 0) + said(fake - real.mean(), 1),
    ),
}


@pytest.mark.parametrize("discriminator", [PATCH, UNET], ids=["patch", "unet"])
@pytest.mark.parametrize("objective", list(GAMES))
def test_the_terms_and_their_gradients_are_those_of_the_algorithm(
    objective: str, discriminator: dict[str, Any], vgg: Path
) -> None:
    """Gradients of the weighted sums, to 1e-5 of the largest: some hundred float32 products, in another order. (In a
    relativistic game what shifts all logits has parts of 1/4 that cancel: to 1e-6 then.)"""
    weights = {"pixel": 0.7, "content": 0.3, "adversarial": 0.05, "total_variation": 0.2, "consistency": 0.4}
    method = make(
        objective=objective,
        discriminator=discriminator,
        discriminator_weight=0.5,
        adversarial_weight=0.05,
        pixel={"kind": "l1", "weight": 0.7},
        content={"weights": str(vgg), "layers": {"relu1_2": 2.0}, "distance": "l2", "weight": 0.3},
        total_variation_weight=0.2,
        consistency_weight=0.4,
    )
    assert method.weights == {"discriminator": 0.5, **weights}
    if discriminator is UNET:  # spectral norm takes a step of its power iteration with each training pass
        method.eval()
    batch = batch_of()
    high, g, d = batch["B"], method.generator, method.discriminator
    leave_the_range(g)
    shared = method.shared(batch, BOTH)

    low = small((high.double().numpy() + 1) * 127.5, rounded=True) / 127.5 - 1
    torch.testing.assert_close(shared["low"], torch.from_numpy(low).float(), rtol=0, atol=1e-6)
    fake = g(torch.from_numpy(low).float())
    torch.testing.assert_close(shared["fake"], fake)
    assert fake.abs().max() > 1

    judge_d, judge_g = GAMES[objective]
    wanted_d = judge_d(d(high), d(fake.detach()))
    wanted = {
        "pixel": (fake - high).abs().mean(),
        "content": 2.0 * (vgg_features(fake, vgg) - vgg_features(high, vgg)).square().mean(),
        "adversarial": judge_g(d(high).detach(), d(fake)),
        "total_variation": (fake[..., 1:, :] - fake[..., :-1, :]).abs().mean()
        + (fake[..., 1:] - fake[..., :-1]).abs().mean(),
        "consistency": (made_small(fake) - torch.from_numpy(low).float()).abs().mean(),
    }
    found_d = method.losses(GAME, batch, shared)
    found = method.losses(MOVE, batch, shared)
    assert set(found_d) == {"discriminator"} and set(found) == set(wanted)
    torch.testing.assert_close(found_d["discriminator"], wanted_d)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert all(term.ndim == 0 and term.dtype == torch.float32 for term in (found | found_d).values())

    for player, pairs in (
        (d, [(0.5, found_d["discriminator"], wanted_d)]),
        (g, [(weights[name], found[name], wanted[name]) for name in wanted]),
    ):
        parameters = list(player.parameters())
        ours, plain = (
            torch.autograd.grad(sum(pair[0] * pair[side] for pair in pairs), parameters, retain_graph=True)
            for side in (1, 2)
        )
        largest = max(float(gradient.abs().max()) for gradient in plain)
        assert largest > 1e-3
        for one, two in zip(ours, plain, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * max(largest, 0.1))


@pytest.mark.parametrize(
    ("kind", "distance"),
    [("l1", lambda d: d.abs()), ("l2", lambda d: d.square()), ("charbonnier", lambda d: (d * d + 1e-6).sqrt())],
)
def test_the_pixels_distance_is_the_chosen_one(kind: str, distance: Any) -> None:
    method, batch = make(pixel={"kind": kind, "weight": 1.0}, adversarial_weight=0), batch_of()
    shared = method.shared(batch, BOTH)
    found = method.losses(MOVE, batch, shared)
    assert set(found) == {"pixel"}
    torch.testing.assert_close(found["pixel"], distance(shared["fake"] - batch["B"]).mean())


def test_lpips_is_a_term(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) / 20 for name, shape in _NETWORKS["alex"].shapes()}
    distance = LPIPS("alex", tensors)
    monkeypatch.setattr(LPIPS, "load", classmethod(lambda cls, kind: distance))
    method, batch = make(lpips={"network": "alex", "weight": 0.25}), batch_of(side=32)
    assert method.weights["lpips"] == 0.25
    shared = method.shared(batch, BOTH)
    torch.testing.assert_close(method.losses(MOVE, batch, shared)["lpips"], distance(shared["fake"], batch["B"]).mean())
    method.weights["lpips"] = 0
    monkeypatch.setattr(distance, "forward", lambda *_: pytest.fail("computed"))
    assert "lpips" not in method.losses(MOVE, batch, shared)


def test_the_discriminator_moves_first_and_the_generator_hears_nothing_then() -> None:
    method, batch = make(), batch_of()
    assert [turn.player for turn in method.turns(0)] == ["discriminator", "generator"]
    shared = method.shared(batch, BOTH)
    loss = method.losses(GAME, batch, shared)["discriminator"]
    assert torch.autograd.grad(loss, shared["fake"], allow_unused=True) == (None,)


# ---- low resolutions -------------------------------------------------------------------------------------------------


def test_low_resolutions_of_a_batch_are_taken_as_they_are() -> None:
    method = make({"low": "low"})
    assert method.degradation is None
    batch = {"A": torch.rand(2, 3, 4, 4), "B": high_of()}
    shared = method.shared(batch, BOTH)
    assert shared["low"] is batch["A"]
    torch.testing.assert_close(shared["fake"], method.generator(batch["A"]))


@pytest.mark.parametrize("convention", ["uint8", "double"])
def test_low_resolutions_made_here_are_the_bytes_that_files_would_hold(convention: str) -> None:
    """So a run on such files has the same losses: of doubles half a level is rare, but may fall either way."""
    method = make({"degradation": {"kind": "bicubic", "convention": convention}})
    high = high_of(3, seed=4)
    levels = small((high.double().numpy() + 1) * 127.5, rounded=convention == "uint8")
    written = np.clip(np.floor(levels + 0.5), 0, 255).astype(np.uint8)
    from_files = torch.from_numpy(written).float() / 127.5 - 1
    low = method.low({"B": high})
    assert torch.equal(low, from_files)
    shared = [method.shared({"B": high, **more}, BOTH) for more in ({}, {"A": from_files})]
    losses = [method.losses(MOVE, {"B": high}, each) for each in shared]
    assert losses[0] == losses[1]


def test_low_resolutions_have_the_memory_format_of_the_high_ones() -> None:
    method, high = make(), high_of()
    last = method.low({"B": high.contiguous(memory_format=torch.channels_last)})
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert method.low({"B": high}).is_contiguous()
    assert torch.equal(last, method.low({"B": high}))


def test_no_gradient_passes_the_degradation() -> None:
    method = make()
    assert not method.low({"B": high_of().requires_grad_()}).requires_grad


# ---- stages ----------------------------------------------------------------------------------------------------------


def forbid(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda *_: pytest.fail("computed"))


def test_by_pixels_alone_neither_vgg_nor_discriminator_is_run(vgg: Path) -> None:
    method, batch = make(content={"weights": str(vgg), "layers": {"relu1_2": 1.0}}, consistency_weight=1.0), batch_of()
    assert method.content is not None
    for module in (method.content, method.discriminator):
        forbid(module)
    method.weights |= {"content": 0, "adversarial": 0, "consistency": 0}
    method.made_small = lambda fake: pytest.fail("computed")  # type: ignore[method-assign]
    shared = method.shared(batch, {"generator"})
    assert shared["fake"].requires_grad
    assert set(method.losses(MOVE, batch, shared)) == {"pixel"}
    assert set(method.take_reports()) == {"psnr"}


def test_no_term_is_computed_that_has_no_weight(vgg: Path) -> None:
    method = make(
        content={"weights": str(vgg), "layers": {"relu1_2": 1.0}}, total_variation_weight=1.0, consistency_weight=1.0
    )
    batch = batch_of()
    shared = method.shared(batch, BOTH)
    everything = {"pixel", "content", "adversarial", "total_variation", "consistency"}
    assert set(method.losses(MOVE, batch, shared)) == everything
    for name in everything:
        before = method.weights[name]
        method.weights[name] = 0
        assert set(method.losses(MOVE, batch, shared)) == everything - {name}
        method.weights[name] = before
    method.weights["discriminator"] = 0
    assert method.losses(GAME, batch, shared) == {}


def test_a_warm_up_keeps_no_graph_of_the_generator() -> None:
    method, batch = make(), batch_of()
    shared = method.shared(batch, {"discriminator"})
    assert not shared["fake"].requires_grad
    loss = method.losses(GAME, batch, shared)["discriminator"]
    loss.backward()
    assert all(p.grad is None for p in method.generator.parameters())
    assert all(p.grad is not None for p in method.discriminator.parameters())


def test_without_a_discriminator_there_is_the_generator_alone() -> None:
    method, batch = make(discriminator=None), batch_of()
    assert list(method.players) == ["generator"] and [turn.player for turn in method.turns(3)] == ["generator"]
    assert not {"adversarial", "discriminator"} & set(method.weights)  # a stage that gives them weight is told so
    assert set(method.losses(MOVE, batch, method.shared(batch, {"generator"}))) == {"pixel"}
    assert method.warnings({"psnr": 20.0}) == []
    method.check({"B": high_of(side=20)})


@pytest.mark.parametrize(
    "more", [{"penalties": [{"kind": "r1"}]}, {"augmentations": [{"kind": "diffaugment"}]}, {"replay": 2}], ids=str
)
def test_what_a_discriminator_is_given_needs_one(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"'{next(iter(more))}' is for a discriminator, but"):
        SRGANSettings.model_validate({"discriminator": None, **more})


# ---- what any discriminator can be given -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["patch", "pixel", "srgan", "unet"])
@pytest.mark.parametrize("objective", ["relativistic-average", "relativistic", "wasserstein"])
def test_any_discriminator_plays_any_game_through_augmentations(kind: str, objective: str) -> None:
    """With penalties on its slope and past fakes, at 32 pixels; all terms are numbers and have a gradient."""
    own = {"patch": {"norm": "none", "layers": 1}, "pixel": {"norm": "none"}, "srgan": {"norm": "none"}, "unet": {}}
    method = make(
        {"augment": {"crop": 32}},
        discriminator={"kind": kind, "width": 4, **own[kind]},
        objective=objective,
        penalties=[{"kind": "r1", "weight": 2.0, "every": 2}, {"kind": "gradient-penalty"}],
        augmentations=[{"kind": "diffaugment"}],
        replay=3,
    )
    assert method.weights["r1"] == 4.0
    assert [turn.terms for turn in method.turns(0)] == [("r1", "gradient_penalty"), ()]
    assert method.turns(1)[0].terms == ("gradient_penalty",)
    for seed in range(3):
        batch = batch_of(side=32, seed=seed)
        shared = method.shared(batch, BOTH)
        terms = method.losses(method.turns(0)[0], batch, shared)
        assert set(terms) == {"discriminator", "r1", "gradient_penalty"}
        terms |= method.losses(MOVE, batch, shared)
        assert all(term.isfinite() for term in terms.values())
        parameters = list(method.generator.parameters())
        assert all(g.isfinite().all() for g in torch.autograd.grad(terms["adversarial"], parameters))
    assert method.adversary.pool is not None and len(method.adversary.pool.kept) == 3


def test_the_discriminator_sees_past_fakes() -> None:
    method = make(replay=2)
    seen: list[Tensor] = []
    method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fakes = []
    for number in range(10):
        fakes.append(torch.full((2, 3, 16, 16), number / 10))
        method.losses(GAME, batch_of(seed=number), {"fake": fakes[-1]})
    shown = [float(images[2:].mean()) for images in seen]  # real ones first
    assert any(abs(value - number / 10) > 1e-3 for number, value in enumerate(shown))


def test_whole_images_of_many_sizes_train_against_a_relativistic_game() -> None:
    """A real image and its fake are of one size, so `crop: null` is no hindrance; past fakes would be of others."""
    whole = {"augment": {"crop": None}}
    method = make(whole, objective="relativistic", penalties=[{"kind": "gradient-penalty"}])
    for side in (16, 24):
        batch = batch_of(count=1, side=side)
        shared = method.shared(batch, BOTH)
        for turn in method.turns(0):
            assert all(term.isfinite() for term in method.losses(turn, batch, shared).values())
    with pytest.raises(UserError, match=r"^data.augment.crop: method.replay keeps fakes of several images"):
        make(whole, replay=4)


# ---- reports and warnings --------------------------------------------------------------------------------------------


def test_psnr_of_both_resolutions_is_reported() -> None:
    method, batch = make(consistency_weight=0.1), batch_of()
    shared = method.shared(batch, BOTH)
    method.losses(MOVE, batch, shared)
    found = method.take_reports()
    fake = shared["fake"].detach().double().clamp(-1, 1)
    again = made_small(shared["fake"].detach()).double().clamp(-1, 1)
    for name, one, two in (("psnr", fake, batch["B"]), ("consistency/psnr", again, shared["low"])):
        errors = ((one - two) / 2).square().mean(dim=(1, 2, 3))
        assert float(found[name]) == pytest.approx(float((-10 * errors.log10()).mean()), abs=1e-4)


def told(method: SRGAN, *values: float) -> list[str]:
    return [line for value in values for line in method.warnings({"psnr": value})]


def test_a_fallen_psnr_is_told_once() -> None:
    method = make()
    method.weights["adversarial"] = 0
    assert told(method, 20.0, 25.0, 24.0) == [] and method.best_by_pixels == 25.0
    method.weights["adversarial"] = 1e-3
    assert told(method, 24.0, 20.1, 20.0) == []  # 5 dB are nothing yet
    (line,) = told(method, 19.9, 18.0, 5.0)
    assert line.startswith("PSNR is 5.1 dB lower than by pixels alone (19.9 dB)") and "\n" not in line
    assert method.warnings({}) == []


def test_without_a_stage_by_pixels_nothing_is_known_to_have_fallen() -> None:
    assert told(make(), 20.0, 3.0) == []


def test_what_is_known_of_the_pixels_is_a_checkpoint_s_and_no_weight_s() -> None:
    method = make()
    method.weights["adversarial"] = 0
    told(method, 31.0)
    other = make()
    other.load_state_dict(method.state_dict())
    (line,) = told(other, 20.0)
    assert "11.0 dB lower" in line
    assert not any("best_by_pixels" in name for name in method.exported().state_dict())


def test_a_row_without_a_number_does_not_undo_the_best() -> None:
    method = make()
    method.weights["adversarial"] = 0
    told(method, 21.0, math.nan)
    assert method.best_by_pixels == 21.0


# ---- pictures, comparisons, export -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_comparisons_and_previews_take_any_size(channels: int) -> None:
    method = make({"high": {"channels": channels}})
    leave_the_range(method.generator)
    method.eval()
    high = high_of(2, 16, channels)[..., :12]  # (2, C, 16, 12): a low resolution of 4x3, too small for LPIPS
    found = method.comparisons({"B": high}, torch.Generator())
    assert set(found) == set(method.compares) == {""}
    output, target, spec, beside, _ = found[""]
    assert torch.equal(target, high) and spec.width == channels
    low = method.low({"B": high})
    torch.testing.assert_close(output, method.generator(low))
    assert output.abs().max() > 1
    again = small(output.detach().double().clamp(-1, 1).numpy(), rounded=False).clip(-1, 1)
    errors = ((again - low.numpy()) / 2) ** 2
    wanted = torch.from_numpy(-10 * np.log10(errors.mean((1, 2, 3))))
    assert set(beside) == {"consistency/psnr"}
    torch.testing.assert_close(beside["consistency/psnr"].double(), wanted, rtol=0, atol=1e-4)
    pictures = method.previews({"B": high})
    assert list(pictures) == ["bicubic", "output", "target"]
    assert all(picture.shape == (2, 3, 16, 12) for picture in pictures.values())


def test_the_preview_s_bicubic_is_better_than_grey() -> None:
    """On a ramp, which cubic interpolation keeps but for its ends."""
    high = torch.linspace(-0.8, 0.8, 32).expand(1, 3, 32, 32)
    shown = make().previews({"B": high})["bicubic"]
    assert (shown[..., 8:-8] - high[..., 8:-8]).abs().max() < 1 / 127.5


def test_the_generator_alone_is_exported_and_inference_loads_no_loss() -> None:
    settings = SRGANSettings.model_validate(
        {"generator": GENERATOR, "discriminator": PATCH, "content": {"weights": "/nothing.pth"}, "lpips": {}}
    )
    data = SuperResolutionSettings.model_validate({"root": "x"})
    method = settings.build(data, inference=True)
    assert list(method.exported()) == ["generator"]
    assert method.exported()["generator"] is method.translator("AtoB") is method.generator
    with pytest.raises(UserError, match=r"/nothing\.pth: no such file"):
        settings.build(data)


def test_the_defaults_are_the_paper_s() -> None:
    method = SRGANSettings().build(SuperResolutionSettings())
    assert sum(p.numel() for p in method.generator.parameters()) == 1_547_350
    assert isinstance(method.discriminator, SRGANDiscriminator)
    assert method.weights == {
        "pixel": 1.0, "total_variation": 0.0, "discriminator": 1.0, "adversarial": 1e-3, "consistency": 0.0
    }  # fmt: skip
    output, target = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    assert method.pixel(output, target) == 0.25  # equation 4: squares


def test_what_does_not_fit_is_told(vgg: Path) -> None:
    with pytest.raises(UserError, match=r"data\.kind must be 'super-resolution', not 'paired'"):
        SRGANSettings().build(PairedSettings(root="x"))
    with pytest.raises(UserError, match=r"method\.content compares grey or RGB pictures: set data.high.channels"):
        make({"high": {"channels": 4}}, content={"weights": str(vgg), "layers": {"relu1_2": 1.0}})
    with pytest.raises(UserError, match="LPIPS compares grey or RGB pictures"):
        make({"high": {"channels": 4}}, lpips={})
    second_order = {"degradation": {"kind": "second-order"}}
    with pytest.raises(UserError, match=r"^method\.consistency_weight: the output made small again is bicubic, and"):
        make(second_order, consistency_weight=0.1)
    method = make(second_order)
    assert "consistency" not in method.weights
    method.eval()
    assert not method.comparisons(batch_of(side=32), torch.Generator())[""].beside
    method = make(discriminator=UNET)
    method.check({"B": high_of(side=24)})
    with pytest.raises(UserError, match="images of 20x20 do not fit the discriminator, which takes multiples of 8"):
        method.check({"B": high_of(side=20)})
    small_crop = make({"augment": {"crop": 4}}, discriminator={**PATCH, "layers": 3})
    with pytest.raises(UserError, match=r"images of 4x4 do not fit the discriminator.* from 24 on"):
        small_crop.check({"B": high_of(side=4)})


def test_autocast_leaves_losses_in_float32(vgg: Path) -> None:
    method, batch = make(content={"weights": str(vgg), "layers": {"relu1_2": 1.0}}, consistency_weight=1.0), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        shared = method.shared(batch, BOTH)
        terms = {**method.losses(GAME, batch, shared), **method.losses(MOVE, batch, shared)}
    assert shared["low"].dtype == torch.float32 and shared["fake"].dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 and term.ndim == 0 for term in terms.values())
