"""How much of a codebook the tokens use."""

from __future__ import annotations

import torch
from torch import Tensor

from translate.errors import UserError


class CodeUse:
    """How often each code of a codebook occurs, batch by batch."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.counts = torch.zeros(size, dtype=torch.int64)

    def add(self, indices: Tensor) -> None:
        """Count code indices of any shape and integer type; UserError for one beyond the codebook."""
        indices = indices.to(torch.int64).flatten()
        beyond = indices[(indices < 0) | (indices >= self.size)]
        if len(beyond):
            raise UserError(
                f"tokens: expected codes from 0 to {self.size - 1}, not {int(beyond[0])}; they are of another codebook"
            )
        self.counts += torch.bincount(indices, minlength=self.size).cpu()

    def merge(self, other: CodeUse) -> None:
        """Take all that the other has counted."""
        if other.size != self.size:
            raise ValueError(f"expected a codebook of {self.size}, not {other.size}")
        self.counts += other.counts

    def scores(self) -> dict[str, float]:
        """`codes-used`, the share of codes that occur, and `perplexity`, exp of the entropy of the codes in nats: so
        many codes, all used equally often, have this entropy. UserError for no token."""
        if not self.counts.any():
            raise UserError("no tokens: expected at least one")
        shares = self.counts.double() / self.counts.sum()
        return {
            "codes-used": float((self.counts > 0).double().mean()),
            "perplexity": float(torch.special.entr(shares).sum().exp()),
        }
