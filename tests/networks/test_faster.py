"""Layers that compute torch's functions in another way on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from translate.networks.faster import NarrowConv2d, PReLU, SubPixelConv2d


def gradients(layer: nn.Module, x: Tensor, incoming: Tensor) -> tuple[Tensor, ...]:
    """The output, and what arrives at the input and at each weight."""
    x = x.clone().requires_grad_()
    made = layer(x)
    return (made.detach(), *torch.autograd.grad(made, [x, *layer.parameters()], incoming))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("slope", [0.25, -0.5, 1.5])
def test_prelu_is_torch_s(slope: float, last: bool) -> None:
    torch.manual_seed(0)
    x, incoming = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    x[0, 0, 0, :3] = 0  # where the two slopes meet
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    ours, theirs = PReLU().double(), nn.PReLU().double()
    for layer in (ours, theirs):
        nn.init.constant_(layer.weight, slope)
    for found, expected in zip(gradients(ours, x, incoming), gradients(theirs, x, incoming), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_prelu_s_second_derivative_is_right() -> None:
    torch.manual_seed(0)
    layer = PReLU().double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 4), (12, 13)])
@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_a_narrow_convolution_is_torch_s(kernel: int, size: tuple[int, int], last: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    incoming = torch.randn(2, 3, *size, dtype=torch.float64)
    if last:
        x, incoming = (t.contiguous(memory_format=torch.channels_last) for t in (x, incoming))
    ours = NarrowConv2d(5, 3, kernel).double()
    theirs = nn.Conv2d(5, 3, kernel, padding=kernel // 2).double()
    theirs.load_state_dict(ours.state_dict())
    for found, expected in zip(gradients(ours, x, incoming), gradients(theirs, x, incoming), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("last", [False, True])
def test_a_sub_pixel_convolution_is_torch_s(last: bool) -> None:
    torch.manual_seed(0)
    x, incoming = torch.randn(2, 5, 4, 7, dtype=torch.float64), torch.randn(2, 5, 8, 14, dtype=torch.float64)
    if last:
        x, incoming = (t.contiguous(memory_format=torch.channels_last) for t in (x, incoming))
    ours, convolution = SubPixelConv2d(5).double(), nn.Conv2d(5, 20, 3, padding=1).double()
    convolution.load_state_dict(ours.state_dict())
    theirs = nn.Sequential(convolution, nn.PixelShuffle(2))
    for found, expected in zip(gradients(ours, x, incoming), gradients(theirs, x, incoming), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
