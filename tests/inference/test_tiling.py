"""Tiles against the whole image. Pixels have 16 bits where small differences count: a grey level (of 8 bits) is 257."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from translate import config as configs
from translate.cli import main
from translate.data.images import read_image, write_image
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.inference import translator as module
from translate.inference.tiling import receptive_radius, small_copy, tiles
from translate.inference.translator import Translator
from translate.networks import InitialisationSettings, ResNetSettings, UNetSettings
from translate.run import Run

LEVEL = 257
GREY = ImageSpec(channels=1)


class Plain(nn.Sequential):
    """Layers as a generator."""

    def __init__(self, *layers: nn.Module, multiple: int = 1, smallest: int = 8, scale: int = 1) -> None:
        super().__init__(*layers)
        self.multiple, self.smallest, self.scale = multiple, smallest, scale


def resnet(norm: str = "instance", width: int = 4, upsampling: str = "transposed") -> nn.Module:
    """One block and weights that let the input through: seven norms of which each counts."""
    torch.manual_seed(0)
    made = ResNetSettings(
        blocks=1, width=width, norm=norm, upsampling=upsampling, initialisation=InitialisationSettings(kind="kaiming")
    ).build(1, 1)
    made.layers[-2].weight.data.mul_(0.3)  # tanh is not cut
    return made


def scenery(height: int = 176, width: int = 240) -> np.ndarray:
    """A landscape of 16 bits: calm and bright above, dark and rough below, so that no two tiles have one mean."""
    generator = np.random.default_rng(0)
    picture = np.zeros((height, width), np.float32)
    for scale in (4, 16, 64):
        size = (height // scale + 2, width // scale + 2)
        noise = generator.normal(0, scale / 64, size).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    picture = 48000 - 30000 * down + 9000 * (0.2 + down) * picture
    return picture.clip(0, 65535).astype(np.uint16)


def convert(network: nn.Module, image: np.ndarray, **options: object) -> np.ndarray:
    translator = Translator(network, GREY, GREY, device="cpu", precision="fp32", **options)
    return translator(image).astype(np.int64)


# How far a network looks


def columns_moved(network: nn.Module, start: int, stop: int, length: int = 96, height: int = 16) -> list[int]:
    """The input columns on which the output columns [start, stop) depend: each is changed, by itself."""
    torch.manual_seed(0)
    network = network.double().eval()
    image = torch.rand(1, 1, height, length, dtype=torch.float64)
    changed = image.repeat(length, 1, 1, 1)
    for column in range(length):
        changed[column, :, :, column] += 1.0
    with torch.no_grad():
        moved = (network(changed) - network(image))[:, :, :, start:stop].abs().amax((1, 2, 3))
    return moved.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("network", "radius"),
    [
        (Plain(nn.Identity()), 0),
        (Plain(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(5)]), 5),
        (Plain(nn.Conv2d(1, 2, 7, padding=3), nn.Tanh(), nn.Conv2d(2, 1, 3, padding=4, dilation=4)), 7),
        (Plain(nn.Conv2d(1, 1, (1, 9), padding=(0, 4))), 4),  # the farther of both axes
        (Plain(nn.Conv2d(1, 8, 5, padding=2, groups=1), nn.PReLU(), nn.Conv2d(8, 4, 3, padding=1, groups=4)), 3),
        # A pixel becomes 2 x 2, and a 3 x 3 kernel over those looks one pixel farther.
        (Plain(nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(1, 1, 3, padding=1), scale=2), 2),
        # Strides of two: a block of 2 pixels is one of the small map, whose kernel begins a pixel before it.
        (Plain(nn.Conv2d(1, 1, 4, 2, padding=1), nn.ConvTranspose2d(1, 1, 2, 2), multiple=2), 1),
    ],
)
def test_radius_in_closed_form(network: nn.Module, radius: int) -> None:
    assert receptive_radius(network, 1) == radius


@pytest.mark.parametrize("settings", [ResNetSettings(blocks=1, width=4), UNetSettings(depth=2, width=4)])
def test_radius_is_what_changes_the_output(settings: ResNetSettings | UNetSettings) -> None:
    """Random weights, no ReLU that could hide a dependence, each pixel tried."""
    network = settings.model_copy(update={"norm": "none", "initialisation": InitialisationSettings(kind="kaiming")})
    built = network.build(1, 1)
    for parent in list(built.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.ReLU, nn.LeakyReLU)):
                setattr(parent, name, nn.Identity())
    block = built.multiple
    seen = columns_moved(built, 48, 48 + block)
    assert receptive_radius(built, 1) == max(48 - seen[0], seen[-1] - (48 + block - 1))


def test_norms_do_not_count_but_pooling_does() -> None:
    assert receptive_radius(Plain(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.GroupNorm(1, 4)), 1) == 1

    class Pooled(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.mean((2, 3), keepdim=True)

    with pytest.raises(ValueError, match="cannot run in tiles"):
        receptive_radius(Pooled(), 1)
    image = scenery(80, 100)
    with pytest.raises(UserError, match="--tile off"):
        convert(Pooled(), image, tile=64)
    whole = Translator(Pooled(), GREY, GREY, device="cpu", precision="fp32", tile="auto")
    assert not whole.in_tiles(10_000, 10_000)


# Cutting


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(0, 30), st.sampled_from([1, 4, 16]))
def test_cores_cover_each_pixel_once(height: int, width: int, side: int, halo: int, multiple: int) -> None:
    height, width = height * multiple, width * multiple
    covered = np.zeros((height, width), int)
    for core, window in tiles(height, width, side, halo, multiple):
        covered[core.top : core.bottom, core.left : core.right] += 1
        assert all(edge % multiple == 0 for edge in (*core, *window))
        assert max(core.height, core.width) <= max(side, multiple) + multiple - 1
        # The halo is whole but at the image's own border.
        assert window.top == 0 or core.top - window.top >= halo
        assert window.left == 0 or core.left - window.left >= halo
        assert window.bottom == height or window.bottom - core.bottom >= halo
        assert window.right == width or window.right - core.right >= halo
        assert min(window) >= 0 and window.bottom <= height and window.right <= width
    assert (covered == 1).all()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 20_000), (20_000, 8), (512, 768), (64, 64)])
def test_small_copies_have_a_size_that_the_network_takes(height: int, width: int) -> None:
    image = np.full((height, width, 5), 77, np.uint16)
    small = small_copy(image, 64 * 64, 4, 8, labels=False)
    assert small.dtype == np.uint16 and small.shape[2] == 5 and (small == 77).all()
    assert small.shape[0] % 4 == small.shape[1] % 4 == 0 and min(small.shape[:2]) >= 8
    assert small.shape[0] <= height and small.shape[1] <= width and small.shape[0] * small.shape[1] <= 64 * 64


def test_a_small_copy_of_class_numbers_mixes_none() -> None:
    numbers = np.random.default_rng(0).choice(np.array([0, 200], np.uint8), (64, 64, 1))
    assert set(np.unique(small_copy(numbers, 256, 4, 8, labels=True))) == {0, 200}


# Tiles against the whole image


@pytest.mark.parametrize("norm", ["instance", "group", "layer"])
def test_as_many_passes_as_norms_give_the_untiled_image(norm: str) -> None:
    """To rounding in float32: some 1e-6 of the range at each of 9 layers, a few steps of 65535."""
    network, image = resnet(norm), scenery()
    whole = convert(network, image, tile="off")
    assert whole.std() > 20 * LEVEL  # it shows something
    apart = [np.abs(convert(network, image, tile=64, tile_passes=passes) - whole) for passes in (0, 2, 7)]
    assert apart[2].max() <= 8
    assert apart[0].mean() > 0.05 * LEVEL  # there was something to find
    assert apart[1].mean() < apart[0].mean() / 3


def test_statistics_put_in_force_one_by_one_are_exact_one_by_one() -> None:
    """After n passes the first n norms have the statistics of the untiled image, taken by hooks."""
    from translate.inference.tiling import TiledNetwork

    network = resnet().eval().requires_grad_(False)
    image = torch.from_numpy(scenery(128, 160).astype(np.float32))[None, None] / 32767.5 - 1
    wanted: list[tuple[Tensor, Tensor]] = []
    for layer in network.modules():
        if isinstance(layer, nn.InstanceNorm2d):
            layer.register_forward_pre_hook(
                lambda _, inputs: wanted.append(
                    (inputs[0].double().mean((0, 2, 3)), inputs[0].double().var((0, 2, 3), correction=0))
                )
            )
    network(image)
    truth = list(wanted)
    for layer in network.modules():
        layer._forward_pre_hooks.clear()
    halo = receptive_radius(network, 1)
    cut = tiles(128, 160, 64, halo, 4)
    for passes in (1, 3):
        tiled = TiledNetwork(network)
        sample = torch.nn.functional.avg_pool2d(image, 2)
        tiled.adapt(sample, passes, cut, lambda w, t=tiled: t(image[:, :, w.top : w.bottom, w.left : w.right]))
        # They stand in the order of the network: it is a chain.
        order = [norm for norm in tiled.network.modules() if type(norm).__name__ == "SharedNorm"]
        errors = [
            float(((norm.mean - mean).square() / variance).max().sqrt() + (norm.variance / variance - 1).abs().max())
            for norm, (mean, variance) in zip(order, truth, strict=True)
        ]
        assert max(errors[:passes]) < 1e-4  # float32, over 20,000 pixels
        assert max(errors[passes:]) > 1e-3


@pytest.mark.parametrize(
    "network",
    [resnet("batch"), resnet("none"), UNetSettings(depth=3, width=4).build(1, 1)],
    ids=["batch", "none", "unet"],
)
def test_without_norms_over_the_image_tiles_are_exact_at_once(network: nn.Module) -> None:
    image = scenery()
    translator = Translator(network, GREY, GREY, device="cpu", precision="fp32", tile=64)
    heard: list[tuple[int, int]] = []
    translator.on_tile = lambda done, total: heard.append((done, total))
    difference = translator(image).astype(np.int64) - convert(network, image, tile="off")
    assert np.abs(difference).max() <= 2  # rounding: kernels add up in another order for another width
    assert heard == [(done, 12) for done in range(1, 13)]  # 3 x 4 tiles, once


def seam(tiled: np.ndarray, whole: np.ndarray, side: int) -> float:
    """How much the difference's steps across the tiles' upright borders stand out from those beside; 1: no seam.

    Steps are averaged along 16 rows first: a seam goes along its border, while texture changes from row to row.
    """
    height, width = whole.shape
    across = np.diff((tiled - whole).astype(np.float64), axis=1)  # (H, W - 1), between columns x and x + 1
    across = np.abs(across.reshape(height // 16, 16, width - 1).mean(axis=1)).mean(axis=0)
    borders = np.array([core.left - 1 for core, _ in tiles(height, width, side, 0, 4) if core.left])
    beside = [borders + distance for distance in range(-8, 9) if distance]
    return float(across[borders].mean() / across[np.concatenate(beside)].mean())


def calm(height: int = 192, width: int = 256, side: int = 64) -> np.ndarray:
    """16 bits: a calm plain with something else in the middle of each tile, beyond the halo of its borders."""
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 300, (height // 16, width // 16)).astype(np.float32)
    picture = 30000 + cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    for top in range(20, height, side):
        for left in range(20, width, side):
            picture[top : top + 24, left : left + 24] += generator.normal(0, 15000)
    return picture.clip(0, 65535).astype(np.uint16)


@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_there_is_no_seam_and_naive_tiles_have_one(norm: str) -> None:
    """Before the statistics are exact, too: 0 passes differ from the untiled image, but alike on all tiles."""
    # Resize upsampling: the checkerboards of transposed convolutions with random weights are steps everywhere.
    network, image = resnet(norm, upsampling="resize"), calm()
    whole = convert(network, image, tile="off")
    alone = Translator(network, GREY, GREY, device="cpu", precision="fp32", tile="off")
    naive = np.empty_like(whole)
    for core, window in tiles(*image.shape, 64, receptive_radius(network, 1), 4):
        made = alone(np.ascontiguousarray(image[window.top : window.bottom, window.left : window.right]))
        top, left = core.top - window.top, core.left - window.left
        naive[core.top : core.bottom, core.left : core.right] = made[top : top + core.height, left : left + core.width]
    assert seam(naive, whole, 64) > 1.5
    for passes in (0, 1):
        tiled = convert(network, image, tile=64, tile_passes=passes)
        assert np.abs(tiled - whole).mean() > 10  # the ratio is not of rounding
        # Three borders and 12 groups of rows: 36 steps, whose mean is within 20 % of that of the others.
        assert seam(tiled, whole, 64) < 1.2


def test_cut_halos_share_the_statistics_too() -> None:
    """Of 22 pixels that the network sees, tiles see 12. What lies deeper inside has the whole image's colours."""
    network, image = resnet(upsampling="resize"), calm()
    assert receptive_radius(network, 1) == 22
    whole = convert(network, image, tile="off")
    exact, cut = (convert(network, image, tile=64, tile_passes=7, overlap=overlap) for overlap in ("exact", 12))
    assert np.abs(exact - whole).max() <= 8
    apart = np.abs(cut - whole)
    assert apart.max() > LEVEL and apart.mean() < LEVEL / 2
    inside = [apart[top + 16 : top + 48, left + 16 : left + 48] for top in (0, 64, 128) for left in (0, 64, 128, 192)]
    assert np.mean(inside) < LEVEL / 10


# The translator's choice


def test_images_up_to_the_limit_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image = scenery(100, 80)
    network = resnet()
    translator = Translator(network, GREY, GREY, device="cpu", precision="fp32")
    monkeypatch.setattr(module, "AUTO_PIXELS", 100 * 80)
    assert not translator.in_tiles(100, 80) and translator.in_tiles(100, 81)
    np.testing.assert_array_equal(translator(image), convert(network, image, tile="off"))
    assert translator._halo is None or not translator._tiled  # nothing was prepared
    assert not Translator(network, GREY, GREY, device="cpu", tile="off").in_tiles(10_000, 10_000)
    assert "off" in str(Translator(network, GREY, GREY, device="cpu", protocol="paper").tile)


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (67, 131), (130, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_size_and_depth_come_back_exactly_from_tiles(shape: tuple[int, int], dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (*shape, 4), dtype=dtype)
    image[..., 3] = np.iinfo(dtype).max  # alpha: it is joined on again

    class Negative(Plain):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2] % 8 == x.shape[3] % 8 == 0 and min(x.shape[2:]) >= 16
            if x.dtype == torch.float32:  # not the probe for the halo
                assert max(x.shape[2:]) <= 64 + 2 * 16 + 8
            return -x

    colour = ImageSpec()
    network = Negative(multiple=8, smallest=16)
    translator = Translator(network, colour, colour, device="cpu", precision="fp32", tile=64)
    made = translator(image)
    assert made.dtype == dtype
    np.testing.assert_array_equal(made[..., :3], np.iinfo(dtype).max - image[..., :3])
    np.testing.assert_array_equal(made[..., 3], image[..., 3])


def test_label_maps_and_enlarging_networks() -> None:
    labels = ImageSpec(kind="labels", classes=4)
    numbers = np.random.default_rng(0).integers(0, 4, (90, 133), dtype=np.uint8)
    same = Plain(nn.InstanceNorm2d(4))  # the order of a channel's two values stays
    tiled = Translator(same, labels, labels, device="cpu", precision="fp32", tile=64)
    whole = Translator(same, labels, labels, device="cpu", precision="fp32", tile="off")
    np.testing.assert_array_equal(tiled(numbers), whole(numbers))

    torch.manual_seed(0)
    double = Plain(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.PixelShuffle(2), nn.Tanh(), scale=2)
    image = scenery(70, 150)
    whole_image = convert(double, image, tile="off")
    assert whole_image.shape == (140, 300)
    assert np.abs(convert(double, image, tile=64, tile_passes=1) - whole_image).max() <= 2


def test_bf16_tiles_are_as_near_as_bf16_is() -> None:
    """Differences of rounding alone: as large as those between bf16 and float32 of the whole image."""
    network, image = resnet(), (scenery() >> 8).astype(np.uint8)
    exact = convert(network, image, tile="off")

    def run(tile: int | str) -> np.ndarray:
        translator = Translator(network, GREY, GREY, device="cpu", precision="bf16", tile=tile, tile_passes=7)
        return translator(image).astype(np.int64)

    whole, tiled = run("off"), run(64)
    assert np.abs(tiled - exact).mean() < 1.5 * np.abs(whole - exact).mean() + 0.1


def test_short_memory_halves_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hungry(Plain):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] * x.shape[3] > 140 * 140:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return -x

    translator = Translator(Hungry(), GREY, GREY, device="cpu", precision="fp32", tile=256)
    image = scenery(300, 400)
    np.testing.assert_array_equal(translator(image), 65535 - image)
    assert translator._side == 128  # 256 and its halo were too much
    assert "of 128 pixels" in translator.describe()["tiles"]  # the next image begins with it

    class Starving(Plain):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hopeless = Translator(Starving(), GREY, GREY, device="cpu", precision="fp32", tile=256)
    hopeless._halo = 8
    with pytest.raises(torch.OutOfMemoryError):
        hopeless(image)

    # A GPU that has no room for a whole image runs it in tiles, unless that is forbidden or there are several.
    for tile, count, expected in (("auto", 1, "tiles"), ("auto", 2, None), ("off", 1, None)):
        gpu = Translator(Starving(), GREY, GREY, device="cpu", precision="fp32", tile=tile)
        gpu.device = torch.device("cuda")
        monkeypatch.setattr(gpu, "_forward", Starving().forward)
        monkeypatch.setattr(gpu, "_can_tile", lambda: True)
        monkeypatch.setattr(gpu, "_run_tiled", lambda pixels: "tiles")
        if expected:
            assert gpu.run([image[..., None]] * count) == [expected]
        else:
            with pytest.raises(torch.OutOfMemoryError):
                gpu.run([image[..., None]] * count)


def test_choices_that_cannot_be() -> None:
    with pytest.raises(UserError, match="tile 16: expected at least 32"):
        Translator(resnet(), GREY, GREY, device="cpu", tile=16)
    with pytest.raises(UserError, match="protocol 'paper'"):
        Translator(resnet(), GREY, GREY, device="cpu", tile=256, protocol="paper")


def test_no_number_is_told() -> None:
    broken = resnet()
    broken.layers[0].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="no number"):
        convert(broken, scenery(80, 100), tile=64)


# The command line


def test_the_command_converts_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    small = ["method.generator.depth=3", "method.generator.width=4", "method.generator.initialisation.kind=kaiming"]
    chosen = configs.load("pix2pix", [*small, f"data.root={tmp_path}"])
    weights = Run(tmp_path).export("last", chosen, chosen.method.build(chosen.data).exported(), step=1, images=1)
    image = np.repeat((scenery(80, 200) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    write_image(tmp_path / "large.png", image)

    def run(tile: str, name: str = "made.png") -> tuple[int, str]:
        arguments = [str(weights), str(tmp_path / "large.png"), str(tmp_path / name), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["translate", "convert", *arguments, "--precision", "fp32", "--tile", tile])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    monkeypatch.setattr("time.monotonic", iter(range(0, 10**6, 11)).__next__)  # a line at each change: 11 s have passed
    code, said = run("64")
    assert code == 0
    # 2 x 4 tiles of a network without norms over the image, and the file: parts of nine, in percent.
    assert [f"converting, %: {number}/100" in said for number in (11, 22, 55, 88, 100)] == [True] * 5
    assert run("off", "whole.png")[0] == 0
    made, whole = (read_image(tmp_path / name).pixels.astype(int) for name in ("made.png", "whole.png"))
    assert whole.std() > 5 and np.abs(made - whole).max() <= 1
    for wrong, message in (("large", "expected auto, off or a side in pixels"), ("8", "expected at least 32 pixels")):
        code, said = run(wrong, "never.png")
        assert code == 2 and message in said and said.count("\n") == 1
