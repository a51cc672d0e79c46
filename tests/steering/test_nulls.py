"""Shuffled labels, and how far a statistic is from what they give."""

import numpy as np
import pytest

from lacuna.errors import InvalidInput
from lacuna.steering import Null, shuffled_labels


def test_shuffling_keeps_as_many_positive():
    positive = np.arange(10) < 3
    found = shuffled_labels(positive, 200, seed=0)
    assert found.shape == (200, 10)
    assert (found.sum(axis=1) == 3).all()
    np.testing.assert_allclose(found.mean(axis=0), 0.3, atol=0.12)  # 3.7 deviations of a share of 200
    assert (shuffled_labels(positive, 200, seed=0) == found).all()
    assert (shuffled_labels(positive, 200, seed=1) != found).any()


def test_groups_keep_one_label_each():
    groups = np.asarray([7, 7, 3, 3, 3, 9])
    positive = np.asarray([True, True, False, False, False, False])
    found = shuffled_labels(positive, 60, seed=0, groups=groups)
    assert (found[:, 0] == found[:, 1]).all()
    assert (found[:, 2:5].sum(axis=1) % 3 == 0).all()
    assert set(found.sum(axis=1)) == {1, 2, 3}  # one group of three, whichever
    with pytest.raises(InvalidInput, match=r"one label; got 1 positive of 2 in group 7"):
        shuffled_labels(np.asarray([True, False, True]), 5, seed=0, groups=np.asarray([7, 7, 8]))


def test_p_counts_what_is_as_far_from_the_mean_of_the_null_on_either_side():
    values = np.asarray([0.5, 0.6, 0.7])[:, None, None]  # mean 0.6: the null is not centred at zero
    assert Null(np.asarray([[0.6]]), values).p == 1.0
    assert Null(np.asarray([[0.1]]), values).p == 1 / 4
    assert Null(np.asarray([[0.5]]), values).p == 3 / 4
    null = Null(np.asarray([[0.8]]), values)
    np.testing.assert_allclose(null.z, (0.8 - 0.6) / 0.1)


def test_the_middle_of_a_null_with_two_humps_lies_within_them():
    humps = np.where(np.arange(1000) % 2, 0.9, -0.9)[:, None, None]
    null = Null(np.full((1, 1), 1.0), humps)
    np.testing.assert_allclose(null.middle, [[[-0.9]], [[0.9]]])
    assert null.mean + 2 * null.deviation > 1  # which no cosine can be


def test_the_maximum_pays_for_the_levels_that_were_looked_at():
    """Uniform p over many nulls of no effect: of the best of eight levels alone p is far too small."""
    random = np.random.default_rng(0)
    best, paid = [], []
    for _ in range(300):
        draws = random.normal(size=(100, 8, 1))
        null = Null(draws[0], draws[1:])
        best.append(null.p.min())
        paid.append(null.p_of_maximum()[0])
    assert np.mean(np.asarray(best) <= 0.1) > 0.4
    assert abs(np.mean(np.asarray(paid) <= 0.1) - 0.1) < 0.05  # 3 deviations


def test_where_nothing_moves_nothing_is_far():
    values = np.stack([np.full((5, 1), np.nan), np.arange(5.0)[:, None]], axis=1)
    null = Null(np.asarray([[np.nan], [2.0]]), values)
    assert null.p[0] == 1
    assert np.isnan(null.z[0])
    assert null.p_of_maximum() == 1
    assert null.p_of_maximum([0]) == 1


@pytest.mark.parametrize("levels", [[], [0, 2], [-1]])
def test_the_maximum_is_over_levels_that_there_are(levels):
    null = Null(np.zeros((2, 1)), np.random.default_rng(0).normal(size=(5, 2, 1)))
    with pytest.raises(InvalidInput, match="levels must be of those from 0 to 1, at least one of them; got"):
        null.p_of_maximum(levels)
