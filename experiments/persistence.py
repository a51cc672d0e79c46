"""Directions of activations along a recovery, and its displacement in activations: what of them persists."""

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from experiments.prefixes import Measure
from experiments.recoveries import Start, displacement
from lacuna import geometry, keys, steering, trees
from lacuna.models import Model
from lacuna.reports.records import Place
from lacuna.steering.activations import LAST_PROMPT
from lacuna.steering.margins import label_weights
from lacuna.tasks import Prompts
from lacuna.training import Trajectory
from lacuna.types import Delta, Params, Rows

VECTORS = ("contrast", "shift")
"""The two directions: the contrast vector, and the shift by a step on the contrast's labels."""

MEAN = "mean"
"""In place of a level: the mean over the levels behind each block. At level 0 all prompts end alike."""


class Contrast(NamedTuple):
    """Prompts of the forgotten task, of two kinds.

    Attributes:
      halves: disjoint, with equally many of each kind.
      held_out: others.
    """

    halves: tuple[Prompts, Prompts]
    held_out: Prompts


def direction_measures(
    start: Start, path: Trajectory, prompts: Contrast, steps: Sequence[int], *, num_shuffled: int
) -> Iterator[Measure]:
    """Cosines of the two directions with themselves at the start, of two halves, and with each other: with nulls."""
    labels = prompts.halves[1].positive
    labels = np.concatenate([labels[None], steering.shuffled_labels(labels, num_shuffled, seed=start.seed)])
    first: dict[str, Any] = {}
    halves_at_start: dict[str, Any] = {}
    for step in steps:
        point = trees.axpy(1.0, _travelled(path, step), start.params)
        one, other = directions(start, point, prompts), labelled_directions(start, point, prompts, labels)
        first = first or one
        for vector in VECTORS:
            where: dict[str, Place] = {"vector": vector, "step": step}
            with_start, split_half = cosines(other[vector], first[vector]), cosines(other[vector], one[vector])
            ends = halves_at_start.setdefault(vector, split_half[0]), split_half[0]
            ceiling = np.sqrt(np.prod(np.maximum(ends, 0), axis=0))
            yield from _judged("with_start", with_start, where)
            yield from _judged("split_half", split_half, where)
            yield from _by_level("ceiling", ceiling, where)
        yield from _judged("contrast_with_shift", cosines(other["shift"], one["contrast"]), {"step": step})


def directions(start: Start, point: Params, prompts: Contrast) -> dict[str, Float[np.ndarray, "L D"]]:
    """The two directions of the first half of the prompts."""
    fit, held_out = prompts.halves[0], prompts.held_out
    contrast = steering.statement(start.model, point, fit, batch_size=len(fit.right)).vectors[:, 0]
    step = steering.label_step(_of_model(steering.choice_margin, start.model), point, fit)
    shifts = np.asarray(steering.pushforward(_reading(start, held_out), point, step), np.float64)
    shift = np.einsum("b,lbd->ld", _apart(held_out.positive), shifts[:, :, 0])
    return {"contrast": contrast[1:], "shift": shift[1:]}


def labelled_directions(
    start: Start, point: Params, prompts: Contrast, labels: Bool[np.ndarray, "N n"]
) -> dict[str, Float[np.ndarray, "N L D"]]:
    """Those of the second half, for any number of labellings at once: both are linear in what knows no label."""
    fit, held_out = prompts.halves[1], prompts.held_out
    margin = _of_model(steering.choice_margin, start.model)
    stream = np.asarray(_value(_reading(start, fit), point), np.float64)[1:, :, 0]
    margins, shifts = steering.example_shifts(margin, _reading(start, held_out), point, fit)
    steps = np.asarray(label_weights(margins, jnp.asarray(labels)), np.float64)
    moved = np.einsum("b,nlbd->nld", _apart(held_out.positive), np.asarray(shifts, np.float64)[:, 1:, :, 0])
    contrasts = np.asarray([_apart(labelling) for labelling in labels])
    return {"contrast": np.tensordot(contrasts, stream, (1, 1)), "shift": np.tensordot(steps, moved, 1)}


def _reading(start: Start, prompts: Prompts) -> Any:
    """The stream at the last token of the prompts."""
    return steering.reading(
        _of_model(steering.read_stream, start.model), prompts.tokens, LAST_PROMPT.weights(prompts.spans)
    )


@functools.cache
def _of_model(function: Callable[..., Any], model: Model) -> Callable[..., Any]:
    """The function of a model, the same object each time, so that nothing is compiled twice."""
    return partial(function, model)


_value = jax.jit(lambda read, params: read(params))


def _apart(positive: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Weights by which a sum over prompts is the mean of the positive ones less that of the others."""
    return np.where(positive, 1 / positive.sum(), -1 / (~positive).sum())


def cosines(rows: Float[np.ndarray, "N L D"], fixed: Float[np.ndarray, "L D"]) -> Float[np.ndarray, "N L"]:
    """Of every labelling's direction with a given one, at each level."""
    inner = np.einsum("nld,ld->nl", rows, fixed)
    return inner / (np.linalg.norm(rows, axis=-1) * np.linalg.norm(fixed, axis=-1))


def _judged(quantity: str, values: Float[np.ndarray, "N L"], where: dict[str, Place]) -> Iterator[Measure]:
    """A cosine, the first, beside those of shuffled labels; the mean over levels has a null of its own."""
    every = np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)
    null = steering.Null(every[0, :, None], every[1:, :, None])
    low, high = null.middle
    found = {"": null.observed, "_null": null.mean, "_null_deviation": null.deviation, "_p": null.p}
    found |= {"_null_low": low, "_null_high": high}
    for suffix, numbers in found.items():
        for level, number in zip([*range(1, values.shape[1] + 1), MEAN], numbers[:, 0], strict=True):
            yield quantity + suffix, float(number), {**where, "level": level}


def _by_level(quantity: str, values: Sequence[float] | np.ndarray, where: dict[str, Place]) -> Iterator[Measure]:
    """Values behind each block, and their mean."""
    for level, number in zip([*range(1, len(values) + 1), MEAN], [*values, np.mean(values)], strict=True):
        yield quantity, float(number), {**where, "level": level}


def displacement_measures(
    start: Start, path: Trajectory, other: Trajectory, held_out: Prompts, prefixes: Sequence[int]
) -> Iterator[Measure]:
    """Masses of the displacement of activations and of weights, and how far the former is from linear."""
    read, most = _reading(start, held_out), prefixes[-1]
    delta = displacement(start, path)
    moved = steering.shift(read, start.params, delta)
    first, first_of_other = (jax.tree.map(lambda u: u[:most], run.updates) for run in (path, other))
    key = keys.stream(start.seed, "activation drift")
    random = trees.map_named(lambda name, x: jax.random.normal(keys.leaf(key, name), (most, *x.shape)), delta)
    pushed = {
        name: pushed_rows(read, start.params, rows)
        for name, rows in (("prefix", first), ("other_run", first_of_other), ("random", random))
    }
    masses = {name: masses_by_level(rows, moved.finite) for name, rows in pushed.items()}
    in_weights = {
        "prefix": geometry.prefix_captures(first, delta),
        "other_run": geometry.prefix_captures(first_of_other, delta),
        "remainder": geometry.remainder_captures(first, delta),
    }
    for m in prefixes:
        where: dict[str, Place] = {"m": m}
        rest = moved.finite - steering.shift(read, start.params, _travelled(path, m)).finite
        for name, found in masses.items():
            yield from _by_level(f"pushed_{name}", found[:, m - 1], where)
        yield from _by_level("pushed_remainder", masses_by_level(pushed["prefix"], rest)[:, m - 1], where)
        yield "pushed_level", float(geometry.random_mass(m, moved.finite[0])), where
        for name, found in in_weights.items():
            yield f"weight_{name}", float(found[m - 1]), where
        yield "weight_level", float(geometry.random_mass(m, delta)), where
    yield from _by_level("linear_error", np.asarray(moved.error[1:]), {})


@jax.jit
def pushed_rows(read: Any, params: Params, rows: Rows) -> Float[Array, "k levels B Q D"]:
    """The shifts of activations by each of some deltas, to first order."""
    return jax.lax.map(partial(steering.pushforward, read, params), rows)


def masses_by_level(
    rows: Float[Array, "k levels B Q D"], delta: Float[Array, "levels B Q D"]
) -> Float[np.ndarray, "L k"]:
    """By level the mass in the span of the first 1 to k rows of what all prompts together move by."""
    levels = zip(jnp.moveaxis(rows, 1, 0)[1:], delta[1:], strict=True)
    return np.asarray([geometry.prefix_captures(there, moved) for there, moved in levels])


def _travelled(path: Trajectory, step: int) -> Delta:
    """The sum of the first updates."""
    return jax.tree.map(lambda u: jnp.sum(u[:step], axis=0), path.updates)
