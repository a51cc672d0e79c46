"""Low-rank adapters at the linear sites of a stacked model."""

from dataclasses import dataclass
from functools import partial

import jax
from jaxtyping import Array, Float

from lacuna.types import Params


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["scale"])
@dataclass(frozen=True)
class Lora:
    """An adapter as a forward pass takes it.

    Attributes:
      params: `{"layers": {<site>: {"A": [L, in, r], "B": [L, r, out]}}}`, a site being the path of a linear
        map within a block, such as `attention/qkv`; sites that are not there are not adapted.
      scale: alpha / r.
    """

    params: Params
    scale: float

    def side_path(self, site: tuple[str, ...], x: Float[Array, "B S in"]) -> Float[Array, "B S out"] | None:
        """`scale (x A) B` of one layer; None where the site is not adapted."""
        found = self.params
        for name in site:
            if name not in found:
                return None
            found = found[name]
        return (x @ found["A"]) @ found["B"] * self.scale
