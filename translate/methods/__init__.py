"""One file per method; each reads like its paper's algorithm box."""

from translate.methods.base import Method, Turn
from translate.methods.pix2pix import Pix2PixSettings

MethodSettings = Pix2PixSettings
"""The settings of every method. The next one turns this into a union told apart by `kind`."""

__all__ = ["Method", "MethodSettings", "Turn"]
