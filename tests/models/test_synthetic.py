"""The synthetic transformer: its tree, its causality, and its arithmetic against float64 numpy."""

from dataclasses import replace
from functools import partial
from math import erf, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import oracles
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


def steered(params, tokens, **options):
    return models.synthetic(TINY).apply(params, tokens, **options)


def test_a_steer_of_zeros_and_a_tap_change_no_bit(tiny):
    _, params, tokens = tiny
    plain = oracles.bits(jax.jit(steered)(params, tokens).logits)
    for shape in ((4, 16), (4, *tokens.shape, 16), (4, 1, 8, 16), (4, 4, 1, 16)):
        found = jax.jit(steered)(params, tokens, steer=jnp.zeros(shape))
        assert oracles.bits(found.logits) == plain
        assert found.resid is None
    assert oracles.bits(jax.jit(partial(steered, taps="all"))(params, tokens).logits) == plain


def test_the_stream_goes_from_the_embedding_to_before_the_final_norm(tiny):
    _, params, tokens = tiny
    output = steered(params, tokens, taps="all")
    assert output.resid.shape == (4, 4, 8, 16)
    np.testing.assert_array_equal(output.resid[0], params["embedding"][tokens])
    last = np.asarray(output.resid[-1], np.float64)
    normed = last / np.sqrt(np.mean(last**2, axis=-1, keepdims=True) + 1e-6) * params["final_norm"]["scale"]
    expected = normed @ np.asarray(params["head"]["kernel"], np.float64)
    np.testing.assert_allclose(output.logits, expected, atol=30 * np.finfo(np.float32).eps * np.abs(expected).max())


def test_the_stream_of_fewer_blocks_is_its_beginning(tiny):
    """Level l of a deep model is the last of one that stops after block l."""
    _, params, tokens = tiny
    whole = steered(params, tokens, taps="all").resid
    for level in (1, 2):
        first = params | {"layers": jax.tree.map(lambda leaf, level=level: leaf[:level], params["layers"])}
        found = models.synthetic(replace(TINY, num_layers=level)).apply(first, tokens, taps="all").resid
        np.testing.assert_allclose(found, whole[: level + 1], atol=1e-5 * np.abs(whole).max())


def test_a_steer_is_added_where_the_stream_is_read(tiny):
    _, params, tokens = tiny
    plain = np.asarray(steered(params, tokens, taps="all").resid)
    vector = np.asarray(jax.random.normal(keys.root(3), (16,)))
    for level in range(4):
        for at in (slice(None), 5):
            steer = np.zeros((4, 1, 8, 16), np.float32)
            steer[level, :, at] = vector
            moved = np.asarray(steered(params, tokens, steer=steer, taps="all").resid)
            np.testing.assert_array_equal(moved[:level], plain[:level])
            np.testing.assert_array_equal(moved[level], plain[level] + steer[level])
            assert (moved[level + 1 :] != plain[level + 1 :]).any() or level == 3


def test_one_vector_for_all_tokens_is_that_vector_at_each(tiny):
    _, params, tokens = tiny
    steer = jax.random.normal(keys.root(4), (4, 16))
    spread = jnp.broadcast_to(steer[:, None, None], (4, 4, 8, 16))
    expected = steered(params, tokens, steer=steer).logits
    for same in (spread, spread[:, :1], spread[:, :, :1]):
        found = steered(params, tokens, steer=same).logits
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_tap_at_one_position_is_that_of_the_whole_stream(tiny):
    _, params, tokens = tiny
    whole = steered(params, tokens, taps="all").resid
    np.testing.assert_array_equal(steered(params, tokens, taps="last").resid, whole[:, :, -1])
    given = steered(params, tokens, taps=jnp.array([3, 7, 0, 5])).resid
    np.testing.assert_array_equal(given, whole[:, jnp.arange(4), jnp.array([3, 7, 0, 5])])


def test_a_map_over_steers_is_a_loop_over_them(tiny):
    _, params, tokens = tiny
    grid = jax.random.normal(keys.root(5), (5, 4, 16))
    found = jax.jit(jax.vmap(lambda steer: steered(params, tokens, steer=steer, taps="last")))(grid)
    for i, steer in enumerate(grid):
        alone = steered(params, tokens, steer=steer, taps="last")
        for one, other in zip((found.logits[i], found.resid[i]), alone, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_pushing_forward_is_a_small_difference_and_the_transpose_of_pulling_back(tiny):
    """By parameters and by the steer, in float64: these weights bend so much that float32 has no small step."""
    _, params, tokens = tiny

    def resid(params, steer):
        return steered(params, tokens, steer=steer, taps="all").resid

    with jax.enable_x64(True):
        at = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, jnp.zeros((4, 16))))
        along = jax.tree.map(lambda leaf: jax.random.normal(keys.root(leaf.size), leaf.shape), at)
        stream, pushed = jax.jvp(resid, at, along)
        assert stream.dtype == jnp.float64
        weights = jax.random.normal(keys.root(6), pushed.shape)
        pulled = jax.vjp(resid, *at)[1](weights)
        np.testing.assert_allclose(np.vdot(weights, pushed), oracles.flat(pulled) @ oracles.flat(along), rtol=1e-9)
        step = 1e-7
        ahead, behind = (resid(*jax.tree.map(lambda x, v, s=s: x + s * step * v, at, along)) for s in (1, -1))
        np.testing.assert_allclose((ahead - behind) / (2 * step), pushed, atol=1e-6 * np.abs(pushed).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steer": jnp.zeros((3, 16))}, r"steer needs the shape \[4, D\] or \[4, B, S, D\].* got \[3, 16\]"),
        ({"steer": jnp.zeros((4, 8, 16))}, r"got \[4, 8, 16\] for a stream of \[4, 8, 16\].*1 for B or S"),
        ({"steer": jnp.zeros((4, 4, 7, 16))}, r"got \[4, 4, 7, 16\]"),
        ({"taps": "first"}, r'taps must be "all", "last", or one integer position for each row; got `first`'),
        ({"taps": jnp.zeros(3, int)}, r"taps must be .*; got int32\[3\]"),
        ({"taps": jnp.zeros(4)}, r"taps must be .*; got float32\[4\]"),
    ],
)
def test_a_steer_or_taps_of_another_form_are_refused(tiny, options, message):
    _, params, tokens = tiny
    with pytest.raises(InvalidInput, match=message):
        steered(params, tokens, **options)
