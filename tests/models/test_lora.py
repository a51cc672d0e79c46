"""Adapters as trees of their own: their laws, and that everything which runs over weights runs over them."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tiny_hf

from lacuna import derivatives, geometry, models, search, training, trees
from lacuna.checkpoints import load_hf
from lacuna.errors import InvalidInput, TreeMismatch

TOKENS = jnp.asarray(tiny_hf.tokens())
SITES = ("attention/out", "attention/qkv", "mlp/down", "mlp/up")


@pytest.fixture(scope="module")
def gpt2():
    return load_hf(Path(__file__).parents[1] / "golden" / "gpt2")


def mean_nats(model, params, tokens, **options):
    return jnp.mean(models.next_token_nats(model, params, tokens, **options))


def random_factors(spec, seed=0):
    """Both factors random everywhere, also beyond the ranks."""
    like = spec.init(jax.random.key(seed))
    return trees.map_named(lambda name, x: 0.3 * jax.random.normal(jax.random.key(len(name) + seed), x.shape), like)


def uneven(model, *, rslora=False):
    """Two sites with another rank and strength in each layer; one layer of one of them is left out."""
    spec = models.lora_spec(model, sites="attention/qkv|mlp/down", rslora=rslora)
    sites = (replace(site, ranks=(i, 3), alphas=(1.0 + i, 5.0 - i)) for i, site in enumerate(spec.sites))
    return replace(spec, sites=tuple(sites))


def merged_by_hand(params, spec, factors):
    """`W + scale A B` layer by layer in float64, from the definition."""
    found = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for site in spec.sites:
        module, linear = site.name.split("/")
        pair = factors["layers"][module][linear]
        for layer, (rank, alpha) in enumerate(zip(site.ranks, site.alphas, strict=True)):
            if rank:
                scale = alpha / (np.sqrt(rank) if spec.rslora else rank)
                a, b = np.asarray(pair["A"][layer, :, :rank]), np.asarray(pair["B"][layer, :rank])
                found["layers"][module][linear]["kernel"][layer] += scale * a.astype(np.float64) @ b
    return found


def test_a_fresh_adapter_is_drawn_by_name_and_changes_nothing(gpt2):
    model, params = gpt2
    spec = models.lora_spec(model, rank=8, sites=".*")
    assert tuple(site.name for site in spec.sites) == SITES
    fresh = spec.init(jax.random.key(0))
    for name, leaf in trees.named_leaves(fresh):
        if name.endswith("/B"):
            assert not np.asarray(leaf).any()
            continue
        most = leaf.shape[1] ** -0.5
        assert np.abs(leaf).max() <= most
        # A uniform number within ±m has a variance of m^2 / 3; that of n of them is known to 0.9 / sqrt(n).
        assert abs(np.var(leaf) / (most**2 / 3) - 1) < 4 * 0.9 / np.sqrt(leaf.size)
        assert abs(oracles.correlation(leaf[0], leaf[1])) < 4 / np.sqrt(leaf[0].size)
    first, second = fresh["layers"]["attention"]["out"]["A"], fresh["layers"]["attention"]["qkv"]["A"]
    assert first.shape == second.shape
    assert abs(oracles.correlation(first, second)) < 4 / np.sqrt(first.size)
    alone = models.lora_spec(model, rank=8, sites="mlp/up").init(jax.random.key(0))
    assert oracles.bits(alone["layers"]["mlp"]["up"]) == oracles.bits(fresh["layers"]["mlp"]["up"])
    assert oracles.bits(spec.init(jax.random.key(1))) != oracles.bits(fresh)
    plain = model.apply(params, TOKENS).logits
    np.testing.assert_array_equal(model.apply(params, TOKENS, lora=spec.bind(fresh)).logits, plain)


@pytest.mark.parametrize(
    ("sites", "found"),
    [
        ("attention/.*", SITES[:2]),
        ("mlp/(up|down)", SITES[2:]),
        (models.lora.DEFAULT_SITES, ("attention/qkv",)),
        (".*/out", ("attention/out",)),
    ],
)
def test_sites_are_chosen_by_a_pattern_for_their_whole_name(gpt2, sites, found):
    spec = models.lora_spec(gpt2[0], rank=3, alpha=6.0, sites=sites)
    assert tuple(site.name for site in spec.sites) == found
    assert {site.ranks for site in spec.sites} == {(3, 3)}
    assert {site.alphas for site in spec.sites} == {(6.0, 6.0)}
    widths = models.linear_sites(gpt2[0])
    assert widths == {"attention/out": (16, 16), "attention/qkv": (16, 48), "mlp/down": (64, 16), "mlp/up": (16, 64)}
    assert all((site.width_in, site.width_out) == widths[site.name] for site in spec.sites)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"rank must be a whole number of at least 1; got 0"),
        ({"alpha": 0.0}, r"alpha must be positive; got 0\.0"),
        ({"alpha": float("inf")}, r"alpha must be positive; got inf"),
        ({"alpha": float("nan")}, r"alpha must be positive; got nan"),
        ({"sites": "("}, r"sites must be a regular expression; got `\(`: "),
        ({"sites": "qkv"}, r"sites must match one of attention/out, attention/qkv, mlp/down, mlp/up; got `qkv`"),
        ({"sites": "attention"}, r"sites must match one of"),
    ],
)
def test_what_no_adapter_can_be_is_refused(gpt2, options, message):
    with pytest.raises(InvalidInput, match=message):
        models.lora_spec(gpt2[0], **options)


@pytest.mark.parametrize("rslora", [False, True])
def test_scales_by_site_and_layer_are_those_of_the_definition(gpt2, rslora):
    model, params = gpt2
    spec = uneven(model, rslora=rslora)
    factors = random_factors(spec)
    lora = spec.bind(factors)
    assert lora.scale["mlp/down"].shape == (2,)
    np.testing.assert_allclose(lora.scale["attention/qkv"], [0.0, 5 / (np.sqrt(3) if rslora else 3)], rtol=1e-6)
    merged, by_hand = models.merged(params, lora), merged_by_hand(params, spec, factors)
    for ours, other in zip(jax.tree.leaves(merged), jax.tree.leaves(by_hand), strict=True):
        np.testing.assert_allclose(ours, other, atol=2e-6)  # ten roundings of numbers up to 3
    found = model.apply(params, TOKENS, lora=lora).logits
    np.testing.assert_allclose(found, model.apply(merged, TOKENS).logits, atol=1e-5)
    assert np.abs(found - model.apply(params, TOKENS).logits).max() > 0.1


def test_what_lies_beyond_the_rank_of_a_layer_counts_for_nothing(gpt2):
    model, params = gpt2
    spec = uneven(model)
    factors = random_factors(spec)
    cut = {site.name: site.ranks for site in spec.sites}

    def other(name, leaf, beyond):
        _, module, linear, factor = name.split("/")
        for layer, rank in enumerate(cut[f"{module}/{linear}"]):
            leaf = leaf.at[layer, :, rank:].set(beyond) if factor == "A" else leaf.at[layer, rank:].set(beyond)
        return leaf

    changed = trees.map_named(lambda name, leaf: other(name, leaf, jnp.nan), factors)
    assert oracles.bits(changed) != oracles.bits(factors)
    found = model.apply(params, TOKENS, lora=spec.bind(changed)).logits
    np.testing.assert_array_equal(found, model.apply(params, TOKENS, lora=spec.bind(factors)).logits)
    same = models.merged(params, spec.bind(changed))
    assert oracles.bits(same) == oracles.bits(models.merged(params, spec.bind(factors)))
    slope = derivatives.gradient(models.over_adapter(mean_nats, model, params, spec), changed, TOKENS)
    assert oracles.bits(trees.map_named(lambda name, leaf: other(name, leaf, 0.0), slope)) == oracles.bits(slope)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(slope))
    fresh = spec.init(jax.random.key(0))
    assert oracles.bits(trees.map_named(lambda name, leaf: other(name, leaf, 0.0), fresh)) == oracles.bits(fresh)


def test_factors_of_another_rank_than_the_specification_are_refused(gpt2):
    model, _ = gpt2
    four, eight = (models.lora_spec(model, rank=rank) for rank in (4, 8))
    with pytest.raises(TreeMismatch, match=r"LoraSpec.bind .*`layers/attention/qkv/A` with shape \(2, 16, 8\)"):
        eight.bind(four.init(jax.random.key(0)))
    with pytest.raises(TreeMismatch, match=r"`layers/mlp/up/A` with no such leaf in the first"):
        four.bind(models.lora_spec(model, rank=4, sites=".*(qkv|up)").init(jax.random.key(0)))


def test_a_merge_in_bfloat16_rounds_once(gpt2):
    model, params = gpt2
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    spec = models.lora_spec(model, rank=3, sites=".*")
    factors = random_factors(spec)
    merged = models.merged(half, spec.bind(factors))
    wide = merged_by_hand(half, spec, factors)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    once = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32).astype(jnp.bfloat16), wide)
    assert oracles.bits(merged) == oracles.bits(once)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), factors)
    # Half a unit in the last place of 8 bits, of sums that the wide factors of bfloat16 give.
    for ours, other in zip(
        jax.tree.leaves(models.merged(half, spec.bind(narrow))),
        jax.tree.leaves(merged_by_hand(half, spec, narrow)),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(ours, np.float64), other, rtol=2**-8, atol=1e-6)


def test_an_adapter_of_other_weights_is_not_merged(gpt2):
    model, params = gpt2
    factors = random_factors(models.lora_spec(model, rank=2, sites="mlp/up"))
    for wrong in (
        models.Lora({"layers": {"mlp": {"gate": factors["layers"]["mlp"]["up"]}}}, 1.0),
        models.Lora(jax.tree.map(lambda x: x[:1], factors), 1.0),
        models.Lora(factors, {"mlp/down": 1.0}),
    ):
        with pytest.raises(InvalidInput, match="an adapter "):
            models.merged(params, wrong)


@pytest.fixture(scope="module")
def start(gpt2):
    """An objective over an adapter whose ranks differ, and a warm point on it."""
    spec = uneven(gpt2[0])
    return models.over_adapter(mean_nats, *gpt2, spec), random_factors(spec)


def test_the_gradient_of_the_first_factor_is_zero_at_the_start_and_not_after_a_step(gpt2, start):
    loss, _ = start
    fresh = uneven(gpt2[0]).init(jax.random.key(0))
    slope = derivatives.gradient(loss, fresh, TOKENS)
    warm = derivatives.gradient(loss, trees.axpy(-0.1, slope, fresh), TOKENS)
    for (name, at_start), (_, later) in zip(trees.named_leaves(slope), trees.named_leaves(warm), strict=True):
        assert np.asarray(at_start).any() == name.endswith("/B")
        assert np.asarray(later).any()


BATCHES = jnp.stack([TOKENS, (TOKENS + 1) % 53, (TOKENS + 2) % 53])


def test_other_weights_need_no_second_compilation(gpt2, start):
    model, params = gpt2
    loss, factors = start
    first = derivatives.gradient(loss, factors, TOKENS)
    programs = derivatives._gradient._cache_size()
    other = jax.tree.map(lambda x: 1.1 * x, params)
    second = derivatives.gradient(models.over_adapter(mean_nats, model, other, uneven(model)), factors, TOKENS)
    assert derivatives._gradient._cache_size() == programs
    assert oracles.bits(first) != oracles.bits(second)


def test_gradients_of_tasks_span_a_basis_on_the_adapter(start):
    loss, factors = start
    rows = derivatives.task_gradients(loss, factors, BATCHES)
    for i, batch in enumerate(BATCHES):
        one = derivatives.gradient(loss, factors, batch)
        np.testing.assert_allclose(oracles.flat_rows(rows)[i], oracles.flat(one), rtol=1e-4, atol=1e-7)
    basis = geometry.gradient_basis(rows, rank=2)
    assert int(basis.status) == 0
    matrix = oracles.flat_rows(basis.rows)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-5)
    assert jax.tree.structure(basis.rows) == jax.tree.structure(factors)


def test_a_krylov_space_of_the_hessian_by_the_adapter(start):
    loss, factors = start
    gradient = derivatives.gradient(loss, factors, TOKENS)
    basis, _ = geometry.krylov(derivatives.hvp(loss, factors, TOKENS), gradient, rank=2)
    assert int(basis.status) == 0
    matrix = oracles.flat_rows(basis.rows)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-5)
    step = 3e-3
    slopes = [derivatives.gradient(loss, trees.axpy(by, gradient, factors), TOKENS) for by in (step, -step)]
    product = (oracles.flat(slopes[0]) - oracles.flat(slopes[1])) / (2 * step)
    rest = product - matrix.T @ (matrix @ product)
    assert np.linalg.norm(rest) < 1e-2 * np.linalg.norm(product)  # of a difference over a step that is not zero


def test_recovery_moves_the_adapter_alone(gpt2, start):
    loss, factors = start
    before = oracles.bits(gpt2[1])
    path = training.recover(loss, factors, lambda step: TOKENS, training.RecoverConfig("sgd", 0.05, num_steps=8))
    assert path.losses[-1] < path.losses[0]
    assert jax.tree.structure(path.end) == jax.tree.structure(factors)
    moved = jax.tree.map(lambda end, start: end - start, path.end, factors)
    np.testing.assert_allclose(oracles.flat_rows(path.updates).sum(0), oracles.flat(moved), atol=1e-6)
    assert oracles.bits(gpt2[1]) == before


def test_a_sweep_searches_the_adapter(start):
    loss, factors = start
    sweep = search.Sweep(search.gaussian(), sigmas=(0.05,), num_candidates=4, seed=3)
    result = search.run_sweep(loss, factors, TOKENS, sweep)
    assert result.scores.shape == (4, 1, 2)
    assert len(set(result.scores.ravel().tolist())) == 8
    winner = search.candidate(factors, sweep, result.best.index, result.best.sigma, result.best.sign)
    np.testing.assert_allclose(jax.jit(loss)(winner, TOKENS), result.scores.min(), rtol=1e-6)


def test_a_steer_is_added_beside_an_adapter(gpt2):
    model, params = gpt2
    spec = uneven(model)
    lora = spec.bind(random_factors(spec))
    steer = jax.random.normal(jax.random.key(1), (3, 16))
    both = model.apply(params, TOKENS, lora=lora, steer=steer).logits
    np.testing.assert_allclose(both, model.apply(models.merged(params, lora), TOKENS, steer=steer).logits, atol=1e-5)
    assert np.abs(both - model.apply(params, TOKENS, lora=lora).logits).max() > 0.1
