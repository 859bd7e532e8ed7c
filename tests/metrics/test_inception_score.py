"""The Inception Score: closed forms, torch-fidelity and torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from translate.errors import UserError
from translate.metrics.frechet import FeatureStatistics
from translate.metrics.inception_score import ClassSums, inception_score


def score(logits: Tensor, batch: int = 1000) -> float:
    first, *others = [ClassSums.of(part) for part in logits.split(batch)]
    for other in others:
        first = first.plus(other)
    return inception_score(first)


def draws(count: int, classes: int) -> Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(count))


def test_closed_forms() -> None:
    # Sure of one class of 3, evenly: 3. The same for all, sure or not: 1. Sure, but 1/2, 1/4, 1/4: exp of the entropy.
    sure = 1000 * torch.eye(3)
    assert score(sure) == pytest.approx(3.0, rel=1e-12)
    assert score(torch.zeros(6, 3)) == pytest.approx(1.0, rel=1e-12)
    assert score(sure[:1].repeat(5, 1)) == pytest.approx(1.0, rel=1e-12)
    assert score(torch.tensor([[0.3, -1.0, 2.0]]).repeat(7, 1)) == pytest.approx(1.0, rel=1e-12)
    assert score(sure[[0, 0, 1, 2]]) == pytest.approx(2**1.5, rel=1e-12)
    # Logits so far apart that a probability is 0 in float64.
    assert score(torch.tensor([[0.0, -1e38], [-1e38, 0.0]])) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save", "ignore:std")
def test_equals_torch_fidelity_and_torchmetrics() -> None:
    logits = draws(500, 40)
    metric = pytest.importorskip("torch_fidelity.metric_isc")
    expected = metric.isc_features_to_metric(logits, splits=1, shuffle=False)[metric.KEY_METRIC_ISC_MEAN]
    assert score(logits) == pytest.approx(expected, rel=1e-10)
    image = pytest.importorskip("torchmetrics.image.inception")
    other = image.InceptionScore(feature=torch.nn.Identity(), splits=1)
    other.update(logits.double())
    assert score(logits) == pytest.approx(float(other.compute()[0]), rel=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_and_order_change_no_more_than_rounding(batch: int) -> None:
    logits = draws(300, 10)
    assert score(logits, batch) == pytest.approx(score(logits), rel=1e-12)
    assert score(logits.flip(0), batch) == pytest.approx(score(logits), rel=1e-12)


def test_from_the_statistics_of_a_set() -> None:
    logits = draws(300, 10)
    statistics = FeatureStatistics(2)
    with pytest.raises(UserError, match="class logits"):
        inception_score(statistics.classes)
    for part in logits.split(70):
        statistics.add(torch.zeros(len(part), 2), part)
    assert inception_score(statistics.classes) == pytest.approx(score(logits), rel=1e-12)
