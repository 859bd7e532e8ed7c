"""Caches give back the very pixels, in every process, and survive damage."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from translate.data import PairedSettings
from translate.data import cache as cache_module
from translate.data.cache import Cache, disk_cache, memory_cache
from translate.data.files import user_cache_folder
from translate.data.transforms import Pixels
from translate.errors import ImageError, UserError

COUNT = 150  # more than the chunk that is decoded at once


def read(index: int) -> dict[str, Pixels]:
    """Sample `index`: two sides of odd sizes and both depths, but for the seventh, which is bad."""
    if index == 7:
        raise ImageError("seven.png", "is torn")
    generator = np.random.default_rng(index)
    shape = (index % 5 + 1, index % 3 + 1)
    a = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if index % 2:
        return {"A": a, "B": generator.integers(0, 65536, (*shape, 1), dtype=np.uint16)}
    return {"A": a, "B": generator.integers(0, 256, (*shape, 1), dtype=np.uint8)}


Make = Callable[[Path], Cache]
MAKERS: list[Any] = [
    pytest.param(lambda _: memory_cache(COUNT, read), id="memory"),
    pytest.param(lambda folder: disk_cache(COUNT, read, folder=folder, key="k"), id="disk"),
]


def check(cache: Cache) -> None:
    assert len(cache) == COUNT
    for index in range(COUNT):
        if index == 7:
            with pytest.raises(ImageError) as caught:
                cache[index]
            assert (caught.value.path, caught.value.reason) == ("seven.png", "is torn")
            continue
        got, want = cache[index], read(index)
        assert list(got) == list(want)
        for side in want:
            assert got[side].dtype == want[side].dtype
            np.testing.assert_array_equal(got[side], want[side])


@pytest.mark.parametrize("make", MAKERS)
def test_gives_back_the_pixels(make: Make, tmp_path: Path) -> None:
    check(make(tmp_path))


@pytest.mark.parametrize("make", MAKERS)
def test_travels_to_a_spawned_process_without_its_pixels(make: Make, tmp_path: Path) -> None:
    # The same way as torch sends a data set to its workers; the child does the comparing.
    import torch.multiprocessing as processes

    cache = make(tmp_path)
    cache[0]  # opened here first: the open map must stay behind
    context = processes.get_context("spawn")
    child = context.Process(target=check, args=(cache,))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_disk_cache_is_opened_not_made_again(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    disk_cache(COUNT, read, folder=tmp_path, key=[1, "a"], progress=lambda *done: seen.append(done))
    assert seen == [(number, COUNT) for number in range(1, COUNT + 1)]
    assert len(list(tmp_path.iterdir())) == 1

    def never(_: int) -> dict[str, Pixels]:
        raise AssertionError("decoded again")

    check(disk_cache(COUNT, never, folder=tmp_path, key=[1, "a"]))
    with pytest.raises(AssertionError, match="decoded again"):
        disk_cache(COUNT, never, folder=tmp_path, key=[1, "b"])
    assert [path.suffix for path in tmp_path.iterdir()] == [".pixels"]  # the failed one left nothing


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "index"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    disk_cache(COUNT, read, folder=tmp_path, key="k")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    changed = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "noise": bytes(np.random.default_rng(0).integers(0, 256, len(data), dtype=np.uint8)),
        "index": data.replace(b'"|u1"', b'"|O8"'),  # a dtype that would be read as pointers
    }[damage]
    path.write_bytes(changed)
    check(disk_cache(COUNT, read, folder=tmp_path, key="k"))


@pytest.mark.parametrize(
    ("number", "text"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "cannot write the cache")]
)
def test_a_full_or_closed_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    def full(*_: Path) -> Path:
        raise OSError(number, "as the system says it")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=text) as caught:
        disk_cache(COUNT, read, folder=tmp_path / "new", key="k")
    assert str(tmp_path / "new") in str(caught.value) and "\n" not in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []


def test_too_little_shared_memory_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm on this system")
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="cache: disk"):
        memory_cache(COUNT, read)


def test_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "translate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache_folder() == Path.home() / ".cache" / "translate"


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_cached_data_set_equals_the_plain_one(tmp_path: Path, kind: str, split: Any) -> None:
    generator = np.random.default_rng(0)
    for name in ("train", "test"):
        for side in ("A", "B"):
            (tmp_path / name / side).mkdir(parents=True)
            for number in range(5):
                pixels = generator.integers(0, 256, (40, 44, 3), dtype=np.uint8)
                cv2.imwrite(str(tmp_path / name / side / f"{number}.png"), pixels)
    (tmp_path / split / "A" / "2.png").write_bytes(b"")
    keys: dict[str, Any] = {"root": tmp_path, "validation": None, "augment": {"resize": 36, "crop": 32}}
    plain = PairedSettings(**keys).open(split, seed=3)
    folder = {"cache_folder": tmp_path / "cache"} if kind == "disk" else {}
    cached = PairedSettings(**keys, cache=kind, **folder).open(split, seed=3)
    assert plain is not None and cached is not None and cached.cache is not None
    for index in (0, 1, 3, 4):
        one, two = plain[index, 11], cached[index, 11]
        assert one["name"] == two["name"]
        for side in ("A", "B"):
            np.testing.assert_array_equal(one[side], two[side])
    if split == "train":
        assert plain[2, 11]["name"] == cached[2, 11]["name"]
        assert plain[2, 11]["problem"] == cached[2, 11]["problem"]
    else:
        with pytest.raises(ImageError, match=r"2\.png"):
            cached[2]


def test_a_changed_file_makes_a_new_cache(tmp_path: Path) -> None:
    for side in ("A", "B"):
        (tmp_path / "train" / side).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "train" / side / "1.png"), np.full((8, 8, 3), 10, np.uint8))
    config = PairedSettings(
        root=tmp_path,
        validation=None,
        cache="disk",
        cache_folder=tmp_path / "cache",
        augment={"resize": None, "crop": None},
    )
    config.open("train", seed=0)
    cv2.imwrite(str(tmp_path / "train" / "A" / "1.png"), np.full((9, 9, 3), 20, np.uint8))
    cv2.imwrite(str(tmp_path / "train" / "B" / "1.png"), np.full((9, 9, 3), 30, np.uint8))
    dataset = config.open("train", seed=0)
    assert dataset is not None and (dataset[0, 0]["A"] == 20).all()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_pickles_without_an_open_map(tmp_path: Path) -> None:
    cache = disk_cache(COUNT, read, folder=tmp_path, key="k")
    cache[0]
    (path,) = tmp_path.iterdir()
    state = cache.__getstate__()
    assert state["_bytes"] is None
    check(pickle.loads(pickle.dumps(cache)))
    assert path.is_file()
