"""Conversion by a model that draws its answers: seeds and names decide, nothing else; samples, and maps of doubt."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from tiny_tokenizer import tokenising, vqgan, write

from translate.data.images import read_image, write_image
from translate.errors import UserError
from translate.inference.folder import ConvertOptions, convert
from translate.inference.translator import Translator
from translate.methods.token_translation import TokenTranslator
from translate.networks.token_sampling import sample
from translate.networks.tokenizer import tokens_of

torch.set_num_threads(1)

Pixels = NDArray[np.uint8]
Picture = Callable[..., Pixels]


def method(decoding: str) -> dict[str, Any]:
    return {
        "kind": "token-translation",
        "tokenizers": "two",
        "tokenizer": tokenising(),
        "transformer": {"layers": 1, "heads": 1, "width": 8},
        "decoding": decoding,
        "sampling": {"steps": 3},
    }


@pytest.fixture(scope="module", params=["causal", "masked"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator that has learnt nothing: two pixels to a token, 8x8 tokens in its window, 32 codes."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return write(path, method(request.param), {"kind": "paired"})


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return write(path, method("masked"), {"kind": "paired"})


def load(path: Path, **how: Any) -> Translator:
    return Translator.load(path, device="cpu", **how)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_some(folder: Path, picture: Picture, names: str = "abc", side: int = 8) -> Path:
    for seed, name in enumerate(names):
        write_image(folder / f"{name}.png", picture(side, side + 3 * (seed % 2), seed=seed))
    return folder


# ---- one image -------------------------------------------------------------------------------------------------------


def test_seed_and_name_decide_and_nothing_else(model: Path, picture: Picture) -> None:
    """In whatever batch and order an image stands, and by whichever translator of this seed it is drawn."""
    batch, names = [picture(8, 8, seed=seed) for seed in range(3)], ["x", "y", "z"]
    one, other = load(model, seed=7), load(model, seed=8)
    found = one.run(batch, names)
    again = load(model, seed=7).run(batch[::-1], names[::-1])[::-1]
    for k, pixels in enumerate(found):
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
        assert np.array_equal(pixels, again[k])
        assert np.array_equal(pixels, one.run([batch[k]], [names[k]])[0])
        assert not np.array_equal(pixels, other.run([batch[k]], [names[k]])[0])
        assert not np.array_equal(pixels, one.run([batch[k]], ["another"])[0])
    assert one.draws and one.describe()["seed"] == "7" and one.describe()["precision"] == "fp32"


def test_the_picture_is_the_decoded_draw(masked: Path, picture: Picture) -> None:
    """Pixel for pixel what the parts make, called one by one with the seed of the name."""
    translator, pixels = load(masked, seed=5), picture(16, 16)
    network = translator._network(torch.float32)
    assert isinstance(network, TokenTranslator) and not network.training
    seed = int.from_bytes(hashlib.sha256(b"5/x.png").digest()[:4], "big")
    with torch.no_grad():
        images = torch.from_numpy(pixels).movedim(2, 0)[None] / 127.5 - 1
        drawn = sample(network.transformer, (8, 8), network.sampling, [seed], source=tokens_of(network.source, images))
        made = network.target.decode_tokens(drawn.tokens).clamp(-1, 1)
    wanted = ((made[0].movedim(0, 2) + 1) * 127.5).round().numpy().astype(int)
    found = translator.run([pixels], ["x.png"])[0].astype(int)
    assert np.abs(found - wanted).max() <= 1 and (found != wanted).mean() < 0.01  # a tie may round elsewhere


@pytest.mark.parametrize(("height", "width"), [(15, 9), (1, 3), (33, 21)])
def test_odd_sizes_and_more_than_the_window(model: Path, picture: Picture, height: int, width: int) -> None:
    """Padded to whole tokens and cut back; 17 x 11 tokens are drawn in windows of 8 x 8."""
    translator, maps = load(model), {}
    translator.uncertainty = maps.__setitem__
    steps: list[tuple[int, int]] = []
    translator.on_tile = lambda done, total: steps.append((done, total))
    pixels = picture(height, width)
    found = translator.run([pixels], ["x"])[0]
    assert found.shape == pixels.shape and maps["x"].shape == (height, width)
    assert (maps["x"] > 200).all()  # nothing learnt: nearly 5 bits everywhere
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))


def test_doubt_is_the_share_of_all_bits(masked: Path, picture: Picture) -> None:
    """255 for five bits of 32 codes; squares of two pixels, one for each token."""
    translator, maps = load(masked, seed=3), {}
    translator.uncertainty = maps.__setitem__
    network = translator._network(torch.float32)
    with torch.no_grad():  # a model that is sure in some places
        network.transformer.head.weight.mul_(100)
    bits: list[torch.Tensor] = []
    plain = network.draws

    def draws(*arguments: Any) -> Any:
        drawn = plain(*arguments)
        bits.append(drawn.uncertainty)
        return drawn

    network.draws = draws
    translator.run([picture(16, 20)], ["x"])
    assert bits[0].shape == (1, 8, 10)
    wanted = np.rint(bits[0][0].double().numpy() / math.log2(32) * 255)
    assert wanted.max() - wanted.min() > 50
    large = wanted.repeat(2, axis=0).repeat(2, axis=1)
    assert maps["x"].dtype == np.uint8 and np.abs(maps["x"] - large).max() <= 1


def test_how_it_draws_can_be_told(masked: Path, picture: Picture) -> None:
    """At temperature 0 no seed matters."""
    sure = {"temperature": 0.0}
    pixels = picture(16, 16)
    for sampling in (sure, None):
        translator, found = load(masked, sampling=sampling), []
        for translator.seed in (1, 2):
            found.append(translator(pixels))
        assert np.array_equal(*found) == (sampling is not None)


def test_what_is_told_is_checked(model: Path) -> None:
    causal = load(model, sampling={"top_k": 2})._network(torch.float32).transformer.causal
    for name in ("steps", "choice_temperature"):
        if causal:
            with pytest.raises(UserError, match=f"^{name}: this model draws token after token, not in steps; leave"):
                load(model, sampling={name: 2})
        else:
            assert getattr(load(model, sampling={name: 2})._network(torch.float32).sampling, name) == 2
    with pytest.raises(ValidationError):
        load(model, sampling={"temperature": -1})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"precision": "bf16"}, "precision 'bf16': this model chooses codes, which it does in fp32; use auto"),
        ({"tile": 64}, "tile 64: this model sees the whole image, so it cannot run in tiles; leave --tile out"),
    ],
)
def test_what_it_cannot_do_is_told_in_one_line(masked: Path, how: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        load(masked, **how)
    assert str(raised.value) == said
    assert load(masked, precision="fp32", tile="auto").tile == "off"


# ---- a folder --------------------------------------------------------------------------------------------------------


def test_samples_are_numbered_and_doubt_lies_beside_them(masked: Path, picture: Picture, tmp_path: Path) -> None:
    folder = write_some(tmp_path / "in", picture, "xy")
    options = ConvertOptions(samples=3, uncertainty=True)
    summary = convert(load(masked, seed=2), folder, tmp_path / "out", options)
    names = [f"{name}-{k}" for name in "xy" for k in (1, 2, 3)]
    found = contents(tmp_path / "out")
    assert sorted(found) == sorted([f"{n}.png" for n in names] + [f"{n}.uncertainty.png" for n in names])
    assert (summary.total, summary.written, summary.skipped, summary.failed) == (6, 6, 0, [])
    assert len({found[f"{name}.png"] for name in names}) == 6
    for name in names:
        size = read_image(folder / f"{name[0]}.png").pixels.shape
        assert read_image(tmp_path / "out" / f"{name}.png").pixels.shape == size
        doubt = read_image(tmp_path / "out" / f"{name}.uncertainty.png").pixels
        assert doubt.shape == (*size[:2], 1) and (doubt > 200).all()

    # What is there is not made again, and what is gone comes back as it was: also alone, and with another number asked.
    (tmp_path / "out" / "x-2.png").unlink()
    summary = convert(load(masked, seed=2), folder, tmp_path / "out", options)
    assert (summary.written, summary.skipped) == (1, 5)
    assert contents(tmp_path / "out") == found
    convert(load(masked, seed=2), folder / "x.png", tmp_path / "two", ConvertOptions(samples=2))
    assert contents(tmp_path / "two") == {name: found[name] for name in ("x-1.png", "x-2.png")}


def test_maps_of_doubt_can_be_asked_for_afterwards(masked: Path, picture: Picture, tmp_path: Path) -> None:
    folder, out = write_some(tmp_path / "in", picture, "xy"), tmp_path / "out"
    convert(load(masked, seed=2), folder, out)
    before = contents(out)
    doubtful = ConvertOptions(uncertainty=True)
    summary = convert(load(masked, seed=2), folder, out, doubtful)
    assert (summary.written, summary.skipped) == (2, 0)
    found = contents(out)
    assert {name: found[name] for name in before} == before
    assert sorted(set(found) - set(before)) == ["x.uncertainty.png", "y.uncertainty.png"]
    at_once = convert(load(masked, seed=2), folder, tmp_path / "once", doubtful)
    assert at_once.written == 2 and contents(tmp_path / "once") == found
    assert convert(load(masked, seed=2), folder, out, doubtful).skipped == 2
    assert convert(load(masked, seed=2), folder, out).skipped == 2


def test_the_same_bytes_whatever_the_order_and_the_mates(masked: Path, picture: Picture, tmp_path: Path) -> None:
    folder = write_some(tmp_path / "in", picture)
    convert(load(masked), folder, tmp_path / "all", ConvertOptions(batch_size=2))
    found = contents(tmp_path / "all")
    assert sorted(found) == ["a.png", "b.png", "c.png"]
    (folder / "a.png").unlink()
    convert(load(masked), folder, tmp_path / "fewer")
    assert contents(tmp_path / "fewer") == {name: found[name] for name in ("b.png", "c.png")}
    convert(load(masked, seed=1), folder, tmp_path / "seeded")
    assert all(other != found[name] for name, other in contents(tmp_path / "seeded").items())


def test_ten_samples_have_two_digits(masked: Path, picture: Picture, tmp_path: Path) -> None:
    convert(
        load(masked, sampling={"steps": 1}), write_some(tmp_path / "in", picture, "x"), tmp_path / "out",
        ConvertOptions(samples=10),
    )  # fmt: skip
    assert sorted(contents(tmp_path / "out")) == [f"x-{k:02}.png" for k in range(1, 11)]


def test_a_report_holds_each_sample_against_the_image_s_target(masked: Path, picture: Picture, tmp_path: Path) -> None:
    folder, target = (write_some(tmp_path / name, picture, "x") for name in ("in", "target"))
    options = ConvertOptions(samples=2, report=True, target=target)
    summary = convert(load(masked), folder, tmp_path / "out", options)
    assert summary.report == tmp_path / "out" / "index.html"
    page = summary.report.read_text()
    assert page.count("target/x.png") >= 1 and "x-1.png" in page and "x-2.png" in page


def test_a_model_of_one_answer_has_no_samples(tmp_path: Path, picture: Picture) -> None:
    generator = {"kind": "unet", "depth": 3, "width": 4}
    pix2pix = {"kind": "pix2pix", "generator": generator, "discriminator": {"kind": "patch", "layers": 1, "width": 4}}
    path = write(tmp_path / "pix2pix.safetensors", pix2pix, {"kind": "paired"})
    folder, translator = write_some(tmp_path / "in", picture), load(path)
    assert not translator.draws and "seed" not in translator.describe()
    for asked, options in {
        "samples": ConvertOptions(samples=3),
        "an uncertainty": ConvertOptions(uncertainty=True),
    }.items():
        with pytest.raises(UserError, match=rf"^{asked}: this model has one answer for each image"):
            convert(translator, folder, tmp_path / "out", options)
    with pytest.raises(UserError, match="has one answer for each image: steps would change nothing"):
        load(path, sampling={"steps": 3})
    for other in (path, vqgan(tmp_path / "vqgan.safetensors")):
        load(other)
        with pytest.raises(UserError, match="has one answer for each image: a seed would change nothing"):
            load(other, seed=0)
        with pytest.raises(UserError, match="has one answer for each image: top_k, a seed would change nothing"):
            load(other, seed=3, sampling={"top_k": 1})
    assert not (tmp_path / "out").exists()


def test_doubt_takes_no_result_s_name(masked: Path, picture: Picture, tmp_path: Path) -> None:
    source = write_some(tmp_path / "in", picture, "a")
    (source / "a.png").rename(source / "x.png")
    (source / "x.uncertainty.png").write_bytes((source / "x.png").read_bytes())
    with pytest.raises(UserError, match=r"would both become .*x\.uncertainty\.png"):
        convert(load(masked), source, tmp_path / "out", ConvertOptions(uncertainty=True))
    assert not (tmp_path / "out").exists()
    assert convert(load(masked), source, tmp_path / "out").written == 2
