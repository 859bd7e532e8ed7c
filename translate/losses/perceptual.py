"""The perceptual loss: distance between activations of a VGG network (Johnson et al., arXiv 1603.08155)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.pretrained import store
from translate.pretrained.expect import expect
from translate.pretrained.readers import read_state_dict
from translate.run import sha256
from translate.settings import Settings

NetworkName = Literal["vgg16", "vgg19"]

# Convolutions of each of the five blocks, and their channels: Simonyan & Zisserman, arXiv 1409.1556, table 1.
_CONVOLUTIONS: dict[NetworkName, tuple[int, ...]] = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)
# Of ImageNet's RGB values in [0, 1]; what torchvision's weights were trained with.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def _positions(network: NetworkName) -> dict[str, int]:
    """Where `conv<block>_<n>` and its `relu<block>_<n>` stand in torchvision's `features`, in order."""
    positions: dict[str, int] = {}
    position = 0
    for block, count in enumerate(_CONVOLUTIONS[network], start=1):
        for number in range(1, count + 1):
            positions[f"conv{block}_{number}"] = position
            positions[f"relu{block}_{number}"] = position + 1
            position += 2
        position += 1  # the block's pooling
    return positions


class PerceptualSettings(Settings):
    """Distance between VGG activations. The weights lie on this machine: training downloads nothing."""

    network: NetworkName = "vgg19"
    weights: Path | None = None
    """Torchvision's VGG weights: `.safetensors`, or the `.pth` that torchvision itself downloads. Left out: the VGG19
    that `translate weights get vgg19` fetched. From its package that one is activation-normalised: `relu` layers are 1
    on average, and need another `weight` than torchvision's (see there)."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    """Checksum that the weights file must have."""
    layers: dict[str, float] = Field(default={"relu5_4": 1.0}, min_length=1)
    """Weight of each layer: `conv<block>_<n>` before its ReLU, `relu<block>_<n>` after it. The default is SRGAN's VGG54
    (Ledig et al., arXiv 1609.04802, section 2.2.1); before the ReLU normalised weights have means around -50."""
    distance: Literal["l1", "l2"] = "l1"
    """Between activations: absolute, or squared as SRGAN's equation 5."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the term in the generator's loss. SRGAN divides the features by 12.75 (section 3.2), which for `l2` is
    a weight of (1 / 12.75)² = 0.00615: that is for torchvision's file. It brought the term to the scale of squared
    pixels, which the normalised VGG19 needs 0.001 for: photographs and their bicubic x4 copies differ by 32 there
    (`relu5_4`, BSDS500; by 1.3 in `l1`), and by 0.037 in squared pixels (0.12)."""

    @model_validator(mode="after")
    def _layers_exist(self) -> PerceptualSettings:
        known = _positions(self.network)
        for name in self.layers:
            if name not in known:
                raise ValueError(f"{self.network} has no layer '{name}'; it has {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _weights_are_known(self) -> PerceptualSettings:
        if self.weights is None and self.network != "vgg19":
            raise ValueError(f"'translate weights' has no {self.network}: name a file of torchvision's in 'weights'")
        if self.weights is None and self.sha256 is not None:
            raise ValueError("'sha256' is the checksum of a file: name the file in 'weights'")
        return self

    def build(self) -> PerceptualLoss:
        """The loss with its weights read; raises UserError where the file is missing, damaged or another."""
        return PerceptualLoss(self)


class PerceptualLoss(nn.Module):
    """Weighted sum over the layers of the mean distance of their activations.

    The weights are buffers that no state_dict holds: they follow `.to(device)`, never train and enter no
    checkpoint.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: PerceptualSettings) -> None:
        super().__init__()
        self.layers = dict(settings.layers)
        self.distance = F.l1_loss if settings.distance == "l1" else F.mse_loss
        positions = _positions(settings.network)
        deepest = max(positions[name] for name in self.layers)
        shapes: dict[str, tuple[int, ...]] = {}
        self._convolutions: list[str] = []
        before = 3
        for name, position in positions.items():
            if name.startswith("conv") and position <= deepest:
                after = _CHANNELS[int(name[4]) - 1]
                shapes[f"features.{position}.weight"] = (after, before, 3, 3)
                shapes[f"features.{position}.bias"] = (after,)
                self._convolutions.append(name)
                before = after
        tensors = _read(settings, shapes)
        for name in self._convolutions:
            for part in ("weight", "bias"):
                tensor = tensors[f"features.{positions[name]}.{part}"]
                self.register_buffer(f"{name}_{part}", tensor, persistent=False)
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Images (N, 3 or 1, H, W) RGB or grey in [-1, 1] -> float32 scalar; no gradient flows to `real`.

        Under autocast the convolutions run in bfloat16, but in float32 where it is float16, which activations of
        hundreds would leave little of. Each of L layers then rounds to 2^-9, so the features are known to sqrt(L) 2^-9
        of their size, less than 1 %: distances of images in training are a hundred times that. Raises UserError for
        images that VGG cannot take.
        """
        device = fake.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        with torch.autocast(device, torch.bfloat16, enabled=half):
            with torch.no_grad():
                wanted = self.features(real)
            found = self.features(fake)
        pairs = [(weight, found[name].float(), wanted[name].float()) for name, weight in self.layers.items()]
        return torch.stack([weight * self.distance(made, target) for weight, made, target in pairs]).sum()

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Activations of the layers in the settings, (N, C, H / 2**(block - 1), W / 2**(block - 1)) each."""
        smallest = 2 ** (int(self._convolutions[-1][4]) - 1)
        if images.shape[1] not in (1, 3) or min(images.shape[2:]) < smallest:
            _, channels, height, width = images.shape
            raise UserError(
                f"the perceptual loss takes RGB or grey images of at least {smallest}x{smallest} pixels for "
                f"these layers, not {width}x{height} with {channels} channels; change them or leave it out"
            )
        x = ((images.float() + 1) / 2 - self.mean) / self.std  # grey is broadcast to (N, 3, H, W)
        found: dict[str, Tensor] = {}
        for name in self._convolutions:
            if name.endswith("_1") and name != "conv1_1":
                x = F.max_pool2d(x, 2)
            x = F.conv2d(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"), padding=1)
            found[name] = x
            x = F.relu(x)
            found[name.replace("conv", "relu")] = x
        return {name: found[name] for name in self.layers}


def _read(settings: PerceptualSettings, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of these names and shapes as float32; UserError if the file does not hold just that."""
    if settings.weights is None:
        held = store.load("vgg19")
        tensors, path = held.tensors, held.path
    else:
        path = settings.weights.expanduser()
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; the perceptual loss needs torchvision's {settings.network} weights: "
                "download them once and name the file in its 'weights'"
            )
        if settings.sha256 is not None and (digest := sha256(path)) != settings.sha256.lower():
            raise UserError(
                f"{path}: the SHA-256 is {digest}, not {settings.sha256.lower()} as the settings say; "
                "download the file again or correct 'sha256'"
            )
        tensors = read_state_dict(path)
    what = f"torchvision's {settings.network} weights"
    return {key: expect(tensors, key, shape, path, what) for key, shape in shapes.items()}
