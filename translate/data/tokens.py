"""Token files: images as the grids of codebook indices that a tokenizer makes of them.

A safetensors file of four tensors, whatever the number of images (one tensor an image would meet the format's limit of
100 MB of header before a million of them, and take seconds to open long before):

    tokens  uint16 (sum of h·w,)   the grids, row by row, one after another
    grids   int32 (N, 2)           height and width of each grid
    sizes   int32 (N, 2)           height and width of each image, in pixels
    names   uint8                  UTF-8 (of a file name that is none, its own bytes), a zero byte between two

and the metadata key `translate-tokens`: JSON {"format": 1, "codebook": size, "tokenizer": sha256 of its weights}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from translate.errors import UserError

FORMAT = 1
"""Version of the file; a reader refuses newer ones by name."""
METADATA_KEY = "translate-tokens"
LARGEST_CODEBOOK = 1 << 16
"""What uint16 can count."""
_BYTES = "surrogateescape"  # how Python holds a file name that is no UTF-8
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LAYOUT = {"tokens": (torch.uint16, 1), "grids": (torch.int32, 2), "sizes": (torch.int32, 2), "names": (torch.uint8, 1)}


class TokenFile(NamedTuple):
    """What a token file holds; both dictionaries have the same names, in the same order."""

    grids: dict[str, Tensor]
    """Name (a relative path without suffix, `/` between folders) -> indices (h, w), int64 when read."""
    sizes: dict[str, tuple[int, int]]
    """Name -> height and width of the image in pixels."""
    codebook: int
    """How many codes there are: indices are below it."""
    tokenizer: str
    """The sha256 of the tokenizer's weights file, in hexadecimal."""


def write_tokens(path: Path, file: TokenFile) -> None:
    """Write a token file, whole or not at all; missing folders are made.

    Raises:
        UserError: a codebook above 65,536, no image, a grid that is none, an index beyond the codebook, a name that
            leads out of a folder, or the file cannot be written.
    """
    if file.grids.keys() != file.sizes.keys():
        raise ValueError("expected a size for each grid, under the same names")
    for name, grid in file.grids.items():
        if grid.ndim != 2 or grid.is_floating_point():
            raise UserError(f"{path}: the grid of {name!r} is {tuple(grid.shape)} of {grid.dtype}, not (h, w) indices")
    grids = [grid.cpu() for grid in file.grids.values()]
    tokens = torch.cat([torch.empty(0, dtype=torch.int64), *(grid.flatten().to(torch.int64) for grid in grids)])
    shapes = torch.tensor([grid.shape for grid in grids], dtype=torch.int64).reshape(-1, 2)
    sizes = torch.tensor([file.sizes[name] for name in file.grids], dtype=torch.int64).reshape(-1, 2)
    _check(path, tokens, shapes, sizes, list(file.grids), file.codebook, file.tokenizer)
    tensors = {
        "tokens": tokens.to(torch.uint16),
        "grids": shapes.to(torch.int32),
        "sizes": sizes.to(torch.int32),
        "names": torch.frombuffer(bytearray("\0".join(file.grids).encode(errors=_BYTES)), dtype=torch.uint8),
    }
    metadata = {"format": FORMAT, "codebook": file.codebook, "tokenizer": file.tokenizer}
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(metadata)})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def read_tokens(path: Path) -> TokenFile:
    """Read what `write_tokens` wrote; UserError for anything else, and for anything in it that cannot be."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = (opened.metadata() or {}).get(METADATA_KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()} if metadata else {}  # noqa: SIM118  # no mapping
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise UserError(f"{path}: is cut short or no token file ({error}); encode the images again") from error
    if metadata is None:
        raise UserError(f"{path}: is no token file; expected one that 'translate encode' wrote")
    try:
        content = json.loads(metadata)
        version, codebook, tokenizer = content["format"], content["codebook"], content["tokenizer"]
        if not (isinstance(version, int) and isinstance(codebook, int) and isinstance(tokenizer, str)):
            raise TypeError("expected two integers and a text")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its metadata is damaged ({error}); encode the images again") from error
    if version > FORMAT:
        raise UserError(f"{path}: was written by a newer translate (format {version}); update this one")
    for key, (dtype, rank) in _LAYOUT.items():
        if key not in tensors or tensors[key].dtype != dtype or tensors[key].ndim != rank:
            found = f"{tuple(tensors[key].shape)} of {tensors[key].dtype}" if key in tensors else "missing"
            raise UserError(f"{path}: is damaged: {key!r} is {found}, expected {rank} dimensions of {dtype}")
    names = tensors["names"].numpy().tobytes().decode(errors=_BYTES).split("\0")
    tokens, shapes, sizes = (tensors[key].to(torch.int64) for key in ("tokens", "grids", "sizes"))
    _check(path, tokens, shapes, sizes, names, codebook, tokenizer)
    parts = zip(names, tokens.split(shapes.prod(dim=1).tolist()), shapes.tolist(), strict=True)
    grids = {name: part.view(height, width) for name, part, (height, width) in parts}
    pixels = {name: (height, width) for name, (height, width) in zip(names, sizes.tolist(), strict=True)}
    return TokenFile(grids, pixels, codebook, tokenizer)


def is_inside(name: str) -> bool:
    """Whether a name is a path inside a folder, on any system: what alone a token file holds."""
    parts = name.replace("\\", "/").split("/")
    return not (any(part in ("", ".", "..") for part in parts) or name[1:2] == ":" or "\0" in name)


def is_token_file(path: Path) -> bool:
    """Whether a file says that it is a token file; reads its header alone, and never raises."""
    try:
        with safe_open(path, framework="pt") as opened:
            return METADATA_KEY in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _check(
    path: Path, tokens: Tensor, shapes: Tensor, sizes: Tensor, names: Sequence[str], codebook: int, tokenizer: str
) -> None:
    """UserError for the first thing that cannot be: indices (T,), (N, 2) and (N, 2) in int64, N names."""
    if not 1 <= codebook <= LARGEST_CODEBOOK:
        raise UserError(
            f"{path}: a codebook of {codebook} codes; a token file holds indices of 1 to {LARGEST_CODEBOOK}"
        )
    if _SHA256.fullmatch(tokenizer) is None:
        raise UserError(f"{path}: the tokenizer is {tokenizer!r}, expected the sha256 of its weights file")
    if len(shapes) == 0:
        raise UserError(f"{path}: holds no image; expected at least one")
    if shapes.shape != (len(names), 2) or sizes.shape != shapes.shape:
        raise UserError(
            f"{path}: is damaged: {len(names)} names, grids {tuple(shapes.shape)}, sizes {tuple(sizes.shape)}, "
            "expected (N, 2) of both for N names"
        )
    for name in names:
        if not is_inside(name):
            raise UserError(f"{path}: the name {name!r} is no path inside a folder")
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: holds two images of the name {double!r}")
    areas = shapes.prod(dim=1)
    if (
        int(shapes.min()) < 1
        or int(sizes.min()) < 1
        or int(areas.max()) > len(tokens)
        or int(areas.sum()) != len(tokens)
    ):
        raise UserError(f"{path}: is damaged: its {len(tokens)} tokens are not those of its grids' heights and widths")
    beyond = (tokens < 0) | (tokens >= codebook)
    if bool(beyond.any()):
        place = int(beyond.nonzero()[0])
        name = names[int(torch.searchsorted(areas.cumsum(dim=0), place, right=True))]
        raise UserError(f"{path}: {name!r} has index {int(tokens[place])}, the codebook ends at {codebook - 1}")
