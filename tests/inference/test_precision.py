"""Networks rewritten for running: the same functions, which double precision shows to its last digits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from translate.inference.precision import (
    SteadyConvolution,
    before_shuffle,
    in_torch_s_layers,
    steady,
    streamlined,
)
from translate.networks import MSRResNetSettings, RRDBSettings, SRResNetSettings, UNetSettings

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def drawn(network: nn.Module) -> nn.Module:
    """In eval mode and frozen, in float64; weights, slopes and statistics that are no zeros and ones."""
    torch.manual_seed(0)
    network = network.double().eval().requires_grad_(False)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(0.1, 0.2)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
            layer.running_var.abs_().add_(0.3)
    return network


def same(network: nn.Module, rewrite: Callable[[nn.Module], nn.Module], channels: int = 3) -> nn.Module:
    """Rewrites a copy, and compares what both make; the copy."""
    made = rewrite(copy.deepcopy(network))
    x = torch.randn(2, channels, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(made(x.clone()), network(x.clone()), **EXACT)
    return made


def kinds(network: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in network.modules() if not list(layer.children())]


@pytest.mark.parametrize("norm", ["batch", "none", "instance"])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_srresnet_does_the_same_with_fewer_layers(norm: str, scale: int) -> None:
    network = drawn(SRResNetSettings(blocks=2, width=6, norm=norm).build(3, 3, scale))
    plain = same(network, in_torch_s_layers)
    made = kinds(same(plain, streamlined))
    assert "BatchNorm2d" not in made and made.count("InstanceNorm") == 5 * (norm == "instance")
    # The ones right behind convolutions and shuffles: head, blocks and doublings.
    doublings = {1: 0, 2: 1, 4: 2}[scale]
    in_place = 1 + 2 * (norm != "instance") + doublings
    assert made.count("LeakyReLU") == in_place and made.count("PReLU") == 3 + doublings - in_place
    assert made.count("PixelShuffle") == doublings


def test_the_last_layer_moves_before_its_shuffle() -> None:
    network = drawn(SRResNetSettings(blocks=1, width=6).build(3, 3, 2))
    made = same(network, lambda one: streamlined(in_torch_s_layers(one)))
    assert made.tail[0].weight.shape == (12, 24, 5, 5)  # 9 x 9 from 6 channels to 3, at half the size


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 7), (9, 9), (1, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_before_the_shuffle(kernel: tuple[int, int], factor: int, bias: bool) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2)
    layer = drawn(nn.Conv2d(2, 3, kernel, padding=padding, bias=bias))
    shuffle = nn.PixelShuffle(factor)
    x = torch.randn(2, 2 * factor**2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(shuffle(before_shuffle(layer, factor)(x)), layer(shuffle(x)), **EXACT)


@pytest.mark.parametrize(
    "network",
    [
        MSRResNetSettings(blocks=1, width=4).build(3, 3, 2),
        RRDBSettings(blocks=1, width=4, growth=2).build(3, 3, 2),
        UNetSettings(depth=2, width=4).build(3, 3),
    ],
    ids=["msrresnet", "rrdb", "unet"],
)
def test_other_networks_do_the_same(network: nn.Module) -> None:
    made = kinds(same(drawn(network), streamlined))
    assert "BatchNorm2d" not in made or "ConvTranspose2d" in made


class Branching(nn.Module):
    """What is used twice must be neither overwritten nor folded away, nor what is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.identity, self.slope = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Identity(),
            nn.PReLU(),
        )
        self.twice, self.after = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.up, self.shuffle, self.again, self.last = (
            nn.Conv2d(8, 8, 1),
            nn.PixelShuffle(2),
            nn.PReLU(),
            nn.Conv2d(2, 3, 5, padding=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept = self.first(x)
        x = self.norm(kept) + self.slope(self.identity(kept)) + kept
        x = self.after(self.twice(self.twice(x)))
        up = self.up(x)
        return self.last(self.again(self.shuffle(up))) + up.mean()


def test_what_is_used_twice_stays() -> None:
    made = kinds(same(drawn(Branching()), streamlined))
    assert made.count("BatchNorm2d") == 2 and made.count("PReLU") == 1  # the one behind the shuffle's own map is free
    assert made.count("PixelShuffle") == 1 and "Identity" in made


def test_a_norm_of_the_image_s_own_statistics_stays() -> None:
    """The paper's protocol: batch norm without running statistics."""
    network = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    assert "BatchNorm2d" in kinds(same(network, streamlined))


def test_what_cannot_be_traced_stays() -> None:
    class Deciding(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.mean() > 0 else -x

    network = drawn(Deciding(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)))
    assert kinds(same(network, streamlined)) == ["Conv2d", "BatchNorm2d"]


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"padding": (1, 2)}, {"dilation": 2}, {"groups": 3}, {"bias": False}]
)
def test_a_steady_convolution_is_a_convolution(options: dict[str, object]) -> None:
    """In float32, whose sums of 27 products differ by some 1e-6."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 6, 3, **options).requires_grad_(False)
    made = steady(nn.Sequential(layer), torch.float32)[0]
    assert isinstance(made, SteadyConvolution)
    x = torch.randn(2, 3, 11, 12)
    torch.testing.assert_close(made(x), layer(x), rtol=1e-5, atol=1e-5)


def test_convolutions_of_another_kind_are_left_alone() -> None:
    class Special(nn.Conv2d):
        """Its forward pass may do anything."""

    network = nn.Sequential(Special(3, 3, 3), nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"))
    assert kinds(steady(network, torch.float32)) == ["Special", "Conv2d"]
    assert kinds(steady(nn.Sequential(nn.Conv2d(3, 3, 3)), torch.float16)) == ["Conv2d"]
