"""Matching files: by name, by halves, by list; and what is held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from translate.data.pairing import Item, hold_out, pair_folders, pair_manifest, pair_side_by_side
from translate.errors import UserError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_folders_match_by_relative_stem(tmp_path: Path) -> None:
    touch(*(tmp_path / "A" / name for name in ("x/1.jpg", "y/1.jpg", "2.png")))
    touch(*(tmp_path / "B" / name for name in ("x/1.png", "y/1.webp", "2.png")))
    pairing = pair_folders({"A": tmp_path / "A", "B": tmp_path / "B"})
    assert pairing.problems == []
    found = {
        item.name: {side: path.relative_to(tmp_path).as_posix() for side, path in item.paths.items()}
        for item in pairing.items
    }
    assert found == {
        "2": {"A": "A/2.png", "B": "B/2.png"},
        "x/1": {"A": "A/x/1.jpg", "B": "B/x/1.png"},
        "y/1": {"A": "A/y/1.jpg", "B": "B/y/1.webp"},
    }


def test_an_ending_counts_where_the_bare_name_has_a_partner(tmp_path: Path) -> None:
    """DIV2K's low resolutions are called 0001x4.png; a name that ends so on both sides is taken as it is."""
    touch(*(tmp_path / "B" / name for name in ("1.png", "x/2.png", "3x4.png", "4.png")))
    touch(*(tmp_path / "A" / name for name in ("1x4.png", "x/2.png", "3x4.png", "4.png", "4x4.png")))
    pairing = pair_folders({"A": tmp_path / "A", "B": tmp_path / "B"}, endings={"A": "x4"})
    found = {item.name: item.paths["A"].relative_to(tmp_path / "A").as_posix() for item in pairing.items}
    assert found == {"1": "1x4.png", "x/2": "x/2.png", "3x4": "3x4.png", "4": "4.png"}
    assert [(problem.kind, Path(problem.path).name) for problem in pairing.problems] == [("missing", "4x4.png")]


def test_missing_partners_on_both_sides_are_problems(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("A/1.png", "A/2.png", "B/2.png", "B/3.png")))
    pairing = pair_folders({"A": tmp_path / "A", "B": tmp_path / "B"})
    assert [item.name for item in pairing.items] == ["2"]
    assert sorted((problem.kind, Path(problem.path).name) for problem in pairing.problems) == [
        ("missing", "1.png"),
        ("missing", "3.png"),
    ]


def test_a_stem_that_stands_twice_makes_no_pair(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("A/1.png", "A/1.jpg", "A/2.png", "B/1.png", "B/2.png")))
    pairing = pair_folders({"A": tmp_path / "A", "B": tmp_path / "B"})
    assert [item.name for item in pairing.items] == ["2"]
    assert [problem.kind for problem in pairing.problems] == ["duplicate"]


@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
def test_a_missing_or_empty_folder_is_named_in_one_line(tmp_path: Path, make: bool) -> None:
    touch(tmp_path / "A" / "1.png")
    if make:
        (tmp_path / "B").mkdir()
    with pytest.raises(UserError) as caught:
        pair_folders({"A": tmp_path / "A", "B": tmp_path / "B"})
    assert str(tmp_path / "B") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_side_by_side_items_hold_one_file_twice(tmp_path: Path) -> None:
    touch(tmp_path / "1.png", tmp_path / "2.jpg", tmp_path / "2.png")
    pairing = pair_side_by_side(tmp_path)
    assert pairing.items == [Item("1", {"A": tmp_path / "1.png", "B": tmp_path / "1.png"})]
    assert [problem.kind for problem in pairing.problems] == ["duplicate"]


def test_manifest_rows(tmp_path: Path) -> None:
    touch(tmp_path / "set" / "a.png", tmp_path / "set" / "b.png", tmp_path / "secret.png")
    manifest = tmp_path / "set" / "train.csv"
    manifest.write_text("note,A,B\nx,a.png,b.png\ny,../secret.png,b.png\nz,a.png,gone.png\nw,,b.png\nv,a.png,b.png\n")
    pairing = pair_manifest(manifest)
    folder = manifest.parent.resolve()
    assert pairing.items == [Item("a", {"A": folder / "a.png", "B": folder / "b.png"})]
    assert [(problem.kind, problem.path.rpartition(":")[2]) for problem in pairing.problems] == [
        ("manifest", "3"),
        ("missing", "4"),
        ("manifest", "5"),
        ("duplicate", "6"),
    ]


@pytest.mark.parametrize("content", [b"A,C\n1,2\n", b"", b"A,B\n", b"\xff\xfe\x00", None])
def test_a_bad_manifest_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "train.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        pair_manifest(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_held_out_share_is_stable_and_of_the_right_size() -> None:
    items = [Item(f"photo {number}", {}) for number in range(4000)]
    kept, held = hold_out(items, 0.1)
    # Binomial(4000, 0.1): standard deviation 19, so 100 is over five of them.
    assert abs(len(held) - 400) < 100
    assert sorted(kept + held) == sorted(items)
    _, held_before = hold_out(items[:2000], 0.1)
    assert held_before == [item for item in held if item in items[:2000]]


def test_a_small_set_still_holds_one_out() -> None:
    kept, held = hold_out([Item(name, {}) for name in "abc"], 1e-9)
    assert (len(kept), len(held)) == (2, 1)
    assert hold_out([Item("a", {})], 1e-9) == ([Item("a", {})], [])
