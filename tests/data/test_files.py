"""Finding files: order, hidden ones, loops, escapes, and one clear line for each mistake."""

from __future__ import annotations

import os
import random
import sys

import pytest

from translate.data import files
from translate.data.files import expand, find_images, inside, natural_key, stem_key
from translate.errors import UserError


@pytest.fixture
def tree(tmp_path):
    names = [
        "img10.png", "img9.JPG", "IMG2.webp", "b/x1.tif", "b/c/deep.bmp", "a.b.npy",
        ".hidden.png", ".cache/y.png", "notes.txt", "Thumbs.db",
    ]  # fmt: skip
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def relative(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


def test_natural_order_of_shuffled_names():
    names = ["a", "a1", "a2", "A3", "a10", "a10b", "a011", "b", "图1", "图2"]
    shuffled = names.copy()
    random.Random(3).shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == names


def test_folder(tree):
    expected = ["a.b.npy", "b/c/deep.bmp", "b/x1.tif", "IMG2.webp", "img9.JPG", "img10.png"]
    assert relative(find_images(tree), tree) == expected
    assert relative(find_images(tree, recursive=False), tree) == ["a.b.npy", *expected[3:]]
    assert expand(tree) == (tree, find_images(tree)) == expand(str(tree))


def test_file_and_patterns(tree):
    assert expand(tree / "img10.png") == (tree, [tree / "img10.png"])
    assert expand(tree / "notes.txt") == (tree, [tree / "notes.txt"])  # the content decides
    root, paths = expand(f"{tree}/img*")
    assert (root, relative(paths, root)) == (tree, ["img9.JPG", "img10.png"])
    root, paths = expand(f"{tree}/**/*.*")
    assert relative(paths, root) == relative(find_images(tree), tree)
    root, paths = expand(f"{tree}/b/*/*.bmp")
    assert (root, relative(paths, root)) == (tree / "b", ["c/deep.bmp"])


def test_relative_pattern(tree, monkeypatch):
    monkeypatch.chdir(tree)
    root, paths = expand("*.png")
    assert relative(paths, root) == ["img10.png"]


def test_a_name_with_brackets_is_a_name_where_it_exists(tmp_path):
    path = tmp_path / "a[1].png"
    path.write_bytes(b"")
    assert expand(path) == (tmp_path, [path])


def test_mistakes_are_one_line(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    for call, text in [
        (lambda: find_images(tree / "absent"), "no such folder"),
        (lambda: find_images(tree / "img10.png"), "is a file, expected a folder"),
        (lambda: find_images(tmp_path / "empty"), "no images in this folder"),
        (lambda: expand(tree / "absent.png"), "no such file or folder"),
        (lambda: expand(f"{tree}/*.gif"), "no image matches this pattern"),
    ]:
        with pytest.raises(UserError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_unreadable_folder(tree, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(files.os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot be read \\(permission denied\\)"):
        find_images(tree)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_but_never_in_a_circle(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.png").write_bytes(b"")
    (tree / "b" / "up").symlink_to(tree)
    (tree / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(tree)
    (tree / "dangling.png").symlink_to(tree / "gone.png")
    found = relative(find_images(tree), tree)
    assert "link/far.png" in found and "dangling.png" not in found
    assert len(found) == 7


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_is_no_image(tree):
    os.mkfifo(tree / "pipe.png")
    assert "pipe.png" not in relative(find_images(tree), tree)


def test_stem_key(tree):
    assert stem_key(tree / "b" / "c" / "deep.bmp", tree) == "b/c/deep"
    assert stem_key(tree / "a.b.npy", tree) == "a.b"


def test_inside(tree):
    assert inside(tree, "b/../b/x1.tif") == (tree / "b" / "x1.tif").resolve()
    assert inside(tree, tree / "b") == (tree / "b").resolve()
    (tree / "out").symlink_to("/")
    for candidate in ("../x.png", "/etc/passwd", "b/../../x", "out/etc/passwd"):
        with pytest.raises(UserError, match="stay inside"):
            inside(tree, candidate)
