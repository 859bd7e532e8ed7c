"""Decoded samples in one flat buffer, shared by all workers: in shared memory, or in a memory-mapped file.

A file holds the pixels of all samples, then a JSON index, then the index's length in 8 bytes. It is written
to a temporary name and renamed, so a file that has its final name is whole. The cache folder may be deleted
at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from translate.data.files import user_cache_folder
from translate.data.transforms import Pixels
from translate.errors import ImageError, UserError

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""
Read = Callable[[int], Mapping[str, Pixels]]
"""Decodes and resizes one sample; raises ImageError."""

_FORMAT = 1
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error
_DTYPES = {np.dtype(kind).str for kind in (np.uint8, np.uint16)}
_CHUNK = 64  # samples decoded before they are written: bounds the memory that a build holds


class _Place(NamedTuple):
    """Where one side of one sample lies in the buffer."""

    offset: int
    shape: tuple[int, int, int]
    dtype: str


class _Entry(NamedTuple):
    """One sample: its sides, or why it could not be read (path, reason)."""

    sides: dict[str, _Place]
    failure: tuple[str, str] | None


class Cache:
    """Decoded samples, read only; may be sent to worker processes by fork or by spawn without a copy.

    Args:
        entries: where each sample lies.
        buffer: the pixels: a tensor of bytes in shared memory, or the file that holds them.
    """

    def __init__(self, entries: list[_Entry], buffer: torch.Tensor | Path) -> None:
        self._entries = entries
        self._buffer = buffer
        self._bytes: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Pixels]:
        """The sides of one sample, arrays (H, W, C) that must not be written to. Raises ImageError as `read`
        did."""
        entry = self._entries[index]
        if entry.failure is not None:
            raise ImageError(*entry.failure)
        if self._bytes is None:  # opened in each process by itself: a map cannot be pickled, only copied
            if isinstance(self._buffer, Path):
                self._bytes = np.memmap(self._buffer, dtype=np.uint8, mode="r")
            else:
                self._bytes = self._buffer.numpy()
        out: dict[str, Pixels] = {}
        for side, place in entry.sides.items():
            out[side] = np.ndarray(place.shape, place.dtype, self._bytes.data, place.offset)
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}


def memory_cache(count: int, read: Read, *, threads: int | None = None, progress: Progress | None = None) -> Cache:
    """Decode `count` samples into shared memory, by a pool of threads (decoders release Python's lock).

    Raises:
        UserError: the shared memory is too small.
    """
    entries: list[_Entry] = []
    arrays: list[Pixels | None] = []
    size = 0
    for sample in _decoded(count, read, threads, progress):
        entry, size = _place(sample, size)
        entries.append(entry)
        arrays += sample.values() if isinstance(sample, Mapping) else []
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else sys.maxsize
    # Asked here, because writing past the end of shared memory kills the process without a word.
    if size > free:
        raise UserError(
            f"'data.cache: memory' needs {size / 1e9:.1f} GB but {shared} has {free / 1e9:.1f} GB free; use "
            "'cache: disk', a smaller 'resize', or enlarge it (docker run --shm-size)"
        )
    buffer = torch.empty(size, dtype=torch.uint8)
    buffer.share_memory_()  # type: ignore[no-untyped-call]
    target = buffer.numpy()
    places = [place for entry in entries for place in entry.sides.values()]
    for index, place in enumerate(places):
        array = arrays[index]
        assert array is not None
        np.ndarray(place.shape, place.dtype, target.data, place.offset)[...] = array
        arrays[index] = None  # freed at once, so that the samples are never held twice
    return Cache(entries, buffer)


def disk_cache(
    count: int,
    read: Read,
    *,
    folder: Path | None,
    key: object,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Cache:
    """Open the file of decoded samples for `key`, made first if it is not there.

    Args:
        count: number of samples.
        read: decodes one.
        folder: where the file lies; None: `translate` in the user's cache folder.
        key: all that the pixels depend on, as plain values (JSON).
        threads: decoding threads (default: one per core).
        progress: called while decoding; never if the file was there.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    folder = folder or user_cache_folder()
    digest = hashlib.sha256(json.dumps([_FORMAT, key]).encode("utf-8", "surrogateescape")).hexdigest()
    path = folder / f"{digest[:32]}.pixels"
    if path.is_file():
        entries = _read_index(path, count)
        if entries is not None:
            return Cache(entries, path)
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="building-", suffix=".tmp", dir=folder)
        temporary = Path(name)
        entries, size = [], 0
        with os.fdopen(handle, "wb") as stream:
            for sample in _decoded(count, read, threads, progress):
                entry, following = _place(sample, size)
                entries.append(entry)
                for pixels in sample.values() if isinstance(sample, Mapping) else ():
                    stream.write(np.ascontiguousarray(pixels).data)
                    stream.write(b"\0" * (pixels.nbytes % 2))
                size = following
            index = json.dumps(entries).encode()
            stream.write(index)
            stream.write(len(index).to_bytes(8, "little"))
        temporary.replace(path)
        temporary = None
    except OSError as error:
        if error.errno in _DISK_FULL:
            reason = "the disk is full; free some space or set data.cache_folder to another disk"
        else:
            reason = f"cannot write the cache ({error.strerror}); set data.cache_folder to another folder"
        raise UserError(f"{folder}: {reason}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return Cache(entries, path)


def _decoded(
    count: int, read: Read, threads: int | None, progress: Progress | None
) -> Iterator[Mapping[str, Pixels] | ImageError]:
    """All samples in order; one that cannot be read comes as its error."""

    def attempt(index: int) -> Mapping[str, Pixels] | ImageError:
        try:
            return read(index)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for start in range(0, count, _CHUNK):
            for index, sample in enumerate(pool.map(attempt, range(start, min(count, start + _CHUNK))), start + 1):
                yield sample
                if progress is not None:
                    progress(index, count)


def _place(sample: Mapping[str, Pixels] | ImageError, offset: int) -> tuple[_Entry, int]:
    """The entry of a sample whose pixels begin at `offset`, and the offset after it (even: uint16 needs
    that)."""
    if isinstance(sample, ImageError):
        return _Entry({}, (sample.path, sample.reason)), offset
    sides: dict[str, _Place] = {}
    for side, pixels in sample.items():
        height, width, channels = pixels.shape
        sides[side] = _Place(offset, (height, width, channels), pixels.dtype.str)
        offset += pixels.nbytes + pixels.nbytes % 2
    return _Entry(sides, None), offset


def _read_index(path: Path, count: int) -> list[_Entry] | None:
    """The entries of a cache file; None if the file is damaged, so that it is made anew."""
    try:
        with path.open("rb") as stream:
            end = stream.seek(-8, os.SEEK_END)
            length = int.from_bytes(stream.read(8), "little")
            pixels = stream.seek(end - length)
            raw = json.loads(stream.read(length))
        entries = []
        for sides, failure in raw:
            places = {}
            for side, (offset, (height, width, channels), dtype) in sides.items():
                place = _Place(int(offset), (int(height), int(width), int(channels)), str(dtype))
                if place.dtype not in _DTYPES or place.offset < 0 or min(place.shape) < 1:
                    return None
                if place.offset + math.prod(place.shape) * np.dtype(place.dtype).itemsize > pixels:
                    return None
                places[side] = place
            entries.append(_Entry(places, (str(failure[0]), str(failure[1])) if failure else None))
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return entries if len(entries) == count else None
