from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.networks import MSRResNetSettings, count_parameters
from translate.networks.srresnet import Scale

# x2 and x4 are the reference's; a doubling is a convolution of 64 * 256 * 9 weights and 256 biases: 147,712.
PARAMETERS: dict[Scale, int] = {1: 1_222_147, 2: 1_369_859, 4: 1_517_571, 8: 1_665_283}


@pytest.mark.parametrize("scale", PARAMETERS)
def test_parameters_and_what_sizes_fit(scale: Scale) -> None:
    with torch.device("meta"):
        net = MSRResNetSettings().build(3, 3, scale)
        assert count_parameters(net) == PARAMETERS[scale]
    assert (net.scale, net.multiple, net.smallest) == (scale, 1, 1)


def test_names_are_those_that_loaders_know() -> None:
    layers = [
        "conv_first", "body.0.conv1", "body.0.conv2", "body.1.conv1", "body.1.conv2",
        "upconv1", "upconv2", "conv_hr", "conv_last",
    ]  # fmt: skip
    net = MSRResNetSettings(blocks=2, width=4).build(3, 3, 4)
    assert set(net.state_dict()) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def enlarged(x: Tensor, scale: int) -> Tensor:
    """Bilinear, pixel centres on half numbers, the border repeated: each axis as a matrix."""

    def matrix(size: int) -> Tensor:
        rows = torch.zeros(scale * size, size, dtype=x.dtype)
        for row in range(scale * size):
            place = max((row + 0.5) / scale - 0.5, 0)
            below = int(place)
            rows[row, below] += 1 - (place - below)
            rows[row, min(below + 1, size - 1)] += place - below
        return rows

    return matrix(x.shape[2]) @ x @ matrix(x.shape[3]).T


def plain(x: Tensor, state: dict[str, Tensor], blocks: int, upconvs: list[str], scale: int) -> Tensor:
    """The reference's network in [0, 1], line by line."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def leaky(x: Tensor) -> Tensor:
        return torch.maximum(x, 0.1 * x)

    y = leaky(conv(x, "conv_first"))
    for i in range(blocks):
        y = y + conv(conv(y, f"body.{i}.conv1").clamp(min=0), f"body.{i}.conv2")
    for name in upconvs:
        y = leaky(F.pixel_shuffle(conv(y, name), 2))
    return conv(leaky(conv(y, "conv_hr")), "conv_last") + enlarged(x, scale)


@pytest.mark.parametrize(
    ("scale", "upconvs"),
    [(1, []), (2, ["upconv1"]), (4, ["upconv1", "upconv2"]), (8, ["upconv1", "upconv2", "upconv3"])],
)
def test_is_the_reference_written_plainly(scale: Scale, upconvs: list[str]) -> None:
    torch.manual_seed(0)
    net = MSRResNetSettings(blocks=2, width=8).build(3, 3, scale).double()
    for parameter in net.parameters():  # as large as trained ones, so that each counts
        nn.init.normal_(parameter, 0, 0.1)
    x = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    # The same sums in float64, in another order.
    expected = 2 * plain(x, net.state_dict(), 2, upconvs, scale) - 1
    torch.testing.assert_close(net(2 * x - 1), expected, atol=1e-12, rtol=0)


def test_starts_near_the_enlarged_input() -> None:
    """Kaiming's weights, divided by ten: deviation sqrt(2 / fan in) / 10, biases 0."""
    torch.manual_seed(0)
    net = MSRResNetSettings().build(3, 3, 4)
    layer = net.body[3].conv2
    # 36,864 values: the deviation is known to 1 / sqrt(2 * 36,864) = 0.4 %, of which four fit.
    assert float(layer.weight.detach().std()) == pytest.approx(0.1 * (2 / 576) ** 0.5, rel=0.016)
    assert all(not parameter.any() for name, parameter in net.named_parameters() if name.endswith("bias"))
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        assert (net(x) - F.interpolate(x, scale_factor=4, mode="bilinear")).abs().max() < 0.01


def test_channels_in_and_out_are_the_same() -> None:
    with pytest.raises(UserError, match="cannot turn 1 channels into 3; use kind: srresnet or rrdb"):
        MSRResNetSettings().build(1, 3, 4)


def test_trains_in_bf16() -> None:
    torch.manual_seed(0)
    net = MSRResNetSettings(blocks=1, width=4).build(3, 3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = net(torch.rand(1, 3, 4, 4))
    made.float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
