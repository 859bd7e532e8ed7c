"""Encode a file, a folder tree or a glob into one token file, and decode a token file into a folder tree."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from translate.data.files import expand, inside, stem_key
from translate.data.images import DEFAULT_MAX_PIXELS, Pixels, load_pixels_like, probe, read_image, write_image
from translate.data.spec import ImageSpec
from translate.data.tokens import TokenFile, is_inside, is_token_file, read_tokens, write_tokens
from translate.errors import ImageError, PartialFailure, UserError
from translate.inference.compression import Compression, measure
from translate.inference.folder import LOOK_AHEAD, LOOK_AHEAD_PIXELS, NO_ROOM, READERS, WRITERS, suffix_for
from translate.inference.precision import short_of_memory
from translate.inference.token_codec import TokenCodec

Format = Literal["png", "jpg", "webp", "tiff", "bmp"]

Progress = Callable[[int], None]


@dataclass
class Summary:
    """What was done of `total` images. `failed` are names, or paths, and why."""

    total: int = 0
    written: int = 0
    """Encoded into the token file, or decoded."""
    skipped: int = 0
    """Were there before."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False
    compression: Compression | None = None
    """Of all that the token file holds after encoding; None where it was not written."""

    @property
    def finished(self) -> int:
        """How many of `total` need no more work, failed ones included."""
        return self.written + self.skipped + len(self.failed)

    def as_dict(self) -> dict[str, Any]:
        """For programs: `--json`."""
        return {
            "total": self.total,
            "written": self.written,
            "skipped": self.skipped,
            "failed": [{"path": path, "reason": reason} for path, reason in self.failed],
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
            "compression": self.compression.as_dict() if self.compression else None,
        }


# ---- encoding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodePlan:
    """All that will be encoded, known before anything is read."""

    sources: dict[str, Path]
    """Name in the token file -> image, of all that the input has, in its order."""
    todo: list[str]
    skipped: int
    kept: dict[str, tuple[Tensor, tuple[int, int]]]
    """Name -> grid and image size of what the token file has already, and keeps."""
    output: Path


def plan_encoding(
    codec: TokenCodec, inputs: str | Path, output: str | Path, *, overwrite: bool = False, limit: int | None = None
) -> EncodePlan:
    """Find the images and their names: relative paths without suffix, `/` between folders. Writes nothing.

    A token file that is there already is added to: what it has is skipped.

    Args:
        overwrite: begin anew instead; what is no token file is never overwritten.
        limit: encode just the first so many images.

    Raises:
        UserError: no images, two of one name, a name that cannot stand in a token file; an output that cannot be
            written, is no token file, is another tokenizer's, or holds images that the input does not have.
    """
    output = Path(output)
    root, files = expand(inputs)
    sources: dict[str, Path] = {}
    folded: dict[str, Path] = {}
    for file in files:
        name = stem_key(file, root)
        if not is_inside(name):
            raise UserError(f"{file}: a token file cannot hold the name {name!r}; rename it, or name its folder")
        # Two names that differ in case are one file on many systems, and token files travel.
        if (other := folded.setdefault(name.casefold(), file)) is not file:
            raise UserError(
                f"{other} and {file} would both become {name!r} in {output}; "
                "rename one, or encode them into two token files"
            )
        sources[name] = file
    kept = _kept(codec, sources, output, overwrite=overwrite)
    names = list(sources)[:limit]
    todo = [name for name in names if name not in kept]
    return EncodePlan(sources, todo, len(names) - len(todo), kept, output)


def _kept(
    codec: TokenCodec, sources: dict[str, Path], output: Path, *, overwrite: bool
) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """What the output has already, by name; UserError where it cannot become the output."""
    if output.is_dir():
        raise UserError(f"{output}: is a folder; expected a file to write, such as tokens.safetensors")
    folder = next(path for path in output.absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{output}: cannot be written, for {folder} is no folder that you may write into")
    if not output.exists():
        return {}
    if not is_token_file(output):
        raise UserError(f"{output}: is there already and no token file, so it stays; choose another name")
    if overwrite:
        return {}
    file = read_tokens(output)
    if file.tokenizer != codec.digest:
        raise UserError(
            f"{output}: has tokens of another tokenizer ({_short(file.tokenizer)}, not {_short(codec.digest)}); "
            "choose another file, or --overwrite it"
        )
    if strange := next((name for name in file.grids if name not in sources), None):
        raise UserError(
            f"{output}: holds images that are not among these, the first {strange!r}; "
            "choose another file, or --overwrite it"
        )
    return {name: (grid, file.sizes[name]) for name, grid in file.grids.items()}


@dataclass(frozen=True)
class _Read:
    """An image as the tokenizer wants it, and what of it tokens do not keep."""

    pixels: Pixels
    is_deep: bool
    has_alpha: bool
    has_profile: bool


def encode(
    codec: TokenCodec, plan: EncodePlan, *, max_pixels: int = DEFAULT_MAX_PIXELS, on_progress: Progress | None = None
) -> Summary:
    """Do what `plan_encoding` found: one token file, written at the end, whole or not at all.

    Bad images are listed in the summary, and cost the others nothing. Ctrl-C ends early with `Summary.interrupted` set:
    the file then has what was encoded so far, and the same call adds the rest.

    Args:
        max_pixels: larger images are refused.
        on_progress: hears how many images are finished, failed ones included.

    Raises:
        UserError: the token file cannot be written.
    """
    summary = Summary(total=plan.skipped + len(plan.todo), skipped=plan.skipped)
    encoded = dict(plan.kept)
    notes = _Notes(codec.spec)
    started = time.perf_counter()

    def read(path: Path) -> _Read:
        image = read_image(path, max_pixels=max_pixels)
        return _Read(
            load_pixels_like(image, codec.spec),
            is_deep=image.pixels.dtype == np.uint16,
            has_alpha=image.alpha is not None and bool(image.alpha.min() < np.iinfo(image.alpha.dtype).max),
            has_profile=image.icc is not None,
        )

    try:
        ahead = _read_ahead([plan.sources[name] for name in plan.todo], read)
        for name, future in zip(plan.todo, ahead, strict=True):
            try:
                image = future.result()
                # 65,536 codes at most: a quarter of what int64 would take until the file is written.
                tokens = codec.encode(image.pixels).to(torch.uint16)
                encoded[name] = (tokens, (image.pixels.shape[0], image.pixels.shape[1]))
            except (UserError, RuntimeError, ValueError, MemoryError) as error:
                summary.failed.append((str(plan.sources[name]), _reason(error)))
            else:
                summary.written += 1
                notes.add(image)
            if on_progress is not None:
                on_progress(summary.finished)
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.seconds = time.perf_counter() - started
    file = TokenFile(
        {name: encoded[name][0] for name in plan.sources if name in encoded},
        {name: encoded[name][1] for name in plan.sources if name in encoded},
        codec.codes,
        codec.digest,
    )
    if summary.written:
        write_tokens(plan.output, file)
    summary.notes = notes.lines()
    if file.grids:
        summary.compression = measure(
            file,
            raw=_raw_bits(codec.spec),
            source_bytes=sum(_bytes_of(plan.sources[name]) for name in file.grids),
            file_bytes=plan.output.stat().st_size,
        )
    return summary


def _read_ahead(paths: Sequence[Path], read: Callable[[Path], _Read]) -> Iterator[Future[_Read]]:
    """Images read in threads, some ahead of their turn, in the order of `paths`; each future is done when it comes."""
    remaining = deque(paths)
    window: deque[tuple[int, Future[_Read]]] = deque()
    held = 0
    readers = ThreadPoolExecutor(READERS, "read")
    try:
        while remaining or window:
            while remaining and len(window) < LOOK_AHEAD and (not window or held < LOOK_AHEAD_PIXELS):
                path = remaining.popleft()
                size = _area(path)
                held += size
                window.append((size, readers.submit(read, path)))
            size, future = window.popleft()
            held -= size
            future.exception()
            yield future
    finally:
        readers.shutdown(wait=True, cancel_futures=True)


def _area(path: Path) -> int:
    """Pixels by the header alone; a file that has no good one will be judged by its reader."""
    try:
        header = probe(path)
    except UserError:
        return 0
    return header.width * header.height


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone since it was read
        return 0


class _Notes:
    """What encoded images had that tokens do not keep, each said once."""

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec
        self.deep = self.alpha = self.profile = 0

    def add(self, image: _Read) -> None:
        if self.spec.kind == "image":  # the alpha, depth and colours of a label map mean nothing
            self.deep += image.is_deep
            self.alpha += image.has_alpha and self.spec.channels in (1, 3)
            self.profile += image.has_profile

    def lines(self) -> list[str]:
        background = ", ".join(map(str, self.spec.background))
        found = [
            (self.alpha, f"with transparency: encoded over the background ({background}); a token file keeps no alpha"),
            (self.deep, "of 16 bits: encoded from all of these; decoding makes 8"),
            (self.profile, "with a colour profile: a token file keeps none"),
        ]
        return [f"{count} {'image' if count == 1 else 'images'} {text}" for count, text in found if count]


def _raw_bits(spec: ImageSpec) -> int:
    """Bits of a pixel as `TokenCodec.decode` makes it."""
    if spec.kind == "image":
        return 8 * spec.channels
    if spec.palette is not None:
        return 24
    return 8 if spec.width <= 256 else 16


def _short(digest: str) -> str:
    return digest[:12]


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, UserError):
        return str(error)
    if short_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return "not enough memory for so many pixels; try --device cpu, or scale it down"
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---- decoding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodePlan:
    """All that will be decoded, known before anything is written."""

    file: TokenFile
    destinations: dict[str, Path]
    """Name -> where its image goes; those to be skipped are left out."""
    skipped: int
    notes: list[str]


def plan_decoding(
    codec: TokenCodec,
    tokens: str | Path,
    output: str | Path,
    *,
    format: Format = "png",
    overwrite: bool = False,
    limit: int | None = None,
) -> DecodePlan:
    """Read a token file and find the names of its images below the folder `output`; writes nothing.

    Args:
        format: file format of the images; PNG where it cannot hold them (class numbers in JPEG), `.npy` for more
            channels than image files have.
        overwrite: decode again what is there already.
        limit: decode just the first so many images.

    Raises:
        UserError: it is no token file, or another tokenizer's; a name leads out of the folder (by a link in it).
    """
    path, output = Path(tokens), Path(output)
    file = read_tokens(path)
    if file.tokenizer != codec.digest:
        raise UserError(
            f"{path}: was made by another tokenizer ({_short(file.tokenizer)}, not {_short(codec.digest)}); decode it "
            "with the weights file (and --side) that encoded it, or encode the images again"
        )
    if file.codebook != codec.codes:
        raise UserError(
            f"{path}: is damaged: it has {file.codebook} codes, its tokenizer {codec.codes}; encode the images again"
        )
    if output.is_file():
        raise UserError(f"{output}: is a file; expected a folder for the images")
    suffix = suffix_for(f".{format}", codec.spec)
    notes = [] if suffix == f".{format}" else [f"{format} cannot hold these images; they became {suffix[1:]}"]
    destinations: dict[str, Path] = {}
    names = list(file.grids)[:limit]
    for name in names:
        inside(output, name + suffix)  # a folder below may be a link
        destination = output / (name + suffix)  # no `with_suffix`: names may have dots
        # Writes are atomic: a file that is there and has bytes is whole.
        if overwrite or not destination.is_file() or not destination.stat().st_size:
            destinations[name] = destination
    return DecodePlan(file, destinations, len(names) - len(destinations), notes)


def decode(
    codec: TokenCodec,
    plan: DecodePlan,
    *,
    quality: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_progress: Progress | None = None,
) -> Summary:
    """Do what `plan_decoding` found: images of 8 bits, each written whole or not at all.

    What cannot be decoded or written is listed in the summary. Ctrl-C ends early with `Summary.interrupted` set.

    Args:
        quality: 1 to 100 of JPEG and WebP.
        max_pixels: larger images are refused.
        on_progress: hears how many images are finished, failed ones included.

    Raises:
        PartialFailure: at once when the disk is full.
    """
    summary = Summary(total=plan.skipped + len(plan.destinations), skipped=plan.skipped, notes=list(plan.notes))
    writers = ThreadPoolExecutor(WRITERS, "write")
    writing: deque[tuple[str, int, Future[None]]] = deque()  # name, pixels
    started = time.perf_counter()

    def fail(name: str, reason: str) -> None:
        summary.failed.append((name, reason))
        if on_progress is not None:
            on_progress(summary.finished)

    def collect() -> None:
        """Wait for the oldest write and count it. An interrupt while it waits leaves it in the queue."""
        name, _, future = writing[0]
        error = future.exception()
        writing.popleft()
        if isinstance(error, (OSError, UserError)):
            cause = error if isinstance(error, OSError) else error.__context__  # `write_image` words it
            if isinstance(cause, OSError) and cause.errno in NO_ROOM:
                raise PartialFailure(
                    f"{plan.destinations[name]}: the disk is full; {summary.written + summary.skipped} of "
                    f"{summary.total} images are done. Make room, then run the same command again: it skips them"
                ) from error
            fail(name, str(error))
        elif error is not None:
            raise error
        else:
            summary.written += 1
            if on_progress is not None:
                on_progress(summary.finished)

    try:
        for name, destination in plan.destinations.items():
            size = plan.file.sizes[name]
            if size[0] * size[1] > max_pixels:
                fail(name, f"{size[1]} x {size[0]} pixels are above the limit of {max_pixels:,}; raise --max-pixels")
                continue
            try:
                pixels = codec.decode(plan.file.grids[name], size)
            except (RuntimeError, ValueError, MemoryError) as error:
                fail(name, _reason(error))
                continue
            while writing and (len(writing) >= LOOK_AHEAD or sum(area for _, area, _ in writing) > LOOK_AHEAD_PIXELS):
                collect()
            writing.append((name, size[0] * size[1], writers.submit(_write, destination, pixels, codec.spec, quality)))
        while writing:
            collect()
    except KeyboardInterrupt:
        summary.interrupted = True
        on_progress = None
        while writing:  # what is on its way to the disk arrives
            collect()
    finally:
        writers.shutdown(wait=True, cancel_futures=True)
        summary.seconds = time.perf_counter() - started
    return summary


def _write(path: Path, pixels: Pixels, spec: ImageSpec, quality: int | None) -> None:
    """In a writer's thread."""
    alpha: Pixels | None = None
    if spec.kind == "image" and pixels.shape[2] in (2, 4):
        pixels, alpha = np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1])
    write_image(path, pixels, alpha=alpha, quality=quality)
