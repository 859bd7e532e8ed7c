"""Image-to-image translation: train on pairs or folders, convert whole folders, watch it in TensorBoard."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Sampler", "Translator", "__version__"]

if TYPE_CHECKING:
    from translate.inference.sampler import Sampler
    from translate.inference.translator import Translator


def __getattr__(name: str) -> object:
    """Load the classes on first use: importing `translate` must not import torch (the CLI's --help is fast)."""
    if name == "Translator":
        from translate.inference.translator import Translator

        return Translator
    if name == "Sampler":
        from translate.inference.sampler import Sampler

        return Sampler
    raise AttributeError(f"module 'translate' has no attribute {name!r}")
