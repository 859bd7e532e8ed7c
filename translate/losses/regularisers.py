"""Regularisers of one player's weights, and the clipping of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.errors import UserError
from translate.networks.layers import stored_weight
from translate.settings import Settings

Player = Literal["generator", "discriminator"]


class Regulariser(nn.Module, ABC):
    """A term of one player's loss that looks at its weights alone; none of them become this module's own."""

    @abstractmethod
    def forward(self, module: nn.Module) -> Tensor:
        """The player -> float32 scalar, unweighted, also under autocast."""

    def update(self, module: nn.Module) -> None:
        """Take note of the player's weights after a move."""


class _RegulariserSettings(Settings):
    player: Player
    every: int = Field(default=1, ge=1)
    """Counted in one step of so many only, and there so many times as much."""


# ---- orthogonal ------------------------------------------------------------------------------------------------------

Form = Literal["full", "off-diagonal"]


class OrthogonalSettings(_RegulariserSettings):
    """Filters of a layer stand at right angles (BigGAN, Brock et al., arXiv 1809.11096, section 3.1)."""

    kind: Literal["orthogonal"] = "orthogonal"
    player: Player = "generator"
    weight: float = Field(default=1e-4, ge=0)
    """BigGAN's beta (section 3.1)."""
    form: Form = "off-diagonal"
    """`full` also holds each filter's norm to 1 (eq. 2; Brock et al., arXiv 1609.07093); `off-diagonal` leaves the
    norms free (eq. 3)."""

    @property
    def name(self) -> str:
        return f"orthogonal_{self.player}"

    def build(self, module: nn.Module) -> Regulariser:
        """Raises UserError for a player without convolutions and linear layers."""
        if next(_filters(module), None) is None:
            raise UserError(
                f"regulariser orthogonal: the {self.player} has no convolution or linear layer; leave it out"
            )
        return Orthogonal(self.form)


class Orthogonal(Regulariser):
    """Sum over the layers of |W Wᵀ - I|², or of |W Wᵀ ∘ (1 - I)|²; a row of W is what makes one output channel.

    (BigGAN writes Wᵀ W: its filters are columns.) Convolutions, transposed ones and linear layers count; embeddings
    and norms do not. Under spectral norm W is the stored weight, before its division: what the optimiser moves, and
    reading it makes no power iteration.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, module: nn.Module) -> Tensor:
        terms: list[Tensor] = []
        for weight in _filters(module):
            with torch.autocast(weight.device.type, enabled=False):
                rows = weight.float()  # (out, in * kernel)
                products = rows @ rows.T  # (out, out)
                identity = torch.eye(len(rows), device=rows.device)
                beyond = products - identity if self.form == "full" else products * (1 - identity)
                terms.append(beyond.square().sum())
        return torch.stack(terms).sum()


def _filters(module: nn.Module) -> Iterator[Tensor]:
    """The stored weight of each convolution and linear layer as (out, in * kernel)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            weight = stored_weight(layer)
            if isinstance(layer, nn.ConvTranspose2d):
                weight = weight.transpose(0, 1)  # (in, out, ...) -> (out, in, ...)
            yield weight.flatten(1)


# ---- historical averaging --------------------------------------------------------------------------------------------


class HistoricalSettings(_RegulariserSettings):
    """The weights stay near their mean over the training so far (Salimans et al., arXiv 1606.03498, section 3.3)."""

    kind: Literal["historical"] = "historical"
    weight: float = Field(default=1.0, ge=0)

    @property
    def name(self) -> str:
        return f"historical_{self.player}"

    def build(self, module: nn.Module) -> Regulariser:
        return Historical(module)


class Historical(Regulariser):
    """|theta - 1/t sum of theta[i]|², i from the start (0) to the last move; the mean is kept in buffers."""

    count: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones((), dtype=torch.float32, device=next(module.parameters()).device))
        for number, parameter in enumerate(module.parameters()):
            self.register_buffer(f"mean_{number}", parameter.detach().float().clone())

    def _pairs(self, module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        for number, parameter in enumerate(module.parameters()):
            yield parameter, self.get_buffer(f"mean_{number}")

    def forward(self, module: nn.Module) -> Tensor:
        return torch.stack([(weight.float() - mean).square().sum() for weight, mean in self._pairs(module)]).sum()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        for weight, mean in self._pairs(module):
            mean.lerp_(weight.float(), 1 / self.count)


RegulariserSettings = Annotated[OrthogonalSettings | HistoricalSettings, Field(discriminator="kind")]


# ---- clipping --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def clip_weights(module: nn.Module, limit: float) -> None:
    """Clip every parameter to [-limit, limit], in place (WGAN, Arjovsky et al., arXiv 1701.07875, algorithm 1: 0.01).

    Of a layer under spectral norm it is the stored weight. Raises ValueError for a limit that is not above zero.
    """
    if not limit > 0:
        raise ValueError(f"expected a limit above zero, not {limit}")
    for parameter in module.parameters():
        parameter.clamp_(-limit, limit)
