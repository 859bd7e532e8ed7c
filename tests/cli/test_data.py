"""`translate data`: what it writes, what it says, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from translate.cli.data import app
from translate.errors import PartialFailure, UserError


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def facades(tmp_path: Path) -> Path:
    out = tmp_path / "facades"
    assert run("make", "facades", out, "--count", 3, "--size", 32, "--quiet").exit_code == 0
    return out


def test_help_imports_nothing_heavy() -> None:
    """The start of the command line must not wait for torch (pydantic itself is imported by some Typers)."""
    code = (
        "import sys\nfrom translate.cli.data import app\n"
        "try:\n    app(['get', '--help'], prog_name='translate data')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'translate.settings', 'cv2', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fluent-emoji" in done.stdout or "npm" in done.stdout


def test_make_facades(tmp_path: Path) -> None:
    out = tmp_path / "set"
    result = run("make", "facades", out, "--count", 4, "--size", 40, "--seed", 2, "--test", 2)
    assert result.exit_code == 0
    assert "4 train, 1 val, 2 test pairs" in result.stderr
    assert result.stdout == ""
    with Image.open(out / "test" / "B" / "00006.png") as image:
        assert image.size == (40, 40)


def test_make_other_forms(tmp_path: Path) -> None:
    assert run("make", "facades", tmp_path / "a", "--count", 1, "--size", 32, "--labels", "indices").exit_code == 0
    with Image.open(tmp_path / "a" / "train" / "A" / "00000.png") as image:
        assert image.mode == "L"
    quiet = run("make", "facades", tmp_path / "b", "--count", 2, "--size", 32, "--unpaired", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")
    names = [sorted(path.name for path in (tmp_path / "b" / "train" / side).iterdir()) for side in "AB"]
    assert names == [["00000.png", "00001.png"], ["00004.png", "00005.png"]]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("make", "castles", "out"), "no generator called 'castles'; expected: facades"),
        (("make", "facades", "out", "--size", "8"), "size: expected at least 32"),
        (("make", "facades", "out", "--count", "0"), "count: expected a number from 1"),
        (
            ("make", "facades", "out", "--unpaired", "--labels", "indices"),
            "--labels has no use with --unpaired",
        ),
        (("get", "emoji", "out"), "there are: cifar10, emoji-styles, fashion-mnist, fluent-emoji, mnist, "),
        (("get", "fluent-emoji"), "expected NAME and OUT"),
        (("check", "no-such-config-or-folder"), "no-such-config-or-folder"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = run(*arguments).exception
    assert isinstance(error, UserError)
    assert error.exit_code == 2
    assert line in str(error)
    assert "\n" not in str(error)
    assert list(tmp_path.iterdir()) == []


def test_unknown_labels_are_bad_usage(tmp_path: Path) -> None:
    assert run("make", "facades", tmp_path / "a", "--labels", "names").exit_code == 2


def test_get_lists_its_recipes() -> None:
    lines = run("get", "--list").stdout.splitlines()
    names = ["cifar10", "emoji-styles", "fashion-mnist", "fluent-emoji", "mnist", "openmoji"]
    assert [line.split()[0] for line in lines] == names
    assert "CC-BY-SA-4.0" in lines[5] and "3787 train, 708 test pairs, CC" in lines[5]
    assert "60000 train, 10000 test images" in lines[4]
    assert "3214 train, 572 test pairs, unpaired 1700 A, 1514 B, Apache-2.0 AND CC-BY-4.0" in lines[1]


def test_check_finds_a_sound_folder_sound(facades: Path) -> None:
    result = run("check", facades)
    assert result.exit_code == 0, result.exception
    lines = [line.split(":")[0] for line in result.stdout.splitlines()]
    assert lines == ["train A", "train B", "validation A", "validation B", "test A", "test B"]
    assert "count 3" in result.stdout
    assert "width 32" in result.stdout


def test_check_tells_problems_and_ends_with_1(facades: Path) -> None:
    (facades / "train" / "B" / "00001.png").unlink()
    (facades / "test" / "A" / "00004.png").write_bytes(b"")
    result = run("check", facades)
    assert isinstance(result.exception, PartialFailure)
    assert result.exception.exit_code == 1
    assert "2 problems found" in str(result.exception)
    kinds = sorted(line.split(":")[0] for line in result.stdout.splitlines()[:2])
    assert kinds == ["missing", "unreadable"]


def test_check_as_json(facades: Path) -> None:
    (facades / "train" / "B" / "00001.png").unlink()
    result = run("check", facades, "--json")
    report = json.loads(result.stdout)
    assert [problem["kind"] for problem in report["problems"]] == ["missing"]
    assert "00001" in report["problems"][0]["path"]
    assert report["statistics"]["validation"]["B"]["count"] == 1


def test_check_reads_other_layouts(facades: Path) -> None:
    sides = run("check", facades / "train")  # A and B without splits
    assert sides.exit_code == 0
    assert [line.split(":")[0] for line in sides.stdout.splitlines()] == ["train A", "train B"]
    alone = run("check", facades / "train" / "A")  # just images
    assert "count 3" in alone.stdout
    assert alone.exit_code == 0


def test_check_sees_that_there_are_no_pairs(tmp_path: Path) -> None:
    """No name in common; CycleGAN's own trainA and trainB, whatever the names; and pairs where one says so."""
    out = tmp_path / "set"
    assert run("make", "facades", out, "--count", 2, "--size", 32, "--unpaired", "--quiet").exit_code == 0
    whole = run("check", out)
    assert whole.exit_code == 0, whole.exception
    sides = ["train A", "train B", "validation A", "validation B", "test A", "test B"]
    assert [line.split(":")[0] for line in whole.stdout.splitlines()] == sides
    assert run("check", out / "train").exit_code == 0
    insisted = run("check", out, "--set", "data.kind=paired")
    assert "no partner" in insisted.stdout and isinstance(insisted.exception, PartialFailure)
    for split in ("train", "test"):
        for side in "AB":
            (out / split / side).rename(tmp_path / f"{split}{side}")
    for number, path in enumerate(sorted((tmp_path / "trainB").iterdir())):
        path.rename(path.with_name(f"{number:05}.png"))  # the names of trainA
    joined = run("check", tmp_path)
    assert joined.exit_code == 0, joined.exception
    assert [line.split(":")[0] for line in joined.stdout.splitlines()] == ["train A", "train B", "test A", "test B"]


def test_check_of_an_unknown_key_of_unpaired_data(tmp_path: Path) -> None:
    assert run("make", "facades", tmp_path / "set", "--count", 2, "--size", 32, "--unpaired", "--quiet").exit_code == 0
    error = run("check", tmp_path / "set", "--set", "data.direction=AtoB").exception
    assert isinstance(error, UserError)
    assert str(error).startswith("--set data.direction: ")


def test_check_of_photographs_for_super_resolution(facades: Path) -> None:
    photographs = facades / "train" / "B"  # 32 x 32
    fits = run("check", photographs, "--set", "data.kind=super-resolution", "--set", "data.augment.crop=32")
    assert fits.exit_code == 0 and "train B: count 3; width 32; height 32" in fits.stdout
    small = run("check", photographs, "--set", "data.kind=super-resolution")
    assert isinstance(small.exception, PartialFailure) and "3 problems" in str(small.exception)
    assert "is 32x32 pixels, expected at least 96 along either side (data.augment.crop)" in small.stdout
    error = run("check", photographs, "--set", "data.kind=super-resolution", "--set", "data.augment.crop=30").exception
    assert isinstance(error, UserError) and str(error).startswith("--set data: 'augment.crop' is 30, no multiple")


def test_check_of_two_resolutions(tmp_path: Path) -> None:
    for folder, size in (("HR", 64), ("LR_x2", 32)):
        (tmp_path / folder).mkdir()
        for number in range(2):
            Image.effect_noise((size, size), 50 + number).save(tmp_path / folder / f"{number}.png")
    crop = ("--set", "data.augment.crop=32")
    result = run("check", tmp_path, *crop)
    assert result.exit_code == 0 and "train A: count 2; width 32" in result.stdout
    other = run("check", tmp_path, *crop, "--set", "data.scale=4")
    assert "is 32x32 pixels, expected 16x16: 1/4 of 64x64" in other.stdout and other.exit_code == 1
    plain = run("check", tmp_path, "--set", "data.kind=folder")
    assert plain.exit_code == 0 and "train image: count 4" in plain.stdout


def test_check_takes_settings(facades: Path) -> None:
    result = run("check", facades, "--set", "data.validation=null", "--set", "data.test=null")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["train A", "train B"]
    for item, line in (
        ("data.validatoin=null", "data.validatoin"),
        ("training.seed=1", "keys of 'data' alone"),
    ):
        error = run("check", facades, "--set", item).exception
        assert isinstance(error, UserError)
        assert line in str(error)
        assert "\n" not in str(error)


def test_check_counts_classes(facades: Path) -> None:
    result = run("check", facades, "--set", "data.kind=folder", "--set", "data.classes=folders")
    assert result.exit_code == 0, result.exception
    assert "train image: count 6" in result.stdout and "classes A (3), B (3)" in result.stdout


def test_check_says_what_a_toy_is(tmp_path: Path) -> None:
    config = tmp_path / "toy.yaml"
    config.write_text("base: pix2pix-demo\ndata: {kind: toy, layout: ring8, samples: 1000}\n")
    result = run("check", config)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert lines[0].startswith("train point: count 1000; layout ring8; modes 8; deviation 0.01; mean ")
    assert len(lines) == 3


def test_check_reads_a_config(facades: Path) -> None:
    result = run("check", "pix2pix-demo", "--set", f"data.root={facades}")
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith("train A: count 3")
