"""The data sets a config can name: pairs, two folders without pairs, single folders and toys. Settings, and the
map-style data sets they open."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from torch.utils.data import Dataset

from translate.data.cache import Cache, Progress, disk_cache, memory_cache
from translate.data.files import Problem, find_images, natural_key, stem_key
from translate.data.images import read_pixels
from translate.data.order import SampleOrder, UnpairedOrder
from translate.data.pairing import (
    Item,
    Pairing,
    hold_out,
    label_by_folder,
    pair_folders,
    pair_manifest,
    pair_side_by_side,
)
from translate.data.spec import ImageSpec, Sample, Split
from translate.data.toys import PointDataset
from translate.data.transforms import AugmentSettings, Pixels, SampleTransform, Transform, resize
from translate.errors import ImageError, UserError
from translate.settings import Direction, Settings, Share

_ATTEMPTS = 3  # unreadable files in a row that stop a training run: one is bad luck, three are a bad folder
_SHOWN = 3  # problems named in one line; `translate data check` lists the rest
_SPLIT = "{split}"
SIDES = ("A", "B")


class ImageDataset(Dataset[Sample]):
    """Samples of one split, read by index; the same whatever process reads them.

    Args:
        items: the files.
        specs: the sides.
        read: decodes one item: side -> (H, W, C), all of one height and width. Raises ImageError.
        transform: the split's transform.
        seed: seed of the augmentation.
    """

    def __init__(
        self,
        items: list[Item],
        specs: Mapping[str, ImageSpec],
        read: Callable[[Item], dict[str, Pixels]],
        transform: SampleTransform,
        seed: int,
    ) -> None:
        self.items = items
        self.specs = dict(specs)
        self.transform = transform
        self.seed = seed
        self.cache: Cache | None = None
        self.notes: list[str] = []
        """What the person who trains with it should hear once."""
        self.layout: list[Any] = []
        """What decides how files become sides beside the specs; plain values alone."""
        self._read = read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """One sample: `dataset[index]`, or in training `dataset[index, position]`.

        `position` counts the samples since the run began; it and the seed decide the augmentation. In
        training an unreadable file is replaced by another one, which position and seed decide as well, and
        the sample says so under `problem`.

        Raises:
            ImageError: the file is unreadable (evaluation).
            UserError: so are its stand-ins (training).
        """
        index, position = key if isinstance(key, tuple) else (key, key)
        if not self.transform.training:
            return {**self.prepared(index), **self._described(index)}
        problems: list[str] = []
        for attempt in range(_ATTEMPTS):
            try:
                prepared = self.prepared(index)
            except ImageError as error:
                problems.append(str(error))
                index = int(np.random.default_rng((self.seed, 2, position, attempt)).integers(len(self)))
                continue
            sample: Sample = {**self.transform.augment(prepared, np.random.default_rng((self.seed, 1, position)))}
            sample |= self._described(index)
            if problems:
                sample["problem"] = "; ".join(problems)
            return sample
        raise UserError(
            f"{_ATTEMPTS} unreadable images in a row, the last: {problems[-1]}; `translate data check` lists all"
        )

    def _described(self, index: int) -> Sample:
        item = self.items[index]
        return {"name": item.name} if item.label is None else {"name": item.name, "label": item.label}

    def order(self, seed: int) -> SampleOrder:
        """Which index stands where in the endless stream of training samples."""
        return SampleOrder(len(self), seed)

    def of_side(self, side: str) -> ImageDataset:
        """The data set that has the files of this side: itself."""
        return self

    @property
    def key(self) -> list[Any]:
        """All that decides the prepared pixels but the files: plain values alone."""
        specs = {side: spec.model_dump() for side, spec in self.specs.items()}
        return [specs, self.transform.key, *self.layout]

    def fixed(self) -> ImageDataset:
        """The same files without any chance: as a split that is evaluated. It has no cache."""
        transform = self.transform.fixed()
        dataset = ImageDataset(self.items, transform.specs, self._read, transform, self.seed)
        dataset.layout = self.layout
        return dataset

    def prepared(self, index: int) -> Mapping[str, Pixels]:
        """The sides of one item after the deterministic part of the transform, from the cache if there is
        one."""
        if self.cache is not None:
            return self.cache[index]
        return self.transform.prepare(self._read(self.items[index]))


class UnpairedDataset(Dataset[Sample]):
    """Samples of two sides that know nothing of each other: an image of each, side by side by chance alone.

    Training has an epoch of the larger side's length, max(|A|, |B|), as in the authors' code; the smaller side begins
    anew within it, in another order. Evaluation has the smaller side's length and shows no image twice.

    Args:
        sides: a data set of one side each, all for training or none.
    """

    def __init__(self, sides: dict[str, ImageDataset]) -> None:
        self.sides = sides
        self.specs = {side: dataset.specs[side] for side, dataset in sides.items()}
        self.training = all(dataset.transform.training for dataset in sides.values())

    def __len__(self) -> int:
        counts = [len(dataset) for dataset in self.sides.values()]
        return max(counts) if self.training else min(counts)

    def __getitem__(self, key: int | tuple[tuple[int, ...], int]) -> Sample:
        """In training `dataset[indices, position]`, an index of each side; in evaluation `dataset[index]`.

        Raises as `ImageDataset` does.
        """
        if isinstance(key, tuple):
            indices, position = key
            samples = [dataset[index, position] for dataset, index in zip(self.sides.values(), indices, strict=True)]
        else:  # spread evenly over each side
            samples = [dataset[key * len(dataset) // len(self)] for dataset in self.sides.values()]
        joined: Sample = {side: sample[side] for side, sample in zip(self.sides, samples, strict=True)}
        joined["name"] = " and ".join(sample["name"] for sample in samples)
        if problems := [sample["problem"] for sample in samples if "problem" in sample]:
            joined["problem"] = "; ".join(problems)
        return joined

    def order(self, seed: int) -> UnpairedOrder:
        """Which indices stand where in the endless stream of training samples."""
        return UnpairedOrder([dataset.order(seed_of(seed, n)) for n, dataset in enumerate(self.sides.values())])

    def of_side(self, side: str) -> ImageDataset:
        """The data set that has the files of this side; UserError where the split has none."""
        if side not in self.sides:
            raise UserError(f"data: side {side} has no image in this split; choose another split or direction")
        return self.sides[side]

    def fixed(self) -> UnpairedDataset:
        """The same files without any chance: as a split that is evaluated."""
        return UnpairedDataset({side: dataset.fixed() for side, dataset in self.sides.items()})


def seed_of(seed: int, side: int) -> int:
    """A seed of its own for the side of this number, so that the sides' order and augmentation are independent."""
    return seed + (side << 31)  # a config's seed is below 2**31


class _DatasetSettings(Settings):
    """What all data sets share."""

    root: Path = Path()
    """Folder that the other paths start from."""
    train: str = "train"
    """Name of the training split: stands for `{split}` in the paths."""
    validation: str | Share | None = 0.05
    """Name of the validation split, or the share of the training split that is held out for it (by a hash of
    the file's name, so it stays when files are added), or null."""
    test: str | None = "test"
    """Name of the test split, or null."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Keep decoded and resized images: in shared memory, or in a memory-mapped file."""
    cache_folder: Path | None = None
    """Folder of the disk cache; null: `translate` in the user's cache folder."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that load data; `auto`: one per core but one, 8 at most. 0 loads in the main process."""

    @model_validator(mode="after")
    def _cache_folder_is_used(self) -> _DatasetSettings:
        if self.cache_folder is not None and self.cache != "disk":
            raise ValueError(f"'cache_folder' needs 'cache: disk', but 'cache' is {self.cache!r}")
        return self

    def _with_cache(self, dataset: ImageDataset, layout: list[Any], progress: Progress | None) -> ImageDataset:
        def read(index: int) -> Mapping[str, Pixels]:
            return dataset.prepared(index)

        dataset.layout = layout
        if self.cache == "memory":
            dataset.cache = memory_cache(len(dataset), read, progress=progress)
        elif self.cache == "disk":
            files = [[str(path), *_stamp(path)] for item in dataset.items for path in item.paths.values()]
            dataset.cache = disk_cache(
                len(dataset),
                read,
                folder=self.cache_folder,
                key=[files, *dataset.key],
                progress=progress,
            )
        return dataset


class ListedSettings(_DatasetSettings):
    """What data sets share whose samples stand in one listing: each split is found as a whole."""

    def pairing(self, split: Split) -> Pairing:
        """The samples of a split and what is wrong with the files that make none.

        A validation or test split that is not there is empty. Raises UserError where a folder or list is
        missing (training), unreadable or empty.
        """
        name: str | float | None = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        if name is None:
            return Pairing([], [])
        if isinstance(self.validation, float) and split != "test":
            found = self._find(self.train)
            kept, held_out = hold_out(found.items, self.validation)
            if split == "validation":
                return Pairing(held_out, [])  # the folder's problems are told with the training split
            if found.items and not kept:
                raise UserError(
                    f"data.validation: a share of {self.validation} leaves no image to train with; lower it"
                )
            return Pairing(kept, found.problems)
        assert isinstance(name, str)
        if split != "train" and not self._is_there(name):
            return Pairing([], [])
        return self._find(name)

    @abstractmethod
    def _patterns(self) -> list[str]:
        """The paths that a split's files lie under, with `{split}` still in them."""

    @abstractmethod
    def _find(self, split: str) -> Pairing:
        """The samples below those paths."""

    def _folder(self, pattern: str, split: str) -> Path:
        return self.root.expanduser() / Path(pattern.replace(_SPLIT, split)).expanduser()

    def _is_there(self, split: str) -> bool:
        """False where no path of the split exists, or where no path depends on the split (all is training
        then)."""
        patterns = [pattern for pattern in self._patterns() if _SPLIT in pattern]
        return any(self._folder(pattern, split).exists() for pattern in patterns)


class SideSettings(ImageSpec):
    """One side of a data set: what its images are, and where they lie."""

    path: str | None = None
    """Folder below the root, or an absolute one; `{split}` stands for the split's name. Default: `{split}/A`
    and `{split}/B` for pairs, `{split}` for a single folder."""

    def spec(self) -> ImageSpec:
        """The side without its path."""
        return ImageSpec(**self.model_dump(exclude={"path"}))


class PairedAugmentSettings(AugmentSettings):
    """Resize, crop and flip, the same for both sides of a pair; colour for one of them."""

    colour_side: Literal["A", "B"] | None = None
    """The side whose colours change; null: the source."""

    @model_validator(mode="after")
    def _colour_side_is_used(self) -> PairedAugmentSettings:
        if self.colour_side is not None and self.colour is None:
            raise ValueError("'colour_side' needs 'colour'")
        return self


class PairedSettings(ListedSettings):
    """Pairs of images: two folders matched by name, side-by-side pictures, or a CSV list."""

    kind: Literal["paired"] = "paired"
    layout: Literal["folders", "side-by-side", "manifest"] = "folders"
    """`folders`: A and B lie in two folders, under the same name (suffixes may differ). `side-by-side`: one
    picture holds A on the left and B on the right. `manifest`: a CSV file with the columns A and B."""
    A: SideSettings = SideSettings()
    B: SideSettings = SideSettings()
    path: str | None = None
    """The folder of side-by-side pictures (default `{split}`) or the CSV file (default `{split}.csv`)."""
    direction: Direction = "AtoB"
    """Which side is translated into which."""
    missing: Literal["refuse", "skip"] = "refuse"
    """What to do about a file without a partner."""
    match_sizes: bool = False
    """Resize B to A's size where they differ; otherwise such a pair is an error."""
    augment: PairedAugmentSettings = PairedAugmentSettings()

    @model_validator(mode="after")
    def _keys_fit_the_layout(self) -> PairedSettings:
        if self.layout == "folders":
            if self.path is not None:
                raise ValueError("'path' is not used by 'layout: folders'; set A.path and B.path")
        else:
            for side in ("A", "B"):
                if getattr(self, side).path is not None:
                    raise ValueError(f"'{side}.path' is not used by 'layout: {self.layout}'; set 'path'")
        if self.layout == "side-by-side" and (self.match_sizes or self.missing == "skip"):
            key = "match_sizes" if self.match_sizes else "missing"
            raise ValueError(
                f"'{key}' has no use with 'layout: side-by-side': its halves are of one size and always two"
            )
        check_splits(self._patterns(), self.validation)
        side = self._colour_side
        check_colour(self.augment, side, getattr(self, side), "set 'augment.colour_side'")
        return self

    @property
    def source(self) -> Literal["A", "B"]:
        """The side that is translated."""
        return "A" if self.direction == "AtoB" else "B"

    @property
    def target(self) -> Literal["A", "B"]:
        """The side it is translated into."""
        return "B" if self.direction == "AtoB" else "A"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: pairs have no labels."""
        return ()

    def resolved(self) -> PairedSettings:
        """The settings as they are: nothing in them waits for files."""
        return self

    def specs(self) -> dict[str, ImageSpec]:
        """What each side is: `{"A": ..., "B": ...}`."""
        return {"A": self.A.spec(), "B": self.B.spec()}

    def open(self, split: Split, seed: int, *, progress: Progress | None = None) -> ImageDataset | None:
        """The data set of a split, its cache built; None if there is no such split (validation and test
        alone).

        Raises UserError for folders that do not fit: the first few problems in one line.
        """
        pairing = self.pairing(split)
        refused = [p for p in pairing.problems if p.kind != "missing" or self.missing == "refuse"]
        if refused:
            skip = " ('missing: skip' leaves files without a partner out)" if refused[0].kind == "missing" else ""
            raise UserError(refusal(split, refused) + skip)
        if not pairing.items:
            if pairing.problems or split == "train":
                raise UserError(f"data, {split}: no pair; A and B have no name in common (`translate data check`)")
            return None
        specs = self.specs()
        transform = Transform(self.augment, specs, training=split == "train", colour_side=self._colour_side)
        read = _ReadPair(specs, side_by_side=self.layout == "side-by-side", match_sizes=self.match_sizes)
        dataset = ImageDataset(pairing.items, specs, read, transform, seed)
        return self._with_cache(dataset, [self.layout, self.match_sizes], progress)

    @property
    def _colour_side(self) -> str:
        return self.augment.colour_side or self.source

    def _patterns(self) -> list[str]:
        if self.layout == "folders":
            return [self.A.path or f"{_SPLIT}/A", self.B.path or f"{_SPLIT}/B"]
        return [self.path or (_SPLIT if self.layout == "side-by-side" else f"{_SPLIT}.csv")]

    def _find(self, split: str) -> Pairing:
        paths = [self._folder(pattern, split) for pattern in self._patterns()]
        if self.layout == "folders":
            return pair_folders(dict(zip(("A", "B"), paths, strict=True)))
        return pair_side_by_side(paths[0]) if self.layout == "side-by-side" else pair_manifest(paths[0])


class UnpairedSettings(_DatasetSettings):
    """Two folders of images without pairs: what A looks like, and what B looks like."""

    kind: Literal["unpaired"] = "unpaired"
    A: SideSettings = SideSettings()
    B: SideSettings = SideSettings()
    augment: AugmentSettings = AugmentSettings()
    """What happens to the images of both sides, drawn anew for each."""

    @model_validator(mode="after")
    def _is_sound(self) -> UnpairedSettings:
        if self._path("A") == self._path("B"):
            raise ValueError(f"'A.path' and 'B.path' are both {self._path('A')!r}; the sides are two folders")
        for side in SIDES:
            check_splits([self._path(side)], self.validation)
            check_colour(self.augment, side, getattr(self, side))
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: there are no labels."""
        return ()

    def resolved(self) -> UnpairedSettings:
        """The settings as they are: nothing in them waits for files."""
        return self

    def specs(self) -> dict[str, ImageSpec]:
        """What each side is: `{"A": ..., "B": ...}`."""
        return {"A": self.A.spec(), "B": self.B.spec()}

    def pairing(self, split: Split) -> Pairing:
        """The images of both sides, each a sample of its own: `paths` has the one side that it is of.

        Held out is the same share of each side. Raises as the other data sets do.
        """
        return Pairing([item for side in SIDES for item in self._items(side, split)], [])

    def open(self, split: Split, seed: int, *, progress: Progress | None = None) -> UnpairedDataset | None:
        """The data set of a split, its caches built; None if there is no such split (validation and test alone).

        A test split may have one side alone: enough to convert that side, and to measure it. Raises UserError for a
        side without a folder or without an image.
        """
        items = {side: self._items(side, split) for side in SIDES}
        without = [side for side, found in items.items() if not found]
        if len(without) == len(SIDES):
            return None
        if without and split != "test":  # validation: training has both or raised
            raise UserError(
                f"data, {split}: there is no image of side {without[0]}, though of the other; "
                "give it some, or set data.validation to null"
            )
        specs = self.specs()
        sides: dict[str, ImageDataset] = {}
        for number, (side, found) in enumerate(items.items()):
            if found:
                spec = {side: specs[side]}
                transform = Transform(self.augment, spec, training=split == "train", colour_side=side)
                dataset = ImageDataset(found, spec, ReadImage(side, specs[side]), transform, seed_of(seed, number))
                sides[side] = self._with_cache(dataset, [], progress)
        return UnpairedDataset(sides)

    def _items(self, side: str, split: Split) -> list[Item]:
        """The images of one side, found as those of a single folder are."""
        folder = FolderSettings(
            root=self.root,
            train=self.train,
            validation=self.validation,
            test=self.test,
            image=SideSettings(path=self._path(side)),
        )
        return [item._replace(paths={side: item.paths["image"]}) for item in folder.pairing(split).items]

    def _path(self, side: str) -> str:
        own: SideSettings = getattr(self, side)
        return own.path or f"{_SPLIT}/{side}"


class FolderSettings(ListedSettings):
    """A single folder of images, with its sub-folders as labels where `classes` says so."""

    kind: Literal["folder"] = "folder"
    image: SideSettings = SideSettings()
    classes: Literal["folders"] | list[str] | None = None
    """Labels: the names of the folders directly below the split's folder, in the order of their numbers; `folders`:
    those of the training split, found when a run starts; null: no labels."""
    augment: AugmentSettings = AugmentSettings()

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_are_folders(cls, value: Any) -> Any:
        if value is None or value == "folders":
            return value
        # YAML reads the folders of digits, [0, 1, 2], as numbers.
        names = [str(name) if type(name) is int else name for name in value] if isinstance(value, list) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected null, 'folders' or a list of folders' names, not {value!r}")
        for name in names:
            if name.startswith(".") or PurePath(name).parts != (name,):
                raise ValueError(f"{name!r} is no name of a visible folder directly below the split's")
            if names.count(name) > 1:
                raise ValueError(f"the class {name!r} stands twice; each has one folder and one number")
        return names

    @model_validator(mode="after")
    def _is_sound(self) -> FolderSettings:
        check_splits(self._patterns(), self.validation)
        check_colour(self.augment, "image", self.image)
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their labels; empty without labels.

        Raises:
            UserError: they are to be found still: `resolved()` does it.
        """
        if self.classes == "folders":
            raise UserError("data.classes: 'folders' is looked up when a run starts; name the folders here")
        return tuple(self.classes or ())

    def resolved(self) -> FolderSettings:
        """The settings with `classes: folders` replaced by the names that the training split has now, 2 before 10.

        Raises:
            UserError: that folder is missing, unreadable or has no sub-folder.
        """
        if self.classes != "folders":
            return self
        folder = self._folder(self._patterns()[0], self.train)
        try:
            names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"{folder}: the folder cannot be read ({reason}); data.classes needs it") from None
        if not names:
            raise UserError(f"{folder}: holds no folder; 'data.classes: folders' expects one for each class")
        return self.model_copy(update={"classes": sorted(names, key=natural_key)})

    def specs(self) -> dict[str, ImageSpec]:
        """What the images are: `{"image": ...}`."""
        return {"image": self.image.spec()}

    def shape(self) -> tuple[int, ...]:
        """The shape of each training sample as networks see it, (channels, height, width).

        Raises:
            UserError: the images keep sizes of their own.
        """
        augment = self.augment
        size = augment.crop or (augment.resize if augment.resize_by == "squash" else None)
        if size is None:
            raise UserError("data.augment.crop: this method needs images of one size; set it (32 gives 32x32)")
        return (self.image.width, size, size)

    def open(self, split: Split, seed: int, *, progress: Progress | None = None) -> ImageDataset | None:
        """The data set of a split, its cache built; None if there is no such split (validation and test
        alone).

        Raises UserError where the split's folders are not the classes.
        """
        items, problems = self.pairing(split)
        if problems:
            raise UserError(refusal(split, problems))
        if not items:
            return None
        specs = self.specs()
        transform = Transform(self.augment, specs, training=split == "train", colour_side="image")
        return self._with_cache(
            ImageDataset(items, specs, ReadImage("image", specs["image"]), transform, seed), [], progress
        )

    def _patterns(self) -> list[str]:
        return [self.image.path or _SPLIT]

    def _find(self, split: str) -> Pairing:
        folder = self._folder(self._patterns()[0], split)
        items = [Item(stem_key(path, folder), {"image": path}) for path in find_images(folder)]
        return label_by_folder(items, folder, self.class_names) if self.classes else Pairing(items, [])


AnyDataset = ImageDataset | UnpairedDataset | PointDataset


class ReadImage:
    """Reads the item of a single folder. A class, since worker processes may need to pickle it."""

    def __init__(self, side: str, spec: ImageSpec) -> None:
        self.side, self.spec = side, spec

    def __call__(self, item: Item) -> dict[str, Pixels]:
        return {self.side: read_pixels(item.paths[self.side], self.spec)}


class _ReadPair:
    """Reads both sides of a pair and sees to it that they are of one size."""

    def __init__(self, specs: Mapping[str, ImageSpec], *, side_by_side: bool, match_sizes: bool) -> None:
        self.specs = specs
        self.side_by_side = side_by_side
        self.match_sizes = match_sizes

    def __call__(self, item: Item) -> dict[str, Pixels]:
        if self.side_by_side:
            return self._halves(item.paths["A"])
        a, b = (read_pixels(item.paths[side], self.specs[side]) for side in ("A", "B"))
        if a.shape[:2] != b.shape[:2]:
            if not self.match_sizes:
                sizes = [f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (a, b)]
                raise ImageError(
                    item.paths["B"],
                    f"is {sizes[1]} pixels but its partner {item.paths['A']} is {sizes[0]}; "
                    "'match_sizes: true' resizes B to A's size",
                )
            b = resize(b, (a.shape[0], a.shape[1]), labels=self.specs["B"].kind == "labels")
        return {"A": a, "B": b}

    def _halves(self, path: Path) -> dict[str, Pixels]:
        whole = {"A": read_pixels(path, self.specs["A"])}
        # The same pixels unless the sides differ in kind or channels: then the file is read once for each.
        same = self.specs["A"] == self.specs["B"]
        whole["B"] = whole["A"] if same else read_pixels(path, self.specs["B"])
        width = whole["A"].shape[1]
        if width % 2:
            raise ImageError(path, f"is {width} pixels wide; a side-by-side pair has an even width (A left, B right)")
        return {"A": whole["A"][:, : width // 2], "B": whole["B"][:, width // 2 :]}


def refusal(split: Split, problems: list[Problem]) -> str:
    shown = "; ".join(f"{problem.path}: {problem.text}" for problem in problems[:_SHOWN])
    more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"data, {split}: {shown}{more}; `translate data check` lists all"


def check_splits(patterns: list[str], validation: str | float | None) -> None:
    if isinstance(validation, str) and not any(_SPLIT in pattern for pattern in patterns):
        raise ValueError(
            f"'validation' names the split {validation!r}, but no path contains '{_SPLIT}'; "
            "add it to a path, or set 'validation' to a share such as 0.05"
        )


def check_colour(augment: AugmentSettings, side: str, spec: ImageSpec, instead: str = "leave it out") -> None:
    if augment.colour is None:
        return
    if spec.kind == "labels":
        raise ValueError(f"'augment.colour' would change side {side}, which holds labels; {instead}")
    if spec.channels > 4:
        raise ValueError(f"'augment.colour' needs an image of 1 to 4 channels, but side {side} has {spec.channels}")


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does: modification time and size."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
