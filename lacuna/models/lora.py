"""Low-rank adapters at the linear sites of a stacked model."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.types import Params


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["scale"])
@dataclass(frozen=True)
class Lora:
    """An adapter as a forward pass takes it.

    Attributes:
      params: `{"layers": {<site>: {"A": [L, in, r], "B": [L, r, out]}}}`, a site being the path of a linear map
        within a block, such as `attention/qkv`; sites that are not there are not adapted. Within a block it is what
        one layer has of that, from the site on.
      scale: alpha / r: a number, or a traced one.
    """

    params: Params
    scale: Any

    def check_sites(self, layers: Params) -> None:
        """Raise unless every site is a linear map of these layers, with factors that fit it.

        Raises:
          InvalidInput: names the first that does not: an adapter that touches nothing would pass for one that does.
        """
        if not isinstance(self.params, dict) or self.params.keys() != {"layers"}:
            got = ", ".join(map(str, self.params)) if isinstance(self.params, dict) else type(self.params).__name__
            raise InvalidInput('an adapter is {"layers": {<site>: {"A", "B"}}}', got=got or "an empty one")
        kernels = {
            name.removesuffix("/kernel"): leaf.shape
            for name, leaf in zip(trees.leaf_names(layers), jax.tree.leaves(layers), strict=True)
            if name.endswith("/kernel")
        }
        factors = dict(
            zip(trees.leaf_names(self.params["layers"]), jax.tree.leaves(self.params["layers"]), strict=True)
        )
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

    def side_path(self, site: tuple[str, ...], x: Float[Array, "B S in"]) -> Float[Array, "B S out"] | None:
        """`scale (x A) B` of one layer; None where the site is not adapted."""
        found = self.params
        for name in site:
            if name not in found:
                return None
            found = found[name]
        return (x @ found["A"]) @ found["B"] * self.scale
