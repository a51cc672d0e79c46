"""What a sweep will take, before it runs: operations, memory, and time by a short trial on this machine."""

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jax.sharding import Mesh

from lacuna import hosts, keys, meshes, trees
from lacuna.search import evaluate
from lacuna.search.ledger import RECORD_BYTES
from lacuna.search.objectives import with_data
from lacuna.search.stepper import Stepper
from lacuna.search.sweep import Sweep
from lacuna.types import Batch, Loss, Objective, Params

TRIAL_S = 2.0
"""Seconds that the trial takes, at least one step of it."""


class SweepPlan(NamedTuple):
    """What a sweep takes.

    Attributes:
      num_evaluations: losses: draws x sigmas x signs.
      num_devices: of the mesh.
      flops: floating-point operations of one loss, in its matrix products and convolutions.
      params_bytes: of the base point on one device.
      data_bytes: of the batch and of a basis or scales, on one device.
      working_bytes: what the step needs on one device besides: noise, weights of candidates, activations.
      host_bytes: of the table of scores.
      disk_bytes: of the log and the Parquet table, about.
      compile_s: seconds that tracing and compiling took.
      rate: losses a second, all devices together, in the trial.
      eta_s: seconds that the search takes at that rate, without compilation.
    """

    num_evaluations: int
    num_devices: int
    flops: int
    params_bytes: int
    data_bytes: int
    working_bytes: int
    host_bytes: int
    disk_bytes: int
    compile_s: float
    rate: float
    eta_s: float


def plan_sweep(
    loss: Loss | Objective,
    params: Params,
    batch: Batch,
    sweep: Sweep,
    *,
    mesh: Mesh | None = None,
    trial_s: float = TRIAL_S,
) -> SweepPlan:
    """Plan a sweep: compile its step, ask the compiler for its memory, and time some of its draws.

    Args:
      loss: as for `run_sweep`.
      params: likewise.
      batch: likewise.
      sweep: likewise.
      mesh: likewise.
      trial_s: how long to try.
    """
    objective, batch = with_data(loss, batch)
    mesh = meshes.for_candidates(mesh, (params, batch))
    keys.check_distinct(trees.leaf_names(params))
    program = evaluate.program_of(objective, sweep.family, width=sweep.width, exact_radius=sweep.unit == "exact_radius")
    began = time.perf_counter()
    stepper = Stepper(program, sweep, params, batch, mesh)
    compile_s = time.perf_counter() - began
    family, placed, data, *_ = stepper.arguments(0, 1)
    memory = stepper.compiled.memory_analysis()
    evaluations_a_draw = sweep.num_evaluations // sweep.num_candidates
    rate = evaluations_a_draw * _rate(stepper, trial_s)
    eta_s = sweep.num_evaluations / rate
    return SweepPlan(
        num_evaluations=sweep.num_evaluations,
        num_devices=mesh.size,
        flops=flops(program.objective.loss, params, batch),
        params_bytes=_bytes_on_a_device(placed),
        data_bytes=_bytes_on_a_device((family, data)),
        working_bytes=memory.temp_size_in_bytes + memory.output_size_in_bytes if memory is not None else 0,
        host_bytes=4 * sweep.num_evaluations,
        # Whole records in the log, at least one for each chunk of about a second; some bytes a row in the table.
        disk_bytes=round((4 + 6) * sweep.num_evaluations + RECORD_BYTES * min(eta_s, sweep.num_candidates)),
        compile_s=compile_s,
        rate=rate,
        eta_s=eta_s,
    )


def _rate(stepper: Stepper, trial_s: float) -> float:
    """Draws a second, from chunks that grow until one takes the trial's time."""
    trips = 1
    stepper.run(0, trips)  # what is done once, is done now
    while True:
        began = time.perf_counter()
        stepper.run(0, trips)
        took = time.perf_counter() - began
        # By the first host's clock, because all of them have to make the same steps.
        more = round(min(trips * max(2.0, trial_s / took), stepper.capacity)) if took < trial_s / 2 else trips
        if (more := int(hosts.share(np.asarray(more)))) <= trips:
            return stepper.granule * trips / took
        trips = more


def _bytes_on_a_device(tree: Any) -> int:
    def of_leaf(leaf: jax.Array) -> int:
        itemsize = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * itemsize

    return sum(of_leaf(leaf) for leaf in jax.tree.leaves(tree))


def flops(loss: Loss, params: Params, batch: Batch) -> int:
    """Floating-point operations of one loss in its matrix products and convolutions, loops counted out.

    Of a `while` loop whose length is data one trip is counted, of a branch the longer one.
    """
    return _flops_of(jax.make_jaxpr(loss)(params, batch).jaxpr)


def _flops_of(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        kind, settings = equation.primitive.name, equation.params
        avals: list[list[Any]] = [[one.aval for one in some] for some in (equation.invars, equation.outvars)]
        ins, outs = ([getattr(aval, "shape", ()) for aval in some] for some in avals)
        if kind == "dot_general":
            (contracted, _), _ = settings["dimension_numbers"]
            total += 2 * math.prod(outs[0]) * math.prod(ins[0][axis] for axis in contracted)
        elif kind == "conv_general_dilated":
            features = ins[1][settings["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(outs[0]) * math.prod(ins[1]) // max(1, features)
        inner = [_flops_of(one) for one in core.jaxprs_in_params(settings)]
        repeated = settings.get("length", 1) if kind == "scan" else 1
        total += repeated * (max(inner, default=0) if kind == "cond" else sum(inner))
    return total
