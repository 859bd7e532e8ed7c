"""Sets of pictures that are measured: files, a data set's side, what a model makes. Each is read in order, ahead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from translate.data.datasets import ImageDataset
from translate.data.degradation import Degradation
from translate.data.files import expand, stem_key
from translate.data.images import ImageFile, Pixels, load_pixels_like, normalise, read_pixels, to_pixels
from translate.data.matlab import imresize
from translate.data.spec import ImageSpec
from translate.data.transforms import AugmentSettings, Transform
from translate.errors import ImageError, UserError
from translate.evaluation.text import readable
from translate.inference.report import without_page
from translate.inference.sampler import Sampler
from translate.inference.translator import Translator

_SIDE = "image"

T = TypeVar("T")
R = TypeVar("R")

READERS = 2
"""Threads that decode: OpenCV frees the interpreter meanwhile."""
AHEAD = 16
"""Pictures decoded before their turn, at most ..."""
AHEAD_BYTES = 1 << 28
"""... and about so many bytes of what is made of them, however large they are."""


def read_ahead(tasks: Iterable[T], read: Callable[[T], R]) -> Iterator[R]:
    """`map(read, tasks)` by threads that keep some results ready; an exception of `read` is raised in its turn."""
    left, largest = iter(tasks), 1
    with ThreadPoolExecutor(READERS) as pool:
        waiting = deque(pool.submit(read, task) for task in islice(left, READERS))
        try:
            while waiting:
                result = waiting.popleft().result()
                largest = max(largest, _bytes(result))
                room = min(AHEAD, max(READERS, AHEAD_BYTES // largest)) - len(waiting)
                waiting.extend(pool.submit(read, task) for task in islice(left, max(0, room)))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def _bytes(result: object) -> int:
    """Of the arrays and tensors in a result, or in a tuple of them."""
    parts = result if isinstance(result, tuple) else (result,)
    return sum(int(getattr(part, "nbytes", 0)) for part in parts)


class Pictures(ABC):
    """Named pictures of one kind."""

    title: str
    """What a reader calls them."""
    names: list[str]
    """Unique; what partners of a pair share."""
    spec: ImageSpec

    @abstractmethod
    def stream(self, indices: Sequence[int], then: Callable[[Pixels], R]) -> Iterator[R | ImageError]:
        """Those pictures in that order, (H, W, C) uint8 or uint16, each handed to `then` (in any thread); in the place
        of one that cannot be had stands why."""

    def files(self) -> list[list[Path]] | None:
        """The files that each picture is made of, if nothing but they and `key` decides its pixels."""
        return None

    def key(self) -> list[Any]:
        """What decides the pixels beside the files: plain values alone."""
        return [self.spec.model_dump(mode="json")]


class FilePictures(Pictures):
    """Image files below a folder or of a pattern, named by relative path without suffix.

    The small pictures of a page that `translate convert --report` wrote there do not count.

    Args:
        augment: of a data set whose split they stand beside: they are resized and cropped as it; None for as they are.

    Raises:
        UserError: nothing is there, or two files have one name.
    """

    def __init__(self, where: str | Path, spec: ImageSpec, augment: AugmentSettings | None = None) -> None:
        root, found = expand(where)
        self._paths = without_page(root, found)
        self.title, self.spec = readable(where), spec
        self.transform = Transform(augment, {_SIDE: spec}, training=False) if augment else None
        self.names = [readable(stem_key(path, root)) for path in self._paths]
        if len(set(self.names)) < len(self.names):
            twice = Counter(self.names).most_common(1)[0][0]
            raise UserError(f"{self.title}: two files are called {twice}; names must differ in more than the suffix")

    def stream(self, indices: Sequence[int], then: Callable[[Pixels], R]) -> Iterator[R | ImageError]:
        def read(index: int) -> R | ImageError:
            try:
                pixels = read_pixels(self._paths[index], self.spec)
                return then(pixels if self.transform is None else self.transform.prepare({_SIDE: pixels})[_SIDE])
            except ImageError as error:
                return error

        return read_ahead(indices, read)

    def files(self) -> list[list[Path]]:
        return [[path] for path in self._paths]

    def key(self) -> list[Any]:
        return [*super().key(), *(self.transform.key if self.transform else [])]


class SidePictures(Pictures):
    """One side of a data set's split, resized and cropped as validation sees it."""

    def __init__(self, dataset: ImageDataset, side: str, title: str) -> None:
        self.dataset, self.side, self.title = dataset, side, title
        self.spec = dataset.specs[side]
        self.names = [readable(item.name) for item in dataset.items]

    def stream(self, indices: Sequence[int], then: Callable[[Pixels], R]) -> Iterator[R | ImageError]:
        def read(index: int) -> R | ImageError:
            try:
                return then(np.asarray(self.dataset.prepared(index)[self.side]))
            except ImageError as error:
                return error

        return read_ahead(indices, read)

    def files(self) -> list[list[Path]]:
        return [list(item.paths.values()) for item in self.dataset.items]

    def key(self) -> list[Any]:
        return [self.side, *self.dataset.key]


class TranslatedPictures(Pictures):
    """What a model makes of pictures, as `translate convert` would write it.

    Args:
        keep: bytes of pictures that are kept when they are made: for those that are asked for more than once.
    """

    def __init__(self, translator: Translator, source: Pictures, *, keep: int = 0) -> None:
        self.translator, self.source = translator, source
        self._kept: dict[int, Pixels] = {}
        self._room = keep
        self.title, self.names, self.spec = translator.facts.get("model", "model"), source.names, translator.target

    def stream(self, indices: Sequence[int], then: Callable[[Pixels], R]) -> Iterator[R | ImageError]:
        missing = [index for index in indices if index not in self._kept]
        inputs = self.source.stream(missing, lambda pixels: pixels)
        for index in indices:
            if index in self._kept:
                yield then(self._kept[index])
                continue
            pixels = next(inputs)
            if isinstance(pixels, ImageError):
                yield pixels
                continue
            try:
                made = self.translator.run([pixels], [self.names[index]])[0]
            except (RuntimeError, ValueError, MemoryError) as error:  # as conversion lists them
                height, width = pixels.shape[:2]
                told = (str(error).splitlines() or [type(error).__name__])[0]
                yield ImageError(self.title, f"the network failed on {width}x{height} pixels ({told})")
                continue
            data = _as_data(made, self.spec)
            if data.nbytes <= self._room:
                self._room -= data.nbytes
                self._kept[index] = data
            yield then(data)


class EnlargedPictures(Pictures):
    """Pictures enlarged by MATLAB's `imresize` of doubles, rounded once: what super-resolution is compared with."""

    def __init__(self, source: Pictures, scale: int) -> None:
        self.source, self.scale = source, scale
        self.title, self.names, self.spec = "bicubic", source.names, source.spec

    def stream(self, indices: Sequence[int], then: Callable[[Pixels], R]) -> Iterator[R | ImageError]:
        def enlarged(pixels: Pixels) -> R:
            top = np.iinfo(pixels.dtype).max
            levels = torch.from_numpy(pixels.astype(np.float64).transpose(2, 0, 1)[None])  # (1, C, H, W)
            made = (imresize(levels, self.scale) + 0.5).floor().clamp(0, top)[0].permute(1, 2, 0)
            return then(made.numpy().astype(pixels.dtype))

        return self.source.stream(indices, enlarged)


class DegradedPictures(Pictures):
    """Pictures made small again, uint8."""

    def __init__(self, source: Pictures, degradation: Degradation) -> None:
        self.source, self.degradation = source, degradation
        self.title, self.names, self.spec = f"{source.title}, made small again", source.names, source.spec

    def stream(self, indices: Sequence[int], then: Callable[[Pixels], R]) -> Iterator[R | ImageError]:
        def made_small(pixels: Pixels) -> R:
            images = normalise(torch.from_numpy(np.ascontiguousarray(pixels[None])), self.spec)
            return then(to_pixels(self.degradation(images), self.spec)[0])

        return self.source.stream(indices, made_small)


class SampledPictures(Pictures):
    """The first samples of a seed, as `translate sample` would write them."""

    def __init__(self, sampler: Sampler, count: int, *, seed: int = 0, truncation: float | None = None) -> None:
        assert isinstance(sampler.spec, ImageSpec)
        self.sampler, self.seed, self.truncation = sampler, seed, truncation
        self.title, self.spec = str(sampler.facts.get("model", "model")), sampler.spec
        self.names = [f"sample {number}" for number in range(count)]

    def stream(self, indices: Sequence[int], then: Callable[[Pixels], R]) -> Iterator[R | ImageError]:
        """The indices must follow each other."""
        if not indices:
            return
        count = indices[-1] + 1
        made = self.sampler.stream(count, seed=self.seed, truncation=self.truncation, first=indices[0])
        for batch in made:
            for pixels in batch:
                yield then(_as_data(pixels, self.spec))


class SamePicture(Pictures):
    """One picture in the place of each: the baseline that has learnt nothing but the mean."""

    def __init__(self, pixels: Pixels, names: list[str], spec: ImageSpec, title: str) -> None:
        self.pixels, self.names, self.spec, self.title = pixels, names, spec, title

    def stream(self, indices: Sequence[int], then: Callable[[Pixels], R]) -> Iterator[R | ImageError]:
        return (then(self.pixels) for _ in indices)


def _as_data(pixels: Pixels, spec: ImageSpec) -> Pixels:
    """What a model wrote as data has it: colours of a palette become class numbers again."""
    if spec.kind == "labels" and spec.palette is not None:
        return load_pixels_like(ImageFile(pixels, None, None, "png", None), spec)
    return pixels
