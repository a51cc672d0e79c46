"""The synthetic transformer: its tree, its causality, and its arithmetic against float64 numpy."""

from math import erf, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import keys, models, trees
from lacuna.errors import InvalidInput

TINY = models.SyntheticSpec(vocab_size=13, max_length=9, num_layers=3, width=16, num_heads=2, mlp_width=24)


@pytest.fixture(scope="module")
def tiny():
    model = models.synthetic(TINY)
    params = model.init(keys.stream(0, "init"))
    rng = np.random.default_rng(0)
    # Scales start at one and the embedding small; moved so that the oracle sees every leaf at work.
    moved = jax.tree.map(lambda leaf: 3 * leaf + jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), params)
    tokens = jax.random.randint(keys.root(2), (4, 8), 0, TINY.vocab_size)
    return model, moved, tokens


def forward_oracle(params, tokens, spec):
    """Block after block in float64, one sequence, one head and one position at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    head_width = spec.width // spec.num_heads

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale

    def rotated(vector, position):
        pairs = vector[: head_width // 2] + 1j * vector[head_width // 2 :]
        turned = pairs * np.exp(1j * position * 100.0 ** (-np.arange(head_width // 2) / (head_width // 2)))
        return np.concatenate([turned.real, turned.imag])

    def gelu(x):
        return x / 2 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))

    assert gelu(1.0) == pytest.approx((1 + erf(sqrt(0.5))) / 2, abs=1e-3)
    logits = []
    for row in np.asarray(tokens):
        x = params["embedding"][row]
        for layer in range(spec.num_layers):
            p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
            qkv = norm(x, p["attention_norm"]["scale"]) @ p["attention"]["qkv"]["kernel"]
            mixed = np.zeros_like(x)
            for h in range(spec.num_heads):
                at = slice(h * head_width, (h + 1) * head_width)
                query, key, value = (part[:, at] for part in np.split(qkv, 3, axis=1))
                for s in range(len(row)):
                    scores = [rotated(query[s], s) @ rotated(key[t], t) / sqrt(head_width) for t in range(s + 1)]
                    weights = np.exp(scores) / np.sum(np.exp(scores))
                    mixed[s, at] = weights @ value[: s + 1]
            x = x + mixed @ p["attention"]["out"]["kernel"]
            hidden = norm(x, p["mlp_norm"]["scale"]) @ p["mlp"]["up"]["kernel"]
            x = x + gelu(hidden) @ p["mlp"]["down"]["kernel"]
        logits.append(norm(x, params["final_norm"]["scale"]) @ params["head"]["kernel"])
    return np.array(logits)


def test_stacked_forward_equals_a_loop_over_layers_in_float64(tiny):
    model, params, tokens = tiny
    expected = forward_oracle(params, tokens, TINY)
    output = jax.jit(model.apply)(params, tokens)
    assert output.resid is None
    assert output.logits.dtype == jnp.float32
    # Some thousand float32 operations deep: 100 eps of the largest logit.
    tolerance = 100 * np.finfo(np.float32).eps * np.max(np.abs(expected))
    np.testing.assert_allclose(output.logits, expected, rtol=0, atol=tolerance)


def test_logits_depend_on_no_later_token(tiny):
    model, params, _ = tiny
    table = params["embedding"]

    def logits_of(embeddings):
        # Position s reads row s of the table, so a gradient by row is one by position.
        moved = {**params, "embedding": table.at[:8].set(embeddings)}
        return model.apply(moved, jnp.arange(8)[None]).logits[0]

    jacobian = np.abs(jax.jit(jax.jacrev(logits_of))(table[:8])).sum(axis=(1, 3))  # [position of logits, position read]
    assert np.all(jacobian[np.triu_indices(8, 1)] == 0)
    assert np.all(jacobian[np.tril_indices(8)] > 0)


def test_default_size_is_half_a_million():
    model = models.synthetic(models.SyntheticSpec(vocab_size=21))
    assert 4e5 <= trees.size(jax.eval_shape(model.init, keys.root(0))) <= 6e5


def test_tree_is_plain_dicts_of_float32_with_every_layer_under_layers(tiny):
    _, params, _ = tiny
    assert sorted(trees.leaf_names(params)) == [
        "embedding",
        "final_norm/scale",
        "head/kernel",
        "layers/attention/out/kernel",
        "layers/attention/qkv/kernel",
        "layers/attention_norm/scale",
        "layers/mlp/down/kernel",
        "layers/mlp/up/kernel",
        "layers/mlp_norm/scale",
    ]
    assert type(params) is dict
    assert type(params["layers"]["attention"]) is dict
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert params["layers"]["attention"]["qkv"]["kernel"].shape == (3, 16, 48)


def test_stacked_names_the_leaves_that_grow_with_the_layers():
    def shapes(num_layers):
        spec = models.SyntheticSpec(vocab_size=13, num_layers=num_layers, width=16, num_heads=2, mlp_width=24)
        model = models.synthetic(spec)
        params = jax.eval_shape(model.init, keys.root(0))
        return model, dict(zip(trees.leaf_names(params), [p.shape for p in jax.tree.leaves(params)], strict=True))

    model, five = shapes(5)
    _, seven = shapes(7)
    for name, shape in five.items():
        if model.stacked(name):
            assert (shape[0], seven[name][0]) == (5, 7)
            assert shape[1:] == seven[name][1:]
        else:
            assert shape == seven[name]


def test_init_is_a_function_of_its_key_and_gives_every_layer_its_own_numbers(tiny):
    model, _, _ = tiny
    first, again, other = (model.init(keys.stream(seed, "init")) for seed in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, again)))
    kernel = first["layers"]["mlp"]["up"]["kernel"]
    assert not np.array_equal(kernel, other["layers"]["mlp"]["up"]["kernel"])
    assert not np.array_equal(kernel[0], kernel[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1; got 0"),
        ({"vocab_size": -1}, "vocab_size must be at least 1; got -1"),
        ({"num_heads": 5}, "5 heads in a width of 96"),
        ({"width": 36, "num_heads": 4}, "even"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(InvalidInput, match=message):
        models.SyntheticSpec(**{"vocab_size": 21, **change})


def test_too_long_a_row_is_refused(tiny):
    model, params, _ = tiny
    with pytest.raises(InvalidInput, match="at most 9 tokens; got 10"):
        model.apply(params, jnp.zeros((1, 10), jnp.int32))
