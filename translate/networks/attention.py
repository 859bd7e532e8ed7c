"""Self-attention over feature maps: the layer of SAGAN, and its form that is Lipschitz."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

AttentionKind = Literal["dot", "l2"]


class SelfAttention(nn.Module):
    """x + gamma * attention(x): each pixel of (N, C, H, W) looks at all others; gamma starts at 0.

    `dot` (Zhang et al., arXiv 1805.08318, equations 1 to 3): queries f and keys g of C / 8 channels, values h of
    C / 2, and back to C; keys and values are max-pooled to half the side, as in the reference code. H and W must
    be 2 or more.

    `l2` (Kim et al., arXiv 2006.04710, section 3.2): the weights fall with the squared distance of queries that
    are their own keys, softmax_j(-|q_i - q_j|² / sqrt(d)), and the values are q W^T / sqrt(d) seen through h: such a
    layer has a Lipschitz constant, the dot product has none. No pooling: each pixel must see itself.

    Written as plain products and a softmax, which can be differentiated twice; fused attention kernels cannot.
    """

    def __init__(self, channels: int, kind: AttentionKind = "dot") -> None:
        super().__init__()
        self.kind = kind
        inner, values = max(1, channels // 8), max(1, channels // 2)
        self.query = nn.Conv2d(channels, inner, 1, bias=False)  # f
        if kind == "dot":
            self.key = nn.Conv2d(channels, inner, 1, bias=False)  # g
        self.value = nn.Conv2d(channels, values, 1, bias=False)  # h
        self.output = nn.Conv2d(values, channels, 1, bias=False)  # v
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        attended = self._dot(x) if self.kind == "dot" else self._l2(x)  # (N, C / 2, L) with L = H * W
        attended = attended.view(*attended.shape[:2], *x.shape[2:])
        return torch.addcmul(x, self.gamma.to(x.dtype), self.output(attended).to(x.dtype))

    def _dot(self, x: Tensor) -> Tensor:
        query: Tensor = self.query(x).flatten(2)  # (N, C / 8, L)
        key = functional.max_pool2d(self.key(x), 2).flatten(2)  # (N, C / 8, L / 4)
        value = functional.max_pool2d(self.value(x), 2).flatten(2)  # (N, C / 2, L / 4)
        return value @ _weights(query.transpose(1, 2) @ key, value.dtype).transpose(1, 2)

    def _l2(self, x: Tensor) -> Tensor:
        weight = self.query.weight  # (d, C, 1, 1); looked at once, for spectral norm moves on with each look
        scale = 1 / math.sqrt(len(weight))
        query = functional.conv2d(x, weight)
        value: Tensor = self.value(functional.conv2d(query, weight.transpose(0, 1)) * scale).flatten(2)  # (N, C / 2, L)
        with torch.autocast(x.device.type, enabled=False):  # a small distance is the difference of large squares
            query = query.flatten(2).to(torch.promote_types(query.dtype, torch.float32))
            # -|q_i - q_j|² without -|q_i|², which is the same for all j and so leaves softmax over j as it is.
            nearness = 2 * query.transpose(1, 2) @ query - query.square().sum(1, keepdim=True)
        return value @ _weights(nearness * scale, value.dtype).transpose(1, 2)


def _weights(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Softmax over the last axis, computed in float32 at least."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(dtype)
