"""What a run folder tells about a run, without torch: each file is read by itself, and what is missing is said."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from translate.errors import UserError
from translate.metrics.scores import Evaluation

LARGEST = 1e300
"""What is beyond cannot be drawn, differences of it being no numbers: taken as missing."""
_GRID = re.compile(r"^step-(\d+)\.png$")
_EVENTS = re.compile(r"^events\.out\.tfevents\.(\d+)\.")


class WeightsFile(NamedTuple):
    """What a weights file says of itself, and the values in each of its networks."""

    name: str
    step: int
    images: int
    version: str
    sizes: dict[str, int]


class Grid(NamedTuple):
    """A picture of previews; `images` is None where no log tells how many a step takes."""

    step: int
    images: int | None
    path: Path


@dataclass
class Record:
    """One run as its folder shows it."""

    path: Path
    label: str
    config: dict[str, Any] = field(default_factory=dict)
    """As the file says it, not validated: it may be of another version."""
    config_text: str = ""
    comments: list[str] = field(default_factory=list)
    """What stands above the config: versions and the command."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """Of metrics.jsonl: numbers alone, each row with `images`; what is no number is NaN."""
    weights: list[WeightsFile] = field(default_factory=list)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    """By the name of their folder RUN/evaluation/<name>."""
    grids: list[Grid] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What is not there or cannot be read, with what to do about it."""

    def folder(self, evaluation: str) -> Path:
        """Where an evaluation's files are."""
        return self.path / "evaluation" / evaluation

    def command(self, verb: str) -> str:
        """A line for a shell: `translate evaluate RUN`."""
        return f"translate {verb} {shlex.quote(str(self.path))}"

    def series(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Images seen and values of the rows that have a key, in order of the images."""
        points = sorted(((row["images"], row[key]) for row in self.rows if key in row), key=lambda point: point[0])
        array = np.array(points, np.float64).reshape(-1, 2)
        return array[:, 0], array[:, 1]

    def measured(self) -> list[str]:
        """The keys of the rows that are measured, in order of appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row if key not in ("step", "images", "epoch")))


def read_records(paths: list[Path]) -> list[Record]:
    """The runs, each once, labelled by the end of the path that tells them apart; UserError where one is no run."""
    runs = list(dict.fromkeys(path.resolve() for path in paths))
    depth = 1
    while len({run.parts[-depth:] for run in runs}) < len(runs):
        depth += 1
    return [read_record(run, "/".join(run.parts[-depth:])) for run in runs]


def read_record(path: Path, label: str) -> Record:
    """Read all that there is; UserError where nothing here is a run's."""
    if not path.is_dir():
        found = "is a file" if path.exists() else "there is no such folder"
        raise UserError(f"{path}: {found}; expected a run folder such as runs/0001-name")
    record = Record(path, label)
    _read_weights(record)
    _read_config(record)
    _read_metrics(record)
    _read_grids(record)
    _read_evaluations(record)
    if not (record.config or record.rows or record.weights):
        raise UserError(
            f"{path}: is no run folder (no config.yaml, metrics.jsonl or weights in it); expected one such as "
            "runs/0001-name"
        )
    return record


def _read_weights(record: Record) -> None:
    stages = sorted(file.stem for file in record.path.glob("stage-*.safetensors"))
    for name in (*stages, "best", "last"):
        file = record.path / f"{name}.safetensors"
        if not file.is_file():
            continue
        try:
            with safe_open(file, framework="np") as opened:
                content = json.loads((opened.metadata() or {})["translate"])
                sizes: dict[str, int] = {}
                for key in opened.keys():  # noqa: SIM118  # no mapping
                    network = key.partition(".")[0]
                    sizes[network] = sizes.get(network, 0) + math.prod(opened.get_slice(key).get_shape())
            found = WeightsFile(name, int(content["step"]), int(content["images"]), str(content["version"]), sizes)
            if not record.config and isinstance(content["config"], dict):
                record.config = content["config"]
                record.config_text = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
            record.missing.append(f"{file.name} cannot be read ({type(error).__name__}: {error})")
        else:
            record.weights.append(found)
    if not record.weights:
        record.missing.append(f"no weights; continue the run: {record.command('train --resume')}")


def _read_config(record: Record) -> None:
    file = record.path / "config.yaml"
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError("it holds no keys")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({_line(error)})"
        instead = "shown is the config inside the weights" if record.config else "copy it back from where the run was"
        record.missing.append(f"config.yaml {reason}: {instead}")
    else:
        record.config, record.config_text = {str(key): value for key, value in content.items()}, text
        record.comments = [line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#")]


def _read_metrics(record: Record) -> None:
    file = record.path / "metrics.jsonl"
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({_line(error)})"
        record.missing.append(f"metrics.jsonl {reason}: no curves; training writes it")
        return
    unreadable = 0
    for line in filter(str.strip, lines):
        try:
            content = json.loads(line)
            numbers = {key: _number(value) for key, value in content.items() if not isinstance(value, str)}
            if not math.isfinite(numbers["images"]):
                raise ValueError("no place on the axis")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            unreadable += 1
        else:
            record.rows.append(numbers)
    if unreadable:
        record.missing.append(f"metrics.jsonl: {unreadable} of {len(lines)} lines are damaged and left out")
    elif not record.rows:
        record.missing.append("metrics.jsonl holds no row yet: the run has not come to logging.every")


def _number(value: Any) -> float:
    number = math.nan if value is None else float(value)
    return number if abs(number) <= LARGEST else math.nan


def _read_grids(record: Record) -> None:
    folder = record.path / "samples"
    found = [] if not folder.is_dir() else [(m, p) for p in folder.iterdir() if (m := _GRID.match(p.name))]
    known = sorted((row["step"], row["images"]) for row in record.rows if math.isfinite(row.get("step", math.nan)))
    for step, path in sorted((int(match[1]), path) for match, path in found):
        images = None
        if known:  # a step takes a whole number of images, but stages may differ
            steps, seen = zip((0.0, 0.0), *known, strict=True)
            images = round(float(np.interp(step, steps, seen)))
        record.grids.append(Grid(step, images, path))
    if not record.grids:
        record.missing.append("no preview grids in samples/: the run has not come to logging.previews")


def _read_evaluations(record: Record) -> None:
    for file in sorted(record.path.glob("evaluation/*/evaluation.json")):
        try:
            record.evaluations[file.parent.name] = Evaluation.load(file)
        except UserError as error:
            record.missing.append(str(error))


def times(record: Record) -> dict[str, str]:
    """When the run began (TensorBoard's files have it in their names) and when it last wrote a row, in local time."""
    started = [int(match[1]) for path in record.path.iterdir() if (match := _EVENTS.match(path.name))]
    written = record.path / "metrics.jsonl"
    found = {"started": min(started)} if started else {}
    if written.is_file():
        found["last row"] = int(written.stat().st_mtime)
    return {name: f"{datetime.fromtimestamp(moment):%Y-%m-%d %H:%M}" for name, moment in found.items()}


def _line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
