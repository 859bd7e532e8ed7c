"""Inception's features of a folder against pytorch-fid run plainly: how many times more images a second?

Baseline: pytorch-fid's own `get_activations` with its defaults (batches of 50, as many worker processes as CPUs) on
its own network, on the CPU in float32. Ours: two threads decode and resize ahead while the network, batch norm folded
in and laid out channels last, takes batches of 16. Same weights, same files, same resizing, same process; the rounds
alternate, the medians are compared.

    python tools/bench_features.py [FOLDER] [--images 100] [--rounds 3] [--json]

Without a folder it draws its own pictures; in one, all must have the same size, as pytorch-fid wants them. Needs
`translate weights get inception` and the dev extras.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
from bench_convert import draw
from numpy.typing import NDArray
from torch import Tensor

from translate.data.files import find_images
from translate.data.images import normalise, read_pixels
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.evaluation.engine import FEATURE_BATCH
from translate.evaluation.pictures import read_ahead
from translate.metrics.features import FeatureNetwork, feature_network
from translate.metrics.protocol import ProtocolSettings

EPSILON = 1e-3  # of the batch norm in both libraries' networks


def unfolded(folded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as pytorch-fid and torch-fidelity name theirs, with a batch norm that is computed but changes
    nothing, and a classifier of zeros."""
    state: dict[str, Tensor] = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for name, tensor in folded.items():
        layer, _, part = name.rpartition(".")
        if part == "weight" and layer != "fc":
            state[f"{layer}.conv.weight"] = tensor
            state[f"{layer}.bn.weight"] = torch.ones(len(tensor))
            state[f"{layer}.bn.running_mean"] = torch.zeros(len(tensor))
            state[f"{layer}.bn.running_var"] = torch.full((len(tensor),), 1 - EPSILON)
            state[f"{layer}.bn.num_batches_tracked"] = torch.tensor(0)
        elif part == "bias":
            state[f"{layer}.bn.bias"] = tensor
    return state


def plain_network(folded: Mapping[str, Tensor]) -> Any:
    """pytorch-fid's network with our weights."""
    state = unfolded(folded)
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state  # instead of a download
    return pytorch_fid.inception.InceptionV3([3]).eval()


def plain(network: Any, paths: list[Path]) -> NDArray[np.float64]:
    """pytorch-fid, as its command runs it."""
    workers = min(8, len(os.sched_getaffinity(0)))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        found: NDArray[np.float64] = pytorch_fid.fid_score.get_activations(paths, network, num_workers=workers)
    return found


def ours(network: FeatureNetwork, paths: list[Path]) -> NDArray[np.float32]:
    """Batch by batch, as `translate evaluate` does."""
    spec = ImageSpec()

    def read(path: Path) -> Tensor:
        return network.prepare(normalise(torch.from_numpy(read_pixels(path, spec)[None]), spec))

    found, waiting = [], []
    for prepared in read_ahead(paths, read):
        waiting.append(prepared)
        if len(waiting) == FEATURE_BATCH:
            found.append(network(torch.cat(waiting)).features)
            waiting = []
    if waiting:
        found.append(network(torch.cat(waiting)).features)
    return torch.cat(found).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=100, help="how many of the folder, or drawn")
    parser.add_argument("--size", type=int, default=256, help="of the drawn pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    arguments = parser.parse_args()

    network = feature_network(ProtocolSettings(resize="pytorch"), "cpu")
    baseline = plain_network(network.network.state_dict())
    seconds: dict[str, list[float]] = {"pytorch_fid": [], "translate": []}
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        if arguments.folder is None:
            draw(folder, arguments.images, arguments.size)
        paths = find_images(folder)[: arguments.images]
        for round_number in range(arguments.rounds + 1):
            chosen = paths if round_number else paths[:FEATURE_BATCH]  # the first round warms up and is not counted
            start = time.perf_counter()
            theirs = plain(baseline, chosen)
            middle = time.perf_counter()
            found = ours(network, chosen)
            end = time.perf_counter()
            if round_number:
                seconds["pytorch_fid"].append(middle - start)
                seconds["translate"].append(end - middle)
    rates = {kind: len(paths) / statistics.median(values) for kind, values in seconds.items()}
    result = {
        "pytorch_fid_images_per_second": round(rates["pytorch_fid"], 2),
        "translate_images_per_second": round(rates["translate"], 2),
        "ratio": round(rates["translate"] / rates["pytorch_fid"], 2),
        "greatest_difference": float(f"{np.abs(found - theirs).max():.2g}"),
        "greatest_feature": round(float(theirs.max()), 2),
        "threads": torch.get_num_threads(),
        "images": len(paths),
        "rounds": arguments.rounds,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key.replace('_', ' '):32} {value}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
