from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.networks import InitialisationSettings, count_parameters
from translate.networks.r3gan import (
    BottleneckBlock,
    R3GANCriticSettings,
    R3GANGenerator,
    R3GANGeneratorSettings,
    bilinear_down,
    bilinear_up,
)


@pytest.mark.parametrize("side", [8, 16, 32, 64, 128])
def test_every_size_trains(side: int) -> None:
    torch.manual_seed(0)
    generator = R3GANGeneratorSettings(width=16, blocks=1).build(5, (3, side, side))
    critic = R3GANCriticSettings(width=16, blocks=1).build((3, side, side))
    image = generator(torch.randn(2, 5))
    assert image.shape == (2, 3, side, side)
    judgement = critic.judge(image)
    assert judgement.logits.shape == (2, 1)
    assert judgement.features.shape == (2, critic.width)
    judgement.logits.sum().backward()
    for network in (generator, critic):
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_parameters_of_the_papers_networks() -> None:
    # The authors' presets for CIFAR-10 and FFHQ-64, written out: widths 768 (384 at side 64), 2 blocks, 16 a group.
    def block(channels: int) -> int:
        inner = 2 * channels
        return channels * inner + inner + inner * 16 * 9 + inner + inner * channels

    with torch.device("meta"):
        for side, widths in ((32, [768] * 4), (64, [768] * 4 + [384])):
            blocks = sum(2 * block(channels) for channels in widths)
            transitions = sum(a * b for a, b in pairwise(widths) if a != b)
            generator = R3GANGeneratorSettings(width=768).build(64, (3, side, side))
            basis = 768 * 16 + 64 * 768
            assert count_parameters(generator) == blocks + transitions + basis + 3 * widths[-1]
            critic = R3GANCriticSettings(width=768).build((3, side, side))
            # The bias of the score is ours: pairs of logits do not see it.
            assert count_parameters(critic) == blocks + transitions + 3 * widths[-1] + 768 * 16 + (768 + 1)


def test_channels_halve_above_side_32() -> None:
    assert R3GANGeneratorSettings(width=768).widths(256) == [768, 768, 768, 768, 384, 192, 96]


def test_a_block_is_the_papers() -> None:
    torch.manual_seed(0)
    block = BottleneckBlock(R3GANGeneratorSettings(group_width=4), 8, 2)
    x = torch.randn(2, 8, 5, 5)
    inner = F.leaky_relu(F.conv2d(x, block.enter.weight, block.enter.bias), 0.2)
    # Four groups of four channels, each by itself.
    groups = [
        F.conv2d(part, weight, padding=1)
        for part, weight in zip(inner.split(4, dim=1), block.mix.weight.split(4), strict=True)
    ]
    assert block.mix.bias is not None
    mixed = F.leaky_relu(torch.cat(groups, dim=1) + block.mix.bias[:, None, None], 0.2)
    torch.testing.assert_close(block(x), x + F.conv2d(mixed, block.leave.weight), atol=1e-5, rtol=1e-5)


def test_a_new_network_is_its_shortcuts() -> None:
    torch.manual_seed(0)
    generator = R3GANGeneratorSettings(width=16).build(4, (3, 16, 16))
    critic = R3GANCriticSettings(width=16).build((3, 16, 16))
    blocks = [m for network in (generator, critic) for m in network.modules() if isinstance(m, BottleneckBlock)]
    assert len(blocks) == 2 * 2 * 3
    x = torch.randn(2, 16, 4, 4)
    assert all(torch.equal(block(x), x) for block in blocks)


def test_weights_are_drawn_by_fix_up() -> None:
    torch.manual_seed(0)
    generator = R3GANGeneratorSettings(width=128).build(64, (3, 32, 32))
    assert isinstance(generator, R3GANGenerator)
    block = next(m for m in generator.modules() if isinstance(m, BottleneckBlock))
    # L = 4 stages of 2 blocks; m = 3 layers: L^(-1/4). 128 * 256 and 256 * 16 * 9 numbers: to 1 %.
    gain = math.sqrt(2 / 1.04) * 8**-0.25
    assert block.enter.weight.std().item() == pytest.approx(gain / math.sqrt(128), rel=0.02)
    assert block.mix.weight.std().item() == pytest.approx(gain / math.sqrt(16 * 9), rel=0.02)
    assert generator.basis.std().item() == pytest.approx(1, rel=0.05)
    assert generator.modulation.weight.std().item() == pytest.approx(1 / 8, rel=0.03)


def test_resampling_is_bilinear() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    inner = (..., slice(1, -1), slice(1, -1))  # the border differs: zeros outside, as in the authors' code
    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    down = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
    torch.testing.assert_close(bilinear_up(x)[inner], up[inner])
    torch.testing.assert_close(bilinear_down(x)[inner], down[inner])


def test_down_is_a_quarter_of_the_transpose_of_up() -> None:
    torch.manual_seed(0)
    small, large = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close((bilinear_up(small) * large).sum(), 4 * (small * bilinear_down(large)).sum())


def trained(network: nn.Module) -> None:
    """Weights as after some training: the last convolutions of blocks are no longer zero."""
    for block in network.modules():
        if isinstance(block, BottleneckBlock):
            nn.init.normal_(block.leave.weight, 0.0, 0.2)


def test_a_projection_critic_knows_classes() -> None:
    torch.manual_seed(0)
    critic = R3GANCriticSettings(width=16, blocks=1).build((1, 8, 8), 3)
    x = torch.randn(1, 1, 8, 8).expand(3, 1, 8, 8)
    judgement = critic.judge(x, torch.arange(3))
    assert judgement.logits.unique().numel() == 3
    torch.testing.assert_close(judgement.features[0], judgement.features[2])


def test_the_slope_reaches_the_weights() -> None:
    torch.manual_seed(0)
    critic = R3GANCriticSettings(width=4, group_width=4).build((1, 8, 8))
    trained(critic)
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    # |grad D|² is homogeneous of degree 2 in the first layer's weights where biases are 0 and the network is
    # piecewise linear in its input: Euler's theorem ties the derivative to the value.
    penalty = gradient.square().sum()
    weight = critic.get_parameter("features.trunk.first.weight")
    (derivative,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close((derivative * weight).sum(), 2 * penalty, atol=0, rtol=1e-4)


def test_bfloat16_is_near_float32() -> None:
    torch.manual_seed(0)
    generator = R3GANGeneratorSettings(width=16).build(8, (3, 16, 16))
    critic = R3GANCriticSettings(width=16).build((3, 16, 16))
    trained(generator)
    trained(critic)
    latent = torch.randn(8, 8)
    exact = generator(latent)
    with torch.autocast("cpu", torch.bfloat16):
        rough, logits = generator(latent), critic(exact)
    # bf16 has 8 bits; some 20 layers add up to some per cent.
    assert (rough - exact).norm() < 0.03 * exact.norm()
    wanted = critic(exact)
    assert (logits - wanted).norm() < 0.05 * wanted.norm()


def test_resampling_keeps_the_number_format() -> None:
    x = torch.ones(1, 2, 4, 4, dtype=torch.bfloat16)
    assert bilinear_up(x).dtype == bilinear_down(x).dtype == torch.bfloat16


def test_state_round_trip() -> None:
    settings = R3GANCriticSettings(width=16, blocks=1)
    torch.manual_seed(0)
    first, second = (settings.build((1, 8, 8)) for _ in range(2))
    trained(first)
    x = torch.randn(2, 1, 8, 8)
    assert not torch.allclose(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_mistakes_are_said_in_one_line() -> None:
    with pytest.raises(ValidationError, match="spectral_norm: r3gan's blocks start from zero"):
        R3GANCriticSettings(spectral_norm=True)
    with pytest.raises(UserError, match=r"width: 24 channels .* groups of 16 at side 64; use a multiple of 32"):
        R3GANGeneratorSettings(width=24, group_width=16).build(4, (3, 64, 64))
    with pytest.raises(UserError, match="concat"):
        R3GANGeneratorSettings().build(4, (3, 8, 8), 3)
    with pytest.raises(UserError, match="power of two"):
        R3GANCriticSettings().build((3, 24, 24))


def test_spectral_norm_works_with_other_weights() -> None:
    torch.manual_seed(0)
    settings = R3GANCriticSettings(
        width=16, blocks=1, spectral_norm=True, initialisation=InitialisationSettings(kind="orthogonal", gain=1.0)
    )
    critic = settings.build((1, 8, 8)).eval()
    layers = [m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    largest = torch.stack([torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2) for layer in layers])
    # Orthogonal weights have equal singular values, all of which power iteration meets at once.
    torch.testing.assert_close(largest, torch.ones_like(largest), atol=1e-4, rtol=0)


def test_output_has_no_bound() -> None:
    torch.manual_seed(0)
    generator = R3GANGeneratorSettings(width=16, blocks=1).build(4, (1, 8, 8)).double()
    latent = torch.randn(2, 4, dtype=torch.double)
    torch.testing.assert_close(generator(1000 * latent), 1000 * generator(latent))
