"""Crops side by side: low resolution, bicubic, what each model makes of it, and the truth.

    python tools/sr_pictures.py OUT.png HR.png@LEFT,TOP,SIDE [HR.png@...] [--scale 4]
        --weights SRResNet=RUN/stage-pixel.safetensors --weights SRGAN=RUN/last.safetensors

One row for each picture. Its low resolution is made by MATLAB's imresize of bytes and shown pixel by pixel; models run
on all of it. Under each column stands the PSNR of the whole picture: on Y, the border of `scale` pixels left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from translate.data.images import Pixels, normalise, read_pixels, write_image
from translate.data.matlab import imresize
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.inference.translator import Translator
from translate.metrics.images import inner, luma, psnr

SPEC = ImageSpec()
SHOWN = 192
"""Pixels of a crop in the picture."""
STRIP = 20
"""Pixels of the line of text under it."""
GAP = 4


def bicubic(pixels: Pixels, scale: float) -> Pixels:
    """(H, W, 3) uint8, resized by MATLAB's imresize of bytes."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return imresize(planes, scale, convention="uint8")[0].permute(1, 2, 0).contiguous().numpy()


def quality(pixels: Pixels, truth: Pixels, border: int) -> float:
    """PSNR on Y in dB."""
    sides = [normalise(torch.from_numpy(side)[None], SPEC, torch.float64) for side in (pixels, truth)]
    made, wanted = (inner(luma(side), border) for side in sides)
    return float(psnr(made, wanted))


def cell(pixels: Pixels, box: tuple[int, int, int], text: str) -> Pixels:
    """The crop (left, top, side) of a picture, with a line of text below."""
    left, top, side = box
    crop = pixels[top : top + side, left : left + side]
    shown = cv2.resize(crop, (SHOWN, SHOWN), interpolation=cv2.INTER_NEAREST if side <= SHOWN else cv2.INTER_AREA)
    strip = np.full((STRIP, SHOWN, 3), 255, np.uint8)
    cv2.putText(strip, text, (2, STRIP - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([shown, strip])


def row(path: Path, box: tuple[int, int, int], models: dict[str, Translator], scale: int) -> Pixels:
    """One picture's cells, side by side."""
    truth = read_pixels(path, SPEC)
    height, width = (side // scale * scale for side in truth.shape[:2])
    truth = np.ascontiguousarray(truth[:height, :width])
    if box[0] + box[2] > width or box[1] + box[2] > height:
        raise UserError(f"{path}: is {width}x{height} pixels, so it has no square {','.join(map(str, box))}")
    low = bicubic(truth, 1 / scale)
    made = {"bicubic": bicubic(low, scale)} | {name: model.run([low])[0] for name, model in models.items()}
    cells = [cell(low.repeat(scale, 0).repeat(scale, 1), box, f"input, x{scale}")]
    cells += [cell(pixels, box, f"{name}, {quality(pixels, truth, scale):.2f} dB") for name, pixels in made.items()]
    cells.append(cell(truth, box, "truth"))
    gap = np.full((cells[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for one in cells for part in (one, gap)][:-1], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("pictures", nargs="+", metavar="HR.png@LEFT,TOP,SIDE")
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--scale", type=int, default=4)
    options = parser.parse_args()

    models: dict[str, Translator] = {}
    for given in options.weights:
        name, _, file = given.partition("=")
        models[name] = Translator.load(file, precision="fp32")
    rows = []
    for given in options.pictures:
        path, _, numbers = given.rpartition("@")
        try:
            left, top, side = (int(number) for number in numbers.split(","))
        except ValueError:
            raise UserError(f"{given}: expected HR.png@LEFT,TOP,SIDE") from None
        rows.append(row(Path(path), (left, top, side), models, options.scale))
    write_image(options.out, np.concatenate(rows), compression=9)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
