from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from translate.networks import SRResNetSettings, count_parameters
from translate.networks.layers import NormName
from translate.networks.srresnet import Scale

# At x4 the reference's; a doubling is a convolution of 64 * 256 * 9 weights, 256 biases and one slope: 147,713.
PARAMETERS: dict[Scale, int] = {1: 1_251_924, 2: 1_399_637, 4: 1_547_350, 8: 1_695_063}


@pytest.mark.parametrize("scale", PARAMETERS)
def test_parameters_and_what_sizes_fit(scale: Scale) -> None:
    with torch.device("meta"):
        net = SRResNetSettings().build(3, 3, scale)
        assert count_parameters(net) == PARAMETERS[scale]
    assert (net.scale, net.multiple, net.smallest) == (scale, 1, 1)


def plain(x: Tensor, state: dict[str, Tensor], blocks: int, doublings: int) -> Tensor:
    """Figure 4 of the paper, of batch norm in evaluation, line by line."""

    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, gain, bias = (
            state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + bias

    def prelu(x: Tensor, name: str) -> Tensor:
        return torch.where(x > 0, x, state[f"{name}.weight"] * x)

    first = prelu(conv((x + 1) / 2, "head.0", 4), "head.1")
    y = first
    for i in range(blocks):
        inside = prelu(norm(conv(y, f"blocks.{i}.body.0"), f"blocks.{i}.body.1"), f"blocks.{i}.body.2")
        y = y + norm(conv(inside, f"blocks.{i}.body.3"), f"blocks.{i}.body.4")
    y = norm(conv(y, "merge.0"), "merge.1") + first
    for i in range(doublings):
        n, _, h, w = y.shape
        y = conv(y, f"upsampling.{2 * i}")
        # Channel 4 c + 2 i + j becomes row 2 y + i, column 2 x + j of channel c.
        y = y.view(n, -1, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, 2 * h, 2 * w)
        y = prelu(y, f"upsampling.{2 * i + 1}")
    return conv(y, "tail", 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("scale", "doublings"), [(1, 0), (2, 1), (4, 2), (8, 3)])
def test_is_the_paper_written_plainly(scale: Scale, doublings: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    net = SRResNetSettings(blocks=2, width=8).build(2, 3, scale).double()
    for parameter in net.parameters():
        if parameter.numel() == 1:  # a slope each
            torch.nn.init.uniform_(parameter, 0.1, 0.9)
    x = torch.rand(2, 2, 7, 9, dtype=torch.float64) * 2 - 1
    net(x)  # running statistics that are not those of the start
    net.eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, _ in net.named_parameters():
        state[name].requires_grad_()
    expected = plain(x, state, 2, doublings)
    net.to(memory_format=layout)
    made = net(x.contiguous(memory_format=layout))
    # The same sums in float64, in another order.
    torch.testing.assert_close(made, expected, atol=1e-12, rtol=0)
    names = [name for name, _ in net.named_parameters()]
    towards = torch.randn_like(made)
    ours = torch.autograd.grad(made, list(net.parameters()), towards)
    theirs = torch.autograd.grad(expected, [state[name] for name in names], towards)
    for name, gradient, wanted in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_trains_with_each_norm(norm: NormName) -> None:
    torch.manual_seed(0)
    net = SRResNetSettings(blocks=1, width=4, norm=norm).build(1, 1, 2)
    net(torch.randn(2, 1, 4, 4)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_an_image_of_one_pixel_is_enlarged() -> None:
    net = SRResNetSettings(blocks=1, width=4).build(3, 3, 4).eval()
    assert net(torch.zeros(1, 3, net.smallest, net.smallest)).shape == (1, 3, 4, 4)
