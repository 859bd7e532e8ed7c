"""LPIPS against the `lpips` package, whose backbones are filled with the same numbers."""

import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from translate.errors import UserError
from translate.pretrained.lpips import LPIPS, Kind, convert
from translate.pretrained.store import find

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lpips as package

KINDS: tuple[Kind, Kind] = ("alex", "vgg")
SMALLEST = {"alex": 31, "vgg": 16}


def reference(kind: Kind) -> Any:
    """The package's network with random numbers; built on `meta`, or VGG16's unused classifier would take seconds."""
    generator = torch.Generator().manual_seed(7)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        network = package.LPIPS(net=kind, pretrained=False, pnet_rand=True, verbose=False)
    tensors: dict[str, Tensor] = {}
    for name, empty in network.state_dict().items():
        if name.startswith("scaling_layer"):
            tensors[name] = empty
        elif name.startswith("lin"):  # each stands there twice: lin0 is lins.0
            number = next(digit for digit in name if digit.isdigit())
            tensors[name] = tensors.setdefault(
                f"lin{number}.model.1.weight", torch.rand(empty.shape, generator=generator)
            )
        elif name.endswith("weight"):  # He et al. 2015: activations keep their scale
            scale = math.sqrt(2 / math.prod(empty.shape[1:]))
            tensors[name] = scale * torch.randn(empty.shape, generator=generator)
        else:
            tensors[name] = 0.1 * torch.randn(empty.shape, generator=generator)
    network.load_state_dict(tensors, assign=True)
    return network


@pytest.fixture(scope="module")
def references() -> dict[Kind, Any]:
    return {kind: reference(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def files(references: dict[Kind, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """The package's own state_dicts."""
    folder = tmp_path_factory.mktemp("lpips")
    for kind, network in references.items():
        torch.save(network.state_dict(), folder / f"{kind}.pth")
    return {kind: folder / f"{kind}.pth" for kind in KINDS}


@pytest.fixture(scope="module")
def ours(files: dict[Kind, Path]) -> dict[Kind, LPIPS]:
    return {kind: LPIPS(kind, convert(path, kind)) for kind, path in files.items()}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 33, 47), (1, 40, 35)])
def test_equal_to_the_package(
    kind: Kind, channels: int, height: int, width: int, references: dict[Kind, Any], ours: dict[Kind, LPIPS]
) -> None:
    a, b = images(2, channels, height, width), images(2, channels, height, width, seed=1)
    with torch.no_grad():
        wanted = references[kind](a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)).flatten()
    found = ours[kind](a, b)
    assert found.shape == (2,)
    assert found.dtype is torch.float32
    assert (wanted > 0.1).all()  # the numbers below would say nothing about distances near 0
    # float32 sums of some thousand terms in another order.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_packages_under_autocast_too(
    kind: Kind, references: dict[Kind, Any], ours: dict[Kind, LPIPS]
) -> None:
    def gradients(distance: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        pair = [images(1, 3, 40, 40, seed=seed).requires_grad_() for seed in (0, 1)]
        distance(*pair).sum().backward()
        return [image.grad for image in pair if image.grad is not None]

    wanted, found = gradients(references[kind]), gradients(ours[kind])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gradients(ours[kind])
    assert len(found) == 2
    for one, other, third in zip(found, wanted, mixed, strict=True):
        assert one.abs().max() > 1e-5
        assert (one - other).norm() <= 1e-4 * other.norm()  # float32 through up to 13 convolutions and back
        assert torch.equal(one, third)


@pytest.mark.parametrize("kind", KINDS)
def test_smallest_image_is_what_the_poolings_leave_a_window_of(
    kind: Kind, references: dict[Kind, Any], ours: dict[Kind, LPIPS]
) -> None:
    side = SMALLEST[kind]
    a, b = images(1, 3, side, side + 9), images(1, 3, side, side + 9, seed=1)
    assert ours[kind](a, b).isfinite().all()
    small = a[:, :, :-1], b[:, :, :-1]
    with pytest.raises(RuntimeError):  # the package has no words for it
        references[kind](*small)
    with pytest.raises(UserError, match=f"of at least {side}x{side} pixels, not"):
        ours[kind](*small)


def test_other_images_are_refused(ours: dict[Kind, LPIPS]) -> None:
    with pytest.raises(UserError, match="one shape"):
        ours["alex"](images(1, 3, 40, 40), images(1, 3, 40, 41))
    with pytest.raises(UserError, match="RGB or grey"):
        ours["alex"](images(1, 4, 40, 40), images(1, 4, 40, 40))


def test_equal_images_are_at_distance_zero_and_order_is_nothing(ours: dict[Kind, LPIPS]) -> None:
    a, b = images(2, 3, 40, 40), images(2, 3, 40, 40, seed=1)
    assert torch.equal(ours["alex"](a, a), torch.zeros(2))
    assert torch.equal(ours["alex"](a, b), ours["alex"](b, a))


def test_weights_enter_no_checkpoint_and_never_train(ours: dict[Kind, LPIPS]) -> None:
    for kind, tensors in (("alex", 5 * 2 + 5), ("vgg", 13 * 2 + 5)):
        loss = ours[kind]
        assert not loss.state_dict()
        assert not list(loss.parameters())
        assert len(list(loss.buffers())) == tensors + 2  # so that .to(device) moves them, shift and scale too


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_file_gives_the_same_tensors(
    kind: Kind, files: dict[Kind, Path], references: dict[Kind, Any], tmp_path: Path
) -> None:
    tensors = convert(files[kind], kind)
    save_file(tensors, tmp_path / "ours.safetensors")
    module = {"alex": "AlexNet_0", "vgg": "VGG16_0"}[kind]
    flax: dict[str, Any] = {module: {}}
    backbone = [name for name in references[kind].state_dict() if name.startswith("net.") and name.endswith("weight")]
    for number, name in enumerate(backbone):  # in the order of the layers
        weight, bias = (references[kind].state_dict()[name.replace("weight", part)] for part in ("weight", "bias"))
        kernel = weight.permute(2, 3, 1, 0).contiguous()  # (height, width, in, out)
        flax[module][f"Conv_{number}"] = {"kernel": kernel.numpy(), "bias": bias.numpy()}
    for number in range(5):
        lin = references[kind].state_dict()[f"lin{number}.model.1.weight"]
        flax[f"NetLinLayer_{number}"] = {"Conv_0": {"kernel": lin.permute(2, 3, 1, 0).contiguous().numpy()}}
    (tmp_path / "flax.ckpt").write_bytes(pickle.dumps(flax))
    for file in ("ours.safetensors", "flax.ckpt"):
        found = convert(tmp_path / file, kind)
        assert list(found) == list(tensors)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_other_files_are_refused(files: dict[Kind, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"alex.pth: expected complete LPIPS weights of VGG16 with 'features.0.weight'"):
        convert(files["alex"], "vgg")
    held = torch.load(files["alex"], weights_only=True)
    linear = {name: tensor for name, tensor in held.items() if name.startswith("lin")}
    torch.save(linear, tmp_path / "alex.pth")  # as the files inside the package
    with pytest.raises(UserError, match=r"'features.0.weight' of shape \(64, 3, 11, 11\), but this file has nothing"):
        convert(tmp_path / "alex.pth", "alex")
    (tmp_path / "list.ckpt").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="but this file has nothing"):
        convert(tmp_path / "list.ckpt", "alex")


def test_absent_weights_are_a_line_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="translate weights get lpips"):
        LPIPS.load("vgg")


@pytest.mark.parametrize("kind", KINDS)
def test_real_linear_layers_are_those_of_the_package(kind: Kind) -> None:
    if find(f"lpips-{kind}") is None:
        pytest.skip(f"the weights lpips-{kind} are not on this machine: translate weights get lpips")
    file = Path(package.__file__).parent / "weights" / "v0.1" / f"{kind}.pth"
    bundled = torch.load(file, map_location="cpu", weights_only=True)
    found = LPIPS.load(kind)
    assert len(found.digest) == 64
    for number in range(5):
        assert torch.equal(getattr(found, f"lin_{number}"), bundled[f"lin{number}.model.1.weight"].flatten())
