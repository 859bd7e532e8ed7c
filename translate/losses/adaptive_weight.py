"""VQGAN's adaptive weight: the adversarial term has as much say at the decoder's last layer as the reconstruction has
(Esser et al., arXiv 2012.09841, equation 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from translate import distributed

FLOOR = 1e-4
"""delta of equation 7 as in the authors' code (the paper: 1e-6)."""
LARGEST = 1e4
"""What the authors' code clamps the weight to."""


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None, None


def with_gradient(output: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """A scalar of this value whose gradient with respect to `output` is known: of the output's shape, both float32.

    So what lies between the output and a loss (LPIPS, a discriminator) is differentiated once, though its gradient is
    needed twice: for the adaptive weight and for the step.
    """
    made: Tensor = _WithGradient.apply(output, value.detach(), gradient)
    return made


def gradient_at(loss: Tensor, output: Tensor) -> Tensor:
    """The gradient of a float32 scalar loss with respect to `output`, (N, C, H, W) float32.

    It is taken of the loss times 1024 for each image, and divided by that: in fp16 the gradient of a mean over images
    and pixels, some 1e-6 a value, would be nought before any scaler sees it. (Times the number of values it would be no
    number where a discriminator has one logit an image.)
    """
    scale = 1024.0 * len(output)
    with torch.autocast(output.device.type, enabled=False):  # which would narrow the products of float32 layers
        (gradient,) = torch.autograd.grad(loss * scale, output)
    return gradient.float() / scale


def at_weight(output: Tensor, gradient: Tensor, weight: nn.Parameter) -> Tensor:
    """A gradient at the output, which depends on `weight`, carried on to that: float32, of the weight's shape."""
    with torch.autocast(output.device.type, enabled=False):
        (found,) = torch.autograd.grad(output, weight, gradient.to(output.dtype), retain_graph=True)
    return found.float()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """lambda = |grad L_rec| / (|grad L_GAN| + delta), clamped to [0, 1e4]: float32 scalar without a graph.

    Args:
        reconstruction, adversarial: gradients of the two losses with respect to the last layer's weight. They are
            averaged over all processes here (all must call): the weight is one number, that of the whole batch.
    """
    both = [gradient.detach().float().clone() for gradient in (reconstruction, adversarial)]
    distributed.average(both)
    of_reconstruction, of_adversarial = (torch.linalg.vector_norm(gradient) for gradient in both)
    weight: Tensor = of_reconstruction / (of_adversarial + FLOOR)
    return weight.clamp(0, LARGEST)
