"""`translate export`"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from translate.cli.console import say
from translate.errors import UserError

if TYPE_CHECKING:
    from torch import nn

BARE_SUFFIXES = (".safetensors", ".pth")


def export(
    weights: Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="A run folder or a .safetensors file.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="The .safetensors file to write; with --bare also .pth.")
    ],
    direction: Annotated[
        str | None, typer.Option(help="AtoB or BtoA: keep this one alone.", show_default="all that there are")
    ] = None,
    bare: Annotated[
        bool,
        typer.Option("--bare", help="The generator's tensors alone, as other programs read them: no config inside."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
) -> None:
    """Write the trained weights to one file to pass on: config inside, of one direction or all, without the run."""
    from translate.run import build_for_inference, held, load_weights, write_weights

    require_place(output, BARE_SUFFIXES if bare else (".safetensors",), overwrite=overwrite)
    loaded = load_weights(weights)
    method = build_for_inference(loaded)
    if direction is not None:
        method.require_direction(direction, loaded.path)
    kept = direction if direction is not None and len(method.directions) > 1 else loaded.direction
    networks = held(loaded._replace(direction=kept), method)
    names = ", ".join(networks)
    with writing(output):
        if bare:
            write_bare(output, only(networks, loaded.path))
        else:
            write_weights(output, loaded.config, networks, loaded.step, loaded.images, kept)
    use = "for other programs" if bare else f"convert with: translate convert {output} IN OUT"
    say(f"{output}: {names} at step {loaded.step:,}; {use}")


def require_place(output: Path, suffixes: tuple[str, ...], *, overwrite: bool) -> None:
    """UserError unless a file of one of these kinds can be made there without loss."""
    if output.suffix not in suffixes or output.is_dir():
        raise UserError(f"{output}: expected the name of a {' or '.join(suffixes)} file")
    if output.exists() and not overwrite:
        raise UserError(f"{output}: is there already; --overwrite replaces it")


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """Make the folder of `output`; UserError where that or what is written inside this context fails."""
    from safetensors import SafetensorError

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # the last is torch's own
        raise UserError(f"{output}: cannot be written ({error}); choose another place") from error


def only(networks: nn.ModuleDict, source: object) -> nn.Module:
    """The one network among them; UserError where there are more."""
    if len(networks) > 1:
        raise UserError(f"{source}: has {', '.join(networks)}, and such a file holds one; choose by --direction")
    (network,) = networks.values()
    return network


def write_bare(output: Path, network: nn.Module) -> None:
    """Write a network's own tensors, whole or not at all: by name, in a `.pth` under the key `params`.

    Raises:
        OSError, SafetensorError, RuntimeError: they cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    from translate.run import write_atomically

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if output.suffix == ".pth":
        write_atomically(output, lambda path: torch.save({"params": tensors}, path))  # BasicSR's key
    else:
        write_atomically(output, lambda path: save_file(tensors, path))
