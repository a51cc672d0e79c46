"""Streams of rows: every epoch holds each row once, in an order of its own, whichever way a batch is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna import tasks, trees
from lacuna.errors import InvalidInput


def numbered(num_rows, length=3):
    """Rows whose every token is the row's number."""
    return tasks.pack(
        ["".join(chr(i) * length for i in range(num_rows))], lambda text: list(map(ord, text)), length=length
    )


def order(stream, num_batches, first=0):
    """Numbers of the rows in the first batches, one after the other."""
    steps = first + jnp.arange(num_batches)
    return np.asarray(jax.jit(jax.vmap(stream))(steps).tokens[..., 0]).reshape(-1)


@settings(max_examples=6, deadline=None)
@given(num_rows=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_holds_every_row_once(num_rows, batch_size, seed):
    stream = tasks.row_stream(numbered(num_rows), seed=seed, batch_size=batch_size)
    epochs = order(stream, 3 * num_rows)[: 3 * num_rows].reshape(3, num_rows)
    assert np.array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(num_rows), (3, num_rows)))


@pytest.mark.parametrize(("num_rows", "batch_size"), [(7, 3), (5, 12)])
def test_the_order_does_not_depend_on_the_size_of_a_batch(num_rows, batch_size):
    rows = numbered(num_rows)
    batches, single = (tasks.row_stream(rows, seed=3, batch_size=size) for size in (batch_size, 1))
    num_batches = 2 * num_rows  # past the n batches after which a position is counted in another way
    assert np.array_equal(order(batches, num_batches), order(single, num_batches * batch_size))


def test_epochs_seeds_and_names_have_orders_of_their_own():
    rows = numbered(50)
    streams = [tasks.row_stream(rows, seed=0, batch_size=10), tasks.row_stream(rows, seed=1, batch_size=10)]
    streams.append(tasks.row_stream(rows, seed=0, batch_size=10, name="other"))
    epochs = np.concatenate([order(stream, 150).reshape(30, 50) for stream in streams])
    assert len(np.unique(epochs, axis=0)) == 90
    # Two random orders agree in one place on average.
    agreements = np.mean(epochs[:, None] == epochs[None], axis=2)[np.triu_indices(90, 1)] * 50
    assert abs(np.mean(agreements) - 1) < 0.06
    assert np.max(agreements) < 12


def test_all_orders_of_a_handful_of_rows_are_equally_frequent():
    found = order(tasks.row_stream(numbered(5), seed=1, batch_size=5), 12_000).reshape(-1, 5)
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 120
    assert np.sum((counts - 100.0) ** 2 / 100.0) < 178.0  # 99.97 % point with 119 degrees of freedom


def test_a_batch_is_the_same_traced_and_asked_for_again():
    stream = tasks.row_stream(numbered(23), seed=0, batch_size=7)
    scanned = jax.lax.scan(lambda carry, step: (carry, stream(step)), 0, jnp.arange(4))[1]
    for step in (0, 3):
        again = tasks.row_stream(numbered(23), seed=0, batch_size=7)(step)
        for batch in (stream(step), jax.jit(stream)(step), jax.tree.map(lambda leaf, i=step: leaf[i], scanned)):
            assert np.array_equal(batch.tokens, again.tokens)
            assert np.array_equal(batch.answer, again.answer)
    assert again.tokens.dtype == jnp.int32
    assert again.answer.dtype == bool


def test_what_counts_goes_with_its_row():
    pairs = [("a" * (1 + i), "b" * (6 - i)) for i in range(5)]
    rows = tasks.pair_rows(pairs, lambda text: list(map(ord, text)), length=9)
    batch = tasks.row_stream(rows, seed=0, batch_size=5)(4)
    assert np.array_equal(batch.answer, batch.tokens == ord("b"))


def test_other_rows_of_the_same_shape_compile_nothing_anew():
    traces = []

    @jax.jit
    def tokens_of(stream, step):
        traces.append(step)
        return stream(step).tokens

    for seed, shift in ((0, 0), (1, 0), (1, 5)):
        rows = tasks.pack(["abcdefgh" + chr(97 + shift)], lambda text: list(map(ord, text)), length=3)
        stream = tasks.row_stream(rows, seed=seed, batch_size=2)
        assert np.array_equal(tokens_of(stream, 7), stream(7).tokens)
    assert len(traces) == 1


def test_rows_in_their_order_begin_again_at_the_end():
    stream = tasks.in_order(numbered(7), 3)
    assert order(stream, 5).tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0]
    assert order(tasks.in_order(numbered(3), 8), 2).tolist() == [i % 3 for i in range(16)]


def test_late_steps_are_counted_exactly():
    """Where step times batch size is beyond 32 bits, in numbers of any size as the oracle."""
    num_rows, batch_size = 101, 9_000
    stream = tasks.in_order(numbered(num_rows, 2), batch_size)
    for step in (2**20 + 7, 2**31 - 1, jnp.int32(2**31 - 1)):
        first = int(step) * batch_size % num_rows
        assert stream(step).tokens[:4, 0].tolist() == [(first + i) % num_rows for i in range(4)]
    shuffled = tasks.row_stream(numbered(num_rows, 2), seed=0, batch_size=num_rows)
    assert not np.array_equal(order(shuffled, 1, 2**31 - 1), order(shuffled, 1, 2**31 - 2))


def test_a_step_does_not_touch_all_rows():
    """No value of a traced step grows with the number of rows, and nothing is sorted."""

    rows = tasks.TokenRows(np.zeros((65_536, 2), np.int32), np.ones((65_536, 2), bool), is_one_text=True)
    program = str(jax.make_jaxpr(tasks.RowStream.__call__)(tasks.row_stream(rows, seed=0, batch_size=4), 0))
    assert "i32[65536,2]" in program
    assert "[65536]" not in program
    assert "sort[" not in program


def test_a_stream_is_a_tree_of_arrays():
    stream = tasks.row_stream(numbered(4), seed=0, batch_size=2)
    assert trees.leaf_names(stream) == ["rows/tokens", "rows/answer", "key"]
    assert jax.eval_shape(stream, 0).tokens.shape == (2, 3)


@pytest.mark.parametrize(("batch_size", "message"), [(0, "got batch_size=0"), (2**31, r"below 2\^32; got 2 x 2147")])
def test_a_batch_that_cannot_be_is_refused(batch_size, message):
    for build in (
        lambda: tasks.row_stream(numbered(2), seed=0, batch_size=batch_size),
        lambda: tasks.in_order(numbered(2), batch_size),
    ):
        with pytest.raises(InvalidInput, match=message):
            build()


def test_a_stream_of_no_rows_is_refused():
    none = jax.tree.map(lambda x: x[:0], numbered(2))
    with pytest.raises(InvalidInput, match="a stream needs at least one row; got none"):
        tasks.row_stream(none, seed=0, batch_size=1)
