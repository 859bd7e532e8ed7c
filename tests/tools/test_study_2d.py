import math

import pytest
import torch
from study_2d import COMMON, ROWS, SAMPLES, WIDTHS, config_of, coverage, table

from translate.data import ToySettings
from translate.settings import parse_span

CENTRES, DEVIATION = ToySettings().modes()


def test_the_true_law_has_all_modes_the_rayleigh_share_and_next_to_no_divergence() -> None:
    points = torch.from_numpy(ToySettings(samples=SAMPLES).open("train", 0).points)
    found = coverage(points, CENTRES, DEVIATION)
    assert found.modes == 25
    # A share of 10,000: its deviation is sqrt(0.989 * 0.011 / 10,000) = 0.00105; four of them.
    assert found.quality == pytest.approx(1 - math.exp(-4.5), abs=0.0042)
    # 2 N KL is chi-squared of 24 degrees (Wilks): mean 24, deviation 6.9; below 24 + 5 * 6.9 = 58.6.
    assert 0 < found.reverse_kl < 58.6 / (2 * SAMPLES)


def test_half_of_the_modes_cost_log_2_and_one_mode_log_25() -> None:
    even = CENTRES[:20].repeat(50, 1)
    assert coverage(even, CENTRES, DEVIATION) == (20, 1.0, pytest.approx(math.log(25 / 20), abs=1e-12))
    assert coverage(CENTRES[:1].repeat(100, 1), CENTRES, DEVIATION) == (1, 1.0, pytest.approx(math.log(25)))


def test_a_sample_is_of_high_quality_up_to_three_deviations() -> None:
    inside, outside = torch.tensor([0.149, 0.0]), torch.tensor([0.0, 0.151])
    samples = torch.cat([CENTRES + inside, CENTRES + outside])
    assert coverage(samples, CENTRES, DEVIATION) == (25, 0.5, pytest.approx(0.0, abs=1e-12))


def test_one_sample_finds_a_mode_and_nan_is_of_no_quality() -> None:
    samples = torch.cat([CENTRES[:1].repeat(999, 1), CENTRES[1:2]])
    assert coverage(samples, CENTRES, DEVIATION).modes == 2
    assert coverage(torch.full((100, 2), torch.nan), CENTRES, DEVIATION)[:2] == (0, 0.0)


@pytest.mark.parametrize("row", ROWS)
def test_all_rows_share_generator_data_and_budget(row: str) -> None:
    config = config_of(row, seed=1, steps=300)
    common = config_of("non-saturating", seed=1, steps=300)
    assert config.method.generator == common.method.generator
    assert config.method.latent == common.method.latent
    assert (config.data, config.training) == (common.data, common.training)
    if config.method.kind == "gan":
        assert config.method.discriminator.hidden == WIDTHS
    assert config.training.stages[0].length == parse_span("300 steps")
    assert COMMON["training"]["stages"][0]["length"] == "4000 steps"  # making a row's config changes nothing here


def test_the_table_has_mean_and_range() -> None:
    found = [
        {"modes": 25, "quality": 0.9, "reverse_kl": 0.01, "seconds": 1.0},
        {"modes": 25, "quality": 0.8, "reverse_kl": 0.03, "seconds": 2.0},
    ]
    assert "| hinge | 25 | 85.0 (80.0 to 90.0) | 0.020 (0.010 to 0.030) | 2 |" in table({"hinge": found})
