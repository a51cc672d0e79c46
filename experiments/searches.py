"""What the experiments on random search share: states, scored rows, and what is known of a loss beforehand."""

import zlib
from typing import NamedTuple

from experiments.recoveries import Start
from lacuna import search, theory
from lacuna.setups import State
from lacuna.tasks import digits
from lacuna.types import Batch, Loss, Params

STATES: tuple[State, ...] = ("undertrained", "forgotten", "trained")

PROGRAMS: search.Programs = {}
"""Compiled steps, for all searches of this process: their losses are functions of their arguments alone."""

SEARCH_STEP = 3_000_000
"""Where in a task's stream the scored batch lies: rows that nobody trained on."""


def scored_rows(start: Start, task: str, num_rows: int) -> Batch:
    """The batch of a task that every candidate is scored on."""
    return digits.digit_task(task, start.model.apply, seed=start.seed, batch_size=num_rows).train(SEARCH_STEP)


def noise_seed(*names: str | int) -> int:
    """A seed of its own for every search, so that searches are independent draws of one law."""
    return zlib.crc32("/".join(str(name) for name in names).encode())


class Known(NamedTuple):
    """What is known of a loss before it is searched with Gaussian steps on all coordinates.

    Attributes:
      gradient_norm: `|a|`, a the gradient on the scored batch.
      curvature_trace: `tr H`.
      curvature_trace_error: its standard error.
      curvature_along: `u^T H u`, u along the gradient.
      curvature_spread: standard deviation of `z^T H z`.
      end: the sigma at which the linear regime is foretold to end.
      num_params: P.
    """

    gradient_norm: float
    curvature_trace: float
    curvature_trace_error: float
    curvature_along: float
    curvature_spread: float
    end: float
    num_params: int


def known_landscape(loss: Loss, params: Params, batch: Batch, *, num_probes: int, seed: int) -> Known:
    """Slope and curvature at the base point, and what they foretell."""
    anywhere = search.Sweep(search.gaussian(), (1.0,), 1)
    found = search.landscape(loss, params, batch, anywhere, num_probes=num_probes, seed=seed)._asdict()
    foretold = (found[name] for name in ("gradient_norm", "curvature_trace", "curvature_spread"))
    found["end"] = float(theory.predicted_sigma_star(*foretold))
    return Known(*(found[name] for name in Known._fields))
