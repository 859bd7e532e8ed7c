from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu, relu

from translate.networks import UNetSettings, count_parameters
from translate.networks.layers import NormName, UpsamplingName
from translate.networks.unet import UNet


@pytest.mark.parametrize(("depth", "parameters"), [(8, 54_413_955), (7, 41_828_995)])
def test_parameters_are_those_of_the_reference(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(UNetSettings(depth=depth).build(3, 3)) == parameters


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize("depth", [2, 3, 5, 6])
def test_smallest_image_trains_at_any_depth(depth: int, norm: NormName, upsampling: UpsamplingName) -> None:
    torch.manual_seed(0)
    net = UNetSettings(depth=depth, width=4, norm=norm, upsampling=upsampling).build(1, 2)
    assert net.multiple == net.smallest == 2**depth
    assert net.scale == 1
    x = torch.randn(1, 1, net.smallest, 2 * net.multiple)
    y = net(x)
    assert y.shape == (1, 2, *x.shape[2:])
    assert y.abs().max() <= 1
    y.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_forward_is_the_papers_recursion() -> None:
    # As in the paper: an activation stands before its convolution, and skips carry what is not activated.
    depth = 4
    torch.manual_seed(0)
    net = UNetSettings(depth=depth, width=4, norm="none", initialisation={"kind": "kaiming"}).build(3, 3)
    downs = [layer for layer in net.downs.modules() if isinstance(layer, nn.Conv2d)]
    ups = [layer for layer in net.modules() if isinstance(layer, nn.ConvTranspose2d)]

    def inside(level: int, x: Tensor) -> Tensor:
        """What the block of this level makes of its input: down, everything below, up."""
        encoded = conv2d(
            leaky_relu(x, 0.2) if level else x, downs[level].weight, downs[level].bias, stride=2, padding=1
        )
        below = encoded if level == depth - 1 else torch.cat([encoded, inside(level + 1, encoded)], dim=1)
        up = ups[depth - 1 - level]
        return conv_transpose2d(relu(below), up.weight, up.bias, stride=2, padding=1)

    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net(x), torch.tanh(inside(0, x)))


@pytest.mark.parametrize(("depth", "count"), [(8, 3), (7, 2), (6, 1), (5, 0), (2, 0)])
def test_dropout_stands_in_the_inner_decoder(depth: int, count: int) -> None:
    with torch.device("meta"):
        net = UNetSettings(depth=depth, width=4).build(3, 3)
    dropped = [
        index for index, up in enumerate(net.ups) if any(isinstance(layer, nn.Dropout) for layer in up.modules())
    ]
    assert dropped == list(range(1, 1 + count))  # from the block above the bottleneck's on, as in the reference


def test_dropout_is_off_in_evaluation() -> None:
    torch.manual_seed(0)
    net: UNet = UNetSettings(depth=6, width=4).build(3, 3)
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_input_is_left_alone() -> None:
    x = torch.randn(1, 3, 16, 16)
    before = x.clone()
    UNetSettings(depth=4, width=4).build(3, 3)(x)
    assert torch.equal(x, before)
