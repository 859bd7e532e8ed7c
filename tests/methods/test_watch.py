"""What is told of a run that goes wrong, and that nothing is told of one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from translate.methods.watch import HALF_LIFE, INVERTED, PATIENCE, STALLED, StallWatch, flat, kept_light

torch.set_num_threads(1)

CYCLE, FLAT, LIGHT = "generators/cycle_A", "flat picture/A", "light kept/AtoB"
YARDSTICKS = {CYCLE: FLAT}


def pictures(count: int = 3, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, 8, 10, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- the two numbers -------------------------------------------------------------------------------------------------


def test_kept_light_is_the_mean_correlation_of_brightness() -> None:
    before, after = pictures(4), pictures(4, channels=1, seed=1) + 0.5 * pictures(4).mean(dim=1, keepdim=True)
    wanted = np.mean(
        [np.corrcoef(a.mean(0).flatten(), b.mean(0).flatten())[0, 1] for a, b in zip(before, after, strict=True)]
    )
    assert kept_light(before, after).item() == pytest.approx(wanted, abs=1e-5)


def test_what_is_brighter_or_paler_is_kept_and_what_is_inverted_is_not() -> None:
    before = pictures()
    assert kept_light(before, before).item() == pytest.approx(1, abs=1e-5)
    assert kept_light(before, 0.3 * before + 0.5).item() == pytest.approx(1, abs=1e-5)
    assert kept_light(before, -before).item() == pytest.approx(-1, abs=1e-5)
    half = torch.cat([before[:1], -before[1:2]])
    assert kept_light(before[:2], half).item() == pytest.approx(0, abs=1e-5)  # the mean of the two


@pytest.mark.parametrize("value", [-1.0, 0.3, 1 / 3])
def test_images_of_one_brightness_keep_nothing_and_stay_numbers(value: float) -> None:
    """Rounding must not correlate: the mean of 80 equal float32 is not always that number."""
    even = torch.full((3, 3, 8, 10), value)
    for pair in ((even, even), (even, pictures()), (pictures(), even), (even, even + 0.1)):
        assert kept_light(*pair).item() == pytest.approx(0, abs=1e-6)
    faint = even + 1e-4 * pictures()  # far below a grey level
    assert abs(kept_light(faint, -faint).item()) < 1e-3


def test_kept_light_is_float32_and_has_no_graph() -> None:
    before = pictures().requires_grad_()
    found = kept_light(before.bfloat16(), before.bfloat16())
    assert found.dtype == torch.float32 and not found.requires_grad and found.ndim == 0


def test_no_flat_picture_is_nearer_than_the_flat_one() -> None:
    images = pictures(2)
    found = flat(images)
    assert found.shape == images.shape and torch.equal(found, found[..., :1, :1].expand_as(found))
    error = (images - found).abs().mean(dim=(2, 3))
    for value in torch.linspace(-1, 1, 201):
        assert ((images - value).abs().mean(dim=(2, 3)) >= error - 1e-6).all()


def test_black_drawings_on_white_are_nearest_to_white() -> None:
    drawing = torch.ones(1, 3, 8, 10)
    drawing[..., 2:4, :] = -1
    assert torch.equal(flat(drawing), torch.ones_like(drawing))


# ---- the rule --------------------------------------------------------------------------------------------------------


def rows_of(watch: StallWatch, rows: Iterator[dict[str, float]], every: int = 50) -> list[tuple[int, str]]:
    """All that is said, with the step at which it is."""
    said, step = [], 0
    for row in rows:
        for _ in range(every):
            watch.advance()
        step += every
        said += [(step, line) for line in watch(row)]
    return said


def constant(count: int, **values: float) -> Iterator[dict[str, float]]:
    names = {"cycle": CYCLE, "flat": FLAT, "light": LIGHT}
    return iter([{names[name]: value for name, value in values.items()}] * count)


@pytest.mark.parametrize("every", [1, 7, 50, 400])
def test_a_term_that_is_no_better_than_a_flat_picture_is_told_once(every: int) -> None:
    said = rows_of(StallWatch(YARDSTICKS), constant(3000 // every, cycle=0.39, flat=0.4), every)
    ((step, line),) = said
    assert PATIENCE <= step < PATIENCE + every  # as soon as it may be, whatever the rows' distance
    assert line.startswith("cycle_A has learnt next to nothing (0.390; flat picture/A: 0.400): look at the previews; ")
    assert "\n" not in line


@pytest.mark.parametrize("every", [1, 50, 400])
def test_inverted_light_is_told_once(every: int) -> None:
    ((step, line),) = rows_of(StallWatch({}), constant(3000 // every, light=-0.6), every)
    assert PATIENCE <= step < PATIENCE + every
    assert line.startswith("AtoB turns light into dark (correlation of brightness -0.60): ") and "\n" not in line


def healthy(count: int, every: int = 50) -> Iterator[dict[str, float]]:
    """A run as it should be: the cycle falls from worse than flat to a third of it, and wavers there by a half."""
    chance = np.random.default_rng(0)
    for row in range(count):
        learnt = 1 - 2.0 ** (-row * every / 300)
        level = 0.4 * (1.5 - 1.2 * learnt)
        noise = chance.uniform(0.5, 1.5, size=2)
        yield {CYCLE: level * noise[0], FLAT: 0.4 * noise[1], LIGHT: learnt * 0.5 + chance.normal(0, 0.2)}


@pytest.mark.parametrize("every", [1, 50, 400])
def test_of_a_healthy_run_nothing_is_told(every: int) -> None:
    """Its first rows are bad, each row of batch 1 is noise, and for most of its length nothing falls any more."""
    assert rows_of(StallWatch({**YARDSTICKS}), healthy(20_000 // every, every), every) == []


def test_a_run_that_goes_wrong_late_is_told_too() -> None:
    """The generators fall back to flat pictures: told within three half-lives."""
    watch = StallWatch(YARDSTICKS)
    assert rows_of(watch, healthy(200)) == []
    ((step, _),) = rows_of(watch, constant(40, cycle=0.42, flat=0.4))
    assert step <= 4 * HALF_LIFE


def test_domains_without_common_light_are_not_inverted() -> None:
    """Chance correlations round 0, of single images: +-0.3."""
    chance = np.random.default_rng(0)
    rows = iter([{LIGHT: chance.normal(0, 0.3)} for _ in range(20_000)])
    assert rows_of(StallWatch({}), rows, every=1) == []


def test_thresholds() -> None:
    for value, told in ((INVERTED - 0.01, True), (INVERTED + 0.01, False)):
        assert bool(rows_of(StallWatch({}), constant(40, light=value))) == told
    for share, told in ((STALLED + 0.01, True), (STALLED - 0.01, False)):
        assert bool(rows_of(StallWatch(YARDSTICKS), constant(40, cycle=share, flat=1.0))) == told


@pytest.mark.parametrize(("first", "cycle", "told"), [(0.8, 0.4, True), (0.2, 0.3, False)])
def test_one_odd_row_of_the_yardstick_is_forgotten(first: float, cycle: float, told: bool) -> None:
    rows = [{CYCLE: cycle, FLAT: first}] + [{CYCLE: cycle, FLAT: 0.4}] * 60
    assert bool(rows_of(StallWatch(YARDSTICKS), iter(rows))) == told


def test_flat_images_are_no_yardstick() -> None:
    assert rows_of(StallWatch(YARDSTICKS), constant(40, cycle=0.01, flat=0.0)) == []


def test_a_term_that_comes_late_has_its_own_patience() -> None:
    """A stage without the term first (weight 0): neither its absence counts, nor the steps before."""
    watch = StallWatch(YARDSTICKS)
    assert rows_of(watch, constant(60, light=0.5)) == []
    ((step, _),) = rows_of(watch, constant(40, cycle=0.4, flat=0.4))
    assert step == PATIENCE


def test_rows_without_the_term_or_its_yardstick_are_passed_over() -> None:
    watch = StallWatch(YARDSTICKS)
    rows: list[dict[str, float]] = [{CYCLE: 0.4}, {FLAT: 0.4}, {}, {"generators/adversarial_A": 9.0}]
    assert rows_of(watch, iter(rows * 30)) == [] and watch.averages == {}


def test_each_term_and_direction_is_told_by_itself() -> None:
    watch = StallWatch({**YARDSTICKS, "generators/identity_B": "flat picture/B"})
    row = {
        CYCLE: 0.1,
        FLAT: 0.4,
        "generators/identity_B": 0.4,
        "flat picture/B": 0.4,
        LIGHT: 0.5,
        "light kept/BtoA": -1.0,
    }
    lines = [line for _, line in rows_of(watch, iter([row] * 40))]
    assert len(lines) == 2
    assert lines[0].startswith("BtoA turns light") and lines[1].startswith("identity_B has learnt next to nothing")


def test_it_goes_on_where_its_state_was_saved(tmp_path: Any) -> None:
    """At any row, and between two rows."""
    whole = StallWatch(YARDSTICKS)
    rows = [{CYCLE: 0.3 + 0.01 * n, FLAT: 0.4, LIGHT: -0.01 * n} for n in range(60)]
    wanted = rows_of(whole, iter(rows))
    assert len(wanted) == 2
    for cut in (1, 19, 45, 59):
        first, second = StallWatch(YARDSTICKS), StallWatch(YARDSTICKS)
        said = rows_of(first, iter(rows[:cut]))
        for _ in range(20):
            first.advance()
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for _ in range(30):
            second.advance()
        said += [(50 * (cut + 1), line) for line in second(rows[cut])]
        said += [(step + 50 * (cut + 1), line) for step, line in rows_of(second, iter(rows[cut + 1 :]))]
        assert said == wanted
        assert second.get_extra_state() == whole.get_extra_state()
        assert list(second.averages) == list(whole.averages)


def test_the_state_is_a_copy() -> None:
    watch = StallWatch(YARDSTICKS)
    state = watch.get_extra_state()
    rows_of(watch, constant(40, cycle=0.4, flat=0.4))
    assert state == {"steps": 0, "averages": {}, "told": []}
