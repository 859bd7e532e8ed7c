"""The two kinds of network of a generative game: what makes images out of latents, and what judges them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

Shape = tuple[int, ...]
"""What one sample is: (C, H, W) of an image in [-1, 1], or (D,) of a point."""


class LatentGenerator(nn.Module, ABC):
    """Turns latents (N, latent) into samples (N, *shape): images in [-1, 1], or points."""

    latent: int
    """Width of the latent, whatever was concatenated to it (classes, codes) counted."""
    shape: Shape
    classes: int | None = None
    """Number of classes of a generator whose norm layers are conditional; None: it takes no label."""

    @abstractmethod
    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """(N, latent), and (N,) class numbers where `classes` is set -> (N, *shape)."""


class Judgement(NamedTuple):
    """What a critic says of N samples."""

    logits: Tensor
    """(N, 1): raw, higher is more real; of an autoencoder its energy, lower is more real."""
    features: Tensor
    """(N, F): what the logits are read off; feature matching, classifiers and InfoGAN's codes use them."""
    information: Tensor | None = None
    """(N,) nats that pass a variational bottleneck; None without one."""


class Critic(nn.Module, ABC):
    """Judges samples (N, *shape)."""

    width: int
    """F, the width of the features."""
    classes: int | None = None
    """Number of classes of a projection critic; None: it takes no label."""

    @abstractmethod
    def judge(self, x: Tensor, label: Tensor | None = None) -> Judgement:
        """(N, *shape), and (N,) class numbers where `classes` is set."""

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.judge(x, label).logits
