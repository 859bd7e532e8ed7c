"""Training step of pix2pix, U-Net-256 at 256x256 and batch 1: ours against the plain writing, in one run.

    python tools/bench_train.py [--rounds 3] [--steps 8] [--json]

Baseline "plain": the same networks and losses in eager float32, NCHW, torch.optim.Adam as it comes, no logging.
Ours: Trainer.step as `translate train pix2pix` runs it (bf16 where the CPU has it, fused Adam, freed memory kept).
The two are measured in turns (rounds.py), on all cores and by the clock; the ratio is of the medians. `overhead` is the
share of our step outside forward, backward and optimiser (the data are made before); the norm of the gradients, which
decides whether a step is taken, counts as overhead and is told apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rounds import in_turns, pair_batches, time_steps

SIZE = 256


def plain(steps: int, device: str) -> dict[str, float]:
    """The loop that one would write on an afternoon."""
    import torch
    from torch.nn import functional as F

    from translate.networks import PatchSettings, UNetSettings

    torch.manual_seed(0)
    generator, discriminator = UNetSettings().build(3, 3).to(device), PatchSettings().build(6).to(device)
    adam_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def bce(logits: torch.Tensor, real: bool) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def step(batch: dict[str, Any]) -> None:
        x, y = (batch[side].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1 for side in "AB")
        fake = generator(x)
        discriminator.requires_grad_(True)
        adam_d.zero_grad()
        real_loss = bce(discriminator(torch.cat([x, y], 1)), True)
        (0.5 * (real_loss + bce(discriminator(torch.cat([x, fake.detach()], 1)), False))).backward()
        adam_d.step()
        discriminator.requires_grad_(False)
        adam_g.zero_grad()
        (bce(discriminator(torch.cat([x, fake], 1)), True) + 100 * F.l1_loss(fake, y)).backward()
        adam_g.step()

    return {"seconds": time_steps(step, pair_batches(SIZE, steps), device, by_the_clock=True), **memory(device)}


def ours(steps: int, device: str, settings: list[str]) -> dict[str, float]:
    """Trainer.step on the shipped config, with clocks round what is not overhead."""
    import numpy as np
    import torch

    from translate import config
    from translate.data.images import write_image
    from translate.devices import keep_freed_memory
    from translate.training.trainer import Silent, Trainer

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        for side in "AB":
            path = Path(folder) / "train" / side
            path.mkdir(parents=True)
            write_image(path / "0.png", np.zeros((SIZE, SIZE, 3), np.uint8))
        changes = [f"data.root={folder}", "data.validation=null", f"training.device={device}", *settings]
        trainer = Trainer(config.load("pix2pix", changes), Silent())
        trainer._enter_stage(0)
        inside = Clock(trainer, torch)

        def step(batch: dict[str, Any]) -> None:
            trainer.step([trainer._to_device(batch)])

        batches = pair_batches(SIZE, steps)
        seconds = time_steps(step, batches, device, by_the_clock=True, begin=inside.clear)
        overhead = 1 - inside.seconds / steps / seconds
        check = inside.checking / steps / seconds
    in_bf16 = float(trainer.dtype == torch.bfloat16)
    return {"seconds": seconds, "overhead": overhead, "check": check, "bf16": in_bf16, **memory(device)}


class Clock:
    """Adds up the time within forward, backward and optimiser (on a CPU, where calls return when they are done)."""

    def __init__(self, trainer: Any, torch: Any) -> None:
        self.seconds = self.checking = 0.0
        method = trainer.method
        torch.nn.utils.get_total_norm = self.timed(torch.nn.utils.get_total_norm, "checking")
        for owner, name in [(method, "shared"), (method, "losses"), (torch.Tensor, "backward")]:
            setattr(owner, name, self.timed(getattr(owner, name)))
        for optimiser in trainer.optimisers.values():
            optimiser.optimiser.step = self.timed(optimiser.optimiser.step)

    def timed(self, function: Callable[..., Any], clock: str = "seconds") -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                setattr(self, clock, getattr(self, clock) + time.perf_counter() - begun)

        return call

    def clear(self) -> None:
        self.seconds = self.checking = 0.0


def memory(device: str) -> dict[str, float]:
    import torch

    from translate.training.logging import memory_in_use

    return {"peak_gib": memory_in_use(torch.device(device))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--set", action="append", default=[], help="change a key of our config")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--row", choices=["plain", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row == "plain":
        print(json.dumps(plain(options.steps, options.device)))
        return
    if options.row == "ours":
        print(json.dumps(ours(options.steps, options.device, options.set)))
        return

    arguments = ["--steps", str(options.steps), "--device", options.device]
    arguments += [part for change in options.set for part in ("--set", change)]
    medians = in_turns(__file__, ["plain", "ours"], options.rounds, arguments)
    ratio = medians["plain"]["seconds"] / medians["ours"]["seconds"]
    if options.json:
        print(json.dumps({"ratio": ratio, **medians}))
        return
    for role, values in medians.items():
        speed = f"{values['seconds'] * 1e3:8.1f} ms a step, {1 / values['seconds']:5.2f} images/s"
        print(f"{role:<6} {speed}, {values['peak_gib']:.2f} GiB peak")
    print(f"ratio  {ratio:8.2f}x   (ours in {'bf16' if medians['ours']['bf16'] else 'another precision'})")
    share, check = (100 * medians["ours"][key] for key in ("overhead", "check"))
    print(f"overhead of the trainer {share:.2f} % of our step; {check:.2f} % is the check that gradients are numbers")


if __name__ == "__main__":
    main()
