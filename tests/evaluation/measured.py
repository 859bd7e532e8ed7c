"""Pictures to be measured, runs that make some, and what the numbers should be: numpy and scikit-image alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from translate import config as configs
from translate.evaluation.engine import Match, Options, evaluate
from translate.metrics.protocol import ProtocolSettings
from translate.metrics.scores import Evaluation
from translate.run import Run

torch.set_num_threads(1)

Array = NDArray[Any]
COLOURS = ProtocolSettings(features=f"{__name__}:Colours")


class Colours(nn.Module):
    """Three features of an image, its mean colour, and as many logits, ten times them."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means = images.mean(dim=(2, 3))
        return means, 10 * means


def smooth(seed: int, size: tuple[int, int] = (24, 32)) -> Array:
    """A smooth random picture (H, W, 3), uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_LINEAR))


def noisy(pixels: Array, seed: int, deviation: float = 12) -> Array:
    noise = np.random.default_rng(seed).normal(0, deviation, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def write(path: Path, pixels: Array) -> Path:
    """Grey, RGB or RGBA, uint8 or uint16, as OpenCV writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[1 if pixels.ndim == 2 else pixels.shape[2]]
    assert cv2.imwrite(str(path), np.atleast_3d(pixels)[..., order])
    return path


def write_folders(root: Path, count: int = 6, size: tuple[int, int] = (24, 32)) -> tuple[Path, Path]:
    """OUT and TARGET with equal names, some of them in sub-folders: pictures, and those with noise."""
    names = [f"{'deep/er/' if number % 3 == 2 else ''}{number}" for number in range(count)]
    for number, name in enumerate(names):
        target = smooth(number, size)
        write(root / "target" / f"{name}.png", target)
        write(root / "out" / f"{name}.png", noisy(target, 100 + number))
    return root / "out", root / "target"


def read(path: Path) -> Array:
    """The RGB picture (H, W, 3) that is in a file, as OpenCV reads it."""
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH))


def tree(folder: Path) -> dict[str, Array]:
    """Name without suffix -> picture, of all below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).with_suffix("").as_posix(): read(path) for path in files}


# ---- the numbers -----------------------------------------------------------------------------------------------------


def luma(pixels: Array) -> Array:
    """Y of BT.601, 16 to 235, of RGB uint8: (H, W, 1)."""
    return np.asarray(16 + pixels.astype(np.float64) @ [65.481, 128.553, 24.966] / 255)[..., None]


def pair(output: Array, target: Array, top: float = 255) -> dict[str, float]:
    """L1, PSNR and SSIM of two pictures whose values go to `top`."""
    a, b = output.astype(np.float64), target.astype(np.float64)
    error = np.mean((a - b) ** 2)
    ssim = structural_similarity(
        a, b, data_range=top, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return {
        "l1": float(np.abs(a - b).mean() / top),
        "psnr": 100.0 if error == 0 else min(100.0, float(10 * np.log10(top**2 / error))),
        "ssim": float(ssim),
    }


def colours(pictures: Sequence[Array]) -> Array:
    """What `Colours` sees of uint8 pictures: (N, 3)."""
    return np.stack([pixels.reshape(-1, 3).mean(0) / 127.5 - 1 for pixels in pictures])


def frechet(a: Array, b: Array) -> float:
    """Of features (N, D) and (M, D): the root's trace by the eigenvalues of the product."""
    first, second = (np.cov(x, rowvar=False) for x in (a, b))
    root = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root)


def kid(a: Array, b: Array) -> float:
    """The unbiased squared distance under (x.y / D + 1)³."""
    within = 0.0
    for x in (a, b):
        kernel = (x @ x.T / x.shape[1] + 1) ** 3
        within += (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))
    return float(within - 2 * ((a @ b.T / a.shape[1] + 1) ** 3).mean())


def segmentation(found: Sequence[Array], truth: Sequence[Array], classes: int) -> dict[str, float]:
    """Accuracies and IoU over all pixels of label maps (H, W)."""
    p, t = (np.concatenate([np.asarray(each).ravel() for each in maps]) for maps in (found, truth))
    there = [c for c in range(classes) if (t == c).any()]
    either = [c for c in range(classes) if (t == c).any() or (p == c).any()]
    return {
        "pixel-accuracy": float((p == t).mean()),
        "class-accuracy": float(np.mean([(p[t == c] == c).mean() for c in there])),
        "mean-iou": float(np.mean([((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum() for c in either])),
    }


# ---- shorthands ------------------------------------------------------------------------------------------------------


def measured(
    matches: Sequence[Match], *measures: str, protocol: ProtocolSettings = COLOURS, **options: Any
) -> tuple[Evaluation, list[str]]:
    settings = Options(measures=measures, protocol=protocol, **options)
    return evaluate(matches, settings, subject="outputs", reference="targets")


def values(evaluation: Evaluation) -> dict[str, float]:
    """Measure, with its part before it -> number."""
    return {f"{score.part} {score.measure}".strip(): score.value for score in evaluation.scores}


def by_image(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    return {image.name: image.values for image in evaluation.images}


# ---- runs ------------------------------------------------------------------------------------------------------------

STAGES = [{"length": "1 steps", "optimiser": {"kind": "Adam", "lr": 1e-3}}]


def export(folder: Path, method: Mapping[str, Any], data: Mapping[str, Any], **more: Any) -> Path:
    """The weights file of a run whose networks are as chance made them, but with outputs over the whole range."""
    raw = {"name": "small", "training": {"batch_size": 4, "stages": STAGES}, "method": method, "data": data, **more}
    config = configs.validate(raw, "test")
    torch.manual_seed(0)
    built = config.method.build(config.data)
    for module in built.exported().modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder)
    run.config_file.write_text(configs.dump(config))
    return run.export("last", config, built.exported(), step=1234, images=4936)


UNET = {"kind": "unet", "depth": 3, "width": 4, "norm": "instance", "dropout": 0.0}
PATCH = {"kind": "patch", "layers": 1, "width": 4, "norm": "instance"}
PIX2PIX = {"kind": "pix2pix", "generator": UNET, "discriminator": PATCH}
RESNET = {"kind": "resnet", "blocks": 1, "width": 4}
CYCLEGAN = {"kind": "cyclegan", "generator": RESNET, "discriminator": PATCH}
PAIRS: dict[str, Any] = {
    "kind": "paired",
    "validation": None,
    "workers": 0,
    "augment": {"resize": None, "crop": None, "flip": False},
}
UNPAIRED: dict[str, Any] = {**PAIRS, "kind": "unpaired"}
DCGAN = {"kind": "dcgan", "width": 4}
GAN: dict[str, Any] = {"kind": "gan", "generator": DCGAN, "discriminator": DCGAN, "latent": {"width": 6}}


def write_pairs(root: Path, split: str, count: int, size: tuple[int, int] = (24, 32), first: int = 0) -> Path:
    """A pair's A is a picture, its B the negative with noise."""
    for number in range(first, first + count):
        a = smooth(number, size)
        write(root / split / "A" / f"{number:02}.png", a)
        write(root / split / "B" / f"{number:02}.png", noisy(255 - a, number, 6))
    return root
