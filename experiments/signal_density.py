"""C6: signal density, not mass, ranks subspaces for random search.

Paper: arXiv 2606.10929, Proposition 1 and Figure 2b. A search in a subspace of rank k sees the part Q a of the
gradient a. At one sigma for each coordinate the larger mass |Q a|^2 gains more. At one rms length of the step, where
sigma is that length over sqrt(k), it is the mass for each dimension that counts, the density: a direction that holds
little of the gradient but is one of few beats many that hold more. At exactly one length the gain saturates once
k is below 2 ln N: a search cannot go further along the gradient than its step is long. All three are predicted from
the gradient alone, and then searched, in bases of ranks 1 to 256 on both sides of 2 ln N.
Expect: rank correlations of predicted and found gains above 0.9 in all three regimes.
`python -m experiments signal-density:small`. `smoke` shrinks the training, the bases, the draws and the seeds.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments import drawing
from experiments.recoveries import (
    GRADIENT_STEPS,
    Start,
    StartSpec,
    Told,
    minibatch_gradients,
    run_recovery,
    specialised,
    starting_point,
)
from experiments.searches import PROGRAMS, STATES, known_landscape, noise_seed, scored_rows
from experiments.trajectory_prefix import SMOKE_START
from lacuna import derivatives, geometry, keys, search, theory, trees
from lacuna.geometry import Basis
from lacuna.reports.claims import Claim, Spread, seeds_of, verdict
from lacuna.reports.records import Place, Record, select, value
from lacuna.tasks import digits
from lacuna.types import Batch, Delta

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME, TITLE = "signal_density", "Which subspaces are worth searching in"
ABOUT = (
    "The gradient a has a part Q a in the subspace of a basis Q of rank k: its *mass* |Qa|² is what a search in the "
    "subspace can climb, its *density* |Qa|²/k the same for each dimension. Three ways to make steps of equal size: "
    "one σ for each coordinate (then mass ranks), one root mean square length r, σ = r/√k (then density ranks), and "
    "exactly one length r, z/|z| (then mass times what the luckiest of N points on a sphere in k dimensions has, which "
    "saturates once k falls below 2 ln N). Every gain was predicted from the gradient and then searched. The rule: the "
    "Spearman correlation of predicted and found gains at rms length has a 95 % interval above 0.8 (bootstrap over "
    "bases, the mean over seeds). The control: mass in the place of density ranks worse."
)

UNITS: tuple[theory.Unit, ...] = ("sigma", "rms_radius", "exact_radius")
FAR = "rms_radius_far"
"""The rms length once more, so large that the loss along the best bases is no longer linear."""

WORDS = {
    "sigma": "one σ",
    "rms_radius": "one rms length",
    "exact_radius": "exactly one length",
    FAR: "one rms length, ten times as long",
}

LEAST = 0.8
"""What the correlation's interval must lie above."""


@dataclass(frozen=True)
class Config:
    """Searches in subspaces.

    Attributes:
      num_seeds: seeds 0, 1, ... of model, data and noise.
      ranks: of the bases, ascending, as far as each goes.
      most_built: largest rank of the bases that are built from gradients, updates or Hessian products.
      block_ranks: for each block of the tree, of the random bases by layer.
      num_task_vectors: other tasks behind the task-vector basis.
      num_draws: draws of each search, one sign of each.
      num_best: N at which predicted and found gains are compared; the found one is the mean over all subsets.
      length: of a step, in units of |a| / u^T H u: at one, the steepest direction is at its minimum.
      far: how many times longer the far steps are.
      num_rows: rows of the scored batch.
      start: the points; batches of gradients and updates have its `batch_size` rows.
    """

    num_seeds: int = 5
    ranks: tuple[int, ...] = (1, 4, 16, 64, 256)
    most_built: int = 64
    block_ranks: tuple[int, ...] = (1, 9)
    num_task_vectors: int = 4
    num_draws: int = 128
    num_best: int = 32
    length: float = 0.1
    far: float = 10.0
    num_rows: int = 8
    start: StartSpec = field(default_factory=lambda: StartSpec(batch_size=16))


PRESETS = {
    "smoke": Config(
        1,
        (1, 4),
        most_built=4,
        block_ranks=(1,),
        num_task_vectors=1,
        num_draws=16,
        num_best=4,
        num_rows=2,
        start=SMOKE_START,
    ),
    "small": Config(),
    "paper": Config(num_seeds=10, num_draws=4096, num_best=1024),
}


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    found = []
    at_random: Basis | None = None
    for state in STATES:
        start = starting_point(config.start, seed, cache, told, state=state)
        rows = scored_rows(start, config.start.task, config.num_rows)
        gradient = derivatives.gradient(start.loss, start.params, rows)
        known = known_landscape(start.loss, start.params, rows, num_probes=2, seed=seed)
        length = config.length * known.slope / abs(known.curvature[1])
        if at_random is None:  # the same at every state: it knows their shapes alone
            told(f"a random basis of rank {config.ranks[-1]}")
            key = keys.stream(seed, "random basis")
            at_random = geometry.random_basis(key, start.params, rank=config.ranks[-1])
        for kind, basis in itertools.chain(bases(config, start), _cuts(config, "random", at_random)):
            told(f"{state}: {kind}, rank {int(basis.rank)}")
            where: dict[str, Place] = {"seed": seed, "state": state, "basis": kind, "rank": int(basis.rank)}
            gains = _gains(config, start, rows, gradient, basis, length, noise_seed(NAME, *where.values()))
            found += [replace(record, where=where | record.where) for record in gains]
    return found


def bases(config: Config, start: Start) -> Iterator[tuple[str, Basis]]:
    """Bases made at a point, each kind at every rank that it has; none has seen the scored rows."""
    spec, loss, params, most = start.spec, start.loss, start.params, config.most_built
    key = keys.stream(start.seed, "random blocks")

    gradients = minibatch_gradients(start, params, spec.task, first=0, num=most)
    yield from _cuts(config, "gradients of the task", geometry.gradient_basis(gradients, rank=most))

    path = run_recovery(start, "sgd", num_steps=most)
    yield from _cuts(config, "the first updates", geometry.trajectory_prefix(path.updates, rank=most))

    batch = start.task.train(GRADIENT_STEPS + most)
    operator, first = derivatives.hvp(loss, params, batch), derivatives.gradient(loss, params, batch)
    yield from _cuts(config, "Krylov", geometry.krylov(operator, first, rank=most)[0])

    others = [name for name in digits.DIGIT_TASKS if name != spec.task][: config.num_task_vectors]
    vectors = [specialised(start, name, num_rows=spec.batch_size) for name in others]
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *vectors)
    yield from _cuts(config, "task vectors of other tasks", geometry.task_vector_basis(rows))

    for rank in config.block_ranks:
        yield (
            "random, by layer",
            across_blocks(geometry.random_block_basis(key, params, rank=rank, stacked=start.model.stacked)),
        )


def _cuts(config: Config, kind: str, basis: Basis) -> Iterator[tuple[str, Basis]]:
    """The first rows of a basis, at every rank that it has."""
    for rank in config.ranks:
        if rank <= int(basis.rank):
            rows = jax.tree.map(lambda leaf, rank=rank: leaf[:rank], basis.rows)
            yield kind, Basis(rows, jnp.int32(rank), basis.status)  # one method for all: one program for each rank


def across_blocks(blocks: geometry.BlockBasis) -> Basis:
    """The subspaces of all blocks of a tree as one: every row lies in one block.

    Every block must have as many dimensions as there are rows for it.
    """
    k = jax.tree.leaves(blocks.rows)[0].shape[0]
    num_blocks = sum(ranks.size for ranks in jax.tree.leaves(blocks.ranks))
    first = 0

    def spread_out(leaf: jax.Array, ranks: jax.Array) -> jax.Array:
        nonlocal first
        wide = jnp.zeros((k * num_blocks, *leaf.shape[1:]), leaf.dtype)
        for layer in range(ranks.size):
            at = (slice(first, first + k), layer) if ranks.ndim else (slice(first, first + k),)
            wide = wide.at[at].set(leaf[:, layer] if ranks.ndim else leaf)
            first += k
        return wide

    return Basis(jax.tree.map(spread_out, blocks.rows, blocks.ranks), jnp.int32(k * num_blocks), blocks.status)


def _gains(
    config: Config, start: Start, rows: Batch, gradient: Delta, basis: Basis, length: float, seed: int
) -> list[Record]:
    """Predicted and found gains in a basis, at steps of equal size by each of the measures."""
    signal, rank, n = geometry.signal(basis, gradient), int(basis.rank), config.num_best
    family = search.in_basis(basis)
    # The sigma at which a step in 2 ln N dimensions has the length.
    sizes = {"sigma": length / np.sqrt(2 * np.log(n)), "rms_radius": length, "exact_radius": length}
    sizes[FAR] = config.far * length
    records = [
        Record(NAME, "mass_share", float(signal.norm / trees.norm(gradient)) ** 2, "1"),
        Record(NAME, "mass", float(signal.mass), "loss"),
        Record(NAME, "density", float(signal.density), "loss"),
    ]
    # By coordinates all but the exact length are sigmas of one search, scored from the same draws.
    by_coordinate = {unit: sizes[unit] / np.sqrt(rank) for unit in ("rms_radius", FAR)} | {"sigma": sizes["sigma"]}
    sigmas = sorted(set(by_coordinate.values()))
    gains = _searched(start, rows, search.Sweep(family, tuple(sigmas), config.num_draws, seed=seed, antithetic=False))
    on_sphere = search.Sweep(family, (length,), config.num_draws, seed=seed, antithetic=False, unit="exact_radius")
    columns = {unit: gains[:, sigmas.index(sigma)] for unit, sigma in by_coordinate.items()}
    columns["exact_radius"] = _searched(start, rows, on_sphere)[:, 0]
    for unit, column in columns.items():
        predicted = theory.subspace_gain(n, sizes[unit], signal.mass, rank, unit="rms_radius" if unit == FAR else unit)
        records.append(Record(NAME, "predicted", float(predicted), "loss", {"steps": unit}))
        found = float(search.expected_best(column, np.asarray([n]))[0])
        records.append(Record(NAME, "found", found, "loss", {"steps": unit}))
    return records


def _searched(start: Start, rows: Batch, sweep: search.Sweep) -> Float[np.ndarray, "N sigmas"]:
    result = search.run_sweep(start.loss, start.params, rows, sweep, programs=PROGRAMS)
    return result.base_score - result.scores[..., 0].astype(np.float64)


def spearman(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one of them does not vary."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    size = np.sqrt(np.prod([np.sum(r**2) for r in ranks]))
    return float(ranks[0] @ ranks[1] / size) if size else float("nan")


@dataclass(frozen=True)
class Ranking:
    """How well one number ranks the bases by the gain that was found, over the seeds.

    Attributes:
      seeds: Spearman's correlation of each seed.
      low: end of the 95 % interval of their mean: bases drawn anew with replacement, the same for all seeds.
      high: the other end.
    """

    seeds: Spread
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.seeds.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ranking(records: Sequence[Record], state: str, unit: str, by: str, *, num_resamples: int = 1000) -> Ranking:
    """Rank correlation of the found gains with a quantity: `predicted`, `mass` or `density`."""
    rng = np.random.default_rng(0)
    of_seeds = []
    for seed in seeds_of(records):
        where: dict[str, Place] = {"seed": seed, "state": state}
        found = select(records, "found", **where, steps=unit)
        places = [{name: r.where[name] for name in ("basis", "rank")} for r in found]
        more: dict[str, Place] = {"steps": unit} if by == "predicted" else {}
        guesses = [value(records, by, **where, **place, **more) for place in places]
        of_seeds.append((np.asarray(guesses), np.asarray([r.value for r in found])))
    num_bases = min(len(found) for _, found in of_seeds)
    resampled = []
    for _ in range(num_resamples):
        chosen = rng.integers(num_bases, size=num_bases)
        resampled.append(np.mean([spearman(guess[chosen], found[chosen]) for guess, found in of_seeds]))
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return Ranking(Spread(tuple(spearman(*pair) for pair in of_seeds)), float(low), float(high))


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row for each state."""
    rows = []
    for state in STATES:
        by_density, by_mass = (ranking(records, state, "rms_radius", by) for by in ("density", "mass"))
        others = [f"{WORDS[unit]} {ranking(records, state, unit, 'predicted')}" for unit in ("sigma", "exact_radius")]
        worse = all(mass < density for mass, density in zip(by_mass.seeds.values, by_density.seeds.values, strict=True))
        rows.append(
            Claim(
                "C6",
                f"density ranks subspaces for random search at one rms length, {state}",
                "it does (Proposition 1, Fig. 2b; no figure known to us)",
                f"Spearman of predicted and found gain {by_density}",
                f"mass instead of density {by_mass}; predicted and found at {'; at '.join(others)}",
                verdict(by_density.low > LEAST, worse, len(seeds_of(records))),
            )
        )
    return rows


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """What ranks where, and every basis at the forgotten point."""
    rankings = [
        [state, WORDS[unit], *(str(ranking(records, state, unit, by)) for by in ("predicted", "density", "mass"))]
        for state in STATES
        for unit in WORDS
    ]
    head = ["state", "steps of", "prediction", "density", "mass"]
    lines = []
    for kind, rank in _bases_of(records):
        where: dict[str, Place] = {"state": "forgotten", "basis": kind, "rank": rank}
        share = _mean(records, "mass_share", **where)
        line = [kind, str(rank), f"{share:.2g}", f"{share / rank:.2g}"]
        for unit in UNITS:
            predicted, found = (_mean(records, name, **where, steps=unit) for name in ("predicted", "found"))
            line.append(f"{predicted:.2g} / {found:.2g}")
        lines.append(line)
    columns = [
        "basis",
        "rank",
        "mass / |a|²",
        "density / |a|²",
        *(f"{WORDS[unit]}: predicted / found" for unit in UNITS),
    ]
    return {
        "Spearman's correlation of the found gain with": (head, rankings),
        f"Gains of the best of {config.num_best}, forgotten, mean over seeds": (columns, lines),
    }


def _bases_of(records: Sequence[Record]) -> list[tuple[str, int]]:
    places = [(str(record.where["basis"]), int(record.where["rank"])) for record in select(records, "mass")]
    return list(dict.fromkeys(places))


def _mean(records: Sequence[Record], quantity: str, **where: Place) -> float:
    return float(np.mean([record.value for record in select(records, quantity, **where)]))


LOOKS = {
    "gradients of the task": ("o", drawing.PREDICTED),
    "the first updates": ("D", drawing.MEASURED),
    "Krylov": ("s", "#009e73"),
    "task vectors of other tasks": ("^", "#cc79a7"),
    "random, by layer": ("v", drawing.LIMIT),
    "random": ("x", drawing.CONTROL),
}
"""Marker and colour of each kind of basis."""


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Predicted and found gains at the forgotten point by each measure of size, and how they go with the rank."""
    here = [record for record in records if record.where.get("state") == "forgotten"]
    figure, panels = drawing.panels(len(UNITS), rows=2, width=3.9, height=3.5, sharey=False)
    for unit, above, below in zip(UNITS, panels[: len(UNITS)], panels[len(UNITS) :], strict=True):
        _against_prediction(above, here, unit)
        _against_rank(below, here, unit, config)
        above.set_title(
            f"steps of {WORDS[unit]}: Spearman {ranking(records, 'forgotten', unit, 'predicted').seeds.mean:.2f}",
            loc="left",
        )
    panels[0].set_ylabel("found gain in loss")
    panels[len(UNITS)].set_ylabel("gain in loss")
    drawing.legend_above(figure, panels[0], columns=6)
    caption = (
        f"Best of {config.num_best} random steps in subspaces, at the forgotten point. Above: found against predicted "
        "gain, a marker for each basis and seed; on the line the prediction is exact. Below: the same gains against "
        "the rank, lines predicted, mean over seeds. At one σ more dimensions never hurt: mass ranks. At one rms "
        "length every dimension without signal takes a part of the step: density ranks, gains fall with the rank. At "
        f"exactly one length this holds to the right of 2 ln N = {2 * np.log(config.num_best):.1f} (grey); to its left "
        "no draw can go further than the step is long, and gains level off."
    )
    return {"signal_density": (figure, caption)}


def _against_prediction(panel: "Axes", records: Sequence[Record], unit: str) -> None:
    every = [record.value for record in select(records, "predicted", steps=unit)]
    for kind, (marker, colour) in LOOKS.items():
        predicted, found = (
            [r.value for r in select(records, q, steps=unit, basis=kind)] for q in ("predicted", "found")
        )
        panel.plot(predicted, found, marker, color=colour, ms=4, alpha=0.7, label=kind)
    ends = np.asarray([min(every) / 2, max(every) * 2])
    panel.plot(ends, ends, color=drawing.CONTROL, lw=0.8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("predicted gain in loss")


def _against_rank(panel: "Axes", records: Sequence[Record], unit: str, config: Config) -> None:
    for kind, (marker, colour) in LOOKS.items():
        ranks = sorted(rank for name, rank in _bases_of(records) if name == kind)
        for quantity, look in (("predicted", {"lw": 1.2}), ("found", {"ls": "", "marker": marker, "ms": 4})):
            gains = [_mean(records, quantity, steps=unit, basis=kind, rank=rank) for rank in ranks]
            panel.plot(ranks, gains, color=colour, **look)
    panel.axvline(2 * np.log(config.num_best), color=drawing.CONTROL, lw=3, alpha=0.3)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel("rank k")
