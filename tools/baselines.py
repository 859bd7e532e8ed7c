"""Test L1, PSNR and SSIM of a paired run beside two baselines that learn nothing, and a grid of results.

    python tools/baselines.py runs/0001-pix2pix-emoji [--set data.root=...] [--grid grid.png] [--json]

Baselines: the input itself, and the mean image of the training targets. Every image of the run's test split, at the
size the run was validated at (`data.augment.crop`), 8-bit outputs, RGB, no border left out. SSIM: Wang et al. 2004 with
its 11x11 Gaussian window.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from translate import config as configs
from translate.data.datasets import ImageDataset
from translate.data.images import normalise, write_image
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.inference.translator import Translator
from translate.metrics.images import l1, psnr, ssim
from translate.run import load_weights

MEASURES = {"L1": l1, "PSNR": psnr, "SSIM": ssim}


def as_tensor(pixels: np.ndarray) -> Tensor:
    return normalise(torch.from_numpy(np.ascontiguousarray(pixels))[None], ImageSpec())


def pairs(dataset: ImageDataset, source: str, target: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for index in range(len(dataset)):
        sample = dataset[index]
        yield sample[source], sample[target]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", action="append", default=[], help="where the data are now: data.root=...")
    parser.add_argument("--grid", type=Path, help="write a picture of ten results: input, output, target")
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    weights = load_weights(options.run)
    raw = configs.apply_overrides(weights.config.model_dump(mode="json"), ["data.cache=none", *options.set])
    data = configs.validate(raw, str(weights.path)).data
    if data.kind != "paired":
        raise UserError("this table needs a paired run")
    test, train = data.open("test", 0), data.open("train", 0)
    if test is None or train is None:
        raise UserError(f"{data.root}: has no test split")
    train.transform = test.transform  # whole images at the test's size, without the jitter
    translator = Translator.load(options.run)

    mean = np.mean([target.astype(np.float64) for _, target in pairs(train, data.source, data.target)], axis=0)
    mean_image = as_tensor(mean.round().astype(np.uint8))
    rows: dict[str, list[list[float]]] = {"pix2pix": [], "the input itself": [], "mean training image": []}
    pictures = []
    for source, target in pairs(test, data.source, data.target):
        output = translator.run([source])[0]
        truth = as_tensor(target)
        for name, guess in zip(rows, (as_tensor(output), as_tensor(source), mean_image), strict=True):
            rows[name].append([float(measure(guess, truth)) for measure in MEASURES.values()])
        pictures.append(np.concatenate([source, output, target], axis=1))
    table = {name: dict(zip(MEASURES, np.mean(values, axis=0).tolist(), strict=True)) for name, values in rows.items()}
    if options.grid:
        write_grid(options.grid, pictures, options.rows)
    if options.json:
        print(json.dumps({"images": len(pictures), "step": weights.step, "seen": weights.images, **table}))
        return
    print(f"{len(pictures)} test images; {weights.path} at step {weights.step:,} ({weights.images:,} images seen)")
    for name, values in table.items():
        print(f"{name:<20} L1 {values['L1']:.4f}   PSNR {values['PSNR']:6.2f} dB   SSIM {values['SSIM']:.4f}")


def write_grid(path: Path, pictures: list[np.ndarray], count: int) -> None:
    """Ten results that nobody chose: evenly spaced through the test split by name, in two columns."""
    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, count).round().astype(int)]
    half = -(-len(chosen) // 2)
    gap = np.full((chosen[0].shape[0], 12, 3), 255, np.uint8)
    left, right = chosen[:half], chosen[half:] + [np.full_like(chosen[0], 255)] * (2 * half - len(chosen))
    write_image(path, np.concatenate([np.concatenate([a, gap, b], axis=1) for a, b in zip(left, right, strict=True)]))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
