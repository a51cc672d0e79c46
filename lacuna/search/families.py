"""Families of perturbations: unit-scale noise as a pure function of a key and a leaf's name.

The noise law: every leaf has its own key and so has every layer of a stacked leaf,

    fold_in(fold_in(fold_in(key(seed), index), crc32(leaf name))[, layer]).

Published random-search codes seed one generator for every tensor, which gives equal noise to all tensors
of equal shape: the variance of `<noise, gradient>` is then anything from 0 to L times `|gradient|^2`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lacuna import keys, trees
from lacuna.errors import InvalidInput
from lacuna.threefry import unrolled
from lacuna.types import Delta, Factors, Key, Layer, Noise, Params, Rows, Shapes

NOISE_LAW = 1
"""Version of the noise law; part of a run's identity. A change of any drawn bit raises it."""

LeafNoise = Callable[[Key, str, Layer, jax.ShapeDtypeStruct], Array]
"""`noise(key, leaf_name, layer, like)`: float32 noise of the shape of `like` from the key of the whole draw."""

LeafFactors = Callable[[Key, str, Layer, jax.ShapeDtypeStruct], Factors | None]
"""The same noise as two factors; None where it is not made of any."""


def never_stacked(leaf_name: str) -> bool:
    """No leaf has a layer axis: the default, because a layer axis is never guessed from a foreign tree."""
    del leaf_name
    return False


class Family(ABC):
    """A law of perturbations at unit scale; a pytree, whose arrays are arguments of the compiled program.

    Attributes:
      name: the law's name, e.g. `gaussian`.
      digest: what the law depends on besides its name (a basis by its content); part of a run's identity.
      block: draws that are formed together; 1 where each is formed alone, leaf by leaf.
      isotropic: the covariance is the identity.
      normal: the noise is normal along every direction, or as good as that, so that the theorem predicts its gain.
      by_limit: as good as that only along directions in which many coordinates take part.
      spherical: a draw over its length is uniform on the unit sphere of the space that the noise fills.
    """

    if TYPE_CHECKING:  # read-only; at run time a property here would hide the fields of the dataclasses below

        @property
        def name(self) -> str: ...
        @property
        def digest(self) -> str: ...
        @property
        def block(self) -> int: ...
        @property
        def isotropic(self) -> bool: ...
        @property
        def normal(self) -> bool: ...
        @property
        def by_limit(self) -> bool: ...
        @property
        def spherical(self) -> bool: ...

    @abstractmethod
    def stacked(self, leaf_name: str) -> bool:
        """Whether a leaf carries a leading layer axis (`model.stacked`)."""

    @abstractmethod
    def leaf(self, key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Array:
        """Noise of one leaf, or of one layer of a stacked leaf: float32, of the shape of `like`.

        Args:
          key: of the draw, `keys.candidate(keys.root(seed), index)`.
          leaf_name: as in `trees.leaf_names`.
          layer: None for a leaf drawn whole; else `like` is one layer of it.
          like: gives the shape.
        """

    @property
    def factored(self) -> bool:
        """Whether `factors` gives any."""
        return False

    def factors(self, key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Factors | None:
        """What `leaf` multiplies out, of the same normals and equal to it to rounding; None where it does not."""
        del key, leaf_name, layer, like
        return None

    @abstractmethod
    def covariance(self, delta: Delta) -> Delta:
        """The covariance of a draw, applied to a vector."""

    @abstractmethod
    def square_norms(self, like: Shapes) -> dict[str, Float[np.ndarray, "*layers"]]:
        """Mean square norm of the noise of every leaf by name, one for each layer where it is stacked."""

    def check(self, like: Shapes) -> None:
        """Raise a `LacunaError` unless the family can perturb the tree of `like`."""
        for name, leaf in trees.named_leaves(like):
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                raise InvalidInput(
                    "noise is real", got=f"the complex leaf `{name}`", hint="its two parts as two leaves"
                )
            if self.stacked(name) and not leaf.shape:
                raise InvalidInput(f"leaf `{name}` is said to be stacked", got="a scalar without a layer axis")

    def draw(self, key: Key, like: Params) -> Delta:
        """One draw: a float32 Delta on the tree of `like`, zero where a leaf holds no floating-point numbers.

        A stacked leaf is drawn layer by layer under vmap; threefry gives the same bits as one layer alone.

        Raises:
          InvalidInput: a leaf said to be stacked is a scalar.
        """
        return self._drawn(partial(self.leaf, key), like)

    def factored_draw(self, key: Key, like: Params) -> Noise:
        """The same draw, each leaf as its factors where it has any."""

        def part(leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Array | Factors:
            factors = self.factors(key, leaf_name, layer, like)
            return self.leaf(key, leaf_name, layer, like) if factors is None else factors

        return self._drawn(part, like)

    def _drawn(self, part: Callable[[str, Layer, jax.ShapeDtypeStruct], Array | Factors], like: Params) -> Noise:
        self.check(like)

        def noise(leaf_name: str, leaf: Array) -> Array | Factors:
            if not trees.is_floating(leaf):
                return jnp.zeros(leaf.shape, jnp.float32)
            if not self.stacked(leaf_name):
                return part(leaf_name, None, jax.ShapeDtypeStruct(leaf.shape, jnp.float32))
            one_layer = jax.ShapeDtypeStruct(leaf.shape[1:], jnp.float32)
            layers = jnp.arange(leaf.shape[0], dtype=jnp.uint32)
            return jax.vmap(lambda layer: part(leaf_name, layer, one_layer))(layers)

        return trees.map_named(noise, like)

    def draws(self, keys_of_block: Key, like: Params) -> Rows:
        """The draws of a block of keys [b], formed together."""
        return jax.vmap(lambda key: self.draw(key, like))(keys_of_block)

    def dimension(self, like: Shapes) -> int:
        """Of the space that the noise fills."""
        return trees.size([leaf for leaf in jax.tree.leaves(like) if trees.is_floating(leaf)])

    def mean_square(self, like: Shapes) -> float:
        """Mean square norm of a draw: the number of coordinates that it moves, each counted with its variance."""
        return math.fsum(float(np.sum(norms)) for norms in self.square_norms(like).values())


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[],
    meta_fields=["name", "digest", "noise", "layered", "normal", "by_limit", "spherical", "noise_factors"],
)
@dataclass(frozen=True)
class LeafFamily(Family):
    """Noise drawn leaf by leaf: uncorrelated coordinates of unit variance. A law of your own is one of these.

    Attributes:
      name: the law's name.
      digest: what it depends on besides its name.
      noise: `noise(key, leaf_name, layer, like)`; make its key by `keys.leaf(key, leaf_name, layer)`.
      layered: `layered(leaf_name)` says which leaves carry a leading layer axis.
      normal: whether the theorem is to predict its gain.
      by_limit: it is normal by the central limit theorem alone, where many coordinates take part.
      spherical: a draw over its length is uniform on the unit sphere, as only a normal law's is.
      noise_factors: `noise_factors(key, leaf_name, layer, like)`, the same noise as two factors where it has any.
    """

    name: str
    digest: str
    noise: LeafNoise
    layered: Callable[[str], bool] = never_stacked
    normal: bool = False
    by_limit: bool = False
    spherical: bool = False
    noise_factors: LeafFactors | None = None

    block = 1
    isotropic = True

    def stacked(self, leaf_name: str) -> bool:
        return self.layered(leaf_name)

    def leaf(self, key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Array:
        return self.noise(key, leaf_name, layer, like)

    @property
    def factored(self) -> bool:
        return self.noise_factors is not None

    def factors(self, key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Factors | None:
        return None if self.noise_factors is None else self.noise_factors(key, leaf_name, layer, like)

    def covariance(self, delta: Delta) -> Delta:
        return delta

    def square_norms(self, like: Shapes) -> dict[str, Float[np.ndarray, "*layers"]]:
        def of_leaf(name: str, leaf: Any) -> np.ndarray:
            shape = np.shape(leaf)
            num_layers = shape[:1] if self.stacked(name) else ()
            return np.full(num_layers, math.prod(shape[len(num_layers) :]) * trees.is_floating(leaf), float)

        return {name: of_leaf(name, leaf) for name, leaf in trees.named_leaves(like)}


def _normal(key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Array:
    return jax.random.normal(unrolled(keys.leaf(key, leaf_name, layer)), like.shape, jnp.float32)


def gaussian(*, stacked: Callable[[str], bool] = never_stacked) -> Family:
    """Independent standard normals on every coordinate: the law of the theorem.

    Args:
      stacked: which leaves carry a leading layer axis; default: none.

    Source: arXiv 2606.10929, Theorem 1.
    """
    return LeafFamily("gaussian", "", _normal, stacked, normal=True, spherical=True)


def _signs(key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Array:
    # One bit a coordinate: 32 of them from each word of the generator. The words lie along the last axis, so that
    # a leaf that is split over a mesh has its words split alike.
    *rest, last = like.shape or (1,)
    words = jax.random.bits(unrolled(keys.leaf(key, leaf_name, layer)), (*rest, -(-last // 32)), jnp.uint32)
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    flat = bits.reshape(*rest, 32 * words.shape[-1])[..., :last].reshape(like.shape)
    return 1 - 2 * flat.astype(jnp.float32)


def rademacher(*, stacked: Callable[[str], bool] = never_stacked) -> Family:
    """Independent random signs on every coordinate: cheaper than normals, and as good as normal along any
    direction that no single coordinate dominates (the central limit theorem).

    Args:
      stacked: which leaves carry a leading layer axis; default: none.
    """
    return LeafFamily("rademacher", "", _signs, stacked, normal=True, by_limit=True)


@cache
def _of_rank(rank: int) -> tuple[LeafNoise, LeafFactors]:
    def normals(key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> tuple[Array, Array] | None:
        m, n = like.shape[0] if like.shape else 1, math.prod(like.shape[1:])
        if rank * (m + n) >= m * n:  # factors would be no smaller than what they make
            return None
        left, right = (jax.random.fold_in(keys.leaf(key, leaf_name, layer), side) for side in range(2))
        a = jax.random.normal(left, (like.shape[0], rank), jnp.float32)
        return a, jax.random.normal(right, (rank, *like.shape[1:]), jnp.float32)

    def noise(key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Array:
        found = normals(key, leaf_name, layer, like)
        if found is None:
            return _normal(key, leaf_name, layer, like)
        return lax.dot_general(*found, (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST) * rank**-0.5

    def factors(key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Factors | None:
        found = normals(key, leaf_name, layer, like)
        return None if found is None else Factors(found[0] * rank**-0.5, found[1])

    return noise, factors


def low_rank(rank: int, *, stacked: Callable[[str], bool] = never_stacked) -> Family:
    """Matrices of noise of low rank, `A B / sqrt(rank)` with normal factors.

    Vectors and scalars are normal, and so is a matrix that the factors would not make smaller. An objective with a
    `noisy_loss` is given the factors.

    Every coordinate has unit variance and no two are correlated, but the noise is not normal along a direction:
    its gain is compared with the theorem's, not predicted by it.

    Args:
      rank: of each matrix (of each layer's, where a leaf is stacked); axes beyond the first count as one.
      stacked: which leaves carry a leading layer axis; default: none.

    Raises:
      InvalidInput: a rank below one.
    """
    if rank < 1:
        raise InvalidInput("the rank of low-rank noise must be at least 1", got=rank, hint="1")
    noise, factors = _of_rank(rank)
    return LeafFamily("low_rank", f"rank {rank}", noise, stacked, noise_factors=factors)
