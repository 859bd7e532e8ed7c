"""CUT and FastCUT through the trainer: exact resume, accumulation, conversion, what is logged."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

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

from translate.inference.translator import Translator
from translate.run import Run, load_weights
from translate.training.trainer import Trainer

CUT: dict[str, Any] = {
    "method": {
        "kind": "cut",
        "generator": {
            "kind": "resnet",
            "blocks": 1,
            "width": 4,
            "downsampling": "anti-aliased",
            "upsampling": "anti-aliased",
        },
        "discriminator": {
            "kind": "patch",
            "layers": 2,
            "width": 4,
            "norm": "instance",
            "downsampling": "anti-aliased",
        },
        "nce": {"layers": ["input", "down1", "block1"], "patches": 16, "width": 8},
    }
}
FAST: dict[str, Any] = {
    "method": {"nce": {"weight": 10.0}, "identity_weight": 0.0, "flip_equivariance": True},
    "training": {"ema": {"half_life": "4 images"}},
    "checkpoints": {"every": "2 steps"},
    "logging": {"every": "2 steps"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sides(tmp_path_factory.mktemp("sides"), 5, 4)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = tiny_unpaired(root, CUT, FAST, {"method": {"generator": {"dropout": 0.5}, "replay": 2}})
    outcome, run, _ = train(config, tmp_path_factory.mktemp("whole"))
    assert outcome.reason == "finished"
    return run


def test_a_stopped_run_ends_in_the_same_bytes(whole: Run, tmp_path: Path) -> None:
    """Which images are mirrored, positions and dropout are drawn anew from the step's own seed."""
    config = whole.load_config()
    run = make_run(tmp_path, config)
    for step in (1, 4):
        trainer = Trainer(config, Listener())
        stop_after(step, signal.SIGINT)(trainer)
        assert trainer.train(run).reason == "interrupted"
    assert Trainer(config, Listener()).train(run).reason == "finished"
    assert_same_runs(whole, run, names=("last",))


def test_one_weights_file_of_one_direction(whole: Run) -> None:
    assert all(name.startswith("generator.layers.") for name in load_weights(whole.path / "last.safetensors").tensors)
    translator = Translator.load(whole.path, device="cpu")
    assert translator.direction == "AtoB"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 21, 3), dtype=np.uint8)
    made = translator(pixels)
    assert made.shape == (30, 21, 3)


def test_rows_have_each_term(root: Path, tmp_path: Path) -> None:
    _, run, _ = train(tiny_unpaired(root, CUT), tmp_path)
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert len(rows) == 6
    names = {"generator/nce", "generator/nce_identity", "generator/adversarial", "discriminator/discriminator"}
    assert names | {"chance/nce", "light kept/AtoB", "learning rate/generator"} <= set(rows[-1])
    # New projections of gain 0.02 know nothing: log 16, and what a random network keeps of it.
    assert 0.5 * rows[0]["chance/nce"] < rows[0]["generator/nce"] < 2 * rows[0]["chance/nce"]


def test_two_passes_of_one_image_are_one_pass_of_two(root: Path, tmp_path: Path) -> None:
    """Each image counts for itself but for the positions drawn: with all of them taken, nothing is left to chance.

    1e-5: sums in another order, through one step of SGD of 1e-2, which moves biases of points near 0 by hundreds.
    """
    sgd = {"length": "6 steps", "optimiser": {"kind": "SGD", "lr": 1e-2}}
    every = {"method": {"nce": {"patches": 32 * 32}}, "training": {"stages": [sgd]}}
    found = []
    for batch_size, accumulation in ((2, 1), (1, 2)):
        change = {"training": {"batch_size": batch_size, "accumulation": accumulation}}
        trainer = trainer_for(tiny_unpaired(root, CUT, every, change), tmp_path / str(batch_size))
        (batches,) = batches_of(trainer, 1)
        trainer.step(batches)
        found.append(trainer.method.state_dict())
    for name, tensor in found[0].items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(tensor, found[1][name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["cut", "fastcut"])
def test_the_shipped_recipes_train_in_small(name: str, root: Path, tmp_path: Path) -> None:
    config = shipped_in_small(
        name, root, {"generator": {"width": 4, "blocks": 5}, "discriminator": {"width": 4}, "nce": {"width": 8}}
    )
    assert train(config, tmp_path)[0].reason == "finished"
