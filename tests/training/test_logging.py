"""Means of scalars, rows, grids, and a disk that is full."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from translate.errors import UserError
from translate.training.logging import Means, RunLog, memory_in_use


def test_means_are_those_since_the_last_take_without_what_is_no_number() -> None:
    means = Means()
    for a, b in [(1.0, 5.0), (2.0, float("nan")), (6.0, float("inf"))]:
        means.add({"a": torch.tensor(a), "b": torch.tensor(b, dtype=torch.float64)})
    means.add({"a": torch.tensor(7.0)})  # another turn: other names
    means.add({})
    assert means.take() == {"a": 4.0, "b": 5.0}
    assert means.take() == {}
    means.add({"a": torch.tensor(float("nan"))})
    assert means.take() == {}


def test_means_read_back_go_on_to_the_last_bit() -> None:
    one, two = Means(), Means()
    for value in (0.1, 0.2, 0.3):
        one.add({"x/y": torch.tensor(value), "D(real)": torch.tensor(1 / value)})
    two.load_state_dict(one.state_dict(), torch.device("cpu"))
    for means in (one, two):
        means.add({"x/y": torch.tensor(0.7), "D(real)": torch.tensor(0.9)})
    assert one.take() == two.take()


def test_a_state_once_taken_does_not_change_with_the_means() -> None:
    means = Means()
    means.add({"a": torch.tensor(1.0)})
    state = {key: value.clone() for key, value in means.state_dict().items()}
    held = means.state_dict()
    means.add({"a": torch.tensor(1.0)})
    assert all(torch.equal(held[key], state[key]) for key in state)


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path, step=0, rows_size=0)
    log.row(1, 2, {"loss": 0.5}, {"epoch": 0.1})
    size = log.rows_size
    log.row(2, 4, {"loss": 0.25}, {"epoch": 0.2})
    log.close()
    log = RunLog(tmp_path, step=1, rows_size=size)
    log.row(2, 4, {"loss": 0.125}, {"epoch": 0.2})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 1, "images": 2, "epoch": 0.1, "loss": 0.5},
        {"step": 2, "images": 4, "epoch": 0.2, "loss": 0.125},
    ]
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 0.5), (2, 0.125)]


def test_a_grid_has_a_row_an_example_and_a_column_a_name(tmp_path: Path) -> None:
    log = RunLog(tmp_path, step=0, rows_size=0)
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.5])
    first = levels[:2].reshape(2, 1, 1, 1).expand(2, 3, 8, 8)
    second = levels[2:].reshape(2, 1, 1, 1).expand(2, 3, 4, 4)  # smaller: shown at the size of the largest
    path = log.grid(3, {"input": first, "output": second})
    log.close()
    picture = cv2.imread(str(path))
    assert path.name == "step-000000003.png" and picture.shape == (2 * 8 + 3 * 2, 2 * 8 + 3 * 2, 3)
    shown = [[int(picture[2 + 10 * row + 4, 2 + 10 * column + 4, 0]) for column in range(2)] for row in range(2)]
    assert np.abs(np.array(shown) - [[0, 128], [64, 191]]).max() <= 1


@pytest.mark.parametrize("what", ["row", "grid"])
def test_a_full_disk_is_told_in_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path, step=0, rows_size=0)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr("torchvision.utils.save_image", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\).*--resume") as raised:
        log.row(1, 2, {}, {}) if what == "row" else log.grid(1, {"a": torch.zeros(1, 3, 4, 4)})
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    log.close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        RunLog(tmp_path, step=0, rows_size=0)


def test_memory_is_that_of_this_process() -> None:
    assert 0.05 < memory_in_use(torch.device("cpu")) < 100  # GiB: torch alone takes some hundred MiB
