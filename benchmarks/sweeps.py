"""Sweeps: a million draws, the driver's share, the price of noise, a torch loop beside it, cores, the first score.

    python -m benchmarks sweeps

Questions: do a million draws of a small model end within minutes, in memory that does not grow? What share of the
CPU time goes to the driver? What does noise cost beside the forward pass that scores it? How does a sweep compare
with the same search in place in torch? Does a second core double the rate? How long does a user wait for the first
score, once everything has been compiled before? The synthetic transformer scores 128 rows of 17 tokens. A floor is
the products with a weight alone, at this machine's rate for a square one, unless it says otherwise.

Nothing is compiled while a sweep is timed: the clocks run from its first report of progress to its last. The
driver's CPU time is read from the clocks of the threads that run Python, which dispatch, log, rank and show
progress, while XLA computes in threads of its own: a real sweep, measured whole. A sweep over a loss that costs
nothing would leave out that a busy scorer takes cores and caches from the driver, and would count the noise
that is still drawn.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import harness
from lacuna import meshes, search, trees
from lacuna.models.synthetic import SyntheticSpec, synthetic
from lacuna.reports.progress import progress
from lacuna.tasks import digits

SPEC = SyntheticSpec(digits.vocab_size)
NUM_ROWS, SIGMA = 128, 1e-3
WIDTHS = (16, 28, 16, 4)
TORCH_TOLERANCE = 1e-4

Cost = tuple[float, float]
"""Wall and CPU seconds."""


class Problem(NamedTuple):
    """What `run_sweep` takes, and the law of the noise."""

    loss: Any
    params: Any
    batch: Any
    family: search.Family

    def sweep(self, num_draws: int, **options: Any) -> search.Sweep:
        """One sigma, the default options unless said otherwise."""
        return search.Sweep(self.family, (SIGMA,), num_draws, **options)


def small() -> Problem:
    """A regression by a network of three layers on 64 rows: P = 960."""
    *keys, of_inputs, of_targets = jax.random.split(jax.random.key(0), len(WIDTHS) + 1)
    shapes = pairwise(WIDTHS)
    params = [jax.random.normal(key, shape) / shape[0] ** 0.5 for key, shape in zip(keys, shapes, strict=True)]
    batch = jax.random.normal(of_inputs, (64, WIDTHS[0])), jax.random.normal(of_targets, (64, WIDTHS[-1]))

    def loss(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        for matrix in params[:-1]:
            x = jnp.tanh(x @ matrix)
        return jnp.mean((x @ params[-1] - y) ** 2)

    return Problem(loss, params, batch, search.gaussian())


def transformer() -> Problem:
    """The synthetic transformer with random weights, on a batch like those of `lacuna sweep`."""
    model = synthetic(SPEC)
    task = digits.digit_task("sort", model.apply, seed=0, batch_size=NUM_ROWS)
    family = search.gaussian(stacked=model.stacked)
    return Problem(task.objective.loss, model.init(jax.random.key(0)), task.train(0), family)


def noise_free(problem: Problem) -> Problem:
    """The same with a law that costs nothing: one number for a whole leaf.

    It depends on the draw, because XLA would move a loss that is the same for all draws out of the loop.
    """

    def noise(key: Any, leaf_name: str, layer: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        del leaf_name, layer
        return jnp.broadcast_to(1e-9 * jax.random.key_data(key)[0].astype(jnp.float32), like.shape)

    return problem._replace(family=search.LeafFamily(name="noise-free", digest="", noise=noise))


def forward_flop() -> int:
    """Floating point operations with a weight in one loss of the transformer."""
    width = SPEC.width
    num_products = SPEC.num_layers * (4 * width * width + 2 * width * SPEC.mlp_width) + width * SPEC.vocab_size
    return 2 * num_products * NUM_ROWS * (digits.row_length(8) - 1)


def cost(problem: Problem, sweep: search.Sweep) -> Cost:
    """Of the scoring alone: from the moment everything is compiled to the last score."""
    marks = []

    def mark(done: int, total: int) -> None:
        if done in (0, total):
            marks.append((time.perf_counter(), time.process_time()))

    search.run_sweep(problem.loss, problem.params, problem.batch, sweep, progress=mark)
    (wall, cpu), (wall_then, cpu_then) = marks[0], marks[-1]
    return wall_then - wall, cpu_then - cpu


def row(what: str, measured: object, goal: str, floor: str) -> str:
    """A line of the table."""
    return f"| {what} | {measured} | {goal} | {floor} |"


def of_pairs(first: harness.Timing, second: harness.Timing) -> str:
    """Both ratios: CPU time is what a shared machine cannot inflate."""
    wall = harness.ratio(first.wall_s, second.wall_s)
    return f"CPU {harness.ratio(first.cpu_s, second.cpu_s)}; wall {wall.median:.3f} ({wall.low:.3f} to {wall.high:.3f})"


def million(num_draws: int, num_pairs: int) -> list[str]:
    """Time and memory of many draws of a small model, logged to a folder, with every default; once."""
    del num_pairs
    problem = small()
    num_params = trees.size(problem.params)
    before, resident = harness.memory_bytes("VmRSS"), {}

    def look(done: int, total: int) -> None:
        for part in (total // 10, total):
            if done >= part and part not in resident:
                resident[part] = harness.memory_bytes("VmRSS")

    with tempfile.TemporaryDirectory(dir=".") as scratch:
        began = time.perf_counter()
        result = search.run_sweep(
            problem.loss,
            problem.params,
            problem.batch,
            problem.sweep(num_draws),
            out=Path(scratch).resolve() / "run",
            progress=look,
        )
        wall_s = time.perf_counter() - began
    peak, (early, late) = harness.memory_bytes("VmHWM"), resident.values()
    rate = harness.gemm_rate()
    flop = 2 * num_params * len(problem.batch[0]) * result.sweep.num_evaluations
    table = result.scores.nbytes
    what = f"{num_draws:,} draws, both signs, P = {num_params}, {jax.device_count()} devices"
    return [
        row(what, f"{wall_s:.1f} s", "< 600 s", f"{flop / rate:.1f} s at {rate / 1e9:.0f} GFLOP/s"),
        row(
            "the same: largest resident memory",
            f"{peak / 1e6:.0f} MB",
            "< 1000 MB",
            f"{before / 1e6:.0f} MB before the sweep, {table / 1e6:.0f} MB of scores",
        ),
        row(
            "the same: growth from a tenth of the draws to all of them",
            f"{(late - early) / 1e6:.1f} MB, from {early / 1e6:.1f} MB",
            "flat but for the scores",
            f"{0.9 * table / 1e6:.1f} MB of scores",
        ),
    ]


def python_cpu_s() -> float:
    """CPU seconds of all threads that run Python now; one that has ended is not seen."""
    return sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) for thread in threading.enumerate())


def driver_and_scorer(problem: Problem, sweep: search.Sweep) -> tuple[float, float]:
    """CPU seconds of the threads that run Python and of all others, in a sweep as `lacuna sweep` runs it."""
    marks = []
    terminal = Console(file=io.StringIO(), force_terminal=True)
    with (
        tempfile.TemporaryDirectory(dir=".") as scratch,
        progress(terminal, "searching", unit="candidates", scale=sweep.num_signs) as advance,
    ):

        def mark(done: int, total: int) -> None:
            advance(done, total, "")
            if done in (0, total):
                marks.append((python_cpu_s(), time.process_time()))

        out = Path(scratch).resolve() / "run"
        search.run_sweep(problem.loss, problem.params, problem.batch, sweep, out=out, progress=mark)
    (driver, everything), (driver_then, everything_then) = marks[0], marks[-1]
    spent = driver_then - driver
    return spent, everything_then - everything - spent


def driver(num_draws: int, num_pairs: int) -> list[str]:
    """The driver's share of a real sweep."""
    problem = transformer()
    runs = np.asarray([driver_and_scorer(problem, problem.sweep(num_draws)) for _ in range(num_pairs)])
    what = f"driver / scorer, CPU, {num_draws} draws, both signs, {jax.device_count()} devices"
    return [row(what, harness.ratio(runs[:, 0], runs[:, 1]), "≤ 0.02", "0")]


def one_core(num_draws: int, num_pairs: int) -> list[str]:
    """The price of noise, and a torch loop over the same candidates. Every program scores twice `num_draws` losses."""
    problem = transformer()
    free, both = noise_free(problem), problem.sweep(num_draws)
    fresh = problem.sweep(2 * num_draws, antithetic=False)
    measures: dict[str, Callable[[], Cost]] = {
        "forward passes without noise": partial(cost, free, free.sweep(num_draws)),
        "both signs of a draw": partial(cost, problem, both),
        "fresh noise for every loss": partial(cost, problem, fresh),
    }
    if find_spec("torch"):
        measures |= torch_measures(problem, num_draws)
    timings = dict(zip(measures, harness.in_turn(*measures.values(), num_pairs=num_pairs), strict=True))
    rate = harness.gemm_rate()
    floor = f"{1e3 * forward_flop() / rate:.1f} ms at {rate / 1e9:.0f} GFLOP/s"
    lines = []
    for name, timing in timings.items():
        each = 1e3 * timing.cpu_s / (2 * num_draws)
        spread = f"{np.median(each):.1f} ms ({each.min():.1f} to {each.max():.1f})"
        lines.append(row(f"one core, CPU time of a loss: {name}", spread, "", floor))
    forward, *ours = list(measures)[:3]
    for name in ours:
        lines.append(row(f"rate of {name} / {forward}", of_pairs(timings[forward], timings[name]), "≥ 0.75", "1"))
    for name in list(measures)[3:]:
        mine = ours[0] if ours[0] in name else ours[1]
        lines.append(row(f"lacuna's rate / rate of {name}", of_pairs(timings[name], timings[mine]), "≥ 1.8", ""))
    if not find_spec("torch"):
        lines.append(row("lacuna's rate / rate of torch", "torch is not installed: `.[parity]` has it", "≥ 1.8", ""))
    return lines


def torch_measures(problem: Problem, num_draws: int) -> dict[str, Callable[[], Cost]]:
    """The torch loops, one thread each, on a model whose loss is found equal first."""
    import torch

    from benchmarks import torch_search

    torch.set_num_threads(1)
    model = torch_search.Transformer(SPEC, problem.params, *problem.batch)
    mine, theirs = float(problem.loss(problem.params, problem.batch)), model.loss().item()
    if abs(mine - theirs) > TORCH_TOLERANCE:
        raise ValueError(f"the two models must be one function: {mine} and {theirs} at the base point")
    measures = {}
    for kind, both_signs in (("both signs of a draw", True), ("fresh noise for every loss", False)):
        for noise, keep in (("drawn again", False), ("kept", True)):
            draws = num_draws if both_signs else 2 * num_draws
            loop = partial(torch_search.search, model, draws, SIGMA, both_signs=both_signs, keep_noise=keep)
            loop()  # the warm-up
            measures[f"torch, {kind}, noise {noise}"] = partial(harness.once, loop)
    return measures


def cores(num_draws: int, num_pairs: int) -> list[str]:
    """Rates on one core and on two, each run in a process of its own."""
    if len(os.sched_getaffinity(0)) < 2:
        return [row("losses a second, 2 cores / 1 core", "there is only one core here", "", "2")]
    runs = [partial(cost_on, num_cores, num_draws) for num_cores in (1, 2)]
    one, two = harness.in_turn(*runs, num_pairs=num_pairs)
    rates = " and ".join(f"{2 * num_draws / np.median(timing.wall_s):.1f}" for timing in (one, two))
    found = f"{harness.ratio(one.wall_s, two.wall_s)}: {rates} a second"
    return [row("losses a second, 2 cores / 1 core, wall", found, "", "2")]


def cost_on(num_cores: int, num_draws: int) -> Cost:
    """`cost` of the transformer in a process that may use so many cores."""
    (line,) = in_process("cost", num_draws, cores=num_cores)
    wall, cpu = map(float, line.split())
    return wall, cpu


def print_cost(num_draws: int, num_pairs: int) -> list[str]:
    """What `cost_on` reads."""
    del num_pairs
    problem = transformer()
    return [" ".join(map(str, cost(problem, problem.sweep(num_draws))))]


def warm_start(num_draws: int, num_pairs: int) -> list[str]:
    """Seconds to the first score of two scripts that find everything compiled."""
    del num_draws
    problem = transformer()
    leaves = dict(zip(trees.leaf_names(problem.params), jax.tree.leaves(problem.params), strict=True))
    leaves |= {f"batch/{name}": leaf for name, leaf in problem.batch._asdict().items()}
    with tempfile.TemporaryDirectory() as scratch, harness.compiled_once() as environment:
        file = Path(scratch) / "transformer.npz"
        np.savez(file, **{name: np.asarray(leaf) for name, leaf in leaves.items()})
        scripts = {"own loss, small model": [], "transformer from a `.npz`": [str(file)]}
        runs = [[first_score(environment, given) for given in scripts.values()] for _ in range(1 + num_pairs)]
    steps = np.asarray(runs[1:])  # the first pair has compiled
    lines = []
    for i, name in enumerate(scripts):
        parts, whole = steps[:, i], steps[:, i].sum(axis=1)
        interpreter, import_jax, import_search, problem_s, compiled, scored = np.median(parts, axis=0)
        found = (
            f"{np.median(whole):.2f} s ({whole.min():.2f} to {whole.max():.2f}): interpreter {interpreter:.2f}, "
            f"import jax {import_jax:.2f}, import lacuna.search {import_search:.2f}, model and data {problem_s:.2f}, "
            f"base score and programs {compiled:.2f}, first chunk {scored:.2f}"
        )
        floor = f"{interpreter + import_jax:.2f} s: interpreter and jax"
        lines.append(row(f"first score with a warm cache, {name}", found, "≤ 1.5 s", floor))
    return lines


def first_score(environment: dict[str, str], given: list[str]) -> list[float]:
    """Seconds of every step of a user's script, see `benchmarks.first_score`."""
    command = [sys.executable, "-m", "benchmarks.first_score", str(time.monotonic()), *given]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [float(part) for part in run.stdout.split()]


ROWS: dict[str, tuple[Callable[[int, int], list[str]], int]] = {
    "million": (million, 1_000_000),
    "driver": (driver, 128),
    "one_core": (one_core, 24),
    "cores": (cores, 64),
    "cost": (print_cost, 64),
    "warm_start": (warm_start, 0),
}
"""What is measured, each in a process of its own, and its number of draws."""


def in_process(
    name: str, num_draws: int, cores: int | None = None, environment: dict[str, str] | None = None
) -> list[str]:
    """The lines of one of `ROWS`, in a process of its own that may use so many cores (default: all)."""
    command = [sys.executable, "-m", "benchmarks.sweeps", name, "--draws", str(num_draws)]
    command += [] if cores is None else ["--cores", str(cores)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return run.stdout.splitlines()


def report() -> list[str]:
    """The lines of the report."""
    lines = ["| what | measured | goal | floor |", "|---|---|---|---|"]
    with harness.compiled_once() as environment:  # half of the time would go to compiling the same programs again
        for name, (_, num_draws) in ROWS.items():
            if name != "cost":
                lines += in_process(name, num_draws, 1 if name == "one_core" else None, environment)
    return [*lines, ""]


def main() -> None:
    """Some rows alone, smaller if so wished: `NAME --draws N --pairs N --cores N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=ROWS)
    parser.add_argument("--draws", type=int)
    parser.add_argument("--pairs", type=int, default=harness.NUM_PAIRS)
    parser.add_argument("--cores", type=int)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])  # before the first device is made
    meshes.use_all_cpu_cores()
    measure, num_draws = ROWS[arguments.name]
    print("\n".join(measure(arguments.draws or num_draws, arguments.pairs)))


if __name__ == "__main__":
    main()
