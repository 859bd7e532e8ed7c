"""Two processes with one image each are one process with two: torchrun over gloo."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from tiny import Listener, tiny, train, write_pairs

from translate import config as configs
from translate import distributed
from translate.distributed import ALONE, average, barrier, from_leader, processes
from translate.run import Run
from translate.training.trainer import Trainer

REPOSITORY = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN = [*TORCHRUN, "-m", "translate", "train"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}

CHANGES: dict[str, Any] = {
    "training": {
        "batch_size": 1,
        "ema": {"half_life": "8 images"},
        # SGD: Adam would blow up the rounding of sums in another order wherever a gradient is near zero.
        "stages": [{"length": "6 steps", "optimiser": {"kind": "SGD", "lr": 1e-3, "momentum": 0.9}, "clip": 5.0}],
    },
    "data": {"validation": "val"},
    "validation": {"every": "2 steps"},
    "logging": {"every": "2 steps"},
    "checkpoints": {"every": "3 steps"},
}


def test_two_processes_are_one_with_twice_the_batch_and_resume(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 3, "val")
    root = write_pairs(tmp_path / "pairs", 8)
    _, alone, _ = train(tiny(root, CHANGES, {"training": {"batch_size": 2}}), tmp_path / "alone")

    file = tmp_path / "config.yaml"
    file.write_text(configs.dump(tiny(root, CHANGES)))
    started = subprocess.run(
        [*TRAIN, str(file), "--runs", "runs"], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True
    )
    assert started.returncode == 0, started.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["0001-tiny"]
    assert started.stderr.count("run folder") == 1  # one of them speaks
    run = Run(tmp_path / "runs" / "0001-tiny")
    compare(alone, run)
    assert len(run.checkpoint_folders()) == 2

    # Half the run again: the newest checkpoint is taken away, as if both had been killed before it.
    shutil.rmtree(run.checkpoint_folders()[0])
    rows, model = run.metrics_file.read_bytes(), (run.path / "last.safetensors").read_bytes()
    two_forks(_resume, tmp_path, run)
    assert (tmp_path / "heard.json").read_text() == json.dumps([f"resuming {run.path} at 6 of 12 images"])
    assert run.metrics_file.read_bytes() == rows
    assert (run.path / "last.safetensors").read_bytes() == model


def two_forks(function: Callable[..., None], *arguments: object) -> None:
    """Call `function(rank, *arguments)` in two forks of this process, which need not import torch again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_as_one_of_two, (port, function, arguments), nprocs=2, start_method="fork")


def _as_one_of_two(rank: int, port: int, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    function(rank, *arguments)


def _resume(rank: int, folder: Path, run: Run) -> None:
    listener = Listener()
    with processes(torch.device("cpu")) as group:
        Trainer(run.load_config(), listener, processes=group).train(run)
    if rank == 0:
        (folder / "heard.json").write_text(json.dumps(listener.messages[:1]))


def compare(alone: Run, together: Run) -> None:
    """Weights to 1e-5, the rows (which average over the processes) to 1e-4."""
    models = [run.load_checkpoint(warn=pytest.fail) for run in (alone, together)]
    assert models[0] is not None and models[1] is not None
    assert list(models[0].model) == list(models[1].model)
    for name, tensor in models[0].model.items():
        torch.testing.assert_close(tensor, models[1].model[name], rtol=0, atol=1e-5)
    one, two = ([json.loads(line) for line in run.metrics_file.read_text().splitlines()] for run in (alone, together))
    assert [list(row) for row in one] == [list(row) for row in two]
    for before, after in zip(one, two, strict=True):
        for key, value in before.items():
            assert after[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes(torch.device("cpu")) as group:
        assert group is ALONE and group.leads
        tensor = torch.ones(2)
        average([tensor])
        barrier()
        assert tensor.tolist() == [1, 1]
        assert from_leader("x") == "x" and distributed.any_of(True) and not distributed.any_of(False)


def _exchange(rank: int, folder: Path) -> None:
    with processes(torch.device("cpu")) as group:
        tensors = [torch.full((2, 2), float(rank)), torch.tensor([1.0 + rank], dtype=torch.float64), torch.zeros(0)]
        average(tensors)
        found = {
            "group": list(group),
            "mean": [tensor.tolist() for tensor in tensors],
            "any": [distributed.any_of(rank == 1), distributed.any_of(False)],
            "leader": from_leader(f"from {rank}"),
        }
        barrier()
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_what_is_exchanged(tmp_path: Path) -> None:
    two_forks(_exchange, tmp_path)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {
            "group": [rank, 2],
            "mean": [[[0.5, 0.5], [0.5, 0.5]], [1.5], []],
            "any": [True, False],
            "leader": "from 0",
        }
