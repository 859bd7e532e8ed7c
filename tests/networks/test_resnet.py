from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import pad

from translate.networks import ResNetSettings, count_parameters
from translate.networks.layers import DownsamplingName, NormName, UpsamplingName
from translate.networks.resnet import PaddingName, ResidualBlock


@pytest.mark.parametrize(("blocks", "parameters"), [(9, 11_378_179), (6, 7_837_699)])
def test_parameters_are_those_of_the_reference(blocks: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(ResNetSettings(blocks=blocks).build(3, 3)) == parameters
        # Blurs and interpolation have no weights.
        settings = ResNetSettings(blocks=blocks, downsampling="anti-aliased", upsampling="anti-aliased")
        assert count_parameters(settings.build(3, 3)) == parameters


@pytest.mark.parametrize(
    ("downsampling", "upsampling"),
    [("strided", "transposed"), ("strided", "resize"), ("anti-aliased", "anti-aliased")],
)
@pytest.mark.parametrize("padding", ["reflect", "replicate", "zeros"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_smallest_image_trains(
    norm: NormName, padding: PaddingName, downsampling: DownsamplingName, upsampling: UpsamplingName
) -> None:
    torch.manual_seed(0)
    raw = {"norm": norm, "padding": padding, "downsampling": downsampling, "upsampling": upsampling}
    settings = ResNetSettings.model_validate({**raw, "blocks": 1, "width": 4, "dropout": 0.5})
    net = settings.build(2, 1)
    x = torch.randn(1, 2, net.smallest, net.smallest + net.multiple)
    y = net(x)
    assert y.shape == (1, 1, 8, 12)
    assert y.abs().max() <= 1
    y.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_block_is_the_identity_and_two_reflected_convolutions() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(ResNetSettings(norm="none"), 4)
    first, second = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    x = torch.randn(1, 4, 6, 6)

    def reflected(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(pad(x, (1, 1, 1, 1), mode="reflect"), layer.weight, layer.bias)

    torch.testing.assert_close(block(x), x + reflected(second, torch.relu(reflected(first, x))))


def test_instance_norm_network_ignores_contrast_and_brightness() -> None:
    # The norm behind the first convolution takes out gain and offset, as reflection brings no zeros in.
    torch.manual_seed(0)
    net = ResNetSettings(blocks=1, width=8).build(1, 1)
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(net(3 * x + 2), net(x), atol=1e-2, rtol=0)
    assert (net(x.flip(-1)) - net(x)).abs().max() > 0.1


def test_dropout_once_per_block_and_only_if_asked() -> None:
    def dropouts(rate: float) -> int:
        net = ResNetSettings(blocks=3, width=4, dropout=rate).build(3, 3)
        return sum(isinstance(layer, nn.Dropout) for layer in net.modules())

    assert (dropouts(0.5), dropouts(0)) == (3, 0)


def test_anti_aliased_networks_follow_shifts_that_strided_ones_do_not() -> None:
    """A shift by one pixel should move the output by one; away from the border, where the reflection differs."""

    def change(downsampling: DownsamplingName, upsampling: UpsamplingName) -> float:
        torch.manual_seed(0)
        net = ResNetSettings(
            blocks=0, width=8, norm="none", downsampling=downsampling, upsampling=upsampling,
            initialisation={"kind": "kaiming"},
        ).build(1, 1)  # fmt: skip
        images = torch.randn(4, 1, 96, 97)
        with torch.no_grad():
            one, two = (net.layers[:-1](x) for x in (images[..., :96], images[..., 1:]))
        error = (one[..., 32:-32, 33:-31] - two[..., 32:-32, 32:-32]).std()
        return float(error / one.std())

    # 0.19, where what each ReLU makes above half of the frequencies still folds, against 1.46: two strangers have 1.41.
    assert change("anti-aliased", "anti-aliased") < 0.3
    assert change("strided", "transposed") > 1


TAPPED = ["input", "down1", "down2", "block1", "block3"]


@pytest.mark.parametrize("norm", ["instance", "none"])
@pytest.mark.parametrize("downsampling", ["strided", "anti-aliased"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_taps_are_what_the_layers_make(norm: NormName, downsampling: DownsamplingName, checkpointing: bool) -> None:
    torch.manual_seed(0)
    settings = ResNetSettings(blocks=3, width=4, norm=norm, downsampling=downsampling, checkpointing=checkpointing)
    net = settings.build(2, 2)
    x = torch.randn(2, 2, 16, 16)
    seen: dict[str, torch.Tensor] = {"input": x}
    convolutions = [layer for layer in net.layers if isinstance(layer, nn.Conv2d)]
    blocks = [layer for layer in net.layers if isinstance(layer, ResidualBlock)]
    named = {"down1": convolutions[1], "down2": convolutions[2], "block1": blocks[0], "block3": blocks[2]}
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.clone()}))
        for name, layer in named.items()
    ]
    wanted = net(x)
    for hook in hooks:
        hook.remove()
    output, features = net.tapped(x, TAPPED)
    assert torch.equal(output, wanted)
    assert list(features) == TAPPED
    alone = net.features(x, TAPPED)
    for name in TAPPED:
        # Nothing that follows writes into a tap.
        assert torch.equal(features[name], seen[name]) and torch.equal(alone[name], seen[name])
        assert net.taps[name] == seen[name].shape[1]
    assert list(net.taps) == ["input", "down1", "down2", "block1", "block2", "block3"]
    halves = 2 if downsampling == "strided" else 1
    assert features["down1"].shape[2:] == (16 // halves, 16 // halves)


def test_features_compute_nothing_behind_the_last_tap() -> None:
    net = ResNetSettings(blocks=2, width=4).build(1, 1)
    ran: list[int] = []
    for number, layer in enumerate(net.layers):
        layer.register_forward_hook(lambda module, inputs, output, n=number: ran.append(n))
    net.features(torch.randn(1, 1, 16, 16), ["down2", "input"])
    assert ran == [0, 1, 2, 3, 4, 5, 6]
    assert isinstance(net.layers[6], nn.Conv2d)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_changes_no_gradient(dropout: float, autocast: bool) -> None:
    """To the last bit: the second pass computes what the first did, dropout and number format too."""

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = ResNetSettings(blocks=2, width=4, dropout=dropout, checkpointing=checkpointing).build(1, 1)
        x = torch.randn(1, 1, 16, 16, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output, features = net.tapped(x, ["down1", "block1"])
            loss = output.float().square().mean() + sum(f.float().square().mean() for f in features.values())
        return [output, *torch.autograd.grad(loss, [x, *net.parameters()]), torch.rand(1)]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, checkpointed)


def test_checkpointing_saves_what_stands_between_the_parts() -> None:
    def saved(checkpointing: bool, *, gradients: bool = True) -> int:
        torch.manual_seed(0)
        net = ResNetSettings(blocks=4, width=4, checkpointing=checkpointing).build(1, 1)
        own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes() // 4
            return tensor

        kept = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.set_grad_enabled(gradients):
            kept.append(net(torch.randn(1, 1, 32, 32)))
        return sum(sizes.values())

    # The image, and six maps of 16 channels at a quarter of its size: behind the stem and each of four blocks.
    assert saved(True) == 32 * 32 + 5 * 16 * 8 * 8
    assert saved(False) > 8 * saved(True)
    assert saved(True, gradients=False) == 0


def test_checkpointing_and_batch_norm_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="set norm to instance or group"):
        ResNetSettings(norm="batch", checkpointing=True)
