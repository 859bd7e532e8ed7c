from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calling import call

from translate import config as configs
from translate.cli import main
from translate.data.images import read_image
from translate.inference import sampler as module
from translate.inference.sampler import Sampler
from translate.run import Run

torch.set_num_threads(1)


def export(folder: Path, content: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    stages = [{"length": "1 steps", "optimiser": {"kind": "Adam", "lr": 1e-3}}]
    settings = configs.validate({"name": "small", "training": {"batch_size": 4, "stages": stages}, **content}, "test")
    method = settings.method.build(settings.data)
    return Run(folder).export("last", settings, method.exported(), step=1234, images=4936)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional GAN of 8x8 pictures, untrained."""
    players = {"generator": {"kind": "dcgan", "width": 4}, "discriminator": {"kind": "dcgan", "width": 4}}
    method = {"kind": "gan", **players, "latent": {"width": 6}, "conditioning": {"generator": "norm"}}
    data = {"kind": "folder", "root": "none", "classes": ["cat", "dog"], "augment": {"crop": 8}}
    return export(tmp_path_factory.mktemp("gan"), {"method": method, "data": data})


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    players = {"generator": {"kind": "mlp", "hidden": [8]}, "discriminator": {"kind": "mlp", "hidden": [8]}}
    method = {"kind": "gan", **players, "latent": {"width": 2, "prior": "uniform"}}
    return export(tmp_path_factory.mktemp("toy"), {"method": method, "data": {"kind": "toy"}})


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pix2pix")
    settings = configs.load("pix2pix", ["method.generator.depth=3", "method.generator.width=4", f"data.root={folder}"])
    method = settings.method.build(settings.data)
    return Run(folder).export("last", settings, method.exported(), step=1, images=1)


def run(arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["translate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_a_run_makes_images(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["-n", 5, "--seed", 2, "--truncation", 0.7, "--class", "dog", "--interpolate", 3, "--device", "cpu"]
    assert run(["sample", weights.parent, *options, "--arithmetic", "0-1+2", "--out", out], monkeypatch) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "5 images in" in captured.err and "arithmetic.png" in captured.err
    expected = Sampler.load(weights, device="cpu").sample(5, seed=2, truncation=0.7, label=1)
    for number, image in enumerate(expected):
        np.testing.assert_array_equal(read_image(out / f"{number:04d}.png").pixels, image)
    facts = json.loads((out / "sample.json").read_text())
    assert facts["class"] == "dog" and facts["step"] == 1234 and facts["interpolation"]["between"] == [0, 1, 2, 3, 4]
    assert run(["sample", weights, "--out", out], monkeypatch) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["sample", weights, "--out", out, "-n", 2, "--overwrite", "--quiet"], monkeypatch) == 0
    assert capsys.readouterr().err == "" and not (out / "0003.png").exists()


def test_json_is_all_there_is(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-n", 3, "--no-images", "--interpolate", 2, "--between", "4,0", "--gif", "--standing-statistics", 2]
    assert run(["sample", weights, *options, "--json", "--out", tmp_path / "out"], monkeypatch) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["files"] == {"grid": "grid.png", "interpolation": "interpolation.gif"}
    assert summary["standing statistics"] == 2 and summary["seconds"] >= 0 and captured.err == ""
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["grid.png", "interpolation.gif", "sample.json"]


def test_points(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sample", points, "-n", 40, "-o", tmp_path / "out", "--device", "cpu"], monkeypatch) == 0
    assert "40 points" in capsys.readouterr().err
    assert np.load(tmp_path / "out" / "points.npy").shape == (40, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors", "--out", "out"], "missing.safetensors"),
        (["PIX2PIX", "--out", "out"], "use 'translate convert'"),
        (["GAN", "--out", "out", "--class", "dgo"], "did you mean 'dog'?"),
        (["POINTS", "--out", "out", "--class", "0"], "no classes"),
        (["POINTS", "--out", "out", "--truncation", "0.7"], "normal prior"),
        (["POINTS", "--out", "out", "--interpolate", "4"], "makes points"),
        (["POINTS", "--out", "out", "--standing-statistics", "4"], "has none"),
        (["GAN", "--out", "out", "--truncation", "0"], "above 0"),
        (["GAN", "--out", "out", "--arithmetic", "smile"], "such as 12-5+33"),
        (["GAN", "--out", "out", "--gif"], "--interpolate K"),
        (["GAN", "--out", "out", "--interpolate", "4", "--between", "7"], "such as 12,5,33"),
        (["GAN", "--out", "out", "--interpolate", "4", "--between", "a,b"], "such as 12,5,33"),
        (["GAN", "--out", "a-file"], "is a file"),
        (["GAN", "--out", "out", "--device", "abacus"], "abacus"),
        (["GAN", "--out", "out", "--device", "cpu", "--precision", "fp16"], "needs a GPU"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    weights: Path,
    points: Path,
    pix2pix: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    names = {"GAN": str(weights), "POINTS": str(points), "PIX2PIX": str(pix2pix)}
    assert run(["sample", *(names.get(argument, argument) for argument in arguments)], monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not Path("out").exists()


def test_converting_with_a_generator_of_noise(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", weights, tmp_path, tmp_path / "out"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "makes images from noise: use 'translate sample'" in error and error.count("\n") == 1


def test_interrupt_is_exit_code_130(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = module.Sampler.stream

    def once(self: Sampler, *arguments: Any, **choice: Any) -> Iterator[Any]:
        yield next(real(self, *arguments, **choice))
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Sampler, "stream", once)
    assert run(["sample", weights, "--out", tmp_path / "out", "--device", "cpu"], monkeypatch) == 130
    assert "stopped: " in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.png"))) == module.CPU_BATCH


def test_info_of_both_kinds(
    weights: Path, points: Path, pix2pix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", weights, "--json"], monkeypatch) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["method"] == "gan" and facts["classes"] == ["cat", "dog"] and facts["sample shape"] == [3, 8, 8]
    assert facts["latent"] == {"width": 6, "prior": "normal"} and facts["step"] == 1234
    assert run(["info", points], monkeypatch) == 0
    lines = capsys.readouterr().out
    assert "uniform" in lines and "directions" not in lines and "classes" not in lines
    assert run(["info", pix2pix, "--json"], monkeypatch) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["directions"] == ["AtoB"] and facts["size multiple"] == 8 and "latent" not in facts


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from translate.cli import sample; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'cv2', 'pydantic', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token prior of 8x8 pictures, untrained."""
    network = {"kind": "convolutional", "width": 4, "multipliers": [1, 2], "blocks": 1, "latent": 4}
    quantiser = {"kind": "codebook", "size": 16, "width": 4}
    tokenizer = {"tokenizer": {"network": network, "quantiser": quantiser}, "discriminator": None, "lpips": None}
    transformer = {"layers": 1, "heads": 1, "width": 8}
    method = {"kind": "token-prior", "tokenizer": tokenizer, "transformer": transformer}
    data = {"kind": "folder", "root": "none", "augment": {"crop": 8}}
    return export(tmp_path_factory.mktemp("prior"), {"method": method, "data": data})


def test_a_token_prior_s_images_of_another_size(
    prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--size", "20x6", "--temperature", "0.5", "--top-k", "3", "-n", "2", "--device", "cpu")
    assert call("sample", str(prior), "--out", str(out), *options, monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert read_image(out / "0000.png").pixels.shape == (6, 20, 3)
    assert (out / "0000.png").read_bytes() != (out / "0001.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--size", "20"), "expected width and height"),
        (("--size", "0x8"), "at least one pixel"),
        (("--top-p", "0"), "above 0"),
        (("--truncation", "0.5"), "token prior"),
        (("--interpolate", "4"), "tokens"),
        (("--precision", "bf16"), "fp32"),
    ],
)
def test_what_a_token_prior_has_not_is_one_line(
    prior: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    code, _, told = call("sample", str(prior), "--out", str(out), *options, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and said in told and "Traceback" not in told
    assert not out.exists()


def test_a_gan_has_no_temperature(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("sample", str(weights), "--out", str(tmp_path / "out"), "--temperature", "0.5")
    code, _, told = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "token prior" in told
