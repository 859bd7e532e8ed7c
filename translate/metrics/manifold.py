"""Fidelity and variety apart: are outputs among real images, and are real images among outputs?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from translate.devices import exact_float32
from translate.errors import UserError

NEAREST = 3
"""k of precision and recall: Kynkäänniemi et al. 2019, section 3."""
NEAREST_REAL = 5
"""k of density and coverage: Naeem et al. 2020, section 4."""


class Manifold(NamedTuple):
    """A set's neighbourhood of a feature reaches to its k-th nearest neighbour in its own set."""

    precision: float
    """Share of predicted features in the neighbourhood of some reference feature (Kynkäänniemi et al., eq. 2)."""
    recall: float
    """Share of reference features in the neighbourhood of some predicted one (the same)."""
    density: float
    """Reference neighbourhoods that a predicted feature lies in, of the k that are expected where both sets have one
    law (Naeem et al., eq. 3): 1 there, and more where predicted features crowd where reference features do."""
    coverage: float
    """Share of reference neighbourhoods that hold a predicted feature (Naeem et al., eq. 4). For one law, N predicted
    and M reference features, 1 - (M-1)...(M-k) / ((M+N-1)...(M+N-k)) is expected (their lemma 2)."""


@torch.no_grad()
def manifold(predicted: Tensor, reference: Tensor, *, block: int = 1024) -> Manifold:
    """Precision and recall (arXiv 1904.06991, k = 3), density and coverage (arXiv 2002.09797, k = 5) of features (N, D)
    against (M, D).

    Distances are Euclidean, in the features' own format, float32 at least: around the reference's mean its products
    round them by some 1e-6 of themselves, which decides just about features as near as that to a neighbourhood's
    border. What lies on the border is inside; that matters for copies alone, whose k-th neighbours are in both sets:
    there rounding decides, for a density from 1 to (k+1)/k. Memory goes by block². UserError for fewer features than
    the neighbours need, ValueError for other shapes.
    """
    if predicted.ndim != 2 or reference.ndim != 2 or predicted.shape[1] != reference.shape[1]:
        raise ValueError(
            f"expected features (N, D) and (M, D), not {tuple(predicted.shape)} and {tuple(reference.shape)}"
        )
    for features, told in ((predicted, "predicted"), (reference, "reference")):
        if len(features) <= NEAREST_REAL:
            raise UserError(
                "precision, recall, density and coverage look at an image's 5 nearest neighbours: expected at least 6 "
                f"{told} images, not {len(features)}"
            )
    with exact_float32(predicted.device):
        common = torch.promote_types(torch.promote_types(predicted.dtype, reference.dtype), torch.float32)
        predicted, reference = predicted.to(common), reference.to(predicted.device, common)
        centre = reference.mean(0)  # distances do not change; products of smaller numbers round less
        predicted, reference = predicted - centre, reference - centre
        real = _to_neighbours(reference, block)
        near, wide = real[:, NEAREST - 1], real[:, NEAREST_REAL - 1]  # (M,)
        own = _to_neighbours(predicted, block)[:, NEAREST - 1]  # (N,)

        precise = torch.zeros(len(predicted), dtype=torch.bool, device=predicted.device)
        recalled, covered = (torch.zeros(len(reference), dtype=torch.bool, device=predicted.device) for _ in range(2))
        inside = torch.zeros((), dtype=torch.int64, device=predicted.device)
        for rows in _slices(len(predicted), block):
            for columns in _slices(len(reference), block):
                distances = torch.cdist(predicted[rows], reference[columns])
                precise[rows] |= (distances <= near[columns]).any(1)
                recalled[columns] |= (distances <= own[rows, None]).any(0)
                within = distances <= wide[columns]
                covered[columns] |= within.any(0)
                inside += within.sum()
    return Manifold(
        precision=float(precise.double().mean()),
        recall=float(recalled.double().mean()),
        density=int(inside) / (NEAREST_REAL * len(predicted)),
        coverage=float(covered.double().mean()),
    )


def _to_neighbours(features: Tensor, block: int) -> Tensor:
    """Distances of each feature to its 5 nearest others, in order: (N, D) -> (N, 5)."""
    found = []
    for rows in _slices(len(features), block):
        nearest = features.new_full((len(features[rows]), NEAREST_REAL), torch.inf)
        for columns in _slices(len(features), block):
            distances = torch.cdist(features[rows], features[columns])
            if rows == columns:
                distances.fill_diagonal_(torch.inf)  # not to itself
            nearest = torch.cat([nearest, distances], 1).topk(NEAREST_REAL, largest=False).values
        found.append(nearest)
    return torch.cat(found)


def _slices(count: int, block: int) -> Iterator[slice]:
    return (slice(start, start + block) for start in range(0, count, block))
