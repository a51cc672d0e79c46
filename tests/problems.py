"""Losses whose landscape is known exactly. Functions at module level: equal objects share one compilation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_LAYERS, WIDTH, VOCAB = 3, 32, 21


class Problem(NamedTuple):
    """What a sweep needs: `loss(params, batch)`, the base point, and what it is scored on."""

    loss: Any
    params: Any
    batch: Any


def tree_of(size: int) -> dict[str, Any]:
    """Shapes of four leaves with `size` >= 4 elements in all; two are of equal shape, one is a scalar."""
    half = max(1, (size - 1) // 3)
    rest = size - 1 - 2 * half
    return {"bias": (), "blocks": [(half,), (half,)], "head": {"kernel": (rest,)}}


def _fill(shapes: Any, make: Any) -> Any:
    return jax.tree.map(make, shapes, is_leaf=lambda s: isinstance(s, tuple))


def linear_loss(params: Any, batch: Any) -> jax.Array:
    """`<batch, params>`: the batch is the gradient."""
    products = jax.tree.map(lambda p, g: jnp.sum(p * g), params, batch)
    return sum(jax.tree.leaves(products), start=jnp.float32(0))


def linear(size: int, *, gradient_norm: float = 1.0, seed: int = 0) -> Problem:
    """A linear loss in `size` >= 4 dimensions, zero at the base point, with a gradient of the given norm."""
    rng = np.random.default_rng(seed)
    raw = _fill(tree_of(size), lambda shape: rng.normal(size=shape))
    scale = gradient_norm / np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(raw)))
    gradient = jax.tree.map(lambda g: jnp.asarray(g * scale, jnp.float32), raw)
    return Problem(linear_loss, jax.tree.map(jnp.zeros_like, gradient), gradient)


def quadratic_loss(params: Any, batch: Any) -> jax.Array:
    """`<gradient, x> + <x, curvature * x> / 2`, for a batch `(gradient, curvature)`: a diagonal Hessian."""
    gradient, curvature = batch
    bent = jax.tree.map(lambda p, h: jnp.sum(h * p * p), params, curvature)
    return linear_loss(params, gradient) + sum(jax.tree.leaves(bent), start=jnp.float32(0)) / 2


def small(num_params: int = 5) -> Problem:
    """A linear loss over a single leaf: the quickest to compile."""
    return Problem(linear_loss, {"w": jnp.zeros(num_params)}, {"w": jnp.linspace(-1.0, 2.0, num_params)})


def cracked_loss(params: Any, batch: Any) -> jax.Array:
    """The linear loss of `small`, NaN where the first weight is large: far away some draws fall off."""
    return jnp.where(jnp.abs(params["w"][0]) < 0.5, linear_loss(params, batch), jnp.nan)


class Curved(NamedTuple):
    """A quadratic problem and what is known of it in float64."""

    problem: Problem
    gradient_norm: float
    trace: float
    gradient_curvature: float


def quadratic(size: int, *, gradient_norm: float = 1.0, trace: float, seed: int = 0) -> Curved:
    """A quadratic at its base point 0 in `size` dimensions: a positive diagonal Hessian of known trace."""
    flat = linear(size, gradient_norm=gradient_norm, seed=seed)
    rng = np.random.default_rng(seed + 1)
    raw = _fill(tree_of(size), lambda shape: rng.uniform(0.5, 1.5, size=shape))
    scale = trace / sum(np.sum(h) for h in jax.tree.leaves(raw))
    curvature = jax.tree.map(lambda h: jnp.asarray(h * scale, jnp.float32), raw)
    g = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(flat.batch)]).astype(np.float64)
    h = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(curvature)]).astype(np.float64)
    return Curved(
        Problem(quadratic_loss, flat.params, (flat.batch, curvature)),
        gradient_norm=float(np.sqrt(g @ g)),
        trace=float(np.sum(h)),
        gradient_curvature=float((h * g) @ g / (g @ g)),
    )


def _rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain


def transformer_loss(params: Any, tokens: jax.Array) -> jax.Array:
    """Next-token cross entropy in nats of a small decoder whose layers are scanned."""
    batch, length = tokens.shape
    causal = jnp.tril(jnp.ones((length, length), bool))

    def block(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        qkv, out, gain = jnp.split(layer["attention"], [3 * WIDTH, 4 * WIDTH], -1)
        up, down, mlp_gain = jnp.split(layer["mlp"], [4 * WIDTH, 8 * WIDTH], -1)
        q, k, v = jnp.split((_rms_norm(x, gain[:, 0]) @ qkv).reshape(batch, length, 4, -1), 3, -1)
        scores = jnp.where(causal, jnp.einsum("bshd,bthd->bhst", q, k) / 3, -jnp.inf)
        mixed = jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(scores), v)
        x = x + mixed.reshape(x.shape) @ out
        return x + jax.nn.gelu(_rms_norm(x, mlp_gain[:, 0]) @ up) @ down.T, None

    x, _ = jax.lax.scan(block, params["embedding"][tokens], params["layers"])
    logits = x @ params["embedding"].T
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.mean(jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1))


def transformer(seed: int = 0) -> Problem:
    """About 38,000 parameters, most of them in stacked leaves; `stacked` below says which."""
    rng = np.random.default_rng(seed)

    def kernel(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) * shape[-2] ** -0.5, jnp.float32)

    def block(width: int) -> jax.Array:
        # The gains are not one: a product with one would hide how XLA fuses. They are the kernel's last column,
        # because every leaf more takes a third of a second to compile.
        gain = jnp.asarray(1 + 0.3 * rng.normal(size=(NUM_LAYERS, WIDTH, 1)), jnp.float32)
        return jnp.concatenate([kernel(NUM_LAYERS, WIDTH, width), gain], axis=-1)

    tokens = jnp.asarray(rng.integers(0, VOCAB, size=(4, 9)), jnp.int32)
    layers = {"attention": block(4 * WIDTH), "mlp": block(8 * WIDTH)}
    return Problem(transformer_loss, {"embedding": kernel(VOCAB, WIDTH), "layers": layers}, tokens)


def _bfloat16_loss(params: Any, inputs: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(jnp.tanh(inputs @ params["kernel"])).astype(jnp.float32))


def bfloat16(seed: int = 0) -> Problem:
    """One bfloat16 kernel between two squashing functions."""
    rng = np.random.default_rng(seed)
    kernel, inputs = (jnp.asarray(rng.normal(size=(WIDTH, WIDTH)) * 0.2, jnp.bfloat16) for _ in range(2))
    return Problem(_bfloat16_loss, {"kernel": kernel}, inputs)


def stacked(leaf_name: str) -> bool:
    """Which leaves of `transformer` carry a layer axis."""
    return leaf_name.startswith("layers/")


ODD_TREE = {"a": (30, 7), "b": [(), (41,)], "nothing": (0, 3), "stacked": (3, 5, 2)}
"""Shapes of leaves of every kind: a matrix, a scalar, a vector, an empty one, and layers."""


def odd_rows(k: int, *, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """k random vectors on `ODD_TREE`; P = 282."""
    rng = np.random.default_rng(seed)
    return _fill(ODD_TREE, lambda shape: jnp.asarray(rng.normal(size=(k, *shape)), dtype))


def odd_vector(*, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """A random vector on `ODD_TREE`."""
    return jax.tree.map(lambda x: x[0], odd_rows(1, seed=seed, dtype=dtype))
