from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn.utils import parametrize

from translate.networks import (
    DiscriminatorSettings,
    GeneratorSettings,
    PatchSettings,
    PixelSettings,
    count_parameters,
)
from translate.networks.layers import DownsamplingName, NormName
from translate.networks.patch import PatchDiscriminator, PixelDiscriminator
from translate.networks.resnet import ResNetSettings


@pytest.mark.parametrize(
    ("settings", "channels", "parameters"),
    [
        (PatchSettings(), 6, 2_768_705),
        (PatchSettings(norm="instance"), 3, 2_764_737),
        (PatchSettings(norm="instance", downsampling="anti-aliased"), 3, 2_764_737),
        (PixelSettings(), 6, 9_024),
    ],
)
def test_parameters_are_those_of_the_reference(
    settings: PatchSettings | PixelSettings, channels: int, parameters: int
) -> None:
    with torch.device("meta"):
        assert count_parameters(settings.build(channels)) == parameters


@pytest.mark.parametrize("downsampling", ["strided", "anti-aliased"])
def test_logits_of_a_256_pixel_image(downsampling: DownsamplingName) -> None:
    with torch.device("meta"):
        net = PatchSettings(downsampling=downsampling).build(6)
        assert net(torch.empty(1, 6, 256, 256)).shape == (1, 1, 30, 30)


SIDES: dict[DownsamplingName, list[int]] = {
    "strided": [16, 34, 70, 142, 286],
    "anti-aliased": [18, 40, 84, 172, 348],
}


@pytest.mark.parametrize("downsampling", SIDES)
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_receptive_field_is_where_the_gradient_reaches(layers: int, downsampling: DownsamplingName) -> None:
    torch.manual_seed(0)
    side = SIDES[downsampling][layers - 1]
    net = PatchSettings(layers=layers, width=1, norm="none", downsampling=downsampling).build(1)
    assert net.receptive_field == side
    size = 2**layers * 2 + side + 2**layers  # room around the square of the logit in the middle
    x = torch.randn(1, 1, size, size, requires_grad=True)
    logits = net(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert x.grad is not None
    rows = x.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert rows[0] > 0
    assert rows[-1] < size - 1
    assert rows[-1] - rows[0] + 1 == side


def test_pixel_discriminator_sees_one_pixel() -> None:
    net = PixelSettings(width=4, norm="none").build(3)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    logits = net(x)
    assert logits.shape == (1, 1, 8, 8)
    logits[0, 0, 2, 5].backward()
    assert x.grad is not None
    assert x.grad.abs().sum(dim=1).nonzero().tolist() == [[0, 2, 5]]
    assert net.receptive_field == 1


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize(
    ("layers", "downsampling"), [(1, "strided"), (3, "strided"), (5, "strided"), (3, "anti-aliased")]
)
def test_smallest_image_trains(
    layers: int, downsampling: DownsamplingName, norm: NormName, spectral_norm: bool
) -> None:
    torch.manual_seed(0)
    settings = PatchSettings(layers=layers, width=2, norm=norm, spectral_norm=spectral_norm, downsampling=downsampling)
    net = settings.build(3)
    logits = net(torch.randn(1, 3, net.smallest, net.smallest))
    assert logits.shape == (1, 1, 1, 1)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    with pytest.raises((RuntimeError, ValueError)):
        net(torch.randn(1, 3, net.smallest - 1, net.smallest - 1))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_smallest_image_trains_per_pixel(norm: NormName) -> None:
    net = PixelSettings(width=2, norm=norm).build(3)
    assert net(torch.randn(1, 3, net.smallest, net.smallest)).shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    "settings", [PatchSettings(width=4), PatchSettings(width=4, downsampling="anti-aliased"), PixelSettings(width=4)]
)
def test_features_end_in_the_logits(settings: PatchSettings | PixelSettings) -> None:
    torch.manual_seed(0)
    net = settings.build(3).eval()
    x = torch.randn(2, 3, 32, 32)
    features = net.features(x)
    assert torch.equal(features[-1], net(x))
    assert len(features) == sum(isinstance(layer, nn.Conv2d) for layer in net.modules())
    # Blocks do not write into what an earlier block returned: each one can be recomputed from the one before.
    for block, before, after in zip(net.blocks[1:], features[:-1], features[1:], strict=True):
        assert torch.equal(block(before), after)


@pytest.mark.parametrize("kind", [PatchSettings, PixelSettings])
def test_spectral_norm_bounds_every_convolution(kind: type[PatchSettings] | type[PixelSettings]) -> None:
    torch.manual_seed(0)
    net: PatchDiscriminator | PixelDiscriminator = kind(width=8, spectral_norm=True).build(3).eval()
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert all(parametrize.is_parametrized(layer, "weight") for layer in convolutions)
    for layer in convolutions:
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=0.1)


def test_unions_are_told_apart_by_kind() -> None:
    generators: TypeAdapter[GeneratorSettings] = TypeAdapter(GeneratorSettings)
    discriminators: TypeAdapter[DiscriminatorSettings] = TypeAdapter(DiscriminatorSettings)
    assert generators.validate_python({"kind": "resnet", "blocks": 6}) == ResNetSettings(blocks=6)
    assert discriminators.validate_python({"kind": "pixel", "width": 32}) == PixelSettings(width=32)
    with pytest.raises(ValidationError, match="layers"):
        discriminators.validate_python({"kind": "patch", "layers": 6})
