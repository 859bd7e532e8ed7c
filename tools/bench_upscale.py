"""Enlarging whole images on a CPU: how many times faster than the plain writing, and in how much memory a large one?

Baseline, written out in `PlainSRResNet`: SRResNet x4 (Ledig et al., arXiv 1609.04802, figure 4) of torch's own layers,
in eval mode under no_grad, float32, NCHW: what a user would write. Ours: `Translator` with its defaults, and in
float32. Same weights, same image, from pixels to pixels; each row is a process of its own, the rounds alternate, the
medians are compared: of wall time, and of processor time, which other work on the machine disturbs less.

    python tools/bench_upscale.py [--width 480] [--height 320] [--rounds 3] [--threads N] [--json]

With `--photo`, the real command on a large photograph in a process of its own: largest memory (ru_maxrss) and seconds.
Without `--weights` the network is SRResNet x4 with random weights, which takes what any takes.

    python tools/bench_upscale.py --photo FILE [--weights RUN] [--options="--tile 256 ..."]
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rounds import in_turns
from torch import Tensor, nn

from translate import config as configs
from translate.data.images import probe
from translate.data.spec import ImageSpec
from translate.inference import Translator
from translate.networks import SRResNetSettings
from translate.run import Run

SCALE = 4
ROWS = ("plain", "translate fp32", "translate")


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.PReLU(),
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PlainSRResNet(nn.Module):
    """The paper's network as its figure has it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 64, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(PlainBlock() for _ in range(16)))
        self.merge = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64))
        self.up = nn.Sequential(
            nn.Conv2d(64, 256, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(),
            nn.Conv2d(64, 256, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(),
        )  # fmt: skip
        self.tail = nn.Conv2d(64, 3, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.head(x)
        return self.tail(self.up(first + self.merge(self.blocks(first))))


def drawn() -> nn.Module:
    """Ours, with weights whose output spans the range and statistics that are no zeros and ones."""
    torch.manual_seed(0)
    network = SRResNetSettings().build(3, 3, SCALE).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, 0.25)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.2, 0.5)
    network.tail.weight.data.mul_(0.1)
    return network


def plain() -> PlainSRResNet:
    """The plain writing with the same weights: the layers stand in the same order."""
    network = PlainSRResNet().eval()
    tensors = zip(network.state_dict(), drawn().state_dict().values(), strict=True)
    network.load_state_dict(dict(tensors))
    return network


@torch.no_grad()
def enlarge(network: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (4 H, 4 W, 3), uint8, as everyone writes it."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    made = network(image)  # from [0, 1] to [-1, 1], as the paper has it
    return ((made[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def measure(row: str, height: int, width: int) -> dict[str, float]:
    """Seconds of one image by the clock and of all threads' work, warmed up; the largest memory of the process."""
    pixels = picture(height, width)
    if row == "plain":
        network = plain()
        run = lambda: enlarge(network, pixels)  # noqa: E731  # both rows in one form
    else:
        precision = "fp32" if row.endswith("fp32") else "auto"
        translator = Translator(drawn(), ImageSpec(), ImageSpec(), device="cpu", precision=precision)
        run = lambda: translator(pixels)  # noqa: E731
    run()
    wall, work = time.perf_counter(), time.process_time()
    run()
    wall, work = time.perf_counter() - wall, time.process_time() - work
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # KiB on Linux
    return {"seconds": wall, "work": work, "peak_gib": peak}


def differences() -> dict[str, float]:
    """Grey levels between ours and the plain writing, on a small image."""
    pixels, found = picture(40, 48), {}
    wanted = enlarge(plain(), pixels).astype(int)
    for precision in ("fp32", "auto"):
        made = Translator(drawn(), ImageSpec(), ImageSpec(), device="cpu", precision=precision)(pixels)
        apart = np.abs(made.astype(int) - wanted)
        found |= {
            f"{precision}_mean_difference": float(apart.mean()),
            f"{precision}_max_difference": float(apart.max()),
        }
    return {**found, "deviation_of_the_image": float(wanted.std())}


def photo(file: Path, weights: Path | None, options: str) -> dict[str, float | str]:
    """The command, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        if weights is None:
            chosen = configs.load("srresnet", [f"data.root={name}"])
            method = chosen.method.build(chosen.data)
            method.generator.load_state_dict(drawn().state_dict())
            weights = Run(Path(name)).export("last", chosen, method.exported(), step=0, images=0)
        out = Path(name) / "out"
        command = [sys.executable, "-m", "translate", "convert", str(weights), str(file), str(out), "--json"]
        start = time.perf_counter()
        done = subprocess.run([*command, *shlex.split(options)], check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
        made = next(path for path in out.iterdir() if path.is_file())
        before, after = probe(file), probe(made, max_pixels=1 << 40)
        return {
            "input": f"{before.width} x {before.height} ({before.width * before.height / 1e6:.1f} MP)",
            "result": f"{after.width} x {after.height} ({after.width * after.height / 1e6:.1f} MP), {made.suffix}",
            "file_mb": round(made.stat().st_size / 1e6, 1),
            "seconds": round(seconds, 1),
            "peak_gib": round(peak, 2),
            "notes": "; ".join(json.loads(done.stdout)["notes"]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--options", default="", help="further options of `translate convert`")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.row:
        print(json.dumps(measure(arguments.row, arguments.height, arguments.width)))
        return
    if arguments.photo:
        result = photo(arguments.photo, arguments.weights, arguments.options)
    else:
        sizes = ["--width", str(arguments.width), "--height", str(arguments.height)]
        rows = in_turns(__file__, ROWS, arguments.rounds, [*sizes, "--threads", str(arguments.threads)])
        result = {f"{row}_{key}": round(value, 3) for row in ROWS for key, value in rows[row].items()}
        for row in ROWS[1:]:
            for kind in ("seconds", "work"):
                result[f"ratio_of_{kind}_{row}"] = round(rows["plain"][kind] / rows[row][kind], 2)
        result |= {key: round(value, 3) for key, value in differences().items()}
        result |= {"threads": arguments.threads, "rounds": arguments.rounds}
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key.replace('_', ' '):32} {value}")


if __name__ == "__main__":
    main()
