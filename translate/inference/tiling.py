"""Large images, tile by tile, without seams.

Two things make tiles visible. The first is what a network does not see beyond a tile's border: each tile is given a
halo as wide as the network looks, so that its core comes out as if the whole image had been there; to the bit where
the network is made of convolutions (on a CPU: translate.inference.precision.SteadyConvolution). Where that would cost
too much, tiles get a narrower halo and fade into each other (`Blend`), and the difference that this makes is measured.
The second are norms over the whole image (instance, group and layer norm), which shift a tile's colours by the tile's
own contents: here all tiles are normalised with the same statistics, those of the whole image.

How these are found. Statistics s_1 ... s_n of the n norms belong together: those of norm i are what the whole image has
there when it was normalised with s_1 ... s_(i-1) before,

    s_i = f_i(s_1, ..., s_(i-1)).

A small sample of the image gives g_i(s_1, ..., s_(i-1)) in their place, which one pass of the network makes of it.
Going over all tiles with statistics s in force measures f_i(s) for all i at once. But to put these in force together
is no good: each was right for the old ones before it, and the changes add up from norm to norm (with the 23 norms of
ResNet-9, 4 grey levels of difference became 19). What is nearly the same for the old statistics and the new ones is how
far the sample is wrong, so this is what a pass over the tiles measures, and the sample is run again, put right:

    s_i <- g_i(s_1, ..., s_(i-1)) + (f_i(old s) - g_i(old s)).

(Defect correction, as multigrid methods do it: Stetter 1978, Numerische Mathematik 29. The difference is taken of means
in units of the deviation, of variances as a ratio.) After n passes the first n norms are exact, for norm i depends on
those before it alone; and all of them draw near at once, a pass leaving a half to a tenth of the error
(docs/large-images.md).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from translate.data.images import Pixels
from translate.inference.precision import in_torch_s_layers

PASSES = 2
"""Over all tiles to measure statistics; one more makes the result."""
SIDE = 1024
"""Pixels of a tile's core where nobody chose: with ResNet-9's halo, 1.4 pixels are run for each that is kept."""
ENLARGED_SIDE = 2048
"""Where the network enlarges, pixels of what becomes of the core: at x4 512, with SRResNet's halo 1.3 for each."""
SMALLEST_SIDE = 32
"""Where memory is short, tiles are halved down to this: below it they are halo for the most part."""
AUTO_PIXELS = 1 << 22
"""Larger results are made in tiles where nobody chose. ResNet-9 takes 0.86 GiB a megapixel in float32
(docs/large-images.md): 4.2 megapixels are 4.2 GiB with all else, which a machine of 8 GiB has. SRResNet takes less."""
GPU_AUTO_PIXELS = 1 << 24
"""On a GPU: half of that a megapixel in bf16. Where it is too much, the GPU says so, and tiles are run then."""
FARTHEST = 4096
"""Pixels: a network that looks farther is taken to see the whole image, and does not run in tiles."""
DEAREST = 2.0
"""Pixels run for each that is kept, at most, where nobody chose the overlap: halos that cost more are cut."""
OVERLAP = 32
"""Pixels of the halo then (docs/large-images.md has what they leave)."""
PROBE = 64
"""Side in pixels of the part where cut halos are compared with whole ones."""
PROBE_AT_MOST = 4
"""Times as many pixels as a tile's window are run for it, or it is not done: memory is for tiles."""


class Box(NamedTuple):
    """Rows and columns of an image, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


class Tile(NamedTuple):
    """`core` is what is kept of a tile, `window` what the network sees: the core and its halo, within the image."""

    core: Box
    window: Box


def spans(length: int, side: int, halo: int, multiple: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a side of an image into cores of about `side` pixels: (start, stop, start and stop of the window).

    All four are multiples of `multiple`, which divides `length`; windows end at the image's true border.
    """
    count = -(-length // max(side, multiple))
    units = length // multiple
    reach = -(-halo // multiple) * multiple
    edges = [units * number // count * multiple for number in range(count + 1)]
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            yield start, stop, max(0, start - reach), min(length, stop + reach)


def tiles(height: int, width: int, side: int, halo: int, multiple: int) -> list[Tile]:
    """The tiles of an image, row by row: their cores cover it, each pixel once."""
    return [
        Tile(Box(top, bottom, left, right), Box(above, below, before, behind))
        for top, bottom, above, below in spans(height, side, halo, multiple)
        for left, right, before, behind in spans(width, side, halo, multiple)
    ]


def automatic_side(scale: int) -> int:
    """Pixels of a tile's core where nobody chose."""
    return SIDE if scale == 1 else ENLARGED_SIDE // scale


def affordable(halo: int, side: int) -> bool:
    """Whether tiles of this side with this halo run no more than DEAREST times the pixels that they keep."""
    return (side + 2 * halo) ** 2 <= DEAREST * side**2


def enlarged(box: Box, scale: int) -> Box:
    """What becomes of these pixels."""
    return Box(*(edge * scale for edge in box))


class Blend:
    """Joins the tiles of an image, given row by row, and hands on what is finished.

    With a `ramp` each tile fades out across its core's borders, from `ramp` pixels inside to `ramp` outside, while its
    neighbour fades in: weights rise along a straight line and add up to 1. Of what is not finished just the ramps are
    kept: of one tile's right border, and of a row's lower one.

    Args:
        height, width: of the joined image.
        ramp: in its pixels; 0: cores stand side by side. No core may be narrower than twice that.
    """

    def __init__(self, height: int, width: int, ramp: int) -> None:
        self.height, self.width, self.ramp = height, width, ramp
        self.beside = torch.empty(0)
        self.below = torch.empty(0)

    def add(self, tile: Tile, made: Tensor) -> tuple[Box, Tensor]:
        """(1, C, h, w), the tile's whole window -> where the finished part belongs, and (1, C, h', w'), float32."""
        core, window = tile
        ramp, band = self.ramp, 2 * self.ramp
        first, last = (core.top == 0, core.left == 0), (core.bottom == self.height, core.right == self.width)
        top, left = (edge if end else edge - ramp for edge, end in zip((core.top, core.left), first, strict=True))
        bottom, right = (
            edge if end else edge + ramp for edge, end in zip((core.bottom, core.right), last, strict=True)
        )
        part = made[:, :, top - window.top : bottom - window.top, left - window.left : right - window.left].float()
        if not ramp:
            return Box(top, bottom, left, right), part
        rows = _fade(bottom - top, band, first[0], last[0]).to(part.device)
        part = part * rows[:, None] * _fade(right - left, band, first[1], last[1]).to(part.device)
        if not first[1]:
            part[..., :band] += self.beside
        if not last[1]:
            self.beside, part, right = part[..., -band:].clone(), part[..., :-band], right - band
        if not first[0]:
            part[..., :band, :] += self.below[..., left:right].to(part.device)
        if not last[0]:
            if not self.below.numel():  # in host memory: it is as wide as the image
                self.below = torch.empty(*part.shape[:2], band, self.width)
            self.below[..., left:right] = part[..., -band:, :]
            part, bottom = part[..., :-band, :], bottom - band
        return Box(top, bottom, left, right), part


def _fade(length: int, band: int, first: bool, last: bool) -> Tensor:
    """Weights (length,) that rise over `band` pixels and fall over the last; at the image's edges they stay 1."""
    weights = torch.ones(length)
    rising = (torch.arange(band) + 0.5) / band
    if not first:
        weights[:band] = rising
    if not last:
        weights[-band:] = 1 - rising
    return weights


def crossing(cut: Sequence[Tile], height: int, width: int, multiple: int) -> Box:
    """A part of the image, PROBE pixels wide at most, around the borders of tiles that are nearest its middle."""
    edges = []
    for length, borders in (
        (height, {tile.core.top for tile in cut} - {0}),
        (width, {tile.core.left for tile in cut} - {0}),
    ):
        middle = min(sorted(borders) or [length // 2], key=lambda border: abs(2 * border - length))
        start = max(0, min(middle - PROBE // 2, length - PROBE)) // multiple * multiple
        edges += [start, min(length, start + -(-PROBE // multiple) * multiple)]
    return Box(*edges)


def around(box: Box, halo: int, height: int, width: int, multiple: int) -> Box:
    """The window that shows a box and its halo; the box begins and ends on multiples of `multiple`, or at the end."""
    reach = -(-halo // multiple) * multiple
    return Box(
        max(0, box.top - reach),
        min(height, box.bottom + reach),
        max(0, box.left - reach),
        min(width, box.right + reach),
    )


def small_copy(pixels: Pixels, area: int, multiple: int, smallest: int, *, labels: bool) -> Pixels:
    """The whole image (H, W, C) with about `area` pixels at most, of a size that the network takes.

    Averaged, but class numbers are picked.
    """
    height, width = pixels.shape[:2]
    least = -(-smallest // multiple) * multiple

    def fit(length: float, longest: int) -> int:
        return min(max(int(length) // multiple * multiple, least), longest)

    factor = min(1.0, (area / (height * width)) ** 0.5)
    size = [fit(height * factor, height), fit(width * factor, width)]
    narrow = size.index(min(size))  # what had to be widened narrows the other side
    size[1 - narrow] = min(size[1 - narrow], fit(area / size[narrow], max(height, width)))
    how = cv2.INTER_NEAREST if labels else cv2.INTER_AREA
    # OpenCV takes four channels at a time.
    parts = [
        cv2.resize(pixels[..., first : first + 4], (size[1], size[0]), interpolation=how).reshape(*size, -1)
        for first in range(0, pixels.shape[2], 4)
    ]
    return np.concatenate(parts, axis=2)


def receptive_radius(network: nn.Module, channels: int) -> int:
    """How many input pixels beyond it an aligned block of the output depends on, along either axis.

    A block is what becomes of `multiple` x `multiple` input pixels that lie on the grid of the network's strides: the
    least that a tile may keep. For a network without strides, that is one pixel and the radius of its receptive field.

    Found by the gradient of one block in the middle of a strip, in a copy where nothing can hide a dependence: norms
    are left out, weights are positive, inputs positive and so small that tanh is linear and no ReLU cuts.

    Raises:
        ValueError: it is more than FARTHEST, as for a network that pools over the whole image.
    """
    multiple, scale = int(network.multiple), int(network.scale)  # type: ignore[arg-type]
    short = -(-max(int(network.smallest), multiple) // multiple) * multiple  # type: ignore[arg-type]
    probe = _positive(network)
    device = next((parameter.device for parameter in probe.parameters()), torch.device("cpu"))
    radius = 0
    for axis in (2, 3):
        reach = 128
        while True:
            start = -(-reach // multiple) * multiple
            length = 2 * start + multiple
            shape = (1, channels, short, length) if axis == 3 else (1, channels, length, short)
            with torch.inference_mode(False), torch.enable_grad():
                strip = torch.full(shape, 1e-200, dtype=torch.float64, device=device, requires_grad=True)
                made = probe(strip)
                block = made.narrow(axis, start * scale, multiple * scale)
                (gradient,) = torch.autograd.grad(block.sum(), strip)
            seen = gradient.abs().sum(dim=(0, 1, 5 - axis)).nonzero()[:, 0]  # positions along the axis
            low, high = int(seen.min()), int(seen.max())
            if low > 0 and high < length - 1:
                radius = max(radius, start - low, high - (start + multiple - 1))
                break
            reach *= 2
            if reach > FARTHEST:
                raise ValueError(f"the network sees farther than {FARTHEST} pixels: it cannot run in tiles")
    return radius


def _positive(network: nn.Module) -> nn.Module:
    """A copy in float64 whose norms do nothing and whose weights are all positive."""
    with torch.inference_mode(False):
        probe = in_torch_s_layers(copy.deepcopy(network)).double().eval().requires_grad_(False)
    for parameter in probe.parameters():
        # Biases and slopes are 0. Whatever is not replaced below is positive.
        parameter.data.fill_(0.0 if parameter.dim() < 2 else 1 / parameter[0].numel())
    for module in list(probe.modules()):
        for name, child in module.named_children():
            if isinstance(child, (_NormBase, nn.GroupNorm)):
                setattr(module, name, nn.Identity())
            elif isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)):
                setattr(module, name, _Blurring(child))
    return probe


class _Seen(torch.autograd.Function):
    """Hands a gradient on as 1 wherever there is one: through RRDBNet's 350 layers it underflows in float64."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return (gradients[0] != 0).to(gradients[0].dtype)


class _Blurring(nn.Module):
    """What a convolution does whose weights are all equal: the mean of the channels, averaged under one kernel.

    With C channels in and out this is C^2 times less work.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.channels = layer.out_channels
        taps = layer.weight[0, 0].numel()
        self.kernel = copy.copy(layer)  # its strides, padding and dilation
        self.kernel._parameters = {
            "weight": nn.Parameter(layer.weight.new_full((1, 1, *layer.kernel_size), 1 / taps), requires_grad=False),
            "bias": None,
        }
        self.kernel.groups = 1

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = _Seen.apply(x.mean(1, keepdim=True))
        blurred: Tensor = self.kernel(mean)
        return blurred.repeat(1, self.channels, 1, 1)


class _Statistics(NamedTuple):
    """Of a feature map's channels, (C,), float64; equal within a group."""

    mean: Tensor
    variance: Tensor


class _Sums:
    """Statistics of feature maps that come in parts."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.count = 0

    def add(self, x: Tensor) -> None:
        """(N, C, H, W), any float."""
        x = x.float()
        if not self.count:
            self.around = x.mean((0, 2, 3))  # (C,): sums of squares lose nothing around what is nearly the mean
            self.total = self.squares = torch.zeros_like(self.around, dtype=torch.float64)
        x = x - self.around[:, None, None]
        # Along a row in float32, which torch sums in parts, then in float64.
        self.total = self.total + x.sum(3).double().sum((0, 2))
        self.squares = self.squares + x.square_().sum(3).double().sum((0, 2))
        self.count += x.shape[0] * x.shape[2] * x.shape[3]

    def statistics(self) -> _Statistics:
        shift = self.total / self.count
        mean, variance = self.around + shift, self.squares / self.count - shift**2
        # Of a group: the mean of its channels' variances, and the variance of their means.
        grouped = mean.view(self.groups, -1)  # (G, C / G)
        center = grouped.mean(1, keepdim=True)
        within, between = variance.view(self.groups, -1), (grouped - center).square()
        spread = (within + between).mean(1, keepdim=True)
        return _Statistics(center.expand_as(grouped).reshape(-1), spread.expand_as(grouped).reshape(-1))


class SharedNorm(nn.Module):
    """Instance, group or layer norm with statistics that are given: those of the whole image, whatever part x is.

    (x - mean) / sqrt(variance + eps) * weight + bias, all four (C,) and float32.
    """

    def __init__(self, norm: nn.InstanceNorm2d | nn.GroupNorm) -> None:
        super().__init__()
        self.channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
        self.groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else self.channels
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.mean = self.variance = torch.empty(0)
        self.begin()

    def begin(self) -> None:
        """Forget all: the next sample's own statistics are taken as they are."""
        self.running_sample = False
        self.shift = self.ratio = torch.empty(0)
        """What the sample's statistics lack, in units of its deviation, and as a ratio of variances."""
        self.sample: _Statistics | None = None
        self.tile: Tile | None = None
        """Which x is measured."""
        self.sums = _Sums(self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), any float."""
        if self.running_sample:
            self._take(x)
        elif self.tile is not None:
            self.sums.add(_core(x, self.tile))
        weight = torch.ones_like(self.mean) if self.weight is None else self.weight
        bias = torch.zeros_like(self.mean) if self.bias is None else self.bias
        return F.batch_norm(x, self.mean, self.variance, weight, bias, training=False, eps=self.eps)

    def _take(self, x: Tensor) -> None:
        """Statistics for this sample (N, C, H, W) of the image, and for all tiles after it: g + (f - g)."""
        sums = _Sums(self.groups)
        sums.add(x)
        mean, variance = self.sample = sums.statistics()
        if self.shift.numel():
            mean = mean + self.shift * (variance + self.eps).sqrt()
            variance = ((variance + self.eps) * self.ratio - self.eps).clamp(min=0)
        self.mean, self.variance = mean.float(), variance.float()

    def compare(self) -> None:
        """Learn from the tiles that were measured how far the sample is wrong; f - g."""
        assert self.sample is not None
        mean, variance = self.sums.statistics()
        self.shift = (mean - self.sample.mean) / (self.sample.variance + self.eps).sqrt()
        self.ratio = (variance + self.eps) / (self.sample.variance + self.eps)
        self.tile, self.sums = None, _Sums(self.groups)


def _core(x: Tensor, tile: Tile) -> Tensor:
    """The part of a window's feature map (N, C, H', W') that belongs to the core."""
    core, window = tile
    edges = []
    for first, last, low, size, length in (
        (core.top, core.bottom, window.top, window.height, x.shape[2]),
        (core.left, core.right, window.left, window.width, x.shape[3]),
    ):
        for edge in (first, last):
            whole, rest = divmod((edge - low) * length, size)
            if rest:
                raise ValueError(f"a feature map of {length} for {size} pixels is on no common grid: no tiles")
            edges.append(whole)
    top, bottom, left, right = edges
    return x[:, :, top:bottom, left:right]


class TiledNetwork:
    """A network that runs on tiles of one image as it would on the whole.

    Args:
        network: frozen, in eval mode. The copy made of it shares its weights.
    """

    def __init__(self, network: nn.Module) -> None:
        tensors = [*network.parameters(), *network.buffers()]
        self.network = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
        self.norms: list[SharedNorm] = []
        """Those over the whole image, in no certain order. Batch norm in eval mode has statistics of its own."""
        for module in list(self.network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.InstanceNorm2d) and child.track_running_stats:
                    continue
                if isinstance(child, (nn.InstanceNorm2d, nn.GroupNorm)):
                    shared = SharedNorm(child)
                    setattr(module, name, shared)
                    self.norms.append(shared)

    def adapt(self, sample: Tensor, passes: int, tiles: Sequence[Tile], run: Callable[[Box], object]) -> None:
        """Find the image's statistics, which all tiles are normalised with from then on.

        Args:
            sample: (1, C, h, w), the whole image made small.
            passes: how often to go over the tiles.
            run: calls this network with the part of the image in a box.
        """
        for norm in self.norms:
            norm.begin()
        self._run_sample(sample)
        for _ in range(passes):
            for tile in tiles:
                for norm in self.norms:
                    norm.tile = tile
                run(tile.window)
            for norm in self.norms:
                norm.compare()
            self._run_sample(sample)

    def _run_sample(self, sample: Tensor) -> None:
        for norm in self.norms:
            norm.running_sample = True
        self.network(sample)
        for norm in self.norms:
            norm.running_sample = False

    def __call__(self, window: Tensor) -> Tensor:
        """(1, C, h, w) -> (1, C', h * scale, w * scale), with the image's statistics."""
        made: Tensor = self.network(window)
        return made
