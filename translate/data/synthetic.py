"""The embedded data set: facade-like label maps and rendered pictures of them, drawn from a seed.

A building is laid out as labels first; the picture is then rendered from the labels: a relief (how far each
class stands out of the wall) gives cast shadows, edges and dark corners, and each class has its own texture.
What labels cannot tell (the exact colour of the wall, curtains, clouds) varies a little only, and what they
can tell does matter: the kind of building, and with it the material, shows in its windows, roof and
ornaments. So a small network can learn the pairs in minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from translate.data.images import write_image
from translate.data.spec import Colour
from translate.errors import UserError

Time = Literal["day", "night"]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PALETTE: dict[str, Colour] = {
    "sky": (142, 202, 230),
    "wall": (233, 196, 106),
    "door": (155, 34, 38),
    "window": (29, 53, 87),
    "sill": (82, 183, 136),
    "cornice": (231, 111, 81),
    "shutter": (20, 130, 125),
    "balcony": (247, 37, 133),
    "pillar": (150, 110, 70),
    "moulding": (254, 250, 224),
    "shop": (114, 9, 183),
    "roof": (90, 70, 140),
    "ground": (120, 128, 136),
}
"""RGB colour of each class; its position is the class's index. The classes are those of CMP facades (Tylecek
and Sara, "Spatial pattern templates for recognition of objects with regular structure", GCPR 2013) but for
their decoration; their background is split into sky, roof and ground."""

SKY, WALL, DOOR, WINDOW, SILL, CORNICE, SHUTTER, BALCONY, PILLAR, MOULDING, SHOP, ROOF, GROUND = range(len(PALETTE))

# How far a class stands out of the wall, as a share of the picture's width.
_RELIEF = np.zeros(len(PALETTE), np.float32)
_RELIEF[[DOOR, WINDOW, SHOP]] = -0.018, -0.014, -0.006
_RELIEF[[SILL, CORNICE, BALCONY, PILLAR, MOULDING, SHUTTER]] = 0.014, 0.026, 0.034, 0.010, 0.007, 0.006
_RELIEF[[SKY, ROOF, GROUND]] = -0.2, 0.004, 0.0

SMALLEST = 32
_RENDERED = 256  # smaller pictures are rendered near this size and averaged down, which smooths their edges


class Scene(NamedTuple):
    """One building: its label map and its picture."""

    labels: Bytes
    """(H, W) class indices, in the order of PALETTE."""
    label_colours: Bytes
    """(H, W, 3) RGB: the labels in the colours of PALETTE."""
    picture: Bytes
    """(H, W, 3) RGB."""


class _Box(NamedTuple):
    """A rectangle in pixels of the rendered size; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


Material = Literal["brick", "plaster", "stone"]


@dataclass
class _Building:
    """The layout at the rendered size: labels, and where the detailed parts are."""

    material: Material
    behind: Bytes  # labels as if there were no balconies
    labels: Bytes
    wall_top: int
    ground: int
    windows: list[_Box] = field(default_factory=list)
    doors: list[_Box] = field(default_factory=list)
    shops: list[_Box] = field(default_factory=list)
    balconies: list[_Box] = field(default_factory=list)


def draw(index: int, *, size: int = 256, seed: int = 0, time: Time = "day") -> Scene:
    """Draw one building: the same arguments give the same pixels, another size or time the same building.

    Args:
        index: number of the scene, from 0; any count of different ones.
        size: height and width in pixels, at least 32.
        seed: another seed is another endless series of scenes.
        time: `night` is the same building in the dark, with some of its windows lit.

    Raises:
        UserError: `size` below 32, or a negative index or seed.
    """
    _check_drawable(size, seed)
    if index < 0:
        raise UserError(f"index: expected a number from 0, not {index}")
    scale = max(1, _RENDERED // size)
    building = _lay_out(np.random.default_rng([seed, index, 0]), size, scale)
    rendered = _render(building, np.random.default_rng([seed, index, 1]), time)
    planes = np.clip(rendered * 255 + 0.5, 0, 255).astype(np.uint8)
    picture = np.asarray(cv2.merge(list(planes)), np.uint8)  # (H, W, 3)
    if scale > 1:
        picture = np.asarray(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
    labels = np.ascontiguousarray(building.labels[scale // 2 :: scale, scale // 2 :: scale])
    return Scene(labels, np.array(list(PALETTE.values()), np.uint8)[labels], picture)


def _check_drawable(size: int, seed: int) -> None:
    if size < SMALLEST:
        raise UserError(f"size: expected at least {SMALLEST} pixels, not {size}")
    if seed < 0:
        raise UserError(f"seed: expected a number from 0, not {seed}")


# Layout: all lengths below are shares of the picture's width, put on its pixel grid by _Pen.


class _Pen:
    """Draws labels. Lengths are rounded to whole pixels of the final size; nothing gets thinner than one."""

    def __init__(self, size: int, scale: int) -> None:
        self.size, self.scale = size, scale
        self.labels: Bytes = np.zeros((size * scale, size * scale), np.uint8)

    def at(self, share: float) -> int:
        """Nearest pixel border, in rendered pixels."""
        return round(min(max(share, 0), 1) * self.size) * self.scale

    def box(self, left: float, top: float, right: float, bottom: float) -> _Box:
        """The rectangle, at least one pixel of the final size wide and high."""
        x, y = self.at(left), self.at(top)
        return _Box(x, y, max(self.at(right), x + self.scale), max(self.at(bottom), y + self.scale))

    def fill(self, label: int, left: float, top: float, right: float, bottom: float) -> _Box:
        """Fill a rectangle and return it."""
        box = self.box(left, top, right, bottom)
        self.labels[box.top : box.bottom, box.left : box.right] = label
        return box

    def polygon(self, label: int, corners: list[tuple[float, float]]) -> None:
        """Fill a polygon given by its (x, y) corners."""
        points = np.array([[self.at(x), self.at(y)] for x, y in corners], np.int32)
        cv2.fillPoly(self.labels, [points], label)

    def arch(self, label: int, box: _Box) -> None:
        """Put a half ellipse over the rectangle: as wide as it, and a third as high as wide."""
        centre = ((box.left + box.right - 1) // 2, box.top)
        axes = (max((box.width - 1) // 2, 1), box.width // 3)
        cv2.ellipse(self.labels, centre, axes, 0, 180, 360, label, thickness=cv2.FILLED)


def _lay_out(rng: np.random.Generator, size: int, scale: int) -> _Building:
    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    material: Material = ("brick", "plaster", "stone")[rng.integers(3)]
    upper_floors = int(rng.integers(2, 5))
    bays = int(rng.integers(3, 6))
    left, right = between(0.03, 0.10), 1 - between(0.03, 0.10)
    ground = between(0.90, 0.93)
    roof_top = between(0.05, 0.11)
    eaves = roof_top + {"brick": 0.035, "plaster": between(0.10, 0.14), "stone": between(0.12, 0.15)}[material]
    cornice = between(0.018, 0.026)
    ground_floor = between(0.18, 0.22)
    first = ground - ground_floor  # the floor of the lowest upper storey
    storey = (first - eaves - cornice) / upper_floors
    bay = (right - left) / bays

    pen = _Pen(size, scale)
    pen.fill(GROUND, 0, ground, 1, 1)
    for _ in range(int(rng.integers(0, 3))):
        chimney = between(left + 0.1, right - 0.15)
        pen.fill(ROOF, chimney, roof_top - between(0.015, 0.035), chimney + between(0.04, 0.06), eaves)
    slope = {"brick": 0.0, "plaster": between(0.06, 0.14), "stone": between(0.03, 0.05)}[material]
    pen.polygon(
        ROOF,
        [(left - 0.01, eaves), (left + slope, roof_top), (right - slope, roof_top), (right + 0.01, eaves)],
    )
    pen.fill(WALL, left, eaves, right, ground)
    building = _Building(material, pen.labels, pen.labels, pen.at(eaves), pen.at(ground))

    if material == "stone":
        for column in range(bays):
            middle = left + (column + 0.5) * bay
            top, bottom = roof_top + 0.30 * (eaves - roof_top), eaves - 0.12 * (eaves - roof_top)
            pen.fill(MOULDING, middle - 0.24 * bay, top - 0.016, middle + 0.24 * bay, eaves)
            building.windows.append(pen.fill(WINDOW, middle - 0.17 * bay, top, middle + 0.17 * bay, bottom))
        for column in range(bays + 1):
            middle = min(max(left + column * bay, left + 0.07 * bay), right - 0.07 * bay)
            pen.fill(PILLAR, middle - 0.07 * bay, eaves, middle + 0.07 * bay, first)
    pen.fill(CORNICE, left - 0.014, eaves, right + 0.014, eaves + cornice)
    pen.fill(MOULDING, left - 0.004, first - 0.012, right + 0.004, first + 0.004)
    if material != "plaster":
        for floor in range(1, upper_floors):
            pen.fill(MOULDING, left, first - floor * storey - 0.005, right, first - floor * storey + 0.005)

    # Upper storeys: one kind of window for all of them.
    high = between(0.60, 0.68) * storey
    wide = min(between(0.40, 0.50) * bay if material != "plaster" else between(0.32, 0.38) * bay, 0.72 * high)
    with_shutters = material == "plaster" and rng.random() < 0.85
    with_lintels = material != "plaster" or not with_shutters
    balcony_columns = _balcony_columns(rng, bays)
    balcony_floors = {0} if rng.random() < 0.6 else {0, upper_floors - 1}
    balconies = []
    for floor in range(upper_floors):
        base = first - floor * storey
        for column in range(bays):
            middle = left + (column + 0.5) * bay
            has_balcony = material != "brick" and floor in balcony_floors and column in balcony_columns
            top = base - 0.20 * storey - high + 0.02
            bottom = base - 0.018 if has_balcony else base - 0.20 * storey + 0.01
            near, far = middle - wide / 2, middle + wide / 2
            if with_lintels and material == "stone":
                pen.fill(MOULDING, near - 0.10 * bay, top - 0.024, far + 0.10 * bay, top - 0.006)
            if with_shutters:
                pen.fill(SHUTTER, near - 0.46 * wide, top, near - 0.04 * wide, bottom)
                pen.fill(SHUTTER, far + 0.04 * wide, top, far + 0.46 * wide, bottom)
            if material == "brick":
                pen.arch(MOULDING, pen.box(near - 0.06 * bay, top, far + 0.06 * bay, bottom))
            window = pen.fill(WINDOW, near, top, far, bottom)
            if material == "brick":
                pen.arch(WINDOW, window)
                window = window._replace(top=window.top - window.width // 3)
            building.windows.append(window)
            if has_balcony:
                balconies.append((near - 0.16 * bay, base - 0.40 * high, far + 0.16 * bay, base + 0.004))
            else:
                pen.fill(SILL, near - 0.07 * bay, bottom, far + 0.07 * bay, bottom + 0.013)

    _lay_out_ground_floor(building, pen, rng, left, bay, bays, first, ground, wide)
    building.behind = pen.labels.copy()
    building.balconies = [pen.fill(BALCONY, *corners) for corners in balconies]
    building.labels = pen.labels
    return building


def _balcony_columns(rng: np.random.Generator, bays: int) -> set[int]:
    """Bays with balconies, always symmetric: none, all, the middle, or the two outer ones."""
    middle = {bays // 2, (bays - 1) // 2}
    choices: list[set[int]] = [set(), set(range(bays)), middle, {0, bays - 1}]
    return choices[rng.choice(4, p=[0.2, 0.25, 0.35, 0.2])]


def _lay_out_ground_floor(
    building: _Building,
    pen: _Pen,
    rng: np.random.Generator,
    left: float,
    bay: float,
    bays: int,
    first: float,
    ground: float,
    wide: float,
) -> None:
    height = ground - first
    entrance = bays // 2 if rng.random() < 0.6 else int(rng.integers(bays))
    has_shops = rng.random() < 0.55
    for column in range(bays):
        middle = left + (column + 0.5) * bay
        if column == entrance:
            near, far, top = middle - 0.24 * bay, middle + 0.24 * bay, first + 0.20 * height
            pen.fill(MOULDING, near - 0.07 * bay, top - 0.018, far + 0.07 * bay, ground)
            building.doors.append(pen.fill(DOOR, near, top, far, ground))
        elif has_shops:
            near, far = middle - 0.44 * bay, middle + 0.44 * bay
            building.shops.append(pen.fill(SHOP, near, first + 0.12 * height, far, ground))
        else:
            top, bottom = first + 0.24 * height, ground - 0.26 * height
            if building.material == "stone":
                pen.fill(MOULDING, middle - wide / 2 - 0.08 * bay, top - 0.02, middle + wide / 2 + 0.08 * bay, top)
            window = pen.fill(WINDOW, middle - wide / 2, top, middle + wide / 2, bottom)
            building.windows.append(window)
            pen.fill(SILL, middle - wide / 2 - 0.07 * bay, bottom, middle + wide / 2 + 0.07 * bay, bottom + 0.013)


# Rendering: colours are float32 RGB from 0 to 1, in planes (3, S, S), which NumPy handles much faster than
# (S, S, 3); fields of brightness are (S, S).


def _rgb(*channels: float) -> Floats:
    return np.array(channels, np.float32) / np.float32(255)


def _plane(colour: Floats) -> Floats:
    """A colour (3,) that combines with planes: (3, 1, 1)."""
    return colour[:, None, None]


# Albedo of wall, roof and woodwork for each material: the mean, around which a building varies.
_WALL_COLOUR = {"brick": _rgb(178, 96, 74), "plaster": _rgb(236, 208, 158), "stone": _rgb(204, 198, 186)}
_ROOF_COLOUR = {"brick": _rgb(92, 86, 84), "plaster": _rgb(176, 88, 60), "stone": _rgb(98, 108, 124)}
_WOOD_COLOUR = {"brick": _rgb(44, 74, 62), "plaster": _rgb(70, 118, 110), "stone": _rgb(104, 66, 44)}
_TRIM_COLOUR = {"brick": _rgb(226, 214, 192), "plaster": _rgb(246, 238, 222), "stone": _rgb(226, 222, 212)}


class _Weather(NamedTuple):
    """What the time of day changes."""

    sun: Floats
    """Light on a lit wall, RGB."""
    shade: Floats
    """Light in a cast shadow, RGB."""
    zenith: Floats
    horizon: Floats
    cloud: Floats


_WEATHER: dict[Time, _Weather] = {
    "day": _Weather(
        sun=np.array([1.04, 1.0, 0.92], np.float32),
        shade=np.array([0.50, 0.55, 0.66], np.float32),
        zenith=_rgb(74, 138, 204),
        horizon=_rgb(198, 222, 238),
        cloud=_rgb(252, 250, 246),
    ),
    "night": _Weather(
        sun=np.array([0.20, 0.25, 0.40], np.float32),
        shade=np.array([0.10, 0.13, 0.24], np.float32),
        zenith=_rgb(8, 12, 34),
        horizon=_rgb(44, 48, 84),
        cloud=_rgb(70, 74, 110),
    ),
}


def _render(building: _Building, rng: np.random.Generator, time: Time) -> Floats:
    """Colour planes (3, S, S) of a building; above 1 where it is brightest."""
    size = building.labels.shape[0]
    weather = _WEATHER[time]
    labels = building.behind
    albedo = _albedo(building.material, rng)
    sun_height = float(rng.uniform(0.8, 1.15))
    clouds = _noise(rng, size, (3, 6, 12, 24))

    colours = np.stack([np.take(plane, labels) for plane in albedo.T])  # (3, S, S)
    colours *= _texture(building, labels, rng)
    openings = _draw_openings(building, colours, rng)
    _draw_balconies(building, colours, openings.glass, albedo[MOULDING])
    colours *= _light(building.labels, sun_height, weather)
    if time == "day":
        _reflect_sky(colours, openings.glass, weather, clouds)
    else:
        _shine(colours, openings, building.ground)
    _draw_sky(building.labels, colours, weather, clouds)
    if time == "night":
        _draw_stars(building.labels, colours, rng)
    return colours


def _albedo(material: Material, rng: np.random.Generator) -> Floats:
    """Colour of every class, (classes, 3): the material's, a little brighter or darker, warmer or cooler."""
    brightness = rng.uniform(0.94, 1.06, (4, 1))
    warmth = rng.uniform(-0.05, 0.05, (4, 1)) * np.array([1.0, 0.1, -1.2])
    vary = (brightness + warmth).astype(np.float32)  # (4, 3): wall, roof, wood, trim
    albedo = np.empty((len(PALETTE), 3), np.float32)
    albedo[:] = _TRIM_COLOUR[material] * vary[3]
    albedo[WALL] = _WALL_COLOUR[material] * vary[0]
    albedo[ROOF] = _ROOF_COLOUR[material] * vary[1]
    albedo[[DOOR, SHUTTER]] = _WOOD_COLOUR[material] * vary[2]
    albedo[SHOP] = albedo[DOOR] * 0.8
    albedo[GROUND] = _rgb(150, 147, 143)
    albedo[WINDOW] = _rgb(238, 234, 226)  # the frame; glass is drawn over it
    return albedo


def _noise(rng: np.random.Generator, size: int, cells: tuple[int, ...]) -> Floats:
    """Smooth noise in [0, 1], one octave for each number of cells, finer ones fainter: (S, S)."""
    total = np.zeros((size, size), np.float32)
    weight = 1.0
    for count in cells:
        coarse = rng.random((count, count), np.float32)
        total += np.float32(weight) * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        weight *= 0.55
    low, high = float(total.min()), float(total.max())
    return (total - low) / np.float32(high - low)


def _blocks(rng: np.random.Generator, size: int, high: int, wide: int, *, spread: float, joint: float) -> Floats:
    """Courses of bricks, stones or tiles, every other one shifted by half: brightness around 1, (S, S)."""
    rows, columns = -(-size // high), -(-size // wide) + 1
    # Always the same number of random values, so that the size of a picture changes nothing that comes after.
    values = rng.random((96, 96), np.float32)[:rows, :columns]
    tints = 1 + np.float32(spread) * (2 * values - 1)
    course = np.repeat(tints, wide, axis=1)  # (rows, >= S + wide / 2)
    thin = max(1, size // 256)
    for offset in range(thin):
        course[:, offset::wide] = joint
    course[1::2, :size] = course[1::2, wide // 2 : wide // 2 + size].copy()
    laid = np.repeat(course[:, :size], high, axis=0)[:size]
    for offset in range(thin):
        laid[offset::high] = joint
    return laid


def _texture(building: _Building, labels: Bytes, rng: np.random.Generator) -> Floats:
    """Brightness around 1 that each class's surface adds, shape (S, S)."""
    size = labels.shape[0]
    unit = max(2, round(size / 64))  # a brick's height
    smooth = _noise(rng, size, (8, 32))
    tiles = _blocks(rng, size, unit, round(1.5 * unit), spread=0.10, joint=0.70)
    slabs = _blocks(rng, size, 2 * unit, 8 * unit, spread=0.04, joint=0.86)
    grain = np.random.default_rng(rng.integers(2**32)).random((size, size), np.float32)

    texture = 0.96 + 0.08 * grain
    texture *= 0.93 + 0.14 * smooth
    if building.material == "brick":
        bricks = _blocks(rng, size, unit, round(2.4 * unit), spread=0.13, joint=1.22)
        np.multiply(texture, bricks, out=texture, where=labels == WALL)
    elif building.material == "stone":
        stones = _blocks(rng, size, 3 * unit, 7 * unit, spread=0.05, joint=0.80)
        np.multiply(texture, stones, out=texture, where=labels == WALL)
    # Walls grow darker towards the street.
    rows = np.arange(size, dtype=np.float32)[:, None] / size
    texture *= 1.06 - 0.13 * rows
    np.multiply(texture, tiles, out=texture, where=labels == ROOF)
    # The pavement is dark along the wall and ends in a kerb; the road is darker.
    depth = np.clip((rows * size - building.ground) / (size - building.ground), 0, 1)
    street = np.where(depth < 0.55, 0.80 + 0.5 * np.minimum(depth, 0.4), np.where(depth < 0.66, 1.15, 0.56))
    np.multiply(texture, np.where(depth < 0.55, slabs, 1) * street, out=texture, where=labels == GROUND)
    slat = np.array([0.70, 0.92, 1.08, 1.0], np.float32)
    louvres = slat[(np.arange(size) * 4 // max(4, unit)) % 4][:, None]
    np.multiply(texture, louvres, out=texture, where=labels == SHUTTER)
    return texture.astype(np.float32, copy=False)


class _Openings(NamedTuple):
    """Fields of shape (S, S) over doors, windows and shops."""

    glass: Bytes
    """1 where there is glass to be seen."""
    lit: Floats
    """How brightly the room behind is lit at night, 0 to 1."""


def _draw_openings(building: _Building, colours: Floats, rng: np.random.Generator) -> _Openings:
    """Frames, glass, rooms, door panels, awnings."""
    size = colours.shape[-1]
    frame = max(1, size // 128)
    inner = np.ones((2 * frame + 1, 2 * frame + 1), np.uint8)
    glass = np.asarray(cv2.erode((building.behind == WINDOW).astype(np.uint8), inner), np.uint8)
    room = np.full((size, size), 0.15, np.float32)
    lit = np.zeros((size, size), np.float32)
    bar = max(1, size // 170)

    for window in building.windows:
        curtain, open_, brightness, is_lit = rng.random(4)
        area = (slice(window.top, window.bottom), slice(window.left, window.right))
        if is_lit < 0.5:
            lit[area] = 0.65 + 0.35 * brightness
        if curtain < 0.6:
            side = round(window.width * (0.20 + 0.12 * open_))
            room[area][:, :side] = 0.42
            room[area][:, window.width - side :] = 0.42
        middle = (window.left + window.right - bar) // 2
        glass[window.top : window.bottom, middle : middle + bar] = 0
        third = window.top + round(window.height * 0.34)
        glass[third : third + bar, window.left : window.right] = 0

    stripe = max(2, size // 48)
    striped = (np.arange(size) // stripe) % 2 == 0
    awning = np.where(striped, _rgb(196, 62, 52)[:, None], _rgb(240, 232, 216)[:, None])  # (3, S)
    for shop in building.shops:
        sign, cover, plinth = (shop.top + round(shop.height * share) for share in (0.16, 0.40, 0.88))
        inside = slice(shop.left + frame, shop.right - frame)
        hanging = np.linspace(1.05, 0.8, cover - sign, dtype=np.float32)[:, None]
        colours[:, sign:cover, shop.left : shop.right] = awning[:, None, shop.left : shop.right] * hanging
        glass[cover:plinth, inside] = 1
        glass[cover:plinth, (shop.left + shop.right - bar) // 2 :][:, :bar] = 0
        room[cover:plinth, inside] = np.linspace(0.10, 0.42, plinth - cover, dtype=np.float32)[:, None]
        lit[cover:plinth, inside] = 0.95

    for door in building.doors:
        light = door.top + round(door.height * 0.22)
        inside = slice(door.left + frame, door.right - frame)
        glass[door.top + frame : light, inside] = 1
        lit[door.top + frame : light, inside] = 0.8
        centre = (door.left + door.right) // 2
        colours[:, light : door.bottom, centre : centre + bar] *= 0.45
        for left, right in ((door.left, centre), (centre, door.right)):
            edge = max(2 * frame, (right - left) // 5)
            for top, bottom in ((0.30, 0.58), (0.66, 0.92)):
                rows = slice(door.top + round(door.height * top), door.top + round(door.height * bottom))
                colours[:, rows, left + edge : right - edge] *= 0.68

    tint = _rgb(214, 224, 240)
    np.copyto(colours, room * _plane(tint), where=glass.astype(bool))
    return _Openings(glass, lit)


def _draw_balconies(building: _Building, colours: Floats, glass: Bytes, stone: Floats) -> None:
    """Balustrades of stone, or railings of iron that the window shows through."""
    size = colours.shape[-1]
    is_iron = building.material == "plaster"
    period, bar = (max(4, size // 52), max(1, size // 200)) if is_iron else (max(5, size // 40), max(3, size // 70))
    colour = _rgb(44, 46, 50) if is_iron else stone
    rail = max(1, size // 128)
    for box in building.balconies:
        slab = box.bottom - max(2 * rail, box.height // 5)
        bars = np.zeros((box.height, box.width), bool)
        bars[:, (np.arange(box.width) % period) < bar] = True
        bars[:rail] = bars[:, :bar] = bars[:, -bar:] = True
        area = colours[:, box.top : box.bottom, box.left : box.right]
        area *= 0.62  # the wall behind lies in the balcony's own shade
        np.copyto(area, _plane(colour), where=bars)
        area[:, slab - box.top :] = _plane(stone)
        bars[slab - box.top :] = True
        glass[box.top : box.bottom, box.left : box.right][bars] = 0


def _light(labels: Bytes, sun_height: float, weather: _Weather) -> Floats:
    """Light that falls on each pixel from the upper left, (3, S, S): cast shadows, edges, dark corners."""
    size = labels.shape[0]
    relief = (_RELIEF * size)[labels]  # in pixels
    shadow = np.zeros((size, size), np.float32)
    highest = float(_RELIEF.max() - _RELIEF[DOOR]) * size
    steps = 10
    for step in range(1, steps + 1):
        height = highest * step / steps
        # A ray from `right` pixels to the left and `down` pixels above has sunk by `height` on its way here.
        right, down = round(0.65 * height * sun_height), round(height * sun_height)
        rows, columns = size - down, size - right
        blocked = relief[:rows, :columns] - relief[down:, right:] >= height - 0.5
        np.copyto(shadow[down:, right:], 1, where=blocked)
    shadow = np.asarray(cv2.blur(shadow, (3, 3)), np.float32)

    flat = np.maximum(relief, _RELIEF[DOOR] * size)  # without the fall to the sky
    step = max(1, size // 256)
    edge = np.zeros_like(flat)
    edge[step:, step:] = flat[step:, step:] - flat[:-step, :-step]
    edge = np.clip(edge / (0.012 * size), -1, 1)
    around = cv2.blur(flat, (size // 24, size // 24))
    corner = np.clip((around - flat) / (0.016 * size), 0, 1)

    light = _plane(weather.shade - weather.sun) * shadow + _plane(weather.sun)
    light *= 1 + 0.16 * edge - 0.30 * corner
    return light


def _reflect_sky(colours: Floats, glass: Bytes, weather: _Weather, clouds: Floats) -> None:
    """Glass mirrors the sky: slanted streaks, over the dark room."""
    size = colours.shape[-1]
    along = np.arange(size, dtype=np.float32) / size
    streaks = 0.5 + 0.5 * np.sin(34 * (along[:, None] + 0.55 * along[None, :]))
    amount = (0.16 + 0.34 * streaks * (0.4 + 0.6 * clouds)) * glass
    sky = _plane(0.5 * weather.zenith + 0.5 * weather.horizon)
    colours += amount * (sky - colours)


def _shine(colours: Floats, openings: _Openings, ground: int) -> None:
    """Night: street lamps warm the lower wall, lit rooms shine, and their light spreads around them."""
    size = colours.shape[-1]
    rows = np.arange(size, dtype=np.float32)
    lamps = np.exp(-np.abs(rows - ground) / (0.16 * size)).astype(np.float32)[:, None]
    colours *= 1 + lamps * _plane(np.array([2.6, 1.7, 0.7], np.float32))
    shining = openings.lit * openings.glass
    room = colours.mean(axis=0) * 2.2 + 0.62
    colours += shining * np.clip(room, 0, 1.1) * _plane(np.array([1.0, 0.80, 0.46], np.float32))
    small = cv2.resize(shining, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    spread = np.zeros(small.shape, np.float32)
    for sigma, weight in ((size / 220, 0.30), (size / 70, 0.34)):
        spread += weight * np.asarray(cv2.GaussianBlur(small, (0, 0), sigma), np.float32)
    halo = np.asarray(cv2.resize(spread, (size, size)), np.float32)
    colours += halo * _plane(np.array([0.95, 0.58, 0.22], np.float32))


def _draw_sky(labels: Bytes, colours: Floats, weather: _Weather, clouds: Floats) -> None:
    size = labels.shape[0]
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None] ** 0.6
    sky = _plane(weather.zenith) + _plane(weather.horizon - weather.zenith) * height  # (3, S, 1)
    cover = np.clip((clouds - 0.48) * 2.4, 0, 0.85)
    np.copyto(colours, sky + cover * (_plane(weather.cloud) - sky), where=labels == SKY)


def _draw_stars(labels: Bytes, colours: Floats, rng: np.random.Generator) -> None:
    size = labels.shape[0]
    for across, down, brightness in rng.random((70, 3)):
        row, column = int(down * 0.6 * size), int(across * size)
        if labels[row, column] == SKY:
            colours[:, row, column] += np.float32(0.25 + 0.6 * brightness)


# Folders of pictures.

DESCRIPTION = "dataset.yaml"
"""File in a made folder that says how it was made."""

_REVISION = 1  # of the drawing: raise it when a seed gives other pixels, so that old folders are not continued

Progress = Callable[[int], None]
Item = TypeVar("Item")


def make_paired(
    out: Path,
    *,
    count: int = 400,
    size: int = 256,
    seed: int = 0,
    validation: int | None = None,
    test: int | None = None,
    labels: Literal["colours", "indices"] = "colours",
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write `out/{train,val,test}/{A,B}/<scene>.png`: A the label map, B its picture by day.

    A folder that was begun with the same arguments is continued; no scene is in two splits.

    Args:
        count: number of pairs to train on.
        size: height and width in pixels.
        seed: another seed gives other buildings.
        validation: number of pairs in `val`, further scenes; a tenth of `count` by default.
        test: number of pairs in `test`, further scenes; a tenth of `count` by default.
        labels: A as RGB in the colours of PALETTE, or as a grey picture of class indices.
        progress: told the number of finished pairs, of all splits together.

    Returns:
        The number of pairs in each split.

    Raises:
        UserError: an argument out of range, a folder that holds something else, a file that cannot be
            written.
    """
    _check_drawable(size, seed)
    splits = _splits(count, validation, test)
    numbers = {split: len(scenes) for split, scenes in splits.items()}
    claim_folder(
        out,
        {
            "generator": "facades",
            "revision": _REVISION,
            "sides": {"A": f"labels as {labels}", "B": "picture"},
            "size": size,
            "seed": seed,
            "pairs": numbers,
            "classes": {name: list(colour) for name, colour in PALETTE.items()},
        },
    )

    def write(item: tuple[str, int]) -> None:
        split, index = item
        side_a, side_b = (out / split / side / f"{index:05d}.png" for side in ("A", "B"))
        if not (side_a.exists() and side_b.exists()):
            scene = draw(index, size=size, seed=seed)
            write_image(side_a, scene.label_colours if labels == "colours" else scene.labels)
            write_image(side_b, scene.picture)

    for_each(write, [(split, index) for split, scenes in splits.items() for index in scenes], progress)
    return numbers


def make_unpaired(
    out: Path,
    *,
    count: int = 400,
    size: int = 256,
    seed: int = 0,
    validation: int | None = None,
    test: int | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write `out/{train,val,test}/{A,B}/<scene>.png`: A by day, B other buildings by night.

    Arguments and errors are those of `make_paired`; `count`, `validation` and `test` are pictures of each
    side, `progress` is told the finished pictures of both.

    Returns:
        The number of pictures of each side in each split.
    """
    _check_drawable(size, seed)
    splits = _splits(count, validation, test)
    numbers = {split: len(scenes) for split, scenes in splits.items()}
    claim_folder(
        out,
        {
            "generator": "facades, unpaired",
            "revision": _REVISION,
            "sides": {"A": "by day", "B": "by night"},
            "size": size,
            "seed": seed,
            "pictures of each side": numbers,
        },
    )

    def write(item: tuple[str, int, Time]) -> None:
        split, index, time = item
        path = out / split / ("A" if time == "day" else "B") / f"{index:05d}.png"
        if not path.exists():
            write_image(path, draw(index, size=size, seed=seed, time=time).picture)

    total = sum(numbers.values())
    items: list[tuple[str, int, Time]] = []
    for split, scenes in splits.items():
        items += [(split, index, "day") for index in scenes]
        items += [(split, total + index, "night") for index in scenes]
    for_each(write, items, progress)
    return numbers


def scene_count(count: int, validation: int | None = None, test: int | None = None) -> int:
    """Number of scenes that `make_paired` draws for these arguments; UserError where one is out of range."""
    return sum(len(scenes) for scenes in _splits(count, validation, test).values())


def _splits(count: int, validation: int | None, test: int | None) -> dict[str, range]:
    """Scene numbers of train, val and test: they follow each other."""
    tenth = max(1, count // 10)
    validation, test = tenth if validation is None else validation, tenth if test is None else test
    for key, number, smallest in (("count", count, 1), ("validation", validation, 0), ("test", test, 0)):
        if number < smallest:
            raise UserError(f"{key}: expected a number from {smallest}, not {number}")
    return {
        "train": range(count),
        "val": range(count, count + validation),
        "test": range(count + validation, count + validation + test),
    }


def for_each(function: Callable[[Item], None], items: Sequence[Item], progress: Progress | None) -> None:
    """Call the function on all items in threads; the first exception (or Ctrl-C) stops the rest."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for done, _ in enumerate(pool.map(function, items), start=1):
            if progress is not None:
                progress(done)
    finally:
        pool.shutdown(cancel_futures=True)


def claim_folder(out: Path, description: dict[str, Any]) -> None:
    """Write `out/dataset.yaml`, which says how the folder is made; a folder made otherwise is left alone.

    A folder with the same description is continued, so a stopped run loses nothing.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    path = out / DESCRIPTION
    try:
        if path.is_file():
            _compare(path, description)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: is not empty and holds no {DESCRIPTION}; choose a new folder")
        else:
            out.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
            temporary = path.with_name(f".{DESCRIPTION}.part")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({(error.strerror or str(error)).lower()})") from None


def _compare(path: Path, description: dict[str, Any]) -> None:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: does not say how the folder was made; choose another folder or remove this one")
    for key in [*description, *found]:
        old, new = found.get(key), description.get(key)
        if old != new:
            raise UserError(
                f"{path}: the folder was made with another {key} ({old}, now {new}); "
                "choose another folder, or remove this one"
            )
