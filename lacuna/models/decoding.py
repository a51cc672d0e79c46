"""Greedy decoding with a cache of keys and values, in one compiled loop."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from lacuna.errors import InvalidInput
from lacuna.models.causal_lm import Cache, Mask, empty_cache, head_kernel, logits_of, stream
from lacuna.models.model import Model
from lacuna.types import Params


@partial(jax.jit, static_argnames=("model", "num_tokens", "end"))
def greedy(
    model: Model,
    params: Params,
    tokens: Int[Array, "B S"],
    *,
    num_tokens: int,
    mask: Mask | None = None,
    end: int | None = None,
    **options: Any,
) -> Int[Array, "B num_tokens"]:
    """The likeliest next token, again and again; the first of them where several are equally likely.

    Args:
      model: of `causal_lm`.
      params: its parameters.
      tokens: prompts; rows of different lengths are padded on the left.
      num_tokens: how many to add.
      mask: False where there is padding.
      end: a row that has given this token gives nothing else from then on.
      options: `lora` and `steer` of `apply`. A steer has no axis of positions: it acts on every token.

    Raises:
      InvalidInput: more tokens than the model has positions.
    """
    num_rows, length = tokens.shape
    room = length + num_tokens
    if num_tokens < 1:
        raise InvalidInput("num_tokens must be at least 1", got=num_tokens)
    if model.spec.rotary_base is None and room > model.spec.max_positions:
        raise InvalidInput(
            f"this model has {model.spec.max_positions} positions", got=f"{length} + {num_tokens} tokens"
        )
    kernel = head_kernel(model.spec, params)
    whole = jnp.ones((num_rows, room), bool)
    if mask is not None:
        whole = whole.at[:, :length].set(mask.astype(bool))

    def advance(tokens: Array, cache: Cache) -> tuple[Int[Array, "B"], Any]:
        found = stream(model.spec, params, tokens, mask=whole, cache=cache, **options)
        return jnp.argmax(logits_of(found.hidden[:, -1], kernel), axis=-1).astype(jnp.int32), found.cache

    def step(state: tuple[Array, Array, Cache], _: None) -> tuple[tuple[Array, Array, Cache], Array]:
        last, ended, cache = state
        ended = ended | (last == end) if end is not None else ended
        new, cache = advance(last[:, None], cache)
        new = jnp.where(ended, last if end is None else end, new)
        return (new, ended, cache), last

    first, cache = advance(tokens, empty_cache(model.spec, num_rows, room, params["embedding"].dtype))
    _, found = lax.scan(step, (first, jnp.zeros(num_rows, bool), cache), None, length=num_tokens)
    return found.T
