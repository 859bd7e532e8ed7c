"""Run folders made by hand, as small as they may be: what a page about runs reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save_file

from translate.metrics.scores import Evaluation, ImageScores, Pictures, Score, Value

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "method": {"kind": "pix2pix", "generator": {"kind": "unet", "depth": 4}, "discriminator": {"kind": "patch"}},
    "data": {"kind": "paired", "root": "/data/shoes"},
    "training": {"stages": [{"length": "9 epochs", "optimiser": {"kind": "Adam", "lr": 2e-4}}]},
}
PROTOCOL: dict[str, Value] = {"channels": "rgb", "border": 0}


def log_rows(count: int = 5) -> list[dict[str, Any]]:
    """What a pix2pix run logs, 40 images a row of 10 steps; each second row is followed by one of validation."""
    rows: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        where = {"step": 10 * number, "images": 40 * number, "epoch": 0.5 * number}
        rows.append(
            {
                **where,
                "stage": "main",
                "generator/adversarial": 2 / number,
                "gradient norm/generator": 3.0,
                "D(real)": 0.5,
                "learning rate/generator": 2e-4,
            }
        )
        if number % 2 == 0:
            rows.append({**where, "validation/l1": 0.3 + 0.1 * abs(number - 2), "validation/AtoB/fid": 50.0 - number})
    return rows


def make_run(
    path: Path,
    *,
    config: Mapping[str, Any] = CONFIG,
    rows: Sequence[Mapping[str, Any]] | None = None,
    grids: Sequence[int] = (10, 30, 50),
    weights: bool = True,
) -> Path:
    """A run folder of 50 steps of 4 images."""
    (path / "samples").mkdir(parents=True)
    text = yaml.safe_dump(dict(config), sort_keys=False)
    comments = "# translate 0.1.0, torch 2.15.0, Python 3.11.7\n# translate train tiny\n"
    (path / "config.yaml").write_text(comments + text, encoding="utf-8")
    lines = [json.dumps(row) + "\n" for row in (log_rows() if rows is None else rows)]
    (path / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    for step in grids:
        picture(path / "samples" / f"step-{step:09d}.png", (30, 20), step)
    if weights:
        content = {"format": 1, "config": dict(config), "step": 50, "images": 200, "version": "0.1.0"}
        tensors = {"generator.a": np.zeros((2, 3), np.float32), "generator.b": np.zeros(4, np.float32)}
        save_file(tensors, path / "last.safetensors", metadata={"translate": json.dumps(content)})
    (path / "events.out.tfevents.1700000000.host.1.0").touch()
    return path


def picture(path: Path, size: tuple[int, int], grey: int) -> Path:
    """A picture (width, height) of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)
    return path


def score(measure: Any, value: float, **protocol: Value) -> Score:
    return Score(measure=measure, value=value, protocol={**PROTOCOL, **protocol})


def evaluate(
    run: Path,
    scores: Sequence[Score],
    *,
    name: str = "test",
    reference: str = "test split",
    images: Sequence[str] = ("a.png", "b.png"),
    pictures: Sequence[Pictures] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write an evaluation as `translate evaluate` does; its folder."""
    folder = run / "evaluation" / name
    Evaluation(
        subject=f"{run.name}/last at step 50",
        reference=reference,
        count=len(images),
        scores=list(scores),
        images=[ImageScores(name=image, values={}) for image in images],
        ranked_by="lpips-alex" if pictures else None,
        pictures=list(pictures),
        notes=list(notes),
        version="0.1.0",
    ).save(folder / "evaluation.json")
    return folder


def trio(folder: Path, name: str, rank: Any, value: float) -> Pictures:
    """Three small pictures of one test image, written into an evaluation's folder."""
    files = {}
    for grey, caption in enumerate(("input", "output", "target")):
        files[caption] = picture(folder / f"{rank}-{caption}.png", (300, 150), 60 * grey).name
    return Pictures(name=name, rank=rank, value=value, files=files)


class Page(HTMLParser):
    """A page's tags, text, pictures and tables; a tag that is not closed in its order is an error."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "wbr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))  # SVG's own way to close

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if any(cell in self._open for cell in ("td", "th")) and "style" not in self._open:
            self.tables[-1][-1][-1] += data

    def of(self, tag: str, keep: Callable[[dict[str, str]], bool] = lambda values: True) -> list[dict[str, str]]:
        """The attributes of every such tag."""
        return [values for name, values in self.tags if name == tag and keep(values)]

    def row(self, start: str) -> list[str]:
        """The cells of the one table row whose first cell begins so, without that cell."""
        (found,) = [row for table in self.tables for row in table if row and row[0].startswith(start)]
        return found[1:]
