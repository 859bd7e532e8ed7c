"""Sets of pictures: which there are, in which order they come, and that they are those of files, data and models."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured import GAN, PAIRS, PIX2PIX, Array, export, read, smooth, tree, write, write_pairs
from torch import Tensor, nn

from translate import config as configs
from translate.data.datasets import ImageDataset
from translate.data.spec import ImageSpec
from translate.errors import ImageError, UserError
from translate.evaluation.pictures import (
    AHEAD,
    READERS,
    FilePictures,
    Pictures,
    SamePicture,
    SampledPictures,
    SidePictures,
    TranslatedPictures,
    read_ahead,
)
from translate.inference.folder import convert
from translate.inference.sampler import SampleOptions, Sampler, write_samples
from translate.inference.translator import Translator


def pixels_of(pictures: Pictures, indices: list[int] | None = None) -> list[Any]:
    chosen = range(len(pictures.names)) if indices is None else indices
    return list(pictures.stream(chosen, lambda pixels: pixels))


# ---- reading ahead ---------------------------------------------------------------------------------------------------


def test_results_come_in_order_whatever_takes_longer() -> None:
    def slow(number: int) -> int:
        time.sleep(0.004 * (number % 3 == 0))
        return number * number

    assert list(read_ahead(range(40), slow)) == [number * number for number in range(40)]
    assert list(read_ahead([], slow)) == []


def test_an_exception_is_raised_in_its_turn_and_no_thread_stays() -> None:
    before = threading.active_count()

    def bad(number: int) -> int:
        if number == 5:
            raise ZeroDivisionError
        return number

    found = []
    with pytest.raises(ZeroDivisionError):
        for number in read_ahead(range(40), bad):
            found.append(number)
    assert found == list(range(5))
    assert threading.active_count() == before


def test_who_stops_early_leaves_no_thread_and_no_work() -> None:
    before, go = threading.active_count(), threading.Event()
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        if number >= 3:
            go.wait(10)
        return number

    stream = read_ahead(range(1000), read)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    timer = threading.Timer(0.1, go.set)  # what is being read is read to its end
    timer.start()
    stream.close()  # type: ignore[attr-defined]  # a generator
    timer.join()
    assert threading.active_count() == before
    assert len(begun) <= 3 + READERS


@pytest.mark.parametrize(("size", "most"), [(1, AHEAD), (300, 3), (900, READERS)])
def test_large_results_are_not_heaped_up(size: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("translate.evaluation.pictures.AHEAD_BYTES", 1000)
    begun: list[int] = []

    def read(number: int) -> tuple[int, np.ndarray[Any, Any]]:
        begun.append(number)
        return number, np.zeros(size, np.uint8)

    stream = read_ahead(range(100), read)
    for taken in range(1, 30):
        assert next(stream)[0] == taken - 1
        deadline = time.monotonic() + 5
        while len(begun) < taken + most and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(begun) == taken + most


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_are_named_by_their_path_without_suffix(tmp_path: Path) -> None:
    for number, name in enumerate(["b10.png", "b9.bmp", "deep/er/c.tif"]):
        write(tmp_path / name, smooth(number))
    found = FilePictures(tmp_path, ImageSpec())
    assert found.names == ["b9", "b10", "deep/er/c"]
    for pixels, name in zip(pixels_of(found, [2, 0]), ["deep/er/c.tif", "b9.bmp"], strict=True):
        np.testing.assert_array_equal(pixels, read(tmp_path / name))
    assert FilePictures(tmp_path / "b*.png", ImageSpec()).names == ["b10"]
    assert found.files() == [[tmp_path / "b9.bmp"], [tmp_path / "b10.png"], [tmp_path / "deep/er/c.tif"]]


def test_pictures_of_a_conversion_s_page_are_no_results(tmp_path: Path) -> None:
    for number, name in enumerate(["a.png", "report/00000-input.png"]):
        write(tmp_path / name, smooth(number))
    assert FilePictures(tmp_path, ImageSpec()).names == ["a", "report/00000-input"]  # somebody's own folder
    (tmp_path / "index.html").touch()
    assert FilePictures(tmp_path, ImageSpec()).names == ["a"]


def test_two_files_of_one_name_and_none(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "b.bmp"):
        write(tmp_path / "in" / name, smooth(0))
    with pytest.raises(UserError, match=r"in: two files are called b; names must differ in more than the suffix"):
        FilePictures(tmp_path / "in", ImageSpec())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images in this folder"):
        FilePictures(tmp_path / "empty", ImageSpec())


def test_in_the_place_of_a_bad_file_stands_why(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.png", smooth(0))
    (tmp_path / "b.png").write_bytes(b"")
    first, second, third = pixels_of(FilePictures(tmp_path, ImageSpec()))
    assert isinstance(second, ImageError) and str(second) == f"{tmp_path / 'b.png'}: the file is empty (0 bytes)"
    np.testing.assert_array_equal(first, third)


def test_a_label_map_is_read_as_class_numbers(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 3, (8, 9), dtype=np.uint8)
    write(tmp_path / "x.png", classes)
    (found,) = pixels_of(FilePictures(tmp_path, ImageSpec(kind="labels", classes=3)))
    np.testing.assert_array_equal(found[..., 0], classes)


# ---- a side of data --------------------------------------------------------------------------------------------------


def side(root: Path, which: str, **augment: Any) -> SidePictures:
    raw = {**PAIRS, "root": str(root), "augment": {**PAIRS["augment"], **augment}}
    settings = {"name": "x", "method": PIX2PIX, "data": raw, "training": {"stages": [{"length": "1 steps"}]}}
    dataset = configs.validate(settings, "test").data.open("train", 0)
    assert isinstance(dataset, ImageDataset)
    return SidePictures(dataset.fixed(), which, "train")


def test_a_side_is_seen_without_chance(tmp_path: Path) -> None:
    """The middle of the crop and no mirroring, also of a training split."""
    write_pairs(tmp_path, "train", 5)
    found = side(tmp_path, "B", crop=16, flip=True)
    assert found.names == [f"{number:02}" for number in range(5)]
    for name, pixels in zip(found.names, pixels_of(found), strict=True):
        np.testing.assert_array_equal(pixels, read(tmp_path / "train" / "B" / f"{name}.png")[4:20, 8:24])
    assert found.files() == [[tmp_path / "train" / s / f"{name}.png" for s in "AB"] for name in found.names]


def test_sides_that_differ_in_pixels_differ_in_key(tmp_path: Path) -> None:
    write_pairs(tmp_path, "train", 1)
    keys = [side(tmp_path, "A"), side(tmp_path, "B"), side(tmp_path, "A", crop=16), side(tmp_path, "A", resize=16)]
    assert len({str(each.key()) for each in keys}) == 4
    assert side(tmp_path, "A", crop=16).key() == keys[2].key()


# ---- what a model makes ----------------------------------------------------------------------------------------------

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.mark.parametrize("target", [{}, {"kind": "labels", "palette": PALETTE}, {"kind": "labels", "classes": 3}])
def test_a_translation_is_what_conversion_writes(target: dict[str, Any], tmp_path: Path) -> None:
    """And pictures of a palette are class numbers again, as data with it would have them."""
    for number, size in enumerate([(24, 32), (25, 37), (24, 32)]):
        write(tmp_path / "in" / f"{number}.png", smooth(number, size))
    data = {**PAIRS, "root": str(tmp_path), "B": target}
    weights = export(tmp_path / "run", PIX2PIX, data)
    translator = Translator.load(weights, device="cpu")
    summary = convert(translator, tmp_path / "in", tmp_path / "out")
    assert summary.written == 3
    found = TranslatedPictures(translator, FilePictures(tmp_path / "in", ImageSpec()))
    assert found.names == ["0", "1", "2"] and found.spec == translator.target
    for name, pixels in zip(found.names, pixels_of(found), strict=True):
        written = read(tmp_path / "out" / f"{name}.png")
        if "palette" in target:
            written = np.abs(written[:, :, None].astype(int) - np.array(PALETTE)).sum(3).argmin(2)[..., None]
        elif target:
            written = written[..., :1]  # grey levels are numbers
        assert len(np.unique(pixels)) > 1
        np.testing.assert_array_equal(pixels, written)
    assert found.files() is None


class Narrow(nn.Module):
    multiple, smallest, scale = 1, 1, 1

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[3] > 20:
            raise RuntimeError("out of patience\nat column 21")
        return -x


def test_a_network_s_failure_is_the_picture_s(tmp_path: Path) -> None:
    """As in conversion: the other pictures are measured."""
    for number, width in enumerate((16, 24, 18)):
        write(tmp_path / f"{number}.png", smooth(number, (16, width)))
    (tmp_path / "3.png").write_bytes(b"no picture")
    facts = {"model": "narrow.safetensors"}
    translator = Translator(Narrow(), ImageSpec(), ImageSpec(), device="cpu", precision="fp32", facts=facts)
    first, second, third, fourth = pixels_of(TranslatedPictures(translator, FilePictures(tmp_path, ImageSpec())))
    for number, pixels in ((0, first), (2, third)):
        np.testing.assert_array_equal(pixels, 255 - read(tmp_path / f"{number}.png"))
    assert str(second) == "narrow.safetensors: the network failed on 24x16 pixels (out of patience)"
    assert isinstance(second, ImageError) and isinstance(fourth, ImageError)


class Counting(nn.Module):
    multiple, smallest, scale = 1, 1, 1
    calls: list[int] = []  # noqa: RUF012  # of the class: a translator runs a copy

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return -x


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    """There and back again needs two passes a picture where what is there was seen before; no room, no keeping."""
    for number in range(5):
        write(tmp_path / f"{number}.png", smooth(number, (10, 10)))
    files = FilePictures(tmp_path, ImageSpec())
    for room, passes in ((10**6, 5 + 5), (3 * 300, 5 + 2 + 5), (0, 5 + 5 + 5)):
        Counting.calls.clear()
        translator = Translator(Counting(), ImageSpec(), ImageSpec(), device="cpu", precision="fp32")
        there = TranslatedPictures(translator, files, keep=room)
        pixels_of(there)
        again = pixels_of(TranslatedPictures(translator, there))
        assert sum(Counting.calls) == passes, room
        for pixels, original in zip(again, pixels_of(files), strict=True):
            np.testing.assert_array_equal(pixels, original)


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = {"kind": "folder", "root": "none", "classes": ["cat", "dog", "eel"], "augment": {"crop": 8}}
    return export(tmp_path_factory.mktemp("gan"), {**GAN, "conditioning": {"generator": "norm"}}, data)


@pytest.mark.parametrize("truncation", [None, 0.6])
def test_samples_are_those_that_the_sampler_writes(truncation: float | None, gan: Path, tmp_path: Path) -> None:
    sampler = Sampler.load(gan, device="cpu")
    write_samples(sampler, tmp_path / "out", SampleOptions(count=21, seed=5, truncation=truncation))
    written = {name: pixels for name, pixels in tree(tmp_path / "out").items() if name.isdecimal()}
    assert len(written) == 21
    found = SampledPictures(sampler, 21, seed=5, truncation=truncation)
    for pixels, expected in zip(pixels_of(found), written.values(), strict=True):
        np.testing.assert_array_equal(pixels, expected)


def test_a_stretch_of_samples_has_the_same_bytes(gan: Path) -> None:
    """Wherever it begins and ends: processes share the samples by it. A batch on a CPU has 8 of them."""
    sampler = Sampler.load(gan, device="cpu", precision="fp32")
    whole = list(sampler.sample(40, seed=2))
    found = SampledPictures(sampler, 40, seed=2)
    for first, end in ((0, 40), (0, 7), (7, 19), (16, 32), (33, 40), (39, 40), (5, 5)):
        part = pixels_of(found, list(range(first, end)))
        assert len(part) == end - first
        for pixels, expected in zip(part, whole[first:end], strict=True):
            assert pixels.tobytes() == expected.tobytes()
        streamed: list[Array] = [image for batch in sampler.stream(end, seed=2, first=first) for image in batch]
        assert [image.tobytes() for image in streamed] == [image.tobytes() for image in whole[first:end]]


class Gone(nn.Module):
    multiple, smallest, scale = 1, 1, 1

    def forward(self, x: Tensor) -> Tensor:
        light = x.mean() + 1
        return x * light / light  # 0 / 0 where a picture is black


def test_outputs_that_are_no_numbers_are_no_pictures(gan: Path, tmp_path: Path) -> None:
    """Not black ones: a listed picture of a translation, a line for samples."""
    for number, pixels in enumerate((smooth(0), np.zeros_like(smooth(0)))):
        write(tmp_path / f"{number}.png", pixels)
    facts = {"model": "gone.safetensors"}
    translator = Translator(Gone(), ImageSpec(), ImageSpec(), device="cpu", precision="fp32", facts=facts)
    first, second = pixels_of(TranslatedPictures(translator, FilePictures(tmp_path, ImageSpec())))
    np.testing.assert_array_equal(first, smooth(0))
    text = "gone.safetensors: the network failed on 32x24 pixels (its output is no number (NaN) in fp32)"
    assert str(second) == text
    summary = convert(translator, tmp_path, tmp_path / "out")
    assert summary.written == 1 and [path.name for path, _ in summary.failed] == ["1.png"]
    sampler = Sampler.load(gan, device="cpu", precision="fp32")
    next(sampler._trained.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r"last\.safetensors: its samples are no numbers"):
        pixels_of(SampledPictures(sampler, 3))


def test_one_picture_in_the_place_of_each() -> None:
    pixels = smooth(0)
    same = SamePicture(pixels, ["a", "b", "c"], ImageSpec(), "mean")
    assert [found is pixels for found in pixels_of(same, [2, 0])] == [True, True]
