"""What is left of the gains of a search around a language model on rows that no candidate saw."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import jax
import numpy as np

from experiments import search_steps
from experiments.search_places import Place
from lacuna import derivatives, search, trees
from lacuna.reports.records import Place as At
from lacuna.reports.records import Record
from lacuna.search.select import TopK
from lacuna.tasks import choices
from lacuna.types import Loss, Params

EXPERIMENT = "search_language"

FEW = 2
"""Of the best of a family at a step, that are scored on held-out rows."""

NUM_APART = 2
"""Batches of other rows on which the length of a step is chosen."""

PENALTY = 1e-4
"""On the square of an answer's bias."""


def at_length(result: search.SweepResult, column: int) -> search.SweepResult:
    """The part of a search that took steps of one length, as a search of its own."""
    sweep = replace(result.sweep, sigmas=result.sweep.sigmas[column : column + 1])
    scores = result.scores[:, column : column + 1]
    top = TopK(sweep.num_top)
    top.add(0, scores)
    best = top.best(sweep.sigmas, sweep.num_signs)
    return replace(result, sweep=sweep, scores=scores, top_k=best, sha256=search.table_sha256(scores))


def held_out(result: search.SweepResult, loss: Loss, place: Place, batch: Any, objective: str) -> Iterator[Record]:
    """The top K of every length on held-out rows, and at the length that other rows choose the random ones, too."""
    parts = [at_length(result, column) for column in range(len(result.sweep.sigmas))]
    norm = float(trees.norm(place.params))
    where: dict[str, At] = {"objective": objective}

    apart = [place.rows.others(step) for step in range(search_steps.NUM_SLOPES, search_steps.NUM_SLOPES + NUM_APART)]
    chosen = int(np.nanargmax([_kept(part, loss, place.params, apart) for part in parts]))
    greedy = int(np.nanargmax([part.gain for part in parts]))
    for column, part in enumerate(parts):
        radius = part.sweep.sigmas[0] / norm
        kept = _kept(part, loss, place.params, place.rows.held_out)
        yield Record(EXPERIMENT, "top_at_length", kept, "loss", {**where, "radius": round(radius, 9)})
        if column == greedy:
            yield Record(EXPERIMENT, "greedy_gain", kept, "loss", where)
            yield Record(EXPERIMENT, "greedy_radius", radius, "1", where)
        if column == chosen:
            yield Record(EXPERIMENT, "chosen_radius", radius, "1", where)
    for record in search.held_out_records(parts[chosen], loss, place.params, batch, place.rows.held_out):
        group = str(record.where["group"])
        short = "winner" if group == "winner" else "top" if group.startswith("top") else "random"
        yield replace(record, where={**record.where, **where, "group": short})


def few_held_out(
    part: search.SweepResult, place: Place, loss: Loss, params: Params, where: dict[str, At]
) -> Iterator[Record]:
    """The mean gain of the best few of a search on held-out rows."""
    kept = _kept(replace(part, top_k=part.top_k[:FEW]), loss, params, place.rows.held_out)
    yield Record(EXPERIMENT, "held_out_gain", kept, "nats", where)


def _kept(part: search.SweepResult, loss: Loss, params: Params, rows: Sequence[Any]) -> float:
    """The mean gain of the best of a search on other rows."""
    points = (search.candidate(params, part.sweep, *best[:3]) for best in part.top_k)
    return float(_gains(loss, params, points, rows).mean())


def _gains(loss: Loss, params: Params, points: Iterable[Params], batches: Sequence[Any]) -> np.ndarray:
    """Of every point, made one after the other, its gain over the params: [points, batches]."""
    base, *scores = ([float(search.score(loss, point, rows)) for rows in batches] for point in chain([params], points))
    return np.asarray(base) - np.asarray(scores)


def one_step(place: Place, longest: float) -> Iterator[Record]:
    """What one step down the gradient of other rows gains, of the length that is best on the scored ones.

    Args:
      place: the model and its rows.
      longest: of the lengths that are tried, as a share of the weights' norm.
    """
    slope = search_steps.slope_of(place)
    direction = jax.tree.map(lambda leaf: -leaf / trees.norm(slope), slope)
    lengths = longest * np.geomspace(0.01, 1, 9)
    norm = trees.norm(place.params)
    points = (trees.axpy(float(length) * norm, direction, place.params) for length in lengths)
    on_scored = _gains(place.loss, place.params, points, [place.rows.scored])[:, 0]
    best = int(np.argmax(on_scored))
    moved = trees.axpy(float(lengths[best]) * norm, direction, place.params)
    kept = _gains(place.loss, place.params, [moved], place.rows.held_out)
    yield Record(EXPERIMENT, "step_radius", float(lengths[best]), "1")
    yield Record(EXPERIMENT, "step_gain", float(on_scored[best]), "nats")
    yield Record(EXPERIMENT, "step_held_out_gain", float(kept.mean()), "nats")


def share_foretold(place: Place) -> float:
    """To first order the share of a gain that is left on held-out rows: `<a, b> / |a|^2`, b the gradient there."""
    slopes = [derivatives.gradient(place.loss, place.params, rows) for rows in place.rows.held_out]
    there = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *slopes)
    here = derivatives.gradient(place.loss, place.params, place.rows.scored)
    return float(trees.dot(here, there) / trees.dot(here, here))


def bias_gain(place: Place) -> float:
    """What one number for each answer, fitted on the scored rows, gains on held-out ones.

    The numbers are added to the log-probabilities of the answers; a small penalty keeps them finite where all scored
    rows have one right answer.
    """
    from scipy.optimize import minimize

    def read(rows: Any) -> tuple[np.ndarray, np.ndarray]:
        nats = choices.choice_nats(place.nats_at, place.params, rows)
        return np.asarray(nats, np.float64), np.asarray(rows.right)

    def loss(bias: np.ndarray, nats: np.ndarray, right: np.ndarray) -> float:
        of_answers = bias - nats
        of_right = of_answers[np.arange(len(right)), right]
        return float(np.mean(np.logaddexp.reduce(of_answers, axis=1) - of_right))

    scored = read(place.rows.scored)
    zero = np.zeros(scored[0].shape[1])
    bias = minimize(lambda b: loss(b, *scored) + PENALTY * float(b @ b), zero).x
    held_out = [read(rows) for rows in place.rows.held_out]
    return float(np.mean([loss(zero, *rows) - loss(bias, *rows) for rows in held_out]))
