"""What the quantisers share: how many codes there may be, the projections about them, the straight-through gradient."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

MOST_CODES = 1 << 16
"""A token file holds uint16 (`translate.data.tokens`)."""


def check_size(size: int) -> int:
    """The number of codes itself; ValueError above 65,536."""
    if size > MOST_CODES:
        raise ValueError(f"expected {MOST_CODES:,} codes at most, as a token file holds no more, not {size:,}")
    return size


Size = Annotated[int, Field(ge=2), AfterValidator(check_size)]
"""A number of codes."""


def projection(inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution (N, inputs, h, w) -> (N, outputs, h, w), or nothing where both are the same."""
    return nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """What a `projection` makes of float32 (N, C, h, w), in float32 also where a network is stored in fewer bits."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())
    made: Tensor = layer(x)  # nothing, or what conversion has put in a convolution's place
    return made


def rows(z: Tensor) -> Tensor:
    """(N, C, h, w) -> (N * h * w, C), pixel by pixel."""
    return z.movedim(1, -1).flatten(0, 2)


def grid(codes: Tensor) -> Tensor:
    """(N, h, w, C) -> (N, C, h, w), contiguous: one layout always, for a convolution's last bits depend on it."""
    return codes.movedim(-1, 1).contiguous()


def straight_through(codes: Tensor, z: Tensor) -> Tensor:
    """The codes, bit for bit, whose gradient goes to z as it is (van den Oord et al., arXiv 1711.00937, section 3.2).
    z + (codes - z), the common writing, is off by the last bits."""
    return codes.detach() + (z - z.detach())
