"""The winner and the best-of-N curve against sorting and listing everything."""

import math
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
from hypothesis import given, settings

from lacuna.search import expected_best, measured_curves, subset_sizes
from lacuna.search.select import TopK

CASES = settings(max_examples=60, deadline=None, derandomize=True, database=None)
FEW_VALUES = st.sampled_from([-2.0, -1.5, 0.0, 0.25, 3.0])  # so that ties are common
LOSSES = st.one_of(FEW_VALUES, st.sampled_from([np.nan, np.inf, -np.inf]))
GAINS = st.lists(st.one_of(LOSSES, st.floats(-10, 10, width=32)), min_size=1, max_size=8)
SIGMAS = (0.1, 0.2, 0.4)


@CASES
@given(GAINS)
def test_expected_best_is_the_mean_over_all_subsets(gains):
    listed = [oracles.mean_of_best(gains, size) for size in range(1, len(gains) + 1)]
    np.testing.assert_allclose(expected_best(np.float32(gains)), listed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7, 60, 500, 1500, 1999, 2000])
def test_expected_best_has_the_weights_of_the_order_statistics(size):
    n, log_factorial = 2000, np.vectorize(math.lgamma)
    gains = np.random.default_rng(1).normal(size=n)
    below = np.arange(n)  # the i-th smallest is the largest of C(i, size - 1) subsets
    log_subsets = np.where(
        below >= size - 1, log_factorial(below + 1.0) - log_factorial(np.maximum(below - size + 2.0, 1)), -np.inf
    )
    weights = np.exp(log_subsets - log_subsets.max())
    known = weights @ np.sort(gains) / weights.sum()
    np.testing.assert_allclose(expected_best(gains, np.array([size])), known, rtol=1e-9)


def test_expected_best_rises_with_the_number_of_draws_up_to_the_maximum():
    gains = np.random.default_rng(0).normal(size=100_000)
    curve = expected_best(gains)
    assert np.all(np.diff(curve) > 0)
    np.testing.assert_allclose(curve[[0, -1]], [gains.mean(), gains.max()], rtol=1e-9)


def test_expected_best_is_exact_at_a_million_draws():
    n, sizes = 10**6, np.concatenate([subset_sizes(10**6), [999_999]])
    known = sizes * (n + 1) / (sizes + 1)  # the largest of N' numbers out of 1, ..., n
    np.testing.assert_allclose(expected_best(np.arange(1.0, n + 1), sizes), known, rtol=1e-11)


def test_there_is_no_best_of_more_draws_than_there_are():
    np.testing.assert_array_equal(expected_best(np.float32([5, 1]), np.array([2, 3])), [5, np.nan])


@CASES
@given(st.lists(st.tuples(*[LOSSES] * 6), min_size=1, max_size=6), st.booleans())
def test_measured_curves_are_those_of_each_sigma_and_sign(rows, antithetic):
    table = np.asarray(rows, np.float32).reshape(-1, 3, 2)
    table = table if antithetic else table[..., :1]
    curves = measured_curves(1.0, table)
    assert list(curves) == (["+", "-", "both"] if antithetic else ["+"])
    for sign, found in curves.items():
        for j in range(3):
            of_draw = 1.0 - table[:, j, 1 if sign == "-" else 0].astype(np.float64)
            if sign == "both":
                both = [[1 - float(loss) for loss in pair if np.isfinite(loss)] for pair in table[:, j]]
                of_draw = [max(pair) if pair else np.nan for pair in both]
            listed = [oracles.mean_of_best(of_draw, size) for size in range(1, len(table) + 1)]
            np.testing.assert_allclose(found[:, j], listed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 100, 5_000, 10**7])
def test_subset_sizes_run_from_one_to_n_in_even_steps_of_the_logarithm(n):
    sizes = subset_sizes(n)
    assert sizes[0] == 1
    assert sizes[-1] == n
    assert np.all(np.diff(sizes) > 0)
    assert np.all(sizes[1:] <= np.maximum(2 * sizes[:-1], sizes[:-1] + 1))


def top(k, table, cuts, order):
    """The K best of a table that comes in blocks cut at `cuts`, in any order."""
    starts = [0, *sorted({c for c in cuts if 0 < c < len(table)}), len(table)]
    blocks = list(pairwise(starts))
    order.shuffle(blocks)
    kept = TopK(k)
    for start, stop in blocks:
        kept.add(start, table[start:stop])
    return kept.best(SIGMAS, table.shape[2])


@CASES
@given(
    st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(LOSSES, min_size=6, max_size=6), min_size=n, max_size=n)),
    st.integers(1, 20),
    st.lists(st.integers(1, 11)),
    st.randoms(use_true_random=False),
)
def test_top_k_equals_a_full_sort_for_any_blocks_in_any_order(rows, k, cuts, order):
    table = np.asarray(rows, np.float32).reshape(-1, 3, 2)
    assert [tuple(c) for c in top(k, table, cuts, order)] == oracles.full_sort(table, SIGMAS, k)


def test_ties_go_to_the_lower_index_then_the_smaller_sigma_then_plus():
    kept = TopK(5)
    kept.add(4, np.zeros((1, 3, 2), np.float32))
    kept.add(2, np.zeros((1, 3, 2), np.float32))
    best = [tuple(c[:3]) for c in kept.best(SIGMAS, 2)]
    assert best == [(2, 0.1, 1), (2, 0.1, -1), (2, 0.2, 1), (2, 0.2, -1), (2, 0.4, 1)]


def test_an_empty_block_adds_nothing():
    kept = TopK(3)
    kept.add(7, np.zeros((0, 3, 2), np.float32))
    assert kept.best(SIGMAS, 2) == ()
