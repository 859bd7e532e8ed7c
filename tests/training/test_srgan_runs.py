"""SRGAN through the trainer: the plain loop, stages and their borders, accumulation, exact resume, what is left."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_resume import stop_after
from tiny import Listener, assert_same_runs, batches_of, make_run, train, trainer_for
from torch import Tensor, nn

from translate import config as configs
from translate.config import Config
from translate.data.loader import evaluation_batches
from translate.errors import UserError
from translate.inference.translator import Translator
from translate.methods import srgan
from translate.methods.srgan import SRGAN
from translate.run import Run, load_weights
from translate.training.trainer import Trainer

ADAM = {"kind": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]}
SMALL: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "method": {
        "kind": "srgan",
        "generator": {"kind": "srresnet", "blocks": 1, "width": 4},
        "discriminator": {"kind": "patch", "layers": 1, "width": 4, "norm": "none"},
        "pixel": {"kind": "l1", "weight": 1.0},
        "adversarial_weight": 0.05,
        "consistency_weight": 0.1,
    },
    "data": {
        "kind": "super-resolution",
        "scale": 2,
        "validation": None,
        "test": None,
        "workers": 0,
        "augment": {"crop": 16},
    },
    "training": {
        "batch_size": 2,
        "precision": "fp32",
        "device": "cpu",
        "stages": [{"length": "6 steps", "optimiser": ADAM}],
    },
    "logging": {"every": "1 steps", "previews": "1000 steps", "preview_images": 2},
    "checkpoints": {"every": "1000 steps"},
}
STAGES = [
    {"name": "pixel", "length": "4 steps", "optimiser": ADAM, "players": ["generator"], "weights": {"adversarial": 0}},
    {"name": "warm-up", "length": "3 steps", "optimiser": ADAM, "players": ["discriminator"]},
    {"name": "game", "length": "4 steps", "optimiser": {**ADAM, "lr": 5e-4}, "weights": {"pixel": 0.01}},
]


def write_high(root: Path, split: str, count: int, side: int = 24) -> Path:
    """Smooth random pictures with an edge in each."""
    generator = np.random.default_rng(count)
    (root / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = cv2.resize(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8), (side, side))
        pixels[:, int(generator.integers(side)) :] //= 2
        cv2.imwrite(str(root / split / f"{number:02}.png"), pixels)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_high(write_high(tmp_path_factory.mktemp("photographs"), "val", 3, side=20), "train", 7)


def tiny_sr(root: Path, *changes: dict[str, Any]) -> Config:
    raw = configs.merge(SMALL, {"data": {"root": str(root)}})
    for change in changes:
        raw = configs.merge(raw, change)
    return configs.validate(raw, "tiny")


def staged(*changes: dict[str, Any]) -> dict[str, Any]:
    return {"training": {"stages": [configs.merge(s, c) for s, c in zip(STAGES, changes or ({},) * 3, strict=True)]}}


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def method_of(trainer: Trainer) -> SRGAN:
    assert isinstance(trainer.method, SRGAN)
    return trainer.method


def assert_close(one: nn.Module, two: nn.Module, tolerance: float) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# ---- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_three_steps_equal_srgan_written_out(norm: str, root: Path, tmp_path: Path) -> None:
    """The discriminator first; the generator hears the one that has just moved. An Adam each.

    Three steps of 1e-3: weights agree to 2e-5, a hundredth of the way, for the first steps of Adam turn a gradient near
    its epsilon into any fraction of a step.
    """
    trainer = trainer_for(tiny_sr(root, {"method": {"generator": {"norm": norm}}}), tmp_path)
    method = method_of(trainer)
    g, d = copy.deepcopy(method.generator), copy.deepcopy(method.discriminator)
    start = copy.deepcopy(g)
    adam_g, adam_d = (
        torch.optim.Adam(player.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=False) for player in (g, d)
    )
    bce = nn.BCEWithLogitsLoss()
    for (batch,) in batches_of(trainer, 3):
        assert set(batch) == {"B"}
        trainer.step([batch])
        row = trainer.means.take()

        high, low = batch["B"], method.low(batch)
        fake = g(low)
        of_real, of_fake = d(high), d(fake.detach())
        loss_d = bce(of_real, torch.ones_like(of_real)) + bce(of_fake, torch.zeros_like(of_fake))
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        judged = d(fake)
        terms = {
            "pixel": (fake - high).abs().mean(),
            "adversarial": bce(judged, torch.ones_like(judged)),
            "consistency": (method.made_small(fake) - low).abs().mean(),
        }
        adam_g.zero_grad()
        (terms["pixel"] + 0.05 * terms["adversarial"] + 0.1 * terms["consistency"]).backward()
        adam_g.step()
        assert row["discriminator/discriminator"] == pytest.approx(loss_d.item(), rel=1e-5)
        for name, term in terms.items():
            assert row[f"generator/{name}"] == pytest.approx(term.item(), rel=1e-4), name
    assert_close(method.generator, g, 2e-5)
    assert_close(method.discriminator, d, 2e-5)
    moved = [(a - b).abs().max() for a, b in zip(g.parameters(), start.parameters(), strict=True)]
    assert max(moved) > 1e-3


def test_two_passes_of_one_image_are_one_pass_of_two(root: Path, tmp_path: Path) -> None:
    """SGD, clipped, as Adam would divide rounding by rounding; no batch norm, which would see other batches."""
    found = []
    for batch_size in (1, 2):
        stage = {"length": "6 steps", "optimiser": {"kind": "SGD", "lr": 1e-2, "momentum": 0.9}, "clip": 5.0}
        change = {
            "method": {"generator": {"norm": "none"}},
            "training": {"batch_size": batch_size, "accumulation": 2 // batch_size, "stages": [stage]},
        }
        trainer = trainer_for(tiny_sr(root, change), tmp_path / str(batch_size))
        start = copy.deepcopy(trainer.method)
        for batches in batches_of(trainer, 3):
            assert len(batches) == 2 // batch_size
            trainer.step(batches)
        moved = [(a - b).abs().max() for a, b in zip(trainer.method.parameters(), start.parameters(), strict=True)]
        assert max(moved) > 1e-3
        found.append((trainer.method, trainer.means.take()))
    assert_close(found[0][0], found[1][0], 1e-6)
    assert found[0][1].keys() == found[1][1].keys()
    for name, value in found[0][1].items():
        assert value == pytest.approx(found[1][1][name], rel=1e-4, abs=1e-6), name


def test_low_resolutions_made_in_training_are_those_of_files(root: Path, tmp_path: Path) -> None:
    """Whole images, mirrored but not turned: MATLAB's bytes are rounded between a vertical and a horizontal pass."""
    data = {"augment": {"crop": 24, "rotate": False}}
    trainer = trainer_for(tiny_sr(root, {"data": data}), tmp_path / "made")
    degradation = method_of(trainer).degradation
    assert degradation is not None
    for path in sorted((root / "train").iterdir()):
        high = torch.from_numpy(cv2.imread(str(path)).transpose(2, 0, 1)[None].astype(np.float32)) / 127.5 - 1
        low = ((degradation(high)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        (tmp_path / "low").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "low" / f"{path.stem}x2.png"), low)
    paired = {"low": str(tmp_path / "low"), "high": {"path": str(root / "train")}, "validation": None}
    config = tiny_sr(root, {"data": data}, {"data": paired})
    assert (tmp_path / "low" / "00x2.png").exists()
    runs = [train(c, tmp_path / n)[1] for n, c in (("a", tiny_sr(root, {"data": data})), ("b", config))]
    one, two = (rows_of(run) for run in runs)
    assert len(one) == 6 and one == two
    tensors = [load_weights(run.path / "last.safetensors").tensors for run in runs]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


# ---- stages ----------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "method": {
        "discriminator": {"spectral_norm": True},
        "replay": 3,
        "penalties": [{"kind": "r1", "weight": 0.1, "every": 2}],
        "augmentations": [{"kind": "diffaugment"}],
        "total_variation_weight": 0.01,
    },
    "data": {"validation": "val"},
    "training": {"ema": {"half_life": "8 images"}, **staged()["training"]},
    "logging": {"every": "2 steps", "previews": "11 steps"},
    "validation": {"every": "3 steps", "measures": ["psnr", "ssim"], "batch_size": 2},
    "checkpoints": {"every": "3 steps", "keep": 20},
}


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    outcome, run, _ = train(tiny_sr(root, EVERYTHING), tmp_path_factory.mktemp("whole"))
    assert (outcome.reason, outcome.step, outcome.images) == ("finished", 11, 22)
    return run


def test_a_stopped_run_ends_in_the_same_bytes(whole: Run, tmp_path: Path) -> None:
    """Stopped within each stage (2, 5, 9), at both borders (4, 7) and just beyond them (8)."""
    config = whole.load_config()
    run = make_run(tmp_path, config)
    for step in (2, 4, 5, 7, 8, 9):
        trainer = Trainer(config, Listener())
        stop_after(step, signal.SIGINT)(trainer)
        assert trainer.train(run).reason == "interrupted"
        state = run.load_checkpoint(print)
        assert state is not None
        best = max(row["psnr"] for row in rows_of(run) if "psnr" in row and row["stage"] == "pixel")
        assert state.model["method.best_by_pixels"] == pytest.approx(best, rel=1e-6)
        kept = state.trainer["extra"]["adversary.pool._extra_state"]["kept"]
        assert bool(kept) == (step > 4)  # fakes are shown in the warm-up first
    assert Trainer(config, Listener()).train(run).reason == "finished"
    assert_same_runs(whole, run)
    assert (whole.path / "stage-pixel.safetensors").read_bytes() == (run.path / "stage-pixel.safetensors").read_bytes()


def test_a_row_has_the_terms_of_its_stage_and_both_sides_of_a_border_are_measured(whole: Run) -> None:
    rows = rows_of(whole)
    terms = {stage["name"]: set[str]() for stage in STAGES}
    for row in rows:
        if "stage" in row:
            terms[row["stage"]] |= {name for name in row if name.split("/")[0] in ("generator", "discriminator")}
    of_d = {"discriminator/discriminator", "discriminator/r1"}
    of_g = {f"generator/{name}" for name in ("pixel", "consistency", "total_variation")}
    assert terms == {"pixel": of_g, "warm-up": of_d, "game": of_d | of_g | {"generator/adversarial"}}
    assert {row["stage"] for row in rows if "consistency/psnr" in row and "psnr" in row} == {"pixel", "game"}
    measured = [row for row in rows if "validation/psnr" in row]
    assert [row["step"] for row in measured] == [3, 4, 6, 7, 9, 11]
    for row in measured:
        names = {name for name in row if name.startswith("validation/")}
        assert names == {"validation/psnr", "validation/ssim", "validation/consistency/psnr"}


def test_the_psnr_of_the_outputs_alone_chooses_the_best_weights(whole: Run) -> None:
    """Not that of the consistency beside it."""
    trainer = Trainer(whole.load_config(), Listener())
    assert trainer.validator is not None and trainer.validation_set is not None
    batches = evaluation_batches(trainer.validation_set, batch_size=2, workers=0, device=trainer.device)
    found = trainer.validator(trainer.method, batches, trainer.specs, torch.float32)
    assert found["best"] == found["psnr"] != found["consistency/psnr"]


def test_in_each_stage_its_players_move_alone(whole: Run) -> None:
    models = {
        int(path.name.removeprefix("step-")): load_state(path / "model.safetensors")
        for path in whole.checkpoint_folders()
    }
    for begin, end, movers in (
        (3, 4, {"generator"}),
        (4, 7, {"discriminator"}),
        (7, 11, {"generator", "discriminator"}),
    ):
        for player in ("generator", "discriminator"):
            names = [name for name, _ in parameters_of(player, models[begin])]
            moved = any(not torch.equal(models[begin][name], models[end][name]) for name in names)
            assert moved == (player in movers), (begin, player)


def load_state(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def parameters_of(player: str, model: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Weights, not what batch norm and spectral norm keep."""
    kept = ("running_mean", "running_var", "num_batches_tracked", "_u", "_v")
    return [(n, t) for n, t in model.items() if n.startswith(f"method.players.{player}.") and not n.endswith(kept)]


def test_a_stage_leaves_its_averaged_generator_behind(whole: Run, root: Path, tmp_path: Path) -> None:
    """Where the stage moved it: the warm-up did not; the last stage's is last.safetensors."""
    assert {p.name for p in whole.path.glob("*.safetensors")} == {
        "best.safetensors", "last.safetensors", "stage-pixel.safetensors"
    }  # fmt: skip
    weights = load_weights(whole.path / "stage-pixel.safetensors")
    assert (weights.step, weights.images) == (4, 8)
    model = load_state(whole.checkpoints / "step-000000004" / "model.safetensors")
    name, live = next((n, t) for n, t in parameters_of("generator", model) if n.endswith("weight"))
    assert not torch.equal(weights.tensors[name.removeprefix("method.players.")], live)
    assert all(torch.equal(tensor, model[f"ema.{key}"]) for key, tensor in weights.tensors.items())
    pixels = Translator.load(whole.path / "stage-pixel.safetensors", device="cpu")(root / "val" / "00.png")
    assert pixels.shape == (40, 40, 3)


def test_the_discriminator_is_not_run_by_pixels_nor_the_generator_differentiated_in_the_warm_up(
    root: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(tiny_sr(root, staged()), tmp_path)
    method = method_of(trainer)
    passes: list[tuple[int, bool]] = []
    method.discriminator.register_forward_hook(lambda *_: passes.append((trainer.stage_number, True)))
    graphs: dict[int, set[bool]] = {0: set(), 1: set(), 2: set()}
    method.generator.register_forward_hook(lambda *found: graphs[trainer.stage_number].add(found[2].requires_grad))
    for batches in batches_of(trainer, 11):
        trainer._enter_stage(trainer._stage_at(trainer.images))
        trainer.step(batches)
    assert {stage for stage, _ in passes} == {1, 2}
    assert graphs == {0: {True}, 1: {False}, 2: {True}}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_generator_makes_each_fake_once_for_both(accumulation: int, root: Path, tmp_path: Path) -> None:
    """With one pass a step; with more, once for each player, who sees the same pixels."""
    change = {"training": {"batch_size": 2 // accumulation, "accumulation": accumulation}}
    trainer = trainer_for(tiny_sr(root, change), tmp_path)
    plain, seen, passes = trainer.method.losses, {"discriminator": [], "generator": []}, []

    def watched(turn: Any, batch: Any, shared: Any) -> dict[str, Tensor]:
        seen[turn.player].append(shared["fake"].detach().clone())
        return plain(turn, batch, shared)

    trainer.method.losses = watched
    method_of(trainer).generator.register_forward_hook(lambda *_: passes.append(1))
    for batches in batches_of(trainer, 2):
        trainer.step(batches)
    assert len(passes) == {1: 2, 2: 2 * 2 * 2}[accumulation]
    for one, two in zip(seen["discriminator"], seen["generator"], strict=True):
        assert torch.equal(one, two)


def test_a_stage_cannot_weigh_what_the_method_has_not(root: Path) -> None:
    change = {"method": {"discriminator": None}, **staged({}, {"players": ["generator"]}, {})}
    with pytest.raises(UserError, match=r"training.stages.0.weights: 'adversarial' is unknown to this method; it has"):
        Trainer(tiny_sr(root, change), Listener())


# ---- what a person hears ---------------------------------------------------------------------------------------------


def test_a_fallen_psnr_is_told_once_and_not_again_after_a_resume(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small: any PSNR counts as fallen."""
    monkeypatch.setattr(srgan, "DEEPEST_FALL", -100.0)
    config = tiny_sr(root, staged())
    _, run, listener = train(config, tmp_path / "run")
    told = [message for message in listener.messages if message.startswith("warning: ")]
    assert len(told) == 1 and "lower than by pixels alone" in told[0]
    assert b"lower than by pixels alone" in b"".join(path.read_bytes() for path in run.path.glob("events*"))
    for stop, before in ((6, 0), (9, 1)):  # before and after it is told
        again, first, second = make_run(tmp_path / str(stop), config), Listener(), Listener()
        trainer = Trainer(config, first)
        stop_after(stop)(trainer)
        trainer.train(again)
        Trainer(config, second).train(again)
        heard = [[m for m in listener.messages if m.startswith("warning: ")] for listener in (first, second)]
        assert (len(heard[0]), heard[0] + heard[1]) == (before, told)


def test_a_skipped_step_does_not_undo_what_is_known(root: Path, tmp_path: Path) -> None:
    trainer = trainer_for(tiny_sr(root, staged()), tmp_path)
    batches = batches_of(trainer, 2)
    trainer.step(batches[0])
    assert trainer.method.warnings({"psnr": 12.5}) == [] and trainer.method.weights["adversarial"] == 0
    trainer.step([{"B": torch.full_like(batches[1][0]["B"], torch.nan)}])
    assert int(trainer.skipped) == 1
    assert method_of(trainer).best_by_pixels == 12.5


# ---- shipped configs -------------------------------------------------------------------------------------------------


SHIPPED = [
    name for name, path in configs.shipped_configs().items() if configs.read_config(path)["method"]["kind"] == "srgan"
]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_recipes_train_in_small(name: str, root: Path, tmp_path: Path) -> None:
    """As they are but for sizes, lengths and the terms and measures whose weights this machine may lack."""
    raw = configs.load(name).model_dump(mode="json")
    changes: dict[str, Any] = {
        "method": {"generator": {"width": 4, "blocks": 1}, "content": None},
        "data": {"root": str(root), "high": {"path": "{split}"}, "validation": "val", "workers": 0, "cache": "none"},
        "training": {"device": "cpu", "precision": "fp32", "batch_size": 2},
        "validation": {"every": "2 steps", "measures": ["psnr", "ssim"], "best": None},
    }
    raw = configs.merge(raw, changes)
    raw["data"]["augment"]["crop"] = 24
    if raw["method"]["discriminator"]:
        small = {"width": 4, "layers": 1, "side": 24}
        raw["method"]["discriminator"] |= {k: v for k, v in small.items() if k in raw["method"]["discriminator"]}
    for stage in raw["training"]["stages"]:
        stage |= {"length": "2 steps", "schedule": {"kind": "constant"}}
        stage["weights"].pop("content", None)
    outcome, run, _ = train(configs.validate(raw, name), tmp_path)
    assert outcome.reason == "finished" and outcome.step == 2 * len(raw["training"]["stages"])
    assert all(np.isfinite(v) for row in rows_of(run) for v in row.values() if isinstance(v, float))
