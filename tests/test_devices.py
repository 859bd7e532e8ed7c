"""Where networks run, and in which numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from translate import devices
from translate.devices import cpu_multiplies_bf16, exact_float32, resolve_device, resolve_precision
from translate.errors import UserError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (1, "cuda"), (4, "cuda")])
def test_auto_is_cuda_where_there_is_one(count: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(count, monkeypatch)
    assert resolve_device("auto") == torch.device(expected)


def test_each_process_on_a_machine_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2, monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="'cuda:2' was asked for, but torch finds 2 CUDA devices"):
        resolve_device("auto")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "CPU0"])
def test_a_name_that_torch_does_not_know(name: str) -> None:
    with pytest.raises(UserError, match="is unknown; expected auto, cpu, cuda or cuda:N") as raised:
        resolve_device(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0, monkeypatch)
    with pytest.raises(UserError, match=f"'{name}' was asked for, but torch finds 0 CUDA devices; use cpu"):
        resolve_device(name)


def test_precision_by_name() -> None:
    cpu = torch.device("cpu")
    found = [resolve_precision(name, cpu) for name in ("fp32", "bf16", "fp16")]
    assert found == [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bf16_where_the_hardware_multiplies_in_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    assert resolve_precision("auto", torch.device("cpu")) == (torch.bfloat16 if fast else torch.float32)
    assert resolve_precision("auto", torch.device("cuda")) == (torch.bfloat16 if fast else torch.float16)
    assert resolve_precision("auto", torch.device("mps")) == torch.float32


def test_the_cpu_s_flags_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        pytest.skip("no /proc/cpuinfo here")
    assert cpu_multiplies_bf16() == ("avx512_bf16" in flags or "amx_tile" in flags)
    monkeypatch.setattr(devices.platform, "machine", lambda: "aarch64")
    assert not cpu_multiplies_bf16()


def test_threads_that_compute_exactly_leave_the_settings_as_they_were() -> None:
    """The first one to end must not end it for the second, nor the second bring back what the first one set."""
    backends: Any = torch.backends
    before = backends.cudnn.conv.fp32_precision
    first, second = exact_float32(torch.device("cpu")), exact_float32(torch.device("cpu"))
    backends.cudnn.conv.fp32_precision = "tf32"
    try:
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert backends.cudnn.conv.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        backends.cudnn.conv.fp32_precision = before
