"""Run a trained generator on one image or on a batch of one shape: pixels in, pixels of the same kind out."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from translate.data.images import ImageFile, Pixels, load_pixels_like, normalise, read_image, to_pixels
from translate.data.spec import ImageSpec
from translate.data.transforms import resize
from translate.devices import Precision, resolve_device, resolve_precision
from translate.errors import ImageError, UserError
from translate.inference.precision import (
    FORMAT_NAMES,
    Protocol,
    frozen,
    in_torch_s_layers,
    memory_format,
    prepared,
    short_of_memory,
    streamlined,
)
from translate.inference.tiling import (
    AUTO_PIXELS,
    GPU_AUTO_PIXELS,
    OVERLAP,
    PASSES,
    PROBE_AT_MOST,
    SMALLEST_SIDE,
    Blend,
    Box,
    Tile,
    TiledNetwork,
    affordable,
    around,
    automatic_side,
    crossing,
    enlarged,
    receptive_radius,
    small_copy,
    tiles,
)
from translate.networks.layers import DrawingGenerator

if TYPE_CHECKING:
    from translate.run import Weights

TileName = Literal["auto", "off"]
OverlapName = Literal["auto", "exact"]
Picture = TypeVar("Picture", Pixels, Image.Image)

HEADROOM = 2
"""Colours times alpha, and alpha, leave the network within this many times their range: where both overshoot, as they
do at edges, their ratio is still the colour. Cut to the range, a bright rim would be left of it."""
_STRIP = 1 << 20
"""Values that become pixels at a time on a CPU: what lies between stays in its cache."""


class Translator:
    """A generator ready to convert images of any size.

    By default the network runs with dropout off and running statistics, so an image's result depends on
    nothing but the image. `protocol="paper"` is pix2pix's test protocol (Isola et al., arXiv 1611.07004,
    section 3.4): dropout on, batch norm with the statistics of the image itself, one image at a time. Its
    noise is seeded from the image's name, so that a run can be repeated.

    Args:
        network: maps (N, C, H, W) in [-1, 1] to the same of the target; has `multiple`, `smallest`, `scale`.
        source, target: what the two sides' pixels mean.
        device: `auto` (CUDA if there is one), or a torch device name.
        precision: `auto` is bf16 where the hardware computes in it, fp16 on older CUDA, else fp32; images of
            16 bits run in fp32 then, for bf16 has just 8 significant bits.
        tile: the side in pixels of the tiles that larger images run in, which share the whole image's statistics
            (translate.inference.tiling): no seams. `auto`: 1024, or where the network enlarges 2048 pixels of the
            result, for results above 4.2 megapixels (on a GPU 16.8, and for those that there is no memory for); `off`:
            never, as for `protocol="paper"`. Where memory is short even so, tiles are halved.
        overlap: pixels that a tile sees beyond its core. `exact`: as far as the network looks; the result is that of
            the whole image. Less: tiles fade into each other, and how far this is from exact is measured once. `auto`:
            exact, but where tiles (of the automatic side, if that is larger) would run more than twice the pixels that
            they keep: 32 then.
        outscale: how many times as large as the input results are to be; None: `network.scale` times. The network runs
            once, then its result is resized (Lanczos, against aliasing).
        tile_passes: how often the tiles are gone over for these statistics, where the network has norms that need them.
        seed: of what a network draws that has many answers (token-translation): each image's own seed follows from this
            one and its name.
        direction, facts: what the report says about the model.

    Raises:
        UserError: for a device that is not there, fp16 without CUDA, a tile below 32 pixels, or one with the
            paper's protocol, an overlap or an outscale that is not positive; a narrow precision or tiles for a network
            that chooses codes.
    """

    def __init__(
        self,
        network: nn.Module,
        source: ImageSpec,
        target: ImageSpec,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        protocol: Protocol = "default",
        tile: int | TileName = "auto",
        tile_passes: int = PASSES,
        overlap: int | OverlapName = "auto",
        outscale: float | None = None,
        seed: int = 0,
        direction: str = "AtoB",
        facts: dict[str, str] | None = None,
    ) -> None:
        self.source = source
        self.target = target
        self.device = resolve_device(device)
        if precision == "fp16" and self.device.type == "cpu":
            raise UserError("precision 'fp16' needs a GPU; use auto, bf16 or fp32 on the CPU")
        self.dtype = resolve_precision(precision, self.device)
        self.exact = bool(getattr(network, "exact", False))
        """Whether it chooses codes: one image at a time then, for another batch may round to another choice."""
        if self.exact:
            if precision not in ("auto", "fp32"):
                raise UserError(f"precision '{precision}': this model chooses codes, which it does in fp32; use auto")
            self.dtype = torch.float32
        self._deep = torch.float32 if precision == "auto" else self.dtype  # what images of 16 bits run in
        self.protocol = protocol
        self.direction = direction
        self.facts = dict(facts or {})
        self.multiple = int(network.multiple)  # type: ignore[arg-type]  # attributes that every generator has
        self.smallest = int(network.smallest)  # type: ignore[arg-type]
        self.scale = int(network.scale)  # type: ignore[arg-type]
        if outscale is not None and not 0 < outscale < float("inf"):
            raise UserError(f"outscale {outscale:g}: expected a factor above 0, such as 2 or 1.5")
        self.outscale = float(outscale or self.scale)
        plain = source.kind == target.kind == "image" and source.channels == target.channels
        self.enlarges = self.scale > 1 and plain and source.channels in (1, 3)
        """The same picture with more pixels: what is transparent or grey is so afterwards."""
        self.draws = isinstance(network, DrawingGenerator)
        """Whether another seed gives another result."""
        self.seed = seed
        self.uncertainty: Callable[[str, Pixels], None] | None = None
        """Where the network draws: hears of each image's name and, (H, W) uint8, how open each part of its result was:
        0 for no doubt, 255 for all codes alike."""
        self._float = in_torch_s_layers(frozen(network, protocol)).to(self.device)
        # Now, not when the first image comes: while torch.fx follows a network, no module may run in another thread.
        self._quick = streamlined(copy.deepcopy(self._float)) if self.scale > 1 else self._float
        self._networks: dict[torch.dtype, nn.Module] = {}
        if isinstance(tile, int) and tile < SMALLEST_SIDE:
            raise UserError(f"tile {tile}: expected at least {SMALLEST_SIDE} pixels; smaller ones are halo alone")
        if isinstance(tile, int) and protocol == "paper":
            raise UserError("protocol 'paper' has noise and statistics of whole images: use --tile auto or off with it")
        if isinstance(tile, int) and not getattr(network, "tiles", True):
            raise UserError(
                f"tile {tile}: this model sees the whole image, so it cannot run in tiles; leave --tile out"
            )
        whole = protocol == "paper" or not getattr(network, "tiles", True)
        self.tile: int | TileName = "off" if whole else tile
        self.tile_passes = tile_passes
        if isinstance(overlap, int) and overlap < 1:
            raise UserError(f"overlap {overlap}: expected auto, exact or at least 1 pixel")
        self.overlap = overlap
        self.deviation: str | None = None
        """How far tiles that fade into each other are from exact ones, in words; None: there were none."""
        self.on_tile: Callable[[int, int], None] = lambda done, total: None
        """Hears how many of an image's tiles are done; each counts once for each time that it is run."""
        self._side = self.tile if isinstance(self.tile, int) else automatic_side(self.scale)
        self._radius: int | None = None
        self._halo, self._exact = 0, True
        self._room = 1
        self._tiled: dict[torch.dtype, TiledNetwork] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        direction: str | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        protocol: Protocol = "default",
        tile: int | TileName = "auto",
        overlap: int | OverlapName = "auto",
        outscale: float | None = None,
        alpha: float | None = None,
        seed: int | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> Translator:
        """Load a weights file, or a run folder's best (else last) weights.

        Args:
            sampling: settings of a model that draws its results (`networks.token_sampling.SamplingSettings`), for its
                own.
            alpha: of a run of two stages (SRGAN), how much of the last one: 0 is what the first stage ended with, 1 the
                last weights, and between them each weight is interpolated (ESRGAN, Wang et al., arXiv 1809.00219,
                section 3.4).

        Raises:
            UserError: for what is no weights file, a direction that the model does not have, an alpha that is not
                from 0 to 1 or whose run has no second stage, or `sampling` or a seed of a model that draws nothing.
        """
        from translate.methods.generative import SamplingMethod
        from translate.run import build_for_inference, load_weights  # the whole config: only when loading

        if alpha is None:
            weights = load_weights(Path(path))
            model = str(weights.path)
        else:
            weights, model = _between_stages(Path(path), alpha)
        method = build_for_inference(weights)
        if isinstance(method, SamplingMethod):
            kind = weights.config.method.kind
            raise UserError(f"{weights.path}: this model ({kind}) makes images from noise: use 'translate sample'")
        chosen = direction or method.directions[0]
        method.require_direction(chosen, path)
        specs = weights.config.data.specs()
        source, target = (specs.get(side) for side in method.ends(chosen))
        if not isinstance(source, ImageSpec) or not isinstance(target, ImageSpec):
            raise UserError(f"{path}: a model of single images ({', '.join(specs)}) cannot convert a folder")
        network = method.translator(chosen)
        if not isinstance(network, DrawingGenerator):
            if sampling or seed is not None:
                what = ", ".join([*(sampling or ()), *([] if seed is None else ["a seed"])])
                raise UserError(f"{path}: has one answer for each image: {what} would change nothing")
        elif sampling:
            network.change_sampling(sampling)
        return cls(
            network,
            source,
            target,
            device=device,
            precision=precision,
            protocol=protocol,
            tile=tile,
            overlap=overlap,
            outscale=outscale,
            seed=seed or 0,
            direction=chosen,
            facts={
                "model": model,
                "step": f"{weights.step:,}",
                "images seen": f"{weights.images:,}",
            },
        )

    @overload
    def __call__(self, image: str | Path) -> Pixels: ...
    @overload
    def __call__(self, image: Picture) -> Picture: ...
    def __call__(self, image: str | Path | Pixels | Image.Image) -> Pixels | Image.Image:
        """Translate one image; what comes out is of the kind, size (times `scale`) and depth that went in.

        Args:
            image: a path, a PIL image, or an array (H, W[, C]) of uint8 or uint16. Two or four channels
                are grey or RGB with alpha.

        Returns:
            A PIL image for a PIL image, else an array; alpha is joined on as the last channel.

        Raises:
            ImageError: for a file that is no image; ValueError: for an array of another type or shape.
        """
        if isinstance(image, Image.Image):
            return _to_pil(self._translate(_from_pil(image), "image"))
        if isinstance(image, np.ndarray):
            joined = _joined(self._translate(_from_array(image), "image"))
            return joined[..., 0] if image.ndim == 2 and joined.shape[2] == 1 else joined
        return _joined(self._translate(read_image(Path(image)), Path(image).name))

    def _translate(self, image: ImageFile, name: str) -> tuple[Pixels, Pixels | None]:
        return self.finish(image, self.run([self.prepare(image)], names=[name])[0])

    def prepare(self, image: ImageFile) -> Pixels:
        """What `run` takes of an image: (H, W, C) as the source side has it.

        What is enlarged has no background. Where some of it is transparent, the network is to see colours times alpha,
        and then alpha itself as grey: (H, W, C + 1) of 16 bits, alpha last.

        Raises:
            ImageError: the image does not fit the source side.
        """
        alpha = image.alpha
        if not self.enlarges or alpha is None or _is_opaque(alpha):
            return load_pixels_like(image, self.source)
        colours = load_pixels_like(dataclasses.replace(image, alpha=None), self.source)
        return _premultiplied(_to_16_bits(colours), _to_16_bits(alpha))

    def finish(self, image: ImageFile, pixels: Pixels) -> tuple[Pixels, Pixels | None]:
        """The result (H', W', C') and its alpha (H', W'), or None, of what `run` made of what `prepare` made.

        `outscale` decides on the size. Alpha is the input's, enlarged; None where that had none, and where the target
        is a label map or has an alpha channel of its own. Under alpha 0 what is enlarged is black.
        """
        height, width = image.pixels.shape[:2]
        if self.outscale != self.scale:
            size = (max(1, round(height * self.outscale)), max(1, round(width * self.outscale)))
            pixels = _resized(pixels, size, labels=self.target.kind == "labels")
        if not self.enlarges:
            return pixels, self._alpha_like(image.alpha, pixels)
        alpha: Pixels | None = None
        if pixels.shape[2] > self.target.channels:
            assert image.alpha is not None
            pixels, alpha = _divided(pixels, _to_16_bits(image.alpha))
            if image.pixels.dtype == np.uint8:
                alpha = _to_8_bits(alpha)
                pixels = _to_8_bits(pixels) * (alpha > 0)[..., None]
        elif image.alpha is not None:
            alpha = np.full(pixels.shape[:2], np.iinfo(pixels.dtype).max, pixels.dtype)
        if image.pixels.shape[2] < pixels.shape[2]:
            pixels = _grey(pixels)
        return pixels, alpha

    def _alpha_like(self, alpha: Pixels | None, pixels: Pixels) -> Pixels | None:
        """The input's alpha (H, W) at the size and depth of the output."""
        if alpha is None or self.target.kind == "labels" or self.target.channels not in (1, 3):
            return None
        if alpha.shape[:2] != pixels.shape[:2]:
            alpha = cv2.resize(alpha, (pixels.shape[1], pixels.shape[0]), interpolation=cv2.INTER_CUBIC)
        if alpha.dtype != pixels.dtype:
            factor = np.iinfo(pixels.dtype).max / np.iinfo(alpha.dtype).max
            alpha = np.rint(alpha * factor).astype(pixels.dtype)
        return np.asarray(alpha)

    def run(self, batch: Sequence[Pixels], names: Sequence[str] | None = None) -> list[Pixels]:
        """Translate a batch of pixels as `prepare` gives them.

        Args:
            batch: N arrays (H, W, C) of one shape, uint8 or uint16.
            names: seeds of what is random (the noise of `protocol="paper"`, what a network draws), one per image; all
                are seeded alike without them.

        Returns:
            N arrays (H*scale, W*scale, C') of the input's depth; class numbers of the smallest fitting type
            where the target is a label map. What has alpha comes back with it, for `finish` alone.

        Raises:
            ValueError: the network's output is no number; its training went wrong, or the number format is too narrow.
        """
        channels = self.source.channels
        if self.enlarges and batch[0].shape[2] > channels:
            self._room = HEADROOM
            try:
                colours = self.run([np.ascontiguousarray(pixels[..., :-1]) for pixels in batch], names)
                covers = self.run([np.repeat(pixels[..., -1:], channels, axis=2) for pixels in batch], names)
            finally:
                self._room = 1
            return [np.dstack((colour, _grey(cover))) for colour, cover in zip(colours, covers, strict=True)]
        if self.draws:
            names = list(names) if names else ["image"] * len(batch)
            if self.device.type != "cpu":
                return self._drawn(batch, names)
            return [self._drawn([pixels], [name])[0] for pixels, name in zip(batch, names, strict=True)]
        if self.in_tiles(*batch[0].shape[:2]):
            return [self._run_tiled(pixels) for pixels in batch]
        if self.protocol == "default":
            if self.device.type != "cpu" and not self.exact:
                return self._run_whole(batch)
            # A batch is no quicker on a CPU (tools/bench_convert.py), and its kernels add up in another order for other
            # batch sizes, which ResNet-9 in bf16 turns into as much as ten grey levels.
            return [self._run_whole([pixels])[0] for pixels in batch]
        results: list[Pixels] = []
        devices = [self.device] if self.device.type == "cuda" else []
        for index, pixels in enumerate(batch):
            with torch.random.fork_rng(devices):
                torch.manual_seed(zlib.crc32(names[index].encode()) if names else 0)
                results.extend(self._forward(pixels[None]))
        return results

    def _run_whole(self, batch: Sequence[Pixels]) -> list[Pixels]:
        """A batch at once; of a lone image that there is no memory for, tiles."""
        try:
            return list(self._forward(np.stack(batch)))
        except (RuntimeError, MemoryError) as error:
            if not short_of_memory(error) or len(batch) > 1 or self.tile == "off" or not self._can_tile():
                raise
        torch.cuda.empty_cache()  # outside of `except`: what failed is freed by now
        return [self._run_tiled(batch[0])]

    @torch.inference_mode()
    def _forward(self, pixels: Pixels) -> Pixels:
        """(N, H, W, C) -> (N, H*scale, W*scale, C')."""
        height, width = pixels.shape[1:3]
        dtype = self._dtype_for(pixels)
        tensor = self._tensor(pad(pixels, self.multiple, self.smallest), dtype)
        fake: Tensor = self._network(dtype)(tensor)
        return self._pixels(fake[:, :, : height * self.scale, : width * self.scale], pixels, dtype)

    @torch.inference_mode()
    def _drawn(self, batch: Sequence[Pixels], names: Sequence[str]) -> list[Pixels]:
        """N arrays (H, W, C) -> as many (H, W, C'), each drawn by its own seed."""
        network = self._network(torch.float32)
        assert isinstance(network, DrawingGenerator)
        network.on_step = self.on_tile
        pixels = np.stack(batch)
        drawn = network.draws(self._tensor(pixels, torch.float32), [_seed(self.seed, name) for name in names])
        if self.uncertainty is not None:
            levels = (drawn.uncertainty / network.most_uncertain * 255).round().clamp(0, 255).byte().cpu().numpy()
            for name, grid in zip(names, levels, strict=True):
                height, width = batch[0].shape[:2]
                # Each part's square of pixels; what was padded is cut off.
                large = np.kron(grid, np.ones((network.part, network.part), np.uint8))
                self.uncertainty(name, large[:height, :width])
        return list(self._pixels(drawn.images, pixels, torch.float32))

    def _dtype_for(self, pixels: Pixels) -> torch.dtype:
        return self._deep if self._is_deep(pixels) else self.dtype

    def _is_deep(self, pixels: Pixels) -> bool:
        return self.source.kind == "image" and pixels.dtype == np.uint16

    def _tensor(self, pixels: Pixels, dtype: torch.dtype) -> Tensor:
        """(N, H, W, C) as the network takes it: (N, C, H, W) in [-1, 1] on the device."""
        ready = np.require(pixels, requirements=("C", "W"))  # as torch wants it
        tensor = normalise(torch.from_numpy(ready).to(self.device), self.source)
        return tensor.to(dtype, memory_format=self._memory_format(dtype))

    def _memory_format(self, dtype: torch.dtype) -> torch.memory_format:
        return memory_format(dtype, enlarges=self.scale > 1)

    def _pixels(self, fake: Tensor, source: Pixels, dtype: torch.dtype) -> Pixels:
        """What the network made of such a source, (N, C', H, W) -> (N, H, W, C'')."""
        # Class numbers say nothing of depth, and a palette's colours are of 8 bits.
        depth = np.uint16 if self._is_deep(source) and self.target.kind == "image" else np.uint8
        height = fake.shape[2]
        rows = max(1, _STRIP * height // fake.numel()) if fake.device.type == "cpu" else height
        result = np.empty(0)
        for top in range(0, height, rows):
            strip = fake[:, :, top : top + rows].float() / self._room
            if strip.isnan().any():
                raise ValueError(f"its output is no number (NaN) in {FORMAT_NAMES[dtype]}")
            made = to_pixels(strip, self.target, depth)
            if rows >= height:
                return made
            if not top:
                result = np.empty((made.shape[0], height, *made.shape[2:]), made.dtype)
            result[:, top : top + rows] = made
        return result

    # Large images

    def in_tiles(self, height: int, width: int) -> bool:
        """Whether an image of this size runs in tiles from the start."""
        if self.tile == "off":
            return False
        if self.tile == "auto":
            large = height * width * self.scale**2 > self._auto_pixels()
        else:
            large = max(height, width) > self.tile
        return large and self._can_tile()

    def _auto_pixels(self) -> int:
        return AUTO_PIXELS if self.device.type == "cpu" else GPU_AUTO_PIXELS

    def _can_tile(self) -> bool:
        """Whether the network looks no farther than a halo can be; found when it is first asked, with the halo.

        Raises:
            UserError: it looks farther, and somebody chose tiles.
        """
        if self._radius is None:
            try:
                self._radius = receptive_radius(self._float, self.source.width)
            except ValueError as error:
                if self.tile != "auto":
                    raise UserError(f"{error}; use --tile off") from None
                self.tile = "off"
                return False
            if self.overlap == "auto":
                # Who asks for small tiles has little memory, not little patience: their halo is no reason to cut it.
                dear = not affordable(self._radius, max(self._side, automatic_side(self.scale)))
                chosen = OVERLAP if dear else self._radius
            else:
                chosen = self._radius if self.overlap == "exact" else self.overlap
            self._exact = chosen >= self._radius
            # No narrower than the network's smallest image: windows are then large enough for it, however small.
            self._halo = max(min(chosen, self._radius), self.smallest)
        return True

    def _run_tiled(self, pixels: Pixels) -> Pixels:
        """(H, W, C) -> (H*scale, W*scale, C'); where memory is short, begun again with tiles of half the side."""
        while True:
            try:
                return self._forward_tiled(pixels)
            except (RuntimeError, MemoryError) as error:
                if not short_of_memory(error) or self._side // 2 < SMALLEST_SIDE:
                    raise
            self._side //= 2
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _forward_tiled(self, pixels: Pixels) -> Pixels:
        """(H, W, C) -> (H*scale, W*scale, C'). Just one tile at a time is on the device."""
        height, width = (side * self.scale for side in pixels.shape[:2])
        dtype = self._dtype_for(pixels)
        padded = pad(pixels[None], self.multiple, self.smallest)[0]
        cut = tiles(padded.shape[0], padded.shape[1], self._side, self._halo, self.multiple)
        if dtype not in self._tiled:
            self._tiled[dtype] = TiledNetwork(self._network(dtype))
        network = self._tiled[dtype]
        total = len(cut) * (1 + (self.tile_passes if network.norms else 0))
        done = 0

        def run(window: Box) -> Tensor:
            nonlocal done
            part = padded[None, window.top : window.bottom, window.left : window.right]
            made = network(self._tensor(part, dtype))
            done += 1
            self.on_tile(done, total)
            return made

        if network.norms:
            area = max(tile.window.height * tile.window.width for tile in cut)
            labels = self.source.kind == "labels"
            sample = small_copy(padded, area, self.multiple, self.smallest, labels=labels)
            network.adapt(self._tensor(sample[None], dtype), self.tile_passes, cut, run)
        blend = Blend(padded.shape[0] * self.scale, padded.shape[1] * self.scale, self._ramp(cut) * self.scale)
        result: Pixels | None = None
        for tile in cut:
            scaled = Tile(enlarged(tile.core, self.scale), enlarged(tile.window, self.scale))
            place, made = blend.add(scaled, run(tile.window))
            # What was padded is cut off the last tiles; there may be nothing left of one.
            rows, columns = slice(place.top, min(place.bottom, height)), slice(place.left, min(place.right, width))
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            made = made[:, :, : rows.stop - rows.start, : columns.stop - columns.start]
            part = self._pixels(made, pixels, dtype)[0]
            if result is None:
                result = np.empty((height, width, part.shape[2]), part.dtype)
            result[rows, columns] = part
        assert result is not None
        if not self._exact and len(cut) > 1 and self.deviation is None:
            self.deviation = self._measured(padded, result, cut, network, dtype)
        return result

    def _ramp(self, cut: Sequence[Tile]) -> int:
        """Pixels over which tiles fade on either side of a border; 0: they do not."""
        if self._exact:
            return 0
        # A quarter of the halo: with half of it, where a tile's own border is nearer, RRDBNet was 14 grey levels off in
        # the worst pixel, not 1 (random weights, a halo of 8). With none there are steps.
        return min(self._halo // 4, *(min(tile.core.height, tile.core.width) // 2 for tile in cut))

    def _measured(
        self, padded: Pixels, result: Pixels, cut: Sequence[Tile], network: TiledNetwork, dtype: torch.dtype
    ) -> str:
        """In words: how far a result is from exact where tiles meet, about the middle of the image."""
        assert self._radius is not None
        part = crossing(cut, padded.shape[0], padded.shape[1], self.multiple)
        window = around(part, self._radius, padded.shape[0], padded.shape[1], self.multiple)
        largest = max(tile.window.height * tile.window.width for tile in cut)
        if window.height * window.width > PROBE_AT_MOST * largest:
            return "not measured, for one exact tile takes more than four times the memory of these"
        pixels = padded[None, window.top : window.bottom, window.left : window.right]
        try:
            made = network(self._tensor(pixels, dtype))
        except (RuntimeError, MemoryError) as error:
            if not short_of_memory(error):
                raise
            return "not measured, for there is no memory for an exact tile"
        wide, shown = enlarged(part, self.scale), enlarged(window, self.scale)
        inner = Box(wide.top, min(wide.bottom, result.shape[0]), wide.left, min(wide.right, result.shape[1]))
        made = made[:, :, inner.top - shown.top :, inner.left - shown.left :][:, :, : inner.height, : inner.width]
        exact = self._pixels(made, pixels, dtype)[0]
        found = result[inner.top : inner.bottom, inner.left : inner.right]
        if self.target.kind == "labels":
            return f"{(exact != found).any(axis=2).mean():.2%} of the classes differ from exact ones where tiles meet"
        apart = np.abs(exact.astype(np.float64) - found) * (255 * self._room / np.iinfo(found.dtype).max)
        return f"at most {apart.max():.1f}, on average {apart.mean():.2f} grey levels from exact where tiles meet"

    def _network(self, dtype: torch.dtype) -> nn.Module:
        """The network in that precision, cast when it is first needed."""
        if dtype not in self._networks:
            self._networks[dtype] = prepared(self._quick, dtype, self.device, enlarges=self.scale > 1)
        return self._networks[dtype]

    def describe(self) -> dict[str, str]:
        """What a reader of results wants to know of how they were made."""
        return {
            **self.facts,
            "direction": self.direction,
            "protocol": self.protocol,
            "precision": FORMAT_NAMES[self.dtype],
            "device": str(self.device),
            "tiles": self._tiles_in_words(),
            **({} if self.outscale == self.scale else {"size": f"{self.outscale:g} times the input's"}),
            **({"seed": str(self.seed)} if self.draws else {}),
        }

    def _tiles_in_words(self) -> str:
        if self.tile == "off":
            return "none"
        above = f"results above {self._auto_pixels() / 1e6:.1f} megapixels"
        if self.tile != "auto":
            above = f"images above {self.tile} pixels a side"
        words = f"of {self._side} pixels for {above}, {self.tile_passes} passes for statistics"
        if self._radius is None:
            return words
        if self._exact:
            return f"{words}; exact, with {self._halo} pixels around each"
        found = f": {self.deviation}" if self.deviation else ""
        return (
            f"{words}; each sees {self._halo} of {self._radius} pixels around it, and they fade into each other{found}"
        )


def _seed(seed: int, name: str) -> int:
    """Of 32 bits, for an image of this name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()[:4], "big")


def pad(pixels: Pixels, multiple: int, smallest: int) -> Pixels:
    """Grow (N, H, W, C) at the bottom and the right to the next size that the network takes.

    By reflection, back and forth where the pad is longer than the image; a side of one pixel is repeated.
    """
    height, width = pixels.shape[1:3]
    below, right = (-(-max(side, smallest) // multiple) * multiple - side for side in (height, width))
    if not below and not right:
        return pixels
    return np.pad(pixels, ((0, 0), (0, below), (0, right), (0, 0)), mode="reflect")


def _between_stages(run: Path, alpha: float) -> tuple[Weights, str]:
    """The weights, and of which files they are, in words."""
    from translate.run import interpolated, stages_of

    if not 0 <= alpha <= 1:
        raise UserError(f"alpha {alpha:g}: expected 0 (the first stage's weights) to 1 (the last ones)")
    first, last = stages_of(run)
    return interpolated(first, last, alpha), f"{1 - alpha:g} of {first.path} and {alpha:g} of {last.path}"


def _is_opaque(alpha: Pixels) -> bool:
    return bool(alpha.min() == np.iinfo(alpha.dtype).max)


def _to_16_bits(pixels: Pixels) -> Pixels:
    return pixels * np.uint16(257) if pixels.dtype == np.uint8 else pixels  # 65535 / 255


def _to_8_bits(pixels: Pixels) -> Pixels:
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _grey(pixels: Pixels) -> Pixels:
    """(H, W, 1 or 3) -> (H, W, 1): 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
    return pixels if pixels.shape[2] == 1 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[..., None]


def _premultiplied(colours: Pixels, alpha: Pixels) -> Pixels:
    """(H, W, C) and (H, W), 16 bits -> (H, W, C + 1): colours times alpha, rounded, and alpha."""
    cover = alpha[..., None].astype(np.uint32)
    return np.concatenate([((colours * cover + 32767) // 65535).astype(np.uint16), alpha[..., None]], axis=2)


def _divided(pixels: Pixels, alpha: Pixels) -> tuple[Pixels, Pixels]:
    """Undo `_premultiplied` after it was enlarged: (H', W', C + 1) -> colours (H', W', C) and alpha (H', W').

    Alpha stays within what the input's `alpha` (H, W) is around there (3 x 3 pixels): so nothing solid becomes
    transparent, and nothing shows that was hidden.
    """
    height, width, channels = pixels.shape
    around = np.ones((3, 3), np.uint8)
    low, high = (
        cv2.resize(extreme(alpha, around), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        for extreme in (cv2.erode, cv2.dilate)
    )
    colours, cover = np.empty((height, width, channels - 1), np.uint16), np.empty((height, width), np.uint16)
    for row in range(height):  # line by line: no copy of all in floats
        light = ((pixels[row] / 65535 * 2 - 1) * HEADROOM + 1) / 2  # (W', C + 1): from 0 to 1, and what overshoots
        cover[row] = np.rint(light[:, -1] * 65535).clip(low[row], high[row])
        ratio = light[:, :-1] / light[:, -1:].clip(min=_FAINTEST)
        colours[row] = np.rint(ratio.clip(0, 1) * 65535) * (cover[row] > 0)[:, None]
    return colours, cover


_FAINTEST = 1 / 1020
"""Alpha that colours are divided by at least: a quarter of a level of 8 bits."""


def _resized(pixels: Pixels, size: tuple[int, int], *, labels: bool) -> Pixels:
    """(H, W, C) at another height and width: Lanczos, widened where it shrinks; classes take the nearest pixel.

    Of the antialiased filters the nearest to an ideal one: RMS difference on photographs at half the size 2.5 grey
    levels; MATLAB's bicubic 3.2, OpenCV's area 4.0.
    """
    if labels:
        return resize(pixels, size, labels=True)
    planes = []
    for channel in range(pixels.shape[2]):  # one by one, for Pillow keeps RGB in four bytes
        plane = Image.fromarray(np.ascontiguousarray(pixels[..., channel]).astype(_PILLOW[pixels.dtype], copy=False))
        made = np.asarray(plane.resize((size[1], size[0]), Image.Resampling.LANCZOS))
        planes.append(made if made.dtype == np.uint8 else np.rint(made).clip(0, 65535).astype(np.uint16))
    return np.stack(planes, axis=2)


_PILLOW: dict[Any, Any] = {np.dtype(np.uint8): np.uint8, np.dtype(np.uint16): np.float32}
"""What Pillow resizes such pixels as: it has floats of one channel, but no integers of 16 bits."""


def _joined(result: tuple[Pixels, Pixels | None]) -> Pixels:
    pixels, alpha = result
    return pixels if alpha is None else np.dstack((pixels, alpha))


def _from_array(array: Pixels) -> ImageFile:
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"expected an image (H, W) or (H, W, C) of uint8 or uint16, not {array.shape} of {array.dtype}"
        )
    pixels = array[..., None] if array.ndim == 2 else array
    alpha = None
    if pixels.shape[2] in (2, 4):
        pixels, alpha = pixels[..., :-1], pixels[..., -1]
    return ImageFile(np.ascontiguousarray(pixels), alpha, None, "npy")


def _from_pil(image: Image.Image) -> ImageFile:
    """8-bit modes, and the 16-bit grey ones; orientation applied as it is for files."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
    elif image.mode in ("PA", "RGBa", "RGBA") or "transparency" in image.info:
        pixels = np.asarray(image.convert("RGBA"))
    elif image.mode in ("1", "L"):
        pixels = np.asarray(image.convert("L"))
    elif image.mode in ("LA", "La"):
        pixels = np.asarray(image.convert("LA"))
    elif image.mode in ("I", "F"):
        raise ImageError("image", f"PIL mode {image.mode} has no known value range; convert it to I;16 or L")
    else:
        pixels = np.asarray(image.convert("RGB"))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
    colours = pixels if alpha is None else pixels[..., :-1]
    indices = np.asarray(image) if image.mode == "P" else None  # class numbers, if the source side is labels
    return ImageFile(np.ascontiguousarray(colours), alpha, None, "png", indices)


def _to_pil(result: tuple[Pixels, Pixels | None]) -> Image.Image:
    joined = _joined(result)
    if joined.dtype == np.uint16 and joined.shape[2] > 1:
        joined = np.rint(joined / 257.0).astype(np.uint8)  # 65535 / 255: PIL has no 16-bit colour
    return Image.fromarray(joined[..., 0] if joined.shape[2] == 1 else joined)
