"""How fast does one process load jittered pairs? A ratio against the usual PIL and torchvision pipeline.

    python tools/bench_loading.py [--images FOLDER] [--json]

Both sides read the same 200 pairs of 256x256 JPEG files (quality 90), resize to 286 squared, crop 256 squared
at random and flip at random. Baseline: PIL open, convert to RGB, bicubic resize, crop, flip, torchvision's
ToTensor and Normalize, for both images of a pair. Ours: the data set of `translate.data` and its collate,
batch 1, which ends in uint8 tensors (normalising is the device's work; `with normalise` adds it on the CPU
for comparison). Single process, one thread, its processor time (other work on the machine counts less then);
the variants take turns, round by round, and the median round counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from translate.data.datasets import ImageDataset, PairedSettings
from translate.data.files import find_images
from translate.data.images import to_device
from translate.data.loader import SampleOrder, collate

PAIRS = 200
SIZE = 256


def write_pairs(root: Path, photos: Path | None) -> None:
    """Write the pairs: A is a blurred copy of B; B is cut from photographs, or drawn as smooth gradients."""
    generator = np.random.default_rng(0)
    files = find_images(photos) if photos is not None else []
    for side in ("A", "B"):
        (root / "train" / side).mkdir(parents=True)
    for index in range(PAIRS):
        if files:
            photo = cv2.imread(str(files[index % len(files)]))
            if photo is None or min(photo.shape[:2]) < SIZE:
                raise SystemExit(f"{files[index % len(files)]}: expected a picture of {SIZE} pixels at least")
            top, left = (int(generator.integers(length - SIZE + 1)) for length in photo.shape[:2])
            target = photo[top : top + SIZE, left : left + SIZE]
        else:
            corners = generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)
            target = cv2.resize(corners, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        for side, pixels in (("A", cv2.GaussianBlur(target, (0, 0), 3)), ("B", target)):
            path = root / "train" / side / f"{index:04d}.jpg"
            cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


def baseline(root: Path) -> Callable[[], None]:
    """One pass over all pairs by PIL and torchvision."""
    names = [path.name for path in find_images(root / "train" / "A")]
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    draw = random.Random(0)

    def load(path: Path, left: int, top: int, mirror: bool) -> torch.Tensor:
        image = Image.open(path).convert("RGB").resize((286, 286), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + SIZE, top + SIZE))
        if mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor: torch.Tensor = finish(image)
        return tensor

    def run() -> None:
        for name in names:
            left, top, mirror = draw.randrange(31), draw.randrange(31), draw.random() < 0.5
            for side in ("A", "B"):
                load(root / "train" / side / name, left, top, mirror)[None]

    return run


def ours(dataset: ImageDataset, *, normalise: bool) -> Callable[[], None]:
    """One pass over all pairs by what a worker of the project's loader does for batches of 1."""
    order = SampleOrder(len(dataset), seed=0)
    positions = itertools.count()

    def run() -> None:
        for position in itertools.islice(positions, PAIRS):
            batch = collate([dataset[order[position], position]], dataset.specs)
            if normalise:
                to_device(batch, dataset.specs, "cpu")

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs to cut the pairs from")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pairs(root, arguments.images)
        plain = PairedSettings(root=root, validation=None).open("train", seed=0)
        cached = PairedSettings(root=root, validation=None, cache="memory").open("train", seed=0)
        assert plain is not None and cached is not None
        variants = {
            "baseline": baseline(root),
            "no cache": ours(plain, normalise=False),
            "no cache, with normalise": ours(plain, normalise=True),
            "memory cache": ours(cached, normalise=False),
            "memory cache, with normalise": ours(cached, normalise=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for variant in variants.values():
            variant()  # warms the file cache and the decoders
        for _ in range(arguments.rounds):
            for name, variant in variants.items():
                begin = time.process_time()
                variant()
                seconds[name].append(time.process_time() - begin)
    rates = {name: 2 * PAIRS / statistics.median(times) for name, times in seconds.items()}
    result = {
        name: {"images_per_second": round(rate, 1), "ratio": round(rate / rates["baseline"], 2)}
        for name, rate in rates.items()
    }
    if arguments.json:
        print(json.dumps({"images": str(arguments.images or "gradients"), "rounds": arguments.rounds, **result}))
        return
    for name, values in result.items():
        print(f"{name:30} {values['images_per_second']:9.1f} images/s  {values['ratio']:6.2f}x")


if __name__ == "__main__":
    main()
