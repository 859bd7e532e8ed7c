"""The discriminator's side of a game: which samples it sees, through what, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from translate.errors import UserError
from translate.methods.adversary import Adversary, AdversarySettings, apart, discriminator_losses, per_sample
from translate.methods.base import Method, Turn
from translate.networks.minibatch import MinibatchDiscrimination
from translate.networks.patch import PatchSettings
from translate.networks.stylegan2_discriminator import StyleGAN2DiscriminatorSettings

torch.set_num_threads(1)


class Lone(Method):
    """A method with just a discriminator."""

    def __init__(self, adversary: Adversary, suffix: str, **weights: float) -> None:
        super().__init__()
        names = {"discriminator": 1.0, **adversary.weights}
        self.weights = {f"{name}{suffix}": weight for name, weight in names.items()}
        self.weights |= {f"{name}{suffix}": weight for name, weight in weights.items()}

    def turns(self, step: int) -> Sequence[Turn]:
        return ()

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def exported(self) -> nn.ModuleDict:
        return nn.ModuleDict()


def make(given: int = 0, norm: str = "instance", **settings: Any) -> tuple[Adversary, nn.Module]:
    torch.manual_seed(0)
    raw = {"objective": "least-squares", **settings}
    network = PatchSettings(layers=1, width=4, norm=norm, initialisation={"kind": "kaiming"}).build(3 + given)
    return Adversary(AdversarySettings.model_validate(raw), (3, 8, 8), given), network


def images(count: int = 3, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def loss_of(real: Tensor, fake: Tensor) -> Tensor:
    return (real - 1).square().mean() + fake.square().mean()


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_penalty_stands_once() -> None:
    with pytest.raises(ValidationError, match="two penalties are called 'r1'; leave one out"):
        AdversarySettings.model_validate({"penalties": [{"kind": "r1"}, {"kind": "r1", "every": 2}]})


def test_a_lazy_penalty_is_due_each_kth_move_and_counts_k_times() -> None:
    adversary, _ = make(penalties=[{"kind": "r1", "weight": 0.5, "every": 4}, {"kind": "r2", "weight": 3.0}])
    assert adversary.weights == {"r1": 2.0, "r2": 3.0}
    assert [adversary.due(move) for move in range(5)] == [("r1", "r2"), ("r2",), ("r2",), ("r2",), ("r1", "r2")]


# ---- the game --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("of", ["", "B"])
def test_the_term_is_the_objective_of_real_and_fake_judged_apart(of: str, norm: str) -> None:
    """With batch norm the statistics of one must not tell of the other, so a shared pass would give another loss."""
    adversary, network = make(norm=norm)
    suffix = f"_{of}" if of else ""
    method, real, fake = Lone(adversary, suffix), images(), images(seed=2) + 0.5
    terms = discriminator_losses(method, adversary, network, real, fake, (), of=of)
    assert set(terms) == {f"discriminator{suffix}"}
    torch.testing.assert_close(terms[f"discriminator{suffix}"], loss_of(network(real), network(fake)))
    assert set(method.take_reports()) == {f"D{suffix}(real)", f"D{suffix}(fake)"}


def test_fakes_get_no_gradient() -> None:
    adversary, network = make(penalties=[{"kind": "r2", "weight": 1.0}])
    fake = images(seed=2).requires_grad_()
    for term in discriminator_losses(Lone(adversary, ""), adversary, network, images(), fake, ("r2",)).values():
        assert torch.autograd.grad(term, fake, allow_unused=True, retain_graph=True) == (None,)
        assert any(g is not None for g in torch.autograd.grad(term, list(network.parameters()), allow_unused=True))


def test_the_game_is_against_past_fakes_and_the_penalties_are_of_new_ones() -> None:
    adversary, network = make(replay=3, penalties=[{"kind": "r2", "weight": 1.0}])
    method = Lone(adversary, "")
    discriminator_losses(method, adversary, network, images(), images(seed=2), ())  # fills the pool
    new = images(seed=3)
    torch.manual_seed(0)
    swaps, places = torch.rand(3) < 0.5, torch.randint(3, (3,))
    assert swaps.any() and not swaps.all()
    past, shown = list(images(seed=2)), []
    for number in range(3):
        shown.append(past[places[number]] if swaps[number] else new[number])
        if swaps[number]:
            past[places[number]] = new[number]
    torch.manual_seed(0)
    terms = discriminator_losses(method, adversary, network, images(), new, ("r2",))
    torch.testing.assert_close(terms["discriminator"], loss_of(network(images()), network(torch.stack(shown))))
    slopes = []
    for image in new:
        x = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(x).mean(), x)
        slopes.append(gradient.square().sum())
    torch.testing.assert_close(terms["r2"], torch.stack(slopes).mean())


@pytest.mark.parametrize(
    ("weights", "due", "left"),
    [
        ({}, ("r1",), {"discriminator", "r1"}),
        ({}, (), {"discriminator"}),
        ({"r1": 0.0}, ("r1",), {"discriminator"}),
        ({"discriminator": 0.0}, ("r1",), {"r1"}),
        ({"discriminator": 0.0}, (), set()),
    ],
)
def test_what_is_not_due_or_has_no_weight_is_not_computed(
    weights: dict[str, float], due: tuple[str, ...], left: set[str]
) -> None:
    adversary, network = make(penalties=[{"kind": "r1"}], replay=3)
    calls: list[int] = []
    network.blocks[0].register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    terms = discriminator_losses(Lone(adversary, "", **weights), adversary, network, images(), images(seed=2), due)
    assert set(terms) == left
    assert calls == [6] * ("discriminator" in left) + [3] * ("r1" in left)  # real and fake in one pass; the real ones
    assert adversary.pool is not None and len(adversary.pool.kept) == 3 * ("discriminator" in left)


# ---- what it sees ----------------------------------------------------------------------------------------------------


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2

    def update(self, real_logits: Tensor) -> dict[str, Tensor]:
        assert not real_logits.requires_grad
        return {"mean": real_logits.mean()}


def test_all_is_seen_through_the_augmentations_which_learn_of_the_real_logits() -> None:
    adversary, network = make(penalties=[{"kind": "r1"}])
    adversary.augmentations.append(Halved())
    method = Lone(adversary, "_A")
    terms = discriminator_losses(method, adversary, network, images(), images(seed=2), ("r1",), of="A")
    real, fake = network(images() / 2), network(images(seed=2) / 2)
    torch.testing.assert_close(terms["discriminator_A"], loss_of(real, fake))
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x / 2).flatten(1).mean(1).sum(), x)
    torch.testing.assert_close(terms["r1_A"], gradient.square().flatten(1).sum(1).mean())
    torch.testing.assert_close(method.take_reports()["mean_A"], real.mean().detach())


def test_what_samples_are_judged_beside_stays_beside_them_and_penalties_hold_it_fixed() -> None:
    adversary, network = make(given=2, replay=3, penalties=[{"kind": "r1"}])
    method, given, real = Lone(adversary, ""), images(channels=2, seed=5), images()
    # A fake that tells of what it was made from: its pair must come out of the pool with it.
    fakes = [given[:, :1].expand(-1, 3, -1, -1), images(channels=2, seed=6)[:, :1].expand(-1, 3, -1, -1)]
    seen: list[Tensor] = []
    network.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    discriminator_losses(method, adversary, network, real, fakes[0], (), given=given)
    torch.manual_seed(0)
    terms = discriminator_losses(method, adversary, network, real, fakes[1], ("r1",), given=images(channels=2, seed=6))
    shown = seen[1][3:]  # behind the real ones
    assert torch.equal(shown[:, 0], shown[:, 2])
    assert any(torch.equal(row[2], old[0]) for row in shown for old in fakes[0])  # a past one among them
    x, beside = real.clone().requires_grad_(), images(channels=2, seed=6)
    (gradient,) = torch.autograd.grad(network(torch.cat([beside, x], dim=1)).flatten(1).mean(1).sum(), x)
    torch.testing.assert_close(terms["r1"], gradient.square().flatten(1).sum(1).mean())


@pytest.mark.parametrize("kind", ["diffaugment", "adaptive"])
def test_colours_of_a_pair_are_not_changed_as_one_picture_s(kind: str) -> None:
    with pytest.raises(UserError, match=r"method.augmentations.0: 'colour' changes one image") as raised:
        make(given=2, augmentations=[{"kind": kind}])
    assert "\n" not in str(raised.value)
    make(augmentations=[{"kind": kind}])


# ---- one pass or several ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "apart_"), [("instance", True), ("layer", True), ("group", True), ("none", True), ("batch", False)]
)
def test_of_the_norms_batch_norm_alone_mixes_images(norm: str, apart_: bool) -> None:
    """By what the network does: is an image's output the same beside another one?"""
    _, network = make(norm=norm)
    assert per_sample(network) == apart_
    alone, beside = network(images()[:1]), network(images())[:1]
    assert torch.allclose(alone, beside, atol=1e-6) == apart_


def test_apart_gives_each_batch_its_outputs() -> None:
    _, network = make()
    batches = images(2), images(1, seed=2), images(3, seed=3)
    calls: list[int] = []
    network.blocks[0].register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    for together, passes in ((True, [6]), (False, [2, 1, 3])):
        calls.clear()
        found = apart(network, *batches, together=together)
        assert calls == passes
        for one, batch in zip(found, batches, strict=True):
            torch.testing.assert_close(one, network(batch), rtol=0, atol=1e-6)
    calls.clear()
    wide = torch.cat([images(1)] * 2, dim=3)
    assert [len(one) for one in apart(network, images(2), wide, together=True)] == [2, 1] and calls == [2, 1]


@pytest.mark.parametrize("group", [0, 2, 4])
def test_a_layer_that_compares_images_sees_real_and_fake_ones_apart(group: int) -> None:
    """Two images each: one pass of four would be one group of four, in which the real ones tell of the fakes."""
    adversary, _ = make()
    torch.manual_seed(0)
    network = StyleGAN2DiscriminatorSettings(width=4, layers=1, group=group).build(3)
    assert per_sample(network) == (group == 0)
    real, fake = images(2), images(2, seed=2) / 4
    passes: list[int] = []
    network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    terms = discriminator_losses(Lone(adversary, ""), adversary, network, real, fake, ())
    assert passes == ([2, 2] if group else [4])
    torch.testing.assert_close(terms["discriminator"], loss_of(network(real), network(fake)))
    mixed = loss_of(*network(torch.cat([real, fake])).split(2))
    assert torch.allclose(terms["discriminator"], mixed, rtol=1e-5) == (group < 4)


def test_minibatch_discrimination_mixes_images() -> None:
    assert not per_sample(nn.Sequential(nn.Flatten(), MinibatchDiscrimination(12)))
