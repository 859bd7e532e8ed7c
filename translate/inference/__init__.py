"""Convert with a trained model: one image by `Translator.load(path)(image)`, folders by `convert`.

Make images from noise: `Sampler.load(path).sample(64)`.
"""

from translate.inference.folder import ConvertOptions, Summary, convert
from translate.inference.sampler import Sampler
from translate.inference.translator import Translator

__all__ = ["ConvertOptions", "Sampler", "Summary", "Translator", "convert"]
