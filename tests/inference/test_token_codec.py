"""Tokens of images and back: what a tokenizer makes of them by itself, whatever their size, depth and kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizer
import torch
from torch import Tensor

from translate import config
from translate.data.images import normalise
from translate.errors import UserError
from translate.inference.token_codec import TokenCodec
from translate.inference.translator import Translator
from translate.networks.tokenizer import Tokenizer
from translate.run import build_for_inference, load_weights, write_weights

Picture = Callable[..., np.ndarray]
PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
QUANTISERS = [
    tiny_tokenizer.CODEBOOK,
    {"kind": "codebook", "size": 32, "width": 8, "decay": 0.9},
    {"kind": "gumbel", "size": 32},
    {"kind": "finite-scalar", "levels": [4, 3, 3]},
    {"kind": "lookup-free", "bits": 5},
]


def tokenizer_of(path: Path) -> Tokenizer:
    method: Any = build_for_inference(load_weights(path))
    tokenizer: Tokenizer = method.tokenizer
    return tokenizer


def mirrored(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """Grown at the bottom and the right to a multiple, index by index: a mirror stands on the last pixel."""

    def indices(side: int) -> list[int]:
        full = -(-side // multiple) * multiple
        return [i if i < side else max(0, 2 * (side - 1) - i) for i in range(full)]

    return pixels[indices(pixels.shape[0])][:, indices(pixels.shape[1])]


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda settings: f"{settings['kind']}")
@pytest.mark.parametrize("size", [(20, 30), (21, 33), (1, 7)], ids=str)
def test_what_is_decoded_is_what_conversion_makes(
    quantiser: dict[str, Any], size: tuple[int, int], tmp_path: Path, picture: Picture
) -> None:
    weights = tiny_tokenizer.vqgan(tmp_path / "w.safetensors", quantiser)
    codec = TokenCodec.load(weights, device="cpu")
    image = picture(*size)
    tokens = codec.encode(image)
    assert tokens.dtype is torch.int64 and tuple(tokens.shape) == codec.grid_of(size)
    assert tuple(tokens.shape) == tuple(-(-side // 2) for side in size)
    assert len(tokens.unique()) > 1 or min(size) == 1
    decoded = codec.decode(tokens, size)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, Translator.load(weights, device="cpu")(image))


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda settings: f"{settings['kind']}")
def test_tokens_are_those_of_the_network_in_float64(
    quantiser: dict[str, Any], tmp_path: Path, picture: Picture
) -> None:
    """None of the prepared network's kernels and layouts chooses another code (no two codes are as near as that)."""
    weights = tiny_tokenizer.vqgan(tmp_path / "w.safetensors", quantiser)
    image = picture(21, 33)
    tokenizer = tokenizer_of(weights)
    tokenizer.encoder.double()
    with torch.no_grad():
        exact = torch.from_numpy(mirrored(image, 2)).permute(2, 0, 1)[None].double() / 127.5 - 1
        expected = tokenizer.encode(exact).indices[0]
    assert torch.equal(TokenCodec.load(weights, device="cpu").encode(image), expected)


@pytest.mark.parametrize(
    ("side", "channels", "decoded"),
    [
        ({"channels": 1}, 1, 1),
        ({"channels": 4}, 4, 4),
        ({"kind": "labels", "classes": 3}, 1, 1),
        ({"kind": "labels", "palette": PALETTE}, 1, 3),
    ],
    ids=["grey", "RGBA", "classes", "palette"],
)
def test_other_kinds_of_pixels(
    side: dict[str, Any], channels: int, decoded: int, tmp_path: Path, picture: Picture
) -> None:
    weights = tiny_tokenizer.vqgan(tmp_path / "w.safetensors", **side)
    codec = TokenCodec.load(weights, device="cpu")
    image = picture(9, 14, channels)
    if side.get("kind") == "labels":
        image %= 3
    found = codec.decode(codec.encode(image), (9, 14))
    assert found.shape == (9, 14, decoded)
    np.testing.assert_array_equal(found, Translator.load(weights, device="cpu").run([image])[0])


def test_all_16_bits_are_seen_and_8_come_back(tmp_path: Path, picture: Picture) -> None:
    weights = tiny_tokenizer.vqgan(tmp_path / "w.safetensors")
    codec = TokenCodec.load(weights, device="cpu")
    deep = picture(16, 16, dtype=np.uint16)
    exact = torch.from_numpy(deep.astype(np.float32)).permute(2, 0, 1)[None] / 32767.5 - 1
    with torch.no_grad():
        assert torch.equal(codec.encode(deep), tokenizer_of(weights).encode(exact).indices[0])
    found = codec.decode(codec.encode(deep), (16, 16))
    assert found.dtype == np.uint8
    whole = Translator.load(weights, device="cpu")(deep)
    assert whole.dtype == np.uint16 and np.abs(whole / 257.0 - found).max() <= 0.5


def test_autocast_and_gradients_around_it_change_nothing(tmp_path: Path, picture: Picture) -> None:
    codec = TokenCodec.load(tiny_tokenizer.vqgan(tmp_path / "w.safetensors"), device="cpu")
    image = picture(16, 16)
    expected = codec.encode(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode(image), expected)
    assert not expected.requires_grad


def test_the_network_is_not_shared(tmp_path: Path, picture: Picture) -> None:
    weights = tiny_tokenizer.vqgan(tmp_path / "w.safetensors")
    tokenizer, spec = tokenizer_of(weights).train(), Translator.load(weights, device="cpu").source
    codec = TokenCodec(tokenizer, spec, "0" * 64, device="cpu")
    before = codec.encode(picture(16, 16))
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.zero_()
    assert tokenizer.training and torch.equal(codec.encode(picture(16, 16)), before)


def test_the_digest_is_that_of_the_file_and_of_the_side(tmp_path: Path) -> None:
    weights = tiny_tokenizer.vqgan(tmp_path / "w.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert TokenCodec.load(weights, device="cpu").digest == digest
    other = tiny_tokenizer.vqgan(tmp_path / "v.safetensors", seed=1)
    assert TokenCodec.load(other, device="cpu").digest != digest
    two = tiny_tokenizer.two_sides(tmp_path / "t.safetensors")
    whole = hashlib.sha256(two.read_bytes()).hexdigest()
    for side in "AB":
        expected = hashlib.sha256(f"{whole}/{side}".encode()).hexdigest()
        assert TokenCodec.load(two, side=side, device="cpu").digest == expected


def test_each_side_has_its_own_tokenizer(tmp_path: Path, picture: Picture) -> None:
    weights = tiny_tokenizer.two_sides(tmp_path / "t.safetensors")
    method: Any = build_for_inference(load_weights(weights))
    image = picture(16, 16)
    found: dict[str, Tensor] = {}
    for side in "AB":
        codec = TokenCodec.load(weights, side=side, device="cpu")
        with torch.no_grad():
            exact = normalise(torch.from_numpy(image)[None], codec.spec)
            expected = method.tokenizer(side).encode(exact).indices[0]
        found[side] = codec.encode(image)
        assert torch.equal(found[side], expected)
    assert not torch.equal(found["A"], found["B"])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    one = tiny_tokenizer.vqgan(tmp_path / "one.safetensors")
    two = tiny_tokenizer.two_sides(tmp_path / "two.safetensors")
    settings = config.load("pix2pix", ["method.generator.depth=3", "method.generator.width=4", f"data.root={tmp_path}"])
    none = tmp_path / "none.safetensors"
    write_weights(none, settings, settings.method.build(settings.data).exported(), 1, 1)
    for path, side, message in [
        (one, "A", "one tokenizer"),
        (two, None, "--side A or --side B"),
        (two, "C", "none for 'C'"),
        (none, None, r"\(pix2pix\) has no tokenizer"),
        (tmp_path / "missing", None, "no such file"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            TokenCodec.load(path, side=side, device="cpu")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    weights = load_weights(tiny_tokenizer.vqgan(tmp_path / "w.safetensors"))
    method: Any = build_for_inference(weights)
    with torch.no_grad():
        method.tokenizer.encoder.first.weight[0, 0, 0, 0] = torch.nan
    write_weights(tmp_path / "nan.safetensors", weights.config, method.exported(), 1, 1)
    with pytest.raises(UserError, match=r"nan\.safetensors: .*no numbers"):
        TokenCodec.load(tmp_path / "nan.safetensors", device="cpu")


@pytest.mark.parametrize(
    ("tokens", "size", "message"),
    [
        (torch.zeros(8, 8), (17, 16), "8 x 8 tokens are not those of 17 x 16 pixels, which are 9 x 8"),
        (torch.zeros(8, 8), (2**31 - 1, 2**31 - 1), "are not those of"),
        (torch.zeros(1, 8, 8), (16, 16), "are not those of"),
        (torch.full((8, 8), 32), (16, 16), "token 32, expected 0 to 31"),
        (torch.full((8, 8), -1), (16, 16), "token -1"),
    ],
)
def test_tokens_that_cannot_be_decoded(tokens: Tensor, size: tuple[int, int], message: str, tmp_path: Path) -> None:
    codec = TokenCodec.load(tiny_tokenizer.vqgan(tmp_path / "w.safetensors"), device="cpu")
    with pytest.raises(ValueError, match=message):
        codec.decode(tokens, size)
