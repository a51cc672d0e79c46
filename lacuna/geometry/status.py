"""What a kernel found, as data: a bit set that travels with every result, under `jit` and `vmap` too."""

import functools
import inspect
from collections.abc import Callable
from enum import IntFlag
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from lacuna import trees
from lacuna.errors import GeometryError
from lacuna.geometry.rows import on_one_cpu


class Status(IntFlag):
    """Bits of a `status`; 0 says that all is well.

    Attributes:
      ZERO: a vector that a direction was asked of is zero.
      DEPENDENT: some rows lie in the span of those before them; `rank` says how many do not.
      INVARIANT: the Krylov space is exhausted: it is invariant under the operator, and exact.
      NONSYMMETRIC: Lanczos was given an operator that is not symmetric; its matrix means nothing.
      NOT_FINITE: NaN or infinity came in, or out of the operator.
      FULL: a vector was appended to a basis that has no room left.
    """

    ZERO = 1
    DEPENDENT = 2
    INVARIANT = 4
    NONSYMMETRIC = 8
    NOT_FINITE = 16
    FULL = 32


def flag(bit: Status, where: Bool[Array, ""] | bool) -> Int[Array, ""]:
    """The bit where the condition holds, else 0; int32[]."""
    return jnp.where(where, jnp.int32(bit), jnp.int32(0))


Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def kernel(*static: str) -> Callable[[Kernel], Kernel]:
    """Decorator of a public kernel: jitted, with the named arguments static.

    Called eagerly, the kernel raises `GeometryError` naming the leaf where the status says NOT_FINITE; under
    `jit` or `vmap` the status is all there is. A kernel with an argument `by_row` has it set where all arrays
    lie on one CPU, and loops over rows or short blocks of them there; this changes the last bits and the time.
    """

    def decorate(function: Kernel) -> Kernel:
        loops = "by_row" in inspect.signature(function).parameters
        jitted = jax.jit(function, static_argnames=(*static, "by_row") if loops else static)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if loops:
                kwargs.setdefault("by_row", on_one_cpu(args, kwargs))
            result = jitted(*args, **kwargs)
            raise_if_not_finite(function.__name__, result, (args, kwargs))
            return result

        return call  # pyrefly: ignore  (the wrapper has the signature of what it wraps)

    return decorate


def raise_if_not_finite(name: str, result: Any, arguments: Any) -> None:
    """Raise where a concrete result carries NOT_FINITE, naming the first leaf of the arguments at fault."""
    first = result[0] if isinstance(result, tuple) else None
    status = getattr(result, "status", getattr(first, "status", None))
    if status is None or isinstance(status, jax.core.Tracer) or not np.any(np.asarray(status) & Status.NOT_FINITE):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        if isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.floating):
            num_bad = int(jnp.sum(~jnp.isfinite(leaf)))
            if num_bad:
                named = trees.quoted("/".join(trees.leaf_name(path).split("/")[2:]))
                raise GeometryError(f"{name} needs finite numbers", got=f"{num_bad} that are not in {named}")
    raise GeometryError(f"{name} needs finite numbers", got="an operator that returned some that are not")
