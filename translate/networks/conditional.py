"""Norms that need more than the feature map: a class label, or a reference batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from translate.errors import UserError
from translate.networks.latent import LatentGenerator, Shape
from translate.networks.layers import LatentNormName, norm_layer

REFERENCE = 64
"""Examples in a reference batch: the minibatch of the reference code of Salimans et al."""


class ConditionalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose gains and biases belong to the example's class: (N, C, H, W), (N,) -> (N, C, H, W).

    All classes share the statistics. Gains start at 1 and biases at 0, so that at first it is plain batch norm.
    Source: Dumoulin et al., arXiv 1610.07629, equation 5 (instance norm there); de Vries et al., arXiv 1707.00683;
    in a GAN Miyato & Koyama, arXiv 1802.05637, section 4.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, affine=False)
        self.gains = nn.Parameter(torch.ones(classes, channels))
        self.biases = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]  # it needs the label
        normal = super().forward(x)
        gain = functional.embedding(label, self.gains)[:, :, None, None]  # (N, C, 1, 1)
        bias = functional.embedding(label, self.biases)[:, :, None, None]
        return torch.addcmul(bias.to(normal.dtype), normal, gain.to(normal.dtype))


class VirtualBatchNorm(nn.Module):
    """Batch norm that normalises each example with a reference batch and itself: (R + N, C, ...) -> the same.

    The first `reference` = R rows are the reference batch, normalised by their own mean and variance for each
    channel. Each other row is normalised by the statistics of the R + 1 examples that are the reference batch and
    it, so that it does not depend on its neighbours. Keeps no running statistics: evaluation is the same as
    training. Statistics are float32. Source: Salimans et al., arXiv 1606.03498, section 3.4.
    """

    def __init__(self, channels: int, reference: int = REFERENCE, eps: float = 1e-5) -> None:
        super().__init__()
        self.reference, self.eps = reference, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        count = self.reference
        if len(x) <= count:
            raise ValueError(f"virtual batch norm: {len(x)} rows, expected {count} of the reference batch and more")
        flat = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)  # (R + N, C, pixels)
        flat = flat.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(flat[:count], dim=(0, 2), correction=0)  # (C,)
        centred = flat - mean[:, None]
        # Moments of each other example around the reference mean, where nothing large cancels.
        first, second = centred[count:].mean(2), centred[count:].square().mean(2)  # (N, C)
        shift = first / (count + 1)
        own = (count * variance + second) / (count + 1) - shift.square()
        shifts = torch.cat([torch.zeros_like(mean).expand(count, -1), shift])  # (R + N, C)
        variances = torch.cat([variance.expand(count, -1), own])
        normal = (centred - shifts[..., None]) * torch.rsqrt(variances + self.eps)[..., None]
        scaled = normal * self.weight[:, None] + self.bias[:, None]
        return scaled.view(x.shape).to(x.dtype)


class VirtualBatch(nn.Module):
    """Runs a network of virtual batch norms behind its reference batch: (N, *shape) -> (N, ...).

    The reference batch is the first REFERENCE examples of the first batch seen in training mode (repeated if it
    holds fewer), and never changes after; before that it is normal noise. It is a buffer, so a checkpoint and an
    average have it; choosing it needs no word from the device.
    """

    reference: Tensor
    chosen: Tensor

    def __init__(self, network: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("reference", torch.randn(REFERENCE, *shape))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._choose(x)
        rows: Tensor = self.network(torch.cat([self.reference.to(x.dtype), x]))
        return rows[REFERENCE:]

    @torch.no_grad()
    def _choose(self, x: Tensor) -> None:
        repeats = -(-REFERENCE // len(x))
        first = x.repeat(repeats, *[1] * (x.ndim - 1))[:REFERENCE].to(self.reference.dtype)
        self.reference.copy_(torch.where(self.chosen, self.reference, first))
        self.chosen.fill_(True)


class VirtualBatchGenerator(LatentGenerator):
    """A generator with virtual batch norms behind a reference batch of latents."""

    def __init__(self, generator: LatentGenerator) -> None:
        super().__init__()
        self.latent, self.shape = generator.latent, generator.shape
        self.body = VirtualBatch(generator, (generator.latent,))

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        samples: Tensor = self.body(latent)
        return samples


class Norm(nn.Module):
    """The norm called `name`, called the same way with and without classes: `norm(x, label)`.

    x is (N, channels, H, W), or (N, channels) for a norm that is not `instance`. With `classes` it is conditional
    batch norm and label (N,) is needed; without, label is not looked at. Raises UserError for classes with another
    norm than batch.
    """

    def __init__(self, name: LatentNormName, channels: int, classes: int | None = None) -> None:
        super().__init__()
        self.conditional = classes is not None
        if classes is not None:
            if name != "batch":
                raise UserError(f"a generator that is conditional by its norm needs norm: batch, not {name}")
            self.norm: nn.Module = ConditionalBatchNorm2d(channels, classes)
        elif name == "virtual-batch":
            self.norm = VirtualBatchNorm(channels)
        else:
            self.norm = norm_layer(name, channels)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        image = x[..., None, None] if x.ndim == 2 else x
        normal: Tensor = self.norm(image, label) if self.conditional else self.norm(image)
        return normal.view(x.shape) if x.ndim == 2 else normal
