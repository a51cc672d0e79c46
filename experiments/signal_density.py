"""C6: signal density, not mass, ranks subspaces for random search.

Paper: arXiv 2606.10929, Proposition 1 and Figure 2b. A search in a subspace of rank k sees the part Q a of the
gradient a. At one sigma for each coordinate the larger mass |Q a|^2 gains more. At one rms length of the step, where
sigma is that length over sqrt(k), it is the mass for each dimension that counts, the density: a direction that holds
little of the gradient but is one of few beats many that hold more. At exactly one length the gain saturates once
k is below 2 ln N: a search cannot go further along the gradient than its step is long. All three are predicted from
the gradient alone, and then searched, in bases of ranks 1 to 243 on both sides of 2 ln N; and at a rms length so
large that the loss along the best of them is no longer linear, where the proposition ends.
Expect: rank correlations of predicted and found gains above 0.9 at one rms length, of mass and gain near 0.7.
About ten minutes on two cores of an AMD EPYC, less the training. `python -m experiments signal-density:small`.
`smoke` shrinks the training, the bases, the draws and the seeds.
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
    Start,
    StartSpec,
    Told,
    minibatch_gradients,
    run_recovery,
    starting_point,
)
from experiments.searches import PROGRAMS, STATES, known_landscape, noise_seed, scored_rows
from experiments.trajectory_prefix import SMOKE_START
from lacuna import derivatives, geometry, keys, search, theory, trees
from lacuna.errors import InvalidInput
from lacuna.geometry import Basis
from lacuna.reports.claims import Claim, seeds_of, spread, verdict
from lacuna.reports.records import Place, Record, select, value
from lacuna.tasks import digits
from lacuna.types import Batch, Delta

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME, TITLE = "signal_density", "Which subspaces are worth searching in"
ABOUT = (
    "The gradient a has a part Qa in the subspace of a basis Q of rank k: its *mass* is |Qa|², its *density* |Qa|²/k. "
    "Theorem 1 in the subspace: the best of N steps z in it gains √mass times how far the luckiest z goes along Qa. "
    "How far that is depends on what is held equal. At *one σ* for each coordinate it is σ E[max of N normals], and "
    "mass ranks. At *one rms length* r σ is r/√k, and density ranks; few dimensions win here because their luckiest "
    "steps are much longer than r. At *exactly one length*, z/|z|, it is the largest of N coordinates on a sphere: "
    "about as density says while k is well above 2 ln N, and never more than r, so below that it levels off. The "
    "gains were predicted by this from the gradient on the scored rows, at a length at which a step to the best of it "
    "is still nearly linear, and then searched; the bases never saw those rows. What is tested is that a search of "
    "this size obeys the theorem; far longer steps show where it ends. The rule: Spearman's correlation of density "
    "and found gain at one rms length has a 95 % interval above 0.8. The control: there density ranks better than "
    "mass, and at one σ mass better than density, each by an interval of the difference above zero. Intervals are of "
    "the mean over seeds, with kinds of bases and seeds drawn anew with replacement: the ranks of one kind are parts "
    "of one basis."
)

UNITS: tuple[theory.Unit, ...] = ("sigma", "rms_radius", "exact_radius")
WORDS = {"sigma": "one σ", "rms_radius": "one rms length", "exact_radius": "exactly one length"}
FAR = "rms_radius_far"
"""The rms length once more, so large that the loss along the best bases is no longer linear."""

LEAST = 0.8
"""What the correlation's interval must lie above."""

BUILT = ("gradients of the task", "the first updates", "Krylov")
"""Kinds of bases made for the task: within them the gains do not differ by decades."""


@dataclass(frozen=True)
class Config:
    """Searches in subspaces.

    Attributes:
      num_seeds: seeds 0, 1, ... of model, data and noise.
      ranks: of the bases, ascending, as far as each goes.
      block_ranks: for each block of the tree, of the random bases by layer.
      num_task_vectors: other tasks behind the task-vector basis.
      num_draws: draws of each search, one sign of each.
      num_best: N at which predicted and found gains are compared; the found one is the mean over all subsets.
      length: of a step, in units of |a| / u^T H u: at one, the steepest direction is at its minimum.
      far: how many times longer the far steps are.
      num_rows: rows of the scored batch.
      start: the points; batches of gradients and updates have its `batch_size` rows.

    Raises:
      InvalidInput: a number of draws out of order.
    """

    num_seeds: int = 5
    ranks: tuple[int, ...] = (1, 4, 16, 64)
    block_ranks: tuple[int, ...] = (1, 9)
    num_task_vectors: int = 4
    num_draws: int = 128
    num_best: int = 32
    length: float = 0.1
    far: float = 10.0
    num_rows: int = 8
    start: StartSpec = field(default_factory=lambda: StartSpec(batch_size=16))

    def __post_init__(self) -> None:
        if not 2 <= self.num_best <= self.num_draws:
            raise InvalidInput("num_best must be between 2 and num_draws", got=(self.num_best, self.num_draws))

    @property
    def words(self) -> dict[str, str]:
        """What is held equal, in words."""
        return WORDS | {FAR: f"one rms length, {self.far:g} times as long"}


PRESETS = {
    "smoke": Config(
        1,
        (1, 4),
        block_ranks=(1,),
        num_task_vectors=1,
        num_draws=16,
        num_best=4,
        num_rows=2,
        start=SMOKE_START,
    ),
    "small": Config(),
    "paper": Config(num_seeds=10, ranks=(1, 4, 16, 64, 256), num_draws=4096, num_best=1024),
}


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    found = []
    for state in STATES:
        start = starting_point(config.start, seed, cache, told, state=state)
        rows = scored_rows(start, config.start.task, config.num_rows)
        gradient = derivatives.gradient(start.loss, start.params, rows)
        known = known_landscape(start.loss, start.params, rows, num_probes=2, seed=seed)
        length = config.length * known.gradient_norm / abs(known.curvature_along)
        for kind, basis in bases(config, start):
            told(f"{state}: {kind}, rank {int(basis.rank)}")
            where: dict[str, Place] = {"seed": seed, "state": state, "basis": kind, "rank": int(basis.rank)}
            gains = _gains(config, start, rows, gradient, basis, length, noise_seed(NAME, *where.values()))
            found += [replace(record, where=where | record.where) for record in gains]
    return found


def bases(config: Config, start: Start) -> Iterator[tuple[str, Basis]]:
    """Bases made at a point, each kind at every rank that it has; none has seen the scored rows."""
    spec, loss, params, most = start.spec, start.loss, start.params, config.ranks[-1]
    key = keys.stream(start.seed, "random bases")

    gradients = minibatch_gradients(start, params, spec.task, first=0, num=most)
    yield from _cuts(config, "gradients of the task", geometry.gradient_basis(gradients, rank=most))

    path = run_recovery(start, "sgd", num_steps=most)
    yield from _cuts(config, "the first updates", geometry.trajectory_prefix(path.updates, rank=most))

    batch = start.task.train(start.stretches.gradients + most)
    operator, first = derivatives.hvp(loss, params, batch), derivatives.gradient(loss, params, batch)
    yield from _cuts(config, "Krylov", geometry.krylov(operator, first, rank=most)[0])

    others = [name for name in digits.DIGIT_TASKS if name != spec.task][: config.num_task_vectors]
    vectors = [start.specialise(name, num_rows=spec.batch_size) for name in others]
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *vectors)
    yield from _cuts(config, "task vectors of other tasks", geometry.task_vector_basis(rows))

    for rank in config.block_ranks:
        yield (
            "random, by layer",
            across_blocks(geometry.random_block_basis(key, params, rank=rank, stacked=start.model.stacked)),
        )
    yield from _cuts(config, "random", geometry.random_basis(jax.random.fold_in(key, 1), params, rank=most))


def _cuts(config: Config, kind: str, basis: Basis) -> Iterator[tuple[str, Basis]]:
    """The first rows of a basis, at every rank that it has."""
    for rank in config.ranks:
        if rank <= int(basis.rank):
            rows = jax.tree.map(lambda leaf, rank=rank: leaf[:rank], basis.rows)
            yield kind, Basis(rows, jnp.int32(rank), basis.status)  # one method for all: one program for each rank


def across_blocks(blocks: geometry.BlockBasis) -> Basis:
    """The subspaces of all blocks of a tree as one: every row lies in one block.

    Raises:
      InvalidInput: a block has fewer dimensions than there are rows for it.
    """
    k = jax.tree.leaves(blocks.rows)[0].shape[0]
    ranks_of_blocks = np.concatenate([np.ravel(ranks) for ranks in jax.tree.leaves(blocks.ranks)])
    num_blocks = len(ranks_of_blocks)
    if np.any(ranks_of_blocks < k):
        raise InvalidInput(f"every block must have {k} dimensions", got=f"one of rank {ranks_of_blocks.min()}")
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
        Record(NAME, "mass", float(signal.mass), "(loss/parameter)²"),
        Record(NAME, "density", float(signal.density), "(loss/parameter)²"),
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


def spearman(rows: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, "columns-1"]:
    """Spearman's rank correlation of the first column with each other; ties at their mean rank.

    NaN where one of the two does not vary.
    """
    from scipy.stats import rankdata

    ranks = rankdata(rows, axis=0) - (len(rows) + 1) / 2
    sizes = np.linalg.norm(ranks, axis=0)
    with np.errstate(invalid="ignore"):
        return ranks[:, 0] @ ranks[:, 1:] / (sizes[0] * sizes[1:])


@dataclass(frozen=True)
class Ranking:
    """How well numbers rank the bases by the gain that was found: means over seeds of Spearman's correlation.

    Attributes:
      mean: of all bases, by the name of the number.
      resampled: with kinds of bases and seeds drawn anew with replacement, the same for every number.
    """

    mean: dict[str, float]
    resampled: dict[str, Float[np.ndarray, "resamples"]]

    def interval(self, by: str, minus: str | None = None) -> tuple[float, float]:
        """The 95 % interval of a mean, or of the difference of two."""
        samples = self.resampled[by] - (self.resampled[minus] if minus else 0)
        low, high = np.nanquantile(samples, (0.025, 0.975))
        return float(low), float(high)

    def told(self, by: str) -> str:
        """The mean with its interval."""
        low, high = self.interval(by)
        return f"{self.mean[by]:.3f} [{low:.3f}, {high:.3f}]"


NUMBERS = ("predicted", "density", "mass")


def ranking(
    records: Sequence[Record], state: str, steps: str, *, kinds: Sequence[str] | None = None, num_resamples: int = 400
) -> Ranking:
    """Rank correlations of the found gains with the predicted ones, with density and with mass."""
    rng = np.random.default_rng(0)
    tables = []  # one for each seed: by kind, rows of the found gain and of the numbers
    for seed in seeds_of(records):
        here = [r for r in records if r.where.get("seed") == seed and r.where.get("state") == state]
        of_kinds: dict[str, list[list[float]]] = {}
        for found in select(here, "found", steps=steps):
            place = {name: found.where[name] for name in ("basis", "rank")}
            numbers = [value(here, by, **place, **({"steps": steps} if by == "predicted" else {})) for by in NUMBERS]
            of_kinds.setdefault(str(place["basis"]), []).append([found.value, *numbers])
        tables.append({kind: np.asarray(rows) for kind, rows in of_kinds.items() if kinds is None or kind in kinds})

    def means(chosen_seeds: Sequence[int], chosen_kinds: Sequence[str]) -> Float[np.ndarray, "numbers"]:
        seeds, times = np.unique(chosen_seeds, return_counts=True)
        found = [spearman(np.concatenate([tables[s][k] for k in chosen_kinds if k in tables[s]])) for s in seeds]
        return times @ np.stack(found) / len(chosen_seeds)

    every = list(tables[0])
    samples = [
        means(rng.integers(len(tables), size=len(tables)).tolist(), rng.choice(every, size=len(every)).tolist())
        for _ in range(num_resamples)
    ]
    whole = means(range(len(tables)), every)
    return Ranking(dict(zip(NUMBERS, whole, strict=True)), dict(zip(NUMBERS, np.transpose(samples), strict=True)))


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row for each state."""
    rows = []
    for state in STATES:
        at_rms, at_sigma, exact = (ranking(records, state, unit) for unit in ("rms_radius", "sigma", "exact_radius"))
        built = ranking(records, state, "rms_radius", kinds=BUILT)
        ahead = at_rms.interval("density", "mass"), at_sigma.interval("mass", "density")
        rows.append(
            Claim(
                "C6",
                f"density ranks subspaces for random search at one rms length, {state}",
                "it does (Proposition 1, Fig. 2b; no figure known to us)",
                f"Spearman of density and found gain {at_rms.told('density')}, of the bases built for the task alone "
                f"{built.told('density')}",
                f"mass instead {at_rms.told('mass')}, built alone {built.told('mass')}; at one σ mass "
                f"{at_sigma.told('mass')}, density {at_sigma.told('density')}; at exactly one length the prediction "
                f"{exact.told('predicted')}",
                verdict(
                    at_rms.interval("density")[0] > LEAST,
                    all(low > 0 for low, _ in ahead),
                    len(seeds_of(records)),
                ),
            )
        )
    return rows


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """What ranks where, and every basis at the forgotten point."""
    rankings = []
    for state, steps in itertools.product(STATES, config.words):
        found = ranking(records, state, steps)
        rankings.append([state, config.words[steps], *(found.told(by) for by in NUMBERS)])
    lines = []
    for kind, rank in _bases_of(records):
        where: dict[str, Place] = {"state": "forgotten", "basis": kind, "rank": rank}
        share = spread(records, "mass_share", **where).mean
        line = [kind, str(rank), f"{share:.2g}", f"{share / rank:.2g}"]
        for steps in config.words:
            predicted, found_gain = (
                spread(records, name, **where, steps=steps).mean for name in ("predicted", "found")
            )
            line.append(f"{predicted:.2g} / {found_gain:.2g}")
        lines.append(line)
    columns = ["basis", "rank", "mass / |a|²", "density / |a|²"]
    columns += [f"{words}: predicted / found" for words in config.words.values()]
    return {
        "Spearman's correlation of the found gain with": (["state", "steps of", *NUMBERS], rankings),
        f"Gains of the best of {config.num_best}, forgotten, mean over seeds": (columns, lines),
    }


def _bases_of(records: Sequence[Record]) -> list[tuple[str, int]]:
    places = [(str(record.where["basis"]), int(record.where["rank"])) for record in select(records, "mass")]
    return list(dict.fromkeys(places))


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
    """At the forgotten point: found gain against mass, density and prediction, and all gains against the rank."""
    here = [record for record in records if record.where.get("state") == "forgotten"]
    figure, panels = drawing.panels(3, rows=2, width=3.9, height=3.5, sharey=False)
    at_rms, exact = (ranking(records, "forgotten", steps) for steps in ("rms_radius", "exact_radius"))
    for panel, (steps, by, label, found) in zip(
        panels,
        (
            ("rms_radius", "mass", "mass |Qa|²", at_rms),
            ("rms_radius", "density", "density |Qa|²/k", at_rms),
            ("exact_radius", "predicted", "predicted gain in loss", exact),
        ),
        strict=False,
    ):
        _scatter(panel, here, steps, by)
        panel.set_xlabel(label)
        panel.set_title(f"{WORDS[steps]}: Spearman {found.mean[by]:.2f}")
    for panel, unit in zip(panels[3:], UNITS, strict=True):
        _against_rank(panel, here, unit, config)
        panel.set_title(WORDS[unit])
    panels[0].set_ylabel("found gain in loss")
    panels[3].set_ylabel("gain in loss")
    drawing.legend_above(figure, panels[0], columns=6)
    limit = 2 * np.log(config.num_best)
    caption = (
        f"The best of {config.num_best} random steps in the span of a basis Q of rank k, at the forgotten point; a is "
        "the gradient of the scored loss. Above: found gains, a marker for each basis and seed; at one rms length "
        "they follow the density of the gradient in the subspace, not its mass; on the right, at exactly one length, "
        "the gains that were predicted (line: found as predicted). Below: gains against the rank, markers found, "
        "lines predicted, means over seeds. At one σ a larger part of one basis never gains less: mass ranks. At one "
        "rms length the dimensions that add little signal take their part of the step all the same: density ranks. At "
        f"exactly one length that holds right of 2 ln N = {limit:.1f} (grey); left of it the luckiest step already "
        f"goes nearly all its length along the gradient, and gains level off. The length is {config.length:g} "
        "|a|/uᵀHu, u along a; one σ is that length over √(2 ln N). Found: the mean over all subsets of "
        f"{config.num_best} of {config.num_draws} draws."
    )
    return {"signal_density": (figure, caption)}


def _scatter(panel: "Axes", records: Sequence[Record], steps: str, by: str) -> None:
    for kind, (marker, colour) in LOOKS.items():
        found = select(records, "found", steps=steps, basis=kind)
        more = {"steps": steps} if by == "predicted" else {}
        numbers = [value(records, by, **{n: r.where[n] for n in ("seed", "basis", "rank")}, **more) for r in found]
        panel.plot(numbers, [r.value for r in found], marker, color=colour, ms=4, alpha=0.7, label=kind)
    if by == "predicted":
        every = [record.value for record in select(records, "predicted", steps=steps)]
        ends = np.asarray([min(every) / 2, max(every) * 2])
        panel.plot(ends, ends, color=drawing.CONTROL, lw=0.8)
    panel.set_xscale("log")
    panel.set_yscale("log")


def _against_rank(panel: "Axes", records: Sequence[Record], unit: str, config: Config) -> None:
    for kind, (marker, colour) in LOOKS.items():
        ranks = sorted(rank for name, rank in _bases_of(records) if name == kind)
        for quantity, look in (("predicted", {"lw": 1.2}), ("found", {"ls": "", "marker": marker, "ms": 4})):
            gains = [spread(records, quantity, steps=unit, basis=kind, rank=rank).mean for rank in ranks]
            panel.plot(ranks, gains, color=colour, **look)
    panel.axvline(2 * np.log(config.num_best), color=drawing.CONTROL, lw=3, alpha=0.3)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel("rank k")
