"""`translate import`: generators that other programs trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calling import call
from safetensors.torch import save_file
from torch import Tensor

from translate import Translator
from translate.cli.importing import unwrapped
from translate.networks import Generator, MSRResNetSettings, RRDBSettings, UNetSettings
from translate.run import load_weights

RRDB = "method.generator={kind: rrdb, blocks: 2, width: 8, growth: 4}"
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)


def rrdb(seed: int = 0, scale: Any = 4) -> Generator:
    torch.manual_seed(seed)
    return RRDBSettings(blocks=2, width=8, growth=4).build(3, 3, scale)


class Command:
    """`translate import` in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.out, self._monkeypatch, self._capsys = folder / "out" / "made.safetensors", monkeypatch, capsys

    def __call__(self, *arguments: object, config: str = "srresnet") -> tuple[int, str]:
        command = ["import", config, *map(str, arguments[:1]), str(self.out), *map(str, arguments[1:])]
        code, _, said = call(*command, monkeypatch=self._monkeypatch, capsys=self._capsys)
        return code, said


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


def enlarged(network: Generator) -> np.ndarray[Any, Any]:
    """What the network makes of the picture: [0, 255] to [-1, 1] and back, rounded."""
    x = torch.from_numpy(PICTURE).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        y = network.eval()(x).clamp(-1, 1)
    return ((y + 1) * 127.5).round()[0].permute(1, 2, 0).to(torch.uint8).numpy()


def old(tensors: dict[str, Tensor], blocks: int, doublings: int) -> dict[str, Tensor]:
    """The names of ESRGAN's first release: a flat sequence in which layers without weights are counted too."""
    # 0 first convolution, 1 shortcut of the blocks and one convolution, then (enlarge, convolution, leaky ReLU) for
    # each doubling, convolution, leaky ReLU, convolution.
    places = {"conv_first": "0", "conv_body": f"1.sub.{blocks}"}
    places |= {f"conv_up{n}": str(3 * n) for n in range(1, doublings + 1)}
    places |= {"conv_hr": str(3 * doublings + 2), "conv_last": str(3 * doublings + 4)}
    names = {}
    for name in tensors:
        layer, _, part = name.rpartition(".")
        if match := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)", layer):
            names[name] = f"model.1.sub.{match[1]}.RDB{match[2]}.conv{match[3]}.0.{part}"
        else:
            names[name] = f"model.{places[layer]}.{part}"
    return {names[name]: tensor for name, tensor in tensors.items()}


def second(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of ESRGAN's second release."""
    words = {"conv_body": "trunk_conv", "body.": "RRDB_trunk.", "rdb": "RDB", "conv_up": "upconv", "conv_hr": "HRconv"}
    names = {}
    for name in tensors:
        new = name
        for ours, theirs in words.items():
            new = new.replace(ours, theirs)
        names[new] = tensors[name]
    return names


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("naming", ["new", "old", "second"])
def test_a_foreign_generator_converts_as_it_did_there(
    naming: str, scale: int, command: Command, tmp_path: Path
) -> None:
    network = rrdb(scale=scale)
    tensors = network.state_dict()
    if naming == "old":
        tensors = old(tensors, 2, 3 if scale == 8 else 2)
    if naming == "second":
        tensors = second(tensors)
    torch.save({"params_ema": tensors, "params": rrdb(1, scale).state_dict()}, tmp_path / "theirs.pth")
    code, said = command(tmp_path / "theirs.pth", "--set", RRDB, "--set", f"data.scale={scale}")
    assert code == 0 and f"generator out of {tmp_path / 'theirs.pth'}" in said
    weights = load_weights(command.out)
    assert (weights.step, weights.images, weights.config.data.model_dump()["scale"]) == (0, 0, scale)
    made = Translator.load(command.out, precision="fp32", device="cpu")(PICTURE)
    assert made.shape == (8 * scale, 9 * scale, 3)
    # Float32 sums, perhaps in another order: a value at half a grey level may fall to either side.
    difference = np.abs(made.astype(int) - (enlarged(network) if scale > 2 else _padded(network)))
    assert difference.max() <= 1 and difference.mean() < 0.01


def _padded(network: Generator) -> np.ndarray[Any, Any]:
    """As `enlarged`, of the picture with one column more, which x2 needs: it divides sizes by 2."""
    x = torch.from_numpy(np.pad(PICTURE, ((0, 0), (0, 1), (0, 0)), mode="reflect")).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        y = network.eval()(x)[..., :18].clamp(-1, 1)
    return ((y + 1) * 127.5).round()[0].permute(1, 2, 0).to(torch.uint8).numpy()


def test_safetensors_half_precision_and_old_names_of_msrresnet(command: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MSRResNetSettings(blocks=2, width=8).build(3, 3, 4)
    expected = {name: tensor.half() for name, tensor in network.state_dict().items()}
    renamed = {name.replace("body.", "recon_trunk.").replace("conv_hr", "HRconv"): t for name, t in expected.items()}
    save_file(renamed, tmp_path / "theirs.safetensors")
    overrides = ["--set", "method.generator={kind: msrresnet, blocks: 2, width: 8}"]
    assert command(tmp_path / "theirs.safetensors", *overrides)[0] == 0
    held = load_weights(command.out).tensors
    assert held.keys() == {f"generator.{name}" for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(held[f"generator.{name}"], tensor.float())


def test_one_direction_of_two(command: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = "{kind: unet, depth: 2, width: 4, norm: instance}"
    network = UNetSettings.model_validate({"depth": 2, "width": 4, "norm": "instance"}).build(3, 3)
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    overrides = ["--set", f"method.generator={tiny}"]
    code, said = command(tmp_path / "theirs.pth", *overrides, config="cyclegan")
    assert code == 2 and "cyclegan: has AtoB, BtoA, and such a file holds one; choose by --direction" in said
    code, said = command(tmp_path / "theirs.pth", *overrides, "--direction", "AtoC", config="cyclegan")
    assert code == 2 and "it offers AtoB, BtoA" in said
    assert command(tmp_path / "theirs.pth", *overrides, "--direction", "BtoA", config="cyclegan")[0] == 0
    weights = load_weights(command.out)
    assert weights.direction == "BtoA" and all(name.startswith("BtoA.") for name in weights.tensors)


INNER = {"a.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    "held",
    [
        INNER,
        {"params": INNER},
        {"params": {"a.weight": torch.ones(1)}, "params_ema": INNER},
        {"state_dict": {"module.a.weight": INNER["a.weight"]}, "epoch": 3},
        {"state_dict": {"generator.a.weight": INNER["a.weight"], "discriminator.b": torch.ones(1)}},
        {"generator": {"state_dict": INNER}, "optimizer": {"lr": 1e-4}},
        {"params_ema": {"module.a.weight": INNER["a.weight"]}},
        {"module.generator.a.weight": INNER["a.weight"]},
    ],
)
def test_wrappers_are_taken_off(held: dict[str, Any]) -> None:
    assert unwrapped(held) == INNER


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def write(kind: str, folder: Path) -> Path:
    """A file that is no generator of the config, by what is wrong with it."""
    path = folder / "theirs.pth"
    tensors = rrdb().state_dict()
    if kind == "lacking":
        del tensors["body.1.rdb2.conv3.bias"]
    elif kind == "deeper":
        tensors["body.2.rdb1.conv1.weight"] = torch.zeros(4, 8, 3, 3)
    elif kind == "wider":
        tensors["conv_hr.weight"] = torch.zeros(16, 16, 3, 3)
    elif kind == "harmful":
        tensors["conv_hr.weight"] = Harmful()
    elif kind == "numbers":
        tensors = {"params": {"lr": 1e-4}}
    elif kind == "list":
        tensors = [1, 2]
    if kind == "cut":
        torch.save(tensors, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "text":
        path = folder / "theirs.safetensors"
        path.write_text("<html>not found</html>")
    elif kind != "absent":
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lacking", "is from another architecture: it lacks 'body.1.rdb2.conv3.bias'"),
        ("deeper", "the config has no place for its 'body.2.rdb1.conv1.weight'"),
        ("wider", r"'conv_hr.weight' has shape \(16, 16, 3, 3\), the config asks for \(8, 8, 3, 3\)"),
        ("harmful", "holds more than tensors, which is not run"),
        ("numbers", "expected named tensors, bare or under one of params_ema, params"),
        ("list", "expected named tensors"),
        ("cut", "no readable .pth or .safetensors weights"),
        ("text", "no readable safetensors"),
        ("absent", "no such file"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(
    kind: str, message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(kind, tmp_path)
    code, said = command(path, "--set", RRDB)
    assert code == 2 and said.startswith(f"error: {path}: ") and said.count("\n") == 1
    assert re.search(message, said)
    assert not (tmp_path / "ran").exists() and not command.out.exists()


def test_nothing_is_replaced_unasked(command: Command, tmp_path: Path) -> None:
    torch.save(rrdb().state_dict(), tmp_path / "theirs.pth")
    command.out.parent.mkdir()
    command.out.write_bytes(b"mine")
    code, said = command(tmp_path / "theirs.pth", "--set", RRDB)
    assert code == 2 and "--overwrite replaces it" in said and command.out.read_bytes() == b"mine"
    assert command(tmp_path / "theirs.pth", "--set", RRDB, "--overwrite")[0] == 0
    load_weights(command.out)
    command.out = tmp_path / "made.pth"
    assert "expected the name of a .safetensors file" in command(tmp_path / "theirs.pth", "--set", RRDB)[1]
