"""The dtypes that parameters may have on disk and in memory, and what does not fit into a narrower one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lacuna.errors import InvalidInput


def floating(asked: Any) -> np.dtype:
    """The dtype of that name.

    Raises:
      InvalidInput: it is not float32, bfloat16, float16 or float64, or is float64 while JAX has none.
    """
    try:
        found = jnp.dtype(asked)
    except TypeError:
        found = None
    if found is None or not is_floating(found):
        raise InvalidInput("dtype must be float32, bfloat16, float16 or float64", got=str(asked))
    if jax.dtypes.canonicalize_dtype(found) != found:
        hint = 'jax.config.update("jax_enable_x64", True)'
        raise InvalidInput("float64 must be switched on", got="x64 off", hint=hint)
    return found


def is_floating(dtype: np.dtype) -> bool:
    """Of 16, 32 or 64 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize in (2, 4, 8)


def narrows(before: np.dtype, after: np.dtype) -> bool:
    """Whether numbers of one dtype may be beyond the other."""
    return bool(jnp.finfo(after).max < jnp.finfo(before).max)


def overflowed(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a cast made a number infinite. (That of ml_dtypes raises no flag.)"""
    return narrows(before.dtype, after.dtype) and bool(np.any(np.isfinite(before) & ~np.isfinite(after)))
