"""Questions with given answers, as rows of tokens: alone, for what a model thinks of them, and answered both ways."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from lacuna.errors import InvalidInput
from lacuna.tasks.task import Encode


class Question(NamedTuple):
    """A prompt and its answers.

    Attributes:
      prompt: all that comes before the answer.
      choices: the answers, as they follow the prompt: where words are told apart by a space in front, with theirs. Of
        two, the first is the positive one: `yes`, or the answer that matches a behaviour.
      right: which of them is right.
    """

    prompt: str
    choices: tuple[str, ...]
    right: int


class Spans(NamedTuple):
    """Rows of tokens of which a span, at their end, is the answer; behind it there is padding by token 0.

    Attributes:
      tokens: the rows.
      start: of each row the position of the answer's first token, which is the number of tokens of the prompt.
      end: the position behind its last; that of `start` where there is no answer.
      label: of an answered pair the first position at which the two differ; without an answer the prompt's last.
    """

    tokens: Int32[np.ndarray, "B S"]
    start: Int32[np.ndarray, "B"]
    end: Int32[np.ndarray, "B"]
    label: Int32[np.ndarray, "B"]


class Prompts(NamedTuple):
    """Prompts, and the token by which each of their answers is told.

    Attributes:
      tokens: the rows, padded behind by token 0, which no token before it sees.
      length: tokens of each prompt.
      choices: tokens of the answers.
      right: which answer is right.
    """

    tokens: Int32[np.ndarray, "B S"]
    length: Int32[np.ndarray, "B"]
    choices: Int32[np.ndarray, "B C"]
    right: Int32[np.ndarray, "B"]

    @property
    def positive(self) -> Bool[np.ndarray, "B"]:
        """Whether the positive answer, the first, is the right one."""
        return self.right == 0

    @property
    def spans(self) -> Spans:
        """The prompts as rows without an answer."""
        return Spans(self.tokens, self.length, self.length, self.length - 1)


def choice_tokens(
    question: Question, encode: Encode, *, name: str = "the question"
) -> tuple[list[int], list[list[int]]]:
    """Tokens of the prompt and of each answer, as a tokenizer splits them where they stand together.

    Raises:
      InvalidInput: a prompt or an answer without tokens, or an answer that changes how the prompt is split.
    """
    prompt = list(encode(question.prompt))
    if not prompt:
        raise InvalidInput(f"a prompt needs tokens; that of {name} has none")
    answers = []
    for choice in question.choices:
        whole = list(encode(question.prompt + choice))
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise InvalidInput(
                f"an answer must be tokens of its own behind the prompt; `{choice}` of {name} is not",
                hint="a space before the answer and none behind the prompt",
            )
        answers.append(whole[len(prompt) :])
    return prompt, answers


def prompt_rows(
    questions: Sequence[Question],
    encode: Encode,
    *,
    max_length: int,
    begin: int | None = None,
    first_piece: bool = False,
) -> Prompts:
    """The prompts of questions, whose answers are told by a single token each.

    Args:
      questions: with equally many answers each.
      encode: `encode(text) -> tokens`, without special tokens.
      max_length: tokens that a row may have: the model's positions, or fewer.
      begin: token in front of every row; None puts nothing there.
      first_piece: an answer of several tokens is told by its first.

    Raises:
      InvalidInput: no question, an answer of several tokens (unless `first_piece`), answers that are told by one
        token, answers that are not equally many, or a prompt that is too long; names the question.
    """
    rows, choices = [], []
    for i, question in enumerate(questions):
        name = f"question {i}"
        prompt, answers = choice_tokens(question, encode, name=name)
        several = [text for text, tokens in zip(question.choices, answers, strict=True) if len(tokens) > 1]
        if several and not first_piece:
            raise InvalidInput(
                f"an answer must be a single token; `{several[0]}` of {name} is "
                f"{max(map(len, answers))} tokens of this tokenizer",
                hint="other words, or first_piece=True",
            )
        told = [tokens[0] for tokens in answers]
        if len(set(told)) < len(told):
            raise InvalidInput(f"the answers of {name} must begin with different tokens", got=f"{told}")
        rows.append([*_begun(begin), *prompt])
        choices.append(told)
    _check(rows, max_length)
    if len({len(told) for told in choices}) > 1:
        raise InvalidInput("all questions need equally many answers", got=f"{sorted({len(told) for told in choices})}")
    lengths = np.asarray([len(row) for row in rows], np.int32)
    right = np.asarray([question.right for question in questions], np.int32)
    return Prompts(_padded(rows), lengths, np.asarray(choices, np.int32), right)


def pair_spans(
    questions: Sequence[Question], encode: Encode, *, max_length: int, begin: int | None = None
) -> tuple[Spans, Spans]:
    """The same questions with the positive answer and with the other, whichever is right.

    Args:
      questions: with two answers each.
      encode: as for `prompt_rows`.
      max_length: as for `prompt_rows`.
      begin: as for `prompt_rows`.

    Raises:
      InvalidInput: no question, one that has not two answers or two equal ones, or a row that is too long; names it.
    """
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    starts, labels = [], []
    for i, question in enumerate(questions):
        if len(question.choices) != 2:
            raise InvalidInput(f"a pair needs two answers; question {i} has {len(question.choices)}")
        prompt, answers = choice_tokens(question, encode, name=f"question {i}")
        if answers[0] == answers[1]:
            raise InvalidInput(f"the two answers of question {i} must differ", got=f"`{question.choices[0]}` twice")
        head = [*_begun(begin), *prompt]
        for side, answer in zip(sides, answers, strict=True):
            side.append([*head, *answer])
        starts.append(len(head))
        same = (a == b for a, b in zip(*answers, strict=False))
        shared = next((k for k, equal in enumerate(same) if not equal), min(map(len, answers)) - 1)
        labels.append(len(head) + shared)
    for side in sides:
        _check(side, max_length)
    start, label = np.asarray(starts, np.int32), np.asarray(labels, np.int32)
    positive, negative = (
        Spans(_padded(side), start, np.asarray([len(row) for row in side], np.int32), label) for side in sides
    )
    return positive, negative


def split(questions: Sequence[Question], sizes: Sequence[int], *, seed: int = 0) -> list[list[Question]]:
    """Disjoint parts of the questions in a shuffled order; no prompt is in two parts.

    Args:
      questions: of which those with a prompt that came before are left out.
      sizes: of the parts but the last, which takes what is left.
      seed: of the order.

    Raises:
      InvalidInput: fewer questions than the parts need.
    """
    unique = list({question.prompt: question for question in reversed(questions)}.values())[::-1]
    if sum(sizes) >= len(unique):
        raise InvalidInput(
            f"parts of {', '.join(map(str, sizes))} and a rest need more than {sum(sizes)} questions",
            got=f"{len(unique)} with a prompt of their own",
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    cuts = [0, *np.cumsum(sizes).tolist(), len(unique)]
    return [[unique[i] for i in order[a:b]] for a, b in itertools.pairwise(cuts)]


def _begun(begin: int | None) -> list[int]:
    return [] if begin is None else [begin]


def _check(rows: Sequence[Sequence[int]], max_length: int) -> None:
    if not rows:
        raise InvalidInput("a contrast needs at least one question", got="none")
    for i, row in enumerate(rows):
        if len(row) > max_length:
            raise InvalidInput(f"a row may have {max_length} tokens; question {i} has {len(row)}", hint="leave it out")


def _padded(rows: Sequence[Sequence[int]]) -> Int32[np.ndarray, "B S"]:
    found = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for to, row in zip(found, rows, strict=True):
        to[: len(row)] = row
    return found
