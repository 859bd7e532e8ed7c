"""Bicubic x4 baselines of super-resolution test sets, by the measures of `translate.metrics.images`.

    python tools/sr_baselines.py DATA [--border 4] [--json]

DATA holds sets as SET/x4/HR and SET/x4/LR, or SET/HR and SET/LR_x4; files pair by their order. What a metric must give
(a reproduction of the published tables; one that does not is wrong): Set5 28.43 dB / .8113 on Y, 26.70 dB on RGB; Set14
26.09 dB / .7050, 24.47 dB.

Protocol that gives these, found among the possible ones: MATLAB's bicubic kernel (a = -0.5) with mirrored borders, in
float64 without rounding between its passes, rounded to uint8 once at the end; Y by BT.601, 16 to 235, not rounded;
PSNR's peak 255; SSIM of Wang et al. 2004 over the pixels whose window lies inside; 4 pixels left out at each side; the
mean of the images' own values. Rounding after the first pass too (as MATLAB does with uint8) costs .002 dB and .0002,
rounding Y .01 dB and .001. One of Set14's pictures is stored grey: these numbers have it as RGB, thus converted; left
as it is (the column `Y, grey kept`), which is what many tables have, Set14 loses 1.32 / 14 dB and is 26.00.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from translate.data.files import find_images
from translate.data.images import normalise, probe, read_pixels
from translate.data.matlab import imresize
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.metrics.images import inner, luma, psnr, ssim

FACTOR = 4
SPEC = ImageSpec()


class Baseline(NamedTuple):
    """The means over a set, or one image's values."""

    y_psnr: float
    y_ssim: float
    kept_psnr: float
    kept_ssim: float
    rgb_psnr: float


def baseline(high: Path, low: Path, border: int) -> Baseline:
    """One image: its low resolution enlarged, against itself."""
    target, source = (_tensor(path) for path in (high, low))
    if tuple(target.shape[2:]) != tuple(FACTOR * side for side in source.shape[2:]):
        raise UserError(f"{low}: expected a {FACTOR}th of {high.name}'s height and width")
    levels = ((imresize(source, FACTOR).clamp(-1, 1) + 1) * 127.5 + 0.5).floor()
    fake, target = inner(levels / 127.5 - 1, border), inner(target, border)
    y = luma(fake), luma(target)
    kept = (fake[:, :1], target[:, :1]) if probe(high).channels == 1 else y
    values = psnr(*y), ssim(*y), psnr(*kept), ssim(*kept), psnr(fake, target)
    return Baseline(*(float(value) for value in values))


def _tensor(path: Path) -> Tensor:
    return normalise(torch.from_numpy(read_pixels(path, SPEC))[None], SPEC, torch.float64)


def sets(data: Path) -> Iterator[tuple[str, list[Path], list[Path]]]:
    """Name, high and low resolution of each set below a folder."""
    for folder in sorted(data.iterdir() if data.is_dir() else []):
        for high, low in ((folder / "x4/HR", folder / "x4/LR"), (folder / "HR", folder / "LR_x4")):
            if high.is_dir() and low.is_dir():
                pair = find_images(high), find_images(low)
                if len(pair[0]) != len(pair[1]):
                    raise UserError(f"{folder}: {len(pair[0])} images in {high.name}, {len(pair[1])} in {low.name}")
                yield folder.name, *pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--border", type=int, default=FACTOR, help="pixels left out at each side")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    table: dict[str, Baseline] = {}
    for name, highs, lows in sets(options.data):
        rows = [baseline(high, low, options.border) for high, low in zip(highs, lows, strict=True)]
        table[name] = Baseline(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))
    if not table:
        raise UserError(f"{options.data}: no set below it; expected SET/x4/HR and SET/x4/LR, or SET/HR and SET/LR_x4")
    if options.json:
        print(json.dumps({name: row._asdict() for name, row in table.items()}))
        return
    print(f"Bicubic x{FACTOR} (MATLAB's, of doubles), rounded once; border {options.border}; PSNR in dB, Wang's SSIM")
    print(f"{'set':<12}  {'Y':>14}  {'Y, grey kept':>14}  {'RGB':>7}")
    for name, row in table.items():
        y, kept = f"{row.y_psnr:.3f} {row.y_ssim:.4f}", f"{row.kept_psnr:.3f} {row.kept_ssim:.4f}"
        print(f"{name:<12}  {y:>14}  {kept:>14}  {row.rgb_psnr:>7.3f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
