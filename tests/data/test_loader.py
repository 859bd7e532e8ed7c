"""The stream of batches: order, resuming, ranks, workers that die, evaluation in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from translate.data import FolderSettings, ImageDataset, PairedSettings
from translate.data.images import to_device
from translate.data.loader import SampleOrder, collate, evaluation_batches, training_batches, worker_count
from translate.data.spec import ImageSpec
from translate.errors import UserError

CPU = torch.device("cpu")


def write_pairs(root: Path, count: int, split: str = "train", size: int = 24) -> None:
    generator = np.random.default_rng(0)
    for side in ("A", "B"):
        (root / split / side).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
            cv2.imwrite(str(root / split / side / f"{number:02}.png"), pixels)


def open_split(root: Path, split: Any = "train", **keys: Any) -> ImageDataset:
    augment = keys.pop("augment", {"resize": 20, "crop": 16})
    dataset = PairedSettings(root=root, validation=None, augment=augment, **keys).open(split, seed=4)
    assert dataset is not None
    return dataset


def take(dataset: ImageDataset, count: int, **keys: Any) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {
        "batch_size": 2,
        "seed": 4,
        "start": 0,
        "workers": 0,
        "device": CPU,
        **keys,
    }
    with closing(training_batches(dataset, **arguments)) as batches:
        return [next(batches) for _ in range(count)]


def assert_equal(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a["name"] == b["name"]
        for side in ("A", "B"):
            assert torch.equal(a[side], b[side])


def test_a_batch_is_nhwc_uint8(tmp_path: Path) -> None:
    write_pairs(tmp_path, 4)
    (batch,) = take(open_split(tmp_path), 1, batch_size=3)
    assert batch["A"].shape == batch["B"].shape == (3, 16, 16, 3)
    assert batch["A"].dtype == torch.uint8
    assert len(batch["name"]) == 3 and batch["problems"] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_stay_with_their_images(tmp_path: Path, workers: int) -> None:
    for number, name in enumerate(("cat", "dog", "eel")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for image in range(number + 2):
            pixels = np.full((8, 8, 3), 60 * number + image, np.uint8)
            cv2.imwrite(str(tmp_path / "train" / name / f"{image}.png"), pixels)
    config = FolderSettings(
        root=tmp_path,
        validation=None,
        classes=["cat", "dog", "eel"],
        augment={"resize": None, "crop": None, "flip": False},
    )
    dataset = config.open("train", seed=0)
    assert dataset is not None
    batches = take(dataset, 3, batch_size=6, workers=workers)
    batches += evaluation_batches(dataset, batch_size=4, workers=workers, device=CPU)
    assert [batch["label"].shape for batch in batches] == [(6,), (6,), (6,), (4,), (4,), (1,)]
    for batch in batches:
        assert batch["label"].dtype == torch.int64
        assert torch.equal(batch["image"][:, 0, 0, 0].long() // 60, batch["label"])
        tensors = to_device(batch, config.specs(), CPU)
        assert set(tensors) == {"image", "label"} and torch.equal(tensors["label"], batch["label"])


def test_every_epoch_is_another_permutation(tmp_path: Path) -> None:
    write_pairs(tmp_path, 7)
    names = [name for batch in take(open_split(tmp_path), 14) for name in batch["name"]]
    epochs = [names[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == [f"{number:02}" for number in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    order = SampleOrder(7, seed=4)
    assert names == [f"{order[position]:02}" for position in range(28)]
    assert [SampleOrder(7, seed=5)[p] for p in range(28)] != [order[p] for p in range(28)]


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    write_pairs(tmp_path, 5)
    dataset = open_split(tmp_path)
    want = take(dataset, 8)
    assert_equal(take(dataset, 8, workers=1), want)
    assert_equal(take(dataset, 8, workers=2), want)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_workers_share_a_cache(tmp_path: Path, cache: str) -> None:
    write_pairs(tmp_path, 5)
    folder = {"cache_folder": tmp_path / "cache"} if cache == "disk" else {}
    assert_equal(take(open_split(tmp_path, cache=cache, **folder), 6, workers=2), take(open_split(tmp_path), 6))


def test_resuming_goes_on_exactly_there(tmp_path: Path) -> None:
    write_pairs(tmp_path, 5)
    dataset = open_split(tmp_path)
    whole = take(dataset, 9)
    for done in (1, 4, 8):
        assert_equal(take(dataset, 9 - done, start=2 * done, workers=done % 2), whole[done:])


def test_ranks_share_each_global_batch(tmp_path: Path) -> None:
    write_pairs(tmp_path, 7)
    dataset = open_split(tmp_path)
    whole = take(dataset, 5, batch_size=6, start=6)
    ranks = [take(dataset, 5, start=6, rank=rank, world=3) for rank in range(3)]
    for number, batch in enumerate(whole):
        assert batch["name"] == [name for rank in ranks for name in rank[number]["name"]]
        assert torch.equal(batch["B"], torch.cat([rank[number]["B"] for rank in ranks]))


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(open_split(tmp_path), 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_problem_is_told_once(tmp_path: Path) -> None:
    write_pairs(tmp_path, 5)
    (tmp_path / "train" / "A" / "02.png").write_bytes(b"\x89PNG")
    batches = take(open_split(tmp_path), 15, workers=2)
    problems = [text for batch in batches for text in batch["problems"]]
    assert len(problems) == 1 and "02.png" in problems[0]
    assert all(batch["A"].shape[0] == 2 for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_sizes_that_do_not_stack_are_one_line(tmp_path: Path, workers: int) -> None:
    write_pairs(tmp_path, 3)
    for side in ("A", "B"):
        cv2.imwrite(str(tmp_path / "train" / side / "01.png"), np.zeros((9, 8, 3), np.uint8))
    dataset = open_split(tmp_path, augment={"resize": None, "crop": None})
    with pytest.raises(UserError) as caught:
        take(dataset, 2, workers=workers)
    text = str(caught.value)
    assert "01 (8x9)" in text and "data.augment.crop" in text and "\n" not in text
    assert len(take(dataset, 3, batch_size=1, workers=workers)) == 3


def test_too_many_bad_files_reach_the_user_as_one_line(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    for path in (tmp_path / "train" / "B").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        take(open_split(tmp_path), 1, workers=1)
    assert "3 unreadable images in a row" in str(caught.value) and "\n" not in str(caught.value)


def test_mixed_depths_are_promoted_and_classes_are_not() -> None:
    specs = {"A": ImageSpec(channels=1), "B": ImageSpec(kind="labels", classes=400)}
    shallow = {"A": np.full((2, 2, 1), 255, np.uint8), "B": np.full((2, 2, 1), 7, np.uint8), "name": "x"}
    deep = {"A": np.full((2, 2, 1), 300, np.uint16), "B": np.full((2, 2, 1), 399, np.uint16), "name": "y"}
    batch = collate([shallow, deep], specs)
    assert batch["A"].dtype == batch["B"].dtype == torch.uint16
    assert batch["A"][:, 0, 0, 0].tolist() == [65535, 300]
    assert batch["B"][:, 0, 0, 0].tolist() == [7, 399]
    assert collate([shallow], specs)["A"].dtype == torch.uint8


def test_closing_ends_the_workers_at_once(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    batches = training_batches(open_split(tmp_path), batch_size=1, seed=0, start=0, workers=2, device=CPU)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    begin = time.monotonic()
    batches.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - begin < 3


def test_a_dead_worker_is_one_line(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    with closing(
        training_batches(open_split(tmp_path), batch_size=1, seed=0, start=0, workers=1, device=CPU)
    ) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="data loading process died") as caught:
            for _ in range(50):
                next(batches)
    assert "\n" not in str(caught.value)


def test_a_dead_worker_is_told_nowhere_but_where_a_batch_is_awaited(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    batches = training_batches(open_split(tmp_path), batch_size=1, seed=0, start=0, workers=1, device=CPU)
    with closing(batches):
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        sum(range(100_000))  # the signal has arrived by now, in the middle of a step as it were
        with pytest.raises(UserError, match="data loading process died"):
            next(batches)


def test_workers_outlive_a_sigterm_to_the_group(tmp_path: Path) -> None:
    write_pairs(tmp_path, 5)
    dataset = open_split(tmp_path)
    batches = training_batches(dataset, batch_size=2, seed=4, start=0, workers=1, device=CPU)
    with closing(batches):
        got = [next(batches)]
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
        got += [next(batches) for _ in range(11)]
    assert_equal(got, take(dataset, 12))


@pytest.mark.skipif(os.name != "posix", reason="signals to a process group")
def test_ctrl_c_prints_nothing_from_the_workers(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    script = f"""
import sys, torch
from translate.data import PairedSettings
from translate.data.loader import training_batches
settings = PairedSettings(root={str(tmp_path)!r}, validation=None, augment={{"crop": 16, "resize": 20}})
dataset = settings.open("train", 0)
batches = training_batches(dataset, batch_size=1, seed=0, start=0, workers=2, device=torch.device("cpu"))
try:
    for batch in batches:
        print("batch", flush=True)
except KeyboardInterrupt:
    batches.close()
    sys.exit(7)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"batch\n"
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: the whole group
        _, errors = child.communicate(timeout=120)
    finally:
        child.kill()
    assert errors == b""
    assert child.returncode == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_groups_equal_shapes(tmp_path: Path, workers: int) -> None:
    write_pairs(tmp_path, 9, split="test")
    for side in ("A", "B"):
        cv2.imwrite(str(tmp_path / "test" / side / "01.png"), np.zeros((9, 8, 3), np.uint8))
    for name in ("05.png", "06.png", "08.png"):
        (tmp_path / "test" / "A" / name).write_bytes(b"")
    dataset = open_split(tmp_path, "test", augment={"resize": None, "crop": None})
    batches = list(evaluation_batches(dataset, batch_size=3, workers=workers, device=CPU))
    assert [batch["name"] for batch in batches] == [["00"], ["01"], ["02"], ["03", "04"], ["07"]]
    assert batches[1]["A"].shape == (1, 9, 8, 3)
    problems = [[Path(text.split(":")[0]).name for text in batch["problems"]] for batch in batches]
    assert problems == [[], [], [], ["05.png"], ["06.png", "08.png"]]
    np.testing.assert_array_equal(batches[3]["B"][1].numpy(), dataset[4]["B"])


def test_evaluation_of_nothing_readable_is_one_line(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2, split="test")
    for path in (tmp_path / "test" / "A").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image can be read") as caught:
        list(evaluation_batches(open_split(tmp_path, "test"), batch_size=1, workers=0, device=CPU))
    assert "\n" not in str(caught.value)


def test_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for cores, want in [(1, 1), (2, 1), (4, 3), (64, 8)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        assert worker_count("auto") == want
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert worker_count("auto") == 3
    assert worker_count(0) == 0 and worker_count(5) == 5


def test_a_part_of_a_split_is_spread_evenly_over_it(tmp_path: Path) -> None:
    """10 images, 4 wanted: floor(0, 2.5, 5, 7.5); more wanted than there are: all."""
    for side in "AB":
        (tmp_path / "train" / side).mkdir(parents=True)
        for number in range(10):
            cv2.imwrite(str(tmp_path / f"train/{side}/{number}.png"), np.full((8, 8, 3), number, np.uint8))
    settings = PairedSettings(root=tmp_path, validation=None, augment={"resize": None, "crop": None})
    dataset = settings.open("train", 0)
    assert dataset is not None

    def names(images: int | None) -> list[str]:
        found = evaluation_batches(dataset, batch_size=3, workers=0, device=torch.device("cpu"), images=images)
        return [name for batch in found for name in batch["name"]]

    assert names(4) == ["0", "2", "5", "7"]
    assert names(20) == names(None) == [str(number) for number in range(10)]
