"""A task from a file: what its columns say it is, and its rows, each with the line where it stands."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lacuna.errors import InvalidInput
from lacuna.tasks.behaviours import read_behaviours
from lacuna.tasks.boolq import passage_of, read_boolq
from lacuna.tasks.contrast import Question
from lacuna.tasks.documents import checked_text, column_names, read_documents, read_rows, told

FORMS = (
    "`text`; `prompt`, `choices` and `label`; `prompt` and `answer` or `answers`; `question`, `passage` and `label` "
    "(BoolQ); or `question`, `answer_matching_behavior` and `answer_not_matching_behavior` (CAA)"
)


class TextFile(NamedTuple):
    """Text to be predicted.

    Attributes:
      documents: in the order of the source.
    """

    documents: list[str]


class ChoiceFile(NamedTuple):
    """Questions of which one of the given answers is right.

    Attributes:
      questions: in the order of the source.
      groups: of each question what it may share with others, such as its passage: what is searched on and what is
        held out share none.
      num_left_out: questions that are of another form.
    """

    questions: list[Question]
    groups: list[str]
    num_left_out: int = 0


class ShortAnswer(NamedTuple):
    """A prompt and the answers that are right.

    Attributes:
      prompt: all that comes before the answer.
      accepted: as they follow the prompt, with a space in front where words are told apart by one; at least one.
    """

    prompt: str
    accepted: tuple[str, ...]


class AnswerFile(NamedTuple):
    """Prompts with short answers.

    Attributes:
      answers: in the order of the source.
    """

    answers: list[ShortAnswer]


TaskFile = TextFile | ChoiceFile | AnswerFile


def read_task(source: str | Path, *, split: str = "train", subset: str | None = None) -> TaskFile:
    """The rows of a task, whose kind its columns tell.

    Args:
      source: a `.txt` file of text; a `.jsonl` or `.json` file, or what `read_documents` takes, with the columns
        `text`; or `prompt`, `choices` (a list) and `label` (the right one, or its place from 0); or `prompt` and
        `answer` (or `answers`, a list of which each is right); or those of BoolQ or of CAA's behaviours.
      split: of a data set.
      subset: of a data set that has several.

    Raises:
      InvalidInput: columns of none of these kinds, a field that is missing or is not what it should be, a label that is
        none of the choices; names the line and the field.
    """
    if Path(source).suffix == ".txt":
        return TextFile(read_documents(source))
    there = column_names(source, split=split, subset=subset)
    if "choices" in there:
        return _choices(read_rows(source, ("prompt", "choices", "label"), split=split, subset=subset), source)
    if "passage" in there:
        questions = read_boolq(source, split=split, subset=subset)
        return ChoiceFile(questions, [passage_of(question) for question in questions])
    if "answer_matching_behavior" in there:
        kept = read_behaviours(source, split=split, subset=subset)
        return ChoiceFile(kept.questions, [question.prompt for question in kept.questions], kept.num_left_out)
    if "prompt" in there:
        return _answers(read_rows(source, ("prompt", ("answers", "answer")), split=split, subset=subset), source)
    if "text" in there:
        return TextFile(read_documents(source, split=split, subset=subset))
    got = ", ".join(f"`{name}`" for name in there) or "no column"
    raise InvalidInput(
        f"{source} must be text, or have the columns {FORMS}", got=got, hint='a .txt, or rows such as {"text": "..."}'
    )


def _choices(rows: Iterable[Any], source: str | Path) -> ChoiceFile:
    questions = []
    for place, (prompt, choices, label) in rows:
        prompt = _said("prompt", prompt, place)
        options = _texts("choices", choices, place, at_least=2)
        if len(set(options)) < len(options):
            raise InvalidInput("`choices` must differ", got=f"{told(choices)} in {place}")
        if questions and len(options) != len(questions[0].choices):
            asked = f"`choices` must be equally many everywhere, {len(questions[0].choices)} as in the first row"
            raise InvalidInput(asked, got=f"{len(options)} in {place}")
        questions.append(Question(prompt, options, _place_of(label, options, place)))
    _check_some(questions, source)
    return ChoiceFile(questions, [question.prompt for question in questions])


def _place_of(label: Any, choices: tuple[str, ...], place: str) -> int:
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(choices):
        return label
    if isinstance(label, str):
        alike = [i for i, choice in enumerate(choices) if choice.strip() == label.strip()]
        found = [choices.index(label)] if label in choices else alike
        if len(found) == 1:
            return found[0]
    raise InvalidInput(
        f"`label` must be one of the choices, {told(list(choices))}, or its place from 0 to {len(choices) - 1}",
        got=f"{told(label)} in {place}",
        hint="0 for the first of them",
    )


def _answers(rows: Iterable[Any], source: str | Path) -> AnswerFile:
    found = []
    for place, (prompt, answers) in rows:
        prompt = _said("prompt", prompt, place)
        several = answers if isinstance(answers, list) else [answers]
        found.append(ShortAnswer(prompt, _texts("answers", several, place, at_least=1)))
    _check_some(found, source)
    return AnswerFile(found)


def _said(column: str, entry: Any, place: str) -> str:
    """Text that is not empty."""
    text = checked_text(column, entry, place)
    if not text.strip():
        raise InvalidInput(f"`{column}` must hold text", got=f"{json.dumps(text)} in {place}")
    return text


def _texts(column: str, entries: Any, place: str, *, at_least: int) -> tuple[str, ...]:
    if not isinstance(entries, list) or len(entries) < at_least:
        raise InvalidInput(f"`{column}` must be a list of {at_least} texts or more", got=f"{told(entries)} in {place}")
    return tuple(_said(column, entry, place) for entry in entries)


def _check_some(rows: Sequence[Any], source: str | Path) -> None:
    if not rows:
        raise InvalidInput(f"{source} must hold questions", got="none")
