from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from translate.data.images import write_image
from translate.data.spec import ImageSpec
from translate.inference.translator import Translator
from translate.networks.unet import UNetSettings

torch.set_num_threads(1)


class Negative(nn.Module):
    """-x: what comes out is known to the last level."""

    def __init__(self, multiple: int = 8, smallest: int = 16) -> None:
        super().__init__()
        self.multiple, self.smallest, self.scale = multiple, smallest, 1

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] % self.multiple == 0 and x.shape[3] % self.multiple == 0
        assert min(x.shape[2:]) >= self.smallest
        return -x


@pytest.fixture
def negative() -> Translator:
    return Translator(Negative(), ImageSpec(), ImageSpec(), device="cpu", precision="fp32")


def unet(depth: int = 3, **kwargs: object) -> Translator:
    torch.manual_seed(3)
    network = UNetSettings(depth=depth, width=4).build(3, 3)
    for module in network.modules():  # statistics and weights as training leaves them: the output spans the range
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.005, 0.05)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight)
    return Translator(network, ImageSpec(), ImageSpec(), device="cpu", **kwargs)


@pytest.fixture
def make_unet() -> Callable[..., Translator]:
    return unet


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    def make(height: int = 32, width: int = 40, channels: int = 3, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
        top = np.iinfo(dtype).max
        return np.random.default_rng(seed).integers(0, top + 1, (height, width, channels), dtype=dtype)

    return make


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    """IN with three sizes in a tree of three folders."""
    root = tmp_path / "in"
    for seed, name in enumerate(["a.png", "b.png", "deep/c.png", "deep/er/d.png", "e.png"]):
        write_image(root / name, picture(24 + 8 * (seed % 3), 40, seed=seed))
    return root
