"""`translate sample`"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from translate.cli.console import progress, say
from translate.cli.convert import ChoiceTemperature, Precision, Steps, TopK, TopP, sampling_settings
from translate.errors import UserError


def sample(
    weights: Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="A run folder or a .safetensors file.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Images to make (or points).")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other images.")] = 0,
    truncation: Annotated[
        float | None, typer.Option(help="Latents stay within so many deviations: less variety, better images.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of a token prior; 0: the most probable tokens.", show_default="its own")
    ] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    steps: Steps = None,
    choice_temperature: ChoiceTemperature = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Of a token prior's images, such as 512x256.", show_default="as trained"),
    ] = None,
    label: Annotated[
        str | None, typer.Option("--class", help="A class by name or number.", show_default="all in turn")
    ] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Each image as a file, beside the grid.")] = True,
    interpolate: Annotated[
        int | None, typer.Option(min=2, metavar="K", help="Also a strip: K frames from each image to the next.")
    ] = None,
    between: Annotated[
        str | None, typer.Option(metavar="I,J,...", help="The images of the strip.", show_default="the first nine")
    ] = None,
    gif: Annotated[bool, typer.Option("--gif", help="The strip as an endless GIF.")] = False,
    arithmetic: Annotated[
        str | None, typer.Option(metavar="I-J+K", help="Also a sum of latents; 1,2,3-4,5,6 takes means.")
    ] = None,
    standing_statistics: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="PASSES",
            help="Estimate batch norm's statistics anew.",
            show_default="32 if the weights are an average",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step on a GPU.", show_default="by their size")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of the network.")] = Precision.auto,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON summary on standard output.")] = False,
) -> None:
    """Make images out of noise with a trained generator: single ones, a grid, what lies between them.

    Images count from 0, and number I of a seed stays the same however many are made: pick from the grid
    what --between and --arithmetic are to show.
    """
    numbers = _numbers(between)
    from translate.inference.sampler import SampleOptions, Sampler, check, write_samples

    options = SampleOptions(
        count=count,
        seed=seed,
        truncation=truncation,
        label=label,
        images=images,
        interpolate=interpolate,
        between=numbers,
        gif=gif,
        arithmetic=arithmetic,
        overwrite=overwrite,
    )
    sampler = Sampler.load(
        weights,
        device=device,
        precision=precision.value,
        standing_statistics=standing_statistics,
        batch_size=batch_size,
        sampling=sampling_settings(temperature, top_k, top_p, steps, choice_temperature),
        size=_size(size),
    )
    planned = check(sampler, output, options)
    silent = quiet or as_json
    with progress("estimating statistics", total=sampler.standing_statistics, quiet=silent) as advance:
        sampler.prepare(truncation, advance)
    started = time.perf_counter()
    try:
        with progress("sampling", total=planned, quiet=silent) as advance:
            summary = write_samples(sampler, output, options, advance)
    except KeyboardInterrupt:
        say(f"stopped: the files in {output} are whole but not all; the same command with --overwrite makes all again")
        raise typer.Exit(130) from None
    seconds = time.perf_counter() - started
    if as_json:
        print(json.dumps(summary | {"seconds": round(seconds, 3)}))
        return
    made = f"{planned} {'images' if sampler.is_image else 'points'}"
    say(f"{made} in {seconds:.1f} s, in {output}: {', '.join(summary['files'].values())}", quiet=quiet)


def _size(text: str | None) -> tuple[int, int] | None:
    """Height and width."""
    if text is None:
        return None
    width, mark, height = text.lower().partition("x")
    if not mark or not width.isascii() or not width.isdigit() or not height.isascii() or not height.isdigit():
        raise UserError(f"--size {text}: expected width and height in pixels, such as 512x256")
    if int(width) < 1 or int(height) < 1:
        raise UserError(f"--size {text}: expected at least one pixel either way")
    return int(height), int(width)


def _numbers(between: str | None) -> tuple[int, ...] | None:
    if between is None:
        return None
    try:
        numbers = tuple(int(part) for part in between.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) < 2 or min(numbers) < 0:
        raise UserError(f"--between {between}: expected two numbers of images or more, such as 12,5,33")
    return numbers
