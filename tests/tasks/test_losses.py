"""Loss and accuracy on answers, against float64 numpy and against decoding itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import tasks

B, S, V = 5, 7, 11


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(B, S, V)).astype(np.float32) * 3
    tokens = rng.integers(0, V, (B, S)).astype(np.int32)
    answer = rng.random((B, S)) < 0.5
    answer[:, 0] = False
    answer[:, -1] = True
    return logits, tokens, answer


def cross_entropy_oracle(logits, tokens, answer):
    logits = logits.astype(np.float64)
    nats = [
        np.log(np.sum(np.exp(logits[b, s - 1] - logits[b, s - 1, tokens[b, s]])))
        for b in range(B)
        for s in range(1, S)
        if answer[b, s]
    ]
    return np.mean(nats)


def test_cross_entropy_is_the_mean_over_answer_tokens(rows):
    assert tasks.answer_cross_entropy(*map(jnp.asarray, rows)) == pytest.approx(cross_entropy_oracle(*rows), rel=1e-6)


def test_logits_of_the_last_token_may_be_left_out(rows):
    logits, tokens, answer = map(jnp.asarray, rows)
    for function in (tasks.answer_cross_entropy, tasks.answer_accuracy):
        assert function(logits, tokens, answer) == function(logits[:, :-1], tokens, answer)


def test_logits_of_questions_do_not_matter(rows):
    logits, tokens, answer = map(jnp.asarray, rows)
    gradient = np.asarray(jax.grad(tasks.answer_cross_entropy)(logits, tokens, answer))
    used = np.zeros((B, S), bool)
    used[:, :-1] = answer[:, 1:]
    assert np.all(gradient[~used] == 0)
    assert np.all(np.any(gradient[used] != 0, axis=-1))
    shaken = jnp.where(used[..., None], logits, 100 * logits[::-1])
    for function in (tasks.answer_cross_entropy, tasks.answer_accuracy):
        assert function(shaken, tokens, answer) == function(logits, tokens, answer)


def test_cross_entropy_is_finite_at_any_scale_and_float32_for_bfloat16(rows):
    logits, tokens, answer = map(jnp.asarray, rows)
    loss = tasks.answer_cross_entropy(logits * 1e4, tokens, answer)
    assert jnp.isfinite(loss)
    narrow = logits.astype(jnp.bfloat16)
    loss = tasks.answer_cross_entropy(narrow, tokens, answer)
    assert loss.dtype == jnp.float32
    assert loss == tasks.answer_cross_entropy(narrow.astype(jnp.float32), tokens, answer)


def test_no_answers_cost_nothing(rows):
    logits, tokens, answer = map(jnp.asarray, rows)
    assert tasks.answer_cross_entropy(logits, tokens, jnp.zeros_like(answer)) == 0


def test_accuracy_of_rows_written_by_hand():
    tokens = jnp.array([[0, 1, 2, 3], [0, 1, 2, 3]], jnp.int32)
    answer = jnp.array([[False, False, True, True]] * 2)
    said = jnp.array([[9, 2, 3], [9, 2, 9]])  # the second row's last token is wrong
    accuracy = tasks.answer_accuracy(jax.nn.one_hot(said, 10), tokens, answer)
    assert accuracy == (0.75, 0.5)


def test_exact_match_is_that_of_greedy_decoding():
    rng = np.random.default_rng(1)
    num_rows, question, length = 400, 2, 3
    table = rng.normal(size=(2**16, 2))  # logits of a random causal model, by prefix

    def next_logits(prefix):
        return table[int("1" + "".join(map(str, prefix)), 2)]

    tokens = rng.integers(0, 2, (num_rows, question + length))
    forced = np.array([[next_logits(row[: s + 1]) for s in range(question + length)] for row in tokens])
    answer = np.broadcast_to(np.arange(question + length) >= question, tokens.shape)

    matched = []
    for row in tokens:
        decoded = list(row[:question])
        for _ in range(length):
            decoded.append(int(np.argmax(next_logits(decoded))))
        matched.append(decoded == list(row))

    forced = jnp.asarray(forced, jnp.float32)
    accuracy = tasks.answer_accuracy(forced, jnp.asarray(tokens), jnp.asarray(answer))
    assert 0 < np.mean(matched) < 1
    assert accuracy.exact_match == pytest.approx(np.mean(matched))
