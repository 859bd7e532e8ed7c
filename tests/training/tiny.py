"""A training run that takes a second: 32 pixels, four channels, a dozen pairs. Used by the tests beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from translate import config as configs
from translate.config import Config
from translate.run import Run
from translate.training.trainer import Outcome, Progress, Trainer

torch.set_num_threads(1)


class Listener:
    """A watcher that keeps what it hears."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.seen: list[Progress] = []

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def message(self, text: str) -> None:
        self.messages.append(text)


def write_pairs(root: Path, count: int, split: str = "train", size: int = 32, channels: int = 3) -> Path:
    """Smooth random pictures in A, and in B their negative with the channels turned: something to learn."""
    generator = np.random.default_rng(count)
    for side in "AB":
        (root / split / side).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = generator.integers(0, 256, (4, 4, channels), dtype=np.uint8)
        a = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR).reshape(size, size, channels)
        cv2.imwrite(str(root / split / "A" / f"{number:02}.png"), a)
        cv2.imwrite(str(root / split / "B" / f"{number:02}.png"), 255 - a[:, :, ::-1])
    return root


def write_sides(root: Path, a: int, b: int, split: str = "train", size: int = 32) -> Path:
    """Smooth random pictures without pairs: reddish ones in A, bluish ones in B."""
    generator = np.random.default_rng(a)
    for side, count, channel in (("A", a, 2), ("B", b, 0)):  # OpenCV's order is BGR
        (root / split / side).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = cv2.resize(generator.integers(0, 160, (4, 4, 3), dtype=np.uint8), (size, size))
            pixels[..., channel] += 90
            cv2.imwrite(str(root / split / side / f"{number:02}.png"), pixels)
    return root


SMALL: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "method": {
        "kind": "pix2pix",
        "generator": {"kind": "unet", "depth": 4, "width": 4, "norm": "instance", "dropout": 0.0},
        "discriminator": {"kind": "patch", "layers": 2, "width": 4, "norm": "instance"},
    },
    "data": {
        "kind": "paired",
        "validation": None,
        "test": None,
        "workers": 0,
        "augment": {"resize": None, "crop": 32, "flip": False},
    },
    "training": {
        "batch_size": 2,
        "precision": "fp32",
        "device": "cpu",
        "stages": [{"length": "6 steps", "optimiser": {"kind": "Adam", "lr": 1e-3, "betas": [0.5, 0.999]}}],
    },
    "logging": {"every": "1 steps", "previews": "1000 steps", "preview_images": 2},
    "checkpoints": {"every": "1000 steps"},
}
"""Nothing random in a step, nothing normalised over the batch."""

ALL_ON: dict[str, Any] = {
    "method": {
        "generator": {"kind": "resnet", "blocks": 2, "width": 4, "norm": "batch", "dropout": 0.5},
        "discriminator": {"norm": "batch", "spectral_norm": True},
        "feature_matching_weight": 1.0,
    },
    "data": {
        "validation": "val",
        "augment": {"resize": 36, "flip": True, "colour": {"brightness": 0.3, "hue": 0.1}},
    },
    "training": {
        "ema": {"half_life": "8 images"},
        "stages": [
            {
                "name": "pixels",
                "length": "5 steps",
                "optimiser": {"kind": "AdamW", "lr": 2e-3, "weight_decay": 0.1},
                "schedule": {"kind": "cosine", "warmup": "3 steps"},
                "players": ["generator"],
                "weights": {"adversarial": 0, "feature_matching": 0},
            },
            {
                "name": "game",
                "length": "1 epochs",
                "optimiser": {"kind": "Adam", "lr": 1e-3, "betas": [0.5, 0.999]},
                "schedule": {"kind": "linear", "hold": "2 steps"},
                "clip": 1.0,
            },
        ],
    },
    "logging": {"every": "2 steps", "previews": "4 steps"},
    "validation": {"every": "3 steps", "batch_size": 2},
    "checkpoints": {"every": "4 steps"},
}
"""Everything that could make a resumed run differ: dropout, running statistics, EMA, two stages, schedules, colour."""


def tiny(root: Path, *changes: dict[str, Any]) -> Config:
    """SMALL with changes laid over it one after another."""
    raw = configs.merge(SMALL, {"data": {"root": str(root)}})
    for change in changes:
        raw = configs.merge(raw, change)
    return configs.validate(raw, "tiny")


UNPAIRED: dict[str, Any] = {
    **SMALL,
    "method": {
        "kind": "cyclegan",
        "generator": {"kind": "resnet", "blocks": 1, "width": 4, "norm": "instance"},
        "discriminator": {"kind": "patch", "layers": 2, "width": 4, "norm": "instance"},
    },
    "data": {**SMALL["data"], "kind": "unpaired"},
    "training": {**SMALL["training"], "batch_size": 1},
}
"""CycleGAN in the same size; nothing random in a step but the pools."""


def tiny_unpaired(root: Path, *changes: dict[str, Any]) -> Config:
    """UNPAIRED with changes laid over it one after another."""
    raw = configs.merge(UNPAIRED, {"data": {"root": str(root)}})
    for change in changes:
        raw = configs.merge(raw, change)
    return configs.validate(raw, "tiny")


def make_run(folder: Path, config: Config) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder)
    run.config_file.write_text(configs.dump(config))
    return run


def train(config: Config, folder: Path) -> tuple[Outcome, Run, Listener]:
    run, listener = make_run(folder, config), Listener()
    return Trainer(config, listener).train(run), run, listener


def trainer_for(config: Config, folder: Path) -> Trainer:
    """A trainer at the door of its first step."""
    trainer = Trainer(config, Listener())
    trainer.run = make_run(folder, config)
    trainer._enter_stage(0)
    return trainer


def batches_of(trainer: Trainer, steps: int) -> list[list[dict[str, torch.Tensor]]]:
    """The batches of the first steps, as `Trainer.step` takes them."""
    count = trainer.config.training.accumulation
    with trainer._training_batches() as found:
        return [[trainer._to_device(next(found)) for _ in range(count)] for _ in range(steps)]


def same(one: Any, two: Any) -> bool:
    """Equality of nested states to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def assert_same_runs(one: Run, two: Run, *, names: tuple[str, ...] = ("best", "last")) -> None:
    """Weights, average, optimisers and rows of two runs are equal to the last byte."""
    newest = [run.checkpoint_folders()[0] for run in (one, two)]
    assert newest[0].name == newest[1].name
    models = [(path / "model.safetensors").read_bytes() for path in newest]
    assert models[0] == models[1]
    states = [torch.load(path / "trainer.pt", weights_only=True) for path in newest]
    for key in states[0]:
        assert same(states[0][key], states[1][key]), key
    assert one.metrics_file.read_text() == two.metrics_file.read_text()
    for name in names:
        files = [(run.path / f"{name}.safetensors").read_bytes() for run in (one, two)]
        assert files[0] == files[1], name


def shipped_in_small(name: str, root: Path, method: dict[str, Any]) -> Config:
    """A shipped config for two folders, on the sides that `write_sides` wrote, as it is but for its size. Two steps."""
    sides = {side: {"path": f"train/{side}"} for side in "AB"}
    changes = {
        "method": method,
        "data": {"root": str(root), **sides, "validation": None, "workers": 0},
        "training": {"device": "cpu", "precision": "fp32"},
    }
    raw = configs.merge(configs.load(name).model_dump(mode="json"), changes)
    raw["data"]["augment"] |= {"resize": 36, "crop": 32}
    raw["training"]["stages"][0] |= {"length": "2 steps", "schedule": {"kind": "linear", "hold": "1 steps"}}
    return configs.validate(raw, name)
