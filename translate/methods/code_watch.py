"""How a codebook fares in training: what an epoch uses of it, and a warning where that is little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from translate import distributed
from translate.methods.base import Summary
from translate.metrics.codebook import CodeUse

ENOUGH = 8
"""Tokens for each code from which on a share of codes used says something: were all codes equally likely, eight tokens
would miss e^-8, one in 3,000."""


class CodeWatch(nn.Module):
    """Counts the tokens of an epoch. Checkpoints have its counts: in floats, of which the trainer makes the mean over
    processes after each step. Each process's own would be lost, for a checkpoint is one process's.

    Args:
        codes: size of the codebook.
        least: a smaller share of codes used in an epoch is warned of, once.
        name: stands behind all that is logged, where there are several codebooks: `codebook_A/...`.
    """

    counts: Tensor
    told: Tensor

    def __init__(self, codes: int, least: float, name: str = "") -> None:
        super().__init__()
        self.least, self.name = least, f"codebook{name}"
        self.register_buffer("counts", torch.zeros(codes, dtype=torch.float64))
        self.register_buffer("told", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def add(self, tokens: Tensor) -> None:
        """Count tokens of any shape; nothing waits for the device (`torch.bincount` would, on CUDA)."""
        tokens = tokens.flatten()
        self.counts.scatter_add_(0, tokens, torch.ones_like(tokens, dtype=self.counts.dtype))

    def summary(self) -> Summary:
        """The epoch's share of codes used, its perplexity and the histogram of how often each code stood, 1 being as
        often as all alike; then counts anew. All processes call."""
        total = self.counts.clone()
        distributed.average([total])
        world_counts = (total * distributed.world()).round().to(torch.int64).cpu()
        self.counts.zero_()
        count = int(world_counts.sum())
        if not count:
            return Summary()
        use = CodeUse(len(world_counts))
        use.counts += world_counts
        numbers = {f"{self.name}/{name}": value for name, value in use.scores().items()}
        numbers[f"{self.name}/tokens for each code"] = count / len(world_counts)
        often = world_counts.double() * len(world_counts) / count
        return Summary(numbers, {f"{self.name}/frequency": often})

    def warnings(self, used: float | None, tokens: float | None) -> list[str]:
        """What to say of an epoch's share of codes used and of its tokens for each code."""
        if used is None or tokens is None or tokens < ENOUGH or used >= self.least or bool(self.told):
            return []
        self.told.fill_(True)
        return [
            f"{self.name}: just {used:.0%} of the codes were used in the last epoch: set the quantiser's restart, or "
            "narrow normalised codes (width: 8, normalise: true), or make it smaller"
        ]
