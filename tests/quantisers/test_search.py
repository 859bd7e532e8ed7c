from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from translate.quantisers import search
from translate.quantisers.search import nearest


def distances(latents: Tensor, codebook: Tensor) -> Tensor:
    """(N, K), of each difference by itself in float64."""
    return (latents.double()[:, None] - codebook.double()[None]).square().sum(-1)


class Largest(TorchDispatchMode):
    """The numbers in the largest storage that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.numbers = max(self.numbers, leaf.untyped_storage().nbytes() // leaf.element_size())
        return made


def largest(call: Callable[[], object]) -> int:
    with Largest() as mode:
        call()
    return mode.numbers


@pytest.mark.parametrize(
    ("count", "size", "width"), [(1, 2, 1), (7, 3, 2), (100, 10, 3), (301, 1023, 8), (64, 4097, 16), (1000, 5000, 4)]
)
def test_finds_what_float64_finds(count: int, size: int, width: int) -> None:
    generator = torch.Generator().manual_seed(size)
    latents = torch.randn(count, width, generator=generator)
    codebook = torch.randn(size, width, generator=generator)
    exact = distances(latents, codebook)
    found = nearest(latents, codebook)
    assert found.dtype == torch.int64
    assert found.shape == (count,)
    # A score is a sum of width + 1 products, each rounding off 2^-24 of its size at most; a distance is two of them.
    sizes = latents.double().norm(dim=1) * codebook.double().norm(dim=1).max() + codebook.double().square().sum(1).max()
    slack = 4 * (width + 1) * 2**-24 * sizes
    assert (exact.gather(1, found[:, None])[:, 0] <= exact.amin(1) + slack).all()
    clear = exact.topk(2, largest=False).values.diff(dim=1)[:, 0] > slack
    assert clear.float().mean() > 0.99
    assert torch.equal(found[clear], exact.argmin(1)[clear])


def test_small_whole_numbers_are_exact() -> None:
    """Products and sums of small integers round nothing, so ties are ties; and there are many."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randint(-4, 5, (500, 3), generator=generator).float()
    codebook = torch.randint(-4, 5, (300, 3), generator=generator).float()
    exact = distances(latents, codebook)
    ties = (exact == exact.amin(1, keepdim=True)).sum(1)
    assert (ties > 1).sum() > 100
    assert torch.equal(nearest(latents, codebook), exact.argmin(1))


@pytest.mark.parametrize("size", [5, 64, 4096, 4100, 9000])
def test_of_equal_codes_the_first_is_taken(size: int) -> None:
    """Also where they stand in different groups and chunks."""
    found = nearest(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.ones(size, 4))
    assert torch.equal(found, torch.zeros(50, dtype=torch.int64))


@pytest.mark.parametrize(("scores", "codes"), [(64, 16), (1000, 7), (1 << 19, 1 << 12)])
def test_chunks_change_nothing(scores: int, codes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CPU_SCORES", scores)
    monkeypatch.setattr(search, "CPU_CODES", codes)
    generator = torch.Generator().manual_seed(1)
    latents, codebook = torch.randn(123, 5, generator=generator), torch.randn(77, 5, generator=generator)
    assert torch.equal(nearest(latents, codebook), distances(latents, codebook).argmin(1))


def test_memory_is_that_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CPU_SCORES", 1 << 14)
    monkeypatch.setattr(search, "CPU_CODES", 1 << 9)
    generator = torch.Generator().manual_seed(2)
    latents, codebook = torch.randn(1024, 2, generator=generator), torch.randn(2048, 2, generator=generator)
    assert largest(lambda: nearest(latents[:256], codebook[:1024])) == 1 << 14
    assert largest(lambda: nearest(latents, codebook)) == 1 << 14  # eight times as much work
    assert largest(lambda: latents @ codebook.t()) == 1 << 21  # what the measure says of the plain way


def test_is_computed_in_float32_whatever_the_autocast_state() -> None:
    generator = torch.Generator().manual_seed(3)
    latents, codebook = torch.randn(500, 8, generator=generator), torch.randn(256, 8, generator=generator)
    expected = nearest(latents, codebook)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(latents, codebook), expected)
        scores = latents @ codebook.t() - codebook.square().sum(1) / 2
    assert not torch.equal(scores.argmax(1), expected)  # what bf16 would make of it
    narrow = latents.bfloat16()
    assert torch.equal(nearest(narrow, codebook), nearest(narrow.float(), codebook))


def test_no_number_gives_some_index() -> None:
    latents = torch.tensor([[float("nan"), 0.0], [float("inf"), 1.0], [1.0, 1.0]])
    found = nearest(latents, torch.tensor([[5.0, 5.0], [1.0, 1.0], [-1.0, 0.0]]))
    assert ((found >= 0) & (found < 3)).all()
    assert found[2] == 1
    assert (nearest(latents, torch.full((3, 2), float("nan"))) < 3).all()


def test_nothing_is_differentiated() -> None:
    assert not nearest(torch.randn(3, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)).requires_grad
    assert nearest(torch.zeros(0, 2), torch.zeros(4, 2)).shape == (0,)
