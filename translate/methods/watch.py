"""Signs that a translation without pairs goes wrong, told while it can still be stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

HALF_LIFE = 250
"""Steps after which an older value counts half: a batch of one image says little, a hundred say enough."""
PATIENCE = 1000
"""Steps of a value before anything is said of it: new networks lose everything and invert at random, and four
half-lives forget 94 % of that."""
STALLED = 0.95
"""A term above this share of what a flat picture costs has learnt little more than a colour. (CycleGAN of Monet at 128
pixels, which is slow at first, is at 0.87 after a thousand steps.)"""
INVERTED = -0.3
"""Below this correlation of brightness, light has become dark: that of images by chance is round 0."""
GREY_LEVEL = 2 / 255
"""Of 8 bits, in [-1, 1]: brightness that varies by less is one brightness."""


@torch.no_grad()
def kept_light(before: Tensor, after: Tensor) -> Tensor:
    """Pearson's correlation of the brightness of images and their translations, pixel by pixel: (N, C, H, W) and
    (N, C', H, W) -> float32 scalar in [-1, 1], the batch's mean; nearly 0 for an image of one brightness."""
    light = [x.float().mean(dim=1).flatten(1) for x in (before, after)]  # (N, H * W)
    centred = [x - x.mean(dim=1, keepdim=True) for x in light]
    deviations = [x.square().mean(dim=1).sqrt().clamp_min(GREY_LEVEL) for x in centred]  # (N,)
    return ((centred[0] * centred[1]).mean(dim=1) / (deviations[0] * deviations[1])).mean()


def flat(images: Tensor) -> Tensor:
    """The picture of one colour that is nearest to each image by L1, its median: (N, C, H, W) -> the same shape.

    Not its mean: on a white ground generators first learn to paint white, which must not look like learning.
    """
    return images.flatten(2).median(dim=2).values[..., None, None].expand_as(images)


class StallWatch(nn.Module):
    """Follows moving averages of logged values, over steps whatever the rows' distance. Checkpoints have its memory.

    Args:
        yardsticks: logged term -> logged value that it reaches by learning next to nothing, such as the error of a flat
            picture. Both are watched in rows that have both.
    """

    def __init__(self, yardsticks: Mapping[str, str]) -> None:
        super().__init__()
        self.yardsticks = dict(yardsticks)
        self.steps = 0
        """Since the last row."""
        self.averages: dict[str, tuple[int, float]] = {}
        """Name -> steps it was seen in, its average."""
        self.told: list[str] = []

    def advance(self) -> None:
        """Told of each step."""
        self.steps += 1

    def forward(self, values: Mapping[str, float]) -> list[str]:
        """What to say after one more log row, each warning once.

        Args:
            values: means since the row before: of terms, of their yardsticks, and of `light kept/<direction>`.
        """
        steps, self.steps = self.steps, 0
        share = 1 - 0.5 ** (steps / HALF_LIFE)
        lights = [name for name in values if name.startswith("light kept/")]
        terms = [term for term, yardstick in self.yardsticks.items() if term in values and yardstick in values]
        for name in dict.fromkeys([*lights, *terms, *(self.yardsticks[term] for term in terms)]):  # each once
            seen, average = self.averages.get(name, (0, values[name]))
            self.averages[name] = (seen + steps, average + share * (values[name] - average))

        warnings: dict[str, str] = {}
        for name in lights:
            seen, now = self.averages[name]
            if seen >= PATIENCE and now < INVERTED:
                direction = name.partition("/")[2]
                warnings[name] = (
                    f"{direction} turns light into dark (correlation of brightness {now:.2f}): if contrast is inverted "
                    "in the previews, begin anew with a larger identity_weight or another seed"
                )
        for term in terms:
            yardstick = self.yardsticks[term]
            (seen, now), (_, level) = self.averages[term], self.averages[yardstick]
            if seen >= PATIENCE and now > STALLED * level > 0:  # 0: all images are flat themselves
                warnings[term] = (
                    f"{term.partition('/')[2]} has learnt next to nothing ({now:.3f}; {yardstick}: {level:.3f}): look "
                    "at the previews; a lower learning rate or a lower adversarial_weight may help"
                )
        new = [name for name in warnings if name not in self.told]
        self.told += new
        return [warnings[name] for name in new]

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "averages": dict(self.averages), "told": list(self.told)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.averages, self.told = state["steps"], dict(state["averages"]), list(state["told"])
