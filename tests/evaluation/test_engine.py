"""The engine over folders: numbers as numpy and scikit-image have them, bad pictures, order, batches, processes."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from measured import (
    COLOURS,
    Array,
    Colours,
    by_image,
    colours,
    frechet,
    kid,
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
)
from torch import Tensor, nn

from translate.data.spec import ImageSpec
from translate.distributed import processes
from translate.errors import UserError
from translate.evaluation import engine, pictures
from translate.evaluation.engine import Match
from translate.evaluation.pictures import FilePictures
from translate.evaluation.subjects import folders
from translate.metrics.protocol import ProtocolSettings
from translate.metrics.scores import LABEL_NAMES, Evaluation
from translate.metrics.segmentation import Segmenter, load_segmenter

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return write_folders(tmp_path)


def of(out: Path, target: Path, *measures: str, **how: Any) -> tuple[Evaluation, list[str]]:
    options = {key: how.pop(key) for key in ("protocol", "processes", "segmenter") if key in how}
    return measured(folders(out, target, measures, **how).matches, *measures, **options)


# ---- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "border"), [("rgb", 0), ("rgb", 3), ("luma", 0), ("luma", 4)])
def test_pairs_are_measured_as_scikit_image_does(channels: Any, border: int, two: tuple[Path, Path]) -> None:
    protocol = ProtocolSettings(channels=channels, border=border)
    evaluation, failed = of(*two, "ssim", "psnr", "l1", protocol=protocol)
    sides = [tree(folder) for folder in two]
    if channels == "luma":
        sides = [{name: luma(pixels) for name, pixels in side.items()} for side in sides]
    if border:
        inside = np.s_[border:-border, border:-border]
        sides = [{name: pixels[inside] for name, pixels in side.items()} for side in sides]
    expected = {name: pair(sides[0][name], sides[1][name]) for name in sides[0]}
    assert not failed and evaluation.count == 6
    assert by_image(evaluation).keys() == expected.keys() == {"0", "1", "deep/er/2", "3", "4", "deep/er/5"}
    for name, found in by_image(evaluation).items():
        # The pixels pass through float32 in [-1, 1]: 24 bits.
        assert found == pytest.approx(expected[name], rel=1e-6), name
    means = {measure: np.mean([each[measure] for each in expected.values()]) for measure in ("l1", "psnr", "ssim")}
    assert values(evaluation) == pytest.approx(means, rel=1e-6)
    assert [score.measure for score in evaluation.scores] == ["l1", "psnr", "ssim"]
    for score in evaluation.scores:
        assert score.protocol["channels"] == channels and score.protocol["border"] == border
        assert score.protocol["images"] == 6 and score.protocol["bits"] == 8


def test_sets_are_measured_as_numpy_does(tmp_path: Path) -> None:
    """Other names, sizes and numbers of pictures: there are no pairs."""
    for number in range(9):
        write(tmp_path / "out" / f"o{number}.png", smooth(number, (16 + number, 20)))
    for number in range(7):
        write(tmp_path / "target" / "below" / f"t{number}.png", smooth(50 + number))
    out, target = tmp_path / "out", tmp_path / "target"
    evaluation, failed = of(out, target, "frechet", "kid", "inception-score", "precision")
    a, b = (colours(list(tree(folder).values())) for folder in (out, target))
    p = np.exp(10 * a) / np.exp(10 * a).sum(1, keepdims=True)
    score = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    radius = [np.sort(np.linalg.norm(b - x, axis=1))[3] for x in b]  # to the third other one
    near = [(np.linalg.norm(b - x, axis=1) <= radius).any() for x in a]
    expected = {"frechet": frechet(a, b), "kid": kid(a, b), "inception-score": score, "precision": np.mean(near)}
    # Means of float32 pixels err by 1e-7; differences of features of 0.1 make 1e-5 of that.
    assert values(evaluation) == pytest.approx(expected, rel=1e-4)
    assert not failed and evaluation.count == 9 and not evaluation.images
    told = {s.measure: s.protocol for s in evaluation.scores}
    assert told["frechet"]["features"] == "measured:Colours" and told["frechet"]["crop"] == "none"
    assert (told["kid"]["outputs"], told["kid"]["reference images"]) == (9, 7)
    assert told["inception-score"]["outputs"] == 9 and "target" not in told["inception-score"]
    assert len(evaluation.notes) == 1 and "biased: with 9 and 7 images" in evaluation.notes[0]


def test_a_folder_against_itself(two: tuple[Path, Path]) -> None:
    evaluation, _ = of(two[1], two[1], "l1", "psnr", "ssim", "frechet", "kid")
    found = values(evaluation)
    assert found["l1"] == 0 and found["psnr"] == 100 and found["ssim"] == pytest.approx(1, abs=1e-12)
    assert 0 <= found["frechet"] < 1e-6  # roots of 1e-16
    features = colours(list(tree(two[1]).values()))
    assert found["kid"] == pytest.approx(kid(features, features), abs=1e-6) and found["kid"] < 0


def test_numbers_against_other_targets_do_not_compare(two: tuple[Path, Path], tmp_path: Path) -> None:
    """The protocol names the targets by their pixels, whatever else is measured and however they are stored."""
    pairs, both = (of(*two, *measures)[0] for measures in (["psnr"], ["psnr", "frechet"]))
    assert pairs.scores[0].protocol == both.scores[0].protocol
    assert len({str(score.protocol["target"]) for score in both.scores}) == 1
    for name, pixels in tree(two[1]).items():
        write(tmp_path / "bmp" / f"{name}.bmp", pixels)
    assert of(two[0], tmp_path / "bmp", "psnr")[0].scores == pairs.scores
    write(tmp_path / "bmp" / "0.bmp", noisy(smooth(0), 0, 1))
    assert of(two[0], tmp_path / "bmp", "psnr")[0].scores[0].protocol["target"] != pairs.scores[0].protocol["target"]


# ---- kinds of files --------------------------------------------------------------------------------------------------


def test_grey_is_grey_in_all_channels(tmp_path: Path) -> None:
    grey, target = smooth(1)[..., 0], smooth(2)
    write(tmp_path / "a" / "x.png", grey)
    write(tmp_path / "b" / "x.png", target)
    evaluation, _ = of(tmp_path / "a", tmp_path / "b", "l1")
    assert values(evaluation)["l1"] == pytest.approx(pair(np.dstack([grey] * 3), target)["l1"], rel=1e-6)


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    rgb, alpha, target = smooth(1), smooth(2)[..., 0], smooth(3)
    write(tmp_path / "a" / "x.png", np.dstack([rgb, alpha]))
    write(tmp_path / "b" / "x.png", target)
    share = alpha[..., None] / 255
    over = np.rint(rgb * share + 255 * (1 - share))
    evaluation, _ = of(tmp_path / "a", tmp_path / "b", "psnr", "l1")
    expected = pair(over, target)
    assert values(evaluation) == pytest.approx({"l1": expected["l1"], "psnr": expected["psnr"]}, rel=1e-6)


@pytest.mark.parametrize("deep", ["out", "target", "both"])
def test_16_bits_are_compared_with_8(deep: str, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    out, target = (chance.integers(0, 65536, (24, 32, 3), dtype=np.uint16) for _ in range(2))
    out, target = (
        pixels if deep in (side, "both") else (pixels >> 8).astype(np.uint8)
        for side, pixels in (("out", out), ("target", target))
    )
    write(tmp_path / "out" / "x.png", out)
    write(tmp_path / "target" / "x.png", target)
    evaluation, _ = of(tmp_path / "out", tmp_path / "target", "l1", "psnr", "ssim")
    one = pair(out / np.iinfo(out.dtype).max, target / np.iinfo(target.dtype).max, top=1)
    assert values(evaluation) == pytest.approx(one, rel=1e-5, abs=1e-6)
    assert {score.protocol["bits"] for score in evaluation.scores} == {8 if deep == "target" else 16}


def test_depths_that_differ_are_told(tmp_path: Path) -> None:
    for name, pixels in (("a", smooth(0)), ("b", smooth(1).astype(np.uint16) * 257)):
        write(tmp_path / "out" / f"{name}.png", pixels)
        write(tmp_path / "target" / f"{name}.tif", smooth(3))
    (score,) = of(tmp_path / "out", tmp_path / "target", "l1")[0].scores
    assert score.protocol["bits"] == "8, 16"


# ---- pictures that cannot be measured --------------------------------------------------------------------------------


def _spoil(which: str, out: Path, target: Path) -> str:
    """Spoil picture 3; what the line about it says."""
    if which == "size":
        write(out / "3.png", smooth(3, (24, 31)))
        return "3: the output is 31x24 with 3 channels, its target 32x24 with 3 channels: not compared"
    path = (out if which == "output" else target) / "3.png"
    path.write_bytes(path.read_bytes()[:200] if which == "output" else b"no picture")
    return f"3: {path}: "


@pytest.mark.parametrize("which", ["size", "output", "target"])
def test_a_bad_pair_is_listed_once_and_the_others_are_measured(
    which: str, two: tuple[Path, Path], tmp_path: Path
) -> None:
    line = _spoil(which, *two)
    evaluation, failed = of(*two, "l1", "frechet", "kid")
    assert len(failed) == 1 and failed[0].startswith(line)
    assert evaluation.count == 5 and "3" not in by_image(evaluation)
    sides = [tree_of_good(folder) for folder in two]
    names = [name for name in sides[0] if name != "3" and name in sides[1]]
    assert values(evaluation)["l1"] == pytest.approx(
        np.mean([pair(sides[0][name], sides[1][name])["l1"] for name in names]), rel=1e-6
    )
    references = colours([side for name, side in sides[1].items() if which != "target" or name != "3"])
    a = colours([sides[0][name] for name in names])
    assert values(evaluation)["frechet"] == pytest.approx(frechet(a, references), rel=1e-4)


def tree_of_good(folder: Path) -> dict[str, Array]:
    good = {path: read(path) for path in sorted(folder.rglob("*.png")) if len(path.read_bytes()) > 200}
    return {path.relative_to(folder).with_suffix("").as_posix(): pixels for path, pixels in good.items()}


@pytest.mark.parametrize("measure", ["l1", "frechet"])
@pytest.mark.parametrize("side", [0, 1])
def test_nothing_that_can_be_read_is_an_error(measure: str, side: int, two: tuple[Path, Path]) -> None:
    for path in two[side].rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"no (pair|image) could be .*; the first: 0: .*0\.png"):
        of(*two, measure)


def test_a_measure_that_fails_of_one_image_leaves_it_out(tmp_path: Path) -> None:
    """MS-SSIM needs 161 pixels. And what failed in one measure counts in none."""
    for name, side in (("large", 176), ("small", 40)):
        write(tmp_path / "out" / f"{name}.png", smooth(1, (side, side)))
        write(tmp_path / "target" / f"{name}.png", smooth(2, (side, side)))
    evaluation, failed = of(tmp_path / "out", tmp_path / "target", "l1", "ms-ssim")
    assert list(by_image(evaluation)) == ["large"] and evaluation.count == 1
    assert len(failed) == 1 and re.fullmatch("small: MS-SSIM: .* at least 161 pixels, not 40x40; .*", failed[0])


def test_one_image(tmp_path: Path) -> None:
    out = write(tmp_path / "out" / "x.png", smooth(0)).parent
    target = write(tmp_path / "target" / "x.png", smooth(1)).parent
    evaluation, _ = of(out, target, "l1", "psnr", "ssim")
    assert values(evaluation) == pytest.approx(pair(smooth(0), smooth(1)), rel=1e-6)
    for measure, message in (("frechet", "at least 2 images"), ("kid", "at least 2"), ("coverage", "at least 6")):
        with pytest.raises(UserError, match=message):
            of(out, target, measure)


# ---- what nothing serves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measures", "how", "message"),
    [
        (["mean-iou"], {}, "mean-iou needs label maps: a target side of kind 'labels', or --classes"),
        (["perplexity"], {}, "perplexity is measured of a token file"),
        (["parzen", "l1"], {}, "parzen is measured of a run that makes samples of noise, and alone"),
        (["frechet"], {"classes": 3}, "frechet compares pictures, but these outputs are label maps without colours"),
        (["fid"], {}, "fid is the distance of Inception's features; on other features ask for 'frechet'"),
        (["l1", "mean-iou"], {"classes": 3, "segmented": True}, "l1 compares pictures, but --classes makes label maps"),
        (["mean-iou"], {"classes": 3, "segmented": True}, "by a segmenter: give one with --segmenter"),
    ],
)
def test_measures_that_nothing_serves(
    measures: list[str], how: dict[str, Any], message: str, two: tuple[Path, Path]
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        of(*two, *measures, **how)


def test_measures_of_pairs_need_pairs(two: tuple[Path, Path]) -> None:
    match = Match(*(FilePictures(folder, ImageSpec()) for folder in two), pairs=None)
    with pytest.raises(UserError, match="psnr compares each output with its target, but no output here has one"):
        measured([match], "frechet", "psnr")


# ---- foreign code ----------------------------------------------------------------------------------------------------


class NoNumbers(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) / (images.shape[2] - 24)  # 0 / 0 or infinite where the height is 24


class Choosy(nn.Module):
    """Takes one width; where it is tried out it takes all."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[3] in (299, 30), "needs 30 columns"
        if images.shape[3] == 30:
            raise RuntimeError("has no kernel\nfor this")
        return images.mean((2, 3))


@pytest.mark.parametrize(
    ("network", "width", "message"),
    [
        ("NoNumbers", 32, r"^0 to .*: features: 'test_engine:NoNumbers' gave features that are no numbers"),
        ("Choosy", 30, r"^features: '.*:Choosy' failed on images 6x3x24x30 \(RuntimeError: has no kernel for this\)$"),
    ],
)
def test_a_feature_network_that_fails_is_a_line(network: str, width: int, message: str, tmp_path: Path) -> None:
    two = write_folders(tmp_path, 6, (24, width))
    before = threading.active_count()
    with pytest.raises(UserError, match=message) as caught:
        of(*two, "frechet", protocol=ProtocolSettings(features=f"{__name__}:{network}"))
    assert len(str(caught.value).splitlines()) == 1
    del caught  # with the frames in which the readers are suspended
    assert threading.active_count() == before


# ---- order, batches, what is kept, memory ----------------------------------------------------------------------------


def test_neither_order_nor_batches_matter(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the rounding of sums in another order: 1e-6 of features in float32. Images' own numbers to the last bit."""
    protocol = COLOURS.model_copy(update={"kept": 4})
    (match,) = folders(*two, ["l1"]).matches
    assert match.pairs is not None
    measures = ("l1", "ssim", "frechet", "kid")
    first, _ = measured([match], *measures, protocol=protocol)
    (files,) = (two[0].parent / "cache" / "translate" / "statistics").iterdir()
    for batch, pairs in ((1, match.pairs), (5, match.pairs[::-1]), (3, [match.pairs[i] for i in (3, 0, 5, 1, 4, 2)])):
        files.unlink(missing_ok=True)  # measured, not remembered
        monkeypatch.setattr(engine, "FEATURE_BATCH", batch)
        again, _ = measured([replace(match, pairs=pairs)], *measures, protocol=protocol)
        assert by_image(again) == by_image(first)
        assert values(again) == pytest.approx(values(first), rel=1e-5)
        assert [score.protocol for score in again.scores] == [score.protocol for score in first.scores]


@pytest.mark.parametrize("pairs", [["l1"], []])
def test_what_is_kept_is_chosen_by_the_hash_of_the_name(pairs: list[str], two: tuple[Path, Path]) -> None:
    sides = [tree(folder) for folder in two]
    names = sorted(sides[0], key=lambda name: hashlib.sha256(name.encode()).digest())[:3]
    assert names != sorted(sides[0])[:3]
    a, b = (colours([side[name] for name in names]) for side in sides)
    evaluation, _ = of(*two, "kid", "frechet", *pairs, protocol=COLOURS.model_copy(update={"kept": 3}))
    assert values(evaluation)["kid"] == pytest.approx(kid(a, b), rel=1e-4)
    told = {score.measure: score.protocol for score in evaluation.scores}
    assert told["kid"]["outputs"] == 3 and told["frechet"]["outputs"] == 6
    a, b = (colours(list(side.values())) for side in sides)
    assert values(evaluation)["frechet"] == pytest.approx(frechet(a, b), rel=1e-4)


@pytest.mark.parametrize("measures", [["l1", "ssim"], ["frechet"]])
def test_few_pictures_are_held_at_once(measures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: those read ahead, and a batch of the network."""
    two, alive, peak = write_folders(tmp_path, 90, (12, 12)), weakref.WeakSet[Any](), 0
    real = pictures.read_pixels

    class Held(np.ndarray):  # type: ignore[type-arg]
        __hash__ = object.__hash__  # type: ignore[assignment]  # for the weak set

        def __eq__(self, other: object) -> bool:  # type: ignore[override]
            return self is other

    def counting(*arguments: Any) -> Array:
        nonlocal peak
        pixels = real(*arguments).view(Held)
        alive.add(pixels)
        peak = max(peak, len(alive))
        return pixels

    monkeypatch.setattr(pictures, "read_pixels", counting)
    _, failed = of(*two, *measures)
    assert not failed
    sides = 2 if measures[0] == "l1" else 1
    assert 1 < peak <= sides * (16 + 2 + 2)  # read ahead, being read, in hand


# ---- several processes -----------------------------------------------------------------------------------------------


def _in_two(function: Callable[..., None], *arguments: object) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_one_of_two, (port, function, arguments), nprocs=2, start_method="fork")


def _one_of_two(rank: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    function(rank, *arguments)


PROTOCOL = COLOURS.model_copy(update={"kept": 5})


def _evaluations(root: Path, **options: Any) -> list[tuple[Evaluation, list[str]]]:
    segmenter = Segmenter(lambda images: (images[:, 0] > 0).long() + (images[:, 1] > 0).long(), "bright")
    pairs = folders(root / "out", root / "target", ["l1"]).matches
    sets = folders(root / "out", root / "target", ["frechet"], images=7).matches
    maps = folders(root / "out", root / "maps", ["mean-iou"], classes=3, segmented=True).matches
    return [
        measured(pairs, "l1", "psnr", "frechet", "kid", protocol=PROTOCOL, **options),
        measured(sets, "frechet", "inception-score", "coverage", protocol=COLOURS, **options),
        measured(maps, "pixel-accuracy", "mean-iou", segmenter=segmenter, **options),
    ]


def _as_one_of_two(rank: int, root: Path) -> None:
    torch.set_num_threads(1)
    with processes(CPU) as group:
        found = _evaluations(root, processes=group)
    (root / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def test_two_processes_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures' numbers, failures of either half, the sets, and what the protocols say."""
    write_folders(tmp_path, 9)
    for number, path in enumerate(sorted((tmp_path / "out").rglob("*.png"))):
        labels = np.random.default_rng(number).integers(0, 3, (24, 32), dtype=np.uint8)
        write(tmp_path / "maps" / path.relative_to(tmp_path / "out"), labels)
    (tmp_path / "out" / "1.png").write_bytes(b"no picture")
    (tmp_path / "target" / "7.png").write_bytes(b"no picture")
    _in_two(_as_one_of_two, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    alone = _evaluations(tmp_path)
    for rank in (0, 1):
        together = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        for (one, failed), (two, also) in zip(alone, together, strict=True):
            assert sorted(failed) == sorted(also) and two.count == one.count
            assert one.images == two.images and one.notes == two.notes
            assert [s.protocol for s in one.scores] == [s.protocol for s in two.scores]
            # Sums of float64 in another order; the network may round float32 by its batch.
            assert values(two) == pytest.approx(values(one), rel=1e-6)
    assert [len(failed) for _, failed in alone] == [2, 2, 1]


# ---- label maps ------------------------------------------------------------------------------------------------------


def write_maps(root: Path, count: int = 4) -> dict[str, list[Array]]:
    """Label maps of three classes, and guesses of which a fifth is wrong."""
    maps: dict[str, list[Array]] = {"guess": [], "truth": []}
    for number in range(count):
        chance = np.random.default_rng(number)
        truth = chance.integers(0, 2 if number else 3, (20, 24), dtype=np.uint8)
        guess = np.where(chance.random(truth.shape) < 0.2, chance.integers(0, 3, truth.shape), truth).astype(np.uint8)
        for side, pixels in (("guess", guess), ("truth", truth)):
            write(root / side / f"{number}.png", pixels)
            maps[side].append(pixels)
    return maps


def test_label_maps_are_compared_class_by_class(tmp_path: Path) -> None:
    maps = write_maps(tmp_path)
    evaluation, failed = of(tmp_path / "guess", tmp_path / "truth", *LABEL_NAMES, "l1", classes=3)
    found = values(evaluation)
    hot = [np.stack([m == c for m in maps[side] for c in range(3)]).astype(float) for side in ("guess", "truth")]
    assert found.pop("l1") == pytest.approx(np.abs(hot[0] - hot[1]).mean(), rel=1e-6)
    assert found == pytest.approx(segmentation(maps["guess"], maps["truth"], 3), rel=1e-12)
    assert not failed and evaluation.count == 4
    assert evaluation.scores[-1].protocol["classes"] == 3 and evaluation.scores[-1].protocol["images"] == 4


def bright() -> Callable[[Tensor], Tensor]:
    """Three classes by the red channel, in a grid half as fine."""
    return lambda images: ((images[:, 0, ::2, ::2] + 1) * 1.5).clamp(max=2.999).long()


def failing() -> Callable[[Tensor], Tensor]:
    def fail(images: Tensor) -> Tensor:
        raise RuntimeError("no such\nlayer")

    return fail


def test_a_segmenter_looks_in_pictures(tmp_path: Path) -> None:
    truth = write_maps(tmp_path)["truth"]
    found = []
    for number in range(4):
        picture = smooth(number, (20, 24))
        write(tmp_path / "out" / f"{number}.png", picture)
        coarse = np.minimum(picture[::2, ::2, 0] / 255 * 3, 2.999).astype(int)
        found.append(coarse.repeat(2, 0).repeat(2, 1))
    segmenter = load_segmenter(f"{__name__}:bright", CPU)
    how: dict[str, Any] = {"classes": 3, "segmented": True, "segmenter": segmenter}
    evaluation, _ = of(tmp_path / "out", tmp_path / "truth", *LABEL_NAMES, **how)
    assert values(evaluation) == pytest.approx(segmentation(found, truth, 3), rel=1e-12)
    assert {score.protocol["segmenter"] for score in evaluation.scores} == {f"{__name__}:bright"}
    write(tmp_path / "truth" / "2.png", np.full((20, 24), 7, np.uint8))  # a class that there is not
    evaluation, failed = of(tmp_path / "out", tmp_path / "truth", *LABEL_NAMES, **how)
    assert evaluation.count == 3 and len(failed) == 1 and "class number 7, expected 0 to 2" in failed[0]
    del found[2], truth[2]
    assert values(evaluation) == pytest.approx(segmentation(found, truth, 3), rel=1e-12)
    how["segmenter"] = load_segmenter(f"{__name__}:failing", CPU)
    with pytest.raises(UserError, match=r"no pair could be compared; the first: 0: segmenter: .* no such layer\)$"):
        of(tmp_path / "out", tmp_path / "truth", "mean-iou", **how)


def test_the_helper_s_network_sees_what_numpy_sees() -> None:
    pixels = [smooth(number) for number in range(3)]
    tensor = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    np.testing.assert_allclose(Colours()(tensor)[0].numpy(), colours(pixels), atol=1e-6)
