"""What is measured of runs that enlarge, against numpy's bicubic, scikit-image's SSIM and the files that it makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from measured import Array, export, luma, pair, read, smooth, tree, values, write

from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.evaluation.engine import Options, evaluate
from translate.evaluation.pictures import EnlargedPictures, FilePictures
from translate.evaluation.subjects import (
    Subject,
    baselines,
    default_measures,
    enlarging,
    show_best_and_worst,
    write_grid,
)
from translate.inference.folder import convert
from translate.inference.report import THUMBNAIL
from translate.inference.translator import Translator
from translate.metrics.protocol import ProtocolSettings
from translate.metrics.scores import Evaluation
from translate.run import load_weights

METHOD = {"kind": "srgan", "generator": {"kind": "srresnet", "blocks": 1, "width": 4}, "discriminator": None}
DATA: dict[str, Any] = {"kind": "super-resolution", "scale": 4, "validation": None, "workers": 0}
SIZES = [(48, 64), (49, 66), (51, 63), (70, 48)]
FIELD = ProtocolSettings(channels="luma", border=4)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resizing(length: int, out: int) -> Array:
    """The matrix (out, length) of Keys' kernel, widened where it shrinks, over a line mirrored beyond its ends."""
    wide = max(length / out, 1)
    matrix = np.zeros((out, length))
    mirrored = [*range(length), *reversed(range(length))]
    for row in range(out):
        centre = (row + 0.5) * length / out - 0.5
        for pixel in range(-length, 2 * length):
            matrix[row, mirrored[pixel % (2 * length)]] += cubic((pixel - centre) / wide)
    return np.asarray(matrix / matrix.sum(1, keepdims=True))


def resized(pixels: Array, size: tuple[int, int], *, rounded: bool) -> Array:
    """(H, W, 3) -> (*size, 3) of the same type; with `rounded` after the vertical pass too."""
    top = np.iinfo(pixels.dtype).max
    x = np.einsum("ij,jkc->ikc", resizing(pixels.shape[0], size[0]), pixels.astype(np.float64))
    if rounded:
        x = np.clip(np.floor(x + 0.5), 0, top)
    x = np.einsum("ij,kjc->kic", resizing(pixels.shape[1], size[1]), x)
    return np.clip(np.floor(x + 0.5), 0, top).astype(pixels.dtype)


def cut(pixels: Array) -> Array:
    return pixels[: len(pixels) // 4 * 4, : pixels.shape[1] // 4 * 4]


def low_of(pixels: Array) -> Array:
    height, width = cut(pixels).shape[:2]
    return resized(cut(pixels), (height // 4, width // 4), rounded=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of odd sizes below `test`, one stored grey, and one of 16 bits below `deep`; their low resolutions below
    `low`, made by numpy."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, size in enumerate(SIZES):
        pixels = cv2.resize(smooth(number, size), size[::-1]) ^ (smooth(number + 50, size) & 31)
        if number == 2:
            pixels = np.repeat(pixels[..., :1], 3, axis=2)
        write(folder / "test" / f"{number}.png", pixels[..., 0] if number == 2 else pixels)
        write(folder / "low" / f"{number}x4.png", low_of(pixels))
    write(folder / "deep" / "0.png", smooth(3, (48, 48)).astype(np.uint16) * 257)
    write(folder / "train" / "0.png", smooth(9, (128, 128)))
    return folder


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that enlarge about as bicubic does would show no mistakes of colour; these are as chance made them."""
    return export(tmp_path_factory.mktemp("runs") / "0001-small", METHOD, {**DATA, "root": str(root)})


def of(weights: Path, **how: Any) -> Subject:
    return enlarging(load_weights(weights), device="cpu", precision="fp32", **how)


def measured(subject: Subject, *measures: str, protocol: ProtocolSettings = FIELD) -> Evaluation:
    options = Options(measures=measures or ("psnr", "ssim"), protocol=protocol)
    found, failed = evaluate(subject.matches, options, subject=subject.title, reference=subject.reference)
    assert not failed
    return found


def inner(pixels: Array) -> Array:
    return pixels[4:-4, 4:-4]


def expected(outputs: list[Array], targets: list[Array]) -> dict[str, float]:
    """Means of PSNR and SSIM on luma without a border of 4, and PSNR of what is made small again, all of it."""
    each = []
    for output, target in zip(outputs, targets, strict=True):
        found = pair(*(inner(luma(picture)) for picture in (output, target)))
        again = pair(low_of(output), low_of(target))
        each.append({"psnr": found["psnr"], "ssim": found["ssim"], "consistency psnr": again["psnr"]})
    return {name: float(np.mean([values[name] for values in each])) for name in each[0]}


def highs(root: Path) -> list[Array]:
    return [cut(pixels) for pixels in tree(root / "test").values()]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_a_run_has_the_numbers_of_the_folder_it_makes(run: Path, root: Path, tmp_path: Path) -> None:
    """Odd sizes are cut, a grey file counts as RGB, and the low resolutions are MATLAB's bytes of them."""
    for name, pixels in tree(root / "test").items():
        write(tmp_path / "low" / f"{name}.png", low_of(pixels))
    convert(Translator.load(run, device="cpu", precision="fp32"), tmp_path / "low", tmp_path / "out")
    outputs = list(tree(tmp_path / "out").values())
    assert [o.shape for o in outputs] == [t.shape for t in highs(root)]
    subject = of(run)
    found = measured(subject)
    assert values(found) == pytest.approx(expected(outputs, highs(root)), rel=1e-6)
    assert (subject.split, subject.reference, subject.scale) == ("test", f"test split of {root}", 4)


def test_each_number_tells_how_it_came_about(run: Path, root: Path) -> None:
    found = measured(of(run))
    assert [score.label for score in found.scores] == ["PSNR", "SSIM", "consistency PSNR"]
    for score in found.scores[:2]:
        assert {"scale": 4, "low resolution": "bicubic uint8", "channels": "luma", "border": 4}.items() <= (
            score.protocol.items()
        )
    assert found.scores[1].protocol["window"] == "gaussian 11x11, sigma 1.5, inside the image"
    small = found.scores[2].protocol
    assert {"made small": "bicubic uint8", "channels": "rgb", "border": 0}.items() <= small.items()
    files = measured(of(run, target=root / "test", overrides=[f"data.low={root / 'low'}"]))
    assert files.scores[0].protocol["low resolution"] == "files"


def test_a_folder_of_pictures_is_as_a_split_of_them(run: Path, root: Path) -> None:
    """Its low resolutions made as the run's, or read: the same pictures here."""
    split = values(measured(of(run)))
    subject = of(run, target=root / "test")
    assert (subject.split, subject.reference) == (None, str(root / "test"))
    assert values(measured(subject)) == split
    assert values(measured(of(run, target=root / "test", overrides=[f"data.low={root / 'low'}"]))) == split


def test_low_resolutions_that_a_run_learnt_from_are_not_those_of_another_folder(root: Path, tmp_path: Path) -> None:
    data = {**DATA, "root": str(root), "low": "nowhere", "high": {"path": "train"}}
    weights = export(tmp_path / "run", METHOD, data)
    assert values(measured(of(weights, target=root / "test")))["psnr"] > 0


def test_another_degradation_makes_way_for_files(root: Path, tmp_path: Path) -> None:
    data = {**DATA, "root": str(root), "degradation": {"kind": "bicubic", "convention": "double"}}
    weights = export(tmp_path / "run", METHOD, data)
    found = measured(of(weights, target=root / "test"))
    assert found.scores[0].protocol["low resolution"] == "bicubic double"
    files = measured(of(weights, target=root / "test", overrides=[f"data.low={root / 'low'}"]))
    assert files.scores[0].protocol["low resolution"] == "files"


def test_bicubic_is_the_baseline(run: Path, root: Path) -> None:
    subject = of(run)
    found, notes = baselines(load_weights(run), subject, ["psnr"])
    assert list(found) == ["bicubic"] and notes == []
    outputs = [resized(low_of(high), high.shape[:2], rounded=False) for high in highs(root)]
    assert values(measured(found["bicubic"])) == pytest.approx(expected(outputs, highs(root)), rel=1e-6)
    rgb = measured(found["bicubic"], "psnr", protocol=ProtocolSettings(border=4))
    wanted = [pair(inner(a), inner(b))["psnr"] for a, b in zip(outputs, highs(root), strict=True)]
    assert values(rgb)["psnr"] == pytest.approx(np.mean(wanted), rel=1e-6)


def test_a_picture_of_16_bits(run: Path, root: Path, tmp_path: Path) -> None:
    """Its low resolution is made of 8, as the run learnt from it; as a file it may have 16, and so has the output."""
    assert measured(of(run, target=root / "deep")).scores[0].protocol["bits"] == 8
    low = np.rint(cv2.resize(read(root / "deep" / "0.png"), (12, 12), interpolation=cv2.INTER_AREA)).astype(np.uint16)
    write(tmp_path / "0.png", low)
    deep = of(run, target=root / "deep", overrides=[f"data.low={tmp_path}"])
    assert measured(deep).scores[0].protocol["bits"] == 16
    (made,) = EnlargedPictures(FilePictures(tmp_path, ImageSpec()), 4).stream([0], lambda pixels: pixels)
    assert isinstance(made, np.ndarray) and made.dtype == np.uint16
    assert np.array_equal(made, resized(low, (48, 48), rounded=False))


def test_images_too_small_for_lpips_or_a_border_are_no_hindrance_to_the_consistency(run: Path, root: Path) -> None:
    """Low resolutions of 12 pixels, of which a border of 4 would leave 4, and a window of SSIM nothing."""
    found = measured(of(run), "psnr", "ssim")
    assert {name for name in values(found) if name.startswith("consistency")} == {"consistency psnr"}
    subject = of(run, measures=["ssim"])
    assert len(subject.matches) == 1 and set(values(measured(subject, "ssim"))) == {"ssim"}


def test_measures_where_nobody_says(run: Path) -> None:
    names, notes = default_measures(of(run))
    assert names == ["psnr", "ssim"] and "LPIPS was left out" in notes[0]


def test_some_images_alone(run: Path) -> None:
    found = measured(of(run, images=2))
    assert [image.name for image in found.images] == ["0", "2"] and found.count == 2


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_show_the_low_resolution_enlarged_pixel_by_pixel(run: Path, root: Path, tmp_path: Path) -> None:
    big = smooth(7, (THUMBNAIL + 80, THUMBNAIL + 40))
    write(tmp_path / "high" / "big.png", big)
    subject = of(run, target=tmp_path / "high")
    shown = show_best_and_worst(measured(subject), subject, tmp_path / "shown").pictures
    assert list(shown[0].files) == ["input", "output", "target"]
    pictures = [cv2.imread(str(tmp_path / "shown" / file))[..., ::-1] for file in shown[0].files.values()]
    assert all(picture.shape == (THUMBNAIL, THUMBNAIL, 3) for picture in pictures)
    middle = big[40 : 40 + THUMBNAIL, 20 : 20 + THUMBNAIL]
    squares = low_of(big).repeat(4, 0).repeat(4, 1)[40 : 40 + THUMBNAIL, 20 : 20 + THUMBNAIL]
    for picture, wanted in ((pictures[0], squares), (pictures[2], middle)):  # WebP of quality 90
        assert np.abs(picture.astype(int) - wanted).mean() < 3

    subject = of(run)
    write_grid(tmp_path / "grid.png", subject)  # of many sizes: of each the middle of the smallest side
    assert read(tmp_path / "grid.png").shape == (2 * 48, 2 * 3 * 48 + 12, 3)


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"direction": "BtoA"}, "has no direction 'BtoA'; it offers AtoB"),
        ({"target": Path("/nowhere")}, "/nowhere"),
        ({"target": Path("ROOT/test"), "split": "test"}, "is a folder, which has none; leave one of the two out"),
        ({"target": Path("ROOT/test"), "overrides": ["data.low=ROOT/deep"]}, "data, train:"),
        ({"overrides": ["data.low=nowhere"]}, "nowhere"),
        ({"split": "validation"}, "there is no such split"),
    ],
)
def test_mistakes_are_told(how: dict[str, Any], message: str, run: Path, root: Path) -> None:
    how = {key: Path(str(value).replace("ROOT", str(root))) if key == "target" else value for key, value in how.items()}
    if "overrides" in how:
        how["overrides"] = [item.replace("ROOT", str(root)) for item in how["overrides"]]
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        of(run, **how)
    assert "\n" not in str(raised.value)


def test_low_resolutions_of_another_size_are_listed(run: Path, root: Path, tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.png", smooth(number, (12, 16)))  # fits the first two alone
    subject = of(run, target=root / "test", overrides=[f"data.low={tmp_path}"])
    found, failed = evaluate(subject.matches, Options(("psnr",), FIELD), subject="", reference="")
    assert found.count == 2 and len(failed) == 2
    assert "2.png: is 16x12 pixels, expected 15x12: 1/4 of" in failed[0]


def test_stages_have_names_of_their_own(run: Path, tmp_path: Path) -> None:
    stage = tmp_path / "0002-x" / "stage-pixel.safetensors"
    stage.parent.mkdir()
    stage.write_bytes(run.read_bytes())
    assert of(stage).title == "0002-x/stage-pixel at step 1,234"
