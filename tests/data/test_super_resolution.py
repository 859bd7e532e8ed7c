"""Images in two resolutions: what a sample is, from files and made; sizes that do not fit; the loader; the check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from translate.data import ImageDataset, SuperResolutionSettings
from translate.data.check import check
from translate.data.images import to_device
from translate.data.loader import evaluation_batches, training_batches
from translate.data.matlab import imresize
from translate.errors import ImageError, UserError

CPU = torch.device("cpu")
Pixels = np.ndarray


def picture(height: int, width: int, seed: int = 0, channels: int = 3, dtype: Any = np.uint8) -> Pixels:
    """Every pixel another: what is cut out tells where it stood."""
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype=dtype, endpoint=True)


def write(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    turned = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.shape[2] > 1 else pixels
    assert cv2.imwrite(str(path), turned)
    return path


def shrunk(pixels: Pixels, scale: int) -> Pixels:
    """(H, W, C) bytes by MATLAB's bytes, which tests/data/test_matlab.py holds to the truth."""
    height, width = (side // scale * scale for side in pixels.shape[:2])
    planes = torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None]
    return imresize(planes, 1 / scale, convention="uint8")[0].permute(1, 2, 0).numpy()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for number in range(5):
        write(tmp_path / "train" / f"{number}.png", picture(34 + number, 41, number))
    for number in range(2):
        write(tmp_path / "test" / f"{number}.png", picture(22, 31, 10 + number))
    return tmp_path


def settings(root: Path, crop: int | None = 16, **keys: Any) -> SuperResolutionSettings:
    return SuperResolutionSettings.model_validate(
        {"root": root, "validation": None, "augment": {"crop": crop}, "workers": 0, **keys}
    )


def opened(root: Path, split: Any = "train", **keys: Any) -> ImageDataset:
    dataset = settings(root, **keys).open(split, seed=4)
    assert dataset is not None
    return dataset


def take(dataset: ImageDataset, count: int, **keys: Any) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {"batch_size": 2, "seed": 4, "start": 0, "workers": 0, "device": CPU, **keys}
    with closing(training_batches(dataset, **arguments)) as batches:
        return [next(batches) for _ in range(count)]


def same(one: Sequence[dict[str, Any]], two: Sequence[dict[str, Any]]) -> bool:
    return len(one) == len(two) and all(
        a.keys() == b.keys()
        and a["name"] == b["name"]
        and all(torch.equal(a[side], b[side]) for side in "AB" if side in a)
        for a, b in zip(one, two, strict=True)
    )


# ------------------------------------------------------------------------------------------------- samples


def test_training_samples_are_crops_turned_and_mirrored(photographs: Path) -> None:
    """Each is one of the eight views of a square of its picture, at any place; the method makes the low resolution."""
    dataset = opened(photographs)
    places, views = set(), set()
    for position in range(120):
        sample = dataset[position % 5, position]
        assert set(sample) == {"B", "name"} and sample["B"].shape == (16, 16, 3)
        whole = picture(34 + position % 5, 41, position % 5)
        found = 0
        for view in range(8):
            square = np.rot90(sample["B"], -(view % 4))
            square = square[:, ::-1] if view >= 4 else square
            for top, left in np.argwhere((whole[:-15, :-15] == square[0, 0]).all(2)).tolist():
                if np.array_equal(whole[top : top + 16, left : left + 16], square):
                    places.add((top, left))
                    views.add(view)
                    found += 1
        assert found == 1
    assert len(views) == 8 and len(places) > 100  # of 26 columns and 19 rows and more
    assert {place % 4 for place, _ in places} == {0, 1, 2, 3}


@pytest.mark.parametrize("files", [False, True])
def test_validation_sees_the_middle(photographs: Path, files: bool) -> None:
    """On the grid of both resolutions; what is smaller stays whole, and a test split too."""
    wholes = [picture(22, 31, seed)[:20, :28] for seed in (10, 11)]
    for number, whole in enumerate(wholes):
        write(photographs / "low" / f"{number}.png", shrunk(whole, 4))
    keys: dict[str, Any] = {"validation": "test", "augment": {"crop": 16, "validation": 24}}
    if files:
        keys["low"] = "low"
    dataset = settings(photographs, None, **keys).open("validation", seed=0)
    assert dataset is not None
    middle = wholes[1][:, 0:24]  # 28 - 24 pixels are one of the low resolution: none on the left
    sample = dataset[1]
    assert np.array_equal(sample["B"], middle)
    expected = shrunk(wholes[1], 4)[:, :6] if files else shrunk(middle, 4)
    assert np.array_equal(sample["A"], expected)
    small = settings(photographs, None, **{**keys, "augment": {"crop": 16, "validation": 12}}).open("validation", 0)
    assert small is not None and np.array_equal(small[1]["B"], wholes[1][4:16, 8:20])
    if files:
        assert np.array_equal(small[1]["A"], shrunk(wholes[1], 4)[1:4, 2:5])
    test = settings(photographs, None, **keys).open("test", seed=0)
    assert test is not None and test[1]["B"].shape == (20, 28, 3)


def test_evaluation_has_whole_images_and_their_low_resolution(photographs: Path) -> None:
    sample = opened(photographs, "test")[1]
    whole = picture(22, 31, 11)[:20, :28]
    assert np.array_equal(sample["B"], whole)
    assert sample["A"].dtype == np.uint8 and np.array_equal(sample["A"], shrunk(whole, 4))


@pytest.mark.parametrize("ending", ["", "x4"])
def test_low_resolutions_from_files_stay_beside_the_high_ones(tmp_path: Path, ending: str) -> None:
    for number in range(3):
        high = picture(33, 42, number)
        write(tmp_path / "HR" / "deep" / f"{number}.png", high)
        low = high[1:33:4, 2:42:4]  # one pixel of each 4 x 4: what belongs together can be seen
        write(tmp_path / "LR" / "deep" / f"{number}{ending}.bmp", low)
    dataset = opened(tmp_path, high={"path": "HR"}, low="LR", test=None)
    for position in range(30):
        sample = dataset[position % 3, position]
        assert sample["A"].shape == (4, 4, 3) and sample["B"].shape == (16, 16, 3)
        assert sample["name"] == f"deep/{position % 3}"
        low = {tuple(pixel) for pixel in sample["A"].reshape(-1, 3).tolist()}
        high = {tuple(pixel) for pixel in sample["B"].reshape(-1, 3).tolist()}
        assert low <= high
        blocks = sample["B"].reshape(4, 4, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(4, 4, 16, 3)
        assert (blocks == sample["A"][:, :, None]).all(3).any(2).all()  # each in its own 4 x 4


def test_no_crop_takes_whole_images(photographs: Path) -> None:
    dataset = opened(photographs, crop=None, augment={"crop": None, "flip": False, "rotate": False})
    assert np.array_equal(dataset[2]["B"], picture(36, 41, 2)[:36, :40])
    with pytest.raises(UserError, match=r"set data\.augment\.crop"):
        take(dataset, 1, batch_size=5)


# ------------------------------------------------------------------------------------------------- chance


def test_evaluations_chance_follows_from_the_picture(photographs: Path) -> None:
    """Under another name, from threads that work side by side, and whatever else was drawn: the same pixels."""
    keys = {"degradation": {"kind": "second-order"}}
    first = opened(photographs, "test", **keys)
    before = torch.get_rng_state()
    expected = [first[number]["A"] for number in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.array_equal(expected[0], shrunk(first[0]["B"], 4))
    (photographs / "test" / "1.png").rename(photographs / "test" / "0 again.png")
    torch.rand(3)
    again = opened(photographs, "test", **keys)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: again[number % 2]["A"], range(16)))
    names = [again[number]["name"] for number in range(2)]
    wanted = dict(zip(["0", "0 again"], expected, strict=True))
    assert all(np.array_equal(pixels, wanted[names[number % 2]]) for number, pixels in enumerate(found))


# -------------------------------------------------------------------------------------------------- loader


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_caches_workers_and_resuming_change_nothing(photographs: Path, cache: str) -> None:
    folder = {"cache_folder": photographs / "cache"} if cache == "disk" else {}
    plain, cached = opened(photographs), opened(photographs, cache=cache, **folder)
    whole = take(plain, 6)
    assert same(take(cached, 6), whole)
    assert same(take(cached, 6, workers=2), whole)
    assert same(take(cached, 3, start=6, workers=1), whole[3:])
    keys: dict[str, Any] = {"degradation": {"kind": "second-order"}}
    expected = list(evaluation_batches(opened(photographs, "test", **keys), batch_size=2, workers=0, device=CPU))
    for workers in (0, 2):
        dataset = opened(photographs, "test", cache=cache, **folder, **keys)
        assert same(list(evaluation_batches(dataset, batch_size=2, workers=workers, device=CPU)), expected)


def test_deep_grey_and_transparent_files(tmp_path: Path) -> None:
    deep, grey, clear = picture(24, 24, 1, dtype=np.uint16), picture(24, 24, 2, 1), picture(24, 24, 3, 4)
    write(tmp_path / "test" / "1.png", deep)
    write(tmp_path / "test" / "2.png", grey)
    write(tmp_path / "test" / "3.png", clear)
    dataset = opened(tmp_path, "test", high={"background": [0, 0, 0]})
    first, second, third = (dataset[number] for number in range(3))
    assert np.array_equal(first["B"], deep) and first["A"].dtype == np.uint8
    eight = np.rint(deep / 257).astype(np.uint8)
    assert np.array_equal(first["A"], shrunk(eight, 4))
    assert np.array_equal(second["B"], grey.repeat(3, axis=2))
    over = np.rint(clear[..., :3] * (clear[..., 3:] / 255)).astype(np.int64)
    assert np.abs(third["B"] - over).max() <= 1
    as_grey = opened(tmp_path, "test", high={"channels": 1})[1]
    assert np.array_equal(as_grey["A"], shrunk(grey, 4))
    # Files of 8 and 16 bits in one batch.
    (batch,) = evaluation_batches(dataset, batch_size=3, workers=0, device=CPU)
    assert batch["B"].dtype == torch.uint16 and batch["A"].dtype == torch.uint8
    tensors = to_device(batch, dataset.specs, CPU)
    assert tensors["A"].shape == (3, 3, 6, 6) and tensors["B"].shape == (3, 3, 24, 24)
    torch.testing.assert_close(tensors["B"][1], torch.from_numpy(second["B"]).permute(2, 0, 1) / 127.5 - 1)


# -------------------------------------------------------------------------------------- what does not fit


def test_training_leaves_out_what_is_too_small_and_says_so(photographs: Path) -> None:
    """Even where most are; the count is told once, and whoever cannot be read waits for the reader."""
    for number in range(20):
        write(photographs / "train" / f"small{number}.png", picture(15, 40))
    (photographs / "train" / "broken.png").write_bytes(b"no picture")
    dataset = opened(photographs)
    assert len(dataset) == 6
    assert dataset.notes == [
        "20 of 26 images are smaller than the 16 pixels of a crop and left out (data.augment.crop)"
    ]
    batches = take(dataset, 9)
    assert {name for batch in batches for name in batch["name"]} <= set("01234")
    problems = {text for batch in batches for text in batch["problems"]}
    assert problems and all("broken.png: " in problem for problem in problems)
    assert opened(photographs, crop=None).notes == []


def test_all_too_small_ends_the_run(photographs: Path) -> None:
    with pytest.raises(UserError, match="5 of 5 images are smaller than the 64 pixels of a crop; lower") as caught:
        opened(photographs, crop=64)
    assert "\n" not in str(caught.value)


def test_a_low_resolution_of_another_size(tmp_path: Path) -> None:
    write(tmp_path / "HR" / "1.png", picture(33, 42))
    low = write(tmp_path / "LR" / "1.png", picture(8, 11))
    keys: dict[str, Any] = {"high": {"path": "HR"}, "low": "LR", "test": None}
    dataset = opened(tmp_path, **keys)
    with pytest.raises(UserError, match=r"is 11x8 pixels, expected 10x8: 1/4 of 42x33 \(data\.scale\)"):
        dataset[0]
    report = check(settings(tmp_path, **keys))
    assert [(problem.kind, problem.path) for problem in report.problems] == [("size", str(low))]


def test_evaluation_needs_a_pixel(tmp_path: Path) -> None:
    write(tmp_path / "test" / "1.png", picture(3, 40))
    with pytest.raises(ImageError, match=r"expected at least 4 along either side \(data\.scale\)"):
        opened(tmp_path, "test")[0]


def test_no_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as caught:
            opened(root)
        assert "\n" not in str(caught.value) and str(root) in str(caught.value)


def test_a_partner_is_missing(photographs: Path) -> None:
    write(photographs / "low" / "0.png", picture(8, 10))
    with pytest.raises(UserError, match=r"1\.png: no partner .*low/1\.\* or .*low/1x4\.\*"):
        opened(photographs, low="low", high={"path": "train"}, test=None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"high": {"kind": "labels", "classes": 3}}, "labels have no higher resolution"),
        ({"augment": {"crop": 18}}, "'augment.crop' is 18, no multiple of 'scale', which is 4"),
        ({"low": "LR", "degradation": {"kind": "second-order"}}, "leave one of the two out"),
        ({"high": {"channels": 4}, "degradation": {"kind": "second-order"}}, "must be 1 or 3, not 4"),
        ({"high": {"path": "."}, "validation": "val"}, "no path contains '{split}'"),
        ({"scale": 3}, "1, 2, 4 or 8"),
    ],
)
def test_settings_that_make_no_sense(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("{", r"\{").replace(".", r"\.")):
        SuperResolutionSettings.model_validate(keys)


# --------------------------------------------------------------------------------------------------- check


def test_the_check_of_photographs(photographs: Path) -> None:
    report = check(settings(photographs))
    assert report.problems == []
    assert {split: list(sides) for split, sides in report.statistics.items()} == {"train": ["B"], "test": ["B"]}
    side = report.statistics["train"]["B"]
    assert side["count"] == 5 and side["height"] == [34, 38] and side["width"] == [41, 41]


def test_the_check_names_what_is_too_small_to_train_on(photographs: Path) -> None:
    """For a crop of 36: two of the training pictures; those of the test split are not cropped."""
    report = check(settings(photographs, crop=36))
    names = [(problem.kind, Path(problem.path).name) for problem in report.problems]
    assert names == [("size", "0.png"), ("size", "1.png")]
    assert report.problems[0].text == "is 41x34 pixels, expected at least 36 along either side (data.augment.crop)"


def test_the_check_of_both_resolutions(tmp_path: Path) -> None:
    for number in range(2):
        high = picture(32, 40, number)
        write(tmp_path / "HR" / f"{number}.png", high)
        write(tmp_path / "LR" / f"{number}x4.png", shrunk(high, 4))
    report = check(settings(tmp_path, high={"path": "HR"}, low="LR", test=None))
    assert report.problems == []
    assert report.statistics["train"]["A"]["width"] == [10, 10]
    assert report.statistics["train"]["B"]["width"] == [40, 40]


def test_unreadable_files_are_told_once(photographs: Path, save: Callable[..., Path]) -> None:
    save("train/bad.png", b"no picture")
    report = check(settings(photographs))
    assert [(problem.kind, Path(problem.path).name) for problem in report.problems] == [("unreadable", "bad.png")]
