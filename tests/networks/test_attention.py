from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from translate.networks.attention import AttentionKind, SelfAttention
from translate.networks.layers import add_spectral_norm

KINDS: tuple[AttentionKind, ...] = ("dot", "l2")


def attention(kind: AttentionKind, channels: int = 16, gamma: float = 0.7) -> SelfAttention:
    torch.manual_seed(0)
    net = SelfAttention(channels, kind)
    nn.init.constant_(net.gamma, gamma)
    return net


def matrix(convolution: nn.Module) -> Tensor:
    assert isinstance(convolution, nn.Conv2d)
    return convolution.weight.detach()[:, :, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_layer_is_the_identity(kind: AttentionKind) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 4, 6)
    assert torch.equal(SelfAttention(16, kind)(x), x)


def test_dot_equals_a_loop_over_pixels() -> None:
    net, (height, width) = attention("dot"), (4, 6)
    x = torch.randn(2, 16, height, width)
    got = net(x)
    f, g, h, v = (matrix(layer) for layer in (net.query, net.key, net.value, net.output))
    assert f.shape == g.shape == (2, 16)
    assert h.shape == (8, 16)
    for n in range(2):
        keys, values = [], []
        for i in range(0, height, 2):
            for j in range(0, width, 2):  # the largest of each 2x2 square of pixels, channel by channel
                square = [x[n, :, i + a, j + b] for a in (0, 1) for b in (0, 1)]
                keys.append(torch.stack([g @ pixel for pixel in square]).amax(0))
                values.append(torch.stack([h @ pixel for pixel in square]).amax(0))
        for i in range(height):
            for j in range(width):
                scores = [math.exp(float((f @ x[n, :, i, j]) @ key)) for key in keys]
                seen = sum(score * value for score, value in zip(scores, values, strict=True)) / sum(scores)
                torch.testing.assert_close(got[n, :, i, j], x[n, :, i, j] + 0.7 * (v @ seen))


def test_l2_equals_a_loop_over_pixels() -> None:
    net = attention("l2", channels=24)
    x = torch.randn(2, 24, 3, 2)
    got = net(x)
    w, h, v = (matrix(layer) for layer in (net.query, net.value, net.output))
    root = math.sqrt(3)  # d = 24 / 8
    for n in range(2):
        pixels = list(x[n].flatten(1).T)
        for i, pixel in enumerate(pixels):
            scores = [math.exp(-float((w @ (pixel - other)).square().sum()) / root) for other in pixels]
            seen = sum(
                score * (h @ (w.T @ (w @ other) / root)) for score, other in zip(scores, pixels, strict=True)
            ) / sum(scores)
            torch.testing.assert_close(got[n].flatten(1)[:, i], pixel + 0.7 * (v @ seen))


def test_distances_have_a_lipschitz_constant_and_dot_products_none() -> None:
    """Kim et al., theorem 3.1 and 3.2: a pixel at the origin, the others spread ever wider.

    The bound sqrt(L) / sqrt(d) * (4 phi^-1(L - 1) + 1) * |W_Q| |W_V| |W_O|, phi(x) = x exp(x + 1), with |W_Q| = 1.
    """
    length = 16
    root = 1.0
    for _ in range(50):  # Newton's method for phi(root) = L - 1
        root -= (root * math.exp(root + 1) - (length - 1)) / ((root + 1) * math.exp(root + 1))
    largest: dict[str, list[float]] = {"dot": [], "l2": []}
    bound = 0.0
    for kind in KINDS:
        net = attention(kind, channels=8, gamma=1.0)
        nn.init.orthogonal_(net.query.weight)
        if kind == "l2":
            norms = [torch.linalg.matrix_norm(matrix(layer), 2).item() for layer in (net.value, net.output)]
            bound = math.sqrt(length) * (4 * root + 1) * math.prod(norms)  # d = 1
        else:
            nn.init.orthogonal_(net.key.weight)
        torch.manual_seed(1)
        directions = torch.randn(32, 8, length)
        directions[:, :, 0] = 0
        for scale in (1.0, 10.0, 100.0):

            def attended(x: Tensor, net: SelfAttention = net) -> Tensor:
                y: Tensor = net(x.reshape(1, 8, 4, 4)) - x.reshape(1, 8, 4, 4)
                return y.flatten()

            jacobians = torch.func.vmap(torch.func.jacrev(attended))(scale * directions.flatten(1))
            largest[kind].append(torch.linalg.matrix_norm(jacobians, 2).max().item())
    assert max(largest["l2"]) <= bound
    assert largest["l2"][2] < 2 * largest["l2"][0]
    assert largest["dot"][2] > 100 * largest["dot"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_double_backward(kind: AttentionKind) -> None:
    net = attention(kind, channels=8).double()
    x = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, x)
    assert torch.autograd.gradgradcheck(net, x)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_agrees_with_float32(kind: AttentionKind) -> None:
    net = attention(kind, channels=32)
    x = torch.randn(2, 32, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x)
    assert got.dtype == torch.bfloat16
    # Values up to 4 in 8 bits: half a unit in the last place is 0.008; what is attended to is smaller than x.
    torch.testing.assert_close(got.float(), net(x.float()), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_spectral_norm_and_channels_last(kind: AttentionKind) -> None:
    net = attention(kind)
    add_spectral_norm(net)
    for _ in range(30):  # power iterations: one a look
        net(torch.randn(1, 16, 2, 2))
    net.eval()
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        assert torch.linalg.matrix_norm(matrix(layer), 2).item() == pytest.approx(1, abs=0.01)
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), net(x))
    net(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
