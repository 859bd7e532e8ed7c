"""Runs a training in children that it kills, again and again, until one comes to the end. A program: see test_resume.

    python kill_driver.py RUN KILLS SEED

Torch is imported once, then each attempt is a fork, so that twenty kills cost seconds. Every second attempt is killed
at a random moment, the others while a checkpoint is being written. Prints {"random": n, "writing": n, "steps": [...]}.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from tiny import Listener

from translate.run import Run
from translate.training.trainer import Trainer


def start(run: Run) -> int:
    """The process number of a child that trains."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        Trainer(run.load_config(), Listener()).train(run)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(child: int) -> bool:
    """Whether the child came to its end by itself; a child that failed ends this program."""
    found, status = os.waitpid(child, os.WNOHANG)
    if found and status:
        sys.exit(f"the run failed: status {status}")
    return bool(found)


def writes(run: Run, since: float) -> bool:
    """Whether a checkpoint is being written, and not just left over by a killed child."""
    try:
        return (run.checkpoints / ".unfinished").stat().st_mtime > since
    except FileNotFoundError:
        return False


def wait(child: int, run: Run, *, writing: bool, since: float) -> bool:
    """Until a checkpoint is, or is no longer, being written; False if the child comes to its end before."""
    while writes(run, since) != writing:
        if ended(child):
            return False
        time.sleep(0.0005)
    return True


def alive_until(child: int, moment: float) -> bool:
    while time.time() < moment:
        if ended(child):
            return False
        time.sleep(0.0005)
    return True


def main() -> None:
    import albumentations  # noqa: F401  # once here, not in each child

    run, wanted, chance = Run(Path(sys.argv[1])), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    kills, steps = {"random": 0, "writing": 0}, []
    kind, first_write, begun = "writing", 1.0, time.time()
    child = start(run)
    while True:
        if sum(kills.values()) >= wanted:
            while not ended(child):
                time.sleep(0.005)
            break
        if kind == "random":
            # Before, in and shortly after the first step, so that the run gets on but not to its end.
            alive = alive_until(child, begun + chance.uniform(0, 1.2 * first_write))
        else:
            # The first checkpoint may be finished, so that the run gets on; the child dies in the second one.
            alive = wait(child, run, writing=True, since=begun)
            first_write = time.time() - begun  # measured, since machines differ
            alive = alive and wait(child, run, writing=False, since=begun)
            alive = alive and wait(child, run, writing=True, since=time.time())
            time.sleep(chance.uniform(0, 0.01))
        if not alive:
            break
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:  # it came to its end in this very moment
            break
        kills[kind] += 1
        folders = run.checkpoint_folders()
        steps.append(int(folders[0].name.removeprefix("step-")) if folders else 0)
        kind = "random" if kind == "writing" else "writing"
        begun = time.time()
        child = start(run)
    print(json.dumps({**kills, "steps": steps}))


if __name__ == "__main__":
    main()
