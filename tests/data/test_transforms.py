"""Geometry and colour against Albumentations, PIL and torchvision."""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from translate.data.spec import ImageSpec
from translate.data.transforms import AugmentSettings, ColourSettings, Pixels, Transform, resize

IMAGE = ImageSpec()
PAIR = {"A": IMAGE, "B": IMAGE}


def photo(height: int, width: int, channels: int = 3, seed: int = 0, dtype: Any = np.uint8) -> Pixels:
    """Smooth random colours."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((8, 8, channels), dtype=np.float32)
    fine = np.stack(
        [cv2.resize(coarse[..., c], (width, height), interpolation=cv2.INTER_CUBIC) for c in range(channels)],
        axis=2,
    )
    top = np.iinfo(dtype).max
    return np.rint(np.clip(fine, 0, 1) * top).astype(dtype)


def test_crop_and_flip_are_those_of_albumentations() -> None:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    transform = Transform(AugmentSettings(resize=40, crop=32), PAIR, training=True)
    sample = {"A": photo(36, 38), "B": photo(36, 38, seed=1)}
    prepared = transform.prepare(sample)
    whole = albumentations.Compose(
        [albumentations.Resize(40, 40, interpolation=cv2.INTER_CUBIC)], additional_targets={"B": "image"}
    )(image=sample["A"], B=sample["B"])
    seen = set()
    for position in range(20):
        top, left, mirror = np.random.default_rng(position).random(3)
        y, x = int(top * 9), int(left * 9)
        steps = [albumentations.Crop(x, y, x + 32, y + 32)]
        if mirror < 0.5:
            steps.append(albumentations.HorizontalFlip(p=1))
        want = albumentations.Compose(steps, additional_targets={"B": "image"})(image=whole["image"], B=whole["B"])
        got = transform.augment(prepared, np.random.default_rng(position))
        np.testing.assert_array_equal(got["A"], want["image"])
        np.testing.assert_array_equal(got["B"], want["B"])
        seen.add((y, x, mirror < 0.5))
    assert len(seen) > 15


def test_a_corner_can_be_cropped_on_every_side() -> None:
    transform = Transform(AugmentSettings(resize=None, crop=4, flip=False), {"A": IMAGE}, training=True)
    rows, columns = np.mgrid[:6, :6].astype(np.uint8)
    pixels = np.stack([rows, columns, rows], axis=2)
    corners = {
        tuple(transform.augment({"A": pixels}, np.random.default_rng(seed))["A"][0, 0, :2].tolist())
        for seed in range(200)
    }
    assert corners == {(y, x) for y in range(3) for x in range(3)}


def test_both_sides_get_the_same_geometry_and_labels_stay_classes() -> None:
    specs = {"A": ImageSpec(kind="labels", classes=300), "B": IMAGE}
    transform = Transform(AugmentSettings(resize=45, crop=40), specs, training=True)
    classes = np.zeros((60, 60, 1), np.uint16)
    classes[20:40, 10:30] = 299
    picture = np.repeat((classes > 0).astype(np.uint8) * 255, 3, axis=2)
    prepared = transform.prepare({"A": classes, "B": picture})
    for seed in range(8):
        out = transform.augment(prepared, np.random.default_rng(seed))
        assert out["A"].shape == (40, 40, 1) and out["A"].dtype == np.uint16
        assert set(np.unique(out["A"])) <= {0, 299}
        # The picture's edge is smooth: half light is where the class changes.
        np.testing.assert_array_equal(out["A"][..., 0] == 299, out["B"][..., 0] >= 128)


@pytest.mark.parametrize(
    ("settings", "shape", "training", "expected"),
    [
        ({"resize": 40, "crop": 32}, (50, 70), True, (40, 40)),
        ({"resize": 40, "crop": 32}, (50, 70), False, (32, 32)),
        ({"resize": 40, "crop": None}, (50, 70), False, (40, 40)),
        ({"resize": 40, "crop": 32, "resize_by": "shorter"}, (50, 75), True, (40, 60)),
        ({"resize": 40, "crop": 32, "resize_by": "shorter"}, (50, 75), False, (32, 32)),
        ({"resize": None, "crop": 32}, (50, 70), True, (50, 70)),
        ({"resize": None, "crop": 32}, (50, 70), False, (32, 32)),
        ({"resize": None, "crop": 32}, (16, 24), True, (32, 48)),
        ({"resize": None, "crop": None}, (50, 70), True, (50, 70)),
        ({"resize": None, "crop": None}, (50, 70), False, (50, 70)),
        ({"resize": 40, "crop": 32}, (1, 5000), True, (40, 40)),
    ],
)
def test_sizes(settings: Any, shape: tuple[int, int], training: bool, expected: tuple[int, int]) -> None:
    transform = Transform(AugmentSettings(**settings), {"A": IMAGE}, training=training)
    assert transform.prepare({"A": np.zeros((*shape, 3), np.uint8)})["A"].shape == (*expected, 3)


def test_evaluation_cuts_out_the_middle() -> None:
    transform = Transform(AugmentSettings(resize=None, crop=2), {"A": IMAGE}, training=False)
    pixels = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
    assert transform.prepare({"A": pixels})["A"][..., 0].tolist() == [[14, 15], [20, 21]]


@pytest.mark.parametrize("size", [(286, 286), (128, 128), (60, 300)])
def test_resize_is_near_pils_bicubic(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pixels = cv2.GaussianBlur(noise, (0, 0), 1.0)
    want = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)).astype(float)
    ours = np.sqrt(np.mean((resize(pixels, size, labels=False) - want) ** 2))
    nearest = np.sqrt(np.mean((resize(pixels, size, labels=True) - want) ** 2))
    assert ours < 4 and ours < nearest / 2


def test_shrinking_does_not_alias() -> None:
    # Stripes of one pixel are grey from afar; without antialiasing they turn into black, white or moire.
    stripes = np.tile(np.array([0, 255], np.uint8), (200, 100))[..., None]
    assert np.abs(resize(stripes, (50, 50), labels=False).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 200])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(12, 12), (40, 44), (12, 44)])
def test_channels_are_resized_one_by_one(channels: int, dtype: Any, size: tuple[int, int]) -> None:
    pixels = photo(24, 30, channels, dtype=dtype)
    whole = resize(pixels, size, labels=False)
    assert whole.shape == (*size, channels) and whole.dtype == dtype
    alone = resize(np.ascontiguousarray(pixels[..., -1:]), size, labels=False)
    np.testing.assert_allclose(whole[..., -1:].astype(float), alone.astype(float), atol=1)


def colour_transform(side: str = "A", **colour: float) -> Transform:
    settings = AugmentSettings(resize=None, crop=None, flip=False, colour=ColourSettings(**colour))
    return Transform(settings, PAIR, training=True, colour_side=side)


def test_colour_changes_one_side_and_not_alpha() -> None:
    sample = {"A": photo(32, 32, 4), "B": photo(32, 32)}
    out = colour_transform(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2).augment(
        sample, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(out["B"], sample["B"])
    np.testing.assert_array_equal(out["A"][..., 3], sample["A"][..., 3])
    assert np.abs(out["A"][..., :3].astype(int) - sample["A"][..., :3]).mean() > 5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_brightness_is_one_factor_in_its_range(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    pixels = (photo(32, 32, dtype=dtype) // 3).astype(dtype)  # dark enough that no factor up to 1.5 clips
    transform = colour_transform(brightness=0.5)
    factors = []
    for seed in range(40):
        out = transform.augment({"A": pixels, "B": pixels}, np.random.default_rng(seed))["A"]
        assert out.dtype == dtype
        factor = out.astype(float).sum() / pixels.astype(float).sum()
        np.testing.assert_allclose(out.astype(float), pixels * factor, atol=top * 0.005)
        factors.append(factor)
    assert 0.49 < min(factors) < 0.6 and 1.4 < max(factors) < 1.51


@pytest.mark.parametrize("channels", [1, 2, 5, 200])
def test_flips_keep_all_channels(channels: int) -> None:
    transform = Transform(AugmentSettings(resize=None, crop=None), {"A": IMAGE}, training=True)
    pixels = photo(9, 7, channels)
    results = [transform.augment({"A": pixels}, np.random.default_rng(seed))["A"] for seed in range(10)]
    mirrored = [bool((result == pixels[:, ::-1]).all()) for result in results]
    assert any(mirrored) and not all(mirrored)
    for result, flipped in zip(results, mirrored, strict=True):
        np.testing.assert_array_equal(result, pixels[:, ::-1] if flipped else pixels)


def test_grey_images_take_colour_too() -> None:
    specs = {"A": ImageSpec(channels=1)}
    settings = AugmentSettings(resize=None, crop=None, flip=False, colour=ColourSettings(brightness=0.5, hue=0.1))
    transform = Transform(settings, specs, training=True, colour_side="A")
    out = transform.augment({"A": photo(16, 16, 1)}, np.random.default_rng(3))["A"]
    assert out.shape == (16, 16, 1)


def test_the_same_generator_gives_the_same_sample() -> None:
    transform = Transform(
        AugmentSettings(resize=40, crop=32, colour=ColourSettings(brightness=0.4, hue=0.3)),
        PAIR,
        training=True,
        colour_side="B",
    )
    prepared = transform.prepare({"A": photo(40, 40), "B": photo(40, 40, seed=1)})
    first = transform.augment(prepared, np.random.default_rng((5, 1, 7)))
    np.random.seed(99)  # noqa: NPY002  (a foreign change of the global generator must not matter)
    transform.augment(prepared, np.random.default_rng((5, 1, 8)))
    again = transform.augment(prepared, np.random.default_rng((5, 1, 7)))
    for side in PAIR:
        np.testing.assert_array_equal(first[side], again[side])


def test_a_crop_above_the_resize_names_both_keys() -> None:
    with pytest.raises(ValidationError, match=r"'crop' is 300 but 'resize' is 286"):
        AugmentSettings(crop=300)


def test_colour_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least one of brightness"):
        ColourSettings()
