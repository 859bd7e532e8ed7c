"""`translate evaluate`: what it prints and keeps, its exit codes, and every mistake in a line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from translate import config as configs
from translate.cli import main
from translate.data.tokens import TokenFile, write_tokens
from translate.metrics.scores import MEASURES, Evaluation
from translate.run import Run

torch.set_num_threads(1)

STAGES = [{"length": "1 steps", "optimiser": {"kind": "Adam", "lr": 1e-3}}]
UNET = {"kind": "unet", "depth": 3, "width": 4, "norm": "instance", "dropout": 0.0}
PATCH = {"kind": "patch", "layers": 1, "width": 4, "norm": "instance"}
RESNET = {"kind": "resnet", "blocks": 1, "width": 4}
DCGAN = {"kind": "dcgan", "width": 4}
MLP = {"kind": "mlp", "hidden": [8]}
METHODS: dict[str, dict[str, Any]] = {
    "pix2pix": {"kind": "pix2pix", "generator": UNET, "discriminator": PATCH},
    "gan": {"kind": "gan", "generator": DCGAN, "discriminator": DCGAN, "latent": {"width": 6}},
    "cyclegan": {"kind": "cyclegan", "generator": RESNET, "discriminator": PATCH},
    "srgan": {
        "kind": "srgan",
        "generator": {"kind": "srresnet", "blocks": 1, "width": 4},
        "discriminator": None,
    },
    "points": {"kind": "gan", "generator": MLP, "discriminator": MLP, "latent": {"width": 2}},
}
COLOURS = f"{__name__}:Colours"


class Colours(nn.Module):
    """The mean colour."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def light() -> Any:
    """A segmenter of two classes."""
    return lambda images: (images.mean(1) > 0).long()


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def picture(seed: int, size: tuple[int, int] = (16, 24)) -> np.ndarray[Any, Any]:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (size[1], size[0])))


def export(folder: Path, kind: str, data: dict[str, Any]) -> Path:
    raw = {"name": kind, "method": METHODS[kind], "data": data, "training": {"batch_size": 4, "stages": STAGES}}
    config = configs.validate(raw, "test")
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder)
    run.config_file.write_text(configs.dump(config))
    run.export("last", config, config.method.build(config.data).exported(), step=12, images=48)
    return folder


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """OUT and TARGET with five pairs of pictures, of which MAPS are label maps; a run of each kind; some files."""
    for number in range(5):
        target = picture(number)
        noise = np.random.default_rng(number).normal(0, 10 + number, target.shape)
        write(tmp_path / "out" / f"{number}.png", np.clip(target + noise, 0, 255).astype(np.uint8))
        write(tmp_path / "target" / f"{number}.png", target)
        write(tmp_path / "maps" / f"{number}.png", (target[..., 0] > 128).astype(np.uint8))
        for split in ("train", "test"):
            write(tmp_path / "pairs" / split / "A" / f"{number}.png", 255 - target)
            write(tmp_path / "pairs" / split / "B" / f"{number}.png", target)
        write(tmp_path / "faces" / "train" / f"{number}.png", picture(number, (8, 8)))
    write(tmp_path / "one" / "x.png", picture(0))
    (tmp_path / "empty").mkdir()
    augment = {"resize": None, "crop": None, "flip": False}
    pairs = {"kind": "paired", "root": str(tmp_path / "pairs"), "validation": None, "workers": 0, "augment": augment}
    faces = {"kind": "folder", "root": str(tmp_path / "faces"), "validation": None, "augment": {"resize": 8, "crop": 8}}
    high = {"kind": "super-resolution", "root": str(tmp_path / "target"), "scale": 2, "high": {"path": "."}}
    high |= {"validation": None, "test": None, "workers": 0, "augment": {"crop": None}}
    code = torch.arange(12).reshape(3, 4) % 5
    write_tokens(tmp_path / "tokens.safetensors", TokenFile({"a": code}, {"a": (24, 32)}, 16, "0123456789abcdef" * 4))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    runs = tmp_path / "runs"
    return {
        **{name.upper(): tmp_path / name for name in ("out", "target", "maps", "one", "empty", "missing")},
        "RUN": export(runs / "0001-pix2pix", "pix2pix", pairs),
        "GAN": export(runs / "0002-gan", "gan", faces),
        "CYCLE": export(runs / "0004-cycle", "cyclegan", {**pairs, "kind": "unpaired"}),
        "ENLARGER": export(runs / "0005-srgan", "srgan", high),
        "POINTS": export(runs / "0003-points", "points", {"kind": "toy", "samples": 400}),
        "TOKENS": tmp_path / "tokens.safetensors",
        "OTHER": tmp_path / "other.safetensors",
        "TMP": tmp_path,
    }


class Said:
    """What a call printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def evaluation(self) -> Evaluation:
        return Evaluation.model_validate_json(self.out)

    @property
    def values(self) -> dict[str, float]:
        return {score.measure: score.value for score in self.evaluation.scores}


@pytest.fixture
def call(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def called(*arguments: object) -> Said:
        told = [str(places.get(str(argument), argument)) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["translate", "evaluate", *told, "--device", "cpu"])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return called


# ---- what it prints --------------------------------------------------------------------------------------------------


def test_two_folders_print_each_number_with_its_protocol(call: Any) -> None:
    said = call("OUT", "TARGET", "--measures", "l1,psnr,frechet", "--features", COLOURS)
    assert said.code == 0
    as_json = call("OUT", "TARGET", "--measures", "l1,psnr,frechet", "--features", COLOURS, "--json")
    for score in as_json.evaluation.scores:
        assert score.text in said.out
        assert all(f"{key} {value}" in said.out for key, value in score.protocol.items())
    assert "L1" in said.out and "PSNR" in said.out and "Fréchet distance" in said.out
    assert "note: Fréchet distance: biased" in said.out and "5 and 5 images" in said.out
    assert "measuring " in said.err and "measuring " not in as_json.err


def test_json_goes_there_and_back(call: Any, tmp_path: Path) -> None:
    said = call("OUT", "TARGET", "--measures", "l1,ssim", "--json", "--out", tmp_path / "kept")
    found = said.evaluation
    assert found == Evaluation.load(tmp_path / "kept" / "evaluation.json")
    assert json.loads(said.out)["count"] == 5 and len(found.images) == 5
    assert f"kept in {tmp_path / 'kept'}" in said.err
    assert found.ranked_by == "ssim" and len(found.pictures) == 4
    for shown in found.pictures:
        assert all((tmp_path / "kept" / file).is_file() for file in shown.files.values())


def test_quiet_says_numbers_alone(call: Any, tmp_path: Path) -> None:
    said = call("OUT", "TARGET", "--measures", "l1", "--quiet", "--out", tmp_path / "kept")
    assert said.code == 0 and said.err == "" and "L1" in said.out


def test_two_folders_keep_nothing_unless_asked(call: Any, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert call("OUT", "TARGET", "--measures", "l1").code == 0
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_options_reach_the_protocol(call: Any) -> None:
    options = ["--luma", "--border", 2, "--crop", 12, "--kept", 4, "--features", COLOURS, "--images", 4]
    found = call("OUT", "TARGET", "--measures", "psnr,kid,frechet", *options, "--json").evaluation
    told = {score.measure: score.protocol for score in found.scores}
    assert (told["psnr"]["channels"], told["psnr"]["border"], told["psnr"]["images"]) == ("luma", 2, 4)
    assert (told["kid"]["crop"], told["kid"]["outputs"], told["frechet"]["outputs"]) == (12, 4, 4)


def test_a_run_is_measured_and_its_evaluation_kept_in_it(call: Any, places: dict[str, Path]) -> None:
    said = call("RUN", "--measures", "l1,ssim", "--json", "--grid", places["TMP"] / "grid.png")
    folder = places["RUN"] / "evaluation" / "test"
    found = said.evaluation
    assert said.code == 0 and found == Evaluation.load(folder / "evaluation.json")
    assert found.subject == "0001-pix2pix/last at step 12" and found.reference == f"test split of {places['TMP']}/pairs"
    assert list(found.pictures[0].files) == ["input", "output", "target"]
    assert cv2.imread(str(places["TMP"] / "grid.png")).shape == (3 * 16, 2 * 72 + 12, 3)
    assert call("RUN", "--measures", "l1", "--split", "train", "-n", 2, "--quiet").code == 0
    assert Evaluation.load(places["RUN"] / "evaluation" / "train" / "evaluation.json").count == 2
    # A folder whose name looks like a split's title is none.
    odd = places["TMP"] / "my split of things"
    places["TARGET"].rename(odd)
    assert call("RUN", odd, "--measures", "l1", "--quiet").code == 0
    assert Evaluation.load(places["RUN"] / "evaluation" / "folder" / "evaluation.json").reference == str(odd)
    assert call("RUN/last.safetensors".replace("RUN", str(places["RUN"])), "--measures", "l1", "-q").code == 0


def test_baselines_stand_beside_the_run(call: Any, places: dict[str, Path]) -> None:
    said = call("RUN", "--measures", "l1,psnr", "--baselines", "--json")
    found = [Evaluation.model_validate(each) for each in json.loads(said.out)]
    assert [each.subject for each in found] == [
        "0001-pix2pix/last at step 12", "the input itself", "mean training image"
    ]  # fmt: skip
    targets = [picture(number).astype(float) for number in range(5)]
    expected = [np.mean([np.abs(255 - t - t).mean() / 255 for t in targets])]
    mean = np.mean(targets, axis=0).round()
    expected.append(np.mean([np.abs(mean - t).mean() / 255 for t in targets]))
    assert [each.scores[0].value for each in found[1:]] == pytest.approx(expected, rel=1e-5)
    for name in ("test", "test-input", "test-mean"):
        assert (places["RUN"] / "evaluation" / name / "evaluation.json").is_file()
    table = call("RUN", "--measures", "l1,psnr", "--baselines").out
    assert all(each.subject in table for each in found)
    assert all(score.text in table for each in found for score in each.scores)


def test_a_run_without_pairs(call: Any, places: dict[str, Path]) -> None:
    """Sets both ways and both cycles; beside its inputs; against hidden partners pair by pair."""
    sets = ["--features", COLOURS, "--baselines"]
    said = call("CYCLE", "--measures", "frechet,l1", *sets, "--json", "--grid", places["TMP"] / "grid.png")
    run, unlearnt = (Evaluation.model_validate(each) for each in json.loads(said.out))
    labels = [f"{part} Fréchet distance" for part in ("AtoB", "BtoA")]
    assert said.code == 0 and [score.label for score in unlearnt.scores] == labels
    assert [score.label for score in run.scores] == [*labels, "cycle A L1", "cycle B L1"]
    assert run.reference == f"test split of {places['TMP']}/pairs"
    assert cv2.imread(str(places["TMP"] / "grid.png")).shape == (5 * 16, 2 * 72 + 12, 3)
    table = call("CYCLE", "--measures", "frechet,l1", *sets).out
    assert "the input itself" in table and "the mean training image is no baseline here" in table
    assert list(call("CYCLE", "--json").values) == ["l1", "psnr"]  # Inception's weights are not here
    hidden = call("CYCLE", "TARGET", "--direction", "AtoB", "--measures", "l1", "--baselines", "--json")
    found = [Evaluation.model_validate(each) for each in json.loads(hidden.out)]
    assert [each.subject for each in found][1:] == ["the input itself", "mean training image"]
    targets = [picture(number).astype(float) for number in range(5)]
    expected = np.mean([np.abs(255 - t - t).mean() / 255 for t in targets])
    assert found[1].scores[0].value == pytest.approx(expected, rel=1e-5)
    assert (places["CYCLE"] / "evaluation" / "folder-mean" / "evaluation.json").is_file()


def test_a_run_that_enlarges(call: Any, places: dict[str, Path]) -> None:
    """On luma less a border of its factor unless asked otherwise, beside bicubic; its stages have their own place."""
    said = call("ENLARGER", "TARGET", "--baselines", "--json", "--grid", places["TMP"] / "grid.png")
    found = [Evaluation.model_validate(each) for each in json.loads(said.out)]
    assert said.code == 0 and [each.subject for each in found] == ["0005-srgan/last at step 12", "bicubic"]
    for each in found:
        assert [score.label for score in each.scores] == ["PSNR", "SSIM", "consistency PSNR"]
        settings = [(score.protocol["channels"], score.protocol["border"]) for score in each.scores]
        assert settings == [("luma", 2), ("luma", 2), ("rgb", 0)]
        assert all(score.protocol["low resolution"] == "bicubic uint8" for score in each.scores)
    assert found[1].scores[0].value > 30  # smooth pictures
    assert cv2.imread(str(places["TMP"] / "grid.png")).shape == (3 * 16, 2 * 3 * 16 + 12, 3)
    for name in ("folder", "folder-bicubic"):
        assert (places["ENLARGER"] / "evaluation" / name / "evaluation.json").is_file()
    table = call("ENLARGER", "TARGET", "--baselines").out
    assert "bicubic" in table and "channels luma, border 2, window gaussian 11x11" in table
    plain = call("ENLARGER", "TARGET", "--rgb", "--border", 0, "--measures", "psnr", "--json").evaluation
    assert plain.scores[0].protocol["channels"] == "rgb" and plain.scores[0].protocol["border"] == 0

    stage = places["ENLARGER"] / "stage-pixel.safetensors"
    stage.write_bytes((places["ENLARGER"] / "last.safetensors").read_bytes())
    said = call(stage, "--measures", "ssim", "--json")
    assert list(said.values) == ["ssim"] and said.evaluation.subject == "0005-srgan/stage-pixel at step 12"
    assert (places["ENLARGER"] / "evaluation" / "train-stage-pixel" / "evaluation.json").is_file()


def rename(path: Path, name: bytes) -> Path:
    return path.rename(path.parent / os.fsdecode(name))


def test_names_that_are_no_utf_8(
    call: Any, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the JSON, the table, the errors and the pages they are text, and each picture keeps its own."""
    for folder in ("out", "target", "pairs/test/A", "pairs/test/B"):
        rename(places["TMP"] / folder / "1.png", b"caf\xe9.png")
        rename(places["TMP"] / folder / "2.png", b"caf\xe8.png")
    out, target = rename(places["OUT"], b"out\xff"), rename(places["TARGET"], b"target\xff")
    said = call(out, target, "--measures", "l1", "--json", "--out", places["TMP"] / "kept")
    assert said.code == 0 and said.evaluation == Evaluation.load(places["TMP"] / "kept" / "evaluation.json")
    assert [image.name for image in said.evaluation.images] == ["0", "3", "4", "caf\\xe8", "caf\\xe9"]
    assert said.evaluation.reference == str(places["TMP"] / "target\\xff")
    assert "target\\xff" in call(out, target, "--measures", "l1").out
    (out / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no picture")
    said = call(out, target, "--measures", "l1", "--quiet")
    assert said.code == 1 and "not measured: caf\\xe9: " in said.err

    run = places["RUN"]
    assert call("RUN", "--measures", "l1,frechet", "--features", COLOURS, "--json", "--baselines").code == 0
    assert {p.name for p in Evaluation.load(run / "evaluation" / "test" / "evaluation.json").pictures} >= {"caf\\xe9"}
    page = rename(run, b"0001-\xff") / "report.html"
    for arguments, shown in ((["report"], "0001-\\xff/report.html"), (["compare", "--names", "\udcff"], "\\xff")):
        monkeypatch.setattr(sys, "argv", ["translate", *arguments, str(page.parent)])
        with contextlib.suppress(SystemExit):
            main()
        assert shown in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "caf\\xe9" in text and "caf\\xe8" in text


def test_samples_are_measured_as_a_set(call: Any, places: dict[str, Path]) -> None:
    options = ["--measures", "frechet", "--features", COLOURS, "-n", 6, "--json"]
    found = [call("GAN", *options, "--seed", seed).evaluation for seed in (0, 0, 1)]
    assert found[0].scores == found[1].scores != found[2].scores
    assert found[0].count == 6 and found[0].scores[0].protocol["reference images"] == 5
    assert (places["GAN"] / "evaluation" / "train" / "evaluation.json").is_file()
    assert call("GAN", *options, "--truncation", 0.3).evaluation.subject.endswith("seed 0, truncation 0.3")


def test_points_are_measured_by_parzen(call: Any, places: dict[str, Path]) -> None:
    said = call("POINTS", "-n", 50, "--json")
    assert said.code == 0 and list(said.values) == ["parzen"] and said.evaluation.count == 50
    assert call("POINTS", "-n", 50, "--measures", "parzen", "--json").values == said.values
    assert (places["POINTS"] / "evaluation" / "test" / "evaluation.json").is_file()
    text = call("GAN", "-n", 12, "--measures", "parzen").out
    assert "Parzen log likelihood" in text and "do not rank models" in text


def test_tokens_are_counted(call: Any) -> None:
    said = call("TOKENS")
    assert said.code == 0 and "31.2%" in said.out and "perplexity" in said.out  # 5 of 16 codes
    assert call("TOKENS", "--json", "--measures", "perplexity").values["codes-used"] == 5 / 16


def test_label_maps_and_segmenters(call: Any) -> None:
    options = ["--classes", 2, "--json"]
    assert call("MAPS", "MAPS", *options).values == {"pixel-accuracy": 1, "class-accuracy": 1, "mean-iou": 1}
    found = call("TARGET", "MAPS", *options, "--segmenter", f"{__name__}:light").values
    truth = np.concatenate([(picture(n)[..., 0] > 128).ravel() for n in range(5)])
    guess = np.concatenate([(picture(n).astype(np.float32).mean(2) / 127.5 - 1 > 0).ravel() for n in range(5)])
    assert found["pixel-accuracy"] == pytest.approx((truth == guess).mean(), rel=1e-12)


def test_the_list_has_every_measure(call: Any) -> None:
    said = call("--list")
    assert said.code == 0
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines] == list(MEASURES)
    assert all(line.endswith(("higher is better", "lower is better")) for line in lines)


# ---- what cannot be measured -----------------------------------------------------------------------------------------


def test_a_bad_pair_is_listed_and_the_exit_code_is_1(call: Any, places: dict[str, Path]) -> None:
    write(places["OUT"] / "1.png", picture(1, (16, 20)))
    said = call("OUT", "TARGET", "--measures", "l1")
    assert said.code == 1 and "images 4" in said.out
    assert "not measured: 1: the output is 20x16 with 3 channels, its target 24x16" in said.err
    assert said.err.splitlines()[-1] == "error: 1 image could not be measured; the numbers are those of the others"
    (places["TARGET"] / "3.png").write_bytes(b"no picture")
    said = call("OUT", "TARGET", "--measures", "l1,frechet", "--features", COLOURS, "--json", "--quiet")
    assert said.code == 1 and said.evaluation.count == 3
    lines = said.err.splitlines()
    assert len(lines) == 3 and "3.png" in lines[1] and lines[2].startswith("error: 2 images could not be measured")


def test_a_baseline_that_fails_where_the_run_does_not(call: Any, places: dict[str, Path]) -> None:
    """Numbers of other pictures are no table: each stands by itself."""
    for side in "AB":
        write(places["TMP"] / "pairs" / "test" / side / "2.png", picture(2, (24, 24)))
    said = call("RUN", "--measures", "l1", "--baselines")
    assert said.code == 1 and "mean training image" in said.out and "images 4" in said.out and "images 5" in said.out
    assert "not measured: 2: the output is 24x16 with 3 channels, its target 24x24" in said.err


def test_a_picture_that_all_lack_is_listed_once(call: Any, places: dict[str, Path]) -> None:
    (places["TMP"] / "pairs" / "test" / "A" / "2.png").write_bytes(b"no picture")
    said = call("RUN", "--measures", "l1,frechet", "--features", COLOURS, "--baselines", "--quiet")
    assert said.code == 1 and "mean training image" in said.out
    lines = said.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("not measured: 2: ") and lines[1].startswith("error: 1 image could")


MISTAKES = [
    (["OUT"], "is no run, so it needs the folder of its targets: translate evaluate PREDICTED TARGET"),
    (["OUT", "TARGET", "--measures", "psnrr"], "--measures: 'psnrr' is unknown; expected some of l1, psnr"),
    (["OUT", "TARGET", "--measures", ","], "--measures: expected names"),
    (["OUT", "MISSING"], "there is no such file or folder"),
    (["EMPTY", "TARGET"], "no images in this folder"),
    (
        ["OUT", "ONE"],
        "Inception's features, which are not on this machine; fetch them once with 'translate weights get",
    ),
    (["OUT", "ONE", "--measures", "psnr"], "measures of sets (--measures fid) need no partners"),
    (["OUT", "TARGET", "--measures", "fid"], "'translate weights get inception'"),
    (["OUT", "TARGET", "--measures", "lpips-vgg"], "'translate weights get lpips'"),
    (["ONE", "ONE", "--measures", "kid", "--features", COLOURS], "kid compares images within each set"),
    (["OUT", "TARGET", "--measures", "frechet", "--features", "nowhere"], "expected package.module:callable"),
    (["OUT", "TARGET", "--measures", "frechet", "--features", "nowhere:x"], "no module 'nowhere' is found"),
    (["OUT", "TARGET", "--measures", "perplexity"], "perplexity is measured of a token file"),
    (["OUT", "TARGET", "--measures", "mean-iou"], "mean-iou needs label maps"),
    (["OUT", "MAPS", "--classes", 2, "--measures", "mean-iou", "--segmenter", "nowhere:x"], "no module 'nowhere'"),
    (["OUT", "TARGET", "--split", "test"], "--baselines, --split, --direction and --set belong to runs"),
    (["OUT", "TARGET", "--measures", "l1", "--border", 9], "border: 9 pixels at each side leave nothing of an image"),
    (["OUT", "TARGET", "--measures", "frechet", "--features", COLOURS, "--grid", "x.png"], "--grid shows pairs"),
    (["RUN", "--set", "training.batch_size=2"], "evaluation changes nothing but where the data are"),
    (["RUN", "--set", "data.root=/nowhere"], "/nowhere"),
    (["RUN", "--direction", "sideways"], "has no direction 'sideways'; it offers AtoB"),
    (["RUN", "--split", "validation"], "there is no such split"),
    (["ENLARGER", "MISSING"], "missing"),
    (["ENLARGER", "EMPTY"], "no images in this folder"),
    (["ENLARGER", "TARGET", "--split", "test"], "is a folder, which has none"),
    (["ENLARGER", "TARGET", "--set", "data.low=nowhere"], "nowhere: there is no such folder"),
    (["ENLARGER", "TARGET", "--direction", "BtoA"], "has no direction 'BtoA'; it offers AtoB"),
    (["ENLARGER", "--measures", "psnr", "--border", 9], "border: 9 pixels at each side leave nothing of an image"),
    (["RUN", "--measures", "parzen"], "parzen: needs a run that makes samples of noise"),
    (["GAN", "--grid", "x.png", "--measures", "frechet", "--features", COLOURS, "-n", 4], "neither inputs nor targets"),
    (["GAN", "--measures", "psnr", "-n", 4], "psnr compares each output with its target, but no output here has one"),
    (["GAN", "-n", 4], "'translate weights get inception'"),
    (["GAN", "--baselines", "--measures", "frechet", "--features", COLOURS], "--baselines needs a run that translates"),
    (["GAN", "--measures", "parzen,frechet", "--features", COLOURS, "-n", 4], "and alone"),
    (["GAN", "--measures", "frechet", "--features", COLOURS, "--truncation", 0, "-n", 4], "above 0"),
    (["POINTS", "--measures", "fid"], "a run that makes points is measured by parzen alone"),
    (["POINTS", "TARGET"], "parzen compares with a run's own data"),
    (["TOKENS", "--measures", "psnr"], "of a token file only codes-used and perplexity are measured"),
    (["OTHER"], "other.safetensors"),
    (["OTHER", "TARGET"], "other.safetensors"),
    (["missing.safetensors"], "missing.safetensors: no such file or folder"),
    (["OUT", "TARGET", "--measures", "l1", "--out", "FILE"], "FILE"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: "")
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: Sequence[object], message: str, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    said = call(*arguments, "--quiet")
    assert said.code == 2, said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert message in said.err and said.out == ""


def test_a_weights_file_is_no_token_file(call: Any, places: dict[str, Path]) -> None:
    said = call(places["RUN"] / "last.safetensors", "--measures", "l1", "--json")
    assert said.code == 0 and list(said.values) == ["l1"]


def test_an_unknown_device_is_a_line(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["translate", "evaluate", str(places["RUN"]), "--device", "abacus"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "abacus" in capsys.readouterr().err


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from translate.cli import evaluate; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'cv2', 'pydantic', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
