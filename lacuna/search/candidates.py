"""A candidate made again from its integers, and scored again: on the sweep's own data or on other."""

import operator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.search import draws, evaluate
from lacuna.search.objectives import with_data
from lacuna.search.select import Candidate
from lacuna.search.sweep import Sweep
from lacuna.types import Batch, Loss, Objective, Params


def candidate(params: Params, sweep: Sweep, index: int, sigma: float, sign: int = 1) -> Params:
    """The weights of one candidate, made again from its integers.

    Args:
      params: the base point of the sweep.
      sweep: the sweep; only its family, seed and unit matter, so `sigma` may be one that was not searched.
      index: of the draw, in [0, 2^32).
      sigma: size of the step, in the unit of the sweep.
      sign: +1 or -1.

    Raises:
      InvalidInput: an index, sigma or sign outside its domain.
    """
    index = operator.index(index)
    for name, value, holds, domain in (
        ("index", index, 0 <= index < keys.SEED_LIMIT, "in [0, 2^32)"),
        ("sigma", sigma, 0 < sigma <= np.finfo(np.float32).max, "positive and in the range of float32"),
        ("sign", sign, sign in (1, -1), "+1 or -1"),
    ):
        if not holds:
            raise InvalidInput(f"the {name} of a candidate must be {domain}", got=value)
    scale = np.float32(sigma * sign * sweep.scale(params))
    exact = sweep.unit == "exact_radius"
    return draws.perturb(exact, sweep.family, params, keys.root(sweep.seed), jnp.uint32(index), scale)


def rescore(
    loss: Loss | Objective, params: Params, batch: Batch, sweep: Sweep, candidates: tuple[Candidate, ...]
) -> Float[np.ndarray, "K"]:
    """Losses of chosen candidates by the canonical width-1 program, on this batch or on another.

    On the sweep's own batch the scores of a width-1 sweep come back bit for bit; on held-out data they tell
    how much of a gain was selection.

    Args:
      loss: as for `run_sweep`, like the next two.
      params: the base point.
      batch: what they are scored on.
      sweep: that they are candidates of.
      candidates: K of them.

    Returns:
      Losses in their order, float32.
    """
    if not candidates:
        return np.zeros(0, np.float32)
    unit = sweep.scale(params)
    ids = np.asarray([c.index for c in candidates], np.uint32)
    scales = np.asarray([c.sigma * c.sign * unit for c in candidates], np.float32)
    objective, batch = with_data(loss, batch)
    program = evaluate.program_of(objective, sweep.family, exact_radius=sweep.unit == "exact_radius")
    key = keys.root(sweep.seed)
    return np.asarray(evaluate.score_candidates(program, sweep.family, params, batch, key, ids, scales, np.int32(1)))
