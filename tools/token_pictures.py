"""What a token translation answers, side by side with other models and the truth.

    python tools/token_pictures.py OUT.png RUN DATA/test [--rows 8] [--samples 3] [--scale 2]
        [--beside pix2pix=RUN2] [--seed 0]

One row for each of some evenly spaced pairs (DATA/test/A and B): the input, what each model beside makes of it, several
answers of the run, the mean of their uncertainty (black: no doubt, white: all codes alike), what the tokenizer leaves
of the target, the target.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from translate.data.files import find_images
from translate.data.images import Pixels, read_pixels, write_image
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.inference.token_codec import TokenCodec
from translate.inference.translator import Translator

STRIP, GAP = 20, 4


def titled(cells: list[tuple[str, Pixels]], scale: int, *, text: bool) -> Pixels:
    """Pictures in a row, magnified pixel by pixel, with their names above if `text`."""
    parts = []
    for name, pixels in cells:
        shown = pixels.repeat(scale, 0).repeat(scale, 1)
        if text:
            strip = np.full((STRIP, shown.shape[1], 3), 255, np.uint8)
            cv2.putText(strip, name, (2, STRIP - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
            shown = np.concatenate([strip, shown])
        parts += [shown, np.full((shown.shape[0], GAP, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def row(
    pair: tuple[Path, Path], run: Translator, codec: TokenCodec, others: dict[str, Translator], samples: int
) -> list[tuple[str, Pixels]]:
    """The named pictures of one pair."""
    spec = ImageSpec()
    source, target = (read_pixels(path, spec) for path in pair)
    doubts: list[Pixels] = []
    run.uncertainty = lambda name, doubt: doubts.append(doubt)
    answers = [run.run([source], [f"{pair[0].name}#{k}"])[0] for k in range(1, samples + 1)]
    doubt = np.mean(doubts, axis=0).round().astype(np.uint8)
    again = codec.decode(codec.encode(target), target.shape[:2])
    return [
        ("input", source),
        *((name, other.run([source])[0]) for name, other in others.items()),
        *((f"answer {k}", answer) for k, answer in enumerate(answers, 1)),
        ("uncertainty", doubt[..., None].repeat(3, axis=2)),
        ("target's tokens", again),
        ("target", target),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=RUN")
    options = parser.parse_args()

    run = Translator.load(options.run, seed=options.seed)
    if not run.draws:
        raise UserError(f"{options.run}: has one answer for each image; expected a run of token-translation")
    codec = TokenCodec.load(options.run, side=run.direction.partition("to")[2])
    others = {name: Translator.load(path) for name, _, path in (given.partition("=") for given in options.beside)}
    first, second = run.direction.split("to")
    sources = {path.stem: path for path in find_images(options.data / first)}
    targets = {path.stem: path for path in find_images(options.data / second)}
    names = [name for name in sources if name in targets]
    if not names:
        raise UserError(f"{options.data}: {first} and {second} have no name in common")
    chosen = [names[(2 * k + 1) * len(names) // (2 * options.rows)] for k in range(options.rows)]
    rows = [
        titled(row((sources[name], targets[name]), run, codec, others, options.samples), options.scale, text=not number)
        for number, name in enumerate(chosen)
    ]
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    write_image(options.out, np.concatenate([part for one in rows for part in (one, gap)][:-1]), compression=9)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
