"""Spans of training, and the base of all settings."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from translate.settings import Settings, Span, SpanField, parse_span


class Sample(Settings):
    length: SpanField = parse_span("1 epochs")


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("200 epochs", 200, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("30k steps", 30_000, "steps"),
        ("1.6M images", 1.6e6, "images"),
        ("1_000 step", 1000, "steps"),
        ("2e5 images", 2e5, "images"),
        ("  0.5epochs ", 0.5, "epochs"),
    ],
)
def test_a_span_is_a_number_and_a_unit(text: str, amount: float, unit: str) -> None:
    assert parse_span(text) == Span(amount, unit)


@pytest.mark.parametrize("value", ["200", "epochs", "200 hours", "-1 steps", "1,5 steps", "", 200, None, ["1 step"]])
def test_what_is_no_span_is_told_with_the_form(value: object) -> None:
    with pytest.raises(ValueError, match="expected a length such as '200 epochs', '30k steps' or"):
        parse_span(value)


@pytest.mark.parametrize("value", ["0 steps", "0.0 epochs"])
def test_a_span_is_above_zero(value: str) -> None:
    with pytest.raises(ValueError, match="above zero"):
        parse_span(value)


def test_a_span_in_images_ends_with_a_batch() -> None:
    counts = {"10 images": 12, "12 images": 12, "3 steps": 12, "2 epochs": 20, "0.1 epochs": 4, "1 images": 4}
    assert {text: parse_span(text).images(batch=4, epoch=10) for text in counts} == counts


@given(st.integers(1, 10**9) | st.floats(1e-3, 1e9), st.sampled_from(["images", "steps", "epochs"]))
def test_a_span_s_text_reads_back_as_the_span(amount: float, unit: str) -> None:
    span = Span(float(amount), unit)
    again = parse_span(str(span))
    assert again.unit == unit and again.amount == pytest.approx(span.amount, rel=1e-12)


def test_a_span_travels_as_text() -> None:
    settings = Sample.model_validate({"length": "30k steps"})
    assert settings.model_dump(mode="json") == {"length": "30000 steps"}
    assert Sample.model_validate(settings.model_dump(mode="json")) == settings
    schema = TypeAdapter(Sample).json_schema()["properties"]["length"]
    for text in ("200 epochs", "30k steps", "1.6M images", "30000 steps"):
        assert re.search(schema["pattern"], text)
    assert not re.search(schema["pattern"], "200 hours")


def test_settings_are_frozen_and_refuse_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sample().length = parse_span("2 epochs")
    with pytest.raises(ValidationError, match="Extra inputs"):
        Sample.model_validate({"lenght": "1 step"})
