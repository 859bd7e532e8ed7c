"""`translate export`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from translate.cli.console import say
from translate.errors import UserError


def export(
    weights: Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="A run folder or a .safetensors file.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    direction: Annotated[
        str | None, typer.Option(help="AtoB or BtoA: keep this one alone.", show_default="all that there are")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
) -> None:
    """Write the trained weights to one file to pass on: config inside, of one direction or all, without the run."""
    from safetensors import SafetensorError

    from translate.run import build_for_inference, held, load_weights, write_weights

    if output.suffix != ".safetensors" or output.is_dir():
        raise UserError(f"{output}: expected the name of a .safetensors file")
    if output.exists() and not overwrite:
        raise UserError(f"{output}: is there already; --overwrite replaces it")
    loaded = load_weights(weights)
    method = build_for_inference(loaded)
    if direction is not None:
        method.require_direction(direction, loaded.path)
    kept = direction if direction is not None and len(method.directions) > 1 else loaded.direction
    networks = held(loaded._replace(direction=kept), method)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_weights(output, loaded.config, networks, loaded.step, loaded.images, kept)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{output}: cannot be written ({error}); choose another place") from error
    names = ", ".join(networks)
    say(f"{output}: {names} at step {loaded.step:,}; convert with: translate convert {output} IN OUT")
