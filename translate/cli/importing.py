"""`translate import`"""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from translate.cli.console import say
from translate.cli.export import only, require_place, writing
from translate.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("params_ema", "params", "state_dict", "generator", "module")
"""What other programs put a generator's tensors under, as a key or before a dot; the first that is there counts."""

RENAMINGS = (
    # ESRGAN's first release numbers the layers of its sequences ("old arch").
    (r"model\.0\.", "conv_first."),
    (r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"model\.1\.sub\.\d+\.(?=weight|bias)", "conv_body."),
    # Its second release, BSRGAN and mmsr; MSRResNet's upconv has the name still.
    (r"RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"recon_trunk\.", "body."),
    (r"trunk_conv\.", "conv_body."),
    (r"upconv(\d)\.", r"conv_up\1."),
    (r"HRconv\.", "conv_hr."),
)
"""Older names of layers (the beginning of a tensor's name) and what BasicSR and we call them."""


def import_weights(
    config: Annotated[str, typer.Argument(help="A config file or a shipped one whose generator the file fits.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth or .safetensors file of another program.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config; repeatable.")
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="AtoB or BtoA: which one the file is.", show_default="the only one")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
) -> None:
    """Turn a generator that another program trained into a weights file that `translate convert` takes.

    Wrappers (params_ema, params, state_dict, ...) are taken off and old ESRGAN names put right; names and shapes must
    then be those of the config's generator. Such as: translate import srresnet RealESRGAN_x4plus.pth OUT.safetensors
    --set 'method.generator={kind: rrdb}'
    """
    require_place(output, (".safetensors",), overwrite=overwrite)
    import torch

    from translate import config as configs
    from translate.run import fill, write_weights

    settings = configs.load(config, overrides or [])
    with torch.device("meta"):
        method = settings.method.build(settings.data, inference=True)
    if direction is not None:
        method.require_direction(direction, config)
    kept = direction if len(method.directions) > 1 else None
    networks = method.exported() if kept is None else method.exported_for(kept)
    network = only(networks, config)
    expected = network.state_dict()
    tensors = renamed(read_generator(file), expected)
    numbers = {
        name: tensor.to(expected[name].dtype) if name in expected else tensor for name, tensor in tensors.items()
    }
    fill(network, numbers, str(file), assign=True)
    with writing(output):
        write_weights(output, settings, networks, 0, 0, kept)
    say(f"{output}: {', '.join(networks)} out of {file}; convert with: translate convert {output} IN OUT")


def read_generator(file: Path) -> dict[str, Tensor]:
    """The named tensors of a generator in a file of another program, out of all wrappers, on the CPU.

    Raises UserError for a file that is no such thing; what a pickle has beside tensors is not run.
    """
    import torch

    from translate.pretrained.readers import read_state_dict

    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a generator's weights, .pth or .safetensors")
    held: Any
    if file.suffix == ".safetensors":
        held = read_state_dict(file)
    else:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(f"{file}: is damaged, or holds more than tensors, which is not run") from error
        except Exception as error:  # whatever a damaged file makes the readers raise: zip, struct, end of file ...
            raise UserError(f"{file}: no readable .pth or .safetensors weights; download the file again") from error
    tensors = unwrapped(held) if isinstance(held, Mapping) else {}
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise UserError(f"{file}: expected named tensors, bare or under one of {', '.join(WRAPPERS)}")
    return tensors


def unwrapped(held: Mapping[str, Any]) -> dict[str, Any]:
    """What stands inside of all `WRAPPERS`, whether these are keys or beginnings of names."""
    content = {str(name): value for name, value in held.items()}
    for _ in WRAPPERS:  # none stands in another of its name
        for wrapper in WRAPPERS:
            inside = content.get(wrapper)
            if not isinstance(inside, Mapping):
                start = f"{wrapper}."
                inside = {name.removeprefix(start): value for name, value in content.items() if name.startswith(start)}
            if inside:
                content = {str(name): value for name, value in inside.items()}
                break
    return content


def renamed(tensors: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """The tensors under the names that are expected, where an old name means one of these; else under their own."""
    return {_new_name(name, tensors, expected): tensor for name, tensor in tensors.items()}


def _new_name(name: str, beside: Collection[str], expected: Collection[str]) -> str:
    if name in expected:
        return name
    candidates = [re.sub(f"^{old}", new, name) for old, new in RENAMINGS]
    if numbered := re.match(r"model\.(\d+)\.", name):
        # Behind the blocks, old ESRGAN numbers the doublings' convolutions, then the last two.
        found = {int(match[1]) for each in beside if (match := re.match(r"model\.(\d+)\.weight$", each))}
        behind = sorted(found - {0})
        if (number := int(numbered[1])) in behind:
            last = {-2: "conv_hr", -1: "conv_last"}
            place = behind.index(number)
            layer = last.get(place - len(behind), f"conv_up{place + 1}")
            candidates.append(f"{layer}.{name[numbered.end() :]}")
    return next((candidate for candidate in candidates if candidate in expected), name)
