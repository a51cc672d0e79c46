"""Slope and curvature of planted quadratics, as the theory will use them."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from lacuna.errors import InvalidInput
from lacuna.search import landscape
from lacuna.types import Objective

CURVED = problems.quadratic(300, gradient_norm=2.5, trace=40.0)


def test_a_planted_quadratic_is_measured():
    loss, params, batch = CURVED.problem
    found = landscape(Objective(loss), params, batch, num_probes=2)
    np.testing.assert_allclose(found.gradient_norm, 2.5, rtol=1e-5)
    np.testing.assert_allclose(found.gradient_curvature, CURVED.gradient_curvature, rtol=1e-5)
    np.testing.assert_allclose(found.curvature_trace, CURVED.trace, rtol=1e-5)
    assert found.curvature_trace_error < 1e-4
    assert found.params_norm == 0
    assert found.num_params == 300


def test_the_gradient_is_taken_at_the_point():
    loss, params, (gradient, curvature) = CURVED.problem
    point = jax.tree.map(jnp.ones_like, params)
    found = landscape(loss, point, (gradient, curvature), num_probes=2)
    there = np.concatenate([np.ravel(g + h) for g, h in zip(*map(jax.tree.leaves, (gradient, curvature)), strict=True)])
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(there), rtol=1e-5)
    np.testing.assert_allclose(found.params_norm, np.sqrt(300), rtol=1e-6)


def test_a_vanishing_gradient_has_no_curvature_along_it():
    loss, params, (gradient, curvature) = CURVED.problem
    found = landscape(loss, params, (jax.tree.map(jnp.zeros_like, gradient), curvature), num_probes=2)
    assert found.gradient_norm == 0
    assert found.gradient_curvature == 0
    np.testing.assert_allclose(found.curvature_trace, CURVED.trace, rtol=1e-5)


def leaning(params, batch):
    """Not diagonal: the probes of the trace disagree, so their seed shows."""
    return jnp.square(jnp.sum(params["w"] * batch)) + jnp.sum(params["w"])


def test_the_trace_depends_on_the_seed_within_its_error():
    params, batch = {"w": jnp.zeros(40)}, jnp.linspace(0.5, 1, 40)
    one, again, other = (landscape(leaning, params, batch, seed=s, num_probes=64) for s in (0, 0, 1))
    assert one == again
    assert one.curvature_trace != other.curvature_trace
    trace = 2 * float(jnp.sum(batch**2))
    for found in (one, other):
        assert abs(found.curvature_trace - trace) < 3 * found.curvature_trace_error


def test_a_landscape_without_an_error_of_its_trace_is_refused():
    with pytest.raises(InvalidInput, match="num_probes must be at least 2; got 1"):
        landscape(*CURVED.problem, num_probes=1)
