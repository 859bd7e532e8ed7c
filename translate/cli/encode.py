"""`translate encode`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from translate.cli.console import progress, say
from translate.errors import PartialFailure


def encode(
    weights: Annotated[
        Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="A run that has a tokenizer, or its .safetensors file.")
    ],
    inputs: Annotated[str, typer.Argument(metavar="IN", help="A file, a folder (with all below it) or a glob.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The token file, such as tokens.safetensors.")],
    side: Annotated[
        str | None, typer.Option(metavar="A|B", help="Of a run with a tokenizer for each side, which one.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, where OUT would be added to otherwise.")
    ] = False,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse larger images.", show_default="250 million")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Encode just the first so many files.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON summary on standard output.")] = False,
) -> None:
    """Encode images into one file of tokens, and say how many bits a pixel takes so.

    Images are named by their relative paths without suffix. Those that OUT has already are skipped.
    Bad files are listed at the end while the rest is done, and the exit code is 1.
    """
    from translate.data.images import DEFAULT_MAX_PIXELS
    from translate.inference.token_codec import TokenCodec
    from translate.inference.token_folder import encode as execute
    from translate.inference.token_folder import plan_encoding

    codec = TokenCodec.load(weights, side=side, device=device)
    plan = plan_encoding(codec, inputs, output, overwrite=overwrite, limit=limit)
    with progress("encoding", total=len(plan.todo) + plan.skipped, quiet=quiet or as_json) as advance:
        summary = execute(codec, plan, max_pixels=max_pixels or DEFAULT_MAX_PIXELS, on_progress=advance)
    if as_json:
        print(json.dumps(summary.as_dict()))
    else:
        for path, reason in summary.failed:
            say(f"{path}: {reason}")
        for note in summary.notes:
            say(note, quiet=quiet)
    if summary.interrupted:
        done = summary.written + summary.skipped
        say(f"stopped: {done} of {summary.total} images are in {output}; the same command adds the rest")
        raise typer.Exit(130)
    if summary.compression and not as_json and not quiet:
        rate = f" in {summary.seconds:.1f} s" if summary.written else ""
        skipped = f", {summary.skipped} were there before (--overwrite encodes them again)" if summary.skipped else ""
        say(f"{summary.written} images encoded into {output}{rate}{skipped}")
        for line in summary.compression.lines():
            print(line)
    if summary.failed:
        kept = summary.compression.images if summary.compression else 0
        where = f"{kept} are in {output}" if kept else "nothing was written"
        raise PartialFailure(f"{len(summary.failed)} of {summary.total} images failed; {where}")
