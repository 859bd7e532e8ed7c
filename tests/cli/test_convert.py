from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from translate import config as configs
from translate.cli import main
from translate.data.images import read_image, write_image
from translate.data.spec import ImageSpec
from translate.inference import translator as module
from translate.inference.translator import Translator
from translate.run import Run, build_for_inference, load_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that a small pix2pix writes, untrained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    settings = configs.load("pix2pix", ["method.generator.depth=3", "method.generator.width=4", f"data.root={folder}"])
    method = settings.method.build(settings.data)
    return Run(folder).export("last", settings, method.exported(), step=1234, images=1234)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png", "c.png"):
        write_image(tmp_path / "in" / name, generator.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    return tmp_path / "in"


def run(arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["translate", "convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_a_run_converts_a_folder(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run([weights.parent, folder, out, "--report", "--device", "cpu"], monkeypatch) == 0
    error = capsys.readouterr().err
    assert "3 images converted" in error and "index.html" in error
    assert "1,234" in (out / "index.html").read_text()

    network = build_for_inference(load_weights(weights)).translator("AtoB")
    expected = Translator(network, ImageSpec(), ImageSpec(), device="cpu")
    loaded = Translator.load(weights, device="cpu")
    for name in ("a.png", "sub/b.png", "c.png"):
        pixels = read_image(out / name).pixels
        np.testing.assert_array_equal(pixels, loaded(folder / name))
        assert isinstance(loaded, Translator) and pixels.shape == (20, 30, 3)
        np.testing.assert_array_equal(pixels, expected(read_image(folder / name).pixels))

    assert run([weights, folder, out], monkeypatch) == 0
    assert "3 were done before" in capsys.readouterr().err


def test_json_on_standard_output_and_exit_code_1(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.jpg").write_bytes(b"")
    assert run([weights, folder, tmp_path / "out", "--json"], monkeypatch) == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["written"] == 3 and summary["total"] == 4
    assert summary["failed"][0]["path"].endswith("bad.jpg") and "empty" in summary["failed"][0]["reason"]
    assert captured.err.count("\n") == 1 and "1 of 4 images failed" in captured.err


def test_a_bad_file_is_one_line_and_exit_code_1(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_text("letter")
    assert run([weights, folder, tmp_path / "out", "--quiet"], monkeypatch) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "bad.png" in lines[0] and lines[1].startswith("error: 1 of 4 images failed; 3 are done")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors", "IN", "OUT"], "missing.safetensors"),
        (["pickle.pt", "IN", "OUT"], "pickle"),
        (["cut.safetensors", "IN", "OUT"], "cut short"),
        (["WEIGHTS", "IN/none", "OUT"], "no such file or folder"),
        (["WEIGHTS", "EMPTY", "OUT"], "no images"),
        (["WEIGHTS", "IN", "IN"], "would replace an input"),
        (["WEIGHTS", "IN", "OUT", "--direction", "BtoA"], "it offers AtoB"),
        (["WEIGHTS", "IN", "OUT", "--device", "abacus"], "abacus"),
        (["WEIGHTS", "IN", "OUT", "--device", "cpu", "--precision", "fp16"], "fp16"),
        (["WEIGHTS", "IN", "OUT", "--target", "EMPTY"], "no images"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    weights: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    torch.save({"w": torch.zeros(1)}, tmp_path / "pickle.pt")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:500])
    monkeypatch.chdir(tmp_path)
    names = {"WEIGHTS": str(weights), "IN": "in", "IN/none": "in/none", "OUT": "out", "EMPTY": "empty"}
    assert run([names.get(argument, argument) for argument in arguments], monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Super-resolution


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SRGAN that has finished both stages: x4, weights of its own in each."""
    folder = tmp_path_factory.mktemp("upscaler")
    changes = ["generator.blocks=1", "generator.width=4", "discriminator.spectral_norm=false"]
    settings = configs.load("srgan-bsds", [*(f"method.{change}" for change in changes), f"data.root={folder}"])
    (folder / "config.yaml").write_text(configs.dump(settings))
    for seed, name in enumerate(("stage-pixel", "last")):
        torch.manual_seed(seed)
        method = settings.method.build(settings.data)
        Run(folder).export(name, settings, method.exported(), step=seed, images=seed)
    return folder


def test_an_upscaler_makes_larger_images(
    upscaler: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--device", "cpu", "--precision", "fp32", "--quiet"]

    def made(name: str, *options: str) -> np.ndarray:
        assert run([upscaler, folder, tmp_path / name, *common, *options], monkeypatch) == 0
        return read_image(tmp_path / name / "sub" / "b.png").pixels

    assert made("four").shape == (80, 120, 3)
    assert made("two", "--outscale", "2").shape == (40, 60, 3)
    np.testing.assert_array_equal(made("tiled", "--tile", "32", "--overlap", "exact"), made("four"))
    expected = Translator.load(upscaler, device="cpu", precision="fp32", alpha=0.25)(folder / "sub" / "b.png")
    np.testing.assert_array_equal(made("between", "--alpha", "0.25"), expected)
    assert (expected != made("four")).any()


def test_tiles_that_fade_are_told(
    upscaler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (70, 80, 3), dtype=np.uint8))
    options = ["--device", "cpu", "--tile", "64", "--overlap", "4"]
    assert run([upscaler, tmp_path / "a.png", tmp_path / "b.png", *options], monkeypatch) == 0
    said = capsys.readouterr().err
    assert "tiles fade into each other: at most " in said and "grey levels" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--overlap", "wide"], "expected auto, exact or a number of pixels"),
        (["RUN", "--overlap", "0"], "overlap 0: expected"),
        (["RUN", "--outscale", "0"], "expected a factor above 0"),
        (["RUN/last.safetensors", "--alpha", "0.5"], "is no run folder"),
        (["PIX2PIX", "--alpha", "0.5"], "was trained in one stage"),
        (["RUN", "--tile", "31"], "expected at least 32 pixels"),
    ],
)
def test_mistakes_of_an_upscaler_are_one_line(
    upscaler: Path,
    weights: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    first, *options = arguments
    model = first.replace("RUN", str(upscaler)).replace("PIX2PIX", str(weights.parent))
    assert run([model, folder, tmp_path / "out", "--device", "cpu", *options], monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_interrupt_is_exit_code_130(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = module.Translator.run
    calls = 0

    def run_twice(self: Translator, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(module.Translator, "run", run_twice)
    assert run([weights, folder, tmp_path / "out"], monkeypatch) == 130
    assert "stopped: 2 of 3 files are done" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_interrupt(weights: Path, folder: Path, tmp_path: Path) -> None:
    """SIGINT to the program in the middle of many files: whole files, one line, exit code 130, and it goes on."""
    for number in range(800):
        write_image(folder / f"x{number:03d}.png", np.zeros((256, 256, 3), np.uint8))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "translate", "convert", str(weights), str(folder), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300  # importing torch is slow where others use the disk
    while len(list(out.glob("x*.png"))) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error and "stopped: " in error
    files = [path for path in out.rglob("*") if path.is_file()]
    assert f"stopped: {len(files)} of 803" in error
    for path in files:
        assert read_image(path).pixels.shape[2] == 3


# Models that draw


@pytest.fixture(scope="module", params=["masked", "causal"])
def drawing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A translation of 8x8 tokens of 32 codes, untrained."""
    folder = tmp_path_factory.mktemp("drawing")
    changes = [
        "tokenizer.tokenizer.network={kind: convolutional, width: 8, multipliers: [1, 2], blocks: 1, latent: 8}",
        "tokenizer.tokenizer.quantiser={kind: codebook, size: 32, width: 4, normalise: true}",
        "tokenizer.discriminator=null",
        "tokenizer.lpips=null",
        "transformer={layers: 1, heads: 1, width: 8}",
        f"decoding={request.param}",
    ]
    where = ["data.augment.crop=16", f"data.root={folder}"]
    settings = configs.load("token-translation-emoji", [*(f"method.{change}" for change in changes), *where])
    torch.manual_seed(0)
    method = settings.method.build(settings.data)
    return request.param, Run(folder).export("last", settings, method.exported(), step=1, images=1)


def test_how_it_draws_can_be_told(
    drawing: tuple[str, Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoding, weights = drawing
    options = ["--choice-temperature", "0", "--steps", "3", "--seed", "4", "--device", "cpu"]
    code = run([weights, folder / "a.png", tmp_path / "b.png", *options], monkeypatch)
    error = capsys.readouterr().err
    if decoding == "causal":
        assert code == 2 and error.count("\n") == 1 and not (tmp_path / "b.png").exists()
        assert "this model draws token after token, not in steps; leave the option out" in error
        return
    assert code == 0
    sampling = {"choice_temperature": 0.0, "steps": 3}
    expected = Translator.load(weights, device="cpu", seed=4, sampling=sampling).run(
        [read_image(folder / "a.png").pixels], ["a.png"]
    )
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").pixels, expected[0])
    noisy = Translator.load(weights, device="cpu", seed=4, sampling={"steps": 3})
    assert not np.array_equal(noisy.run([read_image(folder / "a.png").pixels], ["a.png"])[0], expected[0])


@pytest.mark.parametrize("option", [("--seed", "0"), ("--choice-temperature", "1")])
def test_a_model_of_one_answer_draws_nothing(
    option: tuple[str, str],
    weights: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([weights, folder, tmp_path / "out", *option], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "has one answer for each image" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from translate.cli import convert; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'cv2', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_network_is_not_shared() -> None:
    network = nn.Conv2d(3, 3, 1)
    network.multiple = network.smallest = network.scale = 1
    translator = Translator(network, ImageSpec(), ImageSpec(), device="cpu", precision="bf16")
    translator.run([np.zeros((2, 2, 3), np.uint8)])
    assert network.weight.dtype == torch.float32 and network.weight.requires_grad
