"""What validation and evaluation share: one protocol, all measures; refusals; a network gone wrong."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.methods.base import Comparison, Method
from translate.metrics.meters import PairMeter, SetMeter, mean_of
from translate.metrics.protocol import ProtocolSettings
from translate.pretrained import store
from translate.training.validation import ValidationSettings, Validator, better

torch.set_num_threads(1)

CPU = torch.device("cpu")
RGB = ImageSpec()


class Spread(nn.Module):
    """Mean and deviation of an image; no logits."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], dim=1)


PROTOCOL = ProtocolSettings(features=f"{__name__}:Spread")


def batch(count: int, seed: int, size: tuple[int, int] = (20, 24), channels: int = 3) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=chance) * 2 - 1
    return nn.functional.interpolate(coarse, size, mode="bilinear")


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_all_measures_of_pairs_at_once() -> None:
    output, target = batch(3, 0).double(), batch(3, 1).double()
    found = PairMeter(["ssim", "l1", "fid", "psnr"], PROTOCOL, CPU)(output, target, RGB)
    assert list(found) == ["l1", "psnr", "ssim"] and all(v.dtype == torch.float64 for v in found.values())
    for number in range(3):
        a, b = (side[number].permute(1, 2, 0).numpy() for side in (output, target))
        assert float(found["l1"][number]) == pytest.approx(np.abs(a - b).mean() / 2, rel=1e-12)
        assert float(found["psnr"][number]) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=2), rel=1e-12)
        expected = structural_similarity(
            a + 1, b + 1, data_range=2, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(found["ssim"][number]) == pytest.approx(expected, abs=1e-9)


def test_a_batch_is_its_images() -> None:
    """To the rounding of float32, in which networks' outputs come: kernels may add up in another order."""
    meter = PairMeter(["l1", "psnr", "ssim"], PROTOCOL, CPU)
    output, target = batch(5, 0), batch(5, 1)
    whole = meter(output, target, RGB)
    for number in range(5):
        for name, value in meter(output[number : number + 1], target[number : number + 1], RGB).items():
            assert float(value) == pytest.approx(float(whole[name][number]), rel=1e-6)


def test_pixel_measures_look_where_the_protocol_says() -> None:
    output, target = batch(1, 0).double(), batch(1, 1).double()
    protocol = PROTOCOL.model_copy(update={"channels": "luma", "border": 4})
    meter = PairMeter(["l1"], protocol, CPU)
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)
    y = [(side.permute(0, 2, 3, 1) / 2 @ weights / 255)[:, 4:-4, 4:-4] for side in (output, target)]
    assert float(meter(output, target, RGB)["l1"]) == pytest.approx(float((y[0] - y[1]).abs().mean()), rel=1e-12)
    told = meter.told("l1", 7, 8)
    assert told == {"bits": 8, "channels": "luma", "border": 4, "images": 7}
    assert "window" in meter.told("ssim", 7, 8)


def test_lpips_sees_label_maps_in_their_colours() -> None:
    if store.find("lpips-alex") is None:
        pytest.skip("LPIPS's weights are not here: translate weights get lpips")
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    spec = ImageSpec(kind="labels", palette=palette)
    maps = torch.arange(3).repeat_interleave(16)[:, None].expand(48, 48), torch.zeros(48, 48, dtype=torch.int64)
    hot = [nn.functional.one_hot(m, 3).permute(2, 0, 1)[None].float() * 2 - 1 for m in maps]
    seen = [(torch.tensor(palette)[m].permute(2, 0, 1)[None] / 127.5 - 1).float() for m in maps]
    meter = PairMeter(["lpips-alex"], PROTOCOL, CPU)
    value = float(meter(hot[0], hot[1], spec)["lpips-alex"])
    assert value == pytest.approx(float(meter(seen[0], seen[1], RGB)["lpips-alex"]), rel=1e-6) and value > 0.1
    told = meter.told("lpips-alex", 1, 8)
    assert told["network"] == "alex" and len(str(told["weights"])) == 12 and "channels" not in told


def test_values_beyond_a_picture_s_range_count_as_its_ends() -> None:
    meter = PairMeter(["l1", "psnr", "ssim"], PROTOCOL, CPU)
    output, target = 3 * batch(2, 0), batch(2, 1)
    for name, found in meter(output, target, RGB).items():
        assert torch.equal(found, meter(output.clamp(-1, 1), target, RGB)[name]), name


def test_absent_weights_are_a_line_with_the_command(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="translate weights get lpips"):
        PairMeter(["lpips-vgg"], PROTOCOL, CPU)
    with pytest.raises(UserError, match="translate weights get inception"):
        SetMeter(["fid"], ProtocolSettings(), CPU)


# ---- sets ------------------------------------------------------------------------------------------------------------


def statistics(meter: SetMeter, images: Tensor, parts: tuple[int, ...] = (100,)) -> Any:
    found = meter.statistics()
    for part in torch.split(images, [*parts, len(images) - sum(parts)] if sum(parts) < len(images) else len(images)):
        meter.add(found, meter.prepared(part, RGB), [True] * len(part))
    return found


def test_measures_of_sets_do_not_know_batches() -> None:
    meter = SetMeter(["frechet", "kid", "density"], PROTOCOL, CPU)
    first, second = batch(12, 0), batch(9, 1)
    whole = meter.scores(statistics(meter, first), statistics(meter, second))
    parts = meter.scores(statistics(meter, first, (1, 5)), statistics(meter, second, (7,)))
    assert list(whole) == ["frechet", "kid", "density"] and parts == pytest.approx(whole, rel=1e-6)


def test_only_what_is_kept_is_held() -> None:
    """Moments need no features; the others those that are chosen."""
    images = batch(8, 0)
    for names, count in ((["frechet"], 0), (["kid"], 3)):
        meter = SetMeter(names, PROTOCOL, CPU)
        found = meter.statistics()
        meter.add(found, meter.prepared(images, RGB), [n in (1, 4, 6) for n in range(8)])
        assert found.count == 8 and len(found.kept) == count
    expected = Spread()(images[[1, 4, 6]])
    torch.testing.assert_close(found.kept, expected)


def test_whose_features_are_kept() -> None:
    names = [f"picture {number}" for number in range(20)]
    lowest = set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:6])
    meter = SetMeter(["recall"], PROTOCOL.model_copy(update={"kept": 6}), CPU)
    for order in (names, names[::-1], names[7:] + names[:7]):
        assert {name for name, keep in zip(order, meter.kept(order), strict=True) if keep} == lowest
    assert meter.kept(names[:6]) == [True] * 6
    assert meter.kept(["\udc80 no UTF-8"] * 7)  # a file name that Python holds as it can
    assert SetMeter(["frechet"], PROTOCOL, CPU).kept(names) == [False] * 20


@pytest.mark.parametrize(
    ("name", "counts", "message"),
    [
        ("frechet", (1, 5), "expected at least 2 images for a covariance, not 1"),
        ("kid", (5, 1), "kid compares images within each set: expected at least 2, not 5 outputs and 1 references"),
        ("precision", (5, 9), "expected at least 6 predicted images, not 5"),
        ("inception-score", (5, 5), "needs class logits"),
    ],
)
def test_sets_that_are_too_small_and_networks_without_logits(name: str, counts: tuple[int, int], message: str) -> None:
    meter = SetMeter([name], PROTOCOL, CPU)
    with pytest.raises(UserError, match=message):
        meter.scores(*(statistics(meter, batch(count, 0), (count,)) for count in counts))


def test_fid_is_inception_s_alone() -> None:
    with pytest.raises(UserError, match="on other features ask for 'frechet'"):
        SetMeter(["fid"], PROTOCOL, CPU)


def test_what_a_set_s_number_depends_on_is_told() -> None:
    meter = SetMeter(["frechet", "kid", "recall", "coverage"], PROTOCOL.model_copy(update={"crop": 16}), CPU)
    a, b = statistics(meter, batch(9, 0), (9,)), statistics(meter, batch(7, 1), (7,))
    told = {name: meter.told(name, a, b) for name in meter.names}
    for protocol in told.values():
        assert protocol["features"] == f"{__name__}:Spread" and protocol["crop"] == 16
        assert (protocol["outputs"], protocol["reference images"]) == (9, 7)
    assert told["kid"]["estimator"] == "unbiased, all pairs"
    assert (told["recall"]["neighbours"], told["coverage"]["neighbours"]) == (3, 5)


def test_the_mean_of_nothing_is_not_there() -> None:
    assert mean_of({"a": [1.0, 2.0], "b": []}) == {"a": 1.5}


# ---- in training -----------------------------------------------------------------------------------------------------


class Broken(Method):
    """Outputs of which the second batch's are no numbers, in one of two parts."""

    compares: ClassVar[dict[str, bool]] = {"good": True, "bad": True}

    def comparisons(self, batch: Mapping[str, Tensor], chance: torch.Generator) -> dict[str, Comparison]:
        gone = batch["A"].mean() > 0
        bad = torch.where(gone, torch.nan, batch["A"])
        return {"bad": Comparison(bad, batch["B"], RGB), "good": Comparison(batch["A"], batch["B"], RGB)}

    turns = losses = previews = exported = Method.comparisons  # type: ignore[assignment]  # not used here


def test_outputs_that_are_no_numbers_do_not_end_a_run() -> None:
    """Their measures are none either, so that no step with them is the best; the other part's are as ever."""
    settings = ValidationSettings(measures=["frechet", "l1"], protocol=PROTOCOL)
    validator = Validator(settings, Broken.compares, 10, CPU)
    batches = []
    for number, level in enumerate((40, 200)):
        sides = {side: torch.randint(0, 50, (3, 16, 16, 3)).add(level).byte() for side in "AB"}
        batches.append({**sides, "name": [f"{number}{n}" for n in range(3)]})
    specs = {"A": RGB, "B": RGB}
    for _ in range(2):  # the second time with the targets' features of the first
        found = validator(Broken(), batches, specs, torch.float32)
        assert list(found) == ["bad/l1", "good/l1", "bad/frechet", "good/frechet", "best"]
        assert all(math.isnan(found[key]) for key in ("bad/l1", "bad/frechet", "best"))
        assert found["good/l1"] < 0.1 and found["good/frechet"] < 0.1
        assert not better("frechet", found["best"], 1e9)
