"""`translate encode` and `translate decode`: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import call

from translate import config
from translate.data.images import read_image, write_image
from translate.data.tokens import read_tokens
from translate.inference.token_codec import TokenCodec
from translate.inference.translator import Translator
from translate.run import Run

Patch, Capture = pytest.MonkeyPatch, pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that a small tokenizer's run writes, untrained."""
    folder = tmp_path_factory.mktemp("run")
    settings = config.load(
        "vqgan-emoji",
        [
            "method.tokenizer.network={kind: convolutional, width: 8, multipliers: [1, 2], blocks: 1, latent: 8}",
            "method.tokenizer.quantiser={kind: codebook, size: 32, width: 4, normalise: true}",
            "method.discriminator=null",
            "method.lpips=null",
            f"data.root={folder}",
        ],
    )
    torch.manual_seed(0)
    method = settings.method.build(settings.data)
    return Run(folder).export("last", settings, method.exported(), step=7, images=7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png"):
        write_image(tmp_path / "in" / name, generator.integers(0, 256, (20, 31, 3), dtype=np.uint8))
    return tmp_path / "in"


def test_there_and_back(weights: Path, folder: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    tokens, out = tmp_path / "t.safetensors", tmp_path / "out"

    def run(*arguments: object) -> tuple[int, str, str]:
        return call(*map(str, arguments), "--device", "cpu", monkeypatch=monkeypatch, capsys=capsys)

    code, printed, error = run("encode", weights.parent, folder, tokens)
    assert code == 0 and f"2 images encoded into {tokens}" in error
    assert printed.startswith("2 images, 1,240 pixels, 320 tokens\n") and "bits per pixel" in printed
    assert printed.splitlines()[-1].endswith(f"perplexity {perplexity(tokens):,.1f}")
    code, printed, error = run("encode", weights, folder, tokens)
    assert code == 0 and "2 were there before" in error and printed
    assert run("encode", weights, folder, tokens, "--overwrite", "--quiet") == (0, "", "")

    code, printed, error = run("decode", weights.parent, tokens, out)
    assert (code, printed) == (0, "") and f"2 images decoded into {out}" in error
    translator = Translator.load(weights, device="cpu")
    for name in ("a.png", "sub/b.png"):
        np.testing.assert_array_equal(read_image(out / name).pixels, translator(folder / name))
    assert "2 were done before" in run("decode", weights, tokens, out)[2]
    assert run("decode", weights, tokens, out, "--format", "webp", "--limit", 1, "-q") == (0, "", "")
    assert [path.name for path in out.rglob("*.webp")] == ["a.webp"]


def perplexity(tokens: Path) -> float:
    codes = torch.cat([grid.flatten() for grid in read_tokens(tokens).grids.values()])
    shares = codes.bincount() / len(codes)
    return float(torch.special.entr(shares.double()).sum().exp())


def test_json_and_exit_code_1(weights: Path, folder: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    (folder / "bad.jpg").touch()
    tokens = tmp_path / "t.safetensors"
    arguments = ["encode", str(weights), str(folder), str(tokens), "--json"]
    code, printed, error = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    found = json.loads(printed)
    assert (code, found["written"], found["total"], found["failed"][0]["reason"]) == (
        1, 2, 3, "the file is empty (0 bytes)",
    )  # fmt: skip
    assert error == f"error: 1 of 3 images failed; 2 are in {tokens}\n"
    compression = found["compression"]
    assert compression["stored_bits_per_pixel"] == 16 * 320 / 1240 and compression["raw_bits_per_pixel"] == 24
    assert compression["bound_bits_per_pixel"] == pytest.approx(5 * 320 / 1240, rel=1e-12)
    code, printed, error = call(*arguments[:-1], monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1 and f"{folder / 'bad.jpg'}: the file is empty (0 bytes)\n" in error

    arguments = ["decode", str(weights), str(tokens), str(tmp_path / "out"), "--json", "--max-pixels", "600"]
    code, printed, error = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    found = json.loads(printed)
    assert (code, found["written"], [item["path"] for item in found["failed"]]) == (1, 0, ["a", "sub/b"])
    assert error == f"error: 2 of 2 images failed; 0 are done in {tmp_path / 'out'}\n"


def test_an_interrupt_is_130(weights: Path, folder: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    tokens = tmp_path / "t.safetensors"
    arguments = [str(weights), str(folder), str(tokens), "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(TokenCodec, "encode", interrupt)
        code, printed, error = call("encode", *arguments, monkeypatch=patch, capsys=capsys)
    assert (code, printed) == (130, "") and not tokens.exists()
    assert error.endswith(f"stopped: 0 of 2 images are in {tokens}; the same command adds the rest\n")
    assert call("encode", *arguments, monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    monkeypatch.setattr(TokenCodec, "decode", interrupt)
    arguments = [str(weights), str(tokens), str(tmp_path / "out")]
    code, _, error = call("decode", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 130 and "stopped: 0 of 2 images are done and whole" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "missing", "IN", "OUT"], "missing: no such file"),
        (["encode", "WEIGHTS", "EMPTY", "OUT"], "no images"),
        (["encode", "WEIGHTS", "IN", "WEIGHTS"], "no token file, so it stays"),
        (["encode", "WEIGHTS", "IN", "OUT", "--side", "A"], "leave out --side"),
        (["encode", "WEIGHTS", "IN", "OUT", "--device", "abacus"], "abacus"),
        (["decode", "WEIGHTS", "WEIGHTS", "OUT"], "is no token file"),
        (["decode", "WEIGHTS", "nowhere", "OUT"], "nowhere: cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, weights: Path, folder: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"WEIGHTS": weights, "IN": folder, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    given = [str(places.get(word, word)) for word in arguments]
    code, printed, error = call(*given, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, printed) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()
