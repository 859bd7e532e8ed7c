"""CycleGAN through the trainer: the plain loop, accumulation, exact resume, both directions, what is logged."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_resume import stop_after
from tiny import (
    Listener,
    assert_same_runs,
    batches_of,
    make_run,
    shipped_in_small,
    tiny_unpaired,
    train,
    trainer_for,
    write_sides,
)
from torch import Tensor, nn

from translate.cli import main
from translate.devices import cpu_multiplies_bf16
from translate.inference.translator import Translator
from translate.methods import watch
from translate.run import Run, load_weights
from translate.training.trainer import Trainer

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
ADAM = {"kind": "Adam", "lr": 1e-3, "betas": [0.5, 0.999]}
SGD = {"kind": "SGD", "lr": 1e-3, "momentum": 0.9}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sides")
    write_sides(folder, 3, 2, "val")
    return write_sides(folder, 7, 5)


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float) -> None:
    assert list(one) == list(two)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_three_steps_equal_cyclegan_written_out(root: Path, tmp_path: Path) -> None:
    """G and F together, then D_A and D_B on the fakes of the old G and F; an Adam each, as the authors have it.

    Layer norm, not instance norm: a bias before an instance norm has no gradient but rounding, which Adam would blow up
    to whole steps. Three steps of 1e-3: weights agree to 2e-5, a hundredth of the way, for the first steps of Adam turn
    a gradient near its epsilon into any fraction of a step.
    """
    norms = {"method": {"generator": {"norm": "layer"}, "discriminator": {"norm": "layer"}}}
    trainer = trainer_for(tiny_unpaired(root, norms), tmp_path)
    players = trainer.method.players
    g, f = (copy.deepcopy(players["generators"][d]) for d in ("AtoB", "BtoA"))
    d_a, d_b = (copy.deepcopy(players["discriminators"][side]) for side in "AB")
    start = {name: tensor.clone() for name, tensor in g.state_dict().items()}
    adam_g, adam_d = (
        torch.optim.Adam([*one.parameters(), *two.parameters()], lr=1e-3, betas=(0.5, 0.999), fused=False)
        for one, two in ((g, f), (d_a, d_b))
    )
    mse, l1 = nn.MSELoss(), nn.L1Loss()
    for (batch,) in batches_of(trainer, 3):
        trainer.step([batch])
        row = trainer.means.take()

        a, b = batch["A"], batch["B"]
        fake_b, fake_a = g(a), f(b)
        judged_a, judged_b = d_a(fake_a), d_b(fake_b)
        terms = {
            "adversarial_A": mse(judged_a, torch.ones_like(judged_a)),
            "adversarial_B": mse(judged_b, torch.ones_like(judged_b)),
            "cycle_A": l1(f(fake_b), a),
            "cycle_B": l1(g(fake_a), b),
            "identity_A": l1(f(a), a),
            "identity_B": l1(g(b), b),
        }
        adam_g.zero_grad()
        weights = {"adversarial": 1.0, "cycle": 10.0, "identity": 5.0}
        sum(weights[name[:-2]] * term for name, term in terms.items()).backward()
        adam_g.step()
        adam_d.zero_grad()
        for side, d, real, fake in (("A", d_a, a, fake_a), ("B", d_b, b, fake_b)):  # the pools are filling
            of_real, of_fake = d(real), d(fake.detach())
            loss = mse(of_real, torch.ones_like(of_real)) + mse(of_fake, torch.zeros_like(of_fake))
            (0.5 * loss).backward()
            assert row[f"discriminators/discriminator_{side}"] == pytest.approx(loss.item(), rel=1e-5)
        adam_d.step()
        for name, term in terms.items():
            assert row[f"generators/{name}"] == pytest.approx(term.item(), rel=1e-4), name
    for ours, plain in (("AtoB", g), ("BtoA", f)):
        assert_close(players["generators"][ours].state_dict(), plain.state_dict(), 2e-5)
    for side, plain in (("A", d_a), ("B", d_b)):
        assert_close(players["discriminators"][side].state_dict(), plain.state_dict(), 2e-5)
    moved = max(
        (players["generators"]["AtoB"].state_dict()[name] - tensor).abs().max() for name, tensor in start.items()
    )
    assert moved > 1e-3


def test_two_passes_of_one_image_are_one_pass_of_two(root: Path, tmp_path: Path) -> None:
    """So the discriminators see the fakes of the old generators under accumulation too. SGD, clipped, as Adam would
    divide rounding by rounding; a second step would show other weights."""
    found = []
    for batch_size in (1, 2):
        stage = {"length": "6 steps", "optimiser": {**SGD, "lr": 1e-2}, "clip": 5.0}
        training = {"training": {"batch_size": batch_size, "accumulation": 2 // batch_size, "stages": [stage]}}
        trainer = trainer_for(tiny_unpaired(root, training), tmp_path / str(batch_size))
        before = copy.deepcopy(trainer.method.state_dict())
        for batches in batches_of(trainer, 3):
            trainer.step(batches)
        state = {name: t for name, t in trainer.method.state_dict().items() if isinstance(t, Tensor)}
        assert max((state[name] - before[name]).abs().max() for name in state) > 1e-3
        found.append((state, trainer.means.take()))
    assert_close(found[0][0], found[1][0], 1e-6)
    assert found[0][1].keys() == found[1][1].keys()
    for name, value in found[0][1].items():
        assert value == pytest.approx(found[1][1][name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("accumulation", [1, 2])
def test_generators_make_each_fake_once_and_the_discriminators_are_shown_that_one(
    accumulation: int, root: Path, tmp_path: Path
) -> None:
    """With dropout a fake made anew would be another one, and after the generators' move another one anyway."""
    change = {
        "method": {"generator": {"dropout": 0.5}, "replay": 0},
        "training": {"accumulation": accumulation, "stages": [{"length": "6 steps", "optimiser": ADAM}]},
    }
    trainer = trainer_for(tiny_unpaired(root, change), tmp_path)
    plain, seen = trainer.method.losses, {"generators": [], "discriminators": []}
    passes = 0

    def watched(turn: Any, batch: Any, shared: Any) -> dict[str, Tensor]:
        seen[turn.player].append({name: shared[name].detach().clone() for name in ("fake_A", "fake_B")})
        return plain(turn, batch, shared)

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    trainer.method.losses = watched
    for network in trainer.method.players["generators"].values():
        network.register_forward_hook(count)
    for batches in batches_of(trainer, 2):
        trainer.step(batches)
    assert passes == 2 * accumulation * 4  # steps, passes; each generator's fake (with its identity) and cycle
    assert len(seen["generators"]) == 2 * accumulation
    for one, two in zip(seen["generators"], seen["discriminators"], strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    if accumulation == 2:  # and each pass has its own
        assert not torch.equal(seen["generators"][0]["fake_A"], seen["generators"][1]["fake_A"])


def test_a_stage_may_leave_the_game_out(root: Path, tmp_path: Path) -> None:
    stage = {
        "length": "4 steps",
        "optimiser": ADAM,
        "players": ["generators"],
        "weights": {"adversarial_A": 0, "adversarial_B": 0},
    }
    _, run, _ = train(tiny_unpaired(root, {"training": {"stages": [stage]}}), tmp_path)
    for row in rows_of(run):
        terms = {name.partition("/")[2] for name in row if name.startswith(("generators/", "discriminators/"))}
        assert terms == {f"{name}_{side}" for name in ("cycle", "identity") for side in "AB"}


# ---- whole runs ------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "method": {
        "generator": {"dropout": 0.5},
        "discriminator": {"spectral_norm": True},
        "replay": 3,
        "penalties": [{"kind": "r1", "weight": 0.1, "every": 2}],
        "augmentations": [{"kind": "adaptive", "start": 0.5, "interval": 2, "images": 40}],
        "side_weights": {"B": 0.5},
    },
    "data": {"validation": "val", "augment": {"resize": 36, "flip": True}},
    "training": {
        "ema": {"half_life": "4 images"},
        "stages": [{"length": "11 steps", "optimiser": ADAM, "schedule": {"kind": "linear", "hold": "5 steps"}}],
    },
    "logging": {"every": "2 steps", "previews": "11 steps"},
    "validation": {"every": "4 steps", "measures": ["l1"], "batch_size": 2},
    "checkpoints": {"every": "3 steps"},
}


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    outcome, run, _ = train(tiny_unpaired(root, EVERYTHING), tmp_path_factory.mktemp("whole"))
    assert (outcome.reason, outcome.step, outcome.images) == ("finished", 11, 11)
    return run


def test_a_stopped_run_ends_in_the_same_bytes(whole: Run, tmp_path: Path) -> None:
    config = whole.load_config()
    run = make_run(tmp_path, config)
    for step in (2, 5, 7):
        trainer = Trainer(config, Listener())
        stop_after(step, signal.SIGINT)(trainer)
        assert trainer.train(run).reason == "interrupted"
        # What a checkpoint must hold beside the weights is there.
        state = run.load_checkpoint(print)
        assert state is not None
        for side in "AB":
            (pool,) = state.trainer["extra"][f"adversaries.{side}.pool._extra_state"]["kept"]
            assert pool.shape == (min(step, 3), 3, 32, 32)
            assert state.model[f"method.adversaries.{side}.augmentations.0.p"] != 0.5 or step < 2
        assert state.trainer["extra"]["watch._extra_state"]["steps"] == step % 2
        assert {f"ema.AtoB.{n}" for n in ("layers.0.weight",)} <= set(state.model)
    assert Trainer(config, Listener()).train(run).reason == "finished"
    assert_same_runs(whole, run)


def test_a_killed_run_ends_in_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """SIGKILL while a checkpoint is written, and at a random moment."""
    stage = {"length": "12 steps", "optimiser": ADAM}
    change = {
        "training": {"stages": [stage]},
        "checkpoints": {"every": "1 steps"},
        "validation": {"every": "20 steps"},
        "logging": {"previews": "20 steps"},
        "method": {"augmentations": []},  # each child would import kornia
    }
    config = tiny_unpaired(root, EVERYTHING, change)
    _, unharmed, _ = train(config, tmp_path / "whole")
    run = make_run(tmp_path / "killed", config)
    command = [sys.executable, str(HERE / "kill_driver.py"), str(run.path), "2", "5"]
    driver = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert driver.returncode == 0, driver.stderr
    told = json.loads(driver.stdout)
    assert (told["random"], told["writing"]) == (1, 1)
    assert_same_runs(unharmed, run)


def test_rows_have_each_term_of_each_side(whole: Run) -> None:
    rows = [row for row in rows_of(whole) if "stage" in row]
    wanted = {f"generators/{n}_{side}" for n in ("adversarial", "cycle", "identity") for side in "AB"}
    wanted |= {f"discriminators/{n}_{side}" for n in ("discriminator", "r1") for side in "AB"}
    wanted |= {f"{n}_{side}" for n in ("augmentation_p", "overfitting") for side in "AB"}
    wanted |= {f"D_{side}({kind})" for kind in ("real", "fake") for side in "AB"}
    wanted |= {f"light kept/{d}" for d in ("AtoB", "BtoA")} | {f"flat picture/{side}" for side in "AB"}
    wanted |= {f"{n}/{p}" for n in ("gradient norm", "learning rate") for p in ("generators", "discriminators")}
    wanted |= {"step", "images", "epoch", "stage"}
    assert all(set(row) == wanted for row in rows)
    assert [row["epoch"] for row in rows][:2] == [round(2 / 7, 4), round(4 / 7, 4)]  # of the larger side


def test_validation_measures_each_cycle_and_best_is_their_mean(whole: Run) -> None:
    rows = [row for row in rows_of(whole) if "validation/cycle A/l1" in row]
    assert [row["step"] for row in rows] == [4, 8, 11]
    assert {name for name in rows[0] if name.startswith("validation/")} == {
        f"validation/cycle {side}/l1" for side in "AB"
    }
    best = min(rows, key=lambda row: row["validation/cycle A/l1"] + row["validation/cycle B/l1"])
    assert load_weights(whole.path / "best.safetensors").step == best["step"]


class MeanColour(nn.Module):
    """Features for a set measure, (N, 3, H, W) -> (N, 3)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def test_validation_measures_each_direction_s_set(root: Path, tmp_path: Path) -> None:
    change = {
        "data": {"validation": "val"},
        "validation": {
            "every": "3 steps",
            "measures": ["frechet", "l1"],
            "protocol": {"features": "test_cyclegan_runs:MeanColour"},
        },
    }
    _, run, _ = train(tiny_unpaired(root, change), tmp_path)
    rows = [row for row in rows_of(run) if "stage" not in row]
    parts = ("AtoB", "BtoA", "cycle A", "cycle B")
    assert len(rows) == 2
    for row in rows:
        measured = {name for name in row if name.startswith("validation/")}
        assert measured == {f"validation/{part}/frechet" for part in parts} | {
            f"validation/cycle {side}/l1" for side in "AB"
        }
        assert all(np.isfinite(row[name]) for name in measured)


def test_previews_are_strips_of_six(whole: Run) -> None:
    (picture,) = whole.samples.iterdir()
    pixels = cv2.imread(str(picture))
    assert pixels.shape == (2 * 34 + 2, 6 * 34 + 2, 3)  # two images of 32, in margins of 2
    first = pixels[2:34, 2:34].astype(int)
    assert np.abs(first - cv2.imread(str(Path(whole.load_config().data.root) / "val/A/00.png")).astype(int)).max() <= 1


def test_both_directions_convert_from_one_weights_file(
    whole: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by its own network with the file's weights; the command takes the one that it is told."""
    file = whole.path / "last.safetensors"
    tensors = load_weights(file).tensors
    assert {name.partition(".")[0] for name in tensors} == {"AtoB", "BtoA"}
    method = trainer_for(whole.load_config(), tmp_path / "trainer").method
    made = {}
    for direction, side in (("AtoB", "A"), ("BtoA", "B")):
        network = method.translator(direction).eval()
        network.load_state_dict(
            {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{direction}.")}
        )
        picture = root / "val" / side / "00.png"
        x = torch.from_numpy(cv2.imread(str(picture))[..., ::-1].copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            wanted = ((network(x)[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
        made[direction] = Translator.load(file, direction=direction, device="cpu", precision="fp32")(picture)
        # Half way between two grey levels rounding may differ.
        assert np.abs(made[direction].astype(int) - wanted).max() <= 1
    default = Translator.load(file, device="cpu", precision="fp32")
    assert np.array_equal(default(root / "val" / "A" / "00.png"), made["AtoB"])

    command = ["translate", "convert", str(file), str(root / "val" / "B"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--direction", "BtoA", "--device", "cpu", "--precision", "fp32"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert np.array_equal(cv2.imread(str(tmp_path / "out" / "00.png"))[..., ::-1], made["BtoA"])


def test_label_maps_and_pictures_train_both_ways(tmp_path: Path) -> None:
    root = write_sides(tmp_path / "data", 3, 3)
    for path in (root / "train" / "B").iterdir():  # three classes as numbers
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) // 86)
    change = {"data": {"B": {"kind": "labels", "classes": 3}}, "method": {"identity_weight": 0}}
    outcome, run, _ = train(tiny_unpaired(root, change), tmp_path / "run")
    assert outcome.reason == "finished"
    rows = rows_of(run)
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert not any("identity" in name or "light" in name for name in rows[0])
    labels = Translator.load(run.path, device="cpu")(root / "train" / "A" / "00.png")
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert Translator.load(run.path, direction="BtoA", device="cpu")(root / "train" / "B" / "00.png").shape[2] == 3


# ---- what a person hears ---------------------------------------------------------------------------------------------


def test_a_run_that_does_not_learn_is_told_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small: 40 steps instead of thousands. New generators' pictures are grey, no better than flat ones."""
    monkeypatch.setattr(watch, "PATIENCE", 20)
    monkeypatch.setattr(watch, "HALF_LIFE", 5)
    stage = {"length": "40 steps", "optimiser": {**ADAM, "lr": 1e-7}}
    change = {
        "data": {"augment": {"resize": 16, "crop": 16}},
        "training": {"stages": [stage]},
        "logging": {"every": "2 steps"},
    }
    config = tiny_unpaired(root, change)
    _, run, listener = train(config, tmp_path / "run")
    told = [message for message in listener.messages if message.startswith("warning: ")]
    terms = [f"{name}_{side}" for name in ("cycle", "identity") for side in "AB"]
    assert sorted(message.split(" ")[1] for message in told) == terms
    boards = b"".join(path.read_bytes() for path in run.path.glob("events*"))
    assert boards.count(b"has learnt next to nothing") == len(terms)

    # A resumed run does not tell again.
    again = make_run(tmp_path / "again", config)
    listeners = Listener(), Listener()
    trainer = Trainer(config, listeners[0])
    stop_after(25)(trainer)
    assert trainer.train(again).reason == "interrupted"
    Trainer(config, listeners[1]).train(again)
    heard = [message for listener in listeners for message in listener.messages if message.startswith("warning: ")]
    assert heard == told


# ---- number formats --------------------------------------------------------------------------------------------------


def curve(precision: str, root: Path, folder: Path) -> np.ndarray:
    """The sum of both cycles over 60 steps."""
    stage = {"length": "60 steps", "optimiser": ADAM}
    change = {
        "method": {"generator": {"width": 8}},
        "data": {"augment": {"resize": 16, "crop": 16}},
        "training": {"precision": precision, "batch_size": 2, "stages": [stage]},
    }
    trainer = trainer_for(tiny_unpaired(root, change), folder)
    values = []
    for (batch,) in batches_of(trainer, 60):
        trainer.step([batch])
        row = trainer.means.take()
        values.append(row["generators/cycle_A"] + row["generators/cycle_B"])
    assert int(trainer.skipped) == 0
    assert all(p.dtype == torch.float32 for p in trainer.method.parameters())
    return np.array(values)


def test_bf16_learns_as_float32_does(root: Path, tmp_path: Path) -> None:
    """As in test_step: the first loss to sqrt(layers) * 2^-9, here two networks of 7; means of 20 steps to 5 %.

    The game itself is not stable to more: weights changed by 1e-5 alone, in float32, move the last mean by 1.2 %; at
    four times the rate and half the width, by 5 %.
    """
    if not cpu_multiplies_bf16():
        pytest.skip("this CPU has no bf16 units")
    single, half = (curve(p, root, tmp_path / p) for p in ("fp32", "bf16"))
    assert half[0] == pytest.approx(single[0], rel=0.008)
    for begin in (0, 20, 40):
        assert half[begin : begin + 20].mean() == pytest.approx(single[begin : begin + 20].mean(), rel=0.05)
    assert single[40:].mean() < 0.6 * single[0]


def test_losses_are_float32_under_autocast(root: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_unpaired(root, EVERYTHING, {"training": {"precision": "bf16"}}), tmp_path)
    plain, seen = trainer.method.losses, []

    def watched(turn: Any, batch: Any, shared: Any) -> dict[str, Tensor]:
        terms = plain(turn, batch, shared)
        seen.extend(terms.values())
        assert all(images.dtype == torch.bfloat16 for images in shared.values())
        return terms

    trainer.method.losses = watched
    ((batch,),) = batches_of(trainer, 1)
    trainer.step([batch])
    assert len(seen) == 6 + 4 and all(term.dtype == torch.float32 and term.ndim == 0 for term in seen)


# ---- shipped configs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cyclegan", "cyclegan-monet"])
def test_the_shipped_recipes_train_in_small(name: str, root: Path, tmp_path: Path) -> None:
    config = shipped_in_small(name, root, {"generator": {"width": 4, "blocks": 1}, "discriminator": {"width": 4}})
    assert train(config, tmp_path)[0].reason == "finished"
