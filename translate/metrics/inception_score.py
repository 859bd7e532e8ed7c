"""The Inception Score, from sums over any number of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from translate.errors import UserError


@dataclass(frozen=True)
class ClassSums:
    """What a set's class probabilities p(y|x) add up to."""

    count: int
    probabilities: Tensor
    """Sum over the images of p(y|x): (C,), float64."""
    negentropy: Tensor
    """Sum over the images and classes of p(y|x) log p(y|x), in nats: a float64 scalar."""

    @staticmethod
    @torch.no_grad()
    def of(logits: Tensor) -> ClassSums:
        """The sums of a batch of logits (N, C)."""
        logs = logits.double().log_softmax(1)
        probabilities = logs.exp()
        return ClassSums(len(logits), probabilities.sum(0), (probabilities * logs).sum())

    def plus(self, other: ClassSums) -> ClassSums:
        """The sums of both sets together."""
        return ClassSums(
            self.count + other.count,
            self.probabilities + other.probabilities.to(self.probabilities),
            self.negentropy + other.negentropy.to(self.negentropy),
        )


def inception_score(sums: ClassSums | None) -> float:
    """exp(E_x KL(p(y|x) || p(y))): 1 where all images look alike to the classifier, C where each is surely of one class
    and the classes are even (Salimans et al. 2016, arXiv 1606.03498, section 4).

    E KL = E sum_y p(y|x) log p(y|x) - sum_y p(y) log p(y), where p(y) is the mean of p(y|x).

    All images are one split. The original code cuts 50,000 into 10 splits of consecutive ones and gives the mean of
    their scores, which depends on the order and is smaller: a split's p(y) lies nearer to its images. UserError for a
    set without logits or images.
    """
    if sums is None or not sums.count:
        raise UserError("the Inception Score needs class logits: expected images, and a feature network that has them")
    marginal = sums.probabilities / sums.count
    divergence = sums.negentropy / sums.count + torch.special.entr(marginal).sum()
    return float(divergence.exp())
