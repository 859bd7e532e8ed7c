"""Signs that a translation without pairs goes wrong, told while it can still be stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 10
"""Log rows whose mean is compared: one row's is noisy."""
STALLED = 0.9
"""A term that keeps more than this share of what it began with has not been learnt."""
INVERTED = -0.3
"""Below this correlation of brightness, light has become dark: a chance correlation of two images is round 0."""


@torch.no_grad()
def kept_light(before: Tensor, after: Tensor) -> Tensor:
    """Pearson's correlation of the brightness of images and their translations, pixel by pixel: (N, C, H, W) and
    (N, C', H, W) -> float32 scalar in [-1, 1], the batch's mean; 0 for an image of one brightness."""
    light = [x.float().mean(dim=1).flatten(1) for x in (before, after)]  # (N, H * W)
    centred = [x - x.mean(dim=1, keepdim=True) for x in light]
    return torch.nn.functional.cosine_similarity(*centred, dim=1).mean()


class StallWatch(nn.Module):
    """Compares what terms are now with what they were at first. It remembers through checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, list[float]] = {}
        self.told: list[str] = []

    def forward(self, values: Mapping[str, float]) -> list[str]:
        """The warnings after one more log row, each given once.

        Args:
            values: means since the row before: of terms such as `generators/cycle_A`, and of `light kept/AtoB`.
        """
        warnings: list[str] = []
        for name, value in values.items():
            group, _, term = name.partition("/")
            of_light, watched = group == "light kept", term.startswith(("cycle_", "identity_"))
            if not (of_light or watched) or name in self.told:
                continue
            first, last = self.first.setdefault(name, []), self.last.setdefault(name, [])
            if len(first) < ROWS:
                first.append(value)
                continue
            last.append(value)
            del last[:-ROWS]
            if len(last) < ROWS:
                continue
            before, now = sum(first) / ROWS, sum(last) / ROWS
            if of_light and now < INVERTED:
                warnings.append(
                    f"{term} turns light into dark (correlation of brightness {now:.2f}): if contrast or colours are "
                    "inverted in the previews, begin anew with a larger identity_weight or another seed"
                )
            elif watched and now > STALLED * before:
                warnings.append(
                    f"{term} does not fall ({before:.3f} in the first rows, {now:.3f} now): look at the previews; a "
                    "lower learning rate or a lower adversarial_weight may help"
                )
            else:
                continue
            self.told.append(name)
        return warnings

    def get_extra_state(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last, "told": self.told}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.first, self.last, self.told = state["first"], state["last"], state["told"]
