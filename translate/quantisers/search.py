"""The nearest code of each latent, in memory that grows with neither their number nor that of the codes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from translate.devices import exact_float32

CPU_SCORES = 1 << 19
"""Scores that stand in memory at once on a CPU: 2 MiB, which stay in its cache. For 16,384 codes of 8 numbers (one core
of an AMD EPYC) 2^18 and 2^20 take a tenth longer or more, 2^17 and 2^21 half as long again: there each product has too
few columns, here the scores travel to main memory and back."""
GPU_SCORES = 1 << 26
"""Elsewhere: 256 MiB, so that what starts a kernel does not count."""
CPU_CODES, GPU_CODES = 1 << 12, 1 << 16
"""And the most codes of which these are. With 2^14 on a CPU codes of 8 numbers gain a third, those of 64 lose it."""


@torch.no_grad()
def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each latent by Euclidean distance; of equally near ones the first.

    The nearest code e has the greatest score z·e - |e|²/2, which is one matrix product where each latent ends in 1 and
    each code in -|e|²/2. To keep track of places costs a reduction ten times what the greatest value alone does (torch
    on a CPU), so each group of codes, about the root of their number, first gives its greatest score; which group, and
    which of its codes, then is a matter of few numbers.

    Args:
        latents: (N, d), any float type; computed in float32, outside autocast and without TF32.
        codebook: (K, d), likewise.

    Returns:
        (N,), int64, in [0, K). Of a latent that is no number it is any of these.
    """
    with exact_float32(latents.device):
        return _nearest(latents.float(), codebook.float())


def _nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    count, size, device = len(latents), len(codebook), latents.device
    on_cpu = device.type == "cpu"
    chunk = min(size, CPU_CODES if on_cpu else GPU_CODES)
    group = 1 << (chunk.bit_length() // 2)  # a power of two near the chunk's root
    chunk = -(-chunk // group) * group
    step = max(1, (CPU_SCORES if on_cpu else GPU_SCORES) // chunk)

    codes = F.pad(torch.cat([codebook, codebook.square().sum(1, keepdim=True) / -2], 1), (0, 0, 0, -size % group))
    codes[size:] = codes[size - 1]  # whole groups: the last code again, which comes first itself
    points = F.pad(latents, (0, 1), value=1.0).t()
    scores = codes.new_empty(chunk * min(step, count))  # one place for all: fresh memory costs page faults
    indices = torch.empty(count, dtype=torch.int64, device=device)
    for begin in range(0, count, step):
        part = points[:, begin : begin + step]
        width = part.shape[1]
        for first in range(0, len(codes), chunk):
            some = codes[first : first + chunk]
            grouped = torch.mm(some, part, out=scores[: len(some) * width].view(len(some), width))
            grouped = grouped.view(-1, group, width)
            best, of_groups = _first_greatest(grouped.amax(1))
            inside = grouped.gather(0, of_groups.expand(1, group, width))[0]
            found = first + of_groups * group + _first_greatest(inside)[1]
            if first == 0:
                greatest, place = best, found
            else:
                place = torch.where(best > greatest, found, place)
                greatest = torch.maximum(best, greatest)
        indices[begin : begin + step] = place
    return indices.clamp_(max=size - 1)


def _first_greatest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest of each column of (R, n), and the first row where it stands (the last, if none does), as (n,)."""
    greatest = x.amax(0)
    rows = torch.arange(len(x), device=x.device)[:, None]
    return greatest, torch.where(x == greatest, rows, len(x) - 1).amin(0)
