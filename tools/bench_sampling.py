"""Sampling an image of tokens: how much does the cache of keys and values save, how much decoding in a dozen steps?

Baseline, the plain writing (minGPT's): for each token all those before it pass through the transformer anew. Ours: each
token passes once, its keys and values are remembered (the same tokens come out, which is asserted); and a masked
transformer of the same size, which decides all tokens in 12 passes. Weights are random: the time does not depend on
them. One thread on a CPU; medians over the rounds, in which the rows take turns.

    python tools/bench_sampling.py [--grid 16] [--layers 8] [--width 512] [--heads 8] [--batch 1] [--source]
        [--rounds 3] [--device cpu] [--json]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable

import torch

from translate.networks.token_sampling import Sampled, SamplingSettings, sample_causal, sample_masked
from translate.networks.token_transformer import TokenTransformerSettings

CODES = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, default=16, help="side of the image in tokens")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--source", action="store_true", help="translate an image of as many tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    grid = (arguments.grid, arguments.grid)
    size = TokenTransformerSettings(layers=arguments.layers, heads=arguments.heads, width=arguments.width)
    source = torch.randint(CODES, (arguments.batch, *grid)) if arguments.source else None
    causal, masked = (
        size.build(CODES, grid, causal=kind, source=(CODES, grid) if arguments.source else None)
        .to(arguments.device)
        .eval()
        for kind in (True, False)
    )
    settings = SamplingSettings(top_k=100)
    given = (grid, settings, range(arguments.batch), source)
    rows: dict[str, Callable[[], Sampled]] = {
        "without a cache": functools.partial(sample_causal, causal, *given, cached=False),
        "with the cache": functools.partial(sample_causal, causal, *given),
        f"masked, {settings.steps} steps": functools.partial(sample_masked, masked, *given),
    }

    def now() -> float:
        if arguments.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    tokens, seconds = {}, {row: [] for row in rows}
    for number in range(arguments.rounds + 1):
        for row, sample in rows.items():
            begin = now()
            tokens[row] = sample().tokens
            if number:  # the first round warms up
                seconds[row].append(now() - begin)
    baseline, cached, _ = rows
    same = (tokens[baseline] == tokens[cached]).double().mean().item()
    assert arguments.device == "cuda" or same == 1  # there rounding (TF32 aside) may turn a token and all behind it
    medians = {row: statistics.median(times) for row, times in seconds.items()}
    ratios = {row: medians[baseline] / value for row, value in medians.items()}
    if arguments.json:
        print(json.dumps({"seconds": medians, "ratios": ratios, "same_tokens": same, **vars(arguments)}))
        return
    print(
        f"{grid[0]}x{grid[1]} tokens{' behind as many of a source' if arguments.source else ''}, "
        f"{size.layers} layers of {size.width}, batch {arguments.batch}, {arguments.device}, {arguments.rounds} rounds"
    )
    for row, value in medians.items():
        print(f"  {row:<20} {value:9.3f} s {ratios[row]:7.1f}x   {arguments.batch / value:8.2f} images/s")


if __name__ == "__main__":
    main()
