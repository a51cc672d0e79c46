"""Decoder-only language models: GPT-2, Llama, Qwen and OLMo are one architecture with a few switches.

A block is a small linen module. The stack of blocks is a plain `lax.scan` over parameters with a leading layer
axis, so that what people do to a layer (rewrite its weights, add to its stream, read it, adapt it) is an
argument of the scan and not a wrapper around a module: it can be jitted, vmapped and differentiated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lacuna.errors import InvalidInput
from lacuna.models.lora import Lora
from lacuna.models.model import Model, Output
from lacuna.types import Key, Params

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}

Remat = Literal["none", "block", "dots"]
NORMS = ("layer", "layer_plain", "rms")
QUERY_KEY_NORMS = ("none", "head", "whole")
Mask = Bool[Array, "B T"] | Int[Array, "B T"]
"""True, or not 0, where there is a token."""

LayerMap = Callable[[Int[Array, ""], Params], Params]
"""`layer_map(layer, weights) -> weights`, called inside the scan: one layer's new weights exist at a time."""


@dataclass(frozen=True)
class CausalLMSpec:
    """What a decoder-only language model is made of.

    Attributes:
      vocab_size: V, rows of the embedding; may exceed the tokenizer's.
      max_positions: longest sequence that was meant; a limit only where positions are learned.
      num_layers: L.
      width: D, of the residual stream.
      mlp_width: hidden units of each MLP.
      num_heads: H, of the queries.
      num_kv_heads: of keys and values; divides H.
      head_width: of each head; H times it need not be D.
      norm: `layer` with scale and bias, `layer_plain` with neither, or `rms` with a scale.
      norm_eps: added to the variance.
      norm_after: norms act on a branch's output, before it is added to the stream, instead of on its input.
      query_key_norm: RMS norm of queries and keys before they are rotated: over each `head`, over the `whole`
        projection, or `none`.
      rotary_base: theta; None where positions are a learned table.
      fused_qkv: one kernel makes queries, keys and values, in this order.
      qkv_bias: queries, keys and values have a bias.
      out_bias: the attention's output has one.
      mlp_bias: the MLP's kernels have one.
      activation: one of `ACTIVATIONS`.
      gated: the MLP is `down(act(gate(x)) * up(x))` instead of `down(act(up(x)))`.
      clip_qkv: queries, keys and values are clipped to this size; None for no limit.
      attention_scale: of the scores; None is `head_width ** -0.5`.
      scale_by_layer: divide the scores of layer l = 0, 1, ... by l + 1.
      windows: for each layer how many tokens back it sees, its own included; None everywhere is no limit, and
        so is an empty tuple.
      tied: the head is the embedding.

    Raises:
      InvalidInput: sizes that do not fit each other.
    """

    vocab_size: int
    max_positions: int
    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    norm: str
    norm_eps: float
    norm_after: bool = False
    query_key_norm: str = "none"
    rotary_base: float | None = 10_000.0
    fused_qkv: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    gated: bool = True
    clip_qkv: float | None = None
    attention_scale: float | None = None
    scale_by_layer: bool = False
    windows: tuple[int | None, ...] = ()
    tied: bool = True

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "max_positions", "num_layers", "width", "mlp_width", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_width"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"CausalLMSpec.{name} must be at least 1", got=getattr(self, name))
        if self.num_heads % self.num_kv_heads:
            raise InvalidInput(
                "CausalLMSpec.num_kv_heads must divide num_heads", got=f"{self.num_kv_heads} for {self.num_heads}"
            )
        if self.rotary_base is not None and self.head_width % 2:
            raise InvalidInput("rotary positions turn pairs, so head_width must be even", got=self.head_width)
        if self.windows and len(self.windows) != self.num_layers:
            raise InvalidInput(
                "CausalLMSpec.windows needs one for each layer", got=f"{len(self.windows)} for {self.num_layers}"
            )
        choices = {"norm": NORMS, "query_key_norm": QUERY_KEY_NORMS, "activation": tuple(ACTIVATIONS)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InvalidInput(
                    f"CausalLMSpec.{name} must be one of {', '.join(allowed)}", got=f"`{getattr(self, name)}`"
                )
        if any(window is not None and window < 1 for window in self.windows):
            raise InvalidInput("CausalLMSpec.windows must be at least 1, or None", got=str(self.windows))
        if not self.norm_eps >= 0:
            raise InvalidInput("CausalLMSpec.norm_eps must not be negative", got=self.norm_eps)
        for name in ("rotary_base", "clip_qkv", "attention_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInput(f"CausalLMSpec.{name} must be positive, or None", got=value)


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


def _wide(x: Array) -> Array:
    """In float32, or its own dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class _Norm(nn.Module):
    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        wide = _wide(x)
        if self.kind != "rms":
            wide = wide - jnp.mean(wide, -1, keepdims=True)
        wide = wide * lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.eps)
        if self.kind != "layer_plain":
            wide = wide * self.param("scale", nn.initializers.ones, (width,))
        if self.kind == "layer":
            wide = wide + self.param("bias", nn.initializers.zeros, (width,))
        return wide.astype(x.dtype)


class _Linear(nn.Module):
    features: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: Array, lora: Lora | None) -> Array:
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        # As one matrix: the gradient of a product with three axes runs at four fifths of the rate on a CPU.
        y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)
        added = None if lora is None else lora.side_path(self.path, x)
        if added is not None:
            y = y + added.astype(y.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return y


class _Around(NamedTuple):
    """What a block sees besides the stream."""

    allowed: Bool[Array, "B S T"]
    """Which tokens each token may look at."""
    rotation: tuple[Float[Array, "B S 1 half"], Float[Array, "B S 1 half"]] | None
    """Cosine and sine of each position's angles."""
    scale: Float[Array, ""] | float
    cache: tuple[Float[Array, "B T N E"], Float[Array, "B T N E"]] | None
    filled: Int[Array, ""] | int
    lora: Lora | None


def _rotated(x: Float[Array, "B S N E"], rotation: Any) -> Float[Array, "B S N E"]:
    """Pairs (e, e + E/2) of each head turned by the angles of their position, in float32."""
    if rotation is None:
        return x
    cos, sin = rotation
    first, second = jnp.split(_wide(x), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class _Attention(nn.Module):
    spec: CausalLMSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], around: _Around) -> tuple[Float[Array, "B S D"], Any]:
        spec = self.spec
        widths = [n * spec.head_width for n in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
        if spec.fused_qkv:
            together = _Linear(sum(widths), spec.qkv_bias, name="qkv")(x, around.lora)
            parts = jnp.split(together, [widths[0], widths[0] + widths[1]], axis=-1)
        else:
            parts = [
                _Linear(width, spec.qkv_bias, name=name)(x, around.lora)
                for name, width in zip(("query", "key", "value"), widths, strict=True)
            ]
        if spec.query_key_norm == "whole":
            parts[:2] = [self._norm(name)(part) for name, part in zip(("query", "key"), parts, strict=False)]
        if spec.clip_qkv is not None:
            parts = [jnp.clip(part, -spec.clip_qkv, spec.clip_qkv) for part in parts]
        query, key, value = (part.reshape(*part.shape[:2], -1, spec.head_width) for part in parts)
        if spec.query_key_norm == "head":
            query, key = self._norm("query")(query), self._norm("key")(key)
        query, key = _rotated(query, around.rotation), _rotated(key, around.rotation)
        if around.cache is not None:
            key, value = (
                lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), around.filled, axis=1)
                for old, new in zip(around.cache, (key, value), strict=True)
            )
        mixed = _attend(query, key, value, around)
        return _Linear(spec.width, spec.out_bias, name="out")(mixed, around.lora), (key, value)

    def _norm(self, of: str) -> _Norm:
        return _Norm("rms", self.spec.norm_eps, name=f"{of}_norm")


def _attend(query: Array, key: Array, value: Array, around: _Around) -> Float[Array, "B S HE"]:
    """Softmax attention, scores in float32; several queries share a key where there are fewer keys than queries."""
    num_kv_heads = key.shape[2]
    grouped = query.reshape(*query.shape[:2], num_kv_heads, -1, query.shape[-1])
    scores = _wide(jnp.einsum("bsnge,btne->bngst", grouped, key)) * around.scale
    # A finite number, so that padding, which may look at nothing, has finite activations that nobody reads.
    scores = jnp.where(around.allowed[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bngst,btne->bsnge", weights, value)
    return mixed.reshape(*mixed.shape[:2], -1)


class _MLP(nn.Module):
    spec: CausalLMSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], lora: Lora | None) -> Float[Array, "B S D"]:
        spec = self.spec
        hidden = _Linear(spec.mlp_width, spec.mlp_bias, name="up")(x, lora)
        activation = ACTIVATIONS[spec.activation]
        if spec.gated:
            hidden = activation(_Linear(spec.mlp_width, spec.mlp_bias, name="gate")(x, lora)) * hidden
        else:
            hidden = activation(hidden)
        return _Linear(spec.width, spec.mlp_bias, name="down")(hidden, lora)


class _Block(nn.Module):
    spec: CausalLMSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], around: _Around) -> tuple[Float[Array, "B S D"], Any]:
        spec = self.spec
        attention_norm = _Norm(spec.norm, spec.norm_eps, name="attention_norm")
        mlp_norm = _Norm(spec.norm, spec.norm_eps, name="mlp_norm")
        attention, mlp = _Attention(spec, name="attention"), _MLP(spec, name="mlp")
        if spec.norm_after:
            mixed, cache = attention(x, around)
            x = x + attention_norm(mixed)
            return x + mlp_norm(mlp(x, around.lora)), cache
        mixed, cache = attention(attention_norm(x), around)
        x = x + mixed
        return x + mlp(mlp_norm(x), around.lora), cache


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


def _checked_taps(taps: Any, num_rows: int) -> tuple[str | None, Int[Array, "B"] | None]:
    """Where the stream is read: nowhere, at "all" positions, at the "last", or, of each row, at the "given" one."""
    if taps is None or (isinstance(taps, str) and taps in ("all", "last")):
        return taps, None
    at = None if isinstance(taps, str) else jnp.asarray(taps)
    if at is None or at.shape != (num_rows,) or not jnp.issubdtype(at.dtype, jnp.integer):
        got = f"`{taps}`" if at is None else f"{at.dtype}{list(at.shape)}"
        raise InvalidInput('taps must be "all", "last", or one integer position for each row', got=got)
    return "given", at


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

    With a `cache` the tokens are those that come next, and `mask` is over all of its T slots.
    """
    if remat not in get_args(Remat):
        raise InvalidInput(f"remat must be one of {', '.join(get_args(Remat))}", got=f"`{remat}`")
    if lora is not None:
        lora.check_sites(params["layers"])
    factors, scale = (None, None) if lora is None else (lora.params["layers"], lora.scale)
    tapped, at = _checked_taps(taps, tokens.shape[0])
    # Compiled once for each shape, so that a call outside of a `jit` is fast, too. A `layer_map` is the caller's
    # function, often a new one for each call and full of traced values: the caller compiles it with the rest.
    run = _compiled if layer_map is None else _stream
    given = (params, tokens, mask, positions, factors, scale, steer, at, cache)
    return run(spec, *given, tapped=tapped, layer_map=layer_map, remat=remat, unroll=unroll)


def _stream(
    spec: CausalLMSpec,
    params: Params,
    tokens: Int[Array, "B S"],
    mask: Any,
    positions: Any,
    factors: Params | None,
    lora_scale: Any,
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
    steer = _checked_steer(spec, steer, x)
    if steer is not None:
        x = x + steer[0]

    def tap(x: Float[Array, "B S D"]) -> Array | None:
        if tapped is None:
            return None
        return x if at is None else jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]

    block = _Block(spec)
    scale = spec.head_width**-0.5 if spec.attention_scale is None else spec.attention_scale

    def layer(x: Float[Array, "B S D"], own: Any) -> tuple[Float[Array, "B S D"], Any]:
        index, weights, adapter, added, window, kept = own
        if layer_map is not None:
            mapped = layer_map(index, weights)
            weights = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), weights, mapped)
        near = allowed if window is None else allowed & (ago < window)
        sharp = scale / (index + 1) if spec.scale_by_layer else scale
        adapter = None if factors is None else Lora(adapter, lora_scale)
        out, grown = block.apply({"params": weights}, x, _Around(near, rotation, sharp, kept, filled, adapter))
        x = out.astype(x.dtype)  # the embedding's, whatever the weights are kept in
        x = x if added is None else x + added
        return x, (tap(x), grown if kept is not None else None)

    if remat != "none":
        policy = jax.checkpoint_policies.dots_saveable if remat == "dots" else None
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
    windows = None
    if any(window is not None for window in spec.windows):
        windows = jnp.asarray([2**30 if window is None else window for window in spec.windows])
    own = (
        jnp.arange(spec.num_layers),
        params["layers"],
        factors,
        None if steer is None else steer[1:],
        windows,
        None if cache is None else (cache.keys, cache.values),
    )
    first = tap(x)
    x, (later, grown) = lax.scan(layer, x, own, unroll=unroll)
    resid = None if first is None else jnp.concatenate([first[None], later])
    norm = _Norm(spec.norm, spec.norm_eps)
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


def looked_up(table: Float[Array, "n D"], index: Int[Array, "*pos"]) -> Float[Array, "*pos D"]:
    """Rows of a table; NaN where there is no such row, for the nearest one would pass for an answer."""
    return jnp.where((index >= 0)[..., None], jnp.take(table, index, axis=0, mode="fill"), jnp.nan)


def _checked_steer(spec: CausalLMSpec, steer: Any, x: Float[Array, "B S D"]) -> Array | None:
    """[L + 1, D] or [L + 1, B, S, D], in the stream's dtype; anything else could broadcast to what nobody meant."""
    if steer is None:
        return None
    steer = jnp.asarray(steer)
    same = steer.shape[1:] == x.shape[2:]
    each = steer.ndim == 4 and all(n in (1, m) for n, m in zip(steer.shape[1:3], x.shape, strict=False))
    if steer.shape[:1] != (spec.num_layers + 1,) or not (same or (each and steer.shape[3] == x.shape[2])):
        raise InvalidInput(
            f"steer needs the shape [{spec.num_layers + 1}, D] or [{spec.num_layers + 1}, B, S, D]: a vector for the "
            "embedding output and for each block",
            got=f"{list(steer.shape)} for a stream of {list(x.shape)}",
            hint="1 for B or S where it is to be the same",
        )
    return steer.astype(x.dtype)


def head_kernel(spec: CausalLMSpec, params: Params) -> Float[Array, "D V"]:
    """What turns the hidden stream into logits: the embedding's transpose where they are tied."""
    return params["embedding"].T if spec.tied else params["head"]["kernel"]


def logits_of(hidden: Float[Array, "*pos D"], kernel: Float[Array, "D V"]) -> Float[Array, "*pos V"]:
    """float32 logits, or wider where the stream is."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.matmul(hidden, kernel, preferred_element_type=wide)


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
    around = _Around(jnp.ones((1, 1, 1), bool), None, 1.0, None, 0, None)

    def one(key: Key) -> Params:
        return _Block(spec).init(key, x, around).get("params", {})

    params: dict[str, Any] = {
        "embedding": normal(embedding, (spec.vocab_size, spec.width)),
        "layers": jax.vmap(one)(jax.random.split(blocks, spec.num_layers)),
        "final_norm": _Norm(spec.norm, spec.norm_eps).init(key, x).get("params", {}),
    }
    if spec.norm == "layer_plain":
        del params["final_norm"]
    if spec.rotary_base is None:
        params["positions"] = normal(table, (spec.max_positions, spec.width))
    if not spec.tied:
        params["head"] = {"kernel": normal(head, (spec.width, spec.vocab_size))}
    return params
