"""Which file belongs to which: two folders by name, side-by-side pictures, a CSV list, class folders, held-out
shares."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from translate.data.files import Problem, find_images, inside, stem_key
from translate.errors import UserError


class Item(NamedTuple):
    """One sample: its name (unique where sides are matched), the file of each side, and the number of its class."""

    name: str
    paths: dict[str, Path]
    label: int | None = None


class Pairing(NamedTuple):
    """The samples of a split, and what is wrong with the files that make no sample.

    Kinds of problem: `missing` (a partner is not there), `duplicate` (one name twice), `manifest` (a bad
    row), `class` (a folder that is no class, or a class without images).
    """

    items: list[Item]
    problems: list[Problem]


def pair_folders(folders: Mapping[str, Path], endings: Mapping[str, str] | None = None) -> Pairing:
    """Match the images of several folders by relative path without suffix: `x/a.jpg` is partner of `x/a.png`.

    Args:
        folders: side name -> folder.
        endings: side name -> what its names may end in beside the others', such as `x4`.

    Raises:
        UserError: a folder is missing, unreadable or empty.
    """
    problems: list[Problem] = []
    endings = endings or {}
    found: dict[str, dict[str, Path]] = {}
    ambiguous: set[str] = set()
    for side, folder in folders.items():
        found[side], twice = _by_stem(folder, find_images(folder), problems)
        ambiguous |= twice
    for side, ending in endings.items():
        partners = {name for other, files in found.items() if other != side for name in files}
        for name in list(found[side]):
            bare = name.removesuffix(ending)
            free = name not in partners and name not in ambiguous and bare not in found[side]
            if free and bare in partners:
                found[side][bare] = found[side].pop(name)
    items = []
    for name in dict.fromkeys(name for files in found.values() for name in files):
        if name in ambiguous:
            continue
        paths = {side: files[name] for side, files in found.items() if name in files}
        absent = [side for side in folders if side not in paths]
        if not absent:
            items.append(Item(name, paths))
            continue
        present = next(iter(paths.values()))
        names = [(side, f"{name}{ending}.*") for side in absent for ending in {"": 0, endings.get(side, ""): 0}]
        wanted = " or ".join(str(folders[side] / pattern) for side, pattern in names)
        problems.append(Problem("missing", str(present), f"no partner {wanted}"))
    return Pairing(items, problems)


def pair_side_by_side(folder: Path) -> Pairing:
    """Every image of `folder` is a pair: A is its left half, B its right half."""
    problems: list[Problem] = []
    found, ambiguous = _by_stem(folder, find_images(folder), problems)
    items = [Item(name, {"A": path, "B": path}) for name, path in found.items() if name not in ambiguous]
    return Pairing(items, problems)


def pair_manifest(path: Path) -> Pairing:
    """Pairs from a CSV file with the columns A and B: paths relative to the CSV's own folder, and inside it.

    A pair is named after its A file, without suffix. Rows that cannot be used become problems.

    Raises:
        UserError: the file is missing, unreadable, no CSV in UTF-8, lacks a column or has no row.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    names: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, strict=True)
            absent = {"A", "B"} - set(rows.fieldnames or ())
            if absent:
                gone = " and ".join(sorted(absent))
                raise UserError(f"{path}: the first line must name the columns A and B, but has no {gone}")
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if not row["A"] or not row["B"]:
                    problems.append(Problem("manifest", where, "expected a path in both columns, A and B"))
                    continue
                try:
                    paths = {side: inside(path.parent, Path(row[side])) for side in ("A", "B")}
                except UserError as error:
                    problems.append(Problem("manifest", where, str(error)))
                    continue
                unmet = [f"no file {row[side]}" for side in ("A", "B") if not paths[side].is_file()]
                if unmet:
                    problems.append(Problem("missing", where, " and ".join(unmet)))
                    continue
                name = stem_key(paths["A"], path.parent.resolve())
                if name in names:
                    problems.append(
                        Problem("duplicate", where, f"the name {name} was used in line {names[name]} already")
                    )
                    continue
                names[name] = rows.line_num
                items.append(Item(name, paths))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path}: cannot read this list ({reason}); expected a UTF-8 CSV file with the columns A and B"
        ) from None
    if not items and not problems:
        raise UserError(f"{path}: no pair in this list; expected one line per pair below the line 'A,B'")
    return Pairing(items, problems)


def label_by_folder(items: list[Item], folder: Path, classes: Sequence[str]) -> Pairing:
    """Give each item the number of the class whose folder, directly below `folder`, it lies in.

    Images elsewhere make no sample: one problem for each such folder, and one for each class without an image.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    labelled: list[Item] = []
    strays: Counter[str] = Counter()
    for item in items:
        name, inside_one, _ = item.name.partition("/")
        if inside_one and name in numbers:
            labelled.append(item._replace(label=numbers[name]))
        else:
            strays[name if inside_one else ""] += 1
    problems = [
        Problem("class", str(folder / name), f"{_images(count)} in a folder that is no class of data.classes")
        if name
        else Problem("class", str(folder), f"{_images(count)} beside the class folders, not in one")
        for name, count in strays.items()
    ]
    present = {item.label for item in labelled}
    for name, number in numbers.items():
        if number not in present:
            problems.append(Problem("class", str(folder / name), f"no image of the class {name!r}"))
    return Pairing(labelled, problems)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def hold_out(items: list[Item], share: float) -> tuple[list[Item], list[Item]]:
    """Split into (kept, held out): an item is held out if the hash of its name falls into `share`.

    The choice looks at nothing but the name, so it stays when files are added. The one exception: where the
    share of a small set would be empty, the item with the lowest hash is held out (from two items up).
    """
    kept = [item for item in items if _unit_hash(item.name) >= share]
    if len(kept) == len(items) and len(items) > 1:
        lowest = min(items, key=lambda item: _unit_hash(item.name))
        kept = [item for item in items if item is not lowest]
    names = {id(item) for item in kept}
    return kept, [item for item in items if id(item) not in names]


def _unit_hash(name: str) -> float:
    """A number in [0, 1) that depends on nothing but `name`."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _by_stem(folder: Path, paths: list[Path], problems: list[Problem]) -> tuple[dict[str, Path], set[str]]:
    """First file of each stem, and the stems that stand twice (each added to `problems`)."""
    found: dict[str, Path] = {}
    twice: set[str] = set()
    for path in paths:
        name = stem_key(path, folder)
        if name in found:
            twice.add(name)
            text = f"has the same name as {found[name].name}; names must differ in more than the suffix"
            problems.append(Problem("duplicate", str(path), text))
        else:
            found[name] = path
    return found, twice
