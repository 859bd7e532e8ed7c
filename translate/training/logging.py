"""Where a run's numbers and pictures go: metrics.jsonl (equal for equal runs), TensorBoard (also times), samples/."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from translate import distributed
from translate.errors import UserError
from translate.settings import Settings, SpanField, parse_span


class LoggingSettings(Settings):
    """How often a run speaks."""

    every: SpanField = parse_span("50 steps")
    """A row of metrics.jsonl and TensorBoard scalars: means since the last row."""
    previews: SpanField = parse_span("1 epochs")
    """A grid of fixed validation images, to TensorBoard and samples/."""
    preview_images: int = Field(default=4, ge=1, le=256)


class Means:
    """Means of named scalars since the last `take`, kept on the device so that adding never waits for it.

    Values that are not finite are left out; their steps are counted by the trainer.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor]) -> None:
        if not values:
            return
        names = tuple(values)
        stacked = torch.stack([value.detach().float() for value in values.values()])
        finite = stacked.isfinite()
        row = torch.stack([torch.where(finite, stacked, 0.0), finite.float()])  # (2, names): sums and counts
        if names in self._sums:
            self._sums[names] += row
        else:
            self._sums[names] = row

    def average(self) -> None:
        """Make the sums those of all processes (all must call): sums and counts alike, so their quotients are."""
        distributed.average(list(self._sums.values()))

    def take(self) -> dict[str, float]:
        """The means of all processes (all must call), and begin anew."""
        self.average()
        totals: dict[str, list[float]] = {}
        for names, row in self._sums.items():
            for name, total, count in zip(names, *row.tolist(), strict=True):
                before = totals.setdefault(name, [0.0, 0.0])
                before[0] += total
                before[1] += count
        self._sums = {}
        return {name: total / count for name, (total, count) in totals.items() if count}

    def state_dict(self) -> dict[str, Any]:
        return {"|".join(names): row.cpu().clone() for names, row in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        self._sums = {tuple(joined.split("|")): row.to(device) for joined, row in state.items()}


class RunLog:
    """Writes rows, scalars and grids of one run. A process that does not lead uses none."""

    def __init__(self, run_folder: Path, *, step: int, rows_size: int) -> None:
        """Continue at `step`: rows beyond `rows_size` bytes of metrics.jsonl belong to steps that are done again."""
        self.file = run_folder / "metrics.jsonl"
        self.samples = run_folder / "samples"
        from torch.utils.tensorboard import SummaryWriter  # here: configs import this file, conversion needs no board

        try:
            self.samples.mkdir(exist_ok=True)
            with self.file.open("ab") as stream:
                # A file that lost its end in a power cut must not be lengthened with zero bytes.
                stream.truncate(min(rows_size, stream.tell()))
            # Closed and opened at each row: rows are few, and a killed run leaves whole lines behind.
            self.board = SummaryWriter(str(run_folder), purge_step=step + 1)
        except OSError as error:
            raise _cannot_write(run_folder, error) from error

    @property
    def rows_size(self) -> int:
        return self.file.stat().st_size

    def row(self, step: int, images: int, values: Mapping[str, float], head: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the same numbers as TensorBoard scalars."""
        content = {"step": step, "images": images, **head, **values}
        with _writing(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(content) + "\n")
        self.scalars(step, values)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """TensorBoard alone: what differs between two equal runs (times, memory)."""
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        """TensorBoard alone."""
        for name, tensor in values.items():
            self.board.add_histogram(name, tensor, step)

    def text(self, name: str, text: str, step: int) -> None:
        self.board.add_text(name, text, step)

    def grid(self, step: int, images: Mapping[str, Tensor]) -> Path:
        """Named images (N, 3, H, W) in [-1, 1] as one picture: a row an example, a column a name. Images of one name
        alone (samples) stand in a square."""
        from torchvision.utils import make_grid, save_image

        columns = list(images.values())
        height, width = max(c.shape[2] for c in columns), max(c.shape[3] for c in columns)
        columns = [
            torch.nn.functional.interpolate(c, size=(height, width), mode="nearest")
            if c.shape[2:] != (height, width)
            else c
            for c in columns
        ]
        rows = torch.stack(columns, dim=1).flatten(0, 1)  # (N * names, 3, H, W)
        across = len(columns) if len(columns) > 1 else math.ceil(math.sqrt(len(rows)))
        picture = make_grid(rows.float().cpu().clamp(-1, 1) * 0.5 + 0.5, nrow=across, padding=2, pad_value=1.0)
        self.board.add_image(" | ".join(images), picture, step)
        path = self.samples / f"step-{step:09d}.png"
        with _writing(path):
            save_image(picture, path)
        return path

    def flush(self) -> None:
        self.board.flush()

    def close(self) -> None:
        self.board.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"{path}: cannot be written ({reason}); mend that, then 'translate train --resume' goes on")


def memory_in_use(device: torch.device) -> float:
    """The peak so far in GiB: of the CUDA allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return 0.0
    import resource  # Unix alone has it

    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
