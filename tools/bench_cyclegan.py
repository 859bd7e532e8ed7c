"""Training step of CycleGAN, ResNet-9 at 256x256 and batch 1: ours against the plain writing, in one run.

    python tools/bench_cyclegan.py [--rounds 2] [--steps 2] [--size 256] [--set KEY=VALUE] [--device cuda] [--json]

Baseline "plain": the same networks in eager float32, NCHW; six passes of the generators, each image alone; each
discriminator alone, real and fake apart, two backward passes; the discriminators' weights frozen in the generators'
move; history pools; `torch.optim.Adam` neither fused nor foreach; `.item()` of each loss. Ours: Trainer.step on the
shipped config, batches ready as uint8 on both sides, in the precision that `auto` takes and in others.

Rows are measured in turns, each in a process of its own; medians over the rounds. On a CPU times are processor time of
one thread, so that other work on the machine does not count. Peak memory is that of the process (CUDA: of torch).
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

from rounds import compare_steps, pair_batches, time_steps

PLAIN = "plain"
OURS: dict[str, list[str]] = {
    "ours, auto": [],
    "ours, auto, checkpointing": ["method.generator.checkpointing=true"],
    "ours, fp32": ["training.precision=fp32"],
}


def make_trainer(size: int, folder: Path, device: str, changes: list[str]) -> Any:
    """A trainer of config cyclegan at the door of its first step."""
    import numpy as np

    from translate import config
    from translate.data.images import write_image
    from translate.training.trainer import Silent, Trainer

    for side in "AB":
        (folder / "train" / side).mkdir(parents=True)
        write_image(folder / "train" / side / "0.png", np.zeros((size, size, 3), np.uint8))
    fixed = [f"data.root={folder}", "data.validation=null", f"training.device={device}"]
    trainer = Trainer(config.load("cyclegan", [*fixed, *changes]), Silent())
    trainer._enter_stage(0)
    return trainer


def plain(size: int, steps: int, device: str, changes: list[str]) -> float:
    """The loop that one would write on an afternoon: seconds a step."""
    import itertools

    import torch
    from torch.nn import functional as F

    with tempfile.TemporaryDirectory() as folder:
        # The networks alone: same architecture, same first weights.
        players = make_trainer(size, Path(folder), device, ["training.channels_last=false", *changes]).method.players
    g, f = players["generators"]["AtoB"], players["generators"]["BtoA"]
    d = players["discriminators"]
    rates = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": False, "foreach": False}
    adam_g = torch.optim.Adam(itertools.chain(g.parameters(), f.parameters()), **rates)
    adam_d = torch.optim.Adam(d.parameters(), **rates)
    pools: dict[str, list[torch.Tensor]] = {"A": [], "B": []}
    random.seed(0)

    def from_pool(side: str, fake: torch.Tensor) -> torch.Tensor:
        pool = pools[side]
        if len(pool) < 50:
            pool.append(fake)
        elif random.random() < 0.5:
            place = random.randrange(50)
            fake, pool[place] = pool[place], fake
        return fake

    def game(logits: torch.Tensor, target: float) -> torch.Tensor:
        return F.mse_loss(logits, torch.full_like(logits, target))

    def step(batch: dict[str, Any]) -> None:
        a, b = (batch[side].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1 for side in "AB")
        d.requires_grad_(False)
        adam_g.zero_grad()
        fake_b, fake_a = g(a), f(b)
        losses = [game(d["B"](fake_b), 1.0), game(d["A"](fake_a), 1.0)]
        losses += [10 * F.l1_loss(f(fake_b), a), 10 * F.l1_loss(g(fake_a), b)]
        losses += [5 * F.l1_loss(f(a), a), 5 * F.l1_loss(g(b), b)]
        torch.stack(losses).sum().backward()
        adam_g.step()
        d.requires_grad_(True)
        adam_d.zero_grad()
        for side, real, fake in (("A", a, fake_a), ("B", b, fake_b)):
            loss = 0.5 * (game(d[side](real), 1.0) + game(d[side](from_pool(side, fake.detach())), 0.0))
            loss.backward()
            losses.append(loss)
        adam_d.step()
        for loss in losses:
            loss.item()

    return time_steps(step, pair_batches(size, steps), device)


def ours(size: int, steps: int, device: str, changes: list[str]) -> float:
    """Trainer.step on the shipped config: seconds a step."""
    from translate.devices import keep_freed_memory

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(size, Path(folder), device, changes)
    return time_steps(lambda batch: trainer.step([trainer._to_device(batch)]), pair_batches(size, steps), device)


def measure(row: str, options: argparse.Namespace) -> dict[str, float]:
    """One row, here and now."""
    import torch

    from translate.training.logging import memory_in_use

    torch.set_num_threads(1)
    if row == PLAIN:
        seconds = plain(options.size, options.steps, options.device, options.set)
    else:
        seconds = ours(options.size, options.steps, options.device, [*OURS[row], *options.set])
    return {"seconds": seconds, "gib": memory_in_use(torch.device(options.device))}


if __name__ == "__main__":
    compare_steps(
        __file__,
        __doc__,
        [PLAIN, *OURS],
        measure,
        title="CycleGAN, {size}x{size}, batch 1",
        size=("size", 256),
        steps=2,
    )
