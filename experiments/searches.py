"""What the experiments on random search share: states, scored rows, and what is known of a loss beforehand."""

import zlib

from experiments.recoveries import Start
from lacuna import search
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


def known_landscape(loss: Loss, params: Params, batch: Batch, *, num_probes: int, seed: int) -> search.Landscape:
    """What is known of a loss before it is searched with Gaussian steps on all coordinates."""
    anywhere = search.Sweep(search.gaussian(), (1.0,), 1)
    return search.landscape(loss, params, batch, anywhere, num_probes=num_probes, seed=seed)
