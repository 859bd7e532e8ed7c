"""A critic of pairs (sample, latent), and the encoder that makes the latent of a sample (BiGAN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from translate.errors import UserError
from translate.networks.critics import Features, TrunkCritic
from translate.networks.latent import Critic, Judgement


class JointCritic(nn.Module):
    """Judges (x, z): x is (N, *shape), z is (N, latent) -> logits (N, 1).

    The features of x, as `critic` has them before its score, stand beside two layers of z; two more layers make
    the logit. Source: Donahue et al., arXiv 1605.09782, section 3 (D(x, z)); z in layers of its own as in the
    likewise joint game of Dumoulin et al., arXiv 1606.00704, appendix A. Leaky ReLU of slope 0.2 as in DCGAN.
    Raises UserError for a critic that does not read its logits off features.
    """

    def __init__(self, critic: Critic, latent: int, width: int) -> None:
        super().__init__()
        critic = _with_features("the joint critic of bigan", critic)
        self.features: Features = critic.features
        self.latent = nn.Sequential(
            nn.Linear(latent, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)
        )
        self.joint = nn.Sequential(nn.Linear(critic.width + width, width), nn.LeakyReLU(0.2))
        self.score = nn.Linear(width, 1)
        for module in (self.latent, self.joint, self.score):
            critic.settings.prepare(module)

    def judge(self, x: Tensor, z: Tensor) -> Judgement:
        """(N, *shape), (N, latent) -> logits (N, 1), features (N, width) of the pair."""
        of_sample, information = self.features(x)
        of_latent: Tensor = self.latent(z)
        features: Tensor = self.joint(torch.cat([of_sample, of_latent], dim=1))
        with torch.autocast(x.device.type, enabled=False):
            features = features.to(self.score.bias.dtype)
            return Judgement(self.score(features), features, information)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.judge(x, z).logits


class Encoder(nn.Module):
    """Samples (N, *shape) -> latents (N, latent): a linear layer on the features of `critic`.

    Source: E(x) of Donahue et al., arXiv 1605.09782, section 3; it is deterministic. Raises UserError for a critic
    that does not read its logits off features.
    """

    def __init__(self, critic: Critic, latent: int) -> None:
        super().__init__()
        critic = _with_features("the encoder of bigan", critic)
        self.features: Features = critic.features
        self.last = nn.Linear(critic.width, latent)
        critic.settings.prepare(self.last)

    def forward(self, x: Tensor) -> Tensor:
        features, _ = self.features(x)
        latent: Tensor = self.last(features.to(self.last.bias.dtype))
        return latent


def _with_features(what: str, critic: Critic) -> TrunkCritic:
    if not isinstance(critic, TrunkCritic):
        raise UserError(f"{what} needs features of the sample, which {type(critic).__name__} lacks: use kind: dcgan")
    return critic
