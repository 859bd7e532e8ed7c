"""Image-to-image translation: train on pairs or folders, convert whole folders, watch it in TensorBoard."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Translator", "__version__"]

if TYPE_CHECKING:
    from translate.inference.translator import Translator


def __getattr__(name: str) -> object:
    """Load `Translator` on first use: importing `translate` must not import torch (the CLI's --help is fast)."""
    if name == "Translator":
        from translate.inference.translator import Translator

        return Translator
    raise AttributeError(f"module 'translate' has no attribute {name!r}")
