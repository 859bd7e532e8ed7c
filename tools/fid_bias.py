"""How far apart FID and KID put two halves of one set of pictures, by the number of pictures.

    python tools/fid_bias.py FOLDER [--images 1200] [--seed 0] [--json]

The pictures are shuffled; for N = 64, 128, ... the first N are measured against the next N. The true distance is 0:
what FID shows is its bias. Beside it `expected_bias`, from the covariance of all the pictures, as `translate evaluate`
tells it. Needs `translate weights get inception`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from itertools import islice
from pathlib import Path

import torch

from translate.data.images import normalise
from translate.data.spec import ImageSpec
from translate.errors import ImageError, UserError
from translate.evaluation.engine import FEATURE_BATCH
from translate.evaluation.pictures import FilePictures
from translate.metrics.features import feature_network
from translate.metrics.frechet import FeatureStatistics, Gaussian, expected_bias, frechet_distance
from translate.metrics.kernel import kid
from translate.metrics.protocol import ProtocolSettings

FEWEST = 64


def features_of(folder: Path, images: int, seed: int) -> torch.Tensor:
    """Inception's features (N, 2048) of that many pictures, in a random order."""
    network, spec = feature_network(ProtocolSettings(), "cpu"), ImageSpec()
    pictures = FilePictures(folder, spec)
    order = list(range(len(pictures.names)))
    random.Random(seed).shuffle(order)
    stream = pictures.stream(
        order[:images], lambda pixels: network.prepare(normalise(torch.from_numpy(pixels[None]), spec))
    )
    readable = (found for found in stream if not isinstance(found, ImageError))
    features = []
    while batch := list(islice(readable, FEATURE_BATCH)):
        features.append(network(torch.cat(batch)).features)
    return torch.cat(features)


def law_of(features: torch.Tensor) -> Gaussian:
    """Their Gaussian."""
    statistics = FeatureStatistics(features.shape[1])
    statistics.add(features)
    return statistics.gaussian()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    features = features_of(options.folder, options.images, options.seed)
    whole = law_of(features).covariance
    rows, count = [], FEWEST
    while 2 * count <= len(features):
        one, other = features[:count], features[count : 2 * count]
        distance = frechet_distance(law_of(one), law_of(other))
        rows.append((count, distance, expected_bias(whole, count, count), kid(one, other)))
        count *= 2
    if not rows:
        raise UserError(f"{options.folder}: expected at least {2 * FEWEST} pictures, found {len(features)}")
    if options.json:
        names = ("images", "fid", "expected bias", "kid")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
        return
    print(f"two disjoint samples of {len(features)} pictures\n{'images':>7} {'FID':>8} {'expected':>9} {'KID':>9}")
    for count, distance, expected, kernel in rows:
        print(f"{count:7} {distance:8.2f} {expected:9.2f} {kernel:9.5f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
