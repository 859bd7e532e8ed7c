"""Feature networks: what they are given, what they must return, and what they say of themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from translate.devices import exact_float32
from translate.errors import UserError
from translate.metrics.features import FeatureNetwork, central_crop, feature_network, from_module
from translate.metrics.protocol import ProtocolSettings
from translate.pretrained.inception import resize
from translate.pretrained.store import digest_of, find


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Means(nn.Module):
    """Features a test can compute itself: the mean of each channel, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean(dim=(2, 3)) * self.weight


class Answers(nn.Module):
    """Returns what a function makes of the images."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


# ---------------------------------------------------------------------------------------------- networks of one's own


def test_own_network_is_frozen_and_gives_its_features() -> None:
    module = Means().train()
    network = from_module("means", module, "cpu")
    assert network.dimension == 3
    assert not module.training
    assert not module.weight.requires_grad
    a = images(2, 3, 7, 5)
    found = network(network.prepare(a))
    wanted = a.mean(dim=(2, 3)) * torch.tensor([1.0, 2.0, 4.0]) / (1 + 1e-5) ** 0.5  # batch norm's epsilon
    torch.testing.assert_close(found.features, wanted)
    assert found.logits is None
    found.features.add_(1)  # a plain tensor, which others may write to
    assert network.protocol() == {"features": "means", "weights": network.digest[:12], "crop": "none"}


def test_digest_is_that_of_the_weights() -> None:
    first, second = Means(), Means()
    assert (
        from_module("a", first, "cpu").digest == from_module("b", second, "cpu").digest == digest_of(first.state_dict())
    )
    with torch.no_grad():
        second.weight[0] += 1e-6
    assert from_module("a", second, "cpu").digest != digest_of(first.state_dict())


def test_logits_come_along() -> None:
    network = from_module("two", Answers(lambda x: (x.mean(dim=(2, 3)).double(), x[:, :, 0, 0].half())), "cpu")
    found = network(network.prepare(images(4, 3, 8, 8)))
    assert found.logits is not None
    assert found.logits.shape == (4, 3)
    assert found.features.dtype is found.logits.dtype is torch.float32


def test_grey_is_repeated_and_values_are_clamped() -> None:
    network = from_module("flat", Answers(lambda x: x.flatten(1)), "cpu", crop=4)
    grey = 3 * images(2, 1, 4, 4)
    prepared = network.prepare(grey)
    assert torch.equal(prepared, grey.clamp(-1, 1).expand(-1, 3, -1, -1))
    assert torch.equal(network(prepared).features, prepared.flatten(1))
    for shape in ((1, 4, 8, 8), (1, 2, 8, 8), (3, 8, 8)):
        with pytest.raises(UserError, match="'flat' sees RGB or grey images"):
            network.prepare(torch.zeros(shape))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x: x, r"it returned \(1, 3, 299, 299\)"),
        (lambda x: x.mean(dim=(0, 2, 3)), r"it returned \(3,\)"),
        (lambda x: x.mean(dim=(2, 3)).repeat(2, 1), r"it returned \(2, 3\)"),
        (lambda x: {"features": x.mean(dim=(2, 3))}, "it returned dict"),
        (lambda x: [x.mean(dim=(2, 3))] * 3, r"it returned \(1, 3\), \(1, 3\), \(1, 3\)"),
        (lambda x: (x.mean(dim=(2, 3)), x), r"it returned \(1, 3\), \(1, 3, 299, 299\)"),
        (lambda x: x.mean(dim=(2, 3)).long(), r"it returned \(1, 3\)"),
        (lambda x: x.reshape(1, 5), r"failed on an image of 299x299 \(RuntimeError: shape.*\); if it takes"),
    ],
)
def test_what_is_no_features_is_told_at_once(answer: Callable[[Tensor], Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        from_module("odd", Answers(answer), "cpu")
    assert "'odd'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_that_change_or_are_no_numbers_are_told() -> None:
    network = from_module("flat", Answers(lambda x: x.flatten(1)), "cpu", crop=4)
    with pytest.raises(UserError, match="gave 75 features for images of 5x5, but 48 before"):
        network(torch.zeros(1, 3, 5, 5))
    for bad in (float("nan"), float("inf")):
        broken = torch.zeros(2, 3, 4, 4)
        broken[1, 2, 3, 3] = bad
        with pytest.raises(UserError, match="'flat' gave features that are no numbers"):
            network(broken)
    broken[1, 2, 3, 3] = float("nan")
    assert network.prepare(broken).isnan().any()  # not made a number on the way


def test_it_computes_in_float32_and_leaves_the_settings_as_they_were() -> None:
    backends: Any = torch.backends
    places = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    seen: list[Any] = []

    def answer(x: Tensor) -> Tensor:
        seen.append(([place.fp32_precision for place in places], (x[0, 0] @ x[0, 0]).dtype))
        return x.mean(dim=(2, 3))

    before = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    try:
        settings = [place.fp32_precision for place in places]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            from_module("seen", Answers(answer), "cpu")
        with pytest.raises(ZeroDivisionError), exact_float32(torch.device("cpu")):
            raise ZeroDivisionError
        assert [place.fp32_precision for place in places] == settings
        assert "tf32" in settings
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert seen == [(["ieee"] * 4, torch.float32)]
    assert backends.cudnn.allow_tf32 is before[1]


# ---------------------------------------------------------------------------------------------- named by text


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module."""
    (tmp_path / "own_features_7.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.flatten(1)\n"
        "def needs(width):\n"
        "    return nn.Flatten()\n"
        "def number():\n"
        "    return 7\n"
        "constant = 7\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_features_7"


def test_network_named_by_text(package: str) -> None:
    text = f"{package}:Flat"
    network = feature_network(ProtocolSettings(features=text, crop=6), "cpu")
    assert (network.name, network.dimension) == (text, 3 * 6 * 6)
    assert network.protocol() == {"features": text, "weights": digest_of({})[:12], "crop": 6}
    assert network(network.prepare(images(2, 1, 9, 12))).features.shape == (2, 108)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "expected package.module:callable"),
        (":absent", "has no 'absent'"),
        (":constant", "is no callable but int"),
        (":needs", "failed when called without arguments (TypeError"),
        (":number", "must return a torch.nn.Module, not int"),
    ],
)
def test_text_that_names_no_network(package: str, name: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        feature_network(ProtocolSettings(features=f"{package}{name}"), "cpu")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no module 'not_there_7'"):
        feature_network(ProtocolSettings(features="not_there_7:make"), "cpu")


# ---------------------------------------------------------------------------------------------- crop


@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 37), (51, 24), (100, 61), (9, 13)])
def test_central_crop_is_pillows(height: int, width: int) -> None:
    """Shorter side to 24 by Pillow's bicubic on float pixels, then the middle."""
    picture = images(1, 1, height, width)
    shorter = min(height, width)
    size = (round(width * 24 / shorter), round(height * 24 / shorter))
    resized = np.asarray(Image.fromarray(picture[0, 0].numpy()).resize(size, Image.Resampling.BICUBIC)).clip(-1, 1)
    top, left = (resized.shape[0] - 24) // 2, (resized.shape[1] - 24) // 2
    wanted = torch.from_numpy(resized[top : top + 24, left : left + 24].copy())
    found = central_crop(picture, 24)
    assert found.shape == (1, 1, 24, 24)
    torch.testing.assert_close(found[0, 0], wanted, rtol=0, atol=1e-6)  # Pillow keeps float32 between its passes


# ---------------------------------------------------------------------------------------------- Inception


def test_absent_weights_are_a_line_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="translate weights get inception"):
        feature_network(ProtocolSettings(), "cpu")


@pytest.fixture(scope="module")
def inception() -> FeatureNetwork:
    if find("inception") is None:
        pytest.skip("the weights are not on this machine: translate weights get inception")
    return feature_network(ProtocolSettings(resize="clean", crop=64), "cpu")


def test_inception_says_what_its_numbers_depend_on(inception: FeatureNetwork) -> None:
    assert inception.protocol() == {
        "features": "inception-2015-12-05",
        "weights": inception.digest[:12],
        "resize": "clean",
        "crop": 64,
    }
    assert inception.dimension == 2048


def test_inception_sees_grey_as_rgb_after_crop_and_resize(inception: FeatureNetwork) -> None:
    grey = images(1, 1, 64, 90)
    prepared = inception.prepare(grey)
    wanted = resize(grey[..., 13:77].expand(-1, 3, -1, -1), "clean")
    assert torch.equal(prepared, wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = inception(prepared)
    again = inception(torch.cat([wanted, resize(images(1, 3, 64, 64, seed=1), "clean")]))
    assert found.features.shape == (1, 2048)
    # A batch of two takes other kernels: float32 through 94 convolutions.
    torch.testing.assert_close(again.features[:1], found.features, rtol=0, atol=1e-5 * float(found.features.max()))


def test_inception_refuses_what_is_no_number(inception: FeatureNetwork) -> None:
    broken = images(1, 3, 64, 64)
    broken[0, 1, 30, 30] = float("nan")
    with pytest.raises(UserError, match="'inception-2015-12-05' gave features that are no numbers"):
        inception(inception.prepare(broken))
