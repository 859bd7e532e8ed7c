from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from translate.networks import count_parameters
from translate.networks.vqgan import AttentionBlock, ConvolutionalTokenizerSettings, Halving, ResidualBlock

SMALL: dict[str, Any] = {"width": 8, "multipliers": [1, 2, 3], "blocks": 1, "latent": 5, "attention": [2]}


@pytest.mark.parametrize(
    ("raw", "encoder", "decoder"),
    [
        # Counted from the authors' code.
        ({}, 29_298_176, 42_449_795),
        ({"multipliers": [1, 1, 2, 4], "attention": [8]}, 26_345_728, 38_316_163),
        ({"multipliers": [1, 1, 2, 4]}, 24_242_432, 35_161_219),
        ({"multipliers": [1, 2, 4], "attention": []}, 23_503_488, 34_126_595),
    ],
)
def test_parameters_are_those_of_the_reference(raw: dict[str, Any], encoder: int, decoder: int) -> None:
    with torch.device("meta"):
        built = ConvolutionalTokenizerSettings.model_validate(raw).build(3, 3)
    assert [count_parameters(network) for network in built] == [encoder, decoder]


@pytest.mark.parametrize("multipliers", [[1], [2, 1], [1, 2, 3], [1, 1, 2, 2, 4]])
def test_any_multiple_of_the_reduction_goes_there_and_back(multipliers: list[int]) -> None:
    torch.manual_seed(0)
    settings = ConvolutionalTokenizerSettings(width=4, multipliers=multipliers, blocks=1, latent=6, attention=[1, 4])
    encoder, decoder = settings.build(2, 3)
    f = 2 ** (len(multipliers) - 1)
    assert settings.reduction == encoder.reduction == decoder.reduction == f
    assert settings.latent == encoder.latent == decoder.latent == 6
    latents = encoder(torch.randn(2, 2, 3 * f, 5 * f))
    assert latents.shape == (2, 6, 3, 5)
    images = decoder(latents)
    assert images.shape == (2, 3, 3 * f, 5 * f)
    images.square().mean().backward()
    for network in (encoder, decoder):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert decoder.last_layer is decoder.last.weight


def normalised(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    groups = x.reshape(len(x), norm.num_groups, -1)
    mean, variance = groups.mean(2, keepdim=True), groups.var(2, keepdim=True, unbiased=False)
    x = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def drawn(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)
    return network.double()


@pytest.mark.parametrize("last", [False, True])
def test_attention_is_an_explicit_softmax(last: bool) -> None:
    torch.manual_seed(0)
    block = AttentionBlock(12)
    drawn(block)
    assert block.norm.num_groups == 12  # 32 do not divide 12 channels
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    pixels = normalised(x, block.norm).permute(0, 2, 3, 1).reshape(2, 15, 12)
    assert block.project.bias is not None and block.out.bias is not None
    projected = pixels @ block.project.weight[:, :, 0, 0].T + block.project.bias
    query, key, value = projected[..., :12], projected[..., 12:24], projected[..., 24:]
    weights = torch.softmax(torch.einsum("nic,njc->nij", query, key) / 12**0.5, dim=2)
    out = torch.einsum("nij,njc->nic", weights, value) @ block.out.weight[:, :, 0, 0].T + block.out.bias
    expected = x + out.reshape(2, 3, 5, 12).permute(0, 3, 1, 2)
    laid = x.contiguous(memory_format=torch.channels_last) if last else x
    # The same sums in float64, in another order.
    torch.testing.assert_close(block(laid), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("channels", [64, 96])
def test_residual_block_is_norm_swish_convolution_twice(channels: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(64, channels, 0.0)
    drawn(block)
    norms = [layer for layer in block.body if isinstance(layer, nn.GroupNorm)]
    convolutions = [layer for layer in block.body if isinstance(layer, nn.Conv2d)]
    assert [norm.num_groups for norm in norms] == [32, 32]
    x = torch.randn(1, 64, 4, 6, dtype=torch.float64)
    y = x
    for norm, convolution in zip(norms, convolutions, strict=True):
        y = normalised(y, norm)
        y = F.conv2d(y * torch.sigmoid(y), convolution.weight, convolution.bias, padding=1)
    if channels != 64:
        assert isinstance(block.shortcut, nn.Conv2d) and block.shortcut.kernel_size == (1, 1)
        assert block.shortcut.bias is not None
        y = y + torch.einsum("oc,nchw->nohw", block.shortcut.weight[:, :, 0, 0], x)
        y = y + block.shortcut.bias[:, None, None]
    else:
        y = y + x
    torch.testing.assert_close(block(x), y, atol=1e-10, rtol=0)


def test_halving_reads_each_pixel_with_those_right_and_below() -> None:
    layer = Halving(1)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        assert layer.bias is not None
        layer.bias.zero_()
        x = torch.zeros(1, 1, 4, 6)
        x[0, 0, 2, 4] = 1
        # Tap (0, 0) of output (1, 2), and from the output above and at the left the last row and column.
        expected = torch.tensor([[0.0, 8, 6], [0, 2, 0]])
        assert torch.equal(layer(x)[0, 0], expected)


def test_dropout_once_per_block_and_only_if_asked() -> None:
    def dropouts(rate: float) -> list[int]:
        built = ConvolutionalTokenizerSettings(**SMALL, dropout=rate).build(1, 1)
        return [sum(isinstance(layer, nn.Dropout) for layer in network.modules()) for network in built]

    assert dropouts(0.0) == [0, 0]
    assert dropouts(0.5) == [3 + 2, 6 + 2]  # one in the body of each block of the levels, and two of the middle


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout: float) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(0)
        settings = ConvolutionalTokenizerSettings(**SMALL, dropout=dropout, checkpointing=checkpointing)
        encoder, decoder = settings.build(3, 3)
        x = torch.randn(1, 3, 8, 8)
        torch.manual_seed(1)
        decoder(encoder(x)).square().mean().backward()
        with torch.no_grad():
            assert encoder(x).shape == (1, 5, 2, 2)
        found = [parameter.grad for network in (encoder, decoder) for parameter in network.parameters()]
        return [gradient for gradient in found if gradient is not None]

    plain, recomputed = gradients(False), gradients(True)
    assert len(plain) == len(recomputed) > 50
    for one, two in zip(plain, recomputed, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("raw", [{"attention": [12]}, {"attention": [0]}, {"multipliers": []}, {"multipliers": [0]}])
def test_impossible_levels_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(raw))):
        ConvolutionalTokenizerSettings.model_validate(raw)
