"""How fast are low resolutions made? On the fly for whole batches, against an imresize per image as loaders have it.

    python tools/bench_degradation.py [--images FOLDER] [--device cpu] [--rounds 7] [--step] [--json]

Both sides make the same bytes (asserted): MATLAB's bicubic x4 of uint8. Baseline: the common writing in numpy, one
image at a time, float64: for each line of the result the pixels it needs are gathered and summed with their weights,
which are computed anew for each image. Ours: `translate.data.degradation` on float32 batches as they are on the device,
[-1, 1] in and out. `crops`: 16 of 96 x 96, a training batch. `photographs`: 8 of 481 x 321, cut to 480 x 320; of
--images, else noise.

`second-order` is Real-ESRGAN's degradation of the same crops: the mean over batches, since chance decides what is done.
With --step also a step of training SRResNet x4 on them (L1, Adam), forwards, backwards and optimiser, float32.
On a CPU one thread each, by the processor's time; the variants take turns, and the median round counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from translate.data.degradation import BicubicSettings, SecondOrderSettings
from translate.data.files import find_images
from translate.data.images import normalise, read_pixels, to_pixels
from translate.data.spec import ImageSpec
from translate.devices import keep_freed_memory

SCALE: Final = 4
SPEC = ImageSpec()
Bytes = NDArray[np.uint8]


def taps(length: int, out: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which pixels make each pixel of a smaller line, (out, taps), and their weights."""
    centre = (np.arange(out) + 0.5) * SCALE - 0.5
    first = np.floor(centre - 2 * SCALE).astype(np.int64)
    pixels = first[:, None] + np.arange(4 * SCALE + 2)
    x = np.abs(centre[:, None] - pixels) / SCALE
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
    used = (weights != 0).any(axis=0)
    weights /= weights.sum(axis=1, keepdims=True)
    period = pixels % (2 * length)
    return np.where(period < length, period, 2 * length - 1 - period)[:, used], weights[:, used]


def plain(image: Bytes) -> Bytes:
    """(H, W, C) -> (H / 4, W / 4, C), rounded after each pass."""
    pixels = image
    for axis in (0, 1):
        places, weights = taps(pixels.shape[axis], math.ceil(pixels.shape[axis] / SCALE))
        if axis == 0:
            summed = (weights[:, :, None, None] * pixels[places].astype(np.float64)).sum(axis=1)
        else:
            summed = (weights[None, :, :, None] * pixels[:, places].astype(np.float64)).sum(axis=2)
        pixels = np.clip(np.floor(summed + 0.5), 0, 255).astype(np.uint8)
    return pixels


def pictures(folder: Path | None) -> list[Bytes]:
    """Eight of 320 x 480, (H, W, 3)."""
    if folder is None:
        return list(np.random.default_rng(0).integers(0, 256, (8, 320, 480, 3), dtype=np.uint8))
    found: list[Bytes] = []
    for path in find_images(folder):
        image = read_pixels(path, SPEC)
        image = image if image.shape[1] >= image.shape[0] else image.swapaxes(0, 1)
        if image.shape[0] >= 320 and image.shape[1] >= 480 and image.dtype == np.uint8:
            found.append(np.ascontiguousarray(image[:320, :480]))
        if len(found) == 8:
            return found
    raise SystemExit(f"{folder}: expected 8 pictures of 480 x 320 pixels at least")


def training_step(crops: Tensor, low: Tensor) -> Callable[[], object]:
    from translate.networks.srresnet import SRResNetSettings

    network = SRResNetSettings().build(3, 3, SCALE).to(crops.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)

    def run() -> None:
        optimiser.zero_grad()
        torch.nn.functional.l1_loss(network(low), crops).backward()
        optimiser.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--step", action="store_true", help="measure a step of training as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    keep_freed_memory()  # as the trainer does; numpy gains by it too
    torch.manual_seed(0)

    photographs = pictures(arguments.images)
    crops = [image[top : top + 96, 100:196].copy() for image in photographs for top in (20, 150)]
    on_device = {
        name: normalise(torch.from_numpy(np.stack(images)), SPEC).to(device)
        for name, images in (("crops", crops), ("photographs", photographs))
    }
    bicubic, second = BicubicSettings().build(SCALE), SecondOrderSettings().build(SCALE)

    variants: dict[str, tuple[Callable[[], object], int]] = {}  # and how often it runs in a round
    for name, images in (("crops", crops), ("photographs", photographs)):
        # The comparison is of equal results.
        assert np.array_equal(np.stack([plain(image) for image in images]), to_pixels(bicubic(on_device[name]), SPEC))
        variants[f"{name}: numpy, per image"] = (
            functools.partial(lambda them: [plain(one) for one in them], images),
            5,
        )
        variants[f"{name}: bicubic"] = (functools.partial(bicubic, on_device[name]), 5)
    variants["crops: second-order"] = (functools.partial(second, on_device["crops"]), 25)
    if arguments.step:
        variants["crops: step of SRResNet"] = (training_step(on_device["crops"], bicubic(on_device["crops"])), 1)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for variant, _ in variants.values():
        variant()
    for _ in range(arguments.rounds):
        for name, (variant, count) in variants.items():
            begin = now()
            for _ in range(count):
                variant()
            seconds[name].append((now() - begin) / count)
    result = {name: statistics.median(times) * 1e3 for name, times in seconds.items()}
    ratios = {name: result[f"{name}: numpy, per image"] / result[f"{name}: bicubic"] for name in on_device}
    if arguments.json:
        print(json.dumps({"device": str(device), "milliseconds": result, "ratios": ratios}))
        return
    for name, value in result.items():
        print(f"{name:28} {value:9.2f} ms a batch")
    for name, ratio in ratios.items():
        print(f"{name:28} {ratio:9.1f}x as fast as numpy, per image")


if __name__ == "__main__":
    main()
