"""Reads files of weights that others wrote, and runs nothing that stands in them.

A pickle is a program for a small stack machine, and Python's own machine calls whatever function the program names.
The machine here calls nothing at all: where the program says "call f with these", it keeps a record of f's name and
of the arguments, and the readers below take arrays and tensors out of the records that they know. A program that
names anything else is refused before its next instruction.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from translate.errors import UserError

LARGEST_PICKLE = 1 << 30
"""Bytes of a pickle that are read at most: the largest of the known ones (LPIPS's VGG16) has 59 million."""

_ARRAY_NAMES = {
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",  # numpy 1
    "numpy._core.multiarray._reconstruct",  # numpy 2
}
# Booleans, integers and floats of 1 to 8 bytes, as numpy's pickles spell them; above all no objects ("O").
_NUMBERS = re.compile("b1|[iu][1248]|f[248]")

_STORAGES = {
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
}

# The instructions of protocols 0 to 4 whose argument is the value itself: numbers, text and bytes of every length.
_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}


@dataclass(frozen=True)
class _Name:
    """What a pickle names: `module.attribute`."""

    full: str


@dataclass(frozen=True)
class _Reference:
    """What a pickle says lies outside it (persistent id)."""

    key: Any


@dataclass(eq=False)
class _Call:
    """What a pickle wants called or made, and the state that it is to be given; neither is done."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


class _Mark:
    """Where a run of items starts on the stack."""


def read_numpy_pickle(stream: IO[bytes], source: str) -> Any:
    """Nested dicts, lists and tuples of numpy arrays, text and numbers, out of a pickle (protocols 3 and 4).

    Raises:
        UserError: the pickle names anything but numpy's arrays and number types (the line says what), or is damaged;
            nothing of it was run. `source` is what the line calls the file.
    """
    try:
        return _arrays(_run(stream, source, _ARRAY_NAMES.__contains__), {})
    except UserError:
        raise
    except Exception as error:  # whatever a damaged program does to the machine: empty stacks, missing keys, types
        raise UserError(f"{source}: no readable pickle of numpy arrays ({_line(error)})") from error


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters, buffers and other tensors of a TorchScript archive's modules by dotted path, on the CPU.

    Neither the archive's code nor torch.jit is used. Storages are read once, must have just the size that the pickle
    says, and tensors must lie inside them.

    Raises:
        UserError: no TorchScript archive, a damaged one, or one that names what no module of tensors needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _script_tensors(archive, path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # zip, stack machine, tensors: see above
        raise UserError(f"{path}: no readable TorchScript archive ({_line(error)})") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Named tensors of a `.safetensors` file, or of a `.pth` or `.pt` of tensors only, on the CPU.

    Raises:
        UserError: damaged, no file of weights, or a pickle that holds more than tensors (which is not run).
    """
    held: Any
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the readers raise: struct, zip, unpickling, JSON ...
        raise UserError(f"{path}: no readable safetensors or .pth weights; download the file again") from error
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        found = type(held).__name__ if not isinstance(held, dict) else "other things among them"
        raise UserError(f"{path}: expected named tensors, found {found}")
    return {str(name): tensor.detach() for name, tensor in held.items()}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


# The stack machine


def _run(stream: IO[bytes], source: str, known: Callable[[str], bool]) -> Any:
    """What the pickle leaves on the stack: plain containers, and records where it calls or names something."""
    content = stream.read(LARGEST_PICKLE + 1)
    if len(content) > LARGEST_PICKLE:
        raise UserError(f"{source}: has over {LARGEST_PICKLE} bytes, too many for a pickle of weights")
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = max(i for i, item in enumerate(stack) if isinstance(item, _Mark))
        items = stack[start + 1 :]
        del stack[start:]
        return items

    def name(full: str) -> _Name:
        if not known(full):
            raise UserError(f"{source}: is a pickle that names '{full}', which weights do not need; nothing was run")
        return _Name(full)

    argument: Any
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (result,) = stack
                return result
            case "MARK":
                stack.append(_Mark())
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = above_mark()
                stack[-1].extend(items)
            case "SETITEM":
                key, value = stack[-2:]
                del stack[-2:]
                _set(stack[-1], [key, value])
            case "SETITEMS":
                items = above_mark()
                _set(stack[-1], items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(name(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, attribute = stack[-2:]
                stack[-2:] = [name(f"{module}.{attribute}")]
            case "REDUCE" | "NEWOBJ":
                function, arguments = stack[-2:]
                stack[-2:] = [_Call(function.full, tuple(arguments))]
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], _Call):
                    raise ValueError("a state for what takes none")
                stack[-1].state = state
            case "BINPERSID":
                stack[-1] = _Reference(stack[-1])
            case constant if constant in _CONSTANTS:
                stack.append(argument)
            case unknown:
                raise ValueError(f"the instruction {unknown}")
    raise ValueError("no end")


def _set(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or not all(isinstance(key, str | int) for key in items[::2]):
        raise ValueError("keys that are no text")
    target.update(zip(items[::2], items[1::2], strict=True))


# Records to arrays


def _arrays(found: Any, done: dict[int, Any]) -> Any:
    """The same containers with an array for each record of one; `done` by identity, so that nothing expands twice."""
    if found is None or isinstance(found, str | bytes | int | float):
        return found
    if id(found) not in done:
        done[id(found)] = _UNFINISHED
        made: Any
        if isinstance(found, dict):
            made = {key: _arrays(value, done) for key, value in found.items()}
        elif isinstance(found, list | tuple):
            made = type(found)(_arrays(value, done) for value in found)
        elif isinstance(found, _Call) and found.name.endswith("._reconstruct"):
            made = _array(found.state)
        else:
            raise ValueError(f"{type(found).__name__.strip('_')} where an array is expected")
        done[id(found)] = made
    if done[id(found)] is _UNFINISHED:
        raise ValueError("a container that holds itself")
    return done[id(found)]


_UNFINISHED = object()


def _array(state: Any) -> NDArray[Any]:
    """What numpy's ndarray.__reduce__ writes: version, shape, number type, Fortran order, bytes."""
    _, shape, number, fortran, content = state
    (letters, *_), (_, order, *_) = number.arguments, number.state
    if number.name != "numpy.dtype" or not _NUMBERS.fullmatch(letters) or order not in ("<", ">", "|", "="):
        raise ValueError(f"an array of {letters}; expected numbers")
    flat = np.frombuffer(content, np.dtype(letters).newbyteorder(order))
    if fortran:
        flat = flat.reshape(shape[::-1]).T
    return flat.reshape(shape).astype(flat.dtype.newbyteorder("="))  # a copy, which may be written to


# Records to tensors


def _script_tensors(archive: zipfile.ZipFile, path: Path) -> dict[str, Tensor]:
    programs = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(programs) != 1 or not any(f"{programs[0][:-8]}code/" in name for name in archive.namelist()):
        raise UserError(f"{path}: is no TorchScript archive; expected a file that torch.jit.save wrote")
    root = programs[0].removesuffix("data.pkl")
    # torch writes storages uncompressed: so none can grow, and all together are no larger than the file.
    held = [info for info in archive.infolist() if info.filename.startswith(f"{root}data/")]
    total = sum(info.file_size for info in held)
    if total > path.stat().st_size or any(info.compress_type != zipfile.ZIP_STORED for info in held):
        raise ValueError("compressed or overlapping storages")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("big-endian numbers")

    storages: dict[str, Tensor] = {}

    def storage(reference: Any) -> Tensor:
        kind, number_type, key, _, length = reference.key
        if kind != "storage" or not str(key).isdigit():
            raise ValueError(f"a reference to {kind} {key}")
        if key not in storages:
            dtype = _STORAGES[number_type.full]
            content = bytearray(archive.read(f"{root}data/{key}"))
            if len(content) != length * dtype.itemsize:
                raise ValueError(f"storage {key} of {len(content)} bytes, not {length * dtype.itemsize}")
            storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return storages[key]

    with archive.open(f"{root}data.pkl") as stream:
        module = _run(stream, str(path), _script_name)
    return {name: _tensor(call, storage) for name, call in _walk(module, "", set())}


def _script_name(full: str) -> bool:
    """Classes of the archive, the parts of a tensor, and torch.jit's marks of typed lists, all kept as records."""
    return (
        full.startswith(("__torch__.", "torch.jit._pickle."))
        or full in ("torch._utils._rebuild_tensor_v2", "collections.OrderedDict")
        or full in _STORAGES
    )


def _walk(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, _Call]]:
    """Dotted names and records of the tensors among a module's attributes, and of those in its submodules."""
    if not isinstance(module, _Call) or not isinstance(module.state, dict):
        raise ValueError("no module")
    if id(module) in seen:
        raise ValueError(f"'{prefix}' is a module that stands at two places")
    seen.add(id(module))
    for name, value in module.state.items():
        if isinstance(value, _Call) and value.name == "torch._utils._rebuild_tensor_v2":
            yield f"{prefix}{name}", value
        elif isinstance(value, _Call) and value.name.startswith("__torch__.") and value.state is not None:
            yield from _walk(value, f"{prefix}{name}.", seen)


def _tensor(call: _Call, storage: Callable[[Any], Tensor]) -> Tensor:
    """What torch._utils._rebuild_tensor_v2 would make: (storage, offset, size, stride, ...), checked against it."""
    reference, offset, size, stride, *_ = call.arguments
    whole = storage(reference)
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError(f"a tensor of size {size} and stride {stride}")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if count > len(whole) or (count and last >= len(whole)):  # the first: a stride of 0 repeats without end
        raise ValueError(f"a tensor of size {size} and stride {stride} at {offset} of {len(whole)} numbers")
    return whole.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)
