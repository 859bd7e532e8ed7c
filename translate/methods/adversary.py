"""The discriminator's side of a game between images: its objective, what it sees, what it is held to and remembers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from translate.augment import Augmentation, AugmentationSettings
from translate.losses.adversarial import NonSaturatingSettings, ObjectiveField
from translate.losses.penalties import PenaltySettings
from translate.methods.base import Method
from translate.methods.replay import HistoryPool
from translate.settings import Settings


class AdversarySettings(Settings):
    """What the discriminator of any adversarial method can be given."""

    objective: ObjectiveField = NonSaturatingSettings()
    """The adversarial game, by name or with its own settings."""
    penalties: list[PenaltySettings] = Field(default_factory=list)
    """What the discriminator's gradient is held to."""
    augmentations: list[AugmentationSettings] = Field(default_factory=list)
    """What the discriminator sees real and fake samples through."""
    replay: int = Field(default=0, ge=0)
    """Past fakes that the discriminator sees again, half of the time; 0 for none."""

    @field_validator("penalties")
    @classmethod
    def _each_once(cls, penalties: list[PenaltySettings]) -> list[PenaltySettings]:
        counts = Counter(penalty.name for penalty in penalties)
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise ValueError(f"two penalties are called {twice!r}; leave one out")
        return penalties


class Adversary(nn.Module):
    """One discriminator's game. The discriminator itself is a player of the method; what is kept here is its state.

    Args:
        settings: the game.
        shape: of a sample that the discriminator judges.
    """

    def __init__(self, settings: AdversarySettings, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.objective = settings.objective.build()
        self.penalties = {penalty.name: penalty.build() for penalty in settings.penalties}
        self.augmentations = nn.ModuleList(augmentation.build(shape) for augmentation in settings.augmentations)
        self.pool = HistoryPool(settings.replay) if settings.replay else None
        self.every = {penalty.name: penalty.every for penalty in settings.penalties}
        # A term that counts in one step of k counts k times as much there.
        self.weights = {penalty.name: penalty.weight * penalty.every for penalty in settings.penalties}

    def advance(self, step: int) -> None:
        """Told the step's number before each step."""
        for augmentation in self._augmentations():
            augmentation.advance(step)

    def due(self, move: int) -> tuple[str, ...]:
        """The penalties that count in the discriminator's move of this number, from 0."""
        return tuple(name for name, every in self.every.items() if move % every == 0)

    def seen(self, x: Tensor) -> Tensor:
        """Samples (N, *shape) as the discriminator sees them: through the augmentations."""
        for augmentation in self.augmentations:
            x = augmentation(x)
        return x

    def judged(self, real_logits: Tensor) -> dict[str, Tensor]:
        """Let the augmentations learn from the logits of real samples (without gradient); what to report of it."""
        reports: dict[str, Tensor] = {}
        for augmentation in self._augmentations():
            reports |= augmentation.update(real_logits.detach())
        return reports

    def _augmentations(self) -> list[Augmentation]:
        return [cast(Augmentation, augmentation) for augmentation in self.augmentations]


def discriminator_losses(
    method: Method,
    adversary: Adversary,
    discriminator: nn.Module,
    real: Tensor,
    fake: Tensor,
    due: Collection[str],
    *,
    of: str = "",
) -> dict[str, Tensor]:
    """What an image discriminator minimises: the game against the (remembered) fakes, and the penalties that are due.

    Args:
        method: has the weights of the terms, and reports.
        real, fake: (N, C, H, W); fakes are detached here.
        due: names of penalties, as `Adversary.due` gives them.
        of: stands behind every name, where a method has several discriminators: `discriminator_A`.

    Returns:
        `discriminator` and the penalties, unweighted, those of weight 0 left out.
    """
    suffix = f"_{of}" if of else ""
    terms: dict[str, Tensor] = {}

    def judge(x: Tensor) -> Tensor:
        return torch.as_tensor(discriminator(adversary.seen(x)))

    fake = fake.detach()
    if method.active(f"discriminator{suffix}"):
        shown = fake
        if adversary.pool is not None:
            (shown,) = adversary.pool(fake)
        real_logits, fake_logits = apart(judge, real, shown, together=per_sample(discriminator))
        terms[f"discriminator{suffix}"] = method.discriminator_loss(
            adversary.objective, real_logits, fake_logits, of=suffix
        )
        for name, value in adversary.judged(real_logits).items():
            method.report(f"{name}{suffix}", value)
    for name, penalty in adversary.penalties.items():
        if name in due and method.active(name + suffix):
            terms[name + suffix] = penalty(judge, real, fake)
    return terms


def per_sample(network: nn.Module) -> bool:
    """Whether what a network makes of an image depends on no other image of the batch: it has no batch norm."""
    return not any(isinstance(module, _BatchNorm) for module in network.modules())


def apart(network: Callable[[Tensor], Tensor], *images: Tensor, together: bool) -> tuple[Tensor, ...]:
    """The network's outputs for several batches (N_i, C, H, W): in one pass if `together` and they are of one size.

    That is exact where the network treats each image for itself, and quicker for small batches. (Under spectral norm
    one pass is one power iteration.)
    """
    if not together or len({image.shape[1:] for image in images}) > 1:
        return tuple(network(image) for image in images)
    return network(torch.cat(images)).split([len(image) for image in images])
