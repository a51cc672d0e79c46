"""Tree algebra against flattened float64 numpy, over odd trees."""

import functools
import re
from collections import OrderedDict
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from jax import lax

from lacuna import trees
from lacuna.errors import TreeMismatch

# Few shapes, because each compiles its own small programs.
LEAVES = st.tuples(st.sampled_from([(), (0,), (5,), (2, 3)]), st.sampled_from(["float32", "bfloat16"]))
ODD_TREES = st.recursive(
    LEAVES,
    lambda below: st.one_of(st.dictionaries(st.sampled_from("abcd"), below, max_size=3), st.lists(below, max_size=3)),
    max_leaves=5,
)
CASES = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def fill(plan: Any, seed: int) -> Any:
    """Normal numbers in the shapes and dtypes of a plan; a plan's leaf is `(shape, dtype)`."""
    rng = np.random.default_rng(seed)

    def is_leaf(node: Any) -> bool:
        return isinstance(node, tuple)

    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf[0]), leaf[1]), plan, is_leaf=is_leaf)


@CASES
@given(ODD_TREES)
def test_dot_and_norm_equal_those_of_the_flat_vector(plan):
    a, b = fill(plan, 1), fill(plan, 2)
    x, y = oracles.flat(a), oracles.flat(b)
    assert trees.dot(a, b).dtype == trees.norm(a).dtype == jnp.float32
    # A few ulp of the sum of magnitudes: at most 5 x 64 products, summed pairwise.
    np.testing.assert_allclose(trees.dot(a, b), x @ y, rtol=0, atol=1e-6 * (np.abs(x) @ np.abs(y)) + 1e-30)
    np.testing.assert_allclose(trees.norm(a), np.sqrt(x @ x), rtol=1e-6)
    assert trees.size(a) == x.size


@CASES
@given(ODD_TREES, st.floats(-3, 3))
def test_axpy_equals_numpy_with_two_roundings_and_one_to_the_dtype(plan, scale):
    delta, params = jax.tree.map(lambda d: d.astype(jnp.float32), fill(plan, 1)), fill(plan, 2)
    moved = trees.axpy(scale, delta, params)
    assert oracles.bits(moved) == oracles.bits(oracles.axpy(scale, delta, params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), moved) == jax.tree.map(lambda x: (x.shape, x.dtype), params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_axpy_has_the_same_bits_in_whatever_program_it_is_compiled(dtype):
    params = {"w": jax.random.normal(jax.random.key(0), (64, 33)).astype(dtype)}
    scales = jnp.float32([0.013, -0.0071])

    def draw(key):
        return {"w": jax.random.normal(key, (64, 33)) * 1.7}

    def after_a_draw(scale, key):
        return trees.axpy(scale, draw(key), params)

    key = jax.random.key(1)
    delta = jax.jit(draw)(key)
    expected = [oracles.bits(oracles.axpy(float(s), delta, params)) for s in scales]
    alone = jax.jit(trees.axpy)
    assert [oracles.bits(alone(s, delta, params)) for s in scales] == expected
    fused = jax.jit(after_a_draw)
    assert [oracles.bits(fused(s, key)) for s in scales] == expected
    mapped = jax.jit(lambda key: lax.map(lambda s: after_a_draw(s, key), scales))(key)
    assert [oracles.bits(jax.tree.map(lambda x, i=i: x[i], mapped)) for i in range(2)] == expected


@pytest.mark.parametrize(("dtype", "is_asked_for"), [("float32", False), ("bfloat16", True), ("float16", True)])
def test_the_rounding_of_a_narrow_point_is_one_that_no_compiler_may_drop(dtype, is_asked_for):
    """A CPU keeps the rounding anyway, so only the program can show that it was asked for."""
    program = jax.jit(trees.axpy).lower(0.1, jnp.ones(3), jnp.ones(3, dtype))
    assert ("stablehlo.reduce_precision" in program.as_text()) == is_asked_for


def test_a_number_is_stored_as_numpy_rounds_it():
    numbers = np.float32([1 / 3, 65504, 1e5, 3.0e-5, 6e-8, -0.0, np.inf, np.nan, 1e-40, 3.4e38])
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        with np.errstate(over="ignore"):
            expected = numbers.astype(dtype)
        found = jax.jit(trees.stored, static_argnums=1)(numbers, dtype)
        np.testing.assert_array_equal(found.astype(jnp.float32), expected.astype(np.float32))


def test_axpy_keeps_a_nan_and_leaves_the_point_alone():
    params = {"w": jnp.float32([1, 2, 3])}
    before = oracles.bits(params)
    moved = jax.jit(trees.axpy)(0.5, {"w": jnp.float32([2, jnp.nan, -2])}, params)
    np.testing.assert_array_equal(moved["w"], [2, np.nan, 2])
    assert oracles.bits(params) == before


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"h": {"kernel": jnp.ones((4, 3))}}, ["`h/kernel`", "(3, 4)", "(4, 3)"]),
        ({"h": {"bias": jnp.ones((3, 4))}}, ["`h/kernel`", "(3, 4)", "no such leaf"]),
        ({"h": {"kernel": jnp.ones((3, 4)), "extra": {}}}, ["containers"]),
    ],
)
def test_two_trees_that_differ_are_named_by_leaf_and_shape(other, words):
    tree = {"h": {"kernel": jnp.ones((3, 4))}}
    for call in (lambda: trees.dot(tree, other), lambda: trees.axpy(1.0, tree, other)):
        with pytest.raises(TreeMismatch) as raised:
            call()
        assert all(re.search(re.escape(word), str(raised.value)) for word in words)


def test_leaf_names_join_keys_by_slashes():
    tree = {"h": [{"kernel": 1.0}, 2.0], "a": ()}
    assert trees.leaf_names(tree) == ["h/0/kernel", "h/1"]
    assert trees.leaf_names(3.0) == [""]
    assert trees.map_named(lambda name, x, y: (name, x + y), {"b": 1, "a": 2}, {"b": 3, "a": 4}) == {
        "a": ("a", 6),
        "b": ("b", 4),
    }


def test_the_digest_changes_with_any_bit_name_shape_or_dtype():
    def tree(name="w", value=(1.0, 2.0, 3.0, 4.0), dtype="float32", shape=(4,)):
        return {name: jnp.asarray(value, dtype).reshape(shape), "scalar": jnp.asarray(1.0, jnp.bfloat16)}

    last_bit = (1.0, 2.0, 3.0, float(np.nextafter(np.float32(4), np.float32(5))))
    others = [tree(value=last_bit), tree("v"), tree(dtype="bfloat16"), tree(dtype="int32"), tree(shape=(2, 2))]
    others += [{"w": tree()["w"]}, {}, tree() | {"w": tree()["w"].view(jnp.int32)}]  # the last has the same bytes
    assert len({trees.content_digest(t) for t in [tree(), *others]}) == 1 + len(others)
    assert trees.content_digest(tree()) == trees.content_digest(jax.tree.map(np.asarray, tree()))


def test_the_digest_does_not_depend_on_the_order_of_the_leaves():
    def tree(names):
        return OrderedDict((name, jnp.full(3, len(name))) for name in names)

    one, other = tree(["a", "bb", "ccc"]), tree(["ccc", "a", "bb"])
    assert trees.leaf_names(one) != trees.leaf_names(other)
    assert trees.content_digest(one) == trees.content_digest(other)


def test_the_digest_sees_both_of_two_leaves_of_one_name():
    def tree(first):
        return {"a": {"b": jnp.full(2, first)}, "a/b": jnp.zeros(2)}

    assert trees.content_digest(tree(1.0)) != trees.content_digest(tree(2.0))


def scaled_sum(scale, x, *, shift=0.0):
    return jnp.sum(scale * x) + shift


def test_a_partial_is_known_to_a_program_by_what_it_binds():
    run = jax.jit(lambda function, x: function(x))
    one, again, other = (trees.as_data(functools.partial(scaled_sum, 2.0, shift=s)) for s in (1.0, 1.0, 3.0))
    x = jnp.arange(3.0)
    assert [float(run(function, x)) for function in (one, again, other)] == [7, 7, 9]
    assert run._cache_size() == 2
    assert float(run(trees.as_data(functools.partial(scaled_sum, np.ones(3))), x)) == 3  # an array has no hash
