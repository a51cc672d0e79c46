"""Best-of-N search: the run that evaluates a sweep, keeps every score, and names the best.

Candidates are regenerated from integers and never stored; only scores leave a step. Host memory grows by
the scores alone, device memory not at all with N.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from lacuna import hosts, keys, meshes, trees
from lacuna.errors import InvalidInput, LacunaError, NotFinite, RunMismatch
from lacuna.reports import rundir
from lacuna.search import evaluate
from lacuna.search.candidates import rescore
from lacuna.search.evaluate import Program
from lacuna.search.families import NOISE_LAW
from lacuna.search.ledger import Ledger, missing_ranges, write_table
from lacuna.search.objectives import with_data
from lacuna.search.run_folder import LOG, TABLE, open_run
from lacuna.search.select import Candidate, TopK
from lacuna.search.stepper import Block, Stepper
from lacuna.search.stopping import SweepStopped, stop_asked
from lacuna.search.sweep import Progress, Sweep, SweepResult, config_of, table_sha256
from lacuna.types import Batch, Loss, Objective, Params

FINALISTS_FACTOR = 4
"""A sweep wider than one candidate keeps this many times top-K, and lets the canonical program choose."""

DRAWS_AT_A_TIME = 2**16
"""Of a score table that is ranked."""

FAILED = 255
"""What a host says that can go on no longer: above every signal's number."""

TOLERANCE = 1e-5
"""Relative: how far a score may be from the recorded one on accelerators, whose libraries may choose other kernels."""


def identity(program: Program, params: Params, batch: Batch, sweep: Sweep, mesh: Mesh) -> dict[str, Any]:
    """All that a score depends on. Two runs may share a table only if their identities are equal.

    Chunk, N, top-K and the number of devices are not in it. The loss function is not either: a resumed run
    scores its first candidate again and compares.
    """
    machine = meshes.describe(mesh)
    stacked = [name for name in trees.leaf_names(params) if sweep.family.stacked(name)]
    return {
        "noise_law": NOISE_LAW,
        "family": sweep.family.name,
        "family_digest": sweep.family.digest,
        "stacked_sha256": hashlib.sha256("\n".join(stacked).encode()).hexdigest(),
        "seed": sweep.seed,
        "sigmas": list(sweep.sigmas),
        "unit": sweep.unit,
        "antithetic": sweep.antithetic,
        "width": sweep.width,
        "layerwise": program.layerwise,
        **({"beside": True} if program.beside else {}),
        "params_sha256": trees.content_digest(params),
        "batch_sha256": trees.content_digest(batch),
        **{name: machine[name] for name in ("platform", "matmul_precision", "threefry_partitionable")},
        "model_axis": mesh.shape.get(meshes.MODEL, 1),
        "split": {name: str(spec) for name, spec in evaluate.split_over_model((params, batch), mesh)},
    }


def run_sweep(
    loss: Loss | Objective,
    params: Params,
    batch: Batch,
    sweep: Sweep,
    *,
    mesh: Mesh | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    documents: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] = print,
    programs: evaluate.Programs | None = None,
) -> SweepResult:
    """Score every candidate of a sweep, on every device of the mesh and every host.

    A score depends on (params, batch, seed, family, index, sigma, sign, width, dtype, precision, how they are split
    over the mesh's `model` axis, backend) and on nothing else: on a CPU the table has the same bits for any chunk, any
    number of devices and processes, and after a kill and a resume. `params` is never written to.

    With several processes (`hosts.start`) all of them call this with the same arguments, and all get the same
    result; the first alone reads and writes `out`. Ctrl-C or SIGTERM on any of them ends all after the chunk in
    flight; a second Ctrl-C at once.

    Args:
      loss: `loss(params, batch) -> scalar`, minimised; or an `Objective`. The arrays of one that is a pytree, such as
        frozen weights, are data beside the batch.
      params: the base point; leaves that lie on the mesh stay split over its axis `model`.
      batch: what every candidate is scored on.
      sweep: what to evaluate.
      mesh: as `meshes.candidate_mesh()` or `meshes.model_mesh(m)`. Default: the one that `params` or the
        data lie on, or all devices.
      out: folder for `identity.json`, the log `scores.log` and `scores.parquet`; nothing is written without.
        `report_run` adds the report.
      resume: go on with the run in `out` if it has the same identity (N may have grown).
      documents: JSON documents by file name, kept in `out` if it holds no score yet; default: `config.json` with the
        settings, `environment.json` with versions and machine.
      progress: told of the draws that are done once everything is compiled, and after every chunk.
      notice: told in a sentence of damage to the log, whose draws are scored again.
      programs: a dictionary, empty at first, that the caller keeps: many short sweeps of one loss that are given the
        same one compile it once. It holds on to the loss, and to what the loss read besides its arguments as it was
        then; so it is left aside where there is an `out`, whose scores must notice an edited loss.

    Raises:
      InvalidInput: the loss is not a scalar, two leaves would share their noise, the family does not fit, or (with
        an `out`) another process searches around other weights or on other rows.
      TreeMismatch: a basis on another tree.
      NotFinite: the loss at the base point is NaN or infinite; nothing was written.
      RunMismatch: `out` holds something else, a run of another identity or with more draws, or this one
        without `resume`; nothing was touched.
      SweepStopped: a signal came; what was scored is in `out`.

    Source: arXiv 2606.10929, Theorem 1.
    """
    objective, batch = with_data(loss, batch)
    mesh = meshes.for_candidates(mesh, (params, batch))
    program = evaluate.program_of(objective, sweep.family, width=sweep.width, exact_radius=sweep.unit == "exact_radius")
    machine = meshes.describe(mesh)
    _check_documents(documents)
    keys.check_distinct(trees.leaf_names(params))
    stepper = Stepper(program, sweep, params, batch, mesh, programs if out is None else None)
    narrow = sweep.width == 1  # else finalists are scored by another program than the step, and so is the base point
    base_score = stepper.base_score() if narrow else float(evaluate.score(program.objective, params, batch))
    if not math.isfinite(base_score):
        raise NotFinite(
            "the loss at the base point must be finite to search around it",
            got=base_score,
            hint="check the parameters and the batch",
        )
    scores = np.full((sweep.num_candidates, len(sweep.sigmas), sweep.num_signs), np.nan, np.float32)
    known = np.zeros(sweep.num_candidates, bool)
    folder = None
    if out is not None:
        run_identity = identity(program, *stepper.point, sweep, mesh)
        _check_everywhere(run_identity)
        folder = _Folder(Path(out), run_identity, sweep.num_candidates, resume=resume, notice=notice)
    try:
        if folder is not None:
            known = folder.read(scores)
            if known.any():
                _check_same_loss(scores, known, stepper, mesh, folder.path)
            else:  # what was scored was scored under the documents that are there
                made = {"config.json": config_of(sweep), "environment.json": rundir.environment(machine)}
                folder.write_documents(made | dict(documents or {}))
        num_known = int(known.sum())
        if progress is not None:
            progress(num_known, sweep.num_candidates)
        began = time.perf_counter()
        _search(stepper, scores, known, folder, progress)
        wall_s = time.perf_counter() - began
    finally:
        if folder is not None:
            folder.close()
    if folder is not None:
        folder.write_table(sweep.sigmas, scores)

    top = TopK(sweep.num_top * (1 if sweep.width == 1 else FINALISTS_FACTOR))
    for start in range(0, len(scores), DRAWS_AT_A_TIME):
        top.add(start, scores[start : start + DRAWS_AT_A_TIME])
    return SweepResult(
        sweep=sweep,
        base_score=base_score,
        scores=scores,
        top_k=_finalists(objective, params, batch, sweep, top.best(sweep.sigmas, sweep.num_signs)),
        sha256=table_sha256(scores),
        num_scored=sweep.num_candidates - num_known,
        wall_s=wall_s,
        machine=machine,
    )


class _Folder:
    """The run folder as every process sees it: the first one reads and writes, the others are told."""

    def __init__(
        self, path: Path, identity: dict[str, Any], num_candidates: int, *, resume: bool, notice: Callable[[str], None]
    ):
        self.path, self._notice = path, notice
        self._ledger: Ledger | None = None

        def opened() -> None:
            self._ledger = open_run(path, identity, num_candidates=num_candidates, resume=resume)

        hosts.agree(opened)

    def read(self, scores: Float[np.ndarray, "N sigmas signs"]) -> Bool[np.ndarray, "N"]:
        """Fill in what is on disk, on every process; which draws that is."""
        known = np.zeros(len(scores), bool)
        if self._ledger is not None:
            known = self._ledger.read(scores)
            if self._ledger.damage:
                lost = missing_ranges(known)
                again = ", ".join(f"{start:,} to {stop - 1:,}" for start, stop in lost[:5]) + ", ..." * (len(lost) > 5)
                told = f"draws {again} are to be scored" if lost else "no draw is lost"
                self._notice(f"{self.path / LOG} is damaged: {'; '.join(self._ledger.damage[:5])}; {told}.")
        known = hosts.share(known)
        if known.any():
            scores[:] = hosts.share(scores)
        return known

    def write_documents(self, documents: Mapping[str, Any]) -> None:
        def written() -> None:
            for name, document in documents.items():
                rundir.write_json(self.path / name, document)

        hosts.agree(written)

    def append(self, block: Block) -> None:
        if self._ledger is not None:
            self._ledger.append(block.start, block.scores)

    def write_table(self, sigmas: tuple[float, ...], scores: Float[np.ndarray, "N sigmas signs"]) -> None:
        hosts.agree(lambda: write_table(self.path / TABLE, sigmas, scores))

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()


def _search(
    stepper: Stepper,
    scores: Float[np.ndarray, "N sigmas signs"],
    known: Bool[np.ndarray, "N"],
    folder: _Folder | None,
    progress: Progress | None,
) -> None:
    """Score every draw that is not known, into the table and the log."""
    num_done, stop = int(known.sum()), 0
    fault: OSError | None = None

    def word() -> int:
        return FAILED if fault is not None else asked()

    with stop_asked() as asked:
        for block in stepper.blocks(missing_ranges(known), stop=word):
            stop = block.stop
            if fault is not None:
                continue
            try:
                if folder is not None:
                    folder.append(block)
            except OSError as full:
                if jax.process_count() == 1:
                    raise
                fault = full  # the other hosts wait for this one in the next chunk, and are told there
                continue
            scores[block.start : block.start + len(block.scores)] = block.scores
            num_done += len(block.scores)
            if progress is not None:
                progress(num_done, len(scores))
        stop = max(stop, hosts.largest(word()))
    if fault is not None:
        raise fault
    if stop == FAILED:
        raise LacunaError("the first process could not keep what was scored, and says why")
    if stop:
        raise SweepStopped(stop, num_done, len(scores))


def _finalists(
    objective: Objective, params: Params, batch: Batch, sweep: Sweep, best: tuple[Candidate, ...]
) -> tuple[Candidate, ...]:
    """The top K by the canonical program, which may order candidates of a wider sweep anew in the last bits."""
    if sweep.width > 1:
        exact = rescore(objective, params, batch, sweep, best)
        scored = (c._replace(score=float(s)) for c, s in zip(best, exact, strict=True) if math.isfinite(s))
        best = tuple(sorted(scored, key=lambda c: (c.score, c.index, c.sigma, -c.sign)))
    return best[: sweep.num_top]


def _check_same_loss(
    scores: Float[np.ndarray, "N sigmas signs"], known: Bool[np.ndarray, "N"], stepper: Stepper, mesh: Mesh, out: Path
) -> None:
    """Score the first recorded draw again: this catches an edited loss, another driver, another compiler."""
    first = int(np.argmax(known))
    again = next(iter(stepper.blocks([(first, first + 1)]))).scores
    before = scores[first : first + 1]
    same = table_sha256(again) == table_sha256(before)
    if mesh.devices.flat[0].platform != "cpu":
        same = np.allclose(again, before, rtol=TOLERANCE, atol=0, equal_nan=True)
    if not same:
        raise RunMismatch(
            f"{out} was scored by another program: its first candidate must come out "
            f"{'bit for bit' if mesh.devices.flat[0].platform == 'cpu' else f'within {TOLERANCE:g}'}",
            got=f"{again.reshape(-1)[0]:.9g} now against {before.reshape(-1)[0]:.9g} there",
            hint="the loss, the versions and the machine of that run, or another --out folder",
        )


def _check_everywhere(identity: dict[str, Any]) -> None:
    """Raise on every process if the scores of one of them would depend on something else: on other files, say."""
    first = hosts.agree(lambda: identity)
    differing = [name for name in identity if first[name] != identity[name]]
    if hosts.largest(len(differing)):
        asked = "every process must search around the same weights, on the same rows and in the same way"
        raise InvalidInput(
            asked,
            got=f"another {', '.join(differing)} here" if differing else "another one that does not",
            hint="the same files and the same options on every host",
        )


def _check_documents(documents: Mapping[str, Any] | None) -> None:
    try:
        json.dumps(dict(documents or {}))
    except (TypeError, ValueError) as fault:
        raise InvalidInput(
            "documents must be JSON", got=fault, hint="texts, numbers, lists and dicts of them"
        ) from fault
