"""Sweeps: a million draws, the driver's share, the price of noise, a torch loop beside it, cores, the first score.

    python -m benchmarks sweeps

Questions: do a million draws of a small model end within minutes, in memory that does not grow? What share of the
CPU time goes to the driver? What does noise cost beside the forward pass that scores it? How does a sweep compare
with the same search in place in torch? What share of the rate of a square matrix product do candidates reach on one
core (goal: 0.6), and how much more do two score (goal: 1.8 times)? How long does a user wait for the first
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import harness
from benchmarks.rows import Row, compared, from_process, needs, show, skipped, timed
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
    """What `run_sweep` takes, the law of the noise, and the steps that were compiled before."""

    loss: Any
    params: Any
    batch: Any
    family: search.Family
    programs: dict[Any, Any]

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

    return Problem(loss, params, batch, search.gaussian(), {})


def transformer(num_rows: int = NUM_ROWS) -> Problem:
    """The synthetic transformer with random weights, on a batch like those of `lacuna sweep`."""
    model = synthetic(SPEC)
    task = digits.digit_task("sort", model.apply, seed=0, batch_size=num_rows)
    family = search.gaussian(stacked=model.stacked)
    return Problem(task.objective.loss, model.init(jax.random.key(0)), task.train(0), family, {})


def noise_free(problem: Problem) -> Problem:
    """The same with a law that costs nothing: one number for a whole leaf.

    It depends on the draw, because XLA would move a loss that is the same for all draws out of the loop.
    """

    def noise(key: Any, leaf_name: str, layer: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        del leaf_name, layer
        return jnp.broadcast_to(1e-9 * jax.random.key_data(key)[0].astype(jnp.float32), like.shape)

    return problem._replace(family=search.LeafFamily(name="noise-free", digest="", noise=noise), programs={})


def forward_flop(num_rows: int = NUM_ROWS) -> int:
    """Floating point operations with a weight in one loss of the transformer."""
    width = SPEC.width
    num_products = SPEC.num_layers * (4 * width * width + 2 * width * SPEC.mlp_width) + width * SPEC.vocab_size
    return 2 * num_products * num_rows * (digits.row_length(8) - 1)


def cost(problem: Problem, sweep: search.Sweep) -> Cost:
    """Of the scoring alone: from the moment everything is compiled to the last score."""
    marks = []

    def mark(done: int, total: int) -> None:
        if done in (0, total):
            marks.append((time.perf_counter(), time.process_time()))

    search.run_sweep(problem.loss, problem.params, problem.batch, sweep, progress=mark, programs=problem.programs)
    (wall, cpu), (wall_then, cpu_then) = marks[0], marks[-1]
    return wall_then - wall, cpu_then - cpu


def million(num_draws: int) -> Iterator[Row]:
    """Time and memory of many draws of a small model, logged to a folder, with every default; once."""
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
    floor = harness.rates().floor_s(flop=2 * num_params * len(problem.batch[0]) * result.sweep.num_evaluations)
    what = f"{num_draws:,} draws, both signs, P = {num_params}, {jax.device_count()} devices"
    table = result.scores.nbytes / 1e6
    yield Row(what, wall_s, "s", goal="<= 600", floor=floor)
    yield Row(
        "the same: largest resident memory", peak / 1e6, "MB", goal="<= 1000", floor=before / 1e6 + table,
        note="floor: what was there before, and the scores",
    )  # fmt: skip
    yield Row(
        "the same: growth from a tenth of the draws to all of them", (late - early) / 1e6, "MB",
        goal=f"<= {2 * table:.0f}", floor=0.9 * table, note="floor: the scores of these draws",
    )  # fmt: skip


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


def driver(num_draws: int) -> Iterator[Row]:
    """The driver's share of a real sweep."""
    problem = transformer()
    runs = np.asarray(harness.repeated(lambda: driver_and_scorer(problem, problem.sweep(num_draws))))
    what = f"driver / scorer, CPU, {num_draws} draws, both signs, {jax.device_count()} devices"
    yield compared(what, harness.ratio(runs[:, 0], runs[:, 1]), goal="<= 0.02", floor=0)


def one_core(num_draws: int) -> Iterator[Row]:
    """The price of noise on one core. Every program scores twice `num_draws` losses."""
    problem = transformer()
    free, both = noise_free(problem), problem.sweep(num_draws)
    fresh = problem.sweep(2 * num_draws, antithetic=False)
    product, flop = harness.multiplying()
    measures: dict[str, Callable[[], Cost]] = {
        "forward passes without noise": partial(cost, free, free.sweep(num_draws)),
        "both signs of a draw": partial(cost, problem, both),
        "fresh noise for every loss": partial(cost, problem, fresh),
        "square product": partial(harness.once, product),
    }
    forward, *noisy, products = harness.in_turn(*measures.values())
    peak = flop / products.cpu_s
    floor = 2 * num_draws * forward_flop() / float(np.median(peak))
    names = list(measures)
    for name, timing in zip(names, (forward, *noisy), strict=False):
        yield timed(f"one core: {2 * num_draws} losses, {name}", timing, cpu=True, floor=floor, note="CPU time")
    for name, timing in zip(names[1:], noisy, strict=False):
        yield compared(f"rate of {name} / rate without noise, CPU", harness.ratio(forward.cpu_s, timing.cpu_s),
                       goal=">= 0.75", floor=1)  # fmt: skip
    share = harness.ratio(2 * num_draws * forward_flop() / peak, noisy[0].cpu_s)
    yield compared(f"one core: share of the square product's rate, {names[1]}", share, goal=">= 0.6", floor=1,
                   note=f"in turn with products at {np.median(peak) / 1e9:.0f} GFLOP/s")  # fmt: skip
    yield from beside_torch(num_draws)


@needs("torch")
def beside_torch(num_draws: int) -> Iterator[Row]:
    """Rates beside a torch loop that perturbs its weights in place, one core each."""
    import torch

    from benchmarks import torch_search

    torch.set_num_threads(1)
    problem = transformer()
    model = torch_search.Transformer(SPEC, problem.params, *problem.batch)
    mine, theirs = float(problem.loss(problem.params, problem.batch)), model.loss().item()
    note = harness.check_same("losses at the base point", mine, theirs, tolerance=TORCH_TOLERANCE)
    loops = {}
    for both_signs in (True, False):
        draws = num_draws if both_signs else 2 * num_draws
        ours = partial(cost, problem, problem.sweep(draws, antithetic=both_signs))
        for keep in (False, True):
            loop = partial(torch_search.search, model, draws, SIGMA, both_signs=both_signs, keep_noise=keep)
            kind = "both signs of a draw" if both_signs else "fresh noise for every loss"
            loops[f"{kind}, noise {'kept' if keep else 'drawn again'}"] = ours, partial(harness.once, loop)
    for name, (ours, loop) in loops.items():
        loop()  # the warm-up
        mine, theirs = harness.in_turn(ours, loop)
        yield timed(f"one core: {2 * num_draws} losses, torch, {name}", theirs, cpu=True, note="CPU time")
        yield compared(f"lacuna's rate / rate of torch, {name}, CPU", harness.ratio(theirs.cpu_s, mine.cpu_s),
                       goal=">= 1.8", note=note)  # fmt: skip


def cores(num_draws: int) -> Iterator[Row]:
    """Rates on one core and on two, in two processes that wait for each other."""
    what = "losses a second, 2 cores / 1 core"
    if len(os.sched_getaffinity(0)) < 2:
        yield skipped(what, "there is only one core here")
        return
    with ExitStack() as stack:
        one, two = (stack.enter_context(Server(num_cores, num_draws)) for num_cores in (1, 2))
        single, double = harness.in_turn(one.cost, two.cost)
    for num_cores, timing in ((1, single), (2, double)):
        yield timed(f"{2 * num_draws} losses, {num_cores} core(s)", timing)
    yield compared(what, harness.ratio(single.wall_s, double.wall_s), goal=">= 1.8", floor=2)


class Server:
    """A process that scores the transformer when it is told to, on so many cores (None: all) and virtual devices."""

    def __init__(self, num_cores: int | None, num_draws: int, num_rows: int = NUM_ROWS, num_devices: int | None = None):
        self._command = [sys.executable, "-m", "benchmarks.sweeps", "serve"]
        self._command += ["--draws", str(num_draws), "--rows", str(num_rows)]
        self._command += [] if num_cores is None else ["--cores", str(num_cores)]
        self._environment = os.environ | ({} if num_devices is None else {"JAX_NUM_CPU_DEVICES": str(num_devices)})

    def __enter__(self) -> "Server":
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )
        self.cost()  # the warm-up
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"a process that scores ended with status {self._process.returncode}")

    def cost(self) -> Cost:
        """Of one sweep, asked for and waited for."""
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        print(file=asked, flush=True)
        wall, cpu = map(float, answered.readline().split())
        return wall, cpu


def serve(num_draws: int, num_rows: int) -> None:
    """What `Server` starts: a line for each line."""
    problem = transformer(num_rows)
    for _ in sys.stdin:
        print(*cost(problem, problem.sweep(num_draws)), flush=True)


def warm_start(num_draws: int) -> Iterator[Row]:
    """Seconds to the first score of two scripts that find everything compiled."""
    del num_draws
    problem = transformer()
    leaves = dict(zip(trees.leaf_names(problem.params), jax.tree.leaves(problem.params), strict=True))
    leaves |= {f"batch/{name}": leaf for name, leaf in problem.batch._asdict().items()}
    with tempfile.TemporaryDirectory() as scratch, harness.compiled_once() as environment:
        file = Path(scratch) / "transformer.npz"
        np.savez(file, **{name: np.asarray(leaf) for name, leaf in leaves.items()})
        scripts = {"own loss, small model": [], "transformer from a `.npz`": [str(file)]}
        starts = [partial(first_score, environment, given) for given in scripts.values()]
        for start in starts:
            start()  # which compiles
        steps = np.asarray(harness.repeated(lambda: [start() for start in starts]))
    for i, name in enumerate(scripts):
        parts = steps[:, i]
        interpreter, import_jax, import_search, problem_s, compiled, scored = np.median(parts, axis=0)
        note = (
            f"interpreter {interpreter:.2f}, import jax {import_jax:.2f}, import lacuna.search {import_search:.2f}, "
            f"model and data {problem_s:.2f}, base score and programs {compiled:.2f}, first chunk {scored:.2f}; "
            "floor: interpreter and jax"
        )
        whole = harness.Timing(parts.sum(axis=1), parts.sum(axis=1))
        yield timed(
            f"first score with a warm cache, {name}", whole, goal="<= 1.5", floor=interpreter + import_jax, note=note
        )


def first_score(environment: dict[str, str], given: list[str]) -> list[float]:
    """Seconds of every step of a user's script, see `benchmarks.first_score`."""
    command = [sys.executable, "-m", "benchmarks.first_score", str(time.monotonic()), *given]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [float(part) for part in run.stdout.split()]


PARTS: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {
    "million": (million, 1_000_000),
    "driver": (driver, 96),
    "one_core": (one_core, 8),
    "cores": (cores, 32),
    "warm_start": (warm_start, 0),
}
"""What is measured, each in a process of its own, and its number of draws."""


def measure() -> Iterator[Row]:
    """The rows."""
    with harness.compiled_once() as environment:  # half of the time would go to compiling the same programs again
        for name in PARTS:
            one = ["--cores", "1"] if name == "one_core" else []
            yield from from_process("benchmarks.sweeps", name, *one, environment=environment)


def main() -> None:
    """Some rows alone, smaller if so wished: `NAME --draws N --cores N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=[*PARTS, "serve"])
    parser.add_argument("--draws", type=int)
    parser.add_argument("--cores", type=int)
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="of `serve`")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])  # before the first device is made
    meshes.use_all_cpu_cores()
    if arguments.name == "serve":
        serve(arguments.draws, arguments.rows)
    else:
        part, num_draws = PARTS[arguments.name]
        show(part(arguments.draws or num_draws))


if __name__ == "__main__":
    main()
