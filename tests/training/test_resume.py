"""A run that is stopped or killed and resumed ends in the same bytes as one that never was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import ALL_ON, Listener, assert_same_runs, make_run, tiny, train, write_pairs

from translate import config as configs
from translate.devices import cpu_multiplies_bf16
from translate.errors import UserError
from translate.run import Run, load_weights
from translate.training.trainer import Trainer

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}

ACCUMULATED = {
    "method": {"generator": {"kind": "unet", "depth": 4, "width": 4, "norm": "batch"}},
    "training": {"batch_size": 1, "accumulation": 2},
    "deterministic": True,
}
VARIANTS: dict[str, tuple[dict[str, Any], list[int]]] = {
    # Step after which the run is stopped: within a stage, at the border (5), just beyond it, once for each resume.
    "everything": ({}, [2, 5, 6, 9]),
    "loading process": ({"data": {"workers": 1}}, [5, 7]),
    "accumulation": (ACCUMULATED, [4, 6]),
    "bf16": ({"training": {"precision": "bf16"}}, [5]),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 5, "val")
    return write_pairs(folder, 12)


def stop_after(step: int, number: int = signal.SIGINT) -> Callable[[Trainer], None]:
    """Make a trainer receive a signal when this step is done."""

    def arm(trainer: Trainer) -> None:
        plain = trainer.step

        def step_then_signal(batches: Any) -> None:
            plain(batches)
            if trainer.step_number == step:
                signal.raise_signal(number)

        trainer.step = step_then_signal

    return arm


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_run_ends_in_the_same_bytes(variant: str, root: Path, tmp_path: Path) -> None:
    change, stops = VARIANTS[variant]
    if variant == "bf16" and not cpu_multiplies_bf16():
        pytest.skip("this CPU has no bf16 units")
    config = tiny(root, ALL_ON, change)
    outcome, whole, _ = train(config, tmp_path / "whole")
    assert (outcome.reason, outcome.step, outcome.images) == ("finished", 11, 22)

    run = make_run(tmp_path / "stopped", config)
    for number, step in zip([signal.SIGINT, signal.SIGTERM] * 2, stops, strict=False):
        trainer = Trainer(config, Listener())
        stop_after(step, number)(trainer)
        outcome = trainer.train(run)
        assert (outcome.reason, outcome.step, outcome.images) == ("interrupted", step, 2 * step)
        assert run.checkpoint_folders()[0].name == f"step-{step:09d}"
    listener = Listener()
    outcome = Trainer(config, listener).train(run)
    assert outcome.reason == "finished"
    assert listener.messages[0] == f"resuming {run.path} at {2 * stops[-1]} of 22 images"
    assert_same_runs(whole, run)

    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    # Each 2 steps, validation each 3, and both where a stage ends (5).
    assert [row["step"] for row in rows] == [2, 3, 4, 5, 5, 6, 6, 8, 9, 10, 11, 11]
    assert [row["stage"] for row in rows if "stage" in row] == ["pixels"] * 3 + ["game"] * 4
    assert "discriminator/discriminator" not in rows[3] and "discriminator/discriminator" in rows[5]
    assert len(run.checkpoint_folders()) == config.checkpoints.keep

    before = {path: path.read_bytes() for path in run.path.glob("*.safetensors")}
    assert Trainer(config, Listener()).train(run).reason == "finished"  # once more: nothing is left to do
    assert before == {path: path.read_bytes() for path in run.path.glob("*.safetensors")}
    assert len(run.metrics_file.read_text().splitlines()) == len(rows)


def test_the_number_of_loading_processes_changes_no_bit(root: Path, tmp_path: Path) -> None:
    change = {"training": {"stages": [{"length": "3 steps", "optimiser": {"lr": 1e-3}}]}}
    alone, helped = (
        train(tiny(root, ALL_ON, change, {"data": {"workers": workers}}), tmp_path / str(workers))[1]
        for workers in (0, 1)
    )
    tensors = [load_weights(run.path / "last.safetensors").tensors for run in (alone, helped)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert alone.metrics_file.read_text() == helped.metrics_file.read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_ends_in_the_same_bytes(workers: int, root: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, and in the middle of writing a checkpoint: 24 times, and 6 with a loading process."""
    kills = 24 if workers == 0 else 6
    long = {
        "data": {"workers": workers},
        "training": {"stages": [{**stage, "length": "60 steps"} for stage in ALL_ON["training"]["stages"]]},
        "checkpoints": {"every": "1 steps"},
    }
    config = tiny(root, ALL_ON, long)
    _, whole, _ = train(config, tmp_path / "whole")
    run = make_run(tmp_path / "killed", config)
    command = [sys.executable, str(HERE / "kill_driver.py"), str(run.path), str(kills), "5"]
    driver = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert driver.returncode == 0, driver.stderr
    told = json.loads(driver.stdout)
    assert told["random"] + told["writing"] == kills
    assert told["writing"] >= kills // 2
    assert told["steps"] == sorted(told["steps"]) and len(set(told["steps"])) >= kills // 4  # it got on meanwhile
    assert_same_runs(whole, run)
    left_over = [p.name for p in [*run.path.iterdir(), *run.checkpoints.iterdir()] if p.name.startswith(".")]
    assert left_over == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_stops_cleanly_and_goes_on(number: signal.Signals, root: Path, tmp_path: Path) -> None:
    stage = {"length": "80 steps", "optimiser": {"lr": 1e-3}}
    config = tiny(root, {"training": {"stages": [stage]}, "logging": {"every": "1 steps"}})
    file = tmp_path / "config.yaml"
    file.write_text(configs.dump(config))
    translate = [sys.executable, "-m", "translate", "train"]
    command = [*translate, str(file), "--runs", str(tmp_path / "runs"), "--set", "name=stopped"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    run = Run(tmp_path / "runs" / "0001-stopped")
    give_up = time.monotonic() + 60
    while not (run.metrics_file.exists() and run.metrics_file.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < give_up, "no step was made"
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert f"continue with: translate train --resume {run.path}" in " ".join(said.split())
    reached = len(run.metrics_file.read_text().splitlines())
    assert 2 <= reached < 80
    assert run.checkpoint_folders()[0].name == f"step-{reached:09d}"

    resumed = subprocess.run([*translate, "--resume", str(run.path), "--json"], env=ENVIRONMENT, capture_output=True)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == {"run": str(run.path), "reason": "finished", "step": 80, "images": 160}
    _, whole, _ = train(run.load_config(), tmp_path / "whole")
    assert_same_runs(whole, run, names=("last",))


def test_a_signal_for_the_whole_group_reaches_the_loading_processes_too(root: Path, tmp_path: Path) -> None:
    """As `kill -- -GROUP`, SLURM and systemd send it: the workers must not die before the run has stopped."""
    stage = {"length": "4000 steps", "optimiser": {"lr": 1e-3}}
    config = tiny(root, {"training": {"stages": [stage]}, "data": {"workers": 2}})
    run = make_run(tmp_path / "run", config)
    command = [sys.executable, "-m", "translate", "train", "--resume", str(run.path)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    give_up = time.monotonic() + 60
    while not (run.metrics_file.exists() and run.metrics_file.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < give_up, "no step was made"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    reached = len(run.metrics_file.read_text().splitlines())
    assert run.checkpoint_folders()[0].name == f"step-{reached:09d}"


# ---- damaged checkpoints -----------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "model.safetensors").write_bytes(content)


def _cut(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit": _flip,
    "cut short": _cut,
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "foreign manifest": lambda path: (path / "manifest.json").write_text("[1]"),
    "manifest of nothing": lambda path: (path / "manifest.json").write_text("{}"),
    "manifest in no text": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"),
    "empty state": lambda path: (path / "trainer.pt").write_bytes(b""),
    "no weights": lambda path: (path / "model.safetensors").unlink(),
}


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = tiny(root, {"checkpoints": {"every": "2 steps"}})
    return train(config, tmp_path_factory.mktemp("finished"))[1]


def copied(run: Run, folder: Path) -> Run:
    return Run(Path(shutil.copytree(run.path, folder)))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: str, finished: Run, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    newest, before = run.checkpoint_folders()
    assert (newest.name, before.name) == ("step-000000006", "step-000000004")
    DAMAGES[damage](newest)
    listener = Listener()
    assert Trainer(run.load_config(), listener).train(run).reason == "finished"
    assert listener.messages[0].startswith(f"{newest}: damaged checkpoint (")
    assert listener.messages[0].endswith("falling back to the one before")
    assert "\n" not in listener.messages[0]
    assert listener.messages[1] == f"resuming {run.path} at 8 of 12 images"
    assert_same_runs(finished, run, names=("last",))


def test_where_every_checkpoint_is_damaged_the_run_says_so(finished: Run, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    for path, damage in zip(run.checkpoint_folders(), (_flip, _cut), strict=True):
        damage(path)
    with pytest.raises(
        UserError, match=r"every checkpoint is damaged; start anew with 'translate train .*config\.yaml'"
    ):
        Trainer(run.load_config(), Listener()).train(run)


def test_a_damaged_checkpoint_of_a_later_step_costs_no_new_one(finished: Run, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    newest, _ = run.checkpoint_folders()
    _flip(newest)
    raw = yaml.safe_load(run.config_file.read_text())
    raw["checkpoints"] = {"every": "1 steps", "keep": 1}
    trainer = Trainer(configs.validate(raw, "test"), Listener())
    stop_after(5)(trainer)
    assert trainer.train(run).step == 5
    assert [path.name for path in run.checkpoint_folders()] == ["step-000000005"]  # not the damaged one of step 6
    assert Trainer(run.load_config(), Listener()).train(run).reason == "finished"


def test_a_config_changed_by_hand_is_told_in_one_line(finished: Run, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    raw = yaml.safe_load(run.config_file.read_text())
    for path, value, expected in [
        (("training", "ema"), {"half_life": "10 images"}, "does not belong to the config"),
        (("method", "generator", "width"), 5, "is from another architecture"),
    ]:
        changed = json.loads(json.dumps(raw))
        group = changed
        for key in path[:-1]:
            group = group[key]
        group[path[-1]] = value
        with pytest.raises(UserError, match=expected) as raised:
            Trainer(configs.validate(changed, "test"), Listener()).train(run)
        assert "\n" not in str(raised.value)


def test_rows_that_a_power_cut_took_are_not_replaced_by_zero_bytes(finished: Run, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join(lines[:1]))
    assert Trainer(run.load_config(), Listener()).train(run).reason == "finished"
    assert run.metrics_file.read_text() == lines[0]


def test_a_signal_twice_stops_at_once(root: Path, tmp_path: Path) -> None:
    config = tiny(root)
    trainer = Trainer(config, Listener())
    plain = trainer.step

    def step_then_two_signals(batches: Any) -> None:
        plain(batches)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer.step = step_then_two_signals
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(make_run(tmp_path / "run", config))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
