"""The perceptual loss against torchvision's own VGG, with random weights that the tests write themselves."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from translate.errors import UserError
from translate.losses.perceptual import PerceptualSettings
from translate.pretrained import store


def vgg(name: str, first: int) -> nn.Sequential:
    """The first layers of torchvision's `features`, He-initialised (the whole network is 138 M)."""
    with torch.device("meta"):
        features: nn.Sequential = getattr(torchvision.models, name)(weights=None).features[:first]
    features = features.to_empty(device="cpu").requires_grad_(False)
    torch.manual_seed(0)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, (2 / layer.weight[0].numel()) ** 0.5)
            nn.init.normal_(layer.bias, 0, 0.1)
        elif isinstance(layer, nn.ReLU):
            layer.inplace = False
    return features


def named(features: nn.Sequential) -> dict[str, Tensor]:
    return {f"features.{key}": value for key, value in features.state_dict().items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG19 up to relu1_2."""
    path = tmp_path_factory.mktemp("vgg") / "small.safetensors"
    save_file(named(vgg("vgg19", 4)), path)
    return path


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1


def normalised(x: Tensor) -> Tensor:
    means, deviations = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return torchvision.transforms.functional.normalize((x + 1) / 2, means, deviations)


@pytest.mark.parametrize(
    ("network", "ends"),
    [
        # Layer name and the length of torchvision's `features` that ends with it.
        ("vgg16", {"relu1_2": 4, "conv2_1": 6, "relu3_3": 16, "relu4_3": 23, "conv5_3": 29, "relu5_3": 30}),
        ("vgg19", {"conv1_1": 1, "relu2_2": 9, "conv3_4": 17}),
    ],
)
def test_layers_are_those_of_torchvision(network: str, ends: dict[str, int], tmp_path: Path) -> None:
    features = vgg(network, max(ends.values()))
    path = tmp_path / "vgg.safetensors"
    save_file(named(features), path)
    weights = {name: float(index + 1) for index, name in enumerate(ends)}
    loss = PerceptualSettings(network=network, weights=path, layers=weights).build()
    fake, real = images(1, 3, 32, 32), images(1, 3, 32, 32).flip(-1)
    expected = 0.0
    found = loss.features(fake)
    for name, end in ends.items():
        of_fake, of_real = (features[:end](normalised(x)) for x in (fake, real))
        torch.testing.assert_close(found[name], of_fake, atol=1e-4, rtol=1e-4)
        expected += weights[name] * (of_fake - of_real).abs().mean().item()
    assert loss(fake, real).item() == pytest.approx(expected, rel=1e-4)


def test_the_squared_distance_is_that_of_the_paper(small: Path) -> None:
    """SRGAN's equation 5, features divided by 12.75: a weight of its square."""
    features = vgg("vgg19", 4)
    settings = PerceptualSettings(weights=small, layers={"relu1_2": 1}, distance="l2", weight=(1 / 12.75) ** 2)
    fake, real = images(2, 3, 8, 8), images(2, 3, 8, 8).flip(0)
    of_fake, of_real = (features(normalised(x)) / 12.75 for x in (fake, real))
    found = settings.weight * settings.build()(fake, real)
    torch.testing.assert_close(found, (of_fake - of_real).square().mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_before_the_activation_what_is_negative_counts_too(distance: Literal["l1", "l2"], small: Path) -> None:
    before, after = (
        PerceptualSettings(weights=small, layers={f"{kind}1_2": 1}, distance=distance).build()
        for kind in ("conv", "relu")
    )
    fake, real = images(1, 3, 8, 8), images(1, 3, 8, 8).flip(-1)
    negative = before.features(fake)["conv1_2"]
    assert (negative < 0).any()
    torch.testing.assert_close(after.features(fake)["relu1_2"], negative.clamp(min=0))
    assert before(fake, real) > after(fake, real)


def test_bfloat16_is_near_and_float16_is_not_used(tmp_path: Path) -> None:
    """Eight layers that each round to 2^-9 in both images: their distance is right to sqrt(2 * 8) 2^-9, 0.8 %, where
    it is as large as the features; the slope's direction is lost by the ReLUs that flip, a hundredth of it here."""
    path = tmp_path / "vgg.safetensors"
    save_file(named(vgg("vgg19", 17)), path)
    loss = PerceptualSettings(weights=path, layers={"conv3_4": 1}, distance="l2").build()
    fake, real = images(1, 3, 32, 32), images(1, 3, 32, 32).flip(-1)
    values, slopes = [], []
    for dtype in (None, torch.bfloat16, torch.float16):
        x = fake.clone().requires_grad_()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            values.append(loss(x, real))
            assert loss(real, real) == 0  # rounded alike
        values[-1].backward()
        slopes.append(x.grad.flatten())
    assert all(value.dtype == torch.float32 for value in values)
    assert values[2] == values[0] and torch.equal(slopes[2], slopes[0])
    assert values[1] != values[0] and values[1].item() == pytest.approx(values[0].item(), rel=0.008)
    assert torch.cosine_similarity(slopes[1], slopes[0], dim=0) > 0.98


def test_weights_are_frozen_and_in_no_checkpoint(small: Path) -> None:
    loss = PerceptualSettings(weights=small, layers={"relu1_2": 1}).build()
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert len(list(loss.buffers())) == 2 * 2 + 2  # so that .to(device) moves them
    fake, real = (images(1, 3, 8, 8).requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(fake.bfloat16(), real.bfloat16() * 0.5)
    value.backward()
    assert value.dtype is torch.float32
    assert fake.grad is not None
    assert fake.grad.any()
    assert real.grad is None


def test_equal_images_are_at_distance_zero_and_noise_is_farther_than_blur(small: Path) -> None:
    loss = PerceptualSettings(weights=small, layers={"conv1_2": 1}).build()
    real = interpolate(images(1, 3, 4, 4), size=16, mode="bilinear")
    assert loss(real, real).item() == 0
    noise = 0.1 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert 0 < loss(real + 0.1 * noise, real) < loss(real + noise, real)


def test_grey_is_seen_as_rgb(small: Path) -> None:
    loss = PerceptualSettings(weights=small, layers={"relu1_1": 1}).build()
    fake, real = images(2, 1, 8, 8), images(2, 1, 8, 8).flip(0)
    torch.testing.assert_close(loss(fake, real), loss(fake.expand(-1, 3, -1, -1), real.expand(-1, 3, -1, -1)))


def test_pth_reads_like_safetensors_and_the_checksum_is_checked(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "vgg.pth"
    torch.save(named(vgg("vgg19", 4)), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    fake, real = images(1, 3, 8, 8), images(1, 3, 8, 8).flip(-1)
    losses = [
        PerceptualSettings(weights=file, sha256=sha256, layers={"relu1_2": 1}).build()(fake, real)
        for file, sha256 in ((path, digest.upper()), (small, None))
    ]
    assert losses[0] == losses[1]
    with pytest.raises(UserError, match=f"vgg.pth: the SHA-256 is {digest}"):
        PerceptualSettings(weights=path, sha256="0" * 64, layers={"relu1_2": 1}).build()


def test_weights_left_out_are_those_of_the_store(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = PerceptualSettings(layers={"relu1_2": 1})
    with pytest.raises(UserError, match=r"^vgg19: .* not on this machine; .*'translate weights get vgg19'$"):
        settings.build()
    monkeypatch.setattr(store, "_convert", lambda name, path: (load_file(path), ""))  # which asks for the whole network
    store.get("vgg19", source=small)
    fake, real = images(1, 3, 8, 8), images(1, 3, 8, 8).flip(-1)
    named = PerceptualSettings(weights=small, layers={"relu1_2": 1})
    assert settings.build()(fake, real) == named.build()(fake, real)


def test_what_the_store_lacks_needs_a_file() -> None:
    with pytest.raises(ValidationError, match="'translate weights' has no vgg16: name a file"):
        PerceptualSettings(network="vgg16", layers={"relu3_3": 1})
    with pytest.raises(ValidationError, match="'sha256' is the checksum of a file"):
        PerceptualSettings(sha256="0" * 64)


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file.*vgg16 weights.*download") as caught:
        PerceptualSettings(network="vgg16", weights=tmp_path / "none.pth", layers={"relu3_3": 1}).build()
    assert "\n" not in str(caught.value)


class Bomb:
    """Leaves a file behind if anyone unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["vgg.pth", "vgg.safetensors"])
def test_damaged_files_and_pickles_are_refused(name: str, tmp_path: Path, small: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / name
    torch.save({"features.0.weight": Bomb(trace)}, tmp_path / "bomb")
    for content in (
        b"",
        b"text",
        small.read_bytes()[:1000],
        pickle.dumps(Bomb(trace), protocol=2),
        (tmp_path / "bomb").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: no readable"):
            PerceptualSettings(weights=path, layers={"relu1_2": 1}).build()
    assert not trace.exists()


def test_weights_of_another_network_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'features.5.weight'.*nothing"):  # the file ends before conv2_1
        PerceptualSettings(weights=small, layers={"conv2_1": 1}).build()
    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11), "features.0.bias": torch.zeros(64)}, path)
    with pytest.raises(UserError, match=r"other.safetensors.*vgg19.*has shape"):  # AlexNet's first layer
        PerceptualSettings(weights=path, layers={"conv1_1": 1}).build()
    torch.save([torch.zeros(1)], path.with_suffix(".pth"))
    with pytest.raises(UserError, match="expected named tensors, found list"):
        PerceptualSettings(weights=path.with_suffix(".pth"), layers={"conv1_1": 1}).build()


def test_images_that_vgg_cannot_take_are_refused(small: Path) -> None:
    loss = PerceptualSettings(weights=small, layers={"relu1_1": 1}).build()
    with pytest.raises(UserError, match="with 4 channels"):
        loss(images(1, 4, 8, 8), images(1, 4, 8, 8))


def test_layer_names_are_checked_per_network(tmp_path: Path) -> None:
    PerceptualSettings(network="vgg19", weights=tmp_path, layers={"conv5_4": 1})
    with pytest.raises(ValidationError, match="vgg16 has no layer 'conv5_4'"):
        PerceptualSettings(network="vgg16", weights=tmp_path, layers={"conv5_4": 1})
    with pytest.raises(ValidationError):
        PerceptualSettings(weights=tmp_path, layers={})
