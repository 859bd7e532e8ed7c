from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from translate.errors import UserError
from translate.networks import count_parameters
from translate.networks.conditional import REFERENCE
from translate.networks.mlp import (
    PIECES,
    ActivationName,
    DenseNormName,
    Maxout,
    MLPCriticSettings,
    MLPGeneratorSettings,
)

SHAPES = [(2,), (1, 6, 4)]
ACTIVATIONS: list[ActivationName] = ["relu", "leaky-relu", "tanh", "maxout"]
NORMS: list[DenseNormName] = ["batch", "layer", "virtual-batch", "none"]


def test_parameters() -> None:
    with torch.device("meta"):
        generator = MLPGeneratorSettings().build(100, (1, 28, 28))
        critic = MLPCriticSettings(activation="maxout").build((1, 28, 28))
    assert count_parameters(generator) == 101 * 1200 + 1201 * 1200 + 1201 * 784 == 2_503_984
    assert count_parameters(critic) == 785 * 240 * 5 + 241 * 240 * 5 + 241


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_generator_and_critic_train(shape: tuple[int, ...], activation: ActivationName, norm: DenseNormName) -> None:
    torch.manual_seed(0)
    generator = MLPGeneratorSettings(hidden=[8, 6], activation=activation, norm=norm).build(3, shape)
    critic = MLPCriticSettings(hidden=[8, 6], activation=activation, norm=norm, dropout=0.3).build(shape)
    assert (generator.latent, generator.shape) == (3, shape)
    samples = generator(torch.randn(16, 3))
    assert samples.shape == (16, *shape)
    judged = critic.judge(samples)
    assert judged.logits.shape == (16, 1)
    assert judged.features.shape == (16, 6)
    judged.logits.sum().backward()
    for name, parameter in (*generator.named_parameters(), *critic.named_parameters()):
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_generator_is_relu_layers_with_a_tanh_for_images_only() -> None:
    torch.manual_seed(0)
    latent = torch.randn(5, 3) * 10
    for shape in SHAPES:
        generator = MLPGeneratorSettings(hidden=[16, 12]).build(3, shape)
        linear = [layer for layer in generator.modules() if isinstance(layer, nn.Linear)]
        expected = latent
        for layer in linear[:-1]:
            expected = (expected @ layer.weight.T + layer.bias).clamp(min=0)
        expected = expected @ linear[-1].weight.T + linear[-1].bias
        samples = generator(latent).flatten(1)
        torch.testing.assert_close(samples, expected if shape == (2,) else expected.tanh())


def test_maxout_takes_the_largest_of_its_pieces() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2 * PIECES)
    expected = [[max(row[:PIECES]), max(row[PIECES:])] for row in x.tolist()]
    torch.testing.assert_close(Maxout()(x), torch.tensor(expected))


def test_dropout_is_in_training_only() -> None:
    torch.manual_seed(0)
    critic = MLPCriticSettings(hidden=[1000, 1000], dropout=0.5).build((2,))
    x = torch.randn(1, 2)
    # Leaky units are never zero by themselves; 1000 of them: 0.5 +- 0.016.
    assert (critic.judge(x).features == 0).float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert (critic.eval().judge(x).features != 0).all()


def test_classes_of_the_generator() -> None:
    torch.manual_seed(0)
    generator = MLPGeneratorSettings(hidden=[8], norm="batch").build(3, (2,), classes=4)
    assert generator.classes == 4
    nn.init.normal_(generator.hidden[0].norm.norm.gains)
    latent = torch.randn(1, 3).expand(4, -1) + torch.tensor([[0.0], [0.0], [1.0], [2.0]])
    same, other = generator(latent, torch.tensor([1, 1, 0, 0])), generator(latent, torch.tensor([1, 2, 0, 0]))
    assert torch.equal(same[0], same[1])
    assert not torch.equal(other[0], other[1])
    with pytest.raises(UserError, match="norm: batch, not none"):
        MLPGeneratorSettings(norm="none").build(3, (2,), classes=4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_double_backward(activation: ActivationName) -> None:
    torch.manual_seed(0)
    critic = MLPCriticSettings(hidden=[5, 4], activation=activation).build((2,)).double()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(critic, x)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert all(layer.weight.grad.any() for layer in critic.modules() if isinstance(layer, nn.Linear))


def test_virtual_batch_norm_makes_judgements_independent() -> None:
    torch.manual_seed(0)
    critic = MLPCriticSettings(hidden=[16, 16], norm="virtual-batch").build((2,))
    critic(torch.randn(REFERENCE, 2))
    x = torch.randn(6, 2)
    torch.testing.assert_close(critic(x)[2:3], critic(x[2:3]))
    batch = MLPCriticSettings(hidden=[16, 16], norm="batch").build((2,))
    assert not torch.allclose(batch(x)[2:4], batch(x[2:4]), atol=1e-3)


def test_at_least_one_hidden_layer() -> None:
    with pytest.raises(ValidationError, match="hidden"):
        MLPGeneratorSettings(hidden=[])
