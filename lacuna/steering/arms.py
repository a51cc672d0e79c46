"""What a model is steered by: vectors and their lengths, levels, strengths and positions, as arms of one experiment.

Source: arXiv 2606.10929 (Table 6), whose strengths and positions are not available to us: these are ours.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lacuna.errors import InvalidInput
from lacuna.models import Model
from lacuna.tasks.contrast import Prompts

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


def masks_by_row(arms: Arms, masks: Masks, shape: tuple[int, ...]) -> Bool[Array, "B M S"]:
    """Masks on the device, the rows in front, after a look at whether they fit the arms and the tokens."""
    if masks.shape[1:] != shape:
        raise InvalidInput("masks need an entry for every token", got=f"{list(masks.shape)} for {list(shape)} tokens")
    _check_index("mask", arms.mask, masks.shape[0])
    return jnp.moveaxis(jnp.asarray(masks), 0, 1)


def checked_pushes(model: Model, vectors: Floats, arms: Arms) -> tuple[Float[Array, "..."], Arms]:
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
