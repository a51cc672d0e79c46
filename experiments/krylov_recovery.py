"""C7: on a quadratic the recovery path lives in a Krylov space.

Paper: arXiv 2606.10929, Lemma 1. With a constant Hessian H and step, the displacement after t steps of gradient
descent, with or without momentum, lies in span(g, H g, ..., H^{t-1} g). Adam rescales coordinates and leaves it:
the negative control. The loss of the model is no quadratic: what its Krylov space at the start still holds of a
descent on one batch is shown beside, with no threshold.
`python -m experiments krylov-recovery:small`. `smoke` shrinks the quadratic, the training and the seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import drawing
from experiments.recoveries import RATES, StartSpec, Told, starting_point
from experiments.trajectory_prefix import SMOKE_START
from lacuna import derivatives, geometry
from lacuna.reports.claims import Claim, seeds_of, spread, verdict
from lacuna.reports.records import Record
from lacuna.training import Optimiser, RecoverConfig, recover

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME, TITLE = "krylov_recovery", "Recovery paths and Krylov spaces"
ABOUT = (
    "Share of the displacement after t constant steps that lies outside of the Krylov space of rank t at the start, on "
    "a quadratic with a planted spectrum and on the model's own loss on one batch. The rule, on the quadratic: at most "
    "1e-9 for gradient descent and momentum, above 0.05 for Adam."
)
OPTIMISERS: tuple[Optimiser, ...] = ("sgd", "momentum", "adam")


@dataclass(frozen=True)
class Config:
    """Krylov spaces and descents.

    Attributes:
      num_seeds: seeds 0, 1, ... of the quadratics, models and data.
      size: P of the quadratic.
      condition: of its Hessian; eigenvalues are evenly spaced in the logarithm, from 1 down.
      steps: numbers of steps t, ascending; also the ranks.
      start: the forgotten point.
    """

    num_seeds: int = 5
    size: int = 2000
    condition: float = 100.0
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    start: StartSpec = field(default_factory=StartSpec)


PRESETS = {
    "smoke": Config(1, size=60, steps=(1, 4), start=SMOKE_START),
    "small": Config(),
    "paper": Config(num_seeds=10),
}


def quadratic_loss(params: Any, batch: Any) -> jax.Array:
    """`<g, x> + <x, H x> / 2` for a batch `(g, Q, eigenvalues)` with H = Q diag Q^T."""
    gradient, basis, eigenvalues = batch
    turned = jnp.matmul(params["x"], basis, precision="highest")
    return jnp.vdot(gradient, params["x"]) + jnp.sum(eigenvalues * turned**2) / 2


def planted(config: Config, seed: int) -> Any:
    """The batch of a quadratic in general position."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(config.size, config.size)))[0]
    eigenvalues = np.geomspace(1, 1 / config.condition, config.size)
    return tuple(jnp.asarray(x, jnp.float32) for x in (rng.normal(size=config.size), basis, eigenvalues))


def run_seed(config: Config, seed: int, cache: Path, told: Told) -> list[Record]:
    """All numbers of one seed."""
    found: list[Record] = []
    most = config.steps[-1]
    told("the planted quadratic")
    batch = planted(config, seed)
    rates: dict[Optimiser, float] = {"sgd": 1.0, "momentum": 0.5, "adam": 0.05}
    found += _outside(config, "quadratic", seed, quadratic_loss, {"x": jnp.zeros(config.size)}, batch, rates)
    start = starting_point(config.start, seed, cache, told)
    told(f"Krylov space of rank {most} of the model's loss")
    rows = start.task.train(start.stretches.gradients)
    return found + _outside(config, "model", seed, start.loss, start.params, rows, RATES)


def _outside(
    config: Config, problem: str, seed: int, loss: Any, params: Any, batch: Any, rates: dict[Optimiser, float]
) -> list[Record]:
    """What of the displacement after t steps lies outside of the Krylov space of rank t."""
    most = config.steps[-1]
    operator, gradient = derivatives.hvp(loss, params, batch), derivatives.gradient(loss, params, batch)
    basis, _ = geometry.krylov(operator, gradient, rank=most)
    found = []
    for optimiser in OPTIMISERS:
        settings = RecoverConfig(optimiser, rates[optimiser], num_steps=most)
        path = recover(loss, params, jax.tree_util.Partial(_always, batch), settings)
        for t in config.steps:
            first = geometry.Basis(
                jax.tree.map(lambda x, t=t: x[:t], basis.rows), jnp.minimum(basis.rank, t), basis.status
            )
            delta = jax.tree.map(lambda u, t=t: jnp.sum(u[:t], axis=0), path.updates)
            lost = float(geometry.capture(first, delta).lost)
            found.append(
                Record(NAME, "outside", lost, "1", {"seed": seed, "problem": problem, "optimiser": optimiser, "t": t})
            )
    return found


def _always(batch: Any, step: Any) -> Any:
    """The same batch at every step."""
    return batch


def claims(records: Sequence[Record], config: Config) -> list[Claim]:
    """One row for each optimiser that the lemma speaks of."""
    last = config.steps[-1]

    def outside(problem: str, optimiser: str) -> Any:
        return spread(records, "outside", problem=problem, optimiser=optimiser, t=last)

    adam = outside("quadratic", "adam")
    return [
        Claim(
            "C7",
            f"on a quadratic the path of {optimiser} lives in a Krylov space, here of rank {last}",
            "exact (Lemma 1)",
            f"outside {outside('quadratic', optimiser)}",
            f"Adam {adam}; on the model's loss: {optimiser} {outside('model', optimiser)}, "
            f"Adam {outside('model', 'adam')}",
            verdict(
                max(outside("quadratic", optimiser).values) <= 1e-9, min(adam.values) > 0.05, len(seeds_of(records))
            ),
        )
        for optimiser in ("sgd", "momentum")
    ]


def tables(records: Sequence[Record], config: Config) -> drawing.Tables:
    """Outside by number of steps."""
    lines = [
        [
            problem,
            optimiser,
            *(str(spread(records, "outside", problem=problem, optimiser=optimiser, t=t)) for t in config.steps),
        ]
        for problem in ("quadratic", "model")
        for optimiser in OPTIMISERS
    ]
    return {"Share outside after t steps": (["loss", "optimiser", *(f"t = {t}" for t in config.steps)], lines)}


def figures(records: Sequence[Record], config: Config) -> dict[str, tuple["Figure", str]]:
    """Share outside against t."""
    figure, panels = drawing.panels(2, width=3.8)
    colours = dict(zip(OPTIMISERS, (drawing.MEASURED, drawing.PREDICTED, drawing.LIMIT), strict=True))
    for panel, problem in zip(panels, ("quadratic", "model"), strict=True):
        for optimiser in OPTIMISERS:
            drawing.curve(
                panel,
                records,
                "outside",
                "t",
                label=optimiser,
                problem=problem,
                optimiser=optimiser,
                color=colours[optimiser],
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_title("planted quadratic" if problem == "quadratic" else "the model's loss, one batch")
        panel.set_xlabel("t, steps and rank")
    panels[0].axhline(1e-9, color=drawing.CONTROL, ls="--", lw=1, label="the rule: below for descent")
    panels[0].axhline(0.05, color=drawing.CONTROL, ls=":", lw=1, label="the rule: above for Adam")
    panels[0].set_ylabel("share outside of the Krylov space")
    drawing.legend_above(figure, panels[0], columns=5)
    caption = (
        "Share of the displacement after t steps outside of the Krylov space of rank t at the start: mean over seeds, "
        "shaded from the smallest to the largest."
    )
    return {"krylov_recovery": (figure, caption)}
