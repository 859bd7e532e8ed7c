"""The data sets a config opens: layouts, splits, bad files, settings that contradict each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from translate.data import DataSettings, FolderSettings, PairedSettings
from translate.data.images import to_device
from translate.data.loader import collate
from translate.errors import ImageError, UserError

NO_AUGMENT: dict[str, Any] = {"resize": None, "crop": None, "flip": False}


def write(path: Path, value: int, size: tuple[int, int] = (16, 16)) -> None:
    """A PNG of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def pairs(root: Path, count: int = 6, split: str = "train") -> None:
    """Pair number n has the value n in A and 100 + n in B."""
    for number in range(count):
        write(root / split / "A" / f"{number:03}.png", number)
        write(root / split / "B" / f"{number:03}.png", 100 + number)


def settings(root: Path, **keys: Any) -> PairedSettings:
    return PairedSettings(**{"root": root, "augment": NO_AUGMENT, "validation": None, **keys})


def values(sample: dict[str, Any]) -> tuple[int, int]:
    return int(sample["A"][0, 0, 0]), int(sample["B"][0, 0, 0])


def test_two_folders(tmp_path: Path) -> None:
    pairs(tmp_path)
    dataset = settings(tmp_path).open("train", seed=0)
    assert dataset is not None and len(dataset) == 6
    for index in range(6):
        sample = dataset[index, 50 + index]
        assert sample["name"] == f"{index:03}"
        assert values(sample) == (index, 100 + index)
        assert sample["A"].shape == (16, 16, 3) and sample["A"].dtype == np.uint8


def test_side_by_side_halves(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    picture = np.hstack([np.full((8, 10, 3), 40, np.uint8), np.full((8, 10, 3), 90, np.uint8)])
    cv2.imwrite(str(tmp_path / "train" / "1.png"), picture)
    dataset = settings(tmp_path, layout="side-by-side").open("train", seed=0)
    assert dataset is not None
    assert values(dataset[0, 0]) == (40, 90)
    assert dataset[0, 0]["B"].shape == (8, 10, 3)


def test_side_by_side_of_a_label_map_and_a_picture(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:2, :4] = (0, 0, 255)  # BGR: red above, black below; the right half is grey
    picture[:, 4:] = 77
    cv2.imwrite(str(tmp_path / "train" / "1.png"), picture)
    side = {"kind": "labels", "palette": [(0, 0, 0), (255, 0, 0)]}
    dataset = settings(tmp_path, layout="side-by-side", A=side).open("train", seed=0)
    assert dataset is not None
    sample = dataset[0, 0]
    assert sample["A"][..., 0].tolist() == [[1] * 4] * 2 + [[0] * 4] * 2
    assert (sample["B"] == 77).all()


def test_an_odd_side_by_side_width_is_an_image_error(tmp_path: Path) -> None:
    write(tmp_path / "test" / "1.png", 0, (8, 9))
    dataset = settings(tmp_path, layout="side-by-side").open("test", seed=0)
    assert dataset is not None
    with pytest.raises(ImageError, match="9 pixels wide"):
        dataset[0]


def test_manifest(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.png", 1)
    write(tmp_path / "b.png", 2)
    (tmp_path / "train.csv").write_text("A,B\nx/a.png,b.png\n")
    dataset = settings(tmp_path, layout="manifest").open("train", seed=0)
    assert dataset is not None
    assert dataset[0, 0]["name"] == "x/a" and values(dataset[0, 0]) == (1, 2)


def test_paths_of_ones_own_and_absolute_ones(tmp_path: Path) -> None:
    write(tmp_path / "flat" / "1.png", 3)
    write(tmp_path / "else" / "solid" / "1.png", 4)
    config = settings(tmp_path, A={"path": "flat"}, B={"path": str(tmp_path / "else" / "solid")})
    dataset = config.open("train", seed=0)
    assert dataset is not None and values(dataset[0, 0]) == (3, 4)
    assert config.open("test", seed=0) is None  # no path depends on the split: all images are for training


def test_direction_names_source_and_target(tmp_path: Path) -> None:
    forward, backward = settings(tmp_path), settings(tmp_path, direction="BtoA")
    assert (forward.source, forward.target) == ("A", "B")
    assert (backward.source, backward.target) == ("B", "A")
    assert list(forward.specs()) == ["A", "B"]


def test_absent_splits(tmp_path: Path) -> None:
    pairs(tmp_path)
    config = settings(tmp_path, validation="val")
    assert config.open("validation", seed=0) is None
    assert config.open("test", seed=0) is None
    assert config.pairing("test").items == []
    with pytest.raises(UserError, match="there is no such folder"):
        settings(tmp_path, train="training").open("train", seed=0)


def test_a_share_of_training_is_held_out(tmp_path: Path) -> None:
    pairs(tmp_path, count=40)
    config = settings(tmp_path, validation=0.25)
    train, validation = config.open("train", seed=0), config.open("validation", seed=0)
    assert train is not None and validation is not None
    names = {item.name for item in train.items}, {item.name for item in validation.items}
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40
    assert 3 <= len(names[1]) <= 20


def test_missing_partners_are_refused_or_skipped(tmp_path: Path) -> None:
    pairs(tmp_path)
    for number in range(5):
        write(tmp_path / "train" / "A" / f"alone{number}.png", 0)
    with pytest.raises(UserError) as caught:
        settings(tmp_path).open("train", seed=0)
    text = str(caught.value)
    assert "alone0" in text and "alone4" not in text and "and 2 more" in text and "\n" not in text
    assert "translate data check" in text and "missing: skip" in text
    dataset = settings(tmp_path, missing="skip").open("train", seed=0)
    assert dataset is not None and len(dataset) == 6


def test_names_that_stand_twice_are_refused_even_when_skipping(tmp_path: Path) -> None:
    pairs(tmp_path)
    write(tmp_path / "train" / "A" / "000.bmp", 0)
    with pytest.raises(UserError, match="same name"):
        settings(tmp_path, missing="skip").open("train", seed=0)


def test_no_name_in_common(tmp_path: Path) -> None:
    write(tmp_path / "train" / "A" / "1.png", 0)
    write(tmp_path / "train" / "B" / "2.png", 0)
    with pytest.raises(UserError, match="no name in common"):
        settings(tmp_path, missing="skip").open("train", seed=0)


def test_two_sizes_in_a_pair(tmp_path: Path) -> None:
    write(tmp_path / "test" / "A" / "1.png", 10, (20, 30))
    write(tmp_path / "test" / "B" / "1.png", 20, (10, 15))
    dataset = settings(tmp_path).open("test", seed=0)
    assert dataset is not None
    with pytest.raises(ImageError, match=r"15x10 .* 30x20.*match_sizes"):
        dataset[0]
    matched = settings(tmp_path, match_sizes=True).open("test", seed=0)
    assert matched is not None
    assert matched[0]["B"].shape == (20, 30, 3) and values(matched[0]) == (10, 20)


def test_an_unreadable_file_is_replaced_in_training_and_told(tmp_path: Path) -> None:
    pairs(tmp_path, count=8)
    (tmp_path / "train" / "B" / "003.png").write_bytes(b"")
    dataset = settings(tmp_path).open("train", seed=1)
    assert dataset is not None
    sample = dataset[3, 3]
    assert "003.png" in sample["problem"] and sample["name"] != "003"
    a, b = values(sample)
    assert b == a + 100 and sample["name"] == f"{a:03}"
    assert dataset[3, 3]["name"] == sample["name"]
    assert len({dataset[3, position]["name"] for position in range(40)}) > 3
    assert "problem" not in dataset[2, 3]


def test_three_unreadable_files_in_a_row_stop_training(tmp_path: Path) -> None:
    pairs(tmp_path, count=3)
    for path in (tmp_path / "train" / "A").iterdir():
        path.write_bytes(b"no image")
    dataset = settings(tmp_path).open("train", seed=0)
    assert dataset is not None
    with pytest.raises(UserError, match="3 unreadable images in a row") as caught:
        dataset[0, 0]
    assert "\n" not in str(caught.value)


def test_augmentation_depends_on_seed_and_position_alone(tmp_path: Path) -> None:
    path = tmp_path / "train"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for side in ("A", "B"):
        (path / side).mkdir(parents=True)
        cv2.imwrite(str(path / side / "1.png"), noise)
    augment = {"resize": 40, "crop": 16}
    one, two = (settings(tmp_path, augment=augment).open("train", seed=seed) for seed in (1, 2))
    assert one is not None and two is not None
    np.testing.assert_array_equal(one[0, 5]["A"], one[0, 5]["B"])
    np.testing.assert_array_equal(one[0, 5]["A"], one[0, 5]["A"])
    assert (one[0, 5]["A"] != one[0, 6]["A"]).any()
    assert (one[0, 5]["A"] != two[0, 5]["A"]).any()


def test_a_single_folder(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / "train" / "sub" / f"{number}.png", number)
    config = FolderSettings(root=tmp_path, validation=None, augment=NO_AUGMENT, image={"channels": 1})
    dataset = config.open("train", seed=0)
    assert dataset is not None
    sample = dataset[4, 0]
    assert sample["name"] == "sub/4" and sample["image"].shape == (16, 16, 1) and (sample["image"] == 4).all()
    assert config.open("test", seed=0) is None


def class_folders(root: Path, split: str = "train", **counts: int) -> None:
    """Images of the class number c are named n.png and have the value 20 c + n."""
    for number, (name, count) in enumerate(counts.items()):
        for image in range(count):
            write(root / split / name.replace("_", " ") / f"{image:02}.png", 20 * number + image)


def labelled(root: Path, **keys: Any) -> FolderSettings:
    return FolderSettings(**{"root": root, "augment": NO_AUGMENT, "validation": None, "classes": "folders", **keys})


def test_class_folders_are_labels(tmp_path: Path) -> None:
    class_folders(tmp_path, cat=2, dog=3, lap_dog=1)
    (tmp_path / "train" / ".thumbnails").mkdir()
    config = labelled(tmp_path).resolved()
    assert config.classes == ["cat", "dog", "lap dog"] and config.class_names == ("cat", "dog", "lap dog")
    assert config.resolved() is config
    assert FolderSettings.model_validate(config.model_dump(mode="json")) == config
    dataset = config.open("train", seed=0)
    assert dataset is not None and len(dataset) == 6
    for index in range(6):
        sample = dataset[index, index + 7]
        assert sample["name"].split("/")[0] == config.class_names[sample["label"]]
        assert sample["image"][0, 0, 0] // 20 == sample["label"]
    # Another order of the same folders, other numbers; and no labels without classes.
    turned = labelled(tmp_path, classes=["lap dog", "dog", "cat"]).open("train", seed=0)
    assert turned is not None and [turned[i, 0]["label"] for i in range(6)] == [2, 2, 1, 1, 1, 0]
    plain = labelled(tmp_path, classes=None)
    assert plain.class_names == () and plain.resolved() is plain
    unlabelled = plain.open("train", seed=0)
    assert unlabelled is not None and "label" not in unlabelled[0, 0]


def test_classes_are_in_natural_order_and_stay_when_folders_come(tmp_path: Path) -> None:
    class_folders(tmp_path, **{str(number): 1 for number in range(12)})
    config = labelled(tmp_path).resolved()
    assert config.class_names == tuple(str(number) for number in range(12))
    write(tmp_path / "train" / "00" / "1.png", 0)
    with pytest.raises(UserError, match=r"data, train: .*00: 1 image in a folder that is no class of data\.classes"):
        config.open("train", seed=0)


def test_labels_of_the_other_splits(tmp_path: Path) -> None:
    class_folders(tmp_path, cat=20, dog=20)
    class_folders(tmp_path, "test", cat=1, dog=2)
    config = labelled(tmp_path, validation=0.3).resolved()
    opened = {split: config.open(split, seed=0) for split in ("train", "validation", "test")}
    names: dict[str, set[str]] = {}
    for split, dataset in opened.items():
        assert dataset is not None
        samples = [dataset[index] for index in range(len(dataset))]
        names[split] = {sample["name"] for sample in samples}
        assert all(sample["label"] == int(sample["name"].startswith("dog")) for sample in samples)
    assert len(names["train"]) + len(names["validation"]) == 40 and not names["train"] & names["validation"]
    assert names["test"] == {"cat/00", "dog/00", "dog/01"}


def test_a_stand_in_brings_its_own_label(tmp_path: Path) -> None:
    class_folders(tmp_path, cat=1, dog=8)
    (tmp_path / "train" / "cat" / "00.png").write_bytes(b"")
    dataset = labelled(tmp_path).resolved().open("train", seed=0)
    assert dataset is not None
    replaced = [sample for position in range(10) if "problem" in (sample := dataset[0, position])]
    assert replaced and all(sample["label"] == 1 and sample["name"][:4] == "dog/" for sample in replaced)


def test_folders_that_are_not_the_classes_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, cat=2, dog=1)
    config = labelled(tmp_path).resolved()
    class_folders(tmp_path, "test", cat=1, bird=2)
    test = tmp_path / "test"
    write(test / "stray.png", 0)
    found = {(problem.kind, problem.path, problem.text) for problem in config.pairing("test").problems}
    assert found == {
        ("class", str(test / "bird"), "2 images in a folder that is no class of data.classes"),
        ("class", str(test), "1 image beside the class folders, not in one"),
        ("class", str(test / "dog"), "no image of the class 'dog'"),
    }
    assert [item.name for item in config.pairing("test").items] == ["cat/00"]
    with pytest.raises(UserError, match=r"data, test: .*bird: 2 images.*data check") as caught:
        config.open("test", seed=0)
    assert "\n" not in str(caught.value)


def test_classes_that_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.classes"):
        labelled(tmp_path).class_names  # noqa: B018  (looking is what raises)
    with pytest.raises(UserError, match="train: the folder cannot be read"):
        labelled(tmp_path).resolved()
    write(tmp_path / "train" / "1.png", 0)
    with pytest.raises(UserError, match=r"train: holds no folder; 'data\.classes: folders' expects one for each class"):
        labelled(tmp_path).resolved()


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ("names", "expected null, 'folders' or a list of folders' names, not 'names'"),
        ([], "expected null, 'folders' or a list"),
        ([True], "expected null, 'folders' or a list"),
        (["a", "a"], "'a' stands twice"),
        (["a/b"], "'a/b' is no name of a visible folder"),
        ([".."], "'..' is no name of a visible folder"),
        ([""], "'' is no name of a visible folder"),
    ],
)
def test_classes_that_are_no_folders(classes: Any, named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        FolderSettings(classes=classes)
    assert caught.value.error_count() == 1 and named in str(caught.value)


def test_digits_may_be_written_as_numbers() -> None:
    assert FolderSettings(classes=[0, 1, "2"]).class_names == ("0", "1", "2")


def test_the_shape_is_what_training_gives(tmp_path: Path) -> None:
    write(tmp_path / "train" / "1.png", 200, (28, 28))
    augments: list[dict[str, Any]] = [
        {"resize": 32, "crop": 32, "flip": False},  # MNIST
        {"resize": 20, "crop": 16},
        {"resize": 24, "crop": None},
        {"resize": None, "crop": 40, "resize_by": "shorter"},
    ]
    for augment in augments:
        config = FolderSettings(root=tmp_path, validation=None, image={"channels": 1}, augment=augment)
        dataset = config.open("train", seed=0)
        assert dataset is not None
        image = to_device(collate([dataset[0, 3]], config.specs()), config.specs(), "cpu")["image"]
        assert config.shape() == tuple(image.shape[1:])
        torch.testing.assert_close(image, torch.full_like(image, 200 / 127.5 - 1))
    for augment in (NO_AUGMENT, {"resize": 24, "crop": None, "resize_by": "shorter"}):
        with pytest.raises(UserError, match=r"data\.augment\.crop: .*set it"):
            FolderSettings(augment=augment).shape()


def test_the_kind_chooses_the_settings() -> None:
    adapter = TypeAdapter(DataSettings)
    assert isinstance(adapter.validate_python({"kind": "paired"}), PairedSettings)
    folder = adapter.validate_python({"kind": "folder", "root": "x"})
    assert isinstance(folder, FolderSettings)
    assert adapter.validate_python(folder.model_dump(mode="json")) == folder


def test_the_resolved_settings_can_be_read_again() -> None:
    config = PairedSettings(layout="side-by-side", A={"kind": "labels", "classes": 3}, direction="BtoA")
    assert PairedSettings.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"path": "x"}, "'path' is not used"),
        ({"layout": "manifest", "A": {"path": "x"}}, "'A.path' is not used"),
        ({"layout": "side-by-side", "match_sizes": True}, "'match_sizes' has no use"),
        ({"layout": "side-by-side", "missing": "skip"}, "'missing' has no use"),
        ({"cache_folder": "x"}, "'cache_folder' needs"),
        ({"A": {"path": "a"}, "B": {"path": "b"}, "validation": "val"}, "no path contains '{split}'"),
        ({"A": {"kind": "labels", "classes": 3}, "augment": {"colour": {"hue": 0.1}}}, "holds labels"),
        ({"A": {"channels": 7}, "augment": {"colour": {"hue": 0.1}}}, "1 to 4 channels"),
        ({"augment": {"colour_side": "A"}}, "'colour_side' needs 'colour'"),
        ({"validation": 1.5}, "less than 1"),
        ({"workers": -1}, "greater than or equal to 0"),
        ({"colour": {}}, "Extra inputs"),
    ],
)
def test_settings_that_do_nothing_or_contradict_are_refused(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PairedSettings(**keys)
    assert named in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every folder")
def test_an_unreadable_folder_is_one_line(tmp_path: Path) -> None:
    pairs(tmp_path)
    (tmp_path / "train" / "B").chmod(0)
    try:
        with pytest.raises(UserError, match="cannot be read"):
            settings(tmp_path).open("train", seed=0)
    finally:
        (tmp_path / "train" / "B").chmod(0o755)
