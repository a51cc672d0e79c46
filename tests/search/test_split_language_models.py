"""Language models split over one axis of a mesh, candidates over the other: the same scores, and no weight moves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_text import COLLECTIVE, of_matrices, shapes

from lacuna import meshes, trees
from lacuna.checkpoints.configs import spec_from_config
from lacuna.errors import RunMismatch
from lacuna.models import causal_lm, narrowed, next_token_nats, sharding
from lacuna.search import Sweep, gaussian, realised, run, run_sweep

SPLIT = 4
CONFIGS = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 56, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 8}
    | {"n_inner": 112},
    "qwen2": {"model_type": "qwen2", "vocab_size": 56, "num_hidden_layers": 2, "hidden_size": 48}
    | {"intermediate_size": 112, "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True},
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 56, (2, 7)))
TOLERANCE = {
    "float32": 1e-5,
    # Parts of a product are added up in another order and rounded, by 2^-9 at most; a dozen tokens even that out.
    "bfloat16": 2e-3,
}


def prepared(name, dtype):
    """A model whose matrices are large enough to matter, and whose vectors are neither ones nor zeros."""
    model = causal_lm(spec_from_config(CONFIGS[name]))

    def grown(leaf_name, x):
        ripple = 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape)
        return 4 * x if x.ndim - model.stacked(leaf_name) > 1 else x + ripple

    params = trees.map_named(grown, model.init(jax.random.key(0)))
    return model, params if dtype == "float32" else narrowed(params, dtype, model.stacked)


def loss(model, params, tokens):
    return jnp.mean(next_token_nats(model, params, tokens))


@pytest.fixture
def programs_of_sweeps(monkeypatch):
    """The compiled steps of the sweeps that are run, as text."""
    texts = []

    class Read(run.Stepper):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            texts.append(self.compiled.as_text())

    monkeypatch.setattr(run, "Stepper", Read)
    return texts


@pytest.mark.parametrize(("name", "dtype"), [("gpt2", "bfloat16"), ("qwen2", "float32")])
def test_a_split_language_model_scores_as_a_whole_one_and_gathers_no_weight(name, dtype, programs_of_sweeps):
    model, params = prepared(name, dtype)
    placed = sharding.place(params, meshes.model_mesh(SPLIT, jax.devices()))
    sweep = Sweep(gaussian(stacked=model.stacked), (1e-2,), 8, seed=3, top_k=3)
    objective = jax.tree_util.Partial(loss, model)
    whole = run_sweep(objective, params, TOKENS, sweep, mesh=meshes.candidate_mesh(jax.devices()[:1]))
    parted = run_sweep(objective, placed, TOKENS, sweep)
    assert (parted.machine["num_devices"], np.ptp(whole.scores) > 0.1) == (8, True)
    np.testing.assert_allclose(parted.scores, whole.scores, rtol=TOLERANCE[dtype])
    np.testing.assert_allclose(parted.base_score, whole.base_score, rtol=TOLERANCE[dtype])
    assert [c[:3] for c in parted.top_k] == [c[:3] for c in whole.top_k]

    split = {name: leaf for name, leaf in trees.named_leaves(placed) if not leaf.is_fully_replicated}
    matrices = [leaf for name, leaf in split.items() if leaf.ndim - model.stacked(name) > 1]
    assert (len(matrices), len(split) - len(matrices)) == {"gpt2": (5, 2), "qwen2": (8, 3)}[name]  # biases, too
    wholes = of_matrices({leaf.shape for leaf in matrices})
    parts = of_matrices({leaf.addressable_shards[0].data.shape for leaf in matrices})
    assert not wholes & parts
    text = programs_of_sweeps[1]
    assert not shapes(text) & wholes  # no weight and no noise is whole on any device
    assert parts & shapes(" ".join(re.findall(r"u32\[[\d,]*\]", text)))  # the random bits of a part
    for result, kind in COLLECTIVE.findall(text):
        # Activations alone, [tokens, ...] or [rows, tokens, ...], the answers of a part for each token, and scores.
        of_tokens = [shape[:1] in ((12,), (14,)) or shape[:2] == (2, 7) for shape in shapes(result)]
        of_scores = {shape[1:] for shape in shapes(result)} == {(2,)} and kind == "all-gather"
        of_control = result.startswith("s32[2]") and kind == "all-reduce"
        assert all(of_tokens) or of_scores or of_control, (kind, result)


def test_what_rounding_leaves_of_a_split_model_is_that_of_the_whole_one():
    _, params = prepared("qwen2", "bfloat16")
    placed = sharding.place(params, meshes.model_mesh(SPLIT, jax.devices()))
    sweep = Sweep(gaussian(), (1e-3,), 8, seed=3)
    points = ({"up": point["layers"]["mlp"]["up"], "table": point["embedding"]} for point in (params, placed))
    (whole,), (parted,) = (realised(point, sweep, num_draws=1) for point in points)
    np.testing.assert_allclose(parted.all, whole.all, rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_over_other_candidates_and_not_over_another_split(tmp_path):
    params, batch = {"embedding": jnp.arange(32.0).reshape(8, 4) / 32}, jnp.ones(4)
    sweep = Sweep(gaussian(), (0.1,), 16, seed=2)

    def objective(point, batch):
        return jnp.mean(jnp.square(point["embedding"] @ batch))

    def placed(split, num_devices=8):
        return sharding.place(params, meshes.model_mesh(split, jax.devices()[:num_devices]))

    first = run_sweep(objective, placed(4), batch, Sweep(gaussian(), (0.1,), 8, seed=2), out=tmp_path)
    for other in (placed(2), params):
        with pytest.raises(RunMismatch, match="model_axis"):
            run_sweep(objective, other, batch, sweep, out=tmp_path, resume=True)
    longer = run_sweep(objective, placed(4, num_devices=4), batch, sweep, out=tmp_path, resume=True)
    assert longer.num_scored == 8
    np.testing.assert_array_equal(longer.scores[:8], first.scores)
