"""Labelled pictures as the archives of packages hold them: three layouts, each with its settings and its reader.

Everything in an archive is checked before it is believed, although the archive's checksum was found right: a recipe
may name the wrong files.
"""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from translate.errors import UserError
from translate.settings import Settings

Files = Mapping[str, bytes]
SplitName = Literal["train", "test"]


class Labelled(NamedTuple):
    """One split: images (N, H, W, C) uint8, and the class of each (N,), int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class LabelledFiles(Settings):
    """The files of one split."""

    images: list[str] = Field(min_length=1)
    """Paths inside the archive; where there are several, one follows the other."""
    labels: str
    """The path of the labels of all of them."""


class _SplitArchive(Settings):
    """An archive that has files of their own for each split."""

    train: LabelledFiles
    test: LabelledFiles

    @property
    def files(self) -> list[str]:
        """The paths that are needed."""
        return [path for split in (self.train, self.test) for path in (*split.images, split.labels)]


class IdxArchive(_SplitArchive):
    """MNIST's own format: a big-endian header (type and number of dimensions, then each dimension), then bytes.

    Source: the page of LeCun, Cortes and Burges, "The IDX file format".
    """

    layout: Literal["idx"]

    def read(self, files: Files, size: int) -> dict[SplitName, Labelled]:
        """Grey images (N, size, size, 1) and labels; raises UserError where a file is not as it should be."""

        def split(of: LabelledFiles) -> Labelled:
            images = np.concatenate([_idx(path, files[path], (size, size)) for path in of.images])
            labels = _idx(of.labels, files[of.labels], ())
            return _labelled(images[..., None], labels.astype(np.int64), of.labels)

        return {"train": split(self.train), "test": split(self.test)}


class PngRowsArchive(_SplitArchive):
    """Each row of an RGB picture is one square image, its pixels line by line; the labels are a JSON list."""

    layout: Literal["png-rows"]

    def read(self, files: Files, size: int) -> dict[SplitName, Labelled]:
        """RGB images (N, size, size, 3) and labels; raises UserError where a file is not as it should be."""

        def rows(path: str) -> NDArray[Any]:
            sheet = cv2.imdecode(np.frombuffer(files[path], np.uint8), cv2.IMREAD_COLOR_RGB)  # (N, size², 3)
            if sheet is None or sheet.shape[1] != size * size:
                found = "no picture" if sheet is None else f"a picture {sheet.shape[1]} pixels wide"
                raise UserError(f"{path}: expected a picture {size * size} pixels wide, found {found}")
            return sheet.reshape(-1, size, size, 3)

        def split(of: LabelledFiles) -> Labelled:
            labels = _integers(of.labels, _json(of.labels, files[of.labels]), top=np.iinfo(np.int64).max)
            return _labelled(np.concatenate([rows(path) for path in of.images]), labels, of.labels)

        return {"train": split(self.train), "test": split(self.test)}


class JsonRowsArchive(Settings):
    """A JSON file for each class, `{"data": [[grey level, ...], ...]}`, its first rows for testing; empty rows are
    none."""

    layout: Literal["json-rows"]
    classes: list[str] = Field(min_length=2)
    """The path of each class's file, in the order of their numbers."""
    test: int = Field(ge=1)
    """Rows of each file that are for testing."""

    @property
    def files(self) -> list[str]:
        """The paths that are needed."""
        return self.classes

    def read(self, files: Files, size: int) -> dict[SplitName, Labelled]:
        """Grey images (N, size, size, 1), class by class, and labels; raises UserError where a file is not as it
        should be."""
        of_class = []
        for path in self.classes:
            content = _json(path, files[path])
            rows = content.get("data") if isinstance(content, dict) else None
            if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
                raise UserError(f'{path}: expected {{"data": a list of lists}}')
            kept = [row for row in rows if row]
            if odd := next((row for row in kept if len(row) != size * size), None):
                raise UserError(f"{path}: expected {size * size} grey levels a row, found {len(odd)}")
            if len(kept) <= self.test:
                raise UserError(f"{path}: expected more than {self.test} rows, found {len(kept)}")
            levels = _integers(path, [level for row in kept for level in row], top=255)
            of_class.append(levels.astype(np.uint8).reshape(-1, size, size, 1))

        def split(part: slice) -> Labelled:
            parts = [images[part] for images in of_class]
            labels = np.repeat(np.arange(len(parts)), [len(images) for images in parts])
            return Labelled(np.concatenate(parts), labels)

        return {"train": split(slice(self.test, None)), "test": split(slice(self.test))}


LabelledArchive = Annotated[IdxArchive | PngRowsArchive | JsonRowsArchive, Field(discriminator="layout")]


def read_labelled(archive: Path, pictures: LabelledArchive, size: int) -> dict[SplitName, Labelled]:
    """The splits that an npm archive (.tgz) holds, images of `size` x `size`.

    Raises:
        UserError: a file is missing from it, or is not as it should be.
    """
    wanted = set(pictures.files)
    files: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() and member.name in wanted else None
            if file is not None:
                files[member.name] = file.read()
    if missing := sorted(wanted - set(files)):
        raise UserError(f"{archive}: holds no file {missing[0]}")
    return pictures.read(files, size)


def _idx(path: str, content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes of an idx file as an array (N, *shape)."""
    dimensions = 1 + len(shape)
    start = 4 + 4 * dimensions
    # Two zeros, 8 for unsigned bytes, and the number of dimensions.
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        raise UserError(f"{path}: expected an idx file of bytes in {dimensions} dimensions, it begins otherwise")
    found = np.frombuffer(content, ">u4", dimensions, 4).tolist()
    if tuple(found[1:]) != shape or len(content) != start + math.prod(found):
        raise UserError(f"{path}: {len(content)} bytes are not the {found} that its header tells, or these not {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(found)


def _json(path: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:  # not UTF-8, or not JSON
        raise UserError(f"{path}: is not JSON ({error})") from None


def _integers(path: str, values: Any, top: int) -> NDArray[np.int64]:
    """A JSON list as an array of integers in [0, top]."""
    array: NDArray[Any] = np.array(values) if isinstance(values, list) else np.zeros(())
    if array.ndim != 1 or array.dtype != np.int64 or array.size == 0 or array.min() < 0 or array.max() > top:
        raise UserError(f"{path}: expected a list of integers from 0" + (f" to {top}" if top == 255 else ""))
    return array


def _labelled(images: NDArray[Any], labels: NDArray[np.int64], path: str) -> Labelled:
    if len(images) != len(labels):
        raise UserError(f"{path}: has {len(labels)} labels for {len(images)} images")
    return Labelled(images, labels)
