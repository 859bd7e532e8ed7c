"""How commands speak: bars where a person looks at a terminal, plain lines elsewhere, silence where asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(text: str, *, quiet: bool = False) -> None:
    """One line for the person, on standard error: standard output is for results."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(description: str, *, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done; call the yielded function with the count done so far (from any thread)."""
    if quiet or total <= 0:
        yield lambda done: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total)
            yield lambda done: bar.update(task, completed=done)
    else:
        shown = time.monotonic()
        say(f"{description}: {total}")

        def advance(done: int) -> None:
            nonlocal shown
            if done >= total or time.monotonic() - shown >= 10:  # a log file wants few lines
                shown = time.monotonic()
                say(f"{description}: {done}/{total}")

        yield advance
