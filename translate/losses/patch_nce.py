"""PatchNCE: each patch of an output should be recognised among the patches of its input (Park et al. 2020, "Contrastive
learning for unpaired image-to-image translation", arXiv 2007.15651)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.networks.layers import InitialisationSettings
from translate.settings import Settings


class PatchNCESettings(Settings):
    """Which layers of the generator's encoder are compared, where, and how sharply."""

    weight: float = Field(default=0.5, ge=0)
    """lambda_X of equation 5: 1 there, but the authors' code takes the mean of this term and the identity's."""
    layers: list[str] = Field(default=["input", "down1", "down2", "block1", "block5"], min_length=1)
    """Layers of the generator, by name: pixels, both halving convolutions, the first and the fifth residual block
    (appendix, training details)."""
    patches: int = Field(default=256, ge=2)
    """Positions drawn in each layer, or all where it has fewer: each is its own positive and the others' negative
    (appendix, training details)."""
    width: int = Field(default=256, ge=1)
    """Units of each of the projections' two layers (appendix, training details)."""
    temperature: float = Field(default=0.07, gt=0)
    """Divides the cosines (section 3); a small one looks at the most similar negatives alone."""
    initialisation: InitialisationSettings = InitialisationSettings(kind="xavier")
    """Of the projections (the authors' code)."""

    @field_validator("layers")
    @classmethod
    def _each_once(cls, layers: list[str]) -> list[str]:
        if len(set(layers)) < len(layers):
            raise ValueError("a layer stands there twice; name each once")
        return layers

    def build(self, taps: Mapping[str, int]) -> Projections:
        """New projections for a generator's taps (name -> channels); UserError if it has no layer of a name."""
        if missing := next((name for name in self.layers if name not in taps), None):
            raise UserError(f"method.nce.layers: the generator has no layer {missing!r}; it has {', '.join(taps)}")
        return Projections(self, {name: taps[name] for name in self.layers})


class Projections(nn.Module):
    """For each layer two linear ones with a ReLU between them: features to points of the unit sphere (section 3)."""

    def __init__(self, settings: PatchNCESettings, channels: Mapping[str, int]) -> None:
        super().__init__()
        width = settings.width
        self.temperature = settings.temperature
        self.layers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(count, width), nn.ReLU(inplace=True), nn.Linear(width, width))
                for name, count in channels.items()
            }
        )
        settings.initialisation.apply(self)

    def project(self, layer: str, features: Tensor) -> Tensor:
        """A layer's features (N, P, C) -> (N, P, width) of length 1, float32 whatever the autocast state."""
        with torch.autocast(features.device.type, enabled=False):
            points: Tensor = self.layers[layer](features.float())
            # As the authors: what is added keeps the gradient of a point near 0 in bounds.
            lengths: Tensor = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
            return points / (lengths + 1e-7)

    def forward(self, queries: Mapping[str, Tensor], keys: Mapping[str, Tensor]) -> Tensor:
        """The mean loss of the layers, unweighted (equation 4 sums them; the authors' code takes the mean).

        Args:
            queries, keys: layer -> features (N, P, C_i) of the output and of the input at the same positions.

        Returns:
            A float32 scalar. Neither the keys nor, through them, the projections get a gradient.
        """
        losses: list[Tensor] = []
        for layer, features in queries.items():
            with torch.no_grad():
                key = self.project(layer, keys[layer])
            losses.append(patch_nce(self.project(layer, features), key, self.temperature))
        return torch.stack(losses).mean()


def patch_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of recognising, among the keys of the same image, the one of a query's own position (equation 3).

    Args:
        query, key: (N, P, D), of length 1 along D. The key gets no gradient.

    Returns:
        The mean over images and positions, a float32 scalar: log(P) where all keys are alike.
    """
    with torch.autocast(query.device.type, enabled=False):
        logits = query.float() @ key.detach().float().transpose(1, 2) / temperature  # (N, P, P)
        own = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
        return F.cross_entropy(logits.flatten(0, 1), own.flatten())


def draw_positions(height: int, width: int, count: int, device: torch.device) -> Tensor:
    """Different random positions of a map, row by row numbered: (P,) int64, P being `count` or, if less, all."""
    return torch.randperm(height * width, device=device)[:count]


def mirrored_positions(positions: Tensor, width: int) -> Tensor:
    """Where positions lie in the map that is mirrored left to right."""
    return positions + (width - 1) - 2 * (positions % width)


def features_at(features: Tensor, positions: Tensor) -> Tensor:
    """Activations (N, C, H, W) at positions (P,) -> (N, P, C)."""
    return features.flatten(2)[:, :, positions].transpose(1, 2)
