"""The adversarial game: what the discriminator and the generator minimise, on raw logits of any shape.

Each row of `OBJECTIVES` is one game. A new one is two functions, one row and one name in `ObjectiveName`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from torch import Tensor
from torch.nn.functional import relu, softplus

ObjectiveName = Literal["vanilla", "lsgan", "hinge"]


class GeneratorLoss(Protocol):
    """(fake logits, real logits for the games that compare the two) -> float32 scalar."""

    def __call__(self, fake: Tensor, real: Tensor | None = None) -> Tensor: ...


class Objective(NamedTuple):
    """Two pure functions on raw logits; both return a float32 scalar, also under autocast."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    """(real logits, fake logits) -> mean over the real + mean over the fake (no half)."""
    generator: GeneratorLoss
    """(fake logits, real logits or None) -> the mean over the fake."""


def _vanilla_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    # -log sigmoid(x) = softplus(-x) and -log(1 - sigmoid(x)) = softplus(x), without overflow.
    return softplus(-real.float()).mean() + softplus(fake.float()).mean()


def _vanilla_generator(fake: Tensor, real: Tensor | None = None) -> Tensor:
    return softplus(-fake.float()).mean()


def _lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return (real.float() - 1).square().mean() + fake.float().square().mean()


def _lsgan_generator(fake: Tensor, real: Tensor | None = None) -> Tensor:
    return (fake.float() - 1).square().mean()


def _hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return relu(1 - real.float()).mean() + relu(1 + fake.float()).mean()


def _hinge_generator(fake: Tensor, real: Tensor | None = None) -> Tensor:
    return -fake.float().mean()


OBJECTIVES: Mapping[ObjectiveName, Objective] = MappingProxyType(
    {
        # Goodfellow et al., arXiv 1406.2661: eq. 1, and the non-saturating generator of section 3.
        "vanilla": Objective(_vanilla_discriminator, _vanilla_generator),
        # Mao et al., arXiv 1611.04076: eq. 9 (targets 1 and 0), without the factor 1/2, as CycleGAN uses it.
        "lsgan": Objective(_lsgan_discriminator, _lsgan_generator),
        # Lim & Ye, arXiv 1705.02894; Miyato et al., arXiv 1802.05957: eq. 16 and 17.
        "hinge": Objective(_hinge_discriminator, _hinge_generator),
    }
)
