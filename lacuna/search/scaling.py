"""Families with a scale for each leaf, or for each layer of a stacked leaf."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.search.families import Family, never_stacked
from lacuna.types import Delta, Factors, Key, Layer, Params, Rows, Shapes

Scales = Mapping[str, Any]
"""Scale by regular expression on the leaf's name: a number, or one number for each layer of a stacked leaf."""

LARGEST = 1e12
"""Scales beyond this, or below its inverse, leave the range in which float32 can add up their squares."""


@partial(jax.tree_util.register_dataclass, data_fields=["inner", "scales"], meta_fields=["patterns"])
@dataclass(frozen=True)
class Scaled(Family):
    """The noise of another family, each leaf times a scale of its own; made by `scaled`.

    Attributes:
      inner: the other family.
      scales: in the order of the patterns.
      patterns: regular expressions; the first that matches a leaf's whole name gives its scale.
    """

    inner: Family
    scales: tuple[Any, ...]  # Float[Array, "*layers"], and whatever else JAX puts into a tree
    patterns: tuple[str, ...]

    isotropic = False
    spherical = False

    @property
    def name(self) -> str:
        return f"scaled {self.inner.name}"

    @property
    def digest(self) -> str:
        sha = hashlib.sha256(repr(self.patterns).encode())
        for scale in self.scales:
            sha.update(np.asarray(scale, "<f4").tobytes() + b";")
        return f"{self.inner.digest}; scales {sha.hexdigest()}"

    @property
    def block(self) -> int:
        return self.inner.block

    @property
    def normal(self) -> bool:
        return self.inner.normal

    @property
    def by_limit(self) -> bool:
        return self.inner.by_limit

    def stacked(self, leaf_name: str) -> bool:
        return self.inner.stacked(leaf_name)

    def scale(self, leaf_name: str) -> Float[Array, "*layers"] | None:
        """Of a leaf; None if no pattern matches its name, and it is left where it is."""
        found = (s for p, s in zip(self.patterns, self.scales, strict=True) if re.fullmatch(p, leaf_name))
        return next(found, None)

    def check(self, like: Shapes) -> None:
        self.inner.check(like)
        leaves = dict(trees.named_leaves(like))
        for pattern in self.patterns:
            if not any(re.fullmatch(pattern, name) for name in leaves):
                names = [*leaves][:20]
                raise InvalidInput(
                    "every pattern of scales must match the name of a leaf",
                    got=f"`{pattern}` beside {', '.join(names)}{', ...' * (len(leaves) > 20)}",
                    hint="a name that `lacuna plan --model MODEL --leaves` lists",
                )
        for name, leaf in leaves.items():
            scale = self.scale(name)
            if scale is not None and scale.ndim and (not self.stacked(name) or scale.shape != leaf.shape[:1]):
                layers = f"{leaf.shape[0]} layers" if self.stacked(name) else "no layers"
                raise InvalidInput(
                    f"scales by layer must fit leaf `{name}`",
                    got=f"{scale.size} for {layers}",
                    hint="one number, or one for each layer",
                )

    def leaf(self, key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Array:
        scale = self._of_layer(leaf_name, layer)
        if scale is None:
            return jnp.zeros(like.shape, jnp.float32)
        return self.inner.leaf(key, leaf_name, layer, like) * scale

    @property
    def factored(self) -> bool:
        return self.inner.factored

    def factors(self, key: Key, leaf_name: str, layer: Layer, like: jax.ShapeDtypeStruct) -> Factors | None:
        scale = self._of_layer(leaf_name, layer)
        if scale is None:
            return None
        found = self.inner.factors(key, leaf_name, layer, like)
        return None if found is None else found._replace(left=found.left * scale)

    def _of_layer(self, leaf_name: str, layer: Layer) -> Float[Array, ""] | None:
        scale = self.scale(leaf_name)
        return scale if scale is None or layer is None or not scale.ndim else scale[layer]

    def _times_scales(self, tree: Delta | Rows, *, leading: int = 0) -> Delta | Rows:
        def of_leaf(name: str, leaf: Array) -> Array:
            scale = self.scale(name)
            if scale is None:
                return jnp.zeros_like(leaf)
            return leaf * jnp.reshape(scale, scale.shape + (1,) * (leaf.ndim - leading - scale.ndim))

        return trees.map_named(of_leaf, tree)

    def draws(self, keys_of_block: Key, like: Params) -> Rows:
        self.check(like)
        return self._times_scales(self.inner.draws(keys_of_block, like), leading=1)

    def draw(self, key: Key, like: Params) -> Delta:
        if self.block == 1:
            return super().draw(key, like)  # so that what has no scale is not drawn
        self.check(like)
        return self._times_scales(self.inner.draw(key, like))

    def covariance(self, delta: Delta) -> Delta:
        return self._times_scales(self.inner.covariance(self._times_scales(delta)))

    def dimension(self, like: Shapes) -> int:
        # As many as carry the noise: tr(C)^2 / tr(C^2), which leaves of a small scale hardly add to.
        pairs = [(self.square_norms(like)[name], norms) for name, norms in self.inner.square_norms(like).items()]
        trace = sum(float(np.sum(scaled)) for scaled, _ in pairs)
        of_square = sum(float(np.sum(scaled[n > 0] ** 2 / n[n > 0])) for scaled, n in pairs)
        return min(self.inner.dimension(like), round(trace**2 / of_square) if of_square else 0)

    def square_norms(self, like: Shapes) -> dict[str, Float[np.ndarray, "*layers"]]:
        def of_leaf(name: str, norms: np.ndarray) -> np.ndarray:
            scale = self.scale(name)
            return np.asarray(norms * (0.0 if scale is None else np.asarray(scale, np.float64) ** 2))

        return {name: of_leaf(name, norms) for name, norms in self.inner.square_norms(like).items()}


def scaled(family: Family, scales: Scales) -> Family:
    """The family with a scale for each leaf: sigma is multiplied by it.

    Args:
      family: whose noise is scaled.
      scales: by regular expression on the leaf's whole name, `{r"layers/attention/.*": 2.0, ".*": 1.0}`: the first
        pattern that matches counts, and **a leaf that none matches is not moved**, so `{r"layers/.*": 1.0}` searches
        a subset. A scale is a number, or one number for each layer where the leaf is stacked. `relative_scales` gives
        such a mapping.

    Raises:
      InvalidInput: a scale that is neither 0 nor in [1e-12, 1e12], none that is positive, a pattern that is no
        regular expression; when it is drawn, a pattern that matches no leaf or scales by layer that do not fit.
    """
    values = {}
    for pattern, scale in scales.items():
        try:
            re.compile(pattern)
            with np.errstate(over="ignore"):
                values[pattern] = value = np.asarray(scale, np.float32)
        except (re.error, ValueError, TypeError) as fault:
            raise InvalidInput(
                "scales go from regular expressions to numbers", got=f"`{pattern}`: {fault}", hint="'layers/.*=1'"
            ) from fault
        in_range = (value == 0) | ((value >= 1 / LARGEST) & (value <= LARGEST))
        if value.ndim > 1 or not np.all(in_range):
            asked = f"a scale must be 0 or in [{1 / LARGEST:g}, {LARGEST:g}], a number or one for each layer"
            raise InvalidInput(asked, got=f"{scale} for `{pattern}`", hint="1")
    if not any(np.any(value > 0) for value in values.values()):
        raise InvalidInput("at least one scale must be positive", got=dict(scales), hint="'layers/.*=1'")
    return Scaled(family, tuple(jnp.asarray(value) for value in values.values()), tuple(values))


def relative_scales(params: Params, *, stacked: Callable[[str], bool] = never_stacked) -> Scales:
    """Scales that make sigma a relative radius: the root mean square of each leaf, or of each layer of it.

    A leaf of n numbers then moves by about `sigma |leaf|`: `|noise| = sqrt(n) rms = |leaf|`. A leaf that is zero
    stays zero.

    Args:
      params: the base point.
      stacked: which leaves carry a leading layer axis (`model.stacked`).

    Returns:
      For `scaled`, by the name of each leaf that can move: a float32 number, or [L] of them.
    """

    def of_leaf(name: str, leaf: Array) -> Float[Array, "*layers"]:
        axes = tuple(range(int(stacked(name)), leaf.ndim))
        size = max(1, math.prod(leaf.shape[axis] for axis in axes))
        return jnp.sqrt(jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes) / size)

    moved = [(name, leaf) for name, leaf in trees.named_leaves(params) if trees.is_floating(leaf)]
    return {re.escape(name): of_leaf(name, leaf) for name, leaf in moved}
