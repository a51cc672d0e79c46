"""Derivatives of an objective on parameter trees: gradients of many tasks, and curvature as operators.

A derivative sees the floating leaves of a point. Integer and boolean leaves (quantised weights, tables) are
frozen: gradients and products are zero there, and what a delta holds there is not read. A delta is cast to
the dtype of each leaf, so the arithmetic is the model's own; sums over microbatches are float32 or wider.

A loss that is a pytree, such as `jax.tree_util.Partial(loss_of_adapter, frozen_weights)`, is passed in as data:
what it holds is no constant of the compiled program.

Source: Pearlmutter (1994) for products with the Hessian.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from lacuna import keys, trees
from lacuna.errors import InvalidInput
from lacuna.types import Batch, Delta, Key, Loss, Operator, Params, Rows

ACCELERATOR_CHUNK = 8
"""Gradients taken side by side where that fills the device; ours, not tuned on any one of them."""


def _moves(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _moving(params: Params) -> Any:
    """The floating leaves alone; None, which is no leaf to JAX, where one is frozen."""
    return jax.tree.map(lambda p: p if _moves(p) else None, params)


def _tangent(asked: str, delta: Delta, params: Params) -> Any:
    """What `_moving` is for a point, for a vector at that point: in the dtypes of the point."""
    trees.check_match(asked, delta, params)
    return jax.tree.map(lambda p, d: d.astype(p.dtype) if _moves(p) else None, params, delta)


def _of_moving(function: Callable[..., Any], params: Params) -> Callable[..., Any]:
    """`function(params, ...)` as a function of the moving leaves, the frozen ones held at those of `params`."""

    def restricted(moving: Any, *rest: Any) -> Any:
        point = jax.tree.map(lambda p, m: p if m is None else m, params, moving)
        return function(point, *rest)

    return restricted


def _whole(moving: Any, like: Delta) -> Delta:
    """A vector on the whole tree, in the dtypes of `like`: zero on the frozen leaves."""
    return jax.tree.map(lambda d, m: jnp.zeros_like(d) if m is None else m.astype(d.dtype), like, moving)


def _num_rows(asked: str, batch: Batch) -> int:
    """Length of the leading axis, which all leaves of a batch must share."""
    shapes = {name: jnp.shape(leaf) for name, leaf in zip(trees.leaf_names(batch), jax.tree.leaves(batch), strict=True)}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or min(lengths) in {(), (0,)}:
        raise InvalidInput(
            f"{asked} needs a batch whose leaves share a leading axis of length 1 or more",
            got=", ".join(f"`{name}` with shape {shape}" for name, shape in shapes.items()) or "a batch without leaves",
        )
    return lengths.pop()[0]


def _check_microbatches(asked: str, batch: Batch, microbatches: int) -> None:
    if microbatches == 1:
        return
    num_rows = _num_rows(asked, batch)
    if microbatches < 1 or num_rows % microbatches:
        raise InvalidInput(
            f"{asked}: microbatches must divide the rows of the batch into equal parts",
            got=f"{microbatches} for {num_rows} rows",
        )


def _total(function: Callable[[Batch], Any], batch: Batch, microbatches: int) -> Any:
    """Sum of `function(part)` over equal parts of the rows, one part in memory at a time."""
    if microbatches == 1:
        return function(batch)

    # Part i takes the rows i, i + microbatches, ...: rows that are sharded in blocks stay on their devices.
    def parts(leaf: Array) -> Array:
        return jnp.moveaxis(leaf.reshape(-1, microbatches, *leaf.shape[1:]), 1, 0)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, function(part)), None

    split = jax.tree.map(parts, batch)
    like = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], split))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), like)
    return lax.scan(add, zero, split)[0]


def _mean(function: Callable[[Batch], Any], batch: Batch, microbatches: int) -> Any:
    total = _total(function, batch, microbatches)
    return total if microbatches == 1 else jax.tree.map(lambda t: t / microbatches, total)


@dataclass(frozen=True)
class _Bound:
    """A jitted kernel with its static argument.

    It is equal to another by value, so an operator made of it (a `Partial` of arrays) can be an argument of a
    compiled program: its arrays are data, and the operator of another point needs no second compilation.
    """

    kernel: Callable[..., Any]
    microbatches: int

    def __call__(self, function: Callable[..., Any], *arrays: Any) -> Any:
        return self.kernel(function, self.microbatches, *arrays)


@partial(jax.jit, static_argnums=1)
def _gradient(loss: Loss, microbatches: int, params: Params, batch: Batch) -> Delta:
    slope = jax.grad(_of_moving(loss, params))
    return _whole(_mean(lambda part: slope(_moving(params), part), batch, microbatches), params)


def gradient(loss: Loss, params: Params, batch: Batch, *, microbatches: int = 1) -> Delta:
    """The gradient of `loss(., batch)` at `params`, in the dtypes of `params`.

    Args:
      loss: what to differentiate; the same function object again means no second compilation.
      params: the point.
      batch: all leaves have a leading axis of rows if `microbatches` is more than 1.
      microbatches: equal parts of the rows, taken one after the other, so that memory is that of one part. The
        loss must then be a mean over rows with the same weight for each: a mean over answer tokens is one only
        if all rows have equally many.

    Raises:
      InvalidInput: the rows cannot be split so.
    """
    _check_microbatches("gradient", batch, microbatches)
    return _gradient(trees.as_data(loss), microbatches, params, batch)


@partial(jax.jit, static_argnums=1)
def _gradients(loss: Loss, chunk: int, params: Params, batches: Batch) -> Rows:
    # A width of one is a plain loop: `batch_size=1` would vmap over it.
    return lax.map(partial(_gradient, loss, 1, params), batches, batch_size=chunk if chunk > 1 else None)


def _chunk(asked: str, chunk: int | None) -> int:
    if chunk is None:
        chunk = 1 if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK
    if chunk < 1:
        raise InvalidInput(f"{asked}: chunk must be at least 1", got=chunk)
    return chunk


def task_gradients(loss: Loss, params: Params, batches: Batch, *, chunk: int | None = None) -> Rows:
    """One gradient for each of T batches, such as one batch a task.

    The tasks are vmapped in chunks that follow one another, so that besides the result (T x P) the memory is
    that of `chunk` gradients, whatever T. On a CPU a chunk of 1 is fastest: measured on half a million
    parameters, vmap takes 1.5 times as long a gradient, and 20 MiB of memory for each task. Gradients of an adapter's
    factors are the exception: in chunks of 4 they cost one gradient of all the tokens, one by one 1.4 of it.

    Args:
      loss: what to differentiate; the same function object again means no second compilation.
      params: the point.
      batches: the T batches in one tree, with a leading axis T on every leaf.
      chunk: tasks at a time; 1 on a CPU and 8 elsewhere if it is None. It changes the last bits alone. With
        tasks left over after the last whole chunk, the gradient is compiled twice.

    Returns:
      The gradients, stacked, in the dtypes of `params`.

    Raises:
      InvalidInput: no task, leaves that disagree on T, or a chunk of less than 1.
    """
    _num_rows("task_gradients", batches)
    return _gradients(trees.as_data(loss), _chunk("task_gradients", chunk), params, batches)


def example_gradients(loss: Loss, params: Params, batch: Batch, *, chunk: int | None = None) -> Rows:
    """One gradient for each of the B rows of a batch, each row seen as a batch of one.

    Where the loss is a mean over rows with the same weight for each, their mean is the gradient of the batch.

    Args:
      loss: as for `task_gradients`; it sees leaves of shape [1, ...].
      params: the point.
      batch: with a leading axis B on every leaf.
      chunk: rows at a time, as for `task_gradients`.

    Returns:
      The gradients, stacked along a leading axis B, in the dtypes of `params`.

    Raises:
      InvalidInput: no row, leaves that disagree on B, or a chunk of less than 1.
    """
    _num_rows("example_gradients", batch)
    rows = jax.tree.map(lambda leaf: leaf[:, None], batch)
    return _gradients(trees.as_data(loss), _chunk("example_gradients", chunk), params, rows)


@partial(jax.jit, static_argnums=1)
def _hessian_product(loss: Loss, microbatches: int, params: Params, batch: Batch, delta: Delta) -> Delta:
    slope = jax.grad(_of_moving(loss, params))
    moving, tangent = _moving(params), _tangent("hvp", delta, params)

    def product(part: Batch) -> Any:
        return jax.jvp(lambda m: slope(m, part), (moving,), (tangent,))[1]

    return _whole(_mean(product, batch, microbatches), delta)


def hvp(loss: Loss, params: Params, batch: Batch, *, microbatches: int = 1) -> Operator:
    """The Hessian of `loss(., batch)` at `params`, as a map from Delta to Delta.

    Forward over reverse: about 2.5 gradients a product, where reverse over reverse costs 3.3. The operator is
    a pytree, and may be an argument of a jitted function; a product has the dtypes of the delta that came in.

    Args:
      loss: twice differentiable; the same function object again means no second compilation.
      params: the point.
      batch: all leaves have a leading axis of rows if `microbatches` is more than 1.
      microbatches: as for `gradient`, with the same condition on the loss.

    Raises:
      InvalidInput: the rows cannot be split so.
      TreeMismatch: from the operator: the delta lives on another tree.
    """
    _check_microbatches("hvp", batch, microbatches)
    return Partial(_Bound(_hessian_product, microbatches), trees.as_data(loss), params, batch)


def _softmax_curvature(
    logits: Float[Array, "*pos V"], shift: Float[Array, "*pos V"], weights: Float[Array, "*pos"]
) -> Float[Array, "*pos V"]:
    """`weights * (diag(p) - p p^T) shift` at every position, with p the softmax of the logits, in float32."""
    shares, shift = jax.nn.softmax(logits.astype(jnp.float32)), shift.astype(jnp.float32)
    # Centred before the product, so that a shift common to all logits cancels.
    centred = shift - jnp.sum(shares * shift, axis=-1, keepdims=True)
    return weights.astype(jnp.float32)[..., None] * shares * centred


@partial(jax.jit, static_argnums=1)
def _gauss_newton_product(
    logits: Callable[[Params, Batch], Array],
    microbatches: int,
    params: Params,
    batch: Batch,
    weights: Float[Array, "..."],
    delta: Delta,
) -> Delta:
    moving, tangent = _moving(params), _tangent("ggn", delta, params)
    of_moving = _of_moving(logits, params)

    def product(part: Any) -> Any:
        def outputs(m: Any) -> Array:
            return of_moving(m, part["batch"])

        value, shift = jax.jvp(outputs, (moving,), (tangent,))
        if value.shape[:-1] != part["weights"].shape:
            raise InvalidInput(
                "ggn needs a weight for every position of the logits",
                got=f"weights of shape {part['weights'].shape} for logits of shape {value.shape}",
            )
        cotangent = _softmax_curvature(value, shift, part["weights"])
        return jax.vjp(outputs, moving)[1](cotangent.astype(value.dtype))[0]

    return _whole(_total(product, {"batch": batch, "weights": weights}, microbatches), delta)


def ggn(
    logits: Callable[[Params, Batch], Float[Array, "... V"]],
    params: Params,
    batch: Batch,
    weights: Float[Array, "..."],
    *,
    microbatches: int = 1,
) -> Operator:
    """The generalised Gauss-Newton matrix of a softmax cross-entropy, as a map from Delta to Delta.

    For the loss `sum_i weights_i * cross_entropy(logits_i, label_i)` over positions i it is
    `sum_i weights_i J_i^T (diag(p_i) - p_i p_i^T) J_i`, with J the derivative of the logits and p their softmax:
    positive semidefinite, free of the labels, equal to the Fisher matrix of the model's own predictions, and
    to the Hessian where the logits are linear in the parameters. The inner factor is applied in closed form in
    float32; nothing larger than the logits is made.

    Args:
      logits: `logits(params, batch)`; the same function object again means no second compilation.
      params: the point.
      batch: all leaves have a leading axis of rows if `microbatches` is more than 1.
      weights: of each position in the loss, in the shape of the logits without V; zero where nothing is scored. For
        `tasks.answer_cross_entropy` of logits without the last position: `c / max(sum(c), 1)` with
        `c = answer[:, 1:]`. They must not be negative.
      microbatches: equal parts of the rows, taken one after the other, so that memory is that of one part. The
        weights say what each row counts, so here rows may differ.

    Returns:
      The operator: a pytree, which may be an argument of a jitted function; a product has the dtypes of the delta
      that came in.

    Raises:
      InvalidInput: the rows cannot be split so; from the operator: the shape of the weights is not the logits'.
      TreeMismatch: from the operator: the delta lives on another tree.

    Source: Schraudolph (2002); Martens (2020), "New insights and perspectives on the natural gradient method".
    """
    _check_microbatches("ggn", {"batch": batch, "weights": weights}, microbatches)
    return Partial(_Bound(_gauss_newton_product, microbatches), trees.as_data(logits), params, batch, weights)


class Pushforward(NamedTuple):
    """Activations at a point and what a delta does to them to first order.

    Attributes:
      value: `function(params)`.
      shift: the derivative of `function(params + eps * delta)` at eps = 0; shapes and dtypes of `value`.
    """

    value: Any
    shift: Any


def activation_jvp(function: Callable[[Params], Any], params: Params, delta: Delta) -> Pushforward:
    """Activations, and their first-order shift J delta, by one forward pass that carries both.

    Args:
      function: from a point to a tree of activations, with the tokens bound.
      params: the point.
      delta: the direction; not scaled.

    Raises:
      TreeMismatch: the delta lives on another tree than `params`.
    """
    tangent = _tangent("activation_jvp", delta, params)
    return Pushforward(*jax.jvp(_of_moving(function, params), (_moving(params),), (tangent,)))


class Trace(NamedTuple):
    """An estimated trace.

    Attributes:
      mean: the estimate, float32[].
      standard_error: of the mean, float32[].
      of_square: the trace of the operator's square, `E |H v|^2`, from the same products, float32[].
    """

    mean: Float[Array, ""]
    standard_error: Float[Array, ""]
    of_square: Float[Array, ""]


def random_signs(like: Params, key: Key) -> Delta:
    """A probe of independent random signs, with the tree, shapes and dtypes of `like`.

    Args:
      like: gives the tree, shapes and dtypes.
      key: another one for each probe.
    """
    return trees.map_named(lambda name, p: jax.random.rademacher(keys.leaf(key, name), p.shape, p.dtype), like)


def hutchinson_trace(operator: Operator, like: Params, key: Key, *, num_probes: int) -> Trace:
    """Trace of a symmetric operator, and that of its square, from its products with random signs.

    `E[v^T H v] = tr H` and `E |H v|^2 = tr H^2` for independent signs v, the first with the variance
    `2 sum_{i != j} H_ij^2`: far less than with normal probes where the diagonal dominates.

    Args:
      operator: linear map on the tree of `like`.
      like: gives the tree and shapes.
      key: of the probes.
      num_probes: at least 2, or there is no standard error.

    Raises:
      InvalidInput: fewer than two probes.

    Source: Hutchinson (1989).
    """
    if num_probes < 2:
        raise InvalidInput("num_probes must be at least 2", got=num_probes)

    def forms_of(probe_key: Key) -> tuple[Float[Array, ""], Float[Array, ""]]:
        probe = random_signs(like, probe_key)
        product = operator(probe)
        return trees.dot(probe, product), trees.dot(product, product)

    forms, squares = lax.map(forms_of, jax.random.split(key, num_probes))
    return Trace(jnp.mean(forms), jnp.std(forms, ddof=1) / num_probes**0.5, jnp.mean(squares))
