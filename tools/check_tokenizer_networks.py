"""Our convolutional encoder and decoder of images beside those of VQGAN's authors, with the same weights, in float64.

    python tools/check_tokenizer_networks.py CHECKOUT [--json]

CHECKOUT: a checkout of github.com/CompVis/taming-transformers, of which taming/modules/diffusionmodules/model.py
counts. Their networks ask for the levels with attention by the side of the feature maps for images of one side, and put
a 1x1 convolution between encoder and quantiser and another one between quantiser and decoder, which ours leave out.

Exits with 1 where a number is not within its tolerance.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from translate.errors import UserError
from translate.networks import ConvolutionalTokenizerSettings, count_parameters
from translate.networks.vqgan import AttentionBlock, Halving, ResidualBlock

IN_FLOAT64 = 1e-11  # absolute, of outputs of about 1: the same sums in another order, in some thirty layers
SIDE = 64  # pixels of images; the parameters, which the full width is compared by, do not depend on it

Row = dict[str, Any]

SETTINGS = {
    "f16, narrow": ConvolutionalTokenizerSettings(width=32, latent=24),
    "f8, attention at 8": ConvolutionalTokenizerSettings(width=32, multipliers=[1, 1, 2, 4], latent=24, attention=[8]),
    "f4, attention at 1 and 4": ConvolutionalTokenizerSettings(
        width=32, multipliers=[1, 2, 3], blocks=1, latent=4, attention=[1, 4]
    ),
    "f16, as the paper has it": ConvolutionalTokenizerSettings(),
}


def reference(checkout: Path) -> ModuleType:
    path = checkout / "taming" / "modules" / "diffusionmodules" / "model.py"
    if not path.is_file():
        raise UserError(f"{path}: is not there; expected a checkout of taming-transformers")
    spec = importlib.util.spec_from_file_location("taming_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy(theirs: nn.Module, ours: nn.Module) -> Iterator[nn.Module]:
    """Put their layer's weights into ours; yields each of our layers that was filled."""
    if isinstance(ours, ResidualBlock):
        filled = [layer for layer in ours.body if isinstance(layer, nn.GroupNorm | nn.Conv2d)]
        for name, layer in zip(("norm1", "conv1", "norm2", "conv2"), filled, strict=True):
            yield from copy(theirs.get_submodule(name), layer)
        if isinstance(ours.shortcut, nn.Conv2d):
            yield from copy(theirs.get_submodule("nin_shortcut"), ours.shortcut)
    elif isinstance(ours, AttentionBlock):
        parts = [theirs.get_submodule(name).state_dict() for name in ("q", "k", "v")]
        ours.project.load_state_dict({key: torch.cat([part[key] for part in parts]) for key in ("weight", "bias")})
        yield ours.project
        yield from copy(theirs.get_submodule("norm"), ours.norm)
        yield from copy(theirs.get_submodule("proj_out"), ours.out)
    else:
        ours.load_state_dict(theirs.state_dict())
        yield ours


def fill(theirs: nn.Module, ours: nn.Module) -> None:
    """Put all of their encoder's or decoder's weights into ours: level by level, middle and ends."""
    decoder = hasattr(theirs, "up")
    filled = [
        *copy(theirs.get_submodule("conv_in"), ours.get_submodule("first")),
        *copy(theirs.get_submodule("norm_out"), ours.get_submodule("norm")),
        *copy(theirs.get_submodule("conv_out"), ours.get_submodule("last")),
    ]
    for number, name in enumerate(("block_1", "attn_1", "block_2")):
        filled += copy(theirs.get_submodule(f"mid.{name}"), ours.get_submodule(f"middle.{number}"))
    levels = ours.get_submodule("levels")
    assert isinstance(levels, nn.ModuleList)
    for number, level in enumerate(levels):
        # Their levels are numbered from the image down, in the decoder too, which runs them from the last to the first.
        name = f"up.{len(levels) - 1 - number}" if decoder else f"down.{number}"
        blocks = attentions = 0
        for part in level.children():
            if isinstance(part, ResidualBlock):
                filled += copy(theirs.get_submodule(f"{name}.block.{blocks}"), part)
                blocks += 1
            elif isinstance(part, AttentionBlock):
                filled += copy(theirs.get_submodule(f"{name}.attn.{attentions}"), part)
                attentions += 1
            elif isinstance(part, Halving):
                filled += copy(theirs.get_submodule(f"{name}.downsample.conv"), part)
            elif isinstance(part, nn.Conv2d):
                filled += copy(theirs.get_submodule(f"{name}.upsample.conv"), part)
    if {id(p) for layer in filled for p in layer.parameters()} != {id(p) for p in ours.parameters()}:
        raise UserError("not all of our weights were filled: the networks are not the same")


def drawn(network: nn.Module) -> nn.Module:
    """The network in float64 and evaluation, biases and norms drawn too, so that all of them count."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)
            else:
                nn.init.normal_(parameter, 0.5, 0.5)
    return network.double().eval()


def compare(model: ModuleType, name: str, settings: ConvolutionalTokenizerSettings) -> Iterator[Row]:
    options = {
        "ch": settings.width,
        "out_ch": 3,
        "ch_mult": settings.multipliers,
        "num_res_blocks": settings.blocks,
        "attn_resolutions": [SIDE // reduction for reduction in settings.attention],
        "in_channels": 3,
        "resolution": SIDE,
        "z_channels": settings.latent,
        "double_z": False,
    }
    with contextlib.redirect_stdout(io.StringIO()):  # their decoder tells its size
        theirs = [drawn(network(**options)) for network in (model.Encoder, model.Decoder)]
    ours = [network.double().eval() for network in settings.build(3, 3)]
    sides = 2 * settings.reduction, 3 * settings.reduction
    inputs: list[Tensor] = [
        torch.rand(1, 3, *sides, dtype=torch.float64) * 2 - 1,
        torch.randn(1, settings.latent, 2, 3, dtype=torch.float64),
    ]
    for which, their, our, x in zip(("encoder", "decoder"), theirs, ours, inputs, strict=True):
        fill(their, our)
        with torch.no_grad():
            expected = their(x)
            difference = float((our(x) - expected).abs().max())
        parameters = count_parameters(our)
        yield {
            "network": f"{name}, {which}",
            "parameters": parameters,
            "deviation": float(expected.std()),
            "difference": difference,
            "good": difference <= IN_FLOAT64 and parameters == count_parameters(their),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = reference(options.checkout)
    rows = [row for name, settings in SETTINGS.items() for row in compare(model, name, settings)]
    if options.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(
                f"{row['network']:<34} {row['parameters']:>10,} parameters, outputs of deviation "
                f"{row['deviation']:.2g}, difference {row['difference']:.2g}"
            )
        print(f"at most {max(row['difference'] for row in rows):.2g}")
    sys.exit(not all(row["good"] for row in rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
