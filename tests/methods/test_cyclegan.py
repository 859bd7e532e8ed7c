"""CycleGAN's outputs, terms and gradients against the paper written out, pass by pass."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from translate.data import FolderSettings, UnpairedSettings
from translate.errors import UserError
from translate.losses.reconstruction import ReconstructionSettings
from translate.methods.base import Turn
from translate.methods.cyclegan import CycleGAN, CycleGANSettings
from translate.networks import count_parameters
from translate.networks.patch import PatchDiscriminator
from translate.pretrained.lpips import LPIPS

torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "generator": {"kind": "resnet", "blocks": 2, "width": 4, "norm": "instance"},
    "discriminator": {"kind": "patch", "layers": 2, "width": 4, "norm": "instance"},
}
BOTH = {"generators", "discriminators"}
GENERATORS = Turn("generators")
DISCRIMINATORS = Turn("discriminators")


def make(data: Mapping[str, Any] | None = None, **settings: Any) -> CycleGAN:
    torch.manual_seed(0)
    sides = UnpairedSettings.model_validate({"root": "x", **(data or {})})
    method = CycleGANSettings.model_validate({**SMALL, **settings}).build(sides)
    # Weights of 0.02, as drawn, give outputs near 0, where any two networks agree: these give images of any value.
    for layer in method.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and not hasattr(layer, "parametrizations"):
            nn.init.normal_(layer.weight, 0.0, (layer.weight[0].numel()) ** -0.5)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, 0.0, 0.1)
    return method


def batch_of(count: int = 1, a: int = 3, b: int = 3, size: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    widths = {"A": a, "B": b}
    return {side: torch.rand(count, width, size, size, generator=generator) * 2 - 1 for side, width in widths.items()}


def moving(turn: Turn, method: CycleGAN) -> None:
    """As the trainer has it: weights of the turn's player alone ask for gradients."""
    for name, player in method.players.items():
        player.requires_grad_(name == turn.player)


def step_of(method: CycleGAN, batch: Mapping[str, Tensor], due: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The terms of both turns on one batch; gradients of their weighted sums stand in the parameters."""
    method.zero_grad()
    method.requires_grad_(True)
    shared = method.shared(batch, BOTH)
    found: dict[str, Tensor] = {}
    for turn in (GENERATORS, Turn("discriminators", due)):
        moving(turn, method)
        terms = method.losses(turn, batch, shared)
        if terms:
            sum((method.weights[name] * term for name, term in terms.items()), torch.zeros(())).backward()
        found |= terms
    method.requires_grad_(True)
    return {name: term.detach() for name, term in found.items()}


# ---- the paper, written out ------------------------------------------------------------------------------------------


class PlainPool:
    """Section 4: 50 past images; while it fills an image is returned as it is; then half of the time a past one is
    returned, and the image takes its place. The chances are given, so that the test can draw them alike."""

    def __init__(self, size: int) -> None:
        self.size, self.images = size, list[Tensor]()

    def query(self, image: Tensor, swap: bool, place: int) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if not swap:
            return image
        old, self.images[place] = self.images[place], image.clone()
        return old


def squared(logits: Tensor, target: float) -> Tensor:
    return nn.functional.mse_loss(logits, torch.full_like(logits, target))


class Plain:
    """G, F, D_A and D_B and their losses as in Zhu et al. 2017, equations 1 to 3 and sections 4 and 5.2."""

    def __init__(self, method: CycleGAN, pool: int = 50) -> None:
        self.g, self.f = (copy.deepcopy(method.players["generators"][d]) for d in ("AtoB", "BtoA"))
        self.d_a, self.d_b = (copy.deepcopy(method.players["discriminators"][side]) for side in "AB")
        self.pools = {side: PlainPool(pool) for side in "AB"}
        self.size = pool

    def step(
        self,
        a: Tensor,
        b: Tensor,
        *,
        cycle: tuple[float, float] = (10.0, 10.0),
        identity: tuple[float, float] = (5.0, 5.0),
        adversarial: float = 1.0,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Images made and terms of one step; the gradients stand in the networks."""
        g, f, d_a, d_b = self.g, self.f, self.d_a, self.d_b
        for network in (g, f, d_a, d_b):
            network.zero_grad()
        fake_b, fake_a = g(a), f(b)
        made = {"fake_B": fake_b, "fake_A": fake_a}
        terms = {
            "adversarial_B": squared(d_b(fake_b), 1.0),
            "adversarial_A": squared(d_a(fake_a), 1.0),
            "cycle_A": (f(fake_b) - a).abs().mean(),
            "cycle_B": (g(fake_a) - b).abs().mean(),
        }
        loss = adversarial * (terms["adversarial_A"] + terms["adversarial_B"])
        loss = loss + cycle[0] * terms["cycle_A"] + cycle[1] * terms["cycle_B"]
        if any(identity):
            made |= {"same_A": f(a), "same_B": g(b)}
            terms |= {"identity_A": (made["same_A"] - a).abs().mean(), "identity_B": (made["same_B"] - b).abs().mean()}
            loss = loss + identity[0] * terms["identity_A"] + identity[1] * terms["identity_B"]
        loss.backward()
        for network in (d_a, d_b):  # they were in the generators' graph
            network.zero_grad()

        for side, network, real, fake in (("A", d_a, a, fake_a), ("B", d_b, b, fake_b)):
            swaps, places = torch.rand(len(fake)) < 0.5, torch.randint(self.size, (len(fake),))
            shown = [
                self.pools[side].query(image, bool(swap), int(place))
                for image, swap, place in zip(fake.detach(), swaps, places, strict=True)
            ]
            of_fake = squared(network(torch.stack(shown)), 0.0)
            terms[f"discriminator_{side}"] = squared(network(real), 1.0) + of_fake
            (0.5 * terms[f"discriminator_{side}"]).backward()
        return made, {name: term.detach() for name, term in terms.items()}

    def networks(self, method: CycleGAN) -> list[tuple[nn.Module, nn.Module]]:
        generators, discriminators = method.players["generators"], method.players["discriminators"]
        return [
            (self.g, generators["AtoB"]),
            (self.f, generators["BtoA"]),
            (self.d_a, discriminators["A"]),
            (self.d_b, discriminators["B"]),
        ]


def assert_same_gradients(one: nn.Module, two: nn.Module) -> None:
    """To 1e-5 of the network's largest: float32 sums of some thousand products, in another order where images share a
    pass, are right to about sqrt(1000) * 6e-8 = 2e-6 of their terms; the rest is room for the ten layers."""
    found, wanted = ({name: p.grad for name, p in network.named_parameters()} for network in (one, two))
    largest = max(float(gradient.abs().max()) for gradient in wanted.values() if gradient is not None)
    assert largest > 1e-4  # there is something to agree on
    for name, gradient in wanted.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(
                found[name], gradient, rtol=0, atol=1e-5 * largest, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_outputs_terms_and_gradients_are_the_paper_s(count: int, together: bool) -> None:
    method, batch = make(), batch_of(count)
    assert method.together  # instance norm
    method.together = together
    plain = Plain(method)
    torch.manual_seed(5)
    shared = method.shared(batch, BOTH)
    torch.manual_seed(5)
    terms = step_of(method, batch)
    torch.manual_seed(5)
    made, wanted = plain.step(batch["A"], batch["B"])
    assert set(shared) == set(made) and set(terms) == set(wanted)
    for name, images in made.items():
        assert images.std() > 0.1  # no grey pictures
        torch.testing.assert_close(shared[name], images, rtol=0, atol=1e-5)
    for name, term in wanted.items():
        assert term.dtype == torch.float32 and term.ndim == 0
        torch.testing.assert_close(terms[name], term, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for own, method_s in plain.networks(method):
        assert_same_gradients(own, method_s)


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    # name: data, settings, the plain step's weights, channels of A and B
    "identity off": ({}, {"identity_weight": 0}, {"identity": (0, 0)}, (3, 3)),
    "identity only": (
        {},
        {"adversarial_weight": 0, "identity_weight": 0.3},
        {"adversarial": 0.0, "identity": (3.0, 3.0)},
        (3, 3),
    ),
    "grey to colour": ({"A": {"channels": 1}}, {"identity_weight": 0}, {"identity": (0, 0)}, (1, 3)),
    "sides that differ": (
        {},
        {"side_weights": {"A": 2.0, "B": 0.25}},
        {"cycle": (20.0, 2.5), "identity": (10.0, 1.25)},
        (3, 3),
    ),
    "another lambda": ({}, {"cycle": {"weight": 4}}, {"cycle": (4.0, 4.0), "identity": (2.0, 2.0)}, (3, 3)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_their_sums(variant: str) -> None:
    data, settings, weights, (a, b) = VARIANTS[variant]
    method, batch = make(data, **settings), batch_of(2, a, b)
    plain = Plain(method)
    torch.manual_seed(5)
    terms = step_of(method, batch)
    torch.manual_seed(5)
    _, wanted = plain.step(batch["A"], batch["B"], **weights)
    if variant == "identity only":
        wanted = {name: term for name, term in wanted.items() if not name.startswith("adversarial")}
    assert set(terms) == set(wanted)
    for name, term in wanted.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for own, method_s in plain.networks(method):
        assert_same_gradients(own, method_s)


def test_each_side_s_discriminator_has_a_pool_of_its_own() -> None:
    """Twelve steps with a pool of 3, which then gives back old fakes of other images."""
    method = make(replay=3)
    plain = Plain(method, pool=3)
    swapped = 0
    for step in range(12):
        batch = batch_of(1 + step)
        batch = {side: images[:1] for side, images in batch.items()}
        torch.manual_seed(step)
        terms = step_of(method, batch)
        torch.manual_seed(step)
        made, wanted = plain.step(batch["A"], batch["B"])
        for side in "AB":
            torch.testing.assert_close(
                terms[f"discriminator_{side}"], wanted[f"discriminator_{side}"], rtol=1e-5, atol=0
            )
            kept = torch.stack([row for (row,) in method._adversary(side).pool.kept])
            torch.testing.assert_close(kept, torch.stack(plain.pools[side].images), rtol=0, atol=1e-5)
            swapped += step >= 3 and any(
                torch.equal(made[f"fake_{side}"][0], image) for image in plain.pools[side].images
            )
        for own, method_s in plain.networks(method)[2:]:  # the discriminators
            assert_same_gradients(own, method_s)
    assert 4 < swapped < 18  # of 18: both happened


def test_the_paper_s_weights() -> None:
    """lambda 10, identity half of that, D's objective halved (sections 4 and 5.2)."""
    method = CycleGANSettings().build(UnpairedSettings(root="x"))
    paper = {"adversarial": 1.0, "cycle": 10.0, "identity": 5.0, "discriminator": 0.5}
    assert method.weights == {f"{name}_{side}": weight for name, weight in paper.items() for side in "AB"}
    assert [turn.player for turn in method.turns(0)] == ["generators", "discriminators"]  # the authors' order
    assert all(adversary.pool.size == 50 for adversary in method.adversaries.values())


# ---- networks --------------------------------------------------------------------------------------------------------


def parameters_of_resnet(blocks: int) -> int:
    """Section 7.2: c7s1-64, d128, d256, R256 (two 3x3 each), u128, u64, c7s1-3; each with a bias, norms without."""
    around = (3 * 49 + 1) * 64 + (64 * 49 + 1) * 3
    down, up = (64 * 9 + 1) * 128 + (128 * 9 + 1) * 256, (256 * 9 + 1) * 128 + (128 * 9 + 1) * 64
    return around + down + up + blocks * 2 * (256 * 9 + 1) * 256


@pytest.mark.parametrize(("blocks", "millions"), [(9, 11.378), (6, 7.838)])
def test_the_networks_have_the_paper_s_size(blocks: int, millions: float) -> None:
    generator = {"kind": "resnet", "blocks": blocks}
    with torch.device("meta"):
        method = CycleGANSettings.model_validate({"generator": generator}).build(UnpairedSettings(root="x"))
    for network in method.players["generators"].values():
        assert count_parameters(network) == parameters_of_resnet(blocks)
        assert round(count_parameters(network) / 1e6, 3) == millions
    # C64-C128-C256-C512 and one logit, 4x4 each.
    patch = sum((i * 16 + 1) * o for i, o in itertools.pairwise([3, 64, 128, 256, 512, 1]))
    for network in method.players["discriminators"].values():
        assert isinstance(network, PatchDiscriminator)
        assert count_parameters(network) == patch and round(patch / 1e6, 3) == 2.765
        assert network.receptive_field == 70


def test_a_logit_of_the_discriminator_hears_of_70_pixels() -> None:
    """By its gradient, without the norms, which hear of the whole image."""
    settings = {"discriminator": {"kind": "patch", "width": 2, "norm": "none"}}
    network = make(**settings).players["discriminators"]["A"]
    image = torch.randn(1, 3, 160, 160, requires_grad=True)
    logits = network(image)
    (gradient,) = torch.autograd.grad(logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2], image)
    for axis in (2, 3):
        heard = gradient.abs().sum(dim=tuple(d for d in range(4) if d != axis)).nonzero().flatten()
        assert heard[-1] - heard[0] + 1 == 70


# ---- work that is not needed is not done -----------------------------------------------------------------------------


def images_through(method: CycleGAN, batch: Mapping[str, Tensor]) -> tuple[Counter[str], Counter[str]]:
    """Passes and images through each network in one step."""
    passes: Counter[str] = Counter()
    images: Counter[str] = Counter()
    for group in method.players.values():
        for name, network in group.items():

            def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Any, name: str = name) -> None:
                passes[name] += 1
                images[name] += len(inputs[0])

            # A discriminator's first convolution, for `features` does not call the module itself.
            (network.blocks[0] if name in "AB" else network).register_forward_hook(count)
    step_of(method, batch)
    return passes, images


@pytest.mark.parametrize(
    ("settings", "weights", "passes", "images"),
    [
        # Each generator: real and identity in one pass, the cycle. Each discriminator: the game's, its own two in one.
        ({}, {}, (2, 2), (3, 3)),
        ({"generator": {"kind": "resnet", "blocks": 1, "width": 4, "norm": "batch"}}, {}, (3, 2), (3, 3)),
        ({"discriminator": {**SMALL["discriminator"], "norm": "batch"}}, {}, (2, 3), (3, 3)),
        ({"identity_weight": 0}, {}, (2, 2), (2, 3)),
        ({}, {"identity": 0.0}, (2, 2), (2, 3)),
        ({}, {"cycle": 0.0}, (1, 2), (2, 3)),
        ({}, {"adversarial": 0.0}, (2, 1), (3, 2)),
        ({}, {"discriminator": 0.0}, (2, 1), (3, 1)),
        ({}, {"discriminator": 0.0, "adversarial": 0.0}, (2, 0), (3, 0)),
        ({"objective": "relativistic"}, {}, (2, 3), (3, 4)),  # and D of real, for the generators
    ],
)
def test_a_term_of_weight_zero_is_not_computed(
    settings: dict[str, Any], weights: dict[str, float], passes: tuple[int, int], images: tuple[int, int]
) -> None:
    method = make(**settings)
    method.weights |= {f"{name}_{side}": weight for name, weight in weights.items() for side in "AB"}
    counted = images_through(method, batch_of())
    for found, (of_generator, of_discriminator) in zip(counted, (passes, images), strict=True):
        wanted = {"AtoB": of_generator, "BtoA": of_generator, "A": of_discriminator, "B": of_discriminator}
        assert found == Counter({name: number for name, number in wanted.items() if number})


def test_one_side_s_terms_go_alone() -> None:
    method = make()
    method.weights |= {"cycle_A": 0.0, "identity_B": 0.0, "adversarial_A": 0.0, "discriminator_B": 0.0}
    terms = step_of(method, batch_of())
    assert set(terms) == {"cycle_B", "identity_A", "adversarial_B", "discriminator_A"}


def test_in_the_generators_turn_discriminators_get_no_gradient_and_the_other_way_round() -> None:
    method, batch = make(), batch_of()
    shared = method.shared(batch, BOTH)
    for turn, other in ((GENERATORS, "discriminators"), (DISCRIMINATORS, "generators")):
        method.zero_grad()
        moving(turn, method)
        sum(method.losses(turn, batch, shared).values(), torch.zeros(())).backward()
        assert all(p.grad is None for p in method.players[other].parameters())
        assert all(p.grad is not None for p in method.players[turn.player].parameters())


def test_fakes_reach_the_discriminators_without_their_graph() -> None:
    method, batch = make(), batch_of()
    shared = method.shared(batch, BOTH)
    for name, term in method.losses(DISCRIMINATORS, batch, shared).items():
        gradients = torch.autograd.grad(term, list(shared.values()), allow_unused=True, retain_graph=True)
        assert gradients == (None,) * 4, name


def test_what_is_shared_has_a_graph_and_identities_only_where_generators_move() -> None:
    method, batch = make(), batch_of()
    alone = method.shared(batch, {"discriminators"})
    assert set(alone) == {"fake_A", "fake_B"} and not any(images.requires_grad for images in alone.values())
    assert all(images.requires_grad for images in method.shared(batch, BOTH).values())


def test_images_of_unequal_sizes_go_alone() -> None:
    method = make()
    batch = {"A": batch_of()["A"], "B": batch_of(size=24)["B"]}
    plain = Plain(method)
    torch.manual_seed(5)
    terms = step_of(method, batch)
    torch.manual_seed(5)
    _, wanted = plain.step(batch["A"], batch["B"])
    for name, term in wanted.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-5, atol=1e-6)


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l1", "l2", "charbonnier"])
def test_cycle_and_identity_are_the_chosen_distance(kind: str) -> None:
    method, batch = make(cycle={"kind": kind, "weight": 3.0}), batch_of(2)
    distance = ReconstructionSettings(kind=kind).build()
    g, f = method.translator("AtoB"), method.translator("BtoA")
    terms = step_of(method, batch)
    torch.testing.assert_close(terms["cycle_A"], distance(f(g(batch["A"])), batch["A"]).detach())
    torch.testing.assert_close(terms["identity_B"], distance(g(batch["B"]), batch["B"]).detach())
    assert method.weights["cycle_B"] == 3.0 and method.weights["identity_B"] == 1.5


OBJECTIVES: list[Any] = [
    "minimax",
    "non-saturating",
    "least-squares",
    {"kind": "least-squares", "coding": "-1/1/0"},
    "hinge",
    "wasserstein",
    "relativistic",
    {"kind": "relativistic-average", "base": "least-squares"},
    "ebgan",
    "began",
    {"kind": "f-gan", "divergence": "jensen-shannon"},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_any_game_is_played_on_both_sides(objective: Any) -> None:
    """Terms are the objective's own of each side's logits; two steps of all players stay numbers."""
    method, batch = make(objective=objective, replay=0), batch_of(2)
    shared = {name: images.detach() for name, images in method.shared(batch, BOTH).items()}
    terms = step_of(method, batch)
    fresh = CycleGANSettings.model_validate({"objective": objective}).objective.build()
    for side in "AB":
        judge = method.players["discriminators"][side]
        real, fake = judge(batch[side]), judge(shared[f"fake_{side}"])
        torch.testing.assert_close(terms[f"discriminator_{side}"], fresh.discriminator(real, fake).detach())
        needed = real if fresh.needs_real else None
        torch.testing.assert_close(terms[f"adversarial_{side}"], fresh.generator(fake, needed).detach())
    trains(method, batch)


def trains(method: CycleGAN, batch: Mapping[str, Tensor], steps: int = 2) -> None:
    """All weights move and stay finite. (A bias may stand still: a Wasserstein critic's last one cancels.)"""
    before = {name: p.detach().clone() for name, p in method.players.named_parameters()}
    optimiser = torch.optim.Adam(method.players.parameters(), lr=1e-3, betas=(0.5, 0.999))
    for step in range(steps):
        terms = step_of(method, batch, method.turns(step)[1].terms)
        assert all(term.isfinite() for term in terms.values())
        optimiser.step()
    after = dict(method.players.named_parameters())
    assert all(p.isfinite().all() for p in after.values())
    assert not any(torch.equal(p, before[name]) for name, p in after.items() if not name.endswith("bias"))


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"generator": {"kind": "unet", "depth": 3, "width": 4, "norm": "batch"}}, 2),
        ({"discriminator": {**SMALL["discriminator"], "spectral_norm": True}}, 1),
        ({"discriminator": {"kind": "pixel", "width": 4, "norm": "instance"}}, 1),
        ({"augmentations": [{"kind": "diffaugment"}]}, 1),
        ({"augmentations": [{"kind": "adaptive", "start": 0.5, "interval": 1, "images": 10}]}, 2),
        ({"penalties": [{"kind": "r1", "weight": 1.0, "every": 2}, {"kind": "gradient-penalty"}]}, 2),
        ({}, 4),
    ],
    ids=str,
)
def test_options_train(settings: dict[str, Any], count: int) -> None:
    trains(make(**settings), batch_of(count))


def test_batch_norm_keeps_the_order_of_separate_passes() -> None:
    """Statistics of fakes, identities and cycles must not mix: terms and gradients are those of six passes."""
    method = make(generator={"kind": "unet", "depth": 3, "width": 4, "norm": "batch", "dropout": 0.0})
    assert not method.together
    batch, plain = batch_of(3), Plain(method)
    torch.manual_seed(5)
    terms = step_of(method, batch)
    torch.manual_seed(5)
    _, wanted = plain.step(batch["A"], batch["B"])
    for name, term in wanted.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-5, atol=1e-6)
    for own, method_s in plain.networks(method):
        assert_same_gradients(own, method_s)


def test_r1_is_each_side_s_own_slope_and_counts_k_times_in_one_step_of_k() -> None:
    method = make(penalties=[{"kind": "r1", "weight": 2.0, "every": 3}])
    assert [method.turns(step)[1].terms for step in range(4)] == [("r1",), (), (), ("r1",)]
    assert method.weights["r1_A"] == method.weights["r1_B"] == 6.0
    batch = batch_of(2)
    assert not any(name.startswith("r1") for name in step_of(method, batch))
    found = step_of(method, batch, ("r1",))
    for side in "AB":
        slopes = []
        for image in batch[side]:
            x = image[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(method.players["discriminators"][side](x).mean(), x)
            slopes.append(gradient.square().sum())
        torch.testing.assert_close(found[f"r1_{side}"], torch.stack(slopes).mean())


def test_both_players_look_through_the_augmentations() -> None:
    """An augmentation that halves: D of halved images, for its own turn and the generators'."""

    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

        def update(self, real_logits: Tensor) -> dict[str, Tensor]:
            return {}

    method, batch = make(replay=0, objective="relativistic"), batch_of(2)
    objective = method._adversary("A").objective
    for side in "AB":
        method._adversary(side).augmentations.append(Halved())
    shared = method.shared(batch, BOTH)
    for side in "AB":
        judge = method.players["discriminators"][side]
        real, fake = judge(batch[side] / 2), judge(shared[f"fake_{side}"] / 2)
        of_discriminator = method.losses(DISCRIMINATORS, batch, shared)[f"discriminator_{side}"]
        of_generator = method.losses(GENERATORS, batch, shared)[f"adversarial_{side}"]
        torch.testing.assert_close(of_discriminator, objective.discriminator(real, fake))
        torch.testing.assert_close(of_generator, objective.generator(fake, real))


def tiny_lpips() -> LPIPS:
    """AlexNet's with random weights: what is tested is where it stands, not what it knows."""
    generator = torch.Generator().manual_seed(0)
    from translate.pretrained.lpips import _NETWORKS

    shapes = dict(_NETWORKS["alex"].shapes())
    return LPIPS("alex", {name: torch.rand(shape, generator=generator) * 0.01 for name, shape in shapes.items()})


def test_the_cycle_may_be_compared_by_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    distance = tiny_lpips()
    monkeypatch.setattr(LPIPS, "load", classmethod(lambda cls, kind: distance))
    method = make(cycle_lpips={"network": "alex", "weight": 3.0}, side_weights={"A": 1.0, "B": 0.5})
    assert (method.weights["cycle_lpips_A"], method.weights["cycle_lpips_B"]) == (3.0, 1.5)
    assert not any("lpips" in name for name in method.state_dict())
    batch = batch_of(2, size=32)
    g, f = method.translator("AtoB"), method.translator("BtoA")
    wanted = distance(f(g(batch["A"])), batch["A"]).mean().detach()
    both = step_of(method, batch)
    torch.testing.assert_close(both["cycle_lpips_A"], wanted)
    method.weights |= {"cycle_A": 0.0, "cycle_B": 0.0}
    looks = step_of(method, batch)  # by looks alone
    assert "cycle_A" not in looks and torch.equal(looks["cycle_lpips_A"], both["cycle_lpips_A"])
    method.weights |= {"cycle_lpips_A": 0.0, "cycle_lpips_B": 0.0}
    assert not any("lpips" in name for name in step_of(method, batch))


def test_conversion_needs_no_lpips_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LPIPS, "load", classmethod(lambda cls, kind: pytest.fail("read")))
    settings = CycleGANSettings.model_validate({**SMALL, "cycle_lpips": {}})
    method = settings.build(UnpairedSettings(root="x"), inference=True)
    assert method.lpips is None


# ---- what is told ----------------------------------------------------------------------------------------------------


def reports_of(method: CycleGAN, batch: Mapping[str, Tensor]) -> dict[str, float]:
    step_of(method, batch)
    return {name: float(value) for name, value in method.take_reports().items()}


def test_reports_tell_the_sides_apart() -> None:
    method, batch = make(replay=0), batch_of(2)
    found = reports_of(method, batch)
    assert set(found) == {
        *("D_A(real)", "D_A(fake)", "D_B(real)", "D_B(fake)"),
        *("light kept/AtoB", "light kept/BtoA", "flat picture/A", "flat picture/B"),
    }
    for side, start, direction in (("A", "B", "BtoA"), ("B", "A", "AtoB")):
        judge = method.players["discriminators"][side]
        fake = method.translator(direction)(batch[start])
        assert found[f"D_{side}(real)"] == pytest.approx(judge(batch[side]).mean().item(), rel=1e-4)
        assert found[f"D_{side}(fake)"] == pytest.approx(judge(fake).mean().item(), rel=1e-4)
        light = [x.mean(dim=1).flatten(1).detach().double() for x in (batch[start], fake)]
        each = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(*light, strict=True)]
        assert found[f"light kept/{direction}"] == pytest.approx(sum(each) / 2, abs=1e-5)
    for side in "AB":
        flat = np.median(batch[side].numpy(), axis=(2, 3), keepdims=True)
        # Of 256 values the lower of the two in the middle is taken, which costs the same.
        assert found[f"flat picture/{side}"] == pytest.approx(np.abs(batch[side].numpy() - flat).mean(), rel=1e-4)


def test_generators_that_invert_contrast_are_told_of() -> None:
    """fake = -x is a perfect cycle; the identity term and the light tell. With fake = x nothing is told."""

    def told(sign: float) -> list[str]:
        method, batch = make(), batch_of(2)
        for network in method.players["generators"].values():
            network.register_forward_hook(lambda m, inputs, output: sign * inputs[0] + 0 * output)
        for step in range(1000):
            method.turns(step)
        shared = method.shared(batch, BOTH)
        terms = {f"generators/{n}": v.item() for n, v in method.losses(GENERATORS, batch, shared).items()}
        return method.warnings({**terms, **{name: value.item() for name, value in method.take_reports().items()}})

    assert [line.split(" ")[0] for line in told(-1.0)] == ["AtoB", "BtoA", "identity_A", "identity_B"]
    assert told(1.0) == []


def test_label_maps_have_no_light_to_keep() -> None:
    method = make({"B": {"kind": "labels", "classes": 4}}, identity_weight=0)
    found = reports_of(method, batch_of(1, 3, 4))
    assert not any(name.startswith("light kept") for name in found) and "flat picture/B" in found


# ---- what is made of it ----------------------------------------------------------------------------------------------


def test_both_generators_are_exported_and_translate() -> None:
    method = make({"A": {"channels": 1}}, identity_weight=0)
    assert list(method.exported()) == list(method.directions) == ["AtoB", "BtoA"]
    batch = batch_of(1, 1, 3)
    assert method.translator("AtoB")(batch["A"]).shape == batch["B"].shape
    assert method.translator("BtoA")(batch["B"]).shape == batch["A"].shape
    assert all(method.translator(direction) is network for direction, network in method.exported().items())


def test_previews_go_there_and_back() -> None:
    method, batch = make().eval(), batch_of(2)
    strips = method.previews(batch)
    assert list(strips) == ["A", "A to B", "A to B to A", "B", "B to A", "B to A to B"]
    g, f = method.translator("AtoB"), method.translator("BtoA")
    wanted = [batch["A"], g(batch["A"]), f(g(batch["A"])), batch["B"], f(batch["B"]), g(f(batch["B"]))]
    for strip, images in zip(strips.values(), wanted, strict=True):
        torch.testing.assert_close(strip, images)


def test_comparisons_hold_each_direction_and_each_cycle_against_its_side() -> None:
    data = {"A": {"channels": 1}, "B": {"kind": "labels", "classes": 3}}
    method, batch = make(data, identity_weight=0).eval(), batch_of(2, 1, 3)
    assert dict(method.compares) == {"AtoB": False, "BtoA": False, "cycle A": True, "cycle B": True}
    found = method.comparisons(batch, torch.Generator())
    assert list(found) == list(method.compares)
    g, f = method.translator("AtoB"), method.translator("BtoA")
    wanted = {
        "AtoB": (g(batch["A"]), "B"),
        "BtoA": (f(batch["B"]), "A"),
        "cycle A": (f(g(batch["A"])), "A"),
        "cycle B": (g(f(batch["B"])), "B"),
    }
    for name, (output, side) in wanted.items():
        torch.testing.assert_close(found[name].output, output)
        assert found[name].target is batch[side] and found[name].spec == method.specs[side]


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        (FolderSettings(root="x"), {}, "learns from two folders: data.kind must be 'unpaired', not 'folder'"),
        (
            UnpairedSettings.model_validate({"root": "x", "A": {"channels": 1}}),
            {},
            "method.identity_weight: side A has 1",
        ),
        (
            UnpairedSettings.model_validate({"root": "x", "A": {"kind": "labels", "classes": 3}}),
            {"cycle_lpips": {}},
            "LPIPS compares grey or RGB pictures",
        ),
        *(
            (UnpairedSettings.model_validate({"root": "x", "augment": augment}), settings, "data.augment.crop: a relat")
            for augment in ({"crop": None, "resize": None}, {"crop": None, "resize": 40, "resize_by": "shorter"})
            for settings in ({"objective": "relativistic"}, {"penalties": [{"kind": "gradient-penalty"}]})
        ),
    ],
)
def test_what_does_not_fit_is_told(data: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        CycleGANSettings.model_validate({**SMALL, **settings}).build(data)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("augment", [{"crop": 16, "resize": None}, {"crop": None, "resize": 16}], ids=str)
def test_images_of_one_size_may_be_held_against_each_other(augment: dict[str, Any]) -> None:
    method = make({"augment": augment}, objective="relativistic", penalties=[{"kind": "gradient-penalty"}])
    assert all(term.isfinite() for term in step_of(method, batch_of(), ("gradient_penalty",)).values())


@pytest.mark.parametrize(("sizes", "said"), [((18, 16), "18x18"), ((16, 8), "8x8")])
def test_images_that_a_network_cannot_take_are_told(sizes: Sequence[int], said: str) -> None:
    batch = {"A": batch_of(size=sizes[0])["A"], "B": batch_of(size=sizes[1])["B"]}
    with pytest.raises(UserError, match=f"data.augment: images of {said} do not fit the"):
        make().check(batch)
