"""Gradients and products against dense ones in float64, written from the definitions."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.tree_util import Partial

from lacuna import derivatives, tasks, trees
from lacuna.errors import InvalidInput, TreeMismatch

EPS = np.finfo(np.float32).eps


def regression_logits(params, batch):
    """Softmax regression: logits that are linear in the parameters."""
    return batch["inputs"] @ params["kernel"] + params["bias"]


def mlp_logits(params, batch):
    return jnp.tanh(batch["inputs"] @ params["first"]) @ params["second"]


def cross_entropy(logits, batch):
    of_label = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][..., None], -1)
    return -jnp.mean(of_label)


def regression_loss(params, batch):
    return cross_entropy(regression_logits(params, batch), batch)


def mlp_loss(params, batch):
    return cross_entropy(mlp_logits(params, batch), batch)


def normal_tree(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def batch_of(seed, *lead):
    rng = np.random.default_rng(seed)
    return {
        "inputs": jnp.asarray(rng.normal(size=(*lead, 3)), jnp.float32),
        "labels": jnp.asarray(rng.integers(0, 5, size=lead), jnp.int32),
    }


REGRESSION = normal_tree(0, kernel=(3, 5), bias=(5,))
MLP = normal_tree(1, first=(3, 4), second=(4, 5))


def row_gradients(params, batch):
    """Gradients of softmax regression for each row, from the formula `x (p - y)^T`, in float64 numpy."""
    x, kernel, bias = (np.asarray(a, np.float64) for a in (batch["inputs"], params["kernel"], params["bias"]))
    odds = np.exp(x @ kernel + bias)
    surprise = odds / odds.sum(-1, keepdims=True) - np.eye(5)[np.asarray(batch["labels"])]
    return {"kernel": x[..., :, None] * surprise[..., None, :], "bias": surprise}


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64) if a.dtype == jnp.float32 else np.asarray(a), tree)


def dense_float64(derivative, function, params, batch):
    """`derivative` (jax.hessian, jax.jacobian) of `function` in the ravelled parameters, all in float64."""
    with jax.enable_x64(True):
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.asarray, wide(params)))
        batch = jax.tree.map(jnp.asarray, wide(batch))
        return np.asarray(derivative(lambda x: function(unravel(x), batch))(flat))


def dense(operator, like):
    """The matrix of an operator, a column for each product with a unit vector."""
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    columns = jax.vmap(lambda unit: jax.flatten_util.ravel_pytree(operator(unravel(unit)))[0])(jnp.eye(flat.size))
    return np.asarray(columns, np.float64).T


def close(got, wanted, tolerance):
    """Equal to within a tolerance relative to the largest entry."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 5, 64])
def test_task_gradients_are_those_of_the_tasks_one_by_one_whatever_the_chunk(chunk):
    batches = batch_of(2, 5, 7)
    rows = derivatives.task_gradients(regression_loss, REGRESSION, batches, chunk=chunk)
    wanted = jax.tree.map(lambda g: g.mean(1), row_gradients(REGRESSION, batches))
    jax.tree.map(lambda r, w: close(r, w, 1e-6), rows, wanted)
    loop = [jax.grad(regression_loss)(REGRESSION, jax.tree.map(lambda b, i=i: b[i], batches)) for i in range(5)]
    # Another order of a sum over 7 rows: a few roundings.
    jax.tree.map(lambda r, *g: close(r, np.stack(g), 8 * EPS), rows, *loop)
    inside = jax.jit(lambda p, b: derivatives.task_gradients(regression_loss, p, b, chunk=chunk))(REGRESSION, batches)
    jax.tree.map(lambda r, i: close(r, i, 8 * EPS), rows, inside)


def test_task_gradients_average_to_the_joint_gradient():
    batches = batch_of(3, 4, 6)
    rows = derivatives.task_gradients(mlp_loss, MLP, batches)
    joint = derivatives.gradient(mlp_loss, MLP, jax.tree.map(lambda b: b.reshape(24, *b.shape[2:]), batches))
    jax.tree.map(lambda r, g: close(r.mean(0), g, 1e-6), rows, joint)


@pytest.mark.parametrize("chunk", [1, 4])
def test_example_gradients_are_those_of_the_rows_and_average_to_that_of_the_batch(chunk):
    batch = batch_of(4, 6)
    rows = derivatives.example_gradients(regression_loss, REGRESSION, batch, chunk=chunk)
    jax.tree.map(lambda r, w: close(r, w, 1e-6), rows, row_gradients(REGRESSION, batch))
    whole = derivatives.gradient(regression_loss, REGRESSION, batch)
    jax.tree.map(lambda r, g: close(r.mean(0), g, 1e-6), rows, whole)


def test_memory_of_task_gradients_beside_the_result_does_not_grow_with_the_tasks():
    def temporary(num_tasks):
        batches = batch_of(5, num_tasks, 64)
        compiled = derivatives._gradients.lower(Partial(mlp_loss), 2, MLP, batches).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(64) == temporary(4)


@pytest.mark.parametrize("microbatches", [1, 2, 6, 12])
def test_gradient_and_hessian_are_the_dense_ones_however_the_batch_is_split(microbatches):
    batch = batch_of(6, 12)
    gradient = derivatives.gradient(mlp_loss, MLP, batch, microbatches=microbatches)
    close(oracles.flat(gradient), dense_float64(jax.grad, mlp_loss, MLP, batch), 1e-6)
    hessian = dense(derivatives.hvp(mlp_loss, MLP, batch, microbatches=microbatches), MLP)
    close(hessian, dense_float64(jax.hessian, mlp_loss, MLP, batch), 1e-5)
    close(hessian, dense(derivatives.hvp(mlp_loss, MLP, batch), MLP), 1e-6)


def broad_logits(params, batch):
    """A number a row in, 256 activations a row on the way."""
    return jnp.tanh(batch["inputs"] * params["first"]) @ params["second"]


def broad_loss(params, batch):
    return cross_entropy(broad_logits(params, batch), batch)


def test_memory_of_products_does_not_grow_with_the_batch():
    params = normal_tree(9, first=(256,), second=(256, 5))

    def temporary(num_parts):
        rows = 64 * num_parts
        batch, weights = {"inputs": jnp.ones((rows, 1)), "labels": jnp.zeros(rows, jnp.int32)}, jnp.ones(rows)
        kernels = (
            derivatives._gradient.lower(Partial(broad_loss), num_parts, params, batch),
            derivatives._hessian_product.lower(Partial(broad_loss), num_parts, params, batch, params),
            derivatives._gauss_newton_product.lower(Partial(broad_logits), num_parts, params, batch, weights, params),
        )
        return np.array([kernel.compile().memory_analysis().temp_size_in_bytes for kernel in kernels])

    # The rows themselves (12 bytes each) are copied in another order; one activation takes 1,024 bytes a row.
    assert np.all(temporary(32) - temporary(2) <= 12 * 64 * 30 + 1024)


def held_loss(frozen, params, batch):
    """`regression_loss` at the sum of moving weights and frozen ones."""
    return regression_loss(jax.tree.map(jnp.add, params, frozen), batch)


def test_a_loss_that_holds_frozen_weights_takes_them_as_data():
    batches = batch_of(0, 3, 4)
    batch = jax.tree.map(lambda x: x[0], batches)
    zero = jax.tree.map(jnp.zeros_like, REGRESSION)
    delta = jax.tree.map(jnp.ones_like, REGRESSION)
    kernels = [derivatives._gradient, derivatives._gradients, derivatives._hessian_product]
    programs = []
    for frozen in (REGRESSION, jax.tree.map(lambda x: 2 * x, REGRESSION)):
        held = Partial(held_loss, frozen)
        for found, wanted in (
            (derivatives.gradient(held, zero, batch), derivatives.gradient(regression_loss, frozen, batch)),
            (
                derivatives.task_gradients(held, zero, batches),
                derivatives.task_gradients(regression_loss, frozen, batches),
            ),
            (
                derivatives.example_gradients(held, zero, batch),
                derivatives.example_gradients(regression_loss, frozen, batch),
            ),
            (derivatives.hvp(held, zero, batch)(delta), derivatives.hvp(regression_loss, frozen, batch)(delta)),
        ):
            jax.tree.map(lambda f, w: close(f, w, 1e-5), found, wanted)
        programs.append([kernel._cache_size() for kernel in kernels])
    assert programs[0] == programs[1]


def test_hessian_products_are_symmetric():
    batch, u, v = (
        batch_of(8, 12),
        normal_tree(2, first=(3, 4), second=(4, 5)),
        normal_tree(3, first=(3, 4), second=(4, 5)),
    )
    product = derivatives.hvp(mlp_loss, MLP, batch, microbatches=3)
    scale = float(trees.norm(u) * trees.norm(product(v)))
    assert abs(float(trees.dot(u, product(v)) - trees.dot(v, product(u)))) < 1e-5 * scale


@pytest.mark.parametrize("microbatches", [1, 4])
def test_the_gauss_newton_matrix_is_the_definition_and_positive_semidefinite(microbatches):
    batch = batch_of(9, 8)
    weights = jnp.asarray([0.3, 0, 0.1, 0.2, 0, 0, 0.15, 0.25], jnp.float32)
    matrix = dense(derivatives.ggn(mlp_logits, MLP, batch, weights, microbatches=microbatches), MLP)
    jacobian = dense_float64(jax.jacobian, mlp_logits, MLP, batch)
    odds = np.exp(dense_float64(lambda f: f, mlp_logits, MLP, batch))
    shares = odds / odds.sum(-1, keepdims=True)
    wanted = sum(
        float(w) * j.T @ (np.diag(p) - np.outer(p, p)) @ j for w, j, p in zip(weights, jacobian, shares, strict=True)
    )
    close(matrix, wanted, 1e-6)
    assert np.linalg.eigvalsh((matrix + matrix.T) / 2).min() > -1e-6 * np.abs(matrix).max()


def sequence_logits(params, batch):
    """Logits of the next tokens from one-hot tokens: linear in the parameters, the last position left out."""
    return params["table"][batch.tokens[:, :-1]]


def sequence_loss(params, batch):
    return tasks.answer_cross_entropy(sequence_logits(params, batch), batch.tokens, batch.answer)


def test_gauss_newton_of_answers_in_a_linear_model_is_its_hessian():
    """Rows have different numbers of answers, down to none, and still the batch may be split."""
    rng = np.random.default_rng(10)
    tokens = jnp.asarray(rng.integers(0, 4, size=(6, 5)), jnp.int32)
    batch = tasks.Batch(tokens, jnp.asarray(np.arange(5) >= np.array([[1], [4], [5], [2], [3], [4]])))
    params = normal_tree(4, table=(4, 4))
    counts = batch.answer[:, 1:].astype(jnp.float32)
    operator = derivatives.ggn(sequence_logits, params, batch, counts / jnp.sum(counts), microbatches=3)
    # In float32, because the loss is: its entries are sums of at most 13 products.
    close(dense(operator, params), dense(derivatives.hvp(sequence_loss, params, batch), params), 1e-6)


def test_logits_so_large_that_their_exponential_overflows_have_a_finite_gauss_newton_product():
    params = jax.tree.map(lambda p: 1e3 * p, REGRESSION)
    batch = batch_of(11, 4)
    product = derivatives.ggn(regression_logits, params, batch, jnp.full(4, 0.25))(REGRESSION)
    assert np.all(np.isfinite(oracles.flat(product)))


def frozen_logits(params, batch):
    """A quantised kernel, which a derivative does not see, and a bias that picks its entries by a table."""
    return (
        batch["inputs"] @ (params["codes"].astype(jnp.float32) / 4) + (params["bias"] * params["gain"])[params["table"]]
    )


def frozen_loss(params, batch):
    return cross_entropy(frozen_logits(params, batch), batch)


FROZEN = {
    **normal_tree(5, bias=(5,), gain=(5,)),
    "codes": jnp.asarray(np.random.default_rng(6).integers(-9, 9, size=(3, 5)), jnp.int8),
    "table": jnp.asarray([4, 0, 1, 2, 3], jnp.int32),
}


def test_integer_leaves_are_frozen_and_do_not_stand_in_the_way():
    batch, weights = batch_of(12, 4), jnp.full(4, 0.25)
    moving = {name: FROZEN[name] for name in ("bias", "gain")}
    frozen = {name: FROZEN[name] for name in ("codes", "table")}
    delta = jax.tree.map(jnp.ones_like, FROZEN)

    def alone(function):
        return lambda p, b: function({**p, **frozen}, b)

    ones = jax.tree.map(jnp.ones_like, moving)
    pairs = [
        (derivatives.gradient(frozen_loss, FROZEN, batch), derivatives.gradient(alone(frozen_loss), moving, batch)),
        (derivatives.hvp(frozen_loss, FROZEN, batch)(delta), derivatives.hvp(alone(frozen_loss), moving, batch)(ones)),
        (
            derivatives.ggn(frozen_logits, FROZEN, batch, weights)(delta),
            derivatives.ggn(alone(frozen_logits), moving, batch, weights)(ones),
        ),
    ]
    for got, wanted in pairs:
        assert {name: leaf.dtype for name, leaf in got.items()} == {name: leaf.dtype for name, leaf in FROZEN.items()}
        assert not np.any(got["codes"])
        assert not np.any(got["table"])
        for name in moving:
            close(got[name], wanted[name], 1e-6)
    rows = derivatives.example_gradients(frozen_loss, FROZEN, batch)
    np.testing.assert_array_equal(rows["codes"], np.zeros((4, 3, 5)))
    _, shift = derivatives.activation_jvp(lambda p: frozen_logits(p, batch), FROZEN, delta)
    close(shift, np.tile(np.asarray(FROZEN["bias"] + FROZEN["gain"])[np.asarray(FROZEN["table"])], (4, 1)), 1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_have_the_dtype_of_the_delta_and_follow_the_float32_ones_in_bfloat16(dtype):
    batch, weights = batch_of(13, 8), jnp.full(8, 0.125)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), MLP)
    delta = normal_tree(7, first=(3, 4), second=(4, 5))
    for make in (
        lambda params, parts: derivatives.hvp(mlp_loss, params, batch, microbatches=parts),
        lambda params, parts: derivatives.ggn(mlp_logits, params, batch, weights, microbatches=parts),
    ):
        wanted = oracles.flat(make(MLP, 1)(delta))
        for parts in (1, 4):
            product = make(half, parts)(jax.tree.map(lambda d: d.astype(dtype), delta))
            assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {jnp.dtype(dtype)}
            # bfloat16 keeps 8 bits; the weights, the delta and the arithmetic in between each round to them.
            close(oracles.flat(product), wanted, 0.05)
    assert derivatives.gradient(mlp_loss, half, batch, microbatches=4)["first"].dtype == jnp.bfloat16


def test_microbatches_of_a_bfloat16_model_are_summed_in_float32():
    """256 parts of equal gradient 1: a bfloat16 sum stops at 256 ones from where the next does not count."""

    def loss(params, batch):
        return jnp.mean(params["w"] * batch).astype(jnp.float32)

    params = {"w": jnp.ones((), jnp.bfloat16)}
    gradient = derivatives.gradient(loss, params, jnp.ones(1024, jnp.bfloat16), microbatches=1024)
    assert gradient["w"] == 1


def test_an_operator_is_data_of_a_compiled_program():
    @jax.jit
    def apply(operator, delta):
        return operator(delta)

    for seed in (14, 15):
        batch, weights = batch_of(seed, 8), jnp.full(8, 0.125)
        for operator in (
            derivatives.hvp(mlp_loss, MLP, batch, microbatches=2),
            derivatives.ggn(mlp_logits, MLP, batch, weights),
        ):
            close(oracles.flat(apply(operator, MLP)), oracles.flat(operator(MLP)), 1e-6)
    assert apply._cache_size() == 2


def test_a_pushforward_is_the_limit_of_finite_shifts():
    batch, delta = batch_of(16, 4), normal_tree(8, first=(3, 4), second=(4, 5))
    value, shift = derivatives.activation_jvp(lambda p: mlp_logits(p, batch), MLP, delta)
    close(value, mlp_logits(MLP, batch), 1e-6)
    jacobian = dense_float64(jax.jacobian, mlp_logits, MLP, batch)
    close(shift, jacobian @ oracles.flat(delta), 1e-6)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), MLP)
    inputs = {"inputs": batch["inputs"].astype(jnp.bfloat16)}
    in_half = derivatives.activation_jvp(lambda p: mlp_logits(p, inputs), half, delta)
    assert in_half.value.dtype == in_half.shift.dtype == jnp.bfloat16
    close(np.asarray(in_half.shift, np.float32), shift, 0.05)


def test_rows_that_are_sharded_stay_on_their_devices_when_split():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P("rows"))
    batch = jax.device_put(batch_of(17, 64), spread)
    text = derivatives._hessian_product.lower(Partial(mlp_loss), 4, MLP, batch, MLP).compile().as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: derivatives.hvp(mlp_loss, MLP, batch_of(0, 6), microbatches=4),
            "hvp: microbatches .* got 4 for 6 rows",
        ),
        (lambda: derivatives.gradient(mlp_loss, MLP, batch_of(0, 6), microbatches=0), "got 0 for 6 rows"),
        (
            lambda: derivatives.ggn(mlp_logits, MLP, batch_of(0, 6), jnp.ones(3), microbatches=3),
            r"share a leading axis .* `weights` with shape \(3,\)",
        ),
        (
            lambda: derivatives.ggn(mlp_logits, MLP, batch_of(0, 6), jnp.ones((6, 1)))(MLP),
            r"weights of shape \(6, 1\) for logits of shape \(6, 5\)",
        ),
        (
            lambda: derivatives.task_gradients(mlp_loss, MLP, batch_of(0, 2, 3), chunk=0),
            "chunk must be at least 1; got 0",
        ),
        (lambda: derivatives.task_gradients(mlp_loss, MLP, batch_of(0, 0, 3)), r"length 1 or more; got `inputs`"),
        (lambda: derivatives.task_gradients(mlp_loss, MLP, {}), "a batch without leaves"),
        (
            lambda: derivatives.example_gradients(mlp_loss, MLP, {**batch_of(0, 2), "scale": jnp.float32(1)}),
            r"`scale` with shape \(\)",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(ask, message):
    with pytest.raises(InvalidInput, match=message):
        ask()


@pytest.mark.parametrize("delta", [{"first": MLP["first"]}, {**MLP, "second": jnp.ones((5, 4))}])
def test_deltas_of_another_tree_are_refused(delta):
    batch = batch_of(0, 4)
    for operator in (
        derivatives.hvp(mlp_loss, MLP, batch),
        derivatives.ggn(mlp_logits, MLP, batch, jnp.ones(4)),
        lambda d: derivatives.activation_jvp(lambda p: mlp_logits(p, batch), MLP, d),
    ):
        with pytest.raises(TreeMismatch, match="`second`"):
            operator(delta)
