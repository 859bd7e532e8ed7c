"""What all critics share: what is read off a trunk's features, and how."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.networks.latent import Critic, Judgement, Shape
from translate.networks.layers import InitialisationSettings, add_spectral_norm
from translate.networks.minibatch import MinibatchDiscrimination, MinibatchDiscriminationSettings
from translate.settings import Settings


class CriticBaseSettings(Settings):
    """What any critic that reads its logits off features can have."""

    spectral_norm: bool = False
    """Divide each weight by its largest singular value (Miyato et al., arXiv 1802.05957)."""
    minibatch_discrimination: MinibatchDiscriminationSettings | None = None
    """Append to the features how near the other examples of the minibatch are."""
    bottleneck: int | None = Field(default=None, ge=1)
    """Width of a noisy code through which the features must pass (Peng et al., arXiv 1810.00821)."""
    initialisation: InitialisationSettings = InitialisationSettings()

    @abstractmethod
    def trunk(self, shape: Shape) -> tuple[nn.Module, int]:
        """The network (N, *shape) -> (N, F), and F. Raises UserError for a shape that it cannot judge."""

    def build(self, shape: Shape, classes: int | None = None) -> TrunkCritic:
        """A new critic of samples (N, *shape), weights drawn; with `classes` a projection critic.

        Raises UserError for a shape that it cannot judge.
        """
        trunk, width = self.trunk(shape)
        return TrunkCritic(trunk, self, width, classes)

    def prepare(self, module: nn.Module) -> None:
        """Put spectral norm over the layers of `module` where asked, and draw its weights.

        Called once for a whole critic, and for what is later put on its features. A network that draws its weights
        by a rule of its own overrides this.
        """
        if self.spectral_norm:
            add_spectral_norm(module)
        self.initialisation.apply(module)


class Bottleneck(nn.Module):
    """Features pass as a noisy code: (N, features) -> (N, width), and (N,) nats of information that pass.

    E(z|x) = N(mean, variance) of independent dimensions, sampled in training (by torch's default generator), its
    mean in evaluation; the information is KL(E(z|x) || N(0, I)) for each example, in float32.
    Source: Peng et al., arXiv 1810.00821, section 4; the divergence of Gaussians in closed form.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.encode = nn.Linear(features, 2 * width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.encode(x)
        mean, log_variance = encoded.to(torch.promote_types(encoded.dtype, torch.float32)).chunk(2, dim=1)
        variance = log_variance.exp()
        information = (mean.square() + variance - log_variance - 1).sum(1) / 2
        if self.training:
            return mean + variance.sqrt() * torch.randn_like(mean), information
        return mean, information


class Features(nn.Module):
    """What logits are read off: a trunk, then minibatch discrimination and a bottleneck where asked.

    (N, *shape) -> (N, width), and (N,) nats that pass the bottleneck or None. `width` of the arguments is the trunk's.
    """

    def __init__(self, trunk: nn.Module, settings: CriticBaseSettings, width: int) -> None:
        super().__init__()
        self.trunk, self.width = trunk, width
        self.minibatch: MinibatchDiscrimination | None = None
        if settings.minibatch_discrimination is not None:
            kernels, dimensions = (
                settings.minibatch_discrimination.kernels,
                settings.minibatch_discrimination.dimensions,
            )
            self.minibatch = MinibatchDiscrimination(self.width, kernels, dimensions)
            self.width += kernels
        self.bottleneck: Bottleneck | None = None
        if settings.bottleneck is not None:
            self.bottleneck = Bottleneck(self.width, settings.bottleneck)
            self.width = settings.bottleneck

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        features: Tensor = self.trunk(x)
        if self.minibatch is not None:
            features = self.minibatch(features)
        return (features, None) if self.bottleneck is None else self.bottleneck(features)


class TrunkCritic(Critic):
    """Reads its logits off features phi(x): psi(phi) = v phi + b, and with classes + <e_y, phi>.

    The projection of the class: Miyato & Koyama, arXiv 1802.05637, equation 3. Logits and features are float32
    whatever the autocast state: a logit in bfloat16 has but 8 bits. `heads` is for what a method reads off the
    features beside the logits; it is empty until the method fills it by `add_head`.

    `trunk` is (N, *shape) -> (N, width).
    """

    def __init__(self, trunk: nn.Module, settings: CriticBaseSettings, width: int, classes: int | None = None) -> None:
        super().__init__()
        self.settings, self.classes = settings, classes
        self.features = Features(trunk, settings, width)
        self.width = self.features.width
        self.score = nn.Linear(self.width, 1)
        self.embedding = None if classes is None else nn.Embedding(classes, self.width)
        self.heads = nn.ModuleDict()
        settings.prepare(self)

    def judge(self, x: Tensor, label: Tensor | None = None) -> Judgement:
        features, information = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            features = features.to(self.score.bias.dtype)
            logits: Tensor = self.score(features)
            if self.embedding is not None:
                logits = logits + (self.embedding(label) * features).sum(1, keepdim=True)
        return Judgement(logits, features, information)

    def add_head(self, name: str, head: nn.Module) -> None:
        """Put `head` on the features, its weights drawn and normed like this critic's own."""
        self.settings.prepare(head)
        self.heads[name] = head


class ClassHead(nn.Linear):
    """Auxiliary classifier: features (N, width) -> class logits (N, classes).

    Source: Odena et al., arXiv 1610.09585, section 3.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)


class Codes(NamedTuple):
    """What InfoGAN's Q says of the codes of N samples."""

    categorical: list[Tensor]
    """Logits (N, K) of each categorical code."""
    continuous: Tensor
    """(N, c): the mean of each continuous code."""


class CodeHead(nn.Module):
    """InfoGAN's Q(c|x): features (N, width) -> the codes that made the sample.

    A hidden layer of 128 with batch norm and leaky ReLU (slope 0.1), then all codes at once.
    Source: Chen et al., arXiv 1606.03657, appendix C.1.
    """

    def __init__(self, width: int, categorical: Sequence[int], continuous: int) -> None:
        super().__init__()
        self.sizes = [*categorical, continuous]
        self.layers = nn.Sequential(
            nn.Linear(width, 128, bias=False),
            nn.BatchNorm1d(128),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Linear(128, sum(self.sizes)),
        )

    def forward(self, features: Tensor) -> Codes:
        *categorical, continuous = self.layers(features).split(self.sizes, dim=1)
        return Codes(categorical, continuous)
