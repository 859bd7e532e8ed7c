"""Training step of SRResNet x4, crops of 96x96, batch 16: ours against the plain writing, in one run.

    python tools/bench_srgan.py [--rounds 2] [--steps 5] [--batch 16] [--set KEY=VALUE] [--device cuda] [--json]

Baseline "plain": the network as one writes it with torch's layers, in eager float32, NCHW; low resolutions made
beforehand; `torch.optim.Adam` neither fused nor foreach; `.item()` of the loss. Ours: Trainer.step on the shipped
config `srresnet`, high resolutions ready as uint8, the low ones made within the step, in the precision that `auto`
takes and in others.

Rows are measured in turns, each in a process of its own; medians over the rounds. On a CPU times are processor time of
one thread, so that other work on the machine does not count. Peak memory is that of the process (CUDA: of torch).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rounds import compare_steps, time_steps

PLAIN = "plain"
OURS: dict[str, list[str]] = {
    "ours, auto": [],
    "ours, auto, NCHW": ["training.channels_last=false"],
    "ours, fp32": ["training.precision=fp32"],
}
SIDE, SCALE = 96, 4


def make_trainer(device: str, changes: list[str]) -> Any:
    """A trainer of config srresnet at the door of its first step."""
    import numpy as np

    from translate import config
    from translate.data.images import write_image
    from translate.training.trainer import Silent, Trainer

    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder) / "train" / "0.png", np.zeros((SIDE, SIDE, 3), np.uint8))
        fixed = [f"data.root={folder}", "data.validation=null", "validation.measures=null"]
        trainer = Trainer(config.load("srresnet", [*fixed, f"training.device={device}", *changes]), Silent())
    trainer._enter_stage(0)
    return trainer


def batches(size: int, count: int) -> list[dict[str, Any]]:
    """High resolutions as a loader gives them: uint8 NHWC, random."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (size, SIDE, SIDE, 3)
    return [
        {"B": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), "name": [""]} for _ in range(count)
    ]


def plain(options: argparse.Namespace) -> float:
    """The loop that one would write on an afternoon: seconds a step."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
            self.prelu = nn.PReLU()
            self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))

    class SRResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Conv2d(3, 64, 9, padding=4), nn.PReLU())
            self.body = nn.Sequential(*(Block() for _ in range(16)))
            self.merge = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64))
            doubling = [[nn.Conv2d(64, 256, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()] for _ in range(2)]
            self.up = nn.Sequential(*doubling[0], *doubling[1], nn.Conv2d(64, 3, 9, padding=4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            head = self.head(x)
            return self.up(head + self.merge(self.body(head)))

    network = SRResNet().to(options.device)
    adam = torch.optim.Adam(network.parameters(), lr=1e-4, fused=False, foreach=False)

    def step(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        low, high = (side.to(options.device) for side in pair)
        adam.zero_grad()
        loss = F.mse_loss(network(low), high)
        loss.backward()
        adam.step()
        loss.item()

    pairs = []
    for batch in batches(options.batch, options.steps):
        high = batch["B"].permute(0, 3, 1, 2).contiguous() / 127.5 - 1
        pairs.append((F.interpolate(high, scale_factor=1 / SCALE, mode="bicubic", antialias=True), high))
    return time_steps(step, pairs, options.device)


def ours(options: argparse.Namespace, changes: list[str]) -> float:
    """Trainer.step on the shipped config: seconds a step."""
    from translate.devices import keep_freed_memory

    keep_freed_memory()
    trainer = make_trainer(options.device, changes)
    step = batches(options.batch, options.steps)
    return time_steps(lambda batch: trainer.step([trainer._to_device(batch)]), step, options.device)


def measure(row: str, options: argparse.Namespace) -> dict[str, float]:
    """One row, here and now."""
    import torch

    from translate.training.logging import memory_in_use

    torch.set_num_threads(1)
    seconds = plain(options) if row == PLAIN else ours(options, [*OURS[row], *options.set])
    return {"seconds": seconds, "gib": memory_in_use(torch.device(options.device))}


if __name__ == "__main__":
    compare_steps(
        __file__,
        __doc__,
        [PLAIN, *OURS],
        measure,
        title=f"SRResNet x{SCALE}, {SIDE}x{SIDE}, batch {{batch}}",
        size=("batch", 16),
        steps=5,
    )
