"""pix2pix's terms against their formulas, and what every method shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from translate.data import FolderSettings, PairedSettings
from translate.data.images import visible
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.methods.base import Turn
from translate.methods.pix2pix import Pix2Pix, Pix2PixSettings

torch.set_num_threads(1)


def make(data: dict[str, Any] | None = None, **settings: Any) -> Pix2Pix:
    raw = {
        "generator": {"kind": "unet", "depth": 3, "width": 4, "dropout": 0.0},
        "discriminator": {"kind": "patch", "layers": 1, "width": 4},
        **settings,
    }
    torch.manual_seed(0)
    return Pix2PixSettings.model_validate(raw).build(PairedSettings.model_validate({"root": "x", **(data or {})}))


def batch_of(a: int = 3, b: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {side: torch.rand(2, width, 16, 16, generator=generator) * 2 - 1 for side, width in (("A", a), ("B", b))}


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
@pytest.mark.parametrize("objective", ["vanilla", "lsgan"])
def test_the_terms_are_the_paper_s(direction: str, objective: str) -> None:
    method = make({"direction": direction}, objective=objective, feature_matching_weight=10.0)
    batch = batch_of()
    x, y = (batch["A"], batch["B"]) if direction == "AtoB" else (batch["B"], batch["A"])
    assert [turn.player for turn in method.turns(0)] == ["discriminator", "generator"]
    assert method.directions == (direction,)
    shared = method.shared(batch, {"discriminator", "generator"})
    fake, d = shared["fake"], method.discriminator
    torch.testing.assert_close(fake, method.generator(x))

    def judge(logits: Tensor, real: float) -> Tensor:
        target = torch.full_like(logits, real)
        return (
            F.binary_cross_entropy_with_logits(logits, target) if objective == "vanilla" else F.mse_loss(logits, target)
        )

    real_logits, fake_logits = d(torch.cat([x, y], 1)), d(torch.cat([x, fake], 1))
    found = method.losses(Turn("discriminator"), batch, shared)
    torch.testing.assert_close(found, {"discriminator": judge(real_logits, 1) + judge(fake_logits, 0)})
    (gradient,) = torch.autograd.grad(found["discriminator"], fake, allow_unused=True)
    assert gradient is None  # the generator hears nothing in the discriminator's turn

    found = method.losses(Turn("generator"), batch, shared)
    torch.testing.assert_close(found["adversarial"], judge(fake_logits, 1))
    torch.testing.assert_close(found["reconstruction"], (fake - y).abs().mean())
    assert set(found) == {"adversarial", "reconstruction", "feature_matching"} <= set(method.weights)
    reports = method.take_reports()
    shown = real_logits.sigmoid() if objective == "vanilla" else real_logits
    torch.testing.assert_close(reports["D(real)"], shown.mean())
    assert method.take_reports() == {}


# ---- what the discriminator can be given ---------------------------------------------------------------------------

NO_BATCH_NORM = {"kind": "patch", "layers": 1, "width": 4, "norm": "instance"}


@pytest.mark.parametrize(("kind", "at"), [("r1", "target"), ("r2", "fake")])
def test_penalties_are_slopes_along_the_target_alone(kind: str, at: str) -> None:
    """By a loop over the examples, the source a constant."""
    method, batch = make(discriminator=NO_BATCH_NORM, penalties=[{"kind": kind, "weight": 0.5, "every": 4}]), batch_of()
    assert [kind in method.turns(step)[0].terms for step in range(5)] == [True, False, False, False, True]
    assert method.weights[kind] == 2.0
    shared = method.shared(batch, {"generator"})
    found = method.losses(Turn("discriminator", (kind,)), batch, shared)
    x = {"target": batch["B"], "fake": shared["fake"].detach()}[at]
    squares = []
    for source, judged in zip(batch["A"], x, strict=True):
        judged = judged[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(method.discriminator(torch.cat([source[None], judged], 1)).mean(), judged)
        squares.append(gradient.square().sum())
    # float32, instance norm over some hundred values: rounding of one part in 1e5.
    torch.testing.assert_close(found[kind], torch.stack(squares).mean(), rtol=1e-4, atol=1e-8)
    assert set(method.losses(Turn("discriminator"), batch, shared)) == {"discriminator"}


def test_interpolations_stay_with_their_source() -> None:
    """Where real and fake are one image, WGAN-GP's lines are points: its penalty is that of the slope there."""
    method, batch = make(discriminator=NO_BATCH_NORM, penalties=[{"kind": "gradient-penalty"}]), batch_of()
    turn, y = Turn("discriminator", ("gradient_penalty",)), batch["B"].clone().requires_grad_()
    found = method.losses(turn, batch, {"fake": batch["B"]})["gradient_penalty"]
    said = method.discriminator(torch.cat([batch["A"], y], 1)).mean((1, 2, 3)).sum()
    (gradient,) = torch.autograd.grad(said, y)
    torch.testing.assert_close(found, (gradient.flatten(1).norm(dim=1) - 1).square().mean(), rtol=1e-4, atol=1e-6)


def test_the_pool_remembers_pairs() -> None:
    method = make(replay=2)
    seen: list[Tensor] = []
    method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    steps = []
    for step in range(12):
        batch = {side: x + step for side, x in batch_of().items()}
        steps.append((batch["A"], batch["B"] + 100))
        method.losses(Turn("discriminator"), batch, {"fake": steps[-1][1]})
    known = [torch.cat([a, b]) for source, fake in steps for a, b in zip(source, fake, strict=True)]
    shown = [pair for pairs in seen[1::2] for pair in pairs]
    places = [next(n for n, each in enumerate(known) if torch.equal(pair, each)) for pair in shown]  # never torn apart
    past = sum(place < number - number % 2 for number, place in enumerate(places))
    assert 0 < past < len(places) - 2
    new = [torch.equal(pairs[:, :3], batch_of()["A"] + step) for step, pairs in enumerate(seen[::2])]
    assert all(new)  # of real pairs it knows nothing


def test_augmentations_change_both_images_of_a_pair_alike() -> None:
    for augmentation in (
        {"kind": "diffaugment", "policy": ["translation", "cutout"]},
        {"kind": "adaptive", "transforms": ["blit", "geometric"], "start": 1.0},
    ):
        method = make(augmentations=[augmentation], discriminator=NO_BATCH_NORM)
        seen: list[Tensor] = []
        method.discriminator.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        batch = {side: batch_of()["A"] for side in "AB"}
        torch.manual_seed(3)
        method.losses(Turn("discriminator"), batch, {"fake": batch["A"]})
        (pairs,) = seen  # real and fake in one pass: no batch norm
        torch.testing.assert_close(pairs[:, :3], pairs[:, 3:])
        assert not torch.allclose(pairs[:2, :3], batch["A"])
        assert not torch.allclose(pairs[:2], pairs[2:])  # real and fake by chance of their own
    assert method.take_reports()["augmentation_p"] >= 0


def test_features_are_compared_after_the_same_augmentation() -> None:
    """So a perfect fake costs nothing; and the generator learns through the augmentation."""
    policy = [{"kind": "diffaugment", "policy": ["translation", "cutout"]}]
    method = make(augmentations=policy, discriminator=NO_BATCH_NORM, feature_matching_weight=10.0)
    batch = batch_of()
    fake = batch["B"].clone().requires_grad_()
    terms = method.losses(Turn("generator"), batch, {"fake": fake})
    assert terms["feature_matching"] == 0
    assert torch.autograd.grad(terms["adversarial"], fake)[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("augmentation", "remedy"),
    [
        ({"kind": "diffaugment"}, "set policy to [translation, cutout]"),
        ({"kind": "diffaugment", "policy": ["colour"]}, "leave it out"),
        ({"kind": "adaptive"}, "set transforms to [blit, geometric]"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_of_a_pair_are_refused(augmentation: dict[str, Any], remedy: str, channels: int) -> None:
    side = {"channels": channels}
    with pytest.raises(UserError) as raised:
        make({"A": side, "B": side}, augmentations=[augmentation])
    assert str(raised.value) == (
        "method.augmentations.0: 'colour' changes one image, but the discriminator sees a pair as one picture; "
        f"{remedy}"
    )


def test_what_is_written_of_the_settings_begins_with_the_method() -> None:
    assert next(iter(Pix2PixSettings().model_dump().items())) == ("kind", "pix2pix")


def test_the_weights_are_the_paper_s() -> None:
    defaults = {"discriminator": 0.5, "adversarial": 1.0, "reconstruction": 100.0, "feature_matching": 0.0}
    assert make().weights == defaults


def test_what_is_shared_has_a_graph_only_where_the_generator_moves() -> None:
    method, batch = make(), batch_of()
    assert method.shared(batch, {"generator", "discriminator"})["fake"].requires_grad
    assert not method.shared(batch, {"discriminator"})["fake"].requires_grad


def test_a_number_reported_several_times_in_a_step_is_averaged() -> None:
    method = make()
    for value in (1.0, 2.0, 6.0):
        method.report("x", torch.tensor([value, value]))
    assert method.take_reports()["x"] == 3.0


def test_only_the_generator_is_exported() -> None:
    method = make()
    assert list(method.exported()) == ["generator"]
    assert method.exported()["generator"] is method.translator("AtoB") is method.generator


def test_previews_show_input_output_and_target_as_rgb() -> None:
    method = make({"A": {"kind": "labels", "classes": 4}, "B": {"channels": 1}})
    batch = batch_of(4, 1)
    pictures = method.previews(batch)
    assert list(pictures) == ["input", "output", "target"]
    assert all(picture.shape == (2, 3, 16, 16) for picture in pictures.values())
    odd = {side: tensor[..., :13, :11] for side, tensor in batch.items()}
    assert all(picture.shape == (2, 3, 13, 11) for picture in method.previews(odd).values())


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        (FolderSettings(root="x"), {}, "learns from pairs: data.kind must be 'paired', not 'folder'"),
        (
            PairedSettings.model_validate({"root": "x", "B": {"kind": "labels", "classes": 3}}),
            {"perceptual": {"weights": "vgg.pth"}},
            "compares RGB pictures: the target side must have 3 channels",
        ),
        (PairedSettings(root="x"), {"perceptual": {"weights": "/nothing/vgg.pth"}}, "/nothing/vgg.pth: no such file"),
    ],
)
def test_what_does_not_fit_is_told(data: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        Pix2PixSettings.model_validate(settings).build(data)
    assert said in str(raised.value) and "\n" not in str(raised.value)


# ---- pictures to look at -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "taken"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (7, [0, 1, 2])]
)
def test_any_number_of_channels_is_shown_as_rgb(channels: int, taken: list[int]) -> None:
    images = torch.randn(2, channels, 4, 5, dtype=torch.bfloat16)
    shown = visible(images, ImageSpec(channels=channels))
    assert shown.dtype == torch.float32 and torch.equal(shown, images[:, taken].float())


def test_classes_are_shown_in_their_palette() -> None:
    palette = [(0, 0, 0), (255, 0, 0), (255, 255, 255)]
    classes = torch.tensor([[[0, 1], [2, 1]]])
    hot = F.one_hot(classes, 3).permute(0, 3, 1, 2) * 2.0 - 1
    shown = visible(hot, ImageSpec(kind="labels", palette=palette))
    pixels = ((shown[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert np.array_equal(pixels, np.array(palette, np.uint8)[classes[0]])


def test_classes_without_a_palette_have_colours_of_their_own() -> None:
    hot = torch.eye(6).reshape(1, 6, 6, 1) * 2 - 1
    shown = visible(hot, ImageSpec(kind="labels", classes=6))[0, :, :, 0].T  # (classes, 3)
    assert shown.abs().max() <= 1
    distances = torch.cdist(shown, shown) + 9 * torch.eye(6)
    assert distances.min() > 0.5
