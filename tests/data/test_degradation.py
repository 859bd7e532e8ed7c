"""The contract that all degradations keep, and the bicubic one."""

from __future__ import annotations

import contextlib

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from translate.data import matlab
from translate.data.degradation import (
    BicubicSettings,
    Degradation,
    DegradationSettings,
    SecondOrderSettings,
    second_order,
)
from translate.data.matlab import imresize
from translate.settings import Scale

SETTINGS: list[BicubicSettings | SecondOrderSettings] = [
    BicubicSettings(),
    BicubicSettings(convention="double"),
    SecondOrderSettings(),
]


def pictures(count: int = 2, channels: int = 3, height: int = 32, width: int = 24) -> Tensor:
    """Of 8 bits: a coarse pattern with noise, (N, C, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, height // 8, width // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    levels = (smooth * 200 + torch.rand(smooth.shape, generator=generator) * 55).round()
    return levels / 127.5 - 1


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.kind)
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_levels_and_range(settings: BicubicSettings | SecondOrderSettings, scale: Scale, channels: int) -> None:
    degradation: Degradation = settings.build(scale)
    torch.manual_seed(0)
    for height, width in ((8, 8), (32, 24)):
        high = pictures(3, channels, height, width)
        before = high.clone()
        low = degradation(high.contiguous(memory_format=torch.channels_last))
        assert low.shape == (3, channels, height // scale, width // scale) and low.dtype == torch.float32
        levels = (low + 1) * 127.5
        assert ((levels - levels.round()).abs() < 1e-3).all() and levels.min() >= 0 and levels.max() <= 255.001
        assert torch.equal(high, before)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.kind)
def test_nothing_waits_for_the_device(
    settings: BicubicSettings | SecondOrderSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of the meta device have no values: to read one raises, and to mix devices. Autocast does not know it."""
    for module in (matlab, second_order):
        monkeypatch.setattr(module, "exact_float32", lambda device: contextlib.nullcontext())
    degradation = settings.build(4)
    for seed in range(8):  # both noises and both orders are among them
        torch.manual_seed(seed)
        low = degradation(torch.empty(2, 3, 32, 24, device="meta"))
        assert low.device.type == "meta" and low.shape == (2, 3, 8, 6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_cuda_makes_the_same_bytes(scale: int) -> None:
    degradation, high = BicubicSettings().build(scale), pictures()
    torch.testing.assert_close(degradation(high.cuda()).cpu(), degradation(high), atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.kind)
def test_autocast_changes_nothing(settings: BicubicSettings | SecondOrderSettings) -> None:
    degradation, high = settings.build(4), pictures()
    torch.manual_seed(0)
    expected = degradation(high)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(degradation(high), expected)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_bicubic_is_matlabs_of_the_bytes(scale: int) -> None:
    high = pictures()
    pixels = ((high + 1) * 127.5).round().to(torch.uint8)
    expected = imresize(pixels, 1 / scale, convention="uint8")
    found = (BicubicSettings().build(scale)(high) + 1) * 127.5
    assert torch.equal(found.round().to(torch.uint8), expected)


def test_bicubic_of_doubles_is_rounded_once() -> None:
    high = pictures()
    exact = imresize((high.double() + 1) * 127.5, 1 / 4)
    found = (BicubicSettings(convention="double").build(4)(high) + 1) * 127.5
    # Halves may fall either way: the images are float32.
    assert ((found - exact).abs() <= 0.5 + 1e-3).all()
    twice = (BicubicSettings().build(4)(high) + 1) * 127.5
    assert 0 < (found - twice).abs().max() < 2  # rounding between the passes is a level at most


def test_bicubic_draws_nothing() -> None:
    before = torch.get_rng_state()
    BicubicSettings().build(4)(pictures())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_kind_decides() -> None:
    adapter: TypeAdapter[BicubicSettings | SecondOrderSettings] = TypeAdapter(DegradationSettings)
    assert adapter.validate_python({"kind": "bicubic", "convention": "double"}).kind == "bicubic"
    assert adapter.validate_python({"kind": "second-order"}) == SecondOrderSettings()
    with pytest.raises(ValidationError, match="second-order"):
        adapter.validate_python({"kind": "nearest"})
