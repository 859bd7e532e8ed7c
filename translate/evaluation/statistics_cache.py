"""Features of reference sets are measured once: kept in the user's cache folder, keyed by what the files hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from translate.data.files import user_cache_folder
from translate.distributed import any_of
from translate.evaluation.pictures import Pictures, read_ahead
from translate.metrics.frechet import FeatureStatistics
from translate.metrics.meters import SetMeter
from translate.pretrained.inception import SIDE
from translate.run import sha256

_FORMAT = 1
Measured = tuple[FeatureStatistics, str, list[str]]
"""Statistics, the digest of the set's pixels, and a line for each picture that could not be read."""


def cached_statistics(
    pictures: Pictures, indices: Sequence[int], meter: SetMeter, measure: Callable[[], Measured]
) -> Measured:
    """What `measure` gives for these pictures, from the cache if it was kept there before.

    The key is the content of the files, not their names or times, with all that decides the features. Sets with
    unreadable pictures are not kept: their next reader must hear of them. A damaged entry is measured anew.
    """
    files = pictures.files()
    if files is None:
        return measure()
    path = _entry(pictures, [files[index] for index in indices], indices, meter)
    found = _read(path) if path else None
    # All measure or none: the folder may be another one on each machine.
    if not any_of(found is None) and found is not None:
        return found
    statistics, pixels, bad = measure()
    if path and not bad:
        _write(path, statistics, pixels)
    return statistics, pixels, bad


def _entry(pictures: Pictures, files: list[list[Path]], indices: Sequence[int], meter: SetMeter) -> Path | None:
    """Where the statistics of these files are kept; None if one of them cannot be read."""
    try:
        contents = list(read_ahead(files, lambda paths: " ".join(map(sha256, paths))))
    except OSError:
        return None
    # Names choose whose features are kept: of two sets with the same pictures perhaps not those of the same ones.
    kept = meter.kept([pictures.names[index] for index in indices])
    chosen = sorted(content for content, keep in zip(contents, kept, strict=True) if keep)
    key = [_FORMAT, meter.network.protocol(), _behaviour(meter), pictures.key(), sorted(contents), chosen]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return user_cache_folder() / "statistics" / f"{digest}.safetensors"


def _behaviour(meter: SetMeter) -> list[Any]:
    """What a user's network makes of a picture of noise: its code may change where neither name nor weights do."""
    if meter.protocol.features == "inception":
        return []
    side = meter.network.crop or SIDE
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features, logits = meter.network(meter.network.prepare(noise))
    return [part.double().cpu().tolist() for part in (features, logits) if part is not None]


def _read(path: Path) -> Measured | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        return FeatureStatistics.from_state(state), metadata["pixels"], []
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def _write(path: Path, statistics: FeatureStatistics, pixels: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unfinished")  # each process of a group writes
    with contextlib.suppress(OSError, SafetensorError):  # without a cache it is just slower
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            state = {name: tensor.contiguous() for name, tensor in statistics.state().items()}
            save_file(state, temporary, metadata={"pixels": pixels})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
