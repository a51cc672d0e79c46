"""From weights to activations: what a delta of parameters does to the residual stream, and the transposed map.

A reading is a function from a point to activations with the tokens bound. It is made by `reading`, of the model's
whole parameters or, through `models.over_adapter`, of an adapter's factors alone; a delta on a subset of the parameters
is one that is zero elsewhere (`restricted`).

Source: arXiv 2606.10929.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from lacuna import derivatives, trees
from lacuna.errors import InvalidInput
from lacuna.types import Delta, Params

Reading = Callable[[Params], Float[Array, "levels B Q D"]]
"""`reading(params)`: the residual stream of given rows, at given places."""


def reading(
    stream: Callable[..., Float[Array, "levels B Q D"]],
    tokens: Int[Array | np.ndarray, "B S"],
    weights: Float[Array | np.ndarray, "B Q S"],
) -> Partial:
    """The activations of given rows as a function of the point alone.

    Args:
      stream: `stream(params, tokens, weights=weights)`: `partial(read_stream, model)`, or
        `models.over_adapter(read_stream, model, params, spec)` for a function of the adapter's factors.
      tokens: the rows.
      weights: of `Read.weights`.

    Returns:
      A pytree: its rows are data to whatever is compiled of it.
    """
    return Partial(_read, trees.as_data(stream), jnp.asarray(tokens), jnp.asarray(weights))


def _read(stream: Callable[..., Any], tokens: Array, weights: Array, params: Params) -> Array:
    return stream(params, tokens, weights=weights)


def restricted(delta: Delta, pattern: str) -> Delta:
    """The delta with zeros in all leaves but those whose whole name matches a regular expression.

    Raises:
      InvalidInput: no leaf matches, and names them; or a pattern that is no regular expression.
    """
    names = trees.leaf_names(delta)
    try:
        chosen = {name for name in names if re.fullmatch(pattern, name)}
    except re.error as fault:
        raise InvalidInput("a subset must be a regular expression", got=f"`{pattern}`: {fault}") from fault
    if not chosen:
        raise InvalidInput(f"a subset must match one of {', '.join(names)}", got=f"`{pattern}`")
    return trees.map_named(lambda name, x: x if name in chosen else jnp.zeros_like(x), delta)


class Shift(NamedTuple):
    """What a step does to activations, exactly to first order and in fact.

    Attributes:
      value: before the step.
      exact: J delta, the derivative along the step: what it would do if the network were linear.
      finite: after the step minus before it.
      relative_radius: |delta| / |params|.
      error: at each level |finite - exact| / |finite|: how far the step leaves the linear regime; 0 where nothing
        moves.
    """

    value: Float[Array, "levels B Q D"]
    exact: Float[Array, "levels B Q D"]
    finite: Float[Array, "levels B Q D"]
    relative_radius: Float[Array, ""]
    error: Float[Array, "levels"]


def shift(read: Reading, params: Params, delta: Delta) -> Shift:
    """The shift of activations by a step, by one pass that carries values and derivatives and one after the step.

    Args:
      read: of `reading`.
      params: the point.
      delta: the whole step, its size included.

    Raises:
      TreeMismatch: the delta lives on another tree.
    """
    trees.check_match("shift", delta, params)
    return _shift(trees.as_data(read), params, delta)


@jax.jit
def _shift(read: Any, params: Params, delta: Delta) -> Shift:
    value, exact = derivatives.activation_jvp(read, params, delta)
    finite = read(trees.axpy(1.0, delta, params)) - value
    moved, missed = (jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3))) for x in (finite, finite - exact))
    error = jnp.where(moved > 0, missed / jnp.where(moved > 0, moved, 1), 0)
    return Shift(value, exact, finite, trees.norm(delta) / trees.norm(params), error)


def pushforward(read: Reading, params: Params, delta: Delta) -> Float[Array, "levels B Q D"]:
    """J delta: the activation shift of a delta to first order, linear in it.

    Raises:
      TreeMismatch: the delta lives on another tree.
    """
    trees.check_match("pushforward", delta, params)
    return _pushforward(trees.as_data(read), params, delta)


_pushforward = jax.jit(lambda read, params, delta: derivatives.activation_jvp(read, params, delta).shift)


def pullback(read: Reading, params: Params, cotangent: Float[Array, "levels B Q D"]) -> Delta:
    """J^T w: the transposed map, the gradient of `<w, activations>` by the parameters.

    Raises:
      InvalidInput: w does not have the shape of the activations.
    """
    return _pullback(trees.as_data(read), params, cotangent)


@jax.jit
def _pullback(read: Any, params: Params, cotangent: Array) -> Delta:
    value, back = jax.vjp(read, params)
    if value.shape != cotangent.shape:
        raise InvalidInput(
            f"pullback needs a weight for every activation, {list(value.shape)}", got=list(cotangent.shape)
        )
    return back(cotangent.astype(value.dtype))[0]


class ModuleShifts(NamedTuple):
    """The shift of a delta, by the module whose weights it moves.

    Attributes:
      names: of the modules, those of stacked layers with the layer in front of what it holds: `layers/3/mlp/up`.
      shifts: of each; they sum to the whole.
    """

    names: tuple[str, ...]
    shifts: Float[Array, "G levels B Q D"]


def module_shifts(
    read: Reading, params: Params, delta: Delta, *, stacked: Callable[[str], bool] = lambda name: False
) -> ModuleShifts:
    """J delta as a sum over modules: the part that each one's own change makes, the others at rest.

    The network is linearised once; memory is that of all G shifts.

    Args:
      read: of `reading`.
      params: the point.
      delta: the step.
      stacked: of the model: whether a leaf has the layers in front. Each layer is then a module of its own.

    Raises:
      TreeMismatch: the delta lives on another tree.
    """
    trees.check_match("module_shifts", delta, params)
    # A leaf's module is its name without the last part; `A` and `B` of an adapter's site belong together.
    modules = list(dict.fromkeys(_module(name) for name in trees.leaf_names(delta)))
    depth = {_module(name): leaf.shape[0] if stacked(name) else 0 for name, leaf in trees.named_leaves(delta)}
    every = [(i, layer) for i, name in enumerate(modules) for layer in range(max(depth[name], 1))]
    names = tuple(_of_layer(modules[i], layer) if depth[modules[i]] else modules[i] for i, layer in every)
    of_leaf = tuple((modules.index(_module(name)), bool(stacked(name))) for name in trees.leaf_names(delta))
    index, layer = (jnp.asarray(column) for column in zip(*every, strict=True))
    return ModuleShifts(names, _module_shifts(of_leaf, trees.as_data(read), params, delta, index, layer))


def _module(leaf_name: str) -> str:
    return leaf_name.rpartition("/")[0] or leaf_name


def _of_layer(module: str, layer: int) -> str:
    first, _, rest = module.partition("/")
    return f"{first}/{layer}/{rest}"


@partial(jax.jit, static_argnums=0)
def _module_shifts(
    of_leaf: tuple[tuple[int, bool], ...], read: Any, params: Params, delta: Delta, index: Array, layer: Array
) -> Array:
    push = jax.linearize(read, params)[1]
    leaves, structure = jax.tree.flatten(delta)

    def part(at: tuple[Array, Array]) -> Array:
        kept = []
        for leaf, point, (module, is_stacked) in zip(leaves, jax.tree.leaves(params), of_leaf, strict=True):
            mine = module == at[0]
            if is_stacked:
                own = jnp.arange(leaf.shape[0]) == at[1]
                mine = (mine & own).reshape(-1, *[1] * (leaf.ndim - 1))
            kept.append(jnp.where(mine, leaf, 0).astype(point.dtype))
        return push(jax.tree.unflatten(structure, kept))

    return lax.map(part, (index, layer))
