"""A point of a language model and a task there: what is searched around, what is minimised, and on which rows."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from lacuna import models
from lacuna.checkpoints import load_tokenizer, sources
from lacuna.errors import InvalidInput
from lacuna.models.model import Model
from lacuna.setups.digit_models import HELD_OUT_BATCHES
from lacuna.setups.language_models import LanguageModel, ModelConfig, architecture, open_model
from lacuna.setups.language_tasks import SMOOTH, Notice, TaskConfig, kind_of, objective_of, read, rows_of
from lacuna.tasks import choices, language, row_streams, short_answers
from lacuna.tasks.mappings import mapping
from lacuna.tasks.task import Batch, Encode, Step, Task
from lacuna.tasks.task_files import TaskFile
from lacuna.types import Objective, Params

DIGITS = 4
"""In a question of a digit operation."""


class LanguageSetup(NamedTuple):
    """A point of a language model, and a task there.

    Attributes:
      model: its architecture.
      params: the point.
      task: its objective; `train` gives rows that are neither searched on nor held out, but for the operations on
        digits: their rows never end, and one of those to train on may be drawn again.
      batch: what every candidate is scored on.
      held_out: batches that the winners are scored on again, no row in two of them.
      language_model: the point's model, with what it was read from.
    """

    model: Model
    params: Params
    task: Task
    batch: Any
    held_out: tuple[Any, ...]
    language_model: LanguageModel


def prepare_language(
    model_config: ModelConfig,
    task_config: TaskConfig,
    *,
    mesh: Any = None,
    layerwise: bool = False,
    notice: Notice = print,
) -> LanguageSetup:
    """Read a task and a model. The task comes first: what is wrong with it is told before a long read.

    Args:
      model_config: the model.
      task_config: the task.
      mesh: where the weights are to lie.
      layerwise: a search makes the weights of candidates layer by layer.
      notice: told in a sentence of rows that cannot be used.

    Raises:
      InvalidInput: of the task or the model, whatever cannot be used; names the line of a file.
    """
    found = read(task_config)
    tokenizer = load_tokenizer(model_config.tokenizer or sources.find(model_config.source, weights=False))
    data = task_data(architecture(model_config).model, found, task_config, tokenizer, notice=notice)
    return with_task(open_model(model_config, mesh=mesh), data, task_config, layerwise=layerwise)


class TaskData(NamedTuple):
    """The rows of a task in a model's tokens.

    Attributes:
      kind: `text`, `choices` or `answers`.
      objective: what is minimised.
      train: as that of `LanguageSetup.task`.
      held_out: likewise.
      batch: what every candidate is scored on.
      num_batches: how many batches the winners are scored on again.
    """

    kind: str
    objective: str
    train: Any
    held_out: Any
    batch: Any
    num_batches: int


def task_data(
    model: Model, found: TaskFile | str, config: TaskConfig, tokenizer: Any, *, notice: Notice = print
) -> TaskData:
    """The rows of a task for a model, of which no weight is needed.

    Args:
      model: the architecture.
      found: of `read`.
      config: the task's.
      tokenizer: of transformers.
      notice: told in a sentence of rows that cannot be used, or are too few.

    Raises:
      InvalidInput: rows that do not fit the model, or are too few, or a tokenizer that is not the model's.
    """
    spec = model.spec
    encode = partial(_encoded, tokenizer, spec.vocab_size)
    if isinstance(found, str):
        train, held_out = _digit_streams(found, config, encode)
        batch, num_batches = train(2**31 - 1), HELD_OUT_BATCHES  # a step that nothing reaches
    else:
        room = spec.max_positions if spec.rotary_base is None else max(spec.max_positions, config.length)
        rows = rows_of(found, config, encode, room=room, begin=begin_token(encode, config.begin), notice=notice)
        train = row_streams.row_stream(rows.others, seed=config.seed, batch_size=config.batch_size, name="basis")
        num_held_out = len(rows.held_out[0])
        each = max(1, min(config.batch_size, num_held_out // HELD_OUT_BATCHES))
        held_out = row_streams.in_order(rows.held_out, each)
        batch, num_batches = jax.tree.map(jnp.asarray, rows.search), min(HELD_OUT_BATCHES, num_held_out // each)
    return TaskData(kind_of(found), objective_of(found, config), train, held_out, batch, num_batches)


def with_task(opened: LanguageModel, data: TaskData, config: TaskConfig, *, layerwise: bool = False) -> LanguageSetup:
    """A task at a model's point.

    Args:
      opened: the model.
      data: of `task_data` for it.
      config: the task's.
      layerwise: a search makes the weights of candidates layer by layer; those of an adapter it makes whole.
    """
    task = _task(opened, config.source, data.kind, data.objective, data.train, data.held_out)
    if opened.adapter is None:
        smooth = task.objective.smooth
        searched = models.searchable(task.objective.loss, layerwise=layerwise)._replace(smooth=smooth)
        task = task._replace(objective=searched)
    held_out = tuple(map(data.held_out, range(data.num_batches)))
    return LanguageSetup(opened.model, opened.params, task, data.batch, held_out, opened)


def begin_token(encode: Encode, begin: str) -> int | None:
    """The token of a text that is one.

    Raises:
      InvalidInput: it is none, or several.
    """
    if not begin:
        return None
    tokens = encode(begin)
    if len(tokens) != 1:
        raise InvalidInput(
            "begin must be one token",
            got=f"`{begin}`, which is {len(tokens)}",
            hint="a token as the tokenizer writes it, such as '<s>'",
        )
    return tokens[0]


def _encoded(tokenizer: Any, vocab_size: int, text: str) -> list[int]:
    if text != text.encode(errors="replace").decode():
        raise InvalidInput("a tokenizer takes whole characters", got=f"`{text}`")
    tokens = tokenizer.encode(text, add_special_tokens=False, verbose=False)  # or it warns of texts beyond a window
    if max(tokens, default=0) >= vocab_size:
        raise InvalidInput(
            f"the tokenizer must be that of the model, of {vocab_size} tokens",
            got=f"token {max(tokens)}",
            hint="--tokenizer FOLDER",
        )
    return tokens


def _task(
    opened: LanguageModel, name: str, kind: str, objective: str, train: Callable[[Step], Any], held_out: Any
) -> Task:
    """The objective and the metrics of a kind of task."""
    if kind == "choices":
        nats_at = opened.bound(models.nats_at)
        loss, metric = choices.choice_loss(nats_at, objective=objective), choices.choice_metric(nats_at)
    elif objective == "exact_match":
        decode = opened.bound(models.greedy)
        loss, metric = short_answers.exact_match_loss(decode), short_answers.exact_match_metric(decode)
    else:
        nats, right = opened.bound(models.next_token_nats), opened.bound(models.next_token_right)
        task = language.language_task(name, train, held_out, nats, right)
        loss, metric = task.objective.loss, task.metric
    return Task(name, Objective(loss, smooth=objective in SMOOTH), metric, train, held_out)


def _digit_streams(name: str, config: TaskConfig, encode: Encode) -> tuple[Any, Any]:
    """An operation on digits as text, to train on and held out."""
    if config.begin:
        raise InvalidInput(
            "begin is for the rows of a file or a data set", got=f"`{config.begin}` for {name}", hint="no --begin"
        )
    streams: list[Any] = [
        mapping(name, encode, seed=config.seed, batch_size=config.batch_size, length=DIGITS, split=split)
        for split in ("train", "held_out")
    ]
    if config.objective == "exact_match":
        streams = [Partial(_asked, stream) for stream in streams]
    return streams[0], streams[1]


def _asked(stream: Callable[[Step], Batch], step: Step) -> short_answers.ShortAnswers:
    return short_answers.as_short_answers(stream(step), num_tokens=DIGITS)
