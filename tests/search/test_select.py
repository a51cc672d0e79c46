"""The winner and the best-of-N curve against sorting and listing everything."""

from itertools import combinations, pairwise

import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
from hypothesis import given, settings

from lacuna.search import expected_best, subset_sizes
from lacuna.search.select import TopK

CASES = settings(max_examples=60, deadline=None, derandomize=True, database=None)
FEW_VALUES = st.sampled_from([-2.0, -1.5, 0.0, 0.25, 3.0])  # so that ties are common
GAINS = st.lists(st.one_of(FEW_VALUES, st.floats(-10, 10, width=32)), min_size=1, max_size=9)
LOSSES = st.one_of(FEW_VALUES, st.sampled_from([np.nan, np.inf, -np.inf]))
SIGMAS = (0.1, 0.2, 0.4)


@CASES
@given(GAINS)
def test_expected_best_is_the_mean_over_all_subsets(gains):
    sizes = np.arange(1, len(gains) + 1)
    listed = [oracles.mean_of_best(gains, size) for size in sizes]
    curve = expected_best(np.float32(gains), sizes)
    np.testing.assert_allclose(curve, listed, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(curve[[0, -1]], [np.mean(gains), max(gains)], rtol=1e-12, atol=1e-12)


def test_expected_best_rises_with_the_number_of_draws_up_to_the_maximum():
    gains = np.random.default_rng(0).normal(size=20_000)
    curve = expected_best(gains, subset_sizes(20_000))
    assert np.all(np.diff(curve) > 0)
    np.testing.assert_allclose(curve[[0, -1]], [gains.mean(), gains.max()], rtol=1e-9)


def test_expected_best_is_exact_at_a_million_draws():
    n, sizes = 10**6, subset_sizes(10**6)[::8]
    known = sizes * (n + 1) / (sizes + 1)  # the largest of N' numbers out of 1, ..., n
    np.testing.assert_allclose(expected_best(np.arange(1.0, n + 1), sizes), known, rtol=1e-9)


def test_a_draw_without_a_finite_gain_takes_part_and_never_wins():
    gains = np.float32([1, np.nan, 5, -np.inf, 3, np.inf])
    # Of the 15 pairs, 3 hold no finite gain; 9 hold 5 or 3 with a lost one or 1, 3 hold 1 with a lost one.
    pairs = [max(a, b) for a, b in combinations([1, 3, 5, -9, -9, -9], 2) if max(a, b) > 0]
    listed = [3, np.mean(pairs)]
    np.testing.assert_allclose(expected_best(gains, np.arange(1, 3)), listed)
    np.testing.assert_allclose(expected_best(gains, np.array([6, 7])), [5, np.nan])
    assert np.isnan(expected_best(np.float32([np.nan]), np.array([1]))).all()


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
