"""The base of every settings model, and the types that many of them use. Imports no torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error, a field's docstring its help in the schema."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, protected_namespaces=()
    )


Scale = Literal[1, 2, 4, 8]
"""Pixels that a super-resolution network makes of each, along either side; 1 for one that just restores."""

SpanUnit = Literal["images", "steps", "epochs"]
_SPAN = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)\s*([kM]?)\s*(image|step|epoch)s?\s*$")


class Span(NamedTuple):
    """A length of training: `200 epochs`, `30k steps`, `1.6M images`. Everything is counted in images inside."""

    amount: float
    unit: SpanUnit

    def __str__(self) -> str:
        return f"{self.amount:.15g} {self.unit}"

    def images(self, *, batch: int, epoch: int) -> int:
        """Length in images, given the images in a step (`batch`, over all processes) and in an epoch.

        Rounded up to whole steps, so that a span never ends inside a batch.
        """
        per_unit = {"images": 1, "steps": batch, "epochs": epoch}[self.unit]
        return max(1, -(-round(self.amount * per_unit) // batch)) * batch


def parse_span(value: Any) -> Span:
    """Read `200 epochs`; raises ValueError with the accepted form otherwise."""
    if isinstance(value, Span):
        return value
    match = _SPAN.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected a length such as '200 epochs', '30k steps' or '1.6M images', not {value!r}")
    number, multiplier, unit = match.groups()
    amount = float(number.replace("_", "")) * {"": 1, "k": 1e3, "M": 1e6}[multiplier]
    if amount <= 0:
        raise ValueError(f"expected a length above zero, not {value!r}")
    return Span(amount, f"{unit}s")  # type: ignore[arg-type]  # the regular expression admits just the three units


SpanField = Annotated[
    Span,
    BeforeValidator(parse_span),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _SPAN.pattern, "examples": ["200 epochs", "30k steps"]}),
]

Direction = Literal["AtoB", "BtoA"]
Share = Annotated[float, Field(gt=0, lt=1)]
