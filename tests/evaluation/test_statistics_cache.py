"""Statistics of references are measured once: what the key knows, and what becomes of bad entries and folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured import COLOURS, Colours, colours, frechet, measured, noisy, smooth, tree, values, write
from torch import Tensor

from translate.data.spec import ImageSpec
from translate.evaluation import pictures, statistics_cache
from translate.evaluation.engine import Match
from translate.evaluation.pictures import FilePictures
from translate.evaluation.subjects import folders
from translate.metrics.protocol import ProtocolSettings
from translate.metrics.scores import Evaluation
from translate.pretrained import store

Reads = list[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "translate" / "statistics"


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    for number in range(8):
        write(tmp_path / "out" / f"o{number}.png", smooth(number))
        write(tmp_path / "real" / f"r{number}.png", smooth(50 + number))
    return tmp_path / "out", tmp_path / "real"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The pictures that were decoded, in order."""
    found: Reads = []
    real = pictures.read_pixels

    def counted(path: Path, *arguments: Any) -> Any:
        found.append(path.as_posix())
        return real(path, *arguments)

    monkeypatch.setattr(pictures, "read_pixels", counted)
    return found


def decoded(reads: Reads, folder: Path) -> int:
    """How many pictures of a folder were decoded since this was asked last."""
    count = sum(path.startswith(folder.as_posix() + "/") for path in reads)
    reads.clear()
    return count


def of(out: Path, real: Path, *measures: str, **protocol: Any) -> Evaluation:
    measures = measures or ("frechet",)
    return measured(folders(out, real, measures).matches, *measures, protocol=COLOURS.model_copy(update=protocol))[0]


def test_the_second_time_no_reference_is_decoded(sets: tuple[Path, Path], reads: Reads, cache: Path) -> None:
    first = of(*sets, "frechet", "kid", "precision")
    assert len(reads) == 16 and decoded(reads, sets[1]) == 8
    again = of(*sets, "frechet", "kid", "precision")
    assert len(reads) == 8 and decoded(reads, sets[1]) == 0
    assert again == first  # to the last digit
    assert len(list(cache.iterdir())) == 1
    a, b = (colours(list(tree(folder).values())) for folder in sets)
    assert values(again)["frechet"] == pytest.approx(frechet(a, b), rel=1e-4)


def _other_content(out: Path, real: Path) -> tuple[Path, Path]:
    write(real / "r3.png", noisy(smooth(53), 0, 1))
    return out, real


def _one_more(out: Path, real: Path) -> tuple[Path, Path]:
    write(real / "r9.png", smooth(59))
    return out, real


def _one_twice(out: Path, real: Path) -> tuple[Path, Path]:
    shutil.copy(real / "r3.png", real / "r3 again.png")
    return out, real


@pytest.mark.parametrize("change", [_other_content, _one_more, _one_twice])
def test_other_pictures_are_measured(
    change: Callable[[Path, Path], tuple[Path, Path]], sets: tuple[Path, Path], reads: Reads
) -> None:
    before = values(of(*sets))
    decoded(reads, sets[1])
    after = of(*change(*sets))
    assert decoded(reads, sets[1]) == len(list(sets[1].iterdir()))
    assert values(after) != before


@pytest.mark.parametrize(
    "protocol", [{"crop": 12}, {"features": "test_statistics_cache:Other"}, {"features": "test_statistics_cache:Same"}]
)
def test_another_protocol_is_measured(protocol: dict[str, Any], sets: tuple[Path, Path], reads: Reads) -> None:
    of(*sets)
    decoded(reads, sets[1])
    of(*sets, **protocol)
    assert decoded(reads, sets[1]) == 8


class Same(Colours):
    """By another name."""


class Other(Colours):
    """With weights, and with code that may change."""

    power = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means, logits = super().forward(images)
        return means.sign() * means.abs() ** self.power, logits


def test_a_network_whose_code_has_changed_is_another(
    sets: tuple[Path, Path], reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its name nor its weights say so."""
    of(*sets, features="test_statistics_cache:Other")
    decoded(reads, sets[1])
    of(*sets, features="test_statistics_cache:Other")
    assert decoded(reads, sets[1]) == 0
    monkeypatch.setattr(Other, "power", 0.5)
    found = of(*sets, features="test_statistics_cache:Other")
    assert decoded(reads, sets[1]) == 8
    a, b = (colours(list(tree(folder).values())) for folder in sets)
    expected = frechet(*(np.sign(x) * np.abs(x) ** 0.5 for x in (a, b)))
    assert values(found)["frechet"] == pytest.approx(expected, rel=1e-4)


def test_measures_of_one_kind_share_an_entry(sets: tuple[Path, Path], cache: Path) -> None:
    """Measures that need single features want more of a set than those that do not."""
    for measures in (["frechet"], ["frechet", "inception-score"], ["kid"], ["recall", "frechet"]):
        of(*sets, *measures)
    assert len(list(cache.iterdir())) == 2


def test_names_times_folders_and_order_do_not_matter(sets: tuple[Path, Path], tmp_path: Path, reads: Reads) -> None:
    before = of(*sets, "frechet", "kid")
    moved = tmp_path / "moved"
    for number, path in enumerate(sorted(sets[1].iterdir())):
        (moved / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, moved / str(number % 2) / f"{9 - number}.png")
        os.utime(moved / str(number % 2) / f"{9 - number}.png", (number, number))
    decoded(reads, sets[1])
    assert values(of(sets[0], moved, "frechet", "kid")) == values(before)
    assert decoded(reads, moved) == 0
    match = Match(*(FilePictures(folder, ImageSpec()) for folder in sets), None, target_indices=range(7, -1, -1))
    assert values(measured([match], "frechet", "kid")[0]) == values(before)
    assert decoded(reads, sets[1]) == 0
    measured([replace(match, target_indices=range(1, 8))], "frechet", "kid")
    assert decoded(reads, sets[1]) == 7


def test_whose_features_are_kept_matters(sets: tuple[Path, Path], reads: Reads) -> None:
    """Two pictures that change names: the same pictures, the same names, but others are chosen of them."""
    kept = {"kept": 3}
    before = values(of(*sets, "kid", **kept))
    decoded(reads, sets[1])
    assert values(of(*sets, "kid", **kept)) == before and decoded(reads, sets[1]) == 0
    of(*sets, "kid", kept=4)
    assert decoded(reads, sets[1]) == 8
    names = [path.name for path in sorted(sets[1].iterdir())]
    for name, after in zip(names, names[4:] + names[:4], strict=True):
        (sets[1] / name).rename(sets[1] / f"{after}.new")
    for path in list(sets[1].iterdir()):
        path.rename(path.with_suffix(""))
    assert values(of(*sets, "kid", **kept)) != before
    assert decoded(reads, sets[1]) == 8


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_damaged_entry_is_measured_anew(
    damage: bytes | None, sets: tuple[Path, Path], cache: Path, reads: Reads
) -> None:
    before = of(*sets)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-9] if damage is None else damage)
    decoded(reads, sets[1])
    assert of(*sets) == before
    assert decoded(reads, sets[1]) == 8
    assert list(cache.iterdir()) == [entry] and entry.read_bytes() == whole


@pytest.mark.parametrize("file", [True, False])
def test_a_cache_that_cannot_be_written_does_no_harm(
    file: bool, sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of(*sets)
    blocked = tmp_path / "blocked"
    if file:  # where a folder should be
        blocked.write_text("")
    else:  # an entry cannot replace a folder
        (entry,) = (tmp_path / "cache" / "translate" / "statistics").iterdir()
        (blocked / "translate" / "statistics" / entry.name).mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert of(*sets) == before
    assert file or [path.name for path in (blocked / "translate" / "statistics").iterdir()] == [entry.name]


def test_sets_with_unreadable_pictures_are_not_kept(sets: tuple[Path, Path], cache: Path) -> None:
    """The next reader must hear of them too."""
    (sets[1] / "r3.png").write_bytes(b"no picture")
    for _ in range(2):
        (match,) = folders(*sets, ["frechet"]).matches
        _, failed = measured([match], "frechet")
        assert len(failed) == 1 and failed[0].startswith("r3: ") and "r3.png" in failed[0]
    assert not cache.exists()


def test_a_picture_that_goes_is_listed(sets: tuple[Path, Path], cache: Path) -> None:
    """No file to hash: as one that may not be read."""
    (match,) = folders(*sets, ["frechet"]).matches
    (sets[1] / "r3.png").unlink()
    evaluation, failed = measured([match], "frechet")
    assert len(failed) == 1 and "r3.png: there is no such file" in failed[0]
    rest = [pixels for name, pixels in tree(sets[1]).items() if name != "r3"]
    a = colours(list(tree(sets[0]).values()))
    assert values(evaluation)["frechet"] == pytest.approx(frechet(a, colours(rest)), rel=1e-4)
    assert not cache.exists()


def test_what_a_model_makes_is_not_remembered(sets: tuple[Path, Path], cache: Path) -> None:
    """A set that is no files has no key."""

    class Made(FilePictures):
        def files(self) -> None:  # type: ignore[override]
            return None

    match = Match(FilePictures(sets[0], ImageSpec()), Made(sets[1], ImageSpec()), None)
    assert values(measured([match], "frechet")[0]) == values(of(*sets))
    assert len(list(cache.iterdir())) == 1  # the second one's


def test_inception_s_features_of_a_set_are_kept(tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures, for each takes a tenth of a second, and KID, for the distance takes seconds."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(statistics_cache, "user_cache_folder", lambda: tmp_path / "cache")
    if store.find("inception") is None:
        pytest.skip("Inception's weights are not here: translate weights get inception")
    for number in range(2):
        write(tmp_path / "a" / f"{number}.png", smooth(number))
        write(tmp_path / "b" / f"{number}.png", noisy(smooth(number), number, 40))
    matches = folders(tmp_path / "a", tmp_path / "b", ["kid"]).matches
    first, _ = measured(matches, "kid", protocol=ProtocolSettings())
    reads.clear()
    again, _ = measured(matches, "kid", protocol=ProtocolSettings())
    assert again == first and values(again)["kid"] > 0.01 and decoded(reads, tmp_path / "b") == 0
    assert first.scores[0].protocol["features"] == "inception-2015-12-05"
    measured(matches, "kid", protocol=ProtocolSettings(resize="clean"))
    assert decoded(reads, tmp_path / "b") == 2
