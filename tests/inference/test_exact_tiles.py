"""Networks of convolutions alone: tiles are the untiled image, byte for byte, and what there is where they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from translate.data.images import write_image
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.inference import translator as module
from translate.inference.folder import convert
from translate.inference.precision import SteadyConvolution
from translate.inference.tiling import Blend, Box, Tile, automatic_side, receptive_radius, tiles
from translate.inference.translator import Translator
from translate.networks import MSRResNetSettings, RRDBSettings, SRResNetSettings
from translate.networks.layers import Generator

COLOUR = ImageSpec()


def sensitive(network: Generator) -> Generator:
    """Random weights of He's size, statistics as training leaves them: every pixel that is looked at counts."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, 0.25)
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.5, 2)
    last = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)][-1]
    last.weight.data.mul_(0.1)  # the output spans the range
    return network


def srresnet(scale: int = 2, **changes: object) -> Generator:
    return sensitive(SRResNetSettings(blocks=2, width=8, **changes).build(3, 3, scale))


def noise(height: int, width: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype=dtype)


def translator(network: nn.Module, tile: int | str, precision: str = "fp32", **options: object) -> Translator:
    return Translator(network, COLOUR, COLOUR, device="cpu", precision=precision, tile=tile, **options)


# Exact halos


@settings(max_examples=20, deadline=None)
@given(st.integers(33, 110), st.integers(33, 110), st.integers(32, 80), st.sampled_from([2, 4]), st.integers(0, 9))
def test_tiles_are_the_whole_image_byte_for_byte(height: int, width: int, side: int, scale: int, seed: int) -> None:
    """In 16 bits, which show differences 257 times smaller than those of 8 bits."""
    network, image = srresnet(scale), noise(height, width, np.uint16, seed)
    whole = translator(network, "off")(image)
    assert whole.std() > 2000  # it shows something
    np.testing.assert_array_equal(translator(network, side)(image), whole)


@settings(max_examples=20, deadline=None)
@given(st.integers(9, 90), st.integers(9, 90), st.integers(8, 60), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_tile_s_numbers_are_the_whole_image_s_to_the_bit(
    height: int, width: int, side: int, dtype: torch.dtype
) -> None:
    """What the network itself gives, before anything is rounded; sizes on both sides of where torch changes kernels."""
    made = translator(srresnet(), "off")
    network, radius = made._network(dtype), receptive_radius(made._float, 3)
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(side)) * 2 - 1
    image = image.to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        whole = network(image)
        for core, window in tiles(height, width, side, radius, 1):
            part = image[:, :, window.top : window.bottom, window.left : window.right]
            part = network(part.contiguous(memory_format=torch.channels_last))
            top, left = 2 * (core.top - window.top), 2 * (core.left - window.left)
            part = part[:, :, top : top + 2 * core.height, left : left + 2 * core.width]
            assert torch.equal(part, whole[:, :, 2 * core.top : 2 * core.bottom, 2 * core.left : 2 * core.right])


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_halo_one_pixel_short_is_seen(scale: int) -> None:
    network, image = srresnet(scale), noise(81, 97, np.uint16)
    whole = translator(network, "off")(image)
    short = translator(network, 32)
    assert short._can_tile()
    # What does not enlarge runs in NCHW, where oneDNN's kernels are steady with AVX-512 alone (`SteadyConvolution`):
    # with AVX2 single values of 65,536 round to a neighbour.
    room = int(scale == 1 and torch.backends.cpu.get_cpu_capability() != "AVX512")
    exact = np.abs(short(image).astype(int) - whole)
    assert exact.max() <= room and (exact > 0).mean() <= 0.01 * room
    short._halo -= 1
    assert np.abs(short(image).astype(int) - whole).max() > room


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "network",
    [
        MSRResNetSettings(blocks=2, width=8).build(3, 3, 4),
        RRDBSettings(blocks=1, width=8, growth=4).build(3, 3, 2),
        RRDBSettings(blocks=1, width=8, growth=4).build(3, 3, 1),
        SRResNetSettings(blocks=2, width=8, norm="none").build(3, 3, 2),
    ],
    ids=["msrresnet x4", "rrdb x2", "rrdb x1", "without norm"],
)
def test_other_networks_are_exact_too(network: Generator, precision: str) -> None:
    """In bf16 but for activations outside convolutions, which vectors and their ends may round differently."""
    network, image = sensitive(network), noise(75, 91)
    whole = translator(network, "off", precision)(image).astype(int)
    tiled = translator(network, 32, precision, overlap="exact")(image)
    assert whole.std() > 0.5 and np.abs(tiled - whole).max() <= (precision == "bf16")


def test_a_convolution_does_not_see_the_size_of_its_image() -> None:
    """On both sides of 20,480 values, where torch's own changes its kernel."""
    torch.manual_seed(0)
    layer = SteadyConvolution(nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False))
    image = torch.randn(1, 8, 60, 60).contiguous(memory_format=torch.channels_last)
    part = image[:, :, 10:40, 10:40].contiguous(memory_format=torch.channels_last)
    assert part.numel() < 20480 < image.numel()
    assert torch.equal(layer(part)[:, :, 1:-1, 1:-1], layer(image)[:, :, 11:39, 11:39])
    torch.testing.assert_close(layer(image), F.conv2d(image, layer.weight, layer.bias, padding=1))


@pytest.mark.parametrize(("blocks", "scale"), [(1, 1), (2, 2), (2, 4), (23, 4)])
def test_the_radius_of_dense_blocks_in_closed_form(blocks: int, scale: int) -> None:
    """Two 3 x 3 layers and 15 a block look that far; a pixel and a half more behind the doublings, so two in blocks.

    Through 23 blocks the gradient itself leaves float64's range.
    """
    network = RRDBSettings(blocks=blocks, width=2, growth=2).build(3, 3, scale)
    assert receptive_radius(network, 3) == (1 + 15 * blocks + 1 + 2) * network.multiple


# Cut halos


def chain(layers: int = 24, scale: int = 2) -> Generator:
    """3 x 3 blurs in a row, then enlarged: it sees `layers` pixels far, ever less of those far away."""

    class Chain(Generator):
        multiple = smallest = 1

        def __init__(self) -> None:
            super().__init__()
            self.scale = scale
            self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False) for _ in range(layers))
            for layer in self.layers:
                nn.init.constant_(layer.weight, 1 / 9)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return F.interpolate(x, scale_factor=scale, mode="nearest")

    return Chain()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 70),
    st.integers(20, 70),
    st.integers(10, 40),
    st.integers(1, 5),
    st.integers(0, 5),
    st.integers(1, 3),
)
def test_blending_is_a_weighted_mean(height: int, width: int, side: int, ramp: int, more: int, channels: int) -> None:
    """Against the plain writing: all tiles, weighted, are added up in one large buffer, and divided by the weights."""
    cut = tiles(height, width, side, ramp + more, 1)
    ramp = min(ramp, *(min(tile.core.height, tile.core.width) // 2 for tile in cut))
    generator = torch.Generator().manual_seed(height)
    parts = [torch.randn(1, channels, tile.window.height, tile.window.width, generator=generator) for tile in cut]

    def weights(length: int, low: int, high: int) -> Tensor:
        """Of all positions of a side, for a core from `low` to `high`: 1/2 at its borders, a straight line across."""
        at = torch.arange(length) + 0.5
        rise = ((at - low) / (2 * ramp) + 0.5).clamp(0, 1) if low else torch.ones(length)
        fall = ((high - at) / (2 * ramp) + 0.5).clamp(0, 1) if high < length else torch.ones(length)
        return torch.minimum(rise, fall)

    total, weight = torch.zeros(1, channels, height, width), torch.zeros(height, width)
    for (core, window), part in zip(cut, parts, strict=True):
        one = weights(height, core.top, core.bottom)[:, None] * weights(width, core.left, core.right)
        weight += one
        box = (slice(window.top, window.bottom), slice(window.left, window.right))
        total[(..., *box)] += one[box] * part
    torch.testing.assert_close(weight, torch.ones(height, width))

    blend, found = Blend(height, width, ramp), torch.full_like(total, torch.nan)
    for tile, part in zip(cut, parts, strict=True):
        place, finished = blend.add(tile, part)
        spot = found[:, :, place.top : place.bottom, place.left : place.right]
        assert spot.isnan().all()  # each pixel is handed on once
        spot.copy_(finished)
    torch.testing.assert_close(found, total / weight)


def test_cores_alone_stand_side_by_side() -> None:
    blend, made = Blend(8, 8, 0), torch.arange(36.0).reshape(1, 1, 6, 6)
    place, part = blend.add(Tile(Box(0, 4, 4, 8), Box(0, 6, 2, 8)), made)
    assert place == Box(0, 4, 4, 8) and torch.equal(part, made[:, :, :4, 2:])


def test_tiles_that_fade_are_near_and_have_no_seam() -> None:
    """Against cores side by side from the same halo, whose difference from the exact image has steps at the borders."""
    network, image = chain(), noise(150, 170, np.uint16)
    exact = translator(network, "off")(image).astype(int)
    faded = translator(network, 64, overlap=4)
    hard = translator(network, 64, overlap=4)
    hard._ramp = lambda cut: 0  # type: ignore[method-assign]
    found = {name: made(image).astype(int) - exact for name, made in (("faded", faded), ("hard", hard))}
    assert 0 < np.abs(found["faded"]).max() < 20 * 257
    borders = [2 * core.left - 1 for core, _ in tiles(150, 170, 64, 0, 1) if core.left and not core.top]
    steps = {name: np.abs(np.diff(one, axis=1))[:, borders].mean() for name, one in found.items()}
    assert (
        steps["faded"] < steps["hard"] / 3
    )  # 1/8 of it in each of the eight pixels that the ramps are wide, and noise


def test_the_deviation_is_measured_and_told(tmp_path: Path) -> None:
    """At the middle of the image: what is told is what the exact image says of those 64 x 64 pixels."""
    network, image = chain(), noise(150, 170)
    exact = translator(network, "off")(image).astype(float)
    made = translator(network, 64, overlap=2)
    apart = np.abs(made(image) - exact)
    assert made.deviation is not None
    # Tiles of 64 pixels have 3 x 3 cores, with borders at 50 and 100 of 150, and at 56 and 113 of 170.
    assert {(50, 113), (100, 56)} < {(core.top, core.left) for core, _ in tiles(150, 170, 64, 0, 1)}
    there = apart[2 * (50 - 32) : 2 * (50 + 32), 2 * (113 - 32) : 2 * (113 + 32)]
    assert f"at most {there.max():.1f}, on average {there.mean():.2f} grey levels" in made.deviation
    assert there.max() > 0 and made.deviation in made.describe()["tiles"]

    write_image(tmp_path / "in" / "a.png", image)
    summary = convert(translator(network, 64, overlap=2), tmp_path / "in", tmp_path / "out")
    assert summary.notes == [f"tiles fade into each other: {made.deviation} (--overlap exact: none)"]


def test_where_nothing_is_measured_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(300, 300)
    far = translator(chain(layers=100), 32, overlap=2)  # 64 + 2 x 101 pixels for one exact tile, 36 for each of these
    far(image)
    assert far.deviation is not None and "not measured" in far.deviation and "four times" in far.deviation
    short = translator(chain(), 64, overlap=2)
    real = short._network(torch.float32).forward

    def forward(x: Tensor) -> Tensor:
        if x.shape[2] > 64 + 4:
            raise MemoryError
        return real(x)

    monkeypatch.setattr(short._network(torch.float32), "forward", forward)
    short(image)
    assert short.deviation is not None and "no memory" in short.deviation


def test_enough_overlap_is_exact() -> None:
    network, image = chain(layers=5), noise(90, 100, np.uint16)
    made = translator(network, 32, overlap=40)
    np.testing.assert_array_equal(made(image), translator(network, "off")(image))
    assert made.deviation is None and "exact, with 5 pixels" in made.describe()["tiles"]


def test_halos_are_cut_where_they_are_dear() -> None:
    """Up to twice the pixels of the cores: (512 + 2 * 106)^2 is less than that of 512^2 and with 107 it is more."""
    assert automatic_side(1) == 1024 and automatic_side(4) == 512

    def halo(layers: int, **options: object) -> tuple[int, bool]:
        made = translator(chain(layers, scale=4), **options)
        assert made._can_tile()
        return made._halo, made._exact

    assert halo(106, tile="auto") == (106, True)
    assert halo(107, tile="auto") == (32, False)
    assert halo(107, tile="auto", overlap="exact") == (107, True)
    assert halo(107, tile="auto", overlap=50) == (50, False)
    # Small tiles are a matter of memory: they stay exact.
    assert halo(106, tile=32) == (106, True)
    assert halo(107, tile=2048) == (107, True)
    with pytest.raises(UserError, match="overlap 0"):
        translator(chain(), 64, overlap=0)


# Large results, little memory


def test_results_count_and_not_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AUTO_PIXELS", 100 * 100)
    made = translator(srresnet(4), "auto")
    assert not made.in_tiles(25, 25) and made.in_tiles(25, 26)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ...")],
    ids=["python", "torch"],
)
def test_a_cpu_short_of_memory_gets_tiles_and_then_smaller_ones(error: Exception) -> None:
    class Hungry(Generator):
        multiple = smallest = scale = 1

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float32 and x.shape[2] * x.shape[3] > 100 * 100:
                raise error
            return -x

    image = noise(150, 160)
    made = translator(Hungry(), "auto")
    np.testing.assert_array_equal(made(image), 255 - image)
    assert made._side == 128  # cores of 75 x 80; with 256, the whole image
    with pytest.raises(type(error)):
        translator(Hungry(), "off")(image)


def test_other_errors_are_no_lack_of_memory() -> None:
    class Broken(Generator):
        multiple = smallest = scale = 1

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float32:
                raise RuntimeError("shapes differ")
            return x

    with pytest.raises(RuntimeError, match="shapes differ"):
        translator(Broken(), 64)(noise(150, 160))
