"""The adversarial game: what the discriminator and the generator minimise, on raw logits of any shape.

Each game is a class of two formulas below its settings. A new one is such a pair and one name in `ObjectiveSettings`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from translate.settings import Settings


class Objective(nn.Module, ABC):
    """One game. Both losses are float32 scalars under autocast too: means over all logits, whatever their shape.

    A discriminator's loss is the mean over the real plus the mean over the fake, without the factor 1/2 that some
    papers write. Logits are higher for "real", but for the two games on energies (EBGAN, BEGAN): lower.
    """

    probability: ClassVar[bool] = False
    """Whether sigmoid(logits) is the discriminator's probability of "real"."""
    needs_real: ClassVar[bool] = False
    """Whether the generator's loss compares with the real logits; it raises ValueError without them then."""

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Raw logits of real and of fake samples -> what the discriminator minimises."""

    @abstractmethod
    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Raw logits of fake samples, and of real ones where `needs_real` -> what the generator minimises."""

    def update(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Move the game's own state after a discriminator's loss on these (detached) logits; what to report of it."""
        return {}


# ---- probabilities ---------------------------------------------------------------------------------------------------

Smoothing = Annotated[float, Field(ge=0, lt=1)]


class _Probability(Objective):
    """Binary cross-entropy of "real" against "fake": D = sigmoid(logits), at best (1 - smoothing) p / (p + q)."""

    probability = True

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        # -log D = softplus(-x) and -log(1 - D) = softplus(x) = softplus(-x) + x, without overflow.
        real, fake = real.float(), fake.float()
        return softplus(-real).mean() + self.smoothing * real.mean() + softplus(fake).mean()


class MinimaxSettings(Settings):
    """Both play for the same value, as the theory has it (Goodfellow et al., arXiv 1406.2661, eq. 1)."""

    kind: Literal["minimax"] = "minimax"
    smoothing: Smoothing = 0.0
    """The real samples' target is 1 - smoothing, the fakes' stays 0 (Salimans et al., arXiv 1606.03498, 3.4)."""

    def build(self) -> Objective:
        return Minimax(self.smoothing)


class Minimax(_Probability):
    """G minimises E log(1 - D(fake)), whose slope vanishes where the discriminator is sure."""

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return -softplus(fake.float()).mean()


class NonSaturatingSettings(Settings):
    """The generator maximises log D(fake) instead (Goodfellow et al., arXiv 1406.2661, section 3)."""

    kind: Literal["non-saturating"] = "non-saturating"
    smoothing: Smoothing = 0.0
    """The real samples' target is 1 - smoothing, the fakes' stays 0 (Salimans et al., arXiv 1606.03498, 3.4)."""

    def build(self) -> Objective:
        return NonSaturating(self.smoothing)


class NonSaturating(_Probability):
    """G minimises -E log D(fake)."""

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return softplus(-fake.float()).mean()


# ---- scores ----------------------------------------------------------------------------------------------------------

Coding = Literal["1/0", "-1/1/0"]


class LeastSquaresSettings(Settings):
    """Squared distance of the logits to target numbers (Mao et al., arXiv 1611.04076)."""

    kind: Literal["least-squares"] = "least-squares"
    coding: Coding = "1/0"
    """`1/0`: targets 1 for real, 0 for fake, 1 for the generator (eq. 9; CycleGAN's). `-1/1/0`: -1 for fake, 1 for
    real, 0 for the generator (eq. 8), which then minimises a Pearson divergence."""

    def build(self) -> Objective:
        return LeastSquares(self.coding)


class LeastSquares(Objective):
    """(D(real) - b)² + (D(fake) - a)², and (D(fake) - c)²: the paper's a, b, c, without its factor 1/2."""

    def __init__(self, coding: Coding) -> None:
        super().__init__()
        self.a, self.b, self.c = {"1/0": (0, 1, 1), "-1/1/0": (-1, 1, 0)}[coding]

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (real.float() - self.b).square().mean() + (fake.float() - self.a).square().mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return (fake.float() - self.c).square().mean()


class HingeSettings(Settings):
    """Logits beyond 1 count no more (Lim & Ye, arXiv 1705.02894; Miyato et al., arXiv 1802.05957, eq. 16 and 17)."""

    kind: Literal["hinge"] = "hinge"

    def build(self) -> Objective:
        return Hinge()


class Hinge(Objective):
    """max(0, 1 - D(real)) + max(0, 1 + D(fake)), and -D(fake)."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return relu(1 - real.float()).mean() + relu(1 + fake.float()).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return -fake.float().mean()


class WassersteinSettings(Settings):
    """Difference of the critic's means (Arjovsky et al., arXiv 1701.07875, eq. 2); needs a Lipschitz constraint."""

    kind: Literal["wasserstein"] = "wasserstein"
    drift: float = Field(default=0.0, ge=0)
    """Weight of D(real)², which keeps the logits from drifting away (PGGAN, arXiv 1710.10196, appendix A.1: 0.001)."""

    def build(self) -> Objective:
        return Wasserstein(self.drift)


class Wasserstein(Objective):
    """D(fake) - D(real), and -D(fake)."""

    def __init__(self, drift: float) -> None:
        super().__init__()
        self.drift = drift

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        real, fake = real.float(), fake.float()
        loss = fake.mean() - real.mean()
        return loss + self.drift * real.square().mean() if self.drift else loss

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return -fake.float().mean()


# ---- real against fake -----------------------------------------------------------------------------------------------


def _compared(real: Tensor | None) -> Tensor:
    if real is None:
        raise ValueError("a relativistic generator's loss needs the real logits: generator(fake, real)")
    return real.float()


class RelativisticSettings(Settings):
    """Each real logit against the fake one beside it: R3GAN's (Huang et al., arXiv 2501.05441, eq. 2)."""

    kind: Literal["relativistic"] = "relativistic"

    def build(self) -> Objective:
        return Relativistic()


class Relativistic(Objective):
    """-log sigmoid(D(real) - D(fake)), and the same with the two exchanged: log 2 each at a constant D.

    Real and fake logits stand in pairs: ValueError where their shapes differ.
    """

    needs_real = True

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        if real.shape != fake.shape:
            raise ValueError(f"relativistic pairing: real logits {tuple(real.shape)}, fake {tuple(fake.shape)}")
        return softplus(fake.float() - real.float()).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return self.discriminator(fake, _compared(real))


RelativisticBase = Literal["non-saturating", "least-squares", "hinge"]


class RelativisticAverageSettings(Settings):
    """Each logit against the mean of the other side's (Jolicoeur-Martineau, arXiv 1807.00734, section 4; ESRGAN's)."""

    kind: Literal["relativistic-average"] = "relativistic-average"
    base: RelativisticBase = "non-saturating"
    """The game that the differences are put into: RaSGAN, RaLSGAN or RaHingeGAN."""

    def build(self) -> Objective:
        return RelativisticAverage(self.base)


class RelativisticAverage(Objective):
    """The base game on D(real) - mean D(fake) and D(fake) - mean D(real); the generator's has the two exchanged.

    Without a factor 1/2. The means are this process's own.
    """

    needs_real = True

    def __init__(self, base: RelativisticBase) -> None:
        super().__init__()
        games: dict[RelativisticBase, Objective] = {
            "non-saturating": NonSaturating(smoothing=0.0),
            "least-squares": LeastSquares("-1/1/0"),
            "hinge": Hinge(),
        }
        self.base = games[base]

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        real, fake = real.float(), fake.float()
        return self.base.discriminator(real - fake.mean(), fake - real.mean())

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return self.discriminator(fake, _compared(real))


# ---- energies --------------------------------------------------------------------------------------------------------


class EBGANSettings(Settings):
    """The discriminator's output is an energy, low for real: a reconstruction error (Zhao et al., arXiv 1609.03126)."""

    kind: Literal["ebgan"] = "ebgan"
    margin: float = Field(default=10.0, gt=0)
    """Energy that the fakes are pushed up to, no further; it has the scale of the reconstruction error (the paper takes
    20 for faces and 80 for bedrooms)."""

    def build(self) -> Objective:
        return EBGAN(self.margin)


class EBGAN(Objective):
    """D(real) + max(0, margin - D(fake)), and D(fake) (eq. 1 and 2)."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return real.float().mean() + relu(self.margin - fake.float()).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return fake.float().mean()


class BEGANSettings(Settings):
    """Energies held in equilibrium by a controlled weight k (Berthelot et al., arXiv 1703.10717)."""

    kind: Literal["began"] = "began"
    gamma: float = Field(default=0.5, gt=0, le=1)
    """The fakes' energy over the real ones' at equilibrium: less for faithful, more for varied images (section 3.3)."""
    k_rate: float = Field(default=0.001, gt=0)
    """The paper's lambda_k (section 3.3): how fast k follows."""

    def build(self) -> Objective:
        return BEGAN(self.gamma, self.k_rate)


class BEGAN(Objective):
    """L(real) - k L(fake), and L(fake); k <- k + lambda_k (gamma L(real) - L(fake)), held in [0, 1] (section 3.4).

    k starts at 0 and stays as it is at logits that are no numbers.
    """

    k: Tensor

    def __init__(self, gamma: float, k_rate: float) -> None:
        super().__init__()
        self.gamma, self.k_rate = gamma, k_rate
        self.register_buffer("k", torch.zeros((), dtype=torch.float32))

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        # A copy of k: `update` moves k in place before this loss is differentiated.
        return real.float().mean() - self.k.clone() * fake.float().mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return fake.float().mean()

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Move k; reports k and the convergence measure M = L(real) + |gamma L(real) - L(fake)| (eq. 6)."""
        real, fake = real.float().mean(), fake.float().mean()
        imbalance = self.gamma * real - fake
        moved = (self.k + self.k_rate * imbalance).clamp(0, 1)
        self.k.copy_(torch.where(imbalance.isfinite(), moved, self.k))
        return {"k": self.k.clone(), "convergence": real + imbalance.abs()}


# ---- f-divergences ---------------------------------------------------------------------------------------------------

Divergence = Literal["kl", "reverse-kl", "pearson", "squared-hellinger", "jensen-shannon"]


class FGANSettings(Settings):
    """The variational bound of an f-divergence D_f(data || model) (Nowozin et al., arXiv 1606.00709)."""

    kind: Literal["f-gan"] = "f-gan"
    divergence: Divergence
    """D_f(P || Q), the integral of q f(p / q). `jensen-shannon`: KL(P || M) + KL(Q || M), M their mean; `pearson`: the
    integral of (p - q)² / q; `squared-hellinger`: that of (sqrt p - sqrt q)²."""
    generator: Literal["variational", "non-saturating"] = "variational"
    """`variational`: the generator minimises the bound itself; `non-saturating`: it maximises the activation of its
    samples instead (section 3.2)."""

    def build(self) -> Objective:
        return FGAN(self.divergence, self.generator)


_HIGHEST = 30.0  # e^30 is 1e13; float32 ends at e^88


def _exp(x: Tensor) -> Tensor:
    """e^x up to x = 30, from there on its tangent: never infinite, and never without a slope."""
    bounded = x.clamp(max=_HIGHEST)
    return bounded.exp() * (1 + (x - bounded))


class FGAN(Objective):
    """-E g_f(V(real)) + E f*(g_f(V(fake))): minus the bound that the discriminator raises to D_f(P || Q) (eq. 6).

    V are the logits, g_f the output activation and f* the convex conjugate of table 2 (with f: table 6). The
    composition f*(g_f(v)) is written out in `conjugate`: so it neither overflows nor cancels.
    """

    def __init__(self, divergence: Divergence, generator: Literal["variational", "non-saturating"]) -> None:
        super().__init__()
        self.divergence = divergence
        self.saturates = generator == "variational"

    def activation(self, v: Tensor) -> Tensor:
        """g_f(v): any real number into the domain of f*."""
        match self.divergence:
            case "kl" | "pearson":
                return v
            case "reverse-kl":
                return -_exp(-v)
            case "squared-hellinger":
                return 1 - _exp(-v)
            case "jensen-shannon":
                return math.log(2) - softplus(-v)

    def conjugate(self, v: Tensor) -> Tensor:
        """f*(g_f(v))."""
        match self.divergence:
            case "kl":  # f*(t) = exp(t - 1)
                return _exp(v - 1)
            case "reverse-kl":  # f*(t) = -1 - log(-t)
                return v - 1
            case "pearson":  # f*(t) = t² / 4 + t
                return v.square() / 4 + v
            case "squared-hellinger":  # f*(t) = t / (1 - t)
                return _exp(v) - 1
            case "jensen-shannon":  # f*(t) = -log(2 - exp t), and exp t = 2 sigmoid(v)
                return softplus(v) - math.log(2)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.conjugate(fake.float()).mean() - self.activation(real.float()).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return -(self.conjugate(fake.float()) if self.saturates else self.activation(fake.float())).mean()


# ---- by name ---------------------------------------------------------------------------------------------------------

ObjectiveUnion = (
    MinimaxSettings
    | NonSaturatingSettings
    | LeastSquaresSettings
    | HingeSettings
    | WassersteinSettings
    | RelativisticSettings
    | RelativisticAverageSettings
    | EBGANSettings
    | BEGANSettings
    | FGANSettings
)
ObjectiveSettings = Annotated[ObjectiveUnion, Field(discriminator="kind")]

# The names that the first configs had; the weights of their runs still hold them.
_FORMER_NAMES = {"vanilla": "non-saturating", "lsgan": "least-squares"}


class _ByName:
    """Lets a bare name stand for the settings of that kind with nothing else said: `hinge` is `{kind: hinge}`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._spell_out, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        names = [
            settings.model_fields["kind"].default
            for settings in get_args(ObjectiveUnion)
            if not any(field.is_required() for field in settings.model_fields.values())
        ]
        return {"anyOf": [handler(schema), {"type": "string", "enum": [*names, *_FORMER_NAMES]}]}

    @staticmethod
    def _spell_out(value: Any) -> Any:
        return {"kind": _FORMER_NAMES.get(value, value)} if isinstance(value, str) else value


ObjectiveField = Annotated[ObjectiveSettings, _ByName()]
"""A field of a method's settings: an objective's settings, or a kind's bare name."""
