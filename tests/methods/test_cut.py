"""CUT's and FastCUT's terms and gradients against the paper written out: one image and one network at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from translate import config as configs
from translate.data import FolderSettings, UnpairedSettings
from translate.errors import UserError
from translate.methods.base import Turn
from translate.methods.cut import CUT, CUTSettings
from translate.networks import count_parameters

torch.set_num_threads(1)

LAYERS = ["input", "down1", "down2", "block1"]
SMALL: dict[str, Any] = {
    "generator": {"kind": "resnet", "blocks": 2, "width": 4, "downsampling": "anti-aliased"},
    "discriminator": {"kind": "patch", "layers": 2, "width": 4, "norm": "instance", "downsampling": "anti-aliased"},
    "nce": {"layers": LAYERS, "patches": 20, "width": 8, "weight": 0.5},
}
FAST: dict[str, Any] = {"nce": {**SMALL["nce"], "weight": 10.0}, "identity_weight": 0.0, "flip_equivariance": True}
BOTH = {"generator", "discriminator"}
GENERATOR, DISCRIMINATOR = Turn("generator"), Turn("discriminator")


def make(data: Mapping[str, Any] | None = None, **settings: Any) -> CUT:
    torch.manual_seed(0)
    sides = UnpairedSettings.model_validate({"root": "x", **(data or {})})
    method = CUTSettings.model_validate({**SMALL, **settings}).build(sides)
    # As drawn, weights of 0.02 give outputs near 0, where any two networks agree: these give images of any value.
    for layer in method.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, layer.weight[0].numel() ** -0.5)
    return method


def batch_of(count: int = 2, size: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {side: torch.rand(count, 3, size, size, generator=generator) * 2 - 1 for side in "AB"}


def seed_that(method: CUT, batch: Mapping[str, Tensor], mirrors: bool) -> int:
    """A seed with which a step is mirrored, or is not."""
    source = batch[method.sides[0]]
    for seed in range(20):
        torch.manual_seed(seed)
        if torch.equal(method.shared(batch, set())["seen"], source.flip(3) if mirrors else source):
            return seed
    raise AssertionError("none")


def written_out(method: CUT, output: Tensor, source: Tensor, at: Mapping[str, Tensor], *, mirrored: bool) -> Tensor:
    """NCE of an output and its source, image by image and layer by layer; `at`: where the queries lie."""
    losses = []
    for n in range(len(source)):
        for layer in LAYERS:
            query_map = method.generator.features(output[n : n + 1], [layer])[layer][0]  # (C, H, W)
            key_map = method.generator.features(source[n : n + 1], [layer])[layer][0].detach()
            if mirrored:
                query_map = query_map.flip(2)
            height, width = key_map.shape[1:]
            points = []
            for features in (query_map, key_map):
                found = []
                for position in at[layer].tolist():
                    y, x = divmod(position, width)
                    column = width - 1 - x if mirrored else x  # in the image as it is
                    point = method.projections.layers[layer](features[:, y, column])
                    found.append(point / point.norm())
                points.append(torch.stack(found))
            query, key = points[0], points[1].detach()
            losses.append(F.cross_entropy(query @ key.T / 0.07, torch.arange(len(query))))
            assert len(query) == min(20, height * width)
    return torch.stack(losses).mean()


def gradients(method: CUT, loss: Tensor) -> list[Tensor]:
    player = method.players["generator"]
    found = torch.autograd.grad(loss, list(player.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, player.parameters(), strict=True)]


@pytest.mark.parametrize(
    ("settings", "mirrors"),
    [({}, False), ({"direction": "BtoA"}, False), (FAST, False), (FAST, True), ({"flip_equivariance": True}, True)],
)
def test_terms_and_gradients_are_the_paper_s(settings: dict[str, Any], mirrors: bool) -> None:
    """To 1e-5 of the losses; gradients, whose sums are long, to 1e-4 of the largest."""
    method, batch = make(**settings), batch_of()
    x, y = (batch["B"], batch["A"]) if settings.get("direction") == "BtoA" else (batch["A"], batch["B"])
    assert [turn.player for turn in method.turns(0)] == ["discriminator", "generator"]  # the authors' order
    torch.manual_seed(seed_that(method, batch, mirrors))
    shared = method.shared(batch, BOTH)
    judged = method.losses(DISCRIMINATOR, batch, shared)
    found = method.losses(GENERATOR, batch, shared)

    def at(term: str) -> dict[str, Tensor]:
        return {layer: shared[f"{term}/{layer}/at"] for layer in LAYERS}

    g, d = method.generator, method.discriminator
    fake = g(x.flip(3) if mirrors else x)
    wanted = {
        "adversarial": (d(fake) - 1).square().mean(),
        "nce": written_out(method, fake, x, at("nce"), mirrored=mirrors),
    }
    if "identity_weight" not in settings:
        same = g(y.flip(3) if mirrors else y)
        wanted["nce_identity"] = written_out(method, same, y, at("nce_identity"), mirrored=mirrors)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    total = sum(method.weights[name] * found[name] for name in found)
    paper = sum(method.weights[name] * wanted[name] for name in wanted)
    one, two = gradients(method, total), gradients(method, paper)
    largest = max(float(gradient.abs().max()) for gradient in two)
    for ours, plain in zip(one, two, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-4 * largest)

    loss = (d(y) - 1).square().mean() + d(fake.detach()).square().mean()
    torch.testing.assert_close(judged, {"discriminator": loss})
    assert torch.autograd.grad(judged["discriminator"], shared["fake"], allow_unused=True) == (None,)


def test_mirrored_and_plain_steps_are_as_many() -> None:
    method, batch = make(**FAST), batch_of(1)
    torch.manual_seed(0)
    mirrored = sum(torch.equal(method.shared(batch, set())["seen"], batch["A"].flip(3)) for _ in range(100))
    assert 30 < mirrored < 70  # 4 deviations of a fair coin
    assert torch.equal(make().shared(batch, set())["seen"], batch["A"])


@pytest.mark.parametrize(
    ("settings", "mirrors", "moving", "passes"),
    [
        ({}, False, BOTH, [4, 4]),  # x and y together, then what was made of both
        ({}, False, {"discriminator"}, [2]),
        (FAST, False, BOTH, [2, 2]),
        (FAST, True, BOTH, [2, 2, 2]),  # the keys of a mirrored image are of the image as it is
        (FAST, True, {"discriminator"}, [2]),
        ({"generator": {**SMALL["generator"], "norm": "batch"}}, False, BOTH, [2, 2, 2, 2]),  # which would mix them
    ],
)
def test_nothing_is_encoded_twice(settings: dict[str, Any], mirrors: bool, moving: set[str], passes: list[int]) -> None:
    method, batch = make(**settings), batch_of()
    torch.manual_seed(seed_that(method, batch, mirrors))
    seen: list[int] = []
    first = next(layer for layer in method.generator.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    shared = method.shared(batch, moving)
    for player in moving:
        method.losses(Turn(player), batch, shared)
    assert seen == passes


def test_a_turn_alone_sees_the_same_fakes() -> None:
    """With gradients accumulated `shared` is made anew for the generator: the same, by the same seed."""
    method, batch = make(**{**FAST, "generator": {**SMALL["generator"], "dropout": 0.5}}), batch_of()
    made = []
    for moving in ({"discriminator"}, {"generator"}, BOTH):
        torch.manual_seed(5)
        made.append(method.shared(batch, moving))
    assert torch.equal(made[0]["fake"], made[1]["fake"])
    assert [shared["fake"].requires_grad for shared in made] == [False, True, True]
    assert set(made[0]) == {"fake", "seen"}
    assert not any(tensor.requires_grad for name, tensor in made[1].items() if name != "fake")
    assert all(torch.equal(made[1][name], made[2][name]) for name in made[1])


def test_sides_of_two_sizes_pass_apart() -> None:
    method = make()
    batch = {"A": batch_of(1)["A"], "B": batch_of(1, 24)["B"]}
    shared = method.shared(batch, BOTH)
    assert shared["fake"].shape[2:] == (16, 16) and shared["same"].shape[2:] == (24, 24)
    assert set(method.losses(GENERATOR, batch, shared)) == {"adversarial", "nce", "nce_identity"}


def test_a_term_without_weight_is_not_computed() -> None:
    method, batch = make(), batch_of()
    method.weights |= {"nce": 0.0, "adversarial": 0.0}
    shared = method.shared(batch, BOTH)
    assert not any(name.startswith("nce/") for name in shared)
    assert set(method.losses(GENERATOR, batch, shared)) == {"nce_identity"}
    method.weights |= {"nce_identity": 0.0, "discriminator": 0.0}
    shared = method.shared(batch, BOTH)
    assert set(shared) == {"fake", "seen"}
    assert method.losses(GENERATOR, batch, shared) == method.losses(DISCRIMINATOR, batch, shared) == {}


def test_reports_tell_chance_and_light() -> None:
    method, batch = make(), batch_of()
    method.losses(GENERATOR, batch, method.shared(batch, BOTH))
    reports = method.take_reports()
    # Twenty positions, but 16 of a quarter of the size; `input` and `down1` have 256, `down2` 64.
    chance = torch.tensor([20.0, 20.0, 20.0, 16.0]).log().mean()
    torch.testing.assert_close(reports["chance/nce"], chance)
    torch.testing.assert_close(reports["chance/nce_identity"], chance)
    assert -1 <= reports["light kept/AtoB"] <= 1
    method.losses(GENERATOR, batch, {**method.shared(batch, BOTH), "fake": batch["A"], "seen": -batch["A"]})
    torch.testing.assert_close(method.take_reports()["light kept/AtoB"], torch.tensor(-1.0))


def test_only_the_generator_is_exported() -> None:
    method = make(direction="BtoA")
    assert list(method.exported()) == ["generator"]
    assert method.exported()["generator"] is method.translator("BtoA") is method.generator
    assert method.directions == ("BtoA",)
    trained = {id(p) for p in method.players["generator"].parameters()}
    assert trained == {id(p) for p in [*method.generator.parameters(), *method.projections.parameters()]}


def test_previews_and_comparisons() -> None:
    method, batch = make(), batch_of()
    pictures = method.previews(batch)
    assert list(pictures) == ["input", "output", "target", "identity"]
    torch.testing.assert_close(pictures["identity"], method.generator(batch["B"]))
    assert list(make(**FAST).previews(batch)) == ["input", "output"]
    found = method.comparisons(batch, torch.Generator())
    assert dict(method.compares) == {"": False} and set(found) == {""}
    torch.testing.assert_close(found[""].output, method.generator(batch["A"]))
    assert found[""].target is batch["B"]


@pytest.mark.parametrize(
    ("settings", "data", "said"),
    [
        ({}, FolderSettings(root="x"), "learns from two folders: data.kind must be 'unpaired', not 'folder'"),
        (
            {"generator": {"kind": "unet", "depth": 2, "width": 4}},
            UnpairedSettings(root="x"),
            "'unet' does not give; use kind: resnet",
        ),
        (
            {"generator": {"kind": "resnet", "blocks": 4, "width": 4}, "nce": {}},
            UnpairedSettings(root="x"),
            "method.nce.layers: .* 'block5'",
        ),
        ({}, UnpairedSettings.model_validate({"root": "x", "B": {"channels": 1}}), "the same number of channels"),
    ],
)
def test_what_does_not_fit_is_told(settings: dict[str, Any], data: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        CUTSettings.model_validate(settings).build(data)
    assert "\n" not in str(raised.value)


def test_shipped_recipes_are_the_authors() -> None:
    cut, fast = configs.load("cut"), configs.load("fastcut")
    assert isinstance(cut.method, CUTSettings) and isinstance(fast.method, CUTSettings)
    assert cut.method == CUTSettings()
    nce = cut.method.nce.model_copy(update={"weight": 10.0})
    assert fast.method == CUTSettings(nce=nce, identity_weight=0.0, flip_equivariance=True)
    with torch.device("meta"):
        method = cut.method.build(UnpairedSettings(root="x"))
        assert count_parameters(method.generator) == 11_378_179  # blurs have no weights
        assert count_parameters(method.discriminator) == 2_764_737
        # Five layers of 3, 128, 256, 256 and 256 channels, each to 256 and 256 once more.
        assert count_parameters(method.projections) == (3 + 128 + 3 * 256) * 256 + 5 * (256 * 256 + 2 * 256)
    stages = [config.training.stages[0] for config in (cut, fast)]
    assert [str(stage.length) for stage in stages] == ["400 epochs", "200 epochs"]
