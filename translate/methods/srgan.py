"""SRGAN: enlarging images, first by pixels, then by what looks real (Ledig et al. 2017, arXiv 1609.04802).

repeat for each batch of high resolution images I_HR:
    I_LR <- degrade(I_HR)                                                  (section 3.2: bicubic)
    I_SR <- G(I_LR)
    D: minimise L_D( D(I_HR), D(I_SR) )                                    (equation 2)
    G: minimise pixel | I_HR - I_SR |                                      (equation 4; all of SRResNet's stage)
              + content | VGG(I_HR) - VGG(I_SR) |^2                        (equation 5)
              + adversarial L_G( D(I_SR) )                                 (equations 3 and 6)
              + consistency | I_LR - bicubic(I_SR) |                       (ours: low frequencies and colours stay)

The stages of a config say which of these count when: pixels alone, then the discriminator alone, then all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from translate.data import DataSettings, SuperResolutionSettings
from translate.data.degradation import BicubicSettings
from translate.data.images import visible
from translate.data.matlab import imresize
from translate.data.super_resolution import HIGH, LOW
from translate.errors import UserError
from translate.losses.lpips import LPIPSSettings
from translate.losses.perceptual import PerceptualSettings
from translate.losses.reconstruction import ReconstructionSettings
from translate.losses.total_variation import total_variation
from translate.methods.adversary import Adversary, AdversarySettings, discriminator_losses
from translate.methods.base import Comparison, Method, Turn, check_sizes, run_padded
from translate.metrics.images import psnr
from translate.networks import Discriminator, DiscriminatorSettings, Generator, UpscalerSettings
from translate.networks.srgan_discriminator import SRGANDiscriminatorSettings
from translate.networks.srresnet import SRResNetSettings

DEEPEST_FALL = 5.0
"""dB of PSNR that an adversarial stage may lose before a person hears of it: twice the 2.65 dB that the paper's SRGAN
has less than its SRResNet on Set5 (table 2)."""


class SRGANSettings(AdversarySettings):
    """A generator that enlarges, and a discriminator that judges images of the high resolution."""

    kind: Literal["srgan"] = "srgan"
    generator: UpscalerSettings = SRResNetSettings()
    discriminator: DiscriminatorSettings | None = SRGANDiscriminatorSettings()
    """Null for a run by pixels alone."""
    discriminator_weight: float = Field(default=1.0, ge=0)
    adversarial_weight: float = Field(default=1e-3, ge=0)
    """Equation 3: 10^-3."""
    pixel: ReconstructionSettings = ReconstructionSettings(kind="l2", weight=1.0)
    content: PerceptualSettings | None = None
    """Distance of VGG features."""
    lpips: LPIPSSettings | None = None
    """Distance by LPIPS."""
    total_variation_weight: float = Field(default=0.0, ge=0)
    consistency_weight: float = Field(default=0.0, ge=0)
    """What the output becomes when it is made small again (bicubic) is to be the input: the mean absolute difference.
    Against shifts of colour and light, which an adversarial loss does not see."""

    @model_validator(mode="after")
    def _game_is_played(self) -> SRGANSettings:
        if self.discriminator is None:
            for name in ("penalties", "augmentations", "replay"):
                if getattr(self, name):
                    raise ValueError(f"'{name}' is for a discriminator, but 'discriminator' is null: leave it out")
        return self

    def build(self, data: DataSettings, *, inference: bool = False) -> SRGAN:
        """The method for a data set; for `inference` nothing is loaded that only a loss needs."""
        if not isinstance(data, SuperResolutionSettings):
            raise UserError(f"method srgan enlarges images: data.kind must be 'super-resolution', not '{data.kind}'")
        return SRGAN(self, data, inference=inference)


class SRGAN(Method):
    """The algorithm box above, term by term."""

    directions = ("AtoB",)
    channels_last = True  # docs/benchmarks.md

    best_by_pixels: Tensor

    def __init__(self, settings: SRGANSettings, data: SuperResolutionSettings, *, inference: bool = False) -> None:
        super().__init__()
        self.scale = data.scale
        self.degradation = data.degradation.build(data.scale) if data.low is None else None
        self.spec = data.high.spec()
        width = self.spec.width
        players: dict[str, nn.Module] = {}
        if settings.discriminator is not None and not inference:  # spectral norm takes seconds to begin with
            players["discriminator"] = settings.discriminator.build(width)
        players["generator"] = settings.generator.build(width, width, data.scale)
        self.players = nn.ModuleDict(players)
        size = data.augment.crop or 0
        if settings.replay and not size:
            raise UserError("data.augment.crop: method.replay keeps fakes of several images, all of one size; set it")
        self.adversary = Adversary(settings, (width, size, size))
        self.pixel = settings.pixel.build()
        self.content: nn.Module | None = None
        self.lpips: nn.Module | None = None
        self.weights = {"pixel": settings.pixel.weight, "total_variation": settings.total_variation_weight}
        if settings.discriminator is not None:
            self.weights |= {"discriminator": settings.discriminator_weight, **self.adversary.weights}
            self.weights["adversarial"] = settings.adversarial_weight
        # Of files nobody knows how they were made, but as a rule it was this.
        self.low_is_bicubic = data.low is not None or isinstance(data.degradation, BicubicSettings)
        if self.low_is_bicubic:
            self.weights["consistency"] = settings.consistency_weight
        elif settings.consistency_weight:
            raise UserError(
                "method.consistency_weight: the output made small again is bicubic, and the input is not: set it to 0, "
                "or data.degradation.kind to bicubic"
            )
        if settings.content is not None:
            self.weights["content"] = settings.content.weight
            if not inference:
                if width not in (1, 3):
                    raise UserError("method.content compares grey or RGB pictures: set data.high.channels to 1 or 3")
                self.content = settings.content.build()
        if settings.lpips is not None:
            self.weights["lpips"] = settings.lpips.weight
            if not inference:
                self.lpips = settings.lpips.build([self.spec])
        self.compares = {"": True}
        # The best mean PSNR of a log row before the discriminator had a say; a checkpoint's too.
        self.register_buffer("best_by_pixels", torch.tensor(-torch.inf))

    @property
    def discriminator(self) -> Discriminator:
        return cast(Discriminator, self.players["discriminator"])

    @property
    def generator(self) -> Generator:
        return cast(Generator, self.players["generator"])

    @property
    def plays(self) -> bool:
        """Whether the generator listens to a discriminator at present."""
        return "discriminator" in self.players and self.active("adversarial")

    def turns(self, step: int) -> Sequence[Turn]:
        if "discriminator" not in self.players:
            return (Turn("generator"),)
        self.adversary.advance(step)
        return (Turn("discriminator", self.adversary.due(step)), Turn("generator"))

    def low(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The low resolution (N, C, h, w) of a batch, made now where the batch has none."""
        if LOW in batch:
            return batch[LOW]
        assert self.degradation is not None
        with torch.no_grad():
            low: Tensor = self.degradation(batch[HIGH])
        return low.contiguous(memory_format=torch.channels_last) if _is_last(batch[HIGH]) else low

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        low = self.low(batch)
        with torch.set_grad_enabled("generator" in moving):
            return {"low": low, "fake": self.generator(low)}

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        high, fake = batch[HIGH], shared["fake"]
        if turn.player == "discriminator":
            return discriminator_losses(self, self.adversary, self.discriminator, high, fake, turn.terms)
        self.report("psnr", psnr(fake.float(), high))
        terms: dict[str, Tensor] = {}
        if self.active("pixel"):
            terms["pixel"] = self.pixel(fake, high)
        if self.content is not None and self.active("content"):
            terms["content"] = self.content(fake, high)
        if self.lpips is not None and self.active("lpips"):
            terms["lpips"] = self.lpips(fake, high)
        if self.plays:
            terms["adversarial"] = self.adversary.generator_loss(self.discriminator, fake, high)
        if self.active("total_variation"):
            terms["total_variation"] = total_variation(fake)
        if self.low_is_bicubic and self.active("consistency"):
            again = self.made_small(fake)
            self.report("consistency/psnr", psnr(again, shared["low"]))
            terms["consistency"] = F.l1_loss(again, shared["low"])
        return terms

    def made_small(self, fake: Tensor) -> Tensor:
        """Images (N, C, H, W) at the low resolution (N, C, H / scale, W / scale), float32, by the bicubic kernel."""
        return imresize(fake, 1 / self.scale)

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        """That an adversarial stage loses more of the picture than it should, once in a run."""
        found = values.get("psnr")
        if found is None:
            return []
        if not self.plays:
            self.best_by_pixels.fill_(max(float(self.best_by_pixels), found))
            return []
        fallen = float(self.best_by_pixels) - found
        if not DEEPEST_FALL < fallen < torch.inf:
            return []
        self.best_by_pixels.fill_(-torch.inf)
        return [
            f"PSNR is {fallen:.1f} dB lower than by pixels alone ({found:.1f} dB): the discriminator has too much say; "
            "lower method.adversarial_weight or the learning rate, or set method.consistency_weight"
        ]

    def check(self, batch: Mapping[str, Tensor]) -> None:
        high = batch[HIGH]
        low = high[..., :: self.scale, :: self.scale]
        networks: dict[str, tuple[str, nn.Module]] = {"generator": (LOW, self.generator)}
        if "discriminator" in self.players:
            networks["discriminator"] = (HIGH, self.discriminator)
        check_sizes({LOW: low, HIGH: high}, networks)

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        low, high = self.low(batch), batch[HIGH]
        size = (high.shape[2], high.shape[3])
        return {
            "bicubic": visible(imresize(low, self.scale, size=size).clamp(-1, 1), self.spec),
            "output": visible(run_padded(self.generator, low), self.spec),
            "target": visible(high, self.spec),
        }

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        low = self.low(batch)
        fake = run_padded(self.generator, low)
        beside: dict[str, Tensor] = {}
        if self.low_is_bicubic:  # all channels, no border: of so small an image nothing can be left out
            beside["consistency/psnr"] = psnr(self.made_small(fake.clamp(-1, 1)), low)
        return {"": Comparison(fake, batch[HIGH], self.spec, beside)}

    def exported(self) -> nn.ModuleDict:
        return nn.ModuleDict({"generator": self.generator})

    def translator(self, direction: str) -> nn.Module:
        return self.generator


def _is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
