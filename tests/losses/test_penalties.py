"""Penalties against closed forms, against gradients taken one example at a time, and under autocast."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from translate.losses.adversarial import WassersteinSettings
from translate.losses.penalties import (
    BottleneckSettings,
    Critic,
    DRAGANSettings,
    GradientPenaltySettings,
    PenaltySettings,
    R1Settings,
    R2Settings,
)
from translate.networks import PatchSettings

KINDS = get_args(get_args(PenaltySettings)[0])
every_penalty = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 16), nn.Softplus(), nn.Linear(16, 1))


class Witness:
    """A critic x -> mean of x that remembers where it was asked."""

    def __call__(self, x: Tensor) -> Tensor:
        self.asked = x.detach()
        return x.flatten(1).mean(1)


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 3, 3)])
def test_linear_critic(shape: tuple[int, ...]) -> None:
    real, fake = torch.randn(2, *shape).unbind()
    w = torch.randn(shape[1:], requires_grad=True)
    norm = torch.linalg.vector_norm(w.detach())
    direction = w.detach() / norm

    def critic(x: Tensor) -> Tensor:
        return (x * w).flatten(1).sum(1, keepdim=True)

    for settings, value, gradient in (
        (GradientPenaltySettings(), (norm - 1) ** 2, 2 * (norm - 1) * direction),
        (GradientPenaltySettings(target=3.0), (norm - 3) ** 2, 2 * (norm - 3) * direction),
        (DRAGANSettings(), (norm - 1) ** 2, 2 * (norm - 1) * direction),
        (R1Settings(), norm**2, 2 * norm * direction),
        (R2Settings(), norm**2, 2 * norm * direction),
    ):
        penalty = settings.build()(critic, real, fake)
        torch.testing.assert_close(penalty, value)
        (found,) = torch.autograd.grad(penalty, w)  # the penalty reaches the weights
        torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3, 3)])
def test_gradients_are_taken_for_each_example(shape: tuple[int, ...]) -> None:
    # D(x) = a |x|² / 2 has the gradient a x: another norm for each example, so a norm over the batch would show.
    a = 1.7
    real, fake = torch.randn(2, *shape).unbind()

    def critic(x: Tensor) -> Tensor:
        return a * x.square().flatten(1).sum(1) / 2

    norms = [a * torch.linalg.vector_norm(x.flatten(1), dim=1) for x in (real, fake)]
    torch.testing.assert_close(R1Settings().build()(critic, real, fake), norms[0].square().mean())
    torch.testing.assert_close(R2Settings().build()(critic, real, fake), norms[1].square().mean())
    # Between a sample and itself there is but the sample.
    two, one = (GradientPenaltySettings(sides=sides, target=norms[0].median().item()) for sides in ("two", "one"))
    beyond = norms[0] - norms[0].median()
    assert (beyond < 0).any()
    assert (beyond > 0).any()
    torch.testing.assert_close(two.build()(critic, real, real), beyond.square().mean())
    torch.testing.assert_close(one.build()(critic, real, real), beyond.clamp(min=0).square().mean())


def test_wgan_gp_predicts_its_gap() -> None:
    # D(x) = a x on a translate by delta minimises -a delta + lambda (a - 1)²: a = 1 + delta / (2 lambda).
    delta, settings = 3.0, GradientPenaltySettings(weight=10.0)
    fake = torch.randn(64, 1)
    real = fake[torch.randperm(64)] + delta
    a = torch.tensor(0.5, requires_grad=True)
    objective, penalty = WassersteinSettings().build(), settings.build()
    for _ in range(2):  # Newton's steps: the loss is quadratic, so the first one arrives
        slope = penalty(lambda x, a=a: a * x, real, fake)  # type: ignore[misc]
        loss = objective.discriminator(a * real, a * fake) + settings.weight * slope
        (first,) = torch.autograd.grad(loss, a, create_graph=True)
        (second,) = torch.autograd.grad(first, a)
        a = (a - first / second).detach().requires_grad_()
    assert a.item() == pytest.approx(1 + delta / (2 * settings.weight), rel=1e-5)
    assert (a * (real.mean() - fake.mean())).item() == pytest.approx(3.45, rel=1e-5)


def test_r1_bounds_the_linear_critic() -> None:
    # -a delta + w a² has its minimum at a = delta / (2 w).
    settings, delta = R1Settings(weight=5.0), 3.0
    a = torch.tensor(delta / 10, requires_grad=True)
    real, fake = torch.full((4, 1), delta), torch.zeros(4, 1)
    loss = WassersteinSettings().build().discriminator(a * real, a * fake)
    loss = loss + settings.weight * settings.build()(lambda x: a * x, real, fake)
    assert torch.autograd.grad(loss, a)[0].item() == pytest.approx(0, abs=1e-5)


# ---- where it is measured --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(500, 2), (500, 1, 2, 2)])
def test_interpolates_lie_between_the_pairs(shape: tuple[int, ...]) -> None:
    real, fake = torch.randn(2, *shape).unbind()
    witness = Witness()
    GradientPenaltySettings().build()(witness, real, fake)
    # One number for all of an example's values: the share of the way from fake to real.
    way, gone = (real - fake).flatten(1), (witness.asked - fake).flatten(1)
    share = (way * gone).sum(1) / way.square().sum(1)
    torch.testing.assert_close(witness.asked, torch.lerp(fake, real, share.reshape(-1, *[1] * (len(shape) - 1))))
    # Uniform in [0, 1]: of 500 the mean deviates by 0.013, the largest empty gap at an end by some 1/500.
    assert 0 <= share.min() < 0.03
    assert 0.97 < share.max() <= 1
    assert share.mean().item() == pytest.approx(0.5, abs=0.05)


def test_dragan_looks_round_the_real_samples() -> None:
    real, fake = 3 * torch.randn(400, 1, 5, 5) + 7, torch.full((400, 1, 5, 5), 1e6)
    witness = Witness()
    DRAGANSettings(noise=0.5).build()(witness, real, fake)
    noise = witness.asked - real
    # 1e4 draws: the mean deviates by a hundredth, the deviation by 0.7 % of the noise's 1.5.
    assert noise.mean().item() == pytest.approx(0, abs=0.06)
    assert noise.std().item() == pytest.approx(0.5 * real.std().item(), rel=0.03)


@every_penalty
def test_where_it_is_measured_comes_from_torch_s_generator(kind: Any) -> None:
    critic, real, fake = perceptron(), *torch.randn(2, 4, 3).unbind()
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(kind().build()(critic, real, fake))
    assert found[0] == found[1]
    moved = kind().build()(critic, real, fake)
    assert (moved == found[0]) == (kind in (R1Settings, R2Settings))


def test_one_side_counts_alone_for_r1_and_r2() -> None:
    critic, real, fake = perceptron(), *torch.randn(2, 4, 3).unbind()
    assert R1Settings().build()(critic, real, fake) == R2Settings().build()(critic, fake, real)
    assert R1Settings().build()(critic, real, fake) == R1Settings().build()(critic, real, fake + 1)


def test_pairs_must_match() -> None:
    for shape in ((3, 3), (4, 2), (1, 3)):
        with pytest.raises(ValueError, match="real samples"):
            GradientPenaltySettings().build()(perceptron(), torch.zeros(4, 3), torch.zeros(shape))


# ---- what it differentiates ------------------------------------------------------------------------------------------


def one_by_one(critic: nn.Module, x: Tensor) -> Tensor:
    """|grad D| of each example by torch.func, in its own forward pass of one."""
    weights = dict(critic.named_parameters())

    def output(sample: Tensor) -> Tensor:
        return torch.func.functional_call(critic, weights, sample[None]).mean()

    gradients = torch.stack([torch.func.grad(output)(sample).flatten() for sample in x])
    return torch.linalg.vector_norm(gradients, dim=1)


def test_perceptron_agrees_with_gradients_one_by_one() -> None:
    critic = perceptron()
    real, fake = torch.randn(2, 5, 3).unbind()
    for settings, expected in (
        (R1Settings(), one_by_one(critic, real).square().mean()),
        (R2Settings(), one_by_one(critic, fake).square().mean()),
        (GradientPenaltySettings(), (one_by_one(critic, real) - 1).square().mean()),
    ):
        other = real if settings.kind == "gradient-penalty" else fake
        penalty = settings.build()(critic, real, other)
        torch.testing.assert_close(penalty, expected)
        weights = [p for name, p in critic.named_parameters() if name != "2.bias"]  # which no slope depends on
        found, wanted = (torch.autograd.grad(value, weights) for value in (penalty, expected))
        torch.testing.assert_close(found, wanted)


@every_penalty
def test_patch_discriminator_learns_from_its_penalty(kind: Any) -> None:
    critic = PatchSettings(layers=1, width=4, norm="instance", spectral_norm=True).build(2)
    real = torch.randn(3, 2, 16, 16, requires_grad=True)
    leaf = torch.randn(3, 2, 16, 16, requires_grad=True)
    penalty = kind().build()(critic, real, 2 * leaf)
    penalty.backward()
    assert real.grad is None
    assert leaf.grad is None
    for name, weight in critic.named_parameters():
        if name.endswith("weight") or "original" in name:
            assert weight.grad is not None, name
            assert weight.grad.any(), name


def test_patches_are_averaged_in_an_example() -> None:
    critic = nn.Conv2d(1, 1, 1, bias=False)
    x = torch.randn(3, 1, 2, 2)
    # Mean of 4 logits w x_i: a gradient of w / 4 at each of 4 pixels.
    penalty = R1Settings().build()(critic, x, x)
    torch.testing.assert_close(penalty, 4 * (critic.weight.detach().squeeze() / 4) ** 2)


@every_penalty
def test_flat_critic_has_finite_gradients(kind: Any) -> None:
    critic = nn.Linear(3, 1)
    nn.init.zeros_(critic.weight)
    penalty = kind().build()(critic, torch.randn(4, 3), torch.randn(4, 3))
    assert penalty.item() == (1 if kind in (GradientPenaltySettings, DRAGANSettings) else 0)
    penalty.backward()
    assert critic.weight.grad is not None
    assert critic.weight.grad.isfinite().all()


def test_batch_norm_couples_the_examples() -> None:
    # Why the critic must not have it: what is measured is no longer the slope at the example.
    critic = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Softplus(), nn.Linear(8, 1)).train()
    x = torch.randn(6, 3)
    measured = R1Settings().build()(critic, x, x)
    alone = one_by_one(critic.eval(), x).square().mean()
    assert not torch.isclose(measured, alone, rtol=0.1)


# ---- precision -------------------------------------------------------------------------------------------------------


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(), nn.Linear(8 * 16, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_penalty
def test_autocast_changes_nothing(kind: Any, dtype: torch.dtype) -> None:
    critic = convolutional()
    real, fake = torch.randn(2, 4, 3, 8, 8).unbind()

    def measure(critic: Critic) -> Tensor:
        torch.manual_seed(1)
        return kind().build()(critic, real, fake)  # type: ignore[no-any-return]

    plain = measure(critic)
    with torch.autocast("cpu", dtype=dtype):
        critic(real)  # autocast now holds low-precision copies of the weights
        lowered = measure(critic)
    assert lowered.dtype is torch.float32
    assert torch.equal(lowered, plain)
    # Scaling a loss for fp16: the gradients are scaled, what is penalised is not.
    weights = list(critic.parameters())[:-1]
    wanted = torch.autograd.grad(plain, weights, allow_unused=True, materialize_grads=True)
    scaled = torch.autograd.grad(2.0**16 * lowered, weights, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close([g / 2.0**16 for g in scaled], list(wanted), rtol=1e-6, atol=0)


@every_penalty
def test_half_precision_samples_are_taken_in_float32(kind: Any) -> None:
    critic = convolutional()
    real, fake = torch.randn(2, 4, 3, 8, 8, dtype=torch.bfloat16).unbind()
    penalty = kind().build()(critic, real, fake)
    assert penalty.dtype is torch.float32
    assert penalty.shape == ()


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(PenaltySettings)
    for kind in KINDS:
        settings = kind(weight=3.0, every=16)
        assert adapter.validate_python(settings.model_dump(mode="json")) == settings
        with pytest.raises(ValidationError):
            settings.weight = 1.0
        with pytest.raises(ValidationError):
            kind(every=0)
        with pytest.raises(ValidationError):
            kind(weight=-1.0)
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert R1Settings().name == "r1"


# ---- the bottleneck --------------------------------------------------------------------------------------------------


def test_bottleneck_rises_until_the_budget_is_kept() -> None:
    bottleneck = BottleneckSettings(information=0.5, rate=0.1).build()
    information = torch.tensor([1.0, 3.0], requires_grad=True)
    assert bottleneck(information).item() == 0  # beta starts at 0
    reported = bottleneck.update(information.detach())
    assert reported["beta"].item() == pytest.approx(0.1 * (2 - 0.5))
    assert reported["nats"].item() == 2
    loss = bottleneck(information)
    assert loss.item() == pytest.approx(0.15 * 1.5)
    bottleneck.update(torch.zeros(2))  # may come before the loss is differentiated
    (gradient,) = torch.autograd.grad(loss, information)
    torch.testing.assert_close(gradient, torch.full((2,), 0.15 / 2))
    assert bottleneck.beta.item() == pytest.approx(0.15 - 0.05)
    assert reported["beta"].item() == pytest.approx(0.15)
    for _ in range(3):
        bottleneck.update(torch.zeros(2))
    assert bottleneck.beta.item() == 0
    bottleneck.update(torch.tensor([torch.inf, 0.0]))
    assert bottleneck.beta.item() == 0
    assert set(bottleneck.state_dict()) == {"beta"}


def test_bottleneck_holds_a_channel_to_its_budget() -> None:
    # Maximise log(1 + n) - beta (n - I_c) over the information n by gradient ascent: n goes to I_c and beta to the
    # slope there, 1 / (1 + I_c). The two-variable descent is damped, so 2000 steps of 0.02 leave less than 1e-2.
    bottleneck = BottleneckSettings(information=0.5, rate=0.02).build()
    n = torch.tensor([3.0], requires_grad=True)
    for _ in range(2000):
        (gradient,) = torch.autograd.grad(bottleneck(n) - torch.log1p(n).sum(), n)
        bottleneck.update(n.detach())
        n = (n - 0.02 * gradient).detach().requires_grad_()
    assert n.item() == pytest.approx(0.5, abs=1e-2)
    assert bottleneck.beta.item() == pytest.approx(1 / 1.5, abs=1e-2)


def test_bottleneck_is_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = BottleneckSettings().build()(torch.ones(3, dtype=torch.bfloat16))
    assert loss.dtype is torch.float32
