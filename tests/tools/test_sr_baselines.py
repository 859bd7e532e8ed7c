"""The bicubic baselines: the published numbers where the sets are, and the tool on a set made here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from sr_baselines import Baseline, baseline, sets

from translate.data.images import write_image

TOOL = Path(__file__).parents[2] / "tools/sr_baselines.py"
SETS = Path(__file__).parents[3] / "shared/data/sr_test"
"""Research data that the repository cannot hold: beside it, where it was developed."""


@pytest.mark.skipif(not (SETS / "Set14").is_dir(), reason="the test sets are not part of the repository")
@pytest.mark.parametrize(
    ("name", "y_psnr", "y_ssim", "rgb_psnr"), [("Set5", 28.43, 0.8113, 26.70), ("Set14", 26.09, 0.7050, 24.47)]
)
def test_the_published_numbers(name: str, y_psnr: float, y_ssim: float, rgb_psnr: float) -> None:
    (pairs,) = [(highs, lows) for found, highs, lows in sets(SETS) if found == name]
    rows = [baseline(high, low, border=4) for high, low in zip(*pairs, strict=True)]
    mean = Baseline(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))
    assert mean.y_psnr == pytest.approx(y_psnr, abs=0.01) and mean.rgb_psnr == pytest.approx(rgb_psnr, abs=0.01)
    assert mean.y_ssim == pytest.approx(y_ssim, abs=0.0005)


@pytest.mark.slow
def test_the_tool_on_a_set(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    high = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_CUBIC)
    write_image(tmp_path / "Mine/x4/HR/1.png", high[..., None])
    write_image(tmp_path / "Mine/x4/LR/1.png", picture)
    command = [sys.executable, str(TOOL), str(tmp_path), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["Mine"]
    # A grey picture as RGB: Y's range is 219 levels, 1.32 dB more.
    assert found["y_psnr"] - found["kept_psnr"] == pytest.approx(20 * np.log10(255 / 219), abs=1e-4)
    assert found["kept_psnr"] == pytest.approx(found["rgb_psnr"], abs=1e-4)
    (tmp_path / "Mine/x4/LR/1.png").unlink()
    failed = subprocess.run(command, capture_output=True, text=True)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
