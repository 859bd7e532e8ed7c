from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from translate.networks.layers import InitialisationSettings, NormName, needs_bias, norm_layer, upsample


@pytest.mark.parametrize(
    ("name", "kind", "bias"),
    [
        ("batch", nn.BatchNorm2d, False),
        ("instance", nn.InstanceNorm2d, True),
        ("group", nn.GroupNorm, False),
        ("none", nn.Identity, True),
    ],
)
def test_norm_keeps_the_shape_and_knows_its_bias(name: NormName, kind: type[nn.Module], bias: bool) -> None:
    norm = norm_layer(name, 64)
    assert type(norm) is kind
    assert norm(torch.randn(2, 64, 4, 4)).shape == (2, 64, 4, 4)
    assert needs_bias(name) is bias
    # A norm with weights of its own makes a convolution's bias redundant.
    assert bias is not any(parameter.requires_grad for parameter in norm.parameters())


def test_instance_norm_is_the_same_in_training_and_evaluation() -> None:
    norm, x = norm_layer("instance", 3), torch.randn(2, 3, 8, 8)
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert not norm.state_dict()


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 24), (8, 8), (7, 7), (37, 1), (66, 22)])
def test_group_norm_takes_the_largest_divisor(channels: int, groups: int) -> None:
    norm = norm_layer("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("kind", ["transposed", "resize"])
def test_upsampling_doubles(kind: Literal["transposed", "resize"], kernel: Literal[3, 4]) -> None:
    assert upsample(kind, 6, 4, kernel=kernel, bias=False)(torch.randn(1, 6, 3, 5)).shape == (1, 4, 6, 10)


def test_resize_upsampling_leaves_no_checkerboard() -> None:
    torch.manual_seed(0)
    flat = torch.ones(1, 6, 6, 6)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    # A constant stays constant away from the border; a transposed convolution prints its kernel on it.
    assert upsample("resize", 6, 1, kernel=4, bias=True)(flat)[inner].std() < 1e-6
    assert upsample("transposed", 6, 1, kernel=4, bias=True)(flat)[inner].std() > 1e-3


FAN = 64 * 9  # of both sides of the square convolution below


@pytest.mark.parametrize(
    ("kind", "deviation"),
    [
        ("normal", 0.02),
        ("xavier", 0.02 * math.sqrt(2 / (2 * FAN))),
        ("kaiming", math.sqrt(2 / FAN)),
        ("orthogonal", 0.02 / math.sqrt(FAN)),  # 64 orthonormal rows of length FAN, scaled
    ],
)
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_initialisation_draws_the_deviation_of_its_formula(
    kind: Literal["normal", "xavier", "kaiming", "orthogonal"], deviation: float, layer: type[nn.Conv2d]
) -> None:
    torch.manual_seed(0)
    convolution = layer(64, 64, 3)
    InitialisationSettings(kind=kind).apply(convolution)
    assert convolution.weight.std().item() == pytest.approx(deviation, rel=0.03)
    assert convolution.bias is not None
    assert not convolution.bias.any()
    if kind == "orthogonal":
        rows = convolution.weight.flatten(1) / 0.02
        torch.testing.assert_close(rows @ rows.T, torch.eye(64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4096), nn.GroupNorm(32, 4096)])
def test_norm_weights_are_drawn_around_one(norm: nn.BatchNorm2d | nn.GroupNorm) -> None:
    torch.manual_seed(0)
    InitialisationSettings(gain=0.05).apply(norm)
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.005)
    assert norm.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert not norm.bias.any()


def test_initialisation_passes_norms_without_weights() -> None:
    InitialisationSettings().apply(nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4, affine=False)))


def test_initialisation_reaches_the_weight_below_spectral_norm() -> None:
    torch.manual_seed(0)
    convolution = spectral_norm(nn.Conv2d(16, 32, 3))
    InitialisationSettings().apply(convolution)
    original = convolution.parametrizations["weight"].original
    assert original.std().item() == pytest.approx(0.02, rel=0.05)
    # The vectors of the power iteration belong to the new weight, so a network is right from the start.
    singular = torch.linalg.svdvals(convolution.eval().weight.detach().flatten(1))
    assert singular[0].item() == pytest.approx(1, abs=0.05)


def test_initialisation_is_seeded() -> None:
    def drawn() -> torch.Tensor:
        torch.manual_seed(3)
        layer = nn.Linear(4, 4)
        InitialisationSettings().apply(layer)
        return layer.weight

    assert torch.equal(drawn(), drawn())
