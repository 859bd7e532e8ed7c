"""The discriminator's side of any game: its objective, what it sees, what it is held to and remembers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from translate.augment import AdaptiveSettings, Augmentation, AugmentationSettings, DiffAugmentSettings
from translate.data.transforms import AugmentSettings
from translate.errors import UserError
from translate.losses.adversarial import NonSaturatingSettings, ObjectiveField, RelativisticSettings
from translate.losses.penalties import Critic, GradientPenaltySettings, PenaltySettings
from translate.methods.base import Method
from translate.methods.replay import HistoryPool
from translate.networks.minibatch import MinibatchDeviation, MinibatchDiscrimination
from translate.settings import Settings


class LazyTerm(Protocol):
    """Settings of a term that counts in one of so many moves of its player only."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def every(self) -> int: ...


def due(terms: Sequence[LazyTerm], move: int) -> tuple[str, ...]:
    """The terms that count in a player's move of this number, from 0."""
    return tuple(term.name for term in terms if move % term.every == 0)


def lazy_weights(terms: Sequence[LazyTerm]) -> dict[str, float]:
    """Name -> weight where the term is due: one that counts in one move of k counts k times as much there."""
    return {term.name: term.weight * term.every for term in terms}


def each_once(terms: Sequence[LazyTerm], what: str) -> None:
    """ValueError if two terms have one name; `what` tells what they are."""
    counts = Counter(term.name for term in terms)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise ValueError(f"two {what} are called {twice!r}; leave one out")


class AdversarySettings(Settings):
    """What the discriminator of any adversarial method can be given."""

    kind: str = ""
    """The method's; named here so that it opens what is written of its settings."""
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
        each_once(penalties, "penalties")
        return penalties


class Adversary(nn.Module):
    """One discriminator's game. The discriminator itself is a player of the method; what is kept here is its state.

    Args:
        settings: the game.
        shape: of a sample that the discriminator judges.
        given: channels of the image that each sample is judged beside, such as pix2pix's source; 0 for none.

    Raises:
        UserError: an augmentation does not fit such samples.
    """

    def __init__(self, settings: AdversarySettings, shape: tuple[int, ...], given: int = 0) -> None:
        super().__init__()
        if given:
            _refuse_colours(settings.augmentations)
        first, *rest = shape
        self.settings = settings
        self.objective = settings.objective.build()
        self.penalties = {penalty.name: penalty.build() for penalty in settings.penalties}
        self.augmentations = nn.ModuleList(a.build((given + first, *rest)) for a in settings.augmentations)
        self.pool = HistoryPool(settings.replay) if settings.replay else None
        self.weights = lazy_weights(settings.penalties)

    def advance(self, step: int) -> None:
        """Told the step's number before each step."""
        for augmentation in self._augmentations():
            augmentation.advance(step)

    def due(self, move: int) -> tuple[str, ...]:
        """The penalties that count in the discriminator's move of this number, from 0."""
        return due(self.settings.penalties, move)

    def seen(self, x: Tensor) -> Tensor:
        """Samples (N, *shape), behind the images that they are judged beside (`pair`), as the discriminator sees them:
        through the augmentations, which change both alike."""
        for augmentation in self.augmentations:
            x = augmentation(x)
        return x

    def remembered(self, fake: Tensor, beside: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The fakes to show, partly past ones if there is a pool, and what belongs to each: its label, its source."""
        if self.pool is None:
            return fake, beside
        if beside is None:
            return self.pool(fake)[0], None
        shown, shown_beside = self.pool(fake, beside)
        return shown, shown_beside

    def game(self, method: Method, real_logits: Tensor, fake_logits: Tensor, of: str = "") -> dict[str, Tensor]:
        """What the discriminator (called `of`, where a method has several) minimises, `discriminator`, unless it has
        no weight. The augmentations learn from what it says of real samples."""
        suffix = f"_{of}" if of else ""
        terms: dict[str, Tensor] = {}
        if method.active(f"discriminator{suffix}"):
            terms[f"discriminator{suffix}"] = method.discriminator_loss(
                self.objective, real_logits, fake_logits, of=suffix
            )
        for augmentation in self._augmentations():
            for name, value in augmentation.update(real_logits.detach()).items():
                method.report(f"{name}{suffix}", value)
        return terms

    def generator_loss(self, discriminator: nn.Module, fake: Tensor, real: Tensor) -> Tensor:
        """What a generator of images minimises in the game: fakes (N, C, H, W) with a graph, seen as the discriminator
        sees them, and real ones where the objective compares."""
        real_logits = None
        if self.objective.needs_real:
            with torch.no_grad():
                real_logits = discriminator(self.seen(real))
        return self.objective.generator(discriminator(self.seen(fake)), real_logits)

    def penalised(
        self, method: Method, critic: Critic, real: Tensor, fake: Tensor, due: Collection[str], of: str = ""
    ) -> dict[str, Tensor]:
        """The penalties that are due, unless they have no weight.

        Args:
            critic: samples -> logits; what they are judged beside, it holds fixed.
            due: names, as the function `due` gives them.
        """
        suffix = f"_{of}" if of else ""
        return {
            name + suffix: penalty(critic, real, fake)
            for name, penalty in self.penalties.items()
            if name in due and method.active(name + suffix)
        }

    def _augmentations(self) -> list[Augmentation]:
        return [cast(Augmentation, augmentation) for augmentation in self.augmentations]


def unpaired_shape(settings: AdversarySettings, width: int, augment: AugmentSettings) -> tuple[int, int, int]:
    """Shape (C, H, W) of what a discriminator judges where real and fake images are no pairs; 0 pixels for any size.

    UserError where the images keep sizes of their own, but the game holds each real one against a fake one.
    """
    size = augment.crop or augment.resize or 0
    one_by_one = isinstance(settings.objective, RelativisticSettings) or any(
        isinstance(penalty, GradientPenaltySettings) for penalty in settings.penalties
    )
    if one_by_one and augment.crop is None and (augment.resize is None or augment.resize_by == "shorter"):
        raise UserError(
            "data.augment.crop: a relativistic objective and a gradient penalty hold each real image against a "
            "fake one, so all must have one size; set it"
        )
    return (width, size, size)


def _refuse_colours(augmentations: Sequence[AugmentationSettings]) -> None:
    """UserError where colours would be changed across the images of a pair: saturation, contrast and hue mean one
    image's channels, and channels of a label map are no colours."""
    for number, settings in enumerate(augmentations):
        key = {DiffAugmentSettings: "policy", AdaptiveSettings: "transforms"}.get(type(settings))
        names: list[str] = getattr(settings, key) if key else []
        if key and "colour" in names:
            rest = [name for name in names if name != "colour"]
            remedy = f"set {key} to [{', '.join(rest)}]" if rest else "leave it out"
            raise UserError(
                f"method.augmentations.{number}: 'colour' changes one image, but the discriminator sees a pair as one "
                f"picture; {remedy}"
            )


def discriminator_losses(
    method: Method,
    adversary: Adversary,
    discriminator: nn.Module,
    real: Tensor,
    fake: Tensor,
    due: Collection[str],
    *,
    of: str = "",
    given: Tensor | None = None,
) -> dict[str, Tensor]:
    """What an image discriminator minimises: the game against the (remembered) fakes, and the penalties that are due.

    Args:
        method: has the weights of the terms, and reports.
        real, fake: (N, C, H, W); fakes are detached here.
        due: names of penalties, as `Adversary.due` gives them.
        of: stands behind every name, where a method has several discriminators: `discriminator_A`.
        given: images (N, C', H, W) that real and fake ones are judged beside. The pool remembers them with the fakes.
            Penalties hold them fixed: the game is one of distributions of x given them (as WGAN-GP and R1 are used
            with class labels), so just the slope along x counts.

    Returns:
        `discriminator` and the penalties, unweighted, those of weight 0 left out.
    """
    fake = fake.detach()
    terms: dict[str, Tensor] = {}

    def judge(x: Tensor) -> Tensor:
        return torch.as_tensor(discriminator(adversary.seen(x)))

    if method.active(f"discriminator_{of}" if of else "discriminator"):
        shown, beside = adversary.remembered(fake, given)
        together = per_sample(discriminator)
        real_logits, fake_logits = apart(judge, pair(given, real), pair(beside, shown), together=together)
        terms |= adversary.game(method, real_logits, fake_logits, of)
    return terms | adversary.penalised(method, lambda x: judge(pair(given, x)), real, fake, due, of)


def pair(given: Tensor | None, x: Tensor) -> Tensor:
    """Images (N, C, H, W) behind those (N, C', H, W) that they are judged beside, if there are some."""
    return x if given is None else torch.cat([given, x], dim=1)


def per_sample(network: nn.Module) -> bool:
    """Whether what a network makes of an image depends on no other image of the batch: it has neither batch norm nor a
    layer that compares the images of a batch."""
    across = (_BatchNorm, MinibatchDeviation, MinibatchDiscrimination)
    return not any(isinstance(module, across) for module in network.modules())


def apart(network: Callable[[Tensor], Tensor], *images: Tensor, together: bool) -> tuple[Tensor, ...]:
    """The network's outputs for several batches (N_i, C, H, W): in one pass if `together` and they are of one size.

    That is exact where the network treats each image for itself, and quicker for small batches. (Under spectral norm
    one pass is one power iteration.)
    """
    if not together or len({image.shape[1:] for image in images}) > 1:
        return tuple(network(image) for image in images)
    return torch.split(network(torch.cat(images)), [len(image) for image in images])
