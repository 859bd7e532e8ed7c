from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from translate import config as configs
from translate.data.images import read_image, to_pixels
from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.inference import sampler as module
from translate.inference.sampler import (
    SampleOptions,
    Sampler,
    Term,
    coefficients,
    equation,
    grid,
    parse_arithmetic,
    write_samples,
)
from translate.methods.generative import GenerativeMethod
from translate.networks.latent import LatentGenerator
from translate.run import Run

torch.set_num_threads(1)

NAMES = ["cat", "dog", "1"]
LINEAR = (nn.Linear, nn.ConvTranspose2d)
STAGES = [{"length": "1 steps", "optimiser": {"kind": "Adam", "lr": 1e-3}}]


def config(**method: Any) -> configs.Config:
    """A GAN of 8x8 grey pictures; `data`, `ema` and whatever the method takes may differ."""
    data = {"kind": "folder", "root": "none", "image": {"channels": 1}, "augment": {"crop": 8}}
    data = method.pop("data", {**data, "classes": NAMES if "conditioning" in method else None})
    players = {"generator": {"kind": "dcgan", "width": 4}, "discriminator": {"kind": "dcgan", "width": 4}}
    training: dict[str, Any] = {
        "batch_size": 4,
        "stages": [{"length": "1 steps", "optimiser": {"kind": "Adam", "lr": 1e-3}}],
    }
    if ema := method.pop("ema", None):
        training["ema"] = ema
    content = {
        "method": {"kind": "gan", "latent": {"width": 6, "prior": "normal"}, **players, **method},
        "data": data,
        "training": training,
    }
    return configs.validate(content, "test")


def gan(**method: Any) -> GenerativeMethod:
    settings = config(**method)
    torch.manual_seed(1)
    built = settings.method.build(settings.data)
    assert isinstance(built, GenerativeMethod)
    for layer in built.generator.modules():  # weights and statistics with which pictures span the range
        if isinstance(layer, LINEAR):
            nn.init.normal_(layer.weight, 0, 0.4)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 2)
    return built


class Ruler(LatentGenerator):
    """Writes what it was given: the first column is the latent / 4, the second the label / 8."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent, self.shape = latent, (1, 8, 8)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        picture = torch.zeros(len(latent), 1, 8, 8)
        picture[:, 0, : latent.shape[1], 0] = latent / 4
        if label is not None:
            picture[:, 0, :, 1] = label[:, None] / 8
        return picture


def ruled(**method: Any) -> Sampler:
    built = gan(**method)
    built.players["generator"] = Ruler(6)
    return Sampler(built, device="cpu", precision="fp32")


def latents_of(pictures: np.ndarray) -> np.ndarray:
    """What the ruler wrote, (..., 6); a level is 4 / 127.5."""
    return (pictures[..., :6, 0, 0].astype(np.float64) / 127.5 - 1) * 4


LEVEL = 4 / 127.5
BY_NORM = {"generator": "norm", "discriminator": "none"}


# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_depends_on_nothing_but_its_seed_and_number(precision: Any) -> None:
    sampler = Sampler(gan(), device="cpu", precision=precision)
    many = sampler.sample(21, seed=5)
    assert many.shape == (21, 8, 8, 1) and many.dtype == np.uint8
    for count in (1, 7, 8, 9):
        np.testing.assert_array_equal(sampler.sample(count, seed=5), many[:count])
    np.testing.assert_array_equal(Sampler(gan(), device="cpu", precision=precision).sample(21, seed=5), many)
    torch.manual_seed(99)
    np.testing.assert_array_equal(np.concatenate(list(sampler.stream(21, seed=5))), many)
    assert len({image.tobytes() for image in many}) == 21  # and all differ
    assert not np.array_equal(sampler.sample(21, seed=6), many)


def test_images_are_what_the_generator_makes() -> None:
    built = gan()
    sampler = Sampler(built, device="cpu", precision="fp32")
    latents = sampler.latents(range(10), seed=2)
    built.eval()
    with torch.no_grad():
        expected = to_pixels(built.generate(latents), ImageSpec(channels=1))
    made = sampler.sample(10, seed=2)
    # float32 sums in another order may fall on the other side of a rounding.
    assert np.abs(made.astype(int) - expected).max() <= 1 and made.std() > 20
    half = Sampler(built, device="cpu", precision="bf16").sample(10, seed=2)
    # 8 bits of mantissa in each of three layers: some levels, and not a systematic shift.
    assert np.abs(half.astype(int) - expected).mean() < 2


def test_sampling_leaves_the_method_alone() -> None:
    built = gan()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    Sampler(built, device="cpu", precision="bf16", standing_statistics=2).sample(3)
    assert all(torch.equal(before[name], tensor) for name, tensor in built.state_dict().items())
    assert built.generator.training and all(p.requires_grad for p in built.generator.parameters())


def test_latents_are_draws_from_the_prior() -> None:
    latents = Sampler(gan(), device="cpu").latents(range(4000), seed=3)
    assert latents.shape == (4000, 6) and len(latents.unique(dim=0)) == 4000
    values = latents.flatten()
    # Five standard errors of mean and variance of 24,000 normal numbers; neighbours do not correlate.
    error = 5 / math.sqrt(len(values))
    assert abs(float(values.mean())) < error and abs(float(values.var()) - 1) < error * math.sqrt(2)
    assert abs(float((latents[1:] * latents[:-1]).mean())) < error


def test_seeds_of_latents_do_not_repeat() -> None:
    seeds = {number for seed in (0, 1, 2) for number in module._latent_seeds(seed, range(100_000))}
    assert len(seeds) == 300_000 and all(0 <= seed < 2**32 for seed in seeds)


def test_truncation_is_the_truncated_normal() -> None:
    latents = Sampler(gan(), device="cpu").latents(range(4000), truncation=0.7)
    a = 0.7
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * a * density / math.erf(a / math.sqrt(2))  # of a normal within +-a
    assert float(latents.abs().max()) <= a
    assert float(latents.var()) == pytest.approx(variance, rel=0.05)  # five standard errors are 4 %


def test_truncation_needs_a_normal_prior() -> None:
    sampler = Sampler(gan(latent={"width": 6, "prior": "uniform"}), device="cpu")
    with pytest.raises(UserError, match="normal prior"):
        sampler.sample(1, truncation=0.7)


# ---- classes ---------------------------------------------------------------------------------------------------------


def labels_of(pictures: np.ndarray) -> list[int]:
    return np.rint((pictures[..., 0, 1, 0] / 127.5 - 1) * 8).astype(int).ravel().tolist()


def test_classes_take_turns_or_are_chosen() -> None:
    sampler = ruled(conditioning=BY_NORM)
    assert labels_of(sampler.sample(7)) == [0, 1, 2, 0, 1, 2, 0]
    assert labels_of(sampler.sample(3, label="dog")) == [1, 1, 1]
    assert labels_of(sampler.sample(2, label=2)) == [2, 2]
    assert labels_of(sampler.sample(2, label="0")) == [0, 0]
    assert labels_of(sampler.sample(2, label="1")) == [2, 2]  # the class called 1, before number 1
    # The class does not change the latent.
    np.testing.assert_array_equal(latents_of(sampler.sample(3, label="dog")), latents_of(sampler.sample(3)))


@pytest.mark.parametrize("condition", ["concat", "norm"])
def test_conditional_generators_run(condition: str) -> None:
    sampler = Sampler(gan(conditioning={"generator": condition, "discriminator": "none"}), device="cpu")
    assert sampler.sample(5).shape == (5, 8, 8, 1)


@pytest.mark.parametrize(
    ("label", "message"),
    [("dgo", "did you mean 'dog'"), ("zebra", "cat, dog, 1"), (3, "0 to 2"), (-1, "0 to 2")],
)
def test_unknown_classes(label: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ruled(conditioning=BY_NORM).sample(1, label=label)


def test_a_class_of_a_model_without_classes() -> None:
    with pytest.raises(UserError, match="no classes"):
        ruled().sample(1, label=0)


# ---- between images --------------------------------------------------------------------------------------------------


def test_interpolation_leads_along_the_great_circle_from_image_to_image() -> None:
    sampler = ruled()
    images = sampler.sample(10, seed=4)
    rows = sampler.interpolate([2, 9, 5], 5, seed=4)
    assert rows.shape == (2, 5, 8, 8, 1)
    for row, (first, last) in zip(rows, [(2, 9), (9, 5)], strict=True):
        np.testing.assert_array_equal(row[0], images[first])
        np.testing.assert_array_equal(row[-1], images[last])
    # Midway on the circle: the bisector of the two, stretched so that both legs are half the angle.
    a, b = sampler.latents([2, 9], seed=4).double().numpy()
    angle = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    np.testing.assert_allclose(latents_of(rows[0, 2]), (a + b) / (2 * math.cos(angle / 2)), atol=LEVEL)


def test_interpolation_of_a_uniform_prior_is_straight() -> None:
    sampler = ruled(latent={"width": 6, "prior": "uniform"})
    row = sampler.interpolate([0, 1], 3)[0]
    a, b = sampler.latents([0, 1]).numpy()
    np.testing.assert_allclose(latents_of(row[1]), (a + b) / 2, atol=LEVEL)


def test_a_closed_film_comes_back_without_a_frame_twice() -> None:
    sampler = ruled()
    images = sampler.sample(3)
    rows = sampler.interpolate([0, 1, 2], 4, closed=True)
    assert rows.shape[:2] == (3, 4)
    np.testing.assert_array_equal(rows[:, 0], images)
    film = rows.reshape(12, -1)
    assert len({frame.tobytes() for frame in film}) == 12
    # The last leg ends at the first image: its frames lie on that circle.
    np.testing.assert_array_equal(rows[2, 2], sampler.interpolate([2, 0], 3)[0, 1])


def test_the_class_of_a_strip_is_that_of_each_first_image() -> None:
    sampler = ruled(conditioning=BY_NORM)
    assert labels_of(sampler.interpolate([1, 2, 3], 2)) == [1, 1, 2, 2]
    assert labels_of(sampler.interpolate([1, 2, 3], 2, label="cat")) == [0, 0, 0, 0]
    assert labels_of(sampler.interpolate([1, 2, 3], 2, closed=True)) == [1] * 6


@pytest.mark.parametrize(("numbers", "frames"), [([0], 3), ([0, 1], 1)])
def test_too_little_to_interpolate(numbers: list[int], frames: int) -> None:
    with pytest.raises(ValueError, match="two images and two frames"):
        ruled().interpolate(numbers, frames)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("12-5+33", [Term(1, (12,)), Term(-1, (5,)), Term(1, (33,))]),
        (" 1, 2 ,3 - 4 ", [Term(1, (1, 2, 3)), Term(-1, (4,))]),
        ("-7+8", [Term(-1, (7,)), Term(1, (8,))]),
        ("0", [Term(1, (0,))]),
    ],
)
def test_expressions(expression: str, terms: list[Term]) -> None:
    assert parse_arithmetic(expression) == terms


@pytest.mark.parametrize("expression", ["", "a-b", "1 2", "1--2", "1+", "1.5+2", "1,+2", "3*4"])
def test_expressions_that_are_none(expression: str) -> None:
    with pytest.raises(UserError, match="such as 12-5\\+33"):
        parse_arithmetic(expression)


def test_what_cancels_out_is_refused() -> None:
    with pytest.raises(UserError, match="cancels out"):
        coefficients(parse_arithmetic("1,2-2,1"))


def test_arithmetic_keeps_normal_latents_their_length() -> None:
    sampler = ruled()
    z = sampler.latents(range(6)).numpy()
    made = latents_of(sampler.arithmetic("4-1+2"))
    np.testing.assert_allclose(made, [z[4], z[1], z[2], (z[4] - z[1] + z[2]) / math.sqrt(3)], atol=LEVEL)
    made = latents_of(sampler.arithmetic("0,1,2-3+3+5"))
    np.testing.assert_allclose(made[0], (z[0] + z[1] + z[2]) / math.sqrt(3), atol=LEVEL)
    factors = np.array([1 / 3, 1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(made[-1], factors @ z[[0, 1, 2, 5]] / np.linalg.norm(factors), atol=LEVEL)


def test_arithmetic_of_uniform_latents_is_the_papers() -> None:
    sampler = ruled(latent={"width": 6, "prior": "uniform"})
    z = sampler.latents(range(6)).numpy()
    made = latents_of(sampler.arithmetic("0,1,2-3+5"))
    np.testing.assert_allclose(made[-1], z[:3].mean(0) - z[3] + z[5], atol=LEVEL)


def test_arithmetic_is_of_one_class() -> None:
    sampler = ruled(conditioning=BY_NORM)
    assert labels_of(sampler.arithmetic("4-0")) == [1, 1, 1]
    assert labels_of(sampler.arithmetic("4-0", label=2)) == [2, 2, 2]


# ---- standing statistics ---------------------------------------------------------------------------------------------


def first_norm(sampler: Sampler, truncation: float | None = None) -> tuple[nn.Linear, nn.BatchNorm2d]:
    layers = list(sampler._network(truncation).modules())
    first = next(layer for layer in layers if isinstance(layer, LINEAR))
    assert isinstance(first, nn.Linear)
    return first, next(layer for layer in layers if isinstance(layer, nn.BatchNorm2d))


@pytest.mark.parametrize("truncation", [None, 0.5])
def test_standing_statistics_are_those_of_the_latents(truncation: float | None) -> None:
    """The first layer is linear: its channels have mean 0, and the variance |w|^2 times that of a latent's entry."""
    built = gan()
    sampler = Sampler(built, device="cpu", precision="fp32", standing_statistics=40)
    layer, norm = first_norm(sampler, truncation)
    variance = 1.0
    if truncation:
        a = truncation
        variance -= 2 * a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi) / math.erf(a / math.sqrt(2))
    rows = layer.weight.detach().square().sum(1)
    per_channel = rows.view(norm.num_features, 16).mean(1)  # (C,): over the 4x4 pixels
    # 2,560 latents: five standard errors of a variance are 14 %, of a mean 10 % of the deviation.
    torch.testing.assert_close(norm.running_var, variance * per_channel, rtol=0.15, atol=0)
    assert torch.all(norm.running_mean.abs() < 0.1 * (variance * per_channel).sqrt())
    assert not norm.training


def test_standing_statistics_depend_on_nothing_but_the_truncation() -> None:
    once = Sampler(gan(), device="cpu", standing_statistics=3)
    again = Sampler(gan(), device="cpu", standing_statistics=3)
    torch.manual_seed(7)
    again.sample(2, seed=9, truncation=0.3)
    np.testing.assert_array_equal(once.sample(4), again.sample(4))
    plain = Sampler(gan(), device="cpu")
    assert not np.array_equal(once.sample(4), plain.sample(4))


def test_progress_of_standing_statistics() -> None:
    heard: list[int] = []
    sampler = Sampler(gan(), device="cpu", standing_statistics=3)
    sampler.prepare(0.5, heard.append)
    sampler.sample(1, truncation=0.5)  # not again
    assert heard == [1, 2, 3]


def test_conditional_norms_have_standing_statistics_of_all_classes() -> None:
    sampler = Sampler(gan(conditioning=BY_NORM), device="cpu", standing_statistics=2)
    assert sampler.sample(3).shape == (3, 8, 8, 1)
    _, norm = first_norm(sampler)
    assert int(norm.num_batches_tracked) == 2


def test_spectral_norm_stays_where_training_left_it() -> None:
    built = gan()
    for layer in list(built.generator.modules()):
        if isinstance(layer, LINEAR):
            nn.utils.parametrizations.spectral_norm(layer)
    built.eval()
    weights = [layer.weight.detach() for layer in built.generator.modules() if isinstance(layer, LINEAR)]
    sampler = Sampler(built, device="cpu", precision="fp32", standing_statistics=3)
    sampler.sample(2)
    found = [layer.weight for layer in sampler._network(None).modules() if isinstance(layer, LINEAR)]
    assert len(found) == len(weights) > 0
    for expected, weight in zip(weights, found, strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_standing_statistics_need_batch_norm() -> None:
    with pytest.raises(UserError, match="has none"):
        Sampler(gan(generator={"kind": "mlp", "hidden": [8]}), device="cpu", standing_statistics=1)


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "asked", "passes"),
    [
        ({"ema": {"half_life": "10 images"}}, None, module.STANDING_PASSES),
        ({"ema": {"half_life": "10 images"}}, 0, 0),
        ({"ema": {"half_life": "10 images"}, "generator": {"kind": "mlp", "hidden": [8]}}, None, 0),
        ({}, None, 0),
        ({}, 5, 5),
    ],
)
def test_loading(tmp_path: Path, method: dict[str, Any], asked: int | None, passes: int) -> None:
    settings = config(**method)
    torch.manual_seed(0)
    built = settings.method.build(settings.data)
    path = Run(tmp_path).export("last", settings, built.exported(), step=12, images=48)
    loaded = Sampler.load(tmp_path, device="cpu", standing_statistics=asked)
    assert loaded.standing_statistics == passes
    facts = loaded.describe()
    assert facts["model"] == str(path) and facts["step"] == 12 and len(facts["sha256"]) == 64
    direct = Sampler(built, device="cpu", standing_statistics=passes)
    np.testing.assert_array_equal(loaded.sample(3), direct.sample(3))


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        Sampler(gan(), device="cpu", precision="fp16")


# ---- points ----------------------------------------------------------------------------------------------------------


def toy() -> GenerativeMethod:
    return gan(
        data={"kind": "toy"},
        generator={"kind": "mlp", "hidden": [8]},
        discriminator={"kind": "mlp", "hidden": [8]},
    )


def test_points_are_float32_in_full_precision() -> None:
    built = toy()
    sampler = Sampler(built, device="cpu")
    points = sampler.sample(1500, seed=1)
    assert points.shape == (1500, 2) and points.dtype == np.float32 and sampler.dtype == torch.float32
    with torch.no_grad():
        expected = built.generate(sampler.latents(range(1500), seed=1)).numpy()
    np.testing.assert_allclose(points, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sampler.sample(30, seed=1), points[:30])


def test_points_are_written_with_a_plot(tmp_path: Path) -> None:
    sampler = Sampler(toy(), device="cpu")
    facts = write_samples(sampler, tmp_path / "out", SampleOptions(count=500))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "points.npy"), sampler.sample(500))
    plot = read_image(tmp_path / "out" / "grid.png").pixels
    assert plot.shape == (512, 512, 3) and plot.min() < 140 and plot.max() == 255
    assert facts["files"] == {"points": "points.npy", "grid": "grid.png"}
    with pytest.raises(UserError, match="makes points"):
        write_samples(sampler, tmp_path / "other", SampleOptions(interpolate=4))


# ---- pictures and files ----------------------------------------------------------------------------------------------


def test_a_grid_is_images_on_white() -> None:
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((3, 4, 5, 2), np.uint8)
    sheet = grid(images, 2)
    assert sheet.shape == (2 * 4 + 3 * 2, 2 * 5 + 3 * 2, 2)
    assert (sheet[2:6, 2:7] == 0).all() and (sheet[2:6, 9:14] == 1).all() and (sheet[8:12, 2:7] == 2).all()
    assert (sheet[8:12, 9:14] == 255).all()
    assert int((sheet != 255).sum()) == 3 * 4 * 5 * 2


def test_an_equation_shows_its_signs() -> None:
    images = np.full((4, 16, 16, 3), 200, np.uint8)
    row = equation(images, parse_arithmetic("1-2+3"))
    tile = 2 * 6  # a sign is as wide as three quarters of the smallest picture
    assert row.shape == (16 + 4, 4 * 16 + 3 * tile + 4, 3)
    ink = [int((row[2:-2, x : x + tile] == 0).all(-1).sum()) for x in (18, 46, 74)]
    minus, plus, equals = ink
    assert 0 < minus < plus and equals == 2 * minus
    assert (row[2:18, 2:18] == 200).all() and (row[2:18, -18:-2] == 200).all()
    assert equation(images[:2], parse_arithmetic("-1")).shape[1] == 2 * 16 + 2 * tile + 4
    alpha = equation(np.full((2, 16, 16, 4), 200, np.uint8), parse_arithmetic("1"))
    assert ((alpha[..., 3] == 255) | (alpha[..., 3] == 200)).all()  # signs and paper are opaque


def test_files_of_images(tmp_path: Path) -> None:
    sampler = Sampler(gan(), device="cpu")
    out = tmp_path / "deep" / "out"
    heard: list[int] = []
    options = SampleOptions(count=11, seed=3, truncation=0.9, interpolate=4, arithmetic="1-2+3")
    facts = write_samples(sampler, out, options, heard.append)
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        *(f"{i:04d}.png" for i in range(11)),
        "arithmetic.png",
        "grid.png",
        "interpolation.png",
        "sample.json",
    ]
    images = sampler.sample(11, seed=3, truncation=0.9)
    for number in range(11):
        np.testing.assert_array_equal(read_image(out / f"{number:04d}.png").pixels, images[number])
    np.testing.assert_array_equal(read_image(out / "grid.png").pixels, grid(images, 4))
    strip = sampler.interpolate(range(9), 4, seed=3, truncation=0.9)
    np.testing.assert_array_equal(read_image(out / "interpolation.png").pixels, grid(strip.reshape(32, 8, 8, 1), 4))
    assert heard[-1] == 11 and heard == sorted(heard)
    assert json.loads((out / "sample.json").read_text()) == facts
    assert (facts["seed"], facts["truncation"], facts["count"]) == (3, 0.9, 11)


@pytest.mark.parametrize(
    ("count", "label", "columns"), [(7, None, 3), (27, None, 6), (10, "dog", 4), (9, "dog", 3), (2, None, 2)]
)
def test_a_column_of_the_grid_is_of_one_class(tmp_path: Path, count: int, label: str | None, columns: int) -> None:
    sampler = ruled(conditioning=BY_NORM)
    write_samples(sampler, tmp_path, SampleOptions(count=count, label=label, images=False))
    expected = grid(sampler.sample(count, label=label), columns)
    np.testing.assert_array_equal(read_image(tmp_path / "grid.png").pixels, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "sample.json"]


def test_a_gif_runs_for_ever(tmp_path: Path) -> None:
    sampler = Sampler(gan(), device="cpu")
    write_samples(sampler, tmp_path, SampleOptions(count=4, interpolate=3, between=(3, 8, 1), gif=True))
    film = sampler.interpolate([3, 8, 1], 3, closed=True).reshape(9, 8, 8)
    with Image.open(io.BytesIO((tmp_path / "interpolation.gif").read_bytes())) as gif:
        assert gif.info["loop"] == 0 and gif.n_frames == 9  # type: ignore[attr-defined]
        for index in (0, 4, 8):
            gif.seek(index)
            np.testing.assert_array_equal(np.asarray(gif.convert("L")), film[index])


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    sampler = Sampler(gan(), device="cpu")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_samples(sampler, tmp_path, SampleOptions(count=2))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    write_samples(sampler, tmp_path, SampleOptions(count=12, overwrite=True, arithmetic="1-2"))
    write_samples(sampler, tmp_path, SampleOptions(count=2, seed=1, overwrite=True))
    # Of the first twelve none is left among those of another seed.
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0000.png", "0001.png", "grid.png", "mine.txt", "sample.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gif": True}, "need --interpolate"),
        ({"between": (1, 2)}, "need --interpolate"),
        ({"between": (1,), "interpolate": 4}, "two images or more"),
        ({"interpolate": 1}, "two frames or more"),
        ({"arithmetic": "1-1"}, "cancels out"),
        ({"label": "cat"}, "no classes"),
        ({"truncation": -1.0}, "above 0"),
    ],
)
def test_nothing_is_written_after_a_mistake(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_samples(Sampler(gan(), device="cpu"), tmp_path / "out", SampleOptions(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_channels(tmp_path: Path, channels: int) -> None:
    data = {"kind": "folder", "root": "none", "image": {"channels": channels}, "augment": {"crop": 8}}
    sampler = Sampler(gan(data=data), device="cpu")
    write_samples(sampler, tmp_path, SampleOptions(count=2, arithmetic="1-2"))
    images = sampler.sample(2)
    if channels == 5:
        np.testing.assert_array_equal(np.load(tmp_path / "0001.npy"), images[1])
    else:
        read = read_image(tmp_path / "0001.png")
        assert read.alpha is not None
        np.testing.assert_array_equal(np.dstack([read.pixels, read.alpha]), images[1])
