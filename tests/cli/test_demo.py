"""`translate demo`: from nothing to a page, for each method."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from calling import call

from translate.data.synthetic import draw
from translate.run import load_weights

SMALL = [
    "method.generator={kind: resnet, blocks: 1, width: 4}",
    "method.discriminator={kind: patch, layers: 2, width: 4, norm: instance}",
    "training.device=cpu",
]


def lines_of(printed: str, head: str) -> list[str]:
    return [line.removeprefix(head).strip() for line in printed.splitlines() if line.startswith(head)]


def test_an_unknown_method_is_answered_with_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", str(tmp_path / "demo"), "--method", "stargan"]
    code, _, error = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert all(word in error for word in ("--method", "stargan", "pix2pix", "cyclegan"))
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_demo_without_pairs_converts_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    changes = [part for change in SMALL for part in ("--set", change)]
    few = ["--count", "8", "--epochs", "1", "--seed", "3"]
    arguments = ["demo", str(out), "--method", "cyclegan", *few, "--quiet", *changes]
    code, printed, _ = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0

    pages = [Path(line) for line in lines_of(printed, "results:")]
    assert [page.parent.name for page in pages] == ["results-AtoB", "results-BtoA"]
    for page in pages:
        assert page.read_text().count("<img") >= 12  # input, output and truth of four test images
    run = pages[0].parents[1]
    assert lines_of(printed, "TensorBoard:") == [f"tensorboard --logdir {out / 'runs'}"]
    weights = load_weights(run)
    assert (weights.config.name, weights.config.seed, weights.images) == ("cyclegan-demo", 3, 8)

    (folder,) = out.glob("day-night-*")
    times: list[tuple[str, str, Literal["day", "night"]]] = [("AtoB", "A", "night"), ("BtoA", "B", "day")]
    for direction, side, time in times:
        names = {path.name for path in (folder / "test" / side).iterdir()}
        assert {path.name for path in (run / f"results-{direction}").glob("*.png")} == names
        assert {path.name for path in (folder / "truth" / direction).iterdir()} == names
        for name in names:  # the same house at the other time, which no split holds
            truth = cv2.imread(str(folder / "truth" / direction / name))[:, :, ::-1]
            assert np.array_equal(truth, draw(int(Path(name).stem), size=64, seed=3, time=time).picture)
        assert not names & {path.name for path in folder.glob(f"*/{'B' if side == 'A' else 'A'}/*.png")}

    # The commands that it prints do just what it did.
    commands = lines_of(printed, "convert:")
    for command, direction in zip(commands, ("AtoB", "BtoA"), strict=True):
        arguments = command.replace("OUT", str(tmp_path / direction)).split()[1:]
        assert call(*arguments, "--quiet", monkeypatch=monkeypatch, capsys=capsys)[0] == 0
        for path in (run / f"results-{direction}").glob("*.png"):
            assert (tmp_path / direction / path.name).read_bytes() == path.read_bytes()
