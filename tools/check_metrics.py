"""Our measures of two folders beside those of independent implementations, on the same files.

    python tools/check_metrics.py OUTPUTS TARGETS [--images 64] [--json]

Pairs (files of one name): PSNR and SSIM by scikit-image, MS-SSIM by torchmetrics (whose windows reach beyond the image:
the difference is told, not judged), LPIPS by the authors' package with its own linear layers on our backbone.
Sets: features by torch-fidelity's network, filled with the same weights, and by its own way from uint8 to 299x299;
then FID by pytorch-fid's formula (scipy's matrix root), KID by torchmetrics' polynomial kernel over one subset of all,
precision and recall by torch-fidelity. Exits with 1 where one differs by more than its tolerance. Needs the dev extras
and `translate weights get lpips inception`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_features import unfolded
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from translate.errors import UserError
from translate.evaluation.engine import Options, evaluate
from translate.evaluation.subjects import folders
from translate.pretrained import store

TOLERANCES = {
    "psnr": 1e-6,  # absolute, dB; both in float64
    "ssim": 1e-6,  # the same
    "lpips-alex": 1e-4,  # absolute; float32, some hundred thousand terms
    "lpips-vgg": 1e-4,
    "fid": 1e-3,  # relative; float32 features, whose difference a square root of small eigenvalues enlarges
    "kid": 1e-3,  # relative
    "precision": 0.02,  # absolute; a neighbourhood's border is decided by the last digit of a feature
    "recall": 0.02,
}
RELATIVE = ("fid", "kid")


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W, 3), read by PIL."""
    return np.asarray(Image.open(path).convert("RGB"))


def tensor(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """(1, 3, H, W) uint8."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]


def of_pairs(pairs: list[tuple[Path, Path]]) -> dict[str, float]:
    """PSNR, SSIM, MS-SSIM and LPIPS by the other libraries, means over the pairs."""
    lpips = importlib.import_module("lpips")
    ms_ssim = importlib.import_module("torchmetrics.functional.image").multiscale_structural_similarity_index_measure
    networks = {name: authors_lpips(lpips, name) for name in ("lpips-alex", "lpips-vgg")}
    rows: dict[str, list[float]] = {}
    for first, second in pairs:
        a, b = pixels(first), pixels(second)
        x, y = a / 255, b / 255
        settings = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        found = {
            "psnr": float(peak_signal_noise_ratio(y, x, data_range=1)),
            "ssim": float(structural_similarity(y, x, data_range=1, **settings)),
        }
        if min(a.shape[:2]) >= 161:
            found["ms-ssim"] = float(ms_ssim(tensor(a).double() / 255, tensor(b).double() / 255, data_range=1.0))
        with torch.no_grad():
            for name, network in networks.items():
                found[name] = float(network(tensor(a) / 127.5 - 1, tensor(b) / 127.5 - 1))
        for name, value in found.items():
            rows.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in rows.items()}


def authors_lpips(package: Any, name: str) -> Any:
    """The authors' module with its own linear layers; the backbone's convolutions are ours, in order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = package.LPIPS(net=name.removeprefix("lpips-"), pnet_rand=True, verbose=False).eval()
    held = store.load(name).tensors
    ours = sorted((key for key in held if key.startswith("features.")), key=lambda key: int(key.split(".")[1]))
    kernels = [held[key] for key in ours if key.endswith("weight")]
    biases = [held[key] for key in ours if key.endswith("bias")]
    layers = [module for module in network.net.modules() if isinstance(module, torch.nn.Conv2d)]
    for layer, kernel, bias in zip(layers, kernels, biases, strict=True):
        layer.weight.data, layer.bias.data = kernel, bias
    return network


def features(paths: list[Path]) -> Tensor:
    """(N, 2048) by torch-fidelity's extractor."""
    extractor = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    with tempfile.TemporaryDirectory() as folder:
        torch.save(unfolded(store.load("inception").tensors), Path(folder) / "weights.pth")
        network = extractor("inception", ["2048"], feature_extractor_weights_path=str(Path(folder) / "weights.pth"))
    with torch.no_grad():
        return torch.cat([network(tensor(pixels(path)))[0] for path in paths])


def of_sets(outputs: list[Path], targets: list[Path]) -> dict[str, float]:
    """FID, KID, precision and recall by the other libraries."""
    frechet = importlib.import_module("pytorch_fid.fid_score").calculate_frechet_distance
    polynomial = importlib.import_module("torchmetrics.image.kid").poly_mmd
    prc = importlib.import_module("torch_fidelity.metric_prc").prc_features_to_metric
    a, b = features(outputs), features(targets)
    x, y = a.double().numpy(), b.double().numpy()
    manifold = prc(b, a, verbose=False, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False)  # real ones first
    return {
        "fid": float(frechet(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))),
        "kid": float(polynomial(b.double(), a.double())),
        "precision": float(manifold["precision"]),
        "recall": float(manifold["recall"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("targets", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    measures = ["psnr", "ssim", "lpips-alex", "lpips-vgg", "fid", "kid", "precision", "recall"]
    subject = folders(options.outputs, options.targets, measures, matched=True, images=options.images)
    (match,) = subject.matches
    assert match.pairs is not None
    named = [(match.predicted.files(), p, match.target.files(), t) for p, t in match.pairs]
    pairs = [(outputs[p][0], targets[t][0]) for outputs, p, targets, t in named if outputs and targets]
    if all(min(Image.open(path).size) >= 161 for path, _ in pairs):
        measures.append("ms-ssim")
    evaluation, failed = evaluate([match], Options(tuple(measures)), subject="ours", reference=subject.reference)
    if failed:
        raise UserError(f"{failed[0]}; the comparison needs readable pairs of equal size")
    theirs = of_pairs(pairs) | of_sets([a for a, _ in pairs], [b for _, b in pairs])

    rows, worst = {}, 0
    for score in evaluation.scores:
        wanted = theirs[score.measure]
        difference = abs(score.value - wanted) / (abs(wanted) if score.measure in RELATIVE else 1)
        tolerance = TOLERANCES.get(score.measure)
        rows[score.measure] = {"ours": score.value, "theirs": wanted, "difference": difference, "tolerance": tolerance}
        worst += tolerance is not None and not difference <= tolerance
    if options.json:
        print(json.dumps({"pairs": len(pairs), **rows}))
    else:
        print(f"{len(pairs)} pairs\n{'':<12} {'ours':>14} {'theirs':>14} {'difference':>12} {'tolerance':>10}")
        for name, row in rows.items():
            told = "none" if row["tolerance"] is None else f"{row['tolerance']:.0e}"
            kind = " relative" if name in RELATIVE else ""
            print(f"{name:<12} {row['ours']:14.8f} {row['theirs']:14.8f} {row['difference']:12.1e} {told:>10}{kind}")
    sys.exit(bool(worst))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
