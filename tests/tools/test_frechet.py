import pytest
import torch
from frechet import WIDTH, Classifier, look


def test_what_the_classifier_sees_does_not_depend_on_the_parts() -> None:
    torch.manual_seed(0)
    classifier = Classifier((1, 32, 32), 10).eval()
    images = torch.rand(501, 1, 32, 32) * 2 - 1
    seen = look(classifier, images)
    with torch.no_grad():
        features, logits = classifier.features(images), classifier(images)
    assert features.shape == (501, WIDTH)
    assert seen.features.count == 501
    # float32 of other batches.
    torch.testing.assert_close(seen.features.mean, features.double().mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.features.covariance, torch.cov(features.double().T), rtol=1e-4, atol=1e-6)
    assert torch.equal(seen.classes, logits.argmax(1))
    shares = torch.bincount(logits.argmax(1)).double() / 501
    shares = shares[shares > 0]
    assert seen.entropy == pytest.approx(float(-(shares * shares.log()).sum()), abs=1e-12)
    assert seen.confidence == pytest.approx(float(logits.softmax(1).amax(1).mean()), rel=1e-5)
