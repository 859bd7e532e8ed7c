"""LPIPS as a loss: its mean, its gradient, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.losses.lpips import LPIPSLoss, LPIPSSettings
from translate.pretrained import store
from translate.pretrained.lpips import _NETWORKS, LPIPS

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def distance() -> LPIPS:
    """AlexNet's shape with random numbers, all channels of the comparison weighted."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in _NETWORKS["alex"].shapes()}
    return LPIPS("alex", {name: t.abs() if name.startswith("lin") else t for name, t in tensors.items()})


def images(count: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_loss_is_the_mean_of_the_distances(distance: LPIPS) -> None:
    output, target = images(3), images(3, seed=1)
    each = torch.stack([distance(output[n : n + 1], target[n : n + 1])[0] for n in range(3)])
    assert each.std() > 0
    found = LPIPSLoss(distance)(output, target)
    assert found.ndim == 0 and found.dtype == torch.float32
    torch.testing.assert_close(found, each.mean())
    assert LPIPSLoss(distance)(output, output) == 0


def test_the_output_alone_gets_a_gradient_and_it_is_the_slope(distance: LPIPS) -> None:
    output, target = images(2).requires_grad_(), images(2, seed=1).requires_grad_()
    loss = LPIPSLoss(distance)
    loss(output, target).backward()
    assert target.grad is None and not any(True for _ in loss.parameters())
    direction = output.grad / output.grad.norm()
    # Along the gradient by central differences: h^2 curvature against 1e-7 / h of rounding, right to 1 % at h = 0.01.
    with torch.no_grad():
        ahead, behind = (loss(output + sign * 0.01 * direction, target) for sign in (1, -1))
    assert ((ahead - behind) / 0.02).item() == pytest.approx(output.grad.norm().item(), rel=0.02)


def test_grey_is_compared_as_rgb_of_three_equal_channels(distance: LPIPS) -> None:
    output, target = images(2, channels=1), images(2, channels=1, seed=1)
    loss = LPIPSLoss(distance)
    torch.testing.assert_close(loss(output, target), loss(output.expand(-1, 3, -1, -1), target.expand(-1, 3, -1, -1)))


def test_it_is_float32_under_autocast_and_in_no_checkpoint(distance: LPIPS) -> None:
    output, target = images(2), images(2, seed=1)
    plain = LPIPSLoss(distance)(output, target)
    with torch.autocast("cpu", torch.bfloat16):
        found = LPIPSLoss(distance)(output, target)
    assert found.dtype == torch.float32 and torch.equal(found, plain)
    assert LPIPSLoss(distance).state_dict() == {}


@pytest.mark.parametrize(
    "spec", [ImageSpec(channels=2), ImageSpec(channels=4), ImageSpec(kind="labels", classes=3)], ids=str
)
def test_other_pictures_are_refused_before_weights_are_read(spec: ImageSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LPIPS, "load", classmethod(lambda cls, kind: pytest.fail("read")))
    with pytest.raises(UserError, match="LPIPS compares grey or RGB pictures") as raised:
        LPIPSSettings().build([ImageSpec(), spec])
    assert "\n" not in str(raised.value)


def test_the_settings_choose_the_network(distance: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(LPIPS, "load", classmethod(lambda cls, kind: asked.append(kind) or distance))
    for settings in (LPIPSSettings(), LPIPSSettings(network="alex")):
        assert settings.build([ImageSpec(), ImageSpec(channels=1)]).distance is distance
    assert asked == ["vgg", "alex"]


def test_absent_weights_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if store.find("lpips-alex") is not None:
        pytest.skip("the store looks elsewhere too")
    with pytest.raises(UserError, match="translate weights get lpips") as raised:
        LPIPSSettings(network="alex").build([ImageSpec()])
    assert "\n" not in str(raised.value)
