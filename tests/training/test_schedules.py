"""Schedules at their corner points."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from translate.training.schedules import ScheduleSettings

BATCH, EPOCH, TOTAL = 4, 100, 1000
_ADAPTER: TypeAdapter[Any] = TypeAdapter(ScheduleSettings)


def factor(images: int, total: int = TOTAL, **settings: Any) -> float:
    schedule = _ADAPTER.validate_python(settings)
    return float(schedule.factor(images, total=total, batch=BATCH, epoch=EPOCH))


def test_constant() -> None:
    assert [factor(images, kind="constant") for images in (0, 500, 996)] == [1, 1, 1]


@pytest.mark.parametrize("hold", ["400 images", "100 steps", "4 epochs"])
def test_linear_holds_then_falls_to_its_end(hold: str) -> None:
    points = {0: 1.0, 396: 1.0, 400: 1.0, 700: 0.6, 1000: 0.2}
    for images, expected in points.items():
        assert factor(images, kind="linear", hold=hold, end=0.2) == pytest.approx(expected)
    assert factor(500, kind="linear") == pytest.approx(0.5)
    assert factor(996, kind="linear") == pytest.approx(0.004)  # the last step still moves


def test_linear_is_the_reference_s_rule_but_for_its_stairs() -> None:
    """lr(e) = 1 - max(0, e + 1 - 100) / 101 once an epoch (CycleGAN and pix2pix in PyTorch), ours at each step."""
    epoch, total = 400, 200 * 400
    schedule = _ADAPTER.validate_python({"kind": "linear", "hold": "100 epochs"})
    for number in range(200):
        stair = 1 - max(0, number + 1 - 100) / 101
        ours = schedule.factor(number * epoch + epoch // 2, total=total, batch=1, epoch=epoch)
        assert ours == pytest.approx(stair, abs=0.01)


def test_a_hold_as_long_as_the_stage_never_falls() -> None:
    assert factor(996, kind="linear", hold="1000 images") == 1
    assert factor(996, kind="linear", hold="2000 images") == 1


def test_cosine_is_torch_s() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=TOTAL // BATCH, eta_min=0.1)
    for images in range(0, TOTAL, BATCH):
        assert factor(images, kind="cosine", end=0.1) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-6)
        optimiser.step()
        theirs.step()
    assert factor(TOTAL, kind="cosine", end=0.1) == pytest.approx(0.1)


def test_step_multiplies_once_every_span() -> None:
    found = [factor(images, kind="step", every="3 epochs", gamma=0.5) for images in (0, 296, 300, 599, 600, 900)]
    assert found == [1, 1, 0.5, 0.5, 0.25, 0.125]


def test_warmup_rises_in_a_line_and_multiplies_the_shape() -> None:
    rises = [factor(4 * step, kind="constant", warmup="10 steps") for step in range(12)]
    assert rises == pytest.approx([min(1.0, (step + 1) / 10) for step in range(12)])
    both = factor(196, kind="cosine", warmup="400 images")
    assert both == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.196)))


@pytest.mark.parametrize("start", ["400 images", "100 steps", "4 epochs", 0.4])
def test_a_delay_is_nothing_and_then_all(start: str | float) -> None:
    assert [factor(images, kind="delayed", start=start) for images in (0, 396, 400, 404, 996)] == [0, 0, 1, 1, 1]
    rises = [factor(images, kind="delayed", start=start, ramp="40 images") for images in range(396, 448, 4)]
    assert rises == pytest.approx([0, *(min(1.0, step / 10) for step in range(1, 13))])


def test_a_delay_s_share_is_of_the_stage() -> None:
    found = [factor(images, total=100, kind="delayed", start=0.25) for images in (0, 24, 28)]
    assert found == [0, 0, 1]
    assert factor(96, total=100, kind="delayed", start="2 epochs") == 0  # a length may end beyond the stage: never


def test_a_delay_is_read_and_written() -> None:
    for start in ("100 steps", 0.4):
        schedule = _ADAPTER.validate_python({"kind": "delayed", "start": start, "ramp": "2 epochs"})
        written = _ADAPTER.dump_python(schedule, mode="json")
        assert written["start"] == start
        assert _ADAPTER.validate_python(written) == schedule
    for wrong in (0.0, 1.0, -0.5, "soon"):
        with pytest.raises(ValidationError):
            _ADAPTER.validate_python({"kind": "delayed", "start": wrong})
