"""A trained tokenizer ready for use: pixels in, tokens out, and back."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from translate.data.images import Pixels, normalise, to_pixels
from translate.data.spec import ImageSpec
from translate.devices import resolve_device
from translate.errors import UserError
from translate.inference.precision import frozen, in_torch_s_layers, memory_format, prepared
from translate.inference.translator import pad
from translate.networks.tokenizer import Tokenizer, tokens_of


class TokenCodec:
    """Encodes images of any size to grids of tokens, and decodes these.

    Always in float32, one image at a time: in a narrower format, or with others beside it, another code may be the
    nearest, and an image's tokens are to depend on nothing but the image. What is decoded of what was encoded is bit
    for bit what `Translator` makes of the image with this tokenizer (`translate convert RUN`, for a run of vqgan), but
    for images of 16 bits, of which 8 come back, and for an alpha channel that the tokenizer does not see.

    Args:
        tokenizer: the trained network; it is copied.
        spec: what the pixels mean.
        digest: 64 hexadecimal digits by which token files know the tokenizer.
        device: `auto` (CUDA if there is one), or a torch device name.

    Raises:
        UserError: a device that is not there, or weights that are no numbers.
    """

    def __init__(self, tokenizer: Tokenizer, spec: ImageSpec, digest: str, *, device: str = "auto") -> None:
        self.spec = spec
        self.digest = digest
        self.device = resolve_device(device)
        self.codes = tokenizer.codes
        """Size of the codebook: tokens are below it."""
        # A nearest code is found whatever the distances are, so nobody would notice later.
        if not all(bool(tensor.isfinite().all()) for tensor in (*tokenizer.parameters(), *tokenizer.buffers())):
            raise UserError("the tokenizer's weights are no numbers (NaN or infinite): its training went wrong")
        # As Translator prepares it for float32: other kernels would differ in the last bits.
        network = in_torch_s_layers(frozen(tokenizer, "default")).to(self.device)
        self._network = cast(Tokenizer, prepared(network, torch.float32, self.device))
        self._format = memory_format(torch.float32)

    @classmethod
    def load(cls, path: str | Path, *, side: str | None = None, device: str = "auto") -> TokenCodec:
        """Load a weights file, or a run folder's best (else last) weights.

        Its digest is the sha256 of the weights file, in hexadecimal. Of a model of two sides it is the sha256 of that
        text, a slash and the side (`A` or `B`), so that nobody takes one side's tokens for the other's: also where both
        share one network, for their pixels may mean different things.

        Args:
            side: of a model of two sides, whose tokenizer: `A` or `B`.

        Raises:
            UserError: for what is no weights file, a model without tokenizer, or a side that it does not have.
        """
        from translate.methods.token_prior import TokenPrior
        from translate.methods.token_translation import TokenTranslation
        from translate.methods.vqgan import VQGAN
        from translate.run import build_for_inference, load_weights, sha256  # the whole config: only when loading

        weights = load_weights(Path(path))
        method = build_for_inference(weights)
        digest = sha256(weights.path)
        if isinstance(method, (VQGAN, TokenPrior)):
            if side is not None:
                raise UserError(f"{weights.path}: has one tokenizer, not one for each side; leave out --side")
            tokenizer, spec = method.tokenizer, method.spec
        elif isinstance(method, TokenTranslation):
            if side not in method.sides:
                problem = "one must be chosen" if side is None else f"none for {side!r}"
                raise UserError(f"{weights.path}: has tokenizers for A and B, {problem}; give --side A or --side B")
            tokenizer, spec = method.tokenizer(side), method.specs[side]
            digest = hashlib.sha256(f"{digest}/{side}".encode()).hexdigest()
        else:
            kind = weights.config.method.kind
            raise UserError(
                f"{weights.path}: this model ({kind}) has no tokenizer; expected a run of method vqgan or "
                "token-prior, or of token-translation with --side"
            )
        try:
            return cls(tokenizer, spec, digest, device=device)
        except UserError as error:
            raise UserError(f"{weights.path}: {error}") from None

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens of an image of this height and width."""
        network = self._network
        height, width = (-(-max(side, network.smallest) // network.multiple) * network.multiple for side in size)
        return height // network.reduction, width // network.reduction

    @torch.inference_mode()
    def encode(self, pixels: Pixels) -> Tensor:
        """Pixels (H, W, C), uint8 or uint16, as `data.images.load_pixels_like` gives them -> tokens (h, w), int64, on
        the CPU. Sizes that are no multiple of the tokenizer's are padded at the bottom and the right, by reflection."""
        padded = pad(pixels[None], self._network.multiple, self._network.smallest)
        ready = np.require(padded, requirements=("C", "W"))  # as torch wants it
        image = normalise(torch.from_numpy(ready).to(self.device), self.spec).to(memory_format=self._format)
        return tokens_of(self._network, image)[0].cpu()

    @torch.inference_mode()
    def decode(self, tokens: Tensor, size: tuple[int, int]) -> Pixels:
        """Tokens (h, w) of any integer type -> pixels (H, W, C) of that size, whose padding is cut off.

        Returns:
            uint8; of a label map class numbers (H, W, 1), uint16 above 256 classes, or with a palette its colours.

        Raises:
            ValueError: the grid is not that of an image of this size, or an index is beyond the codebook.
        """
        height, width = size
        if tuple(tokens.shape) != self.grid_of(size):
            expected = " x ".join(map(str, self.grid_of(size)))
            found = " x ".join(map(str, tokens.shape))
            raise ValueError(f"its {found} tokens are not those of {height} x {width} pixels, which are {expected}")
        tokens = tokens.to(torch.int64)
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest >= self.codes:  # on a GPU an index beyond the end would end the process
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"it has token {wrong}, expected 0 to {self.codes - 1}")
        made = self._network.decode_tokens(tokens[None].to(self.device))
        pixels: Pixels = to_pixels(made[:, :, :height, :width], self.spec)[0]
        return pixels
