"""What answers are worth: every number against its definition, written out."""

from functools import partial

import numpy as np
import pytest
from scipy import stats

from lacuna.errors import InvalidInput
from lacuna.steering import outcomes

RNG = np.random.default_rng(0)
POSITIVE = RNG.random(60) < 0.6
LOG_ODDS = np.round(RNG.normal(size=60) + POSITIVE, 1).astype(np.float32)  # with many ties, and some zeros
STEERED = np.round(LOG_ODDS + RNG.normal(size=60) + 0.5 * POSITIVE, 1).astype(np.float32)
ROWS = list(zip(LOG_ODDS.astype(float), POSITIVE, strict=True))
METRICS = [outcomes.accuracy, outcomes.balanced_accuracy, outcomes.auroc, outcomes.signed_log_odds]
every_metric = pytest.mark.parametrize("metric", METRICS)


def test_accuracy_counts_rows_on_the_right_side_of_the_threshold():
    assert outcomes.accuracy(LOG_ODDS, POSITIVE) == np.mean([(x >= 0) == y for x, y in ROWS])
    assert outcomes.accuracy(LOG_ODDS, POSITIVE, threshold=0.75) == np.mean([(x >= 0.75) == y for x, y in ROWS])


def test_a_tie_goes_to_the_positive_answer():
    assert outcomes.accuracy(np.zeros(3, np.float32), np.array([True, True, False])) == 2 / 3


def test_balanced_accuracy_is_the_mean_over_both_kinds_of_rows():
    kinds = [[(x >= 0.2) == y for x, y in ROWS if y == kind] for kind in (True, False)]
    expected = np.mean([np.mean(kind) for kind in kinds])
    np.testing.assert_allclose(outcomes.balanced_accuracy(LOG_ODDS, POSITIVE, threshold=0.2), expected, rtol=1e-14)
    assert outcomes.balanced_accuracy(np.ones(60, np.float32), POSITIVE) == 0.5


def test_auroc_is_the_share_of_pairs_in_order_with_ties_counted_half():
    pairs = [np.sign(a - b) / 2 + 0.5 for a, y in ROWS if y for b, z in ROWS if not z]
    found = outcomes.auroc(LOG_ODDS, POSITIVE)
    np.testing.assert_allclose(found, np.mean(pairs), rtol=1e-14)
    wins = stats.mannwhitneyu(*(LOG_ODDS[part].astype(float) for part in (POSITIVE, ~POSITIVE))).statistic
    np.testing.assert_allclose(found, wins / len(pairs), rtol=1e-14)
    np.testing.assert_allclose(outcomes.auroc(LOG_ODDS + 3, POSITIVE), found, rtol=1e-14)
    assert outcomes.auroc(np.array([np.inf, np.inf, -np.inf, -np.inf]), np.array([True, False, True, False])) == 0.5


def test_signed_log_odds_are_those_of_the_right_answer():
    expected = np.mean([x if y else -x for x, y in ROWS])
    np.testing.assert_allclose(outcomes.signed_log_odds(LOG_ODDS, POSITIVE), expected, rtol=1e-12)


@every_metric
def test_weights_are_rows_that_come_several_times(metric):
    counts = RNG.integers(0, 4, (5, 60))
    found = metric(LOG_ODDS, POSITIVE, counts.astype(float))
    expected = [metric(np.repeat(LOG_ODDS, n), np.repeat(POSITIVE, n)) for n in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@every_metric
def test_a_broken_arm_has_no_value(metric):
    broken = LOG_ODDS.copy()
    broken[7] = np.nan
    assert np.isnan(metric(broken, POSITIVE))
    interval = outcomes.paired_bootstrap(metric, LOG_ODDS, broken, POSITIVE, num_resamples=50)
    assert np.isnan(interval).all()


def test_the_threshold_is_the_best_of_all_on_its_rows():
    found = outcomes.balanced_threshold(LOG_ODDS, POSITIVE)
    tried = np.linspace(-5, 5, 2001)
    values = [outcomes.balanced_accuracy(LOG_ODDS, POSITIVE, threshold=t) for t in tried]
    reached = outcomes.balanced_accuracy(LOG_ODDS, POSITIVE, threshold=found)
    np.testing.assert_allclose(reached, max(values), rtol=1e-12)
    assert abs(found) <= np.abs(tried[np.isclose(values, reached)]).min() + 0.05  # half a gap between log odds


def test_a_bias_moves_the_threshold_along():
    assert outcomes.balanced_threshold(np.array([4.0, 5.0, 6.0, 7.0]), np.array([False, False, True, True])) == 5.5
    assert outcomes.balanced_threshold(np.array([-1.0, 1.0]), np.array([False, True])) == 0


def test_of_equally_good_thresholds_the_nearest_to_zero_is_chosen():
    log_odds, positive = np.array([-5.0, -4.0, -3.0, -2.0]), np.array([False, True, False, True])
    assert outcomes.balanced_threshold(log_odds, positive) == -2.5  # -4.5 tells as many right
    assert outcomes.balanced_threshold(-log_odds, ~positive) == 2.5


@every_metric
def test_a_paired_interval_is_the_one_of_rows_drawn_together(metric):
    """Against scipy's, which draws by index; the ends of both are known to a few hundredths of the width."""

    def difference(base, steered, positive, axis=-1):
        parts = (np.moveaxis(x, axis, -1).reshape(-1, 60) for x in (base, steered, positive))
        values = [metric(s, y) - metric(b, y) for b, s, y in zip(*parts, strict=True)]
        return np.reshape(values, np.moveaxis(np.asarray(base), axis, -1).shape[:-1])

    data = (LOG_ODDS, STEERED, POSITIVE)
    options = {"paired": True, "n_resamples": 4000, "method": "percentile", "rng": np.random.default_rng(1)}
    expected = stats.bootstrap(data, difference, vectorized=True, **options).confidence_interval
    found = outcomes.paired_bootstrap(metric, *data, num_resamples=4000)
    np.testing.assert_allclose(found, expected, atol=0.06 * (expected.high - expected.low))
    assert found.low < difference(*data) < found.high


def test_the_same_seed_gives_the_same_interval_and_pairing_cancels_what_is_shared():
    metric = partial(outcomes.balanced_accuracy, threshold=0.1)
    interval = outcomes.paired_bootstrap(metric, LOG_ODDS, STEERED, POSITIVE, seed=3)
    assert interval == outcomes.paired_bootstrap(metric, LOG_ODDS, STEERED, POSITIVE, seed=3)
    assert outcomes.paired_bootstrap(metric, LOG_ODDS, LOG_ODDS, POSITIVE) == (0, 0)
    shifted = outcomes.paired_bootstrap(
        outcomes.signed_log_odds, LOG_ODDS, LOG_ODDS + np.where(POSITIVE, 1, -1), POSITIVE
    )
    np.testing.assert_allclose(shifted, 1, rtol=1e-6)


def test_draws_without_both_kinds_of_rows_are_left_out():
    few = outcomes.paired_bootstrap(
        outcomes.auroc, np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), np.array([False, True, True])
    )
    assert few == (-1, -1)


def test_mcnemar_is_a_fair_coin_on_the_rows_that_differ():
    base = np.array([True] * 10 + [False] * 7)
    steered = np.array([True] * 8 + [False] * 2 + [True] * 6 + [False])
    one_side = sum(stats.binom.pmf(k, 8, 0.5) for k in range(3))  # 2 lost, 6 gained
    np.testing.assert_allclose(outcomes.mcnemar(base, steered), 2 * one_side, rtol=1e-12)
    assert outcomes.mcnemar(base, base) == 1


@pytest.mark.parametrize("function", [outcomes.auroc, outcomes.balanced_accuracy, outcomes.balanced_threshold])
def test_rows_of_one_kind_are_refused(function):
    with pytest.raises(InvalidInput, match="needs positive rows and others; got 60 of 60 positive"):
        function(LOG_ODDS, np.ones(60, bool))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_resamples": 0}, "needs draws, and a confidence between 0 and 1; got 0 and 0.95"),
        ({"confidence": 95.0}, "needs draws, and a confidence between 0 and 1; got 2000 and 95.0"),
    ],
)
def test_an_interval_of_nothing_is_refused(options, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        outcomes.paired_bootstrap(outcomes.accuracy, LOG_ODDS, STEERED, POSITIVE, **options)


def test_a_threshold_needs_numbers():
    with pytest.raises(InvalidInput, match="finite log odds; got 1 that are not"):
        outcomes.balanced_threshold(np.array([np.nan, 1.0]), np.array([True, False]))


@every_metric
def test_the_interval_is_none_the_narrower_for_rows_that_are_there_four_times(metric):
    groups = np.tile(np.arange(60)[::-1], 4)
    repeated = [np.tile(x, 4) for x in (LOG_ODDS, STEERED, POSITIVE)]
    found = outcomes.paired_bootstrap(metric, *repeated, groups=groups, num_resamples=200)
    alone = outcomes.paired_bootstrap(metric, *(x[::-1] for x in (LOG_ODDS, STEERED, POSITIVE)), num_resamples=200)
    np.testing.assert_allclose(found, alone, rtol=1e-12)
    apart = outcomes.paired_bootstrap(metric, *repeated, num_resamples=200)
    assert apart.high - apart.low < 0.7 * (found.high - found.low)
