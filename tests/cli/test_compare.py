"""`translate compare`: evaluations side by side, by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from translate.cli import main
from translate.metrics.scores import Evaluation, Score

Call = Callable[..., tuple[int, str, str]]
PIXELS = {"channels": "rgb", "border": 0, "images": 10}
FEATURES = {"features": "inception", "resize": "tensorflow", "outputs": 10}


def save(path: Path, subject: str, l1: float, psnr: float | None = None, fid: float | None = None, **more: Any) -> Path:
    scores = [Score(measure="l1", value=l1, protocol=PIXELS)]
    if psnr is not None:
        scores.append(Score(measure="psnr", value=psnr, protocol=PIXELS))
    if fid is not None:
        scores.append(Score(measure="fid", part="AtoB", value=fid, protocol={**FEATURES, **more.pop("protocol", {})}))
    facts = {"reference": "test split of emoji", "count": 10, "version": "0", **more}
    Evaluation(subject=subject, scores=scores, **facts).save(path)
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`translate compare ARGUMENTS`: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["translate", "compare", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return run


def test_a_table_with_the_best_marked_and_the_protocols_beneath(tmp_path: Path, call: Call) -> None:
    a = save(tmp_path / "a.json", "run a", 0.05, 20.5, 100.0)
    b = save(tmp_path / "b.json", "the input itself", 0.0412, 21.25, float("nan"), notes=["few images"])
    code, out, err = call(a, b)
    assert (code, err) == (0, "")
    assert out == (
        "                     L1 ↓     PSNR ↑  AtoB FID ↓\n"
        "run a              0.0500   20.50 dB      100.00\n"  # its rival is no number: nothing to be best of
        "the input itself  *0.0412  *21.25 dB         nan\n"
        "\n"
        "* best of its column\n"
        "against test split of emoji\n"
        "L1, PSNR: channels rgb, border 0, images 10\n"
        "AtoB FID: features inception, resize tensorflow, outputs 10\n"
        "the input itself: note: few images\n"
    )


def test_markdown(tmp_path: Path, call: Call) -> None:
    a = save(tmp_path / "a.json", "a | b", 0.05, notes=["same"])
    b = save(tmp_path / "b.json", "b", 0.05001, 21, notes=["same"])  # as good as the other, in the digits shown
    c = save(tmp_path / "c.json", "c", 0.06, 22.004, notes=["same"])
    assert call(a, b, c, "--markdown")[1].splitlines() == [
        "|  | L1 ↓ | PSNR ↑ |",
        "| --- | ---: | ---: |",
        "| a \\| b | **0.0500** | – |",
        "| b | **0.0500** | 21.00 dB |",
        "| c | 0.0600 | **22.00 dB** |",
        "",
        "- against test split of emoji",
        "- L1, PSNR: channels rgb, border 0, images 10",
        "- note: same",
    ]


def test_json_and_names(tmp_path: Path, call: Call) -> None:
    a, b = save(tmp_path / "a.json", "a", 0.05, 20), save(tmp_path / "b.json", "b", float("nan"))
    found = json.loads(call(a, b, "--json", "--names", "first, second")[1])
    assert [subject["name"] for subject in found["subjects"]] == ["first", "second"]
    assert [column["values"] for column in found["measures"]] == [[0.05, None], [20, None]]
    assert found["measures"][1]["better"] == "higher"
    assert found["measures"][1]["protocol"] == PIXELS


def test_different_protocols_are_refused(tmp_path: Path, call: Call) -> None:
    a = save(tmp_path / "a.json", "a", 0.05, fid=100.0)
    b = save(tmp_path / "b.json", "b", 0.05, fid=90.0, protocol={"resize": "clean"})
    for form in ((), ("--markdown",), ("--json",)):
        code, out, err = call(a, b, *form)
        assert (code, out) == (2, "")
        assert "FID: not comparable, the protocols differ: resize tensorflow / clean" in err


def test_different_references_are_told(tmp_path: Path, call: Call) -> None:
    a, b = save(tmp_path / "a.json", "a", 0.1), save(tmp_path / "b.json", "b", 0.1, reference="validation split")
    lines = call(a, b)[1].splitlines()
    assert "a: against test split of emoji" in lines
    assert "b: against validation split" in lines


def test_a_run_stands_for_its_evaluation(tmp_path: Path, call: Call) -> None:
    run = tmp_path / "0001-x"
    names = ("folder", "validation", "test")
    for age, name in enumerate(names):  # each older than the one before, so that age alone would choose otherwise
        file = save(run / "evaluation" / name / "evaluation.json", f"on {name}", 0.1)
        os.utime(file, (1000 - age, 1000 - age))
        assert call(run)[1].splitlines()[1].startswith(f"on {name}")
    newer = save(run / "evaluation" / "mine" / "evaluation.json", "mine", 0.1)
    assert call(newer.parent)[1].splitlines()[1].startswith("mine")  # its own folder
    for name in names[1:]:
        (run / "evaluation" / name / "evaluation.json").unlink()
    assert call(run)[1].splitlines()[1].startswith("mine")  # the newest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/none.json"], "cannot be read"),
        (["{}"], "holds no evaluation; make one with 'translate evaluate"),
        (["{}/text"], "is no evaluation"),
        (["{}/a.json", "--names", "a,b"], "--names: expected 1, one for each evaluation, not 2"),
        (["{}/a.json", "--json", "--markdown"], "expected one of them"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, call: Call, arguments: list[str], message: str) -> None:
    save(tmp_path / "a.json", "a", 0.1)
    (tmp_path / "text").write_text("{")
    code, out, err = call(*(argument.format(tmp_path) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_comparing_needs_no_torch(tmp_path: Path) -> None:
    file = save(tmp_path / "a.json", "a", 0.1)
    code = (
        f"import sys; sys.argv = ['translate', 'compare', {str(file)!r}]\n"
        "from translate.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'cv2', 'safetensors'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "0.1000" in done.stdout
