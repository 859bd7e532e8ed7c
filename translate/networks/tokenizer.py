"""An image tokenizer: an encoder, a quantiser, a decoder; images to grids of tokens and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from translate.devices import exact_float32
from translate.networks import TokenizerNetworkSettings
from translate.networks.layers import Generator
from translate.networks.vqgan import ConvolutionalTokenizerSettings, TokenizerDecoder, TokenizerEncoder
from translate.quantisers import CodebookSettings, Quantised, QuantiserSettings
from translate.settings import Settings

MARGIN = 0.1
"""Where a decoder gives distributions, colours lie in (0.1, 0.9), for at 0 and 1 the logit has no end (Ramesh et al.,
arXiv 2102.12092, appendix A.3)."""


class TokenizerSettings(Settings):
    """What turns images into tokens and back."""

    network: TokenizerNetworkSettings = ConvolutionalTokenizerSettings()
    """Encoder and decoder."""
    quantiser: QuantiserSettings = CodebookSettings()
    """What makes tokens of latents."""

    @property
    def reduction(self) -> int:
        """Pixels along a token's side."""
        return self.network.reduction

    def build(self, channels: int, *, spread: bool = False) -> Tokenizer:
        """A new tokenizer of images (N, channels, H, W); with `spread` the decoder also says how sure it is of each
        value, for the logit-Laplace loss."""
        return Tokenizer(self, channels, spread=spread)


class Tokenizer(Generator):
    """Reconstructs images (N, C, H, W) in [-1, 1] from the tokens that it makes of them."""

    scale = 1
    tiles = False  # its norms and its attention see the whole image
    exact = True
    encoder: TokenizerEncoder
    decoder: TokenizerDecoder

    def __init__(self, settings: TokenizerSettings, channels: int, *, spread: bool = False) -> None:
        super().__init__()
        self.spread = spread
        self.encoder, self.decoder = settings.network.build(channels, 2 * channels if spread else channels)
        self.quantiser = settings.quantiser.build(settings.network.latent)
        self.multiple = self.smallest = self.reduction = settings.reduction
        self.codes = self.quantiser.size

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight behind which the image stands."""
        return self.decoder.last_layer

    def encode(self, images: Tensor) -> Quantised:
        """Images (N, C, H, W) -> their latents quantised, (N, h, w) tokens among them."""
        quantised: Quantised = self.quantiser(self.encoder(images))
        return quantised

    def decode(self, quantised: Tensor) -> Tensor:
        """(N, latent, h, w) -> what the decoder gives, float32: images (N, C, H, W), or with `spread` mu and ln b of
        the logit-Laplace distribution of each value, (N, 2 C, H, W)."""
        raw: Tensor = self.decoder(quantised).float()
        return raw

    def picture(self, raw: Tensor) -> Tensor:
        """The images (N, C, H, W) in what `decode` gives, in [-1, 1] but for what overshoots: the medians, if these are
        distributions."""
        if not self.spread:
            return raw
        return (torch.sigmoid(raw[:, : raw.shape[1] // 2]) - 0.5) / (0.5 - MARGIN)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """(N, h, w) tokens -> images (N, C, H, W): bit for bit what `forward` makes of what they were made of."""
        with exact_float32(tokens.device):
            return self.picture(self.decode(self.quantiser.codes(tokens)))

    def forward(self, images: Tensor) -> Tensor:
        """In float32 whatever surrounds it, as `tokens_of`; training, which may be narrower, calls the parts above."""
        with exact_float32(images.device):
            return self.picture(self.decode(self.encode(images.float()).quantised))


@torch.no_grad()
def tokens_of(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """The tokens (N, h, w), int64, that a trained tokenizer makes of images: in eval mode and float32 whatever is
    around it, so that they are the same in training, in a token file and in conversion."""
    was_training = tokenizer.training
    tokenizer.eval()
    try:
        with exact_float32(images.device):
            return tokenizer.encode(images.float()).indices
    finally:
        tokenizer.train(was_training)
