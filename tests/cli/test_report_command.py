"""`translate report`: where the page goes, what is printed, one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest

from translate.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a config and one row."""
    folder = tmp_path / "runs" / "0001-tiny"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: tiny\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "images": 4, "generator/adversarial": 0.5}) + "\n")
    return folder


def call(
    *arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """`translate report ARGUMENTS` in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["translate", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
        raise SystemExit(0)
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_the_page_of_one_run_lies_in_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(run, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out, err) == (0, f"{run / 'report.html'}\n", "")
    assert "<h1>0001-tiny</h1>" in (run / "report.html").read_text()


def test_the_page_of_several_lies_above_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "elsewhere" / "0002-tiny"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("name: other\n")
    code, out, _ = call(run, other, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (0, f"{tmp_path / 'report.html'}\n")
    page = (tmp_path / "report.html").read_text()
    assert "0001-tiny" in page and "0002-tiny" in page


def test_the_page_goes_where_one_says_and_opens(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: shown.append(url) or True)
    page = tmp_path / "new folder" / "my page.html"
    code, out, err = call(run, "--out", page, "--open", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out, err) == (0, f"{page}\n", "") and page.is_file()
    assert shown == [page.as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert call(run, "--open", monkeypatch=monkeypatch, capsys=capsys)[2] == "no browser to open it in\n"


def test_a_mistake_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        ([tmp_path / "none"], "there is no such folder; expected a run folder such as runs/0001-name"),
        ([run, tmp_path], "is no run folder"),
        ([run, "--out", tmp_path], "is a folder; expected a file"),
    ):
        code, out, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 2 and out == "" and err.startswith("error: ") and said in err and err.count("\n") == 1


def test_help_loads_no_torch() -> None:
    code = "import sys; import translate.cli.report; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
