"""Total variation of images whose variation is known."""

from __future__ import annotations

import pytest
import torch

from translate.losses.total_variation import total_variation


def test_an_even_image_has_none() -> None:
    assert total_variation(torch.full((2, 3, 5, 4), 0.3)) == 0


@pytest.mark.parametrize("height", [2, 5, 9])
@pytest.mark.parametrize("width", [2, 7])
def test_a_slope_has_its_steepness_whatever_the_size(height: int, width: int) -> None:
    """x * 0.25 across and y * -0.5 down: 0.25 + 0.5, exact in float32."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    assert total_variation((0.25 * x - 0.5 * y).expand(2, 3, -1, -1)) == 0.75


def test_a_checkerboard_has_the_most() -> None:
    board = (torch.arange(6)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert total_variation(board.expand(1, 1, -1, -1)) == 4.0


def test_an_edge_by_hand() -> None:
    """One column of steps among three: a third of its height, and nothing down."""
    edge = torch.tensor([[0.0, 0.0, 0.6, 0.6]]).expand(1, 1, 5, 4)
    assert total_variation(edge).item() == pytest.approx(0.6 / 3)
    assert total_variation(edge.mT).item() == pytest.approx(0.6 / 3)


def test_a_side_of_one_pixel_adds_nothing() -> None:
    assert total_variation(torch.tensor([[0.0, 0.5, 1.0]]).expand(1, 2, 1, 3)) == 0.5
    assert total_variation(torch.tensor([[0.0], [1.0]]).expand(1, 2, 2, 1)) == 1.0
    assert total_variation(torch.ones(1, 3, 1, 1)) == 0


def test_it_is_a_float32_scalar_that_can_be_differentiated() -> None:
    images = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16)
    images[..., 1, 1] = 1
    images.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = total_variation(images)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(4 / 6)  # four steps, of six across and six down
    assert images.grad is not None and images.grad[0, 0, 1, 1].item() == pytest.approx(4 / 6, rel=2**-8)
