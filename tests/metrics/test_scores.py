"""Numbers with their protocol: kept, read, and compared only where they may be."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from translate.errors import UserError
from translate.metrics.scores import MEASURES, Evaluation, ImageScores, Pictures, Score, rows, side_by_side

PIXELS = {"channels": "luma", "border": 4, "images": 3}


def evaluation(*scores: Score, **more: Any) -> Evaluation:
    facts = {"subject": "a run", "reference": "its test split", "count": 3, "version": "0", **more}
    return Evaluation(scores=list(scores), **facts)


def psnr(value: float, part: str = "", **protocol: Any) -> Score:
    return Score(measure="psnr", part=part, value=value, protocol={**PIXELS, **protocol})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    one = evaluation(
        psnr(20.123456789012345, "cycle A"),
        Score(measure="fid", value=4.5, protocol={"resize": "clean", "gain": 0.5}),
        images=[ImageScores(name="ü/1", values={"l1": 0.25})],
        ranked_by="l1",
        pictures=[Pictures(name="ü/1", rank="worst", value=0.25, files={"output": "pictures/1.webp"})],
        notes=["biased"],
    )
    one.save(tmp_path / "below" / "evaluation.json")
    assert Evaluation.load(tmp_path / "below" / "evaluation.json") == one
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["evaluation.json"]


def test_what_is_no_number_is_null_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    evaluation(psnr(math.nan), images=[ImageScores(name="x", values={"psnr": math.nan})]).save(file)

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(file.read_text(), parse_constant=refuse)["scores"][0]["value"] is None
    found = Evaluation.load(file)
    assert math.isnan(found.scores[0].value)
    assert math.isnan(found.images[0].values["psnr"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff\xfe", b"{}"])
def test_other_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match="is no evaluation") as caught:
        Evaluation.load(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_absent_and_unwritable_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Evaluation.load(tmp_path / "absent.json")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        evaluation().save(tmp_path / "file" / "x.json")


def test_a_score_says_what_it_is() -> None:
    score = psnr(20.126, "AtoB")
    assert (score.label, score.text) == ("AtoB PSNR", "20.13 dB")
    assert score.told() == "channels luma, border 4, images 3"
    assert all(measure.text(0.5) for measure in MEASURES.values())


def test_an_unknown_measure_is_refused(tmp_path: Path) -> None:
    content = json.loads(evaluation(psnr(1)).model_dump_json())
    content["scores"][0]["measure"] = "beauty"
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no evaluation"):
        Evaluation.load(tmp_path / "x.json")


def test_rows_pair_measures_by_part_and_leave_gaps() -> None:
    l1 = Score(measure="l1", value=0.1, protocol=PIXELS)
    first, second = evaluation(psnr(1, "AtoB"), l1), evaluation(psnr(2, "BtoA"), psnr(3, "AtoB"))
    table = side_by_side([first, second])
    assert [(row.part, row.measure) for row in table] == [("AtoB", "psnr"), ("", "l1"), ("BtoA", "psnr")]
    assert [[score and score.value for score in row.scores] for row in table] == [[1, 3], [0.1, None], [None, 2]]


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        ({"border": 0}, "border 4 / 0"),
        ({"images": 4, "border": 0}, "border 4 / 0, images 3 / 4"),
        ({"bits": 8}, "bits none / 8"),
    ],
)
def test_different_protocols_are_not_side_by_side(protocol: dict[str, Any], told: str) -> None:
    pair = [evaluation(psnr(1)), evaluation(psnr(2, **protocol))]
    assert [row.clash for row in rows(pair)] == [told]
    with pytest.raises(UserError, match=f"PSNR: not comparable, the protocols differ: {told};"):
        side_by_side(pair)


def test_equal_protocols_and_other_parts_do_not_clash() -> None:
    assert [row.clash for row in side_by_side([evaluation(psnr(1)), evaluation(psnr(2))])] == [""]
    assert len(side_by_side([evaluation(psnr(1, "AtoB")), evaluation(psnr(2, "BtoA", border=0))])) == 2


def test_scores_and_protocol_need_no_torch() -> None:
    code = (
        "import sys, translate.metrics.scores, translate.metrics.protocol\n"
        "assert 'torch' not in sys.modules\n"
        "from translate.metrics import psnr\n"
        "assert 'torch' in sys.modules and callable(psnr)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
