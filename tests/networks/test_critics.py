from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional
from torch.nn.utils import parametrize

from translate.networks.critics import Bottleneck, ClassHead, CodeHead, CriticBaseSettings, TrunkCritic
from translate.networks.latent import Shape
from translate.networks.layers import InitialisationSettings
from translate.networks.minibatch import MinibatchDiscriminationSettings


class TinySettings(CriticBaseSettings):
    """One tanh layer of 6 units."""

    initialisation: InitialisationSettings = InitialisationSettings(kind="kaiming")

    def trunk(self, shape: Shape) -> tuple[nn.Module, int]:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 6), nn.Tanh()), 6


KERNELS = MinibatchDiscriminationSettings(kernels=3, dimensions=2)
SHAPE = (2, 3, 3)


def test_plain_logits_are_linear_in_the_trunk() -> None:
    torch.manual_seed(0)
    critic = TinySettings().build(SHAPE)
    x = torch.randn(4, *SHAPE)
    judged = critic.judge(x)
    features = torch.tanh(x.flatten(1) @ critic.features.trunk[1].weight.T)
    torch.testing.assert_close(judged.features, features)
    torch.testing.assert_close(judged.logits, features @ critic.score.weight.T)  # its bias starts at 0
    assert judged.logits.shape == (4, 1)
    assert judged.information is None
    assert torch.equal(critic(x), judged.logits)
    assert critic.width == 6


def test_projection_adds_the_product_of_class_and_features() -> None:
    torch.manual_seed(0)
    critic = TinySettings().build(SHAPE, classes=5)
    x, label = torch.randn(4, *SHAPE), torch.tensor([4, 0, 0, 2])
    judged = critic.judge(x, label)
    assert critic.classes == 5
    assert critic.embedding is not None
    for i in range(4):
        phi = judged.features[i]
        expected = critic.score.weight[0] @ phi + critic.score.bias[0] + critic.embedding.weight[label[i]] @ phi
        torch.testing.assert_close(judged.logits[i, 0], expected)
    assert not torch.equal(critic(x, label), critic(x, label + torch.tensor([0, 1, 0, 0])))


def test_minibatch_discrimination_stands_behind_the_trunk() -> None:
    torch.manual_seed(0)
    critic = TinySettings(minibatch_discrimination=KERNELS).build(SHAPE)
    x = torch.randn(4, *SHAPE)
    features = critic.judge(x).features
    assert critic.width == 9
    assert features.shape == (4, 9)
    alone = critic.judge(x[:1]).features
    torch.testing.assert_close(alone[0, :6], features[0, :6])
    torch.testing.assert_close(alone[0, 6:], torch.ones(3))  # none near but itself
    assert (features[:, 6:] > 1).all()


def test_information_of_the_bottleneck_is_the_divergence_of_its_gaussian() -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck(6, 4)
    x = torch.randn(5, 6) * 3
    _, information = bottleneck(x)
    mean, log_variance = bottleneck.encode(x).chunk(2, dim=1)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(5, 4), torch.ones(5, 4)))
    torch.testing.assert_close(information, expected.sum(1))


def test_code_of_the_bottleneck_is_drawn_in_training_and_its_mean_in_evaluation() -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck(6, 2)
    x = torch.randn(1, 6) * 3
    mean, log_variance = bottleneck.encode(x)[0].chunk(2)
    codes, _ = bottleneck(x.expand(20_000, -1))
    # Standard errors at 20,000 draws: a 140th of the deviation for the mean, a 200th for the deviation.
    deviation = (log_variance / 2).exp()
    torch.testing.assert_close((codes.mean(0) - mean) / deviation, torch.zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(codes.std(0) / deviation, torch.ones(2), atol=0.025, rtol=0)
    torch.testing.assert_close(bottleneck.eval()(x)[0][0], mean)


def test_score_reads_the_code() -> None:
    torch.manual_seed(0)
    critic = TinySettings(bottleneck=2, minibatch_discrimination=KERNELS).build(SHAPE, classes=3)
    judged = critic.judge(torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 0]))
    assert critic.width == 2
    assert judged.features.shape == (4, 2)
    assert judged.information is not None
    assert judged.information.shape == (4,)
    assert (judged.information > 0).all()
    with pytest.raises(ValidationError, match="bottleneck"):
        TinySettings(bottleneck=0)


def full(spectral_norm: bool) -> TrunkCritic:
    torch.manual_seed(0)
    settings = TinySettings(spectral_norm=spectral_norm, minibatch_discrimination=KERNELS, bottleneck=4)
    critic = settings.build(SHAPE, classes=3)
    critic.add_head("classes", ClassHead(critic.width, 3))
    critic.add_head("codes", CodeHead(critic.width, [10, 3], 2))
    return critic


def test_spectral_norm_is_on_all_that_is_linear() -> None:
    critic = full(spectral_norm=True)
    layers = [layer for layer in critic.modules() if isinstance(layer, nn.Linear | nn.Embedding)]
    assert len(layers) == 8  # trunk, T, encoder, score, embedding, class head, and two of the code head
    for _ in range(30):
        critic(torch.randn(2, *SHAPE), torch.tensor([0, 1]))
        critic.heads["codes"](torch.randn(2, 4))
        critic.heads["classes"](torch.randn(2, 4))
    critic.eval()
    for layer in layers:
        assert parametrize.is_parametrized(layer, "weight")
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=0.02)
    assert not any(parametrize.is_parametrized(layer) for layer in full(spectral_norm=False).modules())


def test_weights_are_drawn_as_asked_heads_too() -> None:
    torch.manual_seed(0)
    settings = TinySettings(initialisation=InitialisationSettings(gain=0.5))
    critic = settings.build((100, 10, 10))
    critic.add_head("classes", ClassHead(critic.width, 1000))
    for layer in (critic.features.trunk[1], critic.heads["classes"]):
        assert layer.weight.std().item() == pytest.approx(0.5, rel=0.03)
        assert not layer.bias.any()


def test_heads() -> None:
    critic = full(spectral_norm=False)
    features = critic.judge(torch.randn(5, *SHAPE), torch.zeros(5, dtype=torch.long)).features
    assert critic.heads["classes"](features).shape == (5, 3)
    codes = critic.heads["codes"](features)
    assert [logits.shape for logits in codes.categorical] == [(5, 10), (5, 3)]
    assert codes.continuous.shape == (5, 2)
    only_continuous = CodeHead(4, [], 3)(features)
    assert only_continuous.categorical == []
    assert only_continuous.continuous.shape == (5, 3)
    assert CodeHead(4, [10], 0)(features).continuous.shape == (5, 0)


def test_code_head_is_linear_norm_leaky_linear() -> None:
    head = full(spectral_norm=False).heads["codes"]
    features = torch.randn(7, 4)
    first, last = head.layers[0], head.layers[3]
    hidden = functional.batch_norm(features @ first.weight.T, None, None, head.layers[1].weight, training=True)
    expected = torch.where(hidden > 0, hidden, 0.1 * hidden) @ last.weight.T
    codes = head(features)
    torch.testing.assert_close(torch.cat([*codes.categorical, codes.continuous], dim=1), expected)
    assert first.weight.shape == (128, 4)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_gradient_penalty_reaches_every_weight(spectral_norm: bool) -> None:
    critic = full(spectral_norm)
    x, label = torch.randn(4, *SHAPE, requires_grad=True), torch.tensor([0, 1, 2, 0])
    (gradient,) = torch.autograd.grad(critic(x, label).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    for name, parameter in critic.named_parameters():
        if not name.startswith("heads") and not name.endswith("bias"):
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_state_round_trip() -> None:
    critic, other = full(spectral_norm=True), full(spectral_norm=True)
    x, label = torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        critic(x, label)
    assert not torch.equal(critic.eval()(x, label), other.eval()(x, label))
    other.load_state_dict(critic.state_dict())
    assert torch.equal(critic(x, label), other(x, label))


def test_logits_and_features_are_float32_under_autocast() -> None:
    critic = full(spectral_norm=False).eval()
    x, label = torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 0])
    expected = critic.judge(x, label)
    with torch.autocast("cpu", torch.bfloat16):
        got = critic.judge(x, label)
    for a, b in zip(got, expected, strict=True):
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        assert a.dtype == torch.float32
        # 8 bits through three layers whose values are around 1.
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.05)
    plain = TinySettings().build(SHAPE, classes=3)  # whose trunk ends in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert plain.features(x)[0].dtype == torch.bfloat16
        judged = plain.judge(x, label)
    assert judged.logits.dtype == judged.features.dtype == torch.float32
    # The score itself is no bfloat16 number.
    assert not torch.equal(judged.logits, judged.logits.bfloat16().float())
