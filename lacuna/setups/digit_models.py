"""The trained synthetic model and what becomes of it, made once and kept.

A stage of training is a pure function of its recipe, so it is cached under the hash of that recipe. A
cached stage that cannot be read, or whose bits are not the ones that were written, is named and made again.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax

from lacuna import keys
from lacuna.checkpoints import native
from lacuna.errors import InvalidInput
from lacuna.models.model import Model
from lacuna.models.synthetic import SyntheticSpec, synthetic
from lacuna.reports import rundir
from lacuna.tasks import digits
from lacuna.tasks.task import Batch, Task
from lacuna.training import TrainConfig, fit
from lacuna.types import Params

VERSION = 1
"""Of the recipes below; part of every cache key. A change of any trained bit raises it."""

SEARCH_STEP = 1_000_000
"""Which training batch a sweep scores: one that no training here has seen."""

HELD_OUT_BATCHES = 8
"""Batches that the winners are scored on again: as many as give an interval for what is left of the gain."""

DIGIT_MODEL = SyntheticSpec(digits.vocab_size)
"""The architecture of all starting points."""

DEFAULT_CACHE = Path("~/.cache/lacuna")

State = Literal["forgotten", "undertrained", "trained"]

Advance = Callable[[str, int, int, float], None]
"""`advance(stage, step, num_steps, loss)` while a stage is trained; at step 0, before it is compiled, of a loss NaN."""


@dataclass(frozen=True)
class SetupConfig:
    """A starting point for searches and recoveries.

    Attributes:
      state: `trained` on all digit tasks at once; `undertrained`, the same with fewer steps; `forgotten`, the
        trained model driven away from `task`.
      task: the digit task of interest.
      seed: of the initial weights and of all data.
      batch_size: rows of a training batch.
      train: training on all tasks.
      undertrained_steps: length of the short training.
      forget: training on one other task alone (`copy`; for `copy` itself `reverse`), as in sequential
        specialisation: nothing but new data drives the skill out. Twenty steps take `sort` to 1.9 nats a
        digit (guessing is 2.3; at forty it is 5.9, surer and more wrong). The paper's recipe is not available
        to us; this is ours.
    """

    state: State = "forgotten"
    task: str = "sort"
    seed: int = 0
    batch_size: int = 256
    train: TrainConfig = field(default_factory=TrainConfig)
    undertrained_steps: int = 150
    forget: TrainConfig = field(default_factory=lambda: TrainConfig(num_steps=20, warmup_steps=5))


class Setup(NamedTuple):
    """A prepared starting point.

    Attributes:
      model: its architecture.
      params: the point.
      task: the task of interest, with data of the same seed.
    """

    model: Model
    params: Params
    task: Task

    @property
    def batch(self) -> Batch:
        """What every candidate of a sweep is scored on."""
        return self.task.train(SEARCH_STEP)

    @property
    def held_out(self) -> tuple[Batch, ...]:
        """Batches that the winners are scored on again."""
        return tuple(self.task.held_out(step) for step in range(HELD_OUT_BATCHES))


def digit_model() -> Model:
    """The model of all starting points."""
    return synthetic(DIGIT_MODEL)


def untrained(config: SetupConfig, *, eval_batch_size: int = 128) -> Setup:
    """The model and the task of a starting point, with parameters as they are drawn: of its shape, not its values."""
    model = digit_model()
    task = digits.digit_task(config.task, model.apply, seed=config.seed, batch_size=eval_batch_size)
    return Setup(model, model.init(keys.stream(config.seed, "init")), task)


def prepare(
    config: SetupConfig,
    *,
    eval_batch_size: int = 128,
    cache: Path = DEFAULT_CACHE,
    advance: Advance | None = None,
    notice: Callable[[str], None] = print,
) -> Setup:
    """Load a starting point from the cache, or make it and keep it.

    Args:
      config: which starting point.
      eval_batch_size: rows in a batch of the returned task.
      cache: folder of the cache.
      advance: told of the progress of a training that has to be run.
      notice: told in a sentence of a cached stage that is damaged.

    Raises:
      InvalidInput: an unknown state or task, or a cache that cannot be a folder.
    """
    model = digit_model()
    task = digits.digit_task(config.task, model.apply, seed=config.seed, batch_size=eval_batch_size)
    if config.state not in get_args(State):
        raise InvalidInput(
            f"state must be one of {', '.join(get_args(State))}", got=f"`{config.state}`", hint="forgotten"
        )
    keep = partial(kept, model, cache=cache.expanduser(), notice=notice)
    told = advance or (lambda stage, step, num_steps, loss: None)

    train = config.train
    if config.state == "undertrained":
        train = replace(train, num_steps=config.undertrained_steps)
    recipe: dict[str, Any] = {"version": VERSION, "spec": asdict(model.spec), "seed": config.seed}
    recipe |= {"tasks": digits.DIGIT_TASKS, "batch_size": config.batch_size, "train": asdict(train)}

    def trained() -> Params:
        data = digits.mixture(digits.DIGIT_TASKS, seed=config.seed, batch_size=config.batch_size)
        start = model.init(keys.stream(config.seed, "init"))
        told("training", 0, train.num_steps, math.nan)  # it is compiled first
        return fit(task.objective.loss, start, data, train, progress=partial(told, "training")).params

    params = keep(recipe, trained)
    if config.state == "forgotten":

        def forgotten() -> Params:
            other = "copy" if config.task != "copy" else "reverse"
            data = digits.mixture([other], seed=config.seed, batch_size=config.batch_size)
            progress = partial(told, f"forgetting {config.task}")
            progress(0, config.forget.num_steps, math.nan)
            return fit(task.objective.loss, params, data, config.forget, progress=progress).params

        recipe = {"from": recipe, "task": config.task, "forget": asdict(config.forget)}
        params = keep(recipe, forgotten)
    return Setup(model, params, task)


def kept(
    model: Model,
    recipe: dict[str, Any],
    make: Callable[[], Params],
    *,
    cache: Path,
    notice: Callable[[str], None],
) -> Params:
    """The parameters of a recipe: from the cache, or made and kept there if they are absent or damaged.

    Args:
      model: whose parameters they are.
      recipe: all that they depend on; plain JSON.
      make: makes them.
      cache: folder of the cache.
      notice: told in a sentence of a cached tree that is damaged.
    """
    folder = cache / rundir.config_hash(recipe)
    if folder.exists():
        try:
            return native.load(folder, jax.eval_shape(model.init, keys.root(0)))
        except native.DamagedCheckpoint as fault:
            notice(f"{fault} It is made again.")
    rundir.check_folder(cache)
    params = make()
    native.save(folder, params, {"recipe": recipe})
    return params
