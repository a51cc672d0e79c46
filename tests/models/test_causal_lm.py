"""What a language model promises besides its numbers: causal, pure, steerable, adaptable, and decodable."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tiny_hf

from lacuna import models, trees
from lacuna.checkpoints import load_hf
from lacuna.errors import InvalidInput
from lacuna.models.causal_lm import _compiled, empty_cache, stream

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS, MASK = jnp.asarray(tiny_hf.tokens()), jnp.asarray(tiny_hf.mask().astype(bool))
FAMILIES = ["gpt2", "qwen2_window", "qwen3", "olmo2"]
every_family = pytest.mark.parametrize("name", FAMILIES)


def bits(output):
    return oracles.bits(output.logits)


@every_family
def test_a_logit_depends_on_the_tokens_before_it_alone(name):
    """By the gradient: a change of the embedding output at a later position moves no earlier logit."""
    model, params = load_hf(GOLDEN / name)
    levels, width = model.spec.num_layers + 1, model.spec.width
    steer = jnp.zeros((levels, 1, 12, width))
    at = 6

    def logit_at(steer):
        return jnp.sum(jnp.sin(model.apply(params, TOKENS[:1], steer=steer).logits[0, at]))

    slope = np.abs(jax.grad(logit_at)(steer)).max(axis=(1, 3))
    assert (slope[:, at + 1 :] == 0).all()
    assert (slope[:, at] > 0).all()
    seen = slope[0, : at + 1] > 0
    assert seen.all() or name == "qwen2_window"


def test_a_window_hides_what_is_further_back():
    """Two layers: the first sees everything, so its window is put on both."""
    model, params = load_hf(GOLDEN / "qwen2_window")
    spec = replace(model.spec, windows=(3, 2))
    steer = jnp.zeros((3, 1, 12, spec.width))
    slope = jax.grad(lambda s: jnp.sum(models.causal_lm(spec).apply(params, TOKENS[:1], steer=s).logits[0, 9] ** 2))(
        steer
    )
    reach = np.abs(slope[0, 0]).max(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(reach), [6, 7, 8, 9])  # 9 - (3 - 1) - (2 - 1) and later


@every_family
def test_zeros_and_identities_change_no_bit(name):
    model, params = load_hf(GOLDEN / name)
    spec = model.spec
    apply = jax.jit(partial(model.apply, params, TOKENS, mask=MASK))
    plain = bits(apply())
    assert bits(apply(steer=jnp.zeros((spec.num_layers + 1, spec.width)))) == plain
    assert bits(apply(steer=jnp.zeros((spec.num_layers + 1, *TOKENS.shape, spec.width)))) == plain
    mapped = jax.jit(lambda: model.apply(params, TOKENS, mask=MASK, layer_map=lambda layer, weights: weights))
    assert bits(mapped()) == plain
    assert bits(jax.jit(lambda: model.apply(params, TOKENS, mask=MASK, taps="all"))()) == plain


def test_a_steer_is_added_where_the_stream_is_read():
    model, params = load_hf(GOLDEN / "qwen3")
    spec = model.spec
    steer = jax.random.normal(jax.random.key(0), (spec.num_layers + 1, spec.width))
    plain = model.apply(params, TOKENS, taps="all").resid
    for level in range(spec.num_layers + 1):
        one = jnp.zeros_like(steer).at[level].set(steer[level])
        moved = model.apply(params, TOKENS, steer=one, taps="all").resid
        np.testing.assert_array_equal(moved[:level], plain[:level])
        np.testing.assert_allclose(
            moved[level] - plain[level], jnp.broadcast_to(steer[level], plain[level].shape), atol=1e-5
        )
    # A whole grid of levels and strengths is a map over the argument.
    grid = jnp.stack([s * jnp.zeros_like(steer).at[level].set(steer[level]) for level in range(3) for s in (0.5, -2.0)])
    found = jax.jit(jax.vmap(lambda s: model.apply(params, TOKENS, steer=s).logits))(grid)
    for each, logits in zip(grid, found, strict=True):
        np.testing.assert_allclose(logits, model.apply(params, TOKENS, steer=each).logits, atol=2e-5)


def test_taps_read_one_position_of_each_row():
    model, params = load_hf(GOLDEN / "gpt2")
    right = MASK[:, ::-1]  # the first row ends with four tokens of padding
    whole = model.apply(params, TOKENS, mask=right, taps="all").resid
    last = model.apply(params, TOKENS, mask=right, taps="last").resid
    assert last.shape == (3, 2, 16)
    np.testing.assert_array_equal(last[:, 0], whole[:, 0, 7])
    np.testing.assert_array_equal(last[:, 1], whole[:, 1, 11])
    chosen = model.apply(params, TOKENS, mask=right, taps=jnp.array([3, 5])).resid
    np.testing.assert_array_equal(chosen[:, 1], whole[:, 1, 5])
    assert model.apply(params, TOKENS).resid is None
    for taps in ("first", jnp.array([1.0, 2.0]), jnp.array([1])):
        with pytest.raises(InvalidInput, match=r"taps"):
            model.apply(params, TOKENS, taps=taps)


@pytest.mark.optimised
@every_family
def test_padding_on_either_side_is_no_token(name):
    """A row alone, padded on the left and padded on the right."""
    model, params = load_hf(GOLDEN / name)
    row = TOKENS[:1, :8]
    alone = model.apply(params, row).logits
    pads = jnp.full((1, 4), 7)
    for order, mask in (((pads, row), MASK[:1]), ((row, pads), MASK[:1, ::-1])):
        found = model.apply(params, jnp.concatenate(order, 1), mask=mask).logits[mask]
        np.testing.assert_allclose(found, alone[0], atol=5e-6)


@every_family
def test_a_layer_map_rewrites_one_layer_at_a_time(name):
    model, params = load_hf(GOLDEN / name)
    noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params["layers"])
    moved = params | {"layers": trees.axpy(1.0, noise, params["layers"])}

    def add(layer, weights):
        return jax.tree.map(lambda w, n: w + n[layer], weights, noise)

    np.testing.assert_allclose(
        model.apply(params, TOKENS, layer_map=add).logits, model.apply(moved, TOKENS).logits, atol=1e-5
    )


SITES = {
    "gpt2": ["attention/qkv", "attention/out", "mlp/up", "mlp/down"],
    "qwen3": ["attention/query", "attention/key", "attention/value", "attention/out", "mlp/gate", "mlp/up", "mlp/down"],
}


def adapter(params, sites, rank=3):
    """Random factors at the sites."""
    layers = {}
    for i, site in enumerate(sites):
        module, linear = site.split("/")
        num_layers, width_in, width_out = params["layers"][module][linear]["kernel"].shape
        a, b = jax.random.split(jax.random.key(i))
        factors = {
            "A": jax.random.normal(a, (num_layers, width_in, rank)),
            "B": jax.random.normal(b, (num_layers, rank, width_out)),
        }
        layers.setdefault(module, {})[linear] = jax.tree.map(lambda x: 0.2 * x, factors)
    return {"layers": layers}


@pytest.mark.parametrize(
    ("name", "sites"), [(name, site) for name in SITES for site in [*([s] for s in SITES[name]), SITES[name]]]
)
def test_an_adapter_is_the_sum_of_weights_and_low_rank(name, sites):
    model, params = load_hf(GOLDEN / name)
    factors = adapter(params, sites)
    merged = jax.tree.map(jnp.array, params)
    for site in sites:
        module, linear = site.split("/")
        pair = factors["layers"][module][linear]
        merged["layers"][module][linear]["kernel"] += 0.7 * pair["A"] @ pair["B"]
    found = model.apply(params, TOKENS, lora=models.Lora(factors, 0.7)).logits
    np.testing.assert_allclose(found, model.apply(merged, TOKENS).logits, atol=1e-5)
    assert np.abs(found - model.apply(params, TOKENS).logits).max() > 1e-2


def test_the_gradient_by_an_adapter_at_its_start_is_that_of_its_second_factor():
    """With B = 0 the first factor has no gradient, and the second has `A^T` times that of the weights."""
    model, params = load_hf(GOLDEN / "gpt2")
    factors = adapter(params, ["attention/qkv"])
    factors["layers"]["attention"]["qkv"]["B"] *= 0

    def loss(factors, params):
        return jnp.mean(models.next_token_nats(model, params, TOKENS, lora=models.Lora(factors, 2.0)))

    by_factors, by_weights = jax.grad(loss, argnums=(0, 1))(factors, params)
    pair = by_factors["layers"]["attention"]["qkv"]
    assert not np.asarray(pair["A"]).any()
    kernel = by_weights["layers"]["attention"]["qkv"]["kernel"]
    a = factors["layers"]["attention"]["qkv"]["A"]
    np.testing.assert_allclose(pair["B"], 2.0 * a.swapaxes(1, 2) @ kernel, atol=1e-6)


@pytest.mark.parametrize("options", [{"remat": "block"}, {"remat": "none"}, {"unroll": 2}])
def test_what_is_computed_again_or_unrolled_changes_rounding_alone(options):
    model, params = load_hf(GOLDEN / "olmo2")

    def loss(params, **options):
        return jnp.mean(models.next_token_nats(model, params, TOKENS, **options))

    for one, other in zip(
        *(jax.tree.leaves(jax.value_and_grad(loss)(params, **o)) for o in ({}, options)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gpt2_untied"])
def test_nats_in_chunks_are_those_of_whole_logits(name):
    model, params = load_hf(GOLDEN / name)
    logits = model.apply(params, TOKENS).logits[:, :-1]
    whole = -jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[:, 1:, None], -1)[..., 0]
    slopes = []
    for chunk in (0, 1, 5, 22, 100):
        nats, pull = jax.vjp(lambda p, c=chunk: models.next_token_nats(model, p, TOKENS, chunk=c), params)
        np.testing.assert_allclose(nats, whole, atol=1e-5)
        slopes.append(pull(jnp.ones_like(nats))[0])
    for slope in slopes[1:]:
        for one, other in zip(*map(jax.tree.leaves, (slope, slopes[0])), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
    with pytest.raises(InvalidInput, match=r"chunk must not be negative; got -1"):
        models.next_token_nats(model, params, TOKENS, chunk=-1)


def test_whole_logits_are_never_there():
    """With short rows, so that the logits are what takes the memory."""
    spec = replace(load_hf(GOLDEN / "gpt2")[0].spec, vocab_size=4096, max_positions=256)
    model = models.causal_lm(spec)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((64, 17), jnp.int32)

    def occupied(chunk, transform):
        def loss(params, tokens):
            return jnp.mean(models.next_token_nats(model, params, tokens, chunk=chunk))

        return jax.jit(transform(loss)).lower(params, tokens).compile().memory_analysis().temp_size_in_bytes

    logits = 64 * 16 * 4096 * 4
    assert occupied(64, lambda loss: loss) < logits / 8 < logits < occupied(0, lambda loss: loss)
    assert occupied(64, jax.grad) < occupied(0, jax.grad) - logits
    assert occupied(None, jax.grad) == occupied(0, jax.grad)


@pytest.mark.parametrize("name", ["gpt2", "gpt2_untied"])
def test_choices_are_the_logits_of_their_tokens_after_the_row(name):
    model, params = load_hf(GOLDEN / name)
    choices = jnp.array([3, 50, 7])
    for mask, ends in ((None, [11, 11]), (MASK, [11, 11]), (MASK[:, ::-1], [7, 11])):
        logits = model.apply(params, TOKENS, mask=mask).logits
        found = models.choice_logits(model, params, TOKENS, choices, mask=mask)
        np.testing.assert_allclose(found, logits[jnp.arange(2), jnp.array(ends)][:, choices], atol=1e-5)


@every_family
def test_decoding_with_a_cache_is_decoding_without(name):
    model, params = load_hf(GOLDEN / name)
    found = models.greedy(model, params, TOKENS, num_tokens=9, mask=MASK)
    np.testing.assert_array_equal(found, without_cache(model, params, 9, mask=MASK))
    alone = models.greedy(model, params, TOKENS[:1, 4:], num_tokens=9)
    np.testing.assert_array_equal(alone, found[:1])
    turned = jnp.roll(TOKENS[:1], -4, axis=1)  # the padding behind
    np.testing.assert_array_equal(models.greedy(model, params, turned, num_tokens=9, mask=MASK[:1, ::-1]), alone)


def without_cache(model, params, num_tokens, mask=None, **options):
    """Greedy decoding that reads everything again for each token; later places cannot be seen, so they are filled."""
    length = TOKENS.shape[1]
    tokens = jnp.pad(TOKENS, ((0, 0), (0, num_tokens)))
    mask = None if mask is None else jnp.pad(mask, ((0, 0), (0, num_tokens)), constant_values=True)
    for i in range(length, length + num_tokens):
        best = jnp.argmax(model.apply(params, tokens, mask=mask, **options).logits[:, i - 1], axis=-1)
        tokens = tokens.at[:, i].set(best)
    return tokens[:, length:]


def test_decoding_stops_at_the_end_token_and_refuses_what_has_no_position():
    model, params = load_hf(GOLDEN / "gpt2")
    free = np.asarray(models.greedy(model, params, TOKENS, num_tokens=8))
    end = int(free[0, 3])
    stopped = np.asarray(models.greedy(model, params, TOKENS, num_tokens=8, end=end))
    for row, other in zip(stopped, free, strict=True):
        first = list(other).index(end) if end in other else 8
        np.testing.assert_array_equal(row[: first + 1], other[: first + 1])
        assert (row[first:] == end).all()
    for call in (
        lambda: models.greedy(model, params, TOKENS, num_tokens=22),
        lambda: model.apply(params, jnp.zeros((1, 33), int)),
    ):
        with pytest.raises(InvalidInput, match=r"this model has 32 positions"):
            call()
    assert models.greedy(model, params, TOKENS, num_tokens=21).shape == (2, 21)  # nobody reads the last
    with pytest.raises(InvalidInput, match=r"num_tokens must be at least 1; got 0"):
        models.greedy(model, params, TOKENS, num_tokens=0)


def test_a_token_or_a_position_that_is_not_there_gives_no_number():
    model, params = load_hf(GOLDEN / "gpt2")
    for token in (53, -1):
        logits = np.asarray(model.apply(params, TOKENS.at[0, 5].set(token)).logits)
        assert np.isnan(logits[0, 5:]).all()
        assert np.isfinite(logits[1]).all()
        answers = models.choice_logits(model, params, TOKENS, jnp.asarray([0, token]))
        np.testing.assert_array_equal(np.isnan(answers), [[False, True]] * 2)
        padded = TOKENS.at[0, 0].set(token)  # padding may be anything
        assert bits(model.apply(params, padded, mask=MASK)) == bits(
            model.apply(params, TOKENS.at[0, 0].set(0), mask=MASK)
        )
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12)).at[1, 3].set(32)
    assert np.isnan(model.apply(params, TOKENS, positions=positions).logits[1, 3:]).all()


def test_an_adapter_and_a_steer_act_while_decoding():
    model, params = load_hf(GOLDEN / "qwen3")
    lora = models.Lora(adapter(params, SITES["qwen3"]), 1.0)
    steer = 2 * jax.random.normal(jax.random.key(1), (3, 16))
    found = models.greedy(model, params, TOKENS, num_tokens=5, lora=lora, steer=steer)
    np.testing.assert_array_equal(found, without_cache(model, params, 5, lora=lora, steer=steer))
    assert (np.asarray(found) != np.asarray(models.greedy(model, params, TOKENS, num_tokens=5))).any()


@every_family
def test_bfloat16_is_near_float32(name):
    model, half = load_hf(GOLDEN / name, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    ours, known = (jax.nn.log_softmax(model.apply(p, TOKENS).logits) for p in (half, rounded))
    assert ours.dtype == jnp.float32
    divergence = jnp.sum(jnp.exp(known) * (known - ours), axis=-1)
    assert float(jnp.mean(divergence)) < 1e-3
    assert float(jnp.mean(jnp.argmax(ours, -1) == jnp.argmax(known, -1))) > 0.9


def test_the_same_spec_is_the_same_model():
    model, _ = load_hf(GOLDEN / "llama")
    assert load_hf(GOLDEN / "llama")[0] is model
    assert models.causal_lm(replace(model.spec, norm_eps=1e-3)) is not model


@pytest.mark.parametrize("name", tiny_hf.MODELS)
def test_fresh_parameters_fit_and_are_stacked_by_name(name):
    model, params = load_hf(GOLDEN / name)
    fresh = model.init(jax.random.key(0))
    trees.check_match("init", fresh, params)
    for leaf_name, leaf in zip(trees.leaf_names(fresh), jax.tree.leaves(fresh), strict=True):
        assert model.stacked(leaf_name) == leaf_name.startswith("layers/")
        if model.stacked(leaf_name):
            assert leaf.shape[0] == 2
            if leaf_name.endswith("kernel"):
                assert (leaf[0] != leaf[1]).any()
    # Nearly uniform: the stream is small beside what it takes to prefer a token.
    nats = models.next_token_nats(model, fresh, TOKENS)
    np.testing.assert_allclose(jnp.mean(nats), np.log(53), atol=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads; got 3 for 4"),
        ({"head_width": 5}, "head_width must be even; got 5"),
        ({"windows": (3,)}, "windows needs one for each layer; got 1 for 2"),
        ({"activation": "tanh"}, "activation must be one of gelu_tanh, .*; got `tanh`"),
        ({"width": 0}, "width must be at least 1; got 0"),
        ({"norm": "rmsnorm"}, "norm must be one of layer, layer_plain, rms; got `rmsnorm`"),
        ({"query_key_norm": "heads"}, "query_key_norm must be one of none, head, whole; got `heads`"),
        ({"windows": (0, None)}, "windows must be at least 1, or None"),
        ({"norm_eps": -1.0}, "norm_eps must not be negative; got -1.0"),
        ({"rotary_base": 0.0}, "rotary_base must be positive, or None; got 0.0"),
        ({"clip_qkv": float("nan")}, "clip_qkv must be positive, or None; got nan"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    spec = load_hf(GOLDEN / "qwen2")[0].spec
    with pytest.raises(InvalidInput, match=message):
        replace(spec, **change)


@pytest.mark.parametrize("shape", [(2, 16), (3, 12, 16), (3, 2, 16), (3, 15), (3, 2, 11, 16), (3, 2, 12, 1), (3,)])
def test_a_steer_of_another_shape_is_refused(shape):
    model, params = load_hf(GOLDEN / "gpt2")
    with pytest.raises(
        InvalidInput, match=r"steer needs the shape \[3, D\] or \[3, B, S, D\].* for a stream of \[2, 12, 16\]"
    ):
        model.apply(params, TOKENS, steer=jnp.zeros(shape))
    for fits in ((3, 1, 12, 16), (3, 2, 1, 16)):
        assert bits(model.apply(params, TOKENS, steer=jnp.zeros(fits))) == bits(model.apply(params, TOKENS))


def test_a_mask_or_positions_of_another_shape_are_refused():
    model, params = load_hf(GOLDEN / "gpt2")
    for positions in (jnp.zeros((2, 1), int), jnp.arange(12), jnp.zeros((2, 12))):
        with pytest.raises(InvalidInput, match=r"positions needs an integer for every token; got .* for tokens of"):
            model.apply(params, TOKENS, positions=positions)
    for short in (MASK[:, 1:], MASK[:, :1]):
        with pytest.raises(InvalidInput, match=r"mask needs an entry for every token"):
            models.greedy(model, params, TOKENS, num_tokens=2, mask=short)
    with pytest.raises(InvalidInput, match=r"mask needs an entry for every token; got shape \(2, 11\) for \(2, 12\)"):
        model.apply(params, TOKENS, mask=MASK[:, 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: {"qvk": f["qkv"]},
            r"A and B at attention/out, attention/qkv, mlp/down, mlp/up; got `attention/qvk/A`",
        ),
        (lambda f: {"qkv": {"A": f["qkv"]["A"]}}, "an adapter at `attention/qkv` needs A"),
        (
            lambda f: {"qkv": {"A": f["qkv"]["A"][:, 1:], "B": f["qkv"]["B"]}},
            r"`attention/qkv/A` of shape \[2, 15, 3\]",
        ),
        (lambda f: {"qkv": {"A": f["qkv"]["A"], "B": f["qkv"]["B"][:1]}}, r"`attention/qkv/B` of shape \[1, 3, 48\]"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(change, message):
    model, params = load_hf(GOLDEN / "gpt2")
    factors = adapter(params, ["attention/qkv"])
    broken = models.Lora({"layers": {"attention": change(factors["layers"]["attention"])}}, 1.0)
    with pytest.raises(InvalidInput, match=message):
        model.apply(params, TOKENS, lora=broken)


@pytest.mark.parametrize("more", [{}, {"layers": {}, "head": {"A": TOKENS}}, {"attention": {}}])
def test_an_adapter_is_of_layers_and_of_nothing_else(more):
    model, params = load_hf(GOLDEN / "gpt2")
    with pytest.raises(InvalidInput, match=r'an adapter is \{"layers"'):
        model.apply(params, TOKENS, lora=models.Lora(more, 1.0))


def test_the_stream_keeps_the_dtype_of_the_embedding_whatever_the_weights_have():
    model, params = load_hf(GOLDEN / "qwen2", dtype=jnp.bfloat16)
    mixed = params | {"layers": jax.tree.map(lambda x: x.astype(jnp.float32), params["layers"])}
    assert model.apply(mixed, TOKENS, taps="all").resid.dtype == jnp.bfloat16
    wider = model.apply(params, TOKENS, layer_map=lambda _, own: jax.tree.map(lambda x: x.astype(jnp.float32), own))
    assert bits(wider) == bits(model.apply(params, TOKENS))


def test_the_last_token_is_found_among_the_new_ones_of_a_cache():
    model, params = load_hf(GOLDEN / "qwen2")
    cache = empty_cache(model.spec, 2, 20, jnp.float32)
    filled = jnp.broadcast_to(jnp.arange(20) < 12, (2, 20))
    found = stream(model.spec, params, TOKENS, mask=filled, cache=cache, taps="last").resid
    np.testing.assert_allclose(found, model.apply(params, TOKENS, taps="last").resid, atol=1e-5)


def test_a_call_outside_of_a_jit_compiles_once():
    model, params = load_hf(GOLDEN / "qwen2")
    model.apply(params, TOKENS, mask=MASK)
    before = _compiled._cache_size()
    model.apply(params, TOKENS + 1, mask=MASK)
    assert _compiled._cache_size() == before
