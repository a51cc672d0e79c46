"""The map from steps to activation shifts: linear, the limit of finite steps, a sum over modules, and its transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_contrast

from lacuna import keys, models, steering, trees
from lacuna.errors import InvalidInput, TreeMismatch
from lacuna.steering.pushforward import _pushforward

READ = steering.Read(back=(0, 2))
every_family = pytest.mark.parametrize("name", tiny_contrast.SPECS)


def reading_of(tiny, num_rows=3):
    rows = tiny_contrast.prompts(num_rows)
    return steering.reading(tiny.stream, rows.tokens, READ.weights(rows.spans))


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@every_family
def test_the_shift_is_linear_in_the_delta(name):
    tiny = tiny_contrast.tiny(name)
    read = reading_of(tiny)
    a, b = (tiny_contrast.like(tiny.params, seed=seed) for seed in (1, 2))
    together = jax.tree.map(lambda x, y: 2.0 * x - 3.0 * y, a, b)
    of_a, of_b, of_both = (np.asarray(steering.pushforward(read, tiny.params, d)) for d in (a, b, together))
    assert of_both.shape == (3, 3, 2, 12)
    assert relative(of_both, 2 * of_a - 3 * of_b) < 1e-5


@every_family
def test_a_finite_shift_leaves_the_exact_one_with_the_square_of_the_radius(name):
    """In float64, over two decades: the slope of what is missed is 2, that of its share of the shift is 1."""
    tiny = tiny_contrast.tiny(name, scale=1.5)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), tiny.params)
        rows = tiny_contrast.prompts(3)
        read = steering.reading(tiny.stream, rows.tokens, READ.weights(rows.spans).astype(np.float64))
        delta = tiny_contrast.like(params, seed=1)
        unit = float(trees.norm(params) / trees.norm(delta))
        radii = np.geomspace(1e-5, 1e-3, 5)
        found = [steering.shift(read, params, jax.tree.map(lambda x, r=r: unit * r * x, delta)) for r in radii]
        missed = [float(jnp.linalg.norm((s.finite - s.exact)[1:])) for s in found]
        error = np.asarray([s.error[-1] for s in found])
        assert found[0].finite.dtype == jnp.float64
    np.testing.assert_allclose([s.relative_radius for s in found], radii, rtol=1e-5)
    slope = np.polyfit(np.log(radii), np.log(missed), 1)[0]
    assert abs(slope - 2) < 0.1
    assert abs(np.polyfit(np.log(radii), np.log(error), 1)[0] - 1) < 0.1


@every_family
def test_the_parts_of_the_modules_sum_to_the_shift(name):
    tiny = tiny_contrast.tiny(name)
    read = reading_of(tiny)
    delta = tiny_contrast.like(tiny.params, seed=1)
    parts = steering.module_shifts(read, tiny.params, delta, stacked=tiny.model.stacked)
    whole = np.asarray(steering.pushforward(read, tiny.params, delta))
    assert relative(np.asarray(parts.shifts).sum(axis=0), whole) < 1e-5
    assert {"embedding", "layers/0/mlp/up", "layers/1/attention/out", "final_norm"} <= set(parts.names)
    late = parts.names.index("layers/1/mlp/up")
    assert not np.asarray(parts.shifts)[late, :2].any()  # what the second block holds moves nothing before it
    alone = trees.map_named(lambda n, x: x.at[0].set(0) if n.startswith("layers/mlp/up/") else jnp.zeros_like(x), delta)
    assert relative(np.asarray(parts.shifts[late]), np.asarray(steering.pushforward(read, tiny.params, alone))) < 1e-5


@every_family
def test_the_pullback_is_the_transpose_of_the_pushforward(name):
    tiny = tiny_contrast.tiny(name)
    read = reading_of(tiny)
    delta = tiny_contrast.like(tiny.params, seed=1)
    pushed = steering.pushforward(read, tiny.params, delta)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=pushed.shape), jnp.float32)
    forwards = float(jnp.sum(weights * pushed))
    backwards = float(trees.dot(steering.pullback(read, tiny.params, weights), delta))
    scale = float(jnp.linalg.norm(weights) * jnp.linalg.norm(pushed))
    assert abs(forwards - backwards) < 1e-5 * scale


def test_an_adapter_is_pushed_forward_over_its_factors_alone():
    """As the change of the merged weights."""
    tiny = tiny_contrast.tiny("gpt2")
    spec = models.lora_spec(tiny.model, rank=2, sites="attention/qkv")
    factors = jax.tree.map(lambda x: x + 0.1, spec.init(keys.root(1)))
    rows = tiny_contrast.prompts(3)
    stream = models.over_adapter(steering.read_stream, tiny.model, tiny.params, spec)
    read = steering.reading(stream, rows.tokens, READ.weights(rows.spans))
    delta = tiny_contrast.like(factors, seed=1)
    found = steering.pushforward(read, factors, delta)

    def merged(point):
        return reading_of(tiny)(models.merged(tiny.params, spec.bind(point)))

    wanted = jax.jvp(merged, (factors,), (delta,))[1]
    assert relative(np.asarray(found), np.asarray(wanted)) < 1e-5
    parts = steering.module_shifts(read, factors, delta, stacked=tiny.model.stacked)
    assert parts.names == ("layers/0/attention/qkv", "layers/1/attention/qkv")
    assert relative(np.asarray(parts.shifts).sum(axis=0), np.asarray(found)) < 1e-5


def test_a_delta_of_float32_moves_parameters_of_bfloat16():
    tiny = tiny_contrast.tiny("qwen2")
    read, point = reading_of(tiny), jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    delta = tiny_contrast.like(tiny.params, seed=1, scale=1e-2)
    whole, wide = (np.asarray(steering.pushforward(read, at, delta)) for at in (point, tiny.params))
    assert relative(whole, wide) < 0.05  # a few roundings to 8 bits
    parts = steering.module_shifts(read, point, delta, stacked=tiny.model.stacked)
    assert relative(np.asarray(parts.shifts).sum(axis=0), whole) < 0.05


def test_a_subset_is_zero_elsewhere():
    delta = {"embedding": jnp.ones(2), "layers": {"mlp": {"up": jnp.ones(3)}}}
    found = steering.restricted(delta, "layers/.*")
    assert not found["embedding"].any()
    assert found["layers"]["mlp"]["up"].all()
    with pytest.raises(InvalidInput, match=r"must match one of embedding, layers/mlp/up; got `mlp`"):
        steering.restricted(delta, "mlp")
    with pytest.raises(InvalidInput, match=r"must be a regular expression; got `\(`: "):
        steering.restricted(delta, "(")


def test_nothing_moves_without_a_step():
    tiny = tiny_contrast.tiny("qwen2")
    found = steering.shift(reading_of(tiny), tiny.params, jax.tree.map(jnp.zeros_like, tiny.params))
    assert not np.asarray(found.finite).any()
    assert not np.asarray(found.error).any()
    assert float(found.relative_radius) == 0


def test_other_rows_of_the_same_shape_compile_nothing():
    tiny = tiny_contrast.tiny("qwen2")
    delta = tiny_contrast.like(tiny.params)
    counts = []
    for seed in (0, 1):
        rows = tiny_contrast.prompts(3, seed=seed)
        steering.pushforward(steering.reading(tiny.stream, rows.tokens, READ.weights(rows.spans)), tiny.params, delta)
        counts.append(_pushforward._cache_size())
    assert counts[0] == counts[1]


def test_what_does_not_fit_is_refused():
    tiny = tiny_contrast.tiny("qwen2")
    read = reading_of(tiny)
    with pytest.raises(TreeMismatch, match="pushforward needs two trees"):
        steering.pushforward(read, tiny.params, {"w": jnp.zeros(2)})
    with pytest.raises(InvalidInput, match=r"a weight for every activation, \[3, 3, 2, 12\]; got \[3, 3, 1, 12\]"):
        steering.pullback(read, tiny.params, jnp.zeros((3, 3, 1, 12)))


def test_the_same_functions_made_again_compile_nothing():
    counts = []
    for _ in range(2):
        tiny = tiny_contrast.tiny("qwen2")  # whose stream is another `functools.partial` each time
        steering.pushforward(reading_of(tiny), tiny.params, tiny_contrast.like(tiny.params))
        counts.append(_pushforward._cache_size())
    assert counts[0] == counts[1]
