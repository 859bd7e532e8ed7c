from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from translate.errors import UserError
from translate.networks import count_parameters
from translate.networks.autoencoder import AutoencoderSettings, DecoderSettings


@pytest.mark.parametrize("side", [8, 16, 32, 64, 128])
def test_every_size_trains(side: int) -> None:
    torch.manual_seed(0)
    generator = DecoderSettings(width=2).build(5, (3, side, side))
    critic = AutoencoderSettings(width=2, code=4).build((3, side, side))
    image = generator(torch.randn(2, 5))
    assert image.shape == (2, 3, side, side)
    judgement = critic.judge(image)
    assert judgement.logits.shape == (2, 1)
    assert judgement.features.shape == (2, 4) == (2, critic.width)
    judgement.logits.sum().backward()
    for network in (generator, critic):
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_parameters_are_those_of_figure_1() -> None:
    # 32²: sizes 8, 16, 32. Width n = 16, code h = 10.
    n, h = 16, 10

    def convolution(channels: int, out: int) -> int:
        return channels * out * 9 + out

    decoder = (h + 1) * 64 * n + 6 * convolution(n, n) + convolution(n, 3)
    encoder = convolution(3, n) + sum(2 * convolution(level * n, level * n) for level in (1, 2, 3))
    encoder += convolution(n, 2 * n) + convolution(2 * n, 3 * n)  # the two halvings
    encoder += 3 * n * 64 * h + h
    with torch.device("meta"):
        assert count_parameters(DecoderSettings(width=n).build(h, (3, 32, 32))) == decoder
        assert count_parameters(AutoencoderSettings(width=n, code=h).build((3, 32, 32))) == decoder + encoder


def test_the_generator_is_the_critics_decoder() -> None:
    critic = AutoencoderSettings(width=2, code=4).build((1, 16, 16))
    generator = DecoderSettings(width=2).build(4, (1, 16, 16))
    generator.decoder.load_state_dict(critic.decoder.state_dict())
    code = torch.randn(3, 4)
    assert torch.equal(generator(code), critic.decoder(code))


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_energy_is_the_error_of_each_image(distance: Literal["l1", "l2"]) -> None:
    torch.manual_seed(0)
    critic = AutoencoderSettings(width=2, code=4, distance=distance).build((3, 8, 8))
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    made = critic.reconstruct(x)
    energies = []
    for image, again in zip(x, made, strict=True):
        differences = [abs(a - b) for a, b in zip(image.flatten().tolist(), again.flatten().tolist(), strict=True)]
        energies.append([sum(d if distance == "l1" else d * d for d in differences) / len(differences)])
    judgement = critic.judge(x)
    torch.testing.assert_close(judgement.logits, torch.tensor(energies))
    torch.testing.assert_close(critic.decoder(judgement.features), made)


def test_energy_is_zero_where_the_image_is_met() -> None:
    critic = AutoencoderSettings(width=2, code=4).build((1, 8, 8))
    for parameter in critic.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(critic(torch.zeros(2, 1, 8, 8)), torch.zeros(2, 1))
    assert torch.equal(critic(torch.full((2, 1, 8, 8), 0.5)), torch.full((2, 1), 0.5))


def test_the_slope_reaches_the_weights() -> None:
    torch.manual_seed(0)
    critic = AutoencoderSettings(width=2, code=4, distance="l2").build((1, 8, 8)).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.double, requires_grad=True)

    def slope() -> Tensor:
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return gradient.square().sum()

    weight = critic.get_parameter("encoder.0.weight")
    (derivative,) = torch.autograd.grad(slope(), weight)
    with torch.no_grad():
        weight[0, 0, 1, 1] += 1e-6
    above = slope()
    with torch.no_grad():
        weight[0, 0, 1, 1] -= 2e-6
    # Central difference; ELU has a bend at 0, which a step of 1e-6 hardly meets.
    assert derivative[0, 0, 1, 1].item() == pytest.approx(((above - slope()) / 2e-6).item(), rel=1e-5)


def test_energies_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    critic = AutoencoderSettings(width=4, code=4).build((3, 16, 16))
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        judgement = critic.judge(x)
    assert judgement.logits.dtype == judgement.features.dtype == torch.float32
    # The error of the reconstruction, some per cent of it in bf16, stands beside an image of size 1.
    torch.testing.assert_close(judgement.logits, critic(x), atol=0.01, rtol=0.01)


def test_output_is_bounded_only_if_asked() -> None:
    torch.manual_seed(0)
    latent = 100 * torch.randn(2, 4)
    assert DecoderSettings(width=2).build(4, (1, 8, 8))(latent).abs().max() > 1
    assert DecoderSettings(width=2, output="tanh").build(4, (1, 8, 8))(latent).abs().max() <= 1


def test_mistakes_are_said_in_one_line() -> None:
    with pytest.raises(UserError, match="'decoder' has no norm layers"):
        DecoderSettings().build(4, (3, 8, 8), 3)
    with pytest.raises(UserError, match="use concat"):
        AutoencoderSettings().build((3, 8, 8), 3)
    with pytest.raises(UserError, match="'autoencoder' is for square images"):
        AutoencoderSettings().build((3, 8, 16))
    with pytest.raises(UserError, match="'decoder' is for images"):
        DecoderSettings().build(4, (2,))
