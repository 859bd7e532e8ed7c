"""`translate info`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def info(
    weights: Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="A run folder or a .safetensors file.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """Say what a run or a weights file is: method, directions or classes, channels, sizes, training."""
    from translate.methods.generative import GenerativeMethod, SamplingMethod
    from translate.networks import count_parameters
    from translate.run import build_for_inference, held, load_weights

    loaded = load_weights(weights)
    method = build_for_inference(loaded)
    specs = loaded.config.data.specs()
    kept = {"kind", "channels", "classes", "dimensions"}
    facts: dict[str, object] = {
        "file": str(loaded.path),
        "name": loaded.config.name,
        "method": loaded.config.method.kind,
        "sides": {name: spec.model_dump(mode="json", exclude_none=True, include=kept) for name, spec in specs.items()},
        "parameters": {name: count_parameters(module) for name, module in held(loaded, method).items()},
    }
    if isinstance(method, SamplingMethod):
        if isinstance(method, GenerativeMethod):
            facts["latent"] = {"width": method.latent.width, "prior": method.latent.prior}
        facts["sample shape"] = list(method.shape)
        if method.class_names:
            facts["classes"] = list(method.class_names)
    else:
        network = method.translator(method.directions[0])
        facts |= {
            "directions": list(method.directions),
            "size multiple": network.multiple,
            "smallest size": network.smallest,
            "scale": network.scale,
        }
    facts |= {"step": loaded.step, "images seen": loaded.images, "seed": loaded.config.seed}
    if as_json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {_text(value)}")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
