"""Bases of a task: each against numpy in float64 on a regression whose gradients and Hessian are known."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from lacuna import geometry
from lacuna.captures import BasisSpec, task_basis
from lacuna.errors import GeometryError, InvalidInput, NotFinite

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(40, 6, 5)).astype(np.float32), RNG.normal(size=(40, 6)).astype(np.float32)
PARAMS = {"bias": jnp.float32(0.3), "weights": jnp.asarray(RNG.normal(size=5), jnp.float32)}


def batches(step):
    return jnp.asarray(INPUTS)[step], jnp.asarray(TARGETS)[step]


def loss(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params["weights"] + params["bias"] - targets) ** 2) / 2


def design(step):
    """Rows of the regression, the bias in front: the order of the leaves."""
    return np.concatenate([np.ones((6, 1)), INPUTS[step].astype(np.float64)], axis=1)


def slope(point, step):
    return design(step).T @ (design(step) @ point - TARGETS[step]) / 6


def projector(rows):
    q = np.linalg.qr(np.asarray(rows).T)[0]
    return q @ q.T


def check_spans(basis, rows):
    """The basis spans the rows and nothing else."""
    found = oracles.flat_rows(basis.rows)[: int(basis.rank)]
    assert len(found) == len(rows)
    np.testing.assert_allclose(found.T @ found, projector(rows), atol=2e-5)


def test_gradient_basis_has_the_leading_directions_of_the_batches_at_its_steps():
    spec = BasisSpec("gradient", rank=3, num_batches=5, first_step=7)
    gradients = np.stack([slope(oracles.flat(PARAMS), step) for step in spec.steps])
    leading = np.linalg.svd(gradients)[2][:3]
    check_spans(task_basis(spec, loss, PARAMS, batches), leading)


def test_krylov_basis_is_of_the_hessian_from_the_gradient():
    spec = BasisSpec("krylov", rank=3, first_step=4)
    vector, hessian, rows = slope(oracles.flat(PARAMS), 4), design(4).T @ design(4) / 6, []
    for _ in range(3):
        rows.append(vector)
        vector = hessian @ vector
    check_spans(task_basis(spec, loss, PARAMS, batches), rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prefix_basis_spans_the_first_updates_of_a_training(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    point, rows = oracles.flat(params), []
    for step in range(10, 13):
        rows.append(-1e-3 * slope(point, step))
        point = point + rows[-1]
    spec = BasisSpec("prefix", rank=3, first_step=10, optimiser="sgd", learning_rate=1e-3)
    check_spans(task_basis(spec, loss, params, batches), rows)


def test_random_basis_needs_no_task_and_depends_on_the_seed_alone():
    one, same, other = (task_basis(BasisSpec("random", rank=2), None, PARAMS, None, seed=s) for s in (1, 1, 2))
    assert oracles.bits(one.rows) == oracles.bits(same.rows)
    assert float(geometry.overlap(one, other)) < 0.99


@pytest.mark.parametrize("kind", ["gradient", "krylov", "prefix"])
def test_a_basis_reads_the_batches_at_its_steps_alone(kind):
    spec = BasisSpec(kind, rank=2, first_step=3)

    def poisoned(step):
        seen = (step >= spec.steps.start) & (step < spec.steps.stop)
        return jax.tree.map(lambda leaf: jnp.where(seen, leaf, jnp.nan), batches(step))

    clean, again = (task_basis(spec, loss, PARAMS, stream) for stream in (batches, poisoned))
    assert oracles.bits(clean) == oracles.bits(again)


def test_rank_and_status_tell_of_dependent_gradients():
    basis = task_basis(BasisSpec("gradient", rank=4), loss, PARAMS, lambda step: batches(0 * step))
    assert int(basis.rank) == 1
    assert int(basis.status) & geometry.Status.DEPENDENT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "random", "rank": 0}, "rank of a basis must be at least 1"),
        ({"kind": "gradient", "rank": 4, "num_batches": 3}, "got 3 batches for rank 4"),
        ({"kind": "krylov", "first_step": -1}, "must not be negative"),
        ({"kind": "prefix", "learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_what_cannot_be_made_is_told_at_once(settings, message):
    with pytest.raises(InvalidInput, match=message):
        BasisSpec(**settings)


@pytest.mark.parametrize("kind", ["gradient", "krylov", "prefix"])
def test_a_basis_of_a_task_without_one_is_refused(kind):
    with pytest.raises(InvalidInput, match=f"a {kind} basis needs a task"):
        task_basis(BasisSpec(kind), None, PARAMS, batches)
    with pytest.raises(InvalidInput, match=f"a {kind} basis needs a task"):
        task_basis(BasisSpec(kind), loss, PARAMS, None)


def test_a_training_that_diverges_is_no_basis():
    spec = BasisSpec("prefix", rank=30, optimiser="sgd", learning_rate=1e30)
    with pytest.raises(NotFinite, match="smaller learning rate"):
        task_basis(spec, loss, PARAMS, batches)


def test_gradients_that_are_not_finite_are_no_basis():
    spoiled = {**PARAMS, "bias": jnp.float32(jnp.nan)}
    for kind in ("gradient", "krylov"):
        with pytest.raises(GeometryError, match="finite"):
            task_basis(BasisSpec(kind, rank=2), loss, spoiled, batches)
