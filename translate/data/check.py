"""Looks through a whole data set before anyone trains on it: what is wrong, and what values it holds."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from translate.data.files import Problem
from translate.data.images import ImageFile, Pixels, load_pixels_like, read_image
from translate.data.spec import ImageSpec, Split
from translate.data.super_resolution import HIGH, SuperResolutionSettings
from translate.data.toys import ToySettings
from translate.errors import ImageError

if TYPE_CHECKING:
    from translate.data import DataSettings
    from translate.data.pairing import Item

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass
class CheckReport:
    """What `check` found.

    Kinds of problem: those of the pairing (`missing`, `duplicate`, `manifest`, `class`), and `unreadable` (a file
    that cannot be used), `size` (the sides of a pair do not fit each other, or super-resolution's crop), `leak` (the
    same pixels in two splits), `repeated` (a sample twice in one split), `shared` (without pairs: the same pixels on
    both sides).
    """

    problems: list[Problem] = field(default_factory=list)
    statistics: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Split -> side -> values, ready for JSON. `count`; `width` and `height` as [smallest, largest];
    `formats`, `dtypes` and `channels` (as stored, alpha counted) as {value: files}; for images `mean` and
    `std` of each channel as training sees it, scaled to 0 ... 1; for label maps `shares`, each class's part of
    all pixels; where the folders are classes, `classes` as {name: images}. Points: `count`, `layout`, `modes`,
    `deviation` of each mode, and `mean` and `std` of each coordinate.
    """


@dataclass
class _Seen:
    """One side of one sample, as read."""

    path: Path
    width: int
    height: int
    format: str
    dtype: str
    channels: int
    pixels: int
    moments: NDArray[Any]  # images: (C, 2) mean and mean square; labels: (classes,) counts
    digest: bytes
    flat: bool  # of one colour: equal ones prove nothing


def check(settings: DataSettings, *, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read every file of every split once and report problems and statistics; points have no problems.

    Args:
        settings: the data set's settings.
        progress: called with (samples read, samples in all) after each sample.

    Raises:
        UserError: a folder or list that the settings name is missing, unreadable or empty.
    """
    settings = settings.resolved()
    report = CheckReport()
    if isinstance(settings, ToySettings):
        report.statistics = {split: {"point": _points(settings, split)} for split in _SPLITS}
        return report
    tasks: list[tuple[Split, Item]] = []
    for name in _SPLITS:
        pairing = settings.pairing(name)
        report.problems += pairing.problems
        tasks += [(name, item) for item in pairing.items]
    given = {side for _, item in tasks for side in item.paths}  # low resolutions need be no files
    specs = {side: spec for side, spec in settings.specs().items() if side in given}
    seen: list[tuple[str, Item, dict[str, _Seen]]] = []
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        results = pool.map(lambda task: _look(task[1], specs), tasks)
        for (split, item), (sides, problems) in zip(tasks, results, strict=True):
            report.problems += problems
            seen.append((split, item, sides))
            if progress is not None:
                progress(len(seen), len(tasks))
            if isinstance(settings, SuperResolutionSettings):
                report.problems += _misfits(settings, split, sides)
            elif len(sides) > 1 and not getattr(settings, "match_sizes", False):
                report.problems += _size_problems(item, sides)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the files still to come
    report.problems += _repetitions(seen)
    for name in _SPLITS:
        read = [sides for split, _, sides in seen if split == name]
        if not read:
            continue
        report.statistics[name] = {
            side: _summary([sides[side] for sides in read if side in sides], spec) for side, spec in specs.items()
        }
        if settings.class_names:
            labels = Counter(item.label for split, item, sides in seen if split == name and sides)
            images = {label: labels[number] for number, label in enumerate(settings.class_names)}
            report.statistics[name]["image"]["classes"] = images
    return report


def _points(settings: ToySettings, split: Split) -> dict[str, Any]:
    points = settings.open(split, seed=0).points.astype(np.float64)
    centres, deviation = settings.modes()
    return {
        "count": len(points),
        "layout": settings.layout,
        "modes": len(centres),
        "deviation": deviation,
        "mean": points.mean(axis=0).tolist(),
        "std": points.std(axis=0).tolist(),
    }


def _look(item: Item, specs: dict[str, ImageSpec]) -> tuple[dict[str, _Seen], list[Problem]]:
    """Read the sides of a sample; a side that cannot be used is left out and becomes a problem."""
    sides: dict[str, _Seen] = {}
    problems: list[Problem] = []
    images: dict[Path, ImageFile] = {}
    for position, (side, path) in enumerate(item.paths.items()):
        try:
            if path not in images:
                images[path] = read_image(path)
            pixels = load_pixels_like(images[path], specs[side])
        except ImageError as error:
            problem = Problem("unreadable", str(path), error.reason)
            if problem not in problems:
                problems.append(problem)
            continue
        if len(item.paths) > len(set(item.paths.values())):  # side by side: A is the left half, B the right
            width = pixels.shape[1]
            if width % 2:
                text = f"is {width} pixels wide; a side-by-side pair has an even width"
                return {}, [Problem("size", str(path), text)]
            pixels = pixels[:, width // 2 * position : width // 2 * (position + 1)]
        sides[side] = _measure(path, images[path], np.ascontiguousarray(pixels), specs[side])
    return sides, problems


def _measure(path: Path, image: ImageFile, pixels: Pixels, spec: ImageSpec) -> _Seen:
    height, width, channels = pixels.shape
    moments: NDArray[Any]
    if spec.kind == "labels":
        moments = np.bincount(pixels.reshape(-1), minlength=spec.width)
    else:
        moments = np.empty((channels, 2))
        top = np.iinfo(pixels.dtype).max
        for channel in range(channels):
            mean, deviation = (value.item() / top for value in cv2.meanStdDev(pixels[..., channel]))
            moments[channel] = mean, deviation**2 + mean**2
    return _Seen(
        path=path,
        width=width,
        height=height,
        format=image.format,
        dtype=str(image.pixels.dtype),
        channels=image.pixels.shape[2] + (image.alpha is not None),
        pixels=height * width,
        moments=moments,
        digest=hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode() + pixels.tobytes()).digest(),
        flat=bool((pixels == pixels[0, 0]).all()),
    )


def _size_problems(item: Item, sides: dict[str, _Seen]) -> list[Problem]:
    sizes = {side: f"{one.width}x{one.height}" for side, one in sides.items()}
    if len(set(sizes.values())) == 1:
        return []
    text = "the sides of this pair differ in size: " + ", ".join(f"{side} {size}" for side, size in sizes.items())
    return [Problem("size", str(next(iter(item.paths.values()))), text)]


def _misfits(settings: SuperResolutionSettings, split: Split, sides: dict[str, _Seen]) -> list[Problem]:
    sizes = {side: (one.height, one.width) for side, one in sides.items()}
    misfit = settings.misfit(sizes, training=split == "train") if HIGH in sizes else None
    return [] if misfit is None else [Problem("size", str(sides[misfit[0]].path), misfit[1])]


def _repetitions(seen: Iterable[tuple[str, Item, dict[str, _Seen]]]) -> list[Problem]:
    """Pixels of one side that stand in two splits, samples equal in all sides within one split, and pixels that stand
    on both sides of unpaired data, in whatever split."""
    problems: list[Problem] = []
    first_side: dict[tuple[str, bytes], tuple[str, Path]] = {}
    first_sample: dict[tuple[str, ...], Path] = {}
    first_alone: dict[bytes, tuple[str, Path]] = {}
    for split, item, sides in seen:
        for side, one in sides.items():
            if one.flat:
                continue
            where, path = first_side.setdefault((side, one.digest), (split, one.path))
            if where != split:
                text = f"{side} of the {split} split has the same pixels as {path} of the {where} split"
                problems.append(Problem("leak", str(one.path), text))
            if len(item.paths) == 1:
                other, path = first_alone.setdefault(one.digest, (side, one.path))
                if other != side:
                    text = f"the same picture on both sides: {path} of side {other} has the same pixels"
                    problems.append(Problem("shared", str(one.path), text))
        if sides:
            one = next(iter(sides.values()))
            key = split, *sides, *(other.digest.hex() for other in sides.values())
            path = first_sample.setdefault(key, one.path)
            if path is not one.path:
                problems.append(Problem("repeated", str(one.path), f"the same sample as {path}"))
    return problems


def _summary(seen: list[_Seen], spec: ImageSpec) -> dict[str, Any]:
    summary: dict[str, Any] = {"count": len(seen)}
    if not seen:
        return summary
    summary["width"] = [min(one.width for one in seen), max(one.width for one in seen)]
    summary["height"] = [min(one.height for one in seen), max(one.height for one in seen)]
    summary["formats"] = dict(Counter(one.format for one in seen))
    summary["dtypes"] = dict(Counter(one.dtype for one in seen))
    summary["channels"] = dict(Counter(str(one.channels) for one in seen))
    pixels = sum(one.pixels for one in seen)
    if spec.kind == "labels":
        counts = np.sum([one.moments for one in seen], axis=0)
        summary["shares"] = (counts / pixels).tolist()
        return summary
    mean, square = (np.sum([one.moments * one.pixels for one in seen], axis=0) / pixels).T
    summary["mean"] = mean.tolist()
    summary["std"] = np.sqrt(np.maximum(square - mean**2, 0)).tolist()
    return summary
