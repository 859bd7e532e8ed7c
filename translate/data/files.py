"""Finding image files: folders, patterns, their order and their names. Imports neither torch nor OpenCV."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from translate.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".npy")
"""Endings of the files that we take for images, in any mixture of capitals."""

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set: `kind` groups them, `path` names the file or the pair."""

    kind: str
    path: str
    text: str


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts `photo 9` before `photo 10`; capitals count just between equal names."""
    pieces = _DIGITS.split(name.casefold())
    parts = [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces]
    return parts, name


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _walk(folder: Path, recursive: bool, ancestors: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Images under `folder`. A link to a folder is followed unless it leads back to one we are inside of."""
    try:
        status = folder.stat()
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({_reason(error)})") from None
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return
    for entry in entries:
        if entry.is_dir():
            if recursive:
                yield from _walk(folder / entry.name, recursive, ancestors | {identity})
        elif _is_image(entry.name) and entry.is_file():
            yield folder / entry.name


def _sorted(paths: Iterable[Path], root: Path) -> list[Path]:
    return sorted(paths, key=lambda path: natural_key(path.relative_to(root).as_posix()))


def find_images(root: Path, *, recursive: bool = True) -> list[Path]:
    """Image files under `root` in natural order of their relative paths; hidden files are skipped.

    Raises:
        UserError: `root` is missing, no folder, not readable, or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        text = "is a file, expected a folder" if root.exists() else "there is no such folder"
        raise UserError(f"{root}: {text}")
    paths = _sorted(_walk(root, recursive, frozenset()), root)
    if not paths:
        raise UserError(f"{root}: no images in this folder (looked for {', '.join(SUFFIXES)})")
    return paths


def expand(pattern_or_path: str | Path) -> tuple[Path, list[Path]]:
    """Images that a file name, folder or glob pattern stands for, and the folder their names are relative to.

    A file is taken whatever its suffix (its content decides); `**` in a pattern means any depth.

    Raises:
        UserError: nothing is there, or nothing matches.
    """
    path = Path(pattern_or_path)
    text = str(pattern_or_path)
    if path.is_dir():
        return path, find_images(path)
    if path.exists():
        return path.parent, [path]
    if not glob.has_magic(text):
        raise UserError(f"{text}: there is no such file or folder")
    fixed = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    matches = (Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207  (keeps the text as typed)
    paths = _sorted((match for match in matches if _is_image(match.name) and match.is_file()), root)
    if not paths:
        raise UserError(f"{text}: no image matches this pattern (looked for {', '.join(SUFFIXES)})")
    return root, paths


def stem_key(path: Path, root: Path) -> str:
    """Path relative to `root` without its suffix, with `/` between folders: what partners of a pair share."""
    return path.relative_to(root).with_suffix("").as_posix()


def inside(root: Path, candidate: str | Path) -> Path:
    """Absolute path of `candidate` (relative to `root`), links resolved.

    Raises:
        UserError: it leads out of `root`.
    """
    folder = Path(root).resolve()
    path = (folder / candidate).resolve()
    if not path.is_relative_to(folder):
        raise UserError(f"{candidate}: leads out of the folder {root}; paths must stay inside it")
    return path


def user_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/translate`, or `~/.cache/translate`: downloads and decoded images."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "translate"
