"""Tree algebra: the few operations every part of lacuna is made of.

Trees are never ravelled: a concatenated copy would double the memory and gather sharded leaves. Inner
products are multiply-and-sum in float32: elementwise products keep a sharded leaf where it is, and the
pairwise summation behind `jnp.sum` stays within a few ulp where a long dot product drifts.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lacuna.errors import TreeMismatch
from lacuna.types import Delta, Params


def leaf_name(path: tuple[Any, ...]) -> str:
    """Name of a leaf from its key path: the keys joined by `/`, e.g. `layers/attn/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def quoted(name: str) -> str:
    """The name of a leaf as sentences say it.

    >>> quoted("layers/mlp"), quoted("")
    ('`layers/mlp`', 'the only leaf')
    """
    return f"`{name}`" if name else "the only leaf"


def leaf_names(tree: Any) -> list[str]:
    """Names of all leaves, in the tree's own order. A tree that is a single leaf has the name `""`.

    >>> leaf_names({"layers": {"mlp": 0.0, "norm": 0.0}, "head": 0.0})
    ['head', 'layers/mlp', 'layers/norm']
    """
    return [name for name, _ in named_leaves(tree)]


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """`(name, leaf)` of all leaves, in the tree's own order."""
    return [(leaf_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`function(name, leaf, *leaves_of_rest)` over all leaves; the result has the structure of `tree`."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(leaf_name(path), *leaves), tree, *rest)


def as_data(function: Callable[..., Any]) -> Callable[..., Any]:
    """The callable as an argument of a compiled program: one that is a pytree is data, any other is known by itself.

    A `functools.partial` is known by what it binds, where that can be hashed: made again, it compiles nothing again.
    """
    if not jax.tree_util.all_leaves([function]):
        return function
    if type(function) is functools.partial:
        bound = _Bound(function.func, function.args, tuple(sorted(function.keywords.items())))
        with contextlib.suppress(TypeError):  # it holds an array, say
            hash(bound)
            function = bound
    return jax.tree_util.Partial(function)


@dataclass(frozen=True)
class _Bound:
    """A `functools.partial` that is equal to another by value."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.function(*self.args, *args, **dict(self.keywords) | keywords)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf can be moved; integers, booleans and keys are frozen."""
    return bool(jnp.issubdtype(jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype, jnp.floating))


def size(tree: Any) -> int:
    """P: the number of elements in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def check_match(asked: str, a: Any, b: Any) -> None:
    """Raise `TreeMismatch`, naming the first leaf, unless `a` and `b` have the same names, shapes and containers.

    Works on shapes alone, so it is free under tracing.
    """
    left, right = ({name: np.shape(leaf) for name, leaf in named_leaves(tree)} for tree in (a, b))
    for name in [*left, *right]:
        if left.get(name) != right.get(name):
            first, second = (f"shape {t[name]}" if name in t else "no such leaf" for t in (left, right))
            raise TreeMismatch(
                f"{asked} needs two trees with the same leaves",
                got=f"{quoted(name)} with {first} in the first and {second} in the second",
                hint="build both on the same parameters (was one made with adapters?)",
            )
    if jax.tree.structure(a) != jax.tree.structure(b):  # a list for a tuple, or an empty dict more
        raise TreeMismatch(
            f"{asked} needs two trees with the same containers",
            got="the same leaves in other containers",
            hint="build both on the same parameters",
        )


def content_digest(tree: Any) -> str:
    """SHA-256 of a tree's content: names, dtypes, shapes and bytes of all leaves, in the order of the names.

    Equal digests mean equal bits. The leaves are read on the host, one at a time.
    """
    sha = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree), key=lambda named: named[0]):
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        value = _on_host(jax.random.key_data(leaf) if is_key else leaf)
        sha.update(f"{name} {value.dtype} {value.shape}\n".encode())
        sha.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer of its own
    return sha.hexdigest()


def _on_host(leaf: Any) -> np.ndarray:
    """A leaf, whole; one that is spread over processes is gathered, by all of them."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def dot(a: Delta, b: Delta) -> Float[Array, ""]:
    """Inner product `<a, b>` over all leaves, accumulated in float32 whatever the storage dtype.

    Raises:
      TreeMismatch: the trees differ in a leaf's name or shape.
    """
    check_match("trees.dot", a, b)
    partial = jax.tree.map(lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)), a, b)
    return sum(jax.tree.leaves(partial), start=jnp.float32(0))


def norm(a: Delta) -> Float[Array, ""]:
    """Euclidean norm, float32."""
    return jnp.sqrt(dot(a, a))


def axpy(scale: Float[Array, ""] | float, delta: Delta, params: Params) -> Params:
    """The new point `params + scale * delta`; the only way in lacuna to move a point.

    The arithmetic is float32 or the point's own dtype, whichever is wider; one rounding to the point's
    dtype ends it. Leaves that hold no floating-point numbers stay as they are. The point that comes in is not
    touched, so nothing ever has to be restored. The result has the same bits in whatever program it is compiled:
    product and sum are rounded one after the other, as in numpy. (An infinite delta saturates at the largest
    finite step; NaN stays NaN.)

    Raises:
      TreeMismatch: the trees differ in a leaf's name or shape.
    """
    check_match("trees.axpy", delta, params)

    def move(d: Array, p: Array) -> Array:
        if not is_floating(p):
            return p
        wide = jnp.promote_types(p.dtype, jnp.float32)
        step = rounded(jnp.asarray(scale, wide) * rounded(d.astype(wide)))
        return stored(p.astype(wide) + step, p.dtype)

    return jax.tree.map(move, delta, params)


def stored(x: Array, dtype: Any) -> Array:
    """`x`, float32 or wider and of any shape, rounded to a dtype, as a rounding that the compiler may not drop.

    XLA on a GPU drops a rounding to 16 bits that is widened again at once (openxla/xla issue 41605), and the value
    would be one that nobody can keep. It is not allowed to drop `reduce_precision`, which leaves nothing for the cast
    to round but the subnormal numbers of float16: the exponent keeps the bits of float32, because with fewer these
    would become zero.
    """
    if jnp.dtype(dtype).itemsize < 4:
        x = lax.reduce_precision(x, jnp.finfo(jnp.float32).nexp, jnp.finfo(dtype).nmant)
    return x.astype(dtype)


def rounded(x: Array) -> Array:
    """`x` itself, of any shape, as a value that the compiler must have rounded at this point.

    Otherwise XLA multiplies the scale into whatever made the delta, or contracts product and sum into a
    fused multiply-add, in one program and not in the next, and the last bit differs. An optimisation
    barrier does not stop it (the CPU compiler drops it before code generation), nor does
    `reduce_precision`; a clamp to the finite range does, and costs nothing beside the memory traffic.
    """
    limit = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -limit, limit)
