from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F

from translate.networks import DiscriminatorSettings, StyleGAN2DiscriminatorSettings, count_parameters
from translate.networks.stylegan2_discriminator import HalvingBlock, StyleGAN2Discriminator, blurred


def test_parameters_are_those_of_the_paper() -> None:
    widths = [64, 128, 256, 512, 512, 512, 512]  # at 256, 128, ... 4: min(8192 / side * 2, 512), configuration E
    expected = 4 * 64 + sum(a * (9 * a + 1) + b * (9 * a + 1) + a * b for a, b in pairwise(widths))
    expected += 512 * (9 * 513 + 1) + 512 * (16 * 512 + 1) + 513
    with torch.device("meta"):
        assert count_parameters(StyleGAN2DiscriminatorSettings().build(3)) == expected == 24_001_089


@pytest.mark.parametrize("size", [(2, 2), (6, 8), (7, 5)])
def test_blur_is_an_outer_product_of_1331(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    padded = F.pad(x, (2, 2, 2, 2))
    height, width = size
    expected = torch.zeros(2, 3, height + 1, width + 1, dtype=torch.float64)
    for row, a in enumerate((1, 3, 3, 1)):
        for column, b in enumerate((1, 3, 3, 1)):
            expected += a * b / 64 * padded[:, :, row : row + height + 1, column : column + width + 1]
    torch.testing.assert_close(blurred(x, 1), expected)
    torch.testing.assert_close(blurred(x, 2), expected[:, :, 1:height:2, 1:width:2])
    assert blurred(x, 2).shape[2:] == (height // 2, width // 2)


def halved_plainly(x: Tensor, block: HalvingBlock) -> Tensor:
    def activated(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)

    y = activated(F.conv2d(x, block.enter.weight, block.enter.bias, padding=1))
    # All outputs of the convolution of the blurred image, of which every second one counts.
    y = activated(F.conv2d(blurred(y, 1), block.halve.weight, block.halve.bias)[:, :, ::2, ::2])
    skip = torch.einsum("oc,nchw->nohw", block.skip.weight[:, :, 0, 0], blurred(x, 2))
    return (y + skip) / math.sqrt(2)


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (2, 3)])
def test_block_is_the_papers_written_plainly(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = HalvingBlock(3, 5).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(block(x), halved_plainly(x, block), atol=1e-12, rtol=0)
    assert block(x).shape == (2, 5, size[0] // 2, size[1] // 2)


def test_weights_have_the_deviation_that_equalised_ones_have() -> None:
    torch.manual_seed(0)
    net = StyleGAN2DiscriminatorSettings(width=32, layers=2).build(3)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.numel() > 1000:
            # Of at least 1,000 normal numbers the deviation is known to 2 %; five times that.
            assert parameter.std().item() == pytest.approx(parameter[0].numel() ** -0.5, rel=0.1), name


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (41, 67)])
@pytest.mark.parametrize("group", [0, 4])
def test_any_size_from_the_smallest_trains(size: tuple[int, int], group: int) -> None:
    torch.manual_seed(0)
    net = StyleGAN2DiscriminatorSettings(width=2, layers=3, group=group).build(3)
    assert net.smallest == 8 and net.multiple == 1
    logits = net(torch.randn(3, 3, *size))
    assert logits.shape == (3, 1, 1, 1)
    logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_an_image_too_small_is_refused() -> None:
    net = StyleGAN2DiscriminatorSettings(width=2, layers=3).build(3)
    with pytest.raises(RuntimeError):
        net(torch.randn(1, 3, 7, 8))


def test_features_are_each_blocks_and_end_in_the_logits() -> None:
    torch.manual_seed(0)
    net = StyleGAN2DiscriminatorSettings(width=2, layers=5).build(3)
    x = torch.randn(2, 3, 128, 67)
    features = net.features(x)
    shapes = [(2, 128, 67), (4, 64, 33), (8, 32, 16), (16, 16, 8), (16, 8, 4), (16, 4, 2), (16, 4, 2), (16, 1, 1)]
    assert [tuple(f.shape[1:]) for f in features] == [*shapes, (1, 1, 1)]
    assert torch.equal(features[-1], net(x))
    # Blocks do not write into what an earlier block returned: each one can be recomputed from the one before.
    for block, before, after in zip(net.blocks[1:], features[:-2], features[1:-1], strict=True):
        assert torch.equal(block(before), after)


def test_only_the_deviation_of_a_group_ties_images_together() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)

    def alone_differs(group: int) -> bool:
        net = StyleGAN2DiscriminatorSettings(width=4, layers=2, group=group).build(3)
        with torch.no_grad():
            return not torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)

    assert [alone_differs(group) for group in (0, 4)] == [False, True]


def test_a_gradient_penalty_trains_every_weight() -> None:
    torch.manual_seed(0)
    net = StyleGAN2DiscriminatorSettings(width=2, layers=2).build(2).double()
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64, requires_grad=True)

    def penalty(net: StyleGAN2Discriminator, x: Tensor) -> Tensor:  # R1
        (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return gradient.square().sum()

    torch.autograd.backward(penalty(net, x))
    for name, parameter in net.named_parameters():
        if not name.endswith("bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    # The second derivative beside a difference of the first ones.
    weight = net.blocks[1].get_parameter("halve.weight")
    start, direction = weight.detach().clone(), torch.randn_like(weight)
    assert weight.grad is not None
    slope = (weight.grad * direction).sum()
    sides = []
    for step in (1e-6, -1e-6):
        weight.data = start + step * direction
        sides.append(penalty(net, x).detach())
    torch.testing.assert_close((sides[0] - sides[1]) / 2e-6, slope.detach(), rtol=1e-5, atol=1e-8)


def test_logits_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    net = StyleGAN2DiscriminatorSettings(width=4, layers=2).build(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = net.features(torch.randn(2, 3, 16, 16))
    assert features[0].dtype == features[1].dtype == torch.bfloat16 and features[-1].dtype == torch.float32
    torch.testing.assert_close(features[-1].flatten(1), net.score(features[-2].float().flatten(1)))


def test_is_one_of_the_discriminators() -> None:
    discriminators: TypeAdapter[DiscriminatorSettings] = TypeAdapter(DiscriminatorSettings)
    settings = discriminators.validate_python({"kind": "stylegan2", "layers": 5})
    assert settings == StyleGAN2DiscriminatorSettings(layers=5)
