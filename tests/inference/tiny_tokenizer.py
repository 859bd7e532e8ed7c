"""Weights of tokenizers too small to be good at anything. Used by the tests beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from translate import config
from translate.run import write_weights

NETWORK = {"kind": "convolutional", "width": 8, "multipliers": [1, 2], "blocks": 1, "latent": 8, "attention": []}
"""Two pixels along a token's side."""
CODEBOOK = {"kind": "codebook", "size": 32, "width": 4, "normalise": True}


def tokenising(quantiser: dict[str, Any] | None = None) -> dict[str, Any]:
    tokenizer = {"network": NETWORK, "quantiser": quantiser or CODEBOOK}
    return {"tokenizer": tokenizer, "discriminator": None, "lpips": None}


def write(path: Path, method: dict[str, Any], data: dict[str, Any], seed: int = 0) -> Path:
    """The weights file of a method that has learnt nothing."""
    data = {"root": "unused", "augment": {"resize": None, "crop": 16}, **data}
    training = {"stages": [{"length": "1 steps"}]}
    settings = config.validate({"name": "tiny", "method": method, "data": data, "training": training}, "test")
    torch.manual_seed(seed)
    built = settings.method.build(settings.data)
    write_weights(path, settings, built.exported(), 1, 1)
    return path


def vqgan(path: Path, quantiser: dict[str, Any] | None = None, seed: int = 0, **image: Any) -> Path:
    """A tokenizer of single images; `image` are settings of its side."""
    method = {"kind": "vqgan", **tokenising(quantiser)}
    return write(path, method, {"kind": "folder", "image": {"path": ".", **image}}, seed)


def two_sides(path: Path, tokenizers: str = "two") -> Path:
    """A translation between the tokens of two sides."""
    transformer = {"layers": 1, "heads": 1, "width": 8}
    method = {
        "kind": "token-translation",
        "tokenizers": tokenizers,
        "tokenizer": tokenising(),
        "transformer": transformer,
    }
    return write(path, method, {"kind": "paired"})
