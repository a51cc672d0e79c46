"""Whether a labelled gradient moves activations along a contrast vector: cosines, each with the cosines that
shuffled labels give.

The gradient of a labels' loss is linear in the prompts' own margin gradients, whose weights alone know the labels
(`margins.label_weights`). So each prompt's gradient is pushed forward to the held-out prompts once, and the shift of
every other labelling is a matrix product. A cosine without this null says nothing: labels that are shuffled may give
one as large, for what they have in common with the true ones, the pull towards either answer, moves activations too.

Source: arXiv 2606.10929 for the cosine; its null is ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.steering.activations import LAST_PROMPT, Read
from lacuna.steering.margins import Margin, check_contrast, label_weights
from lacuna.steering.nulls import Null, shuffled_labels
from lacuna.steering.pushforward import reading, restricted
from lacuna.tasks.contrast import Prompts
from lacuna.types import Params

Readout = Literal["mean", "class_difference", "per_prompt"]
READOUTS: tuple[Readout, ...] = ("mean", "class_difference", "per_prompt")
"""Of the shifts D(x) of held-out prompts x and the contrast v: cos(mean D, v); cos(mean D of the positive ones - mean D
of the others, v); the mean of cos(D(x), v)."""

Shuffled = Literal["gradient", "pipeline"]
SHUFFLED: tuple[Shuffled, ...] = ("gradient", "pipeline")
"""Whose labels: those of the gradient, the contrast being that of the true ones; or of gradient and contrast together.
Labels of held-out prompts are always true."""


@dataclass(frozen=True)
class CosineMap:
    """Cosines of a label step's activation shift with a contrast vector, by level and place, each with its nulls.

    Attributes:
      contrast: mean of the positive fit prompts minus mean of the others.
      mean_shift: of the held-out prompts, to first order and for the step minus the gradient, unscaled.
      class_shift: mean over the positive held-out prompts minus mean over the others.
      nulls: by what is read out and whose labels are shuffled; `observed` is the same for both.
      subtracted: by readout, the cosine of the shift less the expected shift of shuffled labels; not of `per_prompt`.
      deviation: of cos(D(x), v) over the held-out prompts.

    A cosine is NaN where one of its two vectors is zero, as a contrast is at level 0 where all prompts end alike.
    """

    contrast: Float[np.ndarray, "levels Q D"]
    mean_shift: Float[np.ndarray, "levels Q D"]
    class_shift: Float[np.ndarray, "levels Q D"]
    nulls: dict[tuple[Readout, Shuffled], Null]
    subtracted: dict[Readout, Float[np.ndarray, "levels Q"]]
    deviation: Float[np.ndarray, "levels Q"]


class ExampleShifts(NamedTuple):
    """The margins of n prompts, and the shift of B others by each one's margin gradient.

    Attributes:
      margins: in nats.
      shifts: J grad m_i.
    """

    margins: Float[Array, "n"]
    shifts: Float[Array, "n levels B Q D"]


def example_shifts(margin: Margin, read: Any, params: Params, prompts: Prompts, *, moving: str = ".*") -> ExampleShifts:
    """The pushforward of every prompt's own margin gradient; those of all labellings are sums of these.

    The network is linearised at the rows of `read` once. Memory is that of the result and of one gradient.

    Args:
      margin: of the model or of an adapter, as for `label_step`.
      read: of `pushforward.reading`, over the same parameters.
      params: the point.
      prompts: whose gradients are taken.
      moving: regular expression; leaves whose whole name does not match it are frozen.
    """
    return _example_shifts(moving, trees.as_data(margin), trees.as_data(read), params, prompts)


@jax.jit(static_argnums=0)
def _example_shifts(moving: str, margin: Any, read: Any, params: Params, prompts: Prompts) -> ExampleShifts:
    push = jax.linearize(read, params)[1]

    def one(row: Prompts) -> tuple[Array, Array]:
        def own(point: Params) -> Array:
            return margin(point, row.tokens[None], length=row.length[None], choices=row.choices[None])[0]

        value, slope = jax.value_and_grad(own)(params)
        return value, push(slope if moving == ".*" else restricted(slope, moving))

    return ExampleShifts(*lax.map(one, prompts))


def cosine_map(
    margin: Margin,
    stream: Any,
    params: Params,
    fit: Prompts,
    held_out: Prompts,
    *,
    read: Read = LAST_PROMPT,
    num_shuffled: int = 1000,
    seed: int = 0,
    groups: Int[np.ndarray, "n"] | None = None,
    moving: str = ".*",
    batch_size: int = 32,
) -> CosineMap:
    """Cosines of the activation shift by the labels' gradient with the contrast vector, and their permutation nulls.

    Gradient and contrast (`statement`) come from `fit`, the shifts are those of `held_out`, to first order, so that the
    size of the step does not matter. With one set for both, the figure is that of the training prompts.

    Args:
      margin: as for `label_step`.
      stream: as for `pushforward.reading`, over the same parameters.
      params: the point.
      fit: prompts with two answers, of either label.
      held_out: likewise.
      read: where activations are read, in both.
      num_shuffled: N, labellings; 1,000 or more resolve p < 0.01.
      seed: of the labellings.
      groups: of each prompt of `fit`, as for `nulls.shuffled_labels`: what the labels are shuffled over.
      moving: as for `example_shifts`.
      batch_size: held-out prompts at a time; the gradients of `fit` are taken again for each batch. Beside the
        n x (L + 1) x batch_size x Q x D shifts there are a few times N x (L + 1) x Q x D numbers.

    Raises:
      InvalidInput: prompts of one label, fewer than two labellings, a row without the tokens that are read, groups that
        do not fit (see `nulls.shuffled_labels`), or a margin that is not finite; names the row.
    """
    for prompts in (fit, held_out):
        check_contrast(prompts)
    if num_shuffled < 2 or batch_size < 1:
        raise InvalidInput(
            "num_shuffled must be at least 2 and batch_size at least 1", got=f"{num_shuffled} and {batch_size}"
        )
    shuffled = shuffled_labels(fit.positive, num_shuffled, seed=seed, groups=groups)
    labels = np.concatenate([fit.positive[None], shuffled])
    # How likely each prompt is to be positive: groups are shuffled whole, and the large ones are no likelier.
    share = fit.positive.mean() if groups is None else fit.positive[np.unique(groups, return_index=True)[1]].mean()
    batch_size = min(batch_size, len(held_out.right))
    contrasts = _contrasts(jnp.asarray(labels), _activations(stream, params, fit, read, batch_size))
    signs = np.where(held_out.positive, 1.0, -1.0)
    sizes = np.where(held_out.positive, held_out.positive.sum(), (~held_out.positive).sum())
    weights = np.stack([np.full(len(signs), 1 / len(signs)), signs / sizes]).astype(np.float32)

    def part(rows: Prompts, there: Int[np.ndarray, "b"]) -> _Sums:
        at = reading(stream, rows.tokens, read.weights(rows.spans))
        own = np.pad(weights[:, there], ((0, 0), (0, batch_size - len(there))))
        return _of_batch(moving, trees.as_data(margin), at, params, fit, own, len(there), labels, contrasts)

    found = reduce(_sum, (part(rows, there) for rows, there in _batches(held_out, batch_size)))
    for row in np.flatnonzero(~np.isfinite(found.margins))[:1]:
        raise InvalidInput(
            f"the margins of all prompts must be finite; that of row {row} is not",
            hint="tokens of this model's vocabulary, or parameters that are finite",
        )
    return _judged(jax.device_get(_cosines(labels, float(share), found, contrasts)), len(signs))


class _Sums(NamedTuple):
    """What batches of held-out prompts add up to, but for the margins; the last three are sums over the prompts.

    Attributes:
      margins: of the fit prompts.
      shifts: weighted sums over the prompts: their mean, and their class difference.
      alone: cosines of a prompt's own shift with the contrast of the true labels, by labelling.
      together: with the contrast of the same labelling.
      squares: of `alone` for the true labels.
    """

    margins: Float[Array, "n"]
    shifts: Float[Array, "2 n levels Q D"]
    alone: Float[Array, "N levels Q"]
    together: Float[Array, "N levels Q"]
    squares: Float[Array, "levels Q"]


@jax.jit
def _sum(total: _Sums, part: _Sums) -> _Sums:
    return jax.tree.map(jnp.add, total, part)._replace(margins=part.margins)


@jax.jit(static_argnums=0)
def _of_batch(
    moving: str,
    margin: Any,
    read: Any,
    params: Params,
    fit: Prompts,
    weights: Float[Array, "2 B"],
    num_there: Any,
    labels: Bool[Array, "N n"],
    contrasts: Float[Array, "N levels Q D"],
) -> _Sums:
    margins, shifts = _example_shifts(moving, margin, read, params, fit)
    steps = label_weights(margins, labels)

    def of_prompt(own: Float[Array, "n levels Q D"]) -> tuple[Array, Array]:
        moved = _combined(steps, own)
        return _cosine(moved, contrasts[0]), _cosine(moved, contrasts)

    alone, together = lax.map(of_prompt, jnp.moveaxis(shifts, 2, 0))
    there = (jnp.arange(shifts.shape[2]) < num_there)[:, None, None, None]
    alone, together = (jnp.where(there, x, 0) for x in (alone, together))
    reduced = jnp.einsum("rb,nlbqd->rnlqd", weights, shifts, precision=lax.Precision.HIGHEST)
    return _Sums(margins, reduced, alone.sum(0), together.sum(0), jnp.square(alone[:, 0]).sum(0))


def _combined(weights: Float[Array, "N n"], parts: Float[Array, "n *rest"]) -> Float[Array, "N *rest"]:
    return jnp.einsum("pn,n...->p...", weights, parts, precision=lax.Precision.HIGHEST)


def _cosine(a: Float[Array, "*a D"], b: Float[Array, "*b D"]) -> Float[Array, "*c"]:
    """NaN where one of the two is zero."""
    # By the largest entry first, whose square may not vanish: the step of labels that are told well is tiny.
    a, b = (x / jnp.max(jnp.abs(x), axis=-1, keepdims=True) for x in (a, b))
    return jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


@jax.jit
def _contrasts(labels: Bool[Array, "N n"], activations: Float[Array, "n levels Q D"]) -> Float[Array, "N levels Q D"]:
    """The contrast vector of every labelling: a matrix product, too."""
    num_positive = jnp.sum(labels, axis=1, keepdims=True)  # groups may differ in size
    weights = jnp.where(labels, 1 / num_positive, -1 / (labels.shape[1] - num_positive))
    # From the first prompt, which changes nothing but the rounding: where all are equal, so are the two means.
    return _combined(weights, activations - activations[:1])


def _activations(stream: Any, params: Params, prompts: Prompts, read: Read, batch_size: int) -> Array:
    """The stream of each prompt by itself, [n, levels, Q, D]."""
    found = []
    for rows, there in _batches(prompts, batch_size):
        value = _value(reading(stream, rows.tokens, read.weights(rows.spans)), params)
        found.append(jnp.moveaxis(value, 1, 0)[: len(there)])
    return jnp.concatenate(found)


_value = jax.jit(lambda read, params: read(params))


def _batches(prompts: Prompts, size: int) -> Iterator[tuple[Prompts, Int[np.ndarray, "b"]]]:
    """Batches of one size, the last one filled up with its first prompt, and which prompts are in each."""
    for first in range(0, len(prompts.right), size):
        there = np.arange(first, min(first + size, len(prompts.right)))
        filled = np.pad(there, (0, size - len(there)), constant_values=first)
        yield Prompts(*(np.asarray(x)[filled] for x in prompts)), there


@jax.jit
def _cosines(labels: Array, share: Any, sums: _Sums, contrasts: Array) -> dict[str, Any]:
    """All cosines, the true labelling's first; `share` is that of shuffled labels that are positive."""
    steps = label_weights(sums.margins, labels)
    either = jnp.broadcast_to(jnp.asarray([[True], [False]]), (2, len(sums.margins)))
    expected = jnp.asarray([share, 1 - share]) @ label_weights(sums.margins, either)
    found: dict[str, Any] = {"contrast": contrasts[0], "squares": sums.squares}
    for name, shifts in zip(("mean", "class_difference"), sums.shifts, strict=True):
        moved = _combined(steps, shifts)
        found[name] = {
            "gradient": _cosine(moved, contrasts[0]),
            "pipeline": _cosine(moved, contrasts),
            "subtracted": _cosine(moved[0] - _combined(expected[None], shifts)[0], contrasts[0]),
            "shift": moved[0],
        }
    found["per_prompt"] = {"gradient": sums.alone, "pipeline": sums.together}
    return found


def _judged(found: dict[str, Any], num_held_out: int) -> CosineMap:
    for shuffled in SHUFFLED:
        found["per_prompt"][shuffled] = found["per_prompt"][shuffled] / num_held_out
    nulls = {
        (readout, shuffled): Null(found[readout][shuffled][0], found[readout][shuffled][1:])
        for readout in READOUTS
        for shuffled in SHUFFLED
    }
    mean = nulls["per_prompt", "gradient"].observed
    return CosineMap(
        found["contrast"],
        found["mean"]["shift"],
        found["class_difference"]["shift"],
        nulls,
        {"mean": found["mean"]["subtracted"], "class_difference": found["class_difference"]["subtracted"]},
        np.sqrt(np.maximum(found["squares"] / num_held_out - mean**2, 0)),
    )


def unembedding_difference(params: Params, choices: Int[Array | np.ndarray, "B 2"]) -> Float[Array, "D"]:
    """The head's column of the positive answer less that of the other, averaged over prompts.

    A confound: a step that only raises one answer's logit moves the last levels along it, and where the head is the
    embedding's transpose, so does a contrast that is read at the answers themselves.

    Raises:
      InvalidInput: other than two choices, or one beyond the vocabulary.
    """
    rows, axis = (params["head"]["kernel"], 1) if "head" in params else (params["embedding"], 0)
    size = rows.shape[axis]
    if choices.shape[1:] != (2,) or not ((choices >= 0) & (choices < size)).all():
        raise InvalidInput(f"choices must be two of {size} tokens for each prompt", got=np.asarray(choices).tolist())
    positive, other = (jnp.take(rows, choices[:, side], axis=axis).astype(jnp.float32) for side in (0, 1))
    return jnp.mean(positive - other, axis=axis)
