"""Recipes: what is fetched is what was pinned, pairs meet by code point, variants never part, classes are folders."""

from __future__ import annotations

import base64
import hashlib
import io
import stat
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from translate.data import recipes
from translate.data.archives import read_labelled
from translate.data.files import user_cache_folder
from translate.data.recipes import (
    LabelledRecipe,
    PairRecipe,
    draw_pairs,
    fetch,
    load_recipe,
    make,
    parse_code_points,
    recipe_folder,
    recipe_names,
    render,
    side_of,
    split_of,
)
from translate.errors import UserError

WHITE = (255, 255, 255)


def png(*pixel: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA" if len(pixel) == 4 else "RGB", (20, 20), pixel).save(stream, "PNG")
    return stream.getvalue()


def archive_of(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> str:
    """Write a .tgz and return its integrity, by the definition: base64 of the SHA-512."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def recipe_with(integrity: str, **pairs: int) -> PairRecipe:
    return PairRecipe.model_validate(
        {
            "title": "t", "licence": "MIT", "attribution": "somebody", "source": "s", "size": 16,
            "packages": {"p": {"name": "@scope/name", "version": "1.2.3", "integrity": integrity}},
            "sides": {side: {"package": "p", "files": f"package/{side.lower()}/*.png"} for side in "AB"},
            "pairs": pairs,
        }
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "translate").mkdir(parents=True)
    return tmp_path / "cache" / "translate"


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`npm(python_code)` puts a program of that name first (and last) on the PATH; its calls are logged."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(code: str) -> Path:
        script, log = folder / "npm", tmp_path / "npm.log"
        log.touch()
        script.write_text(
            f"#!{sys.executable}\nimport shutil, sys\n"
            f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n{code}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return log

    return install


# Shipped recipes


def test_shipped_recipes_are_pinned() -> None:
    assert recipe_names() == ["cifar10", "emoji-styles", "fashion-mnist", "fluent-emoji", "mnist", "openmoji"]
    assert (recipe_folder() / "openmoji.yaml").is_file()
    fluent, openmoji = load_recipe("fluent-emoji"), load_recipe("openmoji")
    assert isinstance(fluent, PairRecipe) and isinstance(openmoji, PairRecipe)
    assert (fluent.pairs, fluent.licence) == ({"train": 2824, "test": 435}, "MIT")
    assert (openmoji.pairs, openmoji.licence) == ({"train": 3787, "test": 708}, "CC-BY-SA-4.0")
    assert fluent.counts == fluent.pairs
    assert "OpenMoji" in openmoji.attribution
    assert fluent.packages["flat"].file_name == "lobehub-fluent-emoji-flat-1.1.0.tgz"
    assert fluent.unpaired is None and openmoji.unpaired is None
    styles = load_recipe("emoji-styles")
    assert isinstance(styles, PairRecipe) and styles.unpaired is not None
    assert sum(styles.pairs.values()) == 3786  # the packages' own emoji.json has as many with both pictures
    assert sum(styles.unpaired.values()) == styles.pairs["train"]
    assert "Apache 2.0" in styles.attribution and "CC BY 4.0" in styles.attribution
    for name, images in (("mnist", 60_000), ("cifar10", 50_000), ("fashion-mnist", 60_000)):
        recipe = load_recipe(name)
        assert isinstance(recipe, LabelledRecipe)
        assert recipe.counts == recipe.images == {"train": images, "test": 10_000}
        assert len(recipe.classes) == len(set(recipe.classes)) == 10


def test_unknown_recipe_names_the_known() -> None:
    for name in ("emoji", "../fluent-emoji", ""):
        with pytest.raises(UserError, match="there are: cifar10, emoji-styles, fashion-mnist, fluent-emoji, mnist, "):
            load_recipe(name)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("size", 4, "size: "),
        ("pairs", {"train": 1}, "pairs in train and test"),
        ("unpaired", {"A": 1}, "number of images of A and of B"),
        ("unpaired", {"C": 1}, "unpaired"),
        ("packages", {"p": {"name": "p", "version": "^1.0.0", "integrity": "x"}}, r"packages.p.version"),
        (
            "packages",
            {"p": {"name": "p", "version": "1.0.0", "integrity": "sha512-AAAA"}},
            "64 bytes in base64",
        ),
        ("colour", 1, "colour: "),
        ("kind", "triples", "'triples'"),
    ],
)
def test_a_faulty_recipe_is_told_by_its_key(
    key: str, value: object, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = yaml.safe_load((recipe_folder() / "openmoji.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**good, key: value}))
    monkeypatch.setattr(recipes, "recipe_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=rf"mine.yaml: .*{line}") as caught:
        load_recipe("mine")
    assert "\n" not in str(caught.value)


# Fetching


def test_the_cache_is_where_the_system_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "translate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / ".cache" / "translate"


def test_fetch_verifies_and_keeps(cache: Path, tmp_path: Path, npm: Callable[[str], Path]) -> None:
    source = tmp_path / "source.tgz"
    recipe = recipe_with(archive_of(source, {"package/a/1f600.png": png(1, 2, 3)}), train=1, test=0)
    log = npm(f"shutil.copy({str(source)!r}, 'scope-name-1.2.3.tgz')")
    said: list[str] = []
    path = fetch(recipe, notice=said.append)["p"]
    assert path == cache / "scope-name-1.2.3.tgz"
    assert path.read_bytes() == source.read_bytes()
    assert said == ["fetching @scope/name@1.2.3 with npm"]
    assert log.read_text().startswith("pack @scope/name@1.2.3 --ignore-scripts")

    fetch(recipe)  # from the cache
    assert len(log.read_text().splitlines()) == 1
    path.write_bytes(path.read_bytes()[:-20])  # cut short: fetched again
    fetch(recipe)
    assert len(log.read_text().splitlines()) == 2
    assert path.read_bytes() == source.read_bytes()
    assert [entry.name for entry in cache.iterdir()] == [path.name]


def test_another_archive_than_the_pinned_is_refused(cache: Path, tmp_path: Path, npm: Callable[[str], Path]) -> None:
    good, evil = tmp_path / "good.tgz", tmp_path / "evil.tgz"
    recipe = recipe_with(archive_of(good, {}), train=1, test=0)
    archive_of(evil, {"package/a/1f600.png": b"evil"})
    npm(f"shutil.copy({str(evil)!r}, 'scope-name-1.2.3.tgz')")
    with pytest.raises(UserError, match=r"checksum is sha512-.*expected sha512-.*not opened"):
        fetch(recipe)
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("cache")
def test_npm_missing_or_failing_is_one_line(tmp_path: Path, npm: Callable[[str], Path]) -> None:
    recipe = recipe_with(archive_of(tmp_path / "any.tgz", {}), train=1, test=0)
    with pytest.raises(UserError, match=r"npm was not found; install Node.js.*apt install npm") as caught:
        fetch(recipe)
    assert "\n" not in str(caught.value)
    npm(
        "sys.exit('npm error code ENOTFOUND\\n'"
        "'npm error network request to https://registry/x failed, reason: getaddrinfo ENOTFOUND registry\\n'"
        "'npm error network This is a problem related to network connectivity.\\n'"
        "'npm error A complete log of this run can be found in: /root/.npm/x.log')"
    )
    with pytest.raises(
        UserError, match=r"could not fetch @scope/name@1.2.3: .*reason: getaddrinfo ENOTFOUND"
    ) as caught:
        fetch(recipe)
    assert "\n" not in str(caught.value)
    npm("sys.exit(0)")  # claims success and leaves nothing
    with pytest.raises(UserError, match="it said nothing"):
        fetch(recipe)


# Names and splits


def test_code_points_are_read_from_names() -> None:
    assert parse_code_points("1F44B-1F3FB") == (0x1F44B, 0x1F3FB)
    assert parse_code_points("0023-fe0f-20e3") == parse_code_points("23-FE0F-20E3") == (0x23, 0xFE0F, 0x20E3)
    assert parse_code_points("1f3f4-e0067_e0062") == (0x1F3F4, 0xE0067, 0xE0062)
    for name in ("README", "1f600-", "", "..", "1f600.bak", "1f600 "):
        assert parse_code_points(name) is None


@given(
    base=st.integers(0x1F300, 0x1F3FA) | st.integers(0x1F400, 0x1FAFF),
    tail=st.lists(st.sampled_from([0x1F3FB, 0x1F3FF, 0xFE0F, 0x200D, 0x2640, 0x1F33E]), max_size=4),
    before=st.lists(st.sampled_from([0x1F3FB, 0x1F3FE, 0xFE0F]), max_size=2),
)
def test_variants_stand_in_the_split_of_their_base(base: int, tail: list[int], before: list[int]) -> None:
    assert split_of((*before, base, *tail)) == split_of((base,))


def test_a_tenth_of_the_bases_is_for_testing() -> None:
    splits = [split_of((point,)) for point in range(0x1F400, 0x1FAFF)]
    assert 0.08 < splits.count("test") / len(splits) < 0.12
    # Found once with `printf 1f615 | md5sum`: a changed rule would move pictures between published splits.
    assert int("c7e72de051bafa140b975d9b73860acf", 16) % 100 < 10
    assert split_of((0x1F615,)) == "test"
    assert int("b26747fc8cb2170baa866b315cf58b7c", 16) % 100 >= 10
    assert split_of((0x23,)) == "train"
    assert split_of((0x1F3FB,)) in ("train", "test")  # a skin tone alone is its own base


@given(
    base=st.integers(0x1F300, 0x1F3FA) | st.integers(0x1F400, 0x1FAFF),
    tail=st.lists(st.sampled_from([0x1F3FB, 0x1F3FF, 0xFE0F, 0x200D, 0x2640, 0x1F33E]), max_size=4),
    before=st.lists(st.sampled_from([0x1F3FB, 0x1F3FE, 0xFE0F]), max_size=2),
)
def test_variants_stand_on_the_side_of_their_base(base: int, tail: list[int], before: list[int]) -> None:
    assert side_of((*before, base, *tail)) == side_of((base,))


def test_a_half_of_the_bases_is_on_each_side_whatever_their_split() -> None:
    points = [(point,) for point in range(0x1F300, 0x1FB00) if not 0x1F3FB <= point <= 0x1F3FF]
    for split in ("train", "test"):
        sides = [side_of(point) for point in points if split_of(point) == split]
        # Five deviations of as many throws of a coin.
        assert abs(sides.count("A") - len(sides) / 2) < 5 * len(sides) ** 0.5 / 2
    # The digest that `printf 1f615 | md5sum` gave above, now without its last two decimal digits.
    assert int("c7e72de051bafa140b975d9b73860acf", 16) // 100 % 2 == (side_of((0x1F615,)) == "B")
    assert int("b26747fc8cb2170baa866b315cf58b7c", 16) // 100 % 2 == (side_of((0x23,)) == "B")


# Drawing


def test_pixels_are_laid_over_the_background_and_resized() -> None:
    half = render(png(200, 0, 0, 128), ".png", size=16, background=WHITE)
    assert half.shape == (16, 16, 3)
    alpha = 128 / 255
    expected = np.round(np.array([200, 0, 0]) * alpha + 255 * (1 - alpha))
    np.testing.assert_allclose(half, np.broadcast_to(expected, half.shape), atol=1)
    # Invisible pixels do not bleed: red, fully transparent, beside opaque blue.
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[:, :20], pixels[:, 20:] = (255, 0, 0, 0), (0, 0, 255, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, exact=True)
    small = render(stream.getvalue(), ".webp", size=20, background=(0, 255, 0))
    assert small[..., 0].max() == 0
    np.testing.assert_array_equal(small[:, 0], np.broadcast_to([0, 255, 0], (20, 3)))
    np.testing.assert_array_equal(small[:, -1], np.broadcast_to([0, 0, 255], (20, 3)))
    with pytest.raises(UserError, match="cannot be read"):
        render(b"no picture", ".png", size=16, background=WHITE)


def test_vectors_are_drawn_at_the_size_asked_for() -> None:
    pytest.importorskip("resvg_py")
    svg = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
        <rect width="16" height="32" fill="#ff0000"/>
        <rect x="16" width="16" height="16" fill="#00f" opacity="0.5"/>
        </svg>"""
    drawn = render(svg, ".svg", size=64, background=WHITE)
    assert drawn.shape == (64, 64, 3)
    np.testing.assert_array_equal(drawn[:, :31], np.broadcast_to([255, 0, 0], (64, 31, 3)))
    np.testing.assert_allclose(drawn[:31, 33:], np.broadcast_to([127, 127, 255], (31, 31, 3)), atol=1)
    np.testing.assert_array_equal(drawn[33:, 33:], 255)
    with pytest.raises(UserError, match="cannot be drawn"):
        render(b"<svg", ".svg", size=64, background=WHITE)


def test_missing_resvg_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r'pip install "translate-images\[recipes\]"'):
        recipes.check_renderer(load_recipe("openmoji"))


POINTS = ["1f600", "1f615", "1f44b", "1f44b-1f3fb", "1f44b-1f3ff"]


def made_archive(path: Path) -> PairRecipe:
    """Five pairs, files without a partner, and members that must not be taken for pictures."""
    files = {f"package/a/{name.upper()}.png": png(10 * i, 0, 0) for i, name in enumerate(POINTS)}
    files |= {f"package/b/{name}.png": png(0, 10 * i, 0) for i, name in enumerate(POINTS)}
    files |= {
        "package/a/1f680.png": png(1, 1, 1),  # no partner
        "package/b/README.png": png(1, 1, 1),
        "package/c/1f680.png": png(1, 1, 1),  # not in side B's folder
        "package/b/../b/1f680.png": png(1, 1, 1),
        "/package/b/1f680.txt": b"",
    }
    integrity = archive_of(path, files, links={"package/b/1f680.png": "/etc/passwd"})
    splits = [split_of(tuple(int(part, 16) for part in name.split("-"))) for name in POINTS]
    return recipe_with(integrity, train=splits.count("train"), test=splits.count("test"))


def test_pairs_meet_by_code_point_and_nothing_else_is_written(tmp_path: Path) -> None:
    recipe = made_archive(tmp_path / "p.tgz")
    out, seen = tmp_path / "out", []
    made = draw_pairs("mine", recipe, {"p": tmp_path / "p.tgz"}, out, progress=seen.append)
    assert made == recipe.pairs == {"train": 4, "test": 1}
    assert seen == [1, 2, 3, 4, 5]
    for i, name in enumerate(POINTS):
        split = split_of((int(name.split("-")[0], 16),))
        for side, colour in (("A", [10 * i, 0, 0]), ("B", [0, 10 * i, 0])):
            with Image.open(out / split / side / f"{name}.png") as image:
                assert (image.mode, image.size) == ("RGB", (16, 16))
                np.testing.assert_array_equal(np.asarray(image), np.broadcast_to(colour, (16, 16, 3)))
    assert sum(path.is_file() for path in out.rglob("*")) == 2 * len(POINTS) + 1
    described = yaml.safe_load((out / "dataset.yaml").read_text())
    assert described["attribution"] == "somebody"
    assert described["packages"] == {"@scope/name@1.2.3": recipe.packages["p"].integrity}


def test_finished_files_are_kept_and_another_size_is_refused(tmp_path: Path) -> None:
    recipe, archives = made_archive(tmp_path / "p.tgz"), {"p": tmp_path / "p.tgz"}
    out = tmp_path / "out"
    draw_pairs("mine", recipe, archives, out)
    files = sorted(path for path in out.rglob("*.png"))
    kept, lost = files[0], files[-1]
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    draw_pairs("mine", recipe, archives, out)
    assert (kept.stat().st_mtime_ns, lost.read_bytes()) == (before, content)
    with pytest.raises(UserError, match=r"another size \(16, now 24\)"):
        draw_pairs("mine", recipe, archives, out, size=24)


def test_other_numbers_of_pairs_than_pinned_are_refused(tmp_path: Path) -> None:
    made_archive(tmp_path / "p.tgz")
    recipe = recipe_with("sha512-" + base64.b64encode(bytes(64)).decode(), train=4000, test=1)
    with pytest.raises(UserError, match=r"expected .*4000"):
        draw_pairs("mine", recipe, {"p": tmp_path / "p.tgz"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def many_pairs(path: Path) -> tuple[PairRecipe, list[str]]:
    """Thirty emoji and five skin tones of each of the first ten; the recipe asks for an unpaired split."""
    names = [f"{0x1F600 + number:04x}" for number in range(30)]
    names += [f"{name}-{tone:x}" for name in names[:10] for tone in range(0x1F3FB, 0x1F400)]
    files = {
        f"package/{side}/{name}.png": png(i, 50 * (side == "b"), 0) for i, name in enumerate(names) for side in "ab"
    }
    points = [tuple(int(part, 16) for part in name.split("-")) for name in names]
    train = [side_of(each) for each in points if split_of(each) == "train"]
    recipe = recipe_with(archive_of(path, files), train=len(train), test=len(names) - len(train))
    return recipe.model_copy(update={"unpaired": {side: train.count(side) for side in "AB"}}), names


def test_the_unpaired_split_holds_one_side_of_each_training_pair(tmp_path: Path) -> None:
    recipe, names = many_pairs(tmp_path / "p.tgz")
    out = tmp_path / "out"
    assert draw_pairs("mine", recipe, {"p": tmp_path / "p.tgz"}, out) == recipe.pairs
    found = {
        (split, side): {path.name: path.read_bytes() for path in (out / split / side).iterdir()}
        for split in ("train", "test", "unpaired")
        for side in "AB"
    }
    a, b = found["unpaired", "A"], found["unpaired", "B"]
    assert recipe.unpaired == {"A": len(a), "B": len(b)} and min(len(a), len(b)) > 0
    bases = [{name.split("-")[0].removesuffix(".png") for name in side} for side in (a, b)]
    assert not bases[0] & bases[1]  # no skin tone of an emoji is on the other side
    assert a.keys() | b.keys() == found["train", "A"].keys() == found["train", "B"].keys()
    assert all(found["train", "A"][name] == content for name, content in a.items())
    assert all(found["train", "B"][name] == content for name, content in b.items())
    assert not (a.keys() | b.keys()) & found["test", "A"].keys()
    assert len(a) + len(b) + len(found["test", "A"]) == len(names)
    assert yaml.safe_load((out / "dataset.yaml").read_text())["unpaired"] == recipe.unpaired

    lost = out / "unpaired" / "B" / min(b)
    lost.unlink()
    draw_pairs("mine", recipe, {"p": tmp_path / "p.tgz"}, out)
    assert lost.read_bytes() == b[lost.name]


def test_another_unpaired_split_than_pinned_is_refused(tmp_path: Path) -> None:
    recipe, _ = many_pairs(tmp_path / "p.tgz")
    other = recipe.model_copy(update={"unpaired": {"A": 1000, "B": 1}})
    with pytest.raises(UserError, match=r"mine: expected .*1000.* unpaired images, but .*mend the recipe") as caught:
        draw_pairs("mine", other, {"p": tmp_path / "p.tgz"}, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fluent-emoji", "openmoji", "emoji-styles"])
def test_the_real_packages_give_the_published_pairs(name: str, tmp_path: Path) -> None:
    """Draws the real set where the archives have been fetched before; no test goes to the network."""
    pytest.importorskip("resvg_py")
    recipe = load_recipe(name)
    assert isinstance(recipe, PairRecipe)
    if not all((user_cache_folder() / package.file_name).is_file() for package in recipe.packages.values()):
        pytest.skip(f"translate data get {name} was not run on this machine")
    made = draw_pairs(name, recipe, fetch(recipe), tmp_path / name, size=32)
    assert made == recipe.pairs
    bases = {}
    for split in made:
        names = {side: sorted(path.name for path in (tmp_path / name / split / side).iterdir()) for side in "AB"}
        assert names["A"] == names["B"]
        assert len(names["A"]) == recipe.pairs[split]
        bases[split] = {file.split("-")[0].removesuffix(".png") for file in names["A"]}
    assert not bases["train"] & bases["test"]
    for side, count in (recipe.unpaired or {}).items():
        assert len(list((tmp_path / name / "unpaired" / side).iterdir())) == count
    smiley = cv2.imread(str(tmp_path / name / "train" / "B" / "1f603.png"))
    if smiley is not None:
        blue, green, red = smiley[16, 6].astype(int)
        assert red > blue + 60 and green > blue + 40  # a smiley's cheek is yellow


# Class folders

LABELS = {"train": [1, 0, 1], "test": [0]}


def class_recipe(path: Path, labels: dict[str, list[int]] = LABELS) -> LabelledRecipe:
    """Grey images of 16 x 16 in an idx archive: the image number n of a split has the level 10 n everywhere."""
    files = {}
    for split, classes in labels.items():
        pixels = b"".join(bytes([10 * number]) * 256 for number in range(len(classes)))
        files[f"package/{split}"] = struct.pack(">4B3I", 0, 0, 8, 3, len(classes), 16, 16) + pixels
        files[f"package/{split}-labels"] = struct.pack(">4BI", 0, 0, 8, 1, len(classes)) + bytes(classes)
    places = {split: {"images": [f"package/{split}"], "labels": f"package/{split}-labels"} for split in labels}
    return LabelledRecipe.model_validate(
        {
            "kind": "labelled", "title": "t", "licence": "MIT", "attribution": "somebody", "source": "s", "size": 16,
            "packages": {"p": {"name": "p", "version": "1.2.3", "integrity": archive_of(path, files)}},
            "pictures": {"layout": "idx", **places},
            "classes": ["cat", "dog"], "images": {"train": 3, "test": 1},
        }
    )  # fmt: skip


def test_images_lie_in_the_folder_of_their_class(tmp_path: Path) -> None:
    recipe, archives, out = class_recipe(tmp_path / "p.tgz"), {"p": tmp_path / "p.tgz"}, tmp_path / "out"
    seen: list[int] = []
    made = make("mine", recipe, archives, out, progress=seen.append)
    assert made == {"train": 3, "test": 1} and seen == [1, 2, 3, 4]
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*.png")}
    assert sorted(files) == ["test/cat/00000.png", "train/cat/00001.png", "train/dog/00000.png", "train/dog/00002.png"]
    for name, path in files.items():
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (16, 16))
            assert set(np.asarray(image).ravel().tolist()) == {10 * int(Path(name).stem)}
    described = yaml.safe_load((out / "dataset.yaml").read_text())
    assert (described["classes"], described["images"], described["size"]) == (["cat", "dog"], made, 16)
    assert described["licence"] == "MIT" and list(described["packages"]) == ["p@1.2.3"]

    lost, kept = files["train/dog/00002.png"], files["train/dog/00000.png"]
    content, before = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    make("mine", recipe, archives, out)
    assert (lost.read_bytes(), kept.stat().st_mtime_ns) == (content, before)
    with pytest.raises(UserError, match=r"another size \(16, now 24\)"):
        make("mine", recipe, archives, out, size=24)


def test_class_folders_of_another_size(tmp_path: Path) -> None:
    make("mine", class_recipe(tmp_path / "p.tgz"), {"p": tmp_path / "p.tgz"}, tmp_path / "out", size=24)
    with Image.open(tmp_path / "out" / "train" / "dog" / "00002.png") as image:
        assert image.size == (24, 24) and set(np.asarray(image).ravel().tolist()) == {20}


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ({"train": [1, 0], "test": [0]}, "mine: expected .*3.* images, but the package gives .*2.*mend the recipe"),
        ({"train": [1, 0, 2], "test": [0]}, "mine: the package has a label 2, but the recipe 2 classes"),
    ],
)
def test_an_archive_that_is_not_the_recipes_writes_nothing(
    labels: dict[str, list[int]], line: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        make("mine", class_recipe(tmp_path / "p.tgz", labels), {"p": tmp_path / "p.tgz"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "value"), [("images", {"train": 3}), ("packages", {}), ("classes", ["cat"])])
def test_a_labelled_recipe_is_complete(key: str, value: object, tmp_path: Path) -> None:
    good = class_recipe(tmp_path / "p.tgz").model_dump()
    with pytest.raises(ValidationError, match=key.removesuffix("s")):
        LabelledRecipe.model_validate(good | {key: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("mnist", [0.1307]),  # the numbers that everyone normalises with, as in torchvision's and PyTorch's examples
        ("cifar10", [0.4914, 0.4822, 0.4465]),
        ("fashion-mnist", [0.2860]),
    ],
)
def test_the_real_packages_give_the_published_pixels(name: str, means: list[float]) -> None:
    """Reads the real archive where it has been fetched before; no test goes to the network."""
    recipe = load_recipe(name)
    assert isinstance(recipe, LabelledRecipe)
    (package,) = recipe.packages.values()
    if not (user_cache_folder() / package.file_name).is_file():
        pytest.skip(f"translate data get {name} was not run on this machine")
    (archive,) = fetch(recipe).values()
    splits = read_labelled(archive, recipe.pictures, recipe.size)
    assert {split: len(pictures.labels) for split, pictures in splits.items()} == recipe.images
    assert (splits["train"].images.mean(axis=(0, 1, 2)) / 255).tolist() == pytest.approx(means, abs=2e-4)
    counts = {split: np.bincount(pictures.labels).tolist() for split, pictures in splits.items()}
    if name == "mnist":  # the classes of its test split, as published
        assert counts["test"] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    else:  # both are balanced
        assert counts == {split: [number // 10] * 10 for split, number in recipe.images.items()}
