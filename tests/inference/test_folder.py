from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from translate.data.images import read_image, write_image
from translate.data.spec import ImageSpec
from translate.errors import PartialFailure, UserError
from translate.inference import folder as module
from translate.inference.folder import ConvertOptions, convert
from translate.inference.translator import Translator

Picture = Callable[..., np.ndarray]
Make = Callable[..., Translator]


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def negative_of(path: Path) -> np.ndarray:
    pixels = read_image(path).pixels
    return np.iinfo(pixels.dtype).max - pixels


def test_a_tree_keeps_names_folders_and_sizes(negative: Translator, folder: Path, tmp_path: Path) -> None:
    done: list[int] = []
    summary = convert(negative, folder, tmp_path / "out", on_progress=done.append)
    assert (summary.written, summary.skipped, summary.failed, summary.total) == (5, 0, [], 5)
    assert done[-1] == 5 and done == sorted(done)
    assert summary.images_per_second > 0
    assert contents(tmp_path / "out").keys() == contents(folder).keys()
    for name in contents(folder):
        np.testing.assert_array_equal(read_image(tmp_path / "out" / name).pixels, negative_of(folder / name))


def test_a_glob_and_a_single_file(negative: Translator, folder: Path, tmp_path: Path) -> None:
    convert(negative, str(folder / "*.png"), tmp_path / "flat")
    assert sorted(contents(tmp_path / "flat")) == ["a.png", "b.png", "e.png"]
    convert(negative, str(folder / "**" / "d.png"), tmp_path / "any")
    assert list(contents(tmp_path / "any")) == ["deep/er/d.png"]
    convert(negative, folder / "a.png", tmp_path / "one")
    assert list(contents(tmp_path / "one")) == ["a.png"]
    convert(negative, folder / "a.png", tmp_path / "named.webp")
    np.testing.assert_array_equal(read_image(tmp_path / "named.webp").pixels, negative_of(folder / "a.png"))


def test_the_same_bytes_whatever_the_batch_and_the_order(make_unet: Make, folder: Path, tmp_path: Path) -> None:
    translator = make_unet(precision="bf16")
    convert(translator, folder, tmp_path / "one")
    convert(translator, folder, tmp_path / "again")
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    for name in ("e.png", "deep/er/d.png", "b.png"):  # another order, other mates
        convert(translator, folder / name, tmp_path / "single" / name)
        assert (tmp_path / "single" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    convert(translator, folder, tmp_path / "batched", ConvertOptions(batch_size=4))
    assert contents(tmp_path / "one") == contents(tmp_path / "batched")


def watch_batches(translator: Translator) -> list[tuple[int, ...]]:
    """Shapes (N, H, W, C) of the batches that a conversion makes."""
    real, shapes = translator.run, []

    def run(batch: list[np.ndarray], names: list[str]) -> list[np.ndarray]:
        shapes.append(np.stack(batch).shape)
        return real(batch, names)

    translator.run = run
    return shapes


def test_batches_hold_equal_shapes_only(negative: Translator, folder: Path, tmp_path: Path) -> None:
    shapes = watch_batches(negative)
    convert(negative, folder, tmp_path / "out", ConvertOptions(batch_size=2))
    assert sorted(shapes) == [(1, 40, 40, 3), (2, 24, 40, 3), (2, 32, 40, 3)]


def test_a_gpu_always_sees_full_batches(negative: Translator, folder: Path, tmp_path: Path) -> None:
    shapes, expected = watch_batches(negative), tmp_path / "expected"
    convert(negative, folder, expected)
    shapes.clear()
    on_cpu, negative.device = negative.run, torch.device("cuda")

    def run(batch: list[np.ndarray], names: list[str]) -> list[np.ndarray]:  # the work itself stays on the CPU
        negative.device = torch.device("cpu")
        try:
            return on_cpu(batch, names)
        finally:
            negative.device = torch.device("cuda")

    negative.run = run
    convert(negative, folder, tmp_path / "out", ConvertOptions(batch_size=4))
    assert sorted(shapes) == [(4, 24, 40, 3), (4, 32, 40, 3), (4, 40, 40, 3)]
    assert contents(tmp_path / "out") == contents(expected)


def test_look_ahead_is_bounded(
    negative: Translator, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AHEAD_PIXELS", 1)  # every image is more than that
    shapes = watch_batches(negative)
    summary = convert(negative, folder, tmp_path / "out", ConvertOptions(batch_size=100))
    assert summary.written == 5
    assert max(shape[0] for shape in shapes) == 1


def test_images_that_run_in_tiles_are_no_batches(negative: Translator, tmp_path: Path, picture: Picture) -> None:
    for name, side in (("a.png", 40), ("b.png", 40), ("c.png", 100), ("d.png", 100)):
        write_image(tmp_path / "in" / name, picture(side, side))
    tiled = Translator(negative._float, ImageSpec(), ImageSpec(), device="cpu", precision="fp32", tile=64)
    shapes = watch_batches(tiled)
    convert(tiled, tmp_path / "in", tmp_path / "out", ConvertOptions(batch_size=2, report=True))
    assert sorted(shapes) == [(1, 100, 100, 3), (1, 100, 100, 3), (2, 40, 40, 3)]
    for path in (tmp_path / "in").iterdir():
        np.testing.assert_array_equal(read_image(tmp_path / "out" / path.name).pixels, negative_of(path))
    assert "of 64 pixels for images above 64 pixels a side" in (tmp_path / "out" / "index.html").read_text()


def test_paper_protocol_can_be_repeated(make_unet: Make, tmp_path: Path, picture: Picture) -> None:
    for name in ("a.png", "sub/a.png"):
        write_image(tmp_path / "in" / name, picture(64, 64))
    paper, default = make_unet(6, precision="fp32", protocol="paper"), make_unet(6, precision="fp32")
    convert(paper, tmp_path / "in", tmp_path / "one")
    convert(paper, tmp_path / "in", tmp_path / "two", ConvertOptions(batch_size=2))
    convert(default, tmp_path / "in", tmp_path / "default")
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert one["a.png"] != one["sub/a.png"]  # the noise is the name's
    assert one != contents(tmp_path / "default")


def test_finished_files_are_skipped_unless_overwritten(negative: Translator, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(negative, folder, out)
    marked = out / "deep" / "c.png"
    marked.write_bytes(b"mine")
    (out / "a.png").write_bytes(b"")  # an empty file is not finished
    summary = convert(negative, folder, out)
    assert (summary.written, summary.skipped) == (1, 4)
    assert marked.read_bytes() == b"mine"
    assert convert(negative, folder, out, ConvertOptions(overwrite=True)).written == 5
    assert read_image(marked).pixels.shape == read_image(folder / "deep" / "c.png").pixels.shape


def test_limit(negative: Translator, folder: Path, tmp_path: Path) -> None:
    assert convert(negative, folder, tmp_path / "out", ConvertOptions(limit=2)).total == 2


def test_collisions_are_seen_before_the_start(negative: Translator, tmp_path: Path, picture: Picture) -> None:
    write_image(tmp_path / "in" / "a.jpg", picture())
    write_image(tmp_path / "in" / "a.png", picture())
    convert(negative, tmp_path / "in", tmp_path / "kept")  # a.jpg and a.png: no collision
    assert sorted(contents(tmp_path / "kept")) == ["a.jpg", "a.png"]
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png would both become .*a\.png"):
        convert(negative, tmp_path / "in", tmp_path / "out", ConvertOptions(format="png"))
    assert not (tmp_path / "out").exists()
    labels = ImageSpec(kind="labels", classes=3)  # class numbers cannot be JPEG: keep meets a.png too
    with pytest.raises(UserError, match="would both become"):
        convert(Translator(negative._float, ImageSpec(), labels, device="cpu"), tmp_path / "in", tmp_path / "out")


def test_output_inside_the_input_is_not_converted_again(negative: Translator, folder: Path) -> None:
    assert convert(negative, folder, folder / "out").written == 5
    assert convert(negative, folder, folder / "out").skipped == 5
    assert not (folder / "out" / "out").exists()


def test_inputs_are_never_replaced(negative: Translator, folder: Path) -> None:
    before = contents(folder)
    for output in (folder, folder / "." / "deep" / ".."):
        with pytest.raises(UserError, match="would replace an input"):
            convert(negative, folder, output, ConvertOptions(overwrite=True))
    assert contents(folder) == before


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tiff", "bmp"])
def test_formats(negative: Translator, tmp_path: Path, format: Any) -> None:
    smooth = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    write_image(tmp_path / "in" / "a.png", smooth)
    convert(negative, tmp_path / "in", tmp_path / "out", ConvertOptions(format=format))
    result = read_image(tmp_path / "out" / f"a.{format}")
    assert result.format == {"jpg": "jpeg"}.get(format, format)
    assert np.abs(result.pixels.astype(int) - (255 - smooth)).max() <= (8 if format == "jpg" else 0)


def test_quality_makes_smaller_files(negative: Translator, tmp_path: Path, picture: Picture) -> None:
    write_image(tmp_path / "in" / "a.png", picture())
    for quality in (20, 95):
        convert(negative, tmp_path / "in", tmp_path / str(quality), ConvertOptions(format="jpg", quality=quality))
    assert (tmp_path / "20" / "a.jpg").stat().st_size < (tmp_path / "95" / "a.jpg").stat().st_size


def test_keep_is_the_format_of_the_input(negative: Translator, tmp_path: Path, picture: Picture) -> None:
    for name in ("a.jpg", "b.webp", "c.tif", "d.bmp", "e.JPG"):
        write_image(tmp_path / "in" / name, picture())
    convert(negative, tmp_path / "in", tmp_path / "out")
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "in").keys()


def test_what_a_format_cannot_hold_becomes_png_and_is_said_once(
    negative: Translator, tmp_path: Path, picture: Picture
) -> None:
    deep, alpha = picture(dtype=np.uint16), picture(channels=4)
    write_image(tmp_path / "in" / "deep.png", deep)
    write_image(tmp_path / "in" / "alpha.png", alpha[..., :3], alpha=alpha[..., 3])
    write_image(tmp_path / "in" / "plain.png", picture())
    options = ConvertOptions(format="jpg")
    summary = convert(negative, tmp_path / "in", tmp_path / "out", options)
    assert sorted(contents(tmp_path / "out")) == ["alpha.png", "deep.png", "plain.jpg"]
    assert len(summary.notes) == 1 and "2 results" in summary.notes[0]
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "deep.png").pixels, 65535 - deep)
    again = convert(negative, tmp_path / "in", tmp_path / "out", options)
    assert again.skipped == 3 and all(item.destination.is_file() for item in again.results)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_depth_and_alpha_are_kept(
    negative: Translator, tmp_path: Path, picture: Picture, name: str, dtype: type
) -> None:
    both = picture(channels=4, dtype=dtype)
    write_image(tmp_path / "in" / name, both[..., :3], alpha=both[..., 3])
    convert(negative, tmp_path / "in", tmp_path / "out")
    result = read_image(tmp_path / "out" / name)
    assert result.pixels.dtype == dtype and result.alpha is not None
    np.testing.assert_array_equal(result.alpha, both[..., 3])
    opaque = both[..., 3] == np.iinfo(dtype).max
    np.testing.assert_array_equal(result.pixels[opaque], np.iinfo(dtype).max - both[..., :3][opaque])


def test_exif_orientation_is_applied_and_the_profile_kept(negative: Translator, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.linspace(0, 255, 32 * 48 * 3).reshape(32, 48, 3).astype(np.uint8))
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "a.jpg", exif=exif, icc_profile=profile, quality=95)
    convert(negative, tmp_path / "in", tmp_path / "out", ConvertOptions(format="png"))
    with Image.open(tmp_path / "out" / "a.png") as result, Image.open(tmp_path / "in" / "a.jpg") as original:
        assert result.size == (32, 48) and result.info["icc_profile"] == profile
        assert result.getexif().get(0x0112, 1) == 1
        upright = np.asarray(original.transpose(Image.Transpose.ROTATE_270)).astype(int)
        assert np.abs(np.asarray(result) - (255 - upright)).max() <= 2  # two JPEG decoders


def test_a_target_with_its_own_alpha(tmp_path: Path, picture: Picture) -> None:
    class Opaque(torch.nn.Module):
        multiple, smallest, scale = 1, 1, 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

    image = picture()
    write_image(tmp_path / "in" / "a.jpg", image, quality=100)
    translator = Translator(Opaque(), ImageSpec(), ImageSpec(channels=4), device="cpu", precision="fp32")
    convert(translator, tmp_path / "in", tmp_path / "out")
    result = read_image(tmp_path / "out" / "a.png")
    assert result.alpha is not None and (result.alpha == 255).all()
    np.testing.assert_array_equal(result.pixels, read_image(tmp_path / "in" / "a.jpg").pixels)


def test_arrays_of_many_channels(negative: Translator, tmp_path: Path, picture: Picture) -> None:
    image = picture(channels=6, dtype=np.uint16)
    write_image(tmp_path / "in" / "a.npy", image)
    six = ImageSpec(channels=6)
    convert(Translator(negative._float, six, six, device="cpu"), tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "a.npy"), 65535 - image)


# Bad input


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_bad_files_are_listed_and_the_rest_is_done(negative: Translator, folder: Path, tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    write_image(tmp_path / "whole.jpg", smooth)
    whole = (tmp_path / "whole.jpg").read_bytes()
    (folder / "bad-cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bad-empty.png").write_bytes(b"")
    (folder / "bad-text.png").write_text("this is a letter, not a picture")
    (folder / "bad-bomb.png").write_bytes(bomb(20000, 15000))
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 99)]
    frames[0].save(folder / "bad-animated.webp", save_all=True, append_images=frames[1:], lossless=True)
    (folder / "bad-folder.png").mkdir()
    write_image(folder / "good-1x1.png", smooth[:1, :1])
    write_image(folder / "good-1x5000.png", np.tile(smooth[:1, :50], (1, 100, 1)))
    Image.fromarray(smooth).convert("CMYK").save(folder / "good-cmyk.jpg")

    summary = convert(negative, folder, tmp_path / "out", ConvertOptions(batch_size=4))
    reasons = {path.name: reason for path, reason in summary.failed}
    assert sorted(reasons) == [
        "bad-animated.webp", "bad-bomb.png", "bad-cut.jpg", "bad-empty.png", "bad-text.png",
    ]  # fmt: skip
    assert "truncated" in reasons["bad-cut.jpg"]
    assert "empty" in reasons["bad-empty.png"]
    assert "no image" in reasons["bad-text.png"]
    assert "300" in reasons["bad-bomb.png"]
    assert all("\n" not in reason for reason in reasons.values())
    assert summary.written == 5 + 3
    assert not list((tmp_path / "out").glob("bad*"))
    assert read_image(tmp_path / "out" / "good-1x1.png").pixels.shape == (1, 1, 3)
    assert read_image(tmp_path / "out" / "good-1x5000.png").pixels.shape == (1, 5000, 3)
    assert read_image(tmp_path / "out" / "good-cmyk.jpg").pixels.shape == (64, 64, 3)


def test_max_pixels(negative: Translator, folder: Path, tmp_path: Path) -> None:
    summary = convert(negative, folder, tmp_path / "out", ConvertOptions(max_pixels=24 * 40))
    assert summary.written == 2 and len(summary.failed) == 3


def test_nothing_to_convert(negative: Translator, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no images"):
        convert(negative, tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="no such"):
        convert(negative, tmp_path / "missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read_or_written(negative: Translator, folder: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    with pytest.raises(UserError, match="cannot be read"):
        convert(negative, closed, tmp_path / "out")
    closed.chmod(0o500)
    summary = convert(negative, folder, closed / "out")
    assert len(summary.failed) == 5 and "cannot be written" in summary.failed[0][1]


def test_a_full_disk_stops_at_once(
    negative: Translator, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Picture
) -> None:
    for number in range(60):
        write_image(folder / f"x{number:02d}.png", picture(16, 16))
    real = Path.write_bytes
    written = 0

    def full(self: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PartialFailure, match="disk is full; 3 of 65 files are done"):
        convert(negative, folder, tmp_path / "out")
    assert written < 40  # it did not try them all
    files = contents(tmp_path / "out")
    assert len(files) == 3 and all(name.endswith(".png") for name in files)  # whole ones, no leavings
    monkeypatch.undo()
    summary = convert(negative, folder, tmp_path / "out")
    assert (summary.written, summary.skipped) == (62, 3)


def test_out_of_memory_costs_one_image(negative: Translator, folder: Path, tmp_path: Path) -> None:
    real = negative.run

    def run(batch: list[np.ndarray], names: list[str] | None = None) -> list[np.ndarray]:
        if any(pixels.shape[0] == 40 for pixels in batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 TiB.\nmore lines")
        return real(batch, names)

    negative.run = run
    summary = convert(negative, folder, tmp_path / "out", ConvertOptions(batch_size=8))
    assert summary.written == 4
    ((path, reason),) = summary.failed
    assert path.name == "c.png" and "not enough memory for 40 x 40 pixels" in reason and "--device cpu" in reason


def test_memory_for_a_batch_but_not_for_the_whole(negative: Translator, folder: Path, tmp_path: Path) -> None:
    real = negative.run

    def run(batch: list[np.ndarray], names: list[str] | None = None) -> list[np.ndarray]:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(batch, names)

    negative.run = run
    assert convert(negative, folder, tmp_path / "out", ConvertOptions(batch_size=8)).written == 5


def test_an_interrupt_leaves_whole_files_and_says_how_many(negative: Translator, folder: Path, tmp_path: Path) -> None:
    def stop_after_two(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    summary = convert(negative, folder, tmp_path / "out", on_progress=stop_after_two)
    assert summary.interrupted and summary.written >= 2
    files = contents(tmp_path / "out")
    assert len(files) == summary.written and all(name.endswith(".png") for name in files)
    assert convert(negative, folder, tmp_path / "out").skipped == summary.written
