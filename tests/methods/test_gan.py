"""The GAN's turns and terms against their formulas, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from translate.data import FolderSettings, ToySettings
from translate.errors import UserError
from translate.losses.adversarial import HingeSettings
from translate.methods.base import Turn
from translate.methods.gan import GAN, GANSettings

torch.set_num_threads(1)

MLP: dict[str, Any] = {
    "generator": {"kind": "mlp", "hidden": [8]},
    "discriminator": {"kind": "mlp", "hidden": [8]},
    "latent": {"width": 3},
}
IMAGES = FolderSettings.model_validate(
    {"root": "x", "image": {"channels": 1}, "augment": {"resize": 8, "crop": 8, "flip": False}, "classes": ["a", "b"]}
)


def make(data: FolderSettings | ToySettings | None = None, **settings: Any) -> GAN:
    torch.manual_seed(0)
    return GANSettings.model_validate({**MLP, **settings}).build(data or ToySettings())


def points(count: int = 6) -> dict[str, Tensor]:
    return {"point": torch.randn(count, 2, generator=torch.Generator().manual_seed(1))}


def images(count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1,
        "label": torch.arange(count) % 2,
    }


def terms_of(method: GAN, batch: dict[str, Tensor], player: str, due: tuple[str, ...] = ()) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return method.losses(Turn(player, due), batch, method.shared(batch, {"generator"}))


# ---- who moves when ------------------------------------------------------------------------------------------------


def test_the_generator_moves_each_nth_step() -> None:
    moves = [[turn.player for turn in make(discriminator_steps=3).turns(step)] for step in range(6)]
    alone, both = ["discriminator"], ["discriminator", "generator"]
    assert moves == [alone, alone, both, alone, alone, both]


def test_a_lazy_penalty_is_due_each_kth_step_and_counts_k_times() -> None:
    method = make(penalties=[{"kind": "r1", "weight": 0.5, "every": 4}])
    assert ["r1" in method.turns(step)[0].terms for step in range(6)] == [True, False, False, False, True, False]
    assert method.weights["r1"] == 2.0
    assert "r1" not in terms_of(method, points(), "discriminator")
    assert "r1" in terms_of(method, points(), "discriminator", ("r1",))


def test_a_lazy_term_of_the_generator_counts_its_own_moves() -> None:
    regulariser = {"kind": "historical", "player": "generator", "weight": 1.0, "every": 2}
    method = make(regularisers=[regulariser], discriminator_steps=3)
    moves = [turn.terms for step in range(12) for turn in method.turns(step) if turn.player == "generator"]
    assert moves == [("historical_generator",), (), ("historical_generator",), ()]


# ---- terms ---------------------------------------------------------------------------------------------------------


def test_the_game_on_the_same_fakes() -> None:
    method, batch = make(objective="hinge"), points()
    shared = method.shared(batch, {"generator"})
    objective = HingeSettings().build()
    real, fake = (method.critic(x) for x in (batch["point"], shared["fake"]))
    of_discriminator = method.losses(Turn("discriminator"), batch, shared)
    of_generator = method.losses(Turn("generator"), batch, shared)
    torch.testing.assert_close(of_discriminator, {"discriminator": objective.discriminator(real, fake)})
    torch.testing.assert_close(of_generator, {"adversarial": objective.generator(fake)})
    of_discriminator["discriminator"].backward()
    assert all(p.grad is None for p in method.generator.parameters())


def test_without_the_generator_s_turn_nothing_remembers_how_the_fake_was_made() -> None:
    assert not make().shared(points(), {"discriminator"})["fake"].requires_grad


def test_penalties_see_what_the_discriminator_sees() -> None:
    """R1 of a critic behind one-hot planes, by a loop over the examples."""
    method = make(IMAGES, conditioning={"discriminator": "concat"}, penalties=[{"kind": "r1", "weight": 1.0}])
    batch = images(3)
    found = terms_of(method, batch, "discriminator", ("r1",))["r1"]
    wanted = []
    for image, label in zip(batch["image"], batch["label"], strict=True):
        x = image[None].clone().requires_grad_()
        planes = F.one_hot(label, 2).float().reshape(1, 2, 1, 1).expand(1, 2, 8, 8)
        (gradient,) = torch.autograd.grad(method.critic(torch.cat([x, planes], dim=1)).sum(), x)
        wanted.append(gradient.square().sum())
    torch.testing.assert_close(found, torch.stack(wanted).mean())
    found.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.critic.parameters())


def test_projection_and_conditional_norm_take_the_label() -> None:
    networks = {
        "generator": {"kind": "dcgan", "width": 2},
        "discriminator": {"kind": "dcgan", "width": 2, "norm": "none"},
        "conditioning": {"generator": "norm", "discriminator": "projection"},
    }
    method, batch = make(IMAGES, **networks), images()
    other = {**batch, "label": 1 - batch["label"]}
    torch.nn.init.normal_(method.critic.embedding.weight)
    assert terms_of(method, batch, "generator") != terms_of(method, other, "generator")
    assert method.generator.classes == 2 and method.critic.classes == 2


def test_the_auxiliary_classifier_learns_from_real_and_fake() -> None:
    method = make(IMAGES, conditioning={"discriminator": "none", "classifier_weight": 1.0})
    batch = images()
    torch.manual_seed(2)
    shared = method.shared(batch, {"generator"})
    head = method.critic.heads["classes"]
    wrong = [
        F.cross_entropy(head(method.critic.judge(x).features), batch["label"]) for x in (batch["image"], shared["fake"])
    ]
    of_discriminator = method.losses(Turn("discriminator"), batch, shared)
    of_generator = method.losses(Turn("generator"), batch, shared)
    torch.testing.assert_close(of_discriminator["classes"], wrong[0] + wrong[1])
    torch.testing.assert_close(of_generator["classes"], wrong[1])


def test_codes_reach_both_players() -> None:
    method = make(codes={"categorical": [4], "continuous": 1})
    terms_of(method, points(), "generator")["information"].backward()
    assert all(p.grad is not None for p in method.generator.parameters())
    method.zero_grad()
    terms_of(method, points(), "discriminator")["information"].backward()
    assert all(p.grad is not None for p in method.critic.heads.parameters())
    assert all(p.grad is None for p in method.generator.parameters())


def test_feature_matching_and_pulling_away() -> None:
    method, batch = make(feature_matching_weight=1.0, pulling_away_weight=0.1, adversarial_weight=0.0), points()
    torch.manual_seed(2)
    shared = method.shared(batch, {"generator"})
    real, fake = (method.critic.judge(x).features for x in (batch["point"], shared["fake"]))
    terms = method.losses(Turn("generator"), batch, shared)
    assert set(terms) == {"feature_matching", "pulling_away"}
    torch.testing.assert_close(terms["feature_matching"], (real.mean(0) - fake.mean(0)).square().sum())
    cosines = torch.stack(
        [F.cosine_similarity(fake[i], fake[j], dim=0) ** 2 for i in range(6) for j in range(6) if i != j]
    )
    torch.testing.assert_close(terms["pulling_away"], cosines.mean())


def test_the_relativistic_generator_is_told_of_the_real() -> None:
    method, batch = make(objective="relativistic"), points()
    torch.manual_seed(2)
    shared = method.shared(batch, {"generator"})
    real, fake = method.critic(batch["point"]), method.critic(shared["fake"])
    terms = method.losses(Turn("generator"), batch, shared)
    torch.testing.assert_close(terms["adversarial"], F.softplus(real - fake).mean())


def test_the_pool_shows_old_fakes_to_the_discriminator_alone() -> None:
    method, batch = make(replay=6), points()
    first = method.shared(batch, {"generator"})
    method.losses(Turn("discriminator"), batch, first)
    seen: list[Tensor] = []
    judge = method.critic.judge
    method.critic.judge = lambda x, label=None: seen.append(x) or judge(x, label)
    second = method.shared(batch, {"generator"})
    method.losses(Turn("discriminator"), batch, second)
    old = [any(torch.equal(row, past) for past in first["fake"]) for row in seen[1]]
    assert any(old)
    method.losses(Turn("generator"), batch, second)
    assert torch.equal(seen[-1], second["fake"])


def test_clipping_and_history_follow_a_move() -> None:
    method = make(weight_clip=0.01, regularisers=[{"kind": "historical", "player": "generator", "weight": 1.0}])
    method.moved(Turn("discriminator"))
    assert max(p.abs().max() for p in method.critic.parameters()) <= 0.01
    with torch.no_grad():
        for p in method.generator.parameters():
            p += 1.0
    due = ("historical_generator",)
    count = sum(p.numel() for p in method.generator.parameters())
    term = terms_of(method, points(), "generator", due)["historical_generator"]
    torch.testing.assert_close(term, torch.tensor(float(count)))
    method.moved(Turn("generator"))  # the mean of the two is half-way now
    term = terms_of(method, points(), "generator", due)["historical_generator"]
    torch.testing.assert_close(term, torch.tensor(count / 4))


def test_two_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="'r1'"):
        make(penalties=[{"kind": "r1", "weight": 1.0}, {"kind": "r1", "weight": 2.0}])
    historical = {"kind": "historical", "player": "generator"}
    with pytest.raises(ValueError, match="two regularisers are called 'historical_generator'; leave one out"):
        make(regularisers=[historical, historical])
    with pytest.raises(ValueError, match="need each other"):
        make(bottleneck={})
    with pytest.raises(UserError, match="autoencoder"):
        make(IMAGES, discriminator={"kind": "autoencoder"}, codes={"categorical": [2]})


# ---- unrolling -------------------------------------------------------------------------------------------------------


def test_unrolling_is_the_gradient_through_the_discriminator_s_step() -> None:
    """d/dx L_G(theta - eta dL_D/dtheta(x), x) against central differences, in float64."""
    method = make(
        unrolling={"steps": 2, "rate": 0.5},
        generator={"kind": "mlp", "hidden": [4], "activation": "tanh"},
        discriminator={"kind": "mlp", "hidden": [4], "activation": "tanh"},
    ).double()
    batch = {"point": points()["point"].double()}
    latent = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def loss() -> Tensor:
        # The objective works in float32: its value is too coarse for differences, so the logits are compared.
        fake = method.generate(latent)
        logits, _ = method._unrolled(method.settings.unrolling, batch["point"], fake, None)
        return logits.sum()

    weight = method.generator.last.weight
    (gradient,) = torch.autograd.grad(loss(), weight)
    plain = torch.autograd.grad(method.critic(method.generate(latent)).sum(), weight)[0]
    assert (gradient - plain).abs().max() > 1e-3  # it does look ahead
    with torch.no_grad():
        for place in [(0, 0), (1, 2)]:
            # float32 inside the objective leaves about 1e-7 of noise in the gradients: steps of 1e-2, 1e-4 apart.
            kept = weight[place].clone()
            weight[place] = kept + 1e-2
            with torch.enable_grad():
                above = loss().detach()
            weight[place] = kept - 1e-2
            with torch.enable_grad():
                below = loss().detach()
            weight[place] = kept
            assert float((above - below) / 2e-2) == pytest.approx(float(gradient[place]), rel=1e-2, abs=1e-4)


def test_unrolling_leaves_the_other_terms_as_they_are() -> None:
    parts = {"feature_matching_weight": 1.0, "codes": {"categorical": [2]}}
    found = terms_of(make(unrolling={"steps": 1}, **parts), points(), "generator")
    plain = terms_of(make(**parts), points(), "generator")
    assert set(found) == set(plain) == {"adversarial", "feature_matching", "information"}
    torch.testing.assert_close(found["feature_matching"], plain["feature_matching"])


def test_unrolling_leaves_the_discriminator_as_it_was() -> None:
    method = make(unrolling={"steps": 3})
    before = {name: tensor.clone() for name, tensor in method.critic.state_dict().items()}
    terms_of(method, points(), "generator")["adversarial"].backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in method.critic.state_dict().items())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.generator.parameters())


# ---- any row of objectives x penalties x networks -------------------------------------------------------------------

OBJECTIVES = [
    "minimax", "non-saturating", "least-squares", "hinge", "wasserstein", "relativistic", "relativistic-average",
    "ebgan", "began", {"kind": "f-gan", "divergence": "kl"}, {"kind": "f-gan", "divergence": "reverse-kl"},
    {"kind": "f-gan", "divergence": "pearson"}, {"kind": "f-gan", "divergence": "squared-hellinger"},
    {"kind": "f-gan", "divergence": "jensen-shannon"},
]  # fmt: skip
PENALTIES = ["gradient-penalty", "dragan", "r1", "r2"]
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": MLP,
    "dcgan": {"generator": {"kind": "dcgan", "width": 2}, "discriminator": {"kind": "dcgan", "width": 2}},
    "residual": {"generator": {"kind": "residual", "width": 1}, "discriminator": {"kind": "residual", "width": 1}},
    "r3gan": {"generator": {"kind": "r3gan", "width": 4}, "discriminator": {"kind": "r3gan", "width": 4}},
    "autoencoder": {
        "generator": {"kind": "decoder", "width": 2},
        "discriminator": {"kind": "autoencoder", "width": 2, "code": 3},
    },
}


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_any_row_gives_both_players_gradients(objective: Any, networks: str) -> None:
    method = make(
        IMAGES, **{**MLP, **NETWORKS[networks]}, objective=objective, penalties=[{"kind": k} for k in PENALTIES]
    )
    names = tuple(method.adversary.penalties)
    assert len(names) == len(PENALTIES)
    for player, expected in (("discriminator", {"discriminator", *names}), ("generator", {"adversarial"})):
        method.zero_grad()
        terms = terms_of(method, images(), player, names)
        assert set(terms) == expected
        assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        moved = [p.grad for p in method.players[player].parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in moved)
        # A saturated game (EBGAN's margin, f-GAN) may give the generator little, but not nothing.
        assert sum(float(gradient.abs().sum()) for gradient in moved) > 0
