from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from translate.errors import UserError
from translate.networks.layers import (
    Blur,
    InitialisationSettings,
    InstanceNorm,
    NormName,
    UpsamplingName,
    add_spectral_norm,
    needs_bias,
    norm_layer,
    square_side,
    upsample,
)


@pytest.mark.parametrize(
    ("name", "kind", "bias"),
    [
        ("batch", nn.BatchNorm2d, False),
        ("instance", InstanceNorm, True),
        ("group", nn.GroupNorm, False),
        ("layer", nn.GroupNorm, False),
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


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gradient_format", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_and_its_gradient_are_the_formula_s(
    count: int, x_format: torch.memory_format, gradient_format: torch.memory_format
) -> None:
    # torch 2.15's own is wrong by as much as the gradient itself for one image and a gradient in channels_last.
    torch.manual_seed(0)
    x = torch.randn(count, 6, 5, 4).contiguous(memory_format=x_format).requires_grad_()
    gradient = torch.randn(count, 6, 5, 4).contiguous(memory_format=gradient_format)
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    wanted = centred / (centred.square().mean(dim=(2, 3), keepdim=True) + 1e-5).sqrt()
    found = norm_layer("instance", 6)(x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, x, gradient), torch.autograd.grad(wanted, x, gradient))


def test_instance_norm_refuses_a_lone_pixel() -> None:
    with pytest.raises(ValueError, match="more than one pixel"):
        norm_layer("instance", 3)(torch.randn(2, 3, 1, 1))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 24), (8, 8), (7, 7), (37, 1), (66, 22)])
def test_group_norm_takes_the_largest_divisor(channels: int, groups: int) -> None:
    norm = norm_layer("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_layer_norm_is_over_all_of_an_example() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 4) * 3 + 1
    torch.testing.assert_close(norm_layer("layer", 6)(x), functional.layer_norm(x, x.shape[1:]))


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("kind", ["transposed", "resize", "anti-aliased"])
def test_upsampling_doubles(kind: UpsamplingName, kernel: Literal[3, 4]) -> None:
    assert upsample(kind, 6, 4, kernel=kernel, bias=False)(torch.randn(1, 6, 3, 5)).shape == (1, 4, 6, 10)


@pytest.mark.parametrize("kind", ["resize", "anti-aliased"])
def test_upsampling_by_interpolation_leaves_no_checkerboard(kind: UpsamplingName) -> None:
    torch.manual_seed(0)
    flat = torch.ones(1, 6, 6, 6)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    # A constant stays constant away from the border; a transposed convolution prints its kernel on it.
    assert upsample(kind, 6, 1, kernel=4, bias=True)(flat)[inner].std() < 1e-6
    assert upsample("transposed", 6, 1, kernel=4, bias=True)(flat)[inner].std() > 1e-3


def test_anti_aliased_upsampling_is_the_authors_filter() -> None:
    """Zeros between the pixels, then [1, 3, 3, 1] / 4 along both sides; away from the border, which is repeated."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 5, 6)
    up = upsample("anti-aliased", 1, 1, kernel=3, bias=False)
    assert isinstance(up, nn.Sequential)
    stuffed = torch.zeros(1, 1, 14, 16)
    stuffed[:, :, 2:-2:2, 2:-2:2] = x
    stuffed[:, :, 0, 2:-2:2], stuffed[:, :, -2, 2:-2:2] = x[:, :, 0], x[:, :, -1]
    stuffed[:, :, :, 0], stuffed[:, :, :, -2] = stuffed[:, :, :, 2], stuffed[:, :, :, -4]
    line = torch.tensor([1.0, 3, 3, 1]) / 4
    wanted = functional.conv2d(stuffed, (line[:, None] * line)[None, None])[:, :, :10, :12]
    torch.testing.assert_close(up[0](x), wanted)
    # A wave of 4 pixels' length becomes one of 8, and what stands beside it in the spectrum is its mirror image.
    wave = torch.cos(torch.arange(32) * torch.pi / 2 + 0.3).repeat(32, 1)[None, None]

    def image_energy(kind: UpsamplingName) -> float:
        layer = upsample(kind, 1, 1, kernel=3, bias=False)
        assert isinstance(layer, nn.Sequential)
        spectrum = torch.fft.rfft(layer[0](wave)[0, 0, 20]).abs().square()
        return float(spectrum[16:].sum() / spectrum[1:16].sum())

    assert image_energy("anti-aliased") < 0.25 * image_energy("resize")


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3), (3, 2)])
def test_blur_is_a_convolution_of_reflected_images(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    line = torch.tensor([1.0, 2, 1]) / 4
    kernel = (line[:, None] * line).repeat(3, 1, 1, 1)

    def direct(x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=3)

    x = torch.randn(2, 3, *size, requires_grad=True)
    found, wanted = Blur()(x), direct(x)
    torch.testing.assert_close(found, wanted)
    gradient = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, x, gradient), torch.autograd.grad(wanted, x, gradient))
    assert not list(Blur().state_dict())


def test_blur_keeps_no_frequency_that_halving_would_fold() -> None:
    # The finest checkerboard, which a stride of 2 turns into a constant, is gone; a constant stays.
    checkerboard = torch.ones(1, 1, 8, 8)
    checkerboard[..., ::2, 1::2] = checkerboard[..., 1::2, ::2] = -1
    torch.testing.assert_close(Blur()(checkerboard), torch.zeros(1, 1, 4, 4))
    assert checkerboard[..., ::2, ::2].eq(1).all()
    torch.testing.assert_close(Blur()(torch.full((1, 1, 8, 8), 3.0)), torch.full((1, 1, 4, 4), 3.0))


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


@pytest.mark.parametrize("make", [lambda: nn.Linear(50, 4000), lambda: nn.Conv2d(8, 500, 3)])
def test_uniform_is_what_torch_draws(make: Callable[[], nn.Linear | nn.Conv2d]) -> None:
    torch.manual_seed(0)
    ours, torchs = make(), make()
    InitialisationSettings(kind="uniform").apply(ours)
    for name in ("weight", "bias"):
        one, two = getattr(ours, name), getattr(torchs, name)
        assert one.std().item() == pytest.approx(two.std().item(), rel=0.05)
        assert one.abs().max().item() == pytest.approx(two.abs().max().item(), rel=0.01)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4096), nn.GroupNorm(32, 4096)])
def test_norm_weights_are_drawn_around_one(norm: nn.BatchNorm2d | nn.GroupNorm) -> None:
    torch.manual_seed(0)
    InitialisationSettings(kind="xavier", gain=1.0).apply(norm)
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.002)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.05)
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


@pytest.mark.parametrize(
    ("kind", "deviation"),
    [
        ("normal", 0.02),
        ("xavier", 0.02 * math.sqrt(2 / (50 + 200))),
        ("kaiming", math.sqrt(2 / 200)),  # a linear layer that reads 200 features for each of 50 classes
        ("orthogonal", 0.02 / math.sqrt(200)),
    ],
)
@pytest.mark.parametrize("spectral", [False, True])
def test_an_embedding_is_drawn_like_a_linear_layer_of_its_classes(
    kind: Literal["normal", "xavier", "kaiming", "orthogonal"], deviation: float, spectral: bool
) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 200)
    if spectral:
        add_spectral_norm(embedding)
    InitialisationSettings(kind=kind).apply(embedding)
    weight = embedding.parametrizations["weight"].original if spectral else embedding.weight
    assert weight.std().item() == pytest.approx(deviation, rel=0.03)


def test_spectral_norm_is_on_each_layer_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 4), nn.Linear(4, 5), nn.Embedding(6, 7)
    )
    add_spectral_norm(net)
    add_spectral_norm(net)
    InitialisationSettings().apply(net)
    net.eval()
    assert not parametrize.is_parametrized(net[1])
    for layer in (net[0], net[2], net[3], net[4]):
        assert len(layer.parametrizations["weight"]) == 1
        # A transposed convolution has its outputs second.
        outputs_first = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
        largest = torch.linalg.svdvals(outputs_first.detach().flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=0.02)  # after 15 power iterations


@pytest.mark.parametrize("side", [8, 32, 256])
def test_side_of_a_square_image(side: int) -> None:
    assert square_side("dcgan", (3, side, side)) == side


@pytest.mark.parametrize(
    ("shape", "words"),
    [((3, 28, 28), "28x28"), ((1, 32, 64), "64x32"), ((3, 4, 4), "4x4"), ((2,), "points of 2 numbers: use kind: mlp")],
)
def test_other_shapes_have_a_clear_line(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        square_side("dcgan", shape)
    assert "dcgan" in str(raised.value)
    assert "\n" not in str(raised.value)
