"""`translate demo`"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from translate.cli import console

if TYPE_CHECKING:
    from translate.data.synthetic import Time


class DemoMethod(str, Enum):
    pix2pix = "pix2pix"
    cyclegan = "cyclegan"


class _Conversion(NamedTuple):
    """A test folder to convert, and what its pictures should become."""

    direction: str
    inputs: Path
    truth: Path
    results: str
    """Name of the folder of results in the run folder."""


def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the data set, the run and the results.")] = Path("demo"),
    method: Annotated[
        DemoMethod, typer.Option(help="pix2pix: labels to house fronts, from pairs; cyclegan: day and night, without.")
    ] = DemoMethod.pix2pix,
    count: Annotated[int, typer.Option(min=8, help="Pairs, or pictures of each side, to train on.")] = 400,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Times to see each picture.", show_default="the config's: about 3 to 4 minutes"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws another data set and trains another model.")] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of config pix2pix-demo or cyclegan-demo."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the end.")] = False,
) -> None:
    """Make a small data set, train a method on it, convert its test folder, and show where to look.

    The data are pictures of house fronts, drawn by the toolkit itself: with their labels in pairs for pix2pix, by day
    and by night, of different houses, for CycleGAN, which is then held against the same houses by night and by day.
    """
    from translate import config as configs
    from translate.cli.train import new_run, start
    from translate.data import synthetic
    from translate.inference.folder import ConvertOptions, convert
    from translate.inference.report import PAGE
    from translate.inference.translator import Translator

    pairs = method is DemoMethod.pix2pix
    pictures = out / f"{'facades' if pairs else 'day-night'}-{count}-{seed}"
    size = 96 if pairs else 64  # of the configs
    test = held_out = max(4, count // 20)
    make = synthetic.make_paired if pairs else synthetic.make_unpaired
    drawn = (count + held_out + test) * (1 if pairs else 2)
    with console.progress("drawing house fronts", total=drawn, quiet=quiet) as advance:
        make(pictures, count=count, size=size, seed=seed, validation=held_out, test=test, progress=advance)
    if pairs:
        conversions = [_Conversion("AtoB", pictures / "test/A", pictures / "test/B", "results")]
    else:
        to_night = _Conversion("AtoB", pictures / "test/A", pictures / "truth/AtoB", "results-AtoB")
        to_day = _Conversion("BtoA", pictures / "test/B", pictures / "truth/BtoA", "results-BtoA")
        _draw_same_houses(to_night, "night", size=size, seed=seed)
        _draw_same_houses(to_day, "day", size=size, seed=seed)
        conversions = [to_night, to_day]

    changes = [f"seed={seed}", f"data.root={pictures}"]
    if epochs is not None:
        half = max(1, epochs // 2)
        changes += [
            f"training.stages.0.length={epochs} epochs",
            f"training.stages.0.schedule.hold={half} epochs",
        ]
    settings = configs.load(f"{method.value}-demo", [*changes, *(overrides or [])])
    run, outcome = start(settings, lambda: new_run(out / "runs", settings), quiet=quiet)
    if outcome.reason == "interrupted":
        console.say(f"stopped; continue with: translate train --resume {run.path}")
        raise typer.Exit(130)

    for conversion in conversions:
        translator = Translator.load(run.path, direction=conversion.direction)
        options = ConvertOptions(report=True, target=conversion.truth, overwrite=True)
        with console.progress(f"converting {conversion.inputs}", total=test, quiet=quiet) as advance:
            convert(translator, conversion.inputs, run.path / conversion.results, options, on_progress=advance)
    for conversion in conversions:
        print(f"results:     {run.path / conversion.results / PAGE}")
    print(f"TensorBoard: tensorboard --logdir {out / 'runs'}")
    for conversion in conversions:
        direction = "" if pairs else f" --direction {conversion.direction}"
        print(f"convert:     translate convert {run.path} {conversion.inputs} OUT{direction}")


def _draw_same_houses(conversion: _Conversion, time: Time, *, size: int, seed: int) -> None:
    """The truth, which no training sees: the houses of the inputs, at the other time of day, under the same names."""
    from translate.data import synthetic
    from translate.data.images import write_image

    def write(path: Path) -> None:
        truth = conversion.truth / path.name
        if not truth.exists():
            write_image(truth, synthetic.draw(int(path.stem), size=size, seed=seed, time=time).picture)

    synthetic.for_each(write, sorted(conversion.inputs.glob("*.png")), None)
