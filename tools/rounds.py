"""What the benchmarks share: rows measured in turns, each in a process of its own, and the time of a step.

So neither row's allocator state helps another, and all see the same weather.
"""

from __future__ import annotations

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
