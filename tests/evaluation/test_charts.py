"""Charts are read back as a person reads them: by the labels of their axes."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from translate.evaluation.charts import POINTS, Curve, chart, human, moving_mean, thinned, ticks

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def number(text: str) -> float:
    """What a label says."""
    return float(text[:-1]) * UNITS[text[-1]] if text[-1] in UNITS else float(text)


def read_chart(svg: str, run: int = 0, *, raw: bool = False, logarithmic: bool = False) -> np.ndarray:
    """The points (N, 2) of a run's curve in the units of the axes, from the places of the labels."""
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)</text>', svg)
    lines = [float(place) for place in re.findall(r'class="grid" d="M48 ([\d.]+)H', svg)]
    values = [number(text) for _, _, anchor, text in labels if anchor == "end" and " " not in text][: len(lines)]
    assert len(lines) >= 2
    scale = np.log10(values) if logarithmic else np.array(values)
    slope, offset = np.polyfit(lines, scale, 1)
    across = [(float(x), number(text.split()[0])) for x, _, anchor, text in labels if anchor == "middle"]
    slope_x, offset_x = np.polyfit(*zip(*across, strict=True), 1)
    kind = 'class="raw" ' if raw else ""
    (path,) = re.findall(rf"<path {kind}style=\"stroke: var\(--run{run}\)\" d='([^']*)'", svg)
    points = np.array([[float(part) for part in point.split()] for point in re.findall(r"[ML]([\d.]+ [\d.]+)", path)])
    heights = slope * points[:, 1] + offset
    return np.stack([slope_x * points[:, 0] + offset_x, 10**heights if logarithmic else heights], axis=1)


def test_a_chart_says_what_the_numbers_say() -> None:
    x = np.arange(1, 41) * 1000.0
    curves = [Curve(0, "up", x, 0.5 + x / 1e5), Curve(1, "wave", x, np.sin(x / 5000) / 2)]
    svg = chart("a & b", curves)
    for run, curve in enumerate(curves):
        read = read_chart(svg, run)
        # Places have one decimal: 0.05 off of 302 across (40,000 images) and 170 up (a span of 1.4); the labels' too.
        np.testing.assert_allclose(read[:, 0], x, atol=40_000 / 302 * 0.2)
        np.testing.assert_allclose(read[:, 1], curve.y, atol=1.4 / 170 * 0.2)
    assert "a &amp; b" in svg and "logarithmic" not in svg
    assert "up: last 0.9 at 40,000 images; lowest 0.51 at 1,000 images; highest 0.9 at 40,000 images" in svg


def test_a_heavy_tail_makes_the_axis_logarithmic_but_not_for_rates() -> None:
    x = np.arange(1.0, 51.0) * 100
    y = np.where(x == 2500, 1000.0, 1.0 + x / 5000)
    svg = chart("gradient norm", [Curve(0, "run", x, y)])
    assert "logarithmic" in svg
    read = read_chart(svg, logarithmic=True)
    # A tenth of a unit of 170 over three decades: 0.2 % of a value a step; three of them with the labels' rounding.
    np.testing.assert_allclose(read[:, 1], y, rtol=0.012)
    assert "logarithmic" not in chart("learning rate", [Curve(0, "run", x, y)], rate=True)
    assert "logarithmic" not in chart("a loss", [Curve(0, "run", x, y - 2)])  # has no logarithm


def test_thinning_keeps_spikes_gaps_and_ends() -> None:
    generator = np.random.default_rng(0)
    x = np.arange(50_000.0)
    y = generator.normal(size=50_000)
    y[12_345], y[40_000], y[31_000:31_900] = 99.0, -77.0, np.nan
    thin_x, thin_y = thinned(x, y)
    assert len(thin_x) <= 1.5 * POINTS + 2
    assert thin_x[0] == 0 and thin_x[-1] == 49_999 and (np.diff(thin_x) > 0).all()
    assert thin_y[thin_x == 12_345] == 99 and thin_y[thin_x == 40_000] == -77
    inside = (thin_x >= 31_000) & (thin_x < 31_900)
    assert inside.any() and np.isnan(thin_y[inside]).all() and not np.isnan(thin_y[~inside]).any()
    np.testing.assert_array_equal(thin_y, y[thin_x.astype(int)])  # points of the log, nothing made up
    np.testing.assert_array_equal(thinned(x[:POINTS], y[:POINTS])[1], y[:POINTS])  # few enough as they are


def test_the_moving_mean_is_the_mean_of_a_window() -> None:
    y = np.random.default_rng(1).normal(size=120)
    x, mean = moving_mean(np.arange(120.0), y, 9)
    np.testing.assert_array_equal(x, np.arange(120.0))
    np.testing.assert_allclose(mean[4:-4], np.convolve(y, np.ones(9) / 9, "valid"), rtol=1e-12, atol=1e-12)
    assert mean[0] == pytest.approx(y[:5].mean())
    y[50] = math.nan
    _, with_gap = moving_mean(np.arange(120.0), y, 9)
    assert math.isnan(with_gap[50]) and with_gap[51] == pytest.approx(np.nanmean(y[47:56]))
    y[10] = 1e300  # nothing of it is left where the window has passed
    assert moving_mean(np.arange(120.0), y, 9)[1][60] == pytest.approx(y[56:65].mean())


def test_gaps_break_the_line_and_lone_points_are_dots() -> None:
    y = np.array([1.0, 2.0, math.nan, 3.0, math.inf, 4.0, 5.0])
    svg = chart("loss", [Curve(0, "run", np.arange(7.0), y)])
    (path,) = re.findall(r"d='([^']*)'", svg)
    assert [len(re.findall(r"\d+\.\d \d+\.\d", part)) for part in path.split("M")[1:]] == [2, 1, 2]
    assert path.count("h0") == 3  # where a line begins; with round ends, the lone point is a dot


@pytest.mark.parametrize(
    "values", [[0.5], [0.0, 0.0], [7e8] * 3, [-2.0] * 3, [1e-300, 2e-300], [-1e300, 1e300], [1.0, math.nan]]
)
def test_odd_curves_have_a_chart(values: list[float]) -> None:
    svg = chart("loss", [Curve(0, "run", np.arange(1.0, len(values) + 1), np.array(values))])
    assert "nan" not in svg and "inf" not in svg
    places = [float(place) for place in re.findall(r"[ML][\d.]+ ([\d.]+)", svg)]
    assert places and all(0 <= place <= 200 for place in places)


def test_without_a_finite_value_the_chart_says_so() -> None:
    svg = chart("loss", [Curve(0, "run", np.arange(3.0), np.full(3, math.nan))])
    assert "no finite value" in svg and "<svg" not in svg


def test_many_points_are_drawn_thin_with_a_moving_mean() -> None:
    x = np.arange(1.0, 5001.0)
    y = np.where(x % 2 == 0, 1.0, 3.0)
    svg = chart("loss", [Curve(0, "run", x, y)])
    assert len(svg) < 20_000
    raw, mean = read_chart(svg, raw=True), read_chart(svg)
    assert raw[:, 1].min() == pytest.approx(1, abs=0.01) and raw[:, 1].max() == pytest.approx(3, abs=0.01)
    np.testing.assert_allclose(mean[:, 1], 2, atol=0.03)  # 251 points of ones and threes: 1/251 off, and the drawing


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 65_880, [0, 20_000, 40_000, 60_000]),
        (0.0435, 0.0716, [0.045, 0.05, 0.055, 0.06, 0.065, 0.07]),
        (-33, 7, [-30, -20, -10, 0]),
        (0.9, 1.1, [0.9, 0.95, 1.0, 1.05, 1.1]),
        (2e-9, 9.9e-5, [2e-5, 4e-5, 6e-5, 8e-5]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("low", [-1e6, -3.3, 0.0, 1e-8, 123.0])
@pytest.mark.parametrize("span", [1e-7, 0.3, 1.0, 4.999, 7e9])
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert 2 <= len(marks) <= 6
    assert low - 1e-6 * span <= marks[0] and marks[-1] <= low + span * (1 + 1e-6)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.02, "0.02"),
        (350, "350"),
        (12_000, "12k"),
        (1.5e6, "1.5M"),
        (2e-4, "2e-4"),
        (1.5e-5, "1.5e-5"),
        (-2500, "-2.5k"),
        (3e20, "3e20"),
    ],
)
def test_numbers_are_written_for_people(value: float, text: str) -> None:
    assert human(value) == text
