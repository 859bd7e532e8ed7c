"""Tiles with a cut halo against exact ones: how far apart, is there a seam, and how much less is run?

Differences in grey levels of 8 bits, in float32, against the result with the halo that the network needs. "seam":
the difference's steps across the tiles' borders over its steps beside them (tools/tile_study.py); 1 is none.

    python tools/overlap_study.py PHOTO [--weights RUN] [--network rrdb] [--overlaps 8 16 32 64] [--side 64] [--json]

Of the photo a part of --height x --width pixels in the middle is taken. Without weights the network is drawn: `rrdb`
as training begins with it (23 blocks, width 16, x2), `srresnet` with He's weights: no trained one is as sensitive.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tile_study import seam
from torch import nn

from translate.data.images import read_image
from translate.data.spec import ImageSpec
from translate.inference import Translator
from translate.inference.tiling import tiles
from translate.networks import RRDBSettings, SRResNetSettings

SCALE = 2


def drawn(kind: str, image: np.ndarray) -> nn.Module:
    """A network with random weights whose output spans the range on this image (H, W, 3)."""
    torch.manual_seed(0)
    if kind == "rrdb":
        network = RRDBSettings(width=16, growth=8).build(3, 3, SCALE).eval().requires_grad_(False)
        last = network.conv_last
    else:
        network = SRResNetSettings(width=16).build(3, 3, SCALE).eval().requires_grad_(False)
        last = network.tail
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, 0.25)
    x = torch.from_numpy(image[:64, :64].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    mean, deviation = network(x).mean(), network(x).std()
    last.weight.mul_(0.4 / deviation)
    # rrdb ends with 2 y - 1.
    last.bias.copy_((last.bias - (mean + 1) / 2) * 0.4 / deviation + 0.5 if kind == "rrdb" else -mean * 0.4 / deviation)
    return network


def study(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    pixels = read_image(arguments.photo).pixels
    top, left = (pixels.shape[0] - arguments.height) // 2, (pixels.shape[1] - arguments.width) // 2
    image = np.ascontiguousarray(pixels[top : top + arguments.height, left : left + arguments.width, :3])
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "tile": arguments.side}

    def translator(overlap: int | str) -> Translator:
        if arguments.weights is not None:
            return Translator.load(arguments.weights, overlap=overlap, **options)
        return Translator(drawn(arguments.network, image), ImageSpec(), ImageSpec(), overlap=overlap, **options)

    exact = translator("exact")
    whole, rows = exact(image).astype(np.float32), []
    for overlap in (*arguments.overlaps, "exact"):
        made = translator(overlap)
        difference = made(image) - whole
        cut = tiles(*image.shape[:2], arguments.side, made._halo, made.multiple)
        run = sum(window.height * window.width for _, window in cut)
        apart = np.abs(difference)
        rows.append(
            {
                "overlap": f"{made._halo}" if overlap != "exact" else f"exact, {made._halo}",
                "mean": round(float(apart.mean()), 4),
                "p99.9": round(float(np.quantile(apart, 0.999)), 1),
                "max": int(apart.max()),
                "seam": round(seam(difference, arguments.side * made.scale, made.multiple * made.scale), 2),
                "pixels_run_per_pixel": round(run / image[..., 0].size, 2),
                "told": made.deviation or "",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--weights", type=Path, help="a run folder or weights file")
    parser.add_argument("--network", choices=["rrdb", "srresnet"], default="rrdb")
    parser.add_argument("--overlaps", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--side", type=int, default=64, help="pixels of a tile's core")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="print one JSON list, nothing else")
    arguments = parser.parse_args()
    rows = study(arguments)
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
