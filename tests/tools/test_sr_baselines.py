"""The enlarging of tools/sr_baselines.py against what it must be, and the tool on a set made here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from sr_baselines import enlarged, enlarging

from translate.data.images import write_image

TOOL = Path(__file__).parents[2] / "tools/sr_baselines.py"


def test_a_kernel_that_keeps_constants_and_straight_lines() -> None:
    matrix = enlarging(9, 4)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(36, dtype=torch.float64))
    # Keys' kernel interpolates straight lines exactly, away from the mirrors: two pixels at each end.
    centres = (torch.arange(36, dtype=torch.float64) + 0.5) / 4 - 0.5
    line = matrix @ torch.arange(9, dtype=torch.float64)
    torch.testing.assert_close(line[8:-8], centres[8:-8])
    # Mirrored, not repeated: row 0 is at -0.375, and pixel -2, at a distance of 1.625, is pixel 1, at 1.375.
    weights = [-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 for x in (1.375, 1.625)]
    assert matrix[0, 1].item() == pytest.approx(sum(weights), abs=1e-12)
    assert matrix[0, 2:].abs().sum() == 0


def test_the_inside_is_that_of_pillow() -> None:
    """Pillow's bicubic has a = -1/2 too, and no mirrors: equal but for two pixels of the small image at each side."""
    small = np.random.default_rng(0).random((12, 10)).astype(np.float32)
    expected = np.asarray(Image.fromarray(small).resize((40, 48), Image.Resampling.BICUBIC))
    found = (enlarging(12, 4) @ torch.from_numpy(small).double() @ enlarging(10, 4).T).numpy()
    np.testing.assert_allclose(found[8:-8, 8:-8], expected[8:-8, 8:-8], atol=1e-6)  # Pillow computes in float32


def test_levels_are_rounded_once() -> None:
    pixels = torch.randint(256, (1, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    levels = (enlarged(pixels / 127.5 - 1) + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-9, rtol=0)
    assert 0 <= levels.min() < levels.max() <= 255


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
