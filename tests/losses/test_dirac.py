"""The Dirac-GAN of Mescheder et al. (arXiv 1801.04406): data at 0, a generator at theta, a critic D(x) = psi x.

Its one equilibrium is (0, 0). Without a penalty gradient steps circle it, leave it or take forever; R1 and R2 lead to
it; WGAN-GP, whose slope wants to be one there, does not. So it tells penalties apart that look alike on images.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from translate.losses.adversarial import (
    HingeSettings,
    MinimaxSettings,
    NonSaturatingSettings,
    ObjectiveUnion,
    RelativisticSettings,
    WassersteinSettings,
)
from translate.losses.penalties import GradientPenaltySettings, R1Settings, R2Settings

RATE = 0.1
# Of the same value for both players: theta and psi are to each other as place and momentum.
ZERO_SUM = [MinimaxSettings(), WassersteinSettings()]
# The generator's own log, where the real logit is 0: -log sigmoid(psi theta) in both.
OWN_LOSS = [NonSaturatingSettings(), RelativisticSettings()]


def play(
    game: ObjectiveUnion, penalty: Any | None, steps: int, *, together: bool = False, critic_steps: int = 1
) -> Tensor:
    """The path of (theta, psi) from (1, 1), (steps, 2); players move in turn, or `together` from the same point."""
    objective = game.build()
    measure = penalty.build() if penalty is not None else None
    real = torch.zeros(1, 1)
    theta, psi = torch.ones(1, 1), torch.ones(())
    path = []
    for _ in range(steps):
        before = psi
        for _ in range(critic_steps):
            psi = psi.requires_grad_()

            def critic(x: Tensor, psi: Tensor = psi) -> Tensor:
                return psi * x

            loss = objective.discriminator(critic(real), critic(theta))
            if measure is not None:
                loss = loss + penalty.weight * measure(critic, real, theta)
            psi = (psi - RATE * torch.autograd.grad(loss, psi)[0]).detach()
        seen = before.detach() if together else psi
        theta = theta.requires_grad_()
        loss = objective.generator(seen * theta, seen * real)
        theta = (theta - RATE * torch.autograd.grad(loss, theta)[0]).detach()
        path.append(torch.stack([theta.squeeze(), psi]))
    return torch.stack(path)


def radius(path: Tensor) -> Tensor:
    return torch.linalg.vector_norm(path, dim=1)


@pytest.mark.parametrize("game", ZERO_SUM, ids=lambda game: game.kind)
def test_unpenalised_players_that_move_together_diverge(game: ObjectiveUnion) -> None:
    # The eigenvalues 1 +- i h f'(0) lie outside the unit circle.
    distance = radius(play(game, None, 400, together=True))
    assert distance[-1] > 1.2 * 2**0.5
    assert distance[-100:].mean() > distance[100:200].mean() > distance[:100].mean()


@pytest.mark.parametrize("game", ZERO_SUM, ids=lambda game: game.kind)
def test_unpenalised_players_in_turn_cycle(game: ObjectiveUnion) -> None:
    # The eigenvalues lie on the unit circle: the path comes back and neither grows nor shrinks.
    path = play(game, None, 400)
    distance = radius(path)
    assert distance.min() > 0.7
    assert distance.max() < 2.2
    assert path[-200:, 0].max() > 0.5
    assert path[-200:, 0].min() < -0.5


@pytest.mark.parametrize("game", OWN_LOSS, ids=lambda game: game.kind)
def test_unpenalised_generators_of_their_own_loss_crawl(game: ObjectiveUnion) -> None:
    # Here r² changes by 2 h theta psi (f'(theta psi) - f'(-theta psi)) = -h (theta psi)² a step to the lowest order,
    # and (theta psi)² is r⁴ / 8 on average: 1 / r² = 1 / r0² + h n / 8. The orders left out are some 10 %.
    steps = 600
    distance = radius(play(game, None, steps))
    assert distance[-1].item() == pytest.approx((1 / 2 + RATE * steps / 8) ** -0.5, rel=0.15)
    # Moving together adds (h / 2)² r² a step: the two balance at r² = 2 h and r never vanishes.
    distance = radius(play(game, None, steps, together=True))
    assert distance[-200:].mean().item() == pytest.approx((2 * RATE) ** 0.5, rel=0.25)


def test_unpenalised_wasserstein_keeps_its_ellipse() -> None:
    # In turn, theta' = theta + h psi', psi' = psi - h theta keeps theta² + psi² + h theta psi: symplectic Euler.
    theta, psi = play(WassersteinSettings(), None, 1000).unbind(1)
    kept = theta.square() + psi.square() - RATE * theta * psi
    torch.testing.assert_close(kept, torch.full_like(kept, kept[0].item()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("penalty", [R1Settings(weight=0.5), R2Settings(weight=0.5)], ids=lambda p: p.kind)
@pytest.mark.parametrize("game", [*ZERO_SUM, *OWN_LOSS, HingeSettings()], ids=lambda game: game.kind)
def test_a_zero_centred_penalty_converges(game: ObjectiveUnion, penalty: Any) -> None:
    # gamma = 1: real parts of the eigenvalues are -1/2, with f'(0) = 1/2 or 1: e^(-h / 2) a step, e^-20 at the end.
    distance = radius(play(game, penalty, 400))
    assert distance[-1] < 1e-4
    assert distance[200] < distance[0] / 10


@pytest.mark.parametrize("kind", [R1Settings, R2Settings])
def test_convergence_is_as_fast_as_the_eigenvalues_say(kind: Any) -> None:
    # Together, Wasserstein: [theta, psi] <- [[1, h], [-h, 1 - h gamma]] [theta, psi], gamma = 2 weight.
    gamma, steps = 1.0, 200
    path = play(WassersteinSettings(), kind(weight=gamma / 2), steps, together=True)
    step = torch.tensor([[1, RATE], [-RATE, 1 - RATE * gamma]], dtype=torch.float64)
    expected = torch.linalg.matrix_power(step, steps) @ torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(path[-1].double(), expected, rtol=1e-3, atol=1e-8)
    rate = torch.linalg.eigvals(step).abs().max()
    assert rate < 1
    assert radius(path)[-1] < 2 * rate**steps


def test_wgan_gp_does_not_converge() -> None:
    # With one critic step for each of the generator's it circles: the slope wants to be 1 at the equilibrium too.
    path = play(WassersteinSettings(), GradientPenaltySettings(weight=0.5), 300)
    assert path[-150:, 0].max() > 1
    assert path[-150:, 0].min() < -1
    # With five the critic keeps at its own optimum, the slope 1 - |theta| / (2 lambda): the generator walks away from
    # the data to where that is flat, |theta| = 2 lambda.
    weight = 1.0
    path = play(WassersteinSettings(), GradientPenaltySettings(weight=weight), 200, critic_steps=5)
    assert path[-1, 0].abs().item() == pytest.approx(2 * weight, rel=1e-2)
    # R1 under the same numbers.
    assert radius(play(WassersteinSettings(), R1Settings(weight=weight), 200, critic_steps=5))[-1] < 1e-2
