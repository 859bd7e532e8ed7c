"""Readers of foreign files: what they give is what pickle and torch.jit give, and nothing in a file is ever run."""

from __future__ import annotations

import io
import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from translate.errors import UserError
from translate.pretrained.readers import read_numpy_pickle, read_state_dict, read_torchscript


class Bomb:
    """Leaves a file behind if anyone unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


# Pickles of numpy


def read(content: bytes) -> Any:
    return read_numpy_pickle(io.BytesIO(content), "weights.ckpt")


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_arrays_are_those_that_pickle_gives(protocol: int, core: bytes) -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(2, 3)).astype(np.float32)
    held = {
        "net": {"kernel": shared, "again": [shared, (shared,)], "fortran": np.asfortranarray(shared), "one": shared[0]},
        "kinds": {kind: generator.integers(0, 2, 5).astype(kind) for kind in ("?", "<i8", "u1", ">f4", "f2", "<f8")},
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(1.5),
        "plain": ["text", 7, 2**70, -1.25, True, None, {}, (), [], b"bytes"],
        3: "x" * 300,
    }
    content = pickle.dumps(held, protocol)
    if protocol == 3:  # names stand in it as lines, so that either numpy's name of the same module can be put in
        content = content.replace(b"cnumpy._core.", b"c" + core + b".").replace(b"cnumpy.core.", b"c" + core + b".")
        assert b"c" + core + b".multiarray" in content
    found = read(content)
    compare(found, held)
    assert found["net"]["again"][0] is found["net"]["kernel"]
    found["net"]["kernel"][:] = 0  # its own memory, to be written to


def compare(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        compare(list(found.values()), list(expected.values()))
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for each, other in zip(found, expected, strict=True):
            compare(each, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_pickles_that_call_something_are_refused_by_name(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(
        UserError, match=r"^weights.ckpt: .*'(pathlib\.|__builtin__\.|builtins\.|pathlib\._local\.)"
    ) as e:
        read(pickle.dumps(Bomb(trace), protocol))
    assert "\n" not in str(e.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "held",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.array(["2026-01-01"], dtype="M8[D]"),
        np.zeros(2, dtype=[("a", "f4")]),
        np.dtype("f4"),
        {1.5: "a key"},
        {("a", "b"): "a key"},
        {1, 2},
    ],
    ids=str,
)
def test_what_is_no_array_of_numbers_is_refused(held: object) -> None:
    with pytest.raises(UserError, match=r"^weights.ckpt: (no readable pickle|is a pickle that names)"):
        read(pickle.dumps(held, 4))


def test_containers_that_hold_themselves_or_explode_do_no_harm() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(UserError, match="holds itself"):
        read(pickle.dumps(ring, 4))
    laughs: list[Any] = []
    for _ in range(60):  # 2^60 leaves to whoever copies it naively
        laughs = [laughs, laughs]
    assert len(read(pickle.dumps(laughs, 4))) == 2
    with pytest.raises(UserError, match="RecursionError"):
        read(b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b".")  # lists in lists


def test_every_cut_and_every_wrong_byte_is_one_line() -> None:
    content = pickle.dumps({"a": np.arange(3.0), "b": [1, "x"]}, 4)
    for length in range(len(content)):
        with pytest.raises(UserError, match=r"^weights.ckpt: [^\n]+$"):
            read(content[:length])
    for position in range(len(content)):
        for value in (0, 46, 82, 255):  # nothing, STOP, REDUCE, no instruction
            try:
                read(content[:position] + bytes([value]) + content[position + 1 :])
            except UserError as error:
                assert "\n" not in str(error)


# TorchScript


class Small(nn.Module):
    """Parameters and buffers of every sort: nested, shared, transposed, empty, of several number types."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.twins = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2, bias=False)])
        self.twins[1].weight = self.twins[0].weight
        self.register_buffer("halves", torch.randn(2, 3).half().t())
        self.register_buffer("brain", torch.randn(3).bfloat16())
        self.register_buffer("empty", torch.zeros(0, 2))
        self.register_buffer("part", torch.arange(10.0)[3:9:2])
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated: that is why nothing here needs it but this test
        torch.jit.script(Small()).save(path)
    return path


def test_torchscript_gives_the_tensors_that_torch_jit_gives(script: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(script).state_dict()
    found = read_torchscript(script)
    assert set(found) == set(expected)
    assert len(found) == 7 + 3 + 4
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype, name
        assert torch.equal(found[name], tensor), name
        assert found[name].is_contiguous()


class Storage:
    """Stands in a pickle for bytes beside it."""

    def __init__(self, length: int, key: str = "0") -> None:
        self.id = ("storage", torch.FloatStorage, key, "cpu", length)


class Rebuilt:
    """A tensor as TorchScript's pickles spell it."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, length: int = 6) -> None:
        self.arguments = (Storage(length), offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, Storage) else None


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`archive(x=..., y=...)` writes a script archive whose module has these attributes, over six floats."""
    module = types.ModuleType("__torch__")
    module.M = type("M", (), {"__module__": "__torch__"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__torch__", module)

    def write(compression: int = zipfile.ZIP_STORED, byteorder: bytes = b"little", **attributes: Any) -> Path:
        root = module.M()
        for name, value in attributes.items():
            setattr(root, name, root if value == "itself" else value)
        stream = io.BytesIO()
        Pickler(stream, protocol=2).dump(root)
        path = tmp_path / "made.pt"
        with zipfile.ZipFile(path, "w", compression) as file:
            file.writestr("made/data.pkl", stream.getvalue())
            file.writestr("made/byteorder", byteorder)
            file.writestr("made/code/__torch__.py", "raise SystemExit")
            file.writestr("made/data/0", torch.arange(6.0).numpy().tobytes())
        return path

    return write


def test_a_made_archive_is_read(archive: Callable[..., Path]) -> None:
    """The next test's archives fail for what is wrong with them, not for how they are made."""
    found = read_torchscript(archive(x=Rebuilt((2, 2), (1, 2), 1), note="text"))
    assert list(found) == ["x"]
    assert found["x"].tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("made", "line"),
    [
        ({"x": Rebuilt((2, 3), (3, 1), 1)}, "at 1 of 6 numbers"),
        ({"x": Rebuilt((4, 2), (1, 2), 0)}, "of 6 numbers"),  # strides that overlap, more numbers than there are
        ({"x": Rebuilt((10**12,), (0,))}, "of 6 numbers"),  # a stride of 0: terabytes out of nothing
        ({"x": Rebuilt((2,), (-1,), 3)}, "stride"),
        ({"x": Rebuilt((2,), (1,), -1)}, "size"),
        ({"x": Rebuilt((2,), (1, 1))}, "stride"),
        ({"x": Rebuilt((2,), (1,), length=7)}, "24 bytes, not 28"),
        ({"x": Rebuilt((2,), (1,)), "compression": zipfile.ZIP_DEFLATED}, "compressed"),
        ({"x": Rebuilt((2,), (1,)), "byteorder": b"big"}, "big-endian"),
        ({"x": "itself"}, "two places"),
    ],
)
def test_tensors_outside_their_storage_are_refused(
    made: dict[str, Any], line: str, archive: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match=r"made.pt: no readable TorchScript archive") as caught:
        read_torchscript(archive(**made))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_archives_that_call_something_are_refused_by_name(archive: Callable[..., Path], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(UserError, match=r"made.pt: is a pickle that names '(pathlib|builtins|__builtin__)"):
        read_torchscript(archive(x=Bomb(trace)))
    assert not trace.exists()


def test_other_files_are_no_torchscript(tmp_path: Path, script: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"other.pt: is no TorchScript archive"):
        read_torchscript(path)
    whole = script.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"other.pt: no readable TorchScript archive \([^\n]+\)$"):
            read_torchscript(path)
    with pytest.raises(UserError, match=r"none.pt: cannot be read \(No such file"):
        read_torchscript(tmp_path / "none.pt")


# State dictionaries


def test_state_dicts_of_both_kinds(tmp_path: Path) -> None:
    held = {"a.weight": torch.randn(2, 3), "b": torch.arange(3)}
    save_file(held, tmp_path / "x.safetensors")
    torch.save(
        OrderedDict((name, nn.Parameter(t, requires_grad=t.is_floating_point())) for name, t in held.items()),
        tmp_path / "x.pth",
    )
    for name in ("x.safetensors", "x.pth"):
        found = read_state_dict(tmp_path / name)
        assert set(found) == set(held)
        assert all(torch.equal(found[key], held[key]) and not found[key].requires_grad for key in held)


def test_state_dicts_run_nothing_and_hold_tensors_alone(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "x.pth"
    for held, line in (
        ({"a": Bomb(trace)}, "no readable safetensors or .pth weights"),
        ([torch.zeros(1)], "expected named tensors, found list"),
        ({"a": torch.zeros(1), "b": 3}, "expected named tensors, found other things"),
    ):
        torch.save(held, path)
        with pytest.raises(UserError, match=f"x.pth: {line}"):
            read_state_dict(path)
    assert not trace.exists()
