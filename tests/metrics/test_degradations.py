"""Pictures made worse step by step: every measure must say so at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from translate.metrics import l1, ms_ssim, psnr, ssim
from translate.metrics.features import feature_network
from translate.metrics.frechet import FeatureStatistics, frechet_distance
from translate.metrics.kernel import kid
from translate.metrics.protocol import ProtocolSettings
from translate.metrics.scores import MEASURES
from translate.pretrained.lpips import LPIPS
from translate.pretrained.store import find

pictures = pytest.importorskip("skimage.data")

Pixels = np.ndarray


def blurred(image: Pixels, sigma: float) -> Pixels:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def noisy(image: Pixels, deviation: float) -> Pixels:
    """The same noise, grown."""
    noise = np.random.default_rng(0).standard_normal(image.shape)
    return np.clip(image + 255 * deviation * noise, 0, 255).round().astype(np.uint8)


def compressed(image: Pixels, quality: float) -> Pixels:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


DEGRADATIONS: dict[str, tuple[Callable[[Pixels, float], Pixels], tuple[float, ...]]] = {
    "blur": (blurred, (0.5, 1, 2, 4)),
    "noise": (noisy, (0.02, 0.05, 0.1, 0.2)),
    "jpeg": (compressed, (90, 50, 20, 5)),
}


def images(*pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def photographs() -> list[Pixels]:
    """A face and a cat, 192x192."""
    return [pictures.astronaut()[16:208, 128:320], pictures.chelsea()[40:232, 100:292]]


def pair_measure(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name.startswith("lpips-"):
        if find(name) is None:
            pytest.skip("no LPIPS weights on this machine: translate weights get lpips")
        return LPIPS.load("alex" if name == "lpips-alex" else "vgg").eval()
    return {"l1": l1, "psnr": psnr, "ssim": ssim, "ms-ssim": ms_ssim}[name]


@pytest.mark.parametrize(
    "name", ["l1", "psnr", "ssim", "ms-ssim", "lpips-alex", pytest.param("lpips-vgg", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_pair_measures_fall_with_every_step_and_most_with_a_swap(name: str) -> None:
    measure = pair_measure(name)
    sign = 1 if MEASURES[name].better == "lower" else -1  # bad is high
    originals = photographs()
    target = images(*originals)
    perfect = sign * measure(target, target)
    swapped = sign * measure(target.flip(0), target)
    for degrade, strengths in DEGRADATIONS.values():
        steps = [sign * measure(images(*(degrade(image, s) for image in originals)), target) for s in strengths]
        ladder = torch.stack([perfect, *steps])  # (steps, N)
        assert (ladder.diff(dim=0) > 0).all(), ladder
        assert (swapped > steps[0]).all()


class Sets(NamedTuple):
    """Crops of photographs, their statistics, and how to take those of others."""

    crops: list[Pixels]
    reference: FeatureStatistics
    statistics: Callable[[list[Pixels]], FeatureStatistics]


@pytest.fixture(scope="module")
def sets() -> Sets:
    if find("inception") is None:
        pytest.skip("no Inception weights on this machine: translate weights get inception")
    network = feature_network(ProtocolSettings(), torch.device("cpu"))
    sources = [pictures.astronaut(), pictures.chelsea(), pictures.coffee(), pictures.rocket()]
    generator = np.random.default_rng(0)
    crops = []
    for index in range(32):
        source = sources[index % len(sources)]
        top, left = (int(generator.integers(side - 128)) for side in source.shape[:2])
        crops.append(source[top : top + 128, left : left + 128])

    def statistics(some: list[Pixels]) -> FeatureStatistics:
        found = FeatureStatistics(2048)
        for start in range(0, len(some), 16):
            features = network(network.prepare(images(*some[start : start + 16]))).features
            found.add(features, keep=torch.ones(len(features), dtype=torch.bool))
        return found

    return Sets(crops, statistics(crops), statistics)


@pytest.mark.slow  # Inception sees 32 crops ten times
@pytest.mark.parametrize("kind", list(DEGRADATIONS))
def test_set_measures_rise_with_every_step(kind: str, sets: Sets) -> None:
    """Crops against the same crops, made worse and worse. The sets are not independent, so KID, unbiased for sets that
    are, begins below zero; that both rise is what counts."""
    degrade, strengths = DEGRADATIONS[kind]
    steps = [sets.statistics([degrade(crop, strength) for crop in sets.crops]) for strength in strengths[1:]]
    ladder = [sets.reference, *steps]
    distances = torch.tensor([frechet_distance(step.gaussian(), sets.reference.gaussian()) for step in ladder])
    kernels = torch.tensor([kid(step.kept, sets.reference.kept) for step in ladder])
    assert (distances.diff() > 0).all(), distances
    assert (kernels.diff() > 0).all(), kernels
