"""One tensor out of a file of weights, or one line that says what the file has instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from translate.errors import UserError


def expect(held: Mapping[str, Tensor], name: str, shape: tuple[int, ...], path: Path, what: str) -> Tensor:
    """The tensor of this name, float32 on the CPU; UserError where it is absent or of another shape.

    `path` and `what` (`LPIPS weights of VGG16`) are for the error.
    """
    tensor = held.get(name)
    if tensor is None or tensor.shape != shape:
        found = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
        raise UserError(f"{path}: expected {what} with '{name}' of shape {shape}, but this file has {found}")
    return tensor.detach().float().cpu().contiguous()
