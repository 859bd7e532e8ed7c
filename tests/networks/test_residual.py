from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from translate.errors import UserError
from translate.networks import InitialisationSettings, count_parameters
from translate.networks.attention import AttentionKind, SelfAttention
from translate.networks.conditional import ConditionalBatchNorm2d
from translate.networks.residual import (
    CriticBlock,
    GeneratorBlock,
    ResidualCriticSettings,
    ResidualGenerator,
    ResidualGeneratorSettings,
    ResidualTrunk,
    critic_blocks,
    generator_multipliers,
)


def convolution(channels: int, out: int, kernel: int) -> int:
    return channels * out * kernel**2 + out


def generator_parameters(latent: int, widths: list[int]) -> int:
    """SNGAN's generator written out as sums: dense, blocks of two norms and three convolutions, norm, convolution."""
    count = (latent + 1) * 16 * widths[0]
    for wide, narrow in pairwise(widths):
        norms = 2 * wide + 2 * narrow
        count += norms + convolution(wide, narrow, 3) + convolution(narrow, narrow, 3) + convolution(wide, narrow, 1)
    return count + 2 * widths[-1] + convolution(widths[-1], 3, 3)


def test_parameters_of_the_cifar_networks() -> None:
    # 4,276,739 is what the SNGAN authors' generator has in mimicry's PyTorch version too. The critic's sum is
    # 151,680 (first block) + 311,680 (second) + 2 * 295,168 (no shortcut convolution) + 129 (score).
    with torch.device("meta"):
        generator = ResidualGeneratorSettings().build(128, (3, 32, 32))
        critic = ResidualCriticSettings().build((3, 32, 32))
        wgan = ResidualGeneratorSettings(width=32).build(128, (3, 32, 32))
    assert count_parameters(generator) == generator_parameters(128, [256] * 4) == 4_276_739
    assert count_parameters(critic) == 1_053_825
    assert count_parameters(wgan) == generator_parameters(128, [128] * 4)


@pytest.mark.parametrize(
    ("side", "widths"),
    [
        (64, [1024, 512, 256, 128, 64]),  # SNGAN's authors' code
        (128, [1024, 1024, 512, 256, 128, 64]),  # SNGAN, ImageNet
    ],
)
def test_generators_of_larger_images_follow_the_tables(side: int, widths: list[int]) -> None:
    with torch.device("meta"):
        generator = ResidualGeneratorSettings().build(128, (3, side, side))
    assert [64 * multiplier for multiplier in generator_multipliers(side)] == widths
    assert count_parameters(generator) == generator_parameters(128, widths)


@pytest.mark.parametrize(
    ("side", "widths", "end"),
    [
        (32, [128, 128, 128, 128], 8),  # SNGAN, CIFAR-10
        (64, [64, 128, 256, 512, 1024], 2),  # SNGAN's authors' code
        (128, [64, 128, 256, 512, 1024, 1024], 4),  # SNGAN, ImageNet
    ],
)
def test_critics_follow_the_tables(side: int, widths: list[int], end: int) -> None:
    assert [64 * multiplier for multiplier, _ in critic_blocks(side)] == widths
    assert side >> sum(halves for _, halves in critic_blocks(side)) == end


@pytest.mark.parametrize("side", [8, 16, 32, 64, 128])
def test_every_size_trains(side: int) -> None:
    torch.manual_seed(0)
    generator = ResidualGeneratorSettings(width=2).build(5, (3, side, side))
    critic = ResidualCriticSettings(width=2).build((3, side, side))
    image = generator(torch.randn(2, 5))
    assert image.shape == (2, 3, side, side)
    assert image.abs().max() <= 1
    judgement = critic.judge(image)
    assert judgement.logits.shape == (2, 1)
    assert judgement.features.shape == (2, critic.width)
    judgement.logits.sum().backward()
    for network in (generator, critic):
        assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("norm", ["layer", "virtual-batch", "none"])
@pytest.mark.parametrize("attention_kind", ["dot", "l2"])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_options_train(
    norm: Literal["layer", "virtual-batch", "none"], attention_kind: AttentionKind, spectral_norm: bool
) -> None:
    torch.manual_seed(0)
    critic = ResidualCriticSettings(
        width=4,
        norm=norm,
        attention=8,
        attention_kind=attention_kind,
        minibatch_deviation=True,
        spectral_norm=spectral_norm,
    ).build((1, 16, 16), 3)
    generator = ResidualGeneratorSettings(
        width=2,
        norm="none" if norm == "layer" else norm,
        attention=16,
        attention_kind=attention_kind,
        spectral_norm=spectral_norm,
    ).build(4, (1, 16, 16))
    image = generator(torch.randn(4, 4))
    judgement = critic.judge(image, torch.tensor([0, 1, 2, 0]))
    assert critic.width == judgement.features.shape[1] == 9
    judgement.logits.square().sum().backward()
    attention = [m for network in (generator, critic) for m in network.modules() if isinstance(m, SelfAttention)]
    assert len(attention) == 2
    for layer in attention:
        assert layer.gamma.grad is not None
        assert layer.gamma.grad != 0


def test_a_generator_block_is_the_papers() -> None:
    # The doubling stands before both convolutions in the papers; here the shortcut doubles after its own.
    torch.manual_seed(0)
    block = GeneratorBlock(ResidualGeneratorSettings(norm="none"), (4, 3), None)
    x = torch.randn(2, 4, 4, 4)
    doubled = x.relu().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    body = F.conv2d(doubled, block.conv1.weight, block.conv1.bias, padding=1).relu()
    body = F.conv2d(body, block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = F.conv2d(
        x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), block.shortcut.weight, block.shortcut.bias
    )
    torch.testing.assert_close(block(x, None), body + shortcut, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_a_critic_block_is_the_papers(first: bool) -> None:
    torch.manual_seed(0)
    block = CriticBlock((4, 6), halves=True, norm="none", first=first)
    assert isinstance(block.shortcut, nn.Conv2d)
    x = torch.randn(2, 4, 4, 4)

    def pooled(y: Tensor) -> Tensor:
        return y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean(dim=(3, 5))

    body = F.conv2d(x if first else x.relu(), block.conv1.weight, block.conv1.bias, padding=1).relu()
    body = F.conv2d(body, block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = F.conv2d(x, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(x), pooled(body) + pooled(shortcut), atol=1e-5, rtol=1e-5)


def test_sum_pooling_is_mean_pooling_times_the_pixels() -> None:
    def trunk(pool: Literal["sum", "mean"]) -> tuple[nn.Module, int]:
        torch.manual_seed(0)
        return ResidualCriticSettings(width=2, pool=pool).trunk((1, 32, 32))

    x = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(trunk("sum")[0](x), 64 * trunk("mean")[0](x))  # the last map is 8x8


def test_spectral_norm_bounds_every_layer() -> None:
    torch.manual_seed(0)
    generator = ResidualGeneratorSettings(width=2, spectral_norm=True, attention=8).build(4, (3, 8, 8))
    critic = ResidualCriticSettings(width=4, spectral_norm=True, attention=4).build((3, 8, 8), 5)
    for network in (generator, critic):
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
        assert len(layers) > 8
        for layer in layers:
            assert parametrize.is_parametrized(layer, "weight")
            # 15 rounds of power iteration find the largest singular value from below: 1 is met to some per cent.
            largest = torch.linalg.matrix_norm(layer.eval().weight.detach().flatten(1), 2)
            assert largest.item() == pytest.approx(1, abs=0.06)


def test_layer_norm_forgets_the_scale_of_a_map() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    normed, plain = (CriticBlock((4, 4), halves=False, norm=norm, first=False) for norm in ("layer", "none"))
    for block, same in ((normed, True), (plain, False)):
        body = block(x) - x
        assert torch.allclose(block(7 * x) - 7 * x, body, atol=1e-3) is same


def test_a_class_has_its_own_gain_and_bias() -> None:
    torch.manual_seed(0)
    generator = ResidualGeneratorSettings(width=2).build(4, (1, 8, 8), 3)
    assert generator.classes == 3
    conditional = [m for m in generator.modules() if isinstance(m, ConditionalBatchNorm2d)]
    assert len(conditional) == 2  # of the one block; the last norm has no classes, as in the authors' code
    latent = torch.randn(1, 4).expand(6, 4)
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(*generator(latent, label).chunk(2))
    with torch.no_grad():
        conditional[0].biases[1] += 1
    images = generator(latent, label)
    assert (images[0] - images[1]).abs().max() > 1e-3
    torch.testing.assert_close(images[0], images[2])


def test_weights_are_drawn_as_the_authors_did() -> None:
    torch.manual_seed(0)
    generator = ResidualGeneratorSettings().build(128, (3, 8, 8))
    assert isinstance(generator, ResidualGenerator)
    block = generator.blocks[0]
    assert isinstance(block, GeneratorBlock)

    def glorot(fan_in: int, fan_out: int) -> float:
        return math.sqrt(2 / (fan_in + fan_out))

    # The deviation of n uniform numbers is known to 1 / sqrt(n) or better; `last` has 6,912 of them.
    assert block.conv1.weight.std().item() == pytest.approx(math.sqrt(2) * glorot(256 * 9, 256 * 9), rel=0.01)
    assert block.shortcut.weight.std().item() == pytest.approx(glorot(256, 256), rel=0.02)
    assert generator.dense.weight.std().item() == pytest.approx(glorot(128, 4096), rel=0.01)
    assert generator.last.weight.std().item() == pytest.approx(glorot(256 * 9, 27), rel=0.03)
    assert not generator.last.bias.any()

    chosen = ResidualGeneratorSettings(initialisation=InitialisationSettings(gain=0.1)).build(128, (3, 8, 8))
    assert isinstance(chosen, ResidualGenerator)
    assert chosen.dense.weight.std().item() == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_the_slope_reaches_the_weights(norm: Literal["layer", "none"]) -> None:
    # What a gradient penalty needs: the derivative of the gradient, per example.
    torch.manual_seed(0)
    critic = ResidualCriticSettings(width=2, norm=norm, attention=4).build((1, 8, 8)).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.double, requires_grad=True)

    def slope() -> Tensor:
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return gradient.square().sum()

    weight = critic.get_parameter("features.trunk.blocks.0.conv1.weight")
    (derivative,) = torch.autograd.grad(slope(), weight)
    step = torch.zeros_like(weight)
    step[0, 0, 1, 1] = 1e-6
    with torch.no_grad():
        weight += step
    above = slope()
    with torch.no_grad():
        weight -= 2 * step
    # Central difference: its error is of second order in the step, and of the rounding over the step (1e-9).
    assert derivative[0, 0, 1, 1].item() == pytest.approx(((above - slope()) / 2e-6).item(), rel=1e-5, abs=1e-8)


def test_bfloat16_is_near_float32() -> None:
    torch.manual_seed(0)
    generator = ResidualGeneratorSettings(width=4, attention=16).build(8, (3, 16, 16))
    critic = ResidualCriticSettings(width=4, attention=8, minibatch_deviation=True).build((3, 16, 16))
    latent = torch.randn(8, 8)
    exact = generator(latent)
    with torch.autocast("cpu", torch.bfloat16):
        rough = generator(latent)
        logits = critic(exact)
    # bf16 has 8 bits; a dozen layers add up to some per cent.
    assert (rough - exact).abs().mean() < 0.03
    assert logits.dtype == torch.float32
    wanted = critic(exact)
    assert (logits - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_state_round_trip() -> None:
    settings = ResidualCriticSettings(width=2, spectral_norm=True, attention=4)
    torch.manual_seed(0)
    first, second = (settings.build((1, 8, 8)).eval() for _ in range(2))
    x = torch.randn(2, 1, 8, 8)
    assert not torch.allclose(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_mistakes_are_said_in_one_line() -> None:
    with pytest.raises(UserError, match=r"attention: no feature map has side 64; expected one of 8, 16, 32"):
        ResidualGeneratorSettings(attention=64).build(4, (3, 32, 32))
    with pytest.raises(UserError, match=r"side 32; expected one of 8, 16"):
        ResidualCriticSettings(attention=32).build((3, 32, 32))
    with pytest.raises(UserError, match="power of two"):
        ResidualCriticSettings().build((3, 24, 24))
    with pytest.raises(UserError, match="norm: batch"):
        ResidualGeneratorSettings(norm="none").build(4, (3, 8, 8), 3)


def test_the_trunk_knows_its_width() -> None:
    trunk, width = ResidualCriticSettings(width=3).trunk((1, 8, 8))
    assert isinstance(trunk, ResidualTrunk)
    assert width == 6
