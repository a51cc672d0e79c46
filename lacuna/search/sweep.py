"""Best-of-N search: what to evaluate, and the loop that evaluates it.

Candidates are regenerated from integers and never stored; only scores leave a step. Host memory grows by
the scores alone, device memory not at all with N.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lacuna import keys, meshes, trees
from lacuna.errors import InvalidInput, NotFinite, RunMismatch
from lacuna.reports import rundir
from lacuna.search import evaluate
from lacuna.search.families import NOISE_LAW, Family
from lacuna.search.ledger import write_table
from lacuna.search.run_folder import open_run
from lacuna.search.select import Candidate, TopK
from lacuna.types import Batch, Loss, Objective, Params

Progress = Callable[[int, int], None]
"""`progress(draws done, draws in all)`, called once everything is compiled, and after every chunk."""

DEFAULT_TOP_K = 16

FINALISTS_FACTOR = 4
"""A sweep wider than one candidate keeps this many times top-K, and lets the canonical program choose."""


@dataclass(frozen=True)
class Sweep:
    """What to evaluate: N draws, each at every sigma and sign. Draw i is a pure function of (seed, i).

    Attributes:
      family: law of the noise at unit scale.
      sigmas: scales per coordinate, ascending, > 0.
      num_candidates: N, the number of draws; N x sigmas x signs losses are evaluated.
      seed: of the noise, in [0, 2^32).
      antithetic: score both signs of every draw.
      top_k: how many of the best candidates to name. Default: 16, or all if there are fewer.
      chunk: draws dispatched at once over all devices, rounded up to what fills them; it changes nothing
        but memory and how often progress is shown. Default: 32, or 4 full steps where that is more.
      width: candidates evaluated side by side on a device. 1 is best on a CPU. It changes the last bits of
        a score, so it is part of a run's identity.

    Raises:
      InvalidInput: a field is outside its domain.
    """

    family: Family
    sigmas: tuple[float, ...]
    num_candidates: int
    seed: int = 0
    antithetic: bool = True
    top_k: int | None = None
    chunk: int | None = None
    width: int = 1

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            scales = np.asarray(self.sigmas, np.float32)  # as the candidates will see them
        if not scales.size or not np.all((scales >= np.finfo(np.float32).tiny) & np.isfinite(scales)):
            raise InvalidInput(
                "sigmas must be positive finite float32 numbers, at least one",
                got=self.sigmas,
                hint="1e-3 3e-3",
            )
        if np.any(np.diff(scales) <= 0):
            raise InvalidInput(
                "sigmas must be in ascending order without repeats in float32",
                got=self.sigmas,
                hint=" ".join(f"{sigma:g}" for sigma in sorted(set(self.sigmas))),
            )
        if not 1 <= self.num_candidates <= keys.SEED_LIMIT:
            raise InvalidInput("num_candidates must be in [1, 2^32]", got=self.num_candidates, hint="1024")
        keys.root(self.seed)  # raises for a seed out of range
        if not 1 <= self.num_top <= self.num_evaluations:
            raise InvalidInput(
                f"top_k must be between 1 and the {self.num_evaluations} evaluations of the sweep",
                got=self.top_k,
                hint="a smaller top_k or more candidates",
            )
        for name in ("chunk", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{name} must be at least 1", got=value, hint=f"no {name} at all for the default")

    @property
    def num_signs(self) -> int:
        """2 with antithetic draws, else 1."""
        return 2 if self.antithetic else 1

    @property
    def num_top(self) -> int:
        """K: `top_k`, or its default."""
        return min(DEFAULT_TOP_K, self.num_evaluations) if self.top_k is None else self.top_k

    @property
    def num_evaluations(self) -> int:
        """Losses evaluated: draws x sigmas x signs."""
        return self.num_candidates * len(self.sigmas) * self.num_signs


@dataclass(frozen=True)
class SweepResult:
    """Every score of a sweep, and the best of them.

    Attributes:
      sweep: what was evaluated.
      base_score: the loss at the base point, by the same program.
      scores: losses; NaN and infinities are kept where a candidate's loss was not finite.
      top_k: the best candidates, best first; empty if no loss was finite.
      sha256: of the table, little-endian float32 in index order, NaN canonical.
      num_scored: draws scored in this call (fewer than all after a resume).
      wall_s: seconds that those took, without compilation.
    """

    sweep: Sweep
    base_score: float
    scores: Float[np.ndarray, "N sigmas signs"]
    top_k: tuple[Candidate, ...]
    sha256: str
    num_scored: int
    wall_s: float

    @property
    def best(self) -> Candidate | None:
        """The winner, or None if no candidate had a finite loss."""
        return self.top_k[0] if self.top_k else None

    @property
    def gain(self) -> float:
        """Base score minus best score; NaN if no candidate had a finite loss. May be negative."""
        return self.base_score - self.best.score if self.best else math.nan

    @property
    def num_nonfinite(self) -> int:
        """Evaluations whose loss was not a finite number."""
        return int(np.sum(~np.isfinite(self.scores)))


def table_sha256(scores: Float[np.ndarray, "N sigmas signs"]) -> str:
    """SHA-256 of a score table: little-endian float32 in index order, every NaN the canonical one."""
    canonical = np.where(np.isnan(scores), np.float32(np.nan), scores).astype("<f4")
    return hashlib.sha256(np.ascontiguousarray(canonical).data).hexdigest()


def candidate(params: Params, sweep: Sweep, index: int, sigma: float, sign: int = 1) -> Params:
    """The weights of one candidate, made again from its integers.

    Args:
      params: the base point of the sweep.
      sweep: the sweep; only its family and seed matter, so `sigma` may be one that was not searched.
      index: of the draw, in [0, 2^32).
      sigma: scale per coordinate.
      sign: +1 or -1.

    Raises:
      InvalidInput: an index, sigma or sign outside its domain.
    """
    for name, value, holds, domain in (
        ("index", index, 0 <= index < keys.SEED_LIMIT, "in [0, 2^32)"),
        ("sigma", sigma, sigma > 0, "positive"),
        ("sign", sign, sign in (1, -1), "+1 or -1"),
    ):
        if not holds:
            raise InvalidInput(f"the {name} of a candidate must be {domain}", got=value)
    key = keys.root(sweep.seed)
    return evaluate.perturb(sweep.family, params, key, jnp.uint32(index), jnp.float32(sigma) * sign)


def rescore(
    loss: Loss | Objective, params: Params, batch: Batch, sweep: Sweep, candidates: tuple[Candidate, ...]
) -> Float[np.ndarray, "K"]:
    """Losses of chosen candidates by the canonical width-1 program, on this batch or on another.

    On the sweep's own batch the scores of a width-1 sweep come back bit for bit; on held-out data they tell
    how much of a gain was selection.
    """
    if not candidates:
        return np.zeros(0, np.float32)
    ids = np.asarray([c.index for c in candidates], np.uint32)
    scales = np.asarray([c.sigma for c in candidates], np.float32) * np.asarray([c.sign for c in candidates])
    key = keys.root(sweep.seed)
    ids, scales = np.append(ids, ids[-1]), np.append(scales, scales[-1]).astype(np.float32)  # MIN_TRIPS
    return np.asarray(evaluate.score_candidates(_loss_of(loss), sweep.family, params, batch, key, ids, scales))[:-1]


def identity(params: Params, batch: Batch, sweep: Sweep, mesh: Mesh) -> dict[str, Any]:
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
        "antithetic": sweep.antithetic,
        "width": sweep.width,
        "params_sha256": trees.content_digest(params),
        "batch_sha256": trees.content_digest(batch),
        **{name: machine[name] for name in ("platform", "matmul_precision", "threefry_partitionable")},
        "model_axis": 1,
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
) -> SweepResult:
    """Score every candidate of a sweep, on every device of the mesh.

    A score depends on (params, batch, seed, family, index, sigma, sign, width, dtype, precision, backend)
    and on nothing else: on a CPU the table has the same bits for any chunk, any number of devices, and
    after a kill and a resume. `params` is never written to.

    Args:
      loss: `loss(params, batch) -> scalar`, minimised; or an `Objective`.
      params: the base point.
      batch: what every candidate is scored on.
      sweep: what to evaluate.
      mesh: as `meshes.candidate_mesh()`, which is the default: all devices.
      out: folder for `identity.json`, the log `scores.log` and `scores.parquet`; nothing is written without.
      resume: go on with the run in `out` if it has the same identity (N may have grown).
      documents: JSON documents by file name, kept in `out` if it holds no score yet.
      progress: called once everything is compiled, and after every chunk.

    Raises:
      InvalidInput: the loss is not a scalar, or two leaves would share their noise.
      NotFinite: the loss at the base point is NaN or infinite; nothing was written.
      RunMismatch: `out` holds something else, a run of another identity or with more draws, or this one
        without `resume`; nothing was touched.

    Source: arXiv 2606.10929, Theorem 1.
    """
    loss = _loss_of(loss)
    mesh = meshes.candidate_mesh() if mesh is None else mesh
    _check_loss(loss, params, batch)
    keys.check_distinct(trees.leaf_names(params))
    base_score = float(evaluate.score(loss, params, batch))
    if not math.isfinite(base_score):
        raise NotFinite(
            "the loss at the base point must be finite to search around it",
            got=base_score,
            hint="check the parameters and the batch",
        )

    score_range = _scorer(loss, params, batch, sweep, mesh)
    scores = np.full((sweep.num_candidates, len(sweep.sigmas), sweep.num_signs), np.nan, np.float32)
    ledger = None
    if out is not None:
        run_identity = identity(params, batch, sweep, mesh)
        ledger = open_run(Path(out), run_identity, num_candidates=sweep.num_candidates, resume=resume)
    top = TopK(sweep.num_top * (1 if sweep.width == 1 else FINALISTS_FACTOR))

    def take(start: int, block: Float[np.ndarray, "n sigmas signs"]) -> None:
        scores[start : start + len(block)] = block
        top.add(start, block)

    num_known = 0
    try:
        if ledger is not None:
            for start, block in ledger.blocks():
                take(start, block)
                num_known = start + len(block)
            if num_known:
                _check_same_loss(scores[:num_known], score_range, Path(out or ""))
            else:  # what was scored was scored under the documents that are there
                for name, document in (documents or {}).items():
                    rundir.write_json(Path(out or "") / name, document)
        if progress is not None:
            progress(num_known, sweep.num_candidates)
        began = time.perf_counter()
        for start, block in score_range(num_known, sweep.num_candidates):
            take(start, block)
            if ledger is not None:
                ledger.append(start, block)
            if progress is not None:
                progress(start + len(block), sweep.num_candidates)
        wall_s = time.perf_counter() - began
    finally:
        if ledger is not None:
            ledger.close()
    if out is not None:
        write_table(Path(out) / "scores.parquet", sweep.sigmas, scores)

    return SweepResult(
        sweep=sweep,
        base_score=base_score,
        scores=scores,
        top_k=_finalists(loss, params, batch, sweep, top.best(sweep.sigmas, sweep.num_signs)),
        sha256=table_sha256(scores),
        num_scored=sweep.num_candidates - num_known,
        wall_s=wall_s,
    )


def _finalists(
    loss: Loss, params: Params, batch: Batch, sweep: Sweep, best: tuple[Candidate, ...]
) -> tuple[Candidate, ...]:
    """The top K by the canonical program, which may order candidates of a wider sweep anew in the last bits."""
    if sweep.width > 1:
        exact = rescore(loss, params, batch, sweep, best)
        scored = (c._replace(score=float(s)) for c, s in zip(best, exact, strict=True) if math.isfinite(s))
        best = tuple(sorted(scored, key=lambda c: (c.score, c.index, c.sigma, -c.sign)))
    return best[: sweep.num_top]


Block = tuple[int, Float[np.ndarray, "n sigmas signs"]]


def _scorer(
    loss: Loss, params: Params, batch: Batch, sweep: Sweep, mesh: Mesh
) -> Callable[[int, int], Iterator[Block]]:
    """`score_range(start, stop)`: the scores of those draws, chunk by chunk, compiled before it returns.

    The next chunk is dispatched before the last one is read, so the devices never wait for the host.
    """
    granule = evaluate.granule(mesh, sweep.width)
    wanted = max(32, 4 * granule) if sweep.chunk is None else sweep.chunk
    chunk = granule * math.ceil(min(wanted, sweep.num_candidates) / granule)
    scales = evaluate.signed_scales(sweep.sigmas, sweep.antithetic)
    num_scales = len(sweep.sigmas) * sweep.num_signs
    fixed = meshes.replicate((params, batch, keys.root(sweep.seed), jnp.asarray(scales)), mesh)

    def ids_from(start: int) -> np.ndarray:
        # The last chunk is padded with draws nobody asked for: a remainder would be compiled anew.
        return np.arange(start, start + chunk, dtype=np.uint64).astype(np.uint32)

    step = evaluate.make_step(loss, sweep.family, mesh, width=sweep.width).lower(*fixed, ids_from(0)).compile()

    def score_range(start: int, stop: int) -> Iterator[Block]:
        in_flight: deque[tuple[int, Array]] = deque()

        def read() -> Block:
            first, scores = in_flight.popleft()
            wanted_draws = np.asarray(scores)[: stop - first, :num_scales]
            return first, wanted_draws.reshape(-1, len(sweep.sigmas), sweep.num_signs)

        for first in range(start, stop, chunk):
            in_flight.append((first, step(*fixed, ids_from(first))))
            if len(in_flight) > 1:
                yield read()
        if in_flight:
            yield read()

    return score_range


def _check_same_loss(
    known: Float[np.ndarray, "n sigmas signs"], score_range: Callable[[int, int], Iterator[Block]], out: Path
) -> None:
    """Score the first recorded draw again: this catches an edited loss, another driver, another compiler."""
    _, again = next(iter(score_range(0, 1)))
    if table_sha256(again) != table_sha256(known[:1]):
        raise RunMismatch(
            f"{out} was scored by another program: its first candidate must come out bit for bit",
            got=f"{again.reshape(-1)[0]:.9g} now against {known.reshape(-1)[0]:.9g} there",
            hint="the loss, the versions and the machine of that run, or another --out folder",
        )


def _loss_of(loss: Loss | Objective) -> Loss:
    return loss.loss if isinstance(loss, Objective) else loss


def _check_loss(loss: Loss, params: Params, batch: Batch) -> None:
    shape = jax.eval_shape(loss, params, batch)
    if getattr(shape, "shape", None) != () or not jnp.issubdtype(shape.dtype, jnp.floating):
        raise InvalidInput("loss(params, batch) must return one floating-point scalar", got=shape)
