"""The generative adversarial game (Goodfellow et al. 2014, arXiv 1406.2661, algorithm 1), with later papers' parts.

repeat for each batch of samples x (with classes y, if the method has a condition):
    z ~ p(z)
    D: minimise L_D( D(T(x), y), D(T(G(z, y)), y) ) + penalties           each step; T: augmentation
    G: minimise L_G( D(T(G(z, y)), y) )                                   each n-th step (n = discriminator_steps)

A paper is an objective, penalties, networks and numbers: see `configs/`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from translate.data import DataSettings, FolderSettings, ToySettings
from translate.errors import UserError
from translate.losses.feature_matching import mean_feature_matching, pulling_away
from translate.losses.penalties import BottleneckSettings
from translate.losses.regularisers import Regulariser, RegulariserSettings, clip_weights
from translate.methods.adversary import Adversary, AdversarySettings, due, each_once, lazy_weights
from translate.methods.base import Renewed, Turn
from translate.methods.generative import (
    CodeSettings,
    GenerativeMethod,
    LatentSettings,
    information_loss,
    samples_of,
)
from translate.networks import Critic, CriticSettings, Judgement, LatentGeneratorSettings
from translate.networks.critics import ClassHead, CodeHead, TrunkCritic
from translate.networks.dcgan import DCGANCriticSettings, DCGANGeneratorSettings
from translate.settings import Settings


class ConditionSettings(Settings):
    """How the classes of the data reach the players."""

    generator: Literal["concat", "norm"] = "concat"
    """`concat`: one-hot beside the latent (cGAN, Mirza & Osindero 2014). `norm`: conditional batch norm."""
    discriminator: Literal["concat", "projection", "none"] = "concat"
    """`concat`: one-hot planes beside the image. `projection`: Miyato & Koyama, arXiv 1802.05637. `none`: it judges
    without (ACGAN)."""
    classifier_weight: float = Field(default=0.0, ge=0)
    """Weight of the auxiliary classifier on real and fake (ACGAN, Odena et al., arXiv 1610.09585: 1)."""


class UnrollingSettings(Settings):
    """The generator looks ahead of the discriminator's answers (Metz et al., arXiv 1611.02163, eq. 7 to 10)."""

    steps: int = Field(default=5, ge=1)
    """Gradient steps of the discriminator that the generator's gradient passes through."""
    rate: float = Field(default=1e-3, gt=0)
    """Their step size (eta in eq. 8; plain gradient descent)."""


class GANSettings(AdversarySettings):
    """A generator of samples from noise, and a discriminator that tells them from real ones."""

    kind: Literal["gan"] = "gan"
    generator: LatentGeneratorSettings = DCGANGeneratorSettings()
    discriminator: CriticSettings = DCGANCriticSettings()
    latent: LatentSettings = LatentSettings()
    discriminator_steps: int = Field(default=1, ge=1)
    """Moves of the discriminator for each of the generator (n_critic, n_dis)."""
    regularisers: list[RegulariserSettings] = Field(default_factory=list)
    """What a player's weights are held to."""
    weight_clip: float | None = Field(default=None, gt=0)
    """The discriminator's weights are clipped to +- this after each of its moves (WGAN: 0.01)."""
    conditioning: ConditionSettings | None = None
    """Use the classes of the data."""
    codes: CodeSettings | None = None
    """InfoGAN's codes: the discriminator also reads them back from the fakes."""
    bottleneck: BottleneckSettings | None = None
    """Holds the information that passes the discriminator's bottleneck (`discriminator.bottleneck`) to a budget."""
    unrolling: UnrollingSettings | None = None
    feature_matching_weight: float = Field(default=0.0, ge=0)
    """Distance of the mean features of fake and real samples (Salimans et al., arXiv 1606.03498, section 3.1)."""
    pulling_away_weight: float = Field(default=0.0, ge=0)
    """Keeps the features of different fakes apart (EBGAN-PT, Zhao et al., arXiv 1609.03126: 0.1)."""
    adversarial_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _parts_fit(self) -> GANSettings:
        each_once(self.regularisers, "regularisers")
        if (self.bottleneck is None) != (getattr(self.discriminator, "bottleneck", None) is None):
            raise ValueError("'bottleneck' (the budget) and 'discriminator.bottleneck' (its width) need each other")
        return self

    def build(self, data: DataSettings, *, inference: bool = False) -> GAN:
        """The method for a data set."""
        return GAN(self, samples_of(data, "gan"))


class GAN(GenerativeMethod):
    """The algorithm box above, term by term."""

    def __init__(self, settings: GANSettings, data: FolderSettings | ToySettings) -> None:
        condition = settings.conditioning
        super().__init__(
            settings.generator,
            settings.latent,
            data,
            codes=settings.codes,
            condition=condition.generator if condition else None,
        )
        self.settings = settings
        classes = len(self.class_names)
        self.judges_by = condition.discriminator if condition else "none"
        first, *rest = self.shape
        critic = settings.discriminator.build(
            (first + classes, *rest) if self.judges_by == "concat" else self.shape,
            classes if self.judges_by == "projection" else None,
        )
        heads: dict[str, nn.Module] = {}
        if condition and condition.classifier_weight:
            heads["classes"] = ClassHead(critic.width, classes)
        if settings.codes:
            heads["codes"] = CodeHead(critic.width, settings.codes.categorical, settings.codes.continuous)
        if heads and not isinstance(critic, TrunkCritic):
            raise UserError(
                f"method.discriminator: kind {settings.discriminator.kind} has no place for a head that reads "
                f"{' and '.join(heads)}; use another kind"
            )
        for name, head in heads.items():
            cast(TrunkCritic, critic).add_head(name, head)
        self.players = nn.ModuleDict({"discriminator": critic, "generator": self.generator})

        self.adversary = Adversary(settings, self.shape)
        self.regularisers = nn.ModuleDict({r.name: r.build(self.players[r.player]) for r in settings.regularisers})
        self.regulated = {r.name: r.player for r in settings.regularisers}
        self.bottleneck = settings.bottleneck.build() if settings.bottleneck else None
        self.weights = {
            "discriminator": 1.0,
            "adversarial": settings.adversarial_weight,
            "feature_matching": settings.feature_matching_weight,
            "pulling_away": settings.pulling_away_weight,
            "classes": condition.classifier_weight if condition else 0.0,
            "information": 1.0 if settings.codes else 0.0,
            "bottleneck": 1.0 if settings.bottleneck else 0.0,
            **self.adversary.weights,
            **lazy_weights(settings.regularisers),
        }

    @property
    def critic(self) -> Critic:
        return cast(Critic, self.players["discriminator"])

    def turns(self, step: int) -> Sequence[Turn]:
        self.adversary.advance(step)
        moves = [Turn("discriminator", self._due_at(step))]
        rounds, left = divmod(step + 1, self.settings.discriminator_steps)
        if left == 0:
            moves.append(Turn("generator", self._due_at(rounds - 1)))
        return moves

    def _due_at(self, move: int) -> tuple[str, ...]:
        """The terms that count in a player's move of this number, from 0."""
        return (*self.adversary.due(move), *due(self.settings.regularisers, move))

    def shared(self, batch: Mapping[str, Tensor], moving: Collection[str]) -> dict[str, Tensor]:
        real = batch[self.side]
        latent = self.draw(len(real), device=real.device)
        with torch.set_grad_enabled("generator" in moving):
            return {"latent": latent, "fake": self.generate(latent, self._label(batch))}

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        real, label, latent, fake = batch[self.side], self._label(batch), shared["latent"], shared["fake"]
        if turn.player == "discriminator":
            terms = self._discriminator_losses(turn, real, fake.detach(), latent, label)
        else:
            terms = self._generator_losses(real, fake, latent, label)
        for name, regulariser in self.regularisers.items():
            if self.regulated[name] == turn.player and name in turn.terms and self.active(name):
                terms[name] = regulariser(self.players[turn.player])
        return terms

    def _discriminator_losses(
        self, turn: Turn, real: Tensor, fake: Tensor, latent: Tensor, label: Tensor | None
    ) -> dict[str, Tensor]:
        shown, shown_label = self.adversary.remembered(fake, label)
        # Real and fake go through apart: batch norm's statistics of one must not tell of the other.
        of_real, of_fake = self.judge(real, label), self.judge(shown, shown_label)
        terms = self.adversary.game(self, of_real.logits, of_fake.logits)
        terms |= self.adversary.penalised(self, lambda x: self.judge(x, label).logits, real, fake, turn.terms)
        if label is not None and shown_label is not None and self.active("classes"):
            classifier = self._head("classes")
            wrong = [
                F.cross_entropy(classifier(judged.features).float(), target)
                for judged, target in ((of_real, label), (of_fake, shown_label))
            ]
            terms["classes"] = wrong[0] + wrong[1]
        if self.settings.codes and self.active("information"):
            # The pool's latents are forgotten.
            of_own = of_fake if self.adversary.pool is None else self.judge(fake, label)
            terms["information"] = self._information(of_own, latent)
        if self.bottleneck is not None and self.active("bottleneck"):
            information = torch.cat([self._passed(of_real), self._passed(of_fake)])
            terms["bottleneck"] = self.bottleneck(information)
            for name, value in self.bottleneck.update(information.detach()).items():
                self.report(name, value)
        return terms

    def _generator_losses(self, real: Tensor, fake: Tensor, latent: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        unrolling = self.settings.unrolling
        if unrolling and self.active("adversarial"):
            terms["adversarial"] = self.adversary.objective.generator(*self._unrolled(unrolling, real, fake, label))
            if not any(self.active(term) for term in ("feature_matching", "pulling_away", "classes", "information")):
                return terms
        of_fake = self.judge(fake, label)
        of_real: Judgement | None = None
        if self.adversary.objective.needs_real or self.active("feature_matching"):
            with torch.no_grad():
                of_real = self.judge(real, label)
        if not unrolling and self.active("adversarial"):
            terms["adversarial"] = self.adversary.objective.generator(of_fake.logits, of_real and of_real.logits)
        if of_real is not None and self.active("feature_matching"):
            terms["feature_matching"] = mean_feature_matching(of_real.features, of_fake.features)
        if self.active("pulling_away"):
            terms["pulling_away"] = pulling_away(of_fake.features)
        if label is not None and self.active("classes"):
            terms["classes"] = F.cross_entropy(self._head("classes")(of_fake.features).float(), label)
        if self.settings.codes and self.active("information"):
            terms["information"] = self._information(of_fake, latent)
        return terms

    def moved(self, turn: Turn) -> Renewed:
        if turn.player == "discriminator" and self.settings.weight_clip is not None:
            clip_weights(self.critic, self.settings.weight_clip)
        for name, regulariser in self.regularisers.items():
            if self.regulated[name] == turn.player:
                cast(Regulariser, regulariser).update(self.players[turn.player])
        return ()

    # ---- what the discriminator sees -----------------------------------------------------------------------------

    def judge(self, x: Tensor, label: Tensor | None) -> Judgement:
        """The critic's judgement of samples (N, *shape), seen through the augmentations, of their classes."""
        return self.critic.judge(*self._seen(x, label))

    def _seen(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self.adversary.seen(x)
        if self.judges_by == "concat":
            one_hot = self._one_hot(label).to(x.dtype)  # (N, classes)
            planes = one_hot.reshape(*one_hot.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, planes], dim=1)
        return x, label if self.judges_by == "projection" else None

    def _information(self, judged: Judgement, latent: Tensor) -> Tensor:
        assert self.codes is not None
        categorical, continuous = self._head("codes")(judged.features)
        return information_loss(latent, self.latent.width, self.codes, categorical, continuous)

    def _head(self, name: str) -> nn.Module:
        return cast(TrunkCritic, self.critic).heads[name]

    @staticmethod
    def _passed(judged: Judgement) -> Tensor:
        assert judged.information is not None, "the critic has a bottleneck, by the settings' own check"
        return judged.information

    def _unrolled(
        self, unrolling: UnrollingSettings, real: Tensor, fake: Tensor, label: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(fake logits, real logits) of the discriminator that some gradient steps would make, differentiable."""
        weights = {name: p.detach().requires_grad_() for name, p in self.critic.named_parameters()}
        buffers = {name: b.clone() for name, b in self.critic.named_buffers()}

        def logits(x: Tensor) -> Tensor:
            return torch.as_tensor(functional_call(self.critic, {**weights, **buffers}, self._seen(x, label)))

        for _ in range(unrolling.steps):
            loss = self.adversary.objective.discriminator(logits(real), logits(fake))
            gradients = torch.autograd.grad(
                loss, list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            weights = {name: w - unrolling.rate * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
        return logits(fake), logits(real)
