"""Slope and curvature of planted quadratics, as the theory will use them."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from lacuna import geometry, keys
from lacuna.errors import InvalidInput
from lacuna.search import LeafFamily, Sweep, gaussian, in_basis, landscape, low_rank, rademacher, scaled
from lacuna.types import Objective

SWEEP = Sweep(gaussian(), (0.1,), 8)
CURVED = problems.quadratic(300, gradient_norm=2.5, trace=40.0)


def test_a_planted_quadratic_is_measured():
    loss, params, batch = CURVED.problem
    found = landscape(Objective(loss), params, batch, SWEEP, num_probes=2)
    np.testing.assert_allclose(found.gradient_norm, 2.5, rtol=1e-5)
    np.testing.assert_allclose(found.curvature_along, CURVED.gradient_curvature, rtol=1e-5)
    np.testing.assert_allclose(found.curvature_trace, CURVED.trace, rtol=1e-5)
    assert found.curvature_trace_error < 1e-4
    squares = sum(float(jnp.sum(leaf.astype(jnp.float32) ** 2)) for leaf in jax.tree.leaves(batch[1]))
    np.testing.assert_allclose(found.curvature_spread, np.sqrt(2 * squares), rtol=1e-5)
    assert found.params_norm == 0
    assert found.num_params == 300


def test_the_gradient_is_taken_at_the_point():
    loss, params, (gradient, curvature) = CURVED.problem
    point = jax.tree.map(jnp.ones_like, params)
    found = landscape(loss, point, (gradient, curvature), SWEEP, num_probes=2)
    there = np.concatenate([np.ravel(g + h) for g, h in zip(*map(jax.tree.leaves, (gradient, curvature)), strict=True)])
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(there), rtol=1e-5)
    np.testing.assert_allclose(found.params_norm, np.sqrt(300), rtol=1e-6)


def test_a_vanishing_gradient_has_no_curvature_along_it():
    loss, params, (gradient, curvature) = CURVED.problem
    found = landscape(loss, params, (jax.tree.map(jnp.zeros_like, gradient), curvature), SWEEP, num_probes=2)
    assert found.gradient_norm == found.slope == 0
    assert found.curvature_along == 0
    np.testing.assert_allclose(found.curvature_trace, CURVED.trace, rtol=1e-5)


def leaning(params, batch):
    """Not diagonal: the probes of the trace disagree, so their seed shows."""
    return jnp.square(jnp.sum(params["w"] * batch)) + jnp.sum(params["w"])


def test_the_trace_depends_on_the_seed_within_its_error():
    params, batch = {"w": jnp.zeros(40)}, jnp.linspace(0.5, 1, 40)
    one, again, other = (landscape(leaning, params, batch, SWEEP, seed=s, num_probes=64) for s in (0, 0, 1))
    assert one == again
    assert one.curvature_trace != other.curvature_trace
    trace = 2 * float(jnp.sum(batch**2))
    for found in (one, other):
        assert abs(found.curvature_trace - trace) < 3 * found.curvature_trace_error


def test_every_probe_is_told():
    told = []
    landscape(*CURVED.problem, SWEEP, num_probes=3, progress=lambda *numbers: told.append(numbers))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_landscape_without_an_error_of_its_trace_is_refused():
    with pytest.raises(InvalidInput, match="num_probes must be at least 2; got 1"):
        landscape(*CURVED.problem, SWEEP, num_probes=1)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("unit", ["sigma", "rms_radius", "exact_radius"])
@pytest.mark.parametrize("kind", ["basis", "scaled", "all"])
def test_slope_and_curvature_are_those_along_the_noise_in_the_unit_of_sigma(kind, unit):
    """By the definitions, on a diagonal Hessian: `|A^T a|`, `tr(A^T H A)` and the curvature along `A A^T a`."""
    loss, params, batch = CURVED.problem
    a, h = map(flat, batch)
    basis = geometry.random_basis(keys.root(2), params, rank=7)
    scales = {"blocks/.*": 2.0, "head/kernel": 0.5}
    stretch = np.concatenate(
        [[0.0], np.full(2 * params["blocks"][0].size, 2.0), np.full(params["head"]["kernel"].size, 0.5)]
    )
    noise = {  # columns of A: what each coordinate of z adds
        "basis": np.stack([flat(jax.tree.map(lambda rows, i=i: rows[i], basis.rows)) for i in range(7)], axis=1),
        "scaled": np.diag(stretch),
        "all": np.eye(300),
    }[kind]
    family = {"basis": in_basis(basis), "scaled": scaled(gaussian(), scales), "all": gaussian()}[kind]
    if unit != "sigma":
        noise = noise / np.linalg.norm(noise)
    found = landscape(loss, params, batch, Sweep(family, (0.1,), 8, unit=unit), num_probes=512)
    seen = noise.T @ a
    direction = noise @ seen / np.linalg.norm(seen)
    np.testing.assert_allclose(found.slope, np.linalg.norm(seen), rtol=1e-5)
    np.testing.assert_allclose(found.curvature_along, direction @ (h * direction), rtol=1e-4)
    np.testing.assert_allclose(found.step_norm, np.linalg.norm(noise), rtol=1e-5)
    trace = np.trace(noise.T @ (h[:, None] * noise))
    assert abs(found.curvature_trace - trace) < 4 * found.curvature_trace_error + 1e-4 * trace
    assert found.gradient_norm == pytest.approx(2.5, rel=1e-5)
    sphere = {"basis": 7, "all": 300}.get(kind) if unit == "exact_radius" else None
    assert found.dimension == sphere
    assert found.unit_step == pytest.approx(np.sqrt(sphere or 1))
    # 300 dimensions are few for noise of one length, unless it is uniform on a sphere.
    assert found.is_predicted == (unit != "exact_radius" or kind != "scaled")


def test_the_theorem_is_not_about_low_rank_noise():
    assert not landscape(*CURVED.problem, Sweep(low_rank(1), (0.1,), 8), num_probes=2).is_predicted


def test_scaled_noise_of_one_length_on_few_coordinates_is_not_predicted():
    params = {"few": jnp.ones(3), "many": jnp.ones(2000)}
    subset = scaled(gaussian(), {"few": 1.0})
    assert subset.dimension(params) == 3
    assert scaled(gaussian(), {"few": 1.0, "many": 1e-6}).dimension(params) == 3
    assert scaled(gaussian(), {".*": 2.0}).dimension(params) == 2003
    for unit, is_predicted in (("sigma", True), ("exact_radius", False)):
        sweep = Sweep(subset, (0.1,), 8, unit=unit)
        found = landscape(problems.linear_loss, params, params, sweep, num_probes=2)
        assert found.is_predicted == is_predicted
        assert found.dimension is None


def test_random_signs_over_their_length_lie_on_no_sphere():
    params = {"w": jnp.ones(4000)}
    sweep = Sweep(rademacher(), (0.1,), 8, unit="exact_radius")
    found = landscape(problems.linear_loss, params, params, sweep, num_probes=2)
    assert found.is_predicted
    assert found.dimension is None


def test_random_signs_are_predicted_where_many_coordinates_take_part():
    params = {"w": jnp.ones(4000)}
    sweep = Sweep(rademacher(), (0.1,), 8)
    even, odd = jnp.ones(4000), jnp.zeros(4000).at[0].set(1.0)
    assert landscape(problems.linear_loss, params, {"w": even}, sweep, num_probes=2).is_predicted
    assert not landscape(problems.linear_loss, params, {"w": odd}, sweep, num_probes=2).is_predicted


def test_a_law_of_ones_own_is_on_a_sphere_only_if_it_says_so():
    def uniform(key, leaf_name, layer, like):
        return jax.random.uniform(keys.leaf(key, leaf_name, layer), like.shape, minval=-(3**0.5), maxval=3**0.5)

    loss, params, batch = CURVED.problem
    own = LeafFamily("uniform", "", uniform, normal=True)
    found = landscape(loss, params, batch, Sweep(own, (0.1,), 8, unit="exact_radius"), num_probes=2)
    assert found.dimension is None
    assert not found.is_predicted
