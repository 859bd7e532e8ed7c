"""Penalties on a discriminator's slope, and the bound on what it may know of its input.

A penalty is a mean over examples: each example's own gradient is measured, never that of the batch. So the critic must
treat examples apart. With batch norm D(x_i) depends on every x_j: the gradient with respect to x_i then holds what x_i
does to the others' outputs, and its norm is the slope of no function of one sample (WGAN-GP, section 4: no batch norm
in the critic).

Penalties are computed in float32, outside autocast, from gradients of unscaled outputs: the result may be scaled as any
other loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import relu

from translate.settings import Settings

Critic = Callable[[Tensor], Tensor]
"""Samples (N, ...) -> logits: (N,), (N, 1), or (N, 1, H', W') of patches."""


class Penalty(ABC):
    """The mean over the examples of a function of |grad D|: how far the critic's slope is from what it should be."""

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        """Real and fake samples, (N, ...) each -> float32 scalar, unweighted, differentiable by the critic's weights.

        No gradient flows to `real` or `fake`. What the critic says of an example is the mean over its patches.
        """
        with torch.autocast(real.device.type, enabled=False):
            return self.measure(critic, real.detach().float(), fake.detach().float())

    @abstractmethod
    def measure(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty of float32 samples without a history, outside autocast."""


def slopes(critic: Critic, x: Tensor) -> Tensor:
    """grad D at each of the examples (N, ...), flattened: (N, D), itself differentiable by the critic's weights."""
    x = x.detach().requires_grad_()
    outputs = critic(x).reshape(len(x), -1).mean(1)  # (N, patches) -> (N,)
    (gradients,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return gradients.flatten(1)


class _LazySettings(Settings):
    every: int = Field(default=1, ge=1)
    """Counted in one step of so many only, there so many times as much (StyleGAN2, arXiv 1912.04958, appendix B)."""


# ---- slopes held to a target -----------------------------------------------------------------------------------------

Sides = Literal["two", "one"]


class GradientPenaltySettings(_LazySettings):
    """Slope `target` between real and fake samples (WGAN-GP, Gulrajani et al., arXiv 1704.00028, eq. 3)."""

    kind: Literal["gradient-penalty"] = "gradient-penalty"
    weight: float = Field(default=10.0, ge=0)
    """The paper's lambda (section 4)."""
    sides: Sides = "two"
    """`one` forgives a slope below the target."""
    target: float = Field(default=1.0, ge=0)
    """The slope. PGGAN has one of 750 with the penalty over its square (arXiv 1710.10196, appendix A.2)."""
    name: ClassVar[str] = "gradient_penalty"

    def build(self) -> Penalty:
        return GradientPenalty(self.sides, self.target)


class GradientPenalty(Penalty):
    """E (|grad D(u)| - target)², u drawn between a real and a fake sample; one-sided: E max(0, |grad D(u)| - target)².

    Real and fake samples stand in pairs: ValueError where their shapes differ.
    """

    def __init__(self, sides: Sides, target: float) -> None:
        self.sides, self.target = sides, target

    def measure(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        if real.shape != fake.shape:
            raise ValueError(f"gradient penalty: real samples {tuple(real.shape)}, fake {tuple(fake.shape)}")
        share = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)  # (N, 1, ...): one for each example
        return self.excess(slopes(critic, torch.lerp(fake, real, share)))

    def excess(self, gradients: Tensor) -> Tensor:
        """(N, D) gradients -> the mean squared deviation of their norms from the target."""
        # vector_norm and no square root: it has a (zero) slope where the gradient vanishes, instead of none.
        beyond = torch.linalg.vector_norm(gradients, dim=1) - self.target
        return (relu(beyond) if self.sides == "one" else beyond).square().mean()


class DRAGANSettings(_LazySettings):
    """Slope `target` round the real samples (Kodali et al., arXiv 1705.07215, section 2.3)."""

    kind: Literal["dragan"] = "dragan"
    weight: float = Field(default=10.0, ge=0)
    """The paper's lambda."""
    target: float = Field(default=1.0, ge=0)
    """The paper's k."""
    noise: float = Field(default=0.5, gt=0)
    """Deviation of the Gaussian noise over that of the batch's own values (the authors' code takes 0.5 of it too, but
    noise uniform in [0, 1])."""
    name: ClassVar[str] = "dragan"

    def build(self) -> Penalty:
        return DRAGAN(self.target, self.noise)


class DRAGAN(GradientPenalty):
    """E (|grad D(x + noise)| - target)², x real."""

    def __init__(self, target: float, noise: float) -> None:
        super().__init__("two", target)
        self.noise = noise

    def measure(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        return self.excess(slopes(critic, real + self.noise * real.std() * torch.randn_like(real)))


# ---- slopes held to zero ---------------------------------------------------------------------------------------------


class R1Settings(_LazySettings):
    """No slope at the real samples (Mescheder et al., arXiv 1801.04406, eq. 9)."""

    kind: Literal["r1"] = "r1"
    weight: float = Field(default=5.0, ge=0)
    """Half of the paper's gamma, which is 10 there: the term is E |grad D|², without its factor 1/2."""
    name: ClassVar[str] = "r1"

    def build(self) -> Penalty:
        return R1()


class R1(Penalty):
    """E |grad D(x)|², x real."""

    def measure(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        return slopes(critic, real).square().sum(1).mean()


class R2Settings(_LazySettings):
    """No slope at the fake samples (Mescheder et al., arXiv 1801.04406, eq. 10)."""

    kind: Literal["r2"] = "r2"
    weight: float = Field(default=5.0, ge=0)
    """Half of the paper's gamma, which is 10 there: the term is E |grad D|², without its factor 1/2."""
    name: ClassVar[str] = "r2"

    def build(self) -> Penalty:
        return R2()


class R2(Penalty):
    """E |grad D(x)|², x fake."""

    def measure(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        return slopes(critic, fake).square().sum(1).mean()


PenaltySettings = Annotated[
    GradientPenaltySettings | DRAGANSettings | R1Settings | R2Settings, Field(discriminator="kind")
]


# ---- information -----------------------------------------------------------------------------------------------------


class BottleneckSettings(Settings):
    """What passes the discriminator's code is held to a budget (VDB, Peng et al., arXiv 1810.00821, eq. 6 and 8)."""

    information: float = Field(default=0.1, ge=0)
    """The paper's I_c, nats: the budget of KL(E(z | x) || r(z)), mean over real and fake samples (authors' code for
    CIFAR-10: 0.1)."""
    rate: float = Field(default=1e-5, gt=0)
    """The paper's alpha_beta: step size of the multiplier beta (authors' code: 1e-5)."""

    def build(self) -> VariationalBottleneck:
        return VariationalBottleneck(self.information, self.rate)


class VariationalBottleneck(nn.Module):
    """beta (E KL - I_c), with beta <- max(0, beta + alpha_beta (E KL - I_c)): dual gradient ascent from beta = 0.

    beta stays as it is where the information is no number.
    """

    beta: Tensor

    def __init__(self, information: float, rate: float) -> None:
        super().__init__()
        self.information, self.rate = information, rate
        self.register_buffer("beta", torch.zeros((), dtype=torch.float32))

    def forward(self, information: Tensor) -> Tensor:
        """(N,) nats of the real and the fake samples -> float32 scalar."""
        # A copy of beta: `update` moves it in place before this loss is differentiated.
        return self.beta.clone() * (information.float().mean() - self.information)

    @torch.no_grad()
    def update(self, information: Tensor) -> dict[str, Tensor]:
        """Move beta after a loss of this (detached) information; what to report."""
        mean = information.float().mean()
        moved = relu(self.beta + self.rate * (mean - self.information))
        self.beta.copy_(torch.where(mean.isfinite(), moved, self.beta))
        return {"beta": self.beta.clone(), "nats": mean}
