"""`translate compare`"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from translate.errors import UserError

if TYPE_CHECKING:
    from translate.metrics.scores import Evaluation, Row

_FILE = "evaluation.json"
_SPLITS = ("test", "validation", "train")
"""Of a run's evaluations, the one to be shown: the first of these, else the newest."""


def compare(
    evaluations: Annotated[
        list[Path],
        typer.Argument(metavar="EVALUATION...", help="Files that 'translate evaluate' kept, their folders, or runs."),
    ],
    names: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="What to call them.", show_default="as they call themselves")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table, for documents.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Print a table of evaluations side by side, the best value of each measure marked, the protocols beneath.

    Numbers that were taken by different protocols are refused.
    """
    from translate.evaluation.text import readable
    from translate.metrics.scores import Evaluation, side_by_side

    if markdown and as_json:
        raise UserError("--markdown and --json: expected one of them")
    found = [Evaluation.load(_file(path)) for path in evaluations]
    called = (
        [evaluation.subject for evaluation in found]
        if names is None
        else [readable(n.strip()) for n in names.split(",")]
    )
    if len(called) != len(found):
        raise UserError(f"--names: expected {len(found)}, one for each evaluation, not {len(called)}")
    table = side_by_side(found)
    if as_json:
        print(_json(found, called, table))
        return
    for line in table_lines(found, called, table, markdown=markdown):
        print(line)


def table_lines(
    found: Sequence[Evaluation], called: Sequence[str], table: Sequence[Row], *, markdown: bool = False
) -> Iterable[str]:
    """The table, and beneath it all that its numbers depend on."""
    yield from _markdown(called, table) if markdown else _plain(called, table)
    yield ""
    if not markdown and any(_best(row) for row in table):
        yield "* best of its column"
    yield from (f"- {line}" if markdown else line for line in beneath(found, called, table))


def _file(path: Path) -> Path:
    """The JSON file that an argument stands for; UserError where a folder has none."""
    if not path.is_dir():
        return path
    if (path / _FILE).is_file():
        return path / _FILE
    for split in _SPLITS:
        if (path / "evaluation" / split / _FILE).is_file():
            return path / "evaluation" / split / _FILE
    kept = sorted(path.glob(f"evaluation/*/{_FILE}"), key=lambda file: file.stat().st_mtime)
    if not kept:
        raise UserError(f"{path}: holds no evaluation; make one with 'translate evaluate {path}'")
    return kept[-1]


def _best(row: Row) -> set[int]:
    """Which evaluations have a measure's best value, in the digits that are shown; none where one stands alone."""
    from translate.metrics.scores import MEASURES

    scores = {index: score for index, score in enumerate(row.scores) if score and not math.isnan(score.value)}
    if len(scores) < 2:
        return set()
    first = max if MEASURES[row.measure].better == "higher" else min
    best = first(scores.values(), key=lambda score: score.value)
    return {index for index, score in scores.items() if score.text == best.text}


def _title(row: Row) -> str:
    """`AtoB FID ↓`."""
    from translate.metrics.scores import MEASURES

    measure = MEASURES[row.measure]
    return f"{row.part} {measure.title} {'↑' if measure.better == 'higher' else '↓'}".strip()


def _cells(row: Row, mark: str) -> list[str]:
    """A measure's values as the table shows them; `mark` has a place for the best, as `**{}**`."""
    best = _best(row)
    texts = ["–" if score is None else score.text for score in row.scores]
    return [mark.format(text) if index in best else text for index, text in enumerate(texts)]


def _plain(called: Sequence[str], table: Sequence[Row]) -> Iterable[str]:
    columns = [["", *called]]
    columns += [[_title(row), *_cells(row, "*{}")] for row in table]
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns, strict=True):
        first, *rest = (
            f"{text:>{width}}" if index else f"{text:<{width}}"
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join([first, *rest]).rstrip()


def _markdown(called: Sequence[str], table: Sequence[Row]) -> Iterable[str]:
    columns = [["", *called], *([_title(row), *_cells(row, "**{}**")] for row in table)]
    head, *lines = (
        [" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in zip(*columns, strict=True)
    )
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join([' --- ', *[' ---: '] * len(table)])}|"
    for line in lines:
        yield f"| {' | '.join(line)} |"


def beneath(found: Sequence[Evaluation], called: Sequence[str], table: Sequence[Row]) -> Iterable[str]:
    """References, protocols, notes: each once, with the names of those it is about where it is not about all."""
    from translate.metrics.scores import MEASURES

    yield from _said_by(((f"against {e.reference}", name) for e, name in zip(found, called, strict=True)), len(found))
    measured: dict[str, list[str]] = {}
    for row in table:
        told = next(score.told() for score in row.scores if score is not None)
        measured.setdefault(told, []).append(f"{row.part} {MEASURES[row.measure].title}".strip())
    for told, titles in measured.items():
        yield f"{', '.join(titles)}: {told}"
    notes = ((f"note: {note}", name) for e, name in zip(found, called, strict=True) for note in e.notes)
    yield from _said_by(notes, len(found))


def _said_by(said: Iterable[tuple[str, str]], count: int) -> Iterable[str]:
    """Each text once; who says it where not all of `count` do."""
    speakers: dict[str, list[str]] = {}
    for text, name in said:
        speakers.setdefault(text, []).append(name)
    for text, names in speakers.items():
        yield text if len(names) == count else f"{', '.join(names)}: {text}"


def _json(found: Sequence[Evaluation], called: Sequence[str], table: Sequence[Row]) -> str:
    from translate.metrics.scores import MEASURES

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    columns = []
    for row in table:
        scores = [score for score in row.scores if score is not None]
        columns.append(
            {
                "measure": row.measure,
                "part": row.part,
                "better": MEASURES[row.measure].better,
                "values": [None if score is None else number(score.value) for score in row.scores],
                "best": sorted(_best(row)),
                "protocol": scores[0].protocol,
            }
        )
    subjects = [
        {"name": name, "reference": e.reference, "count": e.count, "notes": e.notes}
        for e, name in zip(found, called, strict=True)
    ]
    return json.dumps({"subjects": subjects, "measures": columns})
