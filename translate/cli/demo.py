"""`translate demo`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from translate.cli import console


def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the data set, the run and the results.")] = Path("demo"),
    count: Annotated[int, typer.Option(min=8, help="Pairs to train on.")] = 400,
    epochs: Annotated[int, typer.Option(min=1, help="Times to see each pair; the default takes about 3 minutes.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Draws another data set and trains another model.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of config pix2pix-demo.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the end.")] = False,
) -> None:
    """Make a small data set, train pix2pix on it, convert its test folder, and show where to look.

    The data are label pictures of house fronts and the pictures they describe, drawn by the toolkit itself.
    """
    from translate import config as configs
    from translate.cli.train import new_run, start
    from translate.data.synthetic import make_paired
    from translate.inference.folder import ConvertOptions, convert
    from translate.inference.translator import Translator

    facades = out / f"facades-{count}-{seed}"
    test = max(4, count // 20)
    held_out = max(4, count // 20)
    with console.progress("drawing house fronts", total=count + held_out + test, quiet=quiet) as advance:
        make_paired(facades, count=count, size=96, seed=seed, validation=held_out, test=test, progress=advance)

    half = max(1, epochs // 2)
    schedule = [
        f"seed={seed}",
        f"data.root={facades}",
        f"training.stages.0.length={epochs} epochs",
        f"training.stages.0.schedule.hold={half} epochs",
    ]
    settings = configs.load("pix2pix-demo", [*schedule, *(overrides or [])])
    run, outcome = start(settings, lambda: new_run(out / "runs", settings), quiet=quiet)
    if outcome.reason == "interrupted":
        console.say(f"stopped; continue with: translate train --resume {run.path}")
        raise typer.Exit(130)

    images = facades / "test" / "A"
    results = run.path / "results"
    translator = Translator.load(run.path)
    with console.progress("converting the test folder", total=test, quiet=quiet) as advance:
        options = ConvertOptions(report=True, target=facades / "test" / "B", overwrite=True)
        convert(translator, images, results, options, on_progress=advance)
    print(f"results:     {results / 'index.html'}")
    print(f"TensorBoard: tensorboard --logdir {out / 'runs'}")
    print(f"convert:     translate convert {run.path} {images} OUT")
