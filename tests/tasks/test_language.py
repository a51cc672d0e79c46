"""Tasks of language models: which tokens the loss is a mean over, perplexity, and what is data to what is compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_lm import MODEL, PARAMS

from lacuna import models, tasks

B, S, V = 5, 7, 11


def table_nats(params, tokens):
    """A model whose logits of the next token are a row of `params["table"]`, that of the token before it."""
    logits = jax.nn.log_softmax(params["table"][tokens[:, :-1]], axis=-1)
    return -jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]


def table_right(params, tokens):
    return jnp.argmax(params["table"][tokens[:, :-1]], axis=-1) == tokens[:, 1:]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    answer = rng.random((B, S)) < 0.4
    answer[:, 0] = True  # which must not count: nothing predicts it
    return tasks.Batch(jnp.asarray(rng.integers(0, V, (B, S)), jnp.int32), jnp.asarray(answer))


@pytest.fixture
def params():
    return {"table": jnp.asarray(np.random.default_rng(1).normal(size=(V, V)) * 2, jnp.float32)}


def oracle(params, batch):
    """Mean nats and accuracy over the tokens that count, in float64 and one by one."""
    table, tokens, answer = (np.asarray(array) for array in (params["table"], *batch))
    nats, right = [], []
    for b in range(B):
        for s in range(1, S):
            if answer[b, s]:
                logits = table[tokens[b, s - 1]].astype(np.float64)
                nats.append(np.log(np.sum(np.exp(logits - logits[tokens[b, s]]))))
                right.append(np.argmax(logits) == tokens[b, s])
    return np.mean(nats), np.mean(right)


def test_the_loss_is_the_mean_over_the_tokens_that_count(params, batch):
    loss = tasks.language_loss(table_nats)
    assert loss(params, batch) == pytest.approx(oracle(params, batch)[0], rel=1e-6)
    assert jax.jit(loss)(params, batch) == pytest.approx(oracle(params, batch)[0], rel=1e-6)


def test_tokens_that_do_not_count_after_the_last_that_does_cost_nothing(params, batch):
    answer = batch.answer.at[:, 4:].set(False)
    other = batch.tokens.at[:, 4:].set((batch.tokens[:, 4:] + 1) % V)
    loss = tasks.language_loss(table_nats)
    assert loss(params, tasks.Batch(batch.tokens, answer)) == loss(params, tasks.Batch(other, answer))


def test_what_does_not_count_may_be_anything(params, batch):
    def partly(params, tokens):
        return jnp.where(batch.answer[:, 1:], table_nats(params, tokens), jnp.nan)

    found = tasks.language_loss(partly)(params, batch)
    assert found == tasks.language_loss(table_nats)(params, batch)
    assert jnp.isfinite(found)


def test_no_token_that_counts_gives_zero(params, batch):
    none = batch._replace(answer=jnp.zeros((B, S), bool).at[:, 0].set(True))
    assert tasks.language_loss(table_nats)(params, none) == 0
    assert jnp.all(jax.grad(tasks.language_loss(table_nats))(params, none)["table"] == 0)


def test_perplexity_is_the_exponential_of_the_loss_and_accuracy_counts_as_the_loss_does(params, batch):
    task = tasks.language_task("table", lambda _: batch, lambda _: batch, table_nats, table_right)
    nats, right = oracle(params, batch)
    assert task.objective.loss(params, batch) == pytest.approx(nats, rel=1e-6)
    found = task.metric(params, batch)
    assert found == {"accuracy": pytest.approx(right, rel=1e-6), "perplexity": pytest.approx(np.exp(nats), rel=1e-5)}
    assert 0 < right < 1


def test_frozen_weights_are_data_to_what_is_compiled(batch):
    """The loss of another frozen table is another argument of the program, not another program."""
    traces = []

    def nats(frozen, params, tokens):
        return table_nats({"table": frozen + params["table"]}, tokens)

    @jax.jit
    def compiled(loss, params, batch):
        traces.append(loss)
        return loss(params, batch)

    moved = {"table": jnp.eye(V)}
    found = []
    for seed in (0, 1):
        frozen = jnp.asarray(np.random.default_rng(seed).normal(size=(V, V)), jnp.float32)
        found.append(compiled(tasks.language_loss(jax.tree_util.Partial(nats, frozen)), moved, batch))
        assert found[-1] == pytest.approx(oracle({"table": frozen + moved["table"]}, batch)[0], rel=1e-6)
    assert len(traces) == 1
    assert found[0] != found[1]


def test_the_loss_of_a_language_model_over_text():
    """Rows of text, a stream of them, a model and a task, against the model's own nats."""
    rows = tasks.pack(
        ["the quick brown fox jumps over the lazy dog"], lambda text: [ord(c) % 64 for c in text], length=6
    )
    train, held_out = tasks.row_stream(rows, seed=0, batch_size=3), tasks.in_order(rows, 7)
    nats, right = (partial(of, MODEL) for of in (models.next_token_nats, models.next_token_right))
    task = tasks.language_task("fox", train, held_out, nats, right)
    whole = np.asarray(models.next_token_nats(MODEL, PARAMS, jnp.asarray(rows.tokens)))
    assert task.objective.loss(PARAMS, task.held_out(0)) == pytest.approx(np.mean(whole), rel=1e-6)
    assert task.train(0).tokens.shape == (3, 6)
    assert task.metric(PARAMS, task.held_out(0))["perplexity"] == pytest.approx(np.exp(np.mean(whole)), rel=1e-5)
