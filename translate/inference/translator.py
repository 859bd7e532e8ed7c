"""Run a trained generator on one image or on a batch of one shape: pixels in, pixels of the same kind out."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from translate.data.images import ImageFile, Pixels, load_pixels_like, normalise, read_image, to_pixels
from translate.data.spec import ImageSpec
from translate.devices import Precision, resolve_device, resolve_precision
from translate.errors import ImageError, UserError
from translate.inference.precision import FORMAT_NAMES, Protocol, frozen, memory_format, reduced
from translate.inference.tiling import (
    AUTO_PIXELS,
    GPU_AUTO_PIXELS,
    PASSES,
    SIDE,
    SMALLEST_SIDE,
    Box,
    TiledNetwork,
    receptive_radius,
    small_copy,
    tiles,
)

TileName = Literal["auto", "off"]
Picture = TypeVar("Picture", Pixels, Image.Image)


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
            (translate.inference.tiling): no seams. `auto`: 1024 for images above 4.2 megapixels (on a GPU 16.8, and
            for those that it has no memory for); `off`: never, as for `protocol="paper"`. On a GPU whose memory is
            short even so, tiles are halved.
        tile_passes: how often the tiles are gone over for these statistics, where the network has norms that need them.
        direction, facts: what the report says about the model.

    Raises:
        UserError: for a device that is not there, fp16 without CUDA, a tile below 64 pixels, or one with the
            paper's protocol.
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
        direction: str = "AtoB",
        facts: dict[str, str] | None = None,
    ) -> None:
        self.source = source
        self.target = target
        self.device = resolve_device(device)
        if precision == "fp16" and self.device.type == "cpu":
            raise UserError("precision 'fp16' needs a GPU; use auto, bf16 or fp32 on the CPU")
        self.dtype = resolve_precision(precision, self.device)
        self._deep = torch.float32 if precision == "auto" else self.dtype  # what images of 16 bits run in
        self.protocol = protocol
        self.direction = direction
        self.facts = dict(facts or {})
        self.multiple = int(network.multiple)  # type: ignore[arg-type]  # attributes that every generator has
        self.smallest = int(network.smallest)  # type: ignore[arg-type]
        self.scale = int(network.scale)  # type: ignore[arg-type]
        self._float = frozen(network, protocol).to(self.device)
        self._networks: dict[torch.dtype, nn.Module] = {}
        if isinstance(tile, int) and tile < SMALLEST_SIDE:
            raise UserError(f"tile {tile}: expected at least {SMALLEST_SIDE} pixels; smaller ones are halo alone")
        if isinstance(tile, int) and protocol == "paper":
            raise UserError("protocol 'paper' has noise and statistics of whole images: use --tile auto or off with it")
        self.tile: int | TileName = "off" if protocol == "paper" else tile
        self.tile_passes = tile_passes
        self.on_tile: Callable[[int, int], None] = lambda done, total: None
        """Hears how many of an image's tiles are done; each counts once for each time that it is run."""
        self._side = self.tile if isinstance(self.tile, int) else SIDE
        self._halo: int | None = None
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
    ) -> Translator:
        """Load a weights file, or a run folder's best (else last) weights.

        Raises:
            UserError: for what is no weights file, or a direction that the model does not have.
        """
        from translate.methods.generative import GenerativeMethod
        from translate.run import build_for_inference, load_weights  # the whole config: only when loading

        weights = load_weights(Path(path))
        method = build_for_inference(weights)
        if isinstance(method, GenerativeMethod):
            kind = weights.config.method.kind
            raise UserError(f"{weights.path}: this model ({kind}) makes images from noise: use 'translate sample'")
        chosen = direction or method.directions[0]
        method.require_direction(chosen, path)
        specs = weights.config.data.specs()
        first, _, second = chosen.partition("to")
        source, target = specs.get(first), specs.get(second)
        if not isinstance(source, ImageSpec) or not isinstance(target, ImageSpec):
            raise UserError(f"{path}: a model of single images ({', '.join(specs)}) cannot convert a folder")
        return cls(
            method.translator(chosen),
            source,
            target,
            device=device,
            precision=precision,
            protocol=protocol,
            tile=tile,
            direction=chosen,
            facts={
                "model": str(weights.path),
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
        pixels = self.run([load_pixels_like(image, self.source)], names=[name])[0]
        return pixels, self.alpha_for(image, pixels)

    def alpha_for(self, image: ImageFile, pixels: Pixels) -> Pixels | None:
        """The input's alpha (H, W) at the size and depth of the output.

        None where it had none, and where the target is a label map or has an alpha channel of its own.
        """
        alpha = image.alpha
        if alpha is None or self.target.kind == "labels" or self.target.channels not in (1, 3):
            return None
        if alpha.shape[:2] != pixels.shape[:2]:
            import cv2

            alpha = cv2.resize(alpha, (pixels.shape[1], pixels.shape[0]), interpolation=cv2.INTER_CUBIC)
        if alpha.dtype != pixels.dtype:
            factor = np.iinfo(pixels.dtype).max / np.iinfo(alpha.dtype).max
            alpha = np.rint(alpha * factor).astype(pixels.dtype)
        return np.asarray(alpha)

    def run(self, batch: Sequence[Pixels], names: Sequence[str] | None = None) -> list[Pixels]:
        """Translate a batch of pixels as `load_pixels_like` gives them.

        Args:
            batch: N arrays (H, W, C) of one shape, uint8 or uint16.
            names: seeds of the noise of `protocol="paper"`, one per image; without them all are seeded alike.

        Returns:
            N arrays (H*scale, W*scale, C') of the input's depth; class numbers of the smallest fitting type
            where the target is a label map.

        Raises:
            ValueError: the network's output is no number; its training went wrong, or the number format is too narrow.
        """
        if self.in_tiles(*batch[0].shape[:2]):
            return [self._run_tiled(pixels) for pixels in batch]
        if self.protocol == "default":
            if self.device.type != "cpu":
                try:
                    return list(self._forward(np.stack(batch)))
                except torch.OutOfMemoryError:
                    if len(batch) > 1 or self.tile == "off" or not self._can_tile():
                        raise
                torch.cuda.empty_cache()  # outside of `except`: what failed is freed by now
                return [self._run_tiled(batch[0])]
            # A batch is no quicker on a CPU (tools/bench_convert.py), and its kernels add up in another order for other
            # batch sizes, which ResNet-9 in bf16 turns into as much as ten grey levels.
            return [self._forward(pixels[None])[0] for pixels in batch]
        results: list[Pixels] = []
        devices = [self.device] if self.device.type == "cuda" else []
        for index, pixels in enumerate(batch):
            with torch.random.fork_rng(devices):
                torch.manual_seed(zlib.crc32(names[index].encode()) if names else 0)
                results.extend(self._forward(pixels[None]))
        return results

    @torch.inference_mode()
    def _forward(self, pixels: Pixels) -> Pixels:
        """(N, H, W, C) -> (N, H*scale, W*scale, C')."""
        height, width = pixels.shape[1:3]
        dtype = self._dtype_for(pixels)
        tensor = self._tensor(_pad(pixels, self.multiple, self.smallest), dtype)
        fake: Tensor = self._network(dtype)(tensor).float()
        return self._pixels(fake[:, :, : height * self.scale, : width * self.scale], pixels, dtype)

    def _dtype_for(self, pixels: Pixels) -> torch.dtype:
        return self._deep if self._is_deep(pixels) else self.dtype

    def _is_deep(self, pixels: Pixels) -> bool:
        return self.source.kind == "image" and pixels.dtype == np.uint16

    def _tensor(self, pixels: Pixels, dtype: torch.dtype) -> Tensor:
        """(N, H, W, C) as the network takes it: (N, C, H, W) in [-1, 1] on the device."""
        ready = np.require(pixels, requirements=("C", "W"))  # as torch wants it
        tensor = normalise(torch.from_numpy(ready).to(self.device), self.source)
        return tensor.to(dtype, memory_format=memory_format(dtype))

    def _pixels(self, fake: Tensor, source: Pixels, dtype: torch.dtype) -> Pixels:
        """What the network made of such a source, (N, C', H, W) float32 -> (N, H, W, C'')."""
        if fake.isnan().any():
            raise ValueError(f"its output is no number (NaN) in {FORMAT_NAMES[dtype]}")
        # Class numbers say nothing of depth, and a palette's colours are of 8 bits.
        depth = np.uint16 if self._is_deep(source) and self.target.kind == "image" else np.uint8
        return to_pixels(fake, self.target, depth)

    # Large images

    def in_tiles(self, height: int, width: int) -> bool:
        """Whether an image of this size runs in tiles from the start."""
        if self.tile == "off":
            return False
        large = height * width > self._auto_pixels() if self.tile == "auto" else max(height, width) > self.tile
        return large and self._can_tile()

    def _auto_pixels(self) -> int:
        return AUTO_PIXELS if self.device.type == "cpu" else GPU_AUTO_PIXELS

    def _can_tile(self) -> bool:
        """Whether the network looks no farther than a halo can be; found when it is first asked.

        Raises:
            UserError: it looks farther, and somebody chose tiles.
        """
        if self._halo is None:
            try:
                # No narrower than the network's smallest image: windows are then large enough for it, however small.
                self._halo = max(receptive_radius(self._float, self.source.width), self.smallest)
            except ValueError as error:
                if self.tile != "auto":
                    raise UserError(f"{error}; use --tile off") from None
                self.tile = "off"
                return False
        return True

    def _run_tiled(self, pixels: Pixels) -> Pixels:
        """(H, W, C) -> (H*scale, W*scale, C'); where memory is short, begun again with tiles of half the side."""
        while True:
            try:
                return self._forward_tiled(pixels)
            except torch.OutOfMemoryError:
                if self._side // 2 < SMALLEST_SIDE:
                    raise
            self._side //= 2
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _forward_tiled(self, pixels: Pixels) -> Pixels:
        """(H, W, C) -> (H*scale, W*scale, C'). Just one tile at a time is on the device."""
        height, width = pixels.shape[:2]
        dtype = self._dtype_for(pixels)
        halo = self._halo or 0
        padded = _pad(pixels[None], self.multiple, self.smallest)[0]
        cut = tiles(padded.shape[0], padded.shape[1], self._side, halo, self.multiple)
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
        result: Pixels | None = None
        for core, window in cut:
            top, left = ((core.top - window.top) * self.scale, (core.left - window.left) * self.scale)
            # What was padded is cut off the last tiles; there may be nothing left of one.
            rows = slice(core.top * self.scale, min(core.bottom, height) * self.scale)
            columns = slice(core.left * self.scale, min(core.right, width) * self.scale)
            tall, wide = rows.stop - rows.start, columns.stop - columns.start
            if tall <= 0 or wide <= 0:
                continue
            made = run(window)[:, :, top : top + tall, left : left + wide]
            part = self._pixels(made.float(), pixels, dtype)[0]
            if result is None:
                result = np.empty((height * self.scale, width * self.scale, part.shape[2]), part.dtype)
            result[rows, columns] = part
        assert result is not None
        return result

    def _network(self, dtype: torch.dtype) -> nn.Module:
        """The network in that precision, cast when it is first needed."""
        if dtype not in self._networks:
            network = self._float if dtype == torch.float32 else reduced(copy.deepcopy(self._float), dtype)
            self._networks[dtype] = network.to(memory_format=memory_format(dtype))
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
        }

    def _tiles_in_words(self) -> str:
        if self.tile == "off":
            return "none"
        above = f"{self._auto_pixels() / 1e6:.1f} megapixels" if self.tile == "auto" else f"{self.tile} pixels a side"
        return f"of {self._side} pixels for images above {above}, {self.tile_passes} passes for statistics"


def _pad(pixels: Pixels, multiple: int, smallest: int) -> Pixels:
    """Grow (N, H, W, C) at the bottom and the right to the next size that the network takes.

    By reflection, back and forth where the pad is longer than the image; a side of one pixel is repeated.
    """
    height, width = pixels.shape[1:3]
    below, right = (-(-max(side, smallest) // multiple) * multiple - side for side in (height, width))
    if not below and not right:
        return pixels
    return np.pad(pixels, ((0, 0), (0, below), (0, right), (0, 0)), mode="reflect")


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
