"""A sketch keeps inner products in the mean, with the spread that it says, and so captures."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems

from lacuna import geometry

DELTA, OTHER = problems.odd_vector(seed=1), problems.odd_vector(seed=2)
NEAR = jax.tree.map(lambda a, b: a + 0.5 * b, DELTA, OTHER)


def test_inner_products_have_the_mean_and_the_spread_of_the_docstring():
    size, keys = 32, jax.random.split(jax.random.key(0), 4000)
    products = jax.jit(jax.vmap(lambda key: jnp.vdot(*(geometry.Sketch(key, size)(x) for x in (DELTA, NEAR)))))(keys)
    x, y = oracles.flat(DELTA), oracles.flat(NEAR)
    bound = (x @ x * (y @ y) + (x @ y) ** 2) / size
    exact = bound - 2 * np.sum((x * y) ** 2) / size
    assert abs(products.mean() - x @ y) < 4 * np.sqrt(exact / len(keys))
    np.testing.assert_allclose(products.var(), exact, rtol=0.15)
    assert exact < bound


def test_it_is_linear_and_the_same_for_the_same_key():
    sketch = geometry.Sketch(jax.random.key(3), 64)
    np.testing.assert_allclose(sketch(NEAR), sketch(DELTA) + 0.5 * sketch(OTHER), atol=1e-5)
    again, another = geometry.Sketch(jax.random.key(3), 64), geometry.Sketch(jax.random.key(4), 64)
    np.testing.assert_array_equal(sketch(DELTA), again(DELTA))
    assert abs(oracles.correlation(sketch(DELTA), another(DELTA))) < 0.5


def test_every_place_and_sign_is_as_likely():
    """Unit vectors go to one place each; places and signs are those of independent draws."""
    size, n = 8, 4000
    sketch = geometry.Sketch(jax.random.key(5), size)
    whole = np.asarray(jax.vmap(lambda i: sketch({"x": jnp.zeros(n).at[i].set(1.0)}))(jnp.arange(n)))
    assert (np.abs(whole).sum(1) == 1).all()
    counts = np.concatenate([(whole > 0).sum(0), (whole < 0).sum(0)])
    expected = n / (2 * size)
    assert np.sum((counts - expected) ** 2 / expected) < 40  # chi-square with 15 degrees: p = 0.0005


def test_captures_of_sketches_are_those_of_the_vectors():
    k, size = 8, 4096
    rng = np.random.default_rng(0)
    rows = {"w": jnp.asarray(rng.normal(size=(k, 200, 150)), jnp.float32)}
    inside = np.einsum("k,kij->ij", rng.normal(size=k), rows["w"])
    delta = {"w": jnp.asarray(inside / 3 + rng.normal(size=inside.shape), jnp.float32)}
    sketch = geometry.Sketch(jax.random.key(0), size)
    true = np.asarray(geometry.prefix_captures(rows, delta))
    found = np.asarray(geometry.prefix_captures(jax.vmap(sketch)(rows), sketch(delta)))
    level = (1 - true) * np.arange(1, k + 1) / size
    assert 0.1 < true[-1] < 0.9
    np.testing.assert_allclose(found, true + level, atol=4 / size**0.5)
    shuffled = sketch({"w": jnp.asarray(rng.normal(size=inside.shape), jnp.float32)})
    assert geometry.prefix_captures(jax.vmap(sketch)(rows), shuffled)[-1] < 5 * k / size
