"""A task of a language model, given by a file, an id or a name, and its rows by what they are for.

Rows are split in three, and rows of the same content, prompt or passage are on one side: those that every candidate is
scored on, those that winners are scored on again, and the others, on which bases are built.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.tasks import choices, short_answers, text
from lacuna.tasks.choices import Choices
from lacuna.tasks.contrast import answer_tokens, choice_tokens
from lacuna.tasks.digits import DIGIT_TASKS
from lacuna.tasks.short_answers import ShortAnswers
from lacuna.tasks.task import Batch, Encode
from lacuna.tasks.task_files import AnswerFile, ChoiceFile, TaskFile, TextFile, read_task

OBJECTIVES = {"text": ("nats",), "choices": choices.OBJECTIVES, "answers": ("nats", "exact_match")}
"""What can be minimised, by kind of task; the first is the default."""

SMOOTH = ("nats", "log_odds")
"""Objectives that have a gradient."""

Notice = Callable[[str], None]


@dataclass(frozen=True)
class TaskConfig:
    """A task of a language model.

    Attributes:
      source: a `.txt`, `.jsonl` or `.json` file, a folder of data files or an id of `datasets`, as `tasks.read_task`
        takes them; or an operation on digits, such as `sort`.
      split: of a data set.
      subset: of a data set that has several.
      objective: what is minimised: `nats` (a token of a text or an answer, or the right one among given choices),
        `log_odds` or `accuracy` of choices, `exact_match` of short answers. Empty: nats.
      length: tokens of a row of text; a question may have as many as the model has positions.
      batch_size: rows that every candidate is scored on.
      held_out_share: of the rows, for the winners to be scored on again.
      begin: text of a token that stands in front of every question, and between two documents.
      seed: of which rows are searched on; those held out are the same whatever it is. Of digits both.
    """

    source: str
    split: str = "train"
    subset: str = ""
    objective: str = ""
    length: int = 128
    batch_size: int = 64
    held_out_share: float = 0.25
    begin: str = ""
    seed: int = 0


class Rows(NamedTuple):
    """The rows of a task by what they are for, each a batch of all of them, without columns that are padding in all.

    Attributes:
      search: what every candidate is scored on.
      held_out: what winners are scored on again.
      others: on which bases are built.
    """

    search: Any
    held_out: Any
    others: Any


def read(config: TaskConfig) -> TaskFile | str:
    """The task of a file, or the name of an operation on digits, with its settings checked.

    Raises:
      InvalidInput: as `tasks.read_task`; an objective that is none of the task's, or a number out of its range.
    """
    for name, least in (("batch_size", 1), ("length", 2)):
        if getattr(config, name) < least:
            raise InvalidInput(f"{name} must be at least {least}", got=getattr(config, name), hint=f"{least}")
    keys.root(config.seed)  # raises for one out of range
    if not 0 < config.held_out_share < 1:
        raise InvalidInput("held_out_share must lie between 0 and 1", got=config.held_out_share, hint="0.25")
    found: TaskFile | str = config.source
    if config.source not in DIGIT_TASKS:
        found = read_task(config.source, split=config.split, subset=config.subset or None)
    allowed = OBJECTIVES[kind_of(found)]
    if config.objective and config.objective not in allowed:
        asked = f"objective must be one of {', '.join(allowed)} for {config.source}"
        raise InvalidInput(asked, got=f"`{config.objective}`", hint=f"{allowed[0]}")
    return found


def kind_of(found: TaskFile | str) -> str:
    """`text`, `choices` or `answers`."""
    return "text" if isinstance(found, TextFile) else "choices" if isinstance(found, ChoiceFile) else "answers"


def objective_of(found: TaskFile | str, config: TaskConfig) -> str:
    """The one that is asked for, or the default of the task's kind."""
    return config.objective or OBJECTIVES[kind_of(found)][0]


def rows_of(
    found: TaskFile, config: TaskConfig, encode: Encode, *, room: int, begin: int | None, notice: Notice
) -> Rows:
    """The rows of a task in a tokenizer's tokens.

    What is held out is told by the hash of a document, a prompt or a passage, so that one more moves no other. Of the
    rest those are searched on whose hash with the seed is least: one more takes the place of one at most.

    Args:
      found: of `read`.
      config: the task's.
      encode: `encode(text) -> tokens`, without special tokens.
      room: tokens that a row may have.
      begin: token in front of every question and between two documents.
      notice: told in a sentence of rows that cannot be used, or are too few.

    Raises:
      InvalidInput: rows that are too long or too few, or answers that are not tokens of their own.
    """
    if isinstance(found, TextFile):
        if config.length > room:
            raise InvalidInput(
                f"length must be at most the model's {room} positions", got=config.length, hint=f"--length {room}"
            )
        share = config.held_out_share
        splits = text.pack_splits(found.documents, encode, length=config.length, held_out_share=share, end=begin)
        here, held_out = (Batch(jnp.asarray(rows.tokens), jnp.asarray(rows.answer)) for rows in splits)
        groups = [row.tobytes().hex() for row in splits.train.tokens]
    else:
        once = cache(encode)  # of what fits and of its rows the texts are the same
        if isinstance(found, ChoiceFile):
            rows, groups = _choice_rows(found, config, once, room=room, begin=begin, notice=notice)
        else:
            rows, groups = _answer_rows(found, config, once, room=room, begin=begin, notice=notice)
        away = np.asarray([text.uniform(group) < config.held_out_share for group in groups])
        _check_both_sides(away, config)
        here, held_out = _taken(rows, ~away), _taken(rows, away)
        groups = [group for group, is_away in zip(groups, away, strict=True) if not is_away]
    search, others = _apart(groups, config)
    if len(search) < config.batch_size:
        asked = f"{config.source} has {len(search)} rows to search on, where {config.batch_size} are asked for"
        notice(f"{asked}, {len(others)} to build bases on and {len(held_out[0])} that are held out.")
    return Rows(*(_trimmed(part) for part in (_taken(here, search), held_out, _taken(here, others))))


def _choice_rows(
    found: ChoiceFile, config: TaskConfig, encode: Encode, *, room: int, begin: int | None, notice: Notice
) -> tuple[Choices, list[str]]:
    """Rows, and of each what it may share with others."""
    if found.num_left_out:
        notice(f"{found.num_left_out} rows of {config.source} are of another form, and left out.")
    lengths = [
        len(prompt) + max(map(len, answers))
        for i, question in enumerate(found.questions, start=1)
        for prompt, answers in [choice_tokens(question, encode, name=f"question {i} of {config.source}")]
    ]
    fits = _fitting(lengths, config, room=room, begin=begin, notice=notice)
    rows = choices.choice_rows([found.questions[i] for i in fits], encode, max_length=room, begin=begin)
    return rows, [found.groups[i] for i in fits]


def _answer_rows(
    found: AnswerFile, config: TaskConfig, encode: Encode, *, room: int, begin: int | None, notice: Notice
) -> tuple[ShortAnswers | Batch, list[str]]:
    """Rows, and of each its prompt."""
    decoded = objective_of(found, config) == "exact_match"
    tokens = [
        answer_tokens(*answer, encode, name=f"prompt {i} of {config.source}")
        for i, answer in enumerate(found.answers, start=1)
    ]
    # What is decoded has as many tokens for every prompt.
    longest = max(len(one) for _, accepted in tokens for one in accepted)
    lengths = [len(prompt) + (longest if decoded else len(accepted[0])) for prompt, accepted in tokens]
    fits = _fitting(lengths, config, room=room, begin=begin, notice=notice)
    answers = [found.answers[i] for i in fits]
    make = short_answers.answer_rows if decoded else short_answers.answered_rows
    return make(answers, encode, max_length=room, begin=begin), [answer.prompt for answer in answers]


def _fitting(lengths: Sequence[int], config: TaskConfig, *, room: int, begin: int | None, notice: Notice) -> list[int]:
    """Which rows have room, `begin` in front of them; at least one."""
    fits = [i for i, length in enumerate(lengths) if length + (begin is not None) <= room]
    if not fits:
        asked = f"{config.source} must have prompts of at most {room} tokens with their answers"
        raise InvalidInput(
            asked,
            got=f"the shortest has {min(lengths) + (begin is not None)}",
            hint="shorter prompts, or a model with more positions",
        )
    if len(fits) < len(lengths):
        notice(f"{len(lengths) - len(fits)} prompts of {config.source} have more than {room} tokens, and are left out.")
    return fits


def _check_both_sides(away: Bool[np.ndarray, "n"], config: TaskConfig) -> None:
    if away.all() or not away.any():
        side = "all" if away.any() else "none"
        asked = f"{config.source} must have rows to search on and rows to hold out"
        raise InvalidInput(asked, got=f"{side} of {len(away)} held out", hint="more rows, or another held_out_share")


def _apart(groups: Sequence[str], config: TaskConfig) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "o"]]:
    """Which rows are searched on, and which are left: at least one of either, and of no group in both."""
    order = np.argsort([text.uniform(f"{config.seed}/{group}") for group in groups], kind="stable")
    num_last = groups.count(groups[order[-1]])
    size = min(config.batch_size, len(groups) - num_last)
    if size < 1:
        asked = f"{config.source} must have two different rows or more beside those held out"
        raise InvalidInput(
            asked,
            got=1 if len(groups) == 1 else f"{len(groups)} that are one",
            hint="more rows, or a smaller held_out_share",
        )
    searched = {groups[i] for i in order[:size]}
    others = [i for i in order[size:].tolist() if groups[i] not in searched]
    return np.sort(order[:size]), np.sort(np.asarray(others))


def _taken(rows: Any, which: Bool[np.ndarray, "n"] | Int[np.ndarray, "m"]) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[which], rows)


def _trimmed(rows: Choices | ShortAnswers | Batch) -> Any:
    """The rows without the columns that are padding in all of them."""
    if isinstance(rows, Choices):
        return rows._replace(tokens=rows.tokens[..., : np.max(rows.at) + 1])
    if isinstance(rows, ShortAnswers):
        size = np.max(np.sum(rows.mask, axis=1))
        return rows._replace(tokens=rows.tokens[:, :size], mask=rows.mask[:, :size])
    size = np.max(np.nonzero(rows.answer)[1]) + 1
    return Batch(rows.tokens[:, :size], rows.answer[:, :size])
