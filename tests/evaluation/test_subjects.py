"""What is measured of runs: the same as of the folders they make; baselines, pictures, samples, points, tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from measured import (
    COLOURS,
    CYCLEGAN,
    GAN,
    PAIRS,
    PIX2PIX,
    UNPAIRED,
    Array,
    by_image,
    colours,
    export,
    frechet,
    luma,
    measured,
    noisy,
    pair,
    read,
    segmentation,
    smooth,
    tree,
    values,
    write,
    write_folders,
    write_pairs,
)
from torch import Tensor, nn

from translate.data.spec import ImageSpec
from translate.data.tokens import TokenFile, write_tokens
from translate.errors import UserError
from translate.evaluation import subjects
from translate.evaluation.subjects import (
    SHOWN,
    Subject,
    baselines,
    default_measures,
    folders,
    generative,
    is_generative,
    points,
    served,
    show_best_and_worst,
    translating,
    write_grid,
)
from translate.inference.folder import convert
from translate.inference.sampler import SampleOptions, Sampler, write_samples
from translate.inference.translator import Translator
from translate.metrics.scores import LABEL_NAMES, Evaluation
from translate.metrics.segmentation import Segmenter
from translate.pretrained import store
from translate.run import load_weights


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs: five of training, seven of the test split."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, "train", 5, first=20)
    return write_pairs(folder, "test", 7)


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("runs") / "0001-small", PIX2PIX, {**PAIRS, "root": str(root)})


def of(weights: Path, *measures: str, **how: Any) -> tuple[Evaluation, list[str]]:
    options = {key: how.pop(key) for key in ("protocol", "segmenter") if key in how}
    return measured(translating(load_weights(weights), measures, device="cpu", **how).matches, *measures, **options)


def of_folders(out: Path, target: Path, *measures: str, **how: Any) -> tuple[Evaluation, list[str]]:
    options = {key: how.pop(key) for key in ("protocol", "segmenter") if key in how}
    return measured(folders(out, target, measures, **how).matches, *measures, **options)


# ---- two folders -----------------------------------------------------------------------------------------------------


def test_names_that_do_not_agree(tmp_path: Path) -> None:
    out, target = write_folders(tmp_path)
    write(out / "extra.png", smooth(9))
    (target / "3.png").unlink()
    with pytest.raises(UserError) as caught:
        folders(out, target, ["l1"])
    assert str(caught.value) == (
        f"{out}: 2 of 7 images have no target of their name in {target}, and 0 targets there no output; "
        "the first is '3'; --matched measures those that agree"
    )
    (out / "1.png").unlink()
    (out / "3.png").unlink()
    (out / "extra.png").unlink()
    with pytest.raises(UserError, match=r"0 of 4 images .* and 1 targets there no output; the first is '1'"):
        folders(out, target, None)
    matched = folders(out, target, ["l1"], matched=True)
    assert values(measured(matched.matches, "l1")[0]) == pytest.approx(
        {"l1": np.mean([pair(read(out / f"{n}.png"), read(target / f"{n}.png"))["l1"] for n in NAMES_LEFT])}, rel=1e-6
    )


NAMES_LEFT = ("0", "deep/er/2", "4", "deep/er/5")


def test_no_name_that_agrees(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "out" / f"o{number}.png", smooth(number))
        write(tmp_path / "target" / f"t{number}.png", smooth(number))
    out, target = tmp_path / "out", tmp_path / "target"
    for how in ({"matched": False}, {"matched": True}):
        with pytest.raises(UserError, match=r"the first is 'o0'; measures of sets \(--measures fid\) need no partners"):
            folders(out, target, ["psnr"], **how)
    with pytest.raises(UserError, match="3 of 3 images have no target"):
        folders(out, target, None, classes=3)  # label maps are no sets
    for measures in (None, ["frechet"]):
        (match,) = folders(out, target, measures).matches
        assert match.pairs is None


def test_other_suffixes_make_pairs_too(tmp_path: Path) -> None:
    for suffix, name in zip((".png", ".bmp", ".tif"), "abc", strict=True):
        write(tmp_path / "out" / "in" / f"{name}.png", smooth(1))
        write(tmp_path / "target" / "in" / f"{name}{suffix}", smooth(2))
    found, _ = of_folders(tmp_path / "out", tmp_path / "target", "l1")
    assert by_image(found).keys() == {"in/a", "in/b", "in/c"}
    assert values(found)["l1"] == pytest.approx(pair(smooth(1), smooth(2))["l1"], rel=1e-6)


@pytest.mark.parametrize(("images", "names"), [(1, "0"), (3, "036"), (5, "01357"), (9, "012345678"), (50, "012345678")])
def test_so_many_are_spread_evenly(images: int, names: str, tmp_path: Path) -> None:
    for number in range(9):
        for side in ("out", "target"):
            write(tmp_path / side / f"{number}.png", smooth(number, (8, 8)))
    (match,) = folders(tmp_path / "out", tmp_path / "target", None, images=images).matches
    assert match.pairs is not None and [match.predicted.names[p] for p, _ in match.pairs] == list(names)
    assert all(match.predicted.names[p] == match.target.names[t] for p, t in match.pairs)
    (match,) = folders(tmp_path / "out", tmp_path / "target", ["frechet"], images=images).matches
    assert match.pairs is None and len(match.target_indices or ()) == len(names)


# ---- a run that translates -------------------------------------------------------------------------------------------

ALL = ("l1", "psnr", "ssim", "frechet", "kid", "precision")


def test_a_run_has_the_numbers_of_the_folder_it_makes(run: Path, root: Path, tmp_path: Path) -> None:
    """To the last digit, and with the same protocol: evaluation is conversion without the files."""
    convert(Translator.load(run, device="cpu"), root / "test" / "A", tmp_path / "out")
    folder, _ = of_folders(tmp_path / "out", root / "test" / "B", *ALL)
    found, failed = of(run, *ALL)
    assert found.scores == folder.scores and found.images == folder.images and not failed
    pairs = [
        pair(a, b) for a, b in zip(*(tree(x).values() for x in (tmp_path / "out", root / "test" / "B")), strict=True)
    ]
    assert values(found)["psnr"] == pytest.approx(np.mean([each["psnr"] for each in pairs]), rel=1e-6)
    part, _ = of(run, "l1", images=3)
    assert list(by_image(part)) == ["00", "02", "04"]
    against, _ = of(run, *ALL, target=root / "test" / "B")
    assert against.scores == found.scores


@pytest.mark.parametrize("target", [{"kind": "labels", "classes": 3}, {"kind": "labels", "palette": "PALETTE"}])
def test_a_run_that_makes_label_maps(target: dict[str, Any], tmp_path: Path) -> None:
    palette = np.array([[250, 10, 10], [0, 128, 0], [20, 20, 220]], np.uint8)
    truth = []
    for split, count in (("train", 1), ("test", 4)):
        for number in range(count):
            labels = np.random.default_rng(number).integers(0, 3, (24, 32), dtype=np.uint8)
            write(tmp_path / split / "A" / f"{number}.png", smooth(number))
            write(tmp_path / split / "B" / f"{number}.png", palette[labels] if "palette" in target else labels)
            truth.append(labels)
    if "palette" in target:
        target = {**target, "palette": palette.tolist()}
    weights = export(tmp_path / "run", PIX2PIX, {**PAIRS, "root": str(tmp_path), "B": target})
    convert(Translator.load(weights, device="cpu"), tmp_path / "test" / "A", tmp_path / "out")
    written = [read(path) for path in sorted((tmp_path / "out").iterdir())]
    if "palette" in target:
        distances = [np.abs(each[:, :, None].astype(int) - palette).sum(3) for each in written]
        assert all((d.min(2) == 0).all() for d in distances)
        guesses = [d.argmin(2) for d in distances]
    else:
        guesses = [each[..., 0] for each in written]
    subject = translating(load_weights(weights), None, device="cpu")
    assert default_measures(subject) == (list(LABEL_NAMES), [])
    found, _ = measured(subject.matches, *LABEL_NAMES)
    assert values(found) == pytest.approx(segmentation(guesses, truth[1:], 3), rel=1e-12)
    if "palette" in target:
        colour, _ = measured(subject.matches, "frechet")
        expected = frechet(colours([palette[g] for g in guesses]), colours([palette[t] for t in truth[1:]]))
        assert values(colour)["frechet"] == pytest.approx(expected, rel=1e-3)
    else:
        folder, _ = of_folders(tmp_path / "out", tmp_path / "test" / "B", *LABEL_NAMES, "l1", classes=3)
        assert of(weights, *LABEL_NAMES, "l1")[0].scores == folder.scores
        with pytest.raises(UserError, match="label maps without colours"):
            measured(subject.matches, "frechet")


def test_a_run_from_label_maps_by_a_segmenter(tmp_path: Path) -> None:
    """What the pictures were made of is looked for in them; pictures are compared beside it."""
    truth = []
    for number in range(4):
        labels = np.random.default_rng(number).integers(0, 2, (24, 32), dtype=np.uint8)
        for split in ("train", "test"):
            write(tmp_path / split / "A" / f"{number}.png", labels)
            write(tmp_path / split / "B" / f"{number}.png", smooth(number))
        truth.append(labels)
    side = {"kind": "labels", "classes": 2}
    weights = export(tmp_path / "run", PIX2PIX, {**PAIRS, "root": str(tmp_path), "A": side})
    convert(Translator.load(weights, device="cpu"), tmp_path / "test" / "A", tmp_path / "out")
    segmenter = Segmenter(lambda images: (images.mean(1) > 0).long(), "light")
    guesses = [
        (pixels.astype(np.float32).mean(2) / 127.5 - 1 > 0).astype(int) for pixels in tree(tmp_path / "out").values()
    ]
    found, _ = of(weights, "l1", *LABEL_NAMES, segmenter=segmenter)
    expected = segmentation(guesses, truth, 2)
    pictures = [tree(folder).values() for folder in (tmp_path / "out", tmp_path / "test" / "B")]
    expected["l1"] = np.mean([pair(a, b)["l1"] for a, b in zip(*pictures, strict=True)])
    assert values(found) == pytest.approx(expected, rel=1e-6)
    assert {s.measure: s.protocol.get("segmenter") for s in found.scores}["mean-iou"] == "light"
    folder, _ = of_folders(
        tmp_path / "out", tmp_path / "test" / "A", *LABEL_NAMES, classes=2, segmented=True, segmenter=segmenter
    )
    assert values(folder) == {name: values(found)[name] for name in LABEL_NAMES}
    with pytest.raises(UserError, match="by a segmenter: give one with --segmenter"):
        of(weights, *LABEL_NAMES)


def test_a_bad_picture_of_the_split_is_listed(run: Path, root: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path, "test", 4)
    write_pairs(tmp_path, "train", 1)
    (tmp_path / "test" / "A" / "02.png").write_bytes(b"no picture")
    found, failed = of(run, "l1", "frechet", overrides=[f"data.root={tmp_path}"])
    assert list(by_image(found)) == ["00", "01", "03"] and found.count == 3
    assert failed and all("02.png" in line for line in failed)
    whole, _ = of(run, "l1")
    for name, each in by_image(found).items():
        assert each == by_image(whole)[name]


@pytest.mark.parametrize("key", ["training.batch_size=2", "name=x", "method.generator.depth=4"])
def test_nothing_but_the_data_may_be_set(key: str, run: Path) -> None:
    with pytest.raises(UserError, match=f"--set {key}: evaluation changes nothing but where the data are"):
        of(run, "l1", overrides=[key])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"direction": "BtoA"}, "has no direction 'BtoA'; it offers AtoB"),
        ({"direction": "sideways"}, "has no direction 'sideways'; it offers AtoB"),
        ({"split": "validation"}, "there is no such split in"),
        ({"overrides": ["data.root=/nowhere"]}, "/nowhere"),
        ({"overrides": ["data.rot=x"]}, "did you mean 'data.root'"),
    ],
)
def test_what_a_run_does_not_have(how: dict[str, Any], message: str, run: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        of(run, "l1", **how)


def test_a_run_that_kept_decoded_images_does_not_do_so_here(root: Path, tmp_path: Path) -> None:
    data = {**PAIRS, "root": str(root), "cache": "disk", "cache_folder": str(tmp_path / "decoded")}
    found, _ = of(export(tmp_path / "run", PIX2PIX, data), "l1")
    assert found.count == 7 and not (tmp_path / "decoded").exists()


def test_splits_in_their_order(root: Path, tmp_path: Path) -> None:
    """Test, else validation, else training."""
    for split in ("train", "val"):
        write_pairs(tmp_path, split, 2 if split == "val" else 3)
    weights = load_weights(export(tmp_path / "run", PIX2PIX, {**PAIRS, "root": str(tmp_path), "validation": "val"}))
    for overrides, split, count in (([], "validation", 2), (["data.validation=null"], "train", 3)):
        subject = translating(weights, None, overrides=overrides, device="cpu")
        assert (subject.split, len(subject.matches[0].pairs or ())) == (split, count)
        assert subject.reference == f"{split} split of {tmp_path}"
    assert translating(weights, None, split="train", device="cpu").split == "train"
    assert translating(weights, None, overrides=[f"data.root={root}"], device="cpu").split == "test"


# ---- baselines -------------------------------------------------------------------------------------------------------


def test_baselines(run: Path, root: Path) -> None:
    weights = load_weights(run)
    subject = translating(weights, ["l1"], device="cpu")
    found, notes = baselines(weights, subject, ["l1"])
    assert list(found) == ["input", "mean"] and not notes
    targets = list(tree(root / "test" / "B").values())
    mean = np.mean([pixels.astype(float) for pixels in tree(root / "train" / "B").values()], axis=0).round()
    stands = {"input": list(tree(root / "test" / "A").values()), "mean": [mean] * 7}
    for name, outputs in stands.items():
        expected = [pair(a, b) for a, b in zip(outputs, targets, strict=True)]
        evaluation, _ = measured(found[name].matches, "l1", "psnr", "ssim", "frechet")
        for measure in ("l1", "psnr", "ssim"):
            wanted = np.mean([each[measure] for each in expected])
            assert values(evaluation)[measure] == pytest.approx(wanted, rel=1e-5), (name, measure)
        a, b = colours(outputs), colours(targets)
        assert values(evaluation)["frechet"] == pytest.approx(frechet(a, b), rel=1e-4, abs=1e-6)


def test_the_mean_of_16_bits_has_16(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    deep = [chance.integers(0, 65536, (16, 16, 3), dtype=np.uint16) for _ in range(3)]
    for split in ("train", "test"):
        for number, pixels in enumerate(deep):
            write(tmp_path / split / "A" / f"{number}.png", pixels)
            write(tmp_path / split / "B" / f"{number}.png", pixels if number else (pixels >> 8).astype(np.uint8))
    weights = load_weights(export(tmp_path / "run", PIX2PIX, {**PAIRS, "root": str(tmp_path)}))
    found, _ = baselines(weights, translating(weights, ["l1"], device="cpu"), ["l1"])
    (pixels,) = found["mean"].matches[0].predicted.stream([0], lambda pixels: pixels)
    expected = np.mean([(deep[0] >> 8) * 257.0, *deep[1:]], axis=0)
    assert pixels.dtype == np.uint16
    np.testing.assert_allclose(pixels, expected, atol=0.5)


def test_baselines_that_make_no_sense_are_left_out(root: Path, tmp_path: Path) -> None:
    for number in range(2):
        for split in ("train", "test"):
            write(tmp_path / split / "A" / f"{number}.png", smooth(number, (24 + 8 * number, 32)))
            labels = np.zeros((24 + 8 * number, 32), np.uint8)
            write(tmp_path / split / "B" / f"{number}.png", labels)
    data = {**PAIRS, "root": str(tmp_path)}
    weights = load_weights(export(tmp_path / "labels", PIX2PIX, {**data, "B": {"kind": "labels", "classes": 2}}))
    found, notes = baselines(weights, translating(weights, None, device="cpu"), ["l1"])
    assert not found and "another kind of picture" in notes[0] and "label maps have none" in notes[1]
    weights = load_weights(export(tmp_path / "sizes", PIX2PIX, data))
    found, notes = baselines(weights, translating(weights, None, device="cpu"), ["l1"])
    assert list(found) == ["input"] and "images of different sizes" in notes[0]
    with pytest.raises(UserError, match="--baselines needs a run that translates"):
        baselines(weights, folders(root / "test" / "A", root / "test" / "B", None), ["l1"])


# ---- pictures --------------------------------------------------------------------------------------------------------


def made_worse(tmp_path: Path, count: int, size: tuple[int, int] = (24, 32)) -> Subject:
    """Outputs of which number n has a noise of n grey levels; their order by name is another one."""
    for number in range(count):
        name = f"{(number * 7) % count:02}"
        target = smooth(number, size) // 2 + 64
        write(tmp_path / "target" / f"{name}.png", target)
        write(tmp_path / "out" / f"{name}.png", noisy(target, number, number))
    return folders(tmp_path / "out", tmp_path / "target", None)


@pytest.mark.parametrize(
    ("measures", "by"), [(["l1", "psnr", "ssim"], "ssim"), (["psnr", "l1"], "l1"), (["psnr"], "psnr")]
)
def test_the_best_and_the_worst_are_shown_in_order(measures: list[str], by: str, tmp_path: Path) -> None:
    subject = made_worse(tmp_path, 20)
    evaluation, _ = measured(subject.matches, *measures)
    shown = show_best_and_worst(evaluation, subject, tmp_path / "shown")
    assert shown.ranked_by == by
    out, target = tree(tmp_path / "out"), tree(tmp_path / "target")
    expected = {name: pair(out[name], target[name])[by] for name in out}
    ranked = sorted(expected, key=lambda name: expected[name] * (1 if by == "l1" else -1))
    best, worst = ([p for p in shown.pictures if p.rank == rank] for rank in ("best", "worst"))
    assert [p.name for p in best] == ranked[:SHOWN] and [p.name for p in worst] == ranked[::-1][:SHOWN]
    for found in shown.pictures:
        assert found.value == pytest.approx(expected[found.name], rel=1e-6)
        assert list(found.files) == ["output", "target"]
        for caption, side in (("output", out), ("target", target)):
            picture = read(tmp_path / "shown" / found.files[caption])
            assert np.abs(picture.astype(float) - side[found.name]).mean() < 12  # WebP's loss
    assert shown.model_copy(update={"ranked_by": None, "pictures": []}) == evaluation


@pytest.mark.parametrize(("count", "ranks"), [(1, ["best"]), (2, ["best", "worst"]), (5, ["best"] * 2 + ["worst"] * 2)])
def test_no_image_is_both_best_and_worst(count: int, ranks: list[str], tmp_path: Path) -> None:
    subject = made_worse(tmp_path, count)
    evaluation, _ = measured(subject.matches, "l1")
    shown = show_best_and_worst(evaluation, subject, tmp_path / "shown").pictures
    assert [p.rank for p in shown] == ranks and len({p.name for p in shown}) == len(shown)


def test_a_run_s_pictures_have_the_input_and_are_small(tmp_path: Path) -> None:
    write_pairs(tmp_path, "train", 1)
    write_pairs(tmp_path, "test", 2, (200, 640))
    weights = export(tmp_path / "run", PIX2PIX, {**PAIRS, "root": str(tmp_path)})
    subject = translating(load_weights(weights), ["l1"], device="cpu")
    evaluation, _ = measured(subject.matches, "l1")
    shown = show_best_and_worst(evaluation, subject, tmp_path / "shown")
    (best,) = (p for p in shown.pictures if p.rank == "best")
    assert list(best.files) == ["input", "output", "target"]
    assert {read(tmp_path / "shown" / file).shape for file in best.files.values()} == {(100, 320, 3)}
    assert measured(subject.matches, "frechet")[0] == show_best_and_worst(
        measured(subject.matches, "frechet")[0], subject, tmp_path / "none"
    )
    assert not (tmp_path / "none").exists()


def test_the_grid_shows_evenly_spaced_results(run: Path, root: Path, tmp_path: Path) -> None:
    """Of seven all, in two columns of four: input, output, target; the last place stays white."""
    subject = translating(load_weights(run), None, device="cpu")
    write_grid(tmp_path / "grid.png", subject)
    convert(Translator.load(run, device="cpu"), root / "test" / "A", tmp_path / "out")
    sides = [list(tree(folder).values()) for folder in (root / "test" / "A", tmp_path / "out", root / "test" / "B")]
    grid = read(tmp_path / "grid.png")
    assert grid.shape == (4 * 24, 2 * 3 * 32 + 12, 3)
    for number in range(8):
        top, left = number % 4 * 24, number // 4 * (3 * 32 + 12)
        for column, side in enumerate(sides):
            cell = grid[top : top + 24, left + 32 * column : left + 32 * column + 32]
            np.testing.assert_array_equal(cell, side[number] if number < 7 else np.full_like(cell, 255))


def test_a_grid_of_many_leaves_some_out_and_bad_ones(tmp_path: Path) -> None:
    subject = made_worse(tmp_path, 19, (8, 8))
    write_grid(tmp_path / "grid.png", subject)
    out, names = tree(tmp_path / "out"), sorted(tree(tmp_path / "out"))
    chosen = [names[i] for i in range(0, 19, 2)]  # ten of nineteen
    grid = read(tmp_path / "grid.png")
    assert grid.shape == (5 * 8, 2 * 16 + 12, 3)
    for number, name in enumerate(chosen):
        top, left = number % 5 * 8, number // 5 * 28
        np.testing.assert_array_equal(grid[top : top + 8, left : left + 8], out[name])
    (tmp_path / "out" / "02.png").write_bytes(b"no picture")
    write_grid(tmp_path / "nine.png", subject)
    np.testing.assert_array_equal(read(tmp_path / "nine.png")[8:16, :8], out["04"])
    write(tmp_path / "out" / "04.png", smooth(0, (9, 8)))
    with pytest.raises(UserError, match="--grid needs images of one size, but these differ in size"):
        write_grid(tmp_path / "grid.png", subject)


# ---- two directions --------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    """A known translation: a share of the light, and a shift."""

    multiple, smallest, scale = 1, 1, 1

    def __init__(self, factor: float, shift: float) -> None:
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift


LAWS = {"AtoB": (0.5, 0.25), "BtoA": (1.5, -0.5)}


def translated(pixels: Array, which: str) -> Array:
    factor, shift = LAWS[which]
    light = (pixels.astype(np.float32) / 127.5 - 1) * np.float32(factor) + np.float32(shift)
    return np.rint((np.clip(light, -1, 1) + 1) / 2 * 255).astype(np.uint8)


def ends(direction: str) -> tuple[str, ...]:
    """What every method says of its directions."""
    return tuple(direction.split("to"))


@pytest.fixture
def both_ways(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run as one of a method with both directions."""

    def load(path: Path, *, direction: str, **_: Any) -> Translator:
        return Translator(Halves(*LAWS[direction]), ImageSpec(), ImageSpec(), device="cpu", precision="fp32")

    method = SimpleNamespace(directions=("AtoB", "BtoA"), require_direction=print, ends=ends)
    monkeypatch.setattr(subjects, "build_for_inference", lambda _: method)
    monkeypatch.setattr(subjects.Translator, "load", load)
    return run


def test_two_directions_and_there_and_back_again(both_ways: Path, root: Path) -> None:
    found, _ = of(both_ways, "l1", "psnr", "frechet")
    a, b = (list(tree(root / "test" / side).values()) for side in "AB")
    made = {
        "AtoB": ([translated(x, "AtoB") for x in a], b),
        "BtoA": ([translated(x, "BtoA") for x in b], a),
        "cycle A": ([translated(translated(x, "AtoB"), "BtoA") for x in a], a),
        "cycle B": ([translated(translated(x, "BtoA"), "AtoB") for x in b], b),
    }
    expected = {}
    for part, (outputs, targets) in made.items():
        each = [pair(x, y) for x, y in zip(outputs, targets, strict=True)]
        expected |= {f"{part} {measure}": np.mean([one[measure] for one in each]) for measure in ("l1", "psnr")}
        if "to" in part:
            expected[f"{part} frechet"] = frechet(colours(outputs), colours(targets))
    assert values(found) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert list(values(found)) == list(expected)
    assert by_image(found)["03"].keys() == {f"{part} {m}" for part in made for m in ("l1", "psnr")}
    one, _ = of(both_ways, "l1", direction="BtoA")
    assert values(one) == {"l1": values(found)["BtoA l1"]}
    against, _ = of(both_ways, "l1", target=root / "test" / "B")
    assert values(against) == {"l1": values(found)["AtoB l1"]}


def test_without_pairs_the_cycle_still_is_measured(
    both_ways: Path, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = translating(load_weights(both_ways), None)
    subject = replace(whole, matches=[replace(m, pairs=None if "to" in m.part else m.pairs) for m in whole.matches])
    found, _ = measured(subject.matches, "l1", "frechet")
    assert [f"{s.part} {s.measure}" for s in found.scores] == [
        "AtoB frechet", "BtoA frechet", "cycle A l1", "cycle B l1"
    ]  # fmt: skip
    names, notes = default_measures(subject)
    assert names == ["l1", "psnr"] and "translate weights get inception" in notes[0]
    monkeypatch.setattr(store, "find", lambda name: tmp_path)
    assert default_measures(subject) == (["fid", "kid", "l1", "psnr"], [])


# ---- without pairs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sides without pairs: of A five of training and four of test, of B three each; `hidden` has A's partners."""
    folder = tmp_path_factory.mktemp("apart")
    for split, a, b in (("train", 5, 3), ("test", 4, 3)):
        for number in range(a):
            write(folder / split / "A" / f"{number}.png", smooth(number + a))
        for number in range(b):
            write(folder / split / "B" / f"night {number}.png", 255 - smooth(30 + number + a))
    for number in range(4):
        write(folder / "hidden" / f"{number}.png", noisy(255 - smooth(number + 4), number))
    return folder


@pytest.fixture(scope="module")
def two_way(apart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("runs") / "0002-cycle", CYCLEGAN, {**UNPAIRED, "root": str(apart)})


def converted(weights: Path, direction: str, folder: Path, out: Path) -> Path:
    convert(Translator.load(weights, direction=direction, device="cpu"), folder, out)
    return out


def test_sides_are_sets_and_cycles_are_pairs(two_way: Path, apart: Path, tmp_path: Path) -> None:
    """The numbers of the folders that conversion writes, there and back again."""
    found, failed = of(two_way, "l1", "psnr", "frechet")
    assert not failed and found.count == 4
    expected: dict[str, float] = {}
    for side, other in (("A", "B"), ("B", "A")):
        there = converted(two_way, f"{side}to{other}", apart / "test" / side, tmp_path / f"there {side}")
        back = converted(two_way, f"{other}to{side}", there, tmp_path / f"back {side}")
        sets = colours(list(tree(there).values())), colours(list(tree(apart / "test" / other).values()))
        expected[f"{side}to{other} frechet"] = frechet(*sets)
        cycle, _ = of_folders(back, apart / "test" / side, "l1", "psnr")
        expected |= {f"cycle {side} {name}": value for name, value in values(cycle).items()}
    assert values(found) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    told = {score.label: score.protocol for score in found.scores}
    assert [told[f"{d} Fréchet distance"]["reference images"] for d in ("AtoB", "BtoA")] == [3, 4]
    assert [match.part for match in translating(load_weights(two_way), ["frechet"]).matches] == ["AtoB", "BtoA"]
    few, _ = of(two_way, "l1", "frechet", images=2)
    told = {score.label: score.protocol for score in few.scores}
    assert told["AtoB Fréchet distance"]["reference images"] == told["cycle B L1"]["images"] == 2


def test_one_direction_alone_is_a_set(
    two_way: Path, apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = converted(two_way, "BtoA", apart / "test" / "B", tmp_path / "there")
    expected, _ = of_folders(there, apart / "test" / "A", "frechet")
    assert values(of(two_way, "frechet", direction="BtoA")[0]) == pytest.approx(values(expected), rel=1e-6)
    with pytest.raises(UserError, match="l1 compares each output with its target, but no output here has one"):
        of(two_way, "l1", direction="BtoA")
    method = SimpleNamespace(directions=("BtoA",), require_direction=print, ends=ends)
    monkeypatch.setattr(subjects, "build_for_inference", lambda _: method)
    assert values(of(two_way, "frechet")[0]) == pytest.approx(values(expected), rel=1e-6)  # such as CUT


def test_hidden_partners_are_found_by_name(two_way: Path, apart: Path, tmp_path: Path) -> None:
    there = converted(two_way, "AtoB", apart / "test" / "A", tmp_path / "there")
    expected, _ = of_folders(there, apart / "hidden", "l1", "psnr", "ssim", "frechet")
    subject = translating(load_weights(two_way), None, target=apart / "hidden", device="cpu")
    found, _ = measured(subject.matches, "l1", "psnr", "ssim", "frechet")
    assert found.scores == expected.scores
    assert default_measures(subject)[0] == ["l1", "psnr", "ssim"] and subject.split is None
    sets = translating(load_weights(two_way), None, target=apart / "test" / "B", device="cpu")
    assert [match.pairs for match in sets.matches] == [None]
    with pytest.raises(UserError, match="4 of 4 images have no target of their name"):
        of(two_way, "psnr", target=apart / "test" / "B")


def test_a_folder_of_targets_is_resized_as_the_run_s_own(root: Path, tmp_path: Path) -> None:
    augment = {"resize": 20, "crop": 16, "flip": False}
    weights = export(tmp_path / "run", PIX2PIX, {**PAIRS, "root": str(root), "augment": augment})
    own, _ = of(weights, "l1", "ssim", "frechet")
    folder, failed = of(weights, "l1", "ssim", "frechet", target=root / "test" / "B")
    assert folder.scores == own.scores and not failed
    again, _ = of(weights, "frechet", target=root / "test" / "B", overrides=["data.augment.crop=12"])
    assert again.scores[0].value != own.score("frechet").value  # not from the cache


def test_of_a_split_with_one_side_what_can_be_is_measured(two_way: Path, apart: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path, "train", 2)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "A").symlink_to(apart / "test" / "A")
    how: dict[str, Any] = {"overrides": [f"data.root={tmp_path}"], "device": "cpu"}
    weights = load_weights(two_way)
    subject = translating(weights, None, **how)
    assert [match.part for match in subject.matches] == ["cycle A"] and subject.split == "test"
    assert subject.notes == [
        f"AtoB was not measured: the test split of {tmp_path} has no image of side B",
        f"BtoA was not measured: the test split of {tmp_path} has no image of side B",
    ]
    found, _ = measured(subject.matches, "l1")
    assert values(found) == {"cycle A l1": values(of(two_way, "l1")[0])["cycle A l1"]}
    with pytest.raises(UserError, match="frechet compares outputs with a set of targets, but there are none here"):
        measured(subject.matches, "l1", "frechet")
    against = translating(weights, None, target=apart / "hidden", **how)
    whole = translating(weights, None, target=apart / "hidden", device="cpu")
    assert not against.notes
    assert measured(against.matches, "l1")[0].scores == measured(whole.matches, "l1")[0].scores
    for direction, target, remedy in (
        ("AtoB", None, "choose another --split, or name a folder of targets"),
        ("BtoA", None, "choose another --split"),
        ("BtoA", apart / "hidden", "choose another --split"),
    ):
        with pytest.raises(UserError, match=f"has no image of side B; {remedy}$"):
            translating(weights, None, direction=direction, target=target, **how)


def test_baselines_without_pairs(two_way: Path, apart: Path) -> None:
    weights = load_weights(two_way)
    subject = translating(weights, None, device="cpu")
    found, notes = baselines(weights, subject, ["frechet", "l1"])
    assert list(found) == ["input"] and "without pairs only sets compare" in notes[0]
    assert served(["frechet", "l1"], found["input"]) == ("frechet",)
    evaluation, _ = measured(found["input"].matches, "frechet")
    a, b = (colours(list(tree(apart / "test" / side).values())) for side in "AB")
    expected = {"AtoB frechet": frechet(a, b), "BtoA frechet": frechet(b, a)}
    assert values(evaluation) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    found, notes = baselines(weights, subject, ["l1"])
    assert not found and "without pairs only measures of sets have one" in notes[0]


def test_baselines_of_hidden_partners(two_way: Path, apart: Path) -> None:
    """The mean is that of the training images of the side aimed at: it needs no pairs."""
    weights = load_weights(two_way)
    subject = translating(weights, None, target=apart / "hidden", device="cpu")
    found, notes = baselines(weights, subject, ["l1"])
    assert list(found) == ["input", "mean"] and not notes
    hidden = list(tree(apart / "hidden").values())
    mean = np.mean([pixels.astype(float) for pixels in tree(apart / "train" / "B").values()], axis=0).round()
    for name, outputs in (("input", list(tree(apart / "test" / "A").values())), ("mean", [mean] * 4)):
        wanted = np.mean([pair(a, b)["l1"] for a, b in zip(outputs, hidden, strict=True)])
        assert values(measured(found[name].matches, "l1")[0])["l1"] == pytest.approx(wanted, rel=1e-5), name


def test_pictures_of_cycles_show_what_comes_back(two_way: Path, apart: Path, tmp_path: Path) -> None:
    subject = translating(load_weights(two_way), None, device="cpu")
    evaluation, _ = measured(subject.matches, "l1")
    shown = show_best_and_worst(evaluation, subject, tmp_path / "shown")
    assert [list(each.files) for each in shown.pictures] == [["input", "output", "back"]] * 4
    errors = {name: each["cycle A l1"] for name, each in by_image(evaluation).items() if "cycle A l1" in each}
    assert [p.name for p in shown.pictures if p.rank == "best"] == sorted(errors, key=errors.__getitem__)[:2]
    assert shown.notes == ["the best and the worst images are those of cycle A"]


def test_the_grid_of_a_cycle_has_a_direction_in_each_column(two_way: Path, apart: Path, tmp_path: Path) -> None:
    subject = translating(load_weights(two_way), None, device="cpu")
    write_grid(tmp_path / "grid.png", subject)
    grid, width = read(tmp_path / "grid.png"), 3 * 32
    assert grid.shape == (4 * 24, 2 * width + 12, 3)
    for left, side, other in ((0, "A", "B"), (width + 12, "B", "A")):
        there = converted(two_way, f"{side}to{other}", apart / "test" / side, tmp_path / f"there {side}")
        back = converted(two_way, f"{other}to{side}", there, tmp_path / f"back {side}")
        pictures = [list(tree(folder).values()) for folder in (apart / "test" / side, there, back)]
        for row in range(4):
            for column, each in enumerate(pictures):
                cell = grid[row * 24 : row * 24 + 24, left + 32 * column : left + 32 * column + 32]
                np.testing.assert_array_equal(cell, each[row] if row < len(each) else np.full_like(cell, 255))


def test_the_grid_of_one_direction_has_inputs_and_outputs(two_way: Path, apart: Path, tmp_path: Path) -> None:
    subject = translating(load_weights(two_way), None, direction="BtoA", device="cpu")
    write_grid(tmp_path / "grid.png", subject)
    there = converted(two_way, "BtoA", apart / "test" / "B", tmp_path / "there")
    grid = read(tmp_path / "grid.png")
    assert grid.shape == (2 * 24, 2 * 64 + 12, 3)
    rows = zip(tree(apart / "test" / "B").values(), tree(there).values(), strict=True)
    for number, row in enumerate(rows):
        top, left = number % 2 * 24, number // 2 * (64 + 12)
        np.testing.assert_array_equal(grid[top : top + 24, left : left + 64], np.concatenate(row, axis=1))


# ---- which measures --------------------------------------------------------------------------------------------------


def test_what_is_measured_where_nobody_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, target = write_folders(tmp_path)
    pairs, sets = folders(out, target, None), folders(out, target, ["frechet"])
    names, notes = default_measures(pairs)
    assert names == ["l1", "psnr", "ssim"]
    assert notes == ["LPIPS was left out: its weights are not here; 'translate weights get lpips' fetches them once"]
    with pytest.raises(UserError, match="fetch them once with 'translate weights get inception'"):
        default_measures(sets)
    monkeypatch.setattr(store, "find", lambda name: tmp_path)
    assert default_measures(pairs) == (["l1", "psnr", "ssim", "lpips-alex"], [])
    assert default_measures(sets) == (["fid", "kid"], [])
    for segmented in (False, True):
        assert default_measures(folders(out, target, None, classes=3, segmented=segmented))[0] == list(LABEL_NAMES)


# ---- a run that makes samples ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    for number in range(12):
        pixels = cv2.resize(smooth(number), (8, 8), interpolation=cv2.INTER_AREA)
        write(folder / "train" / ("cat" if number % 2 else "dog") / f"{number}.png", pixels)
    return folder


def folder_data(root: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "folder", "root": str(root), "validation": None, "augment": {"resize": 8, "crop": 8}, **more}


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("images", "truncation"), [(9, None), (20, 0.7)])
def test_samples_are_measured_as_the_folder_of_them(
    conditional: bool, images: int, truncation: float | None, classes: Path, tmp_path: Path
) -> None:
    method, data = GAN, folder_data(classes)
    if conditional:
        method, data = {**GAN, "conditioning": {"generator": "norm"}}, {**data, "classes": ["cat", "dog"]}
    weights = export(tmp_path / "run", method, data)
    subject = generative(load_weights(weights), images=images, seed=3, truncation=truncation, device="cpu")
    found, failed = measured(subject.matches, "frechet", "kid")
    write_samples(
        Sampler.load(weights, device="cpu"),
        tmp_path / "out",
        SampleOptions(count=images, seed=3, truncation=truncation),
    )
    (tmp_path / "out" / "grid.png").unlink()
    (tmp_path / "out" / "sample.json").unlink()
    samples = list(tree(tmp_path / "out").values())
    assert len(samples) == images and not failed and found.count == images
    real = list(tree(classes / "train").values())
    chosen = [real[i] for i in natural(classes, min(images, 12))]
    assert values(found)["frechet"] == pytest.approx(frechet(colours(samples), colours(chosen)), rel=1e-4)
    folder, _ = of_folders(tmp_path / "out", classes / "train", "frechet", "kid", images=images)
    assert values(found) == pytest.approx(values(folder), rel=1e-6)
    assert "seed 3" in subject.title and ("truncation 0.7" in subject.title) == (truncation is not None)
    assert subject.reference == f"train split of {classes}" and subject.split == "train"


def natural(root: Path, count: int) -> Sequence[int]:
    """Which of `tree`'s pictures are `count` evenly spaced ones in natural order (2 before 10)."""
    by_text = list(tree(root / "train"))
    by_number = sorted(by_text, key=lambda name: (name.split("/")[0], int(name.split("/")[1])))
    return [by_text.index(by_number[i * 12 // count]) for i in range(count)]


def test_samples_against_a_folder(classes: Path, tmp_path: Path) -> None:
    weights = load_weights(export(tmp_path / "run", GAN, folder_data(classes)))
    subject = generative(weights, target=classes / "train" / "cat", images=6, device="cpu")
    assert subject.reference == str(classes / "train" / "cat") and subject.split is None
    assert measured(subject.matches, "frechet")[0].scores[0].protocol["reference images"] == 6
    assert is_generative(weights.config)
    with pytest.raises(UserError, match="psnr compares each output with its target"):
        measured(subject.matches, "psnr")


def test_a_run_that_translates_makes_no_samples(run: Path) -> None:
    assert not is_generative(load_weights(run).config)


# ---- points ----------------------------------------------------------------------------------------------------------


def kernel_density(samples: Array, real: Array, bandwidth: float) -> float:
    """Mean log density of the points under Gaussians on the samples."""
    squares = ((real[:, None].astype(float) - samples[None].astype(float)) ** 2).sum(2)
    logs = -squares / (2 * bandwidth**2)
    top = logs.max(1, keepdims=True)
    sums = top[:, 0] + np.log(np.exp(logs - top).mean(1))
    return float((sums - real.shape[1] / 2 * np.log(2 * np.pi * bandwidth**2)).mean())


def test_points_are_measured_by_a_kernel_density(tmp_path: Path) -> None:
    mlp = {"kind": "mlp", "hidden": [8]}
    method = {"kind": "gan", "generator": mlp, "discriminator": mlp, "latent": {"width": 2}}
    weights = export(tmp_path / "run", method, {"kind": "toy", "layout": "ring8", "samples": 3000})
    found = points(load_weights(weights), samples=200, seed=4, device="cpu")
    samples = Sampler.load(weights, device="cpu").sample(200, seed=4)
    config = load_weights(weights).config
    dataset = config.data.open("test", 0)
    assert dataset is not None
    real = np.array([dataset[i]["point"] for i in range(300)])
    held_out = real[:150]
    spread = np.sqrt(held_out.astype(float).var(0).mean())
    bandwidth = max(
        (spread * 10.0 ** (k / 10) for k in range(-30, 11)), key=lambda h: kernel_density(samples, held_out, h)
    )
    (score,) = found.scores
    assert score.protocol["bandwidth"] == pytest.approx(bandwidth, rel=1e-3)
    assert score.value == pytest.approx(kernel_density(samples, real[150:], bandwidth), rel=1e-6)
    assert (score.protocol["outputs"], score.protocol["reference samples"], score.protocol["dimensions"]) == (
        200,
        150,
        2,
    )
    assert not found.notes and found.reference.startswith("test split") and found.subject.endswith("seed 4")
    assert points(load_weights(weights), samples=200, seed=4, device="cpu").scores == found.scores
    assert points(load_weights(weights), samples=200, seed=5, device="cpu").scores != found.scores


def test_images_as_points_have_their_warning(classes: Path, tmp_path: Path) -> None:
    weights = export(tmp_path / "run", GAN, folder_data(classes))
    bad = tmp_path / "bad"
    for path in (classes / "train").rglob("*.png"):
        write(bad / "train" / path.name, read(path))
    (bad / "train" / "3.png").write_bytes(b"no picture")
    found = points(load_weights(weights), samples=16, device="cpu", overrides=[f"data.root={bad}"])
    samples = Sampler.load(weights, device="cpu").sample(16).reshape(16, -1) / 255
    names = [n for n in range(12) if n != 3]
    real = np.stack([read(bad / "train" / f"{n}.png").ravel() for n in names]) / 255
    (score,) = found.scores
    expected = kernel_density(samples, real[5:], float(score.protocol["bandwidth"]))
    assert score.value == pytest.approx(expected, rel=2e-3)  # the bandwidth is told with four digits
    assert score.protocol["dimensions"] == 192 and score.protocol["reference samples"] == 6
    assert "left out: " in found.notes[0] and "3.png" in found.notes[0] and "do not rank models" in found.notes[1]
    for path in (bad / "train").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"parzen: expected at least 2 images in the train split of .*, not 0"):
        points(load_weights(weights), samples=16, device="cpu", overrides=[f"data.root={bad}"])


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_the_codes_of_a_token_file_are_counted(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    grids = {name: torch.from_numpy(chance.integers(0, 5, (3, 4))) for name in "abc"}
    sizes = dict.fromkeys(grids, (24, 32))
    write_tokens(tmp_path / "x.safetensors", TokenFile(grids, sizes, 16, "0123456789abcdef" * 4))
    found = subjects.tokens(tmp_path / "x.safetensors")
    codes = np.concatenate([grid.numpy().ravel() for grid in grids.values()])
    shares = np.bincount(codes, minlength=16) / len(codes)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert values(found) == pytest.approx({"codes-used": (shares > 0).mean(), "perplexity": np.exp(entropy)}, rel=1e-12)
    assert found.count == 3
    assert found.scores[0].protocol == {"codebook": 16, "tokenizer": "0123456789ab", "images": 3, "tokens": 36}


def test_luma_of_a_run(run: Path, root: Path, tmp_path: Path) -> None:
    convert(Translator.load(run, device="cpu"), root / "test" / "A", tmp_path / "out")
    protocol = COLOURS.model_copy(update={"channels": "luma", "border": 2})
    found, _ = of(run, "psnr", protocol=protocol)
    sides = [[luma(x)[2:-2, 2:-2] for x in tree(f).values()] for f in (tmp_path / "out", root / "test" / "B")]
    assert values(found)["psnr"] == pytest.approx(
        np.mean([pair(a, b)["psnr"] for a, b in zip(*sides, strict=True)]), rel=1e-6
    )
