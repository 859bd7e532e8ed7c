"""One step of the trainer against a loop written by hand; precision; what a step that is no number leaves behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ALL_ON, SMALL, Listener, batches_of, make_run, same, tiny, train, trainer_for, write_pairs
from torch import Tensor, nn

from translate import config as configs
from translate.devices import cpu_multiplies_bf16
from translate.errors import UserError
from translate.run import load_weights
from translate.training.trainer import Trainer, plan

STAGE = {"length": "6 steps", "optimiser": {"lr": 1e-3}}
GAME = {"training": {"stages": [{**ALL_ON["training"]["stages"][1], "length": "40 steps"}]}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 3, "val")
    return write_pairs(folder, 12)


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.method.state_dict().items()}


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float) -> None:
    assert list(one) == list(two)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# ---- against a plain loop ----------------------------------------------------------------------------------------


def test_three_steps_equal_pix2pix_written_out(root: Path, tmp_path: Path) -> None:
    """Isola et al. 2017: D, then G against the new D on the same fake; D's loss halved; G's is BCE + 100 L1; Adam."""
    # Batch norm: a bias before an instance norm has no gradient but rounding, which Adam would blow up to whole steps.
    norms = {"method": {"generator": {"norm": "batch"}, "discriminator": {"norm": "batch"}}}
    trainer = trainer_for(tiny(root, norms), tmp_path)
    g = copy.deepcopy(trainer.method.players["generator"])
    d = copy.deepcopy(trainer.method.players["discriminator"])
    adam_g = torch.optim.Adam(g.parameters(), lr=1e-3, betas=(0.5, 0.999), fused=False)
    adam_d = torch.optim.Adam(d.parameters(), lr=1e-3, betas=(0.5, 0.999), fused=False)
    bce = nn.BCEWithLogitsLoss()
    start = {name: tensor.clone() for name, tensor in g.state_dict().items()}
    for (batch,) in batches_of(trainer, 3):
        trainer.step([batch])

        x, y = batch["A"], batch["B"]
        fake = g(x)
        real_logits, fake_logits = d(torch.cat([x, y], 1)), d(torch.cat([x, fake.detach()], 1))
        d_loss = bce(real_logits, torch.ones_like(real_logits)) + bce(fake_logits, torch.zeros_like(fake_logits))
        adam_d.zero_grad()
        (d_loss / 2).backward()
        adam_d.step()
        judged = d(torch.cat([x, fake], 1))
        adversarial, l1 = bce(judged, torch.ones_like(judged)), (fake - y).abs().mean()
        adam_g.zero_grad()
        (adversarial + 100 * l1).backward()
        adam_g.step()

        row = trainer.means.take()
        assert row["generator/reconstruction"] == pytest.approx(l1.item(), rel=1e-5)
        assert row["generator/adversarial"] == pytest.approx(adversarial.item(), rel=1e-5)
        assert row["discriminator/discriminator"] == pytest.approx(d_loss.item(), rel=1e-5)
        assert row["D(real)"] == pytest.approx(real_logits.sigmoid().mean().item(), rel=1e-5)
    players = trainer.method.players
    assert_close(g.state_dict(), players["generator"].state_dict(), 1e-6)
    assert_close(d.state_dict(), players["discriminator"].state_dict(), 1e-6)
    moved = max((players["generator"].state_dict()[name] - tensor).abs().max() for name, tensor in start.items())
    assert moved > 1e-3  # three steps of Adam at 1e-3: the agreement above is not that of networks at rest


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_two_passes_of_one_image_are_one_pass_of_two(norm: str, root: Path, tmp_path: Path) -> None:
    # SGD, since Adam divides by the gradient: it would turn the last bit of a gradient near zero into a whole step.
    stage = {"length": "6 steps", "optimiser": {"kind": "SGD", "lr": 1e-3, "momentum": 0.9}, "clip": 5.0}
    networks = {"method": {"generator": {"norm": norm}, "discriminator": {"norm": norm}}}
    found = []
    for batch_size in (1, 2):
        training = {"training": {"batch_size": batch_size, "accumulation": 2 // batch_size, "stages": [stage]}}
        trainer = trainer_for(tiny(root, networks, training), tmp_path / str(batch_size))
        for batches in batches_of(trainer, 3):
            trainer.step(batches)
        assert trainer.images == 6 and trainer.step_number == 3
        found.append((weights_of(trainer), trainer.means.take()))
    assert_close(found[0][0], found[1][0], 1e-6)
    for name, value in found[0][1].items():  # what is logged is the same as well, reports included
        assert value == pytest.approx(found[1][1][name], rel=1e-4), name


def test_dropout_is_drawn_anew_in_each_step_and_pass_but_alike_in_equal_runs(root: Path, tmp_path: Path) -> None:
    training = {"training": {"batch_size": 1, "accumulation": 2, "stages": [STAGE]}}
    found: list[list[Tensor]] = []
    for number in range(2):
        trainer = trainer_for(tiny(root, ALL_ON, training), tmp_path / str(number))
        drawn: list[Tensor] = []
        dropout = next(m for m in trainer.method.modules() if isinstance(m, nn.Dropout))
        dropout.register_forward_hook(lambda m, inputs, output, drawn=drawn: drawn.append(output[0] == 0))
        for batches in batches_of(trainer, 2):
            trainer.step(batches)
        found.append(drawn)
    one, two = found
    # Per step: two passes for the discriminator's turn, the same two for the generator's.
    assert len(one) == 8 and all(map(torch.equal, one, two))
    assert torch.equal(one[0], one[2]) and torch.equal(one[1], one[3])
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], one[4])


GAN = {
    **SMALL,
    "method": {
        "kind": "gan",
        "latent": {"width": 2},
        "generator": {"kind": "mlp", "hidden": [8]},
        "discriminator": {"kind": "mlp", "hidden": [8]},
    },
    "data": {"kind": "toy", "samples": 16},
}


@pytest.mark.parametrize("method", ["pix2pix", "gan"])
def test_with_accumulation_both_players_see_the_same_fakes(method: str, root: Path, tmp_path: Path) -> None:
    """The discriminator's turn comes first, without a graph; the generator makes its fakes anew: of the same noise."""
    training = {"batch_size": 2, "accumulation": 2, "stages": [STAGE]}
    raw = {**GAN, "training": {**SMALL["training"], **training}}
    config = tiny(root, ALL_ON, {"training": training}) if method == "pix2pix" else configs.validate(raw, "gan")
    trainer = trainer_for(config, tmp_path)
    plain = trainer.method.losses
    seen: dict[str, list[Tensor]] = {"discriminator": [], "generator": []}

    def watched(turn: Any, batch: Any, shared: Any) -> dict[str, Tensor]:
        assert shared["fake"].requires_grad == (turn.player == "generator")
        seen[turn.player].append(shared["fake"].detach().clone())
        return plain(turn, batch, shared)

    trainer.method.losses = watched
    for batches in batches_of(trainer, 2):
        trainer.step(batches)
    assert len(seen["generator"]) == 4 and all(map(torch.equal, seen["discriminator"], seen["generator"]))
    assert not torch.equal(seen["generator"][0], seen["generator"][1])


# ---- turns and terms ---------------------------------------------------------------------------------------------


def test_in_a_turn_the_other_player_gets_no_gradient(root: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny(root), tmp_path)
    players, order = trainer.method.players, []
    for name, optimiser in trainer.optimisers.items():

        def watched(plain: Callable[[], Any] = optimiser.step, name: str = name) -> Any:
            order.append(name)
            for player, module in players.items():
                assert all((p.grad is not None) == (player == name) for p in module.parameters())
            return plain()

        optimiser.step = watched
    ((batch,),) = batches_of(trainer, 1)
    trainer.step([batch])
    assert order == ["discriminator", "generator"]
    assert all(p.grad is None and p.requires_grad for p in trainer.method.players.parameters())


@pytest.mark.parametrize(
    ("weights", "judgements"),
    [
        ({}, 3),  # D of real, D of fake; D of fake for G
        ({"feature_matching": 1.0}, 4),  # and D of real for its features
        ({"adversarial": 0.0}, 2),
        ({"discriminator": 0.0}, 1),
        ({"discriminator": 0.0, "adversarial": 0.0}, 0),
    ],
)
def test_a_term_of_weight_zero_is_not_computed(
    weights: dict[str, float], judgements: int, root: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(tiny(root, {"training": {"stages": [{**STAGE, "weights": weights}]}}), tmp_path)
    judged = 0  # images: without batch norm real and fake ones go through in one pass

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal judged
        judged += len(inputs[0])

    discriminator = trainer.method.players["discriminator"]
    discriminator.blocks[0].register_forward_pre_hook(count)
    before = weights_of(trainer)
    ((batch,),) = batches_of(trainer, 1)
    trainer.step([batch])
    assert judged == judgements * len(batch["A"])
    row = trainer.means.take()
    assert ("generator/adversarial" in row) == (weights.get("adversarial", 1) != 0)
    changed = {name.split(".")[1] for name, tensor in weights_of(trainer).items() if not same(tensor, before[name])}
    assert changed == ({"generator"} if "discriminator" in weights else {"generator", "discriminator"})


def test_a_stage_moves_only_its_players(root: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny(root, {"training": {"stages": [{**STAGE, "players": ["discriminator"]}]}}), tmp_path)
    before = weights_of(trainer)
    ((batch,),) = batches_of(trainer, 1)
    trainer.step([batch])
    changed = {name.split(".")[1] for name, tensor in weights_of(trainer).items() if not same(tensor, before[name])}
    assert changed == {"discriminator"}
    assert set(trainer.means.take()) == {
        "discriminator/discriminator",
        "gradient norm/discriminator",
        "D(real)",
        "D(fake)",
    }


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"players": ["critic"]}, "training.stages.0.players: 'critic' is unknown to this method; it has"),
        ({"weights": {"cycle": 1.0}}, "training.stages.0.weights: 'cycle' is unknown"),
        ({"weights": {"perceptual": 1.0}}, "training.stages.0.weights: 'perceptual' is unknown"),
        ({"optimisers": {"G": {"lr": 1e-3}}}, "training.stages.0.optimisers: 'G' is unknown"),
        ({"optimiser": None}, "training.stages.0: no optimiser for 'discriminator'; add 'optimiser'"),
    ],
)
def test_a_stage_that_names_what_is_not_there(stage: dict[str, Any], said: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        trainer_for(tiny(root, {"training": {"stages": [{**STAGE, **stage}]}}), tmp_path)
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("crop", [40, 8])
def test_images_that_a_network_cannot_take_are_told_in_one_line(crop: int, root: Path, tmp_path: Path) -> None:
    change = {"data": {"augment": {"resize": 48, "crop": crop}}, "method": {"generator": {"depth": 3}}}
    change = change if crop == 8 else {"data": change["data"]}
    with pytest.raises(UserError, match=f"data.augment: images of {crop}x{crop} do not fit the .*; set data.augment"):
        train(tiny(root, change), tmp_path)


def test_a_dry_run_tells_sizes_and_writes_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = plan(tiny(root, ALL_ON))
    assert lines[0] == "data: 12 training samples, 3 to validate on"
    assert lines[-2:] == [
        "stage pixels: 10 images, 5 steps, 0.8 epochs",
        "stage game: 12 images, 6 steps, 1.0 epochs",
    ]
    assert list(tmp_path.iterdir()) == []


def test_looking_at_a_run_does_not_change_it(root: Path, tmp_path: Path) -> None:
    """Validation, previews, checkpoints and rows draw no number and leave running statistics and average alone."""
    watched = {"logging": {"every": "1 steps", "previews": "1 steps"}, "validation": {"every": "1 steps"}}
    blind = {
        "logging": {"every": "90 steps", "previews": "90 steps"},
        "checkpoints": {"every": "90 steps"},
        "data": {"validation": None},
    }
    runs = [train(tiny(root, ALL_ON, change), tmp_path / name)[1] for name, change in (("w", watched), ("b", blind))]
    tensors = [load_weights(run.path / "last.safetensors").tensors for run in runs]
    assert same(*tensors)


# ---- numbers that are none ---------------------------------------------------------------------------------------


def spoilt_loss(term: Tensor, network: nn.Module) -> Tensor:
    return term * float("nan")


def spoilt_constant(term: Tensor, network: nn.Module) -> Tensor:
    """An infinite loss whose gradients are all finite."""
    return term + float("inf")


def spoilt_gradient(term: Tensor, network: nn.Module) -> Tensor:
    """A finite loss: the square root's slope at zero is infinite."""
    weight = next(network.parameters())
    return term + (weight - weight.detach()).abs().sqrt().sum()


def whole_state(trainer: Trainer) -> dict[str, Any]:
    assert trainer.ema is not None
    state = {
        "method": trainer.method.state_dict(),
        "ema": trainer.ema.state_dict(),
        **{name: optimiser.state_dict() for name, optimiser in trainer.optimisers.items()},
    }
    return copy.deepcopy(state)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("spoil", [spoilt_loss, spoilt_constant, spoilt_gradient])
def test_a_step_that_is_no_number_leaves_no_trace(
    spoil: Callable[[Tensor, nn.Module], Tensor], precision: str, root: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(tiny(root, ALL_ON, GAME, {"training": {"precision": precision}}), tmp_path)
    for optimiser in trainer.optimisers.values():
        if optimiser.scaler:  # its own search for the largest scale would skip steps of this test
            optimiser.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    first, second, third = batches_of(trainer, 3)
    trainer.step(first)
    before = whole_state(trainer)
    plain = trainer.method.losses

    def poisoned(turn: Any, batch: Any, shared: Any) -> dict[str, Tensor]:
        player = trainer.method.players[turn.player]
        return {name: spoil(term, player) for name, term in plain(turn, batch, shared).items()}

    trainer.method.losses = poisoned
    trainer.step(second)
    trainer.method.losses = plain
    after = whole_state(trainer)
    for name in ("discriminator", "generator"):  # a scaler takes its lesson, and the rate follows the schedule
        for state in (before, after):
            state[name].pop("scaler")
            state[name]["optimiser"].pop("param_groups")
    assert same(before, after)
    assert trainer.images == 4
    assert (int(trainer.skipped), int(trainer.streak), int(trainer.longest_streak)) == (1, 1, 1)
    trainer.step(third)
    assert (int(trainer.skipped), int(trainer.streak), int(trainer.longest_streak)) == (1, 0, 1)
    assert not same(after["method"], trainer.method.state_dict())
    assert all(tensor.isfinite().all() for tensor in trainer.method.state_dict().values())
    assert np.isfinite(list(trainer.means.take().values())).all()  # the bad step is left out of the means


def test_a_bad_turn_of_one_player_leaves_the_average_still(root: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny(root, ALL_ON, GAME), tmp_path)
    first, second = batches_of(trainer, 2)
    trainer.step(first)
    before = whole_state(trainer)
    trainer.method.reconstruction = lambda fake, real: (fake - real).mean() * float("nan")
    trainer.step(second)
    after = whole_state(trainer)
    assert same(before["ema"], after["ema"])
    for name in before["method"]:
        if name.startswith("players.generator"):
            assert same(before["method"][name], after["method"][name]), name
    assert same(before["generator"]["optimiser"]["state"], after["generator"]["optimiser"]["state"])
    assert int(trainer.skipped) == 1


def test_skipped_steps_are_counted_in_the_rows_and_too_many_end_the_run(root: Path, tmp_path: Path) -> None:
    config = tiny(
        root,
        {"training": {"nonfinite_limit": 3, "stages": [{**STAGE, "length": "20 steps"}]}},
        {"checkpoints": {"every": "2 steps"}, "logging": {"every": "1 steps"}},
    )
    run = make_run(tmp_path, config)
    trainer = Trainer(config, Listener())
    plain = trainer.method.losses

    def poisoned(turn: Any, batch: Any, shared: Any) -> dict[str, Tensor]:
        factor = float("nan") if trainer.step_number in (1, 2, 5, 6, 7, 8) else 1.0  # two in a row, then too many
        return {name: term * factor for name, term in plain(turn, batch, shared).items()}

    trainer.method.losses = poisoned
    with pytest.raises(UserError) as raised:
        trainer.train(run)
    said = str(raised.value)
    assert said.startswith("3 steps in a row had a loss or gradient that is no number; the last good checkpoint is ")
    assert f"{run.checkpoints / 'step-000000006'}: lower the learning rate" in said and "\n" not in said
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [row.get("skipped steps") for row in rows] == [None, 1, 2, 2, 2, 3, 4, 5]


# ---- precision ---------------------------------------------------------------------------------------------------


def curve(precision: str, root: Path, folder: Path) -> np.ndarray:
    """The reconstruction loss of 60 steps."""
    networks = {"method": {"generator": {"norm": "batch", "width": 8}, "discriminator": {"norm": "batch"}}}
    stage = {"length": "60 steps", "optimiser": {"lr": 2e-3, "betas": [0.5, 0.999]}}
    config = tiny(root, networks, {"training": {"precision": precision, "batch_size": 4, "stages": [stage]}})
    trainer = trainer_for(config, folder)
    for optimiser in trainer.optimisers.values():
        if optimiser.scaler:  # small enough to begin with: a search for the scale would skip the first steps
            optimiser.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    values = []
    for (batch,) in batches_of(trainer, 60):
        trainer.step([batch])
        values.append(trainer.means.take()["generator/reconstruction"])
        assert all(p.dtype == torch.float32 for p in trainer.method.parameters())
    assert int(trainer.skipped) == 0
    return np.array(values)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_float32_does(precision: str, root: Path, tmp_path: Path) -> None:
    if precision == "bf16" and not cpu_multiplies_bf16():
        pytest.skip("this CPU has no bf16 units")
    single, half = (curve(p, root, tmp_path / p) for p in ("fp32", precision))
    # A bf16 product is right to 2^-9 = 0.2 %, an fp16 one to 2^-12. The first loss stands behind 8 layers of them,
    # whose errors add up as a random walk: sqrt(8) * 0.2 % = 0.6 %. After that the paths of two trainings part, for
    # Adam's step does not shrink with the gradient; what must agree is how far they get: means of 20 steps to 5 %.
    assert half[0] == pytest.approx(single[0], rel=0.006)
    for begin in (0, 20, 40):
        assert half[begin : begin + 20].mean() == pytest.approx(single[begin : begin + 20].mean(), rel=0.05)
    assert single[40:].mean() < 0.6 * single[0]  # there was something to learn


def test_losses_are_float32_under_autocast(root: Path, tmp_path: Path) -> None:
    change = {"training": {"precision": "bf16"}, "method": {"feature_matching_weight": 1.0}}
    trainer = trainer_for(tiny(root, change), tmp_path)
    plain, seen = trainer.method.losses, []

    def watched(turn: Any, batch: Any, shared: Any) -> dict[str, Tensor]:
        terms = plain(turn, batch, shared)
        seen.extend(terms.values())
        assert shared["fake"].dtype == torch.bfloat16
        return terms

    trainer.method.losses = watched
    ((batch,),) = batches_of(trainer, 1)
    trainer.step([batch])
    assert len(seen) == 4 and all(term.dtype == torch.float32 and term.ndim == 0 for term in seen)


def test_an_overflow_in_fp16_halves_that_players_scale_alone(root: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny(root, {"training": {"precision": "fp16"}}), tmp_path)
    scalers = {name: optimiser.scaler for name, optimiser in trainer.optimisers.items()}
    assert all(scaler is not None for scaler in scalers.values())
    scalers["generator"]._init_scale = 2.0**127
    ((batch,),) = batches_of(trainer, 1)
    before = weights_of(trainer)
    trainer.step([batch])
    scales = {name: scaler.get_scale() for name, scaler in scalers.items()}
    assert scales == {"generator": 2.0**126, "discriminator": 2.0**16}
    changed = {name.split(".")[1] for name, tensor in weights_of(trainer).items() if not same(tensor, before[name])}
    assert changed == {"discriminator"}
    state = trainer.optimisers["generator"].state_dict()
    assert state["scaler"]["scale"] == 2.0**126  # in the checkpoint, so that a resumed run searches no more
