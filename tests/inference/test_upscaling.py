"""Pictures with more pixels: transparency, grey, depth, sizes, and two stages of a run between which one can choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from translate import config as configs
from translate.config import Config
from translate.data.images import read_image, write_image
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.inference.folder import ConvertOptions, convert
from translate.inference.translator import Translator
from translate.run import Run, Weights, interpolated, load_weights, stages_of

COLOUR, GREY = ImageSpec(), ImageSpec(channels=1)
RED, GREEN = (230, 20, 60), (0, 255, 0)


class Enlarging(nn.Module):
    """A function of the bicubic enlargement, which overshoots at edges as trained networks do."""

    multiple = smallest = 1

    def __init__(self, scale: int = 2, then: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.scale, self.then = scale, then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(F.interpolate(x, scale_factor=self.scale, mode="bicubic"))


def enlarging(scale: int = 2, then: Callable[[Tensor], Tensor] = lambda x: x, **options: Any) -> Translator:
    spec = options.pop("spec", COLOUR)
    return Translator(Enlarging(scale, then), spec, spec, device="cpu", precision="fp32", **options)


def sprite(dtype: type = np.uint8) -> np.ndarray:
    """A red disc with a soft edge; what is transparent, and what shows but a little, hides green: (40, 48, 4)."""
    y, x = np.mgrid[:40, :48]
    cover = (14.5 - np.hypot(y - 20, x - 22)).clip(0, 1)
    picture = np.empty((40, 48, 4), np.uint8)
    picture[..., :3] = np.where(cover[..., None] > 0, RED, GREEN)
    picture[..., 3] = np.rint(255 * cover)
    return (picture * np.uint16(257)).astype(dtype) if dtype is np.uint16 else picture


# Transparency


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("options", [{}, {"outscale": 3}, {"tile": 32}], ids=["", "outscale", "tiles"])
def test_hidden_colours_do_not_bleed(scale: int, dtype: type, options: dict[str, Any]) -> None:
    """All that shows is red, whatever it is enlarged with; over white, the network would have made it pink."""
    image = sprite(dtype)
    made = enlarging(scale, **options)(image)
    factor = options.get("outscale", scale)
    assert made.dtype == dtype and made.shape == (40 * factor, 48 * factor, 4)
    made = made.astype(float) / (257 if dtype is np.uint16 else 1)
    alpha = made[..., 3]
    # A level of rounding of the colour times alpha is 255 / alpha levels of the colour.
    apart = np.abs(made[..., :3] - RED).max(axis=2)[alpha >= 4]
    assert apart.max() <= 2
    assert (made[alpha == 0] == 0).all()
    # Nothing solid became transparent, and nothing shows where nothing was, 3 x 3 pixels around.
    solid = cv2.erode(sprite()[..., 3], np.ones((5, 5))) == 255
    empty = cv2.dilate(sprite()[..., 3], np.ones((5, 5))) == 0
    size = (made.shape[1], made.shape[0])
    inside, outside = (
        cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for mask in (solid, empty)
    )
    assert (alpha[inside == 1] == 255).all() and (alpha[outside == 1] == 0).all()
    assert 0 < (alpha[(inside == 0) & (outside == 0)]).mean() < 255


def test_a_network_that_is_off_leaves_what_is_solid_solid() -> None:
    """Here every level comes out three less, and -1 three more: alpha stays within what was around."""
    made = enlarging(2, lambda x: x * 0.97)(sprite())
    alpha = made[..., 3].reshape(40, 2, 48, 2)
    assert (alpha[20, :, 22] == 255).all() and (alpha[0, :, 0] == 0).all()
    # Its white has a brightness of 251.2 then: what it makes of red is compared with that.
    made_of_red = 127.5 + 0.97 * (np.array(RED) - 127.5)
    assert np.abs(made[40, 44, :3] - made_of_red * 255 / (127.5 + 0.97 * 127.5)).max() <= 1


def test_the_network_enlarges_alpha_as_it_enlarges_light() -> None:
    """A network that sharpens sharpens both, so edges fit: here it cuts at the middle."""
    made = enlarging(4, lambda x: torch.where(x > 0, 1.0, -1.0))(sprite())
    bicubic = enlarging(4)(sprite())
    assert set(np.unique(made[..., 3])) == {0, 255}
    np.testing.assert_array_equal(made[..., 3] == 255, bicubic[..., 3] > 127)


def test_an_opaque_picture_is_as_without_alpha() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    image[..., 3] = 255
    made = enlarging()(image)
    np.testing.assert_array_equal(made[..., :3], enlarging()(image[..., :3]))
    assert (made[..., 3] == 255).all()


def test_nothing_but_transparency() -> None:
    image = np.full((8, 9, 4), 200, np.uint8)
    image[..., 3] = 0
    assert (enlarging()(image) == 0).all()


# Grey


def test_grey_stays_grey() -> None:
    """0.299 R + 0.587 G + 0.114 B of what a network makes that gives each channel another brightness."""
    weights = torch.tensor([0.5, 0.8, 0.2])[:, None, None]
    image = np.random.default_rng(0).integers(0, 256, (16, 21), dtype=np.uint8)
    made = enlarging(2, lambda x: x * weights)
    found = made(image)
    assert found.shape == (32, 42)
    colours = made(np.repeat(image[..., None], 3, axis=2)).astype(float)
    assert colours.shape == (32, 42, 3)
    assert np.abs(found - colours @ [0.299, 0.587, 0.114]).max() <= 0.51
    np.testing.assert_array_equal(np.asarray(made(Image.fromarray(image))), found)

    both = np.dstack([image, np.tile(np.linspace(0, 255, 21).astype(np.uint8), (16, 1))])
    assert made(both).shape == (32, 42, 2)
    assert made(Image.fromarray(both, "LA")).mode == "LA"


def test_a_grey_network_enlarges_alpha_itself() -> None:
    image = np.dstack([np.full((12, 14), 90, np.uint8), sprite()[10:22, 16:30, 3]])
    made = enlarging(spec=GREY)(image)
    assert made.shape == (24, 28, 2) and np.abs(made[..., 0].astype(int) - 90).max() <= 1


def test_files_keep_what_they_are(tmp_path: Path) -> None:
    """8 and 16 bits, grey, grey with alpha, RGBA, orientation, sub-folders and names."""
    generator, source = np.random.default_rng(0), tmp_path / "in"
    for name, channels, dtype in (
        ("grey.png", 1, np.uint8),
        ("sub/grey16.png", 1, np.uint16),
        ("sub/deep/colour.tif", 3, np.uint16),
        ("photo.jpg", 3, np.uint8),
    ):
        pixels = generator.integers(0, np.iinfo(dtype).max + 1, (9, 13, channels), dtype=dtype)
        write_image(source / name, pixels)
    write_image(source / "both.png", sprite()[..., :1], alpha=sprite()[..., 3])
    write_image(source / "sprite.png", sprite()[..., :3], alpha=sprite()[..., 3])
    turned = Image.fromarray(generator.integers(0, 256, (8, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(source / "turned.png", exif=exif)

    made = enlarging(4)
    summary = convert(made, source, tmp_path / "out", ConvertOptions(report=True))
    assert summary.written == 7 and not summary.failed and not summary.notes
    for path in sorted(source.rglob("*.*")):
        before, after = read_image(path), read_image(tmp_path / "out" / path.relative_to(source))
        height, width, channels = before.pixels.shape
        assert after.pixels.shape == (4 * height, 4 * width, channels), path
        assert after.pixels.dtype == before.pixels.dtype and (after.alpha is None) == (before.alpha is None)
        if path.suffix != ".jpg":
            whole = made(path)
            np.testing.assert_array_equal(after.pixels, whole[..., : after.pixels.shape[2]])


# Sizes


@pytest.mark.parametrize("factor", [0.5, 1, 1.5, 2, 3, 4, 6.3])
def test_outscale_is_the_size_of_the_result(factor: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (11, 17, 3), dtype=np.uint8)
    made = enlarging(4, outscale=factor)(image)
    assert made.shape == (round(factor * 11), round(factor * 17), 3)
    size = (made.shape[1], made.shape[0])
    expected = Image.fromarray(enlarging(4)(image)).resize(size, Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(made, np.asarray(expected))
    calm = image // 4 + 96  # nothing overshoots: of 8 bits that is cut off after each of Pillow's two passes
    made, deep = (enlarging(4, outscale=factor)(one) for one in (calm, calm * np.uint16(257)))
    # Rounded to 8 bits before, between the passes and after; Lanczos makes at most 1.5 halves of a half.
    assert deep.dtype == np.uint16 and np.abs(deep / 257 - made).max() <= 2


def test_outscale_s_own_factor_changes_nothing() -> None:
    image = sprite()
    np.testing.assert_array_equal(enlarging(2, outscale=2)(image), enlarging(2)(image))
    assert "size" not in enlarging(2, outscale=2).describe()
    assert enlarging(2, outscale=3).describe()["size"] == "3 times the input's"


def test_outscale_of_classes_invents_none() -> None:
    labels = ImageSpec(kind="labels", classes=4)
    same = Enlarging(2)
    same.scale = 1
    numbers = np.random.default_rng(0).choice(np.array([0, 3], np.uint8), (12, 12))
    made = Translator(same, labels, labels, device="cpu", precision="fp32", outscale=1.5)(numbers)
    assert made.shape == (18, 18) and set(np.unique(made)) == {0, 3}


@pytest.mark.parametrize("factor", [0, -1, float("inf"), float("nan")])
def test_outscales_that_cannot_be(factor: float) -> None:
    with pytest.raises(UserError, match="expected a factor above 0"):
        enlarging(outscale=factor)


# Between two stages


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has finished both stages, with weights of its own in each."""
    folder = tmp_path_factory.mktemp("run")
    config = small(folder)
    (folder / "config.yaml").write_text(configs.dump(config))
    for seed, name in enumerate(("stage-pixel", "last")):
        torch.manual_seed(seed)
        networks = config.method.build(config.data, inference=True).exported()
        for tensor in networks.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(0, 0.1)
            else:
                tensor.fill_(seed + 5)
        for module in networks.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_var is not None
                module.running_var.abs_().add_(0.5)
        Run(folder).export(name, config, networks, step=seed, images=seed)
    return folder


def small(folder: Path) -> Config:
    # No spectral norm: its power iterations are run even where the discriminator has no numbers.
    changes = [
        "method.discriminator.spectral_norm=false",
        "method.generator.blocks=1",
        "method.generator.width=4",
        f"data.root={folder}",
    ]
    return configs.load("srgan-bsds", changes)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_each_weight_is_between_those_of_the_stages(run: Path, share: float) -> None:
    first, last = stages_of(run)
    made = interpolated(first, last, share).tensors
    assert made.keys() == last.tensors.keys() and any(not t.is_floating_point() for t in made.values())
    for name, tensor in made.items():
        a, b = (one.tensors[name].double().numpy() for one in (first, last))
        assert tensor.dtype == last.tensors[name].dtype
        if tensor.is_floating_point():
            np.testing.assert_allclose(tensor.numpy(), (1 - share) * a + share * b, rtol=1e-7, atol=0)  # float32's 6e-8
        else:
            assert tensor.item() == 6  # the second's count
        if share in (0.0, 1.0) and tensor.is_floating_point():
            np.testing.assert_array_equal(tensor.numpy(), b if share else a)


def test_a_run_is_loaded_between_its_stages(run: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)

    def made(path: Path, **options: Any) -> np.ndarray:
        return Translator.load(path, device="cpu", precision="fp32", **options)(image)

    np.testing.assert_array_equal(made(run, alpha=1.0), made(run / "last.safetensors"))
    np.testing.assert_array_equal(made(run, alpha=0.0), made(run / "stage-pixel.safetensors"))
    assert (made(run, alpha=0.5) != made(run, alpha=0.0)).any() and (made(run, alpha=0.5) != made(run, alpha=1.0)).any()
    told = Translator.load(run, device="cpu", alpha=0.8).facts["model"]
    assert told == f"0.2 of {run / 'stage-pixel.safetensors'} and 0.8 of {run / 'last.safetensors'}"


def test_what_cannot_be_interpolated(run: Path, tmp_path: Path) -> None:
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="expected 0"):
            Translator.load(run, device="cpu", alpha=alpha)
    with pytest.raises(UserError, match="is no run folder"):
        Translator.load(run / "last.safetensors", device="cpu", alpha=0.5)
    with pytest.raises(UserError, match="expected one such as"):
        stages_of(tmp_path)

    config = small(tmp_path)
    Run(tmp_path).export("last", config, config.method.build(config.data, inference=True).exported(), 1, 1)
    with pytest.raises(UserError, match=r"has no stage-pixel\.safetensors.*--resume"):
        stages_of(tmp_path)

    weights = load_weights(run / "last.safetensors")
    name = next(iter(weights.tensors))

    def other(tensors: dict[str, Tensor]) -> Weights:
        return weights._replace(tensors=tensors, path=tmp_path / "other.safetensors")

    without = {key: tensor for key, tensor in weights.tensors.items() if key != name}
    for pair in ((other(without), weights), (weights, other(without))):
        with pytest.raises(UserError, match=f"different networks: '{name}'.*missing") as told:
            interpolated(*pair, 0.5)
        assert str(told.value).count("\n") == 0
    wider = {**weights.tensors, name: torch.zeros(1, 2, 3)}
    with pytest.raises(UserError, match=r"\(1, 2, 3\)"):
        interpolated(weights, other(wider), 0.5)
