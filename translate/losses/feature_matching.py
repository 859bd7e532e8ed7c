"""Feature matching: the fake should stir the discriminator's layers as the real image does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean over the layers of the mean absolute difference (pix2pixHD: Wang et al., arXiv 1711.11585, eq. 4).

    `real` and `fake` are what `Discriminator.features` returns, (N, C_i, H_i, W_i) each; their last entry,
    the logits, is left out, and the real side gets no gradient. The paper's sum over layers is a mean here,
    so that the weight does not depend on the depth. Returns a float32 scalar; raises ValueError where there
    is nothing but logits.
    """
    if len(real) != len(fake) or len(real) < 2:
        raise ValueError(
            f"expected equally many layers and at least one below the logits, not {len(real)}, {len(fake)}"
        )
    terms = [(r.detach().float() - f.float()).abs().mean() for r, f in zip(real[:-1], fake[:-1], strict=True)]
    return torch.stack(terms).mean()
