"""What validation and evaluation share: all measures of pairs of images at once, and all measures of two sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from translate.data.images import visible
from translate.data.spec import ImageSpec, Spec
from translate.devices import exact_float32
from translate.errors import UserError
from translate.metrics import images as measures
from translate.metrics.protocol import ProtocolSettings
from translate.metrics.scores import PAIR_NAMES, SET_NAMES, Value

if TYPE_CHECKING:
    from translate.metrics.frechet import FeatureStatistics

PIXEL_MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": measures.l1,
    "psnr": measures.psnr,
    "ssim": measures.ssim,
    "ms-ssim": measures.ms_ssim,
}
FROM_KEPT = ("kid", "precision", "recall", "density", "coverage")
"""Set measures that compare features one by one, not just their moments."""


class PairMeter:
    """Some measures of pairs of images, by one protocol.

    Raises:
        UserError: a measure needs weights that are not on this machine.
    """

    def __init__(self, names: Sequence[str], protocol: ProtocolSettings, device: torch.device) -> None:
        self.names = [name for name in PAIR_NAMES if name in names]
        self.protocol = protocol
        self._lpips = {}
        for name in self.names:
            if name.startswith("lpips-"):
                from translate.pretrained.lpips import LPIPS

                self._lpips[name] = LPIPS.load("alex" if name == "lpips-alex" else "vgg").to(device)

    @torch.no_grad()
    def __call__(self, output: Tensor, target: Tensor, spec: Spec) -> dict[str, Tensor]:
        """Images (N, C, H, W) in [-1, 1] -> (N,) of each measure, float64; pixel measures compute in the images' format
        (float32 is right to 1e-6).

        Label maps are compared class by class (one-hot), but by LPIPS in their colours.
        """
        pixels = (target, output)
        if self.protocol.channels == "luma":
            pixels = measures.luma(pixels[0]), measures.luma(pixels[1])
        inner = [measures.inner(side, self.protocol.border) for side in pixels]
        found: dict[str, Tensor] = {}
        for name in self.names:
            if name in PIXEL_MEASURES:
                found[name] = PIXEL_MEASURES[name](inner[1], inner[0]).double()
            else:
                assert isinstance(spec, ImageSpec)
                seen = (visible(output, spec).clamp(-1, 1), visible(target, spec))
                with exact_float32(output.device):
                    found[name] = self._lpips[name](*seen).double()
        return found

    def told(self, name: str, count: int, bits: Value) -> dict[str, Value]:
        """The protocol of a measure over `count` images, outputs of so many bits."""
        told: dict[str, Value] = {"bits": bits}
        if name in self._lpips:
            told |= {"network": name.removeprefix("lpips-"), "weights": self._lpips[name].digest[:12]}
        else:
            told |= {"channels": self.protocol.channels, "border": self.protocol.border}
        if name in ("ssim", "ms-ssim"):
            told["window"] = "gaussian 11x11, sigma 1.5, inside the image"
        return {**told, "images": count}


class SetMeter:
    """Some measures of two sets of images, by one protocol: statistics of each set first, then the numbers.

    Raises:
        UserError: the feature network is not there, or has not what a measure needs.
    """

    def __init__(self, names: Sequence[str], protocol: ProtocolSettings, device: torch.device) -> None:
        from translate.metrics.features import feature_network

        self.names = [name for name in SET_NAMES if name in names]
        self.protocol, self.device = protocol, device
        if protocol.features != "inception" and "fid" in self.names:
            raise UserError("fid is the distance of Inception's features; on other features ask for 'frechet'")
        self.network = feature_network(protocol, device)
        self.keeps = any(name in FROM_KEPT for name in self.names)

    def statistics(self) -> FeatureStatistics:
        """Those of an empty set."""
        from translate.metrics.frechet import FeatureStatistics

        return FeatureStatistics(self.network.dimension, device=self.device)

    def prepared(self, images: Tensor, spec: Spec) -> Tensor:
        """(N, C, H, W) in [-1, 1], of any size -> what the feature network takes."""
        assert isinstance(spec, ImageSpec)
        return self.network.prepare(visible(images, spec).clamp(-1, 1))

    def add(self, statistics: FeatureStatistics, prepared: Tensor, keep: Sequence[bool] | None = None) -> None:
        """Add images that are prepared; `keep` says whose features are kept, none by default."""
        found = self.network(prepared.to(self.device))
        kept = torch.tensor(list(keep)) if keep is not None and self.keeps else None
        statistics.add(found.features, found.logits, kept)

    def kept(self, names: Sequence[str]) -> list[bool]:
        """Whose features are kept: all, or the `protocol.kept` whose names have the lowest hashes, in any order."""
        if not self.keeps:
            return [False] * len(names)
        if len(names) <= self.protocol.kept:
            return [True] * len(names)
        ranks = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode("utf-8", "replace")).digest())
        chosen = set(ranks[: self.protocol.kept])
        return [index in chosen for index in range(len(names))]

    def scores(self, predicted: FeatureStatistics, reference: FeatureStatistics) -> dict[str, float]:
        """The measures, in their order; UserError for sets that are too small for one."""
        from translate.metrics.frechet import frechet_distance
        from translate.metrics.inception_score import inception_score
        from translate.metrics.kernel import kid
        from translate.metrics.manifold import manifold

        found: dict[str, float] = {}
        if {"fid", "frechet"} & set(self.names):
            distance = frechet_distance(predicted.gaussian(), reference.gaussian())
            found |= dict.fromkeys(("fid", "frechet"), distance)
        if "inception-score" in self.names:
            found["inception-score"] = inception_score(predicted.classes)
        if "kid" in self.names:
            if min(len(predicted.kept), len(reference.kept)) < 2:
                raise UserError(
                    f"kid compares images within each set: expected at least 2, not {len(predicted.kept)} outputs and "
                    f"{len(reference.kept)} references"
                )
            found["kid"] = kid(predicted.kept, reference.kept)
        if {"precision", "recall", "density", "coverage"} & set(self.names):
            found |= manifold(predicted.kept, reference.kept)._asdict()
        return {name: found[name] for name in self.names}

    def told(self, name: str, predicted: FeatureStatistics, reference: FeatureStatistics) -> dict[str, Value]:
        """The protocol of a measure of these two sets."""
        from translate.metrics.manifold import NEAREST, NEAREST_REAL

        told: dict[str, Value] = dict(self.network.protocol())
        if name == "inception-score":
            return {**told, "splits": 1, "outputs": predicted.count}
        if name in FROM_KEPT:
            told |= {"outputs": len(predicted.kept), "reference images": len(reference.kept)}
        else:
            told |= {"outputs": predicted.count, "reference images": reference.count}
        if name == "kid":
            told["estimator"] = "unbiased, all pairs"
        elif name in FROM_KEPT:
            told["neighbours"] = NEAREST if name in ("precision", "recall") else NEAREST_REAL
        return told


def mean_of(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each measure over its images."""
    return {name: sum(found) / len(found) for name, found in values.items() if found}
