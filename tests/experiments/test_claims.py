"""Verdicts follow their rules: what is above a threshold, what is below, and how many seeds there must be."""

import numpy as np
import pytest

from experiments import basis_drift, gradient_spectrum, krylov_recovery, static_bases, task_scatter, trajectory_prefix
from lacuna.reports import claims
from lacuna.reports.records import Record

SEEDS = range(5)


@pytest.mark.parametrize(
    ("claim_holds", "control_holds", "num_seeds", "expected"),
    [
        (True, True, 5, "reproduced"),
        (True, False, 5, "reproduced but the control fails"),
        (False, True, 5, "not reproduced"),
        (False, False, 9, "not reproduced"),
        (True, True, 4, "not run at the paper's scale"),
    ],
)
def test_a_verdict_is_one_of_four(claim_holds, control_holds, num_seeds, expected):
    assert claims.verdict(claim_holds, control_holds, num_seeds) == expected


def test_a_spread_shows_mean_and_range():
    records = [Record("x", "mass", value, "1", {"seed": seed}) for seed, value in enumerate((0.1, 0.2, 0.6))]
    assert str(claims.spread(records, "mass")) == "0.3 (0.1 to 0.6)"
    assert str(claims.spread(records[:1], "mass")) == "0.1"
    assert str(claims.spread([], "mass")) == "not measured"
    assert claims.seeds_of(records) == [0, 1, 2]


def everywhere(name, quantity, value, **where):
    return [Record(name, quantity, value, "1", {"seed": seed, **where}) for seed in SEEDS]


@pytest.mark.parametrize(
    ("plain", "held_out", "static", "verdict"),
    [
        (0.7, 0.5, 0.2, claims.REPRODUCED),
        (0.7, 0.5, 0.3, claims.CONTROL_FAILS),
        (0.59, 0.5, 0.2, claims.NOT_REPRODUCED),
    ],
)
def test_the_rule_of_the_prefix(plain, held_out, static, verdict):
    name, config = trajectory_prefix.NAME, trajectory_prefix.PRESETS["small"]
    records = []
    for quantity, value in (
        ("plain", plain),
        ("held_out", held_out),
        ("remainder", 0.1),
        ("functional", 0.9),
        ("own_drop", 0.8),
    ):
        records += everywhere(name, quantity, value, optimiser="sgd", m=16)
    records += everywhere(name, "static", static, optimiser="sgd", basis="Krylov")
    # Nobody has the displacement that made the model forget: it is no static basis of the rule.
    records += everywhere(name, "static", 0.9, optimiser="sgd", basis="the forgetting itself")
    (row,) = trajectory_prefix.claims(records, config)
    assert row.verdict == verdict
    assert "Krylov" in row.control


@pytest.mark.parametrize(
    ("best", "prefix", "verdict"),
    [(0.3, 0.6, claims.REPRODUCED), (0.3, 0.5, claims.CONTROL_FAILS), (0.36, 0.9, claims.NOT_REPRODUCED)],
)
def test_the_rule_of_the_static_bases(best, prefix, verdict):
    name, records = static_bases.NAME, []
    masses = {"Krylov": best, "random": 1e-5, static_bases.PREFIX: prefix, "the forgetting itself": 0.9}
    for basis, mass in masses.items():
        for quantity, value in (("mass", mass), ("random_level", 1e-5)):
            records += everywhere(name, quantity, value, optimiser="sgd", basis=basis)
    (row,) = static_bases.claims(records, static_bases.PRESETS["small"])
    assert row.verdict == verdict


@pytest.mark.parametrize(
    ("overlap", "halves", "verdict"),
    [(0.2, 0.5, claims.REPRODUCED), (0.3, 0.5, claims.NOT_REPRODUCED), (0.01, 0.05, claims.CONTROL_FAILS)],
)
def test_the_rule_of_the_drift(overlap, halves, verdict):
    records = [
        *everywhere(basis_drift.NAME, "with_start", overlap, step=100),
        *everywhere(basis_drift.NAME, "split_half", halves, step=100),
        *everywhere(basis_drift.NAME, "random_level", 1e-5, step=100),
    ]
    (row,) = basis_drift.claims(records, basis_drift.PRESETS["small"])
    assert row.verdict == verdict


@pytest.mark.parametrize(
    ("descent", "adam", "verdict"),
    [
        (1e-12, 0.3, claims.REPRODUCED),
        (1e-12, 0.04, claims.CONTROL_FAILS),
        (1e-8, 0.3, claims.NOT_REPRODUCED),
        (float("nan"), 0.3, claims.NOT_REPRODUCED),
    ],
)
def test_the_rule_of_the_krylov_space(descent, adam, verdict):
    records = []
    for problem in ("quadratic", "model"):
        for optimiser, value in (("sgd", descent), ("momentum", descent), ("adam", adam)):
            records += everywhere(krylov_recovery.NAME, "outside", value, problem=problem, optimiser=optimiser, t=16)
    rows = krylov_recovery.claims(records, krylov_recovery.PRESETS["small"])
    assert [row.verdict for row in rows] == [verdict] * 2


@pytest.mark.parametrize(
    ("ratio", "p", "verdict"),
    [(3.0, 0.002, claims.REPRODUCED), (3.0, 0.02, claims.CONTROL_FAILS), (4.6, 0.002, claims.NOT_REPRODUCED)],
)
def test_the_rule_of_the_spectrum(ratio, p, verdict):
    records = []
    for point in ("multitask", "forgotten"):
        for scaling in ("raw", "normalised"):
            where = {"point": point, "scaling": scaling}
            records += everywhere(gradient_spectrum.NAME, "participation_ratio", ratio, **where)
            records += everywhere(gradient_spectrum.NAME, "p_value", p, **where)
    rows = gradient_spectrum.claims(records, gradient_spectrum.PRESETS["small"])
    assert [row.verdict for row in rows] == [verdict] * 4


def gradients_of_tasks(strengths, noise, *, num_batches=8, size=3000, seed=0):
    """Minibatch gradients whose task means differ along as many orthogonal directions as there are strengths."""
    rng = np.random.default_rng(seed)
    num_tasks = 9
    directions = np.linalg.qr(rng.normal(size=(size, len(strengths))))[0].T
    places = np.linalg.qr(rng.normal(size=(num_tasks, len(strengths))) - 0)[0]
    places = places - places.mean(axis=0)
    means = (places * strengths) @ directions
    labels = np.repeat(np.arange(num_tasks), num_batches)
    half = np.tile(np.arange(num_batches) % 2, num_tasks)
    rows = means[labels] + noise * rng.normal(size=(len(labels), size)) / np.sqrt(size)
    return rows @ rows.T, labels, half


def test_the_scatter_between_tasks_has_as_many_directions_as_were_planted():
    gram, labels, half = gradients_of_tasks([1.0, 1.0, 1.0], noise=0.3)
    values = task_scatter.between_tasks(gram, labels, half)
    assert np.sum(values > 0.3 * values[0]) == 3
    assert np.abs(values[3:]).max() < 0.05 * values[0]


def test_without_differences_between_tasks_the_noise_cancels_and_permutations_agree():
    rng = np.random.default_rng(1)
    totals, exceeded = [], []
    for seed in range(20):
        gram, labels, half = gradients_of_tasks([1e-9], noise=1.0, seed=seed)
        total = task_scatter.between_tasks(gram, labels, half).sum()
        null = [
            task_scatter.between_tasks(gram, task_scatter.permuted(labels, half, rng), half).sum()
            for _ in range(50)
        ]
        totals.append(total)
        exceeded.append(np.mean(np.asarray(null) >= total))
    assert abs(np.mean(totals)) < 4 * np.std(totals) / np.sqrt(20)
    assert 0.3 < np.mean(exceeded) < 0.7


def test_a_permutation_keeps_the_halves():
    labels, half = np.repeat(np.arange(3), 4), np.tile([0, 1], 6)
    shuffled = task_scatter.permuted(labels, half, np.random.default_rng(0))
    for h in (0, 1):
        np.testing.assert_array_equal(np.sort(shuffled[half == h]), np.sort(labels[half == h]))
    assert np.any(shuffled != labels)
