"""`translate decode`"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from translate.cli.console import progress, say
from translate.errors import PartialFailure


class Format(str, Enum):
    png = "png"
    jpg = "jpg"
    webp = "webp"
    tiff = "tiff"
    bmp = "bmp"


def decode(
    weights: Annotated[
        Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="The run, or .safetensors file, that encoded the images.")
    ],
    tokens: Annotated[Path, typer.Argument(metavar="TOKENS", help="What 'translate encode' wrote.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the images.")],
    side: Annotated[
        str | None, typer.Option(metavar="A|B", help="Of a run with a tokenizer for each side, which one.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    format: Annotated[Format, typer.Option(help="File format of the images.")] = Format.png,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of JPEG and WebP.", show_default="JPEG 95, WebP lossless"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Decode again what is done already.")] = False,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse larger images.", show_default="250 million")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Decode just the first so many images.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON summary on standard output.")] = False,
) -> None:
    """Decode a file of tokens into images: the names, sizes and folders of those that were encoded.

    Finished files are skipped: the same command continues a stopped run. What cannot be decoded
    is listed at the end while the rest is done, and the exit code is 1.
    """
    from translate.data.images import DEFAULT_MAX_PIXELS
    from translate.inference.token_codec import TokenCodec
    from translate.inference.token_folder import decode as execute
    from translate.inference.token_folder import plan_decoding

    codec = TokenCodec.load(weights, side=side, device=device)
    plan = plan_decoding(codec, tokens, output, format=format.value, overwrite=overwrite, limit=limit)
    total = len(plan.destinations) + plan.skipped
    with progress("decoding", total=total, quiet=quiet or as_json) as advance:
        summary = execute(
            codec, plan, quality=quality, max_pixels=max_pixels or DEFAULT_MAX_PIXELS, on_progress=advance
        )
    done = summary.written + summary.skipped
    if as_json:
        print(json.dumps(summary.as_dict()))
    else:
        for name, reason in summary.failed:
            say(f"{name}: {reason}")
        for note in summary.notes:
            say(note, quiet=quiet)
    if summary.interrupted:
        say(f"stopped: {done} of {summary.total} images are done and whole; the same command does the rest")
        raise typer.Exit(130)
    if not as_json:
        skipped = f", {summary.skipped} were done before (--overwrite does them again)" if summary.skipped else ""
        rate = f" in {summary.seconds:.1f} s" if summary.written else ""
        say(f"{summary.written} images decoded into {output}{rate}{skipped}", quiet=quiet)
    if summary.failed:
        raise PartialFailure(f"{len(summary.failed)} of {summary.total} images failed; {done} are done in {output}")
