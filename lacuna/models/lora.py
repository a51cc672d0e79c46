"""Low-rank adapters: a tree of their own beside the frozen weights, at any of the linear maps of a stacked model.

An adapter of a site adds `scale (x A) B` to `x W`. B starts at zero, so a fresh adapter changes nothing, the gradient
of A is zero there, and a gradient, a Hessian or a basis taken at that point sees B alone: take the geometry after a
warm step, or say that it is that of the start. GPT-2's fused queries, keys and values are one site, as they are for
PEFT.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from lacuna import keys, trees
from lacuna.errors import InvalidInput
from lacuna.models.model import Model
from lacuna.types import Key, Params, Shapes

DEFAULT_SITES = "attention/(qkv|query|value)"
"""Those of PEFT for these families."""


@partial(jax.tree_util.register_dataclass, data_fields=["params", "scale"], meta_fields=[])
@dataclass(frozen=True)
class Lora:
    """An adapter as a forward pass takes it.

    Attributes:
      params: `{"layers": {<site>: {"A": [L, in, r], "B": [L, r, out]}}}`, a site being the path of a linear map
        within a block, such as `attention/qkv`; sites that are not there are not adapted. Within a block it is what
        one layer has of that, from the site on.
      scale: alpha / r: a number, or by the name of the site a number or one for each layer.
    """

    params: Params
    scale: Any

    def check_sites(self, layers: Any) -> None:
        """Raise unless every site is a linear map of these layers, with factors that fit it.

        Args:
          layers: the parameters under `layers/`, or their shapes.

        Raises:
          InvalidInput: names the first that does not: an adapter that touches nothing would pass for one that does.
        """
        if not isinstance(self.params, dict) or self.params.keys() != {"layers"}:
            got = ", ".join(map(str, self.params)) if isinstance(self.params, dict) else type(self.params).__name__
            raise InvalidInput('an adapter is {"layers": {<site>: {"A", "B"}}}', got=got or "an empty one")
        kernels = _kernels(layers)
        factors = dict(trees.named_leaves(self.params["layers"]))
        for name, leaf in factors.items():
            site, _, factor = name.rpartition("/")
            if site not in kernels or factor not in ("A", "B"):
                raise InvalidInput(f"an adapter has A and B at {', '.join(sorted(kernels))}", got=f"`{name}`")
            num_layers, width_in, width_out = kernels[site]
            rank = factors[f"{site}/A"].shape[-1] if f"{site}/A" in factors else 0
            wanted = (num_layers, width_in, rank) if factor == "A" else (num_layers, rank, width_out)
            if f"{site}/{'B' if factor == 'A' else 'A'}" not in factors or leaf.shape != wanted:
                raise InvalidInput(
                    f"an adapter at `{site}` needs A {[num_layers, width_in, 'r']} and B "
                    f"{[num_layers, 'r', width_out]}",
                    got=f"`{name}` of shape {list(leaf.shape)}",
                )
        sites = sorted({name.rpartition("/")[0] for name in factors})
        if isinstance(self.scale, dict) and sorted(self.scale) != sites:
            raise InvalidInput(
                f"an adapter needs a scale for each of {', '.join(sites)}", got=", ".join(sorted(self.scale)) or "none"
            )

    def by_layer(self, num_layers: int) -> "Lora":
        """As a scan over the layers takes it: every leaf, the scales too, has the layers in front."""
        layers = self.params["layers"]
        sites = {name.rpartition("/")[0] for name in trees.leaf_names(layers)}
        scale = {site: self.scale[site] if isinstance(self.scale, dict) else self.scale for site in sites}
        return Lora(layers, {site: jnp.broadcast_to(jnp.asarray(one), num_layers) for site, one in scale.items()})

    def side_path(self, site: tuple[str, ...], x: Float[Array, "B S in"]) -> Float[Array, "B S out"] | None:
        """`scale (x A) B` of one layer of `by_layer`; None where the site is not adapted."""
        found = self.params
        for name in site:
            if name not in found:
                return None
            found = found[name]
        return (x @ found["A"]) @ found["B"] * self.scale["/".join(site)]


def _kernels(layers: Any) -> dict[str, tuple[int, int, int]]:
    """[L, in, out] of every linear map of the layers, which may be shapes alone, by site."""
    every = trees.named_leaves(layers)
    return {name.removesuffix("/kernel"): leaf.shape for name, leaf in every if name.endswith("/kernel")}


@dataclass(frozen=True)
class LoraSite:
    """One linear map that is adapted, in some layers or in all.

    Attributes:
      name: path within a block, e.g. `attention/qkv`.
      width_in: rows of its kernel.
      width_out: columns.
      ranks: r of each layer; 0 where the layer is not adapted.
      alphas: of each layer.
    """

    name: str
    width_in: int
    width_out: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]


@dataclass(frozen=True)
class LoraSpec:
    """What is adapted, and how strongly. `lora_spec` makes one.

    Where the layers of a site differ in rank, its factors have room for the largest in all of them. What is beyond a
    layer's rank has no effect and no gradient, but is there: it counts in P, so random levels and steps of random
    search are taken in more dimensions than do anything.

    Attributes:
      sites: in the order of their names.
      rslora: the scale is alpha / sqrt(r) and not alpha / r (arXiv 2312.03732).
    """

    sites: tuple[LoraSite, ...]
    rslora: bool = False

    def init(self, key: Key) -> Params:
        """A fresh adapter, float32: A uniform within ±1/sqrt(in), as in PEFT, and B zero.

        Each factor of each layer has a key of its own, by name. The gradient of A is zero at this point.
        """
        layers: dict[str, Any] = {}
        for site in self.sites:
            num_layers, rank, width = len(site.ranks), max(site.ranks), site.width_in
            of_leaf = keys.leaf(key, f"layers/{site.name}/A")
            draw = partial(jax.random.uniform, shape=(width, rank), minval=-(width**-0.5), maxval=width**-0.5)
            drawn = jnp.stack([draw(jax.random.fold_in(of_leaf, layer)) for layer in range(num_layers)])
            zero = jnp.zeros((num_layers, rank, site.width_out))
            *path, last = site.name.split("/")
            parent = layers
            for name in path:
                parent = parent.setdefault(name, {})
            parent[last] = {"A": drawn, "B": zero}
        return trees.map_named(self._limited, {"layers": layers})

    def bind(self, params: Params) -> Lora:
        """The adapter of these factors, to be given to `apply` as `lora=`.

        Where layers differ in rank their factors share one array; what lies beyond a layer's rank counts for nothing,
        whatever is there.

        Raises:
          TreeMismatch: factors of other sites, or of another rank: their scale would be that of this one.
        """
        trees.check_match("LoraSpec.bind", _like(self), params)
        params = trees.map_named(self._limited, params)
        return Lora(params, {site.name: jnp.asarray(self._scales(site), jnp.float32) for site in self.sites})

    def _limited(self, leaf_name: str, leaf: Array) -> Array:
        """A factor with zeros beyond each layer's rank."""
        site, _, factor = leaf_name.removeprefix("layers/").rpartition("/")
        (ranks,) = (one.ranks for one in self.sites if one.name == site)
        if len(set(ranks)) == 1:
            return leaf
        inside = jnp.arange(max(ranks)) < jnp.asarray(ranks)[:, None]
        return jnp.where(inside[:, None, :] if factor == "A" else inside[:, :, None], leaf, 0.0)

    def _scales(self, site: LoraSite) -> list[float]:
        divisors = (math.sqrt(rank) if self.rslora else rank for rank in site.ranks)
        return [alpha / by if by else 0.0 for alpha, by in zip(site.alphas, divisors, strict=True)]


@cache
def _like(spec: LoraSpec) -> Shapes:
    """Shapes of the factors."""
    return jax.eval_shape(spec.init, keys.root(0))


def lora_spec(
    model: Model, *, rank: int = 8, alpha: float = 16.0, sites: str = DEFAULT_SITES, rslora: bool = False
) -> LoraSpec:
    """Adapters of one rank at the linear maps that a pattern names, in every layer.

    Args:
      model: of `causal_lm`.
      rank: r.
      alpha: the scale is alpha / r.
      sites: a regular expression that a site's whole name matches: `attention/.*`, `mlp/(up|down)`, `.*`.
      rslora: the scale is alpha / sqrt(r) instead.

    Raises:
      InvalidInput: a rank below 1, an alpha that is not a positive number, a pattern that is none, or one that no
        site matches; names the sites there are.
    """
    if rank < 1 or rank != int(rank):
        raise InvalidInput("an adapter's rank must be a whole number of at least 1", got=rank)
    if not 0 < alpha < math.inf:
        raise InvalidInput("an adapter's alpha must be positive", got=alpha)
    kernels = linear_sites(model)
    try:
        chosen = [name for name in kernels if re.fullmatch(sites, name)]
    except re.error as fault:
        raise InvalidInput("sites must be a regular expression", got=f"`{sites}`: {fault}") from fault
    if not chosen:
        raise InvalidInput(f"sites must match one of {', '.join(kernels)}", got=f"`{sites}`", hint=DEFAULT_SITES)
    num_layers = model.spec.num_layers
    every = tuple(LoraSite(name, *kernels[name], (rank,) * num_layers, (float(alpha),) * num_layers) for name in chosen)
    return LoraSpec(every, rslora)


def linear_sites(model: Model) -> dict[str, tuple[int, int]]:
    """Input and output width of every linear map of a block, by its name, in alphabetical order."""
    like = jax.eval_shape(model.init, keys.root(0))
    return {name: shape[1:] for name, shape in sorted(_kernels(like["layers"]).items())}


def over_adapter(function: Callable[..., Any], model: Model, params: Params, spec: LoraSpec) -> Partial:
    """A function of a model, as a function of the adapter's factors with the weights frozen.

    Gradients, bases, Krylov spaces and searches then run over the factors alone. The result is a pytree: the weights
    are data to a compiled program, and those of another seed need no second compilation.

    Args:
      function: `function(model, params, tokens, **options)`, such as `next_token_nats`; a module-level function.
      model: of `causal_lm`.
      params: its weights.
      spec: of the adapter.

    Returns:
      `f(factors, tokens, ..., **options)`.
    """
    return Partial(_OverAdapter(function, model, spec), params)


@dataclass(frozen=True)
class _OverAdapter:
    """Equal to another by value, so that programs made of it are not compiled twice."""

    function: Callable[..., Any]
    model: Model
    spec: LoraSpec

    def __call__(self, params: Params, factors: Params, *tokens: Any, **options: Any) -> Any:
        return self.function(self.model, params, *tokens, lora=self.spec.bind(factors), **options)


def merged(params: Params, lora: Lora) -> Params:
    """The weights with an adapter added in: `W + scale A B` at its sites, rounded once to the dtype of W.

    Raises:
      InvalidInput: the adapter does not fit these weights.
    """
    lora.check_sites(params["layers"])
    whole = lora.by_layer(jax.tree.leaves(params["layers"])[0].shape[0])
    factors = dict(trees.named_leaves(whole.params))

    def added(name: str, leaf: Array) -> Array:
        site = name.removeprefix("layers/").removesuffix("/kernel")
        if not name.startswith("layers/") or not name.endswith("/kernel") or f"{site}/A" not in factors:
            return leaf
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        low, high = (factors[f"{site}/{factor}"].astype(wide) for factor in ("A", "B"))
        delta = jnp.einsum("lir,lro->lio", low, high, precision=jax.lax.Precision.HIGHEST)
        return (leaf.astype(wide) + whole.scale[site][:, None, None] * delta).astype(leaf.dtype)

    return trees.map_named(added, params)
