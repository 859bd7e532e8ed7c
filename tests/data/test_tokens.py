"""Token files: what is written is read, and nothing else is believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from translate.data.tokens import METADATA_KEY, TokenFile, is_token_file, read_tokens, write_tokens
from translate.errors import UserError

DIGEST = "0123456789abcdef" * 4


def example() -> TokenFile:
    """Three images of several shapes; the codebook is the largest, and its ends occur."""
    generator = torch.Generator().manual_seed(0)
    grids = {
        "b/photo 2": torch.randint(65536, (4, 6), generator=generator),
        "a": torch.tensor([[65535, 0]]),
        "ü/ş.tar": torch.randint(65536, (3, 1), generator=generator),
    }
    sizes = {"b/photo 2": (61, 90), "a": (16, 32), "ü/ş.tar": (48, 9)}
    return TokenFile(grids, sizes, 65536, DIGEST)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "below" / "tokens.safetensors"
    write_tokens(path, example())
    found, expected = read_tokens(path), example()
    assert list(found.grids) == list(expected.grids)  # their order too
    for name, grid in expected.grids.items():
        assert found.grids[name].dtype is torch.int64
        assert torch.equal(found.grids[name], grid)
    assert found[1:] == expected[1:]
    assert [p.name for p in path.parent.iterdir()] == ["tokens.safetensors"]  # nothing unfinished


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_any_integers_are_written(tmp_path: Path, dtype: torch.dtype) -> None:
    grid = torch.tensor([[3, 127], [0, 1]])
    write_tokens(tmp_path / "t", TokenFile({"x": grid.to(dtype).T}, {"x": (8, 8)}, 128, DIGEST))
    assert torch.equal(read_tokens(tmp_path / "t").grids["x"], grid.T)


def test_two_bytes_a_token_and_a_small_header_whatever_the_number(tmp_path: Path) -> None:
    count = 20_000
    grids = {f"{i:06d}": torch.full((2, 2), i) for i in range(count)}
    write_tokens(tmp_path / "t", TokenFile(grids, dict.fromkeys(grids, (32, 32)), count, DIGEST))
    # A grid of 4 in 2 bytes each, its height and width and the image's in 4 bytes each, a name of 6 and its end.
    assert (tmp_path / "t").stat().st_size < count * (8 + 16 + 7) + 1000
    found = read_tokens(tmp_path / "t")
    assert [int(grid[1, 1]) for grid in found.grids.values()] == list(range(count))


def test_a_file_name_that_is_no_utf8_comes_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_tokens(tmp_path / "t", TokenFile({name: torch.zeros(1, 1, dtype=torch.int64)}, {name: (1, 1)}, 1, DIGEST))
    assert list(read_tokens(tmp_path / "t").grids) == [name]


def test_its_kind_is_told_by_the_header(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", example())
    save_file({"x": torch.zeros(1)}, tmp_path / "weights", metadata={"translate": "{}"})
    (tmp_path / "text").write_text("no safetensors")
    (tmp_path / "empty").touch()
    answers = {name: is_token_file(tmp_path / name) for name in ("tokens", "weights", "text", "empty", "absent", ".")}
    assert answers == {"tokens": True, "weights": False, "text": False, "empty": False, "absent": False, ".": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook": 65537}, "codebook of 65537 codes"),
        ({"codebook": 0}, "codebook of 0 codes"),
        ({"codebook": 65535}, "'a' has index 65535, the codebook ends at 65534"),
        ({"tokenizer": "none"}, "expected the sha256"),
        ({"grids": {}, "sizes": {}}, "holds no image"),
        ({"grids": {"a": torch.tensor([[0, -1]])}, "sizes": {"a": (1, 1)}}, "'a' has index -1"),
        ({"grids": {"a": torch.zeros(1, 1)}, "sizes": {"a": (1, 1)}}, r"of 'a' is \(1, 1\) of torch.float32"),
        ({"grids": {"a": torch.zeros(2, dtype=torch.int64)}, "sizes": {"a": (1, 1)}}, r"is \(2,\) of torch.int64"),
        ({"grids": {"a": torch.zeros(0, 2, dtype=torch.int64)}, "sizes": {"a": (1, 1)}}, "heights and widths"),
    ],
)
def test_what_cannot_be_is_not_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_tokens(tmp_path / "t", example()._replace(**change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "", ".", "a//b", "a/", "C:x", "C:\\x", "a\\..\\..\\x", "x\0y"]
)
def test_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    file = TokenFile({"x": torch.zeros(1, 1, dtype=torch.int64)}, {"x": (1, 1)}, 1, DIGEST)
    with pytest.raises(UserError, match="no path inside a folder"):
        write_tokens(tmp_path / "t", file._replace(grids={name: file.grids["x"]}, sizes={name: (1, 1)}))
    if "\0" not in name:  # which parts two names in a file
        damage(tmp_path / "t", lambda tensors: tensors.update(names=as_bytes(f"{name}\0a\0b")))
        with pytest.raises(UserError, match="no path inside a folder"):
            read_tokens(tmp_path / "t")


def as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def damage(
    path: Path,
    tensors: Callable[[dict[str, Tensor]], object] = lambda _: None,
    metadata: Callable[[dict[str, Any]], object] = lambda _: None,
) -> None:
    """The example's file, but for what is changed."""
    write_tokens(path, example())
    content, facts = load_file(path), {"format": 1, "codebook": 65536, "tokenizer": DIGEST}
    tensors(content)
    metadata(facts)
    save_file(content, path, metadata={METADATA_KEY: json.dumps(facts)})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda t: t.pop("sizes"), "'sizes' is missing"),
        (
            lambda t: t.update(tokens=t["tokens"].to(torch.int32)),
            "'tokens' is .* expected 1 dimensions of torch.uint16",
        ),
        (lambda t: t.update(grids=t["grids"].flatten()), "'grids' is .* expected 2 dimensions"),
        (lambda t: t.update(tokens=t["tokens"][1:]), "28 tokens are not those"),
        (lambda t: t["grids"].fill_(2**31 - 1), "tokens are not those"),  # whose areas add up beyond int64
        (lambda t: t["grids"][1].neg_(), "tokens are not those"),  # -1 x -2 is an area too
        (lambda t: t["sizes"][2].zero_(), "tokens are not those"),
        (lambda t: t.update(sizes=t["sizes"][:2]), r"3 names, grids \(3, 2\), sizes \(2, 2\)"),
        (lambda t: t.update(grids=t["grids"].T, sizes=t["sizes"].T), r"3 names, grids \(2, 3\)"),
        (lambda t: t.update(names=as_bytes("a\0b")), "2 names"),
        (lambda t: t.update(names=as_bytes("a\0b\0a")), "two images of the name 'a'"),
    ],
)
def test_damaged_tensors_are_one_line(tmp_path: Path, tensors: Callable[[Any], object], message: str) -> None:
    def contiguous(content: dict[str, Tensor]) -> None:
        tensors(content)
        content.update({name: tensor.contiguous() for name, tensor in content.items()})

    damage(tmp_path / "t", contiguous)
    with pytest.raises(UserError, match=message) as caught:
        read_tokens(tmp_path / "t")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "t"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (lambda m: m.update(format=2), r"newer translate \(format 2\)"),
        (lambda m: m.pop("codebook"), "metadata is damaged"),
        (lambda m: m.update(codebook="many"), "metadata is damaged"),
        (lambda m: m.update(codebook=70_000), "codebook of 70000 codes"),
        (lambda m: m.update(codebook=65535), "'a' has index 65535"),
        (lambda m: m.update(tokenizer="0" * 63), "expected the sha256"),
    ],
)
def test_damaged_metadata_are_one_line(tmp_path: Path, metadata: Callable[[Any], object], message: str) -> None:
    damage(tmp_path / "t", metadata=metadata)
    with pytest.raises(UserError, match=message):
        read_tokens(tmp_path / "t")


def test_other_files_are_one_line(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", example())
    whole = (tmp_path / "t").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-1])
    (tmp_path / "text").write_text("no safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights", metadata={"translate": "{}"})
    save_file({"x": torch.zeros(1)}, tmp_path / "json", metadata={METADATA_KEY: "[1"})
    expected = {
        "cut": "cut short",
        "text": "cut short or no",
        "weights": "no token file",
        "json": "metadata is damaged",
    }
    for name, message in {**expected, "absent": "cannot be read", ".": "cannot be read"}.items():
        with pytest.raises(UserError, match=message):
            read_tokens(tmp_path / name)


def test_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_tokens(tmp_path / "file" / "t", example())
