"""Greedy decoding with a cache of keys and values, in one compiled loop."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lacuna.errors import InvalidInput
from lacuna.models.causal_lm import (
    Cache,
    Mask,
    checked_mask,
    empty_cache,
    head_kernel,
    last_positions,
    logits_of,
    stream,
)
from lacuna.models.lora import Lora
from lacuna.models.model import Model
from lacuna.models.moved import Moved, weights_of
from lacuna.types import Params


def greedy(
    model: Model,
    params: Params,
    tokens: Int[Array, "B S"],
    *,
    num_tokens: int,
    mask: Mask | None = None,
    lora: Lora | None = None,
    steer: Float[Array, "levels ..."] | None = None,
    end: int | None = None,
) -> Int[Array, "B num_tokens"]:
    """The likeliest next token, again and again; the first of them where several are equally likely.

    Args:
      model: of `causal_lm`.
      params: its parameters. Of a candidate whose layers are moved as they are used, each token moves them anew.
      tokens: prompts; rows of different lengths are padded, on either side.
      num_tokens: how many to add.
      mask: False where there is padding.
      lora: as for `apply`.
      steer: as for `apply`, but without an axis of positions: it acts on every token.
      end: a row that has given this token gives nothing else from then on.

    Raises:
      InvalidInput: more tokens than the model has positions, or a mask, an adapter or a steer that does not fit.
    """
    # As in `stream`: who makes the layers as they are used compiles this with the rest.
    run = _greedy if isinstance(params, Moved) else _compiled
    return run(model, params, tokens, mask, lora, steer, num_tokens=num_tokens, end=end)


def _greedy(
    model: Model,
    params: Params,
    tokens: Int[Array, "B S"],
    mask: Mask | None,
    lora: Lora | None,
    steer: Float[Array, "levels ..."] | None,
    *,
    num_tokens: int,
    end: int | None,
) -> Int[Array, "B num_tokens"]:
    num_rows, length = tokens.shape
    room = length + num_tokens - 1  # nobody reads what follows the last token
    if num_tokens < 1:
        raise InvalidInput("num_tokens must be at least 1", got=num_tokens)
    if model.spec.rotary_base is None and room > model.spec.max_positions:
        raise InvalidInput(
            f"this model has {model.spec.max_positions} positions", got=f"{length} + {num_tokens} tokens"
        )
    kernel = head_kernel(model.spec, params)
    whole = jnp.ones((num_rows, room), bool)
    if mask is not None:
        kept = checked_mask(mask, tokens.shape)
        # The tokens of a row end where the next one goes.
        from_ = (jnp.arange(length) + last_positions(kept, tokens.shape)[:, None] + 1) % length
        tokens, kept = (jnp.take_along_axis(x, from_, axis=1) for x in (tokens, kept))
        whole = whole.at[:, :length].set(kept)

    def advance(tokens: Array, cache: Cache) -> tuple[Int[Array, "B"], Any]:
        found = stream(model.spec, params, tokens, mask=whole, cache=cache, lora=lora, steer=steer)
        return jnp.argmax(logits_of(found.hidden[:, -1], kernel), axis=-1).astype(jnp.int32), found.cache

    def step(state: tuple[Array, Array, Cache], _: None) -> tuple[tuple[Array, Array, Cache], Array]:
        last, ended, cache = state
        new, cache = advance(last[:, None], cache)
        if end is not None:
            ended = ended | (last == end)
            new = jnp.where(ended, end, new)
        return (new, ended, cache), new

    first, cache = advance(tokens, empty_cache(model.spec, num_rows, room, weights_of(params)["embedding"].dtype))
    _, found = lax.scan(step, (first, jnp.zeros(num_rows, bool), cache), None, length=num_tokens - 1)
    return jnp.concatenate([first[None], found]).T


_compiled = jax.jit(_greedy, static_argnames=("model", "num_tokens", "end"))
