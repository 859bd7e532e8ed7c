"""Convert a file, a folder tree or a glob: read, run and write overlap; a bad file never costs the others."""

from __future__ import annotations

import errno
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from translate.data.files import SUFFIXES, expand
from translate.data.images import (
    DEFAULT_MAX_PIXELS,
    ImageFile,
    probe,
    read_image,
    write_image,
)
from translate.data.spec import ImageSpec
from translate.errors import ImageError, PartialFailure, UserError
from translate.inference.report import PAGE, Entry, find_targets, write_report
from translate.inference.translator import Pixels, Translator

Format = Literal["keep", "png", "jpg", "webp", "tiff", "bmp"]

READERS = WRITERS = 2
"""Threads on either side of the network: OpenCV frees the interpreter while it decodes and encodes."""
LOOK_AHEAD = 16
"""Images decoded before their turn, at most; a batch of equal shape is gathered from four times as many."""
LOOK_AHEAD_PIXELS = 1 << 26
"""And pixels: some 200 MB of 8-bit RGB at each of the three stages, however large the images."""
CUDA_BATCH_PIXELS = 1 << 19
"""Pixels of an automatic batch on a GPU: 8 images of 256 x 256."""
CUDA_BATCH = 8

NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows knows no quota error


@dataclass(frozen=True)
class ConvertOptions:
    """How a folder is converted."""

    batch_size: int | None = None
    """Images of equal shape per step of the network on a GPU; None: by their size. A CPU takes one at a time."""
    format: Format = "keep"
    """File format of the results; PNG where it cannot hold one (JPEG with alpha or 16 bits)."""
    quality: int | None = None
    """Quality 1-100 of JPEG and WebP."""
    overwrite: bool = False
    """Convert again what has a result already."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Larger images are refused."""
    limit: int | None = None
    """Convert just the first so many files."""
    report: bool = False
    """Write `index.html` into the output folder: input, output, and target where there is one."""
    target: Path | None = None
    """Folder of the images that the results should be, matched by relative path; for the report."""
    samples: int = 1
    """Results of each image, where the network draws them: `x-1.png`, `x-2.png` and so on."""
    uncertainty: bool = False
    """Beside each such result `x.uncertainty.png`: black where there was no doubt, white where all codes were alike."""


@dataclass(frozen=True)
class Item:
    """One file and where its result goes."""

    source: Path
    destination: Path
    name: str
    """Path below the input folder, with forward slashes: what lists show and noise is seeded from. Of several results
    behind it `#` and the number."""


@dataclass(frozen=True)
class Plan:
    """All that will be done, known before anything is written."""

    items: list[Item]
    output: Path
    """The folder of the results."""
    targets: dict[str, Path]
    """Item's name -> the image that its result should be."""


@dataclass
class Summary:
    """What was done. `results` are the written and the skipped, in the input's order."""

    total: int = 0
    written: int = 0
    skipped: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    results: list[Item] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False
    report: Path | None = None

    @property
    def images_per_second(self) -> float:
        return self.written / self.seconds if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For programs: `--json`."""
        return {
            "total": self.total,
            "written": self.written,
            "skipped": self.skipped,
            "failed": [{"path": str(path), "reason": reason} for path, reason in self.failed],
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 3),
            "interrupted": self.interrupted,
            "report": str(self.report) if self.report else None,
        }


def convert(
    translator: Translator,
    inputs: str | Path,
    output: str | Path,
    options: ConvertOptions | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Summary:
    """Convert `inputs` (a file, a folder with all below it, or a glob) into the folder `output`.

    Sub-folders and names are kept. The results are the same bytes in every run, whatever the order of the files and
    whatever else is in the folder; on a GPU another batch size may round differently.

    Args:
        on_progress: hears how many files are finished, failed ones included.

    Returns:
        What was written, skipped and failed. Bad files are listed there, not raised.

    Raises:
        UserError: before anything is written, where there is nothing to convert or two results would meet.
        PartialFailure: at once when the disk is full. (Ctrl-C ends early with `Summary.interrupted` set.)
    """
    options = options or ConvertOptions()
    return execute(translator, plan(translator, inputs, output, options), options, on_progress)


def plan(translator: Translator, inputs: str | Path, output: str | Path, options: ConvertOptions) -> Plan:
    """Find the files and the names of their results; writes nothing.

    Raises:
        UserError: no images, two files with one result, or a result that would replace an input; samples or uncertainty
            of a network that draws nothing.
    """
    if not translator.draws and (options.samples > 1 or options.uncertainty):
        asked = "samples" if options.samples > 1 else "an uncertainty"
        raise UserError(f"{asked}: this model has one answer for each image, and no doubt; leave the option out")
    output = Path(output)
    root, files = expand(inputs)
    single = [Path(inputs)] == files and output.suffix.lower() in SUFFIXES and not output.is_dir()
    earlier, base = output.resolve(), root.resolve()
    if earlier != base and earlier.is_relative_to(base):
        files = [file for file in files if not (base / file.relative_to(root)).is_relative_to(earlier)]
    files = files[: options.limit]
    if not files:
        raise UserError(f"{inputs}: no images to convert here but earlier results in {output}")

    items = []
    for file in files:
        relative = file.relative_to(root)
        suffix = file.suffix if options.format == "keep" else f".{options.format}"
        if single:
            suffix = output.suffix
        suffix = suffix_for(suffix, translator.target)
        destination = output.with_suffix(suffix) if single else (output / relative).with_suffix(suffix)
        items += _items(file, destination, relative.as_posix(), options.samples)
    _refuse_collisions(items, uncertainty=options.uncertainty)
    targets: dict[str, Path] = {}
    if options.target:
        inputs_of = {item.name: _of_input(item.name) for item in items}
        found = find_targets(options.target, list(dict.fromkeys(inputs_of.values())))
        targets = {name: found[of] for name, of in inputs_of.items() if of in found}
    return Plan(items, output.parent if single else output, targets)


def _items(source: Path, destination: Path, name: str, samples: int) -> list[Item]:
    """An image's results: one of its own name, or several that are numbered from 1."""
    if samples == 1:
        return [Item(source, destination, name)]
    digits = len(str(samples))
    return [
        Item(source, destination.with_name(f"{destination.stem}-{k:0{digits}}{destination.suffix}"), f"{name}#{k}")
        for k in range(1, samples + 1)
    ]


def _of_input(name: str) -> str:
    """The input's name in an item's."""
    head, mark, number = name.rpartition("#")
    return head if mark and number.isdigit() else name


def _uncertainty_of(result: Path) -> Path:
    """Where the uncertainty of a result goes."""
    return result.with_name(f"{result.stem}.uncertainty.png")


def _refuse_collisions(items: Sequence[Item], *, uncertainty: bool) -> None:
    sources = {item.source.resolve() for item in items}
    planned: dict[str, Item] = {}
    for item in items:
        for made in (item.destination, *([_uncertainty_of(item.destination)] if uncertainty else [])):
            if made.resolve() in sources:
                raise UserError(f"{made}: the result would replace an input; choose another folder")
            # Two names that differ in case are one file on many systems, and results travel.
            key = str(made).casefold()
            if key in planned:
                raise UserError(
                    f"{planned[key].source} and {item.source} would both become {made}; "
                    "rename one, or convert them into two folders"
                )
            planned[key] = item


def suffix_for(suffix: str, target: ImageSpec, *, deep: bool = False, alpha: bool = False) -> str:
    """The wanted suffix where that format can hold such a result, else `.png` (`.npy` for many channels)."""
    kind = suffix.lower()
    labels = target.kind == "labels"
    if kind == ".npy":
        return suffix
    if not labels and target.channels > 4:
        return ".npy"
    deep = deep or (labels and target.palette is None and target.width > 256)
    alpha = alpha or (not labels and target.channels in (2, 4))
    unable = (
        kind not in SUFFIXES
        or (labels and kind in (".jpg", ".jpeg", ".webp"))  # lossy, or grey stored as colour
        or (deep and kind not in (".png", ".tif", ".tiff"))
        or (alpha and kind in (".jpg", ".jpeg"))
    )
    return ".png" if unable else suffix


@dataclass(frozen=True)
class _Loaded:
    item: Item
    image: ImageFile
    pixels: Pixels

    @property
    def size(self) -> int:
        return int(self.pixels.shape[0] * self.pixels.shape[1])


class _DiskFull(Exception):
    """Carries the file that found no room."""


def execute(
    translator: Translator,
    plan: Plan,
    options: ConvertOptions,
    on_progress: Callable[[int], None] | None = None,
) -> Summary:
    """Do what `plan` says; see `convert`."""
    work = _Work(translator, plan, options, on_progress or (lambda _: None))
    started = time.perf_counter()
    try:
        work.run()
    except KeyboardInterrupt:
        work.summary.interrupted = True
    except _DiskFull as full:
        work.stop(drop=True)
        done = work.summary.written + work.summary.skipped
        raise PartialFailure(
            f"{full}: the disk is full; {done} of {len(plan.items)} files are done. Make room, then run "
            "the same command again: it skips them"
        ) from None
    finally:
        work.stop()
        work.summary.seconds = time.perf_counter() - started
    summary = work.summary
    if options.report and not summary.interrupted:
        rate = f"{summary.images_per_second:.1f} images/s" if summary.written else "all were done before"
        summary.report = write_report(
            plan.output / PAGE,
            [Entry(item.name, item.source, item.destination) for item in summary.results],
            source=translator.source,
            target=translator.target,
            facts={**translator.describe(), "speed": rate},
            targets=plan.targets,
            failed=summary.failed,
        )
    return summary


class _Work:
    """One conversion under way: readers -> groups of equal shape -> network (this thread) -> writers."""

    def __init__(
        self, translator: Translator, plan: Plan, options: ConvertOptions, on_progress: Callable[[int], None]
    ) -> None:
        self.translator = translator
        self.plan = plan
        self.options = options
        self.on_progress = on_progress
        self.summary = Summary(total=len(plan.items))
        self.changed: Counter[str] = Counter()  # suffix asked for -> results that it could not hold
        self.readers = ThreadPoolExecutor(READERS, "read")
        self.writers = ThreadPoolExecutor(WRITERS, "write")
        self.writing: deque[tuple[_Loaded, int, Future[Item]]] = deque()  # and the pixels of the result
        self.stopped = False
        self.doubts: dict[str, Pixels] = {}  # item's name -> its uncertainty, until its result is written
        translator.uncertainty = self.doubts.__setitem__ if options.uncertainty else None

    def run(self) -> None:
        todo = []
        for item in self.plan.items:
            if self._is_finished(item.destination):
                self._skip(item)
            else:
                todo.append(item)
        groups: dict[tuple[Any, ...], list[_Loaded]] = {}
        for loaded in self._loaded(todo):
            # A group's members depend on the files alone, not on which thread was first: runs repeat exactly.
            key = (loaded.pixels.shape, loaded.pixels.dtype)
            group = groups.setdefault(key, [])
            group.append(loaded)
            waiting = [member for members in groups.values() for member in members]
            if len(group) >= self._batch_size(loaded):
                self._translate(groups.pop(key))
            elif len(waiting) >= 4 * LOOK_AHEAD or sum(member.size for member in waiting) > LOOK_AHEAD_PIXELS:
                self._translate(groups.pop(next(iter(groups))))  # the group that has waited longest
        for group in groups.values():
            self._translate(group)
        while self.writing:
            self._collect()

    def _is_finished(self, path: Path) -> bool:
        """Writes are atomic: a file that is there and has bytes is whole."""
        wanted = [path, *([_uncertainty_of(path)] if self.options.uncertainty else [])]
        return not self.options.overwrite and all(file.is_file() and file.stat().st_size > 0 for file in wanted)

    def _batch_size(self, loaded: _Loaded) -> int:
        if self.translator.protocol == "paper" or self.translator.in_tiles(*loaded.pixels.shape[:2]):
            return 1
        if self.options.batch_size is not None:
            return self.options.batch_size
        if self.translator.device.type == "cpu":
            return 1  # its cores are busy with one image already
        return max(1, min(CUDA_BATCH, CUDA_BATCH_PIXELS // loaded.size))

    # Reading

    def _loaded(self, items: Sequence[Item]) -> Iterator[_Loaded]:
        """Decoded images in the order of `items`, some ahead of their turn; bad ones are listed, left out."""
        remaining = deque(items)
        window: deque[tuple[Item, int, Future[_Loaded]]] = deque()
        held = 0
        while remaining or window:
            while remaining and len(window) < LOOK_AHEAD and (not window or held < LOOK_AHEAD_PIXELS):
                item = remaining.popleft()
                size = self._size(item.source)
                held += size
                window.append((item, size, self.readers.submit(self._read, item)))
            item, size, future = window.popleft()
            held -= size
            try:
                loaded = future.result()
            except ImageError as error:
                self._fail(item, error.reason)
            except UserError as error:
                self._fail(item, str(error))
            except MemoryError:
                self._fail(item, "not enough memory to prepare it; scale it down first")
            else:
                wanted, given = item.destination.suffix, loaded.item.destination.suffix
                self.changed[wanted] += wanted != given
                if loaded.item is not item and self._is_finished(loaded.item.destination):
                    self._skip(loaded.item)
                else:
                    yield loaded

    @staticmethod
    def _size(path: Path) -> int:
        """Pixels by the header alone; a file that has no good one will be judged by its reader."""
        try:
            header = probe(path)
        except UserError:
            return 0
        return header.width * header.height

    def _read(self, item: Item) -> _Loaded:
        """In a reader's thread. The item's destination is changed where its format cannot hold the result."""
        image = read_image(item.source, max_pixels=self.options.max_pixels)
        suffix = item.destination.suffix
        deep = image.pixels.dtype == np.uint16 and self.translator.target.kind == "image"
        able = suffix_for(suffix, self.translator.target, deep=deep, alpha=self._keeps_alpha(image))
        if able != suffix:
            item = Item(item.source, item.destination.with_suffix(able), item.name)
        return _Loaded(item, image, self.translator.prepare(image))

    def _keeps_alpha(self, image: ImageFile) -> bool:
        target = self.translator.target
        return image.alpha is not None and target.kind == "image" and target.channels in (1, 3)

    # Running

    def _translate(self, group: Sequence[_Loaded], *, fill: bool = True) -> None:
        batch, names = [one.pixels for one in group], [one.item.name for one in group]
        if fill and self.translator.device.type != "cpu":
            # bf16 rounds differently in a batch of another size, and layers make grey levels of it: the last group of a
            # shape is filled up, so that an image's result does not depend on how many others have its shape.
            missing = self._batch_size(group[0]) - len(group)
            batch += batch[-1:] * missing
            names += names[-1:] * missing
        try:
            outputs = self.translator.run(batch, names)
        except (RuntimeError, ValueError, MemoryError) as error:
            if len(batch) > 1:  # one by one: less memory, and only the culprit fails
                for one in group:
                    self._translate([one], fill=False)
                return
            height, width = group[0].pixels.shape[:2]
            self._fail(group[0].item, _reason(error, width, height))
            return
        for one, pixels in zip(group, outputs, strict=False):
            self._write(one, pixels)

    # Writing

    def _write(self, loaded: _Loaded, pixels: Pixels) -> None:
        while self.writing and (
            len(self.writing) >= LOOK_AHEAD or sum(size for _, size, _ in self.writing) > LOOK_AHEAD_PIXELS
        ):
            self._collect()
        while self.writing and self.writing[0][2].done():
            self._collect()
        size = pixels.shape[0] * pixels.shape[1]
        self.writing.append((loaded, size, self.writers.submit(self._save, loaded, pixels)))

    def _save(self, loaded: _Loaded, pixels: Pixels) -> Item:
        """In a writer's thread."""
        image, destination = loaded.image, loaded.item.destination
        doubt = self.doubts.pop(loaded.item.name, None)
        if doubt is not None:  # first: with the result the file counts as done
            write_image(_uncertainty_of(destination), doubt[..., None])
        pixels, alpha = self.translator.finish(image, pixels)
        if self.translator.target.kind == "image" and pixels.shape[2] in (2, 4):
            pixels, alpha = pixels[..., :-1], np.ascontiguousarray(pixels[..., -1])
        # Class numbers have no colour space; other profiles that do not fit are left out by `write_image`.
        icc = image.icc if self.translator.target.kind == "image" else None
        write_image(destination, pixels, alpha=alpha, icc=icc, quality=self.options.quality)
        return loaded.item

    def _collect(self) -> None:
        """Wait for the oldest write and count it. An interrupt while it waits leaves it in the queue."""
        loaded, _, future = self.writing[0]
        if not future.cancelled():
            future.exception()
        self.writing.popleft()
        if future.cancelled():
            return
        try:
            item = future.result()
        except (OSError, UserError) as error:
            cause = error if isinstance(error, OSError) else error.__context__  # `write_image` words it
            if isinstance(cause, OSError) and cause.errno in NO_ROOM:
                raise _DiskFull(str(loaded.item.destination)) from error
            self._fail(loaded.item, f"no result: {error}")
        else:
            self.summary.written += 1
            self._finish(item)

    def stop(self, *, drop: bool = False) -> None:
        """Let results on their way to the disk arrive, or `drop` those not begun, and count them."""
        if self.stopped:
            return
        self.stopped = True
        self.readers.shutdown(wait=True, cancel_futures=True)
        self.writers.shutdown(wait=True, cancel_futures=drop)
        self.on_progress = lambda _: None
        while self.writing:
            try:
                self._collect()
            except _DiskFull:
                continue
        for suffix, count in sorted((+self.changed).items()):
            what = "result that" if count == 1 else "results that"
            self.summary.notes.append(f"{count} {what} {suffix} cannot hold (16 bits, alpha) became .png")
        if self.translator.deviation is not None:
            self.summary.notes.append(
                f"tiles fade into each other: {self.translator.deviation} (--overlap exact: none)"
            )
        order = {item.name: position for position, item in enumerate(self.plan.items)}
        self.summary.results.sort(key=lambda item: order[item.name])
        self.summary.failed.sort(key=lambda failure: str(failure[0]))

    def _skip(self, item: Item) -> None:
        self.summary.skipped += 1
        self._finish(item)

    def _fail(self, item: Item, reason: str) -> None:
        self.summary.failed.append((item.source, reason))
        self._report_progress()

    def _finish(self, item: Item) -> None:
        self.summary.results.append(item)
        self._report_progress()

    def _report_progress(self) -> None:
        summary = self.summary
        self.on_progress(summary.written + summary.skipped + len(summary.failed))


def _reason(error: Exception, width: int, height: int) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    text = lines[0].lower()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "memory" in text:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = f"{width} x {height} pixels"
        return f"not enough memory for {size}; try --tile 256, --batch-size 1 or --device cpu, or scale it down"
    return f"the network failed on {width} x {height} pixels ({lines[0]})"
