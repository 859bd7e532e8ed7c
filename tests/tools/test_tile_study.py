"""The study of tiles: its comparison, and one small run of the whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tile_study


def test_a_seam_stands_out_and_a_shift_does_not() -> None:
    whole = np.random.default_rng(0).integers(0, 200, (64, 128, 3)).astype(np.uint8)
    texture = np.random.default_rng(1).integers(0, 3, whole.shape).astype(np.uint8)
    shifted = tile_study.compare(whole + 5 + texture, whole, 32, 4)
    assert shifted["mean"] == pytest.approx(6, abs=0.05) and shifted["max"] == 7
    assert 0.6 < shifted["seam"] < 1.5  # three borders of 4 x 3 steps: random ones
    tiled = whole + texture
    tiled[:, 32:64] += 4
    assert tile_study.compare(tiled, whole, 32, 4)["seam"] > 4


@pytest.mark.slow
def test_each_row_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        "sys.argv", ["tile_study.py", "--megapixels", "0.02", "--side", "64", "--passes", "0", "--json"]
    )
    tile_study.main()
    untiled, tiled, naive = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in (untiled, tiled, naive)] == ["untiled", "0", "naive"]
    assert untiled["size"] == tiled["size"] == [115, 173] and untiled["peak_gib"] > 0.1
    # So small an image is its own small copy, whose statistics are right at once; tiles by themselves have others.
    assert tiled["max"] <= 1 and naive["mean"] > 1
