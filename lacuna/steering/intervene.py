"""Steering: what a push of the residual stream, or a step of the weights, does to answers and to plain text.

A whole grid of arms is one compiled call. The model itself is run once, beside it one arm after the other or a few side
by side, and what an arm's logits are good for is taken from them at once: no array of arms by vocabulary ever is.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.models import Model, logits_at
from lacuna.tasks.contrast import Prompts
from lacuna.types import Delta, Params

ACCELERATOR_WIDTH = 8
"""Arms side by side where that fills the device; ours, not tuned on any one of them."""

Floats = Float[Array, "..."] | Float[np.ndarray, "..."]
Integers = Int[Array, "A"] | Int[np.ndarray, "A"]
Masks = Bool[Array, "M B S"] | Bool[np.ndarray, "M B S"]


class Arms(NamedTuple):
    """Arms of an experiment: `strength` times a vector is added to the stream at a level, where a mask is True.

    Attributes:
      vector: which of the vectors.
      level: 0 is the embedding output, l the stream after block l.
      strength: the vector's multiplier; at 0 the arm is the model itself.
      mask: which of the masks.
    """

    vector: Integers
    level: Integers
    strength: Float[Array, "A"] | Float[np.ndarray, "A"]
    mask: Integers


class Answers(NamedTuple):
    """What every arm makes of the token that follows each prompt.

    Attributes:
      log_odds: logit of the first choice, the positive one, less that of the other; of several, less the
        log-sum-exp of the others.
      mass: probability of all choices together, of the whole vocabulary. Where it is small, the odds mean little.
      right: whether the right choice is the likeliest of them.
      kl: KL(model || arm) in nats, over the whole vocabulary.
    """

    log_odds: Float[Array, "A B"]
    mass: Float[Array, "A B"]
    right: Bool[Array, "A B"]
    kl: Float[Array, "A B"]


class TextCost(NamedTuple):
    """What every arm does to plain text; entry s of a row is of the prediction of its token s + 1.

    Attributes:
      nats: cross-entropy of the next token.
      kl: KL(model || arm) in nats, over the whole vocabulary.
    """

    nats: Float[Array, "A B S-1"]
    kl: Float[Array, "A B S-1"]


def grid(
    model: Model,
    *,
    vectors: Sequence[int],
    levels: Sequence[int],
    strengths: Sequence[float] | Float[np.ndarray, "n"],
    masks: Sequence[int] = (0,),
) -> Arms:
    """All combinations, the masks running fastest and the vectors slowest.

    What is found for the arms, [A, ...], is thus by vector, level, strength and mask when it is given the shape
    [len(vectors), len(levels), len(strengths), len(masks), ...].

    Args:
      model: that is steered.
      vectors: indices into the vectors.
      levels: of the stream.
      strengths: multipliers of the vectors, of either sign.
      masks: indices into the masks.

    Raises:
      InvalidInput: one of them is empty, or a level that the model does not have.
    """
    for name, given in {"vectors": vectors, "levels": levels, "strengths": strengths, "masks": masks}.items():
        if not len(given):
            raise InvalidInput(f"a grid needs at least one of its {name}", got="none")
    _check_levels(model, np.asarray(levels))
    columns = zip(*itertools.product(vectors, levels, strengths, masks), strict=True)
    vector, level, strength, mask = (np.asarray(column) for column in columns)
    return Arms(vector.astype(np.int32), level.astype(np.int32), strength.astype(np.float32), mask.astype(np.int32))


def scaled(vectors: Floats, norms: Floats) -> Float[Array, "n levels D"]:
    """The directions of vectors, as long at each level as the stream is there.

    A strength is then dimensionless: the share of the stream's norm by which it is pushed. A vector of zeros, as a
    contrast is at level 0 where all rows are read at the same token, has no direction and stays zero.

    Args:
      vectors: [n, levels, D], or [n, D] for vectors that are the same at all levels.
      norms: mean norm of the stream at each level, those of `SteeringVectors` for example.

    Raises:
      InvalidInput: vectors of neither shape.
    """
    vectors, norms = jnp.asarray(vectors, jnp.float32), jnp.asarray(norms, jnp.float32)
    if vectors.ndim == 2:
        vectors = jnp.broadcast_to(vectors[:, None], (len(vectors), len(norms), vectors.shape[1]))
    if vectors.ndim != 3 or vectors.shape[1:2] != norms.shape:
        raise InvalidInput(
            "vectors need the shape [n, D], or [n, levels, D] with as many levels as there are norms",
            got=f"{list(vectors.shape)} for norms of {list(norms.shape)}",
        )
    # By the largest entry first, whose square may neither vanish nor overflow: a step's shift can be tiny.
    largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
    shrunk = vectors / jnp.where(largest > 0, largest, 1)
    length = jnp.linalg.norm(shrunk, axis=-1, keepdims=True)
    return norms[:, None] * shrunk / jnp.where(length > 0, length, 1)


def position_masks(
    prompts: Prompts, names: Sequence[str], *, start: Int[np.ndarray, "B"] | None = None
) -> Bool[np.ndarray, "M B S"]:
    """Where each rule steers; padding it never does.

    Args:
      prompts: the rows.
      names: `last`, the last token; `all` tokens; or those `after_prompt`: from `start` to the last.
      start: of each row the position from which `after_prompt` steers, that of the end of an instruction for example;
        by default its last token.

    Raises:
      InvalidInput: no rule, one that there is not, or a row that ends before its start.
    """
    start = prompts.length - 1 if start is None else start
    outside = np.flatnonzero((start < 0) | (start >= prompts.length))
    if outside.size:
        row = outside[0]
        raise InvalidInput(f"row {row} has {prompts.length[row]} tokens; it cannot be steered from {start[row]} on")
    at, end = np.arange(prompts.tokens.shape[1]), prompts.length[:, None]
    rules = {"last": at == end - 1, "all": at < end, "after_prompt": (at >= start[:, None]) & (at < end)}
    unknown = [f"`{name}`" for name in names if name not in rules]
    if unknown or not names:
        raise InvalidInput(f"positions are steered by {', '.join(rules)}", got=", ".join(unknown) or "none")
    return np.stack([rules[name] for name in names])


def steered_answers(
    model: Model,
    params: Params,
    prompts: Prompts,
    vectors: Floats,
    arms: Arms,
    masks: Masks,
    *,
    width: int | None = None,
    chunk: int | None = None,
) -> Answers:
    """Answers of the steered model: `h_l <- h_l + strength * vector` at the level and the positions of each arm.

    Another grid of as many arms compiles nothing.

    Args:
      model: that can be steered: `causal_lm` or `synthetic`.
      params: its parameters.
      prompts: with the choices.
      vectors: float32 [n, D], or [n, levels, D] for vectors of which each level has its own, as of `scaled`.
      arms: of `grid`, or any others.
      masks: of `position_masks`.
      width: arms side by side; None for one on a CPU and 8 elsewhere. It changes the last bits.
      chunk: rows at a time, where all of them do not fit; None for all.

    Raises:
      InvalidInput: an arm whose vector, level or mask does not exist, or shapes that do not fit the model.

    Source: arXiv 2606.10929 (Table 6), whose definition of steering is not available to us; this one is ours.
    """
    rows = _prompts(model, prompts, _by_row(arms, masks, prompts.tokens.shape))
    return _steered(_ANSWERS, model, params, *_pushes(model, vectors, arms), rows, **_sizes(width, chunk))


def steered_text(
    model: Model,
    params: Params,
    tokens: Int[Array, "B S"] | Int[np.ndarray, "B S"],
    vectors: Floats,
    arms: Arms,
    masks: Masks | None = None,
    *,
    width: int | None = None,
    chunk: int | None = None,
) -> TextCost:
    """What steering costs on plain text; arguments as for `steered_answers`.

    Args:
      model: as for `steered_answers`.
      params: as for `steered_answers`.
      tokens: rows of text without padding; or what is found of padding is to be left out.
      vectors: as for `steered_answers`.
      arms: as for `steered_answers`.
      masks: None steers every token, whatever mask the arms have.
      width: as for `steered_answers`.
      chunk: rows at a time; the logits of so many rows, `width` times, and those of the model itself are there at once.

    Raises:
      InvalidInput: as `steered_answers`.
    """
    if masks is None:
        arms = arms._replace(mask=np.zeros(np.shape(arms.level), np.int32))
        masks = np.ones((1, *tokens.shape), bool)
    rows = _Text(jnp.asarray(tokens), _by_row(arms, masks, tokens.shape))
    return _steered(_TEXT, model, params, *_pushes(model, vectors, arms), rows, **_sizes(width, chunk))


def stepped_answers(
    model: Model,
    params: Params,
    delta: Delta,
    strengths: Float[Array, "A"] | Float[np.ndarray, "A"],
    prompts: Prompts,
    *,
    width: int | None = 1,
    chunk: int | None = None,
) -> Answers:
    """Answers of the model at `params + strength * delta`: what steering is to be compared with.

    Args:
      model: any.
      params: its parameters.
      delta: a step, on their tree.
      strengths: its multipliers, one for each arm.
      prompts: as for `steered_answers`.
      width: arms side by side, each with its own weights in memory.
      chunk: as for `steered_answers`.

    Raises:
      TreeMismatch: the step is on another tree.
    """
    rows = _prompts(model, prompts, None)
    return _stepped(_ANSWERS, model, params, delta, jnp.asarray(strengths), rows, **_sizes(width, chunk))


def stepped_text(
    model: Model,
    params: Params,
    delta: Delta,
    strengths: Float[Array, "A"] | Float[np.ndarray, "A"],
    tokens: Int[Array, "B S"] | Int[np.ndarray, "B S"],
    *,
    width: int | None = 1,
    chunk: int | None = None,
) -> TextCost:
    """What the step costs on plain text; arguments as for `stepped_answers` and `steered_text`."""
    rows = _Text(jnp.asarray(tokens), None)
    return _stepped(_TEXT, model, params, delta, jnp.asarray(strengths), rows, **_sizes(width, chunk))


class _Prompts(NamedTuple):
    tokens: Int[Array, "B S"]
    length: Int[Array, "B"]
    choices: Int[Array, "B C"]
    right: Int[Array, "B"]
    masks: Bool[Array, "B M S"] | None


class _Text(NamedTuple):
    tokens: Int[Array, "B S"]
    masks: Bool[Array, "B M S"] | None


class _Measure(NamedTuple):
    """What is asked of an arm.

    Attributes:
      logits: `logits(model, params, rows, **options)`.
      score: `score(logits, log-probabilities of the model itself, rows)`.
    """

    logits: Callable[..., Array]
    score: Callable[..., Any]


def _answer_logits(model: Model, params: Params, rows: _Prompts, **options: Any) -> Float[Array, "B V"]:
    return logits_at(model, params, rows.tokens, rows.length - 1, **options)


def _answers(logits: Float[Array, "B V"], base: Float[Array, "B V"], rows: _Prompts) -> Answers:
    log_probs = jax.nn.log_softmax(logits)
    told, mass = (jnp.take_along_axis(x, rows.choices, axis=-1) for x in (logits, log_probs))
    return Answers(
        told[:, 0] - jax.nn.logsumexp(told[:, 1:], axis=-1),
        jnp.exp(jax.nn.logsumexp(mass, axis=-1)),
        jnp.argmax(told, axis=-1) == rows.right,
        _kl(base, log_probs),
    )


def _text_logits(model: Model, params: Params, rows: _Text, **options: Any) -> Float[Array, "B T V"]:
    return model.apply(params, rows.tokens, **options).logits[:, :-1]


def _text_cost(logits: Float[Array, "B T V"], base: Float[Array, "B T V"], rows: _Text) -> TextCost:
    log_probs = jax.nn.log_softmax(logits)
    of_next = jnp.take_along_axis(log_probs, rows.tokens[:, 1:, None], axis=-1)[..., 0]
    return TextCost(-of_next, _kl(base, log_probs))


_ANSWERS, _TEXT = _Measure(_answer_logits, _answers), _Measure(_text_logits, _text_cost)


def _kl(base: Float[Array, "*pos V"], other: Float[Array, "*pos V"]) -> Float[Array, "*pos"]:
    """KL(base || other) of log-probabilities.

    The terms `p log(p/q)` have both signs and leave, of a small divergence, nothing but rounding. Those of the same
    sum, `p log(p/q) - p + q`, are small themselves and never negative.
    """
    p, log_ratio = jnp.exp(base), base - other
    small = jnp.abs(log_ratio) < 1
    near = p * (jnp.expm1(jnp.where(small, -log_ratio, 0)) + log_ratio)
    far = jnp.exp(other) - p + p * log_ratio
    return jnp.sum(jnp.maximum(jnp.where(small, near, far), 0), axis=-1)


def _over_arms(
    run: Callable[[Any, Any], Array], measure: _Measure, arms: Any, rows: Any, width: int, chunk: int | None
) -> Any:
    """`measure` of `run(arm, rows)` for every arm, [A, B, ...]; `run(None, rows)` is the model itself."""

    def of_rows(rows: Any) -> Any:
        base = jax.nn.log_softmax(run(None, rows))
        # Not a map over one arm at a time: that would make a batch of it, and other bits.
        at_a_time = width if width > 1 else None
        return lax.map(lambda arm: measure.score(run(arm, rows), base, rows), arms, batch_size=at_a_time)

    num_rows = rows.tokens.shape[0]
    if chunk is None or chunk >= num_rows:
        return of_rows(rows)
    room = -num_rows % chunk

    def parts(leaf: Array) -> Array:
        filled = jnp.pad(leaf, ((0, room), *((0, 0),) * (leaf.ndim - 1)), mode="edge")
        return filled.reshape(-1, chunk, *leaf.shape[1:])

    found = lax.map(of_rows, jax.tree.map(parts, rows))
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :num_rows],
        found,
    )


@partial(jax.jit, static_argnames=("measure", "model", "width", "chunk"))
def _steered(
    measure: _Measure,
    model: Model,
    params: Params,
    vectors: Array,
    arms: Arms,
    rows: Any,
    *,
    width: int,
    chunk: int | None,
) -> Any:
    def run(arm: Arms | None, rows: Any) -> Array:
        if arm is None:
            return measure.logits(model, params, rows)
        vector = vectors[arm.vector] if vectors.ndim == 2 else vectors[arm.vector, arm.level]
        here = rows.masks[:, arm.mask, :, None]
        levels = jnp.zeros((model.spec.num_layers + 1, *rows.tokens.shape, model.spec.width), vectors.dtype)
        push = jnp.where(here, arm.strength * vector, 0)  # not a product: it is zero beside an infinite one, too
        return measure.logits(model, params, rows, steer=levels.at[arm.level].set(push))

    return _over_arms(run, measure, arms, rows, width, chunk)


@partial(jax.jit, static_argnames=("measure", "model", "width", "chunk"))
def _stepped(
    measure: _Measure,
    model: Model,
    params: Params,
    delta: Delta,
    strengths: Array,
    rows: Any,
    *,
    width: int,
    chunk: int | None,
) -> Any:
    def run(strength: Array | None, rows: Any) -> Array:
        return measure.logits(model, params if strength is None else trees.axpy(strength, delta, params), rows)

    return _over_arms(run, measure, strengths, rows, width, chunk)


def _sizes(width: int | None, chunk: int | None) -> dict[str, Any]:
    if width is None:
        width = 1 if jax.default_backend() == "cpu" else ACCELERATOR_WIDTH
    for name, size in {"width": width, "chunk": chunk}.items():
        if size is not None and size < 1:
            raise InvalidInput(f"{name} must be at least 1", got=size)
    return {"width": width, "chunk": chunk}


def _prompts(model: Model, prompts: Prompts, masks: Bool[Array, "B M S"] | None) -> _Prompts:
    """Prompts on the device; a choice beyond the vocabulary would be answered by NaN."""
    size = model.spec.vocab_size
    beyond = np.argwhere((prompts.choices < 0) | (prompts.choices >= size))
    if beyond.size:
        row, choice = beyond[0]
        raise InvalidInput(f"the choices of row {row} must be of the {size} tokens", got=prompts.choices[row, choice])
    tokens, length, choices, right = (jnp.asarray(x) for x in prompts)
    return _Prompts(tokens, length, choices, right, masks)


def _by_row(arms: Arms, masks: Masks, shape: tuple[int, ...]) -> Bool[Array, "B M S"]:
    if masks.shape[1:] != shape:
        raise InvalidInput("masks need an entry for every token", got=f"{list(masks.shape)} for {list(shape)} tokens")
    _check_index("mask", arms.mask, masks.shape[0])
    return jnp.moveaxis(jnp.asarray(masks), 0, 1)


def _pushes(model: Model, vectors: Floats, arms: Arms) -> tuple[Float[Array, "..."], Arms]:
    """Vectors and arms on the device, after a look at whether they fit each other and the model."""
    levels, width = model.spec.num_layers + 1, model.spec.width
    if vectors.shape[1:] not in {(width,), (levels, width)}:
        raise InvalidInput(
            f"vectors need the shape [n, {width}], or [n, {levels}, {width}] where each level has its own",
            got=list(vectors.shape),
        )
    lengths = {np.shape(part) for part in arms}
    if len(lengths) > 1 or lengths == {(0,)}:
        raise InvalidInput("arms need a vector, a level, a strength and a mask each", got=f"shapes {sorted(lengths)}")
    _check_index("vector", arms.vector, vectors.shape[0])
    _check_levels(model, np.asarray(arms.level))
    return jnp.asarray(vectors), Arms(*(jnp.asarray(part) for part in arms))


def _check_index(name: str, index: Integers, count: int) -> None:
    index = np.asarray(index)
    for wrong in index[(index < 0) | (index >= count)][:1]:
        raise InvalidInput(f"there is no {name} {wrong}", got=f"{count} of them, counted from 0")


def _check_levels(model: Model, levels: Int[np.ndarray, "n"]) -> None:
    last = model.spec.num_layers
    for level in levels[(levels < 0) | (levels > last)][:1]:
        raise InvalidInput(
            f"there is no level {level}: this model has 0, the embedding output, to {last}, the stream after its last "
            "block"
        )
