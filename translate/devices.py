"""Where networks run and in which number format: shared by training and inference."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from typing import Any, Literal

import torch

from translate.errors import UserError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; UserError for a device that torch does not know or does not find.

    Of several processes that torchrun started on a machine, each takes the GPU of its own number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} is unknown; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and ":" not in name and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        name = str(device)
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UserError(f"device {name!r} was asked for, but torch finds {found} CUDA devices; use cpu")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto`: bf16 where the hardware multiplies in it, else fp16 on CUDA, else float32."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and cpu_multiplies_bf16():
        return torch.bfloat16
    return torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has AMX or AVX512-BF16; without them bf16 on a CPU is emulated and slower than float32."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextlib.contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Float32 as it is written, in the whole process: no autocast, no TF32 or bf16 inside convolutions and products.

    Torch lets cuDNN's convolutions use TF32 unless told otherwise: features then differ in the third digit.
    """
    global _exact_users
    backends: Any = torch.backends  # the stubs know just some of them
    places = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    with _exact_lock:
        if not _exact_users:
            _before_exact[:] = [place.fp32_precision for place in places]
            for place in places:
                place.fp32_precision = "ieee"
        _exact_users += 1
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        with _exact_lock:
            _exact_users -= 1
            if not _exact_users:  # threads may overlap: the last one puts back what the first one found
                for place, precision in zip(places, _before_exact, strict=True):
                    place.fp32_precision = precision


_exact_lock = threading.Lock()
_exact_users = 0
_before_exact: list[Any] = []


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free, instead of giving it to the kernel and faulting it in again at every step.

    For processes that train on a CPU: `docs/benchmarks.md` has the gain. Other C libraries are left as they are.
    """
    # mallopt(3) by the numbers in <malloc.h>: M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1. They belong together: the second
    # alone fixes the size from which malloc maps afresh at its smallest, which is slower than doing nothing.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)
        libc.mallopt(-1, 2**31 - 1)
