"""The Fréchet distance of two sets of features (FID, where these are Inception's), and what it needs of a set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from translate.errors import UserError
from translate.metrics.inception_score import ClassSums

BLOCK = 256
"""Rows whose outer products are summed by one matrix product. At 2048 dimensions a row costs 2 x 2048² = 8 MFLOP, less
than a thousandth of Inception's 11 GFLOP; adding a product to the sum (96 MB of memory traffic) a block shares."""
FEW = 2048
"""Images below which the covariance of Inception's 2048 features has no full rank."""


class FeatureError(UserError):
    """A feature or logit that is no number; `row` says of which image in the batch."""

    def __init__(self, row: int) -> None:
        super().__init__(f"image {row} of the batch: a feature is no number (NaN or infinite)")
        self.row = row

    def __reduce__(self) -> tuple[type[FeatureError], tuple[int]]:
        return type(self), (self.row,)


@dataclass(frozen=True)
class Gaussian:
    """What the distance knows of a set."""

    count: int
    mean: Tensor
    """(D,), float64."""
    covariance: Tensor
    """(D, D), float64, unbiased: divided by count - 1."""


class FeatureStatistics:
    """Mean, covariance and class sums of a set's features, batch by batch, in constant memory (but for those kept).

    Rows are gathered into blocks of 256, whatever the batches; a block's mean and scatter (the sum of outer products
    of the centred rows) join the set's by the pairwise update of Chan, Golub and LeVeque 1979 (Stanford STAN-CS-79-773,
    eq. 2.1), in float64. Two halves of a set merge by the same formula, in whatever process they were seen.
    """

    def __init__(self, dimension: int, *, device: torch.device | str = "cpu") -> None:
        self.dimension = dimension
        self.device = torch.device(device)
        self.classes: ClassSums | None = None
        """Of the logits, where batches came with them."""
        self._kept: list[Tensor] = []
        self._mean = torch.zeros(dimension, dtype=torch.float64, device=self.device)
        self._scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=self.device)
        self._block = torch.empty(BLOCK, dimension, device=self.device)
        self._settled = 0  # rows that mean and scatter stand for
        self._filled = 0  # rows in the block

    @property
    def count(self) -> int:
        """Images seen."""
        return self._settled + self._filled

    @property
    def kept(self) -> Tensor:
        """The features that `keep` chose, in the order seen: (K, D), float32."""
        return torch.cat([torch.empty(0, self.dimension, device=self.device), *self._kept])

    @torch.no_grad()
    def add(self, features: Tensor, logits: Tensor | None = None, keep: Tensor | None = None) -> None:
        """Take a batch of features (N, D), the classifier's logits (N, C) if it has them, and which of the rows to keep
        (N,) bool for measures that need features themselves.

        Raises FeatureError for what is no number, ValueError for other shapes and where just some batches have logits.
        Nothing of a refused batch is counted.
        """
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise ValueError(f"expected features (N, {self.dimension}), not {tuple(features.shape)}")
        if not len(features):
            return
        if self.count and (self.classes is None) != (logits is None):
            raise ValueError("expected logits with every batch or with none")
        features = features.to(self.device, torch.float32)
        fine = features.isfinite().all(1)
        if logits is not None:
            logits = logits.to(self.device)
            fine = fine & logits.isfinite().all(1)
        if not fine.all():
            raise FeatureError(int(fine.logical_not().nonzero()[0]))
        if logits is not None:
            sums = ClassSums.of(logits)
            self.classes = sums if self.classes is None else self.classes.plus(sums)
        if keep is not None:
            self._kept.append(features[keep.to(self.device)])
        while len(features):
            taken = features[: BLOCK - self._filled]
            self._block[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            if self._filled == BLOCK:
                self._empty_block()
            features = features[len(taken) :]

    def merge(self, other: FeatureStatistics) -> None:
        """Take all that the other has seen; it stays as it is. ValueError where just one of them has logits."""
        if other.dimension != self.dimension:
            raise ValueError(f"expected {self.dimension} dimensions, not {other.dimension}")
        if not other.count:
            return
        if self.count and (self.classes is None) != (other.classes is None):
            raise ValueError("expected logits on both sides or on none")
        if other.classes is not None:
            self.classes = other.classes if self.classes is None else self.classes.plus(other.classes)
        other._empty_block()
        self._join(other.count, other._mean.to(self.device), other._scatter.to(self.device))
        self._kept.extend(part.to(self.device) for part in other._kept)

    def gaussian(self) -> Gaussian:
        """Mean and covariance so far; UserError for less than two images."""
        if self.count < 2:
            raise UserError(f"expected at least 2 images for a covariance, not {self.count}")
        self._empty_block()
        return Gaussian(self.count, self._mean.clone(), self._scatter / (self.count - 1))

    def state(self) -> dict[str, Tensor]:
        """All of it as CPU tensors: for a file, or for another process."""
        self._empty_block()
        state = {"count": torch.tensor(self.count), "mean": self._mean, "scatter": self._scatter, "kept": self.kept}
        if self.classes is not None:
            state["classes.count"] = torch.tensor(self.classes.count)
            state["classes.probabilities"] = self.classes.probabilities
            state["classes.negentropy"] = self.classes.negentropy
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    @staticmethod
    def from_state(state: dict[str, Tensor], *, device: torch.device | str = "cpu") -> FeatureStatistics:
        """What `state` described; KeyError where it lacks a tensor."""
        found = FeatureStatistics(len(state["mean"]), device=device)
        found._settled = int(state["count"])
        found._mean.copy_(state["mean"])
        found._scatter.copy_(state["scatter"])
        found._kept = [state["kept"].to(found.device)]
        if "classes.count" in state:
            found.classes = ClassSums(
                int(state["classes.count"]),
                state["classes.probabilities"].to(found.device),
                state["classes.negentropy"].to(found.device),
            )
        return found

    def _empty_block(self) -> None:
        """Let the rows of the block join the set."""
        if not self._filled:
            return
        rows = self._block[: self._filled].double()
        mean = rows.mean(0)
        rows -= mean
        self._filled = 0
        self._join(len(rows), mean, rows.T @ rows)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan's update with the mean and scatter of `count` more rows."""
        total = self._settled + count
        difference = mean - self._mean
        self._mean += difference * (count / total)
        self._scatter += scatter
        self._scatter.addr_(difference, difference, alpha=self._settled * count / total)
        self._settled = total


# ---- the distance ----------------------------------------------------------------------------------------------------


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    The trace of the root is the sum of the roots of the eigenvalues of C_a C_b. With C_a = F F^T they are, but for
    zeros, those of F^T C_b F, which is symmetric, and F is D x r for a covariance of rank r. It is the smaller set that
    is factored: its rank is at most its count - 1, and zeros that are left out can not round to roots of 1e-8.

    The distance is not negative, but its rounding (1e-8 of the largest eigenvalue for each small one, as a root in
    float64 of 1e-16) can be, for sets almost equal: it is clamped at zero. Raises ValueError for unequal dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"expected features of one dimension, not {len(a.mean)} and {len(b.mean)}")
    few, many = sorted((a, b), key=lambda gaussian: gaussian.count)
    factor = _factor(few.covariance)
    product = factor.T @ many.covariance.to(factor.device) @ factor
    overlap = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace().to(a.covariance.device)
    shift = (a.mean - b.mean.to(a.mean.device)).square().sum()
    return max(float(shift) + float(traces) - 2 * float(overlap), 0.0)


def _factor(covariance: Tensor) -> Tensor:
    """F (D, r) with F F^T = C: Cholesky's where C has full rank, in a twentieth of a decomposition's time; where not,
    of the eigenvectors with a positive eigenvalue."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return torch.as_tensor(lower)
    values, vectors = torch.linalg.eigh(covariance)
    positive = values > _smallest(values)
    return torch.as_tensor(vectors[:, positive] * values[positive].sqrt())


def _smallest(values: Tensor) -> float:
    """Eigenvalues up to this may be zeros that were rounded: NumPy's rule for a matrix's rank."""
    return len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())


# ---- its bias --------------------------------------------------------------------------------------------------------


def expected_bias(covariance: Tensor, n: int, m: int) -> float:
    """Mean distance of two samples, of n and m, of one Gaussian law with this covariance C (D, D): what is left of the
    true distance 0 to finite counts. To leading order in D; for n, m >> D it goes as (1/n + 1/m).

    The means add tr(C) (1/n + 1/m). The covariances are S_n = C^(1/2) W_n C^(1/2) with a white Wishart matrix W_n (and
    S_m), so the eigenvalues of S_n S_m are those of C² multiplied freely by two Marchenko-Pastur laws, each of which
    divides the S-transform (Voiculescu 1987) by 1 + z/(n - 1). With h the eigenvalues of C² and f(k) = sum h/(h + k),
    that is: sum s/(s + t) = f(k) over the eigenvalues s of S_n S_m, where t = k (1 - f(k)/(n - 1)) (1 - f(k)/(m - 1)).
    From s^(1/2) = (1/pi) int s/(s + t) t^(-1/2) dt, by parts,

        tr (S_n S_m)^(1/2) = (2/pi) int t^(1/2) sum h/(h + k)² dk,    t = 0 where f(k) >= min(n, m) - 1;

    with t = k it is tr C, so that the difference needs no subtraction of large numbers.
    """
    values = torch.linalg.eigvalsh(covariance)
    values = values[values > _smallest(values)]
    if not len(values):
        return 0.0
    h = values.square()[:, None]
    # k = e^u: the integrand falls as k^(3/2) below the smallest h and as k^(-3/2) above the largest; the trapezoid rule
    # with 20 points a decade, from 4 decades below to 4 above, errs by less than 1e-4.
    low, high = math.log(float(h.min())) - 4 * math.log(10), math.log(float(h.max())) + 4 * math.log(10)
    u = torch.linspace(low, high, 1 + round((high - low) / math.log(10) * 20), dtype=h.dtype, device=h.device)
    k = u.exp()
    inside = h / (h + k)  # (D, points)
    f = inside.sum(0)
    shares = (1 - f / (n - 1)).clamp(min=0) * (1 - f / (m - 1)).clamp(min=0)  # t / k
    weight = (inside * (k / (h + k))).sum(0)  # h k / (h + k)²: with dk = k du
    lost = 2 / math.pi * torch.trapezoid(k.sqrt() * (1 - shares.sqrt()) * weight, u)
    return float(values.sum() * (1 / n + 1 / m) + 2 * lost)


def bias_warning(a: Gaussian, b: Gaussian) -> str | None:
    """A line for the reader of a distance from few images, with the bias estimated; None where there are enough.

    Few are less than 2048, or less than the features' dimensions. The estimate is `expected_bias` under the covariance
    of the larger set (of equal ones, the more varied), taken as Gaussian; where that set is small too, it lacks
    directions, and the estimate is too low.
    """
    enough = max(FEW, len(a.mean))
    if min(a.count, b.count) >= enough:
        return None
    larger = max(a, b, key=lambda gaussian: (gaussian.count, float(gaussian.covariance.trace())))
    bias = expected_bias(larger.covariance, a.count, b.count)
    return (
        f"biased: with {a.count:,} and {b.count:,} images (fewer than {enough:,}) even two sets of one law would be "
        f"some {bias:.3g} or more apart; compare it just with distances of as many images"
    )
