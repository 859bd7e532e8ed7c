"""How good a method is on data it never trained on: what it compares, by any measure, the best step, when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field, model_validator

from translate.data.images import to_device
from translate.data.spec import Spec
from translate.errors import UserError
from translate.methods.base import Method
from translate.metrics.manifold import NEAREST_REAL
from translate.metrics.meters import PairMeter, SetMeter, mean_of
from translate.metrics.protocol import ProtocolSettings
from translate.metrics.scores import MEASURES, PAIR_NAMES, SET_NAMES, PairName, SetName
from translate.settings import Settings, SpanField, parse_span

DEFAULT_MEASURES: tuple[PairName, ...] = ("l1", "psnr", "ssim")
SMALLEST_SETS = {"fid": 2, "frechet": 2, "kid": 2} | dict.fromkeys(
    ("precision", "recall", "density", "coverage"), NEAREST_REAL + 1
)
"""Images that a set measure cannot do without: a covariance needs two, an image six for five neighbours."""


class ValidationSettings(Settings):
    """Measuring on the data's validation split (`data.validation`); nothing is measured where there is none."""

    every: SpanField = parse_span("1 epochs")
    measures: list[PairName | SetName] | None = Field(default=None, min_length=1)
    """What is measured: l1, psnr, ssim, ms-ssim, lpips-alex, lpips-vgg where a method makes what a target shows, and
    fid, kid, precision ... of its outputs as a set. Null: l1, psnr, ssim where its outputs have targets, and `best`."""
    best: PairName | SetName | None = None
    """The measure that chooses best.safetensors; null for the first of `measures`. Where a method has several parts
    (two directions), the mean of theirs."""
    protocol: ProtocolSettings = ProtocolSettings()
    images: int | None = Field(default=200, ge=1)
    """Measure at most so many images, spread evenly over the split; null for all."""
    batch_size: int = Field(default=8, ge=1)
    patience: int | None = Field(default=None, ge=1)
    """Stop the run after so many validations without a better one."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> ValidationSettings:
        if self.measures is not None and self.best is not None and self.best not in self.measures:
            raise ValueError(f"'best' is {self.best!r}, which is not among 'measures': {', '.join(self.measures)}")
        return self


class Validator:
    """Measures a method by its settings. The statistics of the targets, equal each time, are taken once.

    Raises:
        UserError: weights or features that a measure needs are not there, or the method has nothing for it.
    """

    def __init__(
        self, settings: ValidationSettings, compares: Mapping[str, bool], images: int, device: torch.device
    ) -> None:
        """For a method that compares so, on a validation split of so many images."""
        paired = [name for name, is_paired in compares.items() if is_paired]
        # What comes first is the method's purpose; how well it rebuilds its inputs must not choose the best weights.
        has_targets = next(iter(compares.values()), False)
        wanted: list[str] = list(settings.measures or (DEFAULT_MEASURES if has_targets else ()))
        if settings.best is not None and settings.best not in wanted and (paired or settings.best in SET_NAMES):
            wanted.append(settings.best)
        for name in settings.measures or ():
            if name in PAIR_NAMES and not paired:
                raise UserError(
                    f"validation.measures: {name} needs pairs, but this method compares sets alone: choose among "
                    f"{', '.join(SET_NAMES)}"
                )
            needed = SMALLEST_SETS.get(name, 1)
            if min(images, settings.images or images) < needed:
                raise UserError(f"validation.measures: {name} needs at least {needed} images to validate on")
        self.paired, self.device = set(paired), device
        self.pairs = PairMeter(wanted, settings.protocol, device) if paired else None
        of_sets = [name for name in wanted if name in SET_NAMES]
        self.sets = SetMeter(of_sets, settings.protocol, device) if of_sets else None
        self.best = settings.best if settings.best in wanted else (wanted[0] if wanted else None)
        self._references: dict[str, Any] = {}

    @torch.no_grad()
    def __call__(
        self,
        method: Method,
        batches: Iterable[Mapping[str, Any]],
        specs: Mapping[str, Spec],
        dtype: torch.dtype,
    ) -> dict[str, float]:
        """The measures over all images of the batches, with the name of their part before them if it has one, and
        under `best` the number that chooses, if a part that may choose was compared; empty without images. The method
        is in eval mode meanwhile."""
        was_training = method.training
        method.eval()
        chance = torch.Generator().manual_seed(0)  # the same noise each time, so that steps compare
        values: dict[str, list[float]] = {}
        beside: dict[str, list[float]] = {}
        outputs: dict[str, Any] = {}
        references: dict[str, Any] = {}
        broken: set[str] = set()
        choosing: dict[str, None] = {}  # in the order in which they came
        method.compared = [name for name in method.compares if self.sets or (self.pairs and name in self.paired)]
        try:
            for batch in batches:
                tensors = to_device(batch, specs, self.device)
                with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                    comparisons = method.comparisons(tensors, chance)
                for part, (output, target, spec, others, chooses) in comparisons.items():
                    if chooses:
                        choosing[part] = None
                    for name, each in others.items():
                        beside.setdefault(_key(part, name), []).extend(each.tolist())
                    if self.pairs and part in self.paired:
                        for name, each in self.pairs(output.float(), target, spec).items():
                            values.setdefault(_key(part, name), []).extend(each.tolist())
                    if self.sets:
                        if output.isnan().any():  # as it is of pairs: a measure that is no number, not the run's end
                            broken.add(part)
                        else:
                            self._collect(outputs, part, output.float(), spec, batch["name"])
                        if part not in self._references:
                            self._collect(references, part, target, spec, batch["name"])
        finally:
            method.train(was_training)
        means = mean_of(values)
        if self.sets:
            self._references.update(references)
            for part, reference in self._references.items():
                if part not in outputs and part not in broken:  # of another stage
                    continue
                gone = part in broken
                found = dict.fromkeys(self.sets.names, math.nan) if gone else self.sets.scores(outputs[part], reference)
                means |= {_key(part, name): value for name, value in found.items()}
        chosen = [means[key] for part in choosing if self.best and (key := _key(part, self.best)) in means]
        means |= mean_of(beside)
        return {**means, "best": sum(chosen) / len(chosen)} if chosen else means

    def _collect(self, kept: dict[str, Any], part: str, images: torch.Tensor, spec: Spec, names: list[str]) -> None:
        assert self.sets is not None
        if part not in kept:
            kept[part] = self.sets.statistics()
        self.sets.add(kept[part], self.sets.prepared(images, spec), [True] * len(names))


def _key(part: str, measure: str) -> str:
    return f"{part}/{measure}" if part else measure


def better(measure: str, value: float, than: float | None) -> bool:
    """Whether a value of a measure beats the best one so far; one that is not a number never does."""
    if value != value:
        return False
    return than is None or (value < than if MEASURES[measure].better == "lower" else value > than)
