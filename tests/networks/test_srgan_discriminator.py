from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.networks import DiscriminatorSettings, SRGANDiscriminatorSettings, count_parameters
from translate.networks.layers import NormName, stored_weight
from translate.networks.srgan_discriminator import SRGANDiscriminator

WIDTHS = [64, 64, 128, 128, 256, 256, 512, 512]


@pytest.mark.parametrize(
    ("settings", "channels", "parameters"),
    [
        (SRGANDiscriminatorSettings(head="flatten"), 3, 23_563_649),
        # 512 inputs of the first dense layer in place of 512 * 36: 1,024 * 512 * 35 fewer.
        (SRGANDiscriminatorSettings(), 3, 23_563_649 - 1_024 * 512 * 35),
        (SRGANDiscriminatorSettings(), 6, 23_563_649 - 1_024 * 512 * 35 + 3 * 64 * 9),
    ],
)
def test_parameters_are_those_of_the_paper(
    settings: SRGANDiscriminatorSettings, channels: int, parameters: int
) -> None:
    with torch.device("meta"):
        assert count_parameters(settings.build(channels)) == parameters


def plain(x: Tensor, net: SRGANDiscriminator, *, flatten: bool) -> Tensor:
    """Figure 4 of the paper, of batch norm in training, line by line: the weights in the order of the layers."""
    weights = iter([p.detach() for p in net.parameters()])
    x = F.leaky_relu(F.conv2d(x, next(weights), next(weights), padding=1), 0.2)
    for number in range(1, 8):
        x = F.conv2d(x, next(weights), None, stride=2 if number % 2 else 1, padding=1)
        gain, bias = next(weights), next(weights)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        x = (x - mean) / (variance + 1e-5).sqrt() * gain[:, None, None] + bias[:, None, None]
        x = F.leaky_relu(x, 0.2)
    x = x.reshape(len(x), -1) if flatten else x.mean((2, 3))
    x = F.leaky_relu(x @ next(weights).T + next(weights), 0.2)
    x = x @ next(weights).T + next(weights)
    assert next(weights, None) is None
    return x[:, :, None, None]


@pytest.mark.parametrize("head", ["pool", "flatten"])
def test_is_the_paper_written_plainly(head: str) -> None:
    torch.manual_seed(0)
    settings = SRGANDiscriminatorSettings.model_validate({"head": head, "side": 40, "width": 4})
    net = settings.build(2).double()
    x = torch.randn(3, 2, 40, 40, dtype=torch.float64)
    # The same sums in float64, in another order.
    torch.testing.assert_close(net(x), plain(x, net, flatten=head == "flatten"), atol=1e-10, rtol=0)


def test_features_are_each_layers_and_end_in_the_logits() -> None:
    torch.manual_seed(0)
    net = SRGANDiscriminatorSettings(width=4).build(3).eval()
    x = torch.randn(2, 3, 48, 33)
    features = net.features(x)
    sides = [(48, 33), (24, 17), (24, 17), (12, 9), (12, 9), (6, 5), (6, 5), (3, 3)]
    shapes = [(2, width // 16, *side) for width, side in zip(WIDTHS, sides, strict=True)]
    assert [tuple(f.shape) for f in features] == [*shapes, (2, 64, 1, 1), (2, 1, 1, 1)]
    assert torch.equal(features[-1], net(x))
    # Blocks do not write into what an earlier block returned: each one can be recomputed from the one before.
    for block, before, after in zip(net.blocks[1:], features[:-2], features[1:-1], strict=True):
        assert torch.equal(block(before), after)


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "layer", "none"])
def test_smallest_image_trains(norm: NormName, spectral_norm: bool) -> None:
    torch.manual_seed(0)
    net = SRGANDiscriminatorSettings(width=2, norm=norm, spectral_norm=spectral_norm).build(3)
    assert net.smallest == (1 if norm in ("layer", "none") else 17) and net.multiple == 1
    logits = net(torch.randn(1, 3, net.smallest, net.smallest))
    assert logits.shape == (1, 1, 1, 1)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    with pytest.raises((RuntimeError, ValueError)):
        net(torch.randn(1, 3, net.smallest - 1, net.smallest - 1))


def test_flattened_it_judges_one_size() -> None:
    torch.manual_seed(0)
    net = SRGANDiscriminatorSettings(head="flatten", side=40, width=2, norm="none").build(1)
    assert net(torch.randn(1, 1, 40, 40)).shape == (1, 1, 1, 1)
    assert net.multiple == net.smallest == 40
    # 48 pixels, too, leave 3 behind the last convolution: the dense layer alone would not see the difference.
    for height, width in ((48, 48), (40, 48), (80, 80)):
        with pytest.raises(UserError, match=f"of 40x40 pixels, not {width}x{height}: set its side"):
            net(torch.randn(1, 1, height, width))
    with pytest.raises(ValidationError, match="side"):
        SRGANDiscriminatorSettings(side=16)


def test_spectral_norm_bounds_every_layer() -> None:
    torch.manual_seed(0)
    net = SRGANDiscriminatorSettings(width=4, spectral_norm=True).build(3).eval()
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 10
    for layer in layers:
        assert stored_weight(layer) is not layer.weight
        # By 15 steps of the power method, as in the test of the patch discriminator.
        assert torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item() == pytest.approx(1, abs=0.1)


def test_logits_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    net = SRGANDiscriminatorSettings(width=4).build(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = net.features(torch.randn(2, 3, 32, 32))
    assert features[0].dtype == torch.bfloat16 and features[-1].dtype == torch.float32
    torch.testing.assert_close(features[-1].flatten(1), net.score(features[-2].float().flatten(1)))


def test_is_one_of_the_discriminators() -> None:
    discriminators: TypeAdapter[DiscriminatorSettings] = TypeAdapter(DiscriminatorSettings)
    settings = discriminators.validate_python({"kind": "srgan", "head": "flatten", "side": 128})
    assert settings == SRGANDiscriminatorSettings(head="flatten", side=128)
