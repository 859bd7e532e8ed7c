"""Methods that make samples from noise, through the trainer: every shipped paper, exact resume, number formats."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_resume import stop_after
from tiny import SMALL, Listener, assert_same_runs, batches_of, make_run, train, trainer_for

from translate import config as configs
from translate.config import Config
from translate.devices import cpu_multiplies_bf16
from translate.errors import UserError
from translate.inference.sampler import Sampler
from translate.training.trainer import Trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in two class folders: dark ones with a bright left, bright ones with a dark left."""
    folder = tmp_path_factory.mktemp("classes")
    generator = np.random.default_rng(0)
    for number, name in enumerate(("dark", "bright")):
        (folder / "train" / name).mkdir(parents=True)
        for image in range(6):
            pixels = generator.integers(0, 80, (16, 16, 3), dtype=np.uint8)
            pixels[:, :8] += 150
            cv2.imwrite(str(folder / "train" / name / f"{image}.png"), 255 - pixels if number else pixels)
    return folder


def shrunk(raw: Any, key: str = "") -> Any:
    """A config's settings with every network tiny, every batch small and every run short; nothing else is changed."""
    small = {
        "width": 4, "joint_width": 8, "code": 4, "attention": 8, "batch_size": 4, "candidates": 8, "resize": 16,
        "crop": 16, "discriminator_steps": 2, "length": "4 steps", "half_life": "8 images", "previews": "2 steps",
        "preview_images": 4, "workers": 0, "samples": 64, "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    if isinstance(raw, dict):
        return {k: shrunk(v, k) for k, v in raw.items()}
    if isinstance(raw, list):
        return [8 for _ in raw] if key == "hidden" else [shrunk(v) for v in raw]
    value = small.get(key, raw)  # of the same kind: `resize` is a size here and a way to resize there
    return value if isinstance(raw, str) == isinstance(value, str) and raw is not None else raw


OF_LATENTS = ("gan", "bigan", "moment-matching", "imle")
GENERATIVE = [name for name in configs.shipped_configs() if configs.load(name).method.kind in OF_LATENTS]


@pytest.mark.parametrize("name", GENERATIVE)
def test_every_shipped_paper_trains_samples_and_exports(name: str, root: Path, tmp_path: Path) -> None:
    raw = shrunk(configs.load(name).model_dump(mode="json"))
    raw["data"] |= {"root": str(root)} if raw["data"]["kind"] == "folder" else {}
    raw["training"] |= {"device": "cpu", "precision": "fp32"}
    raw["logging"] |= {"every": "1 steps"}
    config = configs.validate(raw, name).resolved()
    before = trainer_for(config, tmp_path / "before").method.state_dict()
    outcome, run, _ = train(config, tmp_path / "run")
    assert outcome.reason == "finished" and outcome.step == 4
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert len(rows) == 4 and all(np.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
    assert "skipped steps" not in rows[-1]
    samples = Sampler.load(run.path, device="cpu").sample(3)
    assert samples.shape == ((3, 2) if config.data.kind == "toy" else (3, 16, 16, config.data.image.channels))
    assert np.isfinite(samples).all()
    checkpoint = run.load_checkpoint(print)
    assert checkpoint is not None
    for player in {key.split(".")[1] for key in before if key.startswith("players.")}:
        weights = {k: v for k, v in before.items() if k.startswith(f"players.{player}.") and v.is_floating_point()}
        assert any(not torch.equal(v, checkpoint.model[f"method.{k}"]) for k, v in weights.items()), player
    assert len(list(run.samples.iterdir())) == 2


# ---- resume --------------------------------------------------------------------------------------------------------

MLP = {"kind": "mlp", "hidden": [8]}
EVERYTHING: dict[str, Any] = {
    "kind": "gan",
    "latent": {"width": 4},
    "generator": {"kind": "dcgan", "width": 2, "norm": "batch"},
    "discriminator": {
        "kind": "dcgan",
        "width": 2,
        "norm": "none",
        "spectral_norm": True,
        "bottleneck": 4,
        "minibatch_discrimination": {"kernels": 4, "dimensions": 2},
    },
    "objective": {"kind": "non-saturating", "smoothing": 0.1},
    "penalties": [
        {"kind": "r1", "weight": 0.1, "every": 2},
        {"kind": "gradient-penalty", "weight": 0.1},
        {"kind": "dragan", "weight": 0.1, "every": 3},
    ],
    "regularisers": [
        {"kind": "historical", "player": "generator", "weight": 0.01},
        {"kind": "orthogonal", "player": "discriminator", "weight": 1e-3, "every": 2},
    ],
    "conditioning": {"generator": "norm", "discriminator": "projection", "classifier_weight": 0.5},
    "codes": {"categorical": [2], "continuous": 1},
    "bottleneck": {},
    "augmentations": [{"kind": "adaptive"}, {"kind": "instance-noise", "deviation": 0.1, "steps": 6}],
    "replay": 5,
    "discriminator_steps": 2,
    "feature_matching_weight": 0.1,
    "pulling_away_weight": 0.1,
}
BEGAN = {
    "kind": "gan",
    "latent": {"width": 4},
    "generator": {"kind": "decoder", "width": 2},
    "discriminator": {"kind": "autoencoder", "width": 2, "code": 4},
    "objective": {"kind": "began", "k_rate": 0.1},
}
VIRTUAL = {
    "kind": "gan",
    "latent": {"width": 4},
    "generator": {"kind": "dcgan", "width": 2, "norm": "virtual-batch"},
    "discriminator": {"kind": "dcgan", "width": 2, "norm": "virtual-batch"},
    "unrolling": {"steps": 2, "rate": 0.01},
}
BIGAN = {
    "kind": "bigan",
    "latent": {"width": 4},
    "generator": MLP,
    "encoder": MLP,
    "discriminator": MLP,
    "joint_width": 8,
}
METHODS = {"everything": EVERYTHING, "began": BEGAN, "virtual batch": VIRTUAL, "bigan": BIGAN}


def images_of(root: Path, method: dict[str, Any], **training: Any) -> Config:
    data = {
        "kind": "folder",
        "root": str(root),
        "classes": ["dark", "bright"],
        "augment": {"resize": 16, "crop": 16, "flip": True},
        "validation": None,
        "test": None,
        "workers": 0,
    }
    raw = {
        **SMALL,
        "method": method,
        "data": data,
        "training": {**SMALL["training"], "batch_size": 4, "ema": {"half_life": "8 images"}, **training},
    }
    return configs.validate(raw, "tiny")


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_ends_in_the_same_bytes(name: str, root: Path, tmp_path: Path) -> None:
    stage = {"length": "7 steps", "optimiser": {"lr": 1e-3}}
    if name == "everything":
        stage["weight_schedules"] = {"r1": {"kind": "cosine", "end": 0.1}}
    config = images_of(root, METHODS[name], stages=[stage])
    outcome, whole, _ = train(config, tmp_path / "whole")
    assert outcome.reason == "finished"
    run = make_run(tmp_path / "stopped", config)
    for step in (2, 5):
        trainer = Trainer(config, Listener())
        stop_after(step, signal.SIGINT)(trainer)
        assert trainer.train(run).reason == "interrupted"
    assert Trainer(config, Listener()).train(run).reason == "finished"
    assert_same_runs(whole, run, names=("last",))


# ---- number formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("penalty", ["r1", "gradient-penalty"])
def test_steps_with_penalties_agree_with_float32(penalty: str, precision: str, root: Path, tmp_path: Path) -> None:
    """Losses of 8 steps. bf16 keeps 8 bits: a logit is off by up to 0.4 %, and weights move apart with each step;
    5 % is allowed on the means of the losses, and the penalties, in float32 from nearly equal weights, likewise."""
    if precision == "bf16" and not cpu_multiplies_bf16():
        pytest.skip("this CPU has no bf16 units")
    method = {
        "kind": "gan",
        "latent": {"width": 4},
        "generator": {"kind": "dcgan", "width": 4, "norm": "batch"},
        "discriminator": {"kind": "dcgan", "width": 4, "norm": "none"},
        "penalties": [{"kind": penalty, "weight": 1.0}],
    }
    found = {}
    for number_format in ("fp32", precision):
        stages = [{"length": "8 steps", "optimiser": {"lr": 2e-4, "betas": [0.5, 0.999]}}]
        trainer = trainer_for(images_of(root, method, stages=stages, precision=number_format), tmp_path / number_format)
        for batches in batches_of(trainer, 8):
            trainer.step(batches)
        assert float(trainer.skipped) == 0
        found[number_format] = trainer.means.take()
    for term in ("discriminator/discriminator", f"discriminator/{penalty.replace('-', '_')}", "generator/adversarial"):
        assert found[precision][term] == pytest.approx(found["fp32"][term], rel=0.05), term


# ---- the trainer's part --------------------------------------------------------------------------------------------


def test_weights_follow_their_schedule(root: Path, tmp_path: Path) -> None:
    method = {"kind": "gan", "generator": MLP, "discriminator": MLP, "penalties": [{"kind": "r1", "weight": 2.0}]}
    schedule = {"r1": {"kind": "linear", "end": 0.5}}
    stage = {"length": "4 steps", "optimiser": {"lr": 1e-3}, "weight_schedules": schedule}
    trainer = trainer_for(images_of(root, method, stages=[stage]), tmp_path)
    seen = []
    for batches in batches_of(trainer, 4):
        trainer.step(batches)
        seen.append(trainer.method.weights["r1"])
    assert seen == pytest.approx([2.0, 1.75, 1.5, 1.25])


def test_a_schedule_of_an_unknown_weight_is_one_line(root: Path, tmp_path: Path) -> None:
    method = {"kind": "gan", "generator": MLP, "discriminator": MLP}
    stage = {"length": "4 steps", "optimiser": {"lr": 1e-3}, "weight_schedules": {"r1": {"kind": "cosine"}}}
    with pytest.raises(UserError, match="weight_schedules: 'r1' is unknown"):
        Trainer(images_of(root, method, stages=[stage]), Listener())


def test_a_step_that_is_no_number_leaves_no_trace_in_k(root: Path, tmp_path: Path) -> None:
    trainer = trainer_for(images_of(root, BEGAN), tmp_path)
    (first,), (second,) = batches_of(trainer, 2)
    trainer.step([first])
    before = {name: tensor.clone() for name, tensor in trainer.method.state_dict().items()}
    assert before["adversary.objective.k"] > 0
    trainer.step([{**second, "image": second["image"] * torch.nan}])
    assert float(trainer.skipped) == 1
    # The generator's own step, which asks for no real image, is a number and counts.
    for name, tensor in trainer.method.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("players.generator."), name


def test_toy_points_train_and_show_a_scatter_plot(tmp_path: Path) -> None:
    raw = {
        **SMALL,
        "method": {"kind": "gan", "latent": {"width": 2}, "generator": MLP, "discriminator": MLP},
        "data": {"kind": "toy", "layout": "ring8", "samples": 100},
        "training": {**SMALL["training"], "batch_size": 16},
        "logging": {"every": "1 steps", "previews": "6 steps", "preview_images": 32},
    }
    _, run, _ = train(configs.validate(raw, "toy"), tmp_path)
    (picture,) = run.samples.iterdir()
    pixels = cv2.imread(str(picture))
    assert pixels.shape == (260, 518, 3) and pixels.min() < 200  # two squares of 256 in margins of 2: some points
