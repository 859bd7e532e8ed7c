"""The embedded data set: same arguments, same pixels; labels and pictures fit; splits share nothing."""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from translate.data.synthetic import (
    PALETTE,
    SILL,
    SKY,
    WALL,
    WINDOW,
    Scene,
    draw,
    make_paired,
    make_unpaired,
    scene_count,
)
from translate.errors import UserError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw(index, size=64) for index in range(40)]


def test_same_arguments_same_pixels_and_others_differ() -> None:
    first = draw(5, size=48, seed=3)
    for one, other in zip(first, draw(5, size=48, seed=3), strict=True):
        np.testing.assert_array_equal(one, other)
    for other in (draw(6, size=48, seed=3), draw(5, size=48, seed=4)):
        assert (first.labels != other.labels).any()
        assert (first.picture != other.picture).any()


@pytest.mark.parametrize("size", [32, 33, 64, 100, 257])
@pytest.mark.parametrize("time", ["day", "night"])
def test_any_size(size: int, time: str) -> None:
    for index in range(4):
        scene = draw(index, size=size, time=time)
        assert scene.labels.shape == (size, size)
        assert scene.label_colours.shape == scene.picture.shape == (size, size, 3)
        assert {pixels.dtype for pixels in scene} == {np.dtype(np.uint8)}


def test_label_colours_are_the_palette(scenes: list[Scene]) -> None:
    palette = np.array(list(PALETTE.values()))
    # Far enough apart that a copy which is 20 levels off (JPEG) still finds its nearest colour.
    assert min(np.linalg.norm(a - b) for a, b in combinations(palette, 2)) > 40
    for scene in scenes[:5]:
        np.testing.assert_array_equal(palette[scene.labels], scene.label_colours)


def test_every_class_is_drawn_and_every_building_has_a_wall(scenes: list[Scene]) -> None:
    counts = np.stack([np.bincount(scene.labels.ravel(), minlength=len(PALETTE)) for scene in scenes])
    assert (counts.sum(axis=0) > 0).all()
    for needed in ("sky", "wall", "window", "door", "roof", "cornice", "ground"):
        assert (counts[:, list(PALETTE).index(needed)] > 0).all(), needed


def test_another_size_is_the_same_building() -> None:
    small = [draw(index, size=64) for index in range(6)]
    for index, scene in enumerate(small):
        large = draw(index, size=256)
        assert (scene.labels == large.labels[2::4, 2::4]).mean() > 0.9
        averaged = large.picture.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        distances = [np.abs(averaged - other.picture).mean() for other in small]
        assert distances[index] < 0.7 * min(distances[:index] + distances[index + 1 :])


def test_night_is_the_same_building_in_the_dark_with_lit_windows() -> None:
    shining = 0
    for index in range(8):
        day, night = draw(index, size=96), draw(index, size=96, time="night")
        np.testing.assert_array_equal(day.labels, night.labels)
        wall, window = day.labels == WALL, day.labels == WINDOW
        assert night.picture[wall].mean() < 0.5 * day.picture[wall].mean()
        shining += int((night.picture[window].max(axis=1) > 180).sum())
        assert night.picture[day.labels == SKY].mean() < 70
    assert shining > 200


def test_the_light_comes_from_above() -> None:
    """A sill throws its shadow on the wall below it: that is darker than the scene's other wall."""
    measured = 0
    for index in range(12):
        scene = draw(index, size=256)
        below = np.zeros_like(scene.labels, bool)
        below[2:] = (scene.labels == SILL)[:-2]
        below &= scene.labels == WALL
        if below.sum() < 50:  # its sills stand on another ornament
            continue
        brightness = scene.picture.mean(axis=2)
        assert brightness[below].mean() < 0.85 * np.median(brightness[scene.labels == WALL])
        measured += 1
    assert measured >= 6


def test_the_picture_can_be_told_from_the_labels(scenes: list[Scene]) -> None:
    """The mean colour of each class, from 30 scenes, explains most of the variance of 10 others."""
    train, held_out = scenes[:30], scenes[30:]
    labels = np.concatenate([scene.labels.ravel() for scene in train])
    pixels = np.concatenate([scene.picture.reshape(-1, 3) for scene in train]).astype(np.float64)
    means = np.stack([pixels[labels == number].mean(axis=0) for number in range(len(PALETTE))])
    truth = np.stack([scene.picture for scene in held_out]).astype(np.float64)
    guess = np.stack([means[scene.labels] for scene in held_out])
    unexplained = ((truth - guess) ** 2).mean() / ((truth - pixels.mean(axis=0)) ** 2).mean()
    assert unexplained < 0.6
    assert unexplained > 0.05  # and yet there is something left to learn


def test_bad_arguments_are_told() -> None:
    with pytest.raises(UserError, match="size: expected at least 32"):
        draw(0, size=31)
    with pytest.raises(UserError, match="seed"):
        draw(0, seed=-1)
    with pytest.raises(UserError, match="index"):
        draw(-1)
    with pytest.raises(UserError, match="count: expected a number from 1, not 0"):
        scene_count(0)
    with pytest.raises(UserError, match="test: expected a number from 0"):
        scene_count(5, test=-1)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def digests(folder: Path) -> set[str]:
    return {hashlib.sha256(read(path).tobytes()).hexdigest() for path in folder.iterdir()}


def test_make_paired_writes_what_draw_draws(tmp_path: Path) -> None:
    out, seen = tmp_path / "deep" / "facades", []
    made = make_paired(out, count=5, validation=2, test=3, size=32, seed=9, progress=seen.append)
    assert made == {"train": 5, "val": 2, "test": 3}
    assert seen == list(range(1, 11))
    numbers = [int(path.stem) for split in made for path in sorted((out / split / "A").iterdir())]
    assert numbers == list(range(10))  # no scene is in two splits
    for split in made:
        for path in (out / split / "A").iterdir():
            scene = draw(int(path.stem), size=32, seed=9)
            np.testing.assert_array_equal(read(path), scene.label_colours)
            np.testing.assert_array_equal(read(out / split / "B" / path.name), scene.picture)
    described = yaml.safe_load((out / "dataset.yaml").read_text())
    assert described["seed"] == 9
    assert list(described["classes"]) == list(PALETTE)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_a_tenth_is_held_out_by_default(tmp_path: Path) -> None:
    assert make_paired(tmp_path / "a", count=10, size=32) == {"train": 10, "val": 1, "test": 1}
    assert scene_count(400) == 480
    assert make_paired(tmp_path / "b", count=2, size=32, validation=0, test=0) == {
        "train": 2,
        "val": 0,
        "test": 0,
    }


def test_labels_as_indices(tmp_path: Path) -> None:
    make_paired(tmp_path / "set", count=1, size=32, labels="indices")
    indices = read(tmp_path / "set" / "train" / "A" / "00000.png")
    np.testing.assert_array_equal(indices, draw(0, size=32).labels)


def test_a_stopped_run_is_continued(tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_paired(out, count=4, size=32)
    kept, lost = out / "train" / "B" / "00001.png", out / "train" / "A" / "00002.png"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    make_paired(out, count=4, size=32)
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == before


def test_a_folder_made_otherwise_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "set"
    make_paired(out, count=2, size=32)
    with pytest.raises(UserError, match=r"dataset.yaml: .* another size \(32, now 40\)"):
        make_paired(out, count=2, size=40)
    with pytest.raises(UserError, match="another generator"):
        make_unpaired(out, count=2, size=32)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty"):
        make_paired(foreign, count=2, size=32)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="cannot be written"):
        make_paired(foreign / "thesis.tex" / "set", count=2, size=32)


def test_make_unpaired_shares_no_scene_between_sides_or_splits(tmp_path: Path) -> None:
    out = tmp_path / "set"
    made = make_unpaired(out, count=4, validation=1, test=2, size=32)
    assert made == {"train": 4, "val": 1, "test": 2}
    folders = [out / split / side for split in made for side in "AB"]
    names = [path.name for folder in folders for path in folder.iterdir()]
    assert len(names) == len(set(names)) == 14
    assert len(set.union(*(digests(folder) for folder in folders))) == 14
    number = sorted((out / "test" / "B").iterdir())[0]
    np.testing.assert_array_equal(read(number), draw(int(number.stem), size=32, time="night").picture)
