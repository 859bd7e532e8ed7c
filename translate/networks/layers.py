"""What the networks share: norms, spectral norm, initialisation, halving and doubling, and what image-to-image networks
are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from translate.errors import UserError
from translate.settings import Settings

NormName = Literal["batch", "instance", "group", "layer", "none"]
LatentNormName = Literal["batch", "instance", "group", "layer", "virtual-batch", "none"]
"""The norms of a generative game, whose networks can stand behind a reference batch: see `conditional`."""
UpsamplingName = Literal["transposed", "resize", "anti-aliased"]
DownsamplingName = Literal["strided", "anti-aliased"]

_DRAWN = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)
"""The layers whose weights are matrices: drawn by the initialisation, divided by spectral norm."""


class Generator(nn.Module):
    """Turns images (N, C, H, W) in [-1, 1] into images (N, C', scale * H, scale * W) in [-1, 1]."""

    multiple: int
    """Height and width of the input must be divisible by this."""
    smallest: int
    """Height and width of the input must be at least this."""
    scale: int = 1
    """Output pixels per input pixel."""
    tiles: bool = True
    """Whether large images may run in parts: a pixel depends on those near it, and on statistics that can be shared."""
    exact: bool = False
    """Whether it runs in float32 alone: it chooses between codes, and another rounding would choose others."""


class Drawn(NamedTuple):
    """One of the many answers that a `DrawingGenerator` has for each image."""

    images: Tensor
    """(N, C', H, W), float32, in [-1, 1] but for what overshoots."""
    uncertainty: Tensor
    """(N, h, w), float32: how open each part was when it was drawn, in bits."""


class DrawingGenerator(Generator, ABC):
    """A generator whose output is drawn from a distribution: another seed is another answer.

    Runs in float32, in eval mode and whatever autocast says: what is drawn would change with the rounding.
    """

    tiles = False
    exact = True

    def __init__(self) -> None:
        super().__init__()
        self.on_step: Callable[[int, int], None] | None = None
        """Hears how many of an image's steps are done, and of how many."""

    part: int
    """Side in pixels of what one number of the uncertainty tells of."""
    most_uncertain: float
    """The largest uncertainty there can be, in bits."""

    @abstractmethod
    def change_sampling(self, given: Mapping[str, Any]) -> None:
        """Set some of the settings by which results are drawn; UserError for one that changes nothing."""

    @abstractmethod
    def draws(self, images: Tensor, seeds: Sequence[int]) -> Drawn:
        """Images (N, C, H, W) in [-1, 1] of any size, a seed each, on which a row's result depends alone."""

    def forward(self, images: Tensor) -> Tensor:
        return self.draws(images, [0] * len(images)).images


class TappedGenerator(Generator, ABC):
    """A generator whose encoder can be looked into, layer by layer."""

    taps: Mapping[str, int]
    """The layers that can be tapped, by name, from the first to the last: their channels."""

    @abstractmethod
    def features(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The activations (N, C_i, H_i, W_i) of the named layers; nothing behind the last of them is computed."""

    @abstractmethod
    def tapped(self, x: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the generator makes of x, and the named layers' activations on the way, of one pass."""


class Discriminator(nn.Module, ABC):
    """Judges images (N, C, H, W) patch by patch: raw logits (N, 1, H', W')."""

    multiple: int = 1
    """Height and width of the input must be divisible by this."""
    smallest: int
    """Height and width of the input must be at least this."""

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """Activations after each block, (N, C_i, H_i, W_i); the last entry is the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)[-1]


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm without weights and running statistics, on a CPU computed as group norm with one group a channel.

    The function is the same. Of a lone image torch's instance norm (2.15, CPU) gives wrong gradients wherever the
    gradient that reaches it is in channels_last, and in float32 it takes up to ten times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if x.shape[2] * x.shape[3] == 1:
            raise ValueError(f"instance norm needs more than one pixel, not {tuple(x.shape)}: use larger images")
        return F.group_norm(x, x.shape[1], eps=self.eps)


def norm_layer(name: NormName, channels: int) -> nn.Module:
    """The norm called `name` over feature maps (N, channels, H, W).

    Instance norm has neither affine weights nor running statistics (as CycleGAN trains it); group norm has 32
    groups (Wu & He 2018), or where 32 does not divide the channels the largest number below that does. Layer norm
    is over all channels and pixels of an example, with a weight and a bias for each channel: what the WGAN-GP
    paper (Gulrajani et al., arXiv 1704.00028, section 4) puts in place of a critic's batch norm.
    """
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "instance":
        return InstanceNorm(channels)
    if name == "group":
        return nn.GroupNorm(next(groups for groups in range(32, 0, -1) if channels % groups == 0), channels)
    if name == "layer":
        return nn.GroupNorm(1, channels)
    return nn.Identity()


def needs_bias(norm: LatentNormName) -> bool:
    """Whether the convolutions of a network with this norm have a bias: not where the norm brings its own.

    The reference generators decide this once per network, not per layer: their first convolution has no bias
    either when the rest is batch-normalised, though no norm follows it in a U-Net.
    """
    return norm in ("instance", "none")


def upsample(
    kind: UpsamplingName, in_channels: int, out_channels: int, *, kernel: Literal[3, 4], bias: bool
) -> nn.Module:
    """Doubles height and width: (N, in_channels, H, W) -> (N, out_channels, 2H, 2W).

    `transposed` is a strided transposed convolution with this kernel. `resize` is nearest-neighbour x2 and a
    3x3 convolution (whatever `kernel`), against checkerboard patterns (Odena et al. 2016, Distill,
    "Deconvolution and checkerboard artifacts"). `anti-aliased` interpolates linearly before that convolution, which
    is CUT's zero-stuffing and filter [1, 3, 3, 1] / 4 (the authors' code), and leaves less above the old Nyquist
    frequency than the nearest neighbour does.
    """
    if kind == "transposed":
        # Of an odd kernel, stride 2 and padding 1 leave the output one pixel short of twice the input.
        return nn.ConvTranspose2d(
            in_channels, out_channels, kernel, stride=2, padding=1, output_padding=kernel % 2, bias=bias
        )
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest" if kind == "resize" else "bilinear"),
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
    )


class Blur(nn.Module):
    """Halves height and width without aliasing: (N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2)); H and W at least 2.

    The filter [1, 2, 1] / 4 along both sides, of which every second value is kept (blur-pool: Zhang 2019, arXiv
    1904.11486, section 3.2, "Triangle-3"); beyond the border the image is reflected. It stands behind a convolution
    and its activation that would else have stride 2.

    There are neither weights nor buffers. Means of shifted halves keep nothing for the backward pass, where a
    convolution would keep its padded input, and take half of its time on a CPU.
    """

    kernel_size = 3
    stride = 2

    def forward(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            size = x.shape[dim]
            here = x[:, :, ::2] if dim == 2 else x[..., ::2]
            odd = x[:, :, 1::2] if dim == 2 else x[..., 1::2]
            # Pixel -1 is pixel 1, and pixel `size`, which an odd size asks for, is pixel size - 2.
            before = torch.cat([odd.narrow(dim, 0, 1), odd.narrow(dim, 0, here.shape[dim] - 1)], dim)
            after = torch.cat([odd, odd.narrow(dim, odd.shape[dim] - 1, 1)], dim) if size % 2 else odd
            x = torch.lerp(here, torch.lerp(before, after, 0.5), 0.5)
        return x


def square_side(network: str, shape: tuple[int, ...]) -> int:
    """Side of the images (C, side, side) that a network called `network` makes or judges.

    Raises UserError unless they are square images whose side is a power of two from 8: such networks halve and
    double between 4x4 pixels and the whole image.
    """
    if len(shape) != 3:
        raise UserError(f"network {network!r} is for images, not for points of {shape[0]} numbers: use kind: mlp")
    _, height, width = shape
    if height != width or height < 8 or height & (height - 1):
        raise UserError(
            f"network {network!r} is for square images whose side is a power of two from 8 pixels, "
            f"not for {width}x{height}: set data.augment.resize and crop to one, such as 32 or 64"
        )
    return height


def add_spectral_norm(module: nn.Module) -> None:
    """Divide each weight of `module` by its largest singular value (Miyato et al., arXiv 1802.05957), in place.

    Convolutions, linear layers and embeddings, each once; gains of norms and of attention stay as they are.
    """
    for layer in list(module.modules()):
        if isinstance(layer, _DRAWN) and not parametrize.is_parametrized(layer, "weight"):
            parametrizations.spectral_norm(layer)


NORM_DEVIATION = 0.02
"""Of the gains of affine norms around 1, as the pix2pix reference draws them."""


class InitialisationSettings(Settings):
    """How the weights of a new network are drawn."""

    kind: Literal["normal", "xavier", "kaiming", "orthogonal", "uniform"] = "normal"
    """`normal`: deviation `gain`; `xavier`, `orthogonal`: scaled by it; `kaiming`: variance 2 / fan in; `uniform`: in
    +-1 / sqrt(fan in), biases too, as torch draws a new layer."""
    gain: float = Field(default=0.02, gt=0)
    """Standard deviation or scale of the weights. The gains of norms have the deviation 0.02 whatever it is."""

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Draw all convolution, linear, embedding and norm weights of `module` anew, in place; biases become 0 (but for
        `uniform`).

        An embedding is drawn like a linear layer that reads one-hot classes, its fan in being its width, as the
        projection critic is (Miyato & Koyama, arXiv 1802.05637). Conditional and virtual batch norm are none of
        these layers: their gains stay at 1, their biases at 0. Layers under `parametrizations.spectral_norm` keep
        it: what is drawn is the weight before its division by the largest singular value. Uses torch's default
        generator. Source: DCGAN (Radford et al., arXiv 1511.06434, section 4) for the deviation of 0.02; norm
        weights around 1 as in the pix2pix reference.
        """
        for layer in module.modules():
            if isinstance(layer, _DRAWN):
                self._draw(layer)
                if isinstance(layer, nn.Embedding) or layer.bias is None:
                    continue
                if self.kind == "uniform":
                    bound = _uniform_bound(stored_weight(layer))
                    nn.init.uniform_(layer.bias, -bound, bound)
                else:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)) and layer.affine:
                nn.init.normal_(layer.weight, 1.0, NORM_DEVIATION)
                nn.init.zeros_(layer.bias)

    def _draw(self, layer: nn.Module) -> None:
        weight = stored_weight(layer)
        if self.kind == "normal":
            nn.init.normal_(weight, 0.0, self.gain)
        elif self.kind == "xavier":
            nn.init.xavier_normal_(weight, self.gain)
        elif self.kind == "kaiming":
            nn.init.kaiming_normal_(weight)
        elif self.kind == "uniform":
            nn.init.uniform_(weight, -_uniform_bound(weight), _uniform_bound(weight))
        else:
            nn.init.orthogonal_(weight, self.gain)
        if parametrize.is_parametrized(layer, "weight") and layer.training:
            # Each look at the weight is one power iteration: the singular vectors must follow the new weight.
            # Torch itself starts with 15 of them.
            for _ in range(15):
                _ = layer.weight


def stored_weight(layer: nn.Module) -> Tensor:
    """The weight that is a parameter: under spectral norm the one before its division."""
    spectral = parametrize.is_parametrized(layer, "weight")
    weight = layer.parametrizations["weight"].original if spectral else layer.weight  # type: ignore[index,union-attr]
    assert isinstance(weight, Tensor)
    return weight


@torch.no_grad()
def draw_small(layers: Iterable[nn.Module]) -> None:
    """Draw the convolutions among `layers` anew: a tenth of kaiming's weights, biases 0.

    So the residual branches of a deep network without norms begin near 0, and the network as the sum of its shortcuts.
    Source: Wang et al., arXiv 1809.00219 (ESRGAN), section 3.1; the tenth is the authors' code (BasicSR's
    `default_init_weights`).
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.mul_(0.1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def outside_autocast(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """layer(x) in the number format of the layer's weights, float32 where only autocast is narrower: for logits."""
    with torch.autocast(x.device.type, enabled=False):
        made: Tensor = layer(x.to(stored_weight(layer).dtype))
    return made


def _uniform_bound(weight: Tensor) -> float:
    return float(weight[0].numel() ** -0.5)  # (out, in, ...): the inputs of one output
