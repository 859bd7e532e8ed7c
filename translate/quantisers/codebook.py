"""The nearest code of a learnt codebook (VQ-VAE, van den Oord et al., arXiv 1711.00937; VQGAN, Esser et al., arXiv
2012.09841)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from translate import distributed
from translate.devices import exact_float32
from translate.quantisers.base import Quantised, Quantiser
from translate.quantisers.search import nearest
from translate.quantisers.shared import Size, grid, project, projection, rows, straight_through
from translate.settings import Settings, Share

SMOOTHING = 1e-5
"""Laplace's, of the averaged counts: codes without use do not divide by zero."""


class CodebookSettings(Settings):
    """Each latent becomes the nearest of the codes, which follow the latents."""

    kind: Literal["codebook"] = "codebook"
    size: Size = 1024
    """Codes: 1,024 and 16,384 in VQGAN."""
    width: int | None = Field(default=None, ge=1)
    """Dimension of the codes. If it is not that of the latents, a 1x1 convolution leads to it and one back: factorised
    codes (Yu et al., arXiv 2110.04627, section 3.2, take 32). null: that of the latents, with no convolution."""
    normalise: bool = False
    """Latents and codes have length 1, so the nearest code is that of the least angle (ibid.)."""
    update: Literal["gradient", "average"] = "gradient"
    """How codes follow the latents: by the loss's gradient, or as the moving average of the latents nearest to them
    (arXiv 1711.00937, appendix A.1). A code without use drifts to the origin by the average's smoothing: `restart`."""
    decay: Share = 0.99
    """Of the moving average, a step (ibid.)."""
    beta: float = Field(default=0.25, ge=0)
    """Weight of the commitment: how strongly latents are drawn to their codes (arXiv 1711.00937, equation 3)."""
    restart: int | None = Field(default=None, ge=1)
    """Steps in a row without use after which a code begins anew, as one of the batch's latents; null: never."""

    def build(self, width: int) -> CodebookQuantiser:
        """A new quantiser of latents (N, width, h, w)."""
        return CodebookQuantiser(self, width)


class CodebookQuantiser(Quantiser):
    """Quantises to the nearest code.

    The loss is mean |sg[z] - e|² + beta * mean |z - sg[e]|² over all numbers, where sg stops the gradient (arXiv
    1711.00937, equation 3), without the first term where codes are moving averages. The authors' code of VQGAN has beta
    at the first term unless told otherwise (`legacy`). With `normalise` both z and e have length 1 there.

    State: `codebook` (size, d), a parameter or a buffer; of the moving average `counts` (size,) and `sums` (size, d);
    `unused` (size,), int64, the steps since each code's last use.
    """

    counts: Tensor
    sums: Tensor
    unused: Tensor

    def __init__(self, settings: CodebookSettings, width: int) -> None:
        super().__init__()
        self.settings, self.size, self.width = settings, settings.size, width
        inner = settings.width or width
        self.project_in, self.project_out = projection(width, inner), projection(inner, width)
        if settings.normalise:
            codes = F.normalize(torch.randn(self.size, inner), dim=1)
        else:
            codes = torch.empty(self.size, inner).uniform_(-1 / self.size, 1 / self.size)
        self.codebook: Tensor
        if settings.update == "gradient":
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)
            self.register_buffer("counts", torch.ones(self.size))
            self.register_buffer("sums", codes.clone())
        self.register_buffer("unused", torch.zeros(self.size, dtype=torch.int64))
        self.forget()
        self._renewed: Tensor | None = None

    def forward(self, z: Tensor) -> Quantised:
        """Latents (N, C, h, w) to the nearest codes; see `Quantiser`."""
        with exact_float32(z.device):
            z = project(self.project_in, z.float())
            if self.settings.normalise:
                z = F.normalize(z, dim=1)
            codebook = self._codes()
            latents = rows(z.detach())
            indices = nearest(latents, codebook.detach())
            moves = self.settings.restart is not None or self.settings.update == "average"
            if moves and self.training and torch.is_grad_enabled():
                self._note(latents, indices)
            indices = indices.view(len(z), *z.shape[2:])
            codes = grid(F.embedding(indices, codebook))
            loss = self.settings.beta * F.mse_loss(z, codes.detach())
            if self.settings.update == "gradient":
                loss = loss + F.mse_loss(codes, z.detach())
            return Quantised(project(self.project_out, straight_through(codes, z)), indices, loss)

    def codes(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w) -> (N, C, h, w), float32."""
        with exact_float32(indices.device):
            return project(self.project_out, grid(F.embedding(indices, self._codes())))

    @torch.no_grad()
    def moved(self, finite: Tensor | None = None) -> dict[str, Tensor]:
        """Codes take in what was noted since the last call, over all processes; the dead ones begin anew.

        Several forwards count as one of all their latents. Of a batch that holds no number, codes learn none; buffers
        are the trainer's to put back. Returns `restarted codes`, how many, if there is `restart`.
        """
        counts, sums, pool, restart = self._counts, self._sums, self._pool, self.settings.restart
        self.forget()
        self._renewed = None
        if counts is None:
            return {}
        noted = [counts] if sums is None else [counts, sums]
        distributed.average(noted)
        for tensor in noted:  # their sum: an average begins at a count of 1, beside which a mean would count for less
            tensor.mul_(distributed.world())
        self.unused.copy_(torch.where(counts > 0, 0, self.unused + 1))
        if sums is not None:
            self._follow(counts, sums)
        if restart is None:
            return {}
        dead = self.unused >= restart
        self._renewed = self._restart(dead if finite is None else dead & finite, torch.cat(pool))
        return {"restarted codes": self._renewed.sum().float()}

    def renewed(self) -> Sequence[tuple[nn.Parameter, Tensor]]:
        """The codebook and the codes that the last `moved` restarted, if it is learnt by gradients."""
        if self._renewed is None or not isinstance(self.codebook, nn.Parameter):
            return ()
        return [(self.codebook, self._renewed)]

    def _codes(self) -> Tensor:
        codebook = self.codebook.float()
        return F.normalize(codebook, dim=1) if self.settings.normalise else codebook

    def forget(self) -> None:
        """No latents since the last move. What was noted is gone at the step's end, so it is no buffer."""
        self._counts: Tensor | None = None
        self._sums: Tensor | None = None
        self._pool: list[Tensor] = []

    def _note(self, latents: Tensor, indices: Tensor) -> None:
        """Take note of latents (M, d) and their codes: counts and sums by code, and some latents to restart from."""
        if self._counts is None:
            self._counts = latents.new_zeros(self.size)
        # Not torch.bincount, which on CUDA waits for the largest index; float32 counts to 2^24.
        self._counts.scatter_add_(0, indices, latents.new_ones(1).expand(len(indices)))
        if self.settings.update == "average":
            if self._sums is None:
                self._sums = torch.zeros_like(self.sums)
            self._sums.index_add_(0, indices, latents)  # which CUDA can do in a fixed order
        if self.settings.restart is not None:
            self._pool.append(_some(latents, self.size))

    def _follow(self, counts: Tensor, sums: Tensor) -> None:
        """The averages of arXiv 1711.00937, equations 6 to 8, with smoothed counts."""
        self.counts.lerp_(counts, 1 - self.settings.decay)
        self.sums.lerp_(sums, 1 - self.settings.decay)
        total = self.counts.sum()
        smooth = (self.counts + SMOOTHING) / (total + self.size * SMOOTHING) * total
        codes = self.sums / smooth[:, None]
        if self.settings.normalise:  # a code that was unused for thousands of steps has no sum left, and stays
            length = codes.norm(dim=1, keepdim=True)
            codes = torch.where(length > 1e-12, codes / length, self.codebook)
        self.codebook.copy_(codes)

    def _restart(self, dead: Tensor, pool: Tensor) -> Tensor:
        """Let dead codes, (size,) bool, begin anew as latents (M, d) of the pool; returns which did.

        No two take the same latent: where there are more dead codes than latents, the others wait for the next step.
        """
        pool = _some(pool, self.size, shuffled=True)
        # One length in all processes, whatever their images' sizes: what is no number is no latent.
        pool = F.pad(pool, (0, 0, 0, self.size - len(pool)), value=torch.nan)
        distributed.broadcast([pool])
        place = dead.cumsum(0) - 1
        fresh = pool[place.clamp(0, len(pool) - 1)]
        anew = dead & (place < len(pool)) & fresh.isfinite().all(1)
        self.codebook.copy_(torch.where(anew[:, None], fresh, self.codebook))
        self.unused.masked_fill_(anew, 0)
        if self.settings.update == "average":
            self.counts.masked_fill_(anew, 1.0)
            self.sums.copy_(torch.where(anew[:, None], fresh, self.sums))
        return anew


def _some(latents: Tensor, most: int, *, shuffled: bool = False) -> Tensor:
    """At most so many of the latents (M, d), by chance."""
    if len(latents) <= most and not shuffled:
        return latents
    return latents[torch.randperm(len(latents), device=latents.device)[:most]]
