"""Latents to their nearest codes, and the codes themselves: ours against the plain writing, in one run.

    python tools/bench_quantise.py [--latents 65536] [--codes 16384] [--width 8] [--rounds 3] [--device cuda] [--json]

Baseline "plain", as VQ-VAEs are commonly written: the matrix of all distances, z² + e² - 2 z·e, of N * K numbers;
argmin of its rows; a one-hot matrix, N * K again, times the codebook. Ours: `translate.quantisers.search.nearest` and
an embedding lookup. Both keep freed memory, as the trainer does; the first call, which must still get it, is shown
beside the second.

Rows are measured in turns, each in a process of its own; medians over the rounds. On a CPU times are processor time of
one thread, so that other work on the machine does not count. Peak memory is what the row adds to the process that has
latents, codes and torch in memory already (CUDA: to torch's). All rows must choose alike, but where two codes are
equally near within float32's rounding: `others` counts such choices against ours.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable

from rounds import in_turns

PLAIN, OURS = "plain", "ours"


def measure(row: str, options: argparse.Namespace) -> dict[str, float]:
    """One row, here and now."""
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from translate.devices import keep_freed_memory
    from translate.quantisers.search import nearest

    keep_freed_memory()
    torch.set_num_threads(1)
    cuda = options.device == "cuda"
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(options.latents, options.width, generator=generator).to(options.device)
    codebook = torch.randn(options.codes, options.width, generator=generator).to(options.device)

    def plain(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        distances = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.t()
        indices = distances.argmin(1)
        one_hot = torch.zeros(len(z), len(codebook), device=z.device).scatter_(1, indices[:, None], 1)
        return indices, one_hot @ codebook

    def ours(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        indices = nearest(z, codebook)
        return indices, F.embedding(indices, codebook)

    def memory() -> float:
        return torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() if cuda else time.process_time()

    run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = plain if row == PLAIN else ours
    with torch.no_grad():
        run(latents[:64], codebook[:64])  # loads the kernels
        before, begun = memory(), now()
        indices, codes = run(latents, codebook)
        first = now() - begun
        peak = memory() - before
        begun = now()
        run(latents, codebook)
        seconds = now() - begun
        assert torch.equal(codes, codebook[indices])
        others = 0 if row == OURS else int((indices != nearest(latents, codebook)).sum())
    return {"seconds": seconds, "first": first, "mib": peak / 2**20, "others": others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=65536)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options)))
        return

    sizes = {name: getattr(options, name) for name in ("latents", "codes", "width", "device")}
    arguments = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    found = in_turns(__file__, [PLAIN, OURS], options.rounds, arguments)
    ratios = {key: found[PLAIN][key] / found[OURS][key] for key in ("seconds", "mib")}
    if options.json:
        print(json.dumps({**sizes, "rows": found, "ratios": ratios}))
        return
    print(f"{options.latents} latents, {options.codes} codes of {options.width} numbers, {options.rounds} rounds")
    for row, values in found.items():
        times = f"{values['seconds'] * 1e3:9.0f} ms ({values['first'] * 1e3:.0f} the first time)"
        print(f"  {row:<6} {times} {values['mib']:9.1f} MiB at most   {values['others']:.0f} other choices")
    print(f"  ours is {ratios['seconds']:.1f} times as fast in 1/{ratios['mib']:.0f} of the memory")


if __name__ == "__main__":
    main()
