"""What rounding leaves of a step: weights of 16 bits take a part of it, and add a noise of their own.

A candidate is `round(W + step)`, so the search around narrow weights tries other steps than it asks for. At |w| near
0.02 and sigma 1e-3 bfloat16 adds 3.5 % of the step's length; at norm scales near 1 hardly any weight moves at all.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from lacuna import keys, trees
from lacuna.errors import InvalidInput
from lacuna.reports.records import Record
from lacuna.search import draws
from lacuna.search.analysis import EXPERIMENT
from lacuna.search.families import Family
from lacuna.search.sweep import Sweep
from lacuna.types import Key, Layer, Params

NUM_DRAWS = 4
"""A step has as many numbers as a model has weights: a few of them tell what rounding does on average."""


class Rounding(NamedTuple):
    """What rounding did to a step `s` that moved the weights by `d`, over some leaves; NaN where none is to move.

    Attributes:
      realised_share: <d, s> / |s|^2: how far the weights went along the step; 1 where nothing is rounded.
      rounding_noise: |d - realised_share s| / |s|: what came in across it.
      unmoved: the share of the weights to be moved that stayed what they were.
    """

    realised_share: float
    rounding_noise: float
    unmoved: float


class Realised(NamedTuple):
    """What rounding left of the steps of one sigma.

    Attributes:
      sigma: as the sweep has it.
      all: over all leaves.
      matrices: over those of two axes or more, layers not counted.
      vectors: over the others.
    """

    sigma: float
    all: Rounding
    matrices: Rounding
    vectors: Rounding


def realised(params: Params, sweep: Sweep, *, num_draws: int = NUM_DRAWS) -> tuple[Realised, ...]:
    """What rounding leaves of a sweep's steps, sigma by sigma, from its first draws with the sign +.

    Noise, moved weights and differences are there for one leaf, or one layer of a stacked one, at a time, except in
    a family that forms its draws whole. Sums are float32 over a layer and float64 over layers and draws.

    Args:
      params: the base point.
      sweep: its family, sigmas, seed and unit are looked at.
      num_draws: pooled: sums of squares and products are those over all of them.

    Raises:
      InvalidInput: no draw, or a family that does not fit the tree.
    """
    if num_draws < 1:
        raise InvalidInput("num_draws must be at least 1", got=num_draws)
    scale = sweep.scale(params)
    scales = np.asarray([sigma * scale for sigma in sweep.sigmas], np.float32)
    exact, ids = sweep.unit == "exact_radius", np.arange(num_draws, dtype=np.uint32)
    sums = jax.device_get(_sums(exact, sweep.family, params, keys.root(sweep.seed), ids, scales))
    by_leaf = {name: np.asarray(found, np.float64).sum(axis=(0, 1)) for name, found in sums.items()}
    num_axes = {name: leaf.ndim - sweep.family.stacked(name) for name, leaf in trees.named_leaves(params)}
    matrices, vectors = np.zeros((2, len(scales), 5))
    for name, found in by_leaf.items():
        (matrices if num_axes[name] >= 2 else vectors)[:] += found
    groups = matrices + vectors, matrices, vectors
    return tuple(Realised(sigma, *(_rounding(*group[i]) for group in groups)) for i, sigma in enumerate(sweep.sigmas))


def is_rounded(params: Params, family: Family) -> bool:
    """Whether the family moves a leaf that is kept in fewer bits than float32."""
    moved = family.square_norms(params)
    narrow = [name for name, leaf in trees.named_leaves(params) if trees.is_floating(leaf) and leaf.dtype.itemsize < 4]
    return any(np.sum(moved[name]) > 0 for name in narrow)


def realised_records(found: Sequence[Realised]) -> list[Record]:
    """The same as records: `realised_share`, `rounding_noise` and `unmoved` at each `sigma`, of which `leaves`."""

    def of(one: Realised) -> Iterator[Record]:
        for leaves in ("all", "matrices", "vectors"):
            for quantity, number in getattr(one, leaves)._asdict().items():
                if not np.isnan(number):
                    yield Record(EXPERIMENT, quantity, number, "1", {"sigma": one.sigma, "leaves": leaves})

    return [record for one in found for record in of(one)]


def _rounding(asked: float, along: float, off: float, num_asked: float, num_unmoved: float) -> Rounding:
    """From sums over weights: s^2, (d - s) s, (d - s)^2, and counts. Those of the difference keep their digits."""
    if not asked > 0:
        return Rounding(np.nan, np.nan, np.nan)
    across = max(0.0, off - along**2 / asked)
    return Rounding(float(1 + along / asked), float(np.sqrt(across / asked)), float(num_unmoved / num_asked))


@partial(jax.jit, static_argnums=0)
def _sums(
    exact_radius: bool,
    family: Family,
    params: Params,
    key: Key,
    ids: Integer[Array | np.ndarray, "n"],
    scales: Float[Array | np.ndarray, "S"],
) -> dict[str, Float[Array, "n layers S 5"]]:
    """What `_rounding` takes, by name of leaf, for each draw, layer and scale."""
    leaves = {name: leaf for name, leaf in trees.named_leaves(params) if trees.is_floating(leaf) and leaf.size}

    def of_draw(index: Integer[Array, ""]) -> dict[str, Float[Array, "layers S 5"]]:
        noise = draws.noise_of_draw(family, params, key, index)
        sizes = jnp.asarray(scales) / (draws.length(family, params, noise) if exact_radius else 1.0)

        def of_part(name: str, layer: Layer, part: Array) -> Float[Array, "S 5"]:
            made = noise(name, layer, jax.ShapeDtypeStruct(part.shape, jnp.float32))
            return lax.map(lambda size: _sums_of(size, made, part), sizes)

        def of_leaf(name: str, leaf: Array) -> Float[Array, "layers S 5"]:
            if not family.stacked(name):
                return of_part(name, None, leaf)[None]
            layers = jnp.arange(leaf.shape[0], dtype=jnp.uint32)
            return lax.map(lambda own: of_part(name, *own), (layers, leaf))

        return {name: of_leaf(name, leaf) for name, leaf in leaves.items()}

    return lax.map(of_draw, jnp.asarray(ids))


def _sums_of(size: Float[Array, ""], noise: Array, part: Array) -> Float[Array, "5"]:
    wide = jnp.promote_types(part.dtype, jnp.float32)
    step = trees.axpy(size, noise, jnp.zeros(part.shape, wide))
    moved = trees.axpy(size, noise, part).astype(wide) - part.astype(wide)
    off, asked = moved - step, step != 0
    sums = jnp.sum(step * step), jnp.sum(off * step), jnp.sum(off * off), jnp.sum(asked), jnp.sum(asked & (moved == 0))
    return jnp.stack([x.astype(jnp.float32) for x in sums])
