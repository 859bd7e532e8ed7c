"""The run folder, its checkpoints and the weights file: all that training writes and inference reads.

runs/0001-<name>/
  config.yaml                    the whole resolved config
  checkpoints/step-000012000/    model.safetensors, trainer.pt, manifest.json (sha256 of both, written last)
  best.safetensors  last.safetensors
  metrics.jsonl  samples/  events.out.tfevents.*
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import translate
from translate.errors import UserError

if TYPE_CHECKING:
    from translate.config import Config
    from translate.methods import Method

FORMAT = 1
"""Version of the weights file's metadata; a reader refuses newer ones by name."""
METADATA_KEY = "translate"
_CHECKPOINT_FILES = ("model.safetensors", "trainer.pt")
_STEP = re.compile(r"^step-(\d+)$")


class Weights(NamedTuple):
    """What a weights file holds."""

    config: Config
    tensors: dict[str, Tensor]
    step: int
    images: int
    path: Path
    direction: str | None = None
    """The one direction that the file has, where that is not all of its method's."""


class Checkpoint(NamedTuple):
    """A whole training state, verified against its manifest."""

    model: dict[str, Tensor]
    trainer: dict[str, Any]
    path: Path


class Run:
    """One run folder. Making the object touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"

    @staticmethod
    def create(parent: Path, name: str, config_text: str) -> Run:
        """Make the next numbered folder below `parent`, safe against others who do the same at this moment."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            taken = [int(match[1]) for p in parent.iterdir() if (match := re.match(r"^(\d{4,})-", p.name))]
            number = max(taken, default=0) + 1
            while True:
                try:
                    (parent / f"{number:04d}-{name}").mkdir()
                    break
                except FileExistsError:
                    number += 1
            run = Run(parent / f"{number:04d}-{name}")
            write_atomically(run.config_file, lambda path: path.write_text(config_text, encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"{parent}: cannot make a run folder there ({error.strerror}); choose one with --runs"
            ) from error
        return run

    @staticmethod
    def open(path: Path) -> Run:
        """An existing run folder; UserError otherwise."""
        run = Run(path)
        if not run.config_file.is_file():
            raise UserError(f"{path}: is no run folder (it has no config.yaml); expected one such as runs/0001-name")
        return run

    @staticmethod
    def latest(parent: Path) -> Run:
        """The run below `parent` that was written to last."""
        runs = [p.parent for p in parent.glob("*/config.yaml")]
        if not runs:
            raise UserError(f"{parent}: holds no run to resume; start one with 'translate train CONFIG'")
        return Run(max(runs, key=lambda p: max(f.stat().st_mtime for f in p.iterdir())))

    def load_config(self) -> Config:
        from translate import config

        return config.validate(config.read_yaml(self.config_file), str(self.config_file))

    def save_checkpoint(self, step: int, model: Mapping[str, Tensor], trainer: Mapping[str, Any], keep: int) -> Path:
        """Write a checkpoint to a temporary name, make it durable, rename it, then drop all but the last `keep`.

        Those of later steps go as well: the run fell back behind them because they are damaged.
        """
        final = self.checkpoints / f"step-{step:09d}"
        temporary = self.checkpoints / ".unfinished"  # one name, so that what a killed run left goes with the next
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file(_plain(model), temporary / "model.safetensors")
            torch.save(dict(trainer), temporary / "trainer.pt")
            manifest = {name: sha256(temporary / name) for name in _CHECKPOINT_FILES}
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
            for path in temporary.iterdir():
                _flush_to_disk(path)
            shutil.rmtree(final, ignore_errors=True)
            temporary.replace(final)
            _flush_to_disk(self.checkpoints)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"{final}: the checkpoint cannot be written ({getattr(error, 'strerror', None) or error}); earlier "
                f"ones are whole: make room, then 'translate train --resume {self.path}'"
            ) from error
        folders = self.checkpoint_folders()
        newest = folders.index(final)
        for stale in [*folders[:newest], *folders[newest + keep :]]:
            shutil.rmtree(stale, ignore_errors=True)
        return final

    def checkpoint_folders(self) -> list[Path]:
        """Finished checkpoints, newest first."""
        if not self.checkpoints.is_dir():
            return []
        found = [(int(match[1]), p) for p in self.checkpoints.iterdir() if (match := _STEP.match(p.name))]
        return [path for _, path in sorted(found, reverse=True)]

    def load_checkpoint(self, warn: Callable[[str], None], device: torch.device | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole; `warn` hears of each damaged one passed over. None if there is none.

        Raises UserError where there are checkpoints but every one is damaged.
        """
        folders = self.checkpoint_folders()
        for path in folders:
            try:
                manifest = json.loads((path / "manifest.json").read_text())
                for name in _CHECKPOINT_FILES:
                    if not isinstance(manifest, dict) or manifest.get(name) != sha256(path / name):
                        raise ValueError(f"{name} does not match its checksum")
                model = load_file(path / "model.safetensors", device=str(device or "cpu"))
                trainer = torch.load(path / "trainer.pt", map_location="cpu", weights_only=True)
                return Checkpoint(model, trainer, path)
            except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
                # Torch's own text would advise to read the pickle after all.
                foreign = isinstance(error, pickle.UnpicklingError)
                reason = "trainer.pt holds more than plain data" if foreign else str(error).partition("\n")[0]
                warn(f"{path}: damaged checkpoint ({reason}); falling back to the one before")
        if folders:
            raise UserError(
                f"{self.checkpoints}: every checkpoint is damaged; start anew with 'translate train {self.config_file}'"
            )
        return None

    def export(self, name: str, config: Config, networks: nn.ModuleDict, step: int, images: int) -> Path:
        """Write `best`, `last` or `stage-NAME`.safetensors: the exported networks with the config inside."""
        path = self.path / f"{name}.safetensors"
        try:
            write_weights(path, config, networks, step, images)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: cannot be written ({error}); make room, then 'translate train --resume {self.path}'"
            ) from error
        return path


def write_weights(
    path: Path, config: Config, networks: nn.ModuleDict, step: int, images: int, direction: str | None = None
) -> None:
    """Write a weights file, whole or not at all; `direction` says that these networks are of this one alone.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "step": step,
        "images": images,
        "version": translate.__version__,
        **({} if direction is None else {"direction": direction}),
    }
    tensors = _plain(networks.state_dict())
    write_atomically(path, lambda p: save_file(tensors, p, metadata={METADATA_KEY: json.dumps(metadata)}))


def find_weights(path: Path) -> Path:
    """The weights file itself, or a run folder's best (else last) one; UserError otherwise."""
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        if (path / "config.yaml").is_file():
            raise UserError(f"{path}: this run has no weights yet; continue it with 'translate train --resume {path}'")
        raise UserError(f"{path}: is no run folder; expected one such as runs/0001-name, or a .safetensors file")
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected a run folder or a .safetensors file")
    return path


def load_weights(path: Path) -> Weights:
    """Read a weights file, or a run folder's best (else last) one, never by pickle; UserError for anything else."""
    from translate import config as configs

    file = find_weights(path)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = (opened.metadata() or {}).get(METADATA_KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        # Asked last: the length that a safetensors file begins with may look like the first byte of a pickle.
        with file.open("rb") as stream:
            head = stream.read(2)
        if head == b"PK" or head[:1] == b"\x80":
            raise UserError(
                f"{file}: is a pickle (.pt/.pth), which can run code when read; expected the .safetensors file of a run"
            ) from error
        raise UserError(f"{file}: is cut short or no safetensors file ({error}); copy or export it again") from error
    if metadata is None:
        raise UserError(
            f"{file}: holds no config; expected weights that 'translate train' wrote (best or last.safetensors)"
        )
    try:
        content = json.loads(metadata)
        version, raw = int(content["format"]), content["config"]
        step, images = int(content["step"]), int(content["images"])
        direction = content.get("direction")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: its metadata is damaged ({error}); export it again") from error
    if version > FORMAT:
        raise UserError(f"{file}: was written by a newer translate ({content.get('version')}); update this one")
    return Weights(configs.validate(raw, str(file)), tensors, step, images, file, direction)


def stages_of(path: Path) -> tuple[Weights, Weights]:
    """What a run's first stage ended with, and its last weights; UserError where it has no such two."""
    if not path.is_dir():
        raise UserError(
            f"{path}: is no run folder, so it has not the weights of two stages; give the run, or no --alpha"
        )
    last = path / "last.safetensors"
    second = load_weights(last if last.is_file() else path)
    stages = second.config.training.stages
    first = path / f"stage-{stages[0].name}.safetensors"
    if len(stages) < 2:
        raise UserError(f"{path}: was trained in one stage, so there is nothing to choose between; leave out --alpha")
    if not first.is_file():
        raise UserError(
            f"{path}: has no {first.name} yet, which it writes at the end of its first stage; train it on with "
            f"'translate train --resume {path}', or leave out --alpha"
        )
    return load_weights(first), second


def interpolated(first: Weights, second: Weights, share: float) -> Weights:
    """(1 - share) first + share second, tensor by tensor (ESRGAN, Wang et al., arXiv 1809.00219, equation 4).

    In float64, the tensors' types stay. What is no float, such as batch norm's count, is the second's.

    Raises:
        UserError: their tensors differ in name or shape.
    """
    for name in [*second.tensors, *first.tensors]:
        shapes = [tuple(one.tensors[name].shape) if name in one.tensors else "missing" for one in (first, second)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{first.path} and {second.path} are of different networks: '{name}' is {shapes[0]} and {shapes[1]}"
            )

    def between(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return ((1 - share) * first.tensors[name].double() + share * tensor.double()).to(tensor.dtype)

    return second._replace(tensors={name: between(name, tensor) for name, tensor in second.tensors.items()})


def build_for_inference(weights: Weights) -> Method:
    """The method with its exported networks filled and in eval mode; nothing that only training needs is allocated.

    Raises UserError where the weights do not belong to the architecture that their config names.
    """
    with torch.device("meta"):
        method = weights.config.method.build(weights.config.data, inference=True)
    if weights.direction is not None:
        if weights.direction not in method.directions:
            raise UserError(f"{weights.path}: its direction {weights.direction!r} is none of its method's")
        method.directions = (weights.direction,)
    fill(held(weights, method), weights.tensors, str(weights.path), assign=True)
    return method.eval()


def held(weights: Weights, method: Method) -> nn.ModuleDict:
    """The networks of the method that the file has: all that a run exports, or those of its one direction."""
    return method.exported() if weights.direction is None else method.exported_for(weights.direction)


def fill(module: nn.Module, tensors: Mapping[str, Any], source: str, *, assign: bool = False) -> None:
    """Load weights by name, and what a module's `get_extra_state` gave; UserError names the first that does not fit."""
    expected = module.state_dict()
    for name in [*expected, *tensors]:
        if name not in tensors:
            raise UserError(f"{source}: is from another architecture: it lacks '{name}', which the config asks for")
        if name not in expected:
            raise UserError(f"{source}: is from another architecture: the config has no place for its '{name}'")
        if isinstance(expected[name], Tensor) and expected[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the config asks for {tuple(expected[name].shape)}"
            raise UserError(f"{source}: is from another architecture: '{name}' has shape {shapes}")
    module.load_state_dict(dict(tensors), assign=assign)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def sha256(path: Path) -> str:
    """The SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:  # Python 3.10 has no hashlib.file_digest
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    """A rename is only safe against a power cut once what it names is on the disk."""
    if os.name == "nt":  # Windows opens no folder, and flushes nothing that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file of this name elsewhere, and put it in place when it is whole and on the disk."""
    # In a folder: safetensors first writes to a name of its own beside the file, which a killed run would leave there.
    folder = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        write(folder / path.name)
        _flush_to_disk(folder / path.name)
        (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
