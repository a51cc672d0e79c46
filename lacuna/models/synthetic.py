"""The synthetic multitask transformer: half a million parameters, decoder-only, float32.

It is the model that a random search evaluates millions of times, so its forward pass is written for the
matrix product: activations are a matrix of tokens by width from the embedding to the head.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from lacuna.errors import InvalidInput
from lacuna.models.model import Model, Output
from lacuna.models.residual import checked_steer, checked_taps, tap
from lacuna.types import Key, Params

ROTARY_BASE = 100.0
"""Wavelengths from 6 to about 500 tokens: rows are short, and the usual 10,000 leaves half the pairs still."""


@dataclass(frozen=True)
class SyntheticSpec:
    """Shape of the synthetic transformer. The paper's sizes are not available to us; these are ours.

    Attributes:
      vocab_size: V.
      max_length: longest sequence, in tokens.
      num_layers: L.
      width: D, of the residual stream.
      num_heads: H; divides the width.
      mlp_width: hidden units of each block's MLP.

    Raises:
      InvalidInput: a size is not positive, or the heads do not divide the width into even parts.
    """

    vocab_size: int
    max_length: int = 18
    num_layers: int = 4
    width: int = 96
    num_heads: int = 4
    mlp_width: int = 384

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise InvalidInput(f"SyntheticSpec.{field.name} must be at least 1", got=getattr(self, field.name))
        if self.width % self.num_heads:
            raise InvalidInput(
                "SyntheticSpec.num_heads must divide its width",
                got=f"{self.num_heads} heads in a width of {self.width}",
            )
        if self.width // self.num_heads % 2:
            raise InvalidInput(
                "SyntheticSpec needs heads of an even width, because positions turn its pairs",
                got=f"{self.width} / {self.num_heads} = {self.width // self.num_heads}",
            )


def _rotated(x: Float[Array, "B S H E"]) -> Float[Array, "B S H E"]:
    """Rotary positions: pairs (e, e + E/2) of each head turn by an angle proportional to the position."""
    half = x.shape[-1] // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half) / half)
    angle_rad = jnp.arange(x.shape[1])[:, None, None] * frequency
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle_rad), jnp.sin(angle_rad)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class _Attention(nn.Module):
    spec: SyntheticSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        num_heads, length = self.spec.num_heads, x.shape[1]
        # One product for all three: three products a third as wide run at a lower rate.
        qkv = nn.Dense(3 * self.spec.width, use_bias=False, name="qkv")(x)
        query, key, value = jnp.split(qkv.reshape(*x.shape[:2], 3 * num_heads, -1), 3, axis=2)
        scores = jnp.einsum("bshe,bthe->bhst", _rotated(query), _rotated(key)) * query.shape[-1] ** -0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
        mixed = jnp.einsum("bhst,bthe->bshe", weights, value).reshape(x.shape)
        return nn.Dense(self.spec.width, use_bias=False, name="out")(mixed)


class _MLP(nn.Module):
    spec: SyntheticSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        hidden = nn.Dense(self.spec.mlp_width, use_bias=False, name="up")(x)
        # Smooth on purpose: curvature is one of the things measured on this model. ReLU would be 7 % faster.
        return nn.Dense(self.spec.width, use_bias=False, name="down")(nn.gelu(hidden))


class _Block(nn.Module):
    spec: SyntheticSpec
    tapped: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], added: Array | None, at: Int[Array, "B"] | None
    ) -> tuple[Float[Array, "B S D"], Any]:
        x = x + _Attention(self.spec, name="attention")(nn.RMSNorm(name="attention_norm")(x))
        x = x + _MLP(self.spec, name="mlp")(nn.RMSNorm(name="mlp_norm")(x))
        x = x if added is None else x + added
        return x, tap(x, at) if self.tapped else None


class _Transformer(nn.Module):
    spec: SyntheticSpec

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B S"], steer: Any = None, taps: Any = None
    ) -> tuple[Float[Array, "B S V"], Array | None]:
        spec = self.spec
        tapped, at = checked_taps(taps, tokens.shape[0])
        at = jnp.full(tokens.shape[0], tokens.shape[1] - 1) if tapped == "last" else at
        x = self.param("embedding", nn.initializers.normal(0.02), (spec.vocab_size, spec.width))[tokens]
        steer = checked_steer(spec.num_layers, steer, x)
        x = x if steer is None else x + steer[0]
        # Recomputing a block in the backward pass costs a third more products and still makes the gradient
        # 1.7 times as fast on a CPU: what a scan saves for it goes through memory, layer by layer.
        layers = nn.scan(
            nn.remat(_Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=spec.num_layers,
        )
        first = None if tapped is None else tap(x, at)
        x, later = layers(spec, tapped is not None, name="layers")(x, None if steer is None else steer[1:], at)
        resid = None if first is None else jnp.concatenate([first[None], later])
        return nn.Dense(spec.vocab_size, use_bias=False, name="head")(nn.RMSNorm(name="final_norm")(x)), resid


@cache
def synthetic(spec: SyntheticSpec) -> Model:
    """The synthetic transformer of a given shape; the same spec gives the same object, so nothing compiles twice.

    `apply(params, tokens, **options)` takes int32[B, S] tokens with S at most `spec.max_length`, and

      steer: [L + 1, D], or [L + 1, B, S, D] with B or S of 1 where it is to be the same: entry l is added to
        the stream where `resid[l]` is read.
      taps: None, "all", "last" or int32[B], a position of each row: what of the stream comes back as `resid`:
        [L + 1, B, S, D] for all, else [L + 1, B, D].

    as those of `causal_lm`, and gives float32 logits; those at position s depend on the tokens up to s alone. All
    leaves of the blocks live under `layers` with a leading layer axis.

    Raises:
      InvalidInput: from `apply`, at trace time: the sequence is longer than `spec.max_length`, or a steer or taps of
        another form.
    """
    module = _Transformer(spec)

    # Compiled, so that the forward pass, which alone tells flax the shapes, is dropped.
    @jax.jit
    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((1, spec.max_length), jnp.int32))["params"]

    def apply(params: Params, tokens: Int[Array, "B S"], *, steer: Any = None, taps: Any = None) -> Output:
        if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
            raise InvalidInput("tokens must be integers", got=jnp.result_type(tokens))
        if tokens.shape[1] > spec.max_length:
            raise InvalidInput(
                f"this model reads at most {spec.max_length} tokens",
                got=tokens.shape[1],
                hint="a SyntheticSpec with a larger max_length",
            )
        found: Any = module.apply({"params": params}, tokens, steer, taps)
        return Output(*found)

    return Model(spec, init, apply, lambda leaf_name: leaf_name.startswith("layers/"))
