"""The command `translate`. Importing it loads neither torch nor the settings models: --help must be quick."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import translate
from translate.cli import (
    compare,
    config,
    convert,
    data,
    decode,
    demo,
    encode,
    evaluate,
    export,
    importing,
    info,
    report,
    sample,
    train,
    weights,
)
from translate.errors import UserError

app = typer.Typer(
    name="translate",
    help="Train image-to-image translation on pairs or folders, convert whole folders, watch it in TensorBoard.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("import")(importing.import_weights)
app.command("sample")(sample.sample)
app.command("encode")(encode.encode)
app.command("decode")(decode.decode)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
app.add_typer(weights.app, name="weights")
app.command("info")(info.info)
app.command("demo")(demo.demo)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"translate {translate.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train image-to-image translation on pairs or folders, convert whole folders, watch it in TensorBoard."""


def main() -> None:
    """Run the command line: a user's mistake is printed as its line, with its exit code; Ctrl-C is 130."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone (`translate ... | head`): silence Python's own complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
