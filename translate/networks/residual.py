"""The residual networks of WGAN-GP for CIFAR-10 (Gulrajani et al., arXiv 1704.00028) and of spectral normalisation
(Miyato et al., arXiv 1802.05957, appendix B.4)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.networks.attention import AttentionKind, SelfAttention
from translate.networks.conditional import LatentNormName, Norm, VirtualBatch, VirtualBatchGenerator
from translate.networks.critics import CriticBaseSettings
from translate.networks.latent import LatentGenerator, Shape
from translate.networks.layers import InitialisationSettings, add_spectral_norm, square_side
from translate.networks.minibatch import MinibatchDeviation
from translate.settings import Settings


class ResidualGeneratorSettings(Settings):
    """Dense 4x4, then one residual block per doubling; batch norm, ReLU, 3x3 convolution and tanh at the end."""

    kind: Literal["residual"] = "residual"
    width: int = Field(default=64, ge=1)
    """Channels at full size of images from 64²; up to 16 times as many at 4x4. Up to 32² every block has 4 * width.
    64 is SNGAN's at every size; WGAN-GP's CIFAR network has 32."""
    norm: Literal["batch", "virtual-batch", "none"] = "batch"
    """`batch` is conditional (one gain and bias for each class) where the method conditions by norm."""
    spectral_norm: bool = False
    """Divide each weight by its largest singular value, as SAGAN does in both networks."""
    attention: int | None = None
    """Side of the feature map that gets a self-attention layer (SAGAN: 32); none without."""
    attention_kind: AttentionKind = "dot"
    """SAGAN's dot product, or `l2`, which has a Lipschitz constant."""
    initialisation: InitialisationSettings | None = None
    """Without: the papers', Glorot uniform, times sqrt(2) for the 3x3 convolutions of the blocks."""

    def build(self, latent: int, shape: Shape, classes: int | None = None) -> LatentGenerator:
        """A new generator (N, latent) -> (N, C, S, S) for a power of two S from 8, weights drawn.

        Raises:
            UserError: another shape, no feature map has the side `attention`, or classes without batch norm.
        """
        generator = ResidualGenerator(self, latent, shape, classes)
        return VirtualBatchGenerator(generator) if self.norm == "virtual-batch" else generator


class ResidualCriticSettings(CriticBaseSettings):
    """Residual blocks, ReLU, and pooling over the whole map."""

    kind: Literal["residual"] = "residual"
    width: int = Field(default=64, ge=1)
    """Channels of the first block for images from 64²; they double up to 16 * width. Up to 32² every block has
    2 * width. 64 is SNGAN's and WGAN-GP's."""
    norm: Literal["layer", "virtual-batch", "none"] = "none"
    """In front of each convolution but those of the first block. Batch norm is not offered: it couples the examples
    of a batch, where penalties ask for each example's own gradient."""
    pool: Literal["sum", "mean"] = "sum"
    """Over the last feature map: SNGAN's sum, or WGAN-GP's mean."""
    attention: int | None = None
    """Side of the feature map that gets a self-attention layer (SAGAN: 32); none without."""
    attention_kind: AttentionKind = "dot"
    """SAGAN's dot product, or `l2`, which has a Lipschitz constant."""
    minibatch_deviation: bool = False
    """One more channel in the last map: how much the batch varies (Karras et al., arXiv 1710.10196, section 3)."""
    initialisation: InitialisationSettings | None = None  # type: ignore[assignment]  # `prepare` knows what None is
    """Without: the papers', Glorot uniform, times sqrt(2) for the 3x3 convolutions of the blocks."""

    def trunk(self, shape: Shape) -> tuple[nn.Module, int]:
        """(N, C, S, S) -> features (N, F) for a power of two S from 8; and F.

        Raises:
            UserError: another shape, or no feature map has the side `attention`.
        """
        trunk = ResidualTrunk(self, shape)
        return (VirtualBatch(trunk, shape) if self.norm == "virtual-batch" else trunk), trunk.width

    def prepare(self, module: nn.Module) -> None:
        _prepare(module, self)


def _prepare(module: nn.Module, settings: ResidualGeneratorSettings | ResidualCriticSettings) -> None:
    """Draw the weights of `module`, and put spectral norm over its layers where asked."""
    if settings.initialisation is None:
        draw_weights(module)
    if settings.spectral_norm:
        add_spectral_norm(module)
    if settings.initialisation is not None:
        settings.initialisation.apply(module)


@torch.no_grad()
def draw_weights(module: nn.Module) -> None:
    """Glorot uniform weights, those of a block's 3x3 convolutions times sqrt(2) for the ReLUs before; biases 0.

    As the code of both papers does (github.com/pfnet-research/sngan_projection, github.com/igul222/
    improved_wgan_training).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.xavier_uniform_(layer.weight)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for block in module.modules():
        if isinstance(block, GeneratorBlock | CriticBlock):
            for convolution in (block.conv1, block.conv2):
                convolution.weight.mul_(math.sqrt(2))


def generator_multipliers(side: int) -> list[int]:
    """Channels over `width` at 4x4 and after each block of a generator.

    32² as SNGAN's network for CIFAR-10 (256 everywhere), 128² as its network for ImageNet (1024, 1024, 512, 256, 128,
    64), 64² as in its authors' code (1024, 512, 256, 128, 64); other sizes go on in the same way.
    """
    blocks = side.bit_length() - 3
    return [4] * (blocks + 1) if side <= 32 else [min(16, 2**level) for level in range(blocks, -1, -1)]


def critic_blocks(side: int) -> list[tuple[int, bool]]:
    """For each block of a critic: channels over `width`, and whether it halves the map.

    32² as SNGAN's network for CIFAR-10 (128 everywhere; two blocks halve), 128² as its network for ImageNet (five
    blocks halve, one more stays at 4x4); 64² as in its authors' code (github.com/pfnet-research/sngan_projection),
    without the last block. Above 128² more blocks halve, so that the map ends at 4x4.
    """
    if side <= 32:
        return [(2, True), (2, True), (2, False), (2, False)]
    halving = [(min(16, 2**level), True) for level in range(max(5, side.bit_length() - 3))]
    return halving if side == 64 else [*halving, (16, False)]


def _check_attention(attention: int | None, sides: list[int]) -> None:
    if attention is not None and attention not in sides:
        known = ", ".join(map(str, sorted(set(sides))))
        raise UserError(f"attention: no feature map has side {attention}; expected one of {known}")


class GeneratorBlock(nn.Module):
    """norm, ReLU, doubling, 3x3, norm, ReLU, 3x3, and a 1x1 shortcut: (N, in, H, W) -> (N, out, 2H, 2W)."""

    def __init__(self, settings: ResidualGeneratorSettings, channels: tuple[int, int], classes: int | None) -> None:
        super().__init__()
        wide, narrow = channels
        self.norm1 = Norm(settings.norm, wide, classes)
        self.conv1 = nn.Conv2d(wide, narrow, 3, padding=1)
        self.norm2 = Norm(settings.norm, narrow, classes)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.shortcut = nn.Conv2d(wide, narrow, 1)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        y = F.relu(self.norm1(x, label))
        y = self.conv1(F.interpolate(y, scale_factor=2, mode="nearest"))
        y = self.conv2(F.relu(self.norm2(y, label)))
        # The papers double first; a 1x1 convolution gives the same before it, at a quarter of the work.
        return torch.add(y, F.interpolate(self.shortcut(x), scale_factor=2, mode="nearest"))


class ResidualGenerator(LatentGenerator):
    """4,276,739 parameters for 32² RGB (latent 128, width 64, batch norm)."""

    def __init__(self, settings: ResidualGeneratorSettings, latent: int, shape: Shape, classes: int | None) -> None:
        super().__init__()
        self.latent, self.shape, self.classes = latent, shape, classes
        side = square_side("residual", shape)
        widths = [settings.width * multiplier for multiplier in generator_multipliers(side)]
        sides = [8 * 2**block for block in range(len(widths) - 1)]
        _check_attention(settings.attention, sides)

        self.dense = nn.Linear(latent, widths[0] * 4 * 4)
        self.blocks = nn.ModuleList(GeneratorBlock(settings, channels, classes) for channels in pairwise(widths))
        self.attended = sides.index(settings.attention) if settings.attention else None
        if self.attended is not None:
            self.attention = SelfAttention(widths[self.attended + 1], settings.attention_kind)
        self.norm = Norm(settings.norm, widths[-1])
        self.last = nn.Conv2d(widths[-1], shape[0], 3, padding=1)
        _prepare(self, settings)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.dense(latent).unflatten(1, (-1, 4, 4))  # (N, width_0, 4, 4)
        for number, block in enumerate(self.blocks):
            x = block(x, label)  # (N, width_i, 8 * 2**i, 8 * 2**i)
            if number == self.attended:
                x = self.attention(x)
        image: Tensor = self.last(F.relu(self.norm(x)))
        return image.tanh()


class CriticBlock(nn.Module):
    """norm, ReLU, 3x3, norm, ReLU, 3x3, halving, and a 1x1 shortcut where the shape changes.

    (N, in, H, W) -> (N, out, H/2, W/2), or H and W where it does not halve. The first block of a network leaves out
    norms and the first ReLU: there are pixels in front of it.
    """

    def __init__(self, channels: tuple[int, int], *, halves: bool, norm: LatentNormName, first: bool) -> None:
        super().__init__()
        narrow, wide = channels
        inner = wide if first else narrow
        self.halves, self.first = halves, first
        self.norm1 = Norm("none" if first else norm, narrow)
        self.conv1 = nn.Conv2d(narrow, inner, 3, padding=1)
        self.norm2 = Norm("none" if first else norm, inner)
        self.conv2 = nn.Conv2d(inner, wide, 3, padding=1)
        self.shortcut = nn.Conv2d(narrow, wide, 1) if halves or narrow != wide else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        if not self.halves:
            return torch.add(y, self.shortcut(x))
        # The papers halve behind the shortcut's 1x1 convolution; before it is the same at a quarter of the work.
        return torch.add(F.avg_pool2d(y, 2), self.shortcut(F.avg_pool2d(x, 2)))


class ResidualTrunk(nn.Module):
    """(N, C, S, S) -> features (N, width)."""

    def __init__(self, settings: ResidualCriticSettings, shape: Shape) -> None:
        super().__init__()
        side = square_side("residual", shape)
        blocks: list[nn.Module] = []
        sides: list[int] = []
        channels = shape[0]
        attend = settings.attention
        for multiplier, halves in critic_blocks(side):
            wide = multiplier * settings.width
            blocks.append(CriticBlock((channels, wide), halves=halves, norm=settings.norm, first=not blocks))
            channels = wide
            side = side // 2 if halves else side
            sides.append(side)
            if side == attend:
                blocks.append(SelfAttention(channels, settings.attention_kind))
                attend = None
        _check_attention(settings.attention, sides)
        self.blocks = nn.Sequential(*blocks)
        self.deviation = MinibatchDeviation() if settings.minibatch_deviation else nn.Identity()
        self.width = channels + settings.minibatch_deviation
        self.pool = settings.pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deviation(self.blocks(x)))  # (N, width, S', S')
        return x.sum(dim=(2, 3)) if self.pool == "sum" else x.mean(dim=(2, 3))
