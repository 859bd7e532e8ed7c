from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from translate.networks import RRDBSettings, count_parameters
from translate.networks.srresnet import Scale

# x1, x2 and x4 are the reference's. Below x4 the first convolution reads 4 or 16 times the channels: 576 weights for
# each more; x8 has one more convolution of 64 * 64 * 9 weights and 64 biases.
PARAMETERS: dict[Scale, int] = {1: 16_723_907, 2: 16_703_171, 4: 16_697_987, 8: 16_734_915}


@pytest.mark.parametrize("scale", PARAMETERS)
def test_parameters_and_what_sizes_fit(scale: Scale) -> None:
    with torch.device("meta"):
        net = RRDBSettings().build(3, 3, scale)
        assert count_parameters(net) == PARAMETERS[scale]
    multiple = {1: 4, 2: 2, 4: 1, 8: 1}[scale]
    assert (net.scale, net.multiple, net.smallest) == (scale, multiple, multiple)


@pytest.mark.parametrize("scale", PARAMETERS)
def test_smallest_image_trains_and_others_are_refused(scale: Scale) -> None:
    torch.manual_seed(0)
    net = RRDBSettings(blocks=1, width=4, growth=2).build(1, 1, scale)
    made = net(torch.rand(1, 1, net.smallest, net.smallest + net.multiple))
    made.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    if net.multiple > 1:
        with pytest.raises(RuntimeError):
            net(torch.rand(1, 1, net.multiple + 1, net.multiple))


def test_names_are_those_that_loaders_know() -> None:
    layers = [
        "conv_first",
        *(f"body.{i}.rdb{j}.conv{k}" for i in (0, 1) for j in (1, 2, 3) for k in (1, 2, 3, 4, 5)),
        "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last",
    ]  # fmt: skip
    net = RRDBSettings(blocks=2, width=4, growth=2).build(3, 3, 4)
    assert set(net.state_dict()) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def plain(x: Tensor, state: dict[str, Tensor], blocks: int, unshuffle: int, doublings: int) -> Tensor:
    """The reference's network in [0, 1], line by line."""

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def leaky(x: Tensor) -> Tensor:
        return torch.maximum(x, 0.2 * x)

    def dense(x: Tensor, name: str) -> Tensor:
        x1 = leaky(conv(x, f"{name}.conv1"))
        x2 = leaky(conv(torch.cat([x, x1], 1), f"{name}.conv2"))
        x3 = leaky(conv(torch.cat([x, x1, x2], 1), f"{name}.conv3"))
        x4 = leaky(conv(torch.cat([x, x1, x2, x3], 1), f"{name}.conv4"))
        return conv(torch.cat([x, x1, x2, x3, x4], 1), f"{name}.conv5") * 0.2 + x

    # Pixel (s y + i, s x + j) of channel c becomes pixel (y, x) of channel s s c + s i + j.
    parts = [
        x[:, c, i::unshuffle, j::unshuffle]
        for c in range(x.shape[1])
        for i in range(unshuffle)
        for j in range(unshuffle)
    ]
    first = y = conv(torch.stack(parts, 1), "conv_first")
    for i in range(blocks):
        y = dense(dense(dense(y, f"body.{i}.rdb1"), f"body.{i}.rdb2"), f"body.{i}.rdb3") * 0.2 + y
    y = first + conv(y, "conv_body")
    for i in range(1, doublings + 1):
        y = leaky(conv(y.repeat_interleave(2, 2).repeat_interleave(2, 3), f"conv_up{i}"))
    return conv(leaky(conv(y, "conv_hr")), "conv_last")


@pytest.mark.parametrize(("scale", "unshuffle", "doublings"), [(1, 4, 2), (2, 2, 2), (4, 1, 2), (8, 1, 3)])
def test_is_the_reference_written_plainly(scale: Scale, unshuffle: int, doublings: int) -> None:
    torch.manual_seed(0)
    net = RRDBSettings(blocks=2, width=6, growth=4).build(3, 2, scale).double()
    for parameter in net.parameters():  # as large as trained ones, so that each counts
        nn.init.normal_(parameter, 0, 0.2)
    x = torch.rand(2, 3, 8, 4, dtype=torch.float64)
    expected = 2 * plain(x, net.state_dict(), 2, unshuffle, doublings) - 1
    # The same sums in float64, in another order.
    torch.testing.assert_close(net(2 * x - 1), expected, atol=1e-12, rtol=1e-12)


def test_dense_blocks_start_small_and_the_rest_as_torch_draws() -> None:
    torch.manual_seed(0)
    net = RRDBSettings(blocks=1).build(3, 3, 4)
    layer = net.body[0].rdb2.conv5
    # 110,592 values: the deviation is known to 1 / sqrt(2 * 110,592) = 0.2 %, of which four fit.
    assert float(layer.weight.detach().std()) == pytest.approx(0.1 * (2 / (192 * 9)) ** 0.5, rel=0.008)
    assert not layer.bias.any()
    # Uniform in +-1 / sqrt(fan in): of 36,864 weights one is as good as at the bound.
    assert float(net.conv_body.weight.detach().abs().max()) == pytest.approx(1 / 24, rel=1e-3)
    assert net.conv_body.bias.any()


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_changes_no_gradient(autocast: bool) -> None:
    """To the last bit: the second pass computes what the first did."""

    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net = RRDBSettings(blocks=2, width=4, growth=2, checkpointing=checkpointing).build(1, 1, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            made = net(torch.rand(1, 1, 8, 8))
        return [made, *torch.autograd.grad(made.float().square().mean(), list(net.parameters()))]

    for kept, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(kept, recomputed)


def test_checkpointing_keeps_less() -> None:
    def saved(checkpointing: bool) -> int:
        net = RRDBSettings(blocks=8, width=4, growth=2, checkpointing=checkpointing).build(1, 1, 4)
        own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes() // 4
            return tensor

        kept = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept.append(net(torch.rand(1, 1, 16, 16)))
        return sum(sizes.values())

    # Inside a block 3 x (x and four growing stacks) of 16 x 16 pixels, in its place one map of 4 channels.
    inside = 8 * 3 * (4 + 6 + 8 + 10 + 12) * 256
    assert saved(False) - saved(True) >= inside - 8 * 4 * 256
