from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from translate.errors import UserError
from translate.methods.base import check_sizes
from translate.networks import DiscriminatorSettings, UNetDiscriminatorSettings, count_parameters


def test_parameters_are_those_of_the_reference() -> None:
    with torch.device("meta"):
        assert count_parameters(UNetDiscriminatorSettings().build(3)) == 4_376_897


def test_layers_are_named_as_the_reference_names_them_and_eight_are_bounded() -> None:
    torch.manual_seed(0)
    net = UNetDiscriminatorSettings(width=8).build(3).eval()
    layers = dict(net.named_children())
    assert list(layers) == [f"conv{i}" for i in range(10)]
    assert [parametrize.is_parametrized(layer) for layer in layers.values()] == [False, *[True] * 8, False]
    assert [layer.bias is not None for layer in layers.values()] == [True, *[False] * 8, True]
    for layer in list(layers.values())[1:-1]:
        # By 15 steps of the power method, as in the test of the patch discriminator.
        assert torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item() == pytest.approx(1, abs=0.1)


def doubled(x: Tensor) -> Tensor:
    """Bilinear: a quarter of one neighbour and three of the pixel itself, the border repeated."""
    for axis in (2, 3):
        size = x.shape[axis]
        before = x.index_select(axis, torch.arange(size).sub(1).clamp(min=0))
        after = x.index_select(axis, torch.arange(size).add(1).clamp(max=size - 1))
        pairs = torch.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
        x = pairs.flatten(axis, axis + 1)
    return x


def plain(x: Tensor, weights: list[Tensor], first: Tensor, last: Tensor) -> list[Tensor]:
    """The reference's network, line by line."""

    def leaky(x: Tensor) -> Tensor:
        return torch.maximum(x, 0.2 * x)

    x0 = leaky(F.conv2d(x, weights[0], first, padding=1))
    x1, x2, x3 = x0, x0, x0
    x1 = leaky(F.conv2d(x0, weights[1], stride=2, padding=1))
    x2 = leaky(F.conv2d(x1, weights[2], stride=2, padding=1))
    x3 = leaky(F.conv2d(x2, weights[3], stride=2, padding=1))
    x4 = leaky(F.conv2d(doubled(x3), weights[4], padding=1)) + x2
    x5 = leaky(F.conv2d(doubled(x4), weights[5], padding=1)) + x1
    x6 = leaky(F.conv2d(doubled(x5), weights[6], padding=1)) + x0
    x7 = leaky(F.conv2d(x6, weights[7], padding=1))
    x8 = leaky(F.conv2d(x7, weights[8], padding=1))
    return [x0, x1, x2, x3, x4, x5, x6, x7, x8, F.conv2d(x8, weights[9], last, padding=1)]


def test_is_the_reference_written_plainly() -> None:
    torch.manual_seed(0)
    net = UNetDiscriminatorSettings(width=4).build(2).double().eval()
    layers = [layer for layer in net.children() if isinstance(layer, nn.Conv2d)]
    x = torch.randn(2, 2, 24, 16, dtype=torch.float64)
    features = net.features(x)
    assert net.conv0.bias is not None and net.conv9.bias is not None
    expected = plain(x, [layer.weight for layer in layers], net.conv0.bias, net.conv9.bias)
    assert len(features) == 10 and features[-1].shape == (2, 1, 24, 16)
    for ours, theirs in zip(features, expected, strict=True):
        # The same sums in float64, in another order.
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert torch.equal(net(x), features[-1])


def test_smallest_image_trains_and_others_are_refused_in_a_line() -> None:
    torch.manual_seed(0)
    net = UNetDiscriminatorSettings(width=2).build(3)
    logits = net(torch.randn(1, 3, net.smallest, net.smallest + net.multiple))
    assert logits.shape == (1, 1, 8, 16)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    for size in (4, 12):
        batch = {"A": torch.randn(1, 3, size, size)}
        with pytest.raises(RuntimeError):
            net(batch["A"])
        with pytest.raises(UserError, match=f"{size}x{size} do not fit the discriminator, which takes multiples of 8"):
            check_sizes(batch, {"discriminator": ("A", net)})


def test_logits_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    net = UNetDiscriminatorSettings(width=4).build(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = net.features(torch.randn(2, 3, 16, 16))
    assert features[0].dtype == torch.bfloat16 and features[-1].dtype == torch.float32
    torch.testing.assert_close(features[-1], net.conv9(features[-2].float()))


def test_is_one_of_the_discriminators() -> None:
    discriminators: TypeAdapter[DiscriminatorSettings] = TypeAdapter(DiscriminatorSettings)
    settings = discriminators.validate_python({"kind": "unet", "width": 32})
    assert settings == UNetDiscriminatorSettings(width=32)
