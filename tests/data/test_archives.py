"""Labelled archives: each layout written here byte by byte, read back, and refused when something is wrong."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from translate.data.archives import IdxArchive, JsonRowsArchive, LabelledArchive, PngRowsArchive, read_labelled
from translate.errors import UserError

SIZE = 5
SPLITS = {
    "train": {"images": ["package/a", "package/b"], "labels": "package/l"},
    "test": {"images": ["package/c"], "labels": "package/m"},
}
IDX = IdxArchive.model_validate({"layout": "idx", **SPLITS})
PNG_ROWS = PngRowsArchive.model_validate({"layout": "png-rows", **SPLITS})
JSON_ROWS = JsonRowsArchive(layout="json-rows", classes=["package/0.json", "package/1.json"], test=2)


def levels(count: int, channels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, channels), dtype=np.uint8)


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">I", size) for size in values.shape)
    return header + bytes(values.ravel().tolist())


def sheet(images: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.stack([image.reshape(-1, 3) for image in images])).save(stream, "PNG")
    return stream.getvalue()


def archive(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"package/README": b"", **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def idx_files() -> dict[str, bytes]:
    a, b, c = (levels(count, 1, count)[..., 0] for count in (3, 2, 4))
    labels = [np.array(values, np.uint8) for values in ([0, 1, 2, 1, 0], [2, 2, 1, 0])]
    paths = ("package/a", "package/b", "package/c", "package/l", "package/m")
    return dict(zip(paths, map(idx, (a, b, c, *labels)), strict=True))


def png_files() -> dict[str, bytes]:
    files = {f"package/{name}": sheet(levels(count, 3, count)) for name, count in (("a", 3), ("b", 2), ("c", 4))}
    return files | {"package/l": b"[0, 1, 2, 1, 0]", "package/m": b"[2, 2, 1, 0]"}


def json_files() -> dict[str, bytes]:
    rows = [levels(count, 1, count).reshape(count, -1).tolist() for count in (5, 4)]
    rows[0] = [*rows[0][:2], [], *rows[0][2:], []]  # as in the package: an empty row behind each split of file 0
    return {f"package/{number}.json": json.dumps({"data": each}).encode() for number, each in enumerate(rows)}


def test_idx(tmp_path: Path) -> None:
    splits = read_labelled(archive(tmp_path, idx_files()), IDX, SIZE)
    np.testing.assert_array_equal(splits["train"].images, np.concatenate([levels(3, 1, 3), levels(2, 1, 2)]))
    np.testing.assert_array_equal(splits["test"].images, levels(4, 1, 4))
    assert splits["train"].labels.tolist() == [0, 1, 2, 1, 0] and splits["test"].labels.tolist() == [2, 2, 1, 0]
    assert splits["train"].images.dtype == np.uint8 and splits["train"].labels.dtype == np.int64


def test_png_rows(tmp_path: Path) -> None:
    splits = read_labelled(archive(tmp_path, png_files()), PNG_ROWS, SIZE)
    np.testing.assert_array_equal(splits["train"].images, np.concatenate([levels(3, 3, 3), levels(2, 3, 2)]))
    np.testing.assert_array_equal(splits["test"].images, levels(4, 3, 4))
    assert splits["train"].labels.tolist() == [0, 1, 2, 1, 0] and splits["test"].labels.tolist() == [2, 2, 1, 0]


def test_json_rows(tmp_path: Path) -> None:
    splits = read_labelled(archive(tmp_path, json_files()), JSON_ROWS, SIZE)
    zero, one = levels(5, 1, 5), levels(4, 1, 4)
    np.testing.assert_array_equal(splits["test"].images, np.concatenate([zero[:2], one[:2]]))
    np.testing.assert_array_equal(splits["train"].images, np.concatenate([zero[2:], one[2:]]))
    assert splits["test"].labels.tolist() == [0, 0, 1, 1] and splits["train"].labels.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("pictures", "files", "change", "line"),
    [
        (IDX, idx_files, {"package/c": None}, "holds no file package/c"),
        (IDX, idx_files, {"package/c": b""}, "package/c: expected an idx file of bytes in 3 dimensions"),
        (IDX, idx_files, {"package/c": idx(levels(4, 1, 0))}, "package/c: expected an idx file of bytes in 3 dim"),
        (
            IDX,
            idx_files,
            {"package/c": b"\0\0\x0d\3" + bytes(40)},
            "package/c: expected an idx file of bytes",
        ),  # floats
        (IDX, idx_files, {"package/c": idx(levels(4, 1, 0)[..., 0])[:-1]}, "are not the [4, 5, 5] that its header"),
        (IDX, idx_files, {"package/c": idx(levels(4, 1, 0)[:, :4, :, 0])}, "[4, 4, 5]"),
        (IDX, idx_files, {"package/m": idx(np.zeros(3, np.uint8))}, "package/m: has 3 labels for 4 images"),
        (PNG_ROWS, png_files, {"package/c": b"no picture"}, "expected a picture 25 pixels wide, found no picture"),
        (PNG_ROWS, png_files, {"package/c": sheet(levels(1, 3, 0)[:, :4])}, "found a picture 20 pixels wide"),
        (PNG_ROWS, png_files, {"package/m": b"[2, 2"}, "package/m: is not JSON"),
        (PNG_ROWS, png_files, {"package/m": b"[2, 2, 1.5, 0]"}, "package/m: expected a list of integers from 0"),
        (PNG_ROWS, png_files, {"package/m": b"[2, 2, -1, 0]"}, "package/m: expected a list of integers from 0"),
        (PNG_ROWS, png_files, {"package/m": b'{"0": 1}'}, "package/m: expected a list of integers from 0"),
        (PNG_ROWS, png_files, {"package/m": b"[2, 2, 1]"}, "package/m: has 3 labels for 4 images"),
        (JSON_ROWS, json_files, {"package/1.json": b"\xff"}, "package/1.json: is not JSON"),
        (JSON_ROWS, json_files, {"package/1.json": b"[[]]"}, 'package/1.json: expected {"data": a list of lists}'),
        (JSON_ROWS, json_files, {"package/1.json": b'{"data": [[1, 2]]}'}, "expected 25 grey levels a row, found 2"),
        (JSON_ROWS, json_files, {"package/1.json": b'{"data": [[]]}'}, "expected more than 2 rows, found 0"),
        (
            JSON_ROWS,
            json_files,
            {"package/1.json": json.dumps({"data": [[256] * 25] * 4}).encode()},
            "package/1.json: expected a list of integers from 0 to 255",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    pictures: LabelledArchive, files: Any, change: dict[str, bytes | None], line: str, tmp_path: Path
) -> None:
    content = {name: data for name, data in (files() | change).items() if data is not None}
    with pytest.raises(UserError) as caught:
        read_labelled(archive(tmp_path, content), pictures, SIZE)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_settings_that_name_no_files_are_refused() -> None:
    for keys in ({"layout": "idx"}, {"layout": "idx", **SPLITS, "train": {"images": [], "labels": "l"}}):
        with pytest.raises(ValidationError):
            IdxArchive.model_validate(keys)
