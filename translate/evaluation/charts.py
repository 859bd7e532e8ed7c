"""Curves of runs as small inline SVG: no library, no script, readable at any width. Colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 8, 22  # room for the labels of the axes
POINTS = 400
"""What a curve is thinned to: more than the chart is wide."""
SMOOTHED_FROM = 60
"""Curves of more points than this are drawn thin, with a moving mean over them."""
HEAVY_TAIL = 30
"""A positive curve whose largest value is so many times its median is drawn on a logarithmic axis."""

COLOURS = 5
"""Colours that CHART_STYLE has; further runs take them again, dashed."""

# Any two of a row are at least 9 apart (CIEDE2000), also as people see them who lack one of the three cones (the
# matrices of Machado et al. 2009), and each has at least 3:1 against its ground.
CHART_STYLE = """
:root { --run0: #0072b2; --run1: #d55e00; --run2: #009e73; --run3: #aa3f8c; --run4: #1c1c1a; }
@media (prefers-color-scheme: dark) { :root { --run0: #4aa8ff; --run1: #e0762a; --run2: #28c8a0; --run3: #f0e060;
  --run4: #fff; } }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 1rem 1.5rem;
  margin: .5rem 0 1.25rem; }
.chart { break-inside: avoid; } .chart figcaption { font-size: .85rem; color: var(--text); }
.chart small { color: var(--soft); }
.chart svg { display: block; width: 100%; height: auto; font: 10.5px system-ui, sans-serif; }
.chart text { fill: var(--soft); } .chart .grid { stroke: var(--line); stroke-width: 1; }
.chart path { fill: none; stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; }
.chart .raw { stroke-width: 1; opacity: .35; }
"""


class Curve(NamedTuple):
    """One key of one run. `run` is its place among the page's runs, which gives the colour."""

    run: int
    name: str
    x: Numbers
    """(N,), not falling."""
    y: Numbers
    """(N,); what is not finite is a gap."""


def chart(title: str, curves: Sequence[Curve], *, unit: str = "images", rate: bool = False) -> str:
    """A figure: the curves over one pair of axes, their last, lowest and highest values as its tooltip.

    Args:
        unit: what x counts.
        rate: a schedule, drawn as it is: neither smoothed nor on a logarithmic axis.
    """
    finite = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in curves])
    if not finite.size:
        return f'<figure class="chart"><figcaption>{escape(title)} <small>no finite value</small></figcaption></figure>'
    logarithmic = not rate and bool(finite.min() > 0 and finite.max() > HEAVY_TAIL * np.median(finite))
    x = _Axis(_span(curve.x for curve in curves), LEFT, WIDTH - RIGHT)
    y = _Axis((float(finite.min()), float(finite.max())), HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [_scales(x, y, unit)]
    smooth = [not rate and np.isfinite(curve.y).sum() > SMOOTHED_FROM for curve in curves]
    for curve, smoothed in zip(curves, smooth, strict=True):
        kind = ' class="raw"' if smoothed else ""
        parts.append(f"<path{kind} {_stroke(curve.run)} d='{_path(x, y, *thinned(curve.x, curve.y))}'/>")
    for curve, smoothed in zip(curves, smooth, strict=True):  # above all that is thin
        if smoothed:
            mean = moving_mean(curve.x, curve.y, max(3, len(curve.y) // 20))
            parts.append(f"<path {_stroke(curve.run)} d='{_path(x, y, *mean)}'/>")
    told = "\n".join(_told(curve, unit) for curve in curves)
    remark = " <small>logarithmic</small>" if logarithmic else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{remark}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(told)}</title>'
        f"{''.join(parts)}</svg></figure>"
    )


def legend_mark(run: int) -> str:
    """A short line in a run's colour, for names and legends."""
    return (
        f'<svg class="mark" width="22" height="10" aria-hidden="true">'
        f'<path d="M2 5H20" stroke-width="3" stroke-linecap="round" {_stroke(run)}/></svg>'
    )


def thinned(x: Numbers, y: Numbers, points: int = POINTS) -> tuple[Numbers, Numbers]:
    """At most about `points` of them: of each stretch its lowest, highest and first missing one, so that spikes and
    gaps stay; the ends too."""
    if len(y) <= points:
        return x, y
    kept = {0, len(y) - 1}
    for stretch in np.array_split(np.arange(len(y)), points // 2):
        finite = stretch[np.isfinite(y[stretch])]
        if finite.size:
            kept |= {int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])}
        if finite.size < stretch.size:
            kept.add(int(stretch[~np.isfinite(y[stretch])][0]))
    places = sorted(kept)
    return x[places], y[places]


def moving_mean(x: Numbers, y: Numbers, window: int, points: int = POINTS // 2) -> tuple[Numbers, Numbers]:
    """At up to `points` places, the mean of the finite values within `window` points around each (fewer at the ends);
    a gap stays a gap. Each is summed by itself, so that no spike rounds away what comes after it."""
    places = np.unique(np.linspace(0, len(y) - 1, min(points, len(y))).round().astype(int))
    half = window // 2

    def mean(place: int) -> float:
        around = y[max(0, place - half) : place + half + 1]
        return float(around[np.isfinite(around)].mean()) if np.isfinite(y[place]) else math.nan

    return x[places], np.array([mean(place) for place in places.tolist()])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At least two and at most `most` round numbers from `low` to `high`: 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [number * step for number in range(first, last + 1)]


def human(value: float) -> str:
    """A number as an axis writes it: `0.02`, `350`, `12k`, `1.5M`, `2e-5`."""
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-3:
        digits, _, power = f"{value:.3e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    for unit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"


class _Axis:
    """Values to places of the drawing, with some room around what varies."""

    def __init__(self, span: tuple[float, float], start: float, end: float, logarithmic: bool = False) -> None:
        low, high = (math.log10(span[0]), math.log10(span[1])) if logarithmic else span
        if not math.isfinite(high - low) or high - low <= 1e-12 * max(abs(low), abs(high)):  # constant
            around = abs(low) / 10 or 1.0
            low, high = low - around, high + around
        self.low, self.high, self.start, self.end, self.logarithmic = low, high, start, end, logarithmic

    def __call__(self, values: Numbers) -> Numbers:
        if self.logarithmic:
            values = np.log10(np.where(values > 0, values, np.nan))
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return ticks(self.low, self.high)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        factors = (1,) if self.high - self.low > 2 else (1, 3)
        every = math.ceil(len(powers) / 6)
        marks = [factor * 10.0**power for power in powers[::every] for factor in factors]
        return [mark for mark in marks if self.low <= math.log10(mark) <= self.high]


def _span(arrays: Iterable[Numbers]) -> tuple[float, float]:
    """From 0, where training began, to the last point of all."""
    return 0.0, max(float(array[-1]) for array in arrays)


def _scales(x: _Axis, y: _Axis, unit: str) -> str:
    parts = []
    for value in y.ticks():
        place = float(y(np.array(value)))
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{place + 3.5:.1f}" text-anchor="end">{human(value)}</text>')
    marks = ticks(x.low, x.high, 4)  # few enough that the last, with its unit, touches no other
    for value in marks:
        place = float(x(np.array(value)))
        last = value == marks[-1]
        text = f"{human(value)} {unit}" if last else human(value)
        anchor = "end" if last and place > WIDTH - 40 else "middle"
        edge = WIDTH - RIGHT if anchor == "end" else place
        parts.append(f'<text x="{edge:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{text}</text>')
    return "".join(parts)


def _stroke(run: int) -> str:
    dash = ("", "6 4", "2 4", "9 3 2 3")[run // COLOURS % 4]
    return f'style="stroke: var(--run{run % COLOURS})"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _path(x: _Axis, y: _Axis, values_x: Numbers, values_y: Numbers) -> str:
    """Lines between neighbours that are finite; one that stands alone becomes a dot (the ends of lines are round)."""
    places_x, places_y = x(values_x), y(np.where(np.isfinite(values_y), values_y, np.nan))
    drawn: list[str] = []
    pen = "M"
    for across, down in zip(places_x.tolist(), places_y.tolist(), strict=True):
        if math.isnan(down):
            pen = "M"
            continue
        drawn.append(f"{pen}{across:.1f} {down:.1f}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(drawn)


def _told(curve: Curve, unit: str) -> str:
    finite = np.isfinite(curve.y)
    if not finite.any():
        return f"{curve.name}: no finite value"
    x, y = curve.x[finite], curve.y[finite]

    def at(place: Any) -> str:
        return f"{human(float(y[place]))} at {x[place]:,.0f} {unit}"

    return f"{curve.name}: last {at(-1)}; lowest {at(y.argmin())}; highest {at(y.argmax())}"
