"""Gram matrices of vectors that never lie side by side: exact ones equal numpy's, sketched ones do in the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import geometry, trees
from lacuna.errors import GeometryError
from lacuna.geometry.streamed import products_by_part, sketch_by_group

N = 7
ROWS = problems.odd_rows(N)


def of_rows(rows, asked=None):
    """`gradient(i)` of stacked rows, which notes what it was asked for."""

    def gradient(i):
        if asked is not None:
            asked.append(i)
        return jax.tree.map(lambda x: x[i], rows)

    return gradient


def is_stacked(name):
    return name == "stacked"


def by_layer(name, layer):
    return "rest" if layer is None else layer


def oracle(rows, name=None, layer=None):
    """Inner products in float64 of whole rows, or of one leaf, or of one layer of it."""
    if name is not None:
        rows = [leaf if layer is None else leaf[:, layer] for own, leaf in trees.named_leaves(rows) if own == name]
    matrix = oracles.flat_rows(rows)
    return matrix @ matrix.T


@pytest.mark.parametrize("block", [1, 2, 3, 6, 7, 50])
def test_the_exact_matrix_is_that_of_all_rows_together_whatever_the_block(block):
    found = geometry.streamed_gram(of_rows(ROWS), N, block=block)
    assert found.groups == ("",)
    assert found.products.dtype == np.float64
    np.testing.assert_allclose(found.total, oracle(ROWS), rtol=0, atol=3e-6 * oracle(ROWS).max())
    np.testing.assert_array_equal(found.total, found.total.T)
    assert not found.variance.any()


def test_leaves_and_layers_have_matrices_of_their_own_whose_sum_is_that_of_all():
    found = geometry.streamed_gram(
        of_rows(ROWS), N, block=3, group=lambda name, layer: (name, layer), stacked=is_stacked
    )
    layers = [("stacked", layer) for layer in range(3)]
    assert found.groups == (("a", None), ("b/0", None), ("b/1", None), ("nothing", None), *layers)
    for group, products in zip(found.groups, found.products, strict=True):
        np.testing.assert_allclose(products, oracle(ROWS, *group), rtol=0, atol=1e-4)
    assert not found.products[3].any()  # the leaf without elements
    np.testing.assert_allclose(found.total, oracle(ROWS), rtol=0, atol=3e-6 * oracle(ROWS).max())


def test_a_group_may_hold_several_leaves_and_groups_may_be_put_together():
    found = geometry.streamed_gram(of_rows(ROWS), N, block=2, group=by_layer, stacked=is_stacked)
    assert found.groups == ("rest", 0, 1, 2)
    np.testing.assert_allclose(found.products[2], oracle(ROWS, "stacked", 1), rtol=0, atol=1e-4)
    coarse = found.merged(lambda group: "odd" if group == 1 else "even")
    assert coarse.groups == ("even", "odd")
    np.testing.assert_array_equal(coarse.products[1], found.products[2])
    np.testing.assert_allclose(coarse.total, found.total, rtol=1e-12)


@pytest.mark.parametrize(("block", "count"), [(7, 7), (3, 7 + 4 + 1), (1, 28)])
def test_as_many_vectors_are_computed_as_it_says(block, count):
    asked, told = [], []
    geometry.streamed_gram(of_rows(ROWS, asked), N, block=block, progress=lambda *seen: told.append(seen))
    assert len(asked) == count
    assert told == [(i, count) for i in range(1, count + 1)]


def test_no_more_than_a_block_is_in_memory_while_the_next_vector_is_made():
    shape, alive = (123, 4567), []

    def gradient(i):
        alive.append(sum(array.shape == shape for array in jax.live_arrays()))
        assert not any(array.shape[1:] == shape for array in jax.live_arrays())
        return {"w": jnp.full(shape, 1.0 + i)}

    geometry.streamed_gram(gradient, 9, block=3)
    assert max(alive) == 3
    alive.clear()
    geometry.sketched_gram(gradient, 9, geometry.Sketch(jax.random.key(0), 8))
    assert max(alive) == 0


def test_bfloat16_vectors_are_multiplied_in_float32():
    rows = problems.odd_rows(N, dtype=jnp.bfloat16)
    found = geometry.streamed_gram(of_rows(rows), N, block=3)
    np.testing.assert_allclose(found.total, oracle(rows), rtol=0, atol=3e-6 * oracle(rows).max())


def test_sketched_products_have_the_mean_and_the_spread_that_they_state():
    size, seeds = 64, 300
    group = {"group": by_layer, "stacked": is_stacked}
    exact = geometry.streamed_gram(of_rows(ROWS), N, block=N, **group)
    keys = jax.random.split(jax.random.key(1), seeds)
    every = [geometry.sketched_gram(of_rows(ROWS), N, geometry.Sketch(key, size), **group) for key in keys]
    assert every[0].groups == exact.groups
    products = np.stack([found.products for found in every])
    squares = np.diagonal(exact.products, axis1=1, axis2=2)
    bound = (squares[:, :, None] * squares[:, None, :] + exact.products**2) / size
    upper = np.triu_indices(N)
    z = ((products.mean(axis=0) - exact.products) / np.sqrt(bound / seeds))[:, *upper].ravel()
    assert np.abs(z).max() < 4  # of 112 numbers
    assert np.mean(np.abs(z) < 3) > 0.98
    assert (products.var(axis=0) < 1.5 * bound).all()
    assert products[:, 0].var(axis=0)[0, 1] > 0.5 * bound[0, 0, 1]  # of a group of many elements it is near the bound
    stated = np.mean([found.variance for found in every], axis=0)
    np.testing.assert_allclose(stated[0], bound[0], rtol=0.3)


def test_groups_and_layers_are_sketched_independently():
    """The same numbers in two layers go to other places with other signs."""
    row = {"stacked": jnp.ones((2, 500)), "other": jnp.ones(500)}
    whole = {"stacked": ("stacked",), "places": (0, 1, 2)}
    found = np.asarray(sketch_by_group(jax.random.key(0), row, size=200, **whole))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(oracles.correlation(found[i], found[j])) < 0.3
    again = np.asarray(sketch_by_group(jax.random.key(0), row, size=200, **whole))
    np.testing.assert_array_equal(found, again)
    together = np.asarray(sketch_by_group(jax.random.key(0), row, size=200, stacked=("stacked",), places=(0, 0, 0)))
    np.testing.assert_allclose(together[0], found.sum(axis=0), atol=1e-5)


def test_a_program_holds_no_more_than_its_vectors():
    row = {"stacked": jnp.ones((4, 6, 5)), "w": jnp.ones(11)}

    def largest(function, *arguments):
        jaxpr = jax.make_jaxpr(function)(*arguments)
        return max(v.aval.size for equation in jaxpr.jaxpr.eqns for v in equation.outvars)

    assert largest(lambda a, b: products_by_part(a, b, stacked=("stacked",)), row, row) <= 4 * 6 * 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_rows": 0}, "at least one vector; got 0"),
        ({"block": 0}, "at least 1 vector; got 0"),
        ({"stacked": lambda name: name == "b/0"}, "needs an axis of layers; got `b/0`"),
        ({"gradient": lambda i: problems.odd_vector() if i < 2 else {"a": jnp.ones(3)}}, "same leaves; got `a`"),
        ({"gradient": lambda i: {"w": jnp.full(3, np.nan if i == 2 else 1.0)}}, "in row 2, group ``"),
        ({"gradient": lambda i: {"w": jnp.full(3, 1e30)}}, "in row 0, group ``"),
        ({"gradient": lambda i: {"w": jnp.ones(3, jnp.int32)}}, "floating leaves only"),
    ],
)
def test_what_cannot_be_multiplied_is_named(arguments, sentence):
    given = {"gradient": of_rows(ROWS), "num_rows": 4, "block": 2, **arguments}
    with pytest.raises(GeometryError, match=sentence.replace("(", r"\(")):
        geometry.streamed_gram(given.pop("gradient"), given.pop("num_rows"), **given)


def test_a_sketch_names_what_is_not_finite_and_needs_a_size():
    with pytest.raises(GeometryError, match="in row 1"):
        geometry.sketched_gram(
            lambda i: {"w": jnp.asarray([1.0, np.inf if i else 1.0])}, 3, geometry.Sketch(jax.random.key(0), 8)
        )
    with pytest.raises(GeometryError, match="size of at least 1"):
        geometry.sketched_gram(of_rows(ROWS), 2, geometry.Sketch(jax.random.key(0), 0))
