"""Few levels in few dimensions instead of a learnt codebook (FSQ, Mentzer et al., arXiv 2309.15505)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from translate.devices import exact_float32
from translate.quantisers.base import Quantised, Quantiser
from translate.quantisers.shared import check_size, project, projection, straight_through
from translate.settings import Settings


def _checked(levels: list[int]) -> list[int]:
    check_size(math.prod(levels))
    return levels


class FiniteScalarSettings(Settings):
    """Each latent is projected to few numbers, each of which is rounded to one of few levels."""

    kind: Literal["finite-scalar"] = "finite-scalar"
    levels: Annotated[list[Annotated[int, Field(ge=3)]], AfterValidator(_checked)] = Field(
        default=[8, 5, 5, 5], min_length=1
    )
    """Levels of each number; their product is the number of codes. The paper's table 1 has [8, 6, 5] for 2^8 codes,
    [8, 5, 5, 5] for 2^10, [7, 5, 5, 5, 5] for 2^12, [8, 8, 8, 6, 5] for 2^14, [8, 8, 8, 5, 5, 5] for 2^16 (64,000)."""

    def build(self, width: int) -> FiniteScalarQuantiser:
        """A new quantiser of latents (N, width, h, w)."""
        return FiniteScalarQuantiser(self, width)


class FiniteScalarQuantiser(Quantiser):
    """Rounds a bounded projection of the latents, by `vector_quantize_pytorch.FSQ`, and projects it back; no loss."""

    def __init__(self, settings: FiniteScalarSettings, width: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ  # here: loading it takes more than a second

        inner = len(settings.levels)
        self.settings, self.size, self.width = settings, math.prod(settings.levels), width
        self.project_in, self.project_out = projection(width, inner), projection(inner, width)
        with torch.device("cpu"):  # its tables are in no weights file: on the meta device they would stay empty
            self.rounding: Any = FSQ(settings.levels)

    def forward(self, z: Tensor) -> Quantised:
        """Latents (N, C, h, w) to the levels that they round to; see `Quantiser`."""
        with exact_float32(z.device):
            z = project(self.project_in, z.float())
            rounded, indices = self.rounding(z)
            indices = indices.long().clamp(0, self.size - 1)  # where z is no number, it is no index
            # Its own straight-through is z + (code - z), which is the code but for the last bits.
            codes = straight_through(self._levels(indices), rounded)
            return Quantised(project(self.project_out, codes), indices, z.new_zeros(()))

    def codes(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w) -> (N, C, h, w), float32."""
        with exact_float32(indices.device):
            return project(self.project_out, self._levels(indices))

    def _levels(self, indices: Tensor) -> Tensor:
        """(N, h, w) -> (N, len(levels), h, w) in [-1, 1], contiguous."""
        codes: Tensor = self.rounding.indices_to_codes(indices)
        return codes.contiguous()
