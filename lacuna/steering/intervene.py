"""Steering: what a push of the residual stream, or a step of the weights, does to answers and to plain text.

A whole grid of arms is one compiled call. The model itself is run once, beside it one arm after the other or a few side
by side, and what an arm's logits are good for is taken from them at once: no array of arms by vocabulary ever is.

Source: arXiv 2606.10929 (Table 6); what is measured beside the answers is ours.
"""

from collections.abc import Callable
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
from lacuna.steering.arms import Arms, Floats, Masks, checked_pushes, masks_by_row
from lacuna.tasks.contrast import Prompts
from lacuna.types import Delta, Params

ACCELERATOR_WIDTH = 8
"""Arms side by side where that fills the device; ours, not tuned on any one of them."""


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
    rows = _prompts(model, prompts, masks_by_row(arms, masks, prompts.tokens.shape))
    return _steered(_ANSWERS, model, params, *checked_pushes(model, vectors, arms), rows, **_sizes(width, chunk))


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
    rows = _Text(jnp.asarray(tokens), masks_by_row(arms, masks, tokens.shape))
    return _steered(_TEXT, model, params, *checked_pushes(model, vectors, arms), rows, **_sizes(width, chunk))


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
    """What the step costs on plain text.

    Args:
      model: as for `stepped_answers`, like the next three.
      params: its parameters.
      delta: the step.
      strengths: of it, one for each of A arms.
      tokens: as for `steered_text`, like the rest.
      width: arms side by side.
      chunk: rows at a time.

    Raises:
      InvalidInput: as `stepped_answers`.
    """
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
