"""Generators, discriminators and critics, each beside its settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from translate.networks.autoencoder import AutoencoderSettings, DecoderSettings
from translate.networks.dcgan import DCGANCriticSettings, DCGANGeneratorSettings
from translate.networks.latent import Critic, Judgement, LatentGenerator, Shape
from translate.networks.layers import Discriminator, Generator, InitialisationSettings
from translate.networks.mlp import MLPCriticSettings, MLPGeneratorSettings
from translate.networks.msrresnet import MSRResNet, MSRResNetSettings
from translate.networks.patch import PatchDiscriminator, PatchSettings, PixelDiscriminator, PixelSettings
from translate.networks.r3gan import R3GANCriticSettings, R3GANGeneratorSettings
from translate.networks.residual import ResidualCriticSettings, ResidualGeneratorSettings
from translate.networks.resnet import ResNet, ResNetSettings
from translate.networks.rrdb import RRDBNet, RRDBSettings
from translate.networks.srgan_discriminator import SRGANDiscriminator, SRGANDiscriminatorSettings
from translate.networks.srresnet import SRResNet, SRResNetSettings
from translate.networks.stylegan2_discriminator import StyleGAN2Discriminator, StyleGAN2DiscriminatorSettings
from translate.networks.unet import UNet, UNetSettings
from translate.networks.unet_discriminator import UNetDiscriminator, UNetDiscriminatorSettings
from translate.networks.vit_tokenizer import TransformerTokenizerSettings
from translate.networks.vqgan import ConvolutionalTokenizerSettings, TokenizerDecoder, TokenizerEncoder

GeneratorSettings = Annotated[UNetSettings | ResNetSettings, Field(discriminator="kind")]
"""Images to images."""
UpscalerSettings = Annotated[SRResNetSettings | MSRResNetSettings | RRDBSettings, Field(discriminator="kind")]
"""Images to larger images."""
DiscriminatorSettings = Annotated[
    PatchSettings
    | PixelSettings
    | SRGANDiscriminatorSettings
    | StyleGAN2DiscriminatorSettings
    | UNetDiscriminatorSettings,
    Field(discriminator="kind"),
]
"""Images to a logit for each patch, pixel or image."""
TokenizerNetworkSettings = Annotated[
    ConvolutionalTokenizerSettings | TransformerTokenizerSettings, Field(discriminator="kind")
]
"""Images to latents, and latents to images."""
LatentGeneratorSettings = Annotated[
    MLPGeneratorSettings
    | DCGANGeneratorSettings
    | ResidualGeneratorSettings
    | R3GANGeneratorSettings
    | DecoderSettings,
    Field(discriminator="kind"),
]
"""Latents to samples."""
CriticSettings = Annotated[
    MLPCriticSettings | DCGANCriticSettings | ResidualCriticSettings | R3GANCriticSettings | AutoencoderSettings,
    Field(discriminator="kind"),
]
"""Samples to a logit each."""

__all__ = [
    "ConvolutionalTokenizerSettings",
    "Critic",
    "CriticSettings",
    "Discriminator",
    "DiscriminatorSettings",
    "Generator",
    "GeneratorSettings",
    "InitialisationSettings",
    "Judgement",
    "LatentGenerator",
    "LatentGeneratorSettings",
    "MSRResNet",
    "MSRResNetSettings",
    "PatchDiscriminator",
    "PatchSettings",
    "PixelDiscriminator",
    "PixelSettings",
    "RRDBNet",
    "RRDBSettings",
    "ResNet",
    "ResNetSettings",
    "SRGANDiscriminator",
    "SRGANDiscriminatorSettings",
    "SRResNet",
    "SRResNetSettings",
    "Shape",
    "StyleGAN2Discriminator",
    "StyleGAN2DiscriminatorSettings",
    "TokenizerDecoder",
    "TokenizerEncoder",
    "TokenizerNetworkSettings",
    "TransformerTokenizerSettings",
    "UNet",
    "UNetDiscriminator",
    "UNetDiscriminatorSettings",
    "UNetSettings",
    "UpscalerSettings",
    "count_parameters",
]


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())
