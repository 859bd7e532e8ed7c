"""Folders into token files and back: nothing is lost but what is said, and nothing lands where it should not."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizer
import torch

from translate.data.images import read_image, write_image
from translate.data.tokens import TokenFile, is_inside, read_tokens, write_tokens
from translate.errors import PartialFailure, UserError
from translate.inference import token_folder as module
from translate.inference.compression import measure
from translate.inference.token_codec import TokenCodec
from translate.inference.token_folder import Summary, decode, encode, plan_decoding, plan_encoding
from translate.inference.translator import Translator

Picture = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer.vqgan(tmp_path_factory.mktemp("run") / "w.safetensors")


@pytest.fixture(scope="module")
def codec(weights: Path) -> TokenCodec:
    return TokenCodec.load(weights, device="cpu")


@pytest.fixture(scope="module")
def translator(weights: Path) -> Translator:
    return Translator.load(weights, device="cpu")


@pytest.fixture
def images(tmp_path: Path, picture: Picture) -> Path:
    """Odd sizes in a tree; grey, RGB, transparent, 16 bits; names with dots."""
    root = tmp_path / "in"
    write_image(root / "a.png", picture(21, 33, seed=1))
    write_image(root / "deep" / "b.jpg", picture(16, 16, seed=2))
    write_image(root / "deep" / "er" / "c.tar.png", picture(9, 14, 1, seed=3))
    write_image(root / "alpha.png", picture(12, 10, seed=4), alpha=picture(12, 10, 1, seed=5)[..., 0])
    write_image(root / "deep.png", picture(8, 30, dtype=np.uint16, seed=6))
    return root


NAMES = ["a", "alpha", "deep", "deep/b", "deep/er/c.tar"]


def run(codec: TokenCodec, inputs: str | Path, output: Path, **options: Any) -> Summary:
    return encode(codec, plan_encoding(codec, inputs, output, **options))


def unpack(codec: TokenCodec, tokens: Path, output: Path, **options: Any) -> Summary:
    return decode(codec, plan_decoding(codec, tokens, output, **options))


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def some(codec: TokenCodec, *names: str, size: tuple[int, int] = (4, 4)) -> TokenFile:
    """A token file of this tokenizer, of images that nobody encoded."""
    grids = {name: torch.arange(math.prod(codec.grid_of(size))).view(codec.grid_of(size)) for name in names}
    return TokenFile(grids, dict.fromkeys(names, size), codec.codes, codec.digest)


# ---- there and back --------------------------------------------------------------------------------------------------


def test_a_tree_there_and_back(codec: TokenCodec, translator: Translator, images: Path, tmp_path: Path) -> None:
    done: list[int] = []
    plan = plan_encoding(codec, images, tmp_path / "t")
    summary = encode(codec, plan, on_progress=done.append)
    assert (summary.written, summary.skipped, summary.failed, summary.total) == (5, 0, [], 5)
    assert done == [1, 2, 3, 4, 5]
    file = read_tokens(tmp_path / "t")
    assert sorted(file.grids) == NAMES and list(file.grids) == list(plan.sources)
    assert file.sizes["a"] == (21, 33) and tuple(file.grids["a"].shape) == (11, 17)
    assert file.tokenizer == codec.digest and file.codebook == 32

    back = decode(codec, plan_decoding(codec, tmp_path / "t", tmp_path / "out"), on_progress=done.append)
    assert (back.written, back.failed, done[5:]) == (5, [], [1, 2, 3, 4, 5])
    assert files(tmp_path / "out") == [f"{name}.png" for name in sorted(NAMES)]
    for path in images.rglob("*.*"):
        made = read_image(tmp_path / "out" / path.relative_to(images).with_suffix(".png"))
        assert made.pixels.dtype == np.uint8 and made.alpha is None
        direct = translator(path)
        if direct.dtype == np.uint16:
            assert np.abs(direct / 257.0 - made.pixels).max() <= 0.5
        else:
            np.testing.assert_array_equal(made.pixels, direct[..., :3])  # alpha is joined on as the last channel


def test_what_tokens_do_not_keep_is_said_once(
    codec: TokenCodec, images: Path, tmp_path: Path, picture: Picture
) -> None:
    write_image(images / "opaque.png", picture(8, 8), alpha=np.full((8, 8), 255, np.uint8))
    write_image(images / "another.png", picture(8, 8), alpha=np.zeros((8, 8), np.uint8))
    notes = run(codec, images, tmp_path / "t").notes
    assert len(notes) == 2
    assert notes[0].startswith("2 images with transparency: encoded over the background (255, 255, 255)")
    assert notes[1].startswith("1 image of 16 bits")


def test_a_single_file_a_glob_and_a_limit(codec: TokenCodec, images: Path, tmp_path: Path) -> None:
    run(codec, images / "deep" / "b.jpg", tmp_path / "one")
    assert list(read_tokens(tmp_path / "one").grids) == ["b"]
    run(codec, str(images / "**" / "*.png"), tmp_path / "glob")
    assert sorted(read_tokens(tmp_path / "glob").grids) == ["a", "alpha", "deep", "deep/er/c.tar"]
    assert run(codec, images, tmp_path / "two", limit=2).total == 2
    assert list(read_tokens(tmp_path / "two").grids) == ["a", "alpha"]
    assert unpack(codec, tmp_path / "two", tmp_path / "out", limit=1).total == 1
    assert files(tmp_path / "out") == ["a.png"]


def test_the_same_bytes_in_every_run(codec: TokenCodec, images: Path, tmp_path: Path) -> None:
    run(codec, images, tmp_path / "t")
    run(codec, images, tmp_path / "u")
    assert (tmp_path / "t").read_bytes() == (tmp_path / "u").read_bytes()


@pytest.mark.parametrize(
    ("side", "format", "expected"),
    [
        ({"kind": "labels", "classes": 3}, "jpg", "x.png"),
        ({"kind": "labels", "classes": 300}, "bmp", "x.png"),
        ({"channels": 4}, "webp", "x.webp"),
        ({"channels": 2}, "jpg", "x.png"),
        ({"channels": 5}, "png", "x.npy"),
        ({"channels": 1}, "jpg", "x.jpg"),
    ],
)
def test_other_kinds_of_images(
    side: dict[str, Any], format: str, expected: str, tmp_path: Path, picture: Picture
) -> None:
    """Class numbers stay class numbers, alpha that the tokenizer knows comes back, and formats are those that can."""
    codec = TokenCodec.load(tiny_tokenizer.vqgan(tmp_path / "w.safetensors", **side), device="cpu")
    channels = side.get("channels", 1)
    image = picture(8, 10, channels)
    if "classes" in side:
        image %= 3
    source = tmp_path / ("x.npy" if channels > 4 else "x.png")
    alpha = image[..., -1] if channels in (2, 4) else None
    write_image(source, image if alpha is None else image[..., :-1], alpha=alpha)
    assert run(codec, source, tmp_path / "t").notes == []
    summary = unpack(codec, tmp_path / "t", tmp_path / "out", format=format)
    assert files(tmp_path / "out") == [expected]
    assert len(summary.notes) == (Path(expected).suffix != f".{format}")
    if expected != "x.jpg":
        made = read_image(tmp_path / "out" / expected)
        joined = made.pixels if made.alpha is None else np.dstack((made.pixels, made.alpha))
        np.testing.assert_array_equal(joined, codec.decode(codec.encode(image), (8, 10)))


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_bad_file_costs_the_others_nothing(codec: TokenCodec, images: Path, tmp_path: Path, picture: Picture) -> None:
    (images / "bad.png").write_text("a letter")
    write_image(images / "huge.png", picture(40, 40))
    plan = plan_encoding(codec, images, tmp_path / "t")
    summary = encode(codec, plan, max_pixels=1000)
    assert (summary.total, summary.written) == (7, 5)
    assert [Path(path).name for path, _ in summary.failed] == ["bad.png", "huge.png"]
    assert "no image" in summary.failed[0][1] and "above the limit" in summary.failed[1][1]
    assert sorted(read_tokens(tmp_path / "t").grids) == NAMES
    assert summary.compression is not None and summary.compression.images == 5


def test_a_network_that_fails_costs_one_image(
    codec: TokenCodec, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TokenCodec.encode

    def encode_most(self: TokenCodec, pixels: np.ndarray) -> torch.Tensor:
        if pixels.shape[0] == 12:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, pixels)

    monkeypatch.setattr(TokenCodec, "encode", encode_most)
    summary = run(codec, images, tmp_path / "t")
    assert summary.written == 4 and "not enough memory" in summary.failed[0][1]


def test_nothing_is_written_where_all_fail(codec: TokenCodec, tmp_path: Path) -> None:
    (tmp_path / "bad.png").touch()
    summary = run(codec, tmp_path / "bad.png", tmp_path / "below" / "t")
    assert (summary.written, len(summary.failed), summary.compression) == (0, 1, None)
    assert not (tmp_path / "below").exists()


def test_two_images_of_one_name(codec: TokenCodec, images: Path, tmp_path: Path, picture: Picture) -> None:
    write_image(images / "deep" / "B.bmp", picture(8, 8))
    with pytest.raises(UserError, match=r"b\.jpg would both become|B\.bmp would both become") as caught:
        plan_encoding(codec, images, tmp_path / "t")
    assert "into two token files" in str(caught.value)


def test_an_interrupt_keeps_what_is_done(
    codec: TokenCodec, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(codec, images / "a.png", tmp_path / "t")
    before = (tmp_path / "t").read_bytes()
    real = TokenCodec.encode

    def encode_some(self: TokenCodec, pixels: np.ndarray) -> torch.Tensor:
        if pixels.shape[0] == 12:
            raise KeyboardInterrupt
        return real(self, pixels)

    monkeypatch.setattr(TokenCodec, "encode", encode_some)
    summary = run(codec, images, tmp_path / "t")
    assert summary.interrupted and summary.skipped == 1
    assert 1 <= len(read_tokens(tmp_path / "t").grids) == 1 + summary.written < summary.total
    assert files(tmp_path) == sorted([*(f"in/{name}" for name in files(images)), "t"])
    monkeypatch.undo()
    run(codec, images, tmp_path / "t")
    run(codec, images, tmp_path / "whole")
    assert (tmp_path / "t").read_bytes() == (tmp_path / "whole").read_bytes() != before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder", "is a folder"),
        ("other", "no token file, so it stays"),
        ("other/t", "no folder that you may write into"),
    ],
)
def test_outputs_that_cannot_be(output: str, message: str, codec: TokenCodec, images: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").write_text("precious")
    with pytest.raises(UserError, match=message):
        plan_encoding(codec, images, tmp_path / output, overwrite=True)


def test_a_name_that_no_token_file_can_hold_is_said_before_the_work(
    codec: TokenCodec, tmp_path: Path, picture: Picture
) -> None:
    """`b:` is a drive on Windows; what is refused here is refused by the file's own check."""
    write_image(tmp_path / "in" / "a" / "b.png", picture(8, 8))
    with pytest.raises(UserError, match=r"cannot hold the name 'in/\.\./in/a/b'"):
        plan_encoding(codec, f"{tmp_path}/*/../in/a/*.png", tmp_path / "t")
    for name in ("b:x", "..\\x", "../x", "a//b"):
        assert not is_inside(name)
        with pytest.raises(UserError, match="no path inside a folder"):
            write_tokens(tmp_path / "t", some(codec, name))


# ---- again -----------------------------------------------------------------------------------------------------------


def test_what_a_token_file_has_is_skipped(codec: TokenCodec, images: Path, tmp_path: Path, picture: Picture) -> None:
    first = run(codec, images, tmp_path / "t", limit=3)
    assert (first.written, first.skipped) == (3, 0)
    marked = read_tokens(tmp_path / "t")
    marked.grids["a"].zero_()
    write_tokens(tmp_path / "t", marked)
    second = run(codec, images, tmp_path / "t")
    assert (second.written, second.skipped, second.total) == (2, 3, 5)
    assert second.compression is not None and second.compression.images == 5
    file = read_tokens(tmp_path / "t")
    assert list(file.grids) == list(plan_encoding(codec, images, tmp_path / "u").sources)
    assert not file.grids["a"].any()  # kept as it was
    before = (tmp_path / "t").stat().st_mtime_ns
    third = run(codec, images, tmp_path / "t", limit=1)
    assert (third.written, third.skipped, third.compression is not None) == (0, 1, True)
    assert (tmp_path / "t").stat().st_mtime_ns == before
    again = run(codec, images, tmp_path / "t", overwrite=True)
    assert (again.written, again.skipped) == (5, 0)
    assert read_tokens(tmp_path / "t").grids["a"].any()


def test_a_token_file_of_others_is_not_added_to(codec: TokenCodec, images: Path, tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", some(codec, "a", "stranger"))
    with pytest.raises(UserError, match=r"not among these, the first 'stranger'; .*--overwrite"):
        plan_encoding(codec, images, tmp_path / "t")
    write_tokens(tmp_path / "t", some(codec, "a")._replace(tokenizer="0123456789abcdef" * 4))
    with pytest.raises(UserError, match=rf"another tokenizer \(0123456789ab, not {codec.digest[:12]}\)"):
        plan_encoding(codec, images, tmp_path / "t")
    assert plan_encoding(codec, images, tmp_path / "t", overwrite=True).skipped == 0


def test_decoded_images_are_skipped(codec: TokenCodec, tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", some(codec, "a", "b/c", "d"))
    out = tmp_path / "out"
    (out / "b").mkdir(parents=True)
    (out / "b" / "c.png").write_bytes(b"done")
    (out / "d.png").touch()  # without bytes: not done
    summary = unpack(codec, tmp_path / "t", out)
    assert (summary.written, summary.skipped, summary.total) == (2, 1, 3)
    assert (out / "b" / "c.png").read_bytes() == b"done"
    assert unpack(codec, tmp_path / "t", out, overwrite=True).written == 3
    assert read_image(out / "b" / "c.png").pixels.shape == (4, 4, 3)


# ---- decoding what is not one's own ----------------------------------------------------------------------------------


def test_another_tokenizers_tokens_are_refused(codec: TokenCodec, tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", some(codec, "a")._replace(tokenizer="fedcba9876543210" * 4))
    with pytest.raises(UserError, match=rf"fedcba987654, not {codec.digest[:12]}\); decode it with") as caught:
        plan_decoding(codec, tmp_path / "t", tmp_path / "out")
    assert "\n" not in str(caught.value)
    write_tokens(tmp_path / "t", some(codec, "a")._replace(codebook=64))
    with pytest.raises(UserError, match="64 codes, its tokenizer 32"):
        plan_decoding(codec, tmp_path / "t", tmp_path / "out")


def test_sides_are_not_taken_for_each_other(tmp_path: Path, picture: Picture) -> None:
    weights = tiny_tokenizer.two_sides(tmp_path / "two.safetensors")
    a, b = (TokenCodec.load(weights, side=side, device="cpu") for side in "AB")
    write_image(tmp_path / "x.png", picture(8, 8))
    run(a, tmp_path / "x.png", tmp_path / "t")
    with pytest.raises(UserError, match="another tokenizer"):
        plan_decoding(b, tmp_path / "t", tmp_path / "out")
    assert unpack(a, tmp_path / "t", tmp_path / "out").written == 1


def test_a_link_does_not_lead_out(codec: TokenCodec, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "b").symlink_to(tmp_path / "elsewhere")
    write_tokens(tmp_path / "t", some(codec, "a", "b/c"))
    with pytest.raises(UserError, match="leads out of the folder"):
        plan_decoding(codec, tmp_path / "t", tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "elsewhere") == []


def test_images_that_cannot_be_decoded_are_listed(codec: TokenCodec, tmp_path: Path) -> None:
    file = some(codec, "a", "b", "large", "e")
    file.sizes["b"] = (400_000_000, 4)
    file.grids["large"], file.sizes["large"] = torch.zeros(20, 20, dtype=torch.int64), (40, 40)
    file.sizes["e"] = (5, 4)
    write_tokens(tmp_path / "t", file)
    plan = plan_decoding(codec, tmp_path / "t", tmp_path / "out")
    summary = decode(codec, plan, max_pixels=1000)
    assert (summary.written, files(tmp_path / "out")) == (1, ["a.png"])
    reasons = dict(summary.failed)
    assert "above the limit" in reasons["b"] and "above the limit of 1,000" in reasons["large"]
    assert "not those of 5 x 4 pixels" in reasons["e"]


def test_a_file_in_the_place_of_a_folder_costs_one_image(codec: TokenCodec, tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", some(codec, "a", "b/c"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").touch()
    summary = unpack(codec, tmp_path / "t", tmp_path / "out")
    assert summary.written == 1 and [name for name, _ in summary.failed] == ["b/c"]
    with pytest.raises(UserError, match="is a file; expected a folder"):
        plan_decoding(codec, tmp_path / "t", tmp_path / "t")


def test_a_full_disk_ends_it(codec: TokenCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens(tmp_path / "t", some(codec, *"abcdefgh"))

    def full(path: Path, *rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(PartialFailure, match="disk is full; 0 of 8 images are done"):
        unpack(codec, tmp_path / "t", tmp_path / "out")


def test_an_interrupt_leaves_whole_images(codec: TokenCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens(tmp_path / "t", some(codec, *"abcd"))
    real, calls = TokenCodec.decode, []

    def decode_some(self: TokenCodec, tokens: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
        calls.append(size)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, tokens, size)

    monkeypatch.setattr(TokenCodec, "decode", decode_some)
    summary = unpack(codec, tmp_path / "t", tmp_path / "out")
    assert summary.interrupted and summary.written == 2
    assert files(tmp_path / "out") == ["a.png", "b.png"]
    monkeypatch.undo()
    assert unpack(codec, tmp_path / "t", tmp_path / "out").skipped == 2


# ---- how small -------------------------------------------------------------------------------------------------------


def test_bits_per_pixel_by_hand() -> None:
    """Codes 0, 0, 1, 2 have an entropy of 1.5 bits; 4 tokens stand for 2 x 5 + 3 x 2 = 16 pixels."""
    grids = {"x": torch.tensor([[0, 0]]), "y": torch.tensor([[1], [2]])}
    file = TokenFile(grids, {"x": (2, 5), "y": (3, 2)}, 8, "0" * 64)
    found = measure(file, raw=24, source_bytes=100, file_bytes=500)
    assert (found.images, found.pixels, found.tokens, found.codebook) == (2, 16, 4, 8)
    assert found.stored == 16 * 4 / 16
    assert found.bound == pytest.approx(3 * 4 / 16, rel=1e-12)
    assert found.entropy == pytest.approx(1.5 * 4 / 16, rel=1e-12)
    assert (found.raw, found.files, found.token_file) == (24, 50, 250)
    assert found.codes_used == 3 / 8 and found.perplexity == pytest.approx(2**1.5, rel=1e-12)
    lines = found.lines()
    assert lines[0] == "2 images, 16 pixels, 4 tokens"
    assert lines[-1] == "37.5% of 8 codes used, perplexity 2.8"
    assert len({len(line) for line in lines[1:-1]}) == 1
    assert found.as_dict()["entropy_bits_per_pixel"] == found.entropy and found.as_dict()["token_file_bytes"] == 500


def test_one_code_alone_has_no_entropy() -> None:
    file = TokenFile({"x": torch.zeros(2, 2)}, {"x": (4, 4)}, 2, "0" * 64)
    found = measure(file, raw=24, source_bytes=10, file_bytes=10)
    assert found.entropy == 0 and found.perplexity == 1
    assert len({len(line) for line in found.lines()[1:-1]}) == 1


def test_the_report_is_of_what_was_encoded(codec: TokenCodec, images: Path, tmp_path: Path) -> None:
    found = run(codec, images, tmp_path / "t").compression
    assert found is not None
    pixels = 21 * 33 + 16 * 16 + 9 * 14 + 12 * 10 + 8 * 30
    tokens = 11 * 17 + 8 * 8 + 5 * 7 + 6 * 5 + 4 * 15
    assert (found.pixels, found.tokens, found.raw) == (pixels, tokens, 24)
    assert found.files == 8 * sum(path.stat().st_size for path in images.rglob("*.*")) / pixels
    assert found.token_file_bytes == (tmp_path / "t").stat().st_size
    codes = torch.cat([grid.flatten() for grid in read_tokens(tmp_path / "t").grids.values()]).numpy()
    shares = np.bincount(codes) / tokens
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    assert found.entropy == pytest.approx(entropy * tokens / pixels, rel=1e-12)
