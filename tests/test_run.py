"""The run folder, checkpoints and the weights file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from translate import config as configs
from translate import run as runs
from translate.config import Config
from translate.errors import UserError
from translate.run import FORMAT, METADATA_KEY, Run, build_for_inference, fill, find_weights, load_weights

torch.set_num_threads(1)


def small(*changes: str) -> Config:
    overrides = [
        "method.generator.depth=3",
        "method.generator.width=4",
        "method.discriminator.width=4",
        "data.augment.crop=32",
        *changes,
    ]
    return configs.load("pix2pix", overrides)


@pytest.fixture(scope="module")
def config() -> Config:
    return small()


@pytest.fixture
def run(config: Config, tmp_path: Path) -> Run:
    """A run with exported weights and two checkpoints."""
    run = Run.create(tmp_path, "x", configs.dump(config))
    torch.manual_seed(0)
    method = config.method.build(config.data)
    run.export("last", config, method.exported(), step=5, images=10)
    for step in (3, 5):
        run.save_checkpoint(step, {"a": torch.full((4,), float(step))}, {"images": 2 * step}, keep=2)
    return run


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- folders -----------------------------------------------------------------------------------------------------


def test_folders_are_numbered_on(tmp_path: Path) -> None:
    (tmp_path / "0041-other").mkdir()
    (tmp_path / "notes").mkdir()
    names = [Run.create(tmp_path, name, "a: 1\n").path.name for name in ("x", "x", "y")]
    assert names == ["0042-x", "0043-x", "0044-y"]
    assert (tmp_path / "0042-x" / "config.yaml").read_text() == "a: 1\n"
    assert [p.name for p in (tmp_path / "0042-x").iterdir()] == ["config.yaml"]


def test_folders_made_at_the_same_moment_are_apart(tmp_path: Path) -> None:
    paths: list[Path] = []
    start = threading.Barrier(8)

    def make(number: int) -> None:
        start.wait()
        paths.append(Run.create(tmp_path, "x", f"{number}\n").path)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in paths) == [f"{number:04d}-x" for number in range(1, 9)]
    assert sorted((path / "config.yaml").read_text() for path in paths) == [f"{number}\n" for number in range(8)]


def test_a_place_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make a run folder there .*; choose one with --runs") as error:
        Run.create(tmp_path / "file" / "runs", "x", "")
    one_line(error)


def test_latest_is_the_one_written_to_last(tmp_path: Path) -> None:
    first, second = (Run.create(tmp_path, "x", "") for _ in range(2))
    for age, run in ((100, second), (50, first)):
        os.utime(run.config_file, (1e9 - age, 1e9 - age))
    assert Run.latest(tmp_path).path == first.path
    (second.path / "metrics.jsonl").write_text("")
    assert Run.latest(tmp_path).path == second.path
    with pytest.raises(UserError, match="holds no run to resume"):
        Run.latest(tmp_path / "nothing")


def test_open_wants_a_run_folder(tmp_path: Path, run: Run, config: Config) -> None:
    assert Run.open(run.path).load_config() == config
    with pytest.raises(UserError, match="is no run folder"):
        Run.open(tmp_path)


# ---- checkpoints -------------------------------------------------------------------------------------------------


def test_the_last_checkpoints_are_kept(run: Run) -> None:
    run.save_checkpoint(9, {"a": torch.zeros(1)}, {}, keep=2)
    assert [path.name for path in run.checkpoint_folders()] == ["step-000000009", "step-000000005"]
    run.save_checkpoint(9, {"a": torch.ones(1)}, {"again": 1}, keep=1)
    found = run.load_checkpoint(warn=pytest.fail)
    assert found is not None and found.trainer == {"again": 1} and found.model["a"].item() == 1
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000000009"]
    assert sorted(path.name for path in found.path.iterdir()) == ["manifest.json", "model.safetensors", "trainer.pt"]


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert Run(tmp_path).load_checkpoint(warn=pytest.fail) is None


def test_a_state_that_would_run_code_is_never_unpickled(run: Run, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path(tmp_path / "ran").write_text, ("code ran",)

    newest = run.checkpoint_folders()[0]
    with (newest / "trainer.pt").open("wb") as stream:
        pickle.dump(Evil(), stream, protocol=2)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["trainer.pt"] = runs.sha256(newest / "trainer.pt")  # its author could write this too
    (newest / "manifest.json").write_text(json.dumps(manifest))
    warnings: list[str] = []
    found = run.load_checkpoint(warn=warnings.append)
    assert found is not None and found.path.name == "step-000000003"
    assert not (tmp_path / "ran").exists() and len(warnings) == 1
    assert "(trainer.pt holds more than plain data); falling back" in warnings[0] and "\n" not in warnings[0]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["save_file", "torch.save", "_flush_to_disk"])
def test_a_full_disk_leaves_earlier_checkpoints_whole(where: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Any = None, *_: Any, **__: Any) -> None:
        if isinstance(path, Path):
            path.write_bytes(b"as much as there was room for")
        if where == "torch.save":
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        raise FULL

    target: Any = torch if where == "torch.save" else runs
    monkeypatch.setattr(target, where.rpartition(".")[2], full)
    with pytest.raises(UserError, match=r"the checkpoint cannot be written .*; earlier ones are whole") as error:
        run.save_checkpoint(7, {"a": torch.zeros(4)}, {}, keep=1)
    assert f"'translate train --resume {run.path}'" in one_line(error)
    monkeypatch.undo()
    assert [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".")] == []
    found = run.load_checkpoint(warn=pytest.fail)
    assert found is not None and found.trainer == {"images": 10} and len(run.checkpoint_folders()) == 2


def test_a_full_disk_leaves_the_old_weights_whole(run: Run, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run.path / "last.safetensors").read_bytes()

    def full(tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(before[:100])
        raise FULL

    monkeypatch.setattr(runs, "save_file", full)
    with pytest.raises(UserError, match=r"cannot be written .*; make room, then 'translate train --resume") as error:
        run.export("last", config, nn.ModuleDict(), step=6, images=12)
    one_line(error)
    assert (run.path / "last.safetensors").read_bytes() == before
    assert [path.name for path in run.path.iterdir() if path.name.startswith(".")] == []


# ---- weights files -----------------------------------------------------------------------------------------------


def test_a_weights_file_carries_its_config(run: Run, config: Config) -> None:
    weights = load_weights(run.path / "last.safetensors")
    assert (weights.config, weights.step, weights.images) == (config, 5, 10)
    assert all(name.startswith("generator.") for name in weights.tensors)
    method = build_for_inference(weights)
    assert not method.training
    for name, tensor in method.exported().state_dict().items():
        assert torch.equal(tensor, weights.tensors[name])


def test_a_folder_means_its_best_weights_else_its_last(run: Run, tmp_path: Path) -> None:
    assert find_weights(run.path).name == "last.safetensors"
    (run.path / "best.safetensors").write_bytes(b"")
    assert find_weights(run.path).name == "best.safetensors"


def rewritten(path: Path, change: Callable[[dict[str, Any]], None] | None) -> None:
    """The file with changed metadata, or with none."""
    tensors = load_file(path)
    if change is None:
        save_file(tensors, path)
        return
    with safe_open(path, framework="pt") as opened:
        metadata = json.loads(opened.metadata()[METADATA_KEY])
    change(metadata)
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(metadata)})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _old_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1, 2]}, protocol=2))


def _drop(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(tensors.items())[1:])


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (_cut, "is cut short or no safetensors file"),
    "cut in the header": (_cut_in_header, "is cut short or no safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "is cut short or no safetensors file"),
    "text": (lambda path: path.write_text("hello, I am no weights file"), "is cut short or no safetensors file"),
    "torch.save": (lambda path: torch.save({"a": torch.zeros(1)}, path), "is a pickle (.pt/.pth), which can run code"),
    "old pickle": (_old_pickle, "is a pickle (.pt/.pth), which can run code"),
    "foreign": (lambda path: rewritten(path, None), "holds no config; expected weights that 'translate train' wrote"),
    "newer": (lambda path: rewritten(path, lambda m: m.update(format=FORMAT + 1)), "was written by a newer translate"),
    "no step": (lambda path: rewritten(path, lambda m: m.pop("step") and None), "its metadata is damaged"),
    "odd format": (lambda path: rewritten(path, lambda m: m.update(format="x")), "its metadata is damaged"),
    "no config": (lambda path: rewritten(path, lambda m: m.update(config={})), "'method' is missing"),
    "gone": (lambda path: path.unlink(), "no such file or folder"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_no_weights_file_is_told_by_its_name(kind: str, run: Run) -> None:
    path = run.path / "last.safetensors"
    spoil, expected = WRONG[kind]
    spoil(path)
    with pytest.raises(UserError) as error:
        load_weights(path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(str(path)) and expected in lines[0]
    assert len(lines) == (1 if kind != "no config" else len(lines))  # one line a key that is missing


def test_a_folder_without_weights(tmp_path: Path, config: Config) -> None:
    with pytest.raises(UserError, match="is no run folder; expected one such as runs/0001-name"):
        load_weights(tmp_path)
    run = Run.create(tmp_path, "x", configs.dump(config))
    with pytest.raises(UserError, match="this run has no weights yet; continue it with 'translate train --resume"):
        load_weights(run.path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("method.generator.width=5", "'generator.downs.0.0.weight' has shape (4, 3, 4, 4), the config asks for (5, 3"),
        ("method.generator.depth=4", "it lacks 'generator.downs."),
        ("method.generator.depth=2", "'generator.ups.0.1.weight' has shape (16, 8, 4, 4), the config asks for (8, 4"),
        ("method.generator={kind: resnet, width: 4, blocks: 0}", "it lacks 'generator.layers.0.weight'"),
    ],
)
def test_weights_of_another_architecture_name_the_tensor(change: str, said: str, run: Run) -> None:
    weights = load_weights(run.path)
    with pytest.raises(UserError) as error:
        build_for_inference(weights._replace(config=small(change)))
    text = one_line(error)
    assert text.startswith(f"{weights.path}: is from another architecture: ") and said in text


def test_fill_is_exact_about_names() -> None:
    module = nn.Linear(2, 2)
    state = module.state_dict()
    with pytest.raises(UserError, match="the config has no place for its 'more'"):
        fill(module, {**state, "more": torch.zeros(1)}, "file")
    with pytest.raises(UserError, match="it lacks 'weight'"):
        fill(module, _drop(state), "file")


def test_an_exception_while_writing_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of")
        raise ValueError

    with pytest.raises(ValueError):
        runs.write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_text() == "before"
    runs.write_atomically(path, lambda temporary: temporary.write_text("after"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_text() == "after"


def test_the_checksum_is_sha256_on_any_python(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one block of the reader
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert runs.sha256(tmp_path / "file") == expected
