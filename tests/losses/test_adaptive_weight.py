"""VQGAN's adaptive weight against autograd's own gradients, and its closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from translate.losses.adaptive_weight import FLOOR, LARGEST, adaptive_weight, at_weight, gradient_at, with_gradient
from translate.networks.tokenizer import Tokenizer, TokenizerSettings

torch.set_num_threads(1)

NETWORK = {"kind": "convolutional", "width": 4, "multipliers": [1, 2], "blocks": 1, "latent": 4, "attention": []}


VIT = {"kind": "transformer", "patch": 4, "width": 8, "layers": 1, "heads": 2, "mlp": 16, "latent": 4}


def parts(network: dict[str, Any] = NETWORK) -> tuple[Tokenizer, nn.Module, Tensor]:
    """A tokenizer of grey images, a critic of patches and two images: 2,048 values, a power of two."""
    torch.manual_seed(0)
    quantiser = {"kind": "codebook", "size": 16}
    tokenizer = TokenizerSettings.model_validate({"network": network, "quantiser": quantiser}).build(1)
    critic = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 4))
    return tokenizer, critic.requires_grad_(False), torch.rand(2, 1, 32, 32) * 2 - 1


def found_weight(raw: Tensor, losses: list[Any], weight: nn.Parameter) -> Tensor:
    """lambda as training takes it: each loss differentiated down to the output, then on to the last layer."""
    gradients = []
    for loss in losses:
        output = raw.detach().requires_grad_()
        gradients.append(at_weight(raw, gradient_at(loss(output), output), weight))
    return adaptive_weight(*gradients)


def test_it_is_the_ratio_of_the_gradients_in_float64() -> None:
    """Equation 7 by autograd in float64 on the last layer's own input; float32 keeps four digits of it easily."""
    tokenizer, critic, images = parts()
    seen: list[Tensor] = []
    tokenizer.decoder.last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().double()))
    raw = tokenizer.decode(tokenizer.encode(images).quantised)
    losses = [lambda x: (x - images).abs().mean() + 0.3 * (x - images).square().mean(), lambda x: -critic(x).mean()]
    found = found_weight(raw, losses, tokenizer.last_layer)

    weight = tokenizer.last_layer.detach().double().requires_grad_()
    bias = tokenizer.decoder.last.bias.detach().double()
    made = F.conv2d(seen[0], weight, bias, padding=1)
    torch.testing.assert_close(made.float(), raw)
    apart, exact = made - images.double(), critic.double()
    wanted = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()
        for loss in (apart.abs().mean() + 0.3 * apart.square().mean(), -exact(made).mean())
    ]
    assert found.item() == pytest.approx((wanted[0] / (wanted[1] + 1e-4)).item(), rel=1e-4)
    assert found.dtype == torch.float32 and found.ndim == 0 and not found.requires_grad


@pytest.mark.parametrize("network", [NETWORK, VIT], ids=["convolutional", "transformer"])
def test_under_autocast_it_is_the_ratio_of_autocast_s_gradients(network: dict[str, Any]) -> None:
    """Against a float64 critic the ratio would be off by a per cent, bf16's own error: that is another function. So
    the gradients are those that plain autograd takes of the very graph, and just their norms are in float64. Loss
    scaling by 2,048 rounds nothing, so four digits agree."""
    tokenizer, critic, images = parts(network)
    (last,) = (m for m in tokenizer.decoder.modules() if getattr(m, "weight", None) is tokenizer.last_layer)
    formats: list[torch.dtype] = []
    last.register_forward_hook(lambda module, inputs, output: formats.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        raw = tokenizer.decode(tokenizer.encode(images).quantised)
        losses = [lambda x: (x - images).abs().mean(), lambda x: -critic(x).float().mean()]
        found = found_weight(raw, losses, tokenizer.last_layer)
        plain = [loss(raw) for loss in losses]
    assert raw.dtype == torch.float32 and formats == [torch.float32]
    wanted = [torch.autograd.grad(p, tokenizer.last_layer, retain_graph=True)[0].double().norm() for p in plain]
    assert found.item() == pytest.approx((wanted[0] / (wanted[1] + 1e-4)).item(), rel=1e-4)
    assert found.dtype == torch.float32


def test_its_bounds_are_closed_forms() -> None:
    three, five, nothing = torch.tensor([[3.0]]), torch.tensor([3.0, 4.0]), torch.zeros(2, 2)
    assert adaptive_weight(three, five).item() == pytest.approx(3 / (5 + FLOOR))
    assert adaptive_weight(0.5 * three, nothing).item() == LARGEST == 1e4  # 15,000 before the clamp
    assert adaptive_weight(0.1 * three, nothing).item() == pytest.approx(3000)  # |grad| / delta
    assert adaptive_weight(nothing, five).item() == 0
    assert (FLOOR, three.item(), five.tolist()) == (1e-4, 3, [3, 4])  # the gradients stay what they are


def test_a_known_gradient_is_the_plain_loss_with_weights_around_it() -> None:
    """0.7 f(h) + 0.2 (3 g(h)) through `with_gradient` and as it is written, down to what h was made of."""
    torch.manual_seed(1)
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)

    def f(h: Tensor) -> Tensor:
        return h.sin().square().mean()

    def g(h: Tensor) -> Tensor:
        return (h**3).sum().tanh()

    plain = layer(x)
    (0.7 * f(plain) + 0.2 * (3 * g(plain))).backward()
    wanted = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()

    output, known = layer(x), []
    for term in (f, g):
        cut = output.detach().requires_grad_()
        loss = term(cut)
        known.append(with_gradient(output, loss, gradient_at(loss, cut)))
        assert torch.equal(known[-1].detach(), loss.detach())
    (0.7 * known[0] + 0.2 * (3 * known[1])).backward()
    for parameter, gradient in zip(layer.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


class _InHalf(torch.autograd.Function):
    """The identity, whose gradient passes through float16, as before a discriminator that runs in it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return gradient[0].half().float()


def test_a_gradient_below_float16_s_smallest_number_survives() -> None:
    """float16 ends at 2^-24 = 6e-8, and has eleven bits: what survives is right to three digits."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 32, 32, requires_grad=True)
    slopes = 1e-4 * (1 + torch.rand_like(x))

    def loss(output: Tensor) -> Tensor:
        return (slopes * _InHalf.apply(output)).mean()

    wanted = slopes / x.numel()
    assert wanted.max() < 5e-8
    (plain,) = torch.autograd.grad(loss(x), x)
    assert ((plain - wanted).abs() / wanted).mean() > 0.1  # two values are left of all: 0 and 6e-8
    found = gradient_at(loss(x), x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(("kernel", "logits"), [(256, 1), (8, 32)], ids=["one logit", "logits of patches"])
def test_float16_holds_the_gradients_of_large_images(kernel: int, logits: int) -> None:
    """Of 3x256x256 a linear critic in float16, patch by patch: the mean has the gradient w / (2 * logits²) everywhere.

    float16 ends at 65,504: with the loss times all values one logit's gradient would be infinite. It has eleven bits.
    """
    torch.manual_seed(0)
    weight = 0.005 * (1 + torch.rand(3, kernel, kernel))
    image = torch.rand(2, 3, 256, 256, requires_grad=True)
    patches = image.unflatten(3, (logits, kernel)).unflatten(2, (logits, kernel)).movedim((2, 4), (1, 2)).flatten(3)
    loss = F.linear(patches.half(), weight.flatten()[None].half()).float().mean()
    found = gradient_at(loss, image)
    wanted = (weight.double() / (2 * logits**2)).repeat(1, logits, logits)
    assert torch.tensor(image.numel() / 2).half().isinf()
    assert wanted.max() < (6e-3 if logits == 1 else 6e-6)
    torch.testing.assert_close(found.double(), wanted.expand(2, -1, -1, -1), rtol=2e-3, atol=0)
