import pytest
import torch
from frechet import WIDTH, Classifier, Gaussian, fit, frechet_distance, look


@pytest.mark.parametrize("dimensions", [1, 3, 64])
def test_closed_form_of_two_isotropic_gaussians(dimensions: int) -> None:
    # |1|² + tr(I + 4I - 2 * 2I) = d + d.
    zero, one, identity = torch.zeros(dimensions), torch.ones(dimensions), torch.eye(dimensions)
    a, b = Gaussian(zero.double(), identity.double()), Gaussian(one.double(), 4 * identity.double())
    assert frechet_distance(a, b) == pytest.approx(2 * dimensions, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(2 * dimensions, rel=1e-12)


def test_equals_the_root_of_the_product_and_is_zero_for_equal_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (fit(torch.randn(200, 5, generator=generator) @ torch.randn(5, 5, generator=generator)) for _ in range(2))
    # The eigenvalues of C_a C_b itself, by a general solver.
    roots = torch.linalg.eigvals(a.covariance @ b.covariance).real.sqrt().sum()
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    # Rounding in float64 under a square root: 1e-16 of the eigenvalue, 1e-8 of its root, times its size.
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)


def test_a_covariance_without_full_rank_is_no_trouble() -> None:
    features = torch.zeros(50, 4)
    features[:, 0] = torch.linspace(-1, 1, 50)
    moved = features + torch.tensor([0.0, 0.0, 0.0, 3.0])
    assert frechet_distance(fit(features), fit(moved)) == pytest.approx(9.0, abs=1e-6)


def test_what_the_classifier_sees_does_not_depend_on_the_parts() -> None:
    torch.manual_seed(0)
    classifier = Classifier((1, 32, 32), 10).eval()
    images = torch.rand(501, 1, 32, 32) * 2 - 1
    seen = look(classifier, images)
    with torch.no_grad():
        features, logits = classifier.features(images), classifier(images)
    assert features.shape == (501, WIDTH)
    torch.testing.assert_close(seen.features, fit(features), rtol=1e-4, atol=1e-6)  # float32 of other batches
    assert torch.equal(seen.classes, logits.argmax(1))
    shares = torch.bincount(logits.argmax(1)).double() / 501
    shares = shares[shares > 0]
    assert seen.entropy == pytest.approx(float(-(shares * shares.log()).sum()), abs=1e-12)
    assert seen.confidence == pytest.approx(float(logits.softmax(1).amax(1).mean()), rel=1e-5)
