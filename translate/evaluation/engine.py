"""Measures pictures against pictures: one pass over the outputs, one over the references, whatever made them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import translate
from translate.data.images import Pixels, normalise, visible
from translate.data.spec import ImageSpec
from translate.distributed import ALONE, Processes, gathered
from translate.errors import ImageError, UserError
from translate.evaluation.pictures import Pictures
from translate.evaluation.statistics_cache import cached_statistics
from translate.evaluation.text import readable
from translate.metrics.foreign import in_a_line
from translate.metrics.frechet import FeatureStatistics, bias_warning
from translate.metrics.meters import PairMeter, SetMeter, mean_of
from translate.metrics.protocol import ProtocolSettings
from translate.metrics.scores import (
    CODE_NAMES,
    LABEL_NAMES,
    MEASURES,
    PAIR_NAMES,
    SET_NAMES,
    Evaluation,
    ImageScores,
    Score,
    Value,
)
from translate.metrics.segmentation import Confusion, Segmenter

FEATURE_BATCH = 16
"""Images in a step of the feature network on a CPU; on a GPU four times as many."""

_PLAIN = ProtocolSettings()

T = TypeVar("T")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Options:
    """How to measure."""

    measures: tuple[str, ...]
    protocol: ProtocolSettings = field(default_factory=ProtocolSettings)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    processes: Processes = ALONE
    segmenter: Segmenter | None = None


@dataclass(frozen=True)
class Match:
    """Outputs, and what they are measured against."""

    predicted: Pictures
    target: Pictures
    pairs: Sequence[tuple[int, int]] | None
    """Which output belongs to which target; None where only the sets compare."""
    part: str = ""
    predicted_indices: Sequence[int] | None = None
    """Without pairs: which outputs are measured; None for all. (And which references, below.)"""
    target_indices: Sequence[int] | None = None
    labels: Pictures | None = None
    """Label maps that a segmenter should find in the outputs, in the order of the targets."""
    sets: bool = True
    """Whether outputs and targets are compared as sets too. Not so a cycle: it came from what it is held against."""
    told: Mapping[str, Value] = field(default_factory=dict)
    """What a number depends on beside what the measures themselves say: how inputs were made."""
    measures: tuple[str, ...] | None = None
    """Those of pairs that mean something here, over all channels and pixels; None for all, by the chosen protocol."""


class _Seen(NamedTuple):
    """One picture as the measures want it, made by the thread that read it."""

    pixels: Pixels
    images: Tensor | None
    """(1, C, H, W) in [-1, 1]."""
    prepared: Tensor | None
    digest: bytes


def evaluate(
    matches: Sequence[Match],
    options: Options,
    *,
    subject: str,
    reference: str,
    progress: Progress = lambda done: None,
) -> tuple[Evaluation, list[str]]:
    """Measure all matches. Every process of a group must call it; each gets the whole answer, the same whatever the
    number of processes but for the rounding of sums.

    Args:
        subject, reference: what the report calls them.
        progress: told the pictures done so far by this process.

    Returns:
        The evaluation, and a line for each picture that could not be measured.

    Raises:
        UserError: a measure has nothing to work on, weights are absent, no picture can be read.
    """
    device, names = options.device, options.measures
    _refuse_what_nothing_serves(names, matches, options)
    has_pairs = any(match.pairs is not None for match in matches)
    pair_meter = PairMeter(names, options.protocol, device) if has_pairs else None
    wanted_sets = [name for name in names if name in SET_NAMES]
    set_meter = SetMeter(wanted_sets, options.protocol, device) if wanted_sets else None

    scores: list[Score] = []
    images: dict[str, dict[str, float]] = {}
    failed: list[str] = []
    notes: list[str] = []
    counts: list[int] = []
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done)

    for match in matches:
        run = _MatchRun(match, options, pair_meter, set_meter, advance)
        run.outputs()
        run.references()
        scores += run.scores()
        notes += run.notes()
        failed += run.failed
        counts.append(run.measured)
        for name, values in run.images.items():
            images.setdefault(name, {}).update(values)
    return (
        Evaluation(
            subject=subject,
            reference=reference,
            count=max(counts, default=0),
            scores=scores,
            images=[ImageScores(name=name, values=values) for name, values in images.items()],
            notes=list(dict.fromkeys(notes)),
            version=translate.__version__,
        ),
        list(dict.fromkeys(failed)),  # a picture may be read more than once
    )


def run_count(match: Match) -> int:
    """Outputs that a match measures, if all can be read."""
    if match.pairs is not None:
        return len(match.pairs)
    return len(match.predicted_indices if match.predicted_indices is not None else match.predicted.names)


def _refuse_what_nothing_serves(names: Sequence[str], matches: Sequence[Match], options: Options) -> None:
    paired = [match for match in matches if match.pairs is not None]
    labelled = [match for match in paired if _label_spec(match)]
    for name in names:
        if name in PAIR_NAMES and not paired:
            raise UserError(
                f"{name} compares each output with its target, but no output here has one; "
                f"measures of sets are {', '.join(SET_NAMES)}"
            )
        if name in SET_NAMES and not any(match.sets for match in matches):
            raise UserError(f"{name} compares outputs with a set of targets, but there are none here")
        if name in SET_NAMES and not any(map(_of_images, matches)):
            raise UserError(f"{name} compares pictures, but these outputs are label maps without colours (a palette)")
        if name in LABEL_NAMES and not labelled:
            raise UserError(
                f"{name} needs label maps: a target side of kind 'labels', or --classes for a folder of them"
            )
        if name in LABEL_NAMES and options.segmenter is None and any(match.labels is not None for match in labelled):
            raise UserError(
                f"{name} compares pictures with label maps by a segmenter: give one with --segmenter module:callable"
            )
        if name not in (*PAIR_NAMES, *SET_NAMES, *LABEL_NAMES):
            served = "a token file" if name in CODE_NAMES else "a run that makes samples of noise, and alone"
            raise UserError(f"{name} is measured of {served}; leave it out here")


class _MatchRun:
    """The work on one match, by this process's share of it."""

    def __init__(
        self,
        match: Match,
        options: Options,
        pair_meter: PairMeter | None,
        set_meter: SetMeter | None,
        advance: Callable[[], None],
    ) -> None:
        self.match, self.options, self.advance = match, options, advance
        if match.measures is not None:
            pair_meter = PairMeter([n for n in options.measures if n in match.measures], _PLAIN, options.device)
        self.pair_meter = pair_meter if match.pairs is not None and pair_meter and pair_meter.names else None
        self.set_meter = set_meter if match.sets and _of_images(match) else None
        self.measured = 0
        """Outputs, or pairs, that could be measured."""
        self.failed: list[str] = []
        self.images: dict[str, dict[str, float]] = {}
        self.bits: set[int] = set()
        """Depths of the outputs."""
        self.predicted = self.set_meter.statistics() if self.set_meter else None
        self.reference: FeatureStatistics | None = None
        self.pairs_digest = self.set_digest = ""
        classes = _label_spec(match)
        self.confusion = (
            Confusion(classes.width) if classes and any(n in LABEL_NAMES for n in options.measures) else None
        )

    # ---- the outputs, beside their targets where they have some ------------------------------------------------------

    def outputs(self) -> None:
        match = self.match
        if match.pairs is None:
            indices = match.predicted_indices
            everything = list(range(len(match.predicted.names))) if indices is None else list(indices)
            mine = self._share(everything)
            kept = dict(zip(everything, self._kept(match.predicted, everything), strict=True))
            stream = match.predicted.stream(mine, self._seen(match.predicted.spec, pairs=False))
            batcher = _Batcher(self.set_meter, self.predicted)
            for index, seen in zip(mine, stream, strict=True):
                self.advance()
                if self._is_bad(match.predicted.names[index], seen):
                    continue
                assert isinstance(seen, _Seen)
                batcher.add(match.predicted.names[index], seen.prepared, kept[index])
                self.measured += 1
            batcher.flush()
        else:
            self._pairs(list(match.pairs))
        self._gather_outputs()

    def _pairs(self, pairs: list[tuple[int, int]]) -> None:
        match = self.match
        mine = self._share(pairs)
        first, second = [p for p, _ in mine], [t for _, t in mine]
        kept = dict(zip([p for p, _ in pairs], self._kept(match.predicted, [p for p, _ in pairs]), strict=True))
        outputs = match.predicted.stream(first, self._seen(match.predicted.spec, pairs=self.pair_meter is not None))
        targets = match.target.stream(
            second, self._seen(match.target.spec, pairs=self.pair_meter is not None, sets=False)
        )
        labels: Iterator[Pixels | ImageError | None] = (
            match.labels.stream(second, lambda pixels: pixels) if match.labels else iter([None] * len(mine))
        )
        batcher = _Batcher(self.set_meter, self.predicted)
        digests: list[bytes] = []
        for (p, t), output, target, truth in zip(mine, outputs, targets, labels, strict=True):
            name = match.predicted.names[p]
            self.advance()
            if self._is_bad(name, output) or self._is_bad(match.target.names[t], target) or self._is_bad(name, truth):
                continue
            assert isinstance(output, _Seen) and isinstance(target, _Seen) and not isinstance(truth, ImageError)
            try:
                self._pair(name, output, target, truth)
            except UserError as error:
                self.failed.append(f"{name}: {error}")
                continue
            batcher.add(name, output.prepared, kept[p])
            digests.append(target.digest)
            self.measured += 1
        batcher.flush()
        everyone = [digest for part in gathered(digests) for digest in part]
        self.pairs_digest = _joined_digest(everyone)

    def _pair(self, name: str, output: _Seen, target: _Seen, truth: Pixels | None) -> None:
        """All measures of a pair, or none: UserError."""
        values: dict[str, float] = {}
        if self.pair_meter:
            assert output.images is not None and target.images is not None
            if output.images.shape != target.images.shape:
                raise UserError(
                    f"the output is {_size(output.pixels)}, its target {_size(target.pixels)}: not compared"
                )
            made, wanted = (side.to(self.options.device, torch.float64) for side in (output.images, target.images))
            found = self.pair_meter(made, wanted, self.match.target.spec)
            part = self.match.part
            values = {f"{part} {measure}".strip(): float(value) for measure, value in found.items()}
        if self.confusion:
            self._segment(output, target.pixels if truth is None else truth)
        if values:
            self.images[name] = values
            self.bits.add(8 * output.pixels.dtype.itemsize)

    @torch.no_grad()
    def _segment(self, output: _Seen, truth: Pixels) -> None:
        assert self.confusion is not None
        wanted = torch.from_numpy(truth[..., 0].astype(np.int64))[None]  # (1, H, W)
        if self.match.labels is None:
            found = torch.from_numpy(output.pixels[..., 0].astype(np.int64))[None]
        else:
            segmenter, spec = self.options.segmenter, self.match.predicted.spec
            assert segmenter is not None
            images = visible(normalise(torch.from_numpy(np.ascontiguousarray(output.pixels[None])), spec), spec)
            try:
                classes = segmenter(images.to(self.options.device))
            except (RuntimeError, ValueError, TypeError) as error:  # a user's code
                raise UserError(f"segmenter: {segmenter.name} failed ({in_a_line(error)})") from error
            # Where a segmenter answers in a coarser grid, the nearest cell's class counts.
            found = nn.functional.interpolate(classes[:, None].double(), size=wanted.shape[1:], mode="nearest")[
                :, 0
            ].long()
        if found.shape != wanted.shape:
            raise UserError(f"the output is {_size(output.pixels)}, its label map {_size(truth)}: not compared")
        self.confusion.add(found.cpu(), wanted)

    def _gather_outputs(self) -> None:
        """All processes' answers, in each."""
        if self.options.processes.world == 1:
            return
        merged: dict[str, dict[str, float]] = {}
        for part in gathered(self.images):
            merged.update(part)
        self.images = merged
        self.bits = set().union(*gathered(self.bits))
        self.measured = sum(gathered(self.measured))
        self.failed = [line for part in gathered(self.failed) for line in part]
        if self.predicted is not None:
            self.predicted = _merged(self.predicted)
        if self.confusion is not None:
            self.confusion.counts = torch.stack(gathered(self.confusion.counts)).sum(dim=0)

    # ---- the references ----------------------------------------------------------------------------------------------

    def references(self) -> None:
        """The features of the references, from the cache where they were measured before."""
        meter, match = self.set_meter, self.match
        if meter is None or meter.names == ["inception-score"]:
            return
        if match.pairs is not None:
            everything = [t for _, t in match.pairs]
        else:
            indices = match.target_indices
            everything = list(range(len(match.target.names))) if indices is None else list(indices)

        def measure() -> tuple[FeatureStatistics, str, list[str]]:
            mine = self._share(everything)
            statistics = meter.statistics()
            keep = dict(zip(everything, self._kept(match.target, everything), strict=True))
            batcher, digests, bad = _Batcher(meter, statistics), list[bytes](), list[str]()
            stream = match.target.stream(mine, self._seen(match.target.spec, pairs=False))
            for index, seen in zip(mine, stream, strict=True):
                self.advance()
                name = match.target.names[index]
                if isinstance(seen, ImageError):
                    bad.append(readable(f"{name}: {seen}"))
                    continue
                batcher.add(name, seen.prepared, keep[index])
                digests.append(seen.digest)
            batcher.flush()
            everyone = [digest for part in gathered(digests) for digest in part]
            return _merged(statistics), _joined_digest(everyone), [line for part in gathered(bad) for line in part]

        self.reference, self.set_digest, bad = cached_statistics(match.target, everything, meter, measure)
        self.failed += bad

    # ---- the numbers -------------------------------------------------------------------------------------------------

    def scores(self) -> list[Score]:
        match, found = self.match, list[Score]()
        first = f"; the first: {self.failed[0]}" if self.failed else ""

        def score(name: str, value: float, protocol: dict[str, Value]) -> None:
            told = {**match.told, **protocol}
            found.append(Score(measure=name, part=match.part, value=value, protocol=told))  # type: ignore[arg-type]

        if (self.pair_meter or self.confusion) and not self.measured:
            raise UserError(f"{match.predicted.title}: no pair could be compared{first}")
        if self.pair_meter:
            bits = ", ".join(map(str, sorted(self.bits)))
            lists: dict[str, list[float]] = {}
            for values in self.images.values():
                for key, value in values.items():
                    lists.setdefault(key, []).append(value)
            for name in self.pair_meter.names:
                value = mean_of(lists)[f"{match.part} {name}".strip()]
                told = self.pair_meter.told(name, len(self.images), int(bits) if bits.isdecimal() else bits)
                score(name, value, {**told, "target": self.pairs_digest})
        if self.set_meter and self.predicted is not None:
            reference = self.reference if self.reference is not None else self.predicted
            if not self.predicted.count or not reference.count:
                empty = match.target if self.predicted.count else match.predicted
                raise UserError(f"{empty.title}: no image could be measured, so there is no set to compare{first}")
            for name, value in self.set_meter.scores(self.predicted, reference).items():
                told = self.set_meter.told(name, self.predicted, reference)
                score(name, value, told if name == "inception-score" else {**told, "target": self.set_digest})
        if self.confusion is not None:
            by: dict[str, Value] = {}
            if self.match.labels is not None and self.options.segmenter is not None:
                by["segmenter"] = self.options.segmenter.name
            classes, images = self.confusion.classes, self.measured
            for name, value in self.confusion.scores().items():
                if name in self.options.measures:
                    score(name, value, {**by, "classes": classes, "images": images, "target": self.pairs_digest})
        return found

    def notes(self) -> list[str]:
        """What a reader must know of these numbers."""
        if self.set_meter is None or self.predicted is None or self.reference is None:
            return []
        names = [name for name in ("fid", "frechet") if name in self.set_meter.names]
        if not names:
            return []
        warning = bias_warning(self.predicted.gaussian(), self.reference.gaussian())
        return [f"{MEASURES[names[0]].title}: {warning}"] if warning else []

    # ---- parts -------------------------------------------------------------------------------------------------------

    def _share(self, everything: list[T]) -> list[T]:
        """This process's stretch."""
        rank, world = self.options.processes
        return everything[len(everything) * rank // world : len(everything) * (rank + 1) // world]

    def _kept(self, pictures: Pictures, indices: Sequence[int]) -> list[bool]:
        names = [pictures.names[index] for index in indices]
        return self.set_meter.kept(names) if self.set_meter else [False] * len(names)

    def _seen(self, spec: ImageSpec, *, pairs: bool, sets: bool = True) -> Callable[[Pixels], _Seen]:
        """What the reading thread makes of a picture."""
        meter = self.set_meter if sets else None

        def see(pixels: Pixels) -> _Seen:
            images = normalise(torch.from_numpy(np.ascontiguousarray(pixels[None])), spec) if pairs or meter else None
            prepared = meter.prepared(images, spec) if meter and images is not None else None
            head = repr((pixels.shape, pixels.dtype.str)).encode()
            digest = hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).digest()
            return _Seen(pixels, images if pairs else None, prepared, digest)

        return see

    def _is_bad(self, name: str, seen: object) -> bool:
        if isinstance(seen, ImageError):
            self.failed.append(readable(f"{name}: {seen}"))
            return True
        return False


class _Batcher:
    """Gathers prepared images of one shape into batches of the feature network."""

    def __init__(self, meter: SetMeter | None, statistics: FeatureStatistics | None) -> None:
        self.meter, self.statistics = meter, statistics
        self.size = FEATURE_BATCH * (4 if meter and meter.device.type == "cuda" else 1)
        self.waiting: list[tuple[str, Tensor, bool]] = []

    def add(self, name: str, prepared: Tensor | None, keep: bool) -> None:
        if prepared is None or self.statistics is None:
            return
        if self.waiting and self.waiting[0][1].shape != prepared.shape:
            self.flush()
        self.waiting.append((name, prepared, keep))
        if len(self.waiting) >= self.size:
            self.flush()

    def flush(self) -> None:
        if not self.waiting or self.meter is None or self.statistics is None:
            return
        batch = torch.cat([prepared for _, prepared, _ in self.waiting])
        try:
            self.meter.add(self.statistics, batch, [keep for _, _, keep in self.waiting])
        except UserError as error:
            raise UserError(f"{self.waiting[0][0]} to {self.waiting[-1][0]}: {error}") from error
        except (RuntimeError, ValueError, TypeError) as error:  # a user's network
            name, size = self.meter.network.name, "x".join(map(str, batch.shape))
            raise UserError(f"features: {name!r} failed on images {size} ({in_a_line(error)})") from error
        self.waiting = []


def _merged(statistics: FeatureStatistics) -> FeatureStatistics:
    """The statistics of all processes."""
    first, *others = [FeatureStatistics.from_state(state) for state in gathered(statistics.state())]
    for other in others:
        first.merge(other)
    return first


def _label_spec(match: Match) -> ImageSpec | None:
    if match.pairs is None:
        return None
    if match.labels is not None:
        return match.labels.spec
    return match.target.spec if match.target.spec.kind == "labels" else None


def _of_images(match: Match) -> bool:
    """Whether a feature network can look at the outputs."""
    return match.predicted.spec.kind == "image" or match.predicted.spec.palette is not None


def _joined_digest(digests: Sequence[bytes]) -> str:
    """Names a set of pictures by their pixels, in whatever order."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:12]


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]} with {pixels.shape[2]} channel{'s' if pixels.shape[2] > 1 else ''}"
