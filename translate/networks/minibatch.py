"""What a critic can see of a whole minibatch, so that a generator that repeats itself is found out."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.settings import Settings


class MinibatchDeviation(nn.Module):
    """Appends one channel that says how much the examples of a group differ: (N, C, ...) -> (N, C + 1, ...).

    The standard deviation over the group of each channel and pixel, averaged over all of them: one number for each
    group. Groups are neighbours in the batch, so that the halves of a batch of real and fake images stay apart. A
    batch that `group` does not divide is cut into N // group groups whose sizes differ by one at most, none
    smaller than `group` unless the whole batch is. In float32.
    Source: Karras et al., arXiv 1710.10196, section 3; in groups of 4 Karras et al., arXiv 1912.04958.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        groups = max(1, len(x) // self.group)
        membership = torch.arange(len(x), device=x.device) * groups // len(x)  # (N,) non-decreasing group numbers
        with torch.autocast(x.device.type, enabled=False):
            flat = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
            member = membership == torch.arange(groups, device=x.device)[:, None]  # (groups, N)
            average = member.to(flat.dtype) / member.sum(1, keepdim=True)
            centred = flat - (average @ flat)[membership]
            # 1e-8 keeps the root's slope finite where all examples are equal (ProGAN's reference code).
            deviation = torch.sqrt(average @ centred.square() + 1e-8).mean(1)  # (groups,)
        statistic = deviation[membership].to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return torch.cat([x, statistic.expand(-1, 1, *x.shape[2:])], dim=1)


class MinibatchDiscriminationSettings(Settings):
    """Features that tell how near the other examples of the minibatch are (Salimans et al., arXiv 1606.03498)."""

    kernels: int = Field(default=100, ge=1)
    """Features appended (B in the paper)."""
    dimensions: int = Field(default=5, ge=1)
    """Width of the vector in which each kernel measures distances (C in the paper)."""


class MinibatchDiscrimination(nn.Module):
    """Appends each example's nearness to all of the minibatch: (N, width) -> (N, width + kernels).

    M_i = T f(x_i) of (kernels, dimensions); o(x_i)_b = sum over j of exp(-|M_ib - M_jb|_1), the example itself
    counted (a constant 1). In float32. Defaults and formula: Salimans et al., arXiv 1606.03498, section 3.2.
    """

    def __init__(self, width: int, kernels: int = 100, dimensions: int = 5) -> None:
        super().__init__()
        self.kernels, self.dimensions = kernels, dimensions
        self.project = nn.Linear(width, kernels * dimensions, bias=False)  # T

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(x)
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        rows = projected.view(-1, self.kernels, self.dimensions)  # M
        distance = (rows[:, None] - rows[None]).abs().sum(3)  # (N, N, kernels)
        return torch.cat([x, torch.exp(-distance).sum(1).to(x.dtype)], dim=1)
