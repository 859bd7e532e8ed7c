"""Past fakes, shown to the discriminator again so that it does not forget what the generator once did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class HistoryPool(nn.Module):
    """Keeps `size` past samples and swaps them for new ones (Shrivastava et al., arXiv 1612.07828, section 2.3).

    As CycleGAN uses it: until it is full the pool takes in what comes and returns it; then each new sample is
    returned as it is, or with probability 1/2 takes the place of a random old one, which is returned. What is kept is
    part of a checkpoint.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.kept: list[tuple[Tensor, ...]] = []

    @torch.no_grad()
    def forward(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Tensors that belong together by their rows (fakes, and their labels): (N, ...) each -> the same shapes."""
        # A step that is no number leaves no trace in the pool either.
        rows = list(zip(*(tensor.detach().nan_to_num() for tensor in new), strict=True))
        count = len(rows)
        # Drawn on the CPU: which rows are swapped must be known here, and this waits for no device.
        swaps = (torch.rand(count) < 0.5).tolist()
        places = torch.randint(self.size, (count,)).tolist()
        shown: list[tuple[Tensor, ...]] = []
        for row, swap, place in zip(rows, swaps, places, strict=True):
            if len(self.kept) < self.size:
                self.kept.append(tuple(value.clone() for value in row))
                shown.append(row)
            elif swap:
                shown.append(tuple(value.to(new[0].device) for value in self.kept[place]))
                self.kept[place] = tuple(value.clone() for value in row)
            else:
                shown.append(row)
        return tuple(torch.stack(column) for column in zip(*shown, strict=True))

    def get_extra_state(self) -> dict[str, Any]:
        """Stacked, on the CPU."""
        return {"kept": [torch.stack(column).cpu() for column in zip(*self.kept, strict=True)]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.kept = list(zip(*state["kept"], strict=True))
