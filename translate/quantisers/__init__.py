"""What makes tokens of latents: quantisers, which map them onto the codes of a finite vocabulary, and back."""

from typing import Annotated

from pydantic import Field

from translate.quantisers.base import Quantised, Quantiser
from translate.quantisers.codebook import CodebookSettings
from translate.quantisers.finite_scalar import FiniteScalarSettings
from translate.quantisers.gumbel import GumbelSettings
from translate.quantisers.lookup_free import LookupFreeSettings

QuantiserSettings = Annotated[
    CodebookSettings | GumbelSettings | FiniteScalarSettings | LookupFreeSettings, Field(discriminator="kind")
]

__all__ = [
    "CodebookSettings",
    "FiniteScalarSettings",
    "GumbelSettings",
    "LookupFreeSettings",
    "Quantised",
    "Quantiser",
    "QuantiserSettings",
]
