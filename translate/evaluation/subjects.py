"""What can be measured: two folders, a run that translates, a run that makes images or points, a token file."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import translate
from translate import config as configs
from translate.config import Config
from translate.data import DataSettings
from translate.data.datasets import ImageDataset, UnpairedDataset
from translate.data.degradation import BicubicSettings
from translate.data.images import Pixels, normalise, visible, write_image
from translate.data.spec import ImageSpec, Split
from translate.data.super_resolution import HIGH, LOW, CropSettings, SuperResolutionSettings
from translate.data.tokens import read_tokens
from translate.data.toys import PointDataset, ToySettings
from translate.devices import Precision
from translate.errors import ImageError, UserError
from translate.evaluation.engine import Match
from translate.evaluation.pictures import (
    DegradedPictures,
    EnlargedPictures,
    FilePictures,
    Pictures,
    SamePicture,
    SampledPictures,
    SidePictures,
    TranslatedPictures,
)
from translate.evaluation.text import readable
from translate.inference.report import THUMBNAIL
from translate.inference.sampler import Sampler
from translate.inference.translator import Translator
from translate.methods.generative import SamplingMethod
from translate.metrics.codebook import CodeUse
from translate.metrics.parzen import RELIABLE as PARZEN_RELIABLE
from translate.metrics.parzen import WARNING as PARZEN_WARNING
from translate.metrics.parzen import choose_bandwidth, parzen
from translate.metrics.scores import (
    LABEL_NAMES,
    MEASURES,
    PAIR_NAMES,
    SET_NAMES,
    Evaluation,
    ImageScores,
    MeasureName,
    Score,
    Value,
)
from translate.metrics.scores import (
    Pictures as Shown,
)
from translate.pretrained import store
from translate.run import Weights, build_for_inference

SAMPLES = 10_000
"""Samples of a generative model, and references of a Parzen estimate, where nobody says how many."""
SHOWN = 8
"""Best, and worst, images whose pictures are kept."""
KEPT_BYTES = 1 << 29
"""Of what a direction of a two-way run made, for the way back: 2,700 pictures of 256x256."""
_PARZEN_HELD_OUT = 1_000
"""References that choose the bandwidth, at most; the others are scored."""


@dataclass(frozen=True)
class Subject:
    """Matches ready to be measured, and what they are called."""

    matches: list[Match]
    title: str
    reference: str
    split: Split | None = None
    """Of a run's own data, where it is measured against them."""
    aims: tuple[str, ...] = ()
    """The sides that a run's translations aim at: of as many matches, the first ones."""
    notes: list[str] = field(default_factory=list)
    scale: int = 1
    """Pixels of an output per pixel of its input. Above 1 the field measures luma, less a border of so many pixels."""


# ---- two folders ---------------------------------------------------------------------------------------------------


def folders(
    predicted: Path,
    target: Path,
    measures: Sequence[str] | None,
    *,
    matched: bool = False,
    images: int | None = None,
    classes: int | None = None,
    segmented: bool = False,
) -> Subject:
    """Outputs in one folder, targets in another: pairs where their names agree, else two sets.

    Args:
        measures: what was asked for; names need not agree where it is measures of sets alone.
        matched: measure the pairs that there are where some names lack a partner.
        images: at most so many, spread evenly.
        classes: the targets are label maps of so many classes, and so are the outputs;
        segmented: unless these are pictures, in which a segmenter shall find the classes.

    Raises:
        UserError: a folder without images; names that do not agree where pairs are asked for; measures of pictures
            for label maps in which a segmenter looks.
    """
    spec = ImageSpec(kind="labels", classes=classes) if classes else ImageSpec()
    outputs = FilePictures(predicted, ImageSpec() if segmented else spec)
    targets = FilePictures(target, spec)
    others = [name for name in measures or () if name not in LABEL_NAMES]
    if classes and segmented and others:
        raise UserError(
            f"{others[0]} compares pictures, but --classes makes label maps of the targets; with a segmenter measure "
            f"{', '.join(LABEL_NAMES)}"
        )
    required = measures is not None or classes is not None
    pairs = None if _of_sets(measures) else _by_name(outputs, targets, required=required, matched=matched)
    if pairs is not None:
        chosen = [pairs[i] for i in _spread(len(pairs), images)]
        match = Match(outputs, targets, chosen, labels=targets if classes and segmented else None)
    else:
        match = Match(
            outputs,
            targets,
            None,
            predicted_indices=_spread(len(outputs.names), images),
            target_indices=_spread(len(targets.names), images),
        )
    return Subject([match], outputs.title, targets.title)


def _of_sets(measures: Sequence[str] | None) -> bool:
    """Whether nothing but measures of sets was asked for."""
    return measures is not None and all(name in SET_NAMES for name in measures)


def _by_name(outputs: Pictures, targets: Pictures, *, required: bool, matched: bool) -> list[tuple[int, int]] | None:
    """The pairs of equal names; None where no name agrees and pairs are not required."""
    place = {name: index for index, name in enumerate(targets.names)}
    pairs = [(index, place[name]) for index, name in enumerate(outputs.names) if name in place]
    if not pairs and not required:
        return None
    without = len(outputs.names) - len(pairs)
    unused = len(targets.names) - len(pairs)
    if not pairs or ((without or unused) and not matched):
        have = set(outputs.names)
        lonely = next((n for n in outputs.names if n not in place), None) or next(
            n for n in targets.names if n not in have
        )
        remedy = (
            "--matched measures those that agree" if pairs else "measures of sets (--measures fid) need no partners"
        )
        raise UserError(
            f"{outputs.title}: {without} of {len(outputs.names)} images have no target of their name in "
            f"{targets.title}, and {unused} targets there no output; the first is '{lonely}'; {remedy}"
        )
    return pairs


def _spread(count: int, images: int | None) -> list[int]:
    """At most `images` of 0 to count - 1, evenly."""
    taken = count if images is None else min(images, count)
    return [number * count // taken for number in range(taken)]


# ---- a run -----------------------------------------------------------------------------------------------------------


def data_of(weights: Weights, overrides: Sequence[str]) -> DataSettings:
    """The data a run was trained on, with `--set data...` laid over it: it may lie elsewhere by now."""
    for item in overrides:
        if not item.startswith("data."):
            raise UserError(
                f"--set {item}: evaluation changes nothing but where the data are, such as data.root=FOLDER"
            )
    toy = isinstance(weights.config.data, ToySettings)  # which has no cache
    uncached = [] if toy else ["data.cache=none", "data.cache_folder=null"]
    raw = weights.config.model_dump(mode="json")
    if any(item.startswith("data.low=") for item in overrides):
        del raw["data"]["degradation"]  # files take its place
    raw = configs.apply_overrides(raw, [*uncached, *overrides])
    return configs.validate(raw, str(weights.path), overrides).data


def open_split(data: DataSettings, split: Split | None) -> tuple[ImageDataset | UnpairedDataset | PointDataset, Split]:
    """A split as evaluation sees it; None takes the test split, else the validation one, else the training one."""
    candidates: tuple[Split, ...] = (split,) if split else ("test", "validation", "train")
    for name in candidates:
        dataset = data.open(name, 0)
        if dataset is not None:
            return (dataset if isinstance(dataset, PointDataset) else dataset.fixed()), name
    raise UserError(f"data.{split}: there is no such split in {_root(data)}; choose another --split")


def _root(data: DataSettings) -> str:
    return data.kind if isinstance(data, ToySettings) else readable(data.root)


def translating(
    weights: Weights,
    measures: Sequence[str] | None,
    *,
    overrides: Sequence[str] = (),
    split: Split | None = None,
    direction: str | None = None,
    target: Path | None = None,
    matched: bool = False,
    images: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Subject:
    """A run that translates: what it makes of a split's sources, against their targets, or a folder's.

    Without pairs, outputs and targets are two sets. A run of two directions is measured in both, and there and back
    again: the cycle's error, which needs no pairs. Against a folder it is measured in one, its default where none is
    named; there are pairs if names agree, whatever the run learnt from. Of a split with one side alone is measured what
    can be, with a note.

    Raises:
        UserError: nothing can be measured.
    """
    data = data_of(weights, overrides)
    assert not isinstance(data, ToySettings | SuperResolutionSettings)
    method = build_for_inference(weights)
    if direction is not None:
        method.require_direction(direction, weights.path)
    offered = method.directions
    directions = list(offered) if direction is None and target is None else [direction or offered[0]]
    dataset, name = open_split(data, split)
    assert not isinstance(dataset, PointDataset)
    place = f"{name} split of {_root(data)}"
    sides = {side: SidePictures(dataset.of_side(side), side, place) for side in dataset.specs}
    loaded: dict[str, Translator] = {}
    made: dict[str, TranslatedPictures] = {}
    two_way = len(directions) == 2 and not _of_sets(measures)

    def translator(which: str) -> Translator:
        if which not in loaded:
            loaded[which] = Translator.load(weights.path, direction=which, device=device, precision=precision)
        return loaded[which]

    def there(which: str) -> TranslatedPictures:
        """What a direction makes of its side; kept where the way back begins there."""
        if which not in made:
            source = sides[method.ends(which)[0]]
            made[which] = TranslatedPictures(translator(which), source, keep=KEPT_BYTES if two_way else 0)
        return made[which]

    matches: list[Match] = []
    aims: list[str] = []
    notes: list[str] = []
    for which in directions:
        first, second = method.ends(which)
        lacking = [side for side in ((first,) if target else (first, second)) if side not in sides]
        if lacking:
            notes.append(f"{which} was not measured: the {place} has no image of side {' or '.join(lacking)}")
            continue
        source = sides[first]
        truth = FilePictures(target, data.specs()[second], data.augment) if target else sides[second]
        outputs = there(which)
        chosen, pairs = _spread(len(source.names), images), None
        if target is not None and not _of_sets(measures):
            pairs = _by_name(outputs, truth, required=measures is not None, matched=matched)
        elif target is None and (data.kind == "paired" or first == second):
            pairs = [(i, i) for i in chosen]
        if pairs is not None:
            by_output = dict(pairs)
            pairs = [(i, by_output[i]) for i in chosen if i in by_output]
        of_labels = source.spec.kind == "labels" and truth.spec.kind == "image"
        labels = source if of_labels and pairs is not None and target is None else None
        others = None if target is not None else _spread(len(truth.names), images)
        matches.append(Match(outputs, truth, pairs, which if len(directions) > 1 else "", chosen, others, labels))
        aims.append(second)
    if two_way:
        for which, back in (directions, directions[::-1]):
            if (start := method.ends(which)[0]) in sides:
                source = sides[start]
                again = TranslatedPictures(translator(back), there(which))
                pairs = [(i, i) for i in _spread(len(source.names), images)]
                matches.append(Match(again, source, pairs, f"cycle {start}", sets=False))
    if not matches:
        folder = ", or name a folder of targets" if any(method.ends(which)[0] in sides for which in directions) else ""
        raise UserError(f"{notes[0]}; choose another --split{folder}")
    if target is not None:
        return Subject(matches, _title(weights), readable(target), None, tuple(aims), notes)
    return Subject(matches, _title(weights), place, name, tuple(aims), notes)


def enlarging(
    weights: Weights,
    measures: Sequence[str] | None = None,
    *,
    overrides: Sequence[str] = (),
    split: Split | None = None,
    direction: str | None = None,
    target: Path | None = None,
    images: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Subject:
    """A run that enlarges images: what it makes of a split's low resolutions, or a folder's, against the high ones.

    The low resolutions of a folder are made as the run's own, or lie where `--set data.low=FOLDER` says (from the
    present folder on). Where they are bicubic the outputs are also made small again and held against them.

    Args:
        target: a folder of images of high resolution.

    Raises:
        UserError: there are none, or low resolutions that do not fit them.
    """
    translator = Translator.load(weights.path, direction=direction, device=device, precision=precision)
    data = data_of(weights, overrides)
    assert isinstance(data, SuperResolutionSettings)
    name: Split | None = None
    if target is not None:
        if split is not None:
            raise UserError(f"--split: {target} is a folder, which has none; leave one of the two out")
        low = data.low if any(item.startswith("data.low=") for item in overrides) else None
        of_files = {"root": Path(), "low": low, "validation": None, "augment": CropSettings(crop=None)}
        high = data.high.model_copy(update={"path": str(target)})
        data = data.model_copy(update={**of_files, "high": high})
        dataset, _ = open_split(data, "train")
        place = readable(target)
    else:
        dataset, name = open_split(data, split)
        place = f"{name} split of {_root(data)}"
    assert isinstance(dataset, ImageDataset)
    source, truth = (SidePictures(dataset, side, place) for side in (LOW, HIGH))
    outputs = TranslatedPictures(translator, source, keep=KEPT_BYTES)  # what is made small again is made once
    pairs = [(i, i) for i in _spread(len(source.names), images)]
    bicubic = data.degradation if isinstance(data.degradation, BicubicSettings) else None
    made = f"bicubic {bicubic.convention}" if bicubic else data.degradation.kind
    told: dict[str, Value] = {"scale": data.scale, "low resolution": "files" if data.low is not None else made}
    matches = [Match(outputs, truth, pairs, told=told)]
    if bicubic and data.scale > 1 and (measures is None or "psnr" in measures):
        again = DegradedPictures(outputs, bicubic.build(data.scale))
        told = {**told, "made small": made}
        matches.append(Match(again, source, pairs, "consistency", sets=False, told=told, measures=("psnr",)))
    return Subject(matches, _title(weights), place, name, (HIGH,), scale=data.scale)


def generative(
    weights: Weights,
    *,
    overrides: Sequence[str] = (),
    split: Split | None = None,
    target: Path | None = None,
    images: int | None = None,
    seed: int = 0,
    truncation: float | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Subject:
    """A run that makes images of noise: its samples as a set, against a split's images, or a folder's."""
    data = data_of(weights, overrides)
    sampler = Sampler.load(weights.path, device=device, precision=precision)
    name: Split | None = None
    if target is not None:
        references: Pictures = FilePictures(target, data.specs()["image"])  # type: ignore[arg-type]  # points have no folder
    else:
        dataset, name = open_split(data, split)
        assert isinstance(dataset, ImageDataset)
        references = SidePictures(dataset, "image", f"{name} split of {_root(data)}")
    count = images or SAMPLES
    samples = SampledPictures(sampler, count, seed=seed, truncation=truncation)
    match = Match(samples, references, None, target_indices=_spread(len(references.names), images))
    shown = "" if truncation is None else f", truncation {truncation:g}"
    return Subject([match], f"{_title(weights)}, seed {seed}{shown}", references.title, name)


def _title(weights: Weights) -> str:
    stem = weights.path.stem
    folder = weights.path.parent.name if stem in ("best", "last") or stem.startswith("stage-") else ""
    return readable(f"{folder}/{stem} at step {weights.step:,}".lstrip("/"))


def baselines(
    weights: Weights, subject: Subject, measures: Sequence[str], overrides: Sequence[str] = ()
) -> tuple[dict[str, Subject], list[str]]:
    """What a run's translations are like if nobody had to learn them: `input`, the inputs themselves, and `mean`, the
    mean of the training images of the side that they aim at (of pairs alone: as a set it has no spread). For a run that
    enlarges `bicubic`, its inputs enlarged so. And a line for what makes no sense here.

    Raises:
        UserError: the subject is no run that translates.
    """
    translations = list(zip(subject.aims, subject.matches, strict=False))  # cycles come after
    if not translations:
        raise UserError(
            "--baselines needs a run that translates: they are its inputs, and the mean of the images that it aims at"
        )
    found: dict[str, Subject] = {}
    notes: list[str] = []
    if subject.scale > 1:
        first, *again = subject.matches
        assert isinstance(first.predicted, TranslatedPictures)
        enlarged = EnlargedPictures(first.predicted.source, subject.scale)
        matches = [replace(first, predicted=enlarged)]
        for match in again:
            assert isinstance(match.predicted, DegradedPictures)
            matches.append(replace(match, predicted=DegradedPictures(enlarged, match.predicted.degradation)))
        return {"bicubic": replace(subject, matches=matches, title="bicubic", aims=())}, notes
    same: list[Match] = []
    for _, match in translations:
        assert isinstance(match.predicted, TranslatedPictures)
        source, spec = match.predicted.source, match.target.spec
        if (source.spec.kind, source.spec.width) == (spec.kind, spec.width):
            same.append(replace(match, predicted=source))
    unlearnt = replace(subject, matches=same, title="the input itself", aims=())
    if same and served(measures, unlearnt):
        found["input"] = unlearnt
    elif same:
        notes.append("the input itself is no baseline here: without pairs only measures of sets have one")
    else:
        notes.append("the input itself is no baseline here: it is another kind of picture than the target")
    means: list[Match] = []
    for side, match in translations:
        spec = match.target.spec
        mean = _mean(data_of(weights, overrides), side) if spec.kind == "image" and match.pairs is not None else None
        if mean is not None:
            stands = SamePicture(mean, match.predicted.names, spec, "mean training image")
            means.append(replace(match, predicted=stands))
    if means:
        found["mean"] = replace(subject, matches=means, title="mean training image", aims=())
    elif translations[0][1].pairs is None:
        notes.append(
            "the mean training image is no baseline here: without pairs only sets compare, and it is one image"
        )
    else:
        notes.append(
            "the mean training image is no baseline here: label maps have none, nor have images of different sizes "
            "(set data.augment.crop)"
        )
    return found, notes


def served(measures: Sequence[str], subject: Subject) -> tuple[str, ...]:
    """Those of the measures that a subject can have: those of pairs need some."""
    paired = any(match.pairs is not None for match in subject.matches)
    return tuple(name for name in measures if paired or name not in PAIR_NAMES)


def _mean(data: DataSettings, side: str) -> Pixels | None:
    """The mean of a side's readable training images as deep as the deepest; None where they differ in size."""
    dataset, _ = open_split(data, "train")
    assert not isinstance(dataset, PointDataset)
    dataset = dataset.of_side(side)
    total: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None
    count, bits = 0, 8
    for pixels in SidePictures(dataset, side, "training").stream(range(len(dataset)), lambda pixels: pixels):
        if isinstance(pixels, ImageError):
            continue
        if total is not None and pixels.shape != total.shape:
            return None
        bits = max(bits, 8 * pixels.dtype.itemsize)
        deep = pixels * (257.0 if pixels.dtype == np.uint8 else 1.0)  # 255 becomes 65535
        total = deep if total is None else total + deep
        count += 1
    if total is None:
        raise UserError(f"data.train: no image in {_root(data)} can be read; 'translate data check' lists why")
    mean = total / count
    return (mean / 257).round().astype(np.uint8) if bits == 8 else mean.round().astype(np.uint16)


# ---- which measures --------------------------------------------------------------------------------------------------


def default_measures(subject: Subject) -> tuple[list[str], list[str]]:
    """What is measured where nobody says: measures of pairs, or of label maps, where there are targets, else of sets.
    And a line for what was left out.

    Raises:
        UserError: only sets can be compared, and Inception's weights are not here.
    """
    first = subject.matches[0]
    notes: list[str] = []
    if first.pairs is None:
        of_cycles = ["l1", "psnr"] if any(match.pairs is not None for match in subject.matches) else []
        if store.find("inception") is not None:
            return ["fid", "kid", *of_cycles], notes
        lacking = (
            "without pairs only sets compare, by Inception's features, which are not on this machine; "
            "fetch them once with 'translate weights get inception', or give --features with --measures frechet"
        )
        if not of_cycles:
            raise UserError(lacking)
        return of_cycles, [lacking]
    if first.target.spec.kind == "labels":
        return list(LABEL_NAMES), notes
    names = ["l1", "psnr", "ssim"] if subject.scale == 1 else ["psnr", "ssim"]
    if store.find("lpips-alex") is not None:
        names.append("lpips-alex")
    else:
        notes.append("LPIPS was left out: its weights are not here; 'translate weights get lpips' fetches them once")
    return names, notes


# ---- points and tokens -----------------------------------------------------------------------------------------------


def points(
    weights: Weights,
    *,
    overrides: Sequence[str] = (),
    split: Split | None = None,
    samples: int | None = None,
    seed: int = 0,
    truncation: float | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> Evaluation:
    """Parzen-window log likelihood of a split's samples under a kernel density of the model's own (Goodfellow et al.
    2014, section 5): for low dimensions, with a warning beyond. Images count as vectors of values in [0, 1]; those that
    cannot be read are left out, with a note.

    Raises:
        UserError: less than two images can be read; else as Sampler.
    """
    data = data_of(weights, overrides)
    dataset, name = open_split(data, split)
    sampler = Sampler.load(weights.path, device=device, precision=precision)
    count = samples or SAMPLES
    made = sampler.sample(count, seed=seed, truncation=truncation)
    notes: list[str] = []
    if isinstance(dataset, PointDataset):
        real = torch.from_numpy(dataset.points[:SAMPLES])
        fake = torch.from_numpy(np.asarray(made))
    else:
        assert isinstance(dataset, ImageDataset)
        side = SidePictures(dataset, "image", name)
        seen = list(side.stream(_spread(len(dataset), SAMPLES), _as_vector))
        notes += [readable(f"left out: {row}") for row in seen if isinstance(row, ImageError)]
        rows = [row for row in seen if not isinstance(row, ImageError)]
        if len(rows) < 2:
            raise UserError(f"parzen: expected at least 2 images in the {name} split of {_root(data)}, not {len(rows)}")
        real = torch.from_numpy(np.stack(rows))
        fake = torch.from_numpy(np.asarray(made).reshape(count, -1) / 255)
    held_out = min(_PARZEN_HELD_OUT, len(real) // 2)
    bandwidth = choose_bandwidth(fake, real[:held_out])
    value = parzen(fake, real[held_out:], bandwidth)
    score = Score(
        measure="parzen",
        value=value,
        protocol={
            "kernel": "gaussian",
            "bandwidth": float(f"{bandwidth:.4g}"),
            "dimensions": real.shape[1],
            "outputs": count,
            "reference samples": len(real) - held_out,
        },
    )
    shown = "" if truncation is None else f", truncation {truncation:g}"
    return Evaluation(
        subject=f"{_title(weights)}, seed {seed}{shown}",
        reference=f"{name} split of {_root(data)}",
        count=count,
        scores=[score],
        notes=[*notes, PARZEN_WARNING] if real.shape[1] > PARZEN_RELIABLE else notes,
        version=translate.__version__,
    )


def _as_vector(pixels: Pixels) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(H, W, C) of integers -> (H·W·C,) in [0, 1]."""
    return pixels.astype(np.float64).ravel() / np.iinfo(pixels.dtype).max


def tokens(path: Path) -> Evaluation:
    """How much of its codebook a token file uses."""
    file = read_tokens(path)
    use = CodeUse(file.codebook)
    for grid in file.grids.values():
        use.add(grid)
    count = sum(grid.numel() for grid in file.grids.values())
    protocol = {"codebook": file.codebook, "tokenizer": file.tokenizer[:12], "images": len(file.grids), "tokens": count}
    scores = [
        Score(measure=name, value=value, protocol=protocol)  # type: ignore[arg-type]  # its names are measures
        for name, value in use.scores().items()
    ]
    return Evaluation(
        subject=readable(path),
        reference="its codebook",
        count=len(file.grids),
        scores=scores,
        version=translate.__version__,
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


def show_best_and_worst(evaluation: Evaluation, subject: Subject, folder: Path, count: int = SHOWN) -> Evaluation:
    """The evaluation with its best and worst images, whose pictures are written below `folder`: ranked by LPIPS where
    it was measured, else by the first measure of pairs. Without targets the cycle's error ranks."""
    match = next((match for match in subject.matches if match.pairs is not None), None)
    if match is None or match.pairs is None:
        return evaluation
    by: MeasureName | None = next(
        (name for name in ("lpips-alex", "lpips-vgg", "ssim", *PAIR_NAMES) if evaluation.score(name, match.part)),  # type: ignore[misc]
        None,
    )
    if by is None:
        return evaluation
    key = f"{match.part} {by}".strip()
    ranked = [image for image in evaluation.images if key in image.values and math.isfinite(image.values[key])]
    ranked.sort(key=lambda image: image.values[key], reverse=MEASURES[by].better == "higher")
    count = min(count, len(ranked) // 2) or min(1, len(ranked))
    places = {match.predicted.names[p]: (p, t) for p, t in match.pairs}
    shown: list[Shown] = []
    chosen: list[tuple[str, int, ImageScores]] = [("best", n, image) for n, image in enumerate(ranked[:count], 1)]
    if len(ranked) > 1:
        chosen += [("worst", n, image) for n, image in enumerate(ranked[::-1][:count], 1)]
    for rank, number, image in chosen:
        files: dict[str, str] = {}
        row = _row(match, *places[image.name])
        for caption, pixels, spec in row if subject.scale == 1 else _magnified(row, subject.scale):
            name = f"{rank}-{number}-{caption}.webp"
            write_image(folder / name, _small(pixels, spec), quality=90)
            files[caption] = name
        shown.append(Shown(name=image.name, rank=rank, value=image.values[key], files=files))  # type: ignore[arg-type]
    told = [f"the best and the worst images are those of {match.part}"] if match.part else []
    return evaluation.model_copy(update={"ranked_by": by, "pictures": shown, "notes": [*evaluation.notes, *told]})


def grid_matches(subject: Subject) -> list[Match]:
    """What a grid shows: the first match, if it has pairs; else the cycles, there and back; else what a run makes of
    its inputs. Empty where nothing belongs together."""
    first = subject.matches[0]
    if first.pairs is not None:
        return [first]
    cycles = [match for match in subject.matches if match.pairs is not None]
    return cycles or ([first] if isinstance(first.predicted, TranslatedPictures) else [])


def write_grid(path: Path, subject: Subject, rows: int = 10) -> None:
    """A picture of results that nobody chose, evenly spaced by name, in two columns: of inputs, outputs and targets, or
    of the cycles of both directions.

    Raises:
        UserError: the images differ in size, or the file cannot be written.
    """
    matches = grid_matches(subject)
    columns = [_spread_rows(match, rows // len(matches), subject.scale) for match in matches]
    if subject.scale > 1:
        least = min((min(picture.shape[:2]) for line in columns[0] for picture in line), default=0)
        columns = [[[_middle(picture, least) for picture in line] for line in columns[0]]]
    if len(columns) == 1:
        (lines,) = columns
        half = -(-len(lines) // 2)
        columns = [lines[:half], lines[half:]]
    sizes = {picture.shape for column in columns for line in column for picture in line}
    if len(sizes) != 1:
        found = "differ in size; for a run set data.augment.crop (--set)" if sizes else "cannot be read"
        raise UserError(f"--grid needs images of one size, but these {found}")
    left, right = ([np.concatenate(line, axis=1) for line in column] for column in columns)
    white = np.full_like((left or right)[0], 255)
    gap = np.full((len(white), 12, 3), 255, np.uint8)
    lines = [[a, gap, b] for a, b in itertools.zip_longest(left, right, fillvalue=white)]
    write_image(path, np.concatenate([np.concatenate(line, axis=1) for line in lines]))


def _spread_rows(match: Match, rows: int, scale: int) -> list[list[Pixels]]:
    """Evenly spaced rows of a match; bad ones, which the evaluation lists, are left out."""
    pairs: Sequence[tuple[int, int | None]]
    if match.pairs is not None:
        pairs = match.pairs
    else:
        pairs = [(p, None) for p in match.predicted_indices or ()]
    found = []
    for number in _evenly(len(pairs), rows):
        with contextlib.suppress(ImageError):
            row = _row(match, *pairs[number])
            shown = row if scale == 1 else _magnified(row, scale)
            found.append([_rgb(pixels, spec) for _, pixels, spec in shown])
    return found


def _evenly(count: int, rows: int) -> list[int]:
    return sorted({int(n) for n in np.linspace(0, count - 1, min(rows, count)).round()})


def _row(match: Match, p: int, t: int | None) -> list[tuple[str, Pixels, ImageSpec]]:
    """Input (if it is known), output and target of a pair; of a cycle input, output and what comes back."""
    chain = [match.predicted]
    while isinstance(chain[0], TranslatedPictures):
        chain.insert(0, chain[0].source)
    captions = {1: ["output"], 2: ["input", "output"], 3: ["input", "output", "back"]}[len(chain)]
    sides = [(caption, pictures, p) for caption, pictures in zip(captions, chain, strict=True)]
    if t is not None and match.target is not chain[0]:
        sides.append(("target", match.target, t))
    found = []
    for caption, pictures, index in sides:
        pixels = next(iter(pictures.stream([index], lambda pixels: pixels)))
        if isinstance(pixels, ImageError):
            raise pixels
        found.append((caption, pixels, pictures.spec))
    return found


def _magnified(row: list[tuple[str, Pixels, ImageSpec]], scale: int) -> list[tuple[str, Pixels, ImageSpec]]:
    """The row of a run that enlarges, to be looked at pixel by pixel: the input's become squares of as many pixels as
    the output has for them, and of each picture there is the middle, of the side that fits all and a card."""
    (caption, pixels, spec), *others = row
    row = [(caption, pixels.repeat(scale, axis=0).repeat(scale, axis=1), spec), *others]
    return [(caption, _middle(pixels, THUMBNAIL), spec) for caption, pixels, spec in row]


def _middle(pixels: Pixels, side: int) -> Pixels:
    """(H, W, C) -> (side, side, C), less where the picture is smaller."""
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _rgb(pixels: Pixels, spec: ImageSpec) -> Pixels:
    """Any picture as RGB (H, W, 3), uint8."""
    seen = visible(normalise(torch.from_numpy(np.ascontiguousarray(pixels[None])), spec), spec)
    return np.asarray(((seen[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy())


def _small(pixels: Pixels, spec: ImageSpec) -> Pixels:
    import cv2

    shown = _rgb(pixels, spec)
    scale = THUMBNAIL / max(shown.shape[:2])
    if scale >= 1:
        return shown
    size = (max(1, round(shown.shape[1] * scale)), max(1, round(shown.shape[0] * scale)))
    return np.asarray(cv2.resize(shown, size, interpolation=cv2.INTER_AREA))


def is_generative(config: Config) -> bool:
    """Whether a run makes its outputs of noise."""
    with torch.device("meta"):
        return isinstance(config.method.build(config.data, inference=True), SamplingMethod)
