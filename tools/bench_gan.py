"""Training step of DCGAN-64 and of SNGAN's ResNet-32: ours against a straightforward loop, in one run.

    python tools/bench_gan.py [--case dcgan-64] [--case sngan-32] [--case lazy] [--rounds 3] [--steps 4] [--json]

Baseline "plain": the same networks in eager float32, NCHW; algorithm 1 of Goodfellow et al. 2014 as it is written, with
new latents (so a new fake) for the generator's move; two separate passes of the discriminator; `torch.optim.Adam`
neither fused nor foreach; `.item()` of each loss. "plain, one fake" passes the discriminator's fake on to the generator
instead, as ours does. Ours: Trainer.step on the shipped config, batches ready as uint8 on both sides, in the precision
that `auto` takes and in others, with and without channels_last. One move of the discriminator to one of the generator.

`lazy` is the price of R1 on DCGAN-64 without norm layers: none, at each step, at every 16th (mean over 16 steps).

Rows are measured in turns (rounds.py); times are medians over the rounds. On a CPU they are processor time of one
thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rounds import in_turns, time_steps


class Case(NamedTuple):
    """A config, its pictures, and how many in a step."""

    config: str
    size: int
    batch: int
    changes: list[str]
    steps: int = 1
    """Measured steps are a multiple of it."""


# R1 wants a critic without batch norm (translate/losses/penalties.py).
_LAZY = ["method.generator.norm=none", "method.discriminator.norm=none"]

CASES = {
    "dcgan-64": Case("dcgan", 64, 64, []),
    "sngan-32": Case("sngan", 32, 16, ["method.discriminator_steps=1"]),
    "lazy": Case("dcgan", 64, 16, _LAZY, steps=16),
}

PLAIN = ["plain", "plain, one fake"]
OURS = {
    "ours, auto": [],
    "ours, bf16": ["training.precision=bf16", "training.channels_last=false"],
    "ours, bf16, channels_last": ["training.precision=bf16", "training.channels_last=true"],
    "ours, fp32": ["training.precision=fp32", "training.channels_last=false"],
    "ours, fp32, channels_last": ["training.precision=fp32", "training.channels_last=true"],
}
LAZY = {
    "ours, no penalty": [],
    "ours, r1": ["method.penalties=[{kind: r1, weight: 5}]"],
    "ours, r1 every 16": ["method.penalties=[{kind: r1, weight: 5, every: 16}]"],
}
ROWS = {"dcgan-64": OURS, "sngan-32": OURS, "lazy": LAZY}


def make_batches(case: Case, count: int) -> list[dict[str, Any]]:
    """Batches as a loader gives them: uint8 NHWC."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.size, case.size, 3)
    names = [str(number) for number in range(case.batch)]
    return [
        {"image": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), "name": names}
        for _ in range(count)
    ]


def make_trainer(case: Case, folder: Path, device: str, changes: list[str]) -> Any:
    """A trainer of the case's config at the door of its first step."""
    import numpy as np

    from translate import config
    from translate.data.images import write_image
    from translate.training.trainer import Silent, Trainer

    write_image(folder / "train" / "0.png", np.zeros((case.size, case.size, 3), np.uint8))
    fixed = [
        f"data.root={folder}",
        "data.validation=null",
        f"training.batch_size={case.batch}",
        f"training.device={device}",
    ]
    trainer = Trainer(config.load(case.config, [*fixed, *case.changes, *changes]), Silent())
    trainer._enter_stage(0)
    return trainer


def plain(case: Case, steps: int, device: str, *, one_fake: bool) -> dict[str, float]:
    """The loop that one would write on an afternoon."""
    import torch
    from torch.nn import functional as F

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train").mkdir()
        # The networks alone: same architecture, same first weights.
        trainer = make_trainer(case, Path(folder), device, ["training.channels_last=false"])
    players, width = trainer.method.players, trainer.method.latent.width
    generator, discriminator = players["generator"], players["discriminator"]
    hinge = case.config == "sngan"
    chosen = trainer.stages[0].optimiser
    rates = {"lr": chosen.lr, "betas": tuple(chosen.model_extra["betas"]), "fused": False, "foreach": False}
    adam_g = torch.optim.Adam(generator.parameters(), **rates)
    adam_d = torch.optim.Adam(discriminator.parameters(), **rates)

    def loss_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        if hinge:
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        bce = F.binary_cross_entropy_with_logits
        return bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))

    def loss_g(fake: torch.Tensor) -> torch.Tensor:
        return -fake.mean() if hinge else F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))

    def draw(count: int) -> torch.Tensor:
        return torch.randn(count, width, device=device)

    def step(batch: dict[str, Any]) -> None:
        real = batch["image"].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        fake = generator(draw(len(real)))
        discriminator.requires_grad_(True)
        adam_d.zero_grad()
        d = loss_d(discriminator(real), discriminator(fake.detach()))
        d.backward()
        adam_d.step()
        d.item()
        if not one_fake:
            fake = generator(draw(len(real)))
        discriminator.requires_grad_(False)
        adam_g.zero_grad()
        g = loss_g(discriminator(fake))
        g.backward()
        adam_g.step()
        g.item()

    return {"seconds": time_steps(step, make_batches(case, steps), device)}


def ours(case: Case, steps: int, device: str, changes: list[str]) -> dict[str, float]:
    """Trainer.step on the shipped config."""
    import torch

    from translate.devices import keep_freed_memory

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train").mkdir()
        trainer = make_trainer(case, Path(folder), device, changes)

    def step(batch: dict[str, Any]) -> None:
        trainer.step([trainer._to_device(batch)])

    seconds = time_steps(step, make_batches(case, steps), device)
    return {"seconds": seconds, "bf16": float(trainer.dtype == torch.bfloat16)}


def measure(name: str, row: str, steps: int, device: str) -> dict[str, float]:
    """One row of a case, here and now."""
    import torch

    torch.set_num_threads(1)
    case = CASES[name]
    steps = -(-steps // case.steps) * case.steps
    if row in PLAIN:
        return plain(case, steps, device, one_fake=row != "plain")
    return ours(case, steps, device, ROWS[name][row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="which; all of them without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.case[0], options.row, options.steps, options.device)))
        return

    for name in options.case or CASES:
        rows = [*PLAIN, *OURS] if ROWS[name] is OURS else list(ROWS[name])
        arguments = ["--case", name, "--steps", str(options.steps), "--device", options.device]
        found = in_turns(__file__, rows, options.rounds, arguments)
        report(name, {row: values["seconds"] for row, values in found.items()}, options)
        if "ours, auto" in found and not options.json:
            print("auto is bf16 here" if found["ours, auto"]["bf16"] else "auto is no bf16 here")


def report(name: str, seconds: dict[str, float], options: argparse.Namespace) -> None:
    """Milliseconds a step, and against the baselines: how many times as fast."""
    baselines = PLAIN if "plain" in seconds else ["ours, r1"]
    if options.json:
        print(json.dumps({"case": name, "batch": CASES[name].batch, "seconds": seconds}))
        return
    print(f"{name}, batch {CASES[name].batch}, {options.rounds} rounds of {options.steps} steps or more")
    for row, value in seconds.items():
        ratios = "  ".join(f"{seconds[baseline] / value:5.2f}x of '{baseline}'" for baseline in baselines)
        print(f"  {row:<26} {value * 1e3:9.1f} ms a step   {ratios}")


if __name__ == "__main__":
    main()
