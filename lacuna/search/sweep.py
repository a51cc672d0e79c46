"""What a sweep evaluates, and what it found."""

import hashlib
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, get_args

import numpy as np
from jaxtyping import Float

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.search.families import Family
from lacuna.search.select import Candidate
from lacuna.theory import Unit
from lacuna.types import Shapes

DEFAULT_TOP_K = 16

Progress = Callable[[int, int], None]
"""`progress(done, in all)`: draws of a search, or probes of a measurement."""


@dataclass(frozen=True)
class Sweep:
    """What to evaluate: N draws, each at every sigma and sign. Draw i is a pure function of (seed, i).

    Attributes:
      family: law of the noise at unit scale.
      sigmas: sizes of the steps, ascending, > 0, in the unit below.
      num_candidates: N, the number of draws; N x sigmas x signs losses are evaluated.
      seed: of the noise, in [0, 2^32).
      antithetic: score both signs of every draw.
      top_k: how many of the best candidates to name. Default: 16, or all if there are fewer.
      chunk: draws dispatched at once over all devices, rounded up to what fills them; it changes nothing
        but how often progress is shown and how much a kill can lose. Default: about a second's worth, by the
        clock.
      width: candidates evaluated side by side on a device. 1 is best on a CPU. It changes the last bits of
        a score, so it is part of a run's identity.
      unit: what the sigmas measure. `sigma`: the scale of the family's unit noise, per coordinate for the
        Gaussian one. `rms_radius`: the root mean square length of a step, `sigma / sqrt(E |noise|^2)`, which
        is `sigma / sqrt(k)` in a basis of rank k. `exact_radius`: the length of every step, `noise / |noise|`.

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
    unit: Unit = "sigma"

    def __post_init__(self) -> None:
        sigmas = self.sigmas if isinstance(self.sigmas, Iterable) else (self.sigmas,)
        object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in sigmas))  # as a JSON document holds them
        for name in ("num_candidates", "seed", "top_k", "chunk", "width"):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, value if value is None else operator.index(value))
            except TypeError:
                raise InvalidInput(f"{name} must be an integer", got=repr(value), hint="a whole number") from None
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
        if self.unit not in get_args(Unit):
            raise InvalidInput(f"unit must be one of {', '.join(get_args(Unit))}", got=f"`{self.unit}`", hint="sigma")
        keys.root(self.seed)  # raises for a seed out of range
        if not 1 <= self.num_top <= self.num_evaluations:
            raise InvalidInput(
                f"top_k must be between 1 and the {self.num_evaluations} evaluations of the sweep",
                got=self.top_k,
                hint="1" if self.num_top < 1 else "a smaller top_k or more candidates",
            )
        for name in ("chunk", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{name} must be at least 1", got=value, hint=f"no {name} at all for the default")
        if self.family.block > 1 and (self.family.block % self.width or self.family.block == self.width):
            raise InvalidInput(
                f"width must divide the family's block of {self.family.block} into two parts or more",
                got=self.width,
                hint=f"in_basis(basis, block={2 * self.width})",
            )

    @property
    def num_signs(self) -> int:
        """2 with antithetic draws, else 1."""
        return 2 if self.antithetic else 1

    @property
    def num_top(self) -> int:
        """K: `top_k`, or its default."""
        return min(DEFAULT_TOP_K, self.num_evaluations) if self.top_k is None else self.top_k

    def scale(self, params: Shapes) -> float:
        """What a sigma is multiplied by to scale the family's unit noise (divided by its length at an exact radius).

        Raises:
          LacunaError: the family does not fit the tree, or moves none of it.
        """
        self.family.check(params)
        if not self.family.mean_square(params) > 0:
            raise InvalidInput(
                "a family must move at least one number",
                got=f"`{self.family.name}`, which moves none",
                hint="scales that are not all zero",
            )
        scale = self.mean_scale(params) if self.unit == "rms_radius" else 1.0
        limits = np.finfo(np.float32)
        if not limits.tiny <= self.sigmas[0] * scale <= self.sigmas[-1] * scale <= limits.max:
            steps = " ".join(f"{sigma * scale:g}" for sigma in self.sigmas)
            raise InvalidInput(
                "steps must lie in the range of float32", got=f"{steps} per coordinate", hint="sigmas nearer to 1"
            )
        return scale

    def mean_scale(self, params: Shapes) -> float:
        """The same on average over draws, an exact radius included."""
        return 1.0 if self.unit == "sigma" else 1 / math.sqrt(self.family.mean_square(params))

    @property
    def num_evaluations(self) -> int:
        """Losses evaluated: draws x sigmas x signs."""
        return self.num_candidates * len(self.sigmas) * self.num_signs


def config_of(sweep: Sweep) -> dict[str, Any]:
    """The settings of a sweep, as `config.json` keeps them."""
    options = {field.name: getattr(sweep, field.name) for field in fields(sweep)}
    details = [sweep.family.name, *([sweep.family.digest] if sweep.family.digest.startswith("rank ") else [])]
    return options | {"family": ", ".join(details)[:60], "title": "a loss of your own"}


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
      machine: as `meshes.describe` gives it.
    """

    sweep: Sweep
    base_score: float
    scores: Float[np.ndarray, "N sigmas signs"]
    top_k: tuple[Candidate, ...]
    sha256: str
    num_scored: int
    wall_s: float
    machine: dict[str, Any]

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
