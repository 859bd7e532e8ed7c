"""Two folders without pairs: what an epoch is, that the sides are strangers, and that a run resumes anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from translate.data import DataSettings, FolderSettings, UnpairedSettings
from translate.data.datasets import UnpairedDataset, seed_of
from translate.data.images import to_device
from translate.data.loader import evaluation_batches, training_batches
from translate.data.pairing import hold_out
from translate.errors import ImageError, UserError

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {"resize": None, "crop": None, "flip": False}


def fill(root: Path, split: str = "train", **counts: int) -> None:
    """Image number n of side A is all n, of side B all 100 + n; 8 x 8 pixels."""
    for side, count in counts.items():
        for number in range(count):
            path = root / split / side / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), np.full((8, 8, 3), number + 100 * (side == "B"), np.uint8))


def noise(root: Path, count: int = 4) -> None:
    """Images of 20 x 20 whose every crop is another: the same ones on both sides."""
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        for side in "AB":
            (root / "train" / side).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(root / "train" / side / f"{number}.png"), pixels)


def settings(root: Path, **keys: Any) -> UnpairedSettings:
    return UnpairedSettings(**{"root": root, "augment": PLAIN, "validation": None, **keys})


def opened(root: Path, split: Any = "train", seed: int = 0, **keys: Any) -> UnpairedDataset:
    dataset = settings(root, **keys).open(split, seed)
    assert dataset is not None
    return dataset


def stream(dataset: UnpairedDataset, positions: Iterable[int], seed: int = 0) -> list[dict[str, Any]]:
    """The training samples at these positions, by the order's own keys."""
    order = dataset.order(seed)
    return [dataset[order[position], position] for position in positions]


def numbers(samples: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Which images they hold: (number in A, number in B)."""
    return [(int(sample["A"][0, 0, 0]), int(sample["B"][0, 0, 0]) - 100) for sample in samples]


# Training


def test_an_epoch_is_as_long_as_the_larger_side(tmp_path: Path) -> None:
    fill(tmp_path, A=4, B=10)
    dataset = opened(tmp_path)
    assert len(dataset) == 10
    assert list(dataset.specs) == ["A", "B"]
    (sample,) = stream(dataset, [3])
    assert sample["A"].shape == sample["B"].shape == (8, 8, 3)
    (a, b) = numbers([sample])[0]
    assert sample["name"] == f"{a:02} and {b:02}"


def test_each_side_has_epochs_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path, A=4, B=10)
    seen = numbers(stream(opened(tmp_path), range(60)))
    for start in range(0, 60, 4):
        assert sorted(a for a, _ in seen[start : start + 4]) == list(range(4))
    for start in range(0, 60, 10):
        assert sorted(b for _, b in seen[start : start + 10]) == list(range(10))


def test_who_stands_beside_whom_is_chance(tmp_path: Path) -> None:
    """Sides of 6 images each, 600 epochs: all 36 couples, each 100 times. An epoch has a couple with the chance 1/6, so
    the deviation is sqrt(600 * 5/36) = 9.1; five of these. Equal shuffles would give 6 couples of 600."""
    fill(tmp_path, A=6, B=6)
    orders = opened(tmp_path).order(7)
    couples = Counter(orders[position] for position in range(3600))
    assert len(couples) == 36
    assert max(abs(count - 100) for count in couples.values()) < 5 * (600 * 5 / 36) ** 0.5


def test_augmentation_is_drawn_anew_for_each_side(tmp_path: Path) -> None:
    """The same picture stands on both sides: crops and mirrors of one position differ between the sides, and do not
    follow each other. Of 11 x 11 crops and the mirror both are equal once in 242 times."""
    noise(tmp_path, count=1)
    dataset = opened(tmp_path, seed=5, augment={"resize": 20, "crop": 10})
    whole = cv2.imread(str(tmp_path / "train" / "A" / "0.png"))[..., ::-1]
    places = {
        whole[top : top + 10, left : left + 10][:, ::step].tobytes(): (top, left, mirrored)
        for top in range(11)
        for left in range(11)
        for mirrored, step in enumerate((1, -1))
    }
    samples = stream(dataset, range(400))
    drawn = np.array([[places[sample[side].tobytes()] for side in "AB"] for sample in samples])  # (400, sides, 3)
    assert (drawn[:, 0] == drawn[:, 1]).all(axis=1).sum() < 12
    for which in range(3):  # correlation of 400 independent draws: deviation 1 / 20
        assert abs(np.corrcoef(drawn[:, 0, which], drawn[:, 1, which])[0, 1]) < 0.2
    assert 120 < drawn[:, 0, 2].sum() < 280 and 120 < drawn[:, 1, 2].sum() < 280


def test_the_seed_decides_the_augmentation(tmp_path: Path) -> None:
    noise(tmp_path, count=1)
    one, same, other = (opened(tmp_path, seed=seed, augment={"resize": 20, "crop": 10}) for seed in (1, 1, 2))
    for side in "AB":
        pixels = [np.stack([sample[side] for sample in stream(each, range(9))]) for each in (one, same, other)]
        assert (pixels[0] == pixels[1]).all()
        assert (pixels[0] != pixels[2]).any(axis=(1, 2, 3)).sum() > 6


def test_seeds_of_sides_never_meet() -> None:
    highest = 2**31 - 1  # of a config
    seeds = [seed_of(seed, side) for seed in (0, 1, highest) for side in range(3)]
    assert len(set(seeds)) == 9
    assert seed_of(highest, 0) < seed_of(0, 1) and seed_of(5, 0) == 5


def test_colour_changes_on_both_sides(tmp_path: Path) -> None:
    fill(tmp_path, A=1, B=1)
    (tmp_path / "train" / "A" / "00.png").write_bytes((tmp_path / "train" / "B" / "00.png").read_bytes())
    augment = {**PLAIN, "colour": {"brightness": 0.5}}
    samples = stream(opened(tmp_path, augment=augment), range(20))
    light = np.array([[sample[side][0, 0, 0] for side in "AB"] for sample in samples], int)
    assert (light[:, 0] != 100).sum() > 15 and (light[:, 1] != 100).sum() > 15
    assert (light[:, 0] != light[:, 1]).sum() > 15
    assert light.min() >= 50 and light.max() <= 150
    still = opened(tmp_path, augment=augment).fixed()
    assert numbers([still[0]]) == [(100, 0)]


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_a_run_resumes_at_any_position_with_any_workers(tmp_path: Path, cache: str) -> None:
    noise(tmp_path / "set", count=3)
    (tmp_path / "set" / "train" / "A" / "2.png").unlink()  # 2 and 3 images
    keys: dict[str, Any] = {"augment": {"resize": 18, "crop": 12}, "cache": cache}
    if cache == "disk":
        keys["cache_folder"] = tmp_path / "cache"
    dataset = opened(tmp_path / "set", **keys)

    def take(count: int, start: int, workers: int) -> list[dict[str, Any]]:
        batches = training_batches(dataset, batch_size=2, seed=9, start=start, workers=workers, device=CPU)
        with closing(batches):
            return [next(batches) for _ in range(count)]

    samples = stream(dataset, range(12), seed=9)
    whole = take(6, 0, 0)
    for side in "AB":
        rows = np.concatenate([batch[side].numpy() for batch in whole])
        np.testing.assert_array_equal(rows, np.stack([sample[side] for sample in samples]))
    for done, workers in ((0, 2), (1, 0), (3, 1), (5, 0)):
        for batch, want in zip(take(6 - done, 2 * done, workers), whole[done:], strict=True):
            assert batch["name"] == want["name"]
            assert torch.equal(batch["A"], want["A"]) and torch.equal(batch["B"], want["B"])
    if cache == "disk":
        assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2  # one a side


def test_a_cache_changes_no_pixel(tmp_path: Path) -> None:
    noise(tmp_path / "set", count=3)
    augment = {"resize": 18, "crop": 12}
    plain = stream(opened(tmp_path / "set", augment=augment), range(12))
    for keys in ({"cache": "memory"}, {"cache": "disk", "cache_folder": tmp_path / "cache"}):
        for got, want in zip(stream(opened(tmp_path / "set", augment=augment, **keys), range(12)), plain, strict=True):
            assert got["name"] == want["name"]
            assert all((got[side] == want[side]).all() for side in "AB")


def test_an_unreadable_file_is_replaced_on_its_own_side(tmp_path: Path) -> None:
    fill(tmp_path, A=3, B=6)
    (tmp_path / "train" / "B" / "04.png").write_bytes(b"")
    dataset = opened(tmp_path)
    whole = numbers(stream(dataset, range(12)))
    assert Counter(a for a, _ in whole) == {0: 4, 1: 4, 2: 4}
    assert all(b != 4 for _, b in whole)
    problems = [sample["problem"] for sample in stream(dataset, range(12)) if "problem" in sample]
    assert len(problems) == 2 and all("04.png" in text for text in problems)  # once in each epoch of B
    for path in (tmp_path / "train" / "A").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="3 unreadable images in a row"):
        stream(dataset, [0])


def test_a_batch_becomes_tensors_of_two_kinds(tmp_path: Path) -> None:
    fill(tmp_path, A=2, B=2)
    for number in range(2):
        labels = np.array([[0, 1], [2, number]], np.uint8)
        assert cv2.imwrite(str(tmp_path / "train" / "A" / f"{number:02}.png"), labels)
    dataset = opened(tmp_path, A={"kind": "labels", "classes": 3}, B={"channels": 1})
    batches = training_batches(dataset, batch_size=2, seed=0, start=0, workers=0, device=CPU)
    with closing(batches):
        tensors = to_device(next(batches), dataset.specs, CPU)
    assert tensors["A"].shape == (2, 3, 2, 2) and tensors["B"].shape == (2, 1, 8, 8)
    assert set(tensors["A"].unique().tolist()) == {-1.0, 1.0}


# Evaluation


def test_evaluation_shows_no_image_twice_and_spreads(tmp_path: Path) -> None:
    """3 of A beside 7 of B: B's are floor(0, 7/3, 14/3)."""
    fill(tmp_path, "test", A=3, B=7)
    dataset = opened(tmp_path, "test")
    assert len(dataset) == 3
    assert numbers([dataset[index] for index in range(3)]) == [(0, 0), (1, 2), (2, 4)]
    batches = list(evaluation_batches(dataset, batch_size=2, workers=0, device=CPU))
    assert [name for batch in batches for name in batch["name"]] == ["00 and 00", "01 and 02", "02 and 04"]
    assert batches[0]["B"][:, 0, 0, 0].tolist() == [100, 102]


def test_evaluation_leaves_an_unreadable_image_out(tmp_path: Path) -> None:
    fill(tmp_path, "test", A=3, B=3)
    (tmp_path / "test" / "B" / "01.png").write_bytes(b"")
    dataset = opened(tmp_path, "test")
    with pytest.raises(ImageError, match=r"01\.png"):
        dataset[1]
    batches = list(evaluation_batches(dataset, batch_size=4, workers=0, device=CPU))
    assert [batch["name"] for batch in batches] == [["00 and 00", "02 and 02"]]
    assert "01.png" in batches[0]["problems"][0]


def test_a_training_split_can_be_looked_at_without_chance(tmp_path: Path) -> None:
    fill(tmp_path, A=2, B=4)
    fixed = opened(tmp_path, augment={"resize": 8, "crop": 4}).fixed()
    assert len(fixed) == 2 and not fixed.training
    assert numbers([fixed[0], fixed[1]]) == [(0, 0), (1, 2)]
    assert fixed[0]["A"].shape == (4, 4, 3)


def test_one_side_by_itself(tmp_path: Path) -> None:
    fill(tmp_path, "test", A=2, B=5)
    side = opened(tmp_path, "test").of_side("B")
    assert len(side) == 5 and list(side.specs) == ["B"]
    assert [item.name for item in side.items] == [f"{number:02}" for number in range(5)]
    assert int(side.prepared(4)["B"][0, 0, 0]) == 104


def test_a_test_split_may_have_one_side(tmp_path: Path) -> None:
    fill(tmp_path, A=1, B=1)
    fill(tmp_path, "test", B=3)
    dataset = opened(tmp_path, "test")
    assert (len(dataset), list(dataset.specs), dataset[2]["name"]) == (3, ["B"], "02")
    with pytest.raises(UserError, match="side A has no image in this split") as caught:
        dataset.of_side("A")
    assert "\n" not in str(caught.value)


# Splits


def test_a_share_of_each_side_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path, A=12, B=30)
    train, validation = (opened(tmp_path, split, validation=0.25) for split in ("train", "validation"))
    assert (train.training, validation.training) == (True, False)
    for side, count in (("A", 12), ("B", 30)):
        kept, held_out = ({item.name for item in split.of_side(side).items} for split in (train, validation))
        assert not kept & held_out and len(kept | held_out) == count
        alone = FolderSettings(root=tmp_path, image={"path": f"train/{side}"}, validation=None).pairing("train").items
        assert held_out == {item.name for item in hold_out(alone, 0.25)[1]}
    items = settings(tmp_path, validation=0.25).pairing("validation").items
    assert Counter(side for item in items for side in item.paths) == {
        side: len(validation.of_side(side)) for side in "AB"
    }


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    fill(tmp_path, A=2, B=2)
    config = settings(tmp_path, validation="val")
    assert config.open("validation", 0) is None and config.open("test", 0) is None
    assert settings(tmp_path, test=None).open("test", 0) is None


def test_paths_of_ones_own(tmp_path: Path) -> None:
    for name, value in (("trainA", 7), ("trainB", 9)):
        (tmp_path / name).mkdir()
        assert cv2.imwrite(str(tmp_path / name / "x.png"), np.full((4, 4, 3), value, np.uint8))
    config = settings(tmp_path, A={"path": "{split}A"}, B={"path": str(tmp_path / "{split}B")})
    dataset = config.open("train", 0)
    assert dataset is not None
    assert [int(stream(dataset, [0])[0][side][0, 0, 0]) for side in "AB"] == [7, 9]
    assert isinstance(TypeAdapter(DataSettings).validate_python({"kind": "unpaired"}), UnpairedSettings)
    assert UnpairedSettings.model_validate(config.model_dump(mode="json")) == config


# Mistakes


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_missing_or_empty_folder_is_named_in_one_line(tmp_path: Path, side: str) -> None:
    other = "B" if side == "A" else "A"
    fill(tmp_path, **{other: 3})
    for reason in ("there is no such folder", "no images in this folder"):
        with pytest.raises(UserError, match=rf"train/{side}: {reason}") as caught:
            settings(tmp_path).open("train", 0)
        assert "\n" not in str(caught.value)
        (tmp_path / "train" / side).mkdir(exist_ok=True)


def test_a_validation_split_has_both_sides(tmp_path: Path) -> None:
    fill(tmp_path, A=3, B=3)
    fill(tmp_path, "val", A=3)
    with pytest.raises(UserError, match=r"no image of side B, though of the other; .*data\.validation") as caught:
        settings(tmp_path, validation="val").open("validation", 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"A": {"path": "x"}, "B": {"path": "x"}}, "'A.path' and 'B.path' are both 'x'"),
        ({"A": {"path": "{split}/B"}}, "both '{split}/B'"),
        ({"B": {"path": "b"}, "validation": "val"}, "no path contains '{split}'"),
        ({"A": {"kind": "labels", "classes": 3}, "augment": {"colour": {"hue": 0.1}}}, "holds labels; leave it out"),
        ({"B": {"channels": 7}, "augment": {"colour": {"hue": 0.1}}}, "side B has 7"),
        ({"augment": {"colour": {"hue": 0.1}, "colour_side": "A"}}, "Extra inputs"),
        ({"direction": "AtoB"}, "Extra inputs"),
        ({"cache_folder": "x"}, "'cache_folder' needs"),
    ],
)
def test_settings_that_contradict_are_refused(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        UnpairedSettings(**keys)
    assert caught.value.error_count() == 1 and named in str(caught.value)
