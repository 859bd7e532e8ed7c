"""What all methods share that make samples out of noise: what sampling asks of them; the latent, its condition, and
what one looks at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from translate.data import DataSettings, FolderSettings, ToySettings
from translate.data.images import visible
from translate.data.spec import Spec
from translate.errors import UserError
from translate.methods.base import Comparison, Method
from translate.networks import LatentGenerator, LatentGeneratorSettings
from translate.settings import Settings

COLUMNS = 16
"""Classes that a preview shows at most: more would be too small to see."""
PREVIEWED_POINTS = 2048


class LatentSettings(Settings):
    """The noise that samples are made of."""

    width: int = Field(default=128, ge=1)
    prior: Literal["normal", "uniform"] = "normal"
    """N(0, 1), or uniform in [-1, 1], each entry by itself."""


class CodeSettings(Settings):
    """InfoGAN's codes beside the noise (Chen et al., arXiv 1606.03657): what the generator must keep readable."""

    categorical: list[int] = Field(default_factory=list)
    """Number of values of each categorical code; uniform, one-hot."""
    continuous: int = Field(default=0, ge=0)
    """Number of continuous codes, uniform in [-1, 1]."""
    categorical_weight: float = Field(default=1.0, ge=0)
    """lambda of the categorical codes (appendix C: 1)."""
    continuous_weight: float = Field(default=0.1, ge=0)
    """lambda of the continuous codes (appendix C.1, MNIST: 0.1)."""

    @property
    def width(self) -> int:
        return sum(self.categorical) + self.continuous


def samples_of(data: DataSettings, method: str) -> FolderSettings | ToySettings:
    """The data of a method that learns to make samples; UserError for pairs."""
    if isinstance(data, FolderSettings | ToySettings):
        return data
    raise UserError(
        f"method {method} learns from single samples: data.kind must be 'folder' or 'toy', not '{data.kind}'"
    )


class SamplingMethod(Method):
    """Makes samples of one kind out of chance, of a class if there are classes: what sampling and evaluation use."""

    side: str
    spec: Spec
    shape: tuple[int, ...]
    """Of a sample: (C, H, W) or (D,)."""
    class_names: tuple[str, ...]
    """Empty for a method that knows no classes."""
    samples_with: tuple[str, ...] = ("generator",)
    """The players that `generate` uses."""
    exact: bool = False
    """Whether they run in float32 alone."""

    @abstractmethod
    def draw(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        truncation: float | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """What samples are made of, (count, L) float32: see the subclasses."""

    @abstractmethod
    def generate(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """(N, L) of `draw`, and (N,) class numbers where there are classes -> samples (N, *shape)."""

    @abstractmethod
    def interpolate(self, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
        """(T, L) between two of `draw`, (L,) each, at the shares t (T,) from 0 to 1; UserError where nothing is."""

    def _label(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """(N,) class numbers, where the method uses them."""
        return batch["label"] if self.class_names else None

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        """As many samples as the batch has, of its classes, beside it."""
        real = batch[self.side]
        latent = self.draw(len(real), generator=chance).to(real.device)
        return {"": Comparison(self.generate(latent, self._label(batch)), real, self.spec)}

    def check(self, batch: Mapping[str, Tensor]) -> None:
        shape = tuple(batch[self.side].shape[1:])
        if shape != self.shape:
            raise UserError(f"data.augment: samples have shape {shape}, the networks were made for {self.shape}")


class GenerativeMethod(SamplingMethod):
    """Makes samples out of latents. A subclass adds further players, turns and losses.

    The latent that the generator takes is [z, codes, class one-hot]: `draw` makes the first two, `generate` adds the
    class where the condition is a concatenation.
    """

    channels_last = True

    def __init__(
        self,
        generator: LatentGeneratorSettings,
        latent: LatentSettings,
        data: FolderSettings | ToySettings,
        *,
        codes: CodeSettings | None = None,
        condition: Literal["concat", "norm"] | None = None,
    ) -> None:
        super().__init__()
        ((side, spec),) = data.specs().items()
        self.side, self.spec = side, spec
        self.shape = data.shape()
        self.compares = {} if self.spec.kind == "points" else {"": False}
        self.class_names = data.class_names if condition else ()
        if condition and not self.class_names:
            raise UserError(
                "method.conditioning: the data has no classes; set data.classes to 'folders' (one folder a class)"
            )
        self.latent, self.codes, self.condition = latent, codes, condition
        classes = len(self.class_names)
        width = latent.width + (codes.width if codes else 0) + (classes if condition == "concat" else 0)
        self.players = nn.ModuleDict(
            {"generator": generator.build(width, self.shape, classes if condition == "norm" else None)}
        )

    @property
    def generator(self) -> LatentGenerator:
        return cast(LatentGenerator, self.players["generator"])

    # ---- latents ---------------------------------------------------------------------------------------------------

    def draw(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        truncation: float | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Latents and codes from the prior: (count, latent width + code width), float32.

        Args:
            generator: source of chance; torch's default one without it.
            truncation: entries of a normal prior beyond this many deviations are drawn anew (Brock et al., arXiv
                1809.11096, section 3.1).

        Raises:
            UserError: truncation of a uniform prior.
        """
        device = device or torch.device("cpu")
        shape = (count, self.latent.width)
        if self.latent.prior == "normal":
            z = torch.randn(shape, generator=generator, device=device)
            if truncation is not None:
                if truncation <= 0:
                    raise UserError(f"truncation {truncation}: expected a number above 0, such as 0.7")
                # Not by inverting the normal distribution: drawing anew leaves the entries within as they are.
                while (beyond := z.abs() > truncation).any():
                    z = torch.where(beyond, torch.randn(shape, generator=generator, device=device), z)
        else:
            if truncation is not None:
                raise UserError("truncation needs a normal prior; this model draws from a uniform one (method.latent)")
            z = torch.rand(shape, generator=generator, device=device) * 2 - 1
        if self.codes is None:
            return z
        parts = [z]
        for values in self.codes.categorical:
            chosen = torch.randint(values, (count,), generator=generator, device=device)
            parts.append(F.one_hot(chosen, values).float())
        parts.append(torch.rand((count, self.codes.continuous), generator=generator, device=device) * 2 - 1)
        return torch.cat(parts, dim=1)

    def generate(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """(N, L) of `draw`, and (N,) class numbers where there are classes -> samples (N, *shape)."""
        if self.condition == "concat":
            latent = torch.cat([latent, self._one_hot(label).to(latent.dtype)], dim=1)
        return torch.as_tensor(self.generator(latent, label if self.condition == "norm" else None))

    def interpolate(self, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
        """Latents (T, L) between two of `draw`, (L,) each, at the shares t (T,) from 0 to 1.

        A normal prior's along the great circle (White, arXiv 1609.04468, section 2.1): a straight line would pass
        near the origin, where no sample of many dimensions ever is. Codes, and a uniform prior, in a straight line.
        """
        t = t[:, None]
        straight = torch.lerp(start[None], end[None], t)
        if self.latent.prior == "uniform":
            return straight
        width = self.latent.width
        a, b = start[None, :width], end[None, :width]
        angle = F.cosine_similarity(a, b).clamp(-1, 1).acos()[:, None]
        if float(angle.sin()) < 1e-4:  # (nearly) parallel: the circle is the line
            return straight
        arc = ((1 - t) * angle).sin() / angle.sin() * a + (t * angle).sin() / angle.sin() * b
        return torch.cat([arc, straight[:, width:]], dim=1)

    def _one_hot(self, label: Tensor | None) -> Tensor:
        assert label is not None, "a class-conditional model needs labels"
        return F.one_hot(label, len(self.class_names)).float()

    # ---- what one looks at -----------------------------------------------------------------------------------------

    def exported(self) -> nn.ModuleDict:
        return nn.ModuleDict({"generator": self.generator})

    def previews(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Samples of the same latents each time. With classes, or a categorical code, a column each, and a row for each
        latent: what changes along a row is what the class does. Points as a scatter plot, real ones beside."""
        real = batch[self.side]
        chance = torch.Generator().manual_seed(0)
        if self.spec.kind == "points":
            limit = 1.25 * float(real.abs().max())
            samples = self.generate(self.draw(PREVIEWED_POINTS, generator=chance).to(real.device))
            return {"samples": scatter(samples, limit)[None], "real": scatter(real, limit)[None]}
        names = self.class_names or tuple(f"code {value}" for value in range(self._values))
        columns = names[:COLUMNS] or ("samples",)
        latent = self.draw(max(1, len(real) // len(columns)), generator=chance).to(real.device)
        shown = {}
        for number, name in enumerate(columns):
            label = torch.full((len(latent),), number, device=real.device) if self.class_names else None
            if not self.class_names and self._values:
                code = F.one_hot(torch.tensor(number), self._values).to(latent)
                latent[:, self.latent.width : self.latent.width + self._values] = code
            shown[name] = visible(self.generate(latent, label), self.spec)
        return shown

    @property
    def _values(self) -> int:
        """Values of the first categorical code; 0 without one."""
        return self.codes.categorical[0] if self.codes and self.codes.categorical else 0


def scatter(points: Tensor, limit: float, size: int = 256) -> Tensor:
    """Points (N, 2) as a picture (3, size, size) in [-1, 1]: dark where many are, white where none; the second axis
    points up. Those beyond +-limit stand outside."""
    points = points.detach().float().cpu()
    places = ((points / limit + 1) / 2 * size).floor().long()
    places = places[((places >= 0) & (places < size)).all(dim=1)]
    counts = torch.zeros(size, size).index_put_(
        (size - 1 - places[:, 1], places[:, 0]), torch.ones(()), accumulate=True
    )
    # A point is 3 pixels wide, or it would hardly be seen; the first one already darkens half.
    density = F.avg_pool2d(counts[None, None], 3, stride=1, padding=1)[0] * 9
    return (1 - 2 * (1 - 0.5**density)).expand(3, -1, -1)


def one_hot_codes(latent: Tensor, width: int, codes: CodeSettings) -> tuple[Sequence[Tensor], Tensor]:
    """The codes inside latents (N, width + codes): the value number (N,) of each categorical one; continuous (N, c)."""
    parts = torch.split(latent[:, width:], [*codes.categorical, codes.continuous], dim=1)
    return [part.argmax(dim=1) for part in parts[:-1]], parts[-1]


def information_loss(
    latent: Tensor, width: int, codes: CodeSettings, categorical: Sequence[Tensor], continuous: Tensor
) -> Tensor:
    """-L_I(G, Q) of InfoGAN (eq. 5) up to constants: cross entropy of the categorical codes, and the negative log
    likelihood of the continuous ones under a Gaussian of fixed variance 1, each times its lambda; float32.

    Args:
        latent: what the generator got, (N, width + codes).
        categorical: logits (N, values) of each categorical code.
        continuous: means (N, c).
    """
    values, wanted = one_hot_codes(latent, width, codes)
    loss = torch.zeros((), device=latent.device)
    for logits, value in zip(categorical, values, strict=True):
        loss = loss + codes.categorical_weight * F.cross_entropy(logits.float(), value)
    if codes.continuous:
        squares = (continuous.float() - wanted).square()
        loss = loss + codes.continuous_weight * 0.5 * squares.sum(dim=1).mean()
    return loss
