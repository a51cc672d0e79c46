"""Families of random steps around a language model's weights, made comparable by their root mean square length."""

import math
import re
from typing import Any

import jax
import numpy as np

from experiments.search_places import Place
from lacuna import derivatives, models, search, trees
from lacuna.captures.bases import BasisSpec, task_basis
from lacuna.models.lora import LoraSpec
from lacuna.types import Delta, Params

FAMILIES = (
    "random signs",
    "rank 1",
    "rank 4",
    "scaled by weights",
    "scaled by operator norm",
    "scaled by gradient",
    "in gradients",
    "in first updates",
    "in random directions",
    "adapter",
)
"""Beside Gaussian steps of one σ."""

NUM_SLOPES = 4
"""Batches of other rows behind a gradient."""


def slope_of(place: Place) -> Delta:
    """The gradient on rows that are neither scored nor held out."""
    rows = [derivatives.gradient(place.loss, place.params, place.rows.others(step)) for step in range(NUM_SLOPES)]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *rows)


def family_of(name: str, place: Place, slope: Delta, *, rank: int) -> search.Family:
    """A family by its name.

    Args:
      name: one of `FAMILIES` but the adapter.
      place: where it is to be searched.
      slope: the gradient on other rows, for the scales that are made of it.
      rank: of a basis.
    """
    stacked = place.model.stacked
    gaussian = search.gaussian(stacked=stacked)
    scales = {
        "scaled by weights": lambda: search.relative_scales(place.params, stacked=stacked),
        "scaled by operator norm": lambda: operator_scales(place.params, place.model),
        "scaled by gradient": lambda: search.relative_scales(slope, stacked=stacked),
    }
    kinds = {"in gradients": "gradient", "in first updates": "prefix", "in random directions": "random"}
    if name in kinds:
        spec = BasisSpec(kinds[name], rank=rank, learning_rate=1e-3)
        return search.in_basis(task_basis(spec, place.loss, place.params, place.rows.others), stacked=stacked)
    if name in scales:
        return search.scaled(gaussian, scales[name]())
    if name == "random signs":
        return search.rademacher(stacked=stacked)
    return search.low_rank(int(name.removeprefix("rank ")), stacked=stacked)


def operator_scales(params: Params, model: models.Model) -> dict[str, Any]:
    """Scales that give the noise of every matrix, and of every layer of it, about one operator norm.

    A normal matrix of m by n has about √m + √n; a vector counts as one column, and what has more axes than two as
    the matrix of its first.

    Source: the estimate is Gordon's; the idea of a norm for each module is that of modular norms (arXiv 2405.14813).
    """

    def of_leaf(name: str, leaf: Any) -> float:
        shape = leaf.shape[int(model.stacked(name)) :]
        first = shape[0] if shape else 1
        return 1 / (math.sqrt(first) + math.sqrt(math.prod(shape[1:])))

    return {re.escape(name): of_leaf(name, leaf) for name, leaf in trees.named_leaves(params)}


def factor_sigma(spec: LoraSpec, factors: Params, length: float) -> float:
    """The sigma of normal steps of a fresh adapter's factors whose product moves the weights by a length, in rms.

    With B = 0 the weights move by `c (A + σ X) σ Y`, whose mean square is `c² σ² n_out (|A|² + σ² n_in r)`.
    """
    lora = spec.bind(factors)
    linear = squared = 0.0
    for site in spec.sites:
        a = np.asarray(dict(trees.named_leaves(lora.params["layers"]))[f"{site.name}/A"], np.float64)
        scales = np.asarray(lora.scale[site.name], np.float64) ** 2
        linear += site.width_out * float(scales @ np.sum(a**2, axis=(1, 2)))
        squared += site.width_out * float(np.sum(scales)) * a.shape[1] * a.shape[2]
    square = (math.sqrt(linear**2 + 4 * squared * length**2) - linear) / (2 * squared)
    return math.sqrt(square)
