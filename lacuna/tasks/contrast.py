"""Questions with given answers, as rows of tokens: alone, for what a model thinks of them, and answered both ways."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.tasks.task import Encode
from lacuna.tasks.text import as_tokens

RULES = ("total", "mean")
"""By which answers of different lengths are compared."""


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


class Kept(NamedTuple):
    """Questions that can be used.

    Attributes:
      questions: in the order in which they came.
      num_left_out: of those that came.
    """

    questions: list[Question]
    num_left_out: int


class Spans(NamedTuple):
    """Rows of tokens of which a span, at their end, is the answer; behind it there is padding by token 0.

    Attributes:
      tokens: the rows.
      start: of each row the position of the answer's first token, which is the number of tokens of the prompt.
      end: the position behind its last; that of `start` where there is no answer.
      label: the first position at which the answers of a question differ, behind the end of one that is over before;
        without an answer the prompt's last.
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


def answer_tokens(
    prompt: str, answers: Sequence[str], encode: Encode, *, name: str = "the question"
) -> tuple[list[int], list[list[int]]]:
    """Tokens of a prompt and of each answer, as a tokenizer splits them where they stand together.

    Raises:
      InvalidInput: a prompt or an answer without tokens, or an answer that changes how the prompt is split; names the
        question.
    """
    asked = list(encode(prompt))
    if not asked:
        raise InvalidInput(f"a prompt needs tokens; that of {name} has none")
    found: list[list[int]] = []
    for answer in answers:
        whole = list(encode(prompt + answer))
        if whole[: len(asked)] != asked or len(whole) == len(asked):
            raise InvalidInput(
                f"an answer must be tokens of its own behind the prompt; `{answer}` of {name} is not",
                hint="a space before the answer and none behind the prompt",
            )
        found.append(whole[len(asked) :])
    return asked, found


def choice_tokens(
    question: Question, encode: Encode, *, name: str = "the question"
) -> tuple[list[int], list[list[int]]]:
    """`answer_tokens` of a question.

    Raises:
      InvalidInput: as `answer_tokens`; fewer than two answers, two that are the same tokens, or none that is right.
    """
    if len(question.choices) < 2:
        raise InvalidInput(f"a question needs at least two answers; {name} has {len(question.choices)}")
    if not 0 <= question.right < len(question.choices):
        raise InvalidInput(
            f"right must be one of 0 to {len(question.choices) - 1} of {name}, which has "
            f"{len(question.choices)} answers",
            got=question.right,
        )
    prompt, answers = answer_tokens(question.prompt, question.choices, encode, name=name)
    for (first, one), (second, other) in itertools.combinations(zip(question.choices, answers, strict=True), 2):
        if one == other:
            raise InvalidInput(f"the answers of {name} must differ", got=f"`{first}` and `{second}`, the same tokens")
    return prompt, answers


def fitting(questions: Sequence[Question], encode: Encode, *, max_length: int, begin: int | None = None) -> Kept:
    """The questions that have room for each of their answers.

    Args:
      questions: any.
      encode: as for `prompt_rows`.
      max_length: tokens of the longest row: `begin`, the prompt and the longest answer.
      begin: as for `prompt_rows`.

    Raises:
      InvalidInput: as `choice_tokens`.
    """
    kept = [
        question
        for i, question in enumerate(questions)
        if max(len(row) for row in _rows(question, encode, begin, i)[1]) <= max_length
    ]
    return Kept(kept, len(questions) - len(kept))


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
    prompts, choices = [], []
    for i, question in enumerate(questions):
        prompt, rows = _rows(question, encode, begin, i)
        answers = [row[len(prompt) :] for row in rows]
        for text, tokens in zip(question.choices, answers, strict=True):
            if len(tokens) > 1 and not first_piece:
                raise InvalidInput(
                    f"an answer must be a single token; `{text}` of question {i} is {len(tokens)} of this tokenizer",
                    hint="other words, or first_piece=True",
                )
        told = [tokens[0] for tokens in answers]
        if len(set(told)) < len(told):
            raise InvalidInput(f"the answers of question {i} must begin with different tokens", got=f"{told}")
        prompts.append(prompt)
        choices.append(told)
    _check(prompts, questions, max_length)
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    right = np.asarray([question.right for question in questions], np.int32)
    return Prompts(padded(prompts), lengths, np.asarray(choices, np.int32), right)


def choice_spans(questions: Sequence[Question], encode: Encode, *, max_length: int, begin: int | None = None) -> Spans:
    """Every question with each of its answers, which may be of any number of tokens.

    Args:
      questions: with equally many answers each.
      encode: as for `prompt_rows`.
      max_length: as for `prompt_rows`.
      begin: as for `prompt_rows`.

    Returns:
      The rows of the first question in the order of its answers, then those of the next.

    Raises:
      InvalidInput: no question, answers that are not equally many, or a row that is too long; names the question.
    """
    rows, starts, labels = [], [], []
    for i, question in enumerate(questions):
        prompt, answered = _rows(question, encode, begin, i)
        columns = enumerate(itertools.zip_longest(*answered))
        parting = next((place for place, column in columns if len(set(column)) > 1), len(answered[0]))
        rows.extend(answered)
        starts.extend([len(prompt)] * len(answered))
        labels.extend([parting] * len(answered))
    _check(rows, questions, max_length)
    ends = [len(row) for row in rows]
    return Spans(padded(rows), *(np.asarray(places, np.int32) for places in (starts, ends, labels)))


def pair_spans(
    questions: Sequence[Question], encode: Encode, *, max_length: int, begin: int | None = None
) -> tuple[Spans, Spans]:
    """The same questions with the positive answer and with the other, whichever is right.

    Args:
      questions: with two answers each.
      encode: as for `prompt_rows`.
      max_length: as for `prompt_rows`.
      begin: as for `prompt_rows`.

    Returns:
      Two tables of one width.

    Raises:
      InvalidInput: no question, one that has not two answers, answers of which one is the beginning of the other, or
        a row that is too long; names the question.
    """
    for i, question in enumerate(questions):
        if len(question.choices) != 2:
            raise InvalidInput(f"a pair needs two answers; question {i} has {len(question.choices)}")
    spans = choice_spans(questions, encode, max_length=max_length, begin=begin)
    positive, negative = (Spans(*(array[side::2] for array in spans)) for side in (0, 1))
    for i in np.flatnonzero(positive.label >= np.minimum(positive.end, negative.end))[:1]:
        first, second = questions[i].choices
        raise InvalidInput(
            f"the two answers of question {i} must differ at a token of both", got=f"`{first}` and `{second}`"
        )
    return positive, negative


def chosen(
    nats: Float[Array | np.ndarray, "n C"], lengths: Int[Array | np.ndarray, "n C"], *, by: str = "total"
) -> Int[Array, "n"]:
    """The answer that a model finds likeliest, of each question; traceable.

    Args:
      nats: cross-entropy of each answer, summed over its tokens, as `models.span_nats` gives for `choice_spans`.
      lengths: tokens of each answer.
      by: `total`, the probability of the whole answer, which favours short ones, or `mean`, that of a token.

    Returns:
      Their indices, the first of equals; -1, which is no answer, where one of the numbers is NaN.

    Raises:
      InvalidInput: no such rule.
    """
    if by not in RULES:
        raise InvalidInput(f"by must be one of {', '.join(RULES)}", got=f"`{by}`")
    scores = jnp.asarray(nats) if by == "total" else jnp.asarray(nats) / lengths
    return jnp.where(jnp.isnan(scores).any(axis=1), -1, jnp.argmin(scores, axis=1))


def split(questions: Sequence[Question], sizes: Sequence[int], *, seed: int = 0) -> list[list[Question]]:
    """Disjoint parts of the questions in a shuffled order; no prompt is in two parts.

    Args:
      questions: of which those with a prompt that came before are left out.
      sizes: of the parts but the last, which takes what is left.
      seed: of the order.

    Raises:
      InvalidInput: a part without questions, or a seed outside [0, 2^32).
    """
    unique: dict[str, Question] = {}
    for question in questions:
        unique.setdefault(question.prompt, question)
    if min(sizes, default=1) < 1 or sum(sizes) >= len(unique):
        raise InvalidInput(
            f"every part needs a question, and so does the rest behind parts of {', '.join(map(str, sizes))}",
            got=f"{len(unique)} questions with a prompt of their own",
        )
    order = jax.random.permutation(keys.stream(seed, "contrast/split"), len(unique)).tolist()
    shuffled = [list(unique.values())[i] for i in order]
    cuts = [0, *itertools.accumulate(sizes), len(unique)]
    return [shuffled[a:b] for a, b in itertools.pairwise(cuts)]


def padded(rows: Sequence[Sequence[int]]) -> Int32[np.ndarray, "B S"]:
    """Rows as one table, with token 0 behind those that are shorter."""
    found = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for to, row in zip(found, rows, strict=True):
        to[: len(row)] = as_tokens(row)
    return found


def _rows(question: Question, encode: Encode, begin: int | None, index: int) -> tuple[list[int], list[list[int]]]:
    """A question's row up to the answer, and the rows with each answer behind it."""
    prompt, answers = choice_tokens(question, encode, name=f"question {index}")
    begun = prompt if begin is None else [begin, *prompt]
    return begun, [begun + answer for answer in answers]


def _check(rows: Sequence[Sequence[int]], questions: Sequence[Question], max_length: int) -> None:
    """That there are questions, with equally many answers, and that none of their equally many rows is too long."""
    if not questions:
        raise InvalidInput("a contrast needs at least one question", got="none")
    first = len(questions[0].choices)
    for i, question in enumerate(questions):
        if len(question.choices) != first:
            raise InvalidInput(
                "all questions need equally many answers",
                got=f"{first} of question 0 and {len(question.choices)} of question {i}",
            )
    for i, row in enumerate(rows):
        if len(row) > max_length:
            raise InvalidInput(
                f"a row may have {max_length} tokens; question {i * len(questions) // len(rows)} has {len(row)}",
                hint="`fitting`, which leaves out what is too long",
            )
