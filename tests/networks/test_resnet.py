from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from translate.networks import ResNetSettings, count_parameters
from translate.networks.layers import NormName, UpsamplingName
from translate.networks.resnet import PaddingName, ResidualBlock


@pytest.mark.parametrize(("blocks", "parameters"), [(9, 11_378_179), (6, 7_837_699)])
def test_parameters_are_those_of_the_reference(blocks: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(ResNetSettings(blocks=blocks).build(3, 3)) == parameters


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("padding", ["reflect", "replicate", "zeros"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_smallest_image_trains(norm: NormName, padding: PaddingName, upsampling: UpsamplingName) -> None:
    torch.manual_seed(0)
    settings = ResNetSettings(blocks=1, width=4, norm=norm, padding=padding, upsampling=upsampling, dropout=0.5)
    net = settings.build(2, 1)
    x = torch.randn(1, 2, net.smallest, net.smallest + net.multiple)
    y = net(x)
    assert y.shape == (1, 1, 8, 12)
    assert y.abs().max() <= 1
    y.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_block_is_the_identity_and_two_reflected_convolutions() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(ResNetSettings(norm="none"), 4)
    first, second = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    x = torch.randn(1, 4, 6, 6)

    def reflected(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(pad(x, (1, 1, 1, 1), mode="reflect"), layer.weight, layer.bias)

    torch.testing.assert_close(block(x), x + reflected(second, torch.relu(reflected(first, x))))


def test_instance_norm_network_ignores_contrast_and_brightness() -> None:
    # The norm behind the first convolution takes out gain and offset, as reflection brings no zeros in.
    torch.manual_seed(0)
    net = ResNetSettings(blocks=1, width=8).build(1, 1)
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(net(3 * x + 2), net(x), atol=1e-2, rtol=0)
    assert (net(x.flip(-1)) - net(x)).abs().max() > 0.1


def test_dropout_once_per_block_and_only_if_asked() -> None:
    def dropouts(rate: float) -> int:
        net = ResNetSettings(blocks=3, width=4, dropout=rate).build(3, 3)
        return sum(isinstance(layer, nn.Dropout) for layer in net.modules())

    assert (dropouts(0.5), dropouts(0)) == (3, 0)
