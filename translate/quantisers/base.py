"""What every quantiser is: a map of latents onto the codes of a finite vocabulary, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Quantised(NamedTuple):
    """What a quantiser makes of latents."""

    quantised: Tensor
    """(N, C, h, w), float32: bit for bit what `codes` makes of the indices; the gradient goes straight to the latents
    (or through them, where the quantiser is differentiable by itself)."""
    indices: Tensor
    """(N, h, w), int64, below `Quantiser.size`."""
    loss: Tensor
    """float32 scalar: what the quantiser asks for itself (codebook and commitment, entropy), unweighted; 0 without."""


class Quantiser(nn.Module, ABC):
    """Latents (N, C, h, w) to codes and back. All of it is computed in float32, whatever the autocast state: in bf16
    1.4 to 5.5 % of the nearest codes are others."""

    size: int
    """Codes that there are: indices are below it."""
    width: int
    """C, channels of the latents and of what `codes` gives."""

    @abstractmethod
    def forward(self, z: Tensor) -> Quantised:
        """Quantise latents (N, C, h, w) of any float type.

        In training mode with gradients enabled it also takes note of what `moved` needs (counts, sums); else it changes
        nothing. What is random (Gumbel noise) is so in training mode alone.
        """

    @abstractmethod
    def codes(self, indices: Tensor) -> Tensor:
        """What the decoder gets for indices (N, h, w): (N, C, h, w), float32."""

    def advance(self, progress: float) -> None:
        """Told before each step how much of the stage is done, from 0 to 1: for temperatures that fall."""

    def moved(self, finite: Tensor | None = None) -> dict[str, Tensor]:
        """After the optimiser's step: averages take in what was noted since the last call, dead codes begin anew. All
        processes must call. Returns numbers to log by name (`restarted codes`), scalars on the device.

        Args:
            finite: whether that step was taken, a bool scalar on the device; None: it was. Parameters stay as they are
                where not (buffers are put back by who undoes the step).
        """
        return {}

    def forget(self) -> None:
        """Drop what was noted since the last `moved`: those forward passes were just a look."""

    def renewed(self) -> Sequence[tuple[nn.Parameter, Tensor]]:
        """The parameters of which the last `moved` wrote rows anew, and which rows, (rows,) bool: what an optimiser or
        an average remembers of them is no longer true."""
        return ()
