import pytest
import torch
from linear_probe import GRID, accuracy, features, fit_linear, probe
from torch.nn import functional as F

from translate.networks.dcgan import DCGANCriticSettings
from translate.networks.residual import ResidualCriticSettings


def test_features_are_every_layers_activations_pooled_to_4x4() -> None:
    torch.manual_seed(0)
    critic = DCGANCriticSettings(width=4, norm="none").build((1, 32, 32)).eval()
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    expected, x = [], images
    for layer in (module for module in critic.modules() if isinstance(module, torch.nn.Conv2d)):  # by hand
        x = F.leaky_relu(layer(x), 0.2)
        side = x.shape[2] // GRID
        expected.append(x.unflatten(2, (GRID, side)).unflatten(4, (GRID, side)).amax((3, 5)).flatten(1))
    assert [part.shape[1] for part in expected] == [4 * 16, 8 * 16, 16 * 16]
    torch.testing.assert_close(features(critic, images), torch.cat(expected, dim=1))


def test_a_residual_critic_gives_its_blocks_and_keeps_no_hook() -> None:
    critic = ResidualCriticSettings(width=2).build((3, 32, 32), classes=5).eval()
    assert features(critic, torch.zeros(2, 3, 32, 32)).shape == (2, 4 * (4 * 16))  # four blocks of 4 channels
    assert not any(module._forward_hooks for module in critic.modules())


def test_logistic_regression_is_at_its_minimum() -> None:
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator)
    linear = fit_linear(x, labels, 3, strength=0.1)
    # There the gradient vanishes: E (p - y) x + strength W = 0 and E (p - y) = 0.
    with torch.no_grad():
        wrong = (linear(x).softmax(1) - F.one_hot(labels, 3)) / 60
        assert (wrong.T @ x + 0.1 * linear.weight).abs().max() < 1e-4
        assert wrong.sum(0).abs().max() < 1e-4


def test_separable_classes_are_told_apart_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(400) % 4
    x = F.one_hot(labels, 6).float() * 5 + torch.randn(400, 6, generator=generator)
    x[:, 5] = 7.0  # a feature that never moves
    good, _ = probe((x[:200], labels[:200]), (x[200:], labels[200:]), 4)
    assert good > 0.95
    noise = torch.randn(400, 6, generator=generator)
    bad, _ = probe((noise[:200], labels[:200]), (noise[200:], labels[200:]), 4)
    assert bad == pytest.approx(0.25, abs=0.13)  # 200 guesses: the deviation is 0.031, four of them


def test_accuracy_counts() -> None:
    linear = torch.nn.Linear(2, 2)
    torch.nn.init.eye_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    assert (
        accuracy(linear, torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1, 1, 1]))
        == 0.75
    )
