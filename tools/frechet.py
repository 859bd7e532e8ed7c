"""Fréchet distance of generated to real images on the features of a small classifier of the same data.

    python tools/frechet.py RUN [RUN ...] [--data data/mnist] [-n 10000] [--seed 0] [--cache ~/.cache/...] [--json]

The extractor is the network `Classifier` below, trained here once on the runs' training split (class folders) from seed
0, and kept in the cache folder; its features are the 64 values before the last layer. The distance is that of
`translate.metrics.frechet`. It is comparable only among runs measured with the same extractor and the same n (both are
printed): a finite n alone makes some (dimensions)² / n of it, which the floor shows, the distance of as many real
training images to the real test images. It is no FID, which is defined on Inception's features.

Beside it, what the classifier sees: the entropy of its class histogram (nats; a generator that loses classes has less
than the data) and its mean confidence.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from translate.data import FolderSettings
from translate.data.images import normalise, to_device
from translate.data.loader import evaluation_batches
from translate.data.spec import ImageSpec, Split
from translate.errors import UserError
from translate.inference.sampler import Sampler
from translate.metrics.frechet import FeatureStatistics, Gaussian, frechet_distance
from translate.run import load_weights, sha256

WIDTH = 64
EPOCHS, BATCH, RATE = 4, 128, 1e-3
"""Of the classifier's training: 99 % on MNIST's test images."""
CPU = torch.device("cpu")


class Classifier(nn.Module):
    """LeNet-like (LeCun et al. 1998, section II.B): two 5x5 convolutions, each with ReLU and max pooling, two linear
    layers. Images (N, C, H, W) in [-1, 1], H and W from 16 -> class logits."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.maps = nn.Sequential(
            nn.Conv2d(channels, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        # A valid 5x5 convolution takes 4 off each side, then it is halved; twice.
        sides = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
        self.hidden = nn.Linear(32 * sides[0] * sides[1], WIDTH)
        self.last = nn.Linear(WIDTH, classes)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, WIDTH)."""
        return torch.as_tensor(F.relu(self.hidden(self.maps(x))))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(self.features(x)))


# ---- images ----------------------------------------------------------------------------------------------------------


def labelled(data: FolderSettings, split: Split, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in [-1, 1] of a split, as networks see them, and their classes (N,); `count` of them, spread
    evenly."""
    dataset = data.open(split, 0)
    if dataset is None:
        raise UserError(f"data.{split}: names no split")
    found = evaluation_batches(dataset, batch_size=500, workers=0, device=CPU, images=count)
    batches = [to_device(batch, data.specs(), CPU) for batch in found]
    return torch.cat([batch["image"] for batch in batches]), torch.cat([batch["label"] for batch in batches])


def data_of(run: Path, root: Path | None) -> FolderSettings:
    """The data of a run, with class folders as labels and no image held out."""
    data = load_weights(run).config.data
    if not isinstance(data, FolderSettings):
        raise UserError(f"{run}: expected a run on a folder of images")
    names = {"classes": "folders", "validation": None, "test": "test", "cache": "none"}
    changed = {**data.model_dump(mode="json"), **names, **({"root": str(root)} if root else {})}
    return FolderSettings.model_validate(changed).resolved()


# ---- the extractor ---------------------------------------------------------------------------------------------------


def train_classifier(data: FolderSettings) -> Classifier:
    """Train on the training split; the same weights each time on the same machine."""
    torch.manual_seed(0)
    classifier = Classifier(data.shape(), len(data.class_names))
    images, labels = labelled(data, "train")
    optimiser = torch.optim.Adam(classifier.parameters(), lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS * -(-len(images) // BATCH))
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(classifier(images[chosen]), labels[chosen]).backward()
            optimiser.step()
            schedule.step()
    return classifier.eval()


def extractor(data: FolderSettings, cache: Path) -> tuple[Classifier, str]:
    """The classifier of this data, from the cache if it is there; and the name of its weights."""
    told = json.dumps([str(data.root), data.class_names, data.shape(), WIDTH, EPOCHS, BATCH, RATE])
    file = cache / f"classifier-{hashlib.sha256(told.encode()).hexdigest()[:12]}.safetensors"
    if not file.exists():
        print(f"training the classifier on {data.root}", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".unfinished")
        save_file(train_classifier(data).state_dict(), temporary)
        temporary.replace(file)
    classifier = Classifier(data.shape(), len(data.class_names))
    classifier.load_state_dict(load_file(file))
    return classifier.eval(), f"{file.name} (sha256 {sha256(file)[:12]})"


class Seen(NamedTuple):
    """What the classifier makes of images."""

    features: Gaussian
    entropy: float
    """Of the histogram of its classes, nats."""
    confidence: float
    """Mean of the largest probability."""
    classes: Tensor
    """(N,)."""


@torch.no_grad()
def look(classifier: Classifier, images: Tensor) -> Seen:
    """Images (N, C, H, W) in [-1, 1]."""
    features = torch.cat([classifier.features(part) for part in images.split(500)])
    statistics = FeatureStatistics(WIDTH)
    statistics.add(features)
    probabilities = classifier.last(features).softmax(1)
    confidence, classes = probabilities.max(1)
    shares = torch.bincount(classes, minlength=probabilities.shape[1]).double() / len(images)
    return Seen(statistics.gaussian(), float(torch.special.entr(shares).sum()), float(confidence.mean()), classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data", type=Path, help="where the class folders are now: DATA/train/..., DATA/test/...")
    parser.add_argument("-n", type=int, default=10_000, help="images of each side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "translate")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    data = data_of(options.runs[0], options.data)
    classifier, name = extractor(data, options.cache)
    images, labels = labelled(data, "test", options.n)
    test = look(classifier, images)
    n = len(images)
    train = look(classifier, labelled(data, "train", n)[0])
    rows = {"real training images (the floor)": train, "real test images": test}
    for run in options.runs:
        if data_of(run, options.data) != data:
            raise UserError(f"{run}: was trained on other data than {options.runs[0]}; measure it by itself")
        samples = torch.from_numpy(Sampler.load(run).sample(n, seed=options.seed))  # uint8, as an image file has it
        spec = data.specs()["image"]
        assert isinstance(spec, ImageSpec)
        rows[str(run)] = look(classifier, normalise(samples, spec))

    accuracy = float((test.classes == labels).double().mean())
    measured = {
        row: {
            "distance": frechet_distance(seen.features, test.features),
            "entropy": seen.entropy,
            "confidence": seen.confidence,
        }
        for row, seen in rows.items()
    }
    if options.json:
        print(json.dumps({"extractor": name, "accuracy": accuracy, "n": n, "dimensions": WIDTH, "rows": measured}))
        return
    print(f"extractor {name}, {accuracy:.2%} of the test images right; {WIDTH} dimensions, n = {n:,} a side")
    print(f"{'distance to the test images':>30} {'entropy':>9} {'confidence':>11}")
    for row, values in measured.items():
        print(f"{values['distance']:30.3f} {values['entropy']:9.3f} {values['confidence']:11.4f}  {row}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
