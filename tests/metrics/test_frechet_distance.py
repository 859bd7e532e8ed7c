"""The Fréchet distance against closed forms, SciPy, torchmetrics and pytorch-fid; statistics against NumPy; the bias
against simulation."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from translate.errors import UserError
from translate.metrics.frechet import (
    BLOCK,
    FeatureError,
    FeatureStatistics,
    Gaussian,
    bias_warning,
    expected_bias,
    frechet_distance,
)


def fit(features: Tensor) -> Gaussian:
    statistics = FeatureStatistics(features.shape[1])
    statistics.add(features)
    return statistics.gaussian()


def draws(count: int, dimension: int, seed: int, mean: float = 0.3) -> Tensor:
    """Correlated features (count, dimension), float32."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(seed % 10)) / dimension**0.5
    return mean + torch.randn(count, dimension, generator=generator) @ mixing


def assert_near(found: Gaussian, expected: Gaussian, rtol: float) -> None:
    assert found.count == expected.count
    torch.testing.assert_close(found.mean, expected.mean, rtol=rtol, atol=rtol)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=rtol, atol=rtol)


# ---- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.3, 1000.0])
def test_mean_and_covariance_are_those_of_numpy(mean: float) -> None:
    features = draws(2 * BLOCK + 77, 6, 1, mean)
    found = fit(features)
    truth = features.double().numpy()
    assert found.mean.dtype is found.covariance.dtype is torch.float64
    # float64 sums of rows around their block's mean: rounding is 1e-16 of the largest, 1000² at most.
    np.testing.assert_allclose(found.mean.numpy(), truth.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(truth.T), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sizes", [[1], [7], [255, 2], [256], [300, 1, 1], [2000]])
def test_batches_of_any_size_make_the_same_bits(sizes: Sequence[int]) -> None:
    features = draws(1000, 5, 2)
    statistics, start, turn = FeatureStatistics(5), 0, 0
    while start < len(features):
        size = sizes[turn % len(sizes)]
        statistics.add(features[start : start + size])
        start, turn = start + size, turn + 1
    found, expected = statistics.gaussian(), fit(features)
    assert found.count == 1000
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.covariance, expected.covariance)


def test_order_and_merging_change_no_more_than_rounding() -> None:
    features = draws(1500, 5, 3)
    expected = fit(features)
    assert_near(fit(features[torch.randperm(1500, generator=torch.Generator().manual_seed(0))]), expected, 1e-12)
    first, *others = [FeatureStatistics(5) for _ in range(4)]
    for statistics, part in zip([first, *others], features.split([700, 1, 0, 799]), strict=True):
        statistics.add(part)
    for other in others:
        before = other.count
        first.merge(other)
        assert other.count == before
    assert_near(first.gaussian(), expected, 1e-12)
    other = draws(500, 5, 14)
    distance = frechet_distance(expected, fit(other))
    assert frechet_distance(first.gaussian(), fit(other)) == pytest.approx(distance, rel=1e-9)


def test_logits_and_kept_rows_go_along_and_survive_a_file(tmp_path: Path) -> None:
    features, logits = draws(700, 4, 5), 3 * draws(700, 3, 6)
    keep = torch.arange(700) % 3 == 0
    whole, first, second = (FeatureStatistics(4) for _ in range(3))
    whole.add(features, logits, keep)
    first.add(features[:300], logits[:300], keep[:300])
    second.add(features[300:500], logits[300:500], keep[300:500])
    save_file(second.state(), tmp_path / "statistics.safetensors")
    restored = FeatureStatistics.from_state(load_file(tmp_path / "statistics.safetensors"))
    assert restored.count == 200
    restored.add(features[500:], logits[500:], keep[500:])
    first.merge(restored)
    assert first.count == 700
    assert torch.equal(first.kept, features[keep])
    assert torch.equal(first.kept, whole.kept)
    assert_near(first.gaussian(), whole.gaussian(), 1e-12)
    assert first.classes is not None
    assert whole.classes is not None
    assert first.classes.count == 700
    probabilities = logits.double().softmax(1)
    torch.testing.assert_close(first.classes.probabilities, probabilities.sum(0), rtol=1e-12, atol=0)
    expected = (probabilities * probabilities.log()).sum()
    torch.testing.assert_close(first.classes.negentropy, expected, rtol=1e-12, atol=0)


def test_an_empty_set_merges_and_has_no_gaussian() -> None:
    empty, full = FeatureStatistics(3), FeatureStatistics(3)
    full.add(draws(20, 3, 7), draws(20, 2, 8))
    full.merge(FeatureStatistics.from_state(empty.state()))
    empty.merge(full)
    assert_near(empty.gaussian(), full.gaussian(), 1e-15)
    assert empty.classes is not None
    assert empty.kept.shape == (0, 3)
    for count in (0, 1):
        few = FeatureStatistics(3)
        few.add(torch.zeros(count, 3))
        with pytest.raises(UserError, match=f"at least 2 images.*not {count}"):
            few.gaussian()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_feature_that_is_no_number_is_told_and_leaves_no_trace(value: float) -> None:
    statistics = FeatureStatistics(3)
    statistics.add(draws(10, 3, 7), draws(10, 2, 8))
    before = statistics.state()
    bad = torch.zeros(4, 3)
    bad[2, 1] = value
    for features, logits in ((bad, torch.zeros(4, 2)), (torch.zeros(4, 3), bad)):
        with pytest.raises(FeatureError, match="image 2 of the batch") as caught:
            statistics.add(features, logits, torch.ones(4, dtype=torch.bool))
        assert caught.value.row == 2
        assert pickle.loads(pickle.dumps(caught.value)).row == 2
    after = statistics.state()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_batches_that_do_not_fit_are_refused() -> None:
    statistics = FeatureStatistics(3)
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        statistics.add(torch.zeros(4, 5))
    statistics.add(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="logits"):
        statistics.add(torch.zeros(4, 3), torch.zeros(4, 2))
    other = FeatureStatistics(3)
    other.add(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="logits"):
        statistics.merge(other)
    with pytest.raises(ValueError, match="dimensions"):
        statistics.merge(FeatureStatistics(2))


# ---- the distance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 3, 64])
def test_closed_form_of_two_isotropic_gaussians(dimension: int) -> None:
    # |1|² + tr(I + 4I - 2 * 2I) = d + d.
    zero, identity = torch.zeros(dimension, dtype=torch.float64), torch.eye(dimension, dtype=torch.float64)
    a, b = Gaussian(9, zero, identity), Gaussian(9, zero + 1, 4 * identity)
    assert frechet_distance(a, b) == pytest.approx(2 * dimension, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(2 * dimension, rel=1e-12)


def by_scipy(a: Gaussian, b: Gaussian) -> float:
    linalg = pytest.importorskip("scipy.linalg")
    root = linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    traces = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + traces) - 2 * float(np.trace(root).real)


@pytest.mark.parametrize("dimension", [2, 30, 100])
def test_equals_the_root_of_scipy(dimension: int) -> None:
    a, b = fit(draws(4 * dimension, dimension, 11)), fit(draws(3 * dimension, dimension, 12, 0.5))
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(10, 200), (200, 10), (20, 30), (2, 2), (41, 40)])
def test_covariances_without_full_rank(n: int, m: int) -> None:
    """Fewer images than 40 dimensions. With X and Y the centred rows over the roots of n - 1 and m - 1, C_a = X^T X and
    C_b = Y^T Y: the roots of the eigenvalues of C_a C_b are the singular values of X Y^T, without any root taken."""
    x, y = draws(n, 40, 21), draws(m, 40, 22, 0.5)
    centred = [(z.double() - z.double().mean(0)).numpy() / (len(z) - 1) ** 0.5 for z in (x, y)]
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    a, b = fit(x), fit(y)
    traces = a.covariance.trace() + b.covariance.trace()
    expected = float((a.mean - b.mean).square().sum() + traces) - 2 * overlap
    # A zero that rounds to 1e-16 adds 1e-8 as a root, and there would be up to 38 of them: none is left in.
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_directions_that_never_vary() -> None:
    # ReLU features of a class that no image has: a whole row of zeros. The means alone differ, by 3.
    features = torch.zeros(50, 4)
    features[:, 0] = torch.linspace(-1, 1, 50)
    moved = features + torch.tensor([0.0, 0.0, 0.0, 3.0])
    assert frechet_distance(fit(features), fit(moved)) == pytest.approx(9.0, abs=1e-6)
    flat = fit(torch.ones(50, 4))
    assert frechet_distance(flat, fit(moved)) == pytest.approx(
        float(fit(moved).covariance.trace() + (fit(moved).mean - 1).square().sum()), rel=1e-12
    )


@pytest.mark.parametrize("count", [20, 500])
def test_a_set_is_no_distance_from_itself(count: int) -> None:
    a = fit(draws(count, 50, 31))
    # A root in float64 of what is 1e-16 of the largest eigenvalue (below 10 here), for each of 50.
    assert 0 <= frechet_distance(a, a) < 1e-5


def test_dimensions_must_agree() -> None:
    with pytest.raises(ValueError, match="one dimension"):
        frechet_distance(fit(draws(9, 2, 1)), fit(draws(9, 3, 1)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pytorch-fid asks SciPy in an old way
def test_equals_pytorch_fid() -> None:
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    x, y = (z.double().numpy() for z in (draws(300, 64, 41), draws(200, 64, 42, 0.4)))
    expected = fid_score.calculate_frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    found = frechet_distance(fit(torch.from_numpy(x).float()), fit(torch.from_numpy(y).float()))
    assert found == pytest.approx(float(expected), rel=1e-6)


class Identity(nn.Module):
    """Features as they are, for torchmetrics."""

    num_features = 64

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_equals_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.fid")
    x, y = draws(300, 64, 41), draws(200, 64, 42, 0.4)
    metric = image.FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    for features, real in ((x, True), (y, False)):
        for part in features.split(64):
            metric.update(part.double(), real=real)
    # Its general solver has complex eigenvalues of 1e-15; its scatter is a difference of sums. Both far below 1e-6.
    assert frechet_distance(fit(x), fit(y)) == pytest.approx(float(metric.compute()), rel=1e-6)


# ---- the bias --------------------------------------------------------------------------------------------------------


def spectrum(dimension: int, decay: float) -> Tensor:
    return torch.arange(1, dimension + 1, dtype=torch.float64) ** -decay


def simulated(values: Tensor, n: int, m: int, repeats: int) -> tuple[float, float]:
    """Mean distance, and its standard error, of samples of N(0, diag(values))."""
    generator = torch.Generator().manual_seed(n + m)

    def sample(count: int) -> Gaussian:
        return fit((torch.randn(count, len(values), generator=generator) * values.sqrt()).float())

    found = torch.tensor([frechet_distance(sample(n), sample(m)) for _ in range(repeats)])
    return float(found.mean()), float(found.std() / repeats**0.5)


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize(("n", "m"), [(25, 25), (60, 1000), (100, 101), (600, 600)])
def test_the_expected_bias_is_that_of_simulated_sets(decay: float, n: int, m: int) -> None:
    values = spectrum(100, decay)
    mean, error = simulated(values, n, m, 8)
    # To leading order in D: at 100 dimensions some 1/D, and few with a slow spectrum count less: 2 %, and chance.
    assert expected_bias(values.diag(), n, m) == pytest.approx(mean, abs=0.02 * mean + 3 * error)


def test_the_expected_bias_for_many_images_is_its_first_order() -> None:
    # d²(C, C + E) = 1/2 sum E_ij² / (l_i + l_j), and E_ij² = l_i l_j (1/n + 1/m), for n, m >> D; then the means.
    values = spectrum(50, 1.5)
    pairs = (values[:, None] * values / (values[:, None] + values)).sum()
    expected = float(pairs / 2 + values.sum()) * (1e-6 + 1e-7)
    assert expected_bias(values.diag(), 10**6, 10**7) == pytest.approx(expected, rel=1e-3)
    assert expected_bias(torch.zeros(3, 3, dtype=torch.float64), 5, 5) == 0


def test_the_distance_of_one_law_falls_with_the_images() -> None:
    means = [simulated(spectrum(30, 0.5), count, count, 8)[0] for count in (150, 600, 2400)]
    # As 1/N: each four times the images, a quarter of the distance (8 draws tell it to some 10 %).
    assert means[0] / means[1] == pytest.approx(4, rel=0.2)
    assert means[1] / means[2] == pytest.approx(4, rel=0.2)


def test_the_warning_tells_the_bias_and_stops_where_there_are_enough_images() -> None:
    values = spectrum(20, 0.0)
    few = Gaussian(400, torch.zeros(20).double(), values.diag())
    many = Gaussian(50_000, torch.zeros(20).double(), values.diag())
    told = bias_warning(few, many)
    assert told is not None
    assert "400 and 50,000 images" in told
    assert f"some {expected_bias(values.diag(), 400, 50_000):.3g}" in told
    # First order, isotropic: D²/4 + D, times 1/n + 1/m.
    assert expected_bias(values.diag(), 400, 50_000) == pytest.approx(120 * (1 / 400 + 1 / 50_000), rel=0.02)
    assert "\n" not in told
    assert bias_warning(many, Gaussian(2048, many.mean, many.covariance)) is None
    assert bias_warning(many, Gaussian(2047, many.mean, many.covariance)) is not None


def test_fewer_images_than_dimensions_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("translate.metrics.frechet.FEW", 10)
    told = bias_warning(fit(draws(19, 20, 1)), fit(draws(500, 20, 2)))
    assert told is not None
    assert "fewer than 20" in told
    assert bias_warning(fit(draws(20, 20, 1)), fit(draws(500, 20, 2))) is None
