"""Several processes by `torchrun`: training averages gradients once per turn, evaluation merges statistics.

The trainer averages instead of wrapping networks in DistributedDataParallel: an adversarial turn has several forwards
and may have gradients of gradients, which the wrapper mishandles.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Processes(NamedTuple):
    """This process among all."""

    rank: int
    world: int

    @property
    def leads(self) -> bool:
        """Whether this one writes the run folder."""
        return self.rank == 0


ALONE = Processes(rank=0, world=1)


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the group that torchrun announces in the environment; without one, be alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL and the random generator mean the current device
    # Words between the hosts go by gloo even where gradients go by NCCL: they must not wait for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _together() else 1


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one message a data type."""
    if not _together() or not tensors:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # in the same order in every process
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process, so that all stop at the same step."""
    if not _together():
        return flag
    shared = torch.tensor(int(flag))
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared)


def from_leader(text: str | None) -> str | None:
    """The leading process's text, in every process."""
    if not _together():
        return text
    box = [text]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def gathered(part: T) -> list[T]:
    """What each process gives, in the order of their numbers, in every process."""
    if not _together():
        return [part]
    parts: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return cast(list[T], parts)


def barrier() -> None:
    if _together():
        dist.barrier()


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by the leading process's, in one message a data type."""
    if not _together() or not tensors:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # in the same order in every process
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.broadcast(flat, src=0)
        for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))
