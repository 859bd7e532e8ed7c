"""The command line as a whole: quick help, one-line errors, exit codes, and the way from folders to results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from calling import call
from typer.testing import CliRunner

import translate
from translate.cli import app

COMMANDS = [
    [],
    ["train"],
    ["convert"],
    ["data"],
    ["data", "make"],
    ["data", "get"],
    ["data", "check"],
    ["config"],
    ["config", "show"],
    ["config", "schema"],
    ["config", "list"],
    ["sample"],
    ["encode"],
    ["decode"],
    ["export"],
    ["import"],
    ["info"],
    ["demo"],
    ["evaluate"],
    ["compare"],
    ["report"],
    ["weights"],
    ["weights", "get"],
    ["weights", "list"],
]

TINY = [
    "method.generator={kind: unet, depth: 5, width: 4}",
    "method.discriminator={kind: patch, layers: 1, width: 4}",
    "data.augment.resize=36",
    "data.augment.crop=32",
    "data.workers=0",
    "data.validation=0.2",
    "training.batch_size=2",
    "training.precision=fp32",
    "training.stages=[{length: 4 steps, optimiser: {kind: Adam, lr: 2e-4}}]",
]
"""A pix2pix that trains in well under a second."""


def tiny(*more: str) -> list[str]:
    return [part for item in (*TINY, *more) for part in ("--set", item)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Ten pairs of 40x40: a random picture, and its negative."""
    generator = np.random.default_rng(0)
    for side in "AB":
        (tmp_path / "pairs/train" / side).mkdir(parents=True)
    for number in range(10):
        picture = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"pairs/train/A/{number}.png"), picture)
        cv2.imwrite(str(tmp_path / f"pairs/train/B/{number}.png"), 255 - picture)
    return tmp_path / "pairs"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "translate")
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_imports_nothing_heavy() -> None:
    """--help answers in well under half a second as long as these stay out; time itself is for tools/."""
    code = (
        "import sys; sys.argv = ['translate', 'train', '--help']\n"
        "from translate.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'cv2', 'kornia', 'yaml', 'PIL'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--resume" in done.stdout


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("--version", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out.strip()) == (0, f"translate {translate.__version__}")


def test_from_folders_to_results(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train on two folders, ask what the run is, convert a third: what the README promises, at its smallest."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    train = ["train", "pix2pix", "--runs", str(runs), "--json", *tiny(f"data.root={pairs}", "name=mine")]
    code, printed, _ = call(*train, monkeypatch=monkeypatch, capsys=capsys)
    outcome = json.loads(printed)
    assert (code, outcome["reason"], outcome["step"], outcome["images"]) == (0, "finished", 4, 8)
    run = Path(outcome["run"])
    assert run == runs / "0001-mine"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "best.safetensors", "last.safetensors", "metrics.jsonl"}

    code, printed, _ = call("info", str(run), "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, json.loads(printed)["method"]) == (0, "pix2pix")

    odd = np.random.default_rng(1).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    (tmp_path / "third/below").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "third/below/odd.png"), odd)
    code, printed, _ = call(
        "convert",
        str(run),
        str(tmp_path / "third"),
        str(out),
        "--report",
        "--json",
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert (code, json.loads(printed)["written"]) == (0, 1)
    assert cv2.imread(str(out / "below/odd.png")).shape == odd.shape
    assert "odd.png" in (out / "index.html").read_text()


def test_a_run_that_enlarges_says_how_to_convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (30 + number, 33, 3), dtype=np.uint8)
        cv2.imwrite(str(photographs / f"{number}.png"), pixels if number else pixels[..., 0])  # one of them grey
    (photographs / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    changes = [
        "method.generator={blocks: 1, width: 4}",
        f"data.root={photographs}",
        "data.augment.crop=24",
        "data.workers=0",
        "data.validation=0.2",
        "data.scale=2",
        "training.batch_size=2",
        "training.precision=fp32",
        "training.stages=[{length: 8 steps, optimiser: {kind: Adam, lr: 2e-4}}]",
    ]
    sets = [part for item in changes for part in ("--set", item)]
    train = ["train", "srresnet", "--runs", str(tmp_path / "runs"), *sets]
    code, _, err = call(*train, monkeypatch=monkeypatch, capsys=capsys)
    run = tmp_path / "runs" / "0001-srresnet"
    assert code == 0, err
    assert f"finished after 16 images; convert with: translate convert {run} IN OUT" in err
    assert "skipped: " in err and "broken.jpg" in err
    convert = ["convert", str(run), str(photographs / "1.png"), str(tmp_path / "out"), "--device", "cpu"]
    assert call(*convert, monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert cv2.imread(str(tmp_path / "out" / "1.png")).shape == (62, 66, 3)


def test_a_second_run_gets_the_next_number_and_resuming_a_finished_one_changes_nothing(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    train = ["train", "pix2pix", "--runs", str(runs), "--quiet", *tiny(f"data.root={pairs}")]
    for _ in range(2):
        assert call(*train, monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    first, second = runs / "0001-pix2pix", runs / "0002-pix2pix"
    assert (first / "last.safetensors").read_bytes() == (second / "last.safetensors").read_bytes()
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    before = (second / "metrics.jsonl").read_bytes()
    resume = ["train", "--resume", "latest", "--runs", str(runs), "--quiet"]
    assert call(*resume, monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert (second / "metrics.jsonl").read_bytes() == before


def test_dry_run_trains_nothing(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    command = ["train", "pix2pix", "--runs", str(runs), "--dry-run", *tiny(f"data.root={pairs}")]
    code, out, _ = call(*command, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert "4 steps" in out
    assert "generator" in out
    assert not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "give either a CONFIG"),
        (["train", "pix2pixx"], "did you mean 'pix2pix'"),
        (["train", "pix2pix", "--set", "training.batchsize=2"], "did you mean 'training.batch_size'"),
        (["train", "pix2pix", "--set", "training.batch_size=two"], "training.batch_size"),
        (["train", "pix2pix", "--set", "data.root=/nowhere"], "/nowhere"),
        (["train", "pix2pix", "--set", "training.device=abacus"], "abacus"),
        (["train", "--resume", "/nowhere"], "/nowhere"),
        (["convert", "/nowhere", "in", "out"], "/nowhere"),
        (["info", "/nowhere"], "/nowhere"),
        (["config", "show", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert out == ""
    assert expected in err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1


def test_a_resumed_run_keeps_its_config(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    train = ["train", "pix2pix", "--runs", str(runs), "--quiet", *tiny(f"data.root={pairs}")]
    assert call(*train, monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    resume = ["train", "--resume", str(runs / "0001-pix2pix"), "--quiet"]
    code, _, err = call(*resume, "--set", "training.batch_size=8", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, "keeps its config" in err) == (2, True)
    assert call(*resume, "--set", "data.workers=1", monkeypatch=monkeypatch, capsys=capsys)[0] == 0


def test_config_show_is_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, shown, _ = call("config", "show", "pix2pix", monkeypatch=monkeypatch, capsys=capsys)
    path = tmp_path / "shown.yaml"
    path.write_text(shown)
    code, again, _ = call("config", "show", str(path), monkeypatch=monkeypatch, capsys=capsys)
    assert (code, again) == (0, shown)


def test_shipped_configs_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = call("config", "list", "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert {"pix2pix", "pix2pix-facades", "pix2pix-emoji", "pix2pix-demo"} <= set(json.loads(out))
    assert all(json.loads(out).values())


def test_schema_describes_every_group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("config", "schema", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert {"method", "data", "training", "validation", "logging", "checkpoints"} <= set(json.loads(out)["properties"])


@pytest.mark.slow
def test_demo_from_nothing_to_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    code, printed, _ = call(
        "demo", str(out), "--count", "8", "--epochs", "1", "--quiet", monkeypatch=monkeypatch, capsys=capsys
    )
    assert code == 0
    page = Path(printed.split("results:")[1].splitlines()[0].strip())
    assert page.is_file()
    assert page.read_text().count("<img") >= 12  # input, output and target of four test images
    assert "tensorboard --logdir" in printed
