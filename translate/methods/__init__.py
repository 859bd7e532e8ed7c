"""One file per method; each reads like its paper's algorithm box."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from translate.methods.base import Method, Turn
from translate.methods.bigan import BiGANSettings
from translate.methods.cut import CUTSettings
from translate.methods.cyclegan import CycleGANSettings
from translate.methods.gan import GANSettings
from translate.methods.generative import SamplingMethod
from translate.methods.imle import IMLESettings
from translate.methods.moment_matching import MomentMatchingSettings
from translate.methods.pix2pix import Pix2PixSettings
from translate.methods.srgan import SRGANSettings
from translate.methods.token_prior import TokenPriorSettings
from translate.methods.token_translation import TokenTranslationSettings
from translate.methods.vqgan import VQGANSettings

MethodSettings = Annotated[
    Pix2PixSettings
    | CycleGANSettings
    | CUTSettings
    | SRGANSettings
    | GANSettings
    | BiGANSettings
    | VQGANSettings
    | TokenPriorSettings
    | TokenTranslationSettings
    | MomentMatchingSettings
    | IMLESettings,
    Field(discriminator="kind"),
]

__all__ = ["Method", "MethodSettings", "SamplingMethod", "Turn"]
