"""How small images become as tokens: bits per pixel, by several measures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from translate.data.tokens import TokenFile
from translate.metrics.codebook import CodeUse

STORED_BITS = 16
"""Of a token in a token file."""


@dataclass(frozen=True)
class Compression:
    """Sizes of the same images, in bits per pixel of theirs: padding counts as tokens, but not as pixels."""

    images: int
    pixels: int
    tokens: int
    codebook: int
    raw: float
    """Pixels as decoding makes them, not compressed: 24 of RGB."""
    files: float
    """The image files that were encoded."""
    stored: float
    """16 for each token, as a token file holds them."""
    bound: float
    """log2(codebook) for each token: enough, whatever the tokens are."""
    entropy: float
    """For each token the entropy of the codes' own frequencies in these images: about what an entropy coder would reach
    that knows these, and nothing of a token's neighbours. Of fewer tokens than some hundred a code it is too low."""
    token_file: float
    """The whole token file, names and sizes included."""
    token_file_bytes: int
    codes_used: float
    """Share of the codes that occur."""
    perplexity: float
    """2^(the entropy of a token in bits)."""

    def as_dict(self) -> dict[str, Any]:
        """For programs: `--json`; what ends in `bits_per_pixel` is in these."""
        rates = ("raw", "files", "stored", "bound", "entropy", "token_file")
        return {f"{key}_bits_per_pixel" if key in rates else key: value for key, value in asdict(self).items()}

    def lines(self) -> list[str]:
        """A table to be read, and a line about the codes."""
        each = math.log2(self.codebook)
        rows = [
            ("pixels, not compressed", self.raw),
            ("the images' files", self.files),
            (f"tokens as stored, {STORED_BITS} bits each", self.stored),
            (f"tokens of log2({self.codebook:,}) = {each:.4g} bits", self.bound),
            (f"tokens of their entropy, {math.log2(self.perplexity):.4g} bits", self.entropy),
            (f"the token file, {self.token_file_bytes:,} bytes", self.token_file),
        ]
        width = max(len(label) for label, _ in rows)
        table = [f"{label:<{width}} {bits:>14.4f}{_factor(self.raw, bits):>12}" for label, bits in rows]
        images = "1 image" if self.images == 1 else f"{self.images:,} images"
        return [
            f"{images}, {self.pixels:,} pixels, {self.tokens:,} tokens",
            f"{'':<{width}} bits per pixel  smaller by",
            *table,
            f"{self.codes_used:.1%} of {self.codebook:,} codes used, perplexity {self.perplexity:,.1f}",
        ]


def _factor(raw: float, bits: float) -> str:
    return f"{raw / bits:.1f} x" if bits > 0 else ""  # the entropy is 0 where there is but one code


def measure(file: TokenFile, *, raw: int, source_bytes: int, file_bytes: int) -> Compression:
    """What a token file's images take.

    Args:
        raw: bits of a pixel that is not compressed.
        source_bytes: size of the encoded image files together.
        file_bytes: size of the token file.
    """
    use = CodeUse(file.codebook)
    for grid in file.grids.values():
        use.add(grid)
    pixels = sum(height * width for height, width in file.sizes.values())
    tokens = int(use.counts.sum())
    scores = use.scores()
    return Compression(
        images=len(file.grids),
        pixels=pixels,
        tokens=tokens,
        codebook=file.codebook,
        raw=float(raw),
        files=8 * source_bytes / pixels,
        stored=STORED_BITS * tokens / pixels,
        bound=math.log2(file.codebook) * tokens / pixels,
        entropy=max(0.0, math.log2(scores["perplexity"])) * tokens / pixels,
        token_file=8 * file_bytes / pixels,
        token_file_bytes=file_bytes,
        codes_used=scores["codes-used"],
        perplexity=scores["perplexity"],
    )
