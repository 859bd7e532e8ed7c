"""What an epoch says of a codebook: closed forms, and one warning where little of it is used."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from translate.methods.base import Summary
from translate.methods.code_watch import ENOUGH, CodeWatch

torch.set_num_threads(1)


def test_an_epoch_s_numbers_are_closed_forms() -> None:
    """Code 0 four times, 1 and 2 twice, 3 never: 3 of 4 used, entropy 1.5 ln 2."""
    watch = CodeWatch(4, 0.25)
    watch.add(torch.tensor([[[0, 0], [1, 2]], [[0, 1], [2, 0]]]))
    numbers, histograms = watch.summary()
    assert numbers == {
        "codebook/codes-used": 0.75,
        "codebook/perplexity": pytest.approx(2**1.5),
        "codebook/tokens for each code": 2.0,
    }
    assert list(histograms) == ["codebook/frequency"]
    assert histograms["codebook/frequency"].tolist() == [2, 1, 1, 0]  # 1: as often as all alike


def test_batches_add_up_and_each_epoch_begins_anew() -> None:
    watch = CodeWatch(8, 0.25, "_B")
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        batches = [torch.randint(8, (3, 5, 5), generator=generator) for _ in range(4)]
        for batch in batches:
            watch.add(batch)
        found = watch.summary().histograms["codebook_B/frequency"]
        wanted = torch.bincount(torch.cat(batches).flatten(), minlength=8) * 8 / 300
        torch.testing.assert_close(found, wanted.double())
    assert watch.summary() == Summary()  # nobody has counted: nothing to tell


def test_little_use_is_told_once_and_only_of_many_tokens() -> None:
    watch = CodeWatch(16, 0.25)
    assert watch.warnings(None, None) == []
    assert watch.warnings(0.1, ENOUGH - 0.1) == []  # too few to say
    assert watch.warnings(0.25, 100.0) == []
    (line,) = watch.warnings(0.2, float(ENOUGH))
    assert line.startswith("codebook: just 20% of the codes were used in the last epoch: set ") and "\n" not in line
    assert watch.warnings(0.1, 100.0) == []
    assert math.exp(-ENOUGH) < 1 / 2000


def test_what_was_counted_and_told_is_a_checkpoint_s() -> None:
    watch = CodeWatch(4, 0.5)
    watch.add(torch.tensor([0, 0, 3]))
    watch.warnings(0.1, 100.0)
    other = CodeWatch(4, 0.5)
    other.load_state_dict(copy.deepcopy(watch.state_dict()))
    assert other.warnings(0.1, 100.0) == []
    other.add(torch.tensor([3]))
    assert other.summary().histograms["codebook/frequency"].tolist() == [2, 0, 0, 2]
