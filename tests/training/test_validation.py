"""Validation, the best weights, early stop; what a weights file rebuilds; other kinds of data through a whole run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tiny import ALL_ON, SMALL, Listener, make_run, tiny, train, write_pairs
from torch import Tensor, nn

from translate import config as configs
from translate.config import Config
from translate.data.images import to_device
from translate.data.loader import evaluation_batches
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.inference.translator import Translator
from translate.losses.perceptual import PerceptualSettings, _positions
from translate.methods.base import Comparison, Method, run_padded
from translate.methods.pix2pix import Pix2Pix
from translate.metrics.protocol import ProtocolSettings
from translate.run import Run, build_for_inference, load_weights
from translate.training.trainer import Trainer
from translate.training.validation import ValidationSettings, Validator, better

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 5, "val")
    return write_pairs(folder, 12)


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def validations(run: Run) -> list[dict[str, Any]]:
    return [row for row in rows_of(run) if "validation/l1" in row]


def measured(path: Path, config: Config) -> dict[str, float]:
    """The measures of a weights file by other libraries, image by image."""
    network = build_for_inference(load_weights(path)).exported()["generator"]
    dataset = config.data.open("validation", 0)
    assert dataset is not None
    found = []
    for batch in evaluation_batches(dataset, batch_size=1, workers=0, device=CPU):
        tensors = to_device(batch, config.data.specs(), CPU)
        with torch.no_grad():
            output = network(tensors["A"]).clamp(-1, 1)
        a, b = ((t[0].permute(1, 2, 0).numpy().astype(np.float64) + 1) / 2 for t in (output, tensors["B"]))
        ssim = structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        found.append((np.abs(a - b).mean(), peak_signal_noise_ratio(b, a, data_range=1), ssim))
    return dict(zip(("l1", "psnr", "ssim"), np.mean(found, axis=0).tolist(), strict=True))


def test_best_is_the_best_step_s_and_its_numbers_are_those_of_the_file(root: Path, tmp_path: Path) -> None:
    # A rate far too high at the end, so that the last step is not the best one.
    stages = [
        {"name": "learn", "length": "12 steps", "optimiser": {"lr": 2e-3}},
        {"name": "spoil", "length": "6 steps", "optimiser": {"lr": 0.3}},
    ]
    change = {
        "data": {"validation": "val"},
        "validation": {"every": "3 steps", "batch_size": 2},
        "training": {"ema": {"half_life": "6 images"}, "stages": stages},
    }
    config = tiny(root, change)
    _, run, listener = train(config, tmp_path)
    found = validations(run)
    assert [row["step"] for row in found] == [3, 6, 9, 12, 15, 18]
    best = min(found, key=lambda row: float(row["validation/l1"]))
    assert best["step"] < 18
    assert load_weights(run.path / "best.safetensors").step == best["step"]
    assert load_weights(run.path).step == best["step"]  # a run folder means its best weights
    assert load_weights(run.path / "last.safetensors").step == 18
    for path, row in ((run.path / "best.safetensors", best), (run.path / "last.safetensors", found[-1])):
        values = measured(path, config)
        assert values["l1"] == pytest.approx(row["validation/l1"], rel=1e-5)
        assert values["psnr"] == pytest.approx(row["validation/psnr"], rel=1e-5)
        assert values["ssim"] == pytest.approx(row["validation/ssim"], abs=5e-3)  # border: skimage crops, see metrics
    said = [text for text in listener.messages if text.startswith("validation")]
    assert [text.endswith("(best so far)") for text in said] == [
        row["validation/l1"] == min(r["validation/l1"] for r in found[: number + 1]) for number, row in enumerate(found)
    ]


@pytest.mark.parametrize(("measure", "sign"), [("psnr", -1), ("ssim", -1), ("l1", 1)])
def test_the_measure_that_chooses(measure: str, sign: int, root: Path, tmp_path: Path) -> None:
    change = {"data": {"validation": "val"}, "validation": {"every": "2 steps", "best": measure}}
    _, run, _ = train(tiny(root, change), tmp_path)
    best = min(validations(run), key=lambda row: sign * float(row[f"validation/{measure}"]))
    assert load_weights(run.path / "best.safetensors").step == best["step"]


def test_patience_ends_the_run_and_a_resumed_one_stays_ended(root: Path, tmp_path: Path) -> None:
    stage = {"length": "60 steps", "optimiser": {"kind": "SGD", "lr": 1e-30}}  # nothing gets better after the first
    change = {
        "data": {"validation": "val"},
        "training": {"stages": [stage]},
        "validation": {"every": "2 steps", "patience": 3},
    }
    config = tiny(root, change)
    outcome, run, _ = train(config, tmp_path)
    assert (outcome.reason, outcome.step, outcome.images) == ("early stop", 8, 16)
    assert load_weights(run.path / "best.safetensors").step == 2
    assert run.checkpoint_folders()[0].name == "step-000000008"
    rows = run.metrics_file.read_bytes()
    again = Trainer(config, Listener()).train(run)
    assert (again.reason, again.step) == ("early stop", 8)
    assert run.metrics_file.read_bytes() == rows


def test_validation_takes_so_many_images_and_tells_of_unreadable_ones(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 6, "val")
    root = write_pairs(tmp_path / "pairs", 4)
    (root / "val" / "A" / "02.png").write_bytes(b"no picture")  # 0, 2 and 4 of the six are taken
    change = {"data": {"validation": "val"}, "validation": {"every": "3 steps", "batch_size": 2, "images": 3}}
    _, run, listener = train(tiny(root, change), tmp_path / "run")
    assert len(validations(run)) == 2
    told = [text for text in listener.messages if text.startswith("skipped: ")]
    assert len(told) == 1 and "02.png" in told[0]  # once, though it was met twice


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_number_is_better_than_a_number(number: float) -> None:
    assert not better("l1", number, 0.5)
    assert not better("psnr", float("nan"), 20.0)
    assert better("l1", 0.4, 0.5) and not better("l1", 0.5, 0.5)
    assert better("ssim", 0.6, 0.5) and better("psnr", 1.0, None)


class Copy(Method):
    """Outputs are the inputs; in two parts, of which the second is no pair."""

    compares: ClassVar[dict[str, bool]] = {"": True, "apart": False}

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        assert not self.training
        return {
            "": Comparison(batch["A"], batch["B"], ImageSpec()),
            "apart": Comparison(torch.randn(batch["B"].shape, generator=chance), batch["B"], ImageSpec()),
        }

    turns = losses = previews = exported = Method.comparisons  # type: ignore[assignment]  # not used here


def batch_of(a: int, b: int, count: int = 2) -> dict[str, Any]:
    sides = {side: torch.full((count, 16, 16, 3), level, dtype=torch.uint8) for side, level in (("A", a), ("B", b))}
    return {**sides, "name": [str(number) for number in range(count)]}


SPECS = {"A": ImageSpec(), "B": ImageSpec()}


def test_validation_leaves_the_mode_as_it_was_and_measures_in_eval() -> None:
    method = Copy()
    validator = Validator(ValidationSettings(), method.compares, 10, CPU)
    values = validator(method, [batch_of(51, 102)], SPECS, torch.float32)
    assert method.training
    assert values["l1"] == pytest.approx(0.2, rel=1e-5)
    assert values["psnr"] == pytest.approx(-20 * np.log10(0.2), rel=1e-5)
    assert values["best"] == values["l1"]  # the first of the defaults
    assert set(values) == {"l1", "psnr", "ssim", "best"}
    assert validator(method, [], SPECS, torch.float32) == {}


def test_what_is_paired_on_the_side_chooses_nothing_by_default() -> None:
    validator = Validator(ValidationSettings(), {"": False, "rebuilt": True}, 10, CPU)
    assert validator.best is None
    assert Validator(ValidationSettings(best="l1"), {"": False, "rebuilt": True}, 10, CPU).best == "l1"


class Means(nn.Module):
    """Two features of an image: the mean of its first channel, and of the others."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 0].mean((1, 2)), images[:, 1:].mean((1, 2, 3))], dim=1)


def test_sets_are_validated_too_and_their_noise_is_the_same_each_time() -> None:
    protocol = ProtocolSettings(features=f"{__name__}:Means")
    settings = ValidationSettings(measures=["frechet", "l1"], protocol=protocol)
    method = Copy()
    validator = Validator(settings, method.compares, 10, CPU)
    batches = [batch_of(0, 100), batch_of(90, 200, 3)]
    values = validator(method, batches, SPECS, torch.float32)
    assert set(values) == {"frechet", "apart/frechet", "l1", "best"}
    # Of the pairs' sets by hand: five points on the diagonal each, Gaussians of rank one.
    a, b = np.array([0, 0, 90, 90, 90]) / 127.5 - 1, np.array([100, 100, 200, 200, 200]) / 127.5 - 1
    expected = 2 * ((a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2)
    assert values["frechet"] == pytest.approx(expected, rel=1e-5)
    assert values["best"] == pytest.approx((values["frechet"] + values["apart/frechet"]) / 2)
    assert validator(method, batches, SPECS, torch.float32) == values


@pytest.mark.parametrize(
    ("settings", "compares", "part"),
    [
        ({"measures": ["l1"]}, {"": False}, "l1 needs pairs, but this method compares sets alone"),
        ({"measures": ["fid"], "protocol": {"features": "json:loads"}}, {"": False}, "ask for 'frechet'"),
        ({"measures": ["frechet"], "protocol": {"features": "nowhere"}}, {"": False}, "package.module:callable"),
        ({"measures": ["precision"]}, {"": True}, "precision needs at least 6 images"),
        ({"measures": ["kid"], "images": 1}, {"": True}, "kid needs at least 2 images"),
    ],
)
def test_measures_that_a_method_cannot_have(settings: dict[str, Any], compares: dict[str, bool], part: str) -> None:
    with pytest.raises(UserError, match=re.escape(part)):
        Validator(ValidationSettings(**settings), compares, 5, CPU)


def test_the_best_must_be_measured() -> None:
    with pytest.raises(ValueError, match="'best' is 'ssim', which is not among 'measures': l1, psnr"):
        ValidationSettings(measures=["l1", "psnr"], best="ssim")


def test_a_generative_run_is_validated_by_its_set(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8)
    raw = {
        **SMALL,
        "method": {
            "kind": "gan",
            "latent": {"width": 4},
            "generator": {"kind": "dcgan", "width": 2},
            "discriminator": {"kind": "dcgan", "width": 2},
        },
        "data": {
            "kind": "folder",
            "root": str(tmp_path),
            "train": "train",
            "validation": 0.4,
            "image": {"path": "{split}/A"},
            "augment": {"resize": 32, "crop": 32},
        },
        "validation": {"measures": ["frechet"], "protocol": {"features": f"{__name__}:Means"}, "every": "2 steps"},
    }
    _, run, _ = train(configs.validate(raw, "tiny"), tmp_path / "run")
    found = [row for row in rows_of(run) if "validation/frechet" in row]
    assert len(found) >= 2
    best = min(found, key=lambda row: float(row["validation/frechet"]))
    assert load_weights(run.path / "best.safetensors").step == best["step"]


@pytest.mark.parametrize(("size", "inside"), [((33, 40), (40, 40)), ((5, 9), (16, 16)), ((16, 32), (16, 32))])
def test_any_size_is_padded_to_what_the_network_divides(size: tuple[int, int], inside: tuple[int, int]) -> None:
    class Doubled(nn.Module):
        multiple, smallest, scale = 8, 16, 2

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2:] == inside
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = torch.randn(1, 3, *size)
    assert torch.equal(run_padded(Doubled(), x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_images_of_odd_and_different_sizes_are_validated_and_shown(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "pairs", 4)
    for number, size in enumerate((37, 50)):
        write_pairs(tmp_path / "other", 2, "val", size)
        for side in "AB":
            target = root / "val" / side
            target.mkdir(parents=True, exist_ok=True)
            (tmp_path / "other" / "val" / side / "00.png").rename(target / f"{number}.png")
    change = {
        "data": {"validation": "val", "augment": {"crop": None}},
        "logging": {"previews": "3 steps"},
        "validation": {"every": "3 steps"},
    }
    _, run, _ = train(tiny(root, change), tmp_path / "run")
    assert len(validations(run)) == 2
    grids = sorted(run.samples.glob("*.png"))
    assert [path.name for path in grids] == ["step-000000003.png", "step-000000006.png"]
    assert cv2.imread(str(grids[0])).shape == (37 + 4, 3 * 37 + 8, 3)  # sizes differ: the first image alone


# ---- what a weights file rebuilds --------------------------------------------------------------------------------


def test_the_weights_file_rebuilds_the_averaged_network(root: Path, tmp_path: Path) -> None:
    config = tiny(root, ALL_ON)
    run = make_run(tmp_path / "run", config)
    trainer = Trainer(config, Listener())
    trainer.train(run)
    assert trainer.ema is not None
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    weights = load_weights(run.path / "last.safetensors")
    method = build_for_inference(weights)
    assert (weights.step, weights.images, weights.config) == (11, 22, config)
    with torch.no_grad(), trainer._averaged() as networks:
        expected = networks["generator"](x)
        assert torch.equal(method.exported()["generator"](x), expected)
    with torch.no_grad():
        trainer.method.eval()
        assert not torch.equal(trainer.method.exported()["generator"](x), expected)  # the average is another network
    for parameter in method.players["discriminator"].parameters():
        assert parameter.is_meta  # nothing that only training needs takes memory
    pixels = ((x[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    assert Translator.load(run.path, device="cpu", precision="fp32")(pixels).shape == (32, 32, 3)


@pytest.mark.parametrize("channels", [1, 2])
def test_label_maps_become_grey_pictures_and_back(channels: int, tmp_path: Path) -> None:
    """Indices of three classes in A; both directions train, validate, show and export."""
    root = tmp_path / "pairs"
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            labels = np.random.default_rng(number).integers(0, 3, (4, 4), dtype=np.uint8)
            labels = cv2.resize(labels, (32, 32), interpolation=cv2.INTER_NEAREST)
            for side in "AB":
                (root / split / side).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / split / "A" / f"{number}.png"), labels)
            grey = np.repeat(labels[:, :, None] * 100, channels, 2)
            if channels == 1:
                cv2.imwrite(str(root / split / "B" / f"{number}.png"), grey)
            else:
                np.save(root / split / "B" / f"{number}.npy", grey)
    stage = {"length": "80 steps", "optimiser": {"lr": 4e-3, "betas": [0.5, 0.999]}}
    for direction in ("AtoB", "BtoA"):
        change = {
            "data": {
                "direction": direction,
                "validation": "val",
                "A": {"kind": "labels", "classes": 3},
                "B": {"channels": channels},
            },
            "method": {"generator": {"depth": 3, "width": 8, "norm": "batch"}},
            "training": {"stages": [stage], "batch_size": 3},
            "logging": {"previews": "80 steps"},
            "validation": {"every": "20 steps"},
        }
        _, run, _ = train(tiny(root, change), tmp_path / direction)
        found = validations(run)
        assert found[-1]["validation/l1"] < 0.5 * found[0]["validation/l1"]
        assert len(list(run.samples.glob("*.png"))) == 1
        method = build_for_inference(load_weights(run.path))
        source, target = (3, channels) if direction == "AtoB" else (channels, 3)
        with torch.no_grad():
            output = method.translator(direction)(torch.zeros(1, source, 32, 32))
        assert output.shape == (1, target, 32, 32)


def test_the_perceptual_term_trains_and_is_left_out_of_inference(root: Path, tmp_path: Path) -> None:
    settings = PerceptualSettings(weights=tmp_path / "vgg.safetensors", layers={"relu1_2": 1.0})
    positions = _positions(settings.network)
    shapes = {"conv1_1": (64, 3), "conv1_2": (64, 64)}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"features.{positions[name]}.{part}": torch.randn(*shape, generator=generator) * 0.05
        for name, sizes in shapes.items()
        for part, shape in (("weight", (*sizes, 3, 3)), ("bias", sizes[:1]))
    }
    save_file(tensors, settings.weights)
    change = {
        "method": {"perceptual": {**settings.model_dump(mode="json"), "weight": 2.0}},
        "training": {"stages": [{"length": "2 steps", "optimiser": {"lr": 1e-3}}]},
    }
    config = tiny(root, change)
    _, run, _ = train(config, tmp_path / "run")
    assert all(row["generator/perceptual"] > 0 for row in rows_of(run))
    checkpoint = run.load_checkpoint(warn=pytest.fail)
    assert checkpoint is not None and not any("perceptual" in name for name in checkpoint.model)
    settings.weights.unlink()  # who only converts need not have it
    method = build_for_inference(load_weights(run.path))
    assert method.perceptual is None
    assert configs.validate(config.model_dump(mode="json"), "again") == config


def test_state_that_a_method_keeps_beside_tensors_is_resumed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`get_extra_state`, as a history pool's count or an adaptive augmentation's rate would use it."""

    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def get_extra_state(self) -> dict[str, Any]:
            return {"count": self.count, "names": ["a", "b"]}

        def set_extra_state(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    plain = Pix2Pix.__init__

    def with_counter(self: Pix2Pix, *arguments: Any, **named: Any) -> None:
        plain(self, *arguments, **named)
        self.pool = Counter()

    def counted(self: Pix2Pix, step: int) -> Any:
        self.pool.count += 1
        return plain_turns(self, step)

    plain_turns = Pix2Pix.turns
    monkeypatch.setattr(Pix2Pix, "__init__", with_counter)
    monkeypatch.setattr(Pix2Pix, "turns", counted)
    config = tiny(root, {"checkpoints": {"every": "4 steps", "keep": 5}})
    _, run, _ = train(config, tmp_path / "run")
    shutil.rmtree(run.checkpoint_folders()[0])  # the last: back to step 4
    trainer = Trainer(config, Listener())
    trainer.train(run)
    assert trainer.method.pool.count == 6
