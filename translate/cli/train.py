"""`translate train`"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from translate.cli.console import say
from translate.errors import UserError

if TYPE_CHECKING:
    from translate.config import Config
    from translate.run import Run
    from translate.training.trainer import Outcome, Progress, Watcher

FREE_AFTER_START = (
    "data.root", "data.workers", "data.cache", "data.cache_folder", "logging.", "checkpoints.", "training.device",
)  # fmt: skip
"""Keys that `--resume` lets `--set` change: they do not change what is learnt."""


def train(
    config: Annotated[str | None, typer.Argument(help="A config file, or the name of a shipped one.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config; repeatable.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue a run folder; 'latest' is the last one in --runs.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where the numbered run folders are made.")] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything once, say what would be done.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end, nothing else.")] = False,
) -> None:
    """Train a model. Every setting is in the config; the run folder then holds all that conversion needs.

    Ctrl-C saves and stops; `translate train --resume RUN` goes on as if it had never stopped.
    """
    if (config is None) == (resume is None):
        raise UserError("give either a CONFIG to start a run or --resume RUN to continue one")
    from translate import config as configs
    from translate.run import Run

    quiet = quiet or as_json
    changes = overrides or []
    if resume is not None:
        old_run = Run.latest(runs) if resume == "latest" else Run.open(Path(resume))
        settings, make_run = _resumed_config(old_run, changes), lambda: old_run
    else:
        settings = configs.load(config or "", changes).resolved()
        make_run = lambda: new_run(runs, settings)  # noqa: E731  # one of two, chosen here
    if dry_run:
        from translate.training.trainer import plan

        lines = plan(settings)
        print(json.dumps({"plan": lines}) if as_json else "\n".join(lines))
        return
    run, outcome = start(settings, make_run, quiet=quiet)
    if as_json:
        print(
            json.dumps({"run": str(run.path), "reason": outcome.reason, "step": outcome.step, "images": outcome.images})
        )
    if outcome.reason == "interrupted":
        say(f"stopped; continue with: translate train --resume {run.path}", quiet=quiet)
        raise typer.Exit(130)
    from translate.evaluation.subjects import is_generative

    if is_generative(settings):
        use = f"make pictures with: translate sample {run.path} -n 64 --out OUT"
    else:
        use = f"convert with: translate convert {run.path} IN OUT"
    say(f"{outcome.reason} after {outcome.images:,} images; {use}", quiet=quiet)


def start(config: Config, make_run: Callable[[], Run], *, quiet: bool) -> tuple[Run, Outcome]:
    """Train in a run folder, shown as the terminal allows. Of several processes the leading one makes the folder."""
    from translate.devices import keep_freed_memory, resolve_device
    from translate.distributed import from_leader, processes
    from translate.run import Run
    from translate.training.trainer import Trainer

    keep_freed_memory()
    with processes(resolve_device(config.training.device)) as group, _watcher(quiet or not group.leads) as watcher:
        # The trainer first: a mistake that it finds must leave no empty run folder behind.
        trainer = Trainer(config, watcher, processes=group)
        run = Run(Path(from_leader(str(make_run().path) if group.leads else None) or ""))
        watcher.message(f"run folder {run.path}; watch it with: tensorboard --logdir {run.path.parent}")
        return run, trainer.train(run)


def new_run(runs: Path, config: Config) -> Run:
    """The next numbered run folder, with the config and where it came from."""
    from translate.config import dump
    from translate.run import Run

    return Run.create(runs, config.name, dump(config, comments=_origins()))


def _origins() -> list[str]:
    import platform

    import torch

    from translate import __version__ as version

    command = " ".join(sys.argv[1:])
    return [
        f"translate {version}, torch {torch.__version__}, Python {platform.python_version()}",
        f"translate {command}",
    ]


def _resumed_config(run: Run, changes: list[str]) -> Config:
    from translate import config as configs

    for item in changes:
        key = item.partition("=")[0].strip()
        if not any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE_AFTER_START):
            raise UserError(
                f"--set {item}: a resumed run keeps its config, so that it ends as if it had never stopped; "
                f"free to change: {', '.join(free + '*' if free.endswith('.') else free for free in FREE_AFTER_START)}"
            )
    raw = configs.apply_overrides(configs.read_yaml(run.config_file), changes)
    return configs.validate(raw, str(run.config_file), changes)


@contextmanager
def _watcher(quiet: bool) -> Iterator[Watcher]:
    if quiet:
        from translate.training.trainer import Silent

        yield Silent()
    elif sys.stderr.isatty():
        with _Bar() as bar:
            yield bar
    else:
        yield _Lines()


class _Lines:
    """Plain lines, at most one of progress in ten seconds, for log files."""

    def __init__(self) -> None:
        self.last = 0.0

    def progress(self, progress: Progress) -> None:
        if time.monotonic() - self.last < 10 and progress.images < progress.total:
            return
        self.last = time.monotonic()
        left = (progress.total - progress.images) / max(progress.images_per_second, 1e-9)
        say(
            f"{progress.images:,}/{progress.total:,} images  {progress.images_per_second:.1f}/s  "
            f"{_duration(left)} left  {_losses(progress)}"
        )

    def message(self, text: str) -> None:
        say(text)


class _Bar:
    """A Rich bar with images/s, the time left and the losses."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>4.1f}%  {task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}  {task.fields[losses]}"),
            console=Console(stderr=True),
        )
        self.task: Any = None

    def __enter__(self) -> _Bar:
        self.bar.start()
        self.task = self.bar.add_task("training", total=None, speed="", left="", losses="")
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def progress(self, progress: Progress) -> None:
        left = (progress.total - progress.images) / max(progress.images_per_second, 1e-9)
        self.bar.update(
            self.task,
            description=progress.stage,
            total=progress.total,
            completed=progress.images,
            speed=f"{progress.images_per_second:.1f} images/s",
            left=f"{_duration(left)} left",
            losses=_losses(progress),
        )

    def message(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _losses(progress: Progress) -> str:
    """`discriminator 0.71  generator adversarial 1.33  reconstruction 0.12`: each player named once."""
    words, before = [], ""
    for name, value in progress.losses.items():
        player, _, term = name.partition("/")
        shown = " ".join(dict.fromkeys(([] if player == before else [player]) + [term]))
        words.append(f"{shown} {value:.3f}")
        before = player
    return "  ".join(words)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
