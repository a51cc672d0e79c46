"""What the first updates of a recovery span of it, and where they point: measured for any starting point."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recoveries import FORGETTING, Start, displacement, held_out_loss, run_recovery, value_at
from lacuna import geometry, trees
from lacuna.reports.claims import spread
from lacuna.reports.records import Place, Record
from lacuna.training import Optimiser, Trajectory
from lacuna.types import Delta, Rows

Measure = tuple[str, float, dict[str, Place]]
"""Quantity, value, and where beside seed and optimiser."""

CHOOSING = 64
"""Which of the batches of gradients a horizon is chosen by: one that no basis is made of."""


class Recovered(NamedTuple):
    """A recovery, and another from the same point with other data.

    Attributes:
      path: with all of its updates.
      delta: its displacement.
      held_out: that of the other.
      prefix: the first updates, as many as are looked at.
    """

    path: Trajectory
    delta: Delta
    held_out: Delta
    prefix: Rows


def recovered(start: Start, optimiser: Optimiser, *, max_rank: int) -> Recovered:
    """Two recoveries from a point."""
    path = run_recovery(start, optimiser)
    # All of its updates, too, or it would be compiled anew.
    other = run_recovery(start, optimiser, offset=start.stretches.held_out_run)
    prefix = jax.tree.map(lambda x: x[:max_rank], path.updates)
    return Recovered(path, displacement(start, path), displacement(start, other), prefix)


def prefix_measures(start: Start, found: Recovered, *, rank: int, max_rank: int) -> Iterator[Measure]:
    """Captures by m, functional shares at three of them, and the losses."""
    loss_at = held_out_loss(start)
    delta, held_out, prefix = found.delta, found.held_out, found.prefix
    curves = {
        "plain": geometry.prefix_captures(prefix, delta),
        "remainder": geometry.remainder_captures(prefix, delta),
        "held_out": geometry.prefix_captures(prefix, held_out),
    }
    for quantity, masses in curves.items():
        for m, mass in enumerate(np.asarray(masses), start=1):
            yield quantity, float(mass), {"m": m}
    base, end = float(loss_at(start.params)), float(loss_at(found.path.end))
    for m in shown_ranks(rank, max_rank):
        basis = geometry.trajectory_prefix(prefix, rank=m)
        own = jax.tree.map(lambda u, m=m: jnp.sum(u[:m], axis=0), prefix)
        if base > end:
            yield "own_drop", (base - float(loss_at(trees.axpy(1.0, own, start.params)))) / (base - end), {"m": m}
        for quantity, target in (("functional", delta), ("functional_held_out", held_out)):
            share = float(geometry.functional_recovery(loss_at, start.params, target, basis))
            if np.isfinite(share):  # where the loss does not fall there is nothing of which this is a share
                yield quantity, share, {"m": m}
    cosine = geometry.capture(geometry.task_vector_basis(jax.tree.map(lambda x: x[None], held_out)), delta).norm
    yield "cosine_of_runs", float(cosine), {}
    yield "random_level", float(geometry.random_mass(rank, delta)), {}
    yield "start_loss", base, {}
    yield "end_loss", end, {}


def shown_ranks(rank: int, max_rank: int) -> list[int]:
    """The m at which more than the mass is measured."""
    return sorted({rank // 2, rank, max_rank})


def extrapolation_measures(
    start: Start, found: Recovered, *, prefixes: Sequence[int], ranks: Sequence[int]
) -> Iterator[Measure]:
    """The share of the loss drop at the point that the first m updates predict, without a further step.

    *end*: the lines are continued to the last step of the recovery. *chosen*: to the horizon, of some from m to there,
    whose loss is lowest on a batch of training rows that the prefix did not see; this takes a few forward passes.
    """
    loss_at, last = held_out_loss(start), start.recovery_steps
    batch = start.task.train(start.stretches.gradients + CHOOSING)
    base, end = float(loss_at(start.params)), float(loss_at(found.path.end))
    if base <= end:
        return

    def share(delta: Delta) -> float:
        return (base - float(loss_at(trees.axpy(1.0, delta, start.params)))) / (base - end)

    for m in prefixes:
        updates = jax.tree.map(lambda u, m=m: u[:m], found.prefix)
        own = jax.tree.map(lambda u: jnp.sum(u, axis=0), updates)
        yield "extrapolation_own_drop", share(own), {"m": m}
        horizons = sorted({float(last), *(m * 2.0**i for i in range(8) if m * 2.0**i < last)})
        for rank in ranks:
            points = [geometry.extrapolate(updates, horizon, rank=min(rank, m)) for horizon in horizons]
            losses = [float(value_at(start.loss, trees.axpy(1.0, delta, start.params), batch)) for delta in points]
            best = int(np.argmin(losses))
            where: dict[str, Place] = {"m": m, "rank": rank}
            yield "extrapolated", share(points[-1]), {**where, "horizon": "end"}
            yield "extrapolated", share(points[best]), {**where, "horizon": "chosen"}
            yield "horizon", horizons[best], where


def best_static(records: Sequence[Record], quantity: str = "static", **where: Place) -> tuple[str, float]:
    """The static basis with the largest mean mass, and that mass: of the displacement, or of another quantity."""
    chosen = [r for r in records if r.quantity == quantity and all(r.where[k] == v for k, v in where.items())]
    names = dict.fromkeys(str(r.where["basis"]) for r in chosen)
    means = {name: spread(chosen, quantity, basis=name).mean for name in names if name != FORGETTING}
    best = max(means, key=means.__getitem__)
    return best, means[best]
