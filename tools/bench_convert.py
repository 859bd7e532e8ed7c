"""Folder conversion against a plain loop: how many times faster is `translate convert`?

Baseline, written out in `one_by_one`: for each file PIL opens the JPEG, torchvision's to_tensor and normalise,
ResNet-9 in eval mode under no_grad in float32, PIL saves the PNG with its defaults. Ours: `convert` with its defaults
(bf16 where the CPU has it, threads that decode and encode). Same network, same files, same process; the rounds
alternate, the medians are compared.

    python tools/bench_convert.py [--images 16] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as transforms

from translate.data.images import write_image
from translate.data.spec import ImageSpec
from translate.inference import ConvertOptions, Translator, convert
from translate.networks import ResNetSettings


def draw(folder: Path, count: int, size: int) -> None:
    """Pictures with the spectrum of photographs: noise, blurred at five scales and added up."""
    generator = np.random.default_rng(0)
    for number in range(count):
        picture = np.zeros((size, size, 3), np.float32)
        for scale in (1, 4, 16, 64):
            noise = generator.normal(0, 12 * scale**0.5, (size // scale, size // scale, 3)).astype(np.float32)
            picture += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        write_image(folder / f"{number:03d}.jpg", np.clip(picture + 128, 0, 255).astype(np.uint8))


@torch.no_grad()
def one_by_one(network: nn.Module, source: Path, output: Path) -> None:
    """The loop that everyone writes first."""
    output.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        image = transforms.to_tensor(Image.open(path).convert("RGB"))
        fake = network(transforms.normalize(image, [0.5] * 3, [0.5] * 3)[None])[0]
        pixels = ((fake + 1) / 2 * 255).clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(output / f"{path.stem}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    network = ResNetSettings(blocks=9).build(3, 3).eval()
    translator = Translator(network, ImageSpec(), ImageSpec(), device="cpu", precision=arguments.precision)
    options = ConvertOptions(format="png", overwrite=True)
    seconds: dict[str, list[float]] = {"baseline": [], "translate": []}
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in"
        draw(source, arguments.images, arguments.size)
        first = Path(name) / "first"
        draw(first, 1, arguments.size)
        for round_number in range(arguments.rounds + 1):
            chosen = source if round_number else first  # the first round warms both up and is not counted
            start = time.perf_counter()
            one_by_one(network, chosen, Path(name) / "loop")
            middle = time.perf_counter()
            convert(translator, chosen, Path(name) / "ours", options)
            end = time.perf_counter()
            if round_number:
                seconds["baseline"].append(middle - start)
                seconds["translate"].append(end - middle)
        pairs = [
            [np.asarray(Image.open(Path(name) / kind / f"{path.stem}.png")).astype(int) for kind in ("loop", "ours")]
            for path in sorted(source.iterdir())
        ]
    rates = {kind: arguments.images / statistics.median(values) for kind, values in seconds.items()}
    result = {
        "baseline_images_per_second": round(rates["baseline"], 3),
        "translate_images_per_second": round(rates["translate"], 3),
        "ratio": round(rates["translate"] / rates["baseline"], 2),
        "mean_difference_in_grey_levels": round(float(np.mean([np.abs(a - b).mean() for a, b in pairs])), 3),
        "precision": translator.describe()["precision"],
        "threads": torch.get_num_threads(),
        "images": arguments.images,
        "size": arguments.size,
        "rounds": arguments.rounds,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key.replace('_', ' '):32} {value}")


if __name__ == "__main__":
    main()
