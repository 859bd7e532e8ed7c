"""What CycleGAN is for, at the smallest size: days become nights and nights days, of houses that it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import train

from translate import config as configs
from translate.data.synthetic import draw, make_unpaired
from translate.inference.translator import Translator

TRAINED_ON, TESTED_ON = 64, 16
BACK = {"AtoB": "BtoA", "BtoA": "AtoB"}
SMALL: dict[str, Any] = {
    "name": "day-night",
    "method": {
        "kind": "cyclegan",
        "generator": {"kind": "resnet", "blocks": 1, "width": 8, "upsampling": "resize"},
        "discriminator": {"kind": "patch", "layers": 2, "width": 8, "norm": "instance"},
    },
    "data": {
        "kind": "unpaired",
        "validation": None,
        "workers": 0,
        "cache": "memory",
        "augment": {"resize": None, "crop": 32, "flip": True},
    },
    "training": {"batch_size": 1, "precision": "fp32", "device": "cpu"},
    "checkpoints": {"every": "100000 steps"},
}
STAGE = {
    "length": "400 steps",
    "optimiser": {"kind": "Adam", "lr": 1e-3, "betas": [0.5, 0.999]},
    "schedule": {"kind": "linear", "hold": "200 steps"},
}

Pictures = NDArray[np.float32]
"""(N, H, W, 3), 0 to 255."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("day-night")
    make_unpaired(folder, count=TRAINED_ON, size=32, seed=0, validation=0, test=TESTED_ON)
    return folder


class Translated:
    """The test houses of one side, what a run makes of them, and back; `truth` is the same houses at the other time."""

    def __init__(self, run: Path, direction: str) -> None:
        # make_unpaired numbers A's houses first, then B's; the test split comes last of each.
        first = TRAINED_ON if direction == "AtoB" else TRAINED_ON + TESTED_ON + TRAINED_ON
        time: Literal["day", "night"] = "day" if direction == "AtoB" else "night"
        other: Literal["day", "night"] = "night" if direction == "AtoB" else "day"
        there = Translator.load(run, direction=direction, device="cpu")
        back = Translator.load(run, direction=BACK[direction], device="cpu")
        houses = range(first, first + TESTED_ON)
        inputs = [draw(house, size=32, time=time).picture for house in houses]
        outputs = [np.asarray(there(picture)) for picture in inputs]
        self.inputs, self.outputs = stacked(inputs), stacked(outputs)
        self.returned = stacked([np.asarray(back(picture)) for picture in outputs])
        self.truth = stacked([draw(house, size=32, time=other).picture for house in houses])

    @property
    def covered(self) -> float:
        """Share of the way from one side's mean brightness to the other's: 0 for an identity, 1 for arrival."""
        return float((self.outputs.mean() - self.inputs.mean()) / (self.truth.mean() - self.inputs.mean()))

    @property
    def light_kept(self) -> float:
        """Correlation of brightness before and after, pixel by pixel, the mean of all houses. Of the truth it is 0.1:
        the sky and the walls turn dark, and the windows, dark by day, shine."""
        pairs = zip(self.inputs.mean(axis=3), self.outputs.mean(axis=3), strict=True)
        return float(np.mean([np.corrcoef(before.ravel(), after.ravel())[0, 1] for before, after in pairs]))


def stacked(pictures: list[Any]) -> Pictures:
    return np.stack(pictures).astype(np.float32)


def distances(some: Pictures, others: Pictures) -> NDArray[np.float32]:
    """(N, M): L1 of each picture to each of the others, in grey levels."""
    return np.abs(some[:, None] - others[None]).mean(axis=(2, 3, 4))


def trained(root: Path, folder: Path, stage: dict[str, Any] = STAGE, **method: Any) -> dict[str, Translated]:
    raw = {
        **SMALL,
        "method": {**SMALL["method"], **method},
        "data": {**SMALL["data"], "root": str(root)},
        "training": {**SMALL["training"], "stages": [stage]},
    }
    outcome, run, _ = train(configs.validate(raw, "day-night"), folder)
    assert outcome.reason == "finished"
    return {direction: Translated(run.path, direction) for direction in BACK}


def arrived(translated: Translated) -> bool:
    """Whether a run translated: the brightness is the other side's, and it lies where the other side has it.

    Seeds 0 to 3 cover 0.93 to 0.97 of the way, both directions, and keep 0.09 to 0.21 of the light; 300 or 600 steps
    instead of 400 give 0.87 to 0.97 and 0.16 to 0.24. Brightness alone is no proof: instance norm forgets the input's,
    so the identity term alone teaches each generator its own side's (it covers 0.96 to 1.00), but leaves what was
    lighter lighter (it keeps 0.63 and more).
    """
    return 0.8 <= translated.covered <= 1.2 and translated.light_kept < 0.4


@pytest.mark.slow
def test_days_become_nights_and_nights_days(root: Path, tmp_path: Path) -> None:
    for direction, translated in trained(root, tmp_path).items():
        assert arrived(translated), (direction, translated.covered, translated.light_kept)
        # The way back leads to the house that it came from, of all test houses: 13 to 16 of 16 in the runs above, by
        # chance 1.
        ways_back = distances(translated.returned, translated.inputs)
        found = float((ways_back.argmin(axis=1) == np.arange(TESTED_ON)).mean())
        assert found >= 0.6, (direction, found)
        # Each picture is nearer to the same house at the other time, which no training saw, than to other houses: by
        # 7 to 20 % in the runs above. Were it one night for all of them, both distances would be equal.
        to_truth = distances(translated.outputs, translated.truth)
        own, all_houses = to_truth.diagonal().mean(), to_truth.mean()
        assert own < 0.97 * all_houses, (direction, own, all_houses)


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["the game", "training"])
def test_nothing_else_looks_like_that(lacking: str, root: Path, tmp_path: Path) -> None:
    """The measure above can fail: without the game, and for a network of the first step, which paints a middle grey."""
    if lacking == "the game":
        found = trained(root, tmp_path, adversarial_weight=0.0)
    else:
        found = trained(root, tmp_path, {**STAGE, "length": "1 steps", "schedule": {"kind": "constant"}})
    assert not any(arrived(translated) for translated in found.values())
