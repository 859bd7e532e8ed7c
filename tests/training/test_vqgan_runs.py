"""VQGAN through the trainer: when its discriminator begins, accumulation, restarts, exact resume, bf16, processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import compare, two_forks
from test_resume import stop_after
from tiny import Listener, assert_same_runs, batches_of, make_run, train, trainer_for, write_pairs
from torch import Tensor
from torch.nn import functional as F

from translate import config as configs
from translate.config import Config
from translate.distributed import processes
from translate.methods.vqgan import VQGAN
from translate.run import Run
from translate.training.trainer import Trainer

ADAM = {"kind": "Adam", "lr": 1e-3, "betas": [0.5, 0.9]}
SGD = {"kind": "SGD", "lr": 1e-3, "momentum": 0.9}
NETWORK = {"kind": "convolutional", "width": 4, "multipliers": [1, 2], "blocks": 1, "latent": 4, "attention": []}
TOKENISING: dict[str, Any] = {
    "tokenizer": {"network": NETWORK, "quantiser": {"kind": "codebook", "size": 32, "normalise": True}},
    "discriminator": {"kind": "patch", "layers": 1, "width": 4, "norm": "instance"},
    "lpips": None,
}
SMALL: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "method": {"kind": "vqgan", **TOKENISING},
    "data": {
        "kind": "folder",
        "image": {"path": "{split}/A"},
        "validation": None,
        "test": None,
        "workers": 0,
        "augment": {"resize": None, "crop": 16, "flip": True},
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
AVERAGED = {"method": {"tokenizer": {"quantiser": {"update": "average", "decay": 0.8}}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_pairs(folder, 2, "val")
    return write_pairs(folder, 8)


def tiny_vqgan(root: Path, *changes: dict[str, Any]) -> Config:
    raw = configs.merge(SMALL, {"data": {"root": str(root)}})
    for change in changes:
        raw = configs.merge(raw, change)
    return configs.validate(raw, "tiny")


def stage(**settings: Any) -> dict[str, Any]:
    return {"training": {"stages": [{"length": "6 steps", "optimiser": ADAM, **settings}]}}


def method_of(trainer: Trainer) -> VQGAN:
    assert isinstance(trainer.method, VQGAN)
    return trainer.method


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_schedules_say_when_the_discriminator_begins_and_is_heard(root: Path, tmp_path: Path) -> None:
    """Of six steps: it learns from the third on (a length), and is listened to from the fifth on (a share)."""
    delays = {"discriminator": {"start": "2 steps"}, "adversarial": {"start": 0.6, "ramp": "2 steps"}}
    delays = {name: {"kind": "delayed", **delay} for name, delay in delays.items()}
    trainer = trainer_for(tiny_vqgan(root, stage(weight_schedules=delays)), tmp_path)
    method = method_of(trainer)
    for step, (batch,) in enumerate(batches_of(trainer, 6)):
        before = [p.clone() for p in method.discriminator.parameters()]
        trainer.step([batch])
        row = trainer.means.take()
        moved = not all(map(torch.equal, before, method.discriminator.parameters()))
        assert moved == ("discriminator/discriminator" in row) == ("gradient norm/discriminator" in row) == (step >= 2)
        assert ("tokenizer/adversarial" in row) == ("adaptive weight" in row) == (step >= 4)
        assert method.weights["adversarial"] == pytest.approx(0.8 * {4: 0.7, 5: 1.0}.get(step, 0))


def test_two_passes_of_two_images_are_one_of_four(root: Path, tmp_path: Path) -> None:
    """lambda, both players' weights and the averaged codebook. SGD, as Adam would divide rounding by rounding."""
    found = []
    for batch_size in (2, 4):
        change = {"training": {"batch_size": batch_size, "accumulation": 4 // batch_size}}
        trainer = trainer_for(tiny_vqgan(root, AVERAGED, stage(optimiser=SGD, clip=5.0), change), tmp_path)
        rows = []
        for batches in batches_of(trainer, 3):
            assert len(batches) == 4 // batch_size
            trainer.step(batches)
            rows.append(trainer.means.take())
        found.append((rows, trainer.method.state_dict()))
    for one, two in zip(found[0][0], found[1][0], strict=True):
        assert list(one) == list(two)
        for name, value in one.items():
            assert value == pytest.approx(two[name], rel=1e-4, abs=1e-5), name
    for (name, one), (_, two) in zip(found[0][1].items(), found[1][1].items(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    quantiser = "players.tokenizer.quantiser"
    codes = F.normalize(found[0][1][f"{quantiser}.sums"], dim=1)
    torch.testing.assert_close(found[0][1][f"{quantiser}.codebook"], codes)
    assert found[0][1][f"{quantiser}.counts"].sum() > 0.4 * 4 * 64  # of 4 x 64 tokens a step: 1 - 0.8^3 and a bit


def test_what_begins_anew_is_remembered_by_no_optimiser_and_no_average(root: Path, tmp_path: Path) -> None:
    """Codes that the 128 tokens of two images do not use; which these are is asked before each step."""
    change = {
        "method": {"tokenizer": {"quantiser": {"size": 128, "restart": 1}}},
        "training": {"ema": {"half_life": "100 images", "ramp": None}},
    }
    trainer = trainer_for(tiny_vqgan(root, change, stage(weights={"adversarial": 0})), tmp_path)
    tokenizer = method_of(trainer).tokenizer
    codebook = tokenizer.quantiser.codebook
    for (batch,) in batches_of(trainer, 3):
        with torch.no_grad():
            tokens = tokenizer.encode(batch["image"]).indices
            latents = F.normalize(tokenizer.encoder(batch["image"]), dim=1).movedim(1, 3).reshape(-1, 4)
        dead = torch.bincount(tokens.flatten(), minlength=128) == 0
        assert 0 < dead.sum() < 128
        trainer.step([batch])
        assert trainer.means.take()["restarted codes"] == dead.sum()
        moments = trainer.optimisers["tokenizer"].optimiser.state[codebook]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert (moments[moment][dead] == 0).all() and (moments[moment][~dead] != 0).any(dim=1).all()
        average = trainer.ema.average["tokenizer.quantiser.codebook"]
        assert torch.equal(average[dead], codebook[dead])
        assert (average[~dead] != codebook[~dead]).any(dim=1).all()
        # Each is one of the batch's latents, and no two are the same one.
        apart = torch.cdist(codebook.detach()[dead], latents)
        assert apart.amin(1).max() < 1e-3 and len(apart.argmin(1).unique()) == dead.sum()


# ---- runs ------------------------------------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "data": {"validation": "val", "augment": {"resize": 20}},
    "training": {
        "ema": {"half_life": "8 images"},
        "stages": [
            {
                "length": "8 steps",
                "optimiser": ADAM,
                "weight_schedules": {
                    "discriminator": {"kind": "delayed", "start": 0.3},
                    "adversarial": {"kind": "delayed", "start": 0.5, "ramp": "2 steps"},
                },
            }
        ],
    },
    "validation": {"every": "3 steps", "batch_size": 2},
    "checkpoints": {"every": "3 steps"},
}
RESTART = {"method": {"tokenizer": {"quantiser": {"restart": 2}}}}
RUNS: dict[str, tuple[tuple[dict[str, Any], ...], list[int]]] = {
    "averaged codes": ((AVERAGED, RESTART), [3, 6]),
    "learnt codes": ((RESTART, {"training": {"batch_size": 1, "accumulation": 2}}), [5]),
}


@pytest.mark.parametrize("variant", RUNS)
def test_a_stopped_run_ends_in_the_same_bytes(variant: str, root: Path, tmp_path: Path) -> None:
    """Stopped inside an epoch of four steps and where one ends: the counts of its codes go on too."""
    changes, stops = RUNS[variant]
    config = tiny_vqgan(root, WHOLE, *changes)
    outcome, whole, _ = train(config, tmp_path / "whole")
    assert (outcome.reason, outcome.step) == ("finished", 8)
    run = make_run(tmp_path / "stopped", config)
    for step in stops:
        trainer = Trainer(config, Listener())
        stop_after(step)(trainer)
        assert trainer.train(run).reason == "interrupted"
    assert Trainer(config, Listener()).train(run).reason == "finished"
    assert_same_runs(whole, run)
    rows = rows_of(run)
    assert sum("codebook/perplexity" in row for row in rows) == 2
    assert any(row.get("restarted codes") for row in rows)
    names = ("discriminator/discriminator", "adaptive weight")
    assert [next(row["step"] for row in rows if name in row) for name in names] == [
        4,
        5,
    ]  # steps count from 1 in the log: the shares are 2.4 and 4 of 8


def test_bf16_learns_as_float32_does(root: Path, tmp_path: Path) -> None:
    """Losses of 30 steps, the discriminator heard from the eleventh on.

    bf16 has 8 significant bits: 0.4 % in each activation. The first loss, a mean over 1,536 values whose errors have
    both signs, has a part of that. Then tokens differ where two codes are near, and the runs part as two of float32 do
    from weights that differ by 0.4 %: measured 3 % in the means of ten steps, 7 % of the quantiser's, and 3 % of lambda
    over its twenty steps, a quarter over ten, for it is a ratio of two gradients. Twice as much is allowed.
    """
    delayed = {"adversarial": {"kind": "delayed", "start": "10 steps"}}
    rows = []
    for precision in ("fp32", "bf16"):
        change = stage(length="30 steps", weight_schedules=delayed)
        trainer = trainer_for(tiny_vqgan(root, change, {"training": {"precision": precision}}), tmp_path)
        found = []
        for batches in batches_of(trainer, 30):
            trainer.step(batches)
            found.append(trainer.means.take())
        rows.append(found)

    def curve(which: int, name: str) -> Tensor:
        return torch.tensor([row[name] for row in rows[which] if name in row])

    tolerances = {
        "tokenizer/reconstruction": (10, 0.06),
        "tokenizer/quantiser": (10, 0.15),
        "discriminator/discriminator": (10, 0.05),
        "adaptive weight": (20, 0.25),
    }
    for name, (window, tolerance) in tolerances.items():
        one, two = (curve(which, name).view(-1, window).mean(1) for which in (0, 1))
        torch.testing.assert_close(two, one, rtol=tolerance, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    one, two = (curve(which, "tokenizer/reconstruction") for which in (0, 1))
    assert two[0] != one[0] and two[0] == pytest.approx(one[0].item(), rel=2e-3)
    assert one[-10:].mean() < 0.85 * one[:3].mean()  # they learn, so there was time to part


PROCESSES: dict[str, Any] = {
    "data": {"validation": None},
    "training": {
        "batch_size": 1,
        "ema": {"half_life": "8 images"},
        "stages": [{"length": "6 steps", "optimiser": SGD, "clip": 5.0}],
    },
    "checkpoints": {"every": "3 steps"},
}


def _train(rank: int, run: Run) -> None:
    torch.set_num_threads(1)
    with processes(torch.device("cpu")) as group:
        Trainer(run.load_config(), Listener(), processes=group).train(run)


def test_two_processes_are_one_with_twice_the_batch_and_resume(root: Path, tmp_path: Path) -> None:
    """lambda of both processes' gradients, the codebook of both's latents; then the second half once more, from a
    checkpoint inside an epoch: the rows are the same bytes, the epoch's use of codes among them."""
    config = tiny_vqgan(root, AVERAGED, PROCESSES)
    _, alone, _ = train(tiny_vqgan(root, AVERAGED, PROCESSES, {"training": {"batch_size": 2}}), tmp_path / "alone")
    run = make_run(tmp_path / "together", config)
    two_forks(_train, run)
    compare(alone, run)
    assert all("adaptive weight" in row for row in rows_of(run) if "stage" in row)
    shutil.rmtree(run.checkpoint_folders()[0])
    rows, weights = run.metrics_file.read_text(), (run.path / "last.safetensors").read_bytes()
    two_forks(_train, run)
    assert run.metrics_file.read_text() == rows
    assert (run.path / "last.safetensors").read_bytes() == weights
