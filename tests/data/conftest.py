"""Odd images, written without the code under test: by Pillow, or byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

Pixels = np.ndarray


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def smooth() -> Pixels:
    """(48, 64, 3) uint8 gradients, which a lossy codec keeps to a few levels."""
    y, x = np.mgrid[:48, :64]
    return np.stack([4 * x, 5 * y, 255 - 2 * x - 2 * y], axis=2).astype(np.uint8)


@pytest.fixture(scope="session")
def icc() -> bytes:
    """A colour profile (sRGB)."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_bytes(width: int, height: int, bits: int, colour_type: int, rows: list[bytes], before: bytes = b"") -> bytes:
    """A PNG with unfiltered rows as given, and chunks `before` the pixels."""
    raw = b"".join(b"\0" + row for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + _chunk(b"IHDR", header) + before + _chunk(b"IDAT", zlib.compress(raw)) + _chunk(b"IEND", b"")


def _tiff_bytes(
    pixels: Pixels,
    *,
    orientation: int = 1,
    photometric: int = 2,
    sample_format: int = 1,
    extra: int | None = None,
) -> bytes:
    """An uncompressed little-endian TIFF of pixels (H, W, C) of any type."""
    height, width, channels = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    data += b"\0" * (len(data) % 2)
    bits = 8 * pixels.dtype.itemsize
    tags = {
        256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * channels), 259: (3, [1]),
        262: (3, [photometric]), 273: (4, [8]), 274: (3, [orientation]), 277: (3, [channels]),
        278: (3, [height]), 279: (4, [pixels.nbytes]), 284: (3, [1]), 339: (3, [sample_format] * channels),
    }  # fmt: skip
    if extra is not None:
        tags[338] = (3, [extra])
    far = 8 + len(data) + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag in sorted(tags):
        kind, numbers = tags[tag]
        packed = struct.pack("<" + {3: "H", 4: "I"}[kind] * len(numbers), *numbers)
        if len(packed) > 4:
            packed, values = struct.pack("<I", far + len(values)), values + packed
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return (
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + values
    )


def _exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """`save(name, bytes)` or `save(name, pixels, **options of Pillow)` -> path."""

    def write(name: str, content: bytes | Pixels | Image.Image, **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            image = content if isinstance(content, Image.Image) else Image.fromarray(content)
            image.save(path, **options)
        return path

    return write


@pytest.fixture(scope="session")
def chunk() -> Callable[..., bytes]:
    return _chunk


@pytest.fixture(scope="session")
def png_bytes() -> Callable[..., bytes]:
    return _png_bytes


@pytest.fixture(scope="session")
def tiff_bytes() -> Callable[..., bytes]:
    return _tiff_bytes


@pytest.fixture(scope="session")
def exif() -> Callable[[int], Image.Exif]:
    return _exif
