"""What all quantisers promise (`translate.quantisers.base`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from translate.data.tokens import LARGEST_CODEBOOK
from translate.quantisers import Quantiser, QuantiserSettings
from translate.quantisers.shared import MOST_CODES

WIDTH = 6
KINDS: list[dict[str, Any]] = [
    {"kind": "codebook", "size": 48},
    {"kind": "codebook", "size": 48, "width": 3, "restart": 2},
    {"kind": "codebook", "size": 48, "width": 3, "normalise": True},
    {"kind": "codebook", "size": 48, "update": "average", "restart": 2},
    {"kind": "codebook", "size": 48, "update": "average", "normalise": True, "width": 4},
    {"kind": "gumbel", "size": 48},
    {"kind": "gumbel", "size": 48, "width": 3},
    {"kind": "finite-scalar", "levels": [5, 4, 3]},
    {"kind": "finite-scalar", "levels": [3, 3, 3, 3, 3, 3]},
    {"kind": "lookup-free", "bits": 5},
    {"kind": "lookup-free", "bits": 6},
]


def name_of(settings: dict[str, Any]) -> str:
    return "-".join(str(value) for value in settings.values())


every_kind = pytest.mark.parametrize("settings", KINDS, ids=name_of)


def build(settings: dict[str, Any]) -> Quantiser:
    torch.manual_seed(0)
    found: Any = TypeAdapter(QuantiserSettings).validate_python(settings)
    quantiser: Quantiser = found.build(WIDTH)
    return quantiser


def latents(*, seed: int = 1) -> Tensor:
    return torch.randn(2, WIDTH, 5, 4, generator=torch.Generator().manual_seed(seed))


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_what_comes_out(settings: dict[str, Any], training: bool) -> None:
    quantiser = build(settings).train(training)
    made = quantiser(latents())
    assert quantiser.width == WIDTH
    assert made.quantised.shape == (2, WIDTH, 5, 4)
    assert made.quantised.dtype == made.loss.dtype == torch.float32
    assert made.loss.shape == ()
    assert made.loss.isfinite()
    assert made.indices.shape == (2, 5, 4)
    assert made.indices.dtype == torch.int64
    assert 0 <= made.indices.min() <= made.indices.max() < quantiser.size
    assert len(made.indices.unique()) > 5
    assert torch.equal(made.quantised, quantiser.codes(made.indices))  # bit for bit
    assert made.quantised.is_contiguous()


@pytest.mark.parametrize("settings", [one for one in KINDS if one["kind"] in ("codebook", "lookup-free")], ids=name_of)
def test_indices_to_codes_and_back(settings: dict[str, Any]) -> None:
    """Where the first projection undoes the second, each code is nearest to itself. (What FSQ rounds is bounded first:
    test_finite_scalar.py undoes that, and test_gumbel.py the logits.)"""
    quantiser = build(settings).eval()
    into, out = quantiser.get_submodule("project_in"), quantiser.get_submodule("project_out")
    if isinstance(into, nn.Conv2d) and isinstance(out, nn.Conv2d) and into.bias is not None and out.bias is not None:
        with torch.no_grad():
            back = torch.linalg.pinv(out.weight[:, :, 0, 0].double())
            into.weight.copy_(back[:, :, None, None])
            into.bias.copy_(-back @ out.bias.double())
    indices = torch.arange(quantiser.size)[None, None]
    assert torch.equal(quantiser(quantiser.codes(indices)).indices, indices)


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_bf16_changes_no_choice(settings: dict[str, Any], training: bool) -> None:
    quantiser = build(settings).train(training)
    narrow = latents().bfloat16()
    results = []
    for z, autocast in ((narrow.float(), False), (narrow.float(), True), (narrow, True), (narrow, False)):
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results.append((*quantiser(z), quantiser.codes(torch.zeros(1, 2, 2, dtype=torch.int64))))
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)


@every_kind
def test_evaluation_is_certain_and_changes_nothing(settings: dict[str, Any]) -> None:
    quantiser = build(settings).eval()
    before = {name: tensor.clone() for name, tensor in quantiser.state_dict().items()}
    state = torch.get_rng_state()
    first, second = quantiser(latents()), quantiser(latents())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not quantiser.moved()
    assert not quantiser.renewed()
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantiser.state_dict().items())


@every_kind
def test_latents_and_all_weights_learn(settings: dict[str, Any]) -> None:
    quantiser, z = build(settings), latents().requires_grad_()
    quantiser.advance(0.5)
    made = quantiser(z)
    ((made.quantised * latents(seed=3)).sum() + made.loss).backward()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.any()
    for name, parameter in quantiser.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@every_kind
def test_is_filled_on_the_meta_device(settings: dict[str, Any]) -> None:
    """As `run.build_for_inference` does it."""
    trained = build(settings)
    trained(latents())
    trained.moved()
    with torch.device("meta"):
        empty = build(settings)
    empty.load_state_dict(trained.state_dict(), assign=True)
    expected, found = trained.eval()(latents()), empty.eval()(latents())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(empty.codes(found.indices), expected.quantised)


class Reads(TorchDispatchMode):
    """What makes the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # On CUDA bincount and unique read sizes, masks as an index become nonzero.
        waits = ("_local_scalar_dense", "nonzero", "bincount", "unique", "masked_select", "equal.default")
        masked = "index" in str(function) and any(
            isinstance(one, Tensor) and one.dtype == torch.bool
            for one in (args[1] if len(args) > 1 and isinstance(args[1], list) else [])
        )
        if masked or any(name in str(function) for name in waits):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@every_kind
def test_the_host_never_waits(settings: dict[str, Any]) -> None:
    quantiser, z = build(settings), latents()
    with Reads() as reads:
        for _ in range(3):
            quantiser(z)
            quantiser.moved()
            quantiser.renewed()
        quantiser.eval()(z)
    assert not reads.found
    with reads:
        z[z > 0].sum().item()
    assert reads.found == ["aten.index.Tensor", "aten._local_scalar_dense.default"]


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"kind": "codebook", "size": 65537}, "65,537"),
        ({"kind": "gumbel", "size": 100000}, "100,000"),
        ({"kind": "finite-scalar", "levels": [256, 257]}, "65,792"),
        ({"kind": "lookup-free", "bits": 17}, "131,072"),
    ],
)
def test_more_codes_than_a_token_file_holds_are_refused(settings: dict[str, Any], size: str) -> None:
    with pytest.raises(
        ValidationError, match=f"expected 65,536 codes at most, as a token file holds no more, not {size}"
    ):
        TypeAdapter(QuantiserSettings).validate_python(settings)
    assert MOST_CODES == LARGEST_CODEBOOK


def test_as_many_as_it_holds_are_not() -> None:
    for settings in ({"size": 65536}, {"kind": "gumbel", "size": 65536}):
        TypeAdapter(QuantiserSettings).validate_python({"kind": "codebook", **settings})
    TypeAdapter(QuantiserSettings).validate_python({"kind": "lookup-free", "bits": 16})
    TypeAdapter(QuantiserSettings).validate_python({"kind": "finite-scalar", "levels": [256, 256]})
