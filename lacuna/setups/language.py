"""A language model and a task, each given by a folder, a file or an id: what is searched around, and on which rows.

The rows of a task are split in three, and a row with another's content, or of its passage, is on the same side: those
that every candidate is scored on, those that winners are scored on again, and the others, on which bases are built.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Bool

from lacuna import keys, models
from lacuna.checkpoints import Adapter, load_adapter, load_hf, load_tokenizer, sources
from lacuna.errors import InvalidInput
from lacuna.models.lora import DEFAULT_SITES
from lacuna.models.model import Model
from lacuna.setups.digit_models import HELD_OUT_BATCHES
from lacuna.tasks import choices, language, row_streams, short_answers, task_files, text
from lacuna.tasks.digits import DIGIT_TASKS
from lacuna.tasks.mappings import mapping
from lacuna.tasks.task import Batch, Encode, Step, Task
from lacuna.tasks.task_files import AnswerFile, ChoiceFile, TextFile
from lacuna.types import Objective, Params

OBJECTIVES = {"text": ("nats",), "choices": choices.OBJECTIVES, "answers": ("nats", "exact_match")}
"""What can be minimised, by kind of task; the first is the default."""

SMOOTH = ("nats", "log_odds")
"""Objectives that have a gradient."""

NEW = "new"
"""An adapter that is made on the spot."""

DIGITS = 4
"""In a question of a digit operation."""

Notice = Callable[[str], None]


@dataclass(frozen=True)
class TaskConfig:
    """A task of a language model.

    Attributes:
      source: a `.txt`, `.jsonl` or `.json` file or an id of `datasets`, as `tasks.read_task` takes them; or an
        operation on digits, such as `sort`.
      split: of a data set.
      objective: what is minimised: `nats` (a token of a text or an answer, or the right one among given choices),
        `log_odds` or `accuracy` of choices, `exact_match` of short answers. Empty: nats.
      length: tokens of a row of text; a question may have as many as the model has positions.
      batch_size: rows that every candidate is scored on.
      held_out_share: of the rows, for the winners to be scored on again.
      begin: text of a token that stands in front of every question, and between two documents.
      seed: of which rows those are.
    """

    source: str
    split: str = "train"
    objective: str = ""
    length: int = 128
    batch_size: int = 64
    held_out_share: float = 0.25
    begin: str = ""
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """A language model, or an adapter of one.

    Attributes:
      source: folder or hub id.
      tokenizer: folder or hub id. Empty: that of the model.
      dtype: of matrices; vectors (norms and biases) are float32 in either case.
      adapter: folder or hub id of a LoRA adapter, or `new` for a fresh one: its factors are what is searched, float32,
        and the weights stay as they are. Empty: all weights are searched.
      adapter_rank: of a new one.
      adapter_sites: of a new one: a regular expression on the names of linear maps.
      ignore: fields of the config not to be looked at.
    """

    source: str
    tokenizer: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    adapter: str = ""
    adapter_rank: int = 8
    adapter_sites: str = DEFAULT_SITES
    ignore: tuple[str, ...] = ()


class LanguageModel(NamedTuple):
    """A language model whose weights, or whose adapter's factors, are the point.

    Attributes:
      model: its architecture.
      params: the point: the weights, or the factors of the adapter.
      base: the weights under an adapter; None where they are the point.
      adapter: that the factors are of; None without one.
      folder: where the weights were read.
    """

    model: Model
    params: Params
    base: Params | None
    adapter: Adapter | None
    folder: Path

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(model, params, tokens, ...)` as a function of the point, `f(params, tokens, ...)`."""
        if self.adapter is None:
            return partial(function, self.model)
        return models.over_adapter(function, self.model, self.base, self.adapter.spec)


class LanguageSetup(NamedTuple):
    """A point of a language model, and a task there.

    Attributes:
      model: its architecture.
      params: the point.
      task: its objective; `train` gives rows that are neither searched on nor held out.
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


class _Rows(NamedTuple):
    """The rows of a task by what they are for, each a batch of all of them."""

    search: Any
    held_out: Any
    others: Any


def open_model(config: ModelConfig, *, mesh: Any = None) -> LanguageModel:
    """Read a language model and its adapter.

    Args:
      config: which.
      mesh: where the weights are to lie; none for the first device.

    Raises:
      InvalidInput: what is there is no such model or adapter.
    """
    folder = sources.find(config.source)
    model, params = load_hf(folder, mesh=mesh, ignore=config.ignore)
    params = models.narrowed(params, config.dtype, stacked=model.stacked)
    if not config.adapter:
        return LanguageModel(model, params, None, None, folder)
    if config.adapter == NEW:
        spec = models.lora_spec(model, rank=config.adapter_rank, sites=config.adapter_sites)
        factors = spec.init(keys.stream(0, "adapter"))
        return LanguageModel(model, factors, params, Adapter(spec, factors), folder)
    base = None if folder == Path(config.source).expanduser() else config.source
    adapter = load_adapter(config.adapter, model, base=base, ignore=config.ignore)
    return LanguageModel(model, adapter.params, params, adapter, folder)


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
      layerwise: candidates are made layer by layer.
      notice: told in a sentence of rows that cannot be used.

    Raises:
      InvalidInput: of the task or the model, whatever cannot be used; names the line of a file.
    """
    found = read(task_config)
    tokenizer = load_tokenizer(model_config.tokenizer or sources.find(model_config.source, weights=False))
    opened = open_model(model_config, mesh=mesh)
    if layerwise and opened.adapter is not None:
        raise InvalidInput("layer by layer is a way to make weights", got="an adapter, which is small")
    setup = with_task(opened, found, task_config, tokenizer, notice=notice)
    if opened.adapter is not None:
        return setup
    plain = setup.task.objective
    objective = models.searchable(plain.loss, layerwise=layerwise)._replace(smooth=plain.smooth)
    return setup._replace(task=setup.task._replace(objective=objective))


def read(config: TaskConfig) -> task_files.TaskFile | str:
    """The task of a file, or the name of an operation on digits, with its settings checked.

    Raises:
      InvalidInput: as `tasks.read_task`; an objective that is none of the task's, or a number out of its range.
    """
    for name, least in (("batch_size", 1), ("length", 2)):
        if getattr(config, name) < least:
            raise InvalidInput(f"{name} must be at least {least}", got=getattr(config, name))
    if not 0 < config.held_out_share < 1:
        raise InvalidInput("held_out_share must lie between 0 and 1", got=config.held_out_share, hint="0.25")
    if config.source in DIGIT_TASKS:
        found: task_files.TaskFile | str = config.source
    else:
        found = task_files.read_task(config.source, split=config.split)
    allowed = OBJECTIVES[kind_of(found)]
    if config.objective and config.objective not in allowed:
        asked = f"objective must be one of {', '.join(allowed)} for {config.source}"
        raise InvalidInput(asked, got=f"`{config.objective}`")
    return found


def kind_of(found: task_files.TaskFile | str) -> str:
    """`text`, `choices` or `answers`."""
    return "text" if isinstance(found, TextFile) else "choices" if isinstance(found, ChoiceFile) else "answers"


def with_task(
    opened: LanguageModel,
    found: task_files.TaskFile | str,
    config: TaskConfig,
    tokenizer: Any,
    *,
    notice: Notice = print,
) -> LanguageSetup:
    """A task at a model's point.

    Args:
      opened: the model.
      found: of `read`.
      config: the task's.
      tokenizer: of transformers.
      notice: told in a sentence of rows that cannot be used.

    Raises:
      InvalidInput: rows that do not fit the model, or are too few.
    """
    encode = partial(_encoded, tokenizer)
    begin = begin_token(encode, config.begin)
    objective = config.objective or OBJECTIVES[kind_of(found)][0]
    spec = opened.model.spec
    room = spec.max_positions if spec.rotary_base is None else max(spec.max_positions, config.length)
    if isinstance(found, TextFile) and config.length > room:
        raise InvalidInput(f"length must be at most the model's {room} positions", got=config.length)
    if isinstance(found, str):
        return _digits_setup(opened, found, config, objective, encode)
    if isinstance(found, TextFile):
        rows = _text_rows(found, encode, config, begin)
    elif isinstance(found, ChoiceFile):
        rows = _choice_rows(found, encode, config, begin, room, notice)
    else:
        rows = _answer_rows(found, encode, config, begin, room, objective, notice)
    train = row_streams.row_stream(rows.others, seed=config.seed, batch_size=config.batch_size, name="basis")
    num_held_out = len(rows.held_out[0])
    each = max(1, min(config.batch_size, num_held_out // HELD_OUT_BATCHES))
    held_out = row_streams.in_order(rows.held_out, each)
    batches = tuple(held_out(step) for step in range(min(HELD_OUT_BATCHES, num_held_out // each)))
    task = _task(opened, config.source, kind_of(found), objective, train, held_out)
    return _setup(opened, task, jax.tree.map(jnp.asarray, rows.search), batches)


def _setup(opened: LanguageModel, task: Task, batch: Any, held_out: tuple[Any, ...]) -> LanguageSetup:
    return LanguageSetup(opened.model, opened.params, task, batch, held_out, opened)


def begin_token(encode: Encode, begin: str) -> int | None:
    """The token of a text that is one.

    Raises:
      InvalidInput: it is none, or several.
    """
    if not begin:
        return None
    tokens = encode(begin)
    if len(tokens) != 1:
        raise InvalidInput("begin must be one token", got=f"`{begin}`, which is {len(tokens)}")
    return tokens[0]


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)  # or it warns of texts beyond a window


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


def _digits_setup(
    opened: LanguageModel, name: str, config: TaskConfig, objective: str, encode: Encode
) -> LanguageSetup:
    """An operation on digits as text, whose rows never end: training and held-out questions differ."""
    streams: list[Any] = [
        mapping(name, encode, seed=config.seed, batch_size=config.batch_size, length=DIGITS, split=split)
        for split in ("train", "held_out")
    ]
    if objective == "exact_match":
        streams = [Partial(_asked, stream) for stream in streams]
    train, held_out = streams
    task = _task(opened, name, "answers", objective, train, held_out)
    batch = train(2**31 - 1)  # that no training reaches
    return _setup(opened, task, batch, tuple(held_out(step) for step in range(HELD_OUT_BATCHES)))


def _asked(stream: Callable[[Step], Batch], step: Step) -> short_answers.ShortAnswers:
    return short_answers.as_short_answers(stream(step), num_tokens=DIGITS)


def _text_rows(found: TextFile, encode: Encode, config: TaskConfig, begin: int | None) -> _Rows:
    share = config.held_out_share
    splits = text.pack_splits(found.documents, encode, length=config.length, held_out_share=share, end=begin)
    search, others = _apart(splits.train.num_rows, config)
    train, held_out = (Batch(jnp.asarray(rows.tokens), jnp.asarray(rows.answer)) for rows in splits)
    return _Rows(_taken(train, search), held_out, _taken(train, others))


def _choice_rows(
    found: ChoiceFile, encode: Encode, config: TaskConfig, begin: int | None, room: int, notice: Notice
) -> _Rows:
    from lacuna.tasks.contrast import fitting

    if found.num_left_out:
        notice(f"{found.num_left_out} rows of {config.source} are of another form, and left out.")
    group_of = dict(zip(found.questions, found.groups, strict=True))
    kept = fitting(found.questions, encode, max_length=room, begin=begin)
    if kept.num_left_out:
        notice(f"{kept.num_left_out} questions of {config.source} have more than {room} tokens, and are left out.")
    if not kept.questions:
        raise InvalidInput(f"{config.source} must have questions of at most {room} tokens", got="none")
    rows = choices.choice_rows(kept.questions, encode, max_length=room, begin=begin)
    return _split(rows, [group_of[question] for question in kept.questions], config)


def _answer_rows(
    found: AnswerFile, encode: Encode, config: TaskConfig, begin: int | None, room: int, objective: str, notice: Notice
) -> _Rows:
    every = [short_answers.tokens_of(answer, encode, begin=begin) for answer in found.answers]
    fits = [len(prompt) + max(map(len, accepted)) <= room for prompt, accepted in every]
    if not any(fits):
        raise InvalidInput(f"{config.source} must have prompts of at most {room} tokens with their answers", got="none")
    if not all(fits):
        notice(f"{fits.count(False)} prompts of {config.source} have more than {room} tokens, and are left out.")
    answers = [answer for answer, fit in zip(found.answers, fits, strict=True) if fit]
    prompts = [answer.prompt for answer in answers]
    if objective == "exact_match":
        return _split(short_answers.answer_rows(answers, encode, max_length=room, begin=begin), prompts, config)
    rows = [row for row, fit in zip(every, fits, strict=True) if fit]
    longest = max(len(prompt) + len(accepted[0]) for prompt, accepted in rows)
    tokens, counts = np.zeros((len(rows), longest), np.int32), np.zeros((len(rows), longest), bool)
    for i, (prompt, accepted) in enumerate(rows):
        end = len(prompt) + len(accepted[0])
        tokens[i, :end], counts[i, len(prompt) : end] = [*prompt, *accepted[0]], True
    return _split(Batch(jnp.asarray(tokens), jnp.asarray(counts)), prompts, config)


def _split(rows: Any, groups: Sequence[str], config: TaskConfig) -> _Rows:
    """The rows by what they are for; a group is held out by the hash of its content: one more moves no other."""
    away = np.asarray([text.uniform(group) < config.held_out_share for group in groups])
    if away.all() or not away.any():
        side = "all" if away.any() else "none"
        asked = f"{config.source} must have rows to search on and rows to hold out"
        raise InvalidInput(asked, got=f"{side} of {len(groups)} held out", hint="more rows, or another held_out_share")
    here = np.flatnonzero(~away)
    search, others = _apart(len(here), config)
    return _Rows(_taken(rows, here[search]), _taken(rows, away), _taken(rows, here[others]))


def _apart(num_rows: int, config: TaskConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are searched on, and which are left: at least one of either."""
    if num_rows < 2:
        raise InvalidInput(f"{config.source} must have two rows or more beside those held out", got=num_rows)
    order = np.asarray(jax.random.permutation(keys.stream(config.seed, "search rows"), num_rows))
    size = min(config.batch_size, num_rows - 1)
    return order[:size], order[size:]


def _taken(rows: Any, which: np.ndarray | Bool[np.ndarray, "n"]) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[which], rows)
