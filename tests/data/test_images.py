"""Image files, against Pillow and closed forms."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from translate.data import images
from translate.data.images import (
    Header,
    ImageFile,
    load_pixels_like,
    normalise,
    probe,
    read_image,
    read_pixels,
    to_device,
    to_pixels,
    write_image,
)
from translate.data.spec import ImageSpec
from translate.errors import ImageError, UserError

# Pillow's warnings about damaged TIFFs: silenced by the package, but pytest resets the filters.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.TiffImagePlugin")

GREY, GREY_ALPHA, RGB, RGBA = (ImageSpec(channels=channels) for channels in (1, 2, 3, 4))


def noise(rng, height, width, channels, dtype=np.uint8):
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


# ---- reading what others wrote


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tif", "a.tiff", "a.webp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_lossless_formats_equal_pillow(save, rng, name, mode):
    if name.endswith("webp") and mode == "L":
        pytest.skip("WebP has no grey")
    if name.endswith("bmp") and mode == "RGBA":
        pytest.skip("Pillow drops the alpha of its own BMP")
    channels = len(mode)
    pixels = noise(rng, 9, 13, channels)
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    path = save(name, Image.fromarray(pixels.squeeze()), **options)
    image = read_image(path)
    colours = min(channels, 3)
    np.testing.assert_array_equal(image.pixels, pixels[..., :colours])
    if channels == 4:
        np.testing.assert_array_equal(image.alpha, pixels[..., 3])
    else:
        assert image.alpha is None
    kind = {"tif": "tiff"}.get(path.suffix[1:].lower(), path.suffix[1:].lower())
    assert probe(path) == Header(13, 9, colours, "uint8", channels == 4, kind)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_agrees_with_pillow(save, smooth, mode):
    path = save("a.jpg", Image.fromarray(smooth).convert(mode), quality=95)
    expected = np.array(Image.open(path)).astype(int)
    pixels = read_image(path).pixels.squeeze()
    assert pixels.shape == expected.shape
    assert abs(pixels.astype(int) - expected).max() <= 2  # two builds of libjpeg


def test_content_decides_not_the_suffix(save, smooth):
    path = save("really-a-jpeg.jpg", smooth)
    renamed = path.rename(path.with_suffix(".png"))
    assert read_image(renamed).format == "jpeg" == probe(renamed).format


@pytest.mark.parametrize("name", ["büro 图 🙂.png", "with space;'\"$(x).png", "100%.png"])
def test_odd_names(tmp_path, rng, name):
    pixels = noise(rng, 4, 5, 3)
    write_image(tmp_path / name, pixels)
    np.testing.assert_array_equal(read_image(tmp_path / name).pixels, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_exif_orientation_is_applied_once(save, smooth, exif, orientation, name):
    options = {"lossless": True} if name == "a.webp" else {}
    path = save(name, smooth, exif=exif(orientation), **options)
    # Pillow turns a TIFF itself, and forgets its tag then: transposing is safe for all.
    with Image.open(path) as opened:
        opened.load()
        expected = np.array(ImageOps.exif_transpose(opened)).astype(int)
    pixels = read_image(path).pixels
    assert pixels.shape == expected.shape
    assert abs(pixels.astype(int) - expected).max() <= 2
    assert (probe(path).height, probe(path).width) == expected.shape[:2]
    assert expected.shape[0] == (64 if orientation >= 5 else 48)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_tiff_orientation(save, rng, tiff_bytes, orientation):
    pixels = noise(rng, 5, 8, 3, np.uint16)
    path = save("a.tif", tiff_bytes(pixels, orientation=orientation))
    # The oracle: Pillow on the high bytes alone, each plane an 8 bit picture.
    tags = Image.Exif()
    tags[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(stream, "PNG", exif=tags)
    expected = np.array(ImageOps.exif_transpose(Image.open(stream)))
    np.testing.assert_array_equal(read_image(path).pixels >> 8, expected)
    assert probe(path) == Header(expected.shape[1], expected.shape[0], 3, "uint16", False, "tiff")


def test_sixteen_bit_depth_comes_from_the_file_not_its_values(save, png_bytes):
    row = np.array([1, 2, 255], ">u2").tobytes()
    image = read_image(save("dark.png", png_bytes(3, 1, 16, 0, [row])))
    assert image.pixels.dtype == np.uint16
    assert image.pixels[0, :, 0].tolist() == [1, 2, 255]


def test_sixteen_bit_grey_with_alpha_png(save, png_bytes):
    row = np.array([1000, 2000, 60000, 65535], ">u2").tobytes()
    path = save("a.png", png_bytes(2, 1, 16, 4, [row]))
    image = read_image(path)
    assert image.pixels.tolist() == [[[1000], [60000]]]
    assert image.alpha is not None and image.alpha.tolist() == [[2000, 65535]]
    assert probe(path) == Header(2, 1, 1, "uint16", True, "png")


@pytest.mark.parametrize("bits, values", [(1, [0, 255]), (2, [0, 85, 170, 255]), (4, range(0, 256, 17))])
def test_low_bit_grey_is_stretched_for_pictures_and_raw_for_labels(save, png_bytes, bits, values):
    count = 2**bits
    packed = int("".join(f"{value:0{bits}b}" for value in range(count)).ljust(8, "0"), 2)
    path = save("a.png", png_bytes(count, 1, bits, 0, [packed.to_bytes(max(1, count * bits // 8), "big")]))
    assert read_pixels(path, GREY)[0, :, 0].tolist() == list(values)
    labels = ImageSpec(kind="labels", classes=count)
    assert read_pixels(path, labels)[0, :, 0].tolist() == list(range(count))


def test_one_bit_tiff_and_bmp(save):
    bits = np.array([[True, False, True, True]])
    for name in ("a.tif", "a.bmp"):
        assert read_image(save(name, Image.fromarray(bits))).pixels[..., 0].tolist() == [[255, 0, 255, 255]]


def test_palette_png_gives_colours_transparency_and_indices(save, png_bytes, chunk):
    before = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 7, 8, 9])) + chunk(b"tRNS", bytes([128]))
    path = save("a.png", png_bytes(3, 1, 8, 3, [bytes([2, 0, 1])], before))
    image = read_image(path)
    assert image.pixels.tolist() == [[[7, 8, 9], [10, 20, 30], [40, 50, 60]]]
    assert image.alpha is not None and image.alpha.tolist() == [[255, 128, 255]]
    labels = ImageSpec(kind="labels", classes=3)
    assert read_pixels(path, labels)[..., 0].tolist() == [[2, 0, 1]]
    assert load_pixels_like(image, labels)[..., 0].tolist() == [[2, 0, 1]]


@pytest.mark.parametrize("bits, dtype", [(8, ">u1"), (16, ">u2")])
@pytest.mark.parametrize("colour_type, channels", [(0, 1), (2, 3)])
def test_transparent_colour_of_a_png(save, png_bytes, chunk, bits, dtype, colour_type, channels):
    values = np.arange(1, 2 * channels + 1, dtype=dtype)
    before = chunk(b"tRNS", struct.pack(f">{channels}H", *range(1, channels + 1)))
    image = read_image(save("a.png", png_bytes(2, 1, bits, colour_type, [values.tobytes()], before)))
    assert image.pixels.reshape(-1).tolist() == values.tolist()
    assert image.alpha is not None and image.alpha.tolist() == [[0, 2**bits - 1]]


def test_cmyk_jpeg_becomes_rgb(save, smooth):
    path = save("a.jpg", Image.fromarray(smooth).convert("CMYK"), quality=95)
    image = read_image(path)
    assert probe(path).channels == 3
    assert abs(image.pixels.astype(int) - smooth).max() <= 12  # chroma of a lossy file
    assert image.icc is None


def test_palette_tiff_and_cmyk_tiff(save, smooth):
    few = Image.fromarray(smooth).quantize(8)
    np.testing.assert_array_equal(read_image(save("p.tif", few)).pixels, np.array(few.convert("RGB")))
    cmyk = Image.fromarray(smooth).convert("CMYK")
    np.testing.assert_array_equal(read_image(save("c.tif", cmyk)).pixels, np.array(cmyk.convert("RGB")))


def test_tiff_with_white_as_zero_and_with_multiplied_alpha(save, rng, tiff_bytes):
    grey = noise(rng, 4, 5, 1, np.uint16)
    image = read_image(save("a.tif", tiff_bytes(grey, photometric=0)))
    np.testing.assert_array_equal(image.pixels, 65535 - grey)
    stored = np.array([[[1000, 0, 500, 32768], [7, 8, 9, 65535], [0, 0, 0, 0]]], np.uint16)
    image = read_image(save("b.tif", tiff_bytes(stored, extra=1)))
    assert image.pixels.tolist() == [[[2000, 0, 1000], [7, 8, 9], [0, 0, 0]]]
    assert image.alpha is not None and image.alpha.tolist() == [[32768, 65535, 0]]


def test_npy(tmp_path, rng):
    for shape in ((5, 7), (5, 7, 1), (5, 7, 6)):
        array = rng.integers(0, 65536, shape).astype(">u2")
        np.save(tmp_path / "a.npy", array)
        image = read_image(tmp_path / "a.npy")
        np.testing.assert_array_equal(image.pixels, array.reshape(5, 7, -1))
        assert image.pixels.dtype == np.uint16 and image.pixels.flags.c_contiguous
        assert probe(tmp_path / "a.npy").channels == image.pixels.shape[2]
    assert read_pixels(tmp_path / "a.npy", ImageSpec(channels=6)).shape == (5, 7, 6)
    with pytest.raises(ImageError, match="has 6 channels, expected 3"):
        read_pixels(tmp_path / "a.npy", RGB)


# ---- bad files: one line each


def error_of(path, read=read_image):
    with pytest.raises(ImageError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp", "a.npy"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, rng, name, share):
    path = tmp_path / name
    write_image(path, noise(rng, 40, 40, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    error_of(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".npy"])
def test_damaged_files_never_raise_anything_else(tmp_path, rng, smooth, suffix):
    path = tmp_path / f"a{suffix}"
    write_image(path, smooth)
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 700), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        for read in (read_image, probe):
            try:
                read(path)
            except ImageError as error:
                assert "\n" not in str(error)


def test_a_wrong_checksum_in_the_middle_of_a_png(tmp_path, rng):
    path = tmp_path / "a.png"
    write_image(path, noise(rng, 32, 32, 3))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert "checksum in chunk IDAT" in error_of(path)


def test_a_jpeg_with_bytes_after_its_end_is_whole(save, smooth):
    path = save("a.jpg", smooth)
    path.write_bytes(path.read_bytes() + b"maker's trailer" * 100)
    assert read_image(path).pixels.shape == (48, 64, 3)


def test_a_thumbnail_does_not_hide_a_truncated_jpeg(save, smooth):
    thumbnail = save("small.jpg", smooth[:8, :8]).read_bytes()
    whole = save("a.jpg", smooth).read_bytes()
    segment = b"\xff\xe5" + struct.pack(">H", len(thumbnail) + 2) + thumbnail  # holds an end-of-image marker
    path = save("b.jpg", whole[:2] + segment + whole[2:])
    assert read_image(path).pixels.shape == (48, 64, 3)
    path.write_bytes(path.read_bytes()[:-200])
    assert "truncated" in error_of(path)


@pytest.mark.parametrize("read", [read_image, probe])
def test_files_that_are_no_images(tmp_path, save, read):
    assert "empty" in error_of(save("zero.png", b""), read)
    assert "no image" in error_of(save("text.png", b"hello, this is text\n"), read)
    assert "no such file" in error_of(tmp_path / "absent.png", read)
    (tmp_path / "folder.png").mkdir()
    assert "folder" in error_of(tmp_path / "folder.png", read)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(save, smooth):
    path = save("a.png", smooth)
    path.chmod(0)
    assert "permission denied" in error_of(path)


def test_permission_errors_are_one_line(save, smooth, monkeypatch):
    path = save("a.png", smooth)

    def refuse(*_args, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert error_of(path) == "cannot be read (permission denied)"


def test_a_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "opened"),))

    np.save(tmp_path / "a.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
    assert "object" in error_of(tmp_path / "a.npy")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("read", [read_image, probe])
def test_decompression_bombs_are_refused_by_their_header(save, png_bytes, smooth, read):
    assert "300 million pixels" in error_of(save("a.png", png_bytes(20000, 15000, 8, 2, [b"\0"])), read)
    jpeg = bytearray(save("a.jpg", smooth).read_bytes())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 15000, 20000)
    assert "300 million pixels" in error_of(save("b.jpg", bytes(jpeg)), read)
    webp = bytearray(save("a.webp", Image.fromarray(smooth), lossless=True).read_bytes())
    assert webp[12:16] == b"VP8L"
    webp[21:25] = struct.pack("<I", 16383 | 16383 << 14)
    assert "268 million pixels" in error_of(save("b.webp", bytes(webp)), read)
    extended = bytearray(save("a.webp", Image.fromarray(smooth), exif=b"Exif\0\0MM\0*").read_bytes())
    assert extended[12:16] == b"VP8X"
    extended[24:30] = (19999).to_bytes(3, "little") + (14999).to_bytes(3, "little")
    assert "300 million pixels" in error_of(save("c.webp", bytes(extended)), read)
    bmp = bytearray(save("a.bmp", smooth).read_bytes())
    bmp[18:26] = struct.pack("<ii", 20000, 15000)
    assert "300 million pixels" in error_of(save("b.bmp", bytes(bmp)), read)
    tiff = bytearray(save("a.tif", smooth).read_bytes())
    (directory,) = struct.unpack_from("<I", tiff, 4)
    for entry in range(struct.unpack_from("<H", tiff, directory)[0]):
        place = directory + 2 + 12 * entry
        if struct.unpack_from("<H", tiff, place)[0] in (256, 257):
            tiff[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 20000)
    assert "400 million pixels" in error_of(save("b.tif", bytes(tiff)), read)


def test_max_pixels_is_inclusive_and_not_pillows_own_limit(save, smooth, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow would refuse above 20
    path = save("a.bmp", smooth)
    assert read_image(path, max_pixels=48 * 64).pixels.shape == (48, 64, 3)
    assert probe(path, 48 * 64).width == 64
    with pytest.raises(ImageError, match="above the limit"):
        read_image(path, max_pixels=48 * 64 - 1)


@pytest.mark.parametrize("name, word", [("a.webp", "WebP"), ("a.png", "PNG"), ("a.tif", "multi-page TIFF")])
def test_animations_are_refused_with_their_number_of_frames(save, smooth, name, word):
    frames = [Image.fromarray(np.roll(smooth, shift, axis=1)) for shift in range(3)]
    path = save(name, frames[0], save_all=True, append_images=frames[1:])
    for read in (read_image, probe):
        reason = error_of(path, read)
        assert word in reason and "3 frames" in reason and "extract" in reason


def test_depths_that_are_not_supported(save, rng, tiff_bytes, tmp_path):
    light = rng.random((4, 5, 3)).astype(np.float32)
    for name, content in {
        "float.tif": tiff_bytes(light, sample_format=3),
        "int.tif": tiff_bytes(noise(rng, 4, 5, 1).astype(np.uint32), photometric=1),
    }.items():
        reason = error_of(save(name, content))
        assert "32 bit" in reason or "unsupported kind" in reason
        assert "8 or 16 bit" in reason
    np.save(tmp_path / "a.npy", light)
    assert "float32" in error_of(tmp_path / "a.npy")


def test_profile_warnings_and_damage_stay_off_stderr(save, smooth, icc, tmp_path):
    save("grey.png", smooth[..., 0], icc_profile=icc)  # libpng warns: an RGB profile on a grey picture
    broken = save("broken.png", smooth).read_bytes()
    save("broken.png", broken[: len(broken) // 2])
    jpeg = save("broken.jpg", smooth).read_bytes()
    save("broken.jpg", jpeg[: len(jpeg) // 2])
    code = (
        "import sys, pathlib\n"
        "from translate.data.images import read_image\n"
        "from translate.errors import ImageError\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: read_image(path); print('read', path.name)\n"
        "    except ImageError: print('refused', path.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "broken.jpg", "refused", "broken.png", "read", "grey.png"]
    assert done.stderr == ""


# ---- as a side of a data set wants them


def test_channels_as_the_spec_asks(save, rng):
    pixels = noise(rng, 6, 7, 4)
    path = save("a.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read_pixels(path, RGBA), pixels)
    luma = pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
    both = read_pixels(path, GREY_ALPHA)
    assert abs(both[..., 0] - luma).max() <= 0.51
    np.testing.assert_array_equal(both[..., 1], pixels[..., 3])
    opaque = save("b.png", pixels[..., :3])
    np.testing.assert_array_equal(read_pixels(opaque, RGBA)[..., 3], np.full((6, 7), 255))
    assert abs(read_pixels(opaque, GREY)[..., 0] - luma).max() <= 0.51
    grey = save("c.png", pixels[..., 0])
    np.testing.assert_array_equal(read_pixels(grey, RGB), pixels[..., :1].repeat(3, axis=2))
    assert read_pixels(grey, GREY_ALPHA).shape == (6, 7, 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_over_the_background(tmp_path, rng, dtype):
    top = np.iinfo(dtype).max
    pixels, alpha = noise(rng, 16, 16, 3, dtype), noise(rng, 16, 16, 1, dtype)[..., 0]
    alpha[0, 0], alpha[0, 1] = 0, top
    write_image(tmp_path / "a.png", pixels, alpha=alpha)
    spec = ImageSpec(background=(10, 200, 30))
    share = alpha[..., None].astype(np.float64) / top
    expected = pixels * share + np.array([10, 200, 30]) * (top // 255) * (1 - share)
    assert abs(read_pixels(tmp_path / "a.png", spec) - expected).max() <= 0.5001
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(load_pixels_like(image, spec), read_pixels(tmp_path / "a.png", spec))
    assert read_pixels(tmp_path / "a.png", spec)[0, 0].tolist() == [
        10 * top // 255,
        200 * top // 255,
        30 * top // 255,
    ]


def test_label_numbers(save, rng):
    numbers = rng.integers(0, 5, (8, 9)).astype(np.uint8)
    path = save("a.png", numbers)
    np.testing.assert_array_equal(read_pixels(path, ImageSpec(kind="labels", classes=5))[..., 0], numbers)
    with pytest.raises(ImageError, match=r"class number 4, expected 0 to 3 \(key 'classes'\)"):
        read_pixels(path, ImageSpec(kind="labels", classes=4))
    with pytest.raises(ImageError, match="give 'palette'"):
        read_pixels(save("b.png", np.dstack([numbers] * 3)), ImageSpec(kind="labels", classes=5))
    many = rng.integers(0, 1000, (8, 9)).astype(np.uint16)
    write_image(path, many)
    found = read_pixels(path, ImageSpec(kind="labels", classes=1000))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[..., 0], many)


def test_label_colours_take_the_nearest(save, rng):
    palette = [tuple(colour) for colour in rng.integers(0, 256, (7, 3)).tolist()]
    pixels = noise(rng, 20, 30, 3)
    pixels[0, :7] = palette
    distance = ((pixels[..., None, :].astype(int) - np.array(palette)) ** 2).sum(axis=-1)
    spec = ImageSpec(kind="labels", palette=palette)
    found = read_pixels(save("a.png", pixels), spec)
    assert found.dtype == np.uint8 and found.shape == (20, 30, 1)
    np.testing.assert_array_equal(found[..., 0], distance.argmin(axis=-1))
    assert found[0, :7, 0].tolist() == list(range(7))


# ---- tensors


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_survives_the_round_trip(dtype):
    count = np.iinfo(dtype).max + 1
    pixels = torch.from_numpy(np.arange(count).astype(dtype).reshape(1, 16, -1, 1))
    tensor = normalise(pixels, GREY)
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    expected = np.arange(count) * 2 / (count - 1) - 1  # float64
    assert abs(tensor.numpy().reshape(-1) - expected).max() < 1.3e-7
    assert tensor.min() == -1 and tensor.max() == 1
    back = to_pixels(tensor, GREY, dtype)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, pixels.numpy())


def test_to_pixels_clamps_and_rounds_half_to_even():
    levels = torch.tensor([-7.0, -1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 1, 5)
    assert to_pixels(levels, GREY).reshape(-1).tolist() == [0, 0, 128, 255, 255]  # 127.5 -> 128 (even)
    assert to_pixels(levels, GREY, np.uint16).reshape(-1).tolist() == [0, 0, 32768, 65535, 65535]  # 32767.5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_on_the_device(rng, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    a = torch.from_numpy(noise(rng, 2 * 4, 5, 3).reshape(2, 4, 5, 3))
    b = torch.from_numpy(rng.integers(0, 6, (2, 4, 5, 1)).astype(np.uint16))
    specs = {"A": RGB, "B": ImageSpec(kind="labels", classes=6)}
    batch = to_device({"A": a, "B": b, "name": ["x", "y"]}, specs, device)
    assert set(batch) == {"A", "B"}
    assert batch["A"].shape == (2, 3, 4, 5) and batch["A"].is_contiguous()
    assert batch["A"][1, 2, 3, 4].item() == pytest.approx(a[1, 3, 4, 2].item() / 127.5 - 1, abs=1e-6)
    hot = batch["B"]
    assert hot.shape == (2, 6, 4, 5) and set(hot.unique().tolist()) == {-1.0, 1.0}
    assert (hot == 1).sum(dim=1).eq(1).all()
    np.testing.assert_array_equal(to_pixels(hot, specs["B"]), b.numpy())
    deep = torch.from_numpy(noise(rng, 8, 5, 3, np.uint16).reshape(2, 4, 5, 3))
    np.testing.assert_array_equal(to_pixels(to_device({"A": deep}, specs, device)["A"], RGB, np.uint16), deep.numpy())
    assert to_device({"A": a}, specs, device, torch.bfloat16)["A"].dtype == torch.bfloat16


def test_labels_become_colours_where_there_is_a_palette():
    spec = ImageSpec(kind="labels", palette=[(1, 2, 3), (250, 0, 9)])
    logits = torch.tensor([[[[0.5, -1.0]], [[-0.5, 1.0]]]])  # (1, 2, 1, 2)
    assert to_pixels(logits, spec).tolist() == [[[[1, 2, 3], [250, 0, 9]]]]
    assert to_pixels(logits, spec, np.uint16)[0, 0, 1].tolist() == [250 * 257, 0, 9 * 257]


# ---- writing


LOSSLESS = [
    ("a.png", np.uint8), ("a.png", np.uint16), ("a.tif", np.uint8), ("a.tif", np.uint16),
    ("a.bmp", np.uint8), ("a.webp", np.uint8), ("a.npy", np.uint8), ("a.npy", np.uint16),
]  # fmt: skip


@pytest.mark.parametrize("name, dtype", LOSSLESS)
@pytest.mark.parametrize("channels, transparent", [(1, False), (3, False), (1, True), (3, True)])
def test_write_and_read_back(tmp_path, rng, name, dtype, channels, transparent):
    pixels = noise(rng, 11, 17, channels, dtype)
    alpha = noise(rng, 11, 17, 1, dtype)[..., 0] if transparent else None
    path = tmp_path / "deep" / "er" / name
    write_image(path, pixels, alpha=alpha)
    image = read_image(path)
    if name == "a.npy":
        np.testing.assert_array_equal(image.pixels[..., :channels], pixels)
        assert alpha is None or (image.pixels[..., -1] == alpha).all()
    else:
        np.testing.assert_array_equal(image.pixels, np.broadcast_to(pixels, image.pixels.shape))
        if name == "a.png":
            assert image.pixels.shape[2] == channels  # grey stays grey, with alpha too
        assert (image.alpha is None) == (alpha is None)
        assert alpha is None or (image.alpha == alpha).all()
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_pillow_reads_what_we_write(tmp_path, rng):
    pixels, alpha = noise(rng, 11, 17, 3), noise(rng, 11, 17, 1)[..., 0]
    for name in ("a.png", "a.tif", "a.bmp", "a.webp"):
        write_image(tmp_path / name, pixels, alpha=alpha)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / name)), np.dstack([pixels, alpha]))
    write_image(tmp_path / "la.png", pixels[..., :1], alpha=alpha)
    with Image.open(tmp_path / "la.png") as opened:
        assert opened.mode == "LA"
        np.testing.assert_array_equal(np.array(opened), np.dstack([pixels[..., 0], alpha]))


@pytest.mark.parametrize("compression", [0, 3, 9])
def test_png_compression_is_lossless(tmp_path, smooth, compression):
    write_image(tmp_path / "a.png", smooth, compression=compression)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png")), smooth)


def test_quality_changes_the_size(tmp_path, rng):
    pixels = noise(rng, 64, 64, 3)
    for name in ("a.jpg", "a.webp"):
        sizes = []
        for quality in (10, 90):
            write_image(tmp_path / name, pixels, quality=quality)
            sizes.append((tmp_path / name).stat().st_size)
        assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("a.png", np.uint8), ("a.png", np.uint16), ("a.tif", np.uint8), ("a.tif", np.uint16),
        ("a.jpg", np.uint8), ("a.webp", np.uint8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [0, 150_000])
@pytest.mark.parametrize("transparent", [False, True])
def test_colour_profile_is_embedded(tmp_path, rng, icc, name, dtype, size, transparent):
    if transparent and name == "a.jpg":
        pytest.skip("JPEG has no alpha")
    profile = icc + bytes(rng.integers(0, 256, size).astype(np.uint8))  # JPEG needs three segments for the long one
    pixels = noise(rng, 12, 10, 3, dtype)
    alpha = noise(rng, 12, 10, 1, dtype)[..., 0] if transparent else None
    write_image(tmp_path / name, pixels, alpha=alpha, icc=profile)
    with Image.open(tmp_path / name) as opened:
        opened.load()
        assert opened.info["icc_profile"] == profile
    image = read_image(tmp_path / name)
    assert image.icc == profile
    if name != "a.jpg":
        np.testing.assert_array_equal(image.pixels, pixels)


def test_a_profile_of_another_colour_space_is_left_out(tmp_path, rng, icc):
    write_image(tmp_path / "a.png", noise(rng, 4, 4, 1), icc=icc)
    assert read_image(tmp_path / "a.png").icc is None


def test_formats_that_cannot_hold_the_pixels(tmp_path, rng):
    deep, plain = noise(rng, 4, 4, 3, np.uint16), noise(rng, 4, 4, 3)
    for name in ("a.jpg", "a.webp", "a.bmp"):
        with pytest.raises(UserError, match=r"no 16 bit; write \.png, \.tif or \.npy"):
            write_image(tmp_path / name, deep)
    with pytest.raises(UserError, match="no transparency"):
        write_image(tmp_path / "a.jpg", plain, alpha=plain[..., 0])
    with pytest.raises(UserError, match=r"\.npy only"):
        write_image(tmp_path / "a.png", noise(rng, 4, 4, 5))
    with pytest.raises(UserError, match=r"ends in '\.gif'"):
        write_image(tmp_path / "a.gif", plain)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, smooth, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, smooth)
    before = path.read_bytes()

    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written .*no space left on device"):
        write_image(path, 255 - smooth)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_place_of_a_folder(tmp_path, smooth):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_image(tmp_path / "file" / "a.png", smooth)


def test_too_large_for_the_format_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be written as webp"):
        write_image(tmp_path / "a.webp", np.zeros((2, 20000, 3), np.uint8))


def test_image_file_without_a_path_names_the_reason():
    image = ImageFile(np.zeros((2, 2, 5), np.uint8), None, None, "npy")
    with pytest.raises(ImageError, match="has 5 channels, expected 3"):
        load_pixels_like(image, RGB)
    assert images.DEFAULT_MAX_PIXELS == 250_000_000
