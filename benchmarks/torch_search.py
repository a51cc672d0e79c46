"""The peer of a sweep: the synthetic transformer in plain torch, searched in place from seeds.

The forward pass is written as a torch user writes it, with the fused kernels that torch has. A candidate is
made by adding noise to the weights themselves and taken away again, so no second set of weights is needed.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch.nn import functional

from lacuna.models.synthetic import ROTARY_BASE, SyntheticSpec

EPSILON = 1e-6  # of flax's RMSNorm


class Layer(NamedTuple):
    """Weights of one block; matrices as [out, in]."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    mlp_norm: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


class Transformer:
    """The same function as `lacuna.models.synthetic` of the same parameters, up to rounding.

    Args:
      spec: its shape.
      params: of the JAX model; copied.
      tokens: whole rows, the batch that is scored.
      answer: which tokens count.
      dtype: of weights and activations.
    """

    def __init__(self, spec: SyntheticSpec, params: Any, tokens: Any, answer: Any, dtype: torch.dtype = torch.float32):
        params = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)).to(dtype), params)
        self.embedding = params["embedding"]
        self.layers = [_layer(params["layers"], i) for i in range(spec.num_layers)]
        self.final_norm = params["final_norm"]["scale"]
        self.head = params["head"]["kernel"].T.contiguous()
        rows, counts = (torch.from_numpy(np.array(part)) for part in (tokens, answer))
        self._given, self._counts = rows[:, :-1].long(), counts[:, 1:]
        self._wanted = rows[:, 1:].long()[self._counts]
        self._num_heads = spec.num_heads
        half = spec.width // spec.num_heads // 2
        angle_rad = torch.arange(self._given.shape[1])[:, None] * ROTARY_BASE ** (-torch.arange(half) / half)
        self._cos, self._sin = angle_rad.cos().to(dtype), angle_rad.sin().to(dtype)

    def weights(self) -> list[torch.Tensor]:
        """Every parameter, in a fixed order."""
        return [self.embedding, *(weight for layer in self.layers for weight in layer), self.final_norm, self.head]

    def loss(self) -> torch.Tensor:
        """Nats an answer token."""
        x = functional.embedding(self._given, self.embedding)
        width = x.shape[-1:]
        for layer in self.layers:
            x = x + self._attention(functional.rms_norm(x, width, layer.attention_norm, EPSILON), layer)
            hidden = functional.linear(functional.rms_norm(x, width, layer.mlp_norm, EPSILON), layer.up)
            x = x + functional.linear(functional.gelu(hidden, approximate="tanh"), layer.down)
        logits = functional.linear(functional.rms_norm(x, width, self.final_norm, EPSILON), self.head)
        return functional.cross_entropy(logits[self._counts], self._wanted)

    def _attention(self, x: torch.Tensor, layer: Layer) -> torch.Tensor:
        qkv = functional.linear(x, layer.qkv).view(*x.shape[:2], 3, self._num_heads, -1)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        mixed = functional.scaled_dot_product_attention(self._rotated(query), self._rotated(key), value, is_causal=True)
        return functional.linear(mixed.transpose(1, 2).reshape(x.shape), layer.out)

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        turned = first * self._cos - second * self._sin, second * self._cos + first * self._sin
        return torch.cat(turned, dim=-1)


def _layer(stacked: Any, i: int) -> Layer:
    attention, mlp = stacked["attention"], stacked["mlp"]
    matrices = attention["qkv"], attention["out"], mlp["up"], mlp["down"]
    qkv, out, up, down = (matrix["kernel"][i].T.contiguous() for matrix in matrices)
    norms = (stacked[name]["scale"][i].clone() for name in ("attention_norm", "mlp_norm"))
    return Layer(next(norms), qkv, out, next(norms), up, down)


@torch.inference_mode()
def search(model: Transformer, num_draws: int, sigma: float, *, both_signs: bool, keep_noise: bool) -> list[float]:
    """The loss of every candidate, one after the other.

    Args:
      model: its weights are changed and, up to rounding, restored.
      num_draws: seeds 0, 1, ...
      sigma: scale per coordinate.
      both_signs: two candidates of each draw.
      keep_noise: draw the noise once and keep it, which takes the memory of a second set of weights; else
        it is drawn again from its seed each time it is added or taken away, as published searches do.
    """
    weights, found = model.weights(), []
    signs = (1.0, -1.0) if both_signs else (1.0,)
    for seed in range(num_draws):
        kept = list(_noise(weights, seed)) if keep_noise else None
        for sign in signs:
            _add(weights, _noise(weights, seed) if kept is None else kept, sign * sigma)
            found.append(model.loss().item())
            _add(weights, _noise(weights, seed) if kept is None else kept, -sign * sigma)
    return found


def _noise(weights: list[torch.Tensor], seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(weight.shape, generator=generator) for weight in weights)


def _add(weights: list[torch.Tensor], noise: Any, scale: float) -> None:
    for weight, delta in zip(weights, noise, strict=True):
        weight.add_(delta, alpha=scale)


@torch.inference_mode()
def reseeded_search(model: Transformer, num_draws: int, sigma: float, *, score: bool = True) -> list[float]:
    """As published searches in place go about it: the generator is seeded anew for every tensor.

    Noise is drawn in the dtype of the weights and added to them; for the restore it is drawn again and subtracted,
    which in 16 bits does not give back what was there. Tensors of one shape get one and the same noise.

    Args:
      model: its weights are changed for good.
      num_draws: seeds 0, 1, ...
      sigma: scale per coordinate.
      score: or change and restore alone.
    """
    weights, found = model.weights(), []
    for seed in range(num_draws):
        for weight, noise in zip(weights, reseeded_noise(weights, seed), strict=True):
            weight.add_(noise, alpha=sigma)
        found += [model.loss().item()] if score else []
        for weight, noise in zip(weights, reseeded_noise(weights, seed), strict=True):
            weight.sub_(noise, alpha=sigma)
    return found


def reseeded_noise(weights: list[torch.Tensor], seed: int) -> Iterator[torch.Tensor]:
    """Of each tensor, from a generator that starts from the seed again."""
    return (
        torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=weight.dtype)
        for weight in weights
    )
