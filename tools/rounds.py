"""What the benchmarks share: rows measured in turns, each in a process of its own, and the time of a step.

So neither row's allocator state helps another, and all see the same weather.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def in_turns(
    script: str, rows: Sequence[str], rounds: int, arguments: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Medians over the rounds of what `script --row ROW arguments...` prints as JSON in its last line."""
    found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            command = [sys.executable, script, "--row", row, *arguments]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[row].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        row: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for row, measured in found.items()
    }


def time_steps(
    step: Callable[[Any], object],
    batches: Sequence[Any],
    device: str,
    *,
    by_the_clock: bool = False,
    begin: Callable[[], object] = lambda: None,
) -> float:
    """Mean seconds of a step after two for warming up: on a CPU processor time of all threads, elsewhere wall time.

    Args:
        by_the_clock: wall time on a CPU as well.
        begin: called when the warming up is over.
    """
    import torch

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if by_the_clock or device == "cuda" else time.process_time()

    for number in range(2):
        step(batches[number % len(batches)])
    begin()
    begun = now()
    for batch in batches:
        step(batch)
    return (now() - begun) / len(batches)


def compare_steps(
    script: str,
    doc: str | None,
    rows: Sequence[str],
    measure: Callable[[str, argparse.Namespace], dict[str, float]],
    *,
    title: str,
    size: tuple[str, int],
    steps: int,
) -> None:
    """The command line of a benchmark of training steps, and its table.

    Args:
        rows: what is measured in turns; the baseline first.
        measure: a row and the options -> its `seconds` a step and peak memory `gib`.
        title: with the options' names in braces.
        size: name and default of the option that says how large a step is.
        steps: as many in a round by default.
    """
    name, default = size
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--set", action="append", default=[], help="change a key of the config")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options)))
        return

    arguments = ["--steps", str(options.steps), f"--{name}", str(getattr(options, name)), "--device", options.device]
    arguments += [part for change in options.set for part in ("--set", change)]
    found = in_turns(script, rows, options.rounds, arguments)
    if options.json:
        print(json.dumps({name: getattr(options, name), "rows": found}))
        return
    print(title.format(**vars(options)) + f", {options.rounds} rounds of {options.steps} steps")
    for row, values in found.items():
        ratio = found[rows[0]]["seconds"] / values["seconds"]
        print(f"  {row:<26} {values['seconds'] * 1e3:9.0f} ms a step {ratio:6.2f}x   {values['gib']:5.2f} GiB peak")


def pair_batches(size: int, count: int) -> list[dict[str, Any]]:
    """Batches of one image of each side, A and B, as a loader gives them: uint8 NHWC, random."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (1, size, size, 3)
    return [
        {side: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for side in "AB"}
        | {"name": [str(number)]}
        for number in range(count)
    ]
