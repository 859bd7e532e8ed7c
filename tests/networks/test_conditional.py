from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from translate.errors import UserError
from translate.networks.conditional import (
    REFERENCE,
    ConditionalBatchNorm2d,
    Norm,
    VirtualBatch,
    VirtualBatchGenerator,
    VirtualBatchNorm,
)
from translate.networks.latent import LatentGenerator
from translate.networks.layers import InitialisationSettings, LatentNormName


def test_conditional_batch_norm_is_batch_norm_with_the_weights_of_the_class() -> None:
    torch.manual_seed(0)
    norm = ConditionalBatchNorm2d(3, 4)
    nn.init.normal_(norm.gains)
    nn.init.normal_(norm.biases)
    x, label = torch.randn(6, 3, 5, 5) * 2 + 1, torch.tensor([0, 1, 1, 3, 2, 0])
    got = norm(x, label)
    for number in range(4):  # plain batch norm over all of the batch, with the weights of this class alone
        plain = functional.batch_norm(x, None, None, norm.gains[number], norm.biases[number], training=True)
        torch.testing.assert_close(got[label == number], plain[label == number])


def test_conditional_batch_norm_starts_as_batch_norm_and_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    conditional, plain = ConditionalBatchNorm2d(3, 4), nn.BatchNorm2d(3)
    InitialisationSettings(gain=0.5).apply(conditional)  # whose gains stay at 1, biases at 0
    label = torch.tensor([0, 3])
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4) + 2
        torch.testing.assert_close(conditional(x, label), plain(x))
    conditional.eval()
    plain.eval()
    torch.testing.assert_close(conditional(x, label), plain(x))
    assert not torch.equal(conditional(x, label), conditional.train()(x, label))


def test_only_the_classes_of_the_batch_get_gradients() -> None:
    norm = ConditionalBatchNorm2d(2, 3)
    (norm(torch.randn(4, 2, 3, 3), torch.tensor([0, 2, 2, 0])) ** 3).sum().backward()
    for weight in (norm.gains, norm.biases):
        assert weight.grad is not None
        assert weight.grad.abs().sum(1).gt(0).tolist() == [True, False, True]


@pytest.mark.parametrize("pixels", [(), (5, 3)])
def test_virtual_batch_norm_equals_batch_norm_over_the_reference_and_the_example(pixels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = VirtualBatchNorm(4, reference=6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(9, 4, *pixels) * 2 + 3
    x[6:] += 5  # examples unlike the reference batch
    got = norm(x)

    def batch_norm(rows: Tensor) -> Tensor:
        return functional.batch_norm(rows, None, None, norm.weight, norm.bias, training=True)

    torch.testing.assert_close(got[:6], batch_norm(x[:6]))
    for i in range(6, 9):
        alone = batch_norm(torch.cat([x[:6], x[i : i + 1]]))[-1]
        torch.testing.assert_close(got[i], alone)


def test_virtual_batch_norm_is_exact_far_from_zero() -> None:
    torch.manual_seed(0)
    norm = VirtualBatchNorm(2, reference=8)
    x = torch.randn(12, 2, 4, 4)
    # A mean of 1000 deviations: E[x²] - E[x]² in float32 would be off by 6 %; x itself is rounded to 6e-5 there.
    torch.testing.assert_close(norm(x + 1000), norm(x), atol=5e-4, rtol=0)


def test_virtual_batch_norm_keeps_examples_apart_and_the_memory_format() -> None:
    torch.manual_seed(0)
    norm = VirtualBatchNorm(4, reference=3)
    x = torch.randn(5, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    normal = norm(x)
    assert normal.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad((normal[3] ** 2).sum(), x)
    assert gradient.flatten(1).abs().sum(1).gt(0).tolist() == [True, True, True, True, False]
    with pytest.raises(ValueError, match="3 rows"):
        norm(x[:3])


class Body(LatentGenerator):
    """A generator of points with one virtual batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.shape = 3, (2,)
        self.layers = nn.Sequential(nn.Linear(3, 8), Norm("virtual-batch", 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        points: Tensor = self.layers(latent)
        return points


@pytest.mark.parametrize("count", [5, REFERENCE, REFERENCE + 7])
def test_reference_batch_is_the_first_training_batch(count: int) -> None:
    torch.manual_seed(0)
    net = VirtualBatchGenerator(Body())
    before = net.body.reference.clone()
    net.eval()(torch.randn(4, 3))
    assert torch.equal(net.body.reference, before)  # evaluation chooses nothing
    first = torch.randn(count, 3)
    samples = net.train()(first)
    expected = torch.stack([first[i % count] for i in range(REFERENCE)])
    assert torch.equal(net.body.reference, expected)
    assert samples.shape == (count, 2)
    net(torch.randn(count, 3))
    assert torch.equal(net.body.reference, expected)
    # Evaluation is the same function as training, whatever else is in the batch.
    torch.testing.assert_close(net.eval()(first[:2]), samples[:2])


def test_reference_batch_is_in_the_state() -> None:
    torch.manual_seed(0)
    net, copy = VirtualBatch(Body(), (3,)), VirtualBatch(Body(), (3,))
    net(torch.randn(9, 3))
    copy.load_state_dict(net.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(copy(x), net(x))  # the copy, in training mode too, does not choose again
    assert bool(copy.chosen)


@pytest.mark.parametrize("name", ["batch", "instance", "group", "layer", "virtual-batch", "none"])
def test_each_norm_is_called_the_same_way(name: LatentNormName) -> None:
    torch.manual_seed(0)
    x, label = torch.randn(REFERENCE + 2, 8, 3, 3), torch.zeros(REFERENCE + 2, dtype=torch.long)
    norm = Norm(name, 8)
    assert norm(x).shape == x.shape
    assert torch.equal(norm(x, label), norm(x))
    if name != "instance":
        assert norm(x[:, :, 0, 0]).shape == x.shape[:2]


def test_dense_features_are_normalised_as_pixels_of_one() -> None:
    torch.manual_seed(0)
    x, label = torch.randn(16, 8) * 3 + 1, torch.randint(0, 5, (16,))
    torch.testing.assert_close(Norm("batch", 8)(x), functional.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(Norm("layer", 8)(x), functional.layer_norm(x, (8,)))
    torch.testing.assert_close(Norm("batch", 8, classes=5)(x, label), Norm("batch", 8)(x))


def test_classes_need_batch_norm() -> None:
    with pytest.raises(UserError, match="norm: batch, not layer"):
        Norm("layer", 8, classes=3)


@pytest.mark.parametrize("name", ["batch", "virtual-batch", "conditional"])
def test_double_backward(name: str) -> None:
    torch.manual_seed(0)
    norm = Norm("batch", 2, classes=2) if name == "conditional" else Norm("batch", 2)
    if name == "virtual-batch":
        norm.norm = VirtualBatchNorm(2, reference=2)
    label = torch.tensor([0, 1, 1])
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: norm.double()(x, label), x)


@pytest.mark.parametrize("norm", [ConditionalBatchNorm2d(4, 3), VirtualBatchNorm(4, reference=2)])
def test_bfloat16_stays_bfloat16(norm: nn.Module) -> None:
    torch.manual_seed(0)
    x, label = torch.randn(5, 4, 3, 3), torch.tensor([0, 1, 2, 0, 1])
    arguments = (label,) if isinstance(norm, ConditionalBatchNorm2d) else ()
    expected = norm(x, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        got = norm(x.bfloat16(), *arguments)
    assert got.dtype == torch.bfloat16
    # Two roundings to 8 bits of values up to 4: of the input and of the output.
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0)
