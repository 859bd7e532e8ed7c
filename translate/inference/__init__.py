"""Convert with a trained model: one image by `Translator.load(path)(image)`, folders by `convert`."""

from translate.inference.folder import ConvertOptions, Summary, convert
from translate.inference.translator import Translator

__all__ = ["ConvertOptions", "Summary", "Translator", "convert"]
