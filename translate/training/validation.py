"""How good the translator is on pairs it never trained on: L1, PSNR and SSIM, the best step, when to stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.data.images import to_device
from translate.data.spec import Spec
from translate.methods.base import run_padded
from translate.metrics.images import l1, psnr, ssim
from translate.settings import Settings, SpanField, parse_span

MEASURES = {"l1": l1, "psnr": psnr, "ssim": ssim}
LOWER_IS_BETTER = {"l1": True, "psnr": False, "ssim": False}


class ValidationSettings(Settings):
    """Measuring on the data's validation split (`data.validation`); nothing is measured where there is none."""

    every: SpanField = parse_span("1 epochs")
    best: Literal["l1", "psnr", "ssim"] = "l1"
    """The measure that chooses best.safetensors."""
    images: int | None = Field(default=200, ge=1)
    """Measure at most so many images, spread evenly over the split; null for all."""
    batch_size: int = Field(default=8, ge=1)
    patience: int | None = Field(default=None, ge=1)
    """Stop the run after so many validations without a better one."""


@torch.no_grad()
def validate(
    network: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    sides: tuple[str, str],
    specs: Mapping[str, Spec],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """The mean of each measure over all images of the batches; the network is in eval mode meanwhile."""
    was_training = network.training
    network.eval()
    rows: list[Tensor] = []
    for batch in batches:
        tensors = to_device(batch, specs, device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = run_padded(network, tensors[sides[0]])
        target = tensors[sides[1]]
        rows.append(torch.stack([measure(output.float(), target) for measure in MEASURES.values()]))
    network.train(was_training)
    if not rows:
        return {}
    means = torch.cat(rows, dim=1).double().mean(dim=1).tolist()
    return dict(zip(MEASURES, means, strict=True))


def better(measure: str, value: float, than: float | None) -> bool:
    """Whether a value of a measure beats the best one so far; one that is not a number never does."""
    if value != value:
        return False
    return than is None or (value < than if LOWER_IS_BETTER[measure] else value > than)
