"""Tiles against the whole image: how far apart are the results, is there a seam, what does it cost?

Each row is a process of its own: the untiled conversion, tiles with 0, 1, 2 ... passes for the statistics, and naive
tiles, each with the statistics of its own window. Time is of the conversion alone, memory the process's largest
(ru_maxrss). Differences are in grey levels of 8 bits, against the untiled image in the same number format.

    python tools/tile_study.py [PHOTO ...] [--weights RUN] [--megapixels 2 4] [--passes 0 1 2 3] [--side 512] [--json]

Without weights the network is ResNet-9 with random weights (He), which no trained one is as sensitive as; without
photos the picture is drawn. A photo is scaled to each number of megapixels, which should be no enlargement.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from translate.data.images import read_image
from translate.data.spec import ImageSpec
from translate.inference import Translator
from translate.inference.tiling import receptive_radius, tiles
from translate.networks import InitialisationSettings, ResNetSettings

Row = dict[str, Any]


def picture(photo: Path | None, megapixels: float) -> np.ndarray:
    """The photo at that size, or noise with the spectrum of photographs; (H, W, 3) uint8."""
    if photo is not None:
        pixels = read_image(photo).pixels[..., :3]
        factor = (megapixels * 1e6 / (pixels.shape[0] * pixels.shape[1])) ** 0.5
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=how))
    height, width = round((megapixels * 1e6 * 2 / 3) ** 0.5), round((megapixels * 1e6 * 3 / 2) ** 0.5)
    generator = np.random.default_rng(0)
    drawn = np.full((height, width, 3), 128, np.float32)
    for scale in (1, 4, 16, 64, 256):
        noise = generator.normal(0, 8 * scale**0.5, (height // scale + 1, width // scale + 1, 3)).astype(np.float32)
        drawn += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return drawn.clip(0, 255).astype(np.uint8)


def load(weights: Path | None, precision: str, **options: Any) -> Translator:
    if weights is not None:
        return Translator.load(weights, device="cpu", precision=precision, tile=options["tile"])
    torch.manual_seed(0)
    network = ResNetSettings(initialisation=InitialisationSettings(kind="kaiming")).build(3, 3)
    network.layers[-2].weight.data.mul_(0.3)  # so that tanh is not cut
    return Translator(network, ImageSpec(), ImageSpec(), device="cpu", precision=precision, tile=options["tile"])


def naive(translator: Translator, image: np.ndarray, side: int) -> np.ndarray:
    """Each tile, halo and all, as an image of its own."""
    radius = receptive_radius(translator._float, image.shape[2])
    multiple = translator.multiple
    whole = tuple(length // multiple * multiple for length in image.shape[:2])
    made = np.zeros_like(image)
    for core, window in tiles(whole[0], whole[1], side, radius, multiple):
        part = translator(np.ascontiguousarray(image[window.top : window.bottom, window.left : window.right]))
        top, left = core.top - window.top, core.left - window.left
        kept = part[top : top + core.height, left : left + core.width]
        made[core.top : core.bottom, core.left : core.right] = kept
    return made[: whole[0], : whole[1]]


def run_one(kind: str, arguments: argparse.Namespace, photo: Path | None, megapixels: float, file: Path) -> None:
    """In the child: one conversion; prints its row."""
    image = picture(photo, megapixels)
    translator = load(arguments.weights, arguments.precision, tile=arguments.side if kind.isdigit() else "off")
    if kind.isdigit():
        translator.tile_passes = int(kind)
    translator(image[:256, :256])  # kernels are chosen and loaded
    start = time.perf_counter()
    made = naive(translator, image, arguments.side) if kind == "naive" else translator(image)
    seconds = time.perf_counter() - start
    np.save(file, made)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # KiB on Linux
    print(json.dumps({"seconds": round(seconds, 1), "peak_gib": round(peak, 2), "size": list(made.shape[:2])}))


def seam(difference: np.ndarray, side: int, multiple: int) -> float:
    """Steps of the difference across the tiles' upright borders over those 2 to 8 pixels beside; 1: no seam.

    Averaged along 16 rows first: a seam goes along its border, while texture changes from row to row.
    """
    height, width = difference.shape[:2]
    across = np.diff(difference[: height // 16 * 16], axis=1)
    across = np.abs(across.reshape(height // 16, 16, width - 1, -1).mean(axis=1)).mean(axis=(0, 2))
    cut = tiles(height // multiple * multiple, width // multiple * multiple, side, 0, multiple)
    borders = np.array(sorted({core.left - 1 for core, _ in cut if core.left}))
    beside = np.concatenate([borders + distance for distance in (*range(-8, -1), *range(2, 9))])
    return float(across[borders].mean() / max(across[beside].mean(), 1e-12))


def compare(made: np.ndarray, whole: np.ndarray, side: int, multiple: int) -> Row:
    whole = whole[: made.shape[0], : made.shape[1]]
    difference = made.astype(np.float32) - whole
    apart = np.abs(difference)
    return {
        "mean": round(float(apart.mean()), 3),
        "p99.9": round(float(np.quantile(apart, 0.999)), 1),
        "max": int(apart.max()),
        "seam": round(seam(difference, side, multiple), 2),
    }


def study(arguments: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    multiple = load(arguments.weights, "fp32", tile="off").multiple
    with tempfile.TemporaryDirectory() as folder:
        for photo in arguments.photos or [None]:
            for megapixels in arguments.megapixels:
                files: dict[str, Path] = {}
                for kind in ("untiled", *map(str, arguments.passes), "naive"):
                    files[kind] = Path(folder) / f"{kind}.npy"
                    command = [sys.executable, __file__, *([str(photo)] if photo else []), "--child", kind]
                    command += ["--megapixels", str(megapixels), "--side", str(arguments.side)]
                    command += ["--precision", arguments.precision, "--file", str(files[kind])]
                    command += ["--weights", str(arguments.weights)] if arguments.weights else []
                    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    row = {"photo": photo.stem if photo else "drawn", "kind": kind, **json.loads(printed)}
                    if kind != "untiled":
                        pair = [np.load(files[name]) for name in (kind, "untiled")]
                        row |= compare(pair[0], pair[1], arguments.side, multiple)
                    rows.append(row)
                    if not arguments.json:
                        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="*")
    parser.add_argument("--weights", type=Path, help="a run folder or weights file")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[2.0])
    parser.add_argument("--passes", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--side", type=int, default=512, help="pixels of a tile's core")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--json", action="store_true", help="print one JSON list, nothing else")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        photo = arguments.photos[0] if arguments.photos else None
        run_one(arguments.child, arguments, photo, arguments.megapixels[0], arguments.file)
        return
    rows = study(arguments)
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
