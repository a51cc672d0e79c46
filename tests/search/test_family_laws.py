"""Families beside the Gaussian one: their moments, their units, and the bits of their scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry, keys, meshes
from lacuna.errors import InvalidInput, RunMismatch, TreeMismatch
from lacuna.search import (
    Candidate,
    Sweep,
    candidate,
    gaussian,
    in_basis,
    low_rank,
    rademacher,
    relative_scales,
    rescore,
    run_sweep,
    scaled,
    score,
)

NUM_DRAWS = 8192
RNG = np.random.default_rng(0)
POINT = {
    "layers": jnp.asarray(RNG.normal(size=(2, 3, 2)), jnp.float32),
    "w": jnp.asarray(RNG.normal(size=3), jnp.float32),
}
GRADIENT = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), POINT)


def stacked(name):
    return name == "layers"


def basis_of(seed=1):
    """Rank 3 in four rows: the last is the sum of two others."""
    rows = np.random.default_rng(seed).normal(size=(4, 15))
    rows[3] = rows[0] + rows[1]
    return geometry.orthonormalise(jax.tree.map(jnp.asarray, oracles.like_rows(rows, POINT)))


BASIS = basis_of()
PATTERNS = {"layers": [2.0, 0.5], ".*": 3.0}
FAMILIES = {
    "gaussian": gaussian(stacked=stacked),
    "rademacher": rademacher(stacked=stacked),
    "low rank": low_rank(2, stacked=stacked),
    "basis": in_basis(BASIS, block=4, stacked=stacked),
    "scaled": scaled(gaussian(stacked=stacked), PATTERNS),
    "scaled basis": scaled(in_basis(BASIS, block=4, stacked=stacked), PATTERNS),
    "relative": scaled(rademacher(stacked=stacked), relative_scales(POINT, stacked=stacked)),
}


def covariance_by_definition(name):
    scales = {"layers": np.float64([2, 0.5]), "w": np.float64(3)}
    if name == "relative":
        layers, w = (np.asarray(POINT[leaf], np.float64) for leaf in ("layers", "w"))
        scales = {"layers": np.sqrt(np.mean(layers**2, axis=(1, 2))), "w": np.sqrt(np.mean(w**2))}
    s = np.concatenate([np.repeat(scales["layers"], 6), np.repeat(scales["w"], 3)])
    q = oracles.flat_rows(BASIS.rows)
    core = q.T @ q if "basis" in name else np.eye(15)
    return core * np.outer(s, s) if name in ("scaled", "scaled basis", "relative") else core


def sample(family, num_draws=NUM_DRAWS):
    each = jax.vmap(lambda i: keys.candidate(keys.root(7), i))(jnp.arange(num_draws))
    return oracles.flat_rows(jax.jit(lambda of: family.draws(of, POINT))(each))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_covariance_is_that_of_the_draws(name):
    known, draws = covariance_by_definition(name), sample(FAMILIES[name])
    measured = draws.T @ draws / NUM_DRAWS
    # Low-rank products of rank 2 have a kurtosis of six, so their squares spread by the root of five.
    spread = (2.5 if name == "low rank" else 2) * np.sqrt(np.outer(np.diag(known), np.diag(known)) / NUM_DRAWS)
    assert np.all(np.abs(measured - known) <= 5 * spread + 1e-6)
    applied = oracles.flat(FAMILIES[name].covariance(GRADIENT))
    np.testing.assert_allclose(applied, known @ oracles.flat(GRADIENT), rtol=1e-4, atol=1e-5)
    norms = FAMILIES[name].square_norms(POINT)
    np.testing.assert_allclose(norms["layers"], np.diag(known)[:12].reshape(2, 6).sum(1), rtol=1e-5)
    np.testing.assert_allclose(norms["w"], np.diag(known)[12:].sum(), rtol=1e-5)
    np.testing.assert_allclose(FAMILIES[name].mean_square(POINT), np.trace(known), rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (31,), (5, 33), (3, 64)])
def test_signs_are_one_random_bit_a_coordinate_of_every_shape(shape):
    like = {"a": jnp.zeros(shape), "b": jnp.zeros(shape)}
    each = jax.vmap(lambda i: keys.candidate(keys.root(7), i))(jnp.arange(2048))
    draws = oracles.flat_rows(jax.jit(lambda of: rademacher().draws(of, like))(each))
    assert set(np.unique(draws)) == {-1.0, 1.0}
    gram = draws.T @ draws / 2048  # leaves, coordinates and words: none goes with another
    assert np.abs(gram - np.eye(len(gram))).max() < 6 / np.sqrt(2048)
    assert np.abs(draws.mean(0)).max() < 6 / np.sqrt(2048)


def test_low_rank_noise_has_its_rank_and_is_not_normal_along_a_rank_one_direction():
    like, direction = {"m": jnp.zeros((12, 10))}, np.full((12, 10), 120**-0.5)
    each = jax.vmap(lambda i: keys.candidate(keys.root(7), i))(jnp.arange(NUM_DRAWS))
    for rank in (1, 3):
        draws = np.asarray(jax.jit(lambda of, rank=rank: low_rank(rank).draws(of, like))(each)["m"], np.float64)
        assert {np.linalg.matrix_rank(m, tol=1e-4) for m in draws[:50]} == {rank}
        along = np.sum(draws * direction, axis=(1, 2))
        kurtosis = np.mean(along**4) / np.mean(along**2) ** 2
        # u A B v is a sum of `rank` products of two normals, each of kurtosis nine.
        np.testing.assert_allclose(kurtosis, 3 + 6 / rank, rtol=0.3)


def test_draws_in_a_basis_of_lower_rank_than_rows_lie_in_its_span_with_normal_coefficients():
    assert int(BASIS.rank) == 3
    q, draws = oracles.flat_rows(BASIS.rows)[:3], sample(FAMILIES["basis"])
    assert min(oracles.capture_mass(q, d) for d in draws[:200]) > 1 - 1e-6
    coefficients = draws @ q.T
    np.testing.assert_allclose(coefficients.T @ coefficients / NUM_DRAWS, np.eye(3), atol=5 * np.sqrt(2 / NUM_DRAWS))
    np.testing.assert_allclose(np.mean(coefficients**4, axis=0), 3, atol=5 * np.sqrt(96 / NUM_DRAWS))


def test_what_cannot_be_a_basis_or_a_scale_is_refused():
    other = {"layers": POINT["layers"], "w": jnp.zeros(4)}
    with pytest.raises(TreeMismatch, match="`w`"):
        FAMILIES["basis"].draw(keys.root(0), other)
    with pytest.raises(InvalidInput, match="at least one row; got rank 0"):
        in_basis(geometry.empty(POINT, capacity=2))
    with pytest.raises(InvalidInput, match="block must be at least 2; got 1"):
        in_basis(BASIS, block=1)
    for width in (3, 4):
        with pytest.raises(InvalidInput, match="width must divide the family's block of 4"):
            Sweep(FAMILIES["basis"], (0.1,), 8, width=width)
    for scales in ({"(": 1.0}, {"w": -1.0}, {"w": float("nan")}, {"w": 0.0}, {"w": "x"}):
        with pytest.raises(InvalidInput):
            scaled(gaussian(), scales)
    with pytest.raises(InvalidInput, match=r"`head/\.\*` beside layers, w"):
        scaled(gaussian(), {"head/.*": 1.0}).check(POINT)
    with pytest.raises(InvalidInput, match="must fit leaf `layers`; got 3 for 2 layers"):
        scaled(gaussian(stacked=stacked), {"layers": [1.0, 2.0, 3.0]}).check(POINT)


def test_the_first_pattern_counts_and_what_none_matches_stays_to_the_bit():
    sweep = Sweep(scaled(gaussian(stacked=stacked), {"lay.*": [0.0, 2.0], "layers": 9.0}), (0.1,), 4)
    moved = candidate(POINT, sweep, 1, 0.1)
    plain = candidate(POINT, dataclasses.replace(sweep, family=gaussian(stacked=stacked)), 1, 0.1)
    assert oracles.bits(moved["w"]) == oracles.bits(POINT["w"])
    assert oracles.bits(moved["layers"][0]) == oracles.bits(POINT["layers"][0])
    twice = 2 * (plain["layers"][1] - POINT["layers"][1])
    np.testing.assert_allclose(moved["layers"][1] - POINT["layers"][1], twice, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exact_radius_is_every_length_and_a_root_mean_square_one_their_mean(name):
    nowhere = jax.tree.map(jnp.zeros_like, POINT)
    sweep = Sweep(FAMILIES[name], (0.5,), 2, unit="exact_radius")
    for i in range(3):
        length = np.linalg.norm(oracles.flat(candidate(nowhere, sweep, i, 0.5)))
        np.testing.assert_allclose(length, 0.5, rtol=1e-6)
    scale = dataclasses.replace(sweep, unit="rms_radius").scale(nowhere)
    rms = 0.5 * scale * np.sqrt(np.mean(np.sum(sample(FAMILIES[name]) ** 2, axis=1)))
    np.testing.assert_allclose(rms, 0.5, rtol=0.05)


def table(sweep, num_devices, **options):
    mesh = meshes.candidate_mesh(jax.devices()[:num_devices])
    return run_sweep(problems.linear_loss, POINT, GRADIENT, sweep, mesh=mesh, **options)


@pytest.mark.parametrize("unit", ["sigma", "exact_radius"])
@pytest.mark.parametrize("name", ["rademacher", "low rank", "scaled basis", "relative"])
def test_every_family_scores_the_same_bits_on_any_devices_and_alone(name, unit):
    sweep = Sweep(FAMILIES[name], (0.1, 0.4), 13, seed=3, unit=unit)
    whole = table(sweep, 8)
    for num_devices, chunk in ((1, 3), (2, 10)):
        assert table(dataclasses.replace(sweep, chunk=chunk), num_devices).sha256 == whole.sha256
    every = tuple(Candidate(i, s, sign, 0.0) for i in range(13) for s in sweep.sigmas for sign in (1, -1))
    again = rescore(problems.linear_loss, POINT, GRADIENT, sweep, every)
    np.testing.assert_array_equal(again.reshape(whole.scores.shape), whole.scores)
    alone = [score(problems.linear_loss, candidate(POINT, sweep, *c[:3]), GRADIENT) for c in every]
    np.testing.assert_array_equal(np.reshape(alone, whole.scores.shape), whole.scores)


def test_a_run_that_ended_within_a_block_goes_on_with_the_same_bits_and_refuses_others(tmp_path):
    sweep = Sweep(FAMILIES["scaled basis"], (0.1,), 13, seed=3)
    table(dataclasses.replace(sweep, num_candidates=6), 2, out=tmp_path)
    assert table(sweep, 1, out=tmp_path, resume=True).sha256 == table(sweep, 8).sha256
    others = {
        "family_digest": scaled(in_basis(basis_of(2), block=4, stacked=stacked), PATTERNS),
        "family_digest)": scaled(in_basis(BASIS, block=4, stacked=stacked), PATTERNS | {".*": 1.0}),
        "unit": None,
    }
    for differing, family in others.items():
        other = dataclasses.replace(sweep, unit="rms_radius")
        other = other if family is None else dataclasses.replace(sweep, family=family)
        with pytest.raises(RunMismatch) as raised:
            table(other, 2, out=tmp_path, resume=True)
        assert differing in str(raised.value)


@pytest.mark.parametrize("width", [4, 32])
def test_the_winners_are_the_same_at_any_width(width):
    sweep = Sweep(gaussian(stacked=stacked), (0.1, 0.4), 64, seed=3)
    assert table(dataclasses.replace(sweep, width=width), 2).top_k == table(sweep, 2).top_k
