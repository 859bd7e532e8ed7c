"""The report on a data set, each finding planted beforehand and the numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from translate.data import FolderSettings, PairedSettings, ToySettings, UnpairedSettings
from translate.data.check import check


@pytest.fixture
def settings(save, tmp_path, rng):
    def picture(height=8, width=6):
        return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)

    for number in range(4):
        save(f"train/A/{number}.png", picture())
        save(f"train/B/{number}.png", picture())
    for number in range(2):
        save(f"test/A/{number}.png", picture())
        save(f"test/B/{number}.png", picture())
    return PairedSettings(root=tmp_path, validation=None)


def kinds(report):
    return sorted((problem.kind, problem.path) for problem in report.problems)


def test_a_sound_data_set(settings, tmp_path):
    calls = []
    report = check(settings, progress=lambda done, total: calls.append((done, total)))
    assert report.problems == []
    assert calls == [(done, 6) for done in range(1, 7)]
    stacked = np.stack([np.array(Image.open(path)) for path in sorted((tmp_path / "train" / "A").iterdir())]) / 255
    side = report.statistics["train"]["A"]
    assert side["count"] == 4 and side["width"] == [6, 6] and side["height"] == [8, 8]
    assert side["dtypes"] == {"uint8": 4} and side["channels"] == {"3": 4} and side["formats"] == {"png": 4}
    assert side["mean"] == pytest.approx(stacked.mean(axis=(0, 1, 2)), abs=1e-9)
    assert side["std"] == pytest.approx(stacked.std(axis=(0, 1, 2)), abs=1e-9)
    assert set(report.statistics) == {"train", "test"}


def test_planted_problems(settings, save, tmp_path, rng):
    train = tmp_path / "train"
    (train / "B" / "0.png").unlink()  # missing partner
    save("train/B/1.png", rng.integers(0, 256, (9, 6, 3)).astype(np.uint8))  # another size
    (train / "A" / "2.png").write_bytes(b"not an image at all")  # unreadable
    (train / "A" / "7.png").write_bytes((train / "A" / "3.png").read_bytes())  # the same sample twice
    (train / "B" / "7.png").write_bytes((train / "B" / "3.png").read_bytes())
    # The same pixels in another format and in another split.
    with Image.open(train / "A" / "1.png") as image:
        image.save(tmp_path / "test" / "A" / "1.bmp")
    (tmp_path / "test" / "A" / "1.png").unlink()
    report = check(settings)
    assert kinds(report) == sorted(
        [
            ("missing", str(train / "A" / "0.png")),
            ("size", str(train / "A" / "1.png")),
            ("unreadable", str(train / "A" / "2.png")),
            ("repeated", str(train / "A" / "7.png")),
            ("leak", str(tmp_path / "test" / "A" / "1.bmp")),
        ]
    )
    text = {problem.kind: problem.text for problem in report.problems}
    assert "A 6x8, B 6x9" in text["size"]
    assert str(train / "A" / "1.png") in text["leak"]
    assert report.statistics["train"]["A"]["count"] == 3 and report.statistics["train"]["B"]["count"] == 4


def test_sizes_may_differ_where_they_are_matched(settings, save, rng):
    save("train/B/1.png", rng.integers(0, 256, (9, 6, 3)).astype(np.uint8))
    assert [problem.kind for problem in check(settings).problems] == ["size"]
    assert check(settings.model_copy(update={"match_sizes": True})).problems == []


def test_blank_pictures_are_no_leak(settings, save):
    for split in ("train", "test"):
        save(f"{split}/A/0.png", np.full((8, 6, 3), 9, np.uint8))
    assert check(settings).problems == []


def test_shares_of_classes(save, tmp_path):
    save("train/0.png", np.array([[0, 0, 1, 2]], np.uint8))
    save("train/1.png", np.array([[2, 2], [2, 1]], np.uint8))
    settings = FolderSettings(root=tmp_path, image={"kind": "labels", "classes": 4}, validation=None)
    report = check(settings)
    assert report.problems == []
    assert report.statistics["train"]["image"]["shares"] == [2 / 8, 2 / 8, 4 / 8, 0]
    save("train/2.png", np.array([[9]], np.uint8))
    assert "class number 9" in check(settings).problems[0].text


def test_side_by_side(save, tmp_path, rng):
    whole = rng.integers(0, 256, (6, 16, 3)).astype(np.uint8)
    save("train/0.png", whole)
    save("train/1.png", whole[:, :15])
    report = check(PairedSettings(root=tmp_path, layout="side-by-side", validation=None))
    assert [(problem.kind, problem.text) for problem in report.problems] == [
        ("size", "is 15 pixels wide; a side-by-side pair has an even width")
    ]
    train = report.statistics["train"]
    assert train["A"]["mean"] == pytest.approx(whole[:, :8].mean(axis=(0, 1)) / 255)
    assert train["B"]["mean"] == pytest.approx(whole[:, 8:].mean(axis=(0, 1)) / 255)
    assert train["A"]["width"] == [8, 8]


def test_class_folders(save, tmp_path, rng):
    for split, name, count in (("train", "cat", 3), ("train", "dog", 2), ("test", "cat", 1), ("test", "eel", 2)):
        for number in range(count):
            save(f"{split}/{name}/{number}.png", rng.integers(0, 256, (5, 5, 3)).astype(np.uint8))
    (tmp_path / "train" / "dog" / "0.png").write_bytes(b"not an image")
    report = check(FolderSettings(root=tmp_path, validation=None, classes="folders"))
    assert report.statistics["train"]["image"]["classes"] == {"cat": 3, "dog": 1}
    assert report.statistics["test"]["image"]["classes"] == {"cat": 1, "dog": 0}
    assert kinds(report) == sorted(
        [
            ("unreadable", str(tmp_path / "train" / "dog" / "0.png")),
            ("class", str(tmp_path / "test" / "eel")),
            ("class", str(tmp_path / "test" / "dog")),
        ]
    )
    plain = check(FolderSettings(root=tmp_path, validation=None))
    assert "classes" not in plain.statistics["train"]["image"]


def test_toy_points():
    report = check(ToySettings(layout="ring8", samples=20_000))
    assert report.problems == []
    assert {split: values["point"]["count"] for split, values in report.statistics.items()} == {
        "train": 20_000,
        "validation": 2_000,
        "test": 2_000,
    }
    values = report.statistics["train"]["point"]
    assert (values["layout"], values["modes"], values["deviation"]) == ("ring8", 8, 0.01)
    # On a circle of radius 1 each coordinate has the variance 1/2, and 0.01 squared of the modes' own.
    assert values["std"] == pytest.approx([0.5**0.5] * 2, abs=0.01)
    assert values["mean"] == pytest.approx([0, 0], abs=5 * 0.5**0.5 / 20_000**0.5)


@pytest.fixture
def unpaired(save, tmp_path, rng):
    for split, side, count in (("train", "A", 3), ("train", "B", 5), ("test", "B", 2)):
        for number in range(count):
            save(f"{split}/{side}/{number}.png", rng.integers(0, 256, (8, 6, 3)).astype(np.uint8))
    return UnpairedSettings(root=tmp_path, validation=None)


def test_unpaired_sides_are_looked_at_each_by_itself(unpaired, save, rng):
    save("train/B/4.png", rng.integers(0, 256, (9, 7, 3)).astype(np.uint8))
    calls = []
    report = check(unpaired, progress=lambda done, total: calls.append((done, total)))
    assert report.problems == []  # neither a missing partner nor two sizes
    assert calls == [(done, 10) for done in range(1, 11)]
    counts = {split: {side: one["count"] for side, one in sides.items()} for split, sides in report.statistics.items()}
    assert counts == {"train": {"A": 3, "B": 5}, "test": {"A": 0, "B": 2}}
    assert report.statistics["train"]["A"]["height"] == [8, 8]
    assert report.statistics["train"]["B"]["height"] == [8, 9]


def test_planted_problems_of_unpaired_data(unpaired, save, tmp_path):
    train, test = tmp_path / "train", tmp_path / "test"
    (train / "B" / "0.png").write_bytes((train / "A" / "1.png").read_bytes())  # on both sides
    (test / "B" / "0.png").write_bytes((train / "B" / "3.png").read_bytes())  # in two splits
    (test / "B" / "1.png").write_bytes((train / "A" / "0.png").read_bytes())  # on the other side, in another split
    (train / "A" / "9.png").write_bytes((train / "A" / "2.png").read_bytes())  # twice
    (train / "B" / "1.png").write_bytes(b"not an image")
    for side in "AB":
        save(f"train/{side}/blank.png", np.full((8, 6, 3), 9, np.uint8))  # proves nothing
    report = check(unpaired)
    assert kinds(report) == sorted(
        [
            ("shared", str(train / "B" / "0.png")),
            ("leak", str(test / "B" / "0.png")),
            ("shared", str(test / "B" / "1.png")),
            ("repeated", str(train / "A" / "9.png")),
            ("unreadable", str(train / "B" / "1.png")),
        ]
    )
    (text,) = [problem.text for problem in report.problems if problem.path == str(train / "B" / "0.png")]
    assert text == f"the same picture on both sides: {train / 'A' / '1.png'} of side A has the same pixels"


def test_equal_sides_of_a_pair_are_no_problem(settings, tmp_path):
    train = tmp_path / "train"
    (train / "B" / "0.png").write_bytes((train / "A" / "0.png").read_bytes())
    assert check(settings).problems == []
