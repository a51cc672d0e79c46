"""Noise in a subspace: random combinations of the rows of a basis."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lacuna import keys, trees
from lacuna.errors import InvalidInput
from lacuna.geometry import Basis
from lacuna.geometry import rows as ops
from lacuna.search.families import Family, never_stacked
from lacuna.types import Delta, Key, Layer, Params, Rows, Shapes

DEFAULT_BLOCK = 16
"""Candidates formed by one product for each leaf: the basis is read once for all of them."""


@partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["rank", "method", "block", "layered"])
@dataclass(frozen=True)
class InBasis(Family):
    """Standard normal coefficients on the rows of a basis; made by `in_basis`.

    Attributes:
      rows: of the basis, zero beyond its rank.
      rank: dimension of the subspace.
      method: what made the basis.
      block: draws whose weights are formed together.
      layered: which leaves carry a layer axis.
    """

    rows: Any  # Rows, and whatever else JAX puts into a tree
    rank: int
    method: str
    block: int
    layered: Callable[[str], bool]

    isotropic = False
    normal = True
    by_limit = False
    spherical = True

    @property
    def name(self) -> str:
        return f"gaussian in {self.method}"

    @property
    def digest(self) -> str:
        # The size of the product decides the last bits of its rows.
        return f"rank {self.rank}, blocks of {self.block}, rows {trees.content_digest(self.rows)}"

    def stacked(self, leaf_name: str) -> bool:
        return self.layered(leaf_name)

    def leaf(self, key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Array:
        raise InvalidInput("noise in a basis is formed for whole candidates, a block of them at a time")

    def check(self, like: Shapes) -> None:
        super().check(like)
        trees.check_match("noise in a basis", ops.like_one(self.rows), like)

    def coefficients(self, key: Key) -> Float[Array, "k"]:
        """Of one draw, standard normal."""
        k = jax.tree.leaves(self.rows)[0].shape[0]
        return jax.random.normal(keys.leaf(key, "coefficients"), (k,), jnp.float32)

    def draw(self, key: Key, like: Params) -> Delta:
        return jax.tree.map(lambda rows: rows[0], self.draws(key[None], like))

    def draws(self, keys_of_block: Key, like: Params) -> Rows:
        self.check(like)
        return ops.combine(jax.vmap(self.coefficients)(keys_of_block), self.rows)

    def covariance(self, delta: Delta) -> Delta:
        return ops.combine(ops.products(self.rows, delta), self.rows)

    def mean_square(self, like: Shapes) -> float:
        return float(self.rank)  # of orthonormal rows, without reading them

    def dimension(self, like: Shapes) -> int:
        return self.rank

    def square_norms(self, like: Shapes) -> dict[str, Float[np.ndarray, "*layers"]]:
        def of_leaf(name: str, rows: Array) -> np.ndarray:
            kept = 2 if self.stacked(name) else 1  # the rows, and the layers where there are any
            return np.asarray(jnp.sum(jnp.square(rows), axis=(0, *range(kept, rows.ndim))), np.float64)

        return {name: of_leaf(name, rows) for name, rows in trees.named_leaves(self.rows)}


def in_basis(basis: Basis, *, block: int = DEFAULT_BLOCK, stacked: Callable[[str], bool] = never_stacked) -> Family:
    """Gaussian noise in the subspace of a basis: `sum_j z_j row_j`, z standard normal.

    The candidates of a block are formed by one matrix product for each leaf, so that the basis, k times the
    memory of the weights, is read once for all of them.

    Args:
      basis: orthonormal rows on the tree that will be searched, its rank at least 1.
      block: candidates formed together; each takes the memory of the weights in float32. It decides the last
        bits of a score, so it is part of a run's identity.
      stacked: which leaves carry a leading layer axis; only `scaled` by layers asks.

    Raises:
      InvalidInput: a basis without a row, one under `vmap`, or a block below 2.
      TreeMismatch: when it is drawn on another tree than the basis was made on.

    Source: arXiv 2606.10929, Proposition 1.
    """
    if block < 2:
        raise InvalidInput("block must be at least 2", got=block, hint=str(DEFAULT_BLOCK))
    if np.shape(basis.rank):
        raise InvalidInput(
            "a family needs one basis", got=f"{np.shape(basis.rank)} of them", hint="one after the other"
        )
    rank = int(basis.rank)
    if rank < 1:
        raise InvalidInput("a basis to search in must have at least one row", got=f"rank {rank}, status {basis.status}")
    return InBasis(basis.rows, rank, basis.method, block, stacked)
