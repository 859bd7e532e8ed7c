"""The page about runs: one HTML file with everything in it, for one run or for several side by side."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image, ImageOps

from translate.errors import UserError
from translate.evaluation.charts import CHART_STYLE, Curve, chart, human, legend_mark
from translate.evaluation.records import Grid, Record, read_records, times
from translate.metrics.scores import MEASURES, Evaluation, Measure, Pictures, Score, rows
from translate.page import fact_list, html_page, write_page

GRID_SIZE = (640, 1400)
"""Width and height that a grid of previews is made to fit in."""
PICTURE_SIZE = (256, 256)
"""The same for a test image: twice what a card shows, for dense screens."""
QUALITY = 80
"""WebP quality of all pictures."""
FRAMES = 12
"""Grids of previews that are shown of a run, its first and last among them."""
_ARROWS = {"higher": "↑", "lower": "↓"}


def default_page(runs: Sequence[Path]) -> Path:
    """Where the page goes: into the folder of a single run, or into the folder that holds all of several."""
    folders = list(dict.fromkeys(run.resolve() for run in runs))
    try:
        above = folders[0] if len(folders) == 1 else Path(os.path.commonpath([run.parent for run in folders]))
    except ValueError:  # drives of Windows have no common folder
        raise UserError(f"{runs[-1]}: is on another drive than {runs[0]}; say where the page goes with --out") from None
    return above / "report.html"


def write_run_report(runs: Sequence[Path], page: Path) -> Path:
    """Write `page` about run folders: facts, measures, curves, previews, best and worst images, configs.

    The file needs nothing beside it and fetches nothing. What a run lacks is said in the page.

    Raises:
        UserError: a folder is no run, or the page cannot be written.
    """
    if not runs:
        raise UserError("no run was named; expected one or more folders such as runs/0001-name")
    if page.is_dir():
        raise UserError(f"{page}: is a folder; expected a file such as {page / 'report.html'}")
    return write_page(page, run_page(read_records(list(runs))))


def run_page(records: Sequence[Record]) -> str:
    """The page as text."""
    title = records[0].label if len(records) == 1 else f"{len(records)} runs"
    sections = {
        "Measures": _measures(records),
        "Validation during training": _validation(records),
        "Curves": _curves(records),
        "Previews": _previews(records),
        "Best and worst images": _extremes(records),
        "Configuration": _configs(records),
    }
    shown = {name: content for name, content in sections.items() if content}
    ids = {name: name.partition(" ")[0].lower() for name in shown}
    links = "".join(f'<a href="#{ids[name]}">{name}</a>' for name in shown)
    body = [f"<h1>{escape(title)}</h1>", _head(records), f"<nav>{links}</nav>"]
    body += [f'<section id="{ids[name]}"><h2>{name}</h2>{content}</section>' for name, content in shown.items()]
    # Whatever a run's files hold, the page can fetch nothing. An empty icon: a server is not asked for one.
    head = (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        '<link rel="icon" href="data:,">\n'
    )
    script = f"\n<script>{_SLIDER}</script>" if len(records) > 1 else ""
    return html_page(title, "\n".join(body) + script, style=CHART_STYLE + _STYLE, head=head)


# ---- head ------------------------------------------------------------------------------------------------------------


def _head(records: Sequence[Record]) -> str:
    facts = [_facts(record) for record in records]
    if len(records) == 1:
        head = fact_list(facts[0])
    else:
        names = dict.fromkeys(name for found in facts for name in found)
        lines = [(escape(name), [escape(found.get(name, "–")) for found in facts]) for name in names]
        head = f"<section>{_table(_heads(records), lines)}</section>"
    missing = "".join(
        f'<p class="remark">{escape(f"{record.label}: {text}" if len(records) > 1 else text)}</p>'
        for record in records
        for text in record.missing
    )
    return head + (f'<div class="missing">{missing}</div>' if missing else "")


def _facts(record: Record) -> dict[str, str]:
    facts = {
        "name": _at(record.config, "name"),
        "method": _kinds(record.config.get("method")),
        "data": " ".join(filter(None, (_at(record.config, f"data.{key}") for key in ("kind", "root")))),
        "seed": _at(record.config, "seed"),
    }
    if record.rows:
        last = max(record.rows, key=lambda row: row["images"])
        counts = {"step": "{:,.0f}", "images": "{:,.0f}", "epoch": "{:.4g}"}
        for name, form in counts.items():
            if math.isfinite(last.get(name, math.nan)):
                facts["images seen" if name == "images" else name] = form.format(last[name])
    facts |= times(record)
    for file in record.weights:
        facts[f"{file.name}.safetensors"] = f"step {file.step:,}, {file.images:,} images"
    if record.weights:
        newest = record.weights[-1]
        facts["values in the file"] = ", ".join(f"{network} {count:,}" for network, count in newest.sizes.items())
        facts["versions"] = f"translate {newest.version}"
    facts |= dict(zip(("versions", "command"), record.comments, strict=False))
    return {name: value for name, value in facts.items() if value}


def _kinds(method: Any) -> str:
    """`pix2pix (generator unet, discriminator patch)`: the kinds of a method and of its networks."""
    if not isinstance(method, Mapping):
        return ""
    parts = [f"{key} {_at(method, f'{key}.kind')}" for key in ("generator", "discriminator", "critic", "encoder")]
    named = ", ".join(part for part in parts if not part.endswith(" "))
    return f"{method.get('kind', '')} ({named})" if named else str(method.get("kind", ""))


def _at(content: Mapping[str, Any], dotted: str) -> str:
    """What stands at a dotted key, as text; empty where nothing does."""
    value: Any = content
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


# ---- measures --------------------------------------------------------------------------------------------------------


def _measures(records: Sequence[Record]) -> str:
    """The tables of the evaluations: one a name with a column for each run; of one run, what compares in one table."""
    names = sorted({name for record in records for name in record.evaluations})
    if not names:
        return "".join(_not_evaluated(record, named=len(records) > 1) for record in records)
    if len(records) == 1:
        groups = _groups(records[0].evaluations)
        return "".join(
            _scores(", ".join(group) if len(groups) > 1 else "", [""] * len(group), list(group.values()))
            for group in groups
        )
    parts = []
    for name in names:
        found = [record.evaluations.get(name) for record in records]
        parts.append(_scores(name if len(names) > 1 else "", _heads(records), found))
        lacking = [record for record, evaluation in zip(records, found, strict=True) if evaluation is None]
        parts += [_not_evaluated(record, named=True) for record in lacking]
    return "".join(parts)


def _groups(evaluations: Mapping[str, Evaluation]) -> list[dict[str, Evaluation]]:
    """Evaluations of one run (the model, baselines, other splits), those together whose numbers compare."""
    groups: list[dict[str, Evaluation]] = []
    for name, evaluation in sorted(evaluations.items()):
        for group in groups:
            together = [*group.values(), evaluation]
            if len({e.reference for e in together}) == 1 and not any(row.clash for row in rows(together)):
                group[name] = evaluation
                break
        else:
            groups.append({name: evaluation})
    return groups


def _not_evaluated(record: Record, *, named: bool) -> str:
    who = f"{escape(record.label)}: " if named else ""
    return f"<p>{who}not evaluated; run: <code>{escape(record.command('evaluate'))}</code></p>"


def _scores(title: str, heads: Sequence[str], found: Sequence[Evaluation | None]) -> str:
    """A table with a line for each measure and a column, headed by some HTML, for each evaluation there may be."""
    have = [evaluation for evaluation in found if evaluation is not None]
    references = dict.fromkeys(evaluation.reference for evaluation in have)
    lines, unsure = [], False
    for row in rows(have):
        measure = MEASURES[row.measure]
        name = f"{row.part} {measure.title}".strip()
        what = f'<span title="{escape(measure.about)}">{escape(name)} {_ARROWS[measure.better]}</span>'
        if row.clash:
            lines.append((what, [f'<span class="soft">not comparable: {escape(row.clash)}</span>']))
            continue
        told = next(score for score in row.scores if score is not None)
        # Equal protocols that name the targets' digest speak of the same images, wherever these lay.
        same = len(references) == 1 or "target" in told.protocol
        unsure = unsure or not same
        scores = iter(row.scores)
        columns = [next(scores) if evaluation is not None else None for evaluation in found]
        best = _best(measure, [math.nan if s is None else s.value for s in columns]) if same else set()
        cells = ["–" if s is None else _number(s, best=place in best) for place, s in enumerate(columns)]
        lines.append((f'{what}<p class="protocol">{escape(told.told())}</p>', cells))
    under = ["not evaluated" if e is None else f"{e.subject}, {e.count:,} measured" for e in found]
    columns_heads = [f"{head}<p>{escape(text)}</p>" for head, text in zip(heads, under, strict=True)]
    parts = [f"<h3>{escape(title)}</h3>" if title else "", _table(columns_heads, lines)]
    parts.append(f'<p class="soft">against {escape(" / ".join(references))}</p>')
    if unsure:
        parts.append('<p class="remark">The references differ: no run is called the best.</p>')
    notes = dict.fromkeys(note for evaluation in have for note in evaluation.notes)
    return "".join([*parts, *(f'<p class="note">{escape(note)}</p>' for note in notes)])


def _best(measure: Measure, values: Sequence[float]) -> set[int]:
    """The places of the best finite values, where there are several to choose from."""
    finite = {place: value for place, value in enumerate(values) if math.isfinite(value)}
    if len(finite) < 2:
        return set()
    chosen = (max if measure.better == "higher" else min)(finite.values())
    return {place for place, value in finite.items() if value == chosen}


def _number(score: Score, *, best: bool) -> str:
    if not math.isfinite(score.value):
        return '<span class="soft">no number</span>'
    return f'<b class="best" title="the best">{escape(score.text)}</b>' if best else escape(score.text)


def _validation(records: Sequence[Record]) -> str:
    """The last and the best of each measure that training logged, each run on its own data."""
    keys = dict.fromkeys(key for record in records for key in record.measured() if key.startswith("validation/"))
    lines = []
    for key in keys:
        title, measure = _validated(key)
        arrow = f" {_ARROWS[measure.better]}" if measure else ""
        lines.append((escape(title + arrow), [_course(record, key, measure) for record in records]))
    return _table(_heads(records), lines) if lines else ""


def _validated(key: str) -> tuple[str, Measure | None]:
    """`validation/AtoB/fid` as `AtoB FID`, and what is known of the measure."""
    name = key.removeprefix("validation/")
    part, _, last = name.rpartition("/")
    measure = MEASURES.get(last)
    return (f"{part} {measure.title}".strip() if measure else name), measure


def _course(record: Record, key: str, measure: Measure | None) -> str:
    images, values = record.series(key)
    finite = np.isfinite(values)
    if not finite.any():
        return "–"
    images, values = images[finite], values[finite]
    written = measure.text if measure else human
    cell = f"{escape(written(float(values[-1])))}"
    if measure is None:
        return cell
    place = int(values.argmax() if measure.better == "higher" else values.argmin())
    steps = {row["images"]: row["step"] for row in record.rows if key in row and "step" in row}
    step = f"step {steps[images[place]]:,.0f}" if images[place] in steps else f"{images[place]:,.0f} images"
    return f'{cell} <span class="soft">best {escape(written(float(values[place])))} at {step}</span>'


def _heads(records: Sequence[Record]) -> list[str]:
    """The heads of a table with a column for each run: none for one alone, whose name is the page's."""
    if len(records) == 1:
        return [""]
    return [f"{legend_mark(place)} {escape(record.label)}" for place, record in enumerate(records)]


def _table(heads: Sequence[str], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A line for each thing, with a cell for each head or one over all; everything is HTML."""
    body = ""
    for what, cells in lines:
        span = f' colspan="{len(heads)}"' if len(cells) < len(heads) else ""
        body += f'<tr><th scope="row">{what}</th>{"".join(f"<td{span}>{cell}</td>" for cell in cells)}</tr>'
    head = "".join(f"<th>{text}</th>" for text in heads)
    head = f"<thead><tr><td></td>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


# ---- curves ----------------------------------------------------------------------------------------------------------


def _curves(records: Sequence[Record]) -> str:
    keys = dict.fromkeys(key for record in records for key in record.measured())
    groups: dict[str, list[tuple[str, str]]] = {"validation": []}
    for key in keys:
        group, _, name = key.rpartition("/")
        if key.startswith("validation/"):
            group, name = "validation", _validated(key)[0]
        elif group == "learning rate":
            group, name = "rates", f"learning rate of {name}"
        elif group == "gradient norm":
            group, name = name, group
        groups.setdefault(group or "the method's own", []).append((name, key))
    groups["rates"] = groups.pop("rates", [])  # last: they are looked at least
    parts = []
    for group, members in groups.items():
        charts = "".join(_chart(records, name, key, rate=group == "rates") for name, key in members)
        if charts:
            parts.append(f'<h3>{escape(group)}</h3><div class="charts">{charts}</div>')
    if not parts:
        return ""
    legend = "".join(
        f"<span>{legend_mark(place)} {escape(record.label)}</span>" for place, record in enumerate(records)
    )
    if any('class="raw"' in part for part in parts):
        parts.insert(0, '<p class="soft">Thin lines are the rows of the log, bold ones their moving mean.</p>')
    return (f'<p class="legend">{legend}</p>' if len(records) > 1 else "") + "".join(parts)


def _chart(records: Sequence[Record], name: str, key: str, *, rate: bool) -> str:
    curves = [Curve(place, record.label, *record.series(key)) for place, record in enumerate(records)]
    return chart(name, [curve for curve in curves if len(curve.x)], rate=rate)


# ---- pictures --------------------------------------------------------------------------------------------------------


class _Picture(NamedTuple):
    uri: str
    width: int
    height: int


def _shrunk(path: Path, size: tuple[int, int]) -> _Picture:
    """A picture as a WebP data URI that fits into `size`; UserError where it cannot be read."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))  # 65535 / 255
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            image.thumbnail(size, Image.Resampling.BOX)  # area means: thin lines neither vanish nor ring
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"{path.name}: the picture cannot be read ({reason})") from error
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY)
    return _Picture(f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}", *image.size)


def _img(picture: _Picture, alt: str) -> str:
    small = ' class="tiny"' if max(picture.width, picture.height) < 128 else ""
    return f'<img{small} src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{escape(alt)}">'


def _previews(records: Sequence[Record]) -> str:
    """The grids of each run over time: a strip of them, or with a slider, which moves all runs, one at a time."""
    strips: list[str] = []
    moments: set[int] = set()
    for place, record in enumerate(records):
        chosen = _spread(record.grids, FRAMES)
        frames = []
        for number, grid in enumerate(chosen):
            moment = grid.step if grid.images is None else grid.images
            seen = "" if grid.images is None else f"{grid.images:,} images, "
            try:
                content = _img(_shrunk(grid.path, GRID_SIZE), f"previews of {record.label} at step {grid.step}")
            except UserError as error:
                content = f'<p class="remark">{escape(str(error))}</p>'
            printed = " printed" if number in (0, len(chosen) // 2, len(chosen) - 1) else ""
            frames.append(
                f'<figure class="frame{printed}" data-moment="{moment}">{content}'
                f"<figcaption>{seen}step {grid.step:,}</figcaption></figure>"
            )
            moments.add(moment)
        title = f"<h3>{legend_mark(place)} {escape(record.label)}</h3>" if len(records) > 1 else ""
        if frames:
            strips.append(f'<div class="run">{title}<div class="strip" tabindex="0">{"".join(frames)}</div></div>')
    if not strips:
        return ""
    last = len(moments) - 1
    slider = (
        f'<label class="slider" hidden><input type="range" min="0" max="{last}" value="{last}" '
        f'data-moments="{json.dumps(sorted(moments))}"> <output></output></label>'
    )
    return f"{slider if len(records) > 1 else ''}<div class='strips'>{''.join(strips)}</div>"


def _spread(grids: Sequence[Grid], most: int) -> list[Grid]:
    """At most so many of them, evenly spread, with the first and the last."""
    places = np.linspace(0, len(grids) - 1, min(most, len(grids))).round().astype(int)
    return [grids[place] for place in places]


def _extremes(records: Sequence[Record]) -> str:
    """The best and the worst images of each evaluation, as its files show them."""
    parts = []
    for place, record in enumerate(records):
        for name, evaluation in record.evaluations.items():
            if not evaluation.pictures:
                continue
            mark = f"{legend_mark(place)} {escape(record.label)}, " if len(records) > 1 else ""
            ranked = f" by {MEASURES[evaluation.ranked_by].title}" if evaluation.ranked_by else ""
            parts.append(f"<h3>{mark}{escape(name)}{escape(ranked)}</h3>")
            for rank in ("best", "worst"):
                cards = [
                    _card(pictures, evaluation, record.folder(name))
                    for pictures in evaluation.pictures
                    if pictures.rank == rank
                ]
                if cards:
                    parts.append(f'<p class="soft">{rank}</p><div class="cards">{"".join(cards)}</div>')
    return "".join(parts)


def _card(pictures: Pictures, evaluation: Evaluation, folder: Path) -> str:
    from translate.data.files import inside  # here: its package loads torch, seconds that other pages need not wait

    figures, remarks = [], []
    for caption, file in pictures.files.items():
        try:
            image = _img(_shrunk(inside(folder, file), PICTURE_SIZE), f"{caption} of {pictures.name}")
            figures.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
        except (UserError, ValueError) as error:  # ValueError: a path with a zero byte
            remarks.append(f'<p class="remark">{escape(str(error))}</p>')
    measure = MEASURES.get(evaluation.ranked_by or "")
    value = f"{measure.title} {measure.text(pictures.value)}" if measure else human(pictures.value)
    return (
        f"<article><header><h4>{escape(pictures.name)}</h4><p>{escape(value)}</p></header>"
        f'<div class="pictures">{"".join(figures)}</div>{"".join(remarks)}</article>'
    )


# ---- configs ---------------------------------------------------------------------------------------------------------


def _configs(records: Sequence[Record]) -> str:
    parts = [_difference_table(records)] if len(records) > 1 else []
    for record in records:
        if record.config_text:
            name = f" of {escape(record.label)}" if len(records) > 1 else ""
            parts.append(
                f"<details><summary>config.yaml{name}</summary><pre>{escape(record.config_text)}</pre></details>"
            )
    return "".join(parts)


def _difference_table(records: Sequence[Record]) -> str:
    """The keys in which the runs' configs differ, and no others."""
    from translate.config import differences  # here: it loads torch, which the page of one run does not need

    configs = _whole([record.config for record in records if record.config])
    if len(configs) < 2:
        return ""
    first, *others = map(_numbered, configs)
    sections = list(dict.fromkeys(section for config in configs for section in config))
    keys = sorted(
        {key for other in others for key in differences(first, other)},
        key=lambda key: (sections.index(key.partition(".")[0]), key),
    )
    if not keys:
        return "<p>The configs are equal.</p>"
    whole = iter(configs)
    columns = [next(whole) if record.config else {} for record in records]
    lines = [
        (f"<code>{escape(key).replace('.', '.<wbr>')}</code>", [_value(column, key) for column in columns])
        for key in keys
    ]
    return _table(_heads(records), lines)


def _whole(configs: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The configs with the defaults that their versions did not write, if all are still valid; else as they are."""
    from translate.config import validate

    try:
        return [validate(config, "config.yaml").model_dump(mode="json") for config in configs]
    except UserError:
        return configs


def _numbered(value: Any) -> Any:
    """Lists of groups as groups by number, as `--set` addresses them: so that they are compared key by key."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        return {str(key): _numbered(item) for key, item in value.items()}
    return value


def _value(config: Any, dotted: str) -> str:
    """What stands at a key, as YAML; a dash where nothing does."""
    for key in dotted.split("."):
        if isinstance(config, list) and key.isdigit() and int(key) < len(config):
            config = config[int(key)]
        elif isinstance(config, Mapping) and key in config:
            config = config[key]
        else:
            return "–"
    text = yaml.safe_dump(config, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return escape(text.removesuffix("...\n").strip())


# ---- style and script ------------------------------------------------------------------------------------------------

_STYLE = """
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 1.25rem; font-size: .88rem; }
a { color: inherit; } section { scroll-margin-top: 1rem; } h2 { margin-bottom: .75rem; } h3 { margin: .5rem 0; }
h4 { font-size: .85rem; font-weight: 500; margin: 0; overflow-wrap: anywhere; }
.soft, .protocol, .note, thead p { color: var(--soft); font-size: .82rem; margin: .25rem 0; }
.protocol { font-weight: 400; margin: 0; max-width: 60ch; } thead p { font-weight: 400; margin: 0; }
.missing { margin: -.5rem 0 1.25rem; } .remark { overflow-wrap: anywhere; }
code { font-size: .85rem; } p code { overflow-wrap: anywhere; }
.wide { overflow-x: auto; } .wide table { width: auto; min-width: min(100%, 34rem); }
td { font-variant-numeric: tabular-nums; vertical-align: top; min-width: 8rem; }
thead td { border: 0; } thead th { max-width: 22rem; padding: 0 1rem .35rem 0; color: var(--text); font-weight: 600;
  vertical-align: top; overflow-wrap: anywhere; }
tbody th { border-top: 1px solid var(--line); padding: .35rem 1.5rem .35rem 0; vertical-align: top;
  color: var(--text); overflow-wrap: break-word; }
.mark { vertical-align: middle; } .mark path { fill: none; }
.best { padding: .1rem .4rem; margin-left: -.4rem; border-radius: 5px; background: var(--check); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 0 0 .5rem; font-size: .88rem; }
.strips { display: flex; flex-wrap: wrap; gap: 1.5rem; } .run { min-width: 0; flex: 1 1 300px; }
.strip { display: flex; gap: .75rem; overflow-x: auto; scroll-snap-type: x proximity; padding-bottom: .5rem; }
.frame { flex: none; max-width: 85%; scroll-snap-align: start; }
.frame img { width: auto; max-width: 100%; max-height: 720px; }
.sliding .frame { display: none; } .sliding .frame.shown { display: block; max-width: 100%; }
.slider { display: flex; align-items: center; gap: 1rem; margin-bottom: .75rem; font-size: .88rem; }
.slider[hidden] { display: none; } .slider input { flex: 1; max-width: 600px; } output { min-width: 9em; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); gap: 1rem;
  margin-bottom: 1rem; }
article { background: var(--ground); break-inside: avoid; }
.tiny { image-rendering: pixelated; }
details { margin: .75rem 0 0; } summary { cursor: pointer; font-size: .88rem; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; margin: .5rem 0 0; }
@media (max-width: 600px) { body { padding: 1rem .75rem 3rem; } section { padding: .9rem; } }
@media print { body { max-width: none; padding: 0; font-size: 12px; background: none; } nav, .slider { display: none; }
  section { border: 0; padding: 0; } .strip { overflow: visible; } .strip .frame { display: none; }
  .strip .frame.printed { display: block; max-width: 30%; } .frame img { max-height: 16cm; } }
"""
# The slider's place is a moment of training: each run shows its newest grid of that moment, its first before that.
_SLIDER = """
const slider = document.querySelector(".slider");
if (slider) {
  const input = slider.querySelector("input"), moments = JSON.parse(input.dataset.moments);
  const show = () => {
    const moment = moments[input.value];
    for (const strip of document.querySelectorAll(".strip")) {
      const frames = [...strip.children];
      const newest = frames.filter((frame) => Number(frame.dataset.moment) <= moment).pop() || frames[0];
      frames.forEach((frame) => frame.classList.toggle("shown", frame === newest));
    }
    slider.querySelector("output").textContent = moment.toLocaleString("en") + " images";
  };
  document.querySelector(".strips").classList.add("sliding");
  slider.hidden = false;
  input.addEventListener("input", show);
  show();
}
"""
