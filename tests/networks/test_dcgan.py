from __future__ import annotations

from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import parametrize

from translate.errors import UserError
from translate.networks import count_parameters
from translate.networks.attention import AttentionKind, SelfAttention
from translate.networks.dcgan import DCGANCriticSettings, DCGANGeneratorSettings
from translate.networks.layers import LatentNormName

NORMS: list[LatentNormName] = ["batch", "instance", "group", "layer", "virtual-batch", "none"]


def test_parameters_are_those_of_the_reference() -> None:
    """PyTorch's DCGAN example at 64x64: 3,576,704 and 2,765,568; our score has a bias that its last convolution lacks.

    A critic needs one to say how likely real samples are at all; the generator's other biases are batch norm's.
    """
    with torch.device("meta"):
        assert count_parameters(DCGANGeneratorSettings().build(100, (3, 64, 64))) == 3_576_704
        assert count_parameters(DCGANCriticSettings().build((3, 64, 64))) == 2_765_568 + 1
        # The paper's widths, 1024 to 128 (figure 1): 100·1024·16 + (1024·512 + 512·256 + 256·128 + 128·3)·16 and norms.
        assert count_parameters(DCGANGeneratorSettings(width=128).build(100, (3, 64, 64))) == 12_658_432


@pytest.mark.parametrize("side", [8, 16, 32, 64, 128, 256])
def test_sizes(side: int) -> None:
    torch.manual_seed(0)
    generator = DCGANGeneratorSettings(width=2).build(7, (3, side, side))
    critic = DCGANCriticSettings(width=2).build((3, side, side))
    images = generator(torch.randn(2, 7))
    assert images.shape == (2, 3, side, side)
    judged = critic.judge(images)
    assert judged.logits.shape == (2, 1)
    channels = 2 * min(side // 8, 8)
    assert critic.width == judged.features.shape[1] == 16 * channels
    convolutions = [layer for layer in critic.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [2 * min(2**i, 8) for i in range(len(convolutions))]
    assert len(convolutions) == side.bit_length() - 3


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("norm", NORMS)
def test_options_train(norm: LatentNormName, upsampling: Literal["transposed", "resize"]) -> None:
    torch.manual_seed(0)
    generator = DCGANGeneratorSettings(
        width=2, norm=norm, upsampling=upsampling, attention=8, attention_kind="l2"
    ).build(5, (1, 16, 16))
    critic = DCGANCriticSettings(width=2, norm=norm, attention=8, minibatch_deviation=True).build((1, 16, 16))
    images = generator(torch.randn(6, 5))
    assert images.shape == (6, 1, 16, 16)
    assert images.abs().max() <= 1
    critic(images).sum().backward()
    for name, parameter in (*generator.named_parameters(), *critic.named_parameters()):
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_generator_equals_the_layers_of_the_paper() -> None:
    torch.manual_seed(0)
    generator = DCGANGeneratorSettings(width=2).build(5, (3, 16, 16))
    weights = {name: value for name, value in generator.named_parameters() if "norm" not in name}
    project, double, last = weights.values()
    latent = torch.randn(4, 5)
    reference = nn.Sequential(
        nn.ConvTranspose2d(5, 4, 4, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.ConvTranspose2d(2, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    with torch.no_grad():
        for layer, weight in zip((reference[0], reference[3], reference[6]), (project, double, last), strict=True):
            layer.weight.copy_(weight.T.reshape(5, 4, 4, 4) if weight is project else weight)
        norms = [value for name, value in generator.named_parameters() if "norm" in name and "weight" in name]
        for layer, weight in zip((reference[1], reference[4]), norms, strict=True):
            layer.weight.copy_(weight)
    torch.testing.assert_close(generator(latent), reference(latent[:, :, None, None]))


def test_score_equals_a_last_convolution_over_4x4() -> None:
    torch.manual_seed(0)
    critic = DCGANCriticSettings(width=3).build((3, 16, 16))
    x = torch.randn(4, 3, 16, 16)
    maps = critic.features.trunk[0](x)
    assert maps.shape == (4, 6, 4, 4)
    last = nn.functional.conv2d(maps, critic.score.weight.view(1, 6, 4, 4), critic.score.bias)
    torch.testing.assert_close(critic(x), last.flatten(1))
    # The first convolution has no norm behind it, the others have.
    kinds = [type(layer).__name__ for layer in critic.features.trunk[0]]
    assert kinds == ["Conv2d", "LeakyReLU", "Conv2d", "Norm", "LeakyReLU"]


def test_classes_of_the_generator_are_in_every_norm() -> None:
    torch.manual_seed(0)
    generator = DCGANGeneratorSettings(width=2).build(5, (1, 16, 16), classes=3)
    label = torch.tensor([0, 2])
    generator(torch.randn(2, 5), label).sum().backward()
    gains = [value for name, value in generator.named_parameters() if name.endswith("gains")]
    assert len(gains) == 2
    for value in gains:
        assert value.grad is not None
        assert value.grad.abs().sum(1).gt(0).tolist() == [True, False, True]
    with pytest.raises(UserError, match="norm: batch, not group"):
        DCGANGeneratorSettings(norm="group").build(5, (1, 16, 16), classes=3)


@pytest.mark.parametrize("kind", ["dot", "l2"])
@pytest.mark.parametrize(("side", "channels"), [(4, 8), (8, 4), (16, 2)])
def test_attention_stands_over_maps_of_its_side(side: int, channels: int, kind: AttentionKind) -> None:
    torch.manual_seed(0)
    generator = DCGANGeneratorSettings(width=2, attention=side, attention_kind=kind).build(5, (1, 32, 32))
    critic = DCGANCriticSettings(width=2, attention=side, attention_kind=kind).build((1, 32, 32))
    seen = []
    for net in (generator, critic):
        (attention,) = (layer for layer in net.modules() if isinstance(layer, SelfAttention))
        attention.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].shape))
    critic(generator(torch.randn(2, 5)))
    assert seen == [(2, channels, side, side)] * 2


@pytest.mark.parametrize("side", [2, 5, 32])
def test_attention_needs_a_side_that_is_there(side: int) -> None:
    for build in (
        lambda: DCGANGeneratorSettings(attention=side).build(5, (1, 32, 32)),
        lambda: DCGANCriticSettings(attention=side).build((1, 32, 32)),
    ):
        with pytest.raises(UserError, match=rf"side {side}; use one of \[4, 8, 16\]"):
            build()


def test_shapes_that_do_not_fit_have_a_clear_line() -> None:
    with pytest.raises(UserError, match="28x28"):
        DCGANGeneratorSettings().build(100, (1, 28, 28))
    with pytest.raises(UserError, match="kind: mlp"):
        DCGANCriticSettings().build((2,))
    with pytest.raises(ValidationError, match="width"):
        DCGANCriticSettings(width=0)


def test_deviation_is_of_the_examples_not_of_the_reference_batch() -> None:
    torch.manual_seed(0)
    critic = DCGANCriticSettings(width=2, norm="virtual-batch", minibatch_deviation=True).build((1, 8, 8))
    x = torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1)
    features = critic.judge(x).features.view(4, 3, 4, 4)
    torch.testing.assert_close(features[:, 2], torch.full((4, 4, 4), 1e-4))  # copies: the root of 1e-8
    assert critic.width == 3 * 16


@pytest.mark.parametrize("norm", ["batch", "layer", "virtual-batch", "none"])
def test_gradient_penalty_reaches_every_weight(norm: LatentNormName) -> None:
    torch.manual_seed(0)
    settings = DCGANCriticSettings(
        width=8, norm=norm, attention=8, minibatch_deviation=True, spectral_norm=norm == "none"
    )
    critic = settings.build((1, 16, 16))
    for layer in critic.modules():
        if isinstance(layer, SelfAttention):
            nn.init.ones_(layer.gamma)
    x = torch.randn(4, 1, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    for name, parameter in critic.named_parameters():
        # Biases, of one dimension, need not: between two kinks a leaky ReLU's slope does not move with them.
        if parameter.ndim > 1:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_spectral_norm_is_on_every_layer() -> None:
    torch.manual_seed(0)
    critic = DCGANCriticSettings(width=4, norm="none", spectral_norm=True, attention=8).build((1, 16, 16), classes=3)
    layers = [layer for layer in critic.modules() if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) == 2 + 4 + 2  # convolutions, attention, score and embedding
    assert all(parametrize.is_parametrized(layer, "weight") for layer in layers)


def test_weights_are_drawn_as_in_the_paper() -> None:
    torch.manual_seed(0)
    for net in (DCGANGeneratorSettings(width=32).build(100, (3, 32, 32)), DCGANCriticSettings().build((3, 32, 32))):
        for name, value in net.named_parameters():
            if value.ndim > 1:
                assert value.std().item() == pytest.approx(0.02, rel=0.08), name


@pytest.mark.parametrize("norm", ["batch", "virtual-batch", "none"])
def test_state_round_trip(norm: LatentNormName) -> None:
    torch.manual_seed(0)
    shape = (1, 16, 16)
    settings, critic_settings = DCGANGeneratorSettings(width=2, norm=norm), DCGANCriticSettings(width=2, norm=norm)
    latent = torch.randn(3, 5)
    for _ in range(2):
        generator, critic = settings.build(5, shape), critic_settings.build(shape)
        critic(generator(torch.randn(4, 5)))
    copy, critic_copy = settings.build(5, shape), critic_settings.build(shape)
    copy.load_state_dict(generator.state_dict())
    critic_copy.load_state_dict(critic.state_dict())
    expected, got = generator.eval()(latent), copy.eval()(latent)
    assert torch.equal(got, expected)
    assert torch.equal(critic_copy.eval()(got), critic.eval()(expected))


@pytest.mark.parametrize("norm", NORMS)
def test_bfloat16_agrees_with_float32(norm: LatentNormName) -> None:
    torch.manual_seed(0)
    generator = DCGANGeneratorSettings(width=8, norm=norm, attention=8).build(16, (1, 16, 16))
    critic = DCGANCriticSettings(width=8, norm=norm, attention=8, minibatch_deviation=True).build((1, 16, 16))
    latent = torch.randn(8, 16)
    images = generator(latent)
    logits = critic(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_images = generator(latent)
        rounded = critic(rounded_images.float())
    # Images within 3 of 8 bits; logits around 0.1 of sums of hundreds of rounded products.
    torch.testing.assert_close(rounded_images.float(), images, atol=0.03, rtol=0)
    torch.testing.assert_close(rounded, logits, atol=0.03, rtol=0)
    assert rounded.dtype == torch.float32
