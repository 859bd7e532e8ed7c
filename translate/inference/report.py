"""One static page that shows what a conversion made: input, output, and target where there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import torch

import translate
from translate.data.files import find_images, stem_key
from translate.data.images import normalise, read_image, read_pixels, write_image
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.metrics.meters import PIXEL_MEASURES
from translate.metrics.scores import MEASURES
from translate.page import fact_list, html_page, write_page

PAGE, PICTURES = "index.html", "report"
"""In the folder of the results: the page, and the folder of the small pictures that it shows."""
THUMBNAIL = 320
"""Longest side of a picture in the page: twice what a column shows, for dense screens."""
QUALITY = 85
"""WebP quality of those pictures."""

_LARGEST = 1 << 40
"""Pixels of a picture: the inputs were admitted before, and results may be many times as large."""
_COMPARED = {name: MEASURES[name] for name in ("l1", "psnr", "ssim")}


@dataclass(frozen=True)
class Entry:
    """One converted file. `name` is its path below the input folder, with forward slashes."""

    name: str
    source: Path
    output: Path


@dataclass
class _Row:
    name: str
    pictures: list[tuple[str, str, str, int, int]] = field(default_factory=list)  # caption, thumbnail, file, w, h
    values: dict[str, float] = field(default_factory=dict)
    remark: str = ""


def find_targets(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Targets of converted files: images in `folder` with the same relative path, whatever the suffix.

    Raises:
        UserError: `folder` is none, or nothing in it belongs to any of `names`.
    """
    by_stem = {stem_key(path, folder): path for path in find_images(folder)}
    stems = {name: PurePosixPath(name).with_suffix("").as_posix() for name in names}
    found = {name: by_stem[stem] for name, stem in stems.items() if stem in by_stem}
    if names and not found:
        raise UserError(f"{folder}: no target here has the name of an input; expected one such as {names[0]}")
    return found


def without_page(root: Path, paths: Sequence[Path]) -> list[Path]:
    """The images below a folder but for those that its page, if there is one, shows."""
    pictures = root / PICTURES
    return [path for path in paths if pictures not in path.parents or not (root / PAGE).is_file()]


def write_report(
    page: Path,
    entries: Sequence[Entry],
    *,
    source: ImageSpec,
    target: ImageSpec,
    facts: Mapping[str, str],
    targets: Mapping[str, Path] | None = None,
    failed: Sequence[tuple[Path, str]] = (),
) -> Path:
    """Write `page` and, in the folder `report` beside it, the small pictures that it shows.

    The page needs nothing from elsewhere and works from the disk. Metrics (translate.metrics.images) compare
    the output's file with the target's, at full size.

    Args:
        facts: what the head says of the model and the run.
        targets: `find_targets`' answer.

    Raises:
        UserError: the page cannot be written.
    """
    folder = page.parent / PICTURES

    def row(numbered: tuple[int, Entry]) -> _Row:
        number, entry = numbered
        made = _Row(entry.name)
        files = [("input", entry.source, source), ("output", entry.output, target)]
        if targets and entry.name in targets:
            files.append(("target", targets[entry.name], target))
        try:
            for caption, path, spec in files:
                thumbnail = folder / f"{number:05d}-{caption}.webp"
                width, height = _write_thumbnail(path, thumbnail, spec)
                made.pictures.append((caption, _link(thumbnail, page), _link(path, page), width, height))
            if len(files) == 3:
                made.values = _compare(entry.output, files[2][1], target)
        except UserError as error:
            made.remark = str(error)
        return made

    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(row, enumerate(entries, 1)))
    return write_page(page, _html(rows, facts, failed))


def _compare(output: Path, target: Path, spec: ImageSpec) -> dict[str, float]:
    pair = [read_pixels(path, spec, max_pixels=_LARGEST) for path in (output, target)]
    if pair[0].shape != pair[1].shape:
        sizes = " and ".join(f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in pair)
        raise UserError(f"output and target differ in size ({sizes}): not compared")
    made, wanted = (normalise(torch.from_numpy(pixels[None]), spec) for pixels in pair)
    return {name: float(PIXEL_MEASURES[name](made, wanted)) for name in _COMPARED}


def _write_thumbnail(path: Path, thumbnail: Path, spec: ImageSpec) -> tuple[int, int]:
    """A small picture of any image we can read; its width and height."""
    image = read_image(path, max_pixels=_LARGEST)
    pixels, alpha = image.pixels, image.alpha
    if spec.kind == "labels" and spec.palette is None:
        pixels, alpha = _coloured(read_pixels(path, spec, max_pixels=_LARGEST), spec.width), None
    if pixels.shape[2] not in (1, 3):
        pixels = pixels[..., :3] if pixels.shape[2] > 3 else pixels[..., :1]
    scale = min(1.0, THUMBNAIL / max(pixels.shape[:2]))
    size = tuple(max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0]))

    def small(plane: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        shrunk = cv2.resize(plane, size, interpolation=cv2.INTER_AREA) if scale < 1 else plane
        return (shrunk // 257).astype(np.uint8) if shrunk.dtype == np.uint16 else shrunk  # 65535 / 255

    write_image(thumbnail, small(pixels), alpha=None if alpha is None else small(alpha), quality=QUALITY)
    return size[0], size[1]


def _coloured(numbers: np.ndarray[Any, Any], classes: int) -> np.ndarray[Any, Any]:
    """Class numbers (H, W, 1) as colours (H, W, 3) that the eye can tell apart."""
    spread = (numbers.astype(np.float32) * (255 / max(1, classes - 1))).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(spread, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)


def _link(path: Path, page: Path) -> str:
    try:
        return quote(Path(os.path.relpath(path, page.parent)).as_posix())
    except ValueError:  # another drive of Windows has no relative path
        return path.absolute().as_uri()


def _html(rows: Sequence[_Row], facts: Mapping[str, str], failed: Sequence[tuple[Path, str]]) -> str:
    everything = {**facts, "versions": f"translate {translate.__version__}, torch {torch.__version__}"}
    plural = "image" if len(rows) == 1 else "images"
    parts = [f"<h1>{len(rows)} {plural} converted</h1>", fact_list(everything), _averages(rows)]
    if failed:
        lines = "".join(f"<tr><td>{escape(str(path))}</td><td>{escape(reason)}</td></tr>" for path, reason in failed)
        parts.append(
            f"<section><h2>{len(failed)} failed</h2><table><thead><tr><th>file</th><th>reason</th></tr>"
            f"</thead><tbody>{lines}</tbody></table></section>"
        )
    parts.append(f"<main>{''.join(map(_card, rows))}</main>")
    body = "\n".join(part for part in parts if part)
    return html_page(f"{len(rows)} {plural} converted", body, style=_STYLE)


def _averages(rows: Sequence[_Row]) -> str:
    compared = [row.values for row in rows if row.values]
    if not compared:
        return ""
    boxes = "".join(
        f'<div title="{measure.about}; {measure.better} is better">'
        f"<b>{measure.text(float(np.mean([values[name] for values in compared])))}</b>"
        f"<span>mean {measure.title}</span></div>"
        for name, measure in _COMPARED.items()
    )
    return f'<section class="means">{boxes}<p>over {len(compared)} images with a target</p></section>'


def _card(row: _Row) -> str:
    pictures = "".join(
        f'<figure><a href="{escape(file)}"><img src="{escape(thumbnail)}" width="{width}" height="{height}" '
        f'alt="{caption} of {escape(row.name)}" loading="lazy" decoding="async"></a>'
        f"<figcaption>{caption}</figcaption></figure>"
        for caption, thumbnail, file, width, height in row.pictures
    )
    values = " ".join(
        f"<span>{measure.title} {measure.text(row.values[name])}</span>"
        for name, measure in _COMPARED.items()
        if name in row.values
    )
    remark = f'<p class="remark">{escape(row.remark)}</p>' if row.remark else ""
    return (
        f"<article><header><h3>{escape(row.name)}</h3><p>{values}</p></header>"
        f'<div class="pictures">{pictures}</div>{remark}</article>\n'
    )


_STYLE = """
.means { display: flex; flex-wrap: wrap; align-items: baseline; gap: .5rem 2.5rem; }
.means b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.means span, .means p { color: var(--soft); font-size: .82rem; margin: 0; }
td:last-child { color: var(--alarm); }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 1.25rem; }
article header span { margin-right: .5rem; }
"""
