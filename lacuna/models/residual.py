"""The residual stream as something to read and to add to: what every model's `steer` and `taps` mean."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lacuna.errors import InvalidInput


def checked_taps(taps: Any, num_rows: int) -> tuple[str | None, Int[Array, "B"] | None]:
    """Where the stream is read: nowhere, at "all" positions, at the "last", or, of each row, at the "given" one.

    Raises:
      InvalidInput: anything else.
    """
    if taps is None or (isinstance(taps, str) and taps in ("all", "last")):
        return taps, None
    at = None if isinstance(taps, str) else jnp.asarray(taps)
    if at is None or at.shape != (num_rows,) or not jnp.issubdtype(at.dtype, jnp.integer):
        got = f"`{taps}`" if at is None else f"{at.dtype}{list(at.shape)}"
        raise InvalidInput('taps must be "all", "last", or one integer position for each row', got=got)
    return "given", at


def tap(x: Float[Array, "B S D"], at: Int[Array, "B"] | None) -> Float[Array, "B ... D"]:
    """One position of each row, [B, D]; without one, all of the stream."""
    return x if at is None else jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]


def checked_steer(num_layers: int, steer: Any, x: Float[Array, "B S D"]) -> Float[Array, "levels ..."] | None:
    """[L + 1, D] or [L + 1, B, S, D], in the stream's dtype; anything else could broadcast to what nobody meant.

    Raises:
      InvalidInput: another shape.
    """
    if steer is None:
        return None
    steer = jnp.asarray(steer)
    same = steer.shape[1:] == x.shape[2:]
    each = steer.ndim == 4 and all(n in (1, m) for n, m in zip(steer.shape[1:3], x.shape, strict=False))
    if steer.shape[:1] != (num_layers + 1,) or not (same or (each and steer.shape[3] == x.shape[2])):
        raise InvalidInput(
            f"steer needs the shape [{num_layers + 1}, D] or [{num_layers + 1}, B, S, D]: a vector for the "
            "embedding output and for each block",
            got=f"{list(steer.shape)} for a stream of {list(x.shape)}",
            hint="1 for B or S where it is to be the same",
        )
    return steer.astype(x.dtype)
