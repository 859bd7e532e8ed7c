"""The autoencoder that judges by its own error (EBGAN, Zhao et al., arXiv 1609.03126; BEGAN, Berthelot et al., arXiv
1703.10717), and its decoder, which is BEGAN's generator."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.errors import UserError
from translate.networks.latent import Critic, Judgement, LatentGenerator, Shape
from translate.networks.layers import InitialisationSettings, square_side
from translate.settings import Settings

GLOROT = InitialisationSettings(kind="xavier", gain=1.0)


class DecoderSettings(Settings):
    """BEGAN's generator: dense 8x8, then two 3x3 convolutions with ELU at each size, doubling between them."""

    kind: Literal["decoder"] = "decoder"
    width: int = Field(default=64, ge=1)
    """Channels of every layer: 64 or 128 in the paper (section 4.1)."""
    output: Literal["linear", "tanh"] = "linear"
    """`linear` as in the paper: images find [-1, 1] by themselves, and may step a little outside."""
    initialisation: InitialisationSettings = GLOROT
    """Glorot's normal weights, as the paper names none."""

    def build(self, latent: int, shape: Shape, classes: int | None = None) -> DecoderGenerator:
        """A new generator (N, latent) -> (N, C, S, S) for a power of two S from 8, weights drawn.

        Raises:
            UserError: another shape; or classes, as there is no norm layer to put them into.
        """
        if classes is not None:
            raise UserError("generator 'decoder' has no norm layers that classes could condition; use concat")
        return DecoderGenerator(self, latent, shape)


class AutoencoderSettings(Settings):
    """Encoder, code and decoder; the logit is an energy, the reconstruction error: low where it is real."""

    kind: Literal["autoencoder"] = "autoencoder"
    width: int = Field(default=64, ge=1)
    """Channels of the decoder, and of the encoder at full size; these grow by as many with each halving."""
    code: int = Field(default=64, ge=1)
    """Width of the code: 64 or 128 in BEGAN (section 4.1)."""
    distance: Literal["l1", "l2"] = "l1"
    """What is averaged over the numbers of an image: `l1` the absolute error (BEGAN, eq. 1 with eta = 1), `l2` its
    square (eta = 2; EBGAN). Within [-1, 1] that is at most 2 or 4, which EBGAN's margin must fit."""
    initialisation: InitialisationSettings = GLOROT
    """Glorot's normal weights, as the paper names none."""

    def build(self, shape: Shape, classes: int | None = None) -> AutoencoderCritic:
        """A new critic of images (N, C, S, S) for a power of two S from 8, weights drawn.

        Raises:
            UserError: another shape; or classes, as an energy has no projection.
        """
        if classes is not None:
            raise UserError("critic 'autoencoder' cannot project classes on its energy; use concat")
        return AutoencoderCritic(self, shape)


def _levels(side: int) -> int:
    """Sizes from 8 up to `side`, both counted."""
    return side.bit_length() - 3


class Decoder(nn.Sequential):
    """(N, code) -> (N, C, S, S): the layers of BEGAN's figure 1. No non-linearity behind the dense layer."""

    def __init__(self, code: int, shape: Shape, width: int) -> None:
        levels = _levels(square_side("decoder", shape))
        layers: list[nn.Module] = [nn.Linear(code, width * 8 * 8), nn.Unflatten(1, (width, 8, 8))]
        for level in range(levels):
            if level:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            for _ in range(2):
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.ELU(inplace=True)]
        super().__init__(*layers, nn.Conv2d(width, shape[0], 3, padding=1))


class Encoder(nn.Sequential):
    """(N, C, S, S) -> (N, code): channels grow by `width` with each halving, which is a strided convolution."""

    def __init__(self, code: int, shape: Shape, width: int) -> None:
        levels = _levels(square_side("autoencoder", shape))
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1), nn.ELU(inplace=True)]
        for level in range(1, levels + 1):
            for _ in range(2):
                layers += [nn.Conv2d(level * width, level * width, 3, padding=1), nn.ELU(inplace=True)]
            if level < levels:
                layers += [nn.Conv2d(level * width, (level + 1) * width, 3, stride=2, padding=1), nn.ELU(inplace=True)]
        # (N, levels * width, 8, 8)
        super().__init__(*layers, nn.Flatten(), nn.Linear(levels * width * 8 * 8, code))


class DecoderGenerator(LatentGenerator):
    """BEGAN's generator; BEGAN's critic holds a decoder of the same architecture."""

    def __init__(self, settings: DecoderSettings, latent: int, shape: Shape) -> None:
        super().__init__()
        self.latent, self.shape = latent, shape
        self.decoder = Decoder(latent, shape, settings.width)
        self.output = nn.Tanh() if settings.output == "tanh" else nn.Identity()
        settings.initialisation.apply(self)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        image: Tensor = self.output(self.decoder(latent))
        return image


class AutoencoderCritic(Critic):
    """Its logits are energies (N, 1), float32 whatever the autocast state; its features are the code."""

    def __init__(self, settings: AutoencoderSettings, shape: Shape) -> None:
        super().__init__()
        self.width = settings.code
        self.distance = settings.distance
        self.encoder = Encoder(settings.code, shape, settings.width)
        self.decoder = Decoder(settings.code, shape, settings.width)
        settings.initialisation.apply(self)

    def judge(self, x: Tensor, label: Tensor | None = None) -> Judgement:
        """|x - D(x)| (`l1`) or its square (`l2`), the mean over each image."""
        code: Tensor = self.encoder(x)
        exact = torch.promote_types(code.dtype, torch.float32)
        error = x.to(exact) - self.decoder(code).to(exact)
        energy = error.abs() if self.distance == "l1" else error.square()
        return Judgement(energy.flatten(1).mean(dim=1, keepdim=True), code.to(exact))

    def reconstruct(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> what the autoencoder makes of it, the same shape; to look at."""
        image: Tensor = self.decoder(self.encoder(x))
        return image
