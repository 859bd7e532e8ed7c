"""A number with its protocol: what was measured, on what, and everything else that the number depends on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, ValidationError

from translate.errors import UserError
from translate.settings import Settings
from translate.writing import write_text

PairName = Literal["l1", "psnr", "ssim", "ms-ssim", "lpips-alex", "lpips-vgg"]
SetName = Literal["fid", "frechet", "kid", "inception-score", "precision", "recall", "density", "coverage"]
LabelName = Literal["pixel-accuracy", "class-accuracy", "mean-iou"]
CodeName = Literal["codes-used", "perplexity"]
PointName = Literal["parzen"]
MeasureName = Literal[PairName, SetName, LabelName, CodeName, PointName]

PAIR_NAMES: tuple[str, ...] = get_args(PairName)
SET_NAMES: tuple[str, ...] = get_args(SetName)
LABEL_NAMES: tuple[str, ...] = get_args(LabelName)
CODE_NAMES: tuple[str, ...] = get_args(CodeName)


class Measure(NamedTuple):
    """What one looks for in a measure, and how it is written."""

    title: str
    better: Literal["higher", "lower"]
    form: str
    about: str

    def text(self, value: float) -> str:
        """The value as a table shows it."""
        return self.form.format(value)


MEASURES: dict[str, Measure] = {
    "l1": Measure("L1", "lower", "{:.4f}", "mean absolute difference, 0 to 1"),
    "psnr": Measure("PSNR", "higher", "{:.2f} dB", "peak signal-to-noise ratio, mean of the images' own"),
    "ssim": Measure("SSIM", "higher", "{:.4f}", "structural similarity (Wang et al. 2004)"),
    "ms-ssim": Measure("MS-SSIM", "higher", "{:.4f}", "structural similarity at five scales (Wang et al. 2003)"),
    "lpips-alex": Measure("LPIPS (Alex)", "lower", "{:.4f}", "distance of AlexNet's features (Zhang et al. 2018)"),
    "lpips-vgg": Measure("LPIPS (VGG)", "lower", "{:.4f}", "distance of VGG16's features (Zhang et al. 2018)"),
    "fid": Measure("FID", "lower", "{:.2f}", "Fréchet distance of Inception's features (Heusel et al. 2017)"),
    "frechet": Measure("Fréchet distance", "lower", "{:.3f}", "of the features that the protocol names; no FID"),
    "kid": Measure("KID", "lower", "{:.5f}", "squared kernel distance of features, unbiased (Bińkowski et al. 2018)"),
    "inception-score": Measure("Inception Score", "higher", "{:.3f}", "classes sure and even (Salimans et al. 2016)"),
    "precision": Measure("precision", "higher", "{:.4f}", "share of outputs near real ones (Kynkäänniemi et al. 2019)"),
    "recall": Measure("recall", "higher", "{:.4f}", "share of real ones near outputs (Kynkäänniemi et al. 2019)"),
    "density": Measure("density", "higher", "{:.4f}", "real neighbourhoods around an output (Naeem et al. 2020)"),
    "coverage": Measure("coverage", "higher", "{:.4f}", "real images with an output near (Naeem et al. 2020)"),
    "pixel-accuracy": Measure("pixel accuracy", "higher", "{:.4f}", "pixels that the segmenter sees as their class"),
    "class-accuracy": Measure("class accuracy", "higher", "{:.4f}", "the same, mean over the classes"),
    "mean-iou": Measure("mean IoU", "higher", "{:.4f}", "intersection over union, mean over the classes"),
    "codes-used": Measure("codes used", "higher", "{:.1%}", "share of the codebook that stands in the tokens"),
    "perplexity": Measure("perplexity", "higher", "{:.1f}", "exp of the entropy of the codes"),
    "parzen": Measure("Parzen log likelihood", "higher", "{:.2f}", "nats, under a kernel density of the samples"),
}

Value = str | int | float
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that a file may hold as null: JSON has no word for what is no number."""


class Score(Settings):
    """One number and its protocol."""

    measure: MeasureName
    part: str = ""
    """What of the subject was measured, where there are several: a direction, `cycle A`. Empty for the whole."""
    value: Number
    protocol: dict[str, Value]
    """All that the number depends on but the images: two scores compare only where these are equal."""

    @property
    def label(self) -> str:
        """`AtoB FID`."""
        return f"{self.part} {MEASURES[self.measure].title}".strip()

    @property
    def text(self) -> str:
        """The value as a table shows it."""
        return MEASURES[self.measure].text(self.value)

    def told(self) -> str:
        """The protocol in a line: `features inception-2015-12-05, resize tensorflow, ...`."""
        return ", ".join(f"{key} {value}" for key, value in self.protocol.items())


class ImageScores(Settings):
    """The pair measures of one image: measure (with its part before it, if any) -> value."""

    name: str
    values: dict[str, Number]


class Pictures(Settings):
    """One of the best or worst images, as it may be looked at."""

    name: str
    rank: Literal["best", "worst"]
    value: float
    """Of the measure that ranked it."""
    files: dict[str, str]
    """Caption (`input`, `output`, `target`) -> file, relative to the evaluation's own folder."""


class Evaluation(Settings):
    """What `translate evaluate` found; its JSON file."""

    format: Literal[1] = 1
    subject: str
    """What was measured: a run with its step, a folder."""
    reference: str
    """What it was measured against."""
    count: int = Field(ge=0)
    """Images (or samples) measured."""
    scores: list[Score]
    images: list[ImageScores] = Field(default_factory=list)
    ranked_by: MeasureName | None = None
    pictures: list[Pictures] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """What a reader must know: a bias, what was left out and why."""
    version: str

    def save(self, path: Path) -> None:
        """Write the JSON file; UserError where that cannot be done."""
        text = self.model_dump_json(indent=1)  # what is no number becomes null
        try:
            write_text(path, text + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error

    @staticmethod
    def load(path: Path) -> Evaluation:
        """Read what `save` wrote; UserError for anything else."""
        try:
            return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (ValidationError, UnicodeDecodeError) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "no text"
            raise UserError(
                f"{path}: is no evaluation ({first}); expected a file that 'translate evaluate --out' wrote"
            ) from error

    def score(self, measure: str, part: str = "") -> Score | None:
        """The score of a measure, if there is one."""
        return next((s for s in self.scores if s.measure == measure and s.part == part), None)


class Row(NamedTuple):
    """One measure of several evaluations; None where one lacks it."""

    measure: str
    part: str
    scores: tuple[Score | None, ...]
    clash: str
    """Empty, or how the protocols differ: such numbers must not be compared."""


def rows(evaluations: Sequence[Evaluation]) -> Iterator[Row]:
    """Every measure that one of the evaluations has, in their order."""
    places = dict.fromkeys((s.part, s.measure) for evaluation in evaluations for s in evaluation.scores)
    for part, measure in places:
        scores = tuple(evaluation.score(measure, part) for evaluation in evaluations)
        yield Row(measure, part, scores, _clash([s.protocol for s in scores if s is not None]))


def side_by_side(evaluations: Sequence[Evaluation]) -> list[Row]:
    """The rows of a table; UserError where a measure was taken by different protocols."""
    table = list(rows(evaluations))
    for row in table:
        if row.clash:
            title = MEASURES[row.measure].title
            raise UserError(
                f"{title}: not comparable, the protocols differ: {row.clash}; evaluate again with equal options, "
                f"or leave {row.measure} out"
            )
    return table


def _clash(protocols: Sequence[dict[str, Value]]) -> str:
    """How protocols differ: `resize tensorflow / clean`; empty where they do not."""
    if not protocols:
        return ""
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    found = {key: list(dict.fromkeys(str(protocol.get(key, "none")) for protocol in protocols)) for key in keys}
    return ", ".join(f"{key} {' / '.join(values)}" for key, values in found.items() if len(values) > 1)
