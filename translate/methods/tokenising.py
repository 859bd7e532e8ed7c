"""How a tokenizer learns, whatever it is for: what VQGAN's box says of one tokenizer and its discriminator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from translate.data.spec import ImageSpec
from translate.losses.adaptive_weight import adaptive_weight, at_weight, gradient_at, with_gradient
from translate.losses.adversarial import HingeSettings, ObjectiveField
from translate.losses.logit_laplace import LogitLaplaceSettings, logit_laplace
from translate.losses.lpips import LPIPSSettings
from translate.losses.reconstruction import ReconstructionSettings
from translate.methods.adversary import Adversary, AdversarySettings, discriminator_losses
from translate.methods.base import Method, Renewed, Summary, Turn, check_sizes
from translate.methods.code_watch import CodeWatch
from translate.networks import Discriminator, DiscriminatorSettings
from translate.networks.patch import PatchSettings
from translate.networks.tokenizer import Tokenizer, TokenizerSettings
from translate.settings import Share

_DISTANCES = ("reconstruction", "lpips")
"""What compares the reconstruction with the image: L_rec of equation 7."""


class TokenisingSettings(AdversarySettings):
    """A tokenizer, a discriminator that judges what it reconstructs, and what both learn from."""

    tokenizer: TokenizerSettings = TokenizerSettings()
    discriminator: DiscriminatorSettings | None = PatchSettings()
    """Null for a tokenizer that learns by reconstruction alone."""
    objective: ObjectiveField = HingeSettings()
    discriminator_weight: float = Field(default=0.5, ge=0)
    """The authors' code halves the hinge (taming-transformers, losses/vqperceptual.py)."""
    adversarial_weight: float = Field(default=0.8, ge=0)
    """Beside lambda, the adaptive weight; 0.8 in the authors' configs, the paper has 1."""
    adaptive: bool = True
    """Weigh the adversarial term by lambda (equation 7); else by `adversarial_weight` alone."""
    reconstruction: Annotated[ReconstructionSettings | LogitLaplaceSettings, Field(discriminator="kind")] = (
        ReconstructionSettings(weight=1.0)
    )
    lpips: LPIPSSettings | None = LPIPSSettings()
    """Distance by LPIPS; null for none."""
    quantiser_weight: float = Field(default=1.0, ge=0)
    """Of what the quantiser asks for itself: codebook and commitment, entropy."""
    least_used: Share = 0.25
    """An epoch that uses a smaller share of the codes is warned of."""

    @model_validator(mode="after")
    def _game_is_played(self) -> TokenisingSettings:
        if self.discriminator is None:
            for name in ("penalties", "augmentations", "replay"):
                if getattr(self, name):
                    raise ValueError(f"'{name}' is for a discriminator, but 'discriminator' is null: leave it out")
        return self

    def build_tokenizer(self, spec: ImageSpec) -> Tokenizer:
        """The tokenizer of a side of the data."""
        return self.tokenizer.build(spec.width, spread=isinstance(self.reconstruction, LogitLaplaceSettings))


class Tokenising(nn.Module):
    """The losses of one tokenizer and its discriminator, and what is remembered between steps.

    Args:
        settings: the recipe.
        spec: what the images are; LPIPS is left out for what is no picture.
        codes: size of the codebook.
        size: height and width of a training image; 0 for any.
        of: stands behind every term's name, where a method has several tokenizers: `reconstruction_A`.
        inference: nothing is loaded that only a loss needs.
    """

    def __init__(
        self, settings: TokenisingSettings, spec: ImageSpec, codes: int, size: int, *, of: str = "", inference: bool
    ) -> None:
        super().__init__()
        self.settings, self.spec, self.of = settings, spec, of
        self.adversary = Adversary(settings, (spec.width, size, size))
        self.watch = CodeWatch(codes, settings.least_used, of)
        self.reconstruction: Callable[[Tensor, Tensor], Tensor] | None = None
        if isinstance(settings.reconstruction, ReconstructionSettings):
            self.reconstruction = settings.reconstruction.build()
        self.lpips: nn.Module | None = None
        if settings.lpips is not None and not inference and spec.kind == "image":
            self.lpips = settings.lpips.build([spec])
        self._surveyed: list[tuple[Tensor, Tensor]] = []
        self._weight: Tensor | None = None

    def weights(self) -> dict[str, float]:
        """Name -> weight of all terms of both players."""
        settings = self.settings
        found = {
            "reconstruction": settings.reconstruction.weight,
            "quantiser": settings.quantiser_weight,
        }
        if settings.lpips is not None and self.spec.kind == "image":
            found["lpips"] = settings.lpips.weight
        if settings.discriminator is not None:
            found |= {"discriminator": settings.discriminator_weight, "adversarial": settings.adversarial_weight}
            found |= self.adversary.weights
        return {name + self.of: weight for name, weight in found.items()}

    # ---- what a step does ------------------------------------------------------------------------------------------

    def shared(self, tokenizer: Tokenizer, images: Tensor, *, learns: bool) -> dict[str, Tensor]:
        """z_q <- q(E(x)), x^ <- D(z_q): the reconstruction, the quantiser's loss and the tokens, by name."""
        with torch.set_grad_enabled(learns):
            quantised = tokenizer.encode(images)
            raw = tokenizer.decode(quantised.quantised)
        found = {"raw": raw, "quantiser": quantised.loss, "tokens": quantised.indices}
        return {name + self.of: tensor for name, tensor in found.items()}

    def tokenizer_losses(
        self,
        method: Method,
        tokenizer: Tokenizer,
        discriminator: Discriminator | None,
        images: Tensor,
        shared: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """reconstruction, lpips, quantiser and, where the discriminator is listened to, lambda * adversarial."""
        raw = shared[f"raw{self.of}"]
        self.watch.add(shared[f"tokens{self.of}"])
        terms: dict[str, Tensor] = {}
        if method.active(f"quantiser{self.of}"):
            terms["quantiser"] = shared[f"quantiser{self.of}"]
        if discriminator is None or not method.active(f"adversarial{self.of}"):
            for name in _DISTANCES:
                if (distance := self._distance(name, method, tokenizer, raw, images)) is not None:
                    terms[name] = distance
            return {name + self.of: term for name, term in terms.items()}
        gradients = self._gradients(method, tokenizer, discriminator, raw, images)
        value, gradient = gradients.pop("adversarial")
        for name, (distance, its_gradient) in gradients.items():
            terms[name] = with_gradient(raw, distance, its_gradient)
        weight = torch.ones((), device=raw.device)
        if self.settings.adaptive:
            weight = self._adaptive_weight(method, tokenizer, raw, gradients, gradient)
            method.report(f"adaptive weight{self.of}", weight)
        method.report(f"G(fake){self.of}", value)
        terms["adversarial"] = with_gradient(raw, weight * value, weight * gradient)
        return {name + self.of: term for name, term in terms.items()}

    def surveys(self, method: Method) -> bool:
        """Whether a step of several batches must look at all of them before the first loss: lambda is of them all."""
        return (
            self.settings.adaptive
            and f"adversarial{self.of}" in method.weights
            and method.active(f"adversarial{self.of}")
        )

    def survey(
        self,
        method: Method,
        tokenizer: Tokenizer,
        discriminator: Discriminator,
        images: Tensor,
        shared: Mapping[str, Tensor],
    ) -> None:
        """Take note of one batch's gradients at the last layer."""
        tokenizer.quantiser.forget()
        raw = shared[f"raw{self.of}"]
        gradients = self._gradients(method, tokenizer, discriminator, raw, images)
        _, adversarial = gradients.pop("adversarial")
        self._surveyed.append(self._at_last_layer(method, tokenizer, raw, gradients, adversarial))

    def discriminator_losses(
        self, method: Method, tokenizer: Tokenizer, discriminator: Discriminator, images: Tensor,
        shared: Mapping[str, Tensor], due: Collection[str],
    ) -> dict[str, Tensor]:  # fmt: skip
        """L_D( D(x), D(x^) ) and the penalties that are due."""
        fake = tokenizer.picture(shared[f"raw{self.of}"])
        return discriminator_losses(
            method, self.adversary, discriminator, images, fake, due, of=self.of.removeprefix("_")
        )

    def moved(self, method: Method, tokenizer: Tokenizer) -> Renewed:
        """After the tokenizer has moved: averages of the codes, dead ones begin anew."""
        self._surveyed, self._weight = [], None
        for name, value in tokenizer.quantiser.moved(method.finite).items():
            method.report(f"{name}{self.of}", value)
        return tokenizer.quantiser.renewed()

    def summary(self) -> Summary:
        """What the epoch says of the codebook."""
        return self.watch.summary()

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        """That an epoch used little of the codebook."""
        name = self.watch.name
        return self.watch.warnings(values.get(f"{name}/codes-used"), values.get(f"{name}/tokens for each code"))

    # ---- the terms -------------------------------------------------------------------------------------------------

    def _gradients(
        self, method: Method, tokenizer: Tokenizer, discriminator: Discriminator, raw: Tensor, images: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Each term that x^ alone decides: its value, and its gradient at the decoder's output."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name in _DISTANCES:
            output = raw.detach().requires_grad_()
            if (loss := self._distance(name, method, tokenizer, output, images)) is not None:
                found[name] = (loss.detach(), gradient_at(loss, output))
        output = raw.detach().requires_grad_()
        loss = self.adversary.generator_loss(discriminator, tokenizer.picture(output), images)
        found["adversarial"] = (loss.detach(), gradient_at(loss, output))
        return found

    def _distance(self, name: str, method: Method, tokenizer: Tokenizer, raw: Tensor, images: Tensor) -> Tensor | None:
        """The term of this name that compares x^ with x; None where it does not count."""
        if not method.weights.get(name + self.of):
            return None
        if name == "lpips":
            return None if self.lpips is None else self.lpips(tokenizer.picture(raw), images)
        return logit_laplace(raw, images) if self.reconstruction is None else self.reconstruction(raw, images)

    def _at_last_layer(
        self,
        method: Method,
        tokenizer: Tokenizer,
        raw: Tensor,
        distances: Mapping[str, tuple[Tensor, Tensor]],
        adversarial: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of L_rec (the weighted sum of what compares x^ with x) and L_GAN at the last layer's weight."""
        reconstruction = torch.zeros_like(adversarial)
        for name, (_, gradient) in distances.items():
            reconstruction += method.weights[name + self.of] * gradient
        weight = tokenizer.last_layer
        return at_weight(raw, reconstruction, weight), at_weight(raw, adversarial, weight)

    def _adaptive_weight(
        self,
        method: Method,
        tokenizer: Tokenizer,
        raw: Tensor,
        distances: Mapping[str, tuple[Tensor, Tensor]],
        adversarial: Tensor,
    ) -> Tensor:
        """Of this batch, or of all that were surveyed: of a step's batches the mean gradients count."""
        if self._weight is not None:
            return self._weight
        if not self._surveyed:
            return adaptive_weight(*self._at_last_layer(method, tokenizer, raw, distances, adversarial))
        means = [torch.stack(gradients).mean(dim=0) for gradients in zip(*self._surveyed, strict=True)]
        self._weight = adaptive_weight(*means)
        return self._weight


class TokenizerMethod(Method):
    """A method of one tokenizer, among other players perhaps; subclasses set `side` and `tokenising`."""

    side: str
    """Of the data, whose images the tokenizer learns from."""
    tokenising: Tokenising

    @property
    def tokenizer(self) -> Tokenizer:
        return cast(Tokenizer, self.players["tokenizer"])

    @property
    def discriminator(self) -> Discriminator | None:
        return cast(Discriminator, self.players["discriminator"]) if "discriminator" in self.players else None

    def advance(self, progress: float) -> None:
        self.tokenizer.quantiser.advance(progress)

    def turns(self, step: int) -> Sequence[Turn]:
        if self.discriminator is None:
            return (Turn("tokenizer"),)
        self.tokenising.adversary.advance(step)
        return (Turn("tokenizer"), Turn("discriminator", self.tokenising.adversary.due(step)))

    def losses(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images, part = batch[self.side], self.tokenising
        if turn.player == "tokenizer":
            return part.tokenizer_losses(self, self.tokenizer, self.discriminator, images, shared)
        assert self.discriminator is not None
        return part.discriminator_losses(self, self.tokenizer, self.discriminator, images, shared, turn.terms)

    def surveys(self, turn: Turn) -> bool:
        return turn.player == "tokenizer" and self.discriminator is not None and self.tokenising.surveys(self)

    def survey(self, turn: Turn, batch: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> None:
        assert self.discriminator is not None
        self.tokenising.survey(self, self.tokenizer, self.discriminator, batch[self.side], shared)

    def moved(self, turn: Turn) -> Renewed:
        return self.tokenising.moved(self, self.tokenizer) if turn.player == "tokenizer" else ()

    def summary(self) -> Summary:
        return self.tokenising.summary()

    def warnings(self, values: Mapping[str, float]) -> list[str]:
        return self.tokenising.warnings(values)

    def check(self, batch: Mapping[str, Tensor]) -> None:
        networks: dict[str, tuple[str, nn.Module]] = {"tokenizer": (self.side, self.tokenizer)}
        if self.discriminator is not None:
            networks["discriminator"] = (self.side, self.discriminator)
        check_sizes(batch, networks)
