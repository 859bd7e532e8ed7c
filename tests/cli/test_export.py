"""`translate export`: weights of one direction, or all, as one file to pass on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from translate import Translator
from translate import config as configs
from translate.cli import app
from translate.errors import UserError
from translate.run import Run, load_weights

torch.set_num_threads(1)
TINY = ["blocks=1", "width=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two directions with weights."""
    config = configs.load("cyclegan", [f"method.generator.{change}" for change in TINY])
    run = Run.create(tmp_path_factory.mktemp("runs"), "x", configs.dump(config))
    torch.manual_seed(0)
    run.export("last", config, config.method.build(config.data).exported(), step=5, images=10)
    return run


def export(*arguments: object) -> str:
    """Raises what the command raises."""
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_one_direction_translates_as_the_run_does(direction: str, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "one.safetensors"
    export(run.path, out, "--direction", direction)
    picture = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    whole = Translator.load(run.path, direction=direction, precision="fp32")(picture)
    assert np.array_equal(Translator.load(out, precision="fp32")(picture), whole)
    assert out.stat().st_size < 0.7 * (run.path / "last.safetensors").stat().st_size
    assert {name.partition(".")[0] for name in load_weights(out).tensors} == {direction}
    with pytest.raises(UserError, match=f"it offers {direction}$"):
        Translator.load(out, direction="BtoA" if direction == "AtoB" else "AtoB")


def test_all_directions_and_an_export_of_an_export(run: Run, tmp_path: Path) -> None:
    export(run.path, tmp_path / "all.safetensors")
    assert load_weights(tmp_path / "all.safetensors").tensors.keys() == load_weights(run.path).tensors.keys()
    export(tmp_path / "all.safetensors", tmp_path / "one.safetensors", "--direction", "BtoA")
    export(tmp_path / "one.safetensors", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_info_counts_what_the_file_holds(run: Run, tmp_path: Path) -> None:
    export(run.path, tmp_path / "one.safetensors", "--direction", "BtoA")
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "one.safetensors")]).output
    assert "BtoA" in shown and "AtoB" not in shown


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bare_is_the_network_alone(suffix: str, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / f"bare{suffix}"
    said = export(run.path, out, "--bare", "--direction", "BtoA")
    assert "for other programs" in said
    held = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    tensors = held if suffix == ".safetensors" else held.pop("params")
    assert suffix == ".safetensors" or not held
    whole = {name: tensor for name, tensor in load_weights(run.path).tensors.items() if name.startswith("BtoA.")}
    assert {f"BtoA.{name}" for name in tensors} == whole.keys()
    assert all(torch.equal(tensor, whole[f"BtoA.{name}"]) for name, tensor in tensors.items())
    assert list(out.parent.iterdir()) == [out]
    # And `import` takes it back.
    back = tmp_path / "back.safetensors"
    overrides = [part for change in TINY for part in ("--set", f"method.generator.{change}")]
    result = CliRunner().invoke(app, ["import", "cyclegan", str(out), str(back), "--direction", "BtoA", *overrides])
    assert result.exit_code == 0
    assert load_weights(back).tensors.keys() == whole.keys()


def test_bare_needs_one_network_and_may_be_a_pth(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has AtoB, BtoA, and such a file holds one; choose by --direction"):
        export(run.path, tmp_path / "x.pth", "--bare")
    with pytest.raises(UserError, match=r"expected the name of a \.safetensors or \.pth file"):
        export(run.path, tmp_path / "x.bin", "--bare", "--direction", "AtoB")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        export(run.path, tmp_path / "file" / "x.pth", "--bare", "--direction", "AtoB")


def test_mistakes_are_told_in_a_line(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"expected the name of a \.safetensors file"):
        export(run.path, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no direction 'AtoC'; it offers AtoB, BtoA"):
        export(run.path, out, "--direction", "AtoC")
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match="--overwrite replaces it"):
        export(run.path, out)
    assert out.read_bytes() == b"mine"
    export(run.path, out, "--overwrite")
    load_weights(out)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written"):
        export(run.path, tmp_path / "file" / "x.safetensors")
