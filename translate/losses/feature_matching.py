"""Feature matching: the fake should stir the discriminator's layers as the real image does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


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


def mean_feature_matching(real: Tensor, fake: Tensor) -> Tensor:
    """Squared distance of the batch means of two (N, F) features (Salimans et al., arXiv 1606.03498, section 3.1).

    The real side gets no gradient. Returns a float32 scalar.
    """
    return (real.detach().float().mean(0) - fake.float().mean(0)).square().sum()


def pulling_away(features: Tensor) -> Tensor:
    """Mean squared cosine of all pairs of different samples, float32 (EBGAN, Zhao et al., arXiv 1609.03126, eq. 4).

    `features` are (N, F); 0 where they stand at right angles, 1 where all lie on one line. Raises ValueError for less
    than two samples.
    """
    count = len(features)
    if count < 2:
        raise ValueError("the pulling-away term compares samples: a batch needs at least two")
    with torch.autocast(features.device.type, enabled=False):
        directions = normalize(features.float(), dim=1)
        squares = (directions @ directions.T).square()  # (N, N)
        return (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))
