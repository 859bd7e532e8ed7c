from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from translate.data.spec import ImageSpec
from translate.errors import ImageError, UserError
from translate.inference.translator import Translator, pad
from translate.networks.resnet import ResNetSettings
from translate.networks.unet import UNetSettings

Picture = Callable[..., np.ndarray]


class Fixed(nn.Module):
    """A function as a generator."""

    def __init__(self, function: Callable[[Tensor], Tensor], scale: int = 1) -> None:
        super().__init__()
        self.function, self.multiple, self.smallest, self.scale = function, 4, 8, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def build(function: Callable[[Tensor], Tensor], source: ImageSpec, target: ImageSpec, scale: int = 1) -> Translator:
    return Translator(Fixed(function, scale), source, target, device="cpu", precision="fp32")


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (7, 9), (32, 40), (33, 65)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_size_and_depth_come_back_exactly(
    negative: Translator, picture: Picture, shape: tuple[int, int], dtype: type
) -> None:
    image = picture(*shape, dtype=dtype)
    out = negative(image)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, np.iinfo(dtype).max - image)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 4, 16]), st.integers(1, 40), st.integers(0, 99))
def test_padding_is_a_mirror(height: int, width: int, multiple: int, smallest: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (1, height, width, 2), dtype=np.uint8)
    padded = pad(pixels, multiple, smallest)
    assert all(side % multiple == 0 and side >= smallest for side in padded.shape[1:3])
    assert padded.shape[1] - max(height, smallest) < multiple and padded.shape[2] - max(width, smallest) < multiple

    def mirror(size: int, length: int) -> list[int]:  # a triangle wave between the first and the last pixel
        period = max(1, 2 * (size - 1))
        return [min(i % period, period - i % period) for i in range(length)]

    rows, columns = mirror(height, padded.shape[1]), mirror(width, padded.shape[2])
    np.testing.assert_array_equal(padded, pixels[:, rows][:, :, columns])


def test_pil_path_and_array_give_the_same(negative: Translator, picture: Picture, tmp_path: Path) -> None:
    image = picture()
    Image.fromarray(image).save(tmp_path / "x.png")
    from_pil = negative(Image.fromarray(image))
    assert isinstance(from_pil, Image.Image) and from_pil.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(from_pil), 255 - image)
    np.testing.assert_array_equal(negative(tmp_path / "x.png"), 255 - image)
    np.testing.assert_array_equal(negative(str(tmp_path / "x.png")), 255 - image)
    np.testing.assert_array_equal(negative(image[:, ::-1]), 255 - image[:, ::-1])


def test_alpha_is_laid_over_the_background_and_joined_again(negative: Translator, picture: Picture) -> None:
    image = picture(channels=4)
    image[..., 3] = 255
    image[0, 0] = (10, 20, 30, 0)  # transparent: the network sees white, its negative is black
    out = negative(image)
    np.testing.assert_array_equal(out[..., 3], image[..., 3])
    assert tuple(out[0, 0]) == (0, 0, 0, 0)
    np.testing.assert_array_equal(out[1:, :, :3], 255 - image[1:, :, :3])
    as_pil = negative(Image.fromarray(image, "RGBA"))
    assert as_pil.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(as_pil), out)


def test_grey_models_and_pil_modes(picture: Picture) -> None:
    grey = build(lambda x: -x, ImageSpec(channels=1), ImageSpec(channels=1))
    image = picture(channels=1)[..., 0]
    np.testing.assert_array_equal(grey(image), 255 - image)  # (H, W) stays (H, W)
    out = grey(Image.fromarray(image))
    assert out.mode == "L"
    np.testing.assert_array_equal(np.asarray(out), 255 - image)
    deep = picture(channels=1, dtype=np.uint16)[..., 0]
    out = grey(Image.fromarray(deep))
    assert out.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(out), 65535 - deep)
    with pytest.raises(ImageError, match="I;16 or L"):
        grey(Image.fromarray(deep.astype(np.float32)))


def test_label_maps_in_and_out(picture: Picture) -> None:
    labels = ImageSpec(kind="labels", classes=4)
    numbers = picture(channels=1)[..., 0] % 4
    same = build(lambda x: x, labels, labels)
    np.testing.assert_array_equal(same(numbers), numbers)
    palette = Image.fromarray(numbers, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.testing.assert_array_equal(np.asarray(same(palette)), numbers)  # the numbers, not the colours
    colours = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    painted = build(lambda x: x, labels, ImageSpec(kind="labels", palette=colours))
    np.testing.assert_array_equal(painted(numbers), np.array(colours, np.uint8)[numbers])


def test_a_label_map_of_16_bits_makes_a_picture_of_8() -> None:
    many = ImageSpec(kind="labels", classes=300)
    numbers = np.full((8, 8), 299, np.uint16)
    assert build(lambda x: x[:, :3], many, ImageSpec())(numbers).dtype == np.uint8


def test_scale_enlarges_the_alpha_too(picture: Picture) -> None:
    double = build(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3), ImageSpec(), ImageSpec(), scale=2)
    image = picture(9, 11, 4)
    image[..., 3] = 200
    out = double(image)
    assert out.shape == (18, 22, 4)
    assert (out[..., 3] == 200).all()


def test_arrays_that_are_no_images(negative: Translator) -> None:
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros(5, np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected an image"):
            negative(wrong)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_results_do_not_depend_on_batch_mates(make_unet: Callable[..., Translator], precision: str) -> None:
    translator = make_unet(precision=precision)
    smooth = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    images = [np.roll(smooth, shift, axis=1) for shift in range(5)]
    alone = [translator.run([image])[0] for image in images]
    together = translator.run(images)
    backwards = translator.run(images[::-1])[::-1]
    assert np.stack(alone).std() > 20  # the network does something
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(alone, backwards)


@pytest.mark.parametrize("kind", [UNetSettings(depth=3, width=8), ResNetSettings(blocks=1, width=8)])
def test_bf16_stays_near_fp32(kind: UNetSettings | ResNetSettings) -> None:
    torch.manual_seed(0)
    network = kind.build(3, 3)
    image = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    results = [
        Translator(network, ImageSpec(), ImageSpec(), device="cpu", precision=precision).run([image])[0].astype(int)
        for precision in ("fp32", "bf16")
    ]
    assert np.abs(results[0] - results[1]).mean() < 1.0  # grey levels; bf16 has 8 significant bits
    assert not all(parameter.dtype == torch.bfloat16 for parameter in network.parameters())  # ours is untouched


def test_auto_runs_16_bits_in_float32(make_unet: Callable[..., Translator], picture: Picture) -> None:
    image = picture(dtype=np.uint16)
    np.testing.assert_array_equal(
        make_unet(precision="auto").run([image])[0], make_unet(precision="fp32").run([image])[0]
    )


def test_paper_protocol_is_noisy_but_repeatable(make_unet: Callable[..., Translator], picture: Picture) -> None:
    default, paper = make_unet(6, precision="fp32"), make_unet(6, precision="fp32", protocol="paper")  # has dropout
    image = picture(64, 64)
    names = ["one.png", "two.png"]
    one, two = paper.run([image, image], names)
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, default.run([image])[0])
    torch.manual_seed(99)  # neither the state outside nor the order of the files matters
    state = torch.get_rng_state()
    again = paper.run([image], ["two.png"])[0]
    np.testing.assert_array_equal(again, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_paper_protocol_takes_the_statistics_of_the_image() -> None:
    """Without dropout, a batch norm in training mode is the truth."""

    class Normed(Fixed):
        def __init__(self) -> None:
            super().__init__(lambda x: x)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x).clamp(-1, 1)

    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    wanted = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    wanted = (wanted - wanted.mean((0, 2, 3), keepdim=True)) / wanted.std((0, 2, 3), keepdim=True, correction=0)
    wanted = ((wanted.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    paper = Translator(Normed(), ImageSpec(), ImageSpec(), device="cpu", precision="fp32", protocol="paper")
    assert np.abs(paper.run([image, image])[1] - wanted).max() <= 1


def test_spectral_norm_is_baked_in(picture: Picture) -> None:
    class Normed(Fixed):
        def __init__(self) -> None:
            super().__init__(lambda x: x)
            self.body = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 3, padding=1, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.body(x))

    torch.manual_seed(0)
    network = Normed().eval()
    image = picture(8, 8)
    with torch.no_grad():
        wanted = (network(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1) + 1) * 127.5
    translator = Translator(network, ImageSpec(), ImageSpec(), device="cpu", precision="fp32")
    assert [name for name, _ in translator._float.named_parameters()] == ["body.weight"]
    assert np.abs(translator(image) - wanted[0].permute(1, 2, 0).numpy()).max() <= 0.51  # rounding


def test_devices_and_precisions_that_are_not_there() -> None:
    with pytest.raises(UserError, match="fp16"):
        Translator(Fixed(lambda x: x), ImageSpec(), ImageSpec(), device="cpu", precision="fp16")
    with pytest.raises(UserError, match="abacus"):
        Translator(Fixed(lambda x: x), ImageSpec(), ImageSpec(), device="abacus")


def test_a_bad_file_is_an_image_error(negative: Translator, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("not a picture")
    with pytest.raises(ImageError, match=r"x\.png"):
        negative(tmp_path / "x.png")


def test_exif_orientation_of_a_pil_image_is_that_of_its_file(negative: Translator, tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "x.png", exif=exif)
    assert negative(tmp_path / "x.png").shape == (20, 8, 3)
    with Image.open(tmp_path / "x.png") as opened:
        assert negative(opened).size == (8, 20)
