"""Hessian products and Hutchinson's trace on quadratics whose Hessian was planted."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import derivatives, keys
from lacuna.errors import InvalidInput

CURVED = problems.quadratic(200, trace=30.0)
MATRIX = jnp.asarray(np.random.default_rng(5).normal(size=(12, 30)), jnp.float32)


def dense_loss(params, matrix):
    """`|matrix x|^2 / 2` over two leaves: the Hessian is `matrix^T matrix`, far from diagonal."""
    x = jnp.concatenate([params["a"], params["b"].ravel()])
    return jnp.sum(jnp.square(matrix @ x)) / 2


DENSE_PARAMS = {"a": jnp.ones(10), "b": jnp.ones((4, 5))}


def test_hvp_of_a_diagonal_quadratic_is_exact():
    loss, params, batch = CURVED.problem
    delta = jax.tree.map(lambda p: jnp.ones_like(p) * 2, params)
    product = derivatives.hvp(loss, params, batch)(delta)
    assert oracles.bits(product) == oracles.bits(jax.tree.map(lambda h: 2 * h, batch[1]))


def test_hvp_of_a_dense_quadratic_equals_the_matrix_product():
    delta = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), DENSE_PARAMS)
    product = derivatives.hvp(dense_loss, DENSE_PARAMS, MATRIX)(delta)
    wide = np.asarray(MATRIX, np.float64)
    np.testing.assert_allclose(oracles.flat(product), wide.T @ (wide @ oracles.flat(delta)), rtol=1e-4, atol=1e-4)


def test_the_trace_of_a_diagonal_hessian_is_exact_and_says_so():
    loss, params, batch = CURVED.problem
    trace = derivatives.hutchinson_trace(derivatives.hvp(loss, params, batch), params, keys.root(0), num_probes=3)
    np.testing.assert_allclose(trace.mean, CURVED.trace, rtol=1e-6)
    assert trace.standard_error < 1e-6 * CURVED.trace


def test_the_trace_of_a_dense_hessian_lies_within_three_of_its_own_errors():
    operator = derivatives.hvp(dense_loss, DENSE_PARAMS, MATRIX)
    hessian = np.asarray(MATRIX, np.float64).T @ np.asarray(MATRIX, np.float64)
    trace = derivatives.hutchinson_trace(operator, DENSE_PARAMS, keys.root(1), num_probes=400)
    assert abs(trace.mean - np.trace(hessian)) < 3 * trace.standard_error
    off_diagonal = np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2)
    np.testing.assert_allclose(trace.of_square, np.sum(hessian**2), rtol=0.05)
    # The spread of 400 probes estimates sqrt(2 sum_{i != j} H_ij^2) to about 4 %; 15 % is generous.
    np.testing.assert_allclose(trace.standard_error, np.sqrt(2 * off_diagonal / 400), rtol=0.15)


@pytest.mark.parametrize("num_probes", [0, 1])
def test_a_trace_without_an_error_is_refused(num_probes):
    with pytest.raises(InvalidInput, match=f"num_probes must be at least 2; got {num_probes}"):
        derivatives.hutchinson_trace(lambda d: d, DENSE_PARAMS, keys.root(0), num_probes=num_probes)
