"""VGG19 out of either file: the right layers at the right places, and one convention of the input."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.data
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import conv2d

from translate.errors import UserError
from translate.losses.perceptual import PerceptualSettings
from translate.pretrained import store, vgg19


def normalised_layers() -> nn.Sequential:
    """The network of vgg_normalized.pth, as the gaps in its numbering have it."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    before = 3
    for count, after in ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)):
        for _ in range(count):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(before, after, 3), nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def filled(network: nn.Sequential) -> dict[str, Tensor]:
    """The names and shapes of its state_dict; the n-th tensor holds nothing but n."""
    return {
        name: torch.full(each.shape, float(n))
        for n, (name, each) in enumerate(network.state_dict().items())
        if int(name.split(".")[0]) <= 51  # conv5_4
    }


@pytest.fixture(scope="module")
def normalised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    with torch.device("meta"):
        network = normalised_layers()
    held = filled(network)
    generator = torch.Generator().manual_seed(0)
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        held[name] = 100 * torch.randn(held[name].shape, generator=generator)
    path = tmp_path_factory.mktemp("vgg") / "vgg_normalized.pth"
    torch.save(held, path)
    return path, held


def test_layers_of_the_normalised_file_come_to_their_places(normalised: tuple[Path, dict[str, Tensor]]) -> None:
    path, held = normalised
    assert len(held) == 2 * 17
    found = vgg19.convert(path)
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None).features
    expected = {f"features.{name}": each for name, each in features.state_dict().items()}
    assert list(found) == list(expected)
    for n, (name, tensor) in enumerate(found.items()):
        assert tensor.shape == expected[name].shape
        assert tensor.dtype is torch.float32
        if n >= 2:  # the others are folded
            assert (tensor == n + 2).all(), name


def test_the_first_layers_are_folded(normalised: tuple[Path, dict[str, Tensor]]) -> None:
    """Without padding both are the same function of a picture."""
    path, held = normalised
    found = vgg19.convert(path)
    picture = torch.rand(1, 3, 12, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inner = conv2d(picture, held["0.weight"].double(), held["0.bias"].double())
    expected = conv2d(inner, held["2.weight"].double(), held["2.bias"].double())
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    seen = torchvision.transforms.functional.normalize(picture, mean, std)
    result = conv2d(seen, found["features.0.weight"].double(), found["features.0.bias"].double())
    # Just the folded numbers are rounded, to 24 bits: 28 terms of up to 2^-24 relative to the largest each.
    torch.testing.assert_close(result, expected, rtol=0, atol=28 * 2**-24 * expected.abs().max().item())


def test_torchvisions_own_file_is_taken_as_it_is(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = torchvision.models.vgg19(weights=None)
    held = {name: torch.full(t.shape, float(n)) for n, (name, t) in enumerate(network.features.state_dict().items())}
    path = tmp_path / "vgg19-12345678.pth"
    torch.save({f"features.{name}": t for name, t in held.items()} | {"classifier.0.bias": torch.zeros(1)}, path)
    found = vgg19.convert(path)
    assert found.keys() == {f"features.{name}" for name in held}
    assert all((found[f"features.{name}"] == tensor).all() for name, tensor in held.items())
    assert not vgg19.is_normalised(held)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    for held, line in (
        ({"features.0.weight": torch.zeros(64, 3, 11, 11)}, "'features.0.weight' of shape .64, 3, 3, 3.* 11, 11"),
        ({"0.weight": torch.zeros(3, 3, 1, 1), "0.bias": torch.zeros(3)}, "'2.weight' .* has nothing"),
        ({}, "'features.0.weight' .* has nothing"),
    ):
        torch.save(held, path)
        with pytest.raises(UserError, match=f"other.pth: expected VGG19 weights with {line}"):
            vgg19.convert(path)


@pytest.mark.skipif(store.find("vgg19") is None, reason="vgg19 is absent: translate weights get vgg19")
def test_real_features_are_of_the_scale_that_the_form_says() -> None:
    """Activation-normalised: 1 on average over ImageNet. One photograph is no ImageNet, hence the wide band around the
    means found, 0.9 to 1.2; an input at 255 times the scale gives 260 to 350.
    """
    held = store.load("vgg19")
    if held.form != "activation-normalised":
        pytest.skip(f"the store's vgg19 is {held.form}")
    layers = [f"relu{block}_1" for block in range(1, 6)]
    loss = PerceptualSettings(layers=dict.fromkeys(layers, 1.0)).build()
    picture = torch.from_numpy(skimage.data.astronaut()[:256, :256].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    for name, found in loss.features(picture).items():
        assert 0.6 < found.relu().mean() < 1.6, name
