"""`translate convert`"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from translate.cli.console import progress, say
from translate.errors import PartialFailure, UserError

if TYPE_CHECKING:
    from translate.inference.folder import Summary
    from translate.inference.translator import OverlapName, TileName


class Precision(str, Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Protocol(str, Enum):
    default = "default"
    paper = "paper"


class Format(str, Enum):
    keep = "keep"
    png = "png"
    jpg = "jpg"
    webp = "webp"
    tiff = "tiff"
    bmp = "bmp"


# What `convert` and `sample` ask alike of models that draw tokens; None leaves the model's own setting.
TopK = Annotated[
    int | None, typer.Option(min=1, help="Draw from the so many most probable tokens.", show_default="its own")
]
TopP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Draw from the fewest tokens of this probability.", show_default="its own"),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Of masked decoding; 8 to 16.", show_default="its own")]
ChoiceTemperature = Annotated[
    float | None,
    typer.Option(min=0, help="Of masked decoding: how freely tokens are kept.", show_default="its own"),
]


def convert(
    weights: Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="A run folder or a .safetensors file.")],
    inputs: Annotated[str, typer.Argument(metavar="IN", help="A file, a folder (with all below it) or a glob.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the results (or a file, if IN is one).")],
    direction: Annotated[str | None, typer.Option(help="AtoB or BtoA; the model's own by default.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step on a GPU.", show_default="by their size")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of the network.")] = Precision.auto,
    protocol: Annotated[
        Protocol, typer.Option(help="paper: dropout on, batch statistics (pix2pix's test protocol).")
    ] = Protocol.default,
    tile: Annotated[
        str,
        typer.Option(
            metavar="auto|off|PIXELS",
            help="Run large images in tiles of this side, without seams; auto: results above 4 megapixels (GPU: 16).",
        ),
    ] = "auto",
    overlap: Annotated[
        str,
        typer.Option(
            metavar="auto|exact|PIXELS",
            help="How far tiles see; exact: as far as the network; auto: exact where that is cheap.",
        ),
    ] = "auto",
    outscale: Annotated[
        float | None,
        typer.Option(
            min=0, help="Results of so many times the input's size.", show_default="as the network makes them"
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Of a run of two stages: 0 the first, 1 the last, weights between.",
            show_default="the best weights",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(min=1, help="Of a model that draws (token-translation): so many different results of each image."),
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of what it draws; what is done already keeps the seed it had.", show_default="0"),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of its draws; 0: the most probable tokens.", show_default="its own")
    ] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    steps: Steps = None,
    choice_temperature: ChoiceTemperature = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also x.uncertainty.png: white where its tokens were in doubt.")
    ] = False,
    format: Annotated[Format, typer.Option(help="File format of the results.")] = Format.keep,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of JPEG and WebP.", show_default="JPEG 95, WebP lossless"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Convert again what is done already.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write OUT/index.html with all pictures.")] = False,
    target: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What the results should be: compared in the report.")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Refuse larger images.", show_default="250 million")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Convert just the first so many files.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON summary on standard output.")] = False,
) -> None:
    """Convert images with a trained model: same names, same sizes, same folders.

    Finished files are skipped: the same command continues a stopped run. Bad files are listed
    at the end while the rest is done, and the exit code is 1.
    """
    from translate.data.images import DEFAULT_MAX_PIXELS
    from translate.inference.folder import ConvertOptions, execute, plan
    from translate.inference.translator import Translator

    options = ConvertOptions(
        batch_size=batch_size,
        format=format.value,
        quality=quality,
        overwrite=overwrite,
        max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
        limit=limit,
        report=report or target is not None,
        target=target,
        samples=samples,
        uncertainty=uncertainty,
    )
    translator = Translator.load(
        weights,
        direction=direction,
        device=device,
        precision=precision.value,
        protocol=protocol.value,
        tile=_tile(tile),
        overlap=_overlap(overlap),
        outscale=outscale,
        alpha=alpha,
        seed=seed,
        sampling=sampling_settings(temperature, top_k, top_p, steps, choice_temperature),
    )
    planned = plan(translator, inputs, output, options)
    parts, unit = (100, "converting, %") if len(planned.items) == 1 else (1, "converting")
    with progress(unit, total=parts * len(planned.items), quiet=quiet or as_json) as advance:
        if parts > 1:  # a single file may be large; its last part is to be written
            translator.on_tile = lambda done, total: advance(parts * done // (total + 1))
        summary = execute(translator, planned, options, lambda done: advance(parts * done))
    if as_json:
        print(json.dumps(summary.as_dict()))
    else:
        _tell(summary, output, quiet=quiet)
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.failed:
        done = summary.written + summary.skipped
        raise PartialFailure(f"{len(summary.failed)} of {summary.total} images failed; {done} are done in {output}")


def sampling_settings(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    steps: int | None,
    choice_temperature: float | None,
) -> dict[str, float]:
    """Those of a model's sampling settings that were given."""
    if top_p == 0:
        raise UserError("--top-p 0: expected a probability above 0; --temperature 0 takes the most probable tokens")
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "steps": steps,
        "choice_temperature": choice_temperature,
    }
    return {name: value for name, value in given.items() if value is not None}


def _tile(text: str) -> int | TileName:
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    if not text.isascii() or not text.isdigit():
        raise UserError(f"--tile {text}: expected auto, off or a side in pixels, such as 1024")
    return int(text)


def _overlap(text: str) -> int | OverlapName:
    if text == "auto":
        return "auto"
    if text == "exact":
        return "exact"
    if not text.isascii() or not text.isdigit():
        raise UserError(f"--overlap {text}: expected auto, exact or a number of pixels, such as 32")
    return int(text)


def _tell(summary: Summary, output: Path, *, quiet: bool) -> None:
    for path, reason in summary.failed:
        say(f"{path}: {reason}")
    for note in summary.notes:
        say(note, quiet=quiet)
    if summary.interrupted:
        done = summary.written + summary.skipped
        say(f"stopped: {done} of {summary.total} files are done and whole; the same command does the rest")
        return
    skipped = f", {summary.skipped} were done before (--overwrite does them again)" if summary.skipped else ""
    rate = f" in {summary.seconds:.1f} s, {summary.images_per_second:.1f} images/s" if summary.written else ""
    say(f"{summary.written} images converted into {output}{rate}{skipped}", quiet=quiet)
    if summary.report:
        say(f"report: {summary.report}", quiet=quiet)
