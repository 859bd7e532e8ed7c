"""Which objectives and penalties find all modes of 25 Gaussians on a grid: a table and a picture.

    python tools/study_2d.py [--out /tmp/study-2d] [--rows hinge "hinge + r1"] [--seeds 0 1 2] [--steps 4000]

Each row is a config: COMMON below with a few keys changed, trained by the trainer as any other, on one thread.
Networks, optimiser, batch and number of steps are the same in all rows. A run that is in OUT/results.jsonl with the
same config is not done again, so the study may be stopped and gone on with; several processes with different rows may
share OUT.

Measured on 10,000 samples of the averaged generator, each sample counted to the mode that is nearest to it:

- high quality: the share within 3 standard deviations of its mode (VEEGAN, Srivastava et al. 2017, arXiv 1705.07761,
  section 4.1). Of the true law it is 1 - exp(-9/2) = 98.9 %: the distance of two dimensions is Rayleigh's.
- modes: those that any high-quality sample belongs to (VEEGAN, section 4.1). That is generous; the next one is not.
- reverse KL: KL(shares of the modes in the samples || uniform), nats (PacGAN, Lin et al. 2018, arXiv 1712.04086,
  section 4.1). Of 10,000 samples of the true law its mean is 24 / 20,000 = 0.0012.

The table has the mean of the seeds and the range.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from translate import config as configs
from translate.config import Config
from translate.data import ToySettings
from translate.data.images import write_image
from translate.methods.generative import GenerativeMethod, scatter
from translate.run import Run, build_for_inference, load_weights
from translate.training.trainer import Silent, Trainer

SAMPLES = 10_000
WITHIN = 3.0
"""Standard deviations."""

WIDTHS = [128, 128, 128]
COMMON: dict[str, Any] = {
    "name": "study-2d",
    "method": {
        "kind": "gan",
        "latent": {"width": 2, "prior": "normal"},
        "generator": {"kind": "mlp", "hidden": WIDTHS, "activation": "relu"},
        "discriminator": {"kind": "mlp", "hidden": WIDTHS, "activation": "leaky-relu"},
    },
    "data": {"kind": "toy", "layout": "grid25", "samples": 100_000},
    "training": {
        "batch_size": 256,
        "precision": "fp32",
        "device": "cpu",
        "ema": {"half_life": "100 steps"},
        "stages": [
            {
                "length": "4000 steps",
                "optimiser": {"kind": "Adam", "lr": 1e-3, "betas": [0.0, 0.99]},
                "schedule": {"kind": "cosine"},
            }
        ],
    },
    "logging": {"every": "500 steps", "previews": "1000000 steps"},
    "checkpoints": {"every": "1000000 steps"},
}

R1: dict[str, Any] = {"kind": "r1", "weight": 0.1}
R2: dict[str, Any] = {"kind": "r2", "weight": 0.1}
GP: dict[str, Any] = {"kind": "gradient-penalty", "weight": 1.0}
DRAGAN: dict[str, Any] = {"kind": "dragan", "weight": 1.0}
STRONG: dict[str, Any] = {"kind": "r1", "weight": 1.0}
"""For the games whose logits have a scale of their own: 0.1 left a reverse KL of 0.14 (least squares), or diverged."""
SPECTRAL: dict[str, Any] = {"discriminator": {"spectral_norm": True}}


def game(objective: Any, *penalties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A GAN's changes to COMMON: its objective and penalties, and further keys of the method."""
    return {"method": {"objective": objective, "penalties": list(penalties), **more}}


def f_gan(divergence: str) -> dict[str, str]:
    return {"kind": "f-gan", "divergence": divergence}


def alone(kind: str, **more: Any) -> dict[str, Any]:
    """Changes for a method without a discriminator."""
    return {"method": {"kind": kind, **more}}


FREE: dict[str, dict[str, Any]] = {
    "minimax": game("minimax"),
    "non-saturating": game("non-saturating"),
    "least-squares": game("least-squares"),
    "hinge": game("hinge"),
    "f-gan kl": game(f_gan("kl")),
    "f-gan reverse-kl": game(f_gan("reverse-kl")),
    "f-gan pearson": game(f_gan("pearson")),
    "f-gan jensen-shannon": game(f_gan("jensen-shannon")),
    "relativistic": game("relativistic"),
    "relativistic-average": game("relativistic-average"),
}
"""Nothing holds the discriminator."""

HELD: dict[str, dict[str, Any]] = {
    "minimax + r1": game("minimax", R1),
    "non-saturating + r1": game("non-saturating", R1),
    "least-squares + r1": game("least-squares", STRONG),
    "hinge + r1": game("hinge", R1),
    "f-gan kl + r1": game({**f_gan("kl"), "generator": "non-saturating"}, STRONG),
    "f-gan jensen-shannon + r1": game(f_gan("jensen-shannon"), R1),
    "relativistic + r1 + r2": game("relativistic", R1, R2),
    "wasserstein + gradient penalty": game("wasserstein", GP),
    "non-saturating + dragan": game("non-saturating", DRAGAN),
    "non-saturating + spectral norm": game("non-saturating", **SPECTRAL),
    "hinge + spectral norm": game("hinge", **SPECTRAL),
}
"""The discriminator's slope is held."""

OTHER: dict[str, dict[str, Any]] = {
    "wasserstein + clipping": game("wasserstein", weight_clip=0.1),
    "non-saturating + bottleneck": game(
        "non-saturating",
        discriminator={"bottleneck": 64},
        bottleneck={"information": 0.5, "rate": 1e-4},
    ),
    "moment matching": alone("moment-matching", bandwidths=[0.1, 0.25, 0.5, 1.0, 2.0, 4.0]),
    "imle": alone("imle", candidates=1024),
}
"""Other ways to all modes."""

ROWS = FREE | HELD | OTHER


def config_of(row: str, seed: int, steps: int) -> Config:
    """The config of a row."""
    raw = copy.deepcopy(COMMON) | {"seed": seed}
    raw["training"]["stages"][0]["length"] = f"{steps} steps"
    if kind := ROWS[row]["method"].get("kind"):  # no discriminator there, but the same generator and latent
        raw["method"] = {"kind": kind} | {key: raw["method"][key] for key in ("latent", "generator")}
    return configs.validate(configs.merge(raw, ROWS[row]), row)


# ---- measures --------------------------------------------------------------------------------------------------------


class Coverage(NamedTuple):
    """How samples lie among the modes."""

    modes: int
    quality: float
    """Share of high-quality samples."""
    reverse_kl: float
    """Nats."""


def coverage(samples: Tensor, centres: Tensor, deviation: float) -> Coverage:
    """Measure samples (N, D) against equally likely Gaussians around centres (K, D); NaN samples are in no mode's reach
    and count to the first."""
    count, modes = len(samples), len(centres)
    distances = (samples[:, None].double() - centres[None].double()).norm(dim=2).nan_to_num(torch.inf)  # (N, K)
    distance, nearest = distances.min(dim=1)
    good = distance <= WITHIN * deviation
    found = torch.bincount(nearest[good], minlength=modes) > 0
    shares = torch.bincount(nearest, minlength=modes).double() / count
    kl = torch.special.xlogy(shares, shares * modes).sum()
    return Coverage(int(found.sum()), float(good.double().mean()), float(kl))


# ---- runs ------------------------------------------------------------------------------------------------------------


def train(config: Config, seed: int) -> tuple[Tensor, float]:
    """Train in a folder that goes again: samples (SAMPLES, 2) of the averaged generator, and processor seconds."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder), config.name, configs.dump(config))
        Trainer(config, Silent()).train(run)
        method = build_for_inference(load_weights(run.path))
    seconds = time.process_time() - begun
    assert isinstance(method, GenerativeMethod)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return method.generate(method.draw(SAMPLES, generator=chance)), seconds


def fingerprint(config: Config) -> str:
    """Tells whether a row is what it was when it was run."""
    return hashlib.sha256(configs.dump(config).encode()).hexdigest()[:16]


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """What has been measured, by the fingerprint of its config."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {found["config"]: found for found in map(json.loads, lines)}


# ---- table and picture -----------------------------------------------------------------------------------------------


def spread(values: list[float], digits: int, factor: float = 1.0) -> str:
    """Mean and range, in a cell."""
    low, mean, high = (f"{factor * value:.{digits}f}" for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| | modes of 25 | high quality, % | reverse KL, nats | seconds |", "|---|---|---|---|---|"]
    for row, found in results.items():
        columns = {key: [float(one[key]) for one in found] for key in ("modes", "quality", "reverse_kl", "seconds")}
        cells = [
            spread(columns["modes"], 0 if len(set(columns["modes"])) == 1 else 1),
            spread(columns["quality"], 1, 100),
            spread(columns["reverse_kl"], 3),
            f"{statistics.mean(columns['seconds']):.0f}",
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


PANEL, CAPTION, ACROSS = 200, 20, 6


def panel(points: Tensor, caption: str) -> np.ndarray:
    """(N, 2) points of the plane within 5 of the origin, and their caption: uint8 (PANEL + CAPTION, PANEL, 3)."""
    picture = scatter(points, limit=5.0, size=PANEL)  # (3, PANEL, PANEL) in [-1, 1]
    pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    framed = cv2.copyMakeBorder(pixels[1:-1, 1:-1], CAPTION + 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(210, 210, 210))
    framed[:CAPTION] = 255
    place = (2, CAPTION - 6)
    return cv2.putText(framed, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)


def picture(panels: list[np.ndarray]) -> np.ndarray:
    """Panels side by side, ACROSS of them, white where one is missing."""
    panels = panels + [np.full_like(panels[0], 255)] * (-len(panels) % ACROSS)
    return np.vstack([np.hstack(panels[first : first + ACROSS]) for first in range(0, len(panels), ACROSS)])


# ---- all of it -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("study-2d"))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)

    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.jsonl"
    results: dict[str, list[dict[str, Any]]] = {}
    panels = []
    for row in options.rows:
        for seed in options.seeds:
            config = config_of(row, seed, options.steps)
            key = fingerprint(config)
            found = read_results(file).get(key)
            points = options.out / f"{key}.npy"
            if found is None or not points.exists():
                samples, seconds = train(config, seed)
                assert isinstance(config.data, ToySettings)
                measured = coverage(samples, *config.data.modes())
                np.save(points, samples.numpy())
                found = {"row": row, "seed": seed, "config": key, **measured._asdict(), "seconds": seconds}
                with file.open("a") as lines:
                    lines.write(json.dumps(found) + "\n")
                values = f"{measured.modes} modes, {measured.quality:.1%}, reverse KL {measured.reverse_kl:.4f}"
                print(f"{row}, seed {seed}: {values}, {seconds:.0f} s", flush=True)
            results.setdefault(row, []).append(found)
            if seed == options.seeds[0]:
                panels.append(panel(torch.from_numpy(np.load(points)), row))
    (options.out / "table.md").write_text(table(results))
    panels.append(panel(torch.from_numpy(ToySettings(samples=SAMPLES).open("train", 0).points), "the data"))
    write_image(options.out / "grid25.png", picture(panels))
    print(table(results))


if __name__ == "__main__":
    main()
