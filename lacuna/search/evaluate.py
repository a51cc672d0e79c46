"""From a draw's index to its losses: the compiled program whose bits a score depends on.

A score is the output of one loop body, `loss(params + scale * noise)`. Everything around that body may
change from run to run (chunk, devices, processes, how many sigmas); the body may not. Three habits keep it
so:

- signed sigmas are *data* of an inner `lax.map`, one after the other: a vmap over them changes bits;
- both loops run at least twice: XLA inlines loops of one trip, and the body is then compiled as part of what
  stands around it;
- several candidates at once (`width` > 1) make other matrix products and other last bits, so the width is
  part of a run's identity, and finalists are scored again at width 1.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Integer

from lacuna import keys, meshes, trees
from lacuna.search.families import Family
from lacuna.types import Batch, Delta, Key, Loss, Params

MIN_TRIPS = 2
"""Fewest trips of a loop that XLA keeps as a loop."""


def signed_scales(sigmas: tuple[float, ...], antithetic: bool) -> Float[np.ndarray, "C"]:
    """`+sigma, -sigma` for every sigma in order (or `+sigma` alone), padded with zeros to two entries."""
    signs = (1.0, -1.0) if antithetic else (1.0,)
    scales = [sigma * sign for sigma in sigmas for sign in signs]
    return np.asarray(scales + [0.0] * (MIN_TRIPS - len(scales)), np.float32)


def scores_on_line(
    loss: Loss, params: Params, delta: Delta, scales: Float[Array, "C"], batch: Batch
) -> Float[Array, "C"]:
    """Losses at `params + scale * delta`, one scale after the other: the canonical loop body."""

    def at(scale: Float[Array, ""]) -> Float[Array, ""]:
        return loss(trees.axpy(scale, delta, params), batch).astype(jnp.float32)

    return lax.map(at, scales)


def scores_of_draw(
    loss: Loss,
    family: Family,
    params: Params,
    batch: Batch,
    key: Key,
    index: Integer[Array, ""],
    scales: Float[Array, "C"],
) -> Float[Array, "C"]:
    """One draw of noise, made once and scored at every signed scale."""
    return scores_on_line(loss, params, family.draw(keys.candidate(key, index), params), scales, batch)


def local_scores(
    loss: Loss,
    family: Family,
    width: int,
    params: Params,
    batch: Batch,
    key: Key,
    scales: Float[Array, "C"],
    ids: Integer[Array, "n"],
) -> Float[Array, "n C"]:
    """One device's share of a step: all scores of every draw in `ids`."""
    of_draw = partial(scores_of_draw, loss, family, params, batch, key, scales=scales)
    return lax.map(of_draw, ids, batch_size=width if width > 1 else None)


def make_step(loss: Loss, family: Family, mesh: Mesh, *, width: int) -> jax.stages.Wrapped:
    """The jitted step `(params, batch, key, scales f32[C], ids u32[n]) -> scores f32[n, C]`.

    The draws `ids` are spread over the mesh's `candidates` axis; the scores are replicated.
    Weights and data are arguments, never constants of the program. The number of ids must be a multiple of
    `granule(mesh, width)`.
    """

    def on_device(params: Params, batch: Batch, key: Key, scales: Array, ids: Array) -> Array:
        scores = local_scores(loss, family, width, params, batch, key, scales, ids)
        return lax.all_gather(scores, meshes.CANDIDATES, tiled=True)

    everywhere, spread = PartitionSpec(), PartitionSpec(meshes.CANDIDATES)
    return jax.jit(
        jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(everywhere, everywhere, everywhere, everywhere, spread),
            out_specs=everywhere,
            check_vma=False,  # the all_gather makes the scores replicated; the checker cannot see it
        )
    )


def granule(mesh: Mesh, width: int) -> int:
    """Chunks are multiples of this many draws: `MIN_TRIPS` full widths for every device."""
    return mesh.shape[meshes.CANDIDATES] * width * MIN_TRIPS


_scores_on_line = jax.jit(scores_on_line, static_argnums=0)


def score(loss: Loss, params: Params, batch: Batch) -> Float[Array, ""]:
    """The loss at a point by the canonical program, so that it may be compared with a sweep bit for bit.

    `score(loss, candidate(params, sweep, i, sigma, sign), batch)` equals the score that a width-1 sweep
    recorded for that candidate. A plain `jit(loss)` is another program, and may differ in the last bits.
    """
    # The point itself serves as the direction, at scale zero, and both are data: constants would be folded
    # away, and the loop body would no longer be the sweep's.
    return _scores_on_line(loss, params, params, np.zeros(MIN_TRIPS, np.float32), batch)[0]


@partial(jax.jit, static_argnums=(0, 1))
def score_candidates(
    loss: Loss,
    family: Family,
    params: Params,
    batch: Batch,
    key: Key,
    ids: Integer[Array, "K"],
    scales: Float[Array, "K"],
) -> Float[Array, "K"]:
    """Losses of single candidates `(id, signed scale)` at width 1: the canonical program for finalists."""

    def of_candidate(where: tuple[Array, Array]) -> Array:
        index, scale = where
        return scores_of_draw(loss, family, params, batch, key, index, jnp.full(MIN_TRIPS, scale))[0]

    return lax.map(of_candidate, (ids, scales))


@partial(jax.jit, static_argnums=0)
def perturb(family: Family, params: Params, key: Key, index: Integer[Array, ""], scale: Float[Array, ""]) -> Params:
    """`params + scale * noise(index)`: the weights of one candidate."""
    return trees.axpy(scale, family.draw(keys.candidate(key, index), params), params)
