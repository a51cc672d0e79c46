"""Random search beside other ways to do it: evosax, a seeded loop in place in 16 bits, and how a sweep scales.

    python -m benchmarks search_peers

Questions: what do time and memory of N candidates come to beside evosax's OpenES, which holds all of them at once, N x
P? What does a search in place, as published ones go about it in torch (the generator seeded anew for every tensor,
noise added and subtracted in bfloat16), do to the law of the noise and to the base point, and how fast is it? How does
a sweep grow with N, with the number of (virtual) devices, with the chunk and with the width? The synthetic transformer
with random weights scores 32 rows of 17 tokens; sweeps and evosax have all cores, torch one thread. The floor is the
products with a weight at this machine's rate for a square one.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.rows import Row, compared, needs, timed
from benchmarks.sweeps import SIGMA, SPEC, Cost, Problem, Server, cost, forward_flop, transformer
from lacuna import keys, meshes, search, trees

NUM_ROWS, NUM_CANDIDATES, NUM_IN_PLACE, NUM_DRIFTED = 32, 64, 16, 1000
NUM_DEVICES, NUM_DRAWS, CHUNKS, WIDTHS = (1, 2, 4), (8, 16, 64), (2, 8, 16), (1, 4)
TOLERANCE = 1e-4
"""Of losses: the same candidate side by side with others and alone."""
STANDARD_ERRORS = 5
"""That two means over independent draws may be apart."""


def of_evosax(problem: Problem, num: int, *, side_by_side: bool) -> Callable[[], tuple[jax.Array, jax.Array, Any]]:
    """One generation: the points, their losses, and the state after it."""
    import optax
    from evosax.algorithms import Open_ES

    search_by = Open_ES(num, problem.params, std_schedule=optax.constant_schedule(SIGMA))
    settings = search_by.default_params
    key = jax.random.key(0)

    @jax.jit
    def score(points: Any, batch: Any) -> jax.Array:
        if side_by_side:
            return jax.vmap(problem.loss, (0, None))(points, batch)
        return jax.lax.map(lambda point: problem.loss(point, batch), points)

    def generation() -> tuple[Any, jax.Array, Any]:
        state = search_by.init(key, problem.params, settings)
        points, state = search_by.ask(key, state, settings)
        losses = score(points, problem.batch)
        return points, losses, search_by.tell(key, points, losses, state, settings)[0].mean

    return generation


@needs("evosax")
def beside_evosax() -> Iterator[Row]:
    """One generation of evosax's OpenES beside a sweep of as many candidates."""
    problem = transformer(NUM_ROWS)
    sweep = problem.sweep(NUM_CANDIDATES // 2)
    ours = search.run_sweep(problem.loss, problem.params, problem.batch, sweep, programs=problem.programs).scores
    loss, floor = jax.jit(problem.loss), _floor_s(NUM_CANDIDATES)
    for side_by_side, how in ((False, "one after the other"), (True, "side by side")):
        generation = of_evosax(problem, NUM_CANDIDATES, side_by_side=side_by_side)
        points, losses, _ = generation()
        alone = loss(jax.tree.map(lambda leaf: leaf[3], points), problem.batch)
        note = harness.check_same("a candidate of evosax", losses[3], alone, tolerance=TOLERANCE)
        _check_means(ours, losses)
        del points
        mine, theirs = harness.in_turn(partial(cost, problem, sweep), partial(harness.once, generation))
        what = f"{NUM_CANDIDATES} candidates, evosax OpenES, {how}"
        yield timed(what, theirs, floor=floor)
        yield timed(f"{NUM_CANDIDATES} candidates, lacuna", mine, floor=floor)
        yield compared(f"lacuna / {what}, wall", harness.ratio(mine.wall_s, theirs.wall_s), goal="<= 1",
                       note=f"{note}; mean losses equal within {STANDARD_ERRORS} standard errors")  # fmt: skip
    size = 4 * trees.size(problem.params)
    for name, num in (("evosax", NUM_CANDIDATES), ("lacuna", NUM_CANDIDATES), ("lacuna", 4 * NUM_CANDIDATES)):
        added = harness.peak_bytes("benchmarks.search_peers", name, str(num))
        note = f"{added / size:.1f} times P; N x P is {num * size / 1e6:.0f} MB"
        yield Row(f"memory that {num} candidates add, {name}", added / 1e6, "MB", note=note)


def _floor_s(num: int) -> float:
    """Seconds of the products with a weight of so many candidates."""
    return harness.rates().floor_s(flop=num * forward_flop(NUM_ROWS))


def _check_means(ours: Any, theirs: Any) -> None:
    """Raise unless the mean losses of independent draws of one law agree."""
    one, other = np.ravel(ours).astype(np.float64), np.ravel(theirs).astype(np.float64)
    error = np.hypot(one.std() / np.sqrt(one.size), other.std() / np.sqrt(other.size))
    if not abs(one.mean() - other.mean()) <= STANDARD_ERRORS * error:
        raise ValueError(f"two searches of one law must have one mean loss, got {one.mean()} and {other.mean()}")


@needs("torch")
def beside_in_place() -> Iterator[Row]:
    """A search in place in torch, seeded anew for every tensor, in bfloat16."""
    import torch

    from benchmarks import torch_search

    torch.set_num_threads(1)  # threads that wait for each other would count as CPU time
    problem = transformer(NUM_ROWS)
    base = trees.content_digest(problem.params)
    model = torch_search.Transformer(SPEC, problem.params, *problem.batch, dtype=torch.bfloat16)
    loss, exact = model.loss().item(), float(problem.loss(problem.params, problem.batch))
    note = harness.check_same("losses at the base point", loss, exact, tolerance=0.05)
    sweep = problem.sweep(NUM_IN_PLACE, antithetic=False)
    loop = partial(torch_search.reseeded_search, model, NUM_IN_PLACE, SIGMA)
    cost(problem, sweep)
    loop()
    mine, theirs = harness.in_turn(partial(cost, problem, sweep), partial(harness.once, loop))
    floor = len(os.sched_getaffinity(0)) * _floor_s(NUM_IN_PLACE)
    for what, timing in (("in place, bfloat16", theirs), ("lacuna, float32", mine)):
        yield timed(
            f"{NUM_IN_PLACE} candidates, {what}", timing, cpu=True, floor=floor, note="CPU time; floor of float32"
        )
    yield compared("lacuna's rate / rate in place, CPU", harness.ratio(theirs.cpu_s, mine.cpu_s), note=note)
    yield from _correlations(problem, model)
    model = torch_search.Transformer(SPEC, problem.params, *problem.batch, dtype=torch.bfloat16)
    start = torch.cat([weight.flatten().float() for weight in model.weights()])
    torch_search.reseeded_search(model, NUM_DRIFTED, SIGMA, score=False)
    moved = torch.cat([weight.flatten().float() for weight in model.weights()]) - start
    yield Row(
        f"base point after {NUM_DRIFTED:,} candidates in place: drift of a weight / sigma",
        moved.square().mean().sqrt().item() / SIGMA,
        note=f"loss {loss:.4f} to {model.loss().item():.4f}",
    )
    search.run_sweep(problem.loss, problem.params, problem.batch, sweep, programs=problem.programs)
    drift = float(trees.content_digest(problem.params) != base)
    yield Row(
        "base point after a sweep of lacuna: drift", drift, goal="<= 0", note="0 where all bits are what they were"
    )


def _correlations(problem: Problem, model: Any) -> Iterator[Row]:
    """Between the noise of two tensors of one shape, the first two layers' first matrix."""
    from benchmarks import torch_search

    matrices = (layer.qkv for layer in model.layers[:2])
    first, second = (noise.float().numpy().ravel() for noise in torch_search.reseeded_noise([*matrices], 0))
    yield Row("correlation of the noise of two tensors of one shape, in place", float(np.corrcoef(first, second)[0, 1]))
    noise = problem.family.draw(keys.candidate(keys.root(0), 0), problem.params)["layers"]["attention"]["qkv"]["kernel"]
    found = abs(float(np.corrcoef(np.ravel(noise[0]), np.ravel(noise[1]))[0, 1]))
    yield Row("the same, lacuna, without its sign", found, goal=f"<= {STANDARD_ERRORS / first.size**0.5:.2g}",
              note=f"goal: {STANDARD_ERRORS} standard errors of independent noise")  # fmt: skip


def scaling() -> Iterator[Row]:
    """A sweep against N, chunk and width in turn, and against virtual devices."""
    problem = transformer(NUM_ROWS)
    middle = NUM_DRAWS[1]
    sweeps = {f"N = {2 * num}": problem.sweep(num) for num in NUM_DRAWS}
    sweeps |= {f"chunk {chunk}, N = {2 * middle}": problem.sweep(middle, chunk=chunk) for chunk in CHUNKS}
    sweeps |= {f"width {width}, N = {2 * middle}": problem.sweep(middle, width=width) for width in WIDTHS}
    for sweep in sweeps.values():
        cost(problem, sweep)  # the warm-up
    timings, floor = harness.in_turn(*(partial(cost, problem, sweep) for sweep in sweeps.values())), _floor_s(1)
    for (name, sweep), timing in zip(sweeps.items(), timings, strict=True):
        each = harness.Timing(timing.wall_s / sweep.num_evaluations, timing.cpu_s / sweep.num_evaluations)
        yield timed(f"a candidate of a sweep, {name}, {jax.device_count()} devices", each, floor=floor)
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(None, middle, NUM_ROWS, num)) for num in NUM_DEVICES]
        measures: list[Callable[[], Cost]] = [server.cost for server in servers]
        timings = harness.in_turn(*measures)
    for num, timing in zip(NUM_DEVICES, timings, strict=True):
        each = harness.Timing(timing.wall_s / (2 * middle), timing.cpu_s / (2 * middle))
        yield timed(f"a candidate of a sweep, {num} virtual devices, N = {2 * middle}", each, floor=floor)


def measure() -> Iterator[Row]:
    """The rows."""
    meshes.use_all_cpu_cores()
    yield from beside_evosax()
    yield from beside_in_place()
    yield from scaling()


def main() -> None:
    """Memory of one search in a process of its own: `--memory NAME N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", nargs=2, required=True, metavar=("NAME", "N"))
    name, num = parser.parse_args().memory
    problem = transformer(NUM_ROWS)

    def run(num_candidates: int) -> Any:
        if name == "evosax":
            return of_evosax(problem, num_candidates, side_by_side=False)()
        sweep = problem.sweep(num_candidates // 2)
        return jnp.asarray(search.run_sweep(problem.loss, problem.params, problem.batch, sweep).scores)

    jax.block_until_ready(run(2))  # what it takes to trace and to compile is none of the candidates'
    harness.print_peak(lambda: run(int(num)))


if __name__ == "__main__":
    main()
