"""Generators and discriminators, each beside its settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from translate.networks.layers import Discriminator, Generator, InitialisationSettings
from translate.networks.patch import PatchDiscriminator, PatchSettings, PixelDiscriminator, PixelSettings
from translate.networks.resnet import ResNet, ResNetSettings
from translate.networks.unet import UNet, UNetSettings

GeneratorSettings = Annotated[UNetSettings | ResNetSettings, Field(discriminator="kind")]
DiscriminatorSettings = Annotated[PatchSettings | PixelSettings, Field(discriminator="kind")]

__all__ = [
    "Discriminator",
    "DiscriminatorSettings",
    "Generator",
    "GeneratorSettings",
    "InitialisationSettings",
    "PatchDiscriminator",
    "PatchSettings",
    "PixelDiscriminator",
    "PixelSettings",
    "ResNet",
    "ResNetSettings",
    "UNet",
    "UNetSettings",
    "count_parameters",
]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())
