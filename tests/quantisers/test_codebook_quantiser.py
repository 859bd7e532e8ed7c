from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from translate.quantisers import CodebookSettings
from translate.quantisers.codebook import SMOOTHING, CodebookQuantiser


def build(width: int = 4, **settings: Any) -> CodebookQuantiser:
    torch.manual_seed(0)
    return CodebookSettings(**{"size": 16, **settings}).build(width)


def latents(count: int = 2, width: int = 4, side: int = 3, *, seed: int = 1, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(count, width, side, side, generator=torch.Generator().manual_seed(seed))


def as_rows(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0])
def test_beta_weighs_the_commitment(beta: float) -> None:
    quantiser = build(beta=beta)
    z = latents().requires_grad_()
    made = quantiser(z)
    made.loss.backward()
    e = quantiser.codebook[made.indices].permute(0, 3, 1, 2)
    error = (z - e).detach()
    assert z.grad is not None and isinstance(quantiser.codebook.grad, Tensor)
    torch.testing.assert_close(z.grad, 2 * beta * error / z.numel())
    expected = torch.zeros(16, 4).index_add_(0, made.indices.flatten(), as_rows(-2 * error / z.numel()))
    torch.testing.assert_close(quantiser.codebook.grad, expected)
    torch.testing.assert_close(made.loss, (1 + beta) * error.square().mean())


def test_of_averages_the_commitment_alone_is_a_loss() -> None:
    quantiser = build(update="average", beta=0.5)
    z = latents()
    made = quantiser(z)
    torch.testing.assert_close(
        made.loss, 0.5 * (z - quantiser.codebook[made.indices].permute(0, 3, 1, 2)).pow(2).mean()
    )
    assert not list(quantiser.parameters())


def test_the_straight_through_gradient_is_the_identity() -> None:
    quantiser = build()
    z = latents().requires_grad_()
    upstream = latents(seed=2)
    quantised = quantiser(z).quantised
    quantised.backward(upstream)
    assert z.grad is not None and torch.equal(z.grad, upstream)
    assert quantiser.codebook.grad is None
    assert not torch.equal(z + (quantised - z).detach(), quantised)  # the common writing is another number


def test_codes_begin_within_one_over_their_number() -> None:
    codebook = build(width=64, size=50).codebook
    assert codebook.abs().max() <= 1 / 50
    assert codebook.abs().max() > 0.99 / 50
    torch.testing.assert_close(build(normalise=True).codebook.norm(dim=1), torch.ones(16))


def test_projections_learn_through_the_codes() -> None:
    torch.manual_seed(0)
    quantiser = CodebookSettings(size=16, width=2).build(4)
    z = latents().requires_grad_()
    quantised = quantiser(z).quantised
    quantised.backward(latents(seed=2))
    into, out = quantiser.project_in.weight[:, :, 0, 0], quantiser.project_out.weight[:, :, 0, 0]
    expected = torch.einsum("nchw,cd,de->nehw", latents(seed=2), out, into)  # as if nothing stood between them
    torch.testing.assert_close(z.grad, expected)
    assert all(p.grad is not None for p in (*quantiser.project_in.parameters(), *quantiser.project_out.parameters()))


def test_normalised_latents_and_codes_have_length_one() -> None:
    quantiser = build(normalise=True, beta=0.25)
    z = latents(scale=3.0)
    made = quantiser(z)
    torch.testing.assert_close(made.quantised.norm(dim=1), torch.ones(2, 3, 3))
    cosines = torch.einsum(
        "nchw,kc->nhwk", F.normalize(z.double(), dim=1), F.normalize(quantiser.codebook.double(), dim=1)
    )
    assert torch.equal(made.indices, cosines.argmax(-1))
    # |z - e|² of two of length 1 is 2 - 2 cos.
    torch.testing.assert_close(made.loss.double(), 1.25 * (2 - 2 * cosines.amax(-1)).mean() / 4)
    assert torch.equal(quantiser(100 * z).indices, made.indices)


@pytest.mark.parametrize("cosine", [False, True])
def test_choices_are_those_of_vector_quantize_pytorch(cosine: bool) -> None:
    theirs = VectorQuantize(4, 64, use_cosine_sim=cosine, accept_image_fmap=True).eval()
    ours = build(size=64, normalise=cosine).eval()
    z = latents(side=12, scale=1.0)
    with torch.no_grad():
        ours.codebook.copy_(theirs.codebook)
        codes, indices, _ = theirs(z)
    made = ours(z)
    assert len(indices.unique()) > 20
    assert torch.equal(made.indices, indices)
    torch.testing.assert_close(made.quantised, codes)


@pytest.mark.parametrize("normalise", [False, True])
def test_averages_follow_the_closed_form_in_float64(normalise: bool) -> None:
    decay = 0.9
    quantiser = build(update="average", decay=decay, normalise=normalise)
    counts, sums = torch.ones(16, dtype=torch.float64), quantiser.codebook.double()
    for step in range(5):
        z = latents(seed=step)
        indices = quantiser(z).indices.flatten()
        assert not quantiser.moved()
        flat = as_rows(F.normalize(z, dim=1) if normalise else z).double()
        one_hot = F.one_hot(indices, 16).double()
        counts = decay * counts + (1 - decay) * one_hot.sum(0)
        sums = decay * sums + (1 - decay) * one_hot.t() @ flat
        expected = sums / ((counts + SMOOTHING) / (counts.sum() + 16 * SMOOTHING) * counts.sum())[:, None]
        if normalise:
            expected = F.normalize(expected, dim=1)
        # Five steps of float32: a few times 2^-24 of sums below 1.
        torch.testing.assert_close(quantiser.codebook.double(), expected, rtol=1e-5, atol=1e-6)
        assert not quantiser.renewed()


@pytest.mark.parametrize("cosine", [False, True])
def test_averages_are_those_of_vector_quantize_pytorch(cosine: bool) -> None:
    theirs = VectorQuantize(4, 16, decay=0.9, use_cosine_sim=cosine, accept_image_fmap=True, commitment_weight=0.25)
    ours = build(update="average", decay=0.9, normalise=cosine)
    ours.codebook.copy_(theirs.codebook)
    ours.sums.copy_(theirs.codebook)
    for step in range(5):
        z = latents(seed=step, scale=1.0)
        _, indices, loss = theirs(z)
        made = ours(z)
        ours.moved()
        assert torch.equal(made.indices, indices)
        if not cosine:  # theirs takes the mean of the vectors of length 1, too; the same
            torch.testing.assert_close(made.loss, loss[0] if loss.ndim else loss)
        torch.testing.assert_close(ours.codebook, theirs.codebook, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("update", ["average", "gradient"])
def test_accumulated_batches_are_one_batch(update: str) -> None:
    once, twice = (build(update=update, restart=2) for _ in range(2))
    for step in range(3):
        z = latents(4, side=2, seed=step)  # no more latents than codes: all of them may become one
        once(z)
        twice(z[:1])
        twice(z[1:])
        for quantiser in (once, twice):
            torch.manual_seed(step)
            quantiser.moved()
        for name, tensor in once.state_dict().items():
            torch.testing.assert_close(twice.state_dict()[name], tensor, msg=lambda text, name=name: f"{name}: {text}")


def test_only_training_with_gradients_takes_note() -> None:
    quantiser = build(update="average", restart=1)
    before = {name: tensor.clone() for name, tensor in quantiser.state_dict().items()}
    with torch.no_grad():
        quantiser(latents())
    quantiser.eval()(latents())
    assert quantiser.moved() == {}
    quantiser.train()(latents())
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantiser.state_dict().items())
    assert quantiser.moved()  # what was noted waits for it
    assert quantiser.moved() == {}


def test_a_codebook_that_just_learns_notes_nothing() -> None:
    quantiser = build()
    quantiser(latents())
    assert quantiser._counts is None and quantiser._pool == []
    assert quantiser.moved() == {} and not quantiser.renewed()
    assert torch.equal(quantiser.unused, torch.zeros(16, dtype=torch.int64))
    for settings in ({"restart": 1}, {"update": "average"}):
        noting = build(**settings)
        noting(latents())
        assert noting._counts is not None and noting._counts.sum() == 2 * 3 * 3


@pytest.mark.parametrize("update", ["average", "gradient"])
def test_a_dead_code_begins_wholly_anew(update: str) -> None:
    quantiser = build(update=update, restart=3)
    with torch.no_grad():
        quantiser.codebook[5:] += 100.0  # eleven that are never nearest
        if update == "average":
            quantiser.sums.copy_(quantiser.codebook)
    z = latents(side=8, scale=1.0)
    for step in range(3):
        torch.manual_seed(step)
        used = quantiser(z).indices.unique()
        kept = quantiser.codebook.detach().clone()
        told = quantiser.moved()
        assert told["restarted codes"] == (0 if step < 2 else 11)
        assert torch.equal(quantiser.unused[5:], torch.full((11,), step + 1 if step < 2 else 0))
    assert used.max() < 5
    rows = as_rows(z)
    restarted = quantiser.codebook[5:]
    places = [(rows == code).all(1).nonzero().flatten().tolist() for code in restarted]
    assert all(len(place) == 1 for place in places)  # each a latent, to the bit
    assert len({place[0] for place in places}) == 11  # and no latent taken twice
    if update == "average":
        assert torch.equal(quantiser.counts[5:], torch.ones(11))
        assert torch.equal(quantiser.sums[5:], restarted)
        assert not quantiser.renewed()
    else:
        [(parameter, mask)] = quantiser.renewed()
        assert parameter is quantiser.codebook
        assert mask.tolist() == [False] * 5 + [True] * 11
        assert torch.equal(parameter[:5], kept[:5])
    quantiser(z)
    quantiser.moved()
    assert not any(mask.any() for _, mask in quantiser.renewed())


@pytest.mark.parametrize("update", ["average", "gradient"])
@pytest.mark.parametrize("side", [1, 3])
def test_more_dead_codes_than_latents_wait(side: int, update: str) -> None:
    quantiser = build(restart=1, update=update)
    z = latents(1, side=side)
    used = len(quantiser(z).indices.unique())
    fresh = min(side**2, 16 - used)
    assert quantiser.moved()["restarted codes"] == fresh
    assert (quantiser.unused >= 1).sum() == 16 - used - fresh
    taken = (quantiser.codebook[:, None] == as_rows(z)).all(2)
    assert taken.any(1).sum() >= fresh and (taken.sum(1) <= 1).all()
    assert all(tensor.isfinite().all() for tensor in quantiser.state_dict().values())


def test_normalised_codes_restart_at_length_one() -> None:
    quantiser = build(size=64, restart=1, normalise=True)
    quantiser(latents(scale=3.0))
    quantiser.moved()
    mask = quantiser.renewed()[0][1]
    assert mask.any()
    torch.testing.assert_close(quantiser.codebook[mask].norm(dim=1), torch.ones(int(mask.sum())))


def test_no_code_becomes_what_is_no_number() -> None:
    quantiser = build(restart=1)
    before = quantiser.codebook.detach().clone()
    quantiser(torch.full((1, 4, 2, 2), float("nan")))
    assert quantiser.moved()["restarted codes"] == 0
    assert torch.equal(quantiser.codebook, before)


@pytest.mark.parametrize("update", ["average", "gradient"])
def test_restarts_bring_a_codebook_into_use(update: str) -> None:
    """Latents in 64 clusters far from where codes begin: few codes win all of them, unless the others begin anew."""
    centres = 3 * torch.randn(64, 8, generator=torch.Generator().manual_seed(5)) + 4

    def used(restart: int | None) -> float:
        quantiser = build(width=8, size=64, update=update, decay=0.9, restart=restart)
        optimiser = torch.optim.Adam(quantiser.parameters(), 0.05) if update == "gradient" else None
        for step in range(40):
            torch.manual_seed(step)
            z = (centres[torch.randint(64, (256,))] + 0.1 * torch.randn(256, 8)).view(1, 16, 16, 8).permute(0, 3, 1, 2)
            loss = quantiser(z).loss
            if optimiser:
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            quantiser.moved()
        z = centres.t().reshape(1, 8, 8, 8)
        seen = torch.cat([quantiser.eval()(z + 0.1 * torch.randn_like(z)).indices.flatten() for _ in range(20)])
        return len(seen.unique()) / 64

    assert used(None) < 0.5
    assert used(2) >= 0.9


def test_state_resumes_exactly() -> None:
    first = build(update="average", restart=2)
    second = build(update="average", restart=2)
    for step in range(4):
        for quantiser in (first, second) if step >= 2 else (first,):
            torch.manual_seed(step)
            quantiser(latents(seed=step))
            quantiser.moved()
        if step == 1:
            second.load_state_dict(first.state_dict())
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert set(first.state_dict()) == {"codebook", "counts", "sums", "unused"}
    assert {name for name, _ in first.named_buffers()} == set(first.state_dict())


def test_no_code_restarts_in_a_step_that_was_not_taken() -> None:
    quantiser = build(size=4, restart=1).train()
    with torch.no_grad():
        quantiser.codebook.copy_(torch.tensor([[0.0], [50.0], [60.0], [70.0]]).expand(-1, 4))
    before = quantiser.codebook.detach().clone()
    quantiser(latents())
    found = quantiser.moved(torch.tensor(False))
    assert found["restarted codes"] == 0
    assert torch.equal(quantiser.codebook, before)
    assert not any(rows.any() for _, rows in quantiser.renewed())
    quantiser(latents())
    assert quantiser.moved(torch.tensor(True))["restarted codes"] == 3  # those are far from all latents, still
