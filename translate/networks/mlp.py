"""Fully connected generator and critic, of points and small images (Goodfellow et al., arXiv 1406.2661, section 5)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from translate.networks.conditional import Norm, VirtualBatch, VirtualBatchGenerator
from translate.networks.critics import CriticBaseSettings
from translate.networks.latent import LatentGenerator, Shape
from translate.networks.layers import InitialisationSettings, needs_bias
from translate.settings import Settings

ActivationName = Literal["relu", "leaky-relu", "tanh", "maxout"]
DenseNormName = Literal["batch", "layer", "virtual-batch", "none"]

PIECES = 5
"""Linear pieces of each maxout unit: the MNIST discriminator's of the authors' code."""


class MLPGeneratorSettings(Settings):
    """Fully connected layers from the latent to the sample: linear output for points, tanh for images."""

    kind: Literal["mlp"] = "mlp"
    hidden: list[int] = Field(default=[1200, 1200], min_length=1)
    """Width of each hidden layer (the paper's MNIST generator: twice 1200)."""
    activation: ActivationName = "relu"
    norm: DenseNormName = "none"
    initialisation: InitialisationSettings = InitialisationSettings(kind="uniform")

    def build(self, latent: int, shape: Shape, classes: int | None = None) -> LatentGenerator:
        """A new generator (N, latent) -> (N, *shape), weights drawn; with `classes` its batch norm is conditional.

        Raises UserError for classes without norm: batch.
        """
        generator = MLPGenerator(self, latent, shape, classes)
        return VirtualBatchGenerator(generator) if self.norm == "virtual-batch" else generator


class MLPCriticSettings(CriticBaseSettings):
    """Fully connected layers; their last hidden layer is the features."""

    kind: Literal["mlp"] = "mlp"
    hidden: list[int] = Field(default=[240, 240], min_length=1)
    """Width of each hidden layer (the paper's MNIST discriminator: twice 240, maxout)."""
    activation: ActivationName = "leaky-relu"
    norm: DenseNormName = "none"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Rate of the dropout after each hidden layer (the paper's MNIST discriminator: 0.5)."""
    initialisation: InitialisationSettings = InitialisationSettings(kind="uniform")

    def trunk(self, shape: Shape) -> tuple[nn.Module, int]:
        """(N, *shape) -> its last hidden layer (N, F), and F."""
        widths = [math.prod(shape), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, width in pairwise(widths):
            layers.append(Dense(before, width, self.activation, self.norm))
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
        trunk: nn.Module = nn.Sequential(*layers)
        if self.norm == "virtual-batch":
            trunk = VirtualBatch(trunk, shape)
        return trunk, widths[-1]


class Maxout(nn.Module):
    """Each unit is the largest of PIECES neighbours: (N, width * PIECES) -> (N, width).

    Source: Goodfellow et al., arXiv 1302.4389, section 3.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, PIECES).amax(2)


class Dense(nn.Module):
    """Linear, norm, activation: (N, before) -> (N, width)."""

    def __init__(
        self, before: int, width: int, activation: ActivationName, norm: DenseNormName, classes: int | None = None
    ) -> None:
        super().__init__()
        drawn = width * PIECES if activation == "maxout" else width
        self.linear = nn.Linear(before, drawn, bias=needs_bias(norm))
        self.norm = Norm(norm, drawn, classes)
        self.activation: nn.Module = {
            "relu": nn.ReLU(),
            "leaky-relu": nn.LeakyReLU(0.2),
            "tanh": nn.Tanh(),
            "maxout": Maxout(),
        }[activation]

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        activated: Tensor = self.activation(self.norm(self.linear(x), label))
        return activated


class MLPGenerator(LatentGenerator):
    """MNIST's of the paper (28x28, latent 100): 2.504 M parameters."""

    def __init__(self, settings: MLPGeneratorSettings, latent: int, shape: Shape, classes: int | None = None) -> None:
        super().__init__()
        self.latent, self.shape, self.classes = latent, shape, classes
        widths = [latent, *settings.hidden]
        self.hidden = nn.ModuleList(
            Dense(before, width, settings.activation, settings.norm, classes) for before, width in pairwise(widths)
        )
        self.last = nn.Linear(widths[-1], math.prod(shape))
        self.limit: nn.Module = nn.Tanh() if len(shape) == 3 else nn.Identity()
        settings.initialisation.apply(self)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        x = latent
        for layer in self.hidden:
            x = layer(x, label)
        sample: Tensor = self.limit(self.last(x))
        return sample.view(-1, *self.shape)
