"""Each objective against closed forms: its optimal discriminator, its value there, its symmetries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from translate import config as configs
from translate.errors import UserError
from translate.losses.adversarial import (
    BEGAN,
    FGAN,
    BEGANSettings,
    Divergence,
    EBGANSettings,
    FGANSettings,
    HingeSettings,
    LeastSquaresSettings,
    MinimaxSettings,
    NonSaturatingSettings,
    Objective,
    ObjectiveField,
    ObjectiveSettings,
    ObjectiveUnion,
    RelativisticAverageSettings,
    RelativisticSettings,
    WassersteinSettings,
)

DIVERGENCES = get_args(Divergence)
EVERY = [
    MinimaxSettings(),
    MinimaxSettings(smoothing=0.1),
    NonSaturatingSettings(),
    NonSaturatingSettings(smoothing=0.1),
    LeastSquaresSettings(),
    LeastSquaresSettings(coding="-1/1/0"),
    HingeSettings(),
    WassersteinSettings(),
    WassersteinSettings(drift=0.001),
    RelativisticSettings(),
    RelativisticAverageSettings(),
    RelativisticAverageSettings(base="least-squares"),
    RelativisticAverageSettings(base="hinge"),
    EBGANSettings(),
    BEGANSettings(),
    *(FGANSettings(divergence=d) for d in DIVERGENCES),
    *(FGANSettings(divergence=d, generator="non-saturating") for d in DIVERGENCES),
]
every_objective = pytest.mark.parametrize("settings", EVERY, ids=str)

# Quantiles of N(0, 1) at evenly spaced levels: the mean of f over them is its expectation, without chance.
NORMAL = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
TEST_FUNCTIONS = [torch.sin, torch.cos, torch.ones_like, torch.tanh, lambda x: torch.exp(-x.square())]


def log_ratio(x: Tensor, mu: float) -> Tensor:
    """log p(x) / q(x) of p = N(0, 1), q = N(mu, 1): the logit of p / (p + q)."""
    return mu**2 / 2 - mu * x


def integral(function: Callable[[Tensor, Tensor], Tensor], mu: float, deviation: float = 1.0) -> float:
    """Integral of function(p, q), p = N(0, 1), q = N(mu, deviation²), on a grid that holds all but 1e-20 of both."""
    x = torch.linspace(-14, 16, 60_001, dtype=torch.float64)
    p, q = (
        torch.exp(-((x - m) / s).square() / 2) / (s * math.sqrt(2 * math.pi)) for m, s in ((0.0, 1.0), (mu, deviation))
    )
    return torch.trapezoid(function(p, q), x).item()


def slope(objective: Objective, optimal: list[Tensor], bend: list[Tensor]) -> float:
    """Derivative of the discriminator's loss at `optimal` (on real, on fake) in the direction `bend`."""
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = objective.discriminator(optimal[0] + t * bend[0], optimal[1] + t * bend[1])
    return torch.autograd.grad(loss, t)[0].item()


# ---- the optimal discriminator: float32 means over 1e5 quantiles, good to about 1e-5 ---------------------------------

OPTIMA: dict[str, tuple[ObjectiveUnion, Callable[[Tensor], Tensor]]] = {
    # The optimal logits as a function of log p/q.
    "minimax": (MinimaxSettings(), lambda r: r),
    "non-saturating": (NonSaturatingSettings(), lambda r: r),
    "smoothed": (MinimaxSettings(smoothing=0.2), lambda r: torch.logit(0.8 * r.sigmoid())),
    "1/0": (LeastSquaresSettings(), lambda r: r.sigmoid()),
    "-1/1/0": (LeastSquaresSettings(coding="-1/1/0"), lambda r: 2 * r.sigmoid() - 1),
    # Nowozin et al.: g_f(V) = f'(p/q).
    "kl": (FGANSettings(divergence="kl"), lambda r: 1 + r),
    "reverse-kl": (FGANSettings(divergence="reverse-kl"), lambda r: r),
    "pearson": (FGANSettings(divergence="pearson"), lambda r: 2 * (r.exp() - 1)),
    "squared-hellinger": (FGANSettings(divergence="squared-hellinger"), lambda r: r / 2),
    "jensen-shannon": (FGANSettings(divergence="jensen-shannon"), lambda r: r),
}


@pytest.mark.parametrize("mu", [0.5, 1.0])
@pytest.mark.parametrize("name", OPTIMA)
def test_optimal_discriminator_is_stationary(name: str, mu: float) -> None:
    settings, optimum = OPTIMA[name]
    objective = settings.build()
    optimal = [optimum(log_ratio(x, mu)) for x in (NORMAL, NORMAL + mu)]
    for function in TEST_FUNCTIONS:
        bend = [function(x) for x in (NORMAL, NORMAL + mu)]
        assert slope(objective, optimal, bend) == pytest.approx(0, abs=1e-4)
    wrong = [0.5 * values for values in optimal]
    assert abs(slope(objective, wrong, wrong)) > 1e-2


@pytest.mark.parametrize(("mu", "value"), [(0.0, -1.3863), (1.0, -1.1635), (2.0, -0.7126)])
@pytest.mark.parametrize("settings", [MinimaxSettings(), NonSaturatingSettings()], ids=str)
def test_value_at_the_optimal_discriminator(settings: ObjectiveUnion, mu: float, value: float) -> None:
    loss = settings.build().discriminator(log_ratio(NORMAL, mu), log_ratio(NORMAL + mu, mu))
    assert -loss.item() == pytest.approx(value, abs=2e-4)


@pytest.mark.parametrize(("coding", "factor"), [("1/0", 1), ("-1/1/0", 4)])
def test_least_squares_value_at_the_optimal_discriminator(coding: Any, factor: int) -> None:
    # min L_D is the integral of p q / (p + q), times the squared distance of the two targets.
    objective = LeastSquaresSettings(coding=coding).build()
    real, fake = (OPTIMA[coding][1](log_ratio(x, 2.0)) for x in (NORMAL, NORMAL + 2))
    expected = factor * integral(lambda p, q: p * q / (p + q), 2.0)
    assert objective.discriminator(real, fake).item() == pytest.approx(expected, abs=1e-4)


def test_least_squares_second_coding_is_a_pearson_divergence() -> None:
    # Mao et al., eq. 13: E_p (D - 0)² + E_q (D - 0)² is the integral of (2q - (p + q))² / (p + q) at the optimum.
    objective = LeastSquaresSettings(coding="-1/1/0").build()
    real, fake = (OPTIMA["-1/1/0"][1](log_ratio(x, 1.0)) for x in (NORMAL, NORMAL + 1))
    found = objective.generator(real) + objective.generator(fake)
    assert found.item() == pytest.approx(integral(lambda p, q: (q - p).square() / (p + q), 1.0), abs=1e-4)


@pytest.mark.parametrize(("mu", "value"), [(0.0, 2.0), (2.0, 0.6346)])
def test_hinge_minimum_is_twice_the_overlap(mu: float, value: float) -> None:
    hinge = HingeSettings().build().discriminator
    real, fake = (log_ratio(x, mu).sign() for x in (NORMAL, NORMAL + mu))
    assert hinge(real, fake).item() == pytest.approx(value, abs=2e-4)
    for scale in (0.5, 2.0):  # neither a meeker nor a bolder one does better
        assert hinge(scale * real, scale * fake).item() >= hinge(real, fake).item() - 1e-6


# ---- f-divergences ---------------------------------------------------------------------------------------------------

# f of Nowozin et al., table 6, as functions of u = p/q: what the activations and conjugates must agree with.
GENERATING: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda u: u * u.log(),
    "reverse-kl": lambda u: -u.log(),
    "pearson": lambda u: (u - 1).square(),
    "squared-hellinger": lambda u: (u.sqrt() - 1).square(),
    "jensen-shannon": lambda u: -(u + 1) * ((1 + u) / 2).log() + u * u.log(),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_fgan_bound_is_the_divergence_at_the_optimal_critic(divergence: Divergence) -> None:
    settings, optimum = OPTIMA[divergence]
    mu, deviation = 0.5, 1.2  # of two widths, so that KL and reverse KL differ
    f = GENERATING[divergence]
    expected = integral(lambda p, q: q * f(p / q), mu, deviation)
    normal = torch.special.ndtri((torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000)
    samples = (normal, mu + deviation * normal)
    ratios = [((x - mu) / deviation).square() / 2 - x.square() / 2 + math.log(deviation) for x in samples]
    real, fake = (optimum(ratio) for ratio in ratios)
    loss = settings.build().discriminator
    # 1e-3: what 1e6 quantiles leave of q/p's heavy tail under p (reverse KL); the others agree to 1e-5.
    assert -loss(real, fake).item() == pytest.approx(expected, abs=1e-3)
    for scale in (0.8, 1.2):  # any other critic's bound is lower
        assert loss(scale * real, scale * fake) > loss(real, fake)


def test_fgan_divergences_are_the_known_ones() -> None:
    mu, s = 0.5, 1.2
    kl = math.log(s) + (1 + mu**2) / (2 * s**2) - 0.5  # KL(N(0, 1) || N(mu, s²))
    reverse = -math.log(s) + (s**2 + mu**2) / 2 - 0.5
    hellinger = 2 - 2 * math.sqrt(2 * s / (1 + s**2)) * math.exp(-(mu**2) / (4 * (1 + s**2)))
    for divergence, expected in (("kl", kl), ("reverse-kl", reverse), ("squared-hellinger", hellinger)):
        f = GENERATING[divergence]
        assert integral(lambda p, q, f=f: q * f(p / q), mu, s) == pytest.approx(expected, abs=1e-8)  # type: ignore[misc]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_fgan_conjugate_is_the_highest_of_its_definition(divergence: Divergence) -> None:
    # f*(t) = sup over u of u t - f(u), here over a grid of log u in steps of 4e-4: relatively good to 1e-7.
    objective = FGAN(divergence, "variational")
    u = torch.linspace(-8, 8, 40_001, dtype=torch.float64).exp()
    for v in torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.5, 3.0], dtype=torch.float64):
        t = objective.activation(v)
        highest = (u * t - GENERATING[divergence](u)).max()
        torch.testing.assert_close(objective.conjugate(v), highest, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_fgan_generators(divergence: Divergence) -> None:
    fake = torch.linspace(-2, 2, 9)
    variational = FGANSettings(divergence=divergence).build()
    trick = FGANSettings(divergence=divergence, generator="non-saturating").build()
    assert isinstance(variational, FGAN)
    # The bound that D raises is the one that G lowers, up to the term of the real samples; the trick is the activation.
    real = torch.zeros(9)
    constant = variational.activation(real).mean()
    torch.testing.assert_close(variational.generator(fake), -variational.discriminator(real, fake) - constant)
    torch.testing.assert_close(trick.generator(fake), -variational.activation(fake).mean())
    assert torch.equal(trick.discriminator(real, fake), variational.discriminator(real, fake))


def test_jensen_shannon_fgan_is_the_minimax_game() -> None:
    real, fake = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).unbind()
    fgan, minimax = FGANSettings(divergence="jensen-shannon").build(), MinimaxSettings().build()
    shift = 2 * math.log(2)  # V = -log 4 + 2 JSD
    torch.testing.assert_close(fgan.discriminator(real, fake), minimax.discriminator(real, fake) - shift)
    torch.testing.assert_close(fgan.generator(fake), minimax.generator(fake) + math.log(2))


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_values_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 3.0])
    ones, zeros = torch.ones(2), torch.zeros(2)
    bce = binary_cross_entropy_with_logits
    minimax, non_saturating = MinimaxSettings().build(), NonSaturatingSettings().build()
    lsgan, hinge, wgan = LeastSquaresSettings().build(), HingeSettings().build(), WassersteinSettings().build()
    torch.testing.assert_close(non_saturating.discriminator(real, fake), bce(real, ones) + bce(fake, zeros))
    torch.testing.assert_close(non_saturating.generator(fake), bce(fake, ones))
    torch.testing.assert_close(minimax.discriminator(real, fake), bce(real, ones) + bce(fake, zeros))
    torch.testing.assert_close(minimax.generator(fake), -bce(fake, zeros))
    torch.testing.assert_close(lsgan.discriminator(real, fake), mse_loss(real, ones) + mse_loss(fake, zeros))
    torch.testing.assert_close(lsgan.generator(fake), mse_loss(fake, ones))
    assert hinge.discriminator(real, fake).item() == (0 + 1) / 2 + (0 + 4) / 2
    assert hinge.generator(fake).item() == -1
    assert wgan.discriminator(real, fake).item() == 1 - 1
    assert wgan.generator(fake).item() == -1
    drifting = WassersteinSettings(drift=0.5).build()
    assert drifting.discriminator(real, fake).item() == 0.5 * (4 + 0) / 2


def test_smoothing_is_one_sided() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 3.0])
    bce = binary_cross_entropy_with_logits
    for settings in (MinimaxSettings(smoothing=0.1), NonSaturatingSettings(smoothing=0.1)):
        expected = bce(real, torch.full((2,), 0.9)) + bce(fake, torch.zeros(2))
        torch.testing.assert_close(settings.build().discriminator(real, fake), expected)
        plain = settings.model_copy(update={"smoothing": 0.0}).build()
        assert torch.equal(settings.build().generator(fake), plain.generator(fake))


def test_non_saturating_generator_does_not_saturate() -> None:
    for settings, expected in ((NonSaturatingSettings(), -1), (MinimaxSettings(), 0)):
        fake = torch.tensor([-50.0], requires_grad=True)
        (gradient,) = torch.autograd.grad(settings.build().generator(fake), fake)
        assert gradient.item() == pytest.approx(expected, abs=1e-6)


def test_probability_is_claimed_where_sigmoid_is_one() -> None:
    assert {type(s).__name__ for s in EVERY if s.build().probability} == {"MinimaxSettings", "NonSaturatingSettings"}


# ---- relativistic ----------------------------------------------------------------------------------------------------

RELATIVISTIC = [s for s in EVERY if s.build().needs_real]


def test_relativistic_games_are_these_alone() -> None:
    assert {s.kind for s in RELATIVISTIC} == {"relativistic", "relativistic-average"}


@pytest.mark.parametrize("settings", RELATIVISTIC, ids=str)
def test_relativistic_games_see_differences_alone(settings: ObjectiveUnion) -> None:
    objective = settings.build()
    real, fake = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()
    for shift in (-7.0, 3.0):
        moved = objective.discriminator(real + shift, fake + shift)
        torch.testing.assert_close(moved, objective.discriminator(real, fake), rtol=1e-5, atol=1e-5)
        moved = objective.generator(fake + shift, real + shift)
        torch.testing.assert_close(moved, objective.generator(fake, real), rtol=1e-5, atol=1e-5)
    # The generator plays the discriminator's game with the sides exchanged.
    torch.testing.assert_close(objective.generator(fake, real), objective.discriminator(fake, real))
    assert objective.generator(fake, real) != objective.discriminator(real, fake)
    with pytest.raises(ValueError, match="needs the real logits"):
        objective.generator(fake)


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        (RelativisticSettings(), math.log(2)),
        (RelativisticAverageSettings(), 2 * math.log(2)),
        (RelativisticAverageSettings(base="least-squares"), 2.0),
        (RelativisticAverageSettings(base="hinge"), 2.0),
    ],
    ids=str,
)
def test_relativistic_value_at_a_constant_discriminator(settings: ObjectiveUnion, value: float) -> None:
    logits = torch.full((4, 1), 5.0)
    assert settings.build().discriminator(logits, logits).item() == pytest.approx(value)
    assert settings.build().generator(logits, logits).item() == pytest.approx(value)


def test_relativistic_pairing_by_hand() -> None:
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [3.0]])
    expected = -(math.log(1 / (1 + math.exp(-3))) + math.log(1 / (1 + math.exp(3)))) / 2
    assert RelativisticSettings().build().discriminator(real, fake).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(3, 1\)"):
        RelativisticSettings().build().discriminator(real, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="pairing"):  # would broadcast
        RelativisticSettings().build().generator(real, torch.zeros(2))


def test_relativistic_average_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 3.0, 4.0])  # means 1 and 2
    ones, zeros = torch.ones, torch.zeros
    r, f = real - 2, fake - 1
    standard, squares, hinge = (
        RelativisticAverageSettings(base=base).build() for base in ("non-saturating", "least-squares", "hinge")
    )
    expected = binary_cross_entropy_with_logits(r, ones(2)) + binary_cross_entropy_with_logits(f, zeros(3))
    torch.testing.assert_close(standard.discriminator(real, fake), expected)
    expected = binary_cross_entropy_with_logits(r, zeros(2)) + binary_cross_entropy_with_logits(f, ones(3))
    torch.testing.assert_close(standard.generator(fake, real), expected)
    torch.testing.assert_close(squares.discriminator(real, fake), mse_loss(r, ones(2)) + mse_loss(f, -ones(3)))
    assert hinge.discriminator(real, fake).item() == pytest.approx((1 + 3) / 2 + (0 + 3 + 4) / 3)


def test_relativistic_average_differentiates_the_means() -> None:
    objective = RelativisticAverageSettings(base="least-squares").build()
    real, fake = torch.tensor([2.0, 0.0], requires_grad=True), torch.tensor([-1.0, 3.0], requires_grad=True)
    for_real, for_fake = torch.autograd.grad(objective.discriminator(real, fake), (real, fake))
    assert (for_real.sum() + for_fake.sum()).item() == pytest.approx(0, abs=1e-6)  # invariant to a common shift


# ---- energies --------------------------------------------------------------------------------------------------------


def test_ebgan_pushes_fakes_up_to_the_margin_alone() -> None:
    objective = EBGANSettings(margin=2.0).build()
    real = torch.tensor([0.5, 1.5], requires_grad=True)
    fake = torch.tensor([0.5, 5.0], requires_grad=True)
    loss = objective.discriminator(real, fake)
    assert loss.item() == 1 + (1.5 + 0) / 2
    for_real, for_fake = torch.autograd.grad(loss, (real, fake))
    assert for_real.tolist() == [0.5, 0.5]
    assert for_fake.tolist() == [-0.5, 0.0]
    assert objective.generator(fake).item() == 2.75


def test_began_balances_its_energies() -> None:
    objective = BEGANSettings(gamma=0.5, k_rate=0.1).build()
    assert isinstance(objective, BEGAN)
    real = torch.full((2, 1), 4.0)
    assert objective.discriminator(real, real).item() == 4.0  # k starts at 0
    # Fakes too easily rebuilt (1 < gamma 4): k rises; too badly (3): it falls.
    seen = objective.update(real, torch.full((2, 1), 1.0))
    assert seen["k"].item() == pytest.approx(0.1 * (0.5 * 4 - 1))
    assert seen["convergence"].item() == pytest.approx(4 + 1)
    assert objective.discriminator(real, torch.full((2, 1), 1.0)).item() == pytest.approx(4 - 0.1)
    seen = objective.update(real, torch.full((2, 1), 2.5))
    assert seen["k"].item() == pytest.approx(0.1 - 0.05)
    objective.update(real, torch.full((2, 1), 2.0))  # at gamma: stays
    assert objective.k.item() == pytest.approx(0.05)
    for fake, bound in ((1000.0, 0.0), (-1000.0, 1.0)):
        objective.update(real, torch.full((2, 1), fake))
        assert objective.k.item() == bound
    objective.update(torch.full((2, 1), math.nan), real)
    assert objective.k.item() == 1.0
    assert objective.generator(real).item() == 4.0
    assert objective.state_dict()["k"].dtype is torch.float32


def test_began_may_move_before_its_loss_is_differentiated() -> None:
    objective = BEGANSettings(k_rate=0.1).build()
    ones = torch.ones(2, 1)
    objective.update(4 * ones, ones)
    fake = torch.ones(2, 1, requires_grad=True)
    loss = objective.discriminator(4 * ones, fake)
    reported = objective.update(4 * ones, ones)
    (gradient,) = torch.autograd.grad(loss, fake)
    torch.testing.assert_close(gradient, torch.full((2, 1), -0.1 / 2))  # by the k of its own time
    objective.update(4 * ones, ones)
    assert reported["k"].item() == pytest.approx(0.2)  # and what was reported stays


# ---- all of them -----------------------------------------------------------------------------------------------------


def test_every_kind_is_tested() -> None:
    assert {type(settings) for settings in EVERY} == set(get_args(ObjectiveUnion))


@every_objective
def test_real_logits_change_no_unpaired_generator_loss(settings: ObjectiveUnion) -> None:
    fake = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    objective = settings.build()
    if not objective.needs_real:
        assert objective.generator(fake, fake + 1) == objective.generator(fake)
    assert bool(objective.update(fake, fake)) == (settings.kind == "began")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_objective
def test_losses_are_finite_float32_for_wild_logits(settings: ObjectiveUnion, dtype: torch.dtype) -> None:
    real = torch.tensor([[-3e4, 0.0, 3e4]], dtype=dtype, requires_grad=True)
    fake = torch.tensor([[3e4, 0.0, -3e4]], dtype=dtype, requires_grad=True)
    objective = settings.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [objective.discriminator(real, fake), objective.generator(fake, real)]
    for loss in losses:
        assert loss.dtype is torch.float32
        assert loss.shape == ()
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, fake, retain_graph=True)
        if dtype is not torch.float16:  # whose numbers end at 65504
            assert gradient.isfinite().all()


@every_objective
def test_patches_are_so_many_logits(settings: ObjectiveUnion) -> None:
    real, fake = torch.randn(2, 3, 1, 4, 5, generator=torch.Generator().manual_seed(0)).unbind()
    objective = settings.build()
    flat = objective.discriminator(real.reshape(-1), fake.reshape(-1))
    torch.testing.assert_close(objective.discriminator(real, fake), flat)
    flat = objective.generator(fake.reshape(-1), real.reshape(-1))
    torch.testing.assert_close(objective.generator(fake, real), flat)


# ---- settings --------------------------------------------------------------------------------------------------------

FIELD: TypeAdapter[ObjectiveUnion] = TypeAdapter(ObjectiveField)


@every_objective
def test_settings_round_trip(settings: ObjectiveUnion) -> None:
    assert FIELD.validate_python(settings.model_dump(mode="json")) == settings
    assert TypeAdapter(ObjectiveSettings).validate_python(settings.model_dump()) == settings
    assert FIELD.validate_python(settings) is settings
    with pytest.raises(ValidationError):
        settings.kind = "other"  # type: ignore[assignment]


def test_a_bare_name_is_the_kind_with_nothing_else_said() -> None:
    for settings in get_args(ObjectiveUnion):
        if settings is not FGANSettings:  # whose divergence must be said
            assert FIELD.validate_python(settings().kind) == settings()
    assert FIELD.validate_python("vanilla") == NonSaturatingSettings()
    assert FIELD.validate_python("lsgan") == LeastSquaresSettings()


def test_the_schema_knows_names_and_settings() -> None:
    union, names = FIELD.json_schema()["anyOf"]
    assert set(union["discriminator"]["mapping"]) == {s.kind for s in EVERY}
    for name in names["enum"]:
        FIELD.validate_python(name)
    assert set(names["enum"]) == {s.kind for s in EVERY} - {"f-gan"} | {"vanilla", "lsgan"}
    for bad in ("hings", "f-gan", {"kind": "hinge", "margin": 1}, 3):
        with pytest.raises(ValidationError):
            FIELD.validate_python(bad)


def _fault(value: Any) -> str:
    raw = {**configs.read_config(configs.shipped_configs()["pix2pix-facades"])}
    raw["method"] = {**raw["method"], "objective": value}
    with pytest.raises(UserError) as raised:
        configs.validate(raw, "FILE")
    return str(raised.value)


def test_a_config_s_faults_name_the_kinds() -> None:
    kinds = ", ".join(sorted(settings.model_fields["kind"].default for settings in get_args(ObjectiveUnion)))
    expected = f"FILE: 'method.objective.kind' is 'hings', expected one of {kinds}; did you mean 'hinge'?"
    assert _fault("hings") == _fault({"kind": "hings"}) == expected
    assert _fault({"knd": "hinge"}) == "FILE: unknown key 'method.objective.knd'; did you mean 'method.objective.kind'?"
    assert _fault("f-gan") == "FILE: 'method.objective.divergence' is missing; add it"
    fault = _fault({"kind": "began", "gama": 0.5})
    assert fault == "FILE: unknown key 'method.objective.gama'; did you mean 'method.objective.gamma'?"
