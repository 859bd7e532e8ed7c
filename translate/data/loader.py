"""Batches from a data set: an endless, exactly resumable stream for training, one pass in order for
evaluation."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from translate.data.datasets import AnyDataset
from translate.data.order import SampleOrder, UnpairedOrder
from translate.data.spec import Sample, Spec
from translate.errors import ImageError, UserError

Batch = dict[str, Any]
"""Side name -> CPU tensor: uint8 or uint16 (N, H, W, C), points float32 (N, D); `label` -> int64 (N,) where the data
has classes; `name` -> list[str]; `problems` -> list[str], often empty."""
Workers = int | Literal["auto"]

_STOPS = {signal.SIGINT, signal.SIGTERM}
_PREFETCH = 4  # batches that each worker prepares ahead: evens out files that take longer than others
_Key = tuple[int | tuple[int, ...], int]


def worker_count(workers: Workers) -> int:
    """Number of loading processes; `auto`: this process's share of the cores but one, at least 1, at most
    8."""
    if workers != "auto":
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun: training processes on this machine
    return max(1, min(cores - 1, 8))


def training_batches(
    dataset: AnyDataset,
    *,
    batch_size: int,
    seed: int,
    start: int,
    workers: Workers,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Generator[Batch, None, None]:
    """An endless stream of training batches, the same for any number of workers.

    Global batch g holds the positions from start + g·batch_size·world on; rank r takes its r-th run of
    `batch_size` positions. Position decides sample and augmentation, so a run that saw `start` images goes on
    exactly there. Epochs follow each other without a pause, a batch may hold the end of one and the beginning
    of the next.

    Args:
        dataset: a training split.
        batch_size: images in a batch of one process.
        seed: decides the order.
        start: images that the run has seen, over all ranks.
        workers: loading processes.
        device: where the batches will go; CUDA gets them in pinned memory.
        rank: this process, of `world`.

    Yields:
        Batches on the CPU. `problems` names each unreadable file once.

    Raises:
        UserError: images that do not stack, unreadable images in a row, or a worker that died.

    Close the generator (`.close()`, or leave `contextlib.closing`) to end its workers.
    """
    order = dataset.order(seed)
    stream = _TrainingStream(order, start + rank * batch_size, batch_size, batch_size * world)
    told: set[str] = set()
    for batch in _load(_TrainingFetch(dataset), stream, workers, device):
        batch["problems"] = [text for text in dict.fromkeys(batch["problems"]) if text not in told]
        told.update(batch["problems"])
        yield batch


def evaluation_batches(
    dataset: AnyDataset, *, batch_size: int, workers: Workers, device: torch.device, images: int | None = None
) -> Generator[Batch, None, None]:
    """All samples once, in order; a batch holds up to `batch_size` neighbours of equal shape.

    With `images`, at most so many, spread evenly over the split: neighbours by name are often alike.

    An unreadable image is left out and named under `problems` of the batch that follows it (or the last one).

    Raises:
        UserError: no image can be read, or a worker died.
    """
    count = len(dataset) if images is None else min(images, len(dataset))
    positions = [number * len(dataset) // count for number in range(count)]
    chunks = [positions[first : first + batch_size] for first in range(0, count, batch_size)]
    # The last batch waits until the end is seen, so that it can carry the problems that no batch follows.
    waiting: Batch | None = None
    problems: list[str] = []
    for batches, found in _load(_EvaluationFetch(dataset), chunks, min(worker_count(workers), len(chunks)), device):
        problems += found
        for batch in batches:
            if waiting is not None:
                yield waiting
            waiting = {**batch, "problems": problems}
            problems = []
    if waiting is None:
        raise UserError(f"no image can be read; the first: {problems[0]}" if problems else "this split has no image")
    waiting["problems"] = waiting["problems"] + problems
    yield waiting


def collate(samples: Sequence[Sample], specs: Mapping[str, Spec]) -> Batch:
    """Stack samples of one shape into a batch; where bit depths differ, 8-bit light becomes 16-bit (x 257).

    Args:
        samples: at least one, sides (H, W, C) or points (D,); all have a `label`, or none.
        specs: the sides; the classes of label maps keep their numbers.

    Raises:
        UserError: the shapes differ.
    """
    batch: Batch = {}
    for side, spec in specs.items():
        arrays = [sample[side] for sample in samples]
        if spec.kind == "points":
            batch[side] = torch.from_numpy(np.stack(arrays))
            continue
        odd = next((index for index, array in enumerate(arrays) if array.shape != arrays[0].shape), None)
        if odd is not None:
            sizes = [f"{samples[i]['name']} ({arrays[i].shape[1]}x{arrays[i].shape[0]})" for i in (0, odd)]
            raise UserError(
                f"images of different sizes do not fit into one batch: {' and '.join(sizes)}; "
                "set data.augment.crop (or resize by squashing), or a batch size of 1"
            )
        deep = any(array.dtype == np.uint16 for array in arrays)
        stacked = torch.empty((len(arrays), *arrays[0].shape), dtype=torch.uint16 if deep else torch.uint8)
        rows = stacked.numpy()  # one copy, from wherever the pixels lie into the batch
        for row, array in zip(rows, arrays, strict=True):
            row[...] = array
            if deep and array.dtype == np.uint8 and spec.kind == "image":
                row *= 257  # 255 * 257 = 65535: white stays white
        batch[side] = stacked
    if "label" in samples[0]:
        batch["label"] = torch.tensor([sample["label"] for sample in samples])
    batch["name"] = [sample["name"] for sample in samples]
    batch["problems"] = [sample["problem"] for sample in samples if "problem" in sample]
    return batch


class _TrainingStream(Sampler[list[_Key]]):
    """The (index, position) pairs of one rank's batches, without end."""

    def __init__(self, order: SampleOrder | UnpairedOrder, first: int, batch_size: int, stride: int) -> None:
        self.order, self.first, self.batch_size, self.stride = order, first, batch_size, stride

    def __iter__(self) -> Iterator[list[_Key]]:
        first = self.first
        while True:
            yield [(self.order[position], position) for position in range(first, first + self.batch_size)]
            first += self.stride


class _TrainingFetch(Dataset[Any]):
    """Whole training batches by their keys. Errors come back as values: torch would turn them into
    tracebacks."""

    def __init__(self, dataset: AnyDataset) -> None:
        self.dataset: Dataset[Sample] = dataset  # each kind takes the keys that its own order gives
        self.specs = dataset.specs

    def __getitem__(self, keys: list[_Key]) -> Batch | UserError:
        try:
            return collate([self.dataset[key] for key in keys], self.specs)
        except UserError as error:
            return error


class _EvaluationFetch(Dataset[Any]):
    """The batches that a run of neighbours makes, and the problems met."""

    def __init__(self, dataset: AnyDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: Iterable[int]) -> tuple[list[Batch], list[str]] | UserError:
        specs = self.dataset.specs
        groups: list[list[Sample]] = []
        problems: list[str] = []
        try:
            for index in indices:
                try:
                    sample = self.dataset[index]
                except ImageError as error:
                    problems.append(str(error))
                    continue
                if groups and all(sample[side].shape == groups[-1][0][side].shape for side in specs):
                    groups[-1].append(sample)
                else:
                    groups.append([sample])
            return [collate(group, specs) for group in groups], problems
        except UserError as error:
            return error


def _load(fetch: Dataset[Any], keys: Iterable[Any], workers: Workers, device: torch.device) -> Iterator[Any]:
    """What `fetch` makes of each of `keys`, in order, loaded ahead by worker processes that end with the
    iterator."""
    count = worker_count(workers)
    with _stops_held(), warnings.catch_warnings():
        # Torch warns of more workers than cores; how many there are is the user's choice, or `worker_count`'s.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            fetch,
            batch_size=None,
            sampler=keys,
            num_workers=count,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            prefetch_factor=_PREFETCH if count else None,
            generator=torch.Generator(),  # torch draws a seed for its workers: not from the global generator
        )
        iterator = iter(loader)
    _watch_workers()
    try:
        while True:
            try:
                with _deaths_told():
                    loaded = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                # A worker that dies while it hands a tensor over shows as a broken connection.
                if isinstance(error, RuntimeError) and "worker" not in str(error).lower():
                    raise
                raise UserError(
                    "a data loading process died (out of memory, or killed from outside); "
                    f"set data.workers below {count}, or to 0 to load in the main process"
                ) from None
            if isinstance(loaded, UserError):
                raise loaded
            yield loaded
    finally:
        del iterator  # torch ends the workers when their iterator goes


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _start_worker(_: int) -> None:
    """One thread per worker; Ctrl-C and a scheduler's SIGTERM, sent to all processes, are the main one's business."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what a worker's helper threads raise, but for a line to the main process that was cut: it was
    interrupted while it took a batch, or is gone. (What a sample raises never comes here.)"""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


@contextmanager
def _stops_held() -> Iterator[None]:
    """Hold back the signals that stop a run while workers start: these inherit that, until they ignore the signals."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_waiting = False  # for a batch: the one time that a worker's death may be raised


def _watch_workers() -> None:
    """Have a worker's death raised where a batch is awaited. Torch raises it wherever the main process just is."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return  # torch has set no handler
    raise_anywhere = signal.getsignal(signal.SIGCHLD)
    if not callable(raise_anywhere) or hasattr(raise_anywhere, "translate"):
        return

    def raise_where_awaited(number: int, frame: FrameType | None) -> None:
        try:
            raise_anywhere(number, frame)
        except RuntimeError:
            if _waiting:
                raise

    raise_where_awaited.translate = True  # type: ignore[attr-defined]  # marks it as set already
    signal.signal(signal.SIGCHLD, raise_where_awaited)


@contextmanager
def _deaths_told() -> Iterator[None]:
    """Raises RuntimeError if a worker dies meanwhile, or has died before."""
    global _waiting
    _waiting = True
    try:
        # Without this, a worker that died in the middle of sending would be waited for without end.
        torch._C._error_if_any_worker_fails()
        yield
    finally:
        _waiting = False
