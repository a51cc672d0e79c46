"""Behaviours as questions with two lettered answers: the format of CAA (contrastive activation addition)."""

import re
from collections.abc import Sequence
from pathlib import Path

import jax

from lacuna import keys
from lacuna.errors import InvalidInput
from lacuna.tasks.contrast import Kept, Question
from lacuna.tasks.documents import checked_text, read_rows

LETTERS = ("(A)", "(B)")

ASKED = "\n\nAnswer:"
"""What every prompt ends with. Some published questions do, others end with their last choice."""

COLUMNS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")

_OFFERED = re.compile(r"^\s*(\([A-Z]\))", re.MULTILINE)


def read_behaviours(source: str | Path, *, split: str = "train", subset: str | None = None) -> Kept:
    """Questions that offer the choices (A) and (B); the positive answer is the one that matches the behaviour.

    Args:
      source: a `.jsonl` or `.json` file with the columns `question`, `answer_matching_behavior` and
        `answer_not_matching_behavior`, or whatever `read_documents` takes.
      split: of a data set.
      subset: of a data set that has several.

    Returns:
      In the order of the source, `right` being 0 throughout, and how many of other choices or letters are left out.

    Raises:
      InvalidInput: as `read_documents`, and no question with the choices (A) and (B).
    """
    rows = read_rows(source, COLUMNS, split=split, subset=subset)
    questions = []
    for place, entries in rows:
        texts = (checked_text(column, entry, place).strip() for column, entry in zip(COLUMNS, entries, strict=True))
        asked, matching, other = texts
        if sorted((matching, other)) == sorted(_OFFERED.findall(asked)) == list(LETTERS):
            prompt = asked.removesuffix(ASKED.strip()).rstrip() + ASKED
            questions.append(Question(prompt, (f" {matching}", f" {other}"), 0))
    if not questions:
        raise InvalidInput(
            f"{source} must hold questions that offer (A) and (B)", got=f"{len(rows)} rows, none of which does"
        )
    return Kept(questions, len(rows) - len(questions))


def balanced(questions: Sequence[Question], *, seed: int = 0) -> list[Question]:
    """As many questions whose positive answer is (A) as those whose is (B).

    Read at its letter, a contrast of unbalanced answers is in part that of the two letters.

    Args:
      questions: of `read_behaviours`.
      seed: of the choice among those that are too many; the order stays.

    Raises:
      InvalidInput: none of a letter, or a seed outside [0, 2^32).
    """
    by_letter = [[i for i, question in enumerate(questions) if question.choices[0].strip() == one] for one in LETTERS]
    each = min(map(len, by_letter))
    if not each:
        got = " and ".join(f"{len(found)} of {letter}" for found, letter in zip(by_letter, LETTERS, strict=True))
        raise InvalidInput("a balance needs questions with positive answers of both letters", got=got)
    kept = [
        found[i]
        for found, letter in zip(by_letter, LETTERS, strict=True)
        for i in jax.random.permutation(keys.stream(seed, f"behaviours/{letter}"), len(found))[:each].tolist()
    ]
    return [questions[i] for i in sorted(kept)]
