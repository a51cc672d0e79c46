"""Noise of low rank beside the weights: the candidates and scores of noise in full, and products that all share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import geometry, keys, meshes, models, trees
from lacuna.models import CausalLMSpec, sharding
from lacuna.reports import rundir
from lacuna.search import (
    Candidate,
    Sweep,
    candidate,
    evaluate,
    gaussian,
    in_basis,
    low_rank,
    rescore,
    run_sweep,
    scaled,
    score,
)
from lacuna.search.objectives import with_data
from lacuna.search.stepper import Stepper
from lacuna.tasks.language import language_loss
from lacuna.tasks.task import Batch

MODEL = models.causal_lm(
    CausalLMSpec(
        vocab_size=40,
        max_positions=8,
        num_layers=2,
        width=16,
        mlp_width=24,
        num_heads=2,
        num_kv_heads=2,
        head_width=8,
        norm="layer_plain",
        norm_eps=1e-5,
        fused_qkv=True,
        out_bias=True,
        gated=False,
    )
)
PARAMS = jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, MODEL.init(jax.random.key(0)))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 7)))
FAMILY = low_rank(2, stacked=MODEL.stacked)
NUM = 6


def loss(params, tokens):
    """Mean cross-entropy of the next token."""
    return jnp.mean(models.next_token_nats(MODEL, params, tokens))


FACTORED = models.searchable(loss)


def one_device():
    return meshes.candidate_mesh(jax.devices()[:1])


def sweep_of(unit, family=FAMILY, width=1):
    return Sweep(family, (3e-2 if unit == "sigma" else 1.0,), NUM, seed=3, unit=unit, width=width, top_k=4)


@pytest.fixture(scope="module", params=["sigma", "exact_radius"])
def swept(request):
    """A sweep, and its results by noise in full and by factors."""
    sweep = sweep_of(request.param)
    return sweep, *(run_sweep(one, PARAMS, TOKENS, sweep, mesh=one_device()) for one in (loss, FACTORED))


def test_scores_by_factors_are_those_of_noise_in_full(swept):
    _, in_full, by_factors = swept
    assert np.ptp(in_full.scores) > 1e-2
    assert in_full.sha256 != by_factors.sha256
    np.testing.assert_allclose(by_factors.scores, in_full.scores, rtol=1e-5)
    np.testing.assert_allclose(by_factors.base_score, in_full.base_score, rtol=1e-6)


def test_a_candidate_scored_again_by_factors_has_the_recorded_bits(swept):
    sweep, _, found = swept
    every = tuple(Candidate(i, sweep.sigmas[0], sign, 0.0) for i in range(NUM) for sign in (1, -1))
    again = rescore(FACTORED, PARAMS, TOKENS, sweep, every).reshape(NUM, 2)
    np.testing.assert_array_equal(again, found.scores[:, 0])
    made = [float(score(FACTORED, candidate(PARAMS, sweep, *c[:3]), TOKENS)) for c in every[:4]]
    np.testing.assert_allclose(made, found.scores[:2].ravel(), rtol=1e-5)


def test_several_at_a_time_score_as_one_after_the_other_and_finalists_have_the_bits_of_these(swept):
    sweep, _, one_by_one = swept
    together = run_sweep(FACTORED, PARAMS, TOKENS, sweep_of(sweep.unit, width=3), mesh=one_device())
    np.testing.assert_allclose(together.scores, one_by_one.scores, rtol=1e-5)
    assert together.top_k == one_by_one.top_k


def test_no_weights_of_a_candidate_are_ever_there():
    objective, batch = with_data(FACTORED, TOKENS)
    sweep = sweep_of("sigma", width=3)
    program = evaluate.program_of(objective, FAMILY, width=3)
    text = Stepper(program, sweep, PARAMS, batch, one_device()).compiled.as_text()
    for name, leaf in trees.named_leaves(PARAMS):
        if name == "embedding" or name.endswith("/kernel"):
            assert f"f32[3,{','.join(map(str, leaf.shape))}]" not in text, name
            assert f"f32[3,{','.join(map(str, leaf.shape[-2:]))}]" not in text, name


SCALES = {r"layers/attention/.*": [2.0, 0.5], "embedding": 0.5, r"layers/mlp/down/.*": 3.0}


@pytest.mark.parametrize("name", ["low rank", "scaled", "not stacked"])
def test_factors_multiply_to_the_draw(name):
    family = {"low rank": FAMILY, "scaled": scaled(FAMILY, SCALES), "not stacked": low_rank(1)}[name]
    key = keys.candidate(keys.root(3), 5)
    in_full, by_factors = jax.jit(lambda: (family.draw(key, PARAMS), family.factored_draw(key, PARAMS)))()
    made = evaluate.Factors, 0
    num = 0
    for (name, dense), found in zip(
        trees.named_leaves(in_full), jax.tree.structure(PARAMS).flatten_up_to(by_factors), strict=True
    ):
        if isinstance(found, made[0]):
            left, right = (np.asarray(x, np.float64) for x in found)
            layers = left.ndim - 2
            product = np.einsum("lir,lro->lio", left, right) if layers else np.tensordot(left, right, 1)
            np.testing.assert_allclose(dense, product, rtol=1e-5, atol=1e-5, err_msg=name)
            num += 1
        else:
            np.testing.assert_array_equal(dense, found, err_msg=name)
    assert num >= 3


def test_a_scaled_sweep_by_factors_scores_as_one_in_full():
    sweep = Sweep(scaled(FAMILY, SCALES), (3e-2,), NUM, seed=3)
    in_full, by_factors = (run_sweep(one, PARAMS, TOKENS, sweep, mesh=one_device()).scores for one in (loss, FACTORED))
    np.testing.assert_allclose(by_factors, in_full, rtol=1e-5)


def test_what_has_no_factors_is_scored_as_before():
    sweep = Sweep(gaussian(stacked=MODEL.stacked), (1e-2,), NUM, seed=3)
    tables = [run_sweep(one, PARAMS, TOKENS, sweep, mesh=one_device()).sha256 for one in (loss, FACTORED)]
    assert tables[0] == tables[1]
    basis = in_basis(geometry.random_basis(keys.root(3), PARAMS, rank=2), block=4, stacked=MODEL.stacked)
    both = models.searchable(loss, layerwise=True)
    for family, layerwise, factored in ((FAMILY, False, True), (sweep.family, True, False), (basis, False, False)):
        program = evaluate.program_of(both, family)
        assert (program.layerwise, program.factored) == (layerwise, factored)


def test_layer_by_layer_a_searchable_loss_scores_as_with_whole_weights():
    sweep = Sweep(gaussian(stacked=MODEL.stacked), (1e-2,), NUM, seed=3)
    layerwise = models.searchable(loss, layerwise=True)
    found = run_sweep(layerwise, PARAMS, TOKENS, sweep, mesh=one_device())
    whole = run_sweep(loss, PARAMS, TOKENS, sweep, mesh=one_device())
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-6)
    np.testing.assert_array_equal(
        rescore(layerwise, PARAMS, TOKENS, sweep, found.top_k), [c.score for c in found.top_k]
    )


def test_a_run_says_that_its_noise_was_factors(tmp_path):
    sweep = Sweep(low_rank(1, stacked=MODEL.stacked), (1e-2,), 2)
    run_sweep(FACTORED, PARAMS, TOKENS, sweep, out=tmp_path / "factors", mesh=one_device())
    assert rundir.read_json(tmp_path / "factors" / "identity.json")["factored"] is True
    run_sweep(loss, PARAMS, TOKENS, sweep, out=tmp_path / "full", mesh=one_device())
    assert "factored" not in rundir.read_json(tmp_path / "full" / "identity.json")


def test_factors_of_a_split_model_are_split_with_it():
    mesh = meshes.model_mesh(2, jax.devices()[:4])
    placed = sharding.place(PARAMS, mesh)
    sweep = sweep_of("exact_radius")
    parted = run_sweep(FACTORED, placed, TOKENS, sweep)
    whole = run_sweep(FACTORED, PARAMS, TOKENS, sweep, mesh=one_device())
    np.testing.assert_allclose(parted.scores, whole.scores, rtol=1e-5)


def test_an_adapter_is_searched_with_its_weights_as_data():
    spec = models.lora_spec(MODEL, rank=1, sites="mlp/up")
    factors = jax.tree.map(lambda x: x + 0.1, spec.init(keys.root(1)))
    batch = Batch(TOKENS, jnp.ones(TOKENS.shape, bool))
    sweep = Sweep(gaussian(stacked=MODEL.stacked), (0.1,), 3, seed=3)
    programs, found = {}, []
    for factor in (1.0, 2.0):
        frozen = jax.tree.map(lambda x, factor=factor: factor * x, PARAMS)
        nats = models.over_adapter(models.next_token_nats, MODEL, frozen, spec)
        found.append(run_sweep(language_loss(nats), factors, batch, sweep, programs=programs, mesh=one_device()).scores)
        made = candidate(factors, sweep, 2, 0.1, -1)
        np.testing.assert_allclose(found[-1][2, 0, 1], jnp.mean(nats(made, TOKENS)), rtol=1e-5)
    assert len(programs) == 1
    assert np.abs(found[0] - found[1]).min() > 1e-3
