"""The study of FID's bias, on features that are the pictures' own means."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import fid_bias
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from translate.errors import UserError
from translate.metrics.features import from_module


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    generator = np.random.default_rng(0)
    for number in range(20):
        cv2.imwrite(str(tmp_path / f"{number}.png"), generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    monkeypatch.setattr(fid_bias, "feature_network", lambda protocol, device: from_module("means", Means(), device))
    monkeypatch.setattr(fid_bias, "FEWEST", 4)
    return tmp_path


def test_rows_are_of_disjoint_samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fid_bias.py", str(folder), "--json"])
    fid_bias.main()
    rows = json.loads(capsys.readouterr().out)
    assert [row["images"] for row in rows] == [4, 8]
    features = fid_bias.features_of(folder, 20, 0)
    means = sorted(float(cv2.imread(str(path)).mean()) for path in folder.iterdir())
    # Grey levels to [-1, 1]; the order is random, every picture there once.
    found = sorted(((features.double().mean(dim=1) + 1) * 127.5).tolist())
    assert found == pytest.approx(means, abs=1e-3)
    shift = (features[:8].double().mean(0) - features[8:16].double().mean(0)).square().sum()
    assert rows[1]["fid"] >= float(shift) > 0  # the covariances add to the means' distance
    assert torch.equal(features[:6], fid_bias.features_of(folder, 6, 0))


def test_too_few_pictures_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fid_bias.py", str(folder), "--images", "7"])
    with pytest.raises(UserError, match="expected at least 8 pictures, found 7"):
        fid_bias.main()
