"""One block of a decoder-only language model, and the description that all of its switches come from.

GPT-2, Llama, Qwen and OLMo are one architecture: norms before or after a branch, fused or separate queries, keys and
values, learned or rotary positions, plain or gated MLPs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lacuna.errors import InvalidInput
from lacuna.models.lora import Lora
from lacuna.models.moved import product

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}

NORMS = ("layer", "layer_plain", "rms")
QUERY_KEY_NORMS = ("none", "head", "whole")


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


def _wide(x: Array) -> Array:
    """In float32, or its own dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Norm(nn.Module):
    """Layer norm or RMS norm over the last axis, computed in float32."""

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
        y = product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
        added = None if lora is None else lora.side_path(self.path, x)
        if added is not None:
            y = y + added.astype(y.dtype)
        if self.use_bias:
            # A bias that is kept wider than the product is added in its width, and does not widen the stream.
            y = (y + self.param("bias", nn.initializers.zeros, (self.features,))).astype(y.dtype)
        return y


class Around(NamedTuple):
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
    def __call__(self, x: Float[Array, "B S D"], around: Around) -> tuple[Float[Array, "B S D"], Any]:
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

    def _norm(self, of: str) -> Norm:
        return Norm("rms", self.spec.norm_eps, name=f"{of}_norm")


def _attend(query: Array, key: Array, value: Array, around: Around) -> Float[Array, "B S HE"]:
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


class Block(nn.Module):
    """One block of the model: attention and MLP around the residual stream, their norms before or behind them."""

    spec: CausalLMSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], around: Around) -> tuple[Float[Array, "B S D"], Any]:
        spec = self.spec
        attention_norm = Norm(spec.norm, spec.norm_eps, name="attention_norm")
        mlp_norm = Norm(spec.norm, spec.norm_eps, name="mlp_norm")
        attention, mlp = _Attention(spec, name="attention"), _MLP(spec, name="mlp")
        if spec.norm_after:
            mixed, cache = attention(x, around)
            x = x + attention_norm(mixed)
            return x + mlp_norm(mlp(x, around.lora)), cache
        mixed, cache = attention(attention_norm(x), around)
        x = x + mixed
        return x + mlp(mlp_norm(x), around.lora), cache
