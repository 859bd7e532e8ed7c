"""Layers that torch is slow at on a CPU (2.15, measured by tools/bench_srgan.py): the same functions of the same
weights, computed in another way there. Elsewhere they are torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PReLU(nn.PReLU):
    """x where it is positive, else slope * x, with one learnt slope for all channels (He et al., arXiv 1502.01852).

    Torch's backward pass takes 50 times as long as its forward pass.
    """

    def __init__(self) -> None:
        super().__init__(num_parameters=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        made: Tensor = _OneSlope.apply(x, self.weight.to(x.dtype))
        return made


class _OneSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        (gradient,) = gradients
        passed = torch.ops.aten.threshold_backward(gradient, x, 0)  # where x > 0
        to_slope = (gradient * x.clamp(max=0)).sum(dtype=_wide(x))
        return torch.lerp(passed, gradient, slope), to_slope.to(slope.dtype).reshape(1)


class SubPixelConv2d(nn.Conv2d):
    """A 3x3 convolution to 4 * channels, then their shuffle to twice the height and width (Shi et al., arXiv
    1609.05158, equation 4): (N, channels, H, W) -> (N, channels, 2H, 2W).

    In channels_last the shuffle moves numbers one by one. Here the convolution's outputs are in the order that lets
    whole pixels move.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last) or self.bias is None:
            return F.pixel_shuffle(super().forward(x), 2)
        samples, channels, height, width = x.shape
        weight = self.weight.view(channels, 4, channels, 3, 3).transpose(0, 1).reshape(4 * channels, channels, 3, 3)
        bias = self.bias.view(channels, 4).transpose(0, 1).reshape(-1)
        made = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), bias, padding=1)
        pixels = made.permute(0, 2, 3, 1).reshape(samples, height, width, 2, 2, channels)
        shuffled = pixels.transpose(2, 3).reshape(samples, 2 * height, 2 * width, channels)
        return shuffled.permute(0, 3, 1, 2)


class NarrowConv2d(nn.Conv2d):
    """A convolution of stride 1 to a few channels, with an odd square kernel; zeros stand beyond the border.

    A CPU computes 16 channels at a time, so that to 3 of them costs as much as to 16. Here the kernel's k rows are
    channels of a convolution with k times as many, each 1 pixel high, whose results are added up one below the other.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or self.bias is None:
            return super().forward(x)
        out, channels, height, width = self.weight.shape
        kernels = self.weight.permute(2, 0, 1, 3).reshape(height * out, channels, 1, width)
        rows = F.conv2d(x, kernels, padding=(0, width // 2))  # (N, height * out, H, W)
        made: Tensor = _SumOfRows.apply(rows, height)
        return made + self.bias.to(made.dtype)[:, None, None]


class _SumOfRows(torch.autograd.Function):
    """(N, k * C, H, W) -> (N, C, H, W): the i-th C channels, moved up by i - k // 2 pixels, added up (in float32 at
    least)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> Tensor:
        ctx.count = count
        channels, height = rows.shape[1] // count, rows.shape[2]
        total = rows.new_zeros((rows.shape[0], channels, *rows.shape[2:]), dtype=_wide(rows))
        if rows.is_contiguous(memory_format=torch.channels_last):
            total = total.contiguous(memory_format=torch.channels_last)
        for number in range(count):
            source, target = _overlap(number - count // 2, height)
            total[:, :, target] += rows[:, number * channels : (number + 1) * channels, source]
        return total.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        samples, channels, height, width = gradient.shape
        last = gradient.is_contiguous(memory_format=torch.channels_last)
        rows = gradient.new_zeros((samples, ctx.count * channels, height, width))
        rows = rows.contiguous(memory_format=torch.channels_last) if last else rows
        for number in range(ctx.count):
            source, target = _overlap(number - ctx.count // 2, height)
            rows[:, number * channels : (number + 1) * channels, source] = gradient[:, :, target]
        return rows, None


def _overlap(shift: int, height: int) -> tuple[slice, slice]:
    """The rows of an image of this height that stay inside when it is moved up by `shift`, and where they end up."""
    left = max(0, height - abs(shift))
    return slice(max(0, shift), max(0, shift) + left), slice(max(0, -shift), max(0, -shift) + left)


def _wide(x: Tensor) -> torch.dtype:
    """The number format to add up many of x in."""
    return torch.promote_types(x.dtype, torch.float32)
