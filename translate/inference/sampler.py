"""Sample a trained generator: image number i of a seed is the same picture whatever else is made with it."""

from __future__ import annotations

import copy
import difflib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import translate
from translate.data.images import Pixels, to_pixels, write_image
from translate.data.spec import ImageSpec
from translate.devices import Precision, resolve_device, resolve_precision
from translate.errors import UserError
from translate.inference.precision import FORMAT_NAMES, frozen, memory_format, reduced
from translate.methods.generative import GenerativeMethod, SamplingMethod, scatter
from translate.methods.token_prior import TokenPrior

Samples = NDArray[Any]
"""Images (N, H, W, C) uint8, or points (N, D) float32."""

STANDING_PASSES = 32
"""Passes of `standing_statistics` where nobody says how many; BigGAN takes 100 (Brock et al. 2019, appendix C)."""
STANDING_BATCH = 64
"""Latents in each of them: together some 2,000 samples, about what running statistics remember of a training."""
CPU_BATCH = 8
"""Measured with DCGAN-64 on one core: 8 at a time take 1.5 ms each (bf16), one by one 4.0 ms, 32 at a time 1.4 ms."""
CUDA_BATCH_PIXELS = 1 << 20
"""Pixels of an automatic batch on a GPU: 256 images of 64 x 64."""
POINTS_BATCH = 1024
GRID_IMAGES = 400
"""More pictures than these are not shown in one grid."""
GRID_CLASSES = 32
"""Up to so many classes stand in columns of their own, beyond it a column mixes them."""
STRIP_ROWS = 8
"""Pairs of seeds in a strip, unless they are named."""
GUTTER = 2
"""White pixels between the pictures of a grid."""
SCATTER = 512
"""Side of a scatter plot."""
FRAME_MILLISECONDS = 80

_TERM = re.compile(r"\s*([+-]?)\s*(\d+(?:\s*,\s*\d+)*)\s*")


class Term(NamedTuple):
    """One term of latent arithmetic: a mean of latents, added or taken away."""

    sign: int
    numbers: tuple[int, ...]


def parse_arithmetic(expression: str) -> list[Term]:
    """Read `12-5+33`, or `12,13,14 - 5,6,7 + 33` where commas join what is averaged; UserError otherwise."""
    terms: list[Term] = []
    place = 0
    while match := _TERM.match(expression, place):
        sign, numbers = match.groups()
        if terms and not sign:  # two numbers side by side
            break
        terms.append(Term(-1 if sign == "-" else 1, tuple(map(int, numbers.split(",")))))
        place = match.end()
    if not terms or place < len(expression):
        raise UserError(f"arithmetic {expression!r}: expected numbers of images with + and -, such as 12-5+33")
    return terms


def coefficients(terms: Sequence[Term]) -> dict[int, float]:
    """How often each image's latent is in the sum; UserError where everything cancels out."""
    total: dict[int, float] = {}
    for sign, numbers in terms:
        for number in numbers:
            total[number] = total.get(number, 0.0) + sign / len(numbers)
    if max(map(abs, total.values())) < 1e-9:
        raise UserError("arithmetic: everything cancels out; name different images")
    return total


class Sampler:
    """A generator ready to make images, or points.

    Image number i of a seed has its own latent, drawn from (seed, i) alone: the number of images, the batch and the
    device do not change it. On a CPU the picture is the same to the last bit too; on a GPU another batch size may
    round differently. In a model with classes image i is of class i modulo their number, unless a class is asked for.

    Args:
        method: the trained method; its generator is copied, in eval mode, spectral norm's division done.
        device: `auto` (CUDA if there is one), or a torch device name.
        precision: `auto` is bf16 where the hardware computes in it, fp16 on older CUDA, else fp32; for points
            it is fp32 everywhere, since nothing rounds them to 8 bits afterwards.
        standing_statistics: passes that estimate batch norm's statistics anew, at the truncation of the samples
            (Brock et al., arXiv 1809.11096, appendix C): those of training belong to the last weights, not to their
            average, and not to truncated latents. 0: as trained.
        batch_size: images per step on a GPU; None: by their size. A CPU always takes the same few.
        facts: what `describe` says of the model.

    Raises:
        UserError: for a device that is not there, fp16 without CUDA, or standing statistics without batch norm.
    """

    def __init__(
        self,
        method: SamplingMethod,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        standing_statistics: int = 0,
        batch_size: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.device = resolve_device(device)
        if precision == "fp16" and self.device.type == "cpu":
            raise UserError("precision 'fp16' needs a GPU; use auto, bf16 or fp32 on the CPU")
        self.spec, self.shape, self.class_names = method.spec, method.shape, method.class_names
        self.is_image = method.spec.kind != "points"
        self.interpolates = isinstance(method, GenerativeMethod)
        """Whether there is something between two samples."""
        plain = precision == "auto" and not self.is_image
        if method.exact and precision not in ("auto", "fp32"):
            raise UserError(f"precision '{precision}': this model chooses codes, which it does in fp32; use auto")
        self.dtype = torch.float32 if plain or method.exact else resolve_precision(precision, self.device)
        self.standing_statistics = standing_statistics
        self.batch_size = self._batch_size(batch_size)
        self.facts = dict(facts or {})
        self._trained = nn.ModuleDict({n: frozen(method.players[n], "default") for n in method.samples_with})
        self._trained.to(self.device)
        self._method = copy.deepcopy(method)
        self._method.players.update(dict(self._trained.items()))
        self._networks: dict[float | None, nn.ModuleDict] = {}  # by truncation, where statistics depend on it
        if standing_statistics and not _batch_norms(self._trained):
            raise UserError("standing statistics are batch norm's, and this generator has none; leave the option out")

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        standing_statistics: int | None = None,
        batch_size: int | None = None,
        sampling: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Sampler:
        """Load a weights file, or a run folder's best (else last) weights.

        Args:
            standing_statistics: None: 32 where the weights are an average (EMA) and the generator has batch norm.
            sampling: settings of a token prior (`networks.token_sampling.SamplingSettings`) in the place of its own.
            size: height and width of a token prior's images; None: as it was trained.

        Raises:
            UserError: for what is no weights file, a model that translates images, or one that has no such choice.
        """
        from translate.run import build_for_inference, load_weights, sha256  # the whole config: only when loading

        weights = load_weights(Path(path))
        method = build_for_inference(weights)
        if not isinstance(method, SamplingMethod):
            kind = weights.config.method.kind
            raise UserError(f"{weights.path}: this model ({kind}) translates images: use 'translate convert'")
        if sampling or size:
            if not isinstance(method, TokenPrior):
                raise UserError(f"{weights.path}: a temperature, top-k, top-p, steps and a size are a token prior's")
            method.sampling = method.sampling.changed(sampling or {}, causal=method.transformer.causal)
            method.shape = (method.shape[0], *(size or method.shape[1:]))
        if standing_statistics is None:
            averaged = weights.config.training.ema is not None
            standing_statistics = STANDING_PASSES if averaged and _batch_norms(method.exported()) else 0
        return cls(
            method,
            device=device,
            precision=precision,
            standing_statistics=standing_statistics,
            batch_size=batch_size,
            facts={
                "model": str(weights.path),
                "sha256": sha256(weights.path),
                "name": weights.config.name,
                "step": weights.step,
                "images seen": weights.images,
            },
        )

    def describe(self) -> dict[str, Any]:
        """What one must know to make the same samples again, beside seed, truncation and class."""
        return {
            **self.facts,
            "standing statistics": self.standing_statistics,
            "precision": FORMAT_NAMES[self.dtype],
            "device": str(self.device),
            "translate": translate.__version__,
        }

    # ---- what it makes ---------------------------------------------------------------------------------------------

    def sample(
        self, count: int, *, seed: int = 0, truncation: float | None = None, label: int | str | None = None
    ) -> Samples:
        """Samples 0 to `count` - 1 of a seed: images (N, H, W, C) uint8, or points (N, D) float32.

        Args:
            seed: 0 or above; another seed gives other samples.
            truncation: entries of the latent beyond this many deviations are drawn anew: fewer kinds, better ones.
            label: a class by name or number; None: the classes in turn.

        Raises:
            UserError: truncation of a uniform prior, or a class that the model does not have.
        """
        return np.concatenate(list(self.stream(count, seed=seed, truncation=truncation, label=label)))

    def stream(
        self,
        count: int,
        *,
        seed: int = 0,
        truncation: float | None = None,
        label: int | str | None = None,
        first: int = 0,
    ) -> Iterator[Samples]:
        """The same from number `first` on, batch by batch: for more than fit into memory. A sample is made in the same
        batch wherever one begins, so it has the same bytes."""
        for start in range(first - first % self.batch_size, count, self.batch_size):
            numbers = range(start, min(start + self.batch_size, count))
            latents = self.latents(numbers, seed=seed, truncation=truncation)
            yield self._generate(latents, self._labels(numbers, label), truncation)[max(0, first - start) :]

    def interpolate(
        self,
        numbers: Sequence[int],
        frames: int,
        *,
        seed: int = 0,
        truncation: float | None = None,
        label: int | str | None = None,
        closed: bool = False,
    ) -> Samples:
        """What lies between images: one row per pair of successive numbers, (rows, frames, H, W, C) uint8.

        Args:
            numbers: images of the seed, two or more.
            frames: of each row, 2 or more, both ends among them. Each row is of the class of its first image.
            closed: the last image is followed by the first, and each row leaves out its end: the rows after each other
                are an endless film. It is of one class, that of the first image.

        Raises:
            ValueError: fewer than two numbers or frames; UserError: as `sample`.
        """
        if len(numbers) < 2 or frames < 2:
            raise ValueError(f"expected two images and two frames or more, not {len(numbers)} and {frames}")
        latents = self.latents(numbers, seed=seed, truncation=truncation)
        share = torch.arange(frames) / (frames if closed else frames - 1)
        ends = latents.roll(-1, 0) if closed else latents[1:]
        starts = latents[: len(ends)]
        between = torch.cat([self._method.interpolate(a, b, share) for a, b in zip(starts, ends, strict=True)])
        labels = self._labels([numbers[0]] * len(ends) if closed else numbers[:-1], label)
        if labels is not None:
            labels = labels.repeat_interleave(frames)
        made = self._generate(between, labels, truncation)
        return made.reshape(len(ends), frames, *made.shape[1:])

    def arithmetic(
        self, expression: str, *, seed: int = 0, truncation: float | None = None, label: int | str | None = None
    ) -> Samples:
        """Sums of latents (Radford et al., arXiv 1511.06434, section 6.3.2): the terms, then the result.

        A sum of k independent normal latents is sqrt(k) times as long as those that the generator knows: it is divided
        by that. Uniform latents, and codes, are added as they are, as in the paper.

        Args:
            expression: `12-5+33`; commas join the images of a mean, `1,2,3 - 4,5,6 + 7,8,9` (the paper averages three).
            label: None: the class of the first image.

        Returns:
            (terms + 1, H, W, C) uint8.

        Raises:
            UserError: an expression of another form or one that cancels out; else as `sample`.
        """
        terms = parse_arithmetic(expression)
        sums = [*(coefficients([term._replace(sign=1)]) for term in terms), coefficients(terms)]
        latents = torch.stack([self._combined(factors, seed, truncation) for factors in sums])
        return self._generate(latents, self._labels(terms[0].numbers[:1] * len(sums), label), truncation)

    def latents(self, numbers: Sequence[int], *, seed: int = 0, truncation: float | None = None) -> Tensor:
        """The latents of these images of a seed, (N, L) float32 on the CPU, each drawn by itself."""
        chance = torch.Generator()
        rows = []
        for latent_seed in _latent_seeds(seed, numbers):
            chance.manual_seed(latent_seed)
            rows.append(self._method.draw(1, generator=chance, truncation=truncation))
        return torch.cat(rows)

    def prepare(self, truncation: float | None = None, on_progress: Callable[[int], None] | None = None) -> None:
        """Estimate the standing statistics now, not with the first sample; `on_progress` hears of the passes done."""
        self._network(truncation, on_progress)

    def label_of(self, label: int | str | None) -> int | None:
        """The number of a class that was given by name or number; UserError where the model has no such class."""
        if label is None:
            return None
        names = self.class_names
        if not names:
            raise UserError(f"class {label!r}: this model has no classes; leave the option out")
        if isinstance(label, str) and label in names:  # first: a name may itself be a number
            return names.index(label)
        try:
            number = int(label)
        except ValueError:
            near = difflib.get_close_matches(str(label), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {_listed(names)}"
            raise UserError(f"class {label!r}: unknown; {hint}") from None
        if not 0 <= number < len(names):
            raise UserError(f"class {number}: expected 0 to {len(names) - 1} ({_listed(names)})")
        return number

    # ---- how -------------------------------------------------------------------------------------------------------

    def _batch_size(self, wanted: int | None) -> int:
        if not self.is_image:
            return POINTS_BATCH
        if self.device.type == "cpu":
            return CPU_BATCH
        return wanted or max(1, CUDA_BATCH_PIXELS // math.prod(self.shape[1:]))

    def _labels(self, numbers: Sequence[int], label: int | str | None) -> Tensor | None:
        """(N,) class numbers, in turn unless one is asked for; None without classes."""
        chosen = self.label_of(label)
        if not self.class_names:
            return None
        if chosen is not None:
            return torch.full((len(numbers),), chosen)
        return torch.tensor(list(numbers)) % len(self.class_names)

    def _combined(self, factors: dict[int, float], seed: int, truncation: float | None) -> Tensor:
        """(L,): the sum of these images' latents, each times its factor, as long as a latent is."""
        weights = torch.tensor(list(factors.values()))
        combined = weights @ self.latents(list(factors), seed=seed, truncation=truncation)
        if not isinstance(self._method, GenerativeMethod):
            raise UserError("this model makes samples of no latents that could be added: leave the arithmetic out")
        if self._method.latent.prior == "normal":
            combined[: self._method.latent.width] /= weights.norm()
        return combined

    def _generate(self, latents: Tensor, labels: Tensor | None, truncation: float | None) -> Samples:
        """(N, L) -> samples, in batches of one size: with another one, kernels may add up in another order."""
        size = self.batch_size
        rest = -len(latents) % size
        batches = torch.cat([latents, latents[-1:].expand(rest, -1)]).reshape(-1, size, latents.shape[1])
        classes = None if labels is None else torch.cat([labels, labels[-1:].expand(rest)]).reshape(-1, size)
        self._method.players.update(dict(self._network(truncation).items()))
        made = [self._forward(batch, None if classes is None else classes[i]) for i, batch in enumerate(batches)]
        if isinstance(self.spec, ImageSpec):
            return np.concatenate([to_pixels(batch, self.spec) for batch in made])[: len(latents)]
        return torch.cat(made)[: len(latents)].cpu().numpy()

    @torch.inference_mode()
    def _forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        latents = latents.to(self.device)
        labels = None if labels is None else labels.to(self.device)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            made = self._method.generate(latents, labels).float()
        if made.isnan().any():
            raise UserError(
                f"{self.facts.get('model', 'model')}: its samples are no numbers (NaN) in {FORMAT_NAMES[self.dtype]}; "
                "try --precision fp32, or earlier weights"
            )
        return made

    def _network(self, truncation: float | None, on_progress: Callable[[int], None] | None = None) -> nn.ModuleDict:
        """The networks in the precision it runs in, with the statistics that belong to the truncation."""
        key = truncation if self.standing_statistics else None
        if key not in self._networks:
            network = copy.deepcopy(self._trained)
            if self.dtype != torch.float32:
                reduced(network, self.dtype)
            network.to(memory_format=memory_format(self.dtype))
            if self.standing_statistics:
                self._estimate(network, truncation, on_progress or (lambda _: None))
            self._networks[key] = network
        return self._networks[key]

    @torch.inference_mode()
    def _estimate(self, network: nn.ModuleDict, truncation: float | None, on_progress: Callable[[int], None]) -> None:
        """Batch norm's running statistics, in place: the plain mean of those of the passes. Nothing else is trained."""
        self._method.players.update(dict(network.items()))
        norms = _batch_norms(network)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch then keeps the mean of all batches
            norm.train()
        for index in range(self.standing_statistics):
            chance = torch.Generator().manual_seed(index)
            latents = self._method.draw(STANDING_BATCH, generator=chance, truncation=truncation)
            first = index * STANDING_BATCH
            self._forward(latents, self._labels(range(first, first + STANDING_BATCH), None))
            on_progress(index + 1)
        for norm in norms:
            norm.eval()


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def _latent_seeds(seed: int, numbers: Sequence[int]) -> list[int]:
    """What seeds the latent of each image: 32 bits, for torch's generator on the CPU looks at no more.

    A hash of the seed, from which the images count on in steps of an odd number (2^32 over the golden ratio): so no two
    of the first 2^32 images of a seed are alike.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return [(start + number * 0x9E3779B1) % 2**32 for number in numbers]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


# ---------------------------------------------------------------------------------------------- pictures and files


def grid(images: Pixels, columns: int) -> Pixels:
    """Images (N, H, W, C) side by side, row by row, on white: (H', W', C)."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    tall, wide = height + GUTTER, width + GUTTER
    sheet = np.full((rows * tall + GUTTER, columns * wide + GUTTER, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = GUTTER + index // columns * tall, GUTTER + index % columns * wide
        sheet[top : top + height, left : left + width] = image
    return sheet


def equation(images: Pixels, terms: Sequence[Term]) -> Pixels:
    """What `Sampler.arithmetic` made, (terms + 1, H, W, C), with its signs between: (H', W', C)."""
    height, width, channels = images.shape[1:]
    side = max(6, width // 4) // 2 * 2  # even, so that the bars stand in the middle
    thick = max(1, side // 8)

    def sign(kind: str) -> Pixels:
        tile = np.full((height, 2 * side, channels), 255, np.uint8)
        if channels in (2, 4):  # black is 0, opaque 255
            ink = np.array([0] * (channels - 1) + [255], np.uint8)
        else:
            ink = np.zeros(channels, np.uint8)
        middle, left = height // 2, side // 2
        for offset in (-2 * thick, 2 * thick) if kind == "=" else (0,):
            tile[middle + offset - thick : middle + offset + thick, left : left + side] = ink
        if kind == "+":
            tile[middle - side // 2 : middle + side // 2, side - thick : side + thick] = ink
        return tile

    row: list[Pixels] = []
    for index, (term, image) in enumerate(zip(terms, images, strict=False)):  # the result has no term
        if index or term.sign < 0:
            row.append(sign("+" if term.sign > 0 else "-"))
        row.append(image)
    row += [sign("="), images[-1]]
    return np.pad(np.concatenate(row, axis=1), ((GUTTER,) * 2, (GUTTER,) * 2, (0, 0)), constant_values=255)


@dataclass(frozen=True)
class SampleOptions:
    """What `write_samples` writes."""

    count: int = 64
    seed: int = 0
    truncation: float | None = None
    label: int | str | None = None
    """A class by name or number; None: in turn."""
    images: bool = True
    """Each image as a file of its own, beside the grid."""
    interpolate: int | None = None
    """Frames from one image to the next: a strip of the first nine, or of those in `between`."""
    between: tuple[int, ...] | None = None
    gif: bool = False
    """An endless GIF in place of the strip."""
    arithmetic: str | None = None
    overwrite: bool = False
    """Into a folder that is not empty."""


def write_samples(
    sampler: Sampler, output: str | Path, options: SampleOptions, on_progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Write samples into the folder `output`; `sample.json` there says how they were made.

    Images: 0000.png ..., grid.png, interpolation.png or .gif, arithmetic.png. Points: points.npy, and of points in the
    plane a scatter plot grid.png.

    Args:
        on_progress: hears how many samples are made.

    Returns:
        What `sample.json` holds.

    Raises:
        UserError: before anything is written, for a folder that is not empty or options that the model has no use for;
            or where a file cannot be written.
    """
    output = Path(output)
    count = check(sampler, output, options)
    facts: dict[str, Any] = {**sampler.describe(), "count": options.count, "seed": options.seed}
    label = sampler.label_of(options.label)
    facts["truncation"] = options.truncation
    facts["class"] = None if label is None else sampler.class_names[label]
    choice: dict[str, Any] = {"seed": options.seed, "truncation": options.truncation, "label": label}
    files: dict[str, str] = {}

    if options.overwrite:
        _remove_earlier(output)
    if sampler.is_image:
        files["grid"] = _write_images(sampler, output, options, count, choice, on_progress or (lambda _: None))
        suffix = ".npy" if sampler.shape[0] > 4 and sampler.spec.kind == "image" else ".png"
        facts["images"] = {"digits": _digits(options.count), "suffix": suffix} if options.images else None
        if options.interpolate:
            numbers = _numbers(options)
            rows = sampler.interpolate(numbers, options.interpolate, closed=options.gif, **choice)
            facts["interpolation"] = {"between": list(numbers), "frames": options.interpolate}
            film = rows.reshape(-1, *rows.shape[2:])
            if options.gif:
                files["interpolation"] = "interpolation.gif"
                _write(output / "interpolation.gif", _gif(film))
            else:
                files["interpolation"] = _write_picture(output / "interpolation.png", grid(film, options.interpolate))
        if options.arithmetic:
            made = sampler.arithmetic(options.arithmetic, **choice)
            picture = equation(made, parse_arithmetic(options.arithmetic))
            facts["arithmetic"] = options.arithmetic
            files["arithmetic"] = _write_picture(output / "arithmetic.png", picture)
    else:
        points = sampler.sample(options.count, **choice)
        stream = io.BytesIO()
        np.save(stream, points)
        _write(output / "points.npy", stream.getvalue())
        files["points"] = "points.npy"
        if points.shape[1] == 2:
            drawn = scatter(torch.from_numpy(points), 1.25 * float(np.abs(points).max()), SCATTER)
            files["grid"] = _write_picture(output / "grid.png", to_pixels(drawn[None], ImageSpec())[0])
        (on_progress or (lambda _: None))(options.count)
    facts["files"] = files
    _write(output / "sample.json", (json.dumps(facts, indent=1) + "\n").encode())
    return facts


def check(sampler: Sampler, output: Path, options: SampleOptions) -> int:
    """The number of samples that `write_samples` will make; UserError for all that would stop it. Writes nothing."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; expected a folder for the samples")
    if not options.overwrite and output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; choose another folder, or add --overwrite")
    if not sampler.interpolates and (options.interpolate or options.arithmetic):
        raise UserError(
            "this model makes images of tokens, between which there is nothing: leave --interpolate and "
            "--arithmetic out"
        )
    if not sampler.is_image and (options.interpolate or options.arithmetic):
        raise UserError(
            "this model makes points, between which there are no pictures: leave --interpolate and --arithmetic out"
        )
    if (options.gif or options.between) and not options.interpolate:
        raise UserError("--gif and --between need --interpolate K, the number of frames from one image to the next")
    if options.interpolate and (options.interpolate < 2 or len(_numbers(options)) < 2):
        raise UserError("--interpolate takes two frames or more, and --between two images or more, such as 12,5,33")
    if options.arithmetic:
        coefficients(parse_arithmetic(options.arithmetic))
    sampler.label_of(options.label)
    sampler.latents([0], seed=options.seed, truncation=options.truncation)
    return options.count if options.images or not sampler.is_image else min(options.count, GRID_IMAGES)


def _numbers(options: SampleOptions) -> tuple[int, ...]:
    """The images that a strip leads through."""
    return options.between or tuple(range(min(max(options.count, 2), STRIP_ROWS + 1)))


def _remove_earlier(output: Path) -> None:
    """Take away what an earlier command wrote here, by its own account: its images must not mix with the new ones."""
    try:
        earlier = json.loads((output / "sample.json").read_text(encoding="utf-8"))
        names = [Path(str(name)).name for name in earlier["files"].values()]
        if earlier.get("images"):
            digits, suffix = int(earlier["images"]["digits"]), str(earlier["images"]["suffix"])
            names += [f"{number:0{digits}d}{suffix}" for number in range(int(earlier["count"]))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # nothing of ours
    for name in names:
        (output / name).unlink(missing_ok=True)


def _write_images(
    sampler: Sampler,
    output: Path,
    options: SampleOptions,
    count: int,
    choice: dict[str, Any],
    on_progress: Callable[[int], None],
) -> str:
    """The images and their grid; returns the grid's name."""
    shown: list[Pixels] = []
    done = 0
    for batch in sampler.stream(count, **choice):
        if options.images:
            for number, image in enumerate(batch, done):
                _write_picture(output / f"{number:0{_digits(options.count)}d}.png", image)
        shown.extend(batch[: max(0, GRID_IMAGES - done)])
        done += len(batch)
        on_progress(done)
    classes = len(sampler.class_names)
    columns = math.ceil(math.sqrt(len(shown)))
    if choice["label"] is None and 2 <= classes <= min(GRID_CLASSES, len(shown)):
        columns = classes * max(1, round(columns / classes))  # a column is of one class
    return _write_picture(output / "grid.png", grid(np.stack(shown), columns))


def _digits(count: int) -> int:
    return max(4, len(str(count - 1)))


def _write_picture(path: Path, pixels: Pixels) -> str:
    """As PNG, alpha and all; more than four channels as .npy. Returns the file's name."""
    channels = pixels.shape[2]
    if channels > 4:
        path = path.with_suffix(".npy")
        write_image(path, pixels)
    elif channels in (2, 4):
        write_image(path, pixels[..., :-1], alpha=pixels[..., -1])
    else:
        write_image(path, pixels)
    return path.name


def _gif(film: Pixels) -> bytes:
    """Frames (N, H, W, C) as an endless GIF; alpha is left out."""
    pictures = [Image.fromarray(frame[..., 0] if frame.shape[2] < 3 else frame[..., :3]) for frame in film]
    stream = io.BytesIO()
    pictures[0].save(
        stream, "GIF", save_all=True, append_images=pictures[1:], duration=FRAME_MILLISECONDS, loop=0, optimize=False
    )
    return stream.getvalue()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({(error.strerror or str(error)).lower()})") from error
