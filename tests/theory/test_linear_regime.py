"""The odd / even split on losses that are polynomials in sigma, against float64 numpy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import theory
from lacuna.errors import InvalidInput

SIGMAS = np.geomspace(1e-3, 1e-1, 9).astype(np.float32)


def pairs(base, *coefficients, sigmas=SIGMAS):
    """Losses `base + c1 s + c2 s^2 + ...` of draws with coefficients [N] each, at s = +-sigma, in float32."""
    s = sigmas.astype(np.float64)
    plus, minus = (
        base + sum(c[:, None] * (sign * s) ** k for k, c in enumerate(coefficients, start=1)) for sign in (1, -1)
    )
    return plus.astype(np.float32), minus.astype(np.float32), np.float32(base)


def oracle(sigmas, plus, minus, base):
    """The definitions, column by column, in float64."""
    columns = []
    for sigma, p, m in zip(sigmas, plus.T.astype(np.float64), minus.T.astype(np.float64), strict=True):
        kept = np.isfinite(p) & np.isfinite(m)
        odd, even = (p[kept] - m[kept]) / 2, (p[kept] + m[kept]) / 2 - float(base)
        share = np.var(odd) / (np.var(odd) + np.mean(even**2))
        columns.append((sigma, np.sqrt(np.mean(odd**2)), np.sqrt(np.mean(even**2)), np.mean(even), share))
    sigma, f1, f2, mean, share = np.array(columns).T
    return {
        "f1_rms": f1,
        "f2_rms": f2,
        "f2_mean": mean,
        "share": share,
        "f1_slope": np.append(np.nan, np.diff(np.log(f1)) / np.diff(np.log(sigma))),
        "f2_slope": np.append(np.nan, np.diff(np.log(f2)) / np.diff(np.log(sigma))),
    }


def assert_equals_oracle(regime, *losses, sigmas=SIGMAS, rtol=1e-4):
    for name, expected in oracle(sigmas, *losses).items():
        np.testing.assert_allclose(getattr(regime, name), expected, rtol=rtol, err_msg=name)


def coefficients(*scales):
    """Coefficients of 40 draws; one shape in nearly all tests compiles once."""
    rng = np.random.default_rng(0)
    return [scale * rng.standard_normal(40) for scale in scales]


def test_statistics_equal_the_definitions_on_a_cubic_loss():
    losses = pairs(0.0, *coefficients(1.0, 8.0, 30.0))
    assert_equals_oracle(theory.linear_regime(SIGMAS, *losses), *losses)


def test_a_linear_loss_is_odd_with_slope_one_everywhere():
    regime = theory.linear_regime(SIGMAS, *pairs(0.0, *coefficients(2.0)))
    np.testing.assert_allclose(regime.share, 1)
    np.testing.assert_allclose(regime.f1_slope[1:], 1, atol=1e-5)
    assert np.isnan(regime.f1_slope[0])
    assert regime.sigma_star == SIGMAS[-1]
    assert np.all(regime.resolved)


def test_a_quadratic_term_ends_the_regime_where_the_share_says():
    slope, bend = coefficients(1.0, 10.0)
    regime = theory.linear_regime(SIGMAS, *pairs(0.0, slope, bend))
    # share = 0.9 where sigma^2 var(slope) = 9 sigma^4 mean(bend^2)
    limit = np.std(slope) / (3 * np.sqrt(np.mean(bend**2)))
    below = limit > SIGMAS
    np.testing.assert_array_equal(regime.share > 0.9, below)
    assert regime.sigma_star == SIGMAS[below][-1]
    np.testing.assert_allclose(regime.f2_slope[1:], 2, atol=1e-4)
    np.testing.assert_allclose(regime.f1_slope[1:], 1, atol=1e-4)


def test_a_cubic_term_is_odd_and_yet_ends_the_regime():
    slope = coefficients(1.0)[0]
    regime = theory.linear_regime(SIGMAS, *pairs(0.0, slope, 0 * slope, 100 * slope))
    np.testing.assert_allclose(regime.share, 1, rtol=1e-6)
    exact = np.append(np.nan, np.diff(np.log(SIGMAS + 100.0 * SIGMAS**3)) / np.diff(np.log(SIGMAS)))
    np.testing.assert_allclose(regime.f1_slope, exact, rtol=1e-4)
    assert regime.sigma_star == SIGMAS[np.flatnonzero(exact > 1.1)[0] - 1]
    assert SIGMAS[0] < regime.sigma_star < SIGMAS[-1]


def test_a_slope_that_returns_to_one_does_not_reopen_the_regime():
    kink = np.where(np.arange(9) < 4, 1.0, 2.0) * SIGMAS  # one slope of about 2.2, then one again
    odd = np.outer([1.0, -1.0, 2.0], kink).astype(np.float32)
    regime = theory.linear_regime(SIGMAS, odd, -odd, 0.0)
    assert regime.f1_slope[-1] == pytest.approx(1, abs=1e-4)
    assert regime.sigma_star == SIGMAS[3]


def test_an_even_loss_has_no_linear_regime():
    regime = theory.linear_regime(SIGMAS, *pairs(0.0, np.zeros(40), coefficients(1.0)[0]))
    np.testing.assert_array_equal(regime.share, 0)
    assert np.isnan(regime.sigma_star)


def test_candidates_that_are_not_finite_leave_the_statistics_of_the_others():
    plus, minus, base = pairs(0.0, *coefficients(1.0, 5.0))
    plus[3, 2:], minus[7, 5], minus[3, 8], plus[9, 0] = np.nan, np.inf, np.nan, -np.inf
    regime = theory.linear_regime(SIGMAS, plus, minus, base)
    np.testing.assert_array_equal(regime.num_finite, [39, 40, 39, 39, 39, 38, 39, 39, 39])
    assert_equals_oracle(regime, plus, minus, base)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_share_takes_two_finite_pairs(kept):
    plus, minus, base = pairs(0.0, *coefficients(1.0, 0.1))
    plus[kept:, -1] = np.nan
    regime = theory.linear_regime(SIGMAS, plus, minus, base)
    assert regime.num_finite[-1] == kept
    assert np.isfinite(regime.share[-1]) == (kept == 2)
    assert regime.sigma_star == SIGMAS[-2]  # two pairs of forty have another root mean square


def test_a_base_that_is_not_finite_gives_no_regime():
    plus, minus, _ = pairs(0.0, *coefficients(1.0))
    regime = theory.linear_regime(SIGMAS, plus, minus, np.nan)
    assert np.all(np.isnan(regime.share))
    assert np.isnan(regime.sigma_star)


def test_sigmas_below_the_rounding_of_the_loss_are_flagged_and_not_asked():
    sigmas = np.geomspace(1e-8, 1e-2, 9).astype(np.float32)
    regime = theory.linear_regime(sigmas, *pairs(1.0, *coefficients(1.0), sigmas=sigmas))
    np.testing.assert_array_equal(regime.resolved, np.asarray(regime.f1_rms) >= 16 * 2.0**-23)
    assert 0 < np.sum(~np.asarray(regime.resolved)) < 9
    assert not np.all(np.abs(np.asarray(regime.f1_slope[1:]) - 1) < 0.1)  # rounding bends the slopes,
    assert regime.sigma_star == sigmas[-1]  # and is not taken for geometry


def test_an_unresolved_sigma_is_never_the_end_of_the_regime():
    sigmas = np.array([1e-3, 2e-3, 4e-3], np.float32)
    odd = np.outer([1, -1], [4, 8, 16]).astype(np.float32) * 2.0**-13  # in ulps of 1024: exact, odd, slope one
    assert theory.linear_regime(sigmas, odd, -odd, 0.0).sigma_star == sigmas[2]
    regime = theory.linear_regime(sigmas, 1024 + odd, 1024 - odd, 1024.0)
    np.testing.assert_array_equal(regime.resolved, [False, False, True])
    assert regime.sigma_star == sigmas[2]
    assert np.isnan(theory.linear_regime(sigmas[:2], 1024 + odd[:, :2], 1024 - odd[:, :2], 1024.0).sigma_star)


def test_a_large_base_loss_costs_no_digits():
    rng = np.random.default_rng(1)
    odd, even = rng.integers(-9000, 9000, (2, 40, 9)) / 2.0**11  # multiples of one ulp at 4096
    plus, minus = ((4100 + even + sign * odd).astype(np.float32) for sign in (1, -1))
    losses = plus, minus, np.float32(4100)
    assert_equals_oracle(theory.linear_regime(SIGMAS, *losses), *losses, rtol=2e-5)


def test_the_share_counts_the_spread_of_the_odd_part_and_not_its_mean():
    odd = 100 + np.array([[1.0], [-1.0], [0.5], [-0.5]]) / 64 * np.ones(9)
    even = 0.01 * np.ones_like(odd)
    losses = (odd + even).astype(np.float32), (even - odd).astype(np.float32), np.float32(0)
    share = theory.linear_regime(SIGMAS, *losses).share
    np.testing.assert_allclose(share, oracle(SIGMAS, *losses)["share"], rtol=2e-3)  # 0.01 has 3 digits beside 100
    assert np.all(share < 0.7)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_of_extreme_losses_stay_inside_float32(scale):
    plus, minus, base = pairs(0.0, *coefficients(1.0, 10.0))
    factor = np.float32(scale)
    extreme = theory.linear_regime(SIGMAS, factor * plus, factor * minus, base)
    np.testing.assert_allclose(extreme.share, oracle(SIGMAS, plus, minus, base)["share"], rtol=1e-4)


def test_losses_may_be_traced_beside_constant_or_traced_sigmas():
    plus, minus, base = pairs(0.5, *coefficients(1.0, 10.0))
    eager = theory.linear_regime(SIGMAS, plus, minus, base)
    constant = jax.jit(lambda *losses: theory.linear_regime(SIGMAS, *losses))(plus, minus, base)
    traced = jax.jit(theory.linear_regime)(SIGMAS, plus, minus, base)
    for other in (constant, traced):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), eager, other)


def test_statistics_are_single_precision_over_the_grid():
    regime = theory.linear_regime(jnp.asarray(SIGMAS), *pairs(0.0, *coefficients(1.0)))
    assert {x.dtype for x in regime} == {np.dtype(kind) for kind in ("float32", "bool", "int32")}
    assert {x.shape for x in regime[:-1]} == {SIGMAS.shape}
    assert regime.sigma_star.shape == ()


@pytest.mark.parametrize(
    "sigmas",
    [[0.1, 0.1], [0.2, 0.1], [0.0, 0.1], [-0.2, 0.1], [0.1, np.nan], [0.1, np.inf], [0.1, 0.1 + 1e-12]],
)
def test_sigmas_that_do_not_ascend_are_refused(sigmas):
    losses = np.zeros((3, 2), np.float32)
    with pytest.raises(InvalidInput, match="strictly ascending"):
        theory.linear_regime(np.array(sigmas), losses, losses, 0.0)
    with pytest.raises(InvalidInput, match="strictly ascending"):
        jax.jit(lambda loss: theory.linear_regime(np.array(sigmas), loss, loss, 0.0))(losses)


def test_losses_that_do_not_fit_the_grid_are_refused():
    linear_regime = inspect.unwrap(theory.linear_regime)  # as a caller without the type checker
    for plus, minus in ((np.zeros((3, 8)), np.zeros((3, 8))), (np.zeros((3, 9)), np.zeros((2, 9)))):
        with pytest.raises(InvalidInput, match="sigmas \\[S\\]"):
            linear_regime(SIGMAS, plus, minus, 0.0)


def test_the_rounding_floor_is_an_ulp_over_the_size_of_the_odd_part():
    floor = theory.rounding_floor(np.array([2.3, -1000.0]), 1e-4, 0.5)
    exact = np.spacing(np.float32([2.3, 1000.0])) / (1e-4 * 0.5)
    np.testing.assert_allclose(floor, exact, rtol=1e-6)


def test_rounding_moves_the_odd_part_by_no_more_than_its_floor():
    sigmas = np.geomspace(1e-6, 1e-3, 9).astype(np.float32)
    slope = coefficients(1.0)[0]
    regime = theory.linear_regime(sigmas, *pairs(3.0, slope, sigmas=sigmas))
    wrong = np.abs(np.asarray(regime.f1_rms) / (sigmas * np.sqrt(np.mean(slope**2))) - 1)
    assert np.all(wrong < theory.rounding_floor(3.0, sigmas, 1.0))


def test_the_predicted_share_is_the_measured_one_on_a_quadratic():
    rng = np.random.default_rng(0)
    gradient, curvature, sigmas = rng.normal(size=50), rng.normal(0.3, 1, size=50), np.geomspace(0.01, 1, 5)
    z = rng.normal(size=(20_000, 50))
    odd, even = z @ gradient, z**2 @ curvature / 2
    plus, minus = (sign * odd[:, None] * sigmas + even[:, None] * sigmas**2 for sign in (1, -1))
    measured = theory.linear_regime(np.float32(sigmas), np.float32(plus), np.float32(minus), 0.0).share
    norm, spread = np.linalg.norm(gradient), np.sqrt(2 * np.sum(curvature**2))
    np.testing.assert_allclose(theory.predicted_share(sigmas, norm, curvature.sum(), spread), measured, rtol=0.05)


def test_the_predicted_end_of_the_regime_has_the_share_that_was_asked():
    for share in (0.5, 0.9, 0.99):
        end = theory.predicted_sigma_star(2.0, 3.0, 4.0, share=share)
        np.testing.assert_allclose(theory.predicted_share(end, 2.0, 3.0, 4.0), share, rtol=1e-6)
    assert np.isinf(theory.predicted_sigma_star(1.0, 0.0))


def test_predictions_of_the_regime_survive_scales_whose_squares_leave_float32():
    np.testing.assert_allclose(theory.predicted_share(1e-15, 1e-20, 2e-5), 0.5, rtol=1e-6)
    np.testing.assert_allclose(theory.predicted_sigma_star(1e25, 1e30, share=0.5), 2e-5, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, np.nan])
def test_a_share_that_is_no_share_is_refused(share):
    with pytest.raises(InvalidInput, match="a share between 0 and 1"):
        theory.predicted_sigma_star(1.0, 1.0, share=share)


def test_the_predicted_share_is_flat_where_the_slope_vanishes():
    share, slope = jax.value_and_grad(theory.predicted_share, argnums=1)(0.1, 0.0, 3.0, 4.0)
    assert share == slope == 0
