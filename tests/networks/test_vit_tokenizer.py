from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from translate.networks import ConvolutionalTokenizerSettings, TokenizerNetworkSettings, count_parameters
from translate.networks.vit_tokenizer import TransformerBlock, TransformerTokenizerSettings, positions

SMALL: dict[str, Any] = {"patch": 4, "width": 16, "layers": 2, "heads": 2, "mlp": 24, "latent": 5}


def test_parameters_are_those_of_the_papers_small_networks() -> None:
    block = 4 * (512 * 512 + 512) + 2 * (2 * 512) + 512 * 2048 + 2048 + 2048 * 512 + 512
    end = 2 * 512 + 512 * 2048 + 2048
    encoder = 3 * 64 * 512 + 512 + 8 * block + end + 2048 * 32 + 32
    decoder = 32 * 512 + 512 + 8 * block + end + 2048 * 192 + 192
    with torch.device("meta"):
        built = TransformerTokenizerSettings().build(3, 3)
    assert [count_parameters(network) for network in built] == [encoder, decoder] == [26_435_104, 26_681_024]


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (4, 3)])
def test_any_multiple_of_the_patch_goes_there_and_back(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    settings = TransformerTokenizerSettings(**SMALL)
    encoder, decoder = settings.build(2, 3)
    assert settings.reduction == encoder.reduction == decoder.reduction == 4
    assert settings.latent == encoder.latent == decoder.latent == 5
    size = 4 * grid[0], 4 * grid[1]
    latents = encoder(torch.randn(2, 2, *size))
    assert latents.shape == (2, 5, *grid)
    images = decoder(latents)
    assert images.shape == (2, 3, *size)
    images.square().mean().backward()
    for network in (encoder, decoder):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            # A lone token looks at itself whatever it asks for.
            assert parameter.grad.abs().max() > 0 or grid == (1, 1), name
    assert decoder.last_layer is decoder.transformer.last.weight


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    made = positions(3, 5, 12).view(3, 5, 12)
    for y in range(3):
        for x in range(5):
            expected = []
            for place in (y, x):
                angles = [place / 10_000 ** (i / 3) for i in range(3)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(made[y, x], torch.tensor(expected))
    # A larger grid has the smaller one in its corner: what was trained on small images runs on large ones.
    assert torch.equal(positions(7, 9, 12).view(7, 9, 12)[:3, :5], made)
    assert len({tuple(row) for row in positions(32, 32, 12).tolist()}) == 32 * 32


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.LayerNorm)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return x * norm.weight + norm.bias


def test_block_is_an_explicit_softmax_and_a_perceptron() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(TransformerTokenizerSettings(**SMALL)).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    projected = normalised(x, block.before_attention) @ block.project.weight.T + block.project.bias
    heads = []
    for head in range(2):
        query, key, value = (projected[..., 16 * part + 8 * head :][..., :8] for part in range(3))
        weights = torch.softmax(torch.einsum("nic,njc->nij", query, key) / 8**0.5, dim=2)
        heads.append(torch.einsum("nij,njc->nic", weights, value))
    y = x + torch.cat(heads, dim=2) @ block.out.weight.T + block.out.bias
    norm, widen, _, narrow = block.perceptron
    assert isinstance(widen, nn.Linear) and isinstance(narrow, nn.Linear)
    inner = normalised(y, norm) @ widen.weight.T + widen.bias
    inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
    # The same sums in float64, in another order.
    torch.testing.assert_close(block(x), y + inner @ narrow.weight.T + narrow.bias, atol=1e-10, rtol=0)


def test_patches_are_where_they_were() -> None:
    """Without blocks a token depends on its own patch alone, and makes its own patch."""
    torch.manual_seed(0)
    encoder, decoder = TransformerTokenizerSettings(**SMALL).build(1, 1)
    for network in (encoder, decoder):
        network.transformer.blocks = nn.Sequential()
    x = torch.randn(1, 1, 8, 12)
    changed = x.clone()
    changed[0, 0, 5, 9] += 1  # in the second row of patches, third column
    with torch.no_grad():
        before, after = encoder(x), encoder(changed)
        difference = decoder(after) - decoder(before)
    assert (before != after).any(1)[0].tolist() == [[False, False, False], [False, False, True]]
    moved = difference[0, 0].abs() > 0
    assert moved[4:, 8:].all() and moved.sum() == 16


def test_is_one_of_the_tokenizers_networks() -> None:
    networks: TypeAdapter[TokenizerNetworkSettings] = TypeAdapter(TokenizerNetworkSettings)
    assert networks.validate_python({"kind": "transformer", **SMALL}) == TransformerTokenizerSettings(**SMALL)
    assert networks.validate_python({"kind": "convolutional"}) == ConvolutionalTokenizerSettings()


@pytest.mark.parametrize(("width", "heads"), [(18, 2), (16, 3)])
def test_a_width_that_does_not_divide_is_refused(width: int, heads: int) -> None:
    with pytest.raises(ValidationError, match=f"{width} must be divisible by 4 and by heads, {heads}"):
        TransformerTokenizerSettings(width=width, heads=heads)
