"""`translate report`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several stand side by side.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="The page.", show_default="report.html in the run, or beside several"),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
) -> None:
    """Write one HTML page about runs: measures, curves, previews, best and worst images, configs.

    The page holds all that it shows: it can be sent to somebody as it is.
    """
    from translate.evaluation.report import default_page, write_run_report
    from translate.evaluation.text import readable

    page = write_run_report(runs, out or default_page(runs))
    print(readable(page))
    if open_page:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            typer.echo("no browser to open it in", err=True)
