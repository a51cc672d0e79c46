"""Decoder-only language models: GPT-2, Llama, Qwen and OLMo are one architecture with a few switches.

A block is a small linen module. The stack of blocks is a plain `lax.scan` over parameters with a leading layer
axis, so that what people do to a layer (rewrite its weights, add to its stream, read it, adapt it) is an
argument of the scan and not a wrapper around a module: it can be jitted, vmapped and differentiated.
"""

from functools import cache, partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lacuna.errors import InvalidInput
from lacuna.models.block import Around, Block, CausalLMSpec, Norm
from lacuna.models.lora import Lora
from lacuna.models.model import Model, Output
from lacuna.models.moved import LayerMap, Matrix, Moved, looked_up, matrices_of, product, weights_of
from lacuna.models.residual import checked_steer, checked_taps, tap
from lacuna.types import Key, Params

Remat = Literal["none", "block", "dots"]
Mask = Bool[Array, "B T"] | Int[Array, "B T"]
"""True, or not 0, where there is a token."""


class Cache(NamedTuple):
    """Keys and values of the tokens so far, with room for T.

    Attributes:
      keys: after rotation.
      values: as projected.
      filled: slots that hold a token, int32[].
    """

    keys: Float[Array, "L B T N E"]
    values: Float[Array, "L B T N E"]
    filled: Int[Array, ""]


class Stream(NamedTuple):
    """What the stack of blocks gives.

    Attributes:
      hidden: after the final norm: what the head reads.
      resid: what was tapped; None if nothing was.
      cache: grown by these tokens; None if there was none.
    """

    hidden: Float[Array, "B S D"]
    resid: Array | None
    cache: Cache | None


def empty_cache(spec: CausalLMSpec, num_rows: int, room: int, dtype: Any) -> Cache:
    """A cache for `room` tokens of each row."""
    shape = (spec.num_layers, num_rows, room, spec.num_kv_heads, spec.head_width)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))


def last_positions(mask: Mask | None, shape: tuple[int, ...]) -> Int[Array, "B"]:
    """Where the last token of each row is; without one, the last place."""
    if mask is None:
        return jnp.full(shape[0], shape[1] - 1)
    return shape[1] - 1 - jnp.argmax(mask[:, ::-1].astype(bool), axis=1)


def stream(
    spec: CausalLMSpec,
    params: Params,
    tokens: Int[Array, "B S"],
    *,
    mask: Mask | None = None,
    positions: Array | None = None,
    lora: Lora | None = None,
    steer: Float[Array, "levels ..."] | None = None,
    taps: Any = None,
    layer_map: LayerMap | None = None,
    cache: Cache | None = None,
    remat: Remat = "dots",
    unroll: int = 1,
) -> Stream:
    """The residual stream from the embedding to the final norm; options as for `apply` of `causal_lm`.

    The parameters may be those of a candidate, as `lacuna.models.moved` makes them.

    With a `cache` the tokens are those that come next, and `mask` is over all of its T slots.
    """
    if remat not in get_args(Remat):
        raise InvalidInput(f"remat must be one of {', '.join(get_args(Remat))}", got=f"`{remat}`")
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise InvalidInput("tokens must be integers", got=jnp.result_type(tokens))
    if isinstance(params, Moved):
        params, layer_map = params.params, params.then(layer_map)
    if lora is not None:
        lora.check_sites(matrices_of(params["layers"]))
    tapped, at = checked_taps(taps, tokens.shape[0])
    # Compiled once for each shape, so that a call outside of a `jit` is fast, too. A `layer_map` is the caller's
    # function, often a new one for each call and full of traced values: the caller compiles it with the rest.
    run = _compiled if layer_map is None else _stream
    given = (params, tokens, mask, positions, lora, steer, at, cache)
    return run(spec, *given, tapped=tapped, layer_map=layer_map, remat=remat, unroll=unroll)


def _stream(
    spec: CausalLMSpec,
    params: Params,
    tokens: Int[Array, "B S"],
    mask: Any,
    positions: Any,
    lora: Lora | None,
    steer: Any,
    at: Int[Array, "B"] | None,
    cache: Cache | None,
    *,
    tapped: str | None,
    layer_map: LayerMap | None,
    remat: Remat,
    unroll: int,
) -> Stream:
    length = tokens.shape[1]
    if spec.rotary_base is None and length > spec.max_positions:
        raise InvalidInput(f"this model has {spec.max_positions} positions", got=f"{length} tokens")
    filled = 0 if cache is None else cache.filled
    slots = length if cache is None else cache.keys.shape[2]
    mask = None if mask is None else checked_mask(mask, (tokens.shape[0], slots))
    if positions is None:
        positions = _own_positions(mask, tokens, filled)
    if positions.shape != tokens.shape or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise InvalidInput(
            "positions needs an integer for every token",
            got=f"{positions.dtype}{list(positions.shape)} for tokens of {list(tokens.shape)}",
        )
    new = None if mask is None else lax.dynamic_slice_in_dim(mask, filled, length, axis=1)
    if new is not None:
        tokens = jnp.where(new, tokens, 0)  # what stands for padding need not be in the vocabulary
    at = last_positions(new, tokens.shape) if tapped == "last" else at
    ago = (filled + jnp.arange(length))[:, None] - jnp.arange(slots)
    allowed = jnp.broadcast_to(ago >= 0, (tokens.shape[0], length, slots))
    if mask is not None:
        allowed = allowed & mask[:, None, :]

    x, rotation = _embedded(spec, params, tokens, positions)
    steer = checked_steer(spec.num_layers, steer, x)
    if steer is not None:
        x = x + steer[0]

    block = Block(spec)
    scale = spec.head_width**-0.5 if spec.attention_scale is None else spec.attention_scale

    def layer(x: Float[Array, "B S D"], own: Any) -> tuple[Float[Array, "B S D"], Any]:
        index, weights, adapter, added, window, kept = own
        if layer_map is not None:
            mapped = layer_map(index, weights)
            weights = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), weights, mapped)
        near = allowed if window is None else allowed & (ago < window)
        sharp = scale / (index + 1) if spec.scale_by_layer else scale
        out, grown = block.apply({"params": weights}, x, Around(near, rotation, sharp, kept, filled, adapter))
        x = out.astype(x.dtype)  # the embedding's, whatever the weights are kept in
        x = x if added is None else x + added
        return x, (None if tapped is None else tap(x, at), grown if kept is not None else None)

    if remat != "none":
        policy = jax.checkpoint_policies.dots_saveable if remat == "dots" else None
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
    windows = None
    if any(window is not None for window in spec.windows):
        windows = jnp.asarray([2**30 if window is None else window for window in spec.windows])
    own = (
        jnp.arange(spec.num_layers),
        params["layers"],
        None if lora is None else lora.by_layer(spec.num_layers),
        None if steer is None else steer[1:],
        windows,
        None if cache is None else (cache.keys, cache.values),
    )
    first = None if tapped is None else tap(x, at)
    x, (later, grown) = lax.scan(layer, x, own, unroll=unroll)
    resid = None if first is None else jnp.concatenate([first[None], later])
    norm = Norm(spec.norm, spec.norm_eps)
    hidden: Any = norm.apply({"params": params.get("final_norm", {})}, x)
    return Stream(hidden, resid, None if cache is None else Cache(grown[0], grown[1], cache.filled + length))


_compiled = jax.jit(_stream, static_argnames=("spec", "tapped", "layer_map", "remat", "unroll"))


def checked_mask(mask: Any, shape: tuple[int, ...]) -> Bool[Array, "B T"]:
    """The mask as booleans; refused unless it has this shape, for it would be spread over what nobody meant."""
    if mask.shape != shape:
        raise InvalidInput("mask needs an entry for every token", got=f"shape {mask.shape} for {shape}")
    return mask.astype(bool)


def _own_positions(mask: Bool[Array, "B T"] | None, tokens: Int[Array, "B S"], filled: Any) -> Int[Array, "B S"]:
    """Each row counts its own tokens, padding left out."""
    if mask is None:
        return jnp.broadcast_to(filled + jnp.arange(tokens.shape[1]), tokens.shape)
    seen = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    return lax.dynamic_slice_in_dim(seen, filled, tokens.shape[1], axis=1)


def _embedded(
    spec: CausalLMSpec, params: Params, tokens: Int[Array, "B S"], positions: Int[Array, "B S"]
) -> tuple[Float[Array, "B S D"], Any]:
    """The embedding output, and the rotation of each position where positions are not in it."""
    x = looked_up(params["embedding"], tokens)
    if spec.rotary_base is None:
        return x + looked_up(params["positions"], positions), None
    exponent = jnp.arange(0, spec.head_width, 2, dtype=jnp.float32) / spec.head_width
    angle_rad = positions[..., None, None].astype(jnp.float32) * (1.0 / spec.rotary_base**exponent)
    return x, (jnp.cos(angle_rad), jnp.sin(angle_rad))


def head_kernel(spec: CausalLMSpec, params: Params) -> Matrix:
    """What turns the hidden stream into logits, [D, V]: the embedding's transpose where they are tied."""
    params = weights_of(params)
    return params["embedding"].T if spec.tied else params["head"]["kernel"]


def logits_of(hidden: Float[Array, "*pos D"], kernel: Matrix) -> Float[Array, "*pos V"]:
    """float32 logits, or wider where the stream is."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return product(hidden, kernel, dtype=wide)


@cache
def causal_lm(spec: CausalLMSpec) -> Model:
    """A language model of a given shape; the same spec gives the same object, so nothing compiles twice.

    `apply(params, tokens, **options)` takes int32[B, S] tokens, and


      mask: bool[B, S] (or integers), False where there is padding, on either side.
      positions: int32[B, S]; by default each row counts its own tokens from 0, padding left out.
      lora: a `Lora`: `x W + scale (x A) B` at its sites; the weights are never merged.
      steer: [L + 1, D], or [L + 1, B, S, D] with B or S of 1 where it is to be the same: entry l is added to
        the stream where `resid[l]` is read. Zeros change no bit, a grid of layers and strengths is a vmap over
        it, and the gradient by it at zero is that by the activations.
      taps: None, "all", "last" (of each row's tokens) or int32[B]: what of the stream comes back as `resid`:
        [L + 1, B, S, D] for all, else [L + 1, B, D].
      layer_map: `layer_map(layer, weights) -> weights` on the leaves of one layer, inside the scan; what it gives is
        rounded to the dtype that the weights have.
      remat: what the backward pass computes again: all of a block but its matrix products ("dots", the default: what
        is kept for it goes through memory, and on a CPU this is a fifth faster than to keep everything), each whole
        "block", for the least memory, or nothing ("none").
      unroll: blocks a step of the scan. More than one runs faster on a CPU and compiles longer.

    and gives logits in float32 (or wider parameters' dtype), those at position s of the token at s + 1. The arithmetic
    is that of the parameters' dtype; norms, rotations and the softmax are float32. Nothing is ever dropped out.
    """

    def apply(params: Params, tokens: Int[Array, "B S"], **options: Any) -> Output:
        found = stream(spec, params, tokens, **options)
        return Output(logits_of(found.hidden, head_kernel(spec, params)), found.resid)

    return Model(spec, partial(init, spec), apply, lambda leaf_name: leaf_name.startswith("layers/"))


@partial(jax.jit, static_argnums=0)
def init(spec: CausalLMSpec, key: Key) -> Params:
    """Random float32 parameters: normal kernels of deviation 0.02, unit scales, zero biases."""
    normal = nn.initializers.normal(0.02)
    embedding, table, head, blocks = jax.random.split(key, 4)
    x = jnp.zeros((1, 1, spec.width))
    around = Around(jnp.ones((1, 1, 1), bool), None, 1.0, None, 0, None)

    def one(key: Key) -> Params:
        return Block(spec).init(key, x, around).get("params", {})

    params: dict[str, Any] = {
        "embedding": normal(embedding, (spec.vocab_size, spec.width)),
        "layers": jax.vmap(one)(jax.random.split(blocks, spec.num_layers)),
        "final_norm": Norm(spec.norm, spec.norm_eps).init(key, x).get("params", {}),
    }
    if spec.norm == "layer_plain":
        del params["final_norm"]
    if spec.rotary_base is None:
        params["positions"] = normal(table, (spec.max_positions, spec.width))
    if not spec.tied:
        params["head"] = {"kernel": normal(head, (spec.width, spec.vocab_size))}
    return params
