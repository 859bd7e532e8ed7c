from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from translate.errors import UserError
from translate.networks.critics import CriticBaseSettings
from translate.networks.dcgan import DCGANCriticSettings
from translate.networks.joint import Encoder, JointCritic
from translate.networks.latent import Critic, Judgement
from translate.networks.mlp import MLPCriticSettings

CASES: list[tuple[CriticBaseSettings, tuple[int, ...]]] = [
    (DCGANCriticSettings(width=2), (1, 16, 16)),
    (DCGANCriticSettings(width=2, norm="virtual-batch", bottleneck=3), (1, 8, 8)),
    (MLPCriticSettings(hidden=[8, 6]), (2,)),
]


@pytest.mark.parametrize(("settings", "shape"), CASES)
def test_shapes_and_gradients(settings: CriticBaseSettings, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    critic, encoder = JointCritic(settings.build(shape), 5, 12), Encoder(settings.build(shape), 5)
    x = torch.randn(4, *shape)
    z = encoder(x)
    assert z.shape == (4, 5)
    judged = critic.judge(x, z)
    assert judged.logits.shape == (4, 1)
    assert judged.features.shape == (4, 12)
    assert (judged.information is not None) is (settings.bottleneck is not None)
    judged.logits.sum().backward()
    # No weight is idle: the score of the critic that they were made of is left out.
    for name, parameter in (*critic.named_parameters(), *encoder.named_parameters()):
        assert parameter.grad is not None, name


def test_joint_logits_equal_the_formula() -> None:
    torch.manual_seed(0)
    critic = JointCritic(MLPCriticSettings(hidden=[8, 6]).build((2,)), 5, 12)
    x, z = torch.randn(4, 2), torch.randn(4, 5)

    def layer(value: Tensor, linear: nn.Module) -> Tensor:
        assert isinstance(linear, nn.Linear)
        return functional.leaky_relu(value @ linear.weight.T + linear.bias, 0.2)

    of_z = layer(layer(z, critic.latent[0]), critic.latent[2])
    joint = layer(torch.cat([critic.features(x)[0], of_z], dim=1), critic.joint[0])
    torch.testing.assert_close(critic(x, z), joint @ critic.score.weight.T + critic.score.bias)


def test_both_halves_of_the_pair_count() -> None:
    torch.manual_seed(0)
    critic = JointCritic(MLPCriticSettings(hidden=[8]).build((2,)), 5, 12)
    x, z = torch.randn(4, 2), torch.randn(4, 5)
    assert not torch.allclose(critic(x, z), critic(x, z.flip(0)))
    assert not torch.allclose(critic(x, z), critic(x.flip(0), z))


def test_encoder_is_linear_in_the_features() -> None:
    torch.manual_seed(0)
    critic = DCGANCriticSettings(width=2).build((1, 8, 8))
    x = torch.randn(4, 1, 8, 8)
    features = critic.judge(x).features
    encoder = Encoder(critic, 5)
    torch.testing.assert_close(encoder(x), features @ encoder.last.weight.T)
    assert encoder.last.weight.std().item() == pytest.approx(0.02, rel=0.2)  # drawn as the critic's: 160 numbers


def test_spectral_norm_follows_the_critic() -> None:
    critic = JointCritic(MLPCriticSettings(hidden=[8], spectral_norm=True).build((2,)), 5, 12)
    layers = [layer for layer in critic.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 5
    assert all(parametrize.is_parametrized(layer, "weight") for layer in layers)


def test_gradient_penalty_reaches_the_weights() -> None:
    torch.manual_seed(0)
    critic = JointCritic(DCGANCriticSettings(width=2, norm="none").build((1, 8, 8)), 5, 12)
    x, z = torch.randn(4, 1, 8, 8, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    gradients = torch.autograd.grad(critic(x, z).sum(), (x, z), create_graph=True)
    torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
    for name, parameter in critic.named_parameters():
        if parameter.ndim > 1:
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize(("settings", "shape"), CASES)
def test_state_and_bfloat16(settings: CriticBaseSettings, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder, copy = Encoder(settings.build(shape), 5), Encoder(settings.build(shape), 5)
    critic, critic_copy = JointCritic(settings.build(shape), 5, 12), JointCritic(settings.build(shape), 5, 12)
    x = torch.randn(4, *shape)
    critic(x, encoder(x))
    copy.load_state_dict(encoder.state_dict())
    critic_copy.load_state_dict(critic.state_dict())
    for net in (encoder, copy, critic, critic_copy):
        net.eval()
    z = encoder(x)
    logits = critic(x, z)
    assert torch.equal(copy(x), z)
    assert torch.equal(critic_copy(x, z), logits)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = critic(x, encoder(x))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, logits, atol=0.05, rtol=0.05)  # 8 bits through up to nine layers


class Energy(Critic):
    """A critic without features of its own."""

    def judge(self, x: Tensor, label: Tensor | None = None) -> Judgement:
        return Judgement(x.sum(1, keepdim=True), x)


def test_critics_without_a_trunk_have_a_clear_line() -> None:
    for build in (lambda: Encoder(Energy(), 5), lambda: JointCritic(Energy(), 5, 12)):
        with pytest.raises(UserError, match="Energy"):
            build()
