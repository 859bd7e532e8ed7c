"""Image files in and out, and the one place that converts between pixels and tensors.

Pixels are numpy arrays (H, W, C), uint8 or uint16, RGB order. The content of a file decides its format, its
data type the bit depth. OpenCV decodes where it is right; Pillow takes CMYK, palettes, BMP and the TIFF kinds
that OpenCV gets wrong. Sizes are read from the header before anything is decoded.
"""

from __future__ import annotations

import io
import logging
import mmap
import os
import secrets
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from translate.data.files import SUFFIXES as SUFFIXES
from translate.data.spec import ImageSpec, Spec
from translate.errors import ImageError, UserError

Pixels = NDArray[Any]
"""(H, W, C), uint8 or uint16."""
DEFAULT_MAX_PIXELS = 250_000_000

# A bad file is reported once, by us, not by OpenCV or Pillow on stderr too.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)

_FORMATS = {"jpg": "jpeg", "tif": "tiff"}  # suffixes that differ from the format's name
_READABLE = "PNG, JPEG, WebP, TIFF, BMP or .npy"
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_LARGEST_ICC = 16 << 20  # bytes; a compressed profile must not become a decompression bomb
_ORIENTATION_TAG = 0x0112  # EXIF 2.3, section 4.6.4


@dataclass(frozen=True)
class ImageFile:
    """A decoded file, upright (EXIF orientation applied)."""

    pixels: Pixels
    """(H, W, C) uint8 or uint16; C is 1 (grey) or 3 (RGB), any number for `.npy`."""
    alpha: Pixels | None
    """(H, W), same type as `pixels`; None where the file has no transparency."""
    icc: bytes | None
    """The colour profile as stored; None too where it does not describe `pixels` (CMYK turned into RGB)."""
    format: str
    """png, jpeg, webp, tiff, bmp or npy."""
    indices: Pixels | None = None
    """(H, W) uint8: stored numbers of a palette image or of a grey PNG below 8 bit (`pixels` scales them)."""


@dataclass(frozen=True)
class Header:
    """What the first bytes of a file say. Width and height are those after EXIF orientation."""

    width: int
    height: int
    channels: int
    """Colour channels without alpha: 1 or 3 (CMYK and palettes become RGB), any number for `.npy`."""
    dtype: str
    """uint8 or uint16."""
    has_alpha: bool
    format: str


@dataclass
class _Facts:
    """All that decoding needs to know. Width and height as stored, before orientation."""

    format: str
    width: int = 0
    height: int = 0
    channels: int = 3
    bits: int = 8
    has_alpha: bool = False
    orientation: int = 1
    icc: bytes | None = None
    frames: int = 1
    palette: Pixels | None = None  # (256, 3), PNG
    transparency: bytes | None = None  # PNG's tRNS
    hidden: list[tuple[int, int]] = field(default_factory=list)  # PNG chunks kept from the decoder
    samples: int = 3  # stored channels: 4 in a CMYK JPEG
    inverted: bool = False  # TIFF with white as 0
    premultiplied: bool = False  # TIFF whose colours are stored times alpha


class _Bad(Exception):
    """A reason why a file is no image for us; becomes an ImageError where the path is known."""


# ---------------------------------------------------------------------------------------------- headers


def _sniff(head: bytes) -> str:
    if not head:
        raise _Bad("the file is empty (0 bytes)")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith(b"BM"):
        return "bmp"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    raise _Bad(f"the content is no image that can be read (expected {_READABLE})")


def _orientation(exif: bytes) -> int:
    try:
        tags = Image.Exif()
        tags.load(exif)
        value = tags.get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block says nothing about the picture; Pillow raises many kinds
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _jpeg_facts(data: bytes | mmap.mmap) -> _Facts:
    """Walks the marker segments up to the first scan (ITU-T T.81, annex B)."""
    facts = _Facts("jpeg")
    profile: dict[int, bytes] = {}
    position, size = 2, len(data)
    while position + 4 <= size:
        if data[position] != 0xFF:
            raise _Bad("damaged JPEG header")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        start, end = position + 4, position + 2 + length
        if length < 2 or end > size:
            break
        if marker == 0xDA:  # start of scan: the header is over, the picture ends with an end-of-image marker
            if not facts.width:
                raise _Bad("damaged JPEG header")
            # Bytes FF D9 cannot be part of the scan's own data; some cameras put more data after the picture.
            if data.rfind(b"\xff\xd9", end) < 0:
                raise _Bad("truncated JPEG: the end of the picture is missing")
            if profile:
                facts.icc = b"".join(profile[number] for number in sorted(profile))
            return facts
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            facts.bits, facts.height, facts.width, facts.samples = struct.unpack_from(">BHHB", data, start)
            facts.channels = 1 if facts.samples == 1 else 3
        elif marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            facts.orientation = _orientation(data[start:end])
        elif marker == 0xE2 and data[start : start + 12] == b"ICC_PROFILE\0" and end - start > 14:
            profile[data[start + 12]] = data[start + 14 : end]
        position = end
    raise _Bad("truncated JPEG: the file ends inside its header")


def _png_facts(data: bytes | mmap.mmap, verify: bool) -> _Facts:
    """Walks the chunks (PNG specification, section 5); `verify` also checks their checksums.

    libpng would check them too, but print to stderr.
    """
    facts = _Facts("png")
    colour_type = -1
    position, size = 8, len(data)
    view = memoryview(data)
    try:
        while position + 12 <= size:
            length = int.from_bytes(view[position : position + 4], "big")
            kind = bytes(view[position + 4 : position + 8])
            start, end = position + 8, position + 8 + length
            if end + 4 > size:
                break
            if verify and kind[:1].isupper():  # critical chunks
                expected = int.from_bytes(view[end : end + 4], "big")
                if zlib.crc32(view[position + 4 : end]) != expected:
                    raise _Bad(f"damaged PNG: wrong checksum in chunk {kind.decode('latin-1')}")
            if kind == b"IHDR" and length >= 13:
                facts.width, facts.height, facts.bits, colour_type = struct.unpack_from(">IIBB", view, start)
            elif colour_type < 0:
                break
            elif kind == b"PLTE":
                table = bytes(view[start:end])[:768].ljust(768, b"\0")
                facts.palette = np.frombuffer(table, np.uint8).reshape(256, 3)
            elif kind == b"tRNS":
                facts.transparency = bytes(view[start:end])
            elif kind == b"acTL" and length >= 4:
                facts.frames = int.from_bytes(view[start : start + 4], "big")
            elif kind == b"eXIf":
                facts.orientation = _orientation(bytes(view[start:end]))
            elif kind == b"iCCP":
                facts.icc = _inflate_profile(bytes(view[start:end]))
                facts.hidden.append((position, end + 4))  # libpng prints warnings about many profiles
            elif kind == b"IEND":
                facts.samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour_type, 0)
                facts.channels = 1 if colour_type in (0, 4) else 3
                facts.has_alpha = colour_type in (4, 6) or facts.transparency is not None
                if colour_type != 3:  # a palette in a true-colour file is just a suggestion for poor screens
                    facts.palette = None
                elif facts.palette is None:
                    raise _Bad("damaged PNG: the palette is missing")
                return facts
            position = end + 4
    finally:
        view.release()
    raise _Bad("truncated PNG: the end of the file is missing" if colour_type >= 0 else "damaged PNG header")


def _inflate_profile(chunk: bytes) -> bytes | None:
    _, _, rest = chunk.partition(b"\0")  # name, 0, method 0, zlib stream
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(rest[1:], _LARGEST_ICC)
    except zlib.error:
        return None
    return profile if inflater.eof else None


def _webp_facts(data: bytes | mmap.mmap) -> _Facts:
    """Reads the RIFF chunks (RFC 9649, section 2)."""
    facts = _Facts("webp")
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise _Bad("truncated WebP: the end of the file is missing")
    kind, start = data[12:16], 20
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        facts.width, facts.height = width & 0x3FFF, height & 0x3FFF
        return facts
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        facts.width, facts.height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        facts.has_alpha = bool(bits >> 28 & 1)
        return facts
    if kind != b"VP8X":
        raise _Bad("damaged WebP header")
    flags = data[20]
    facts.has_alpha = bool(flags & 0x10)
    facts.width = int.from_bytes(data[24:27], "little") + 1
    facts.height = int.from_bytes(data[27:30], "little") + 1
    frames = 0
    position = 12
    while position + 8 <= len(data):
        kind, start = data[position : position + 4], position + 8
        length = int.from_bytes(data[position + 4 : start], "little")
        if kind == b"ICCP":
            facts.icc = data[start : start + length]
        elif kind == b"EXIF":
            facts.orientation = _orientation(data[start : start + length])
        elif kind == b"ANMF":
            frames += 1
        position = start + length + length % 2
    facts.frames = max(1, frames)
    return facts


def _tiff_facts(stream: Any) -> _Facts:
    try:
        image = TiffImageFile(stream)
        tags, frames = image.tag_v2, image.n_frames
    except Exception as error:  # Pillow raises many kinds for a damaged or unusual TIFF
        if str(error) == "unknown pixel mode":
            raise _Bad("a TIFF of an unsupported kind (expected 8 or 16 bit integers, grey or RGB)") from None
        raise _Bad("damaged TIFF header") from None
    bits = tags.get(258, (1,))
    bits = max(bits if isinstance(bits, tuple) else (bits,))
    samples, photometric = tags.get(277, 1), tags.get(262)
    if bits > 16 or max(tags.get(339, (1,))) == 3:
        raise _Bad(f"a TIFF with {bits} bit numbers (expected 8 or 16 bit integers)")
    facts = _Facts("tiff", tags[256], tags[257], bits=bits, samples=samples, frames=frames)
    # Pillow and OpenCV both turn a TIFF upright themselves: `orientation` serves the header alone.
    facts.orientation = tags.get(274, 1)
    facts.icc = image.info.get("icc_profile")
    facts.channels = 1 if photometric in (0, 1) else 3
    extra = tags.get(338, ())
    facts.has_alpha = photometric in (0, 1, 2) and samples == facts.channels + 1
    facts.inverted = photometric == 0
    facts.premultiplied = bool(extra) and extra[0] == 1
    if bits == 16 and (photometric not in (0, 1, 2) or samples not in (1, 3, 4) or tags.get(284, 1) != 1):
        raise _Bad("a 16 bit TIFF of an unsupported kind (expected grey, RGB or RGBA, channels side by side)")
    if photometric in (5, 8):  # CMYK, CIE Lab: the profile is about those numbers, not about RGB
        facts.icc = None
    return facts


def _bmp_facts(stream: Any) -> _Facts:
    try:
        image = BmpImageFile(stream)
    except Exception:  # Pillow raises many kinds
        raise _Bad("damaged BMP header") from None
    channels = 1 if image.mode in ("1", "L") else 3
    return _Facts("bmp", *image.size, channels=channels, has_alpha=image.mode == "RGBA")


def _npy_facts(stream: Any, size: int) -> _Facts:
    """Reads the header of a numpy array file; object arrays (pickles) are refused."""
    try:
        version = np.lib.format.read_magic(stream)
        old = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except Exception:  # numpy raises several kinds
        raise _Bad("damaged .npy header") from None
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16) or len(shape) not in (2, 3) or 0 in shape:
        raise _Bad(f"an array {shape} of {dtype} (expected (H, W) or (H, W, C) of uint8 or uint16)")
    height, width, channels = (*shape, 1)[:3]
    if stream.tell() + height * width * channels * dtype.itemsize > size:
        raise _Bad("truncated .npy: the end of the file is missing")
    return _Facts("npy", width, height, channels=channels, bits=8 * dtype.itemsize, samples=channels)


def _facts(data: bytes | mmap.mmap, stream: Any, max_pixels: int, verify: bool) -> _Facts:
    """Header of an image whose bytes are `data`, also readable as `stream`; raises _Bad."""
    kind = _sniff(data[:12])
    try:
        if kind == "jpeg":
            facts = _jpeg_facts(data)
        elif kind == "png":
            facts = _png_facts(data, verify)
        elif kind == "webp":
            facts = _webp_facts(data)
        elif kind == "tiff":
            facts = _tiff_facts(stream)
        elif kind == "bmp":
            facts = _bmp_facts(stream)
        else:
            facts = _npy_facts(stream, len(data))
    except (struct.error, IndexError):
        raise _Bad(f"damaged {kind} header") from None
    if facts.width < 1 or facts.height < 1:
        raise _Bad(f"the header says {facts.width} x {facts.height} pixels")
    if facts.width * facts.height > max_pixels:
        millions = facts.width * facts.height / 1e6
        raise _Bad(
            f"{facts.width} x {facts.height} is {millions:,.0f} million pixels, above the limit of "
            f"{max_pixels / 1e6:g} million that guards the memory: make the image smaller"
        )
    if facts.frames > 1:
        what = "a multi-page TIFF" if kind == "tiff" else f"an animated {'WebP' if kind == 'webp' else 'PNG'}"
        raise _Bad(f"{what} ({facts.frames} frames): extract the frames first")
    if facts.bits not in (1, 2, 4, 8, 16):
        raise _Bad(f"{facts.bits} bits per channel (expected 8 or 16)")
    return facts


def _os_reason(error: OSError) -> str:
    if isinstance(error, IsADirectoryError):
        return "is a folder, expected an image file"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return f"cannot be read ({(error.strerror or str(error)).lower()})"


def probe(path: Path | str, max_pixels: int = DEFAULT_MAX_PIXELS) -> Header:
    """Size and kind of an image from its header, without decoding.

    Raises:
        ImageError: the file is no image that `read_image` would take, as far as the header tells.
    """
    try:
        with Path(path).open("rb") as stream:
            if not stream.read(1):
                raise _Bad("the file is empty (0 bytes)")
            stream.seek(0)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                facts = _facts(data, stream, max_pixels, verify=False)
    except OSError as error:
        raise ImageError(path, _os_reason(error)) from None
    except _Bad as error:
        raise ImageError(path, str(error)) from None
    width, height = facts.width, facts.height
    if facts.orientation >= 5:
        width, height = height, width
    dtype = "uint16" if facts.bits == 16 else "uint8"
    return Header(width, height, facts.channels, dtype, facts.has_alpha, facts.format)


# --------------------------------------------------------------------------------------------- decoding


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turns (H, W, ...) as EXIF orientation says: 2-4 mirror, 3 half a turn, 5-8 swap width and height."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _opencv(data: bytes, flags: int) -> Pixels:
    """Decoded by OpenCV, (H, W, C); raises _Bad."""
    try:
        decoded: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise _Bad("damaged: the picture cannot be decoded")
    return decoded if decoded.ndim == 3 else decoded[..., None]


def _pillow(load: Callable[[], Image.Image]) -> Pixels:
    try:
        array = np.array(load())
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... for damaged files
        raise _Bad("damaged: the picture cannot be decoded") from None
    return array if array.ndim == 3 else array[..., None]


def _decode_png(data: bytes, facts: _Facts) -> tuple[Pixels, Pixels | None, Pixels | None]:
    for start, end in reversed(facts.hidden):
        data = data[:start] + data[end:]
    if facts.palette is not None:
        # OpenCV would give the colours alone; label maps want the numbers.
        indices = _pillow(lambda: PngImageFile(io.BytesIO(data)))[..., 0]
        pixels = facts.palette[indices]
        if facts.transparency is None:
            return pixels, None, indices
        table = np.frombuffer(facts.transparency[:256].ljust(256, b"\xff"), np.uint8)
        return pixels, table[indices], indices
    if facts.samples in (2, 4):
        decoded = _opencv(data, cv2.IMREAD_UNCHANGED)  # (H, W, 4) BGRA, for grey + alpha too
        alpha = np.ascontiguousarray(decoded[..., 3])
        if facts.samples == 2:
            return np.ascontiguousarray(decoded[..., :1]), alpha, None
        return cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGB), alpha, None
    pixels = _opencv(data, _GREY if facts.channels == 1 else _RGB)
    # Below 8 bit, decoders stretch the values to 0 ... 255.
    step = 255 // (2**facts.bits - 1) if facts.bits < 8 else 1
    key: Pixels | None = None
    if facts.transparency is not None and len(facts.transparency) >= 2 * facts.channels:
        # One colour is transparent.
        colour = np.array(struct.unpack_from(f">{facts.channels}H", facts.transparency), np.int64) * step
        top = np.iinfo(pixels.dtype).max
        key = np.where((pixels == colour).all(axis=2), 0, top).astype(pixels.dtype)
    return pixels, key, pixels[..., 0] // np.uint8(step) if step > 1 else None


def _decode_tiff(data: bytes, facts: _Facts) -> tuple[Pixels, Pixels | None, Pixels | None]:
    if facts.bits < 16:
        image = TiffImageFile(io.BytesIO(data))
        return _from_pillow(image)
    decoded = _opencv(data, cv2.IMREAD_UNCHANGED)
    if decoded.dtype != np.uint16:
        raise _Bad("a 16 bit TIFF of an unsupported kind (expected grey, RGB or RGBA)")
    if facts.samples == 1:
        return (65535 - decoded if facts.inverted else decoded), None, None
    if facts.samples == 3:
        return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), None, None
    pixels, alpha = cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGB), np.ascontiguousarray(decoded[..., 3])
    if facts.premultiplied:
        straight = pixels * np.float64(65535) / np.maximum(alpha, 1)[..., None]
        pixels = np.minimum(np.rint(straight), 65535).astype(np.uint16)
    return pixels, alpha, None


def _from_pillow(image: Image.Image) -> tuple[Pixels, Pixels | None, Pixels | None]:
    indices = _pillow(lambda: image)[..., 0] if image.mode == "P" else None
    if image.mode in ("1", "L"):
        return _pillow(lambda: image.convert("L")), None, None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        target = "LA" if image.mode in ("LA", "La") else "RGBA"
        both = _pillow(lambda: image.convert(target))
        return np.ascontiguousarray(both[..., :-1]), np.ascontiguousarray(both[..., -1]), None
    return _pillow(lambda: image.convert("RGB")), None, indices


def _read_bytes(path: Path | str) -> bytes:
    with Path(path).open("rb") as stream:
        head = stream.read(4096)
        _sniff(head[:12])  # a film named .png is refused before it fills the memory
        return head + stream.read()


def read_image(path: Path | str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageFile:
    """Read an image file, upright, with its alpha channel and colour profile apart.

    The header is checked before anything is decoded. CMYK becomes RGB, palettes colours, 1 bit 0 / 255.

    Args:
        path: PNG, JPEG, WebP, TIFF, BMP or .npy; the content decides, not the suffix.
        max_pixels: larger images are refused (decompression bombs).

    Raises:
        ImageError: the file is missing, not readable, no image, damaged, truncated, animated, too large, or
            its numbers are no integers of 1 to 8 or 16 bit.
    """
    try:
        data = _read_bytes(path)
        facts = _facts(data, io.BytesIO(data), max_pixels, verify=True)
        return _decode(data, facts)
    except OSError as error:
        raise ImageError(path, _os_reason(error)) from None
    except _Bad as error:
        raise ImageError(path, str(error)) from None
    except MemoryError:
        raise ImageError(path, "too large for the memory of this machine") from None


def _decode(data: bytes, facts: _Facts) -> ImageFile:
    pixels: Pixels
    alpha: Pixels | None = None
    indices: Pixels | None = None
    icc = facts.icc
    if facts.format == "jpeg":
        if facts.samples == 4:
            pixels = _pillow(lambda: JpegImageFile(io.BytesIO(data)).convert("RGB"))
            icc = None  # describes CMYK
        else:
            pixels = _opencv(data, _GREY if facts.samples == 1 else _RGB)
    elif facts.format == "png":
        pixels, alpha, indices = _decode_png(data, facts)
    elif facts.format == "webp":
        if facts.has_alpha:
            decoded = _opencv(data, cv2.IMREAD_UNCHANGED)
            if decoded.shape[2] == 4:
                alpha = np.ascontiguousarray(decoded[..., 3])
            pixels = np.ascontiguousarray(decoded[..., 2::-1])
        else:
            pixels = _opencv(data, _RGB)
    elif facts.format == "npy":
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
        pixels = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    elif facts.format == "tiff":
        pixels, alpha, indices = _decode_tiff(data, facts)
    else:
        pixels, alpha, indices = _from_pillow(BmpImageFile(io.BytesIO(data)))
    if facts.orientation != 1 and facts.format != "tiff":
        pixels = _upright(pixels, facts.orientation)
        alpha = None if alpha is None else _upright(alpha, facts.orientation)
        indices = None if indices is None else _upright(indices, facts.orientation)
    return ImageFile(pixels, alpha, icc, facts.format, indices)


# -------------------------------------------------------------------------------- pixels as a side wants them


def read_pixels(path: Path | str, spec: ImageSpec, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Pixels:
    """Read an image as one side of a data set wants it.

    Returns:
        (H, W, C) uint8 or uint16: `spec.channels` channels, or one channel of class numbers for labels.

    Raises:
        ImageError: as `read_image`, or the image does not fit `spec`.
    """
    image = read_image(path, max_pixels=max_pixels)
    try:
        return _fit(image, spec)
    except _Bad as error:
        raise ImageError(path, str(error)) from None


def load_pixels_like(image: ImageFile, spec: ImageSpec) -> Pixels:
    """The conversion of `read_pixels` for an image already read: (H, W, C) as `spec` asks.

    Raises:
        ImageError: the image does not fit `spec`.
    """
    try:
        return _fit(image, spec)
    except _Bad as error:
        raise ImageError("image", str(error)) from None


def _fit(image: ImageFile, spec: ImageSpec) -> Pixels:
    if spec.kind == "labels":
        return _class_numbers(image, spec)
    pixels, alpha, wanted = image.pixels, image.alpha, spec.channels
    given = pixels.shape[2]
    if given not in (1, 3) or wanted > 4:
        if given != wanted:
            raise _Bad(f"has {given} channels, expected {wanted} (key 'channels')")
        return pixels
    if wanted in (1, 3) and alpha is not None:
        pixels = _over_background(pixels, alpha, spec)
    colour = 1 if wanted <= 2 else 3
    if pixels.shape[2] > colour:
        # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    elif pixels.shape[2] < colour:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if wanted in (1, 3):
        return pixels
    if alpha is None:
        alpha = np.full(pixels.shape[:2], np.iinfo(pixels.dtype).max, pixels.dtype)
    return np.concatenate([pixels, alpha[..., None]], axis=2)


def _over_background(pixels: Pixels, alpha: Pixels, spec: ImageSpec) -> Pixels:
    """Transparent pixels over the background: (p a + b (1 - a)), rounded to the nearest integer."""
    top = int(np.iinfo(pixels.dtype).max)
    if alpha.min() == top:
        return pixels
    background: Pixels = np.array([[spec.background]], np.uint8)  # (1, 1, 3)
    if pixels.shape[2] == 1:
        background = cv2.cvtColor(background, cv2.COLOR_RGB2GRAY)[..., None]
    # In uint32 the sum stays just below 2^32 for 16 bit too: 65535² + 32767.
    cover = alpha.astype(np.uint32)[..., None]
    mixed = pixels * cover + background.astype(np.uint32) * (top // 255) * (top - cover) + top // 2
    return (mixed // top).astype(pixels.dtype)


def _class_numbers(image: ImageFile, spec: ImageSpec) -> Pixels:
    """(H, W, 1) class numbers: uint8 up to 256 classes, uint16 above."""
    dtype = np.uint8 if spec.width <= 256 else np.uint16
    if spec.palette is not None:
        return _nearest_colours(image.pixels, spec.palette).astype(dtype)[..., None]
    numbers = image.pixels[..., 0] if image.indices is None else image.indices
    if image.indices is None and image.pixels.shape[2] != 1:
        raise _Bad(
            f"has {image.pixels.shape[2]} channels, expected a grey or palette image of class numbers "
            "(for class colours give 'palette' in place of 'classes')"
        )
    highest = int(numbers.max())
    if highest >= spec.width:
        raise _Bad(f"class number {highest}, expected 0 to {spec.width - 1} (key 'classes')")
    return numbers.astype(dtype)[..., None]


def _nearest_colours(pixels: Pixels, palette: list[tuple[int, int, int]]) -> Pixels:
    """(H, W) class whose colour is nearest (squared distance; the first of equals). Pixels (H, W, 1 or 3)."""
    if pixels.shape[2] not in (1, 3):
        raise _Bad(f"has {pixels.shape[2]} channels, expected a grey or RGB picture of class colours")
    if pixels.dtype == np.uint16:
        pixels = (pixels // 257).astype(np.uint8)
    wide = pixels.astype(np.uint32)
    packed = wide[..., 0] << 16 | wide[..., pixels.shape[2] // 2] << 8 | wide[..., -1]
    codes, where = np.unique(packed, return_inverse=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.float32)
    classes = np.array(palette, np.float32)  # (K, 3)
    nearest = np.empty(len(codes), np.int64)
    # |c - p|² without |c|², in whole numbers below 2^24 (exact in float32); in parts, to spare memory.
    part = max(1, (1 << 22) // len(classes))
    for start in range(0, len(codes), part):
        distance = (classes**2).sum(axis=1) - 2 * colours[start : start + part] @ classes.T
        nearest[start : start + part] = distance.argmin(axis=1)
    return nearest[where].reshape(pixels.shape[:2])


# ---------------------------------------------------------------------------------------------- tensors


def normalise(pixels: Tensor, spec: ImageSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels (N, H, W, C), uint8 or uint16, as networks see them: (N, C, H, W), contiguous, in [-1, 1].

    Labels (N, H, W, 1) become one-hot (N, classes, H, W): absent -1, present +1.
    """
    if spec.kind == "labels":
        numbers = pixels.permute(0, 3, 1, 2).to(torch.int64)  # (N, 1, H, W)
        count, _, height, width = numbers.shape
        hot = torch.full((count, spec.width, height, width), -1.0, dtype=dtype, device=pixels.device)
        return hot.scatter_(1, numbers, 1.0)
    half = (255 if pixels.dtype == torch.uint8 else 65535) / 2
    planes = pixels.permute(0, 3, 1, 2)  # (N, C, H, W)
    planes = planes.to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(half).sub_(1).to(dtype)


def to_device(
    batch: Mapping[str, Any],
    specs: Mapping[str, Spec],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """A batch of the loader as tensors that networks see, with its `label` (N,), int64, if it has one.

    Other keys that have no spec are dropped. Integers cross to the device (a quarter of the bytes of floats),
    and are scaled there; points (N, D) keep their values.
    """
    tensors: dict[str, Tensor] = {}
    for key, spec in specs.items():
        if key in batch:
            moved = batch[key].to(device, non_blocking=True)
            tensors[key] = moved.to(dtype) if spec.kind == "points" else normalise(moved, spec, dtype)
    if "label" in batch:
        tensors["label"] = batch["label"].to(device, non_blocking=True)
    return tensors


def to_pixels(images: Tensor, spec: ImageSpec, dtype: DTypeLike = np.uint8) -> Pixels:
    """Images (N, C, H, W) in [-1, 1] as pixels (N, H, W, C), clamped, rounded half to even.

    Undoes `normalise`. Labels: the class of the highest channel as (N, H, W, 1), uint8 up to 256 classes,
    else uint16; where the spec has a palette its colours, (N, H, W, 3) of `dtype`.
    """
    top = np.iinfo(np.dtype(dtype)).max  # 255 or 65535
    if spec.kind == "labels":
        classes: Pixels = images.argmax(dim=1).cpu().numpy()  # (N, H, W)
        if spec.palette is None:
            return classes.astype(np.uint8 if spec.width <= 256 else np.uint16)[..., None]
        colours = (np.array(spec.palette, np.int64) * (top // 255)).astype(dtype)  # (classes, 3)
        return np.take(colours, classes, axis=0)
    scaled = images.float().clamp(-1, 1).add(1).div(2).mul(top).round()
    whole = scaled.to(torch.uint8 if top == 255 else torch.int32)
    pixels: Pixels = whole.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels.astype(dtype, copy=False)


def visible(images: Tensor, spec: ImageSpec) -> Tensor:
    """(N, C, H, W) of any kind as RGB (N, 3, H, W) in [-1, 1] for looking at, float32.

    Grey is repeated, alpha and further channels are left out, classes take their palette's colours or spread hues.
    """
    images = images.detach().float()
    if spec.kind == "image":
        return images[:, :3] if spec.channels >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    if spec.palette is not None:
        colours = torch.tensor(spec.palette, dtype=torch.float32, device=images.device) / 127.5 - 1
    else:
        hue = torch.arange(spec.width, device=images.device) / spec.width * 2 * torch.pi
        third = 2 * torch.pi / 3
        colours = torch.stack([hue.cos(), (hue - third).cos(), (hue + third).cos()], dim=1)
    return colours[images.argmax(1)].permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------- writing


def write_image(
    path: Path | str,
    pixels: Pixels,
    *,
    alpha: Pixels | None = None,
    icc: bytes | None = None,
    quality: int | None = None,
    compression: int | None = None,
) -> None:
    """Write an image; the suffix of `path` is its format. The file appears whole or not at all.

    Args:
        path: .png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp or .npy; missing folders are made.
        pixels: (H, W, C) or (H, W), uint8 or uint16; C is 1 or 3 (any number for .npy).
        alpha: (H, W), same type; grey with alpha is written as such in PNG, as RGBA in WebP, TIFF and BMP. In
            .npy it is the last channel.
        icc: colour profile for PNG, JPEG, WebP, TIFF; left out where it is for another colour space.
        quality: 1 to 100 for JPEG (default 95) and WebP (default: lossless).
        compression: 0 (fast) to 9 (small) for PNG; the default is a fast mixture, some 30 % larger than 9.

    Raises:
        UserError: the format cannot hold these pixels, or the file cannot be written (full disk).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: no image format ends in '{path.suffix}' (expected {', '.join(SUFFIXES)})")
    kind = _FORMATS.get(suffix[1:], suffix[1:])
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"pixels are {pixels.dtype}, expected uint8 or uint16")
    if kind == "npy":
        stream = io.BytesIO()
        np.save(stream, pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2))
        _write_atomically(path, stream.getvalue())
        return
    if pixels.shape[2] not in (1, 3):
        raise UserError(f"{path}: an image of {pixels.shape[2]} channels can be written as .npy only")
    if pixels.dtype == np.uint16 and kind not in ("png", "tiff"):
        raise UserError(f"{path}: {kind} has no 16 bit; write .png, .tif or .npy, or ask for 8 bit")
    if alpha is not None and kind == "jpeg":
        raise UserError(f"{path}: jpeg has no transparency; write .png, .webp or .tif, or drop the alpha")
    if icc is not None and icc[16:20] != (b"GRAY" if pixels.shape[2] == 1 else b"RGB "):
        icc = None
    try:
        data = _encode(kind, pixels, alpha, icc, quality, compression)
    except (cv2.error, OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise UserError(f"{path}: {width} x {height} pixels cannot be written as {kind} ({error})") from None
    _write_atomically(path, data)


def _encode(
    kind: str,
    pixels: Pixels,
    alpha: Pixels | None,
    icc: bytes | None,
    quality: int | None,
    compression: int | None,
) -> bytes:
    if kind == "png":
        if alpha is not None and pixels.shape[2] == 1:
            data = _grey_alpha_png(pixels, alpha, compression)
        else:
            data = _opencv_bytes(".png", pixels, alpha, _png_options(compression))
        return data if icc is None else _png_with_profile(data, icc)
    if alpha is not None and pixels.shape[2] == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
        icc = None  # described grey
    if kind == "jpeg":
        data = _opencv_bytes(".jpg", pixels, None, [cv2.IMWRITE_JPEG_QUALITY, quality or 95])
        return data if icc is None else _jpeg_with_profile(data, icc)
    if kind == "webp":
        whole = pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2)
        stream = io.BytesIO()
        image = Image.fromarray(whole.squeeze(2) if whole.shape[2] == 1 else whole)
        # `exact` keeps the colours under transparent pixels.
        image.save(stream, "WEBP", lossless=quality is None, quality=quality or 80, exact=True, icc_profile=icc)
        return stream.getvalue()
    if kind == "tiff":
        data = _opencv_bytes(".tif", pixels, alpha, [])
        extra: dict[int, tuple[int, int, bytes]] = {}
        if alpha is not None:
            extra[338] = (3, 1, struct.pack("<H", 2))  # ExtraSamples: alpha that is not multiplied in
        if icc is not None:
            extra[34675] = (7, len(icc), icc)  # ICC.1, annex B.2
        return _tiff_with_tags(data, extra) if extra else data
    return _opencv_bytes(".bmp", pixels, alpha, [])


def _opencv_bytes(suffix: str, pixels: Pixels, alpha: Pixels | None, options: list[int]) -> bytes:
    if alpha is not None:
        pixels = np.dstack([pixels[..., ::-1], alpha])  # BGRA
    elif pixels.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise ValueError("the encoder refused")
    return data.tobytes()


def _png_options(compression: int | None) -> list[int]:
    if compression is None:
        # OpenCV's own choice (level 1, run lengths). Measured on photographs of 256²: 2.4 ms and
        # 139 kB; level 1 with other strategies 3.1 ms and 110 kB, level 3 6.5 ms and 105 kB, Pillow's default
        # 17 ms and 106 kB.
        return []
    strategy = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT)
    return [cv2.IMWRITE_PNG_COMPRESSION, compression, *strategy]


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _grey_alpha_png(pixels: Pixels, alpha: Pixels, compression: int | None) -> bytes:
    """Grey with alpha, 8 or 16 bit: OpenCV has no such PNG, Pillow no 16 bit one."""
    both = np.dstack([pixels, alpha])
    height, width = alpha.shape
    rows = both.astype(both.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2  # filter "Up": each row minus the one above
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8 * both.dtype.itemsize, 4, 0, 0, 0)
    packed = zlib.compress(filtered.tobytes(), 1 if compression is None else compression)
    chunks = _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", packed) + _png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _png_with_profile(data: bytes, icc: bytes) -> bytes:
    chunk = _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    return data[:33] + chunk + data[33:]  # after the signature (8) and IHDR (25), before the pixels


def _jpeg_with_profile(data: bytes, icc: bytes) -> bytes:
    """Profile in APP2 segments of at most 65519 bytes (ICC.1, annex B.4), after the JFIF segment."""
    size = 65519
    parts = [icc[start : start + size] for start in range(0, len(icc), size)]
    segments = b"".join(
        struct.pack(">HH12sBB", 0xFFE2, len(part) + 16, b"ICC_PROFILE\0", number, len(parts)) + part
        for number, part in enumerate(parts, 1)
    )
    start = 2
    if data[2:4] == b"\xff\xe0":
        start = 4 + int.from_bytes(data[4:6], "big")
    return data[:start] + segments + data[start:]


def _tiff_with_tags(data: bytes, extra: dict[int, tuple[int, int, bytes]]) -> bytes:
    """A little-endian TIFF of one page with tags {number: (type, count, value)} added or replaced.

    The new directory goes to the end of the file, the old one is left behind unused (TIFF 6.0, section 2).
    """
    (offset,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, offset)
    entries = {}
    for position in range(offset + 2, offset + 2 + 12 * count, 12):
        entries[struct.unpack_from("<H", data, position)[0]] = data[position : position + 12]
    data += b"\0" * (len(data) % 2)
    for tag, (kind, number, value) in extra.items():
        if len(value) > 4:
            place = struct.pack("<I", len(data))
            data += value + b"\0" * (len(value) % 2)
        else:
            place = value.ljust(4, b"\0")
        entries[tag] = struct.pack("<HHI", tag, kind, number) + place
    body = b"".join(entries[tag] for tag in sorted(entries))
    directory = struct.pack("<H", len(entries)) + body + b"\0" * 4
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)  # noqa: PTH105  (Path.replace is the same; this is the name people know)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({(error.strerror or str(error)).lower()})") from None
