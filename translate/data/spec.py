"""What one kind of picture is: its channels and meaning. Travels in every run and weights file. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from translate.settings import Settings

Colour = tuple[int, int, int]
Split = Literal["train", "validation", "test"]
Sample = dict[str, Any]
"""Side name -> pixels (H, W, C) or point (D,), `name` -> str, `label` -> int where the data has classes, and
`problem` -> str where another sample had to stand in."""


class ImageSpec(Settings):
    """One side of a data set: pictures, or label maps whose pixels are class numbers."""

    kind: Literal["image", "labels"] = "image"
    """`image`: values are light, scaled to [-1, 1]. `labels`: values are classes, one-hot on the device."""
    channels: int = Field(default=3, ge=1)
    """Channels of an image: 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA; other counts come from `.npy` files (H, W, C)."""
    classes: int | None = Field(default=None, ge=2, le=65536)
    """Number of classes of a label map stored as indices (grey or palette PNG)."""
    palette: list[Colour] | None = None
    """RGB colour of each class, for label maps stored as colour pictures; pixels take the nearest colour's class."""
    background: Colour = (255, 255, 255)
    """Transparent pixels are laid over this RGB colour where the side has no alpha channel of its own."""

    @model_validator(mode="after")
    def _labels_name_their_classes(self) -> ImageSpec:
        if self.kind == "labels" and self.classes is None and self.palette is None:
            raise ValueError("a side of kind 'labels' needs 'classes' (index images) or 'palette' (colour images)")
        if self.classes is not None and self.palette is not None and self.classes != len(self.palette):
            raise ValueError(f"'classes' is {self.classes} but 'palette' has {len(self.palette)} colours")
        return self

    @property
    def width(self) -> int:
        """Channels that a network sees: colour channels, or one per class."""
        if self.kind == "image":
            return self.channels
        return self.classes or len(self.palette or [])


class PointSpec(Settings):
    """Samples that are no pictures but points, as the 2-D toy sets have them; networks see the numbers as they are."""

    kind: Literal["points"] = "points"
    dimensions: int = Field(default=2, ge=1)
    """Coordinates of a point."""

    @property
    def width(self) -> int:
        """Features that a network sees."""
        return self.dimensions


Spec = ImageSpec | PointSpec
