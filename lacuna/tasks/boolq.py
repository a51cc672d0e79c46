"""BoolQ: yes-or-no questions about a passage (Clark et al., 2019). Of its validation set 62.2 % are true."""

from collections.abc import Sequence
from pathlib import Path

from lacuna.errors import InvalidInput
from lacuna.tasks import contrast
from lacuna.tasks.contrast import Question
from lacuna.tasks.documents import checked_text, read_rows, told

TEMPLATE = "{passage}\nQuestion: {question}?\nAnswer:"
"""The prompt of a question. The paper's is not available to us; this is ours."""

CHOICES = (" yes", " no")
"""The answers. One token each of GPT-2's and Qwen2's tokenizers."""

NUM_VALIDATION, NUM_FIT, NUM_DEV = 3270, 2000, 500
"""Rows of the validation set, and those of them to fit and to choose on; 770 are left to test on."""


def read_boolq(source: str | Path, *, split: str = "validation", subset: str | None = None) -> list[Question]:
    """The questions of BoolQ, each behind its passage and with the answers yes and no.

    Args:
      source: a `.jsonl` or `.json` file with the columns `question`, `passage` and `label` or `answer`, which is true
        or false; or `google/boolq`, or whatever `read_documents` takes.
      split: of a data set.
      subset: of a data set that has several.

    Returns:
      In the order of the source; the right answer is 0 where it is yes.

    Raises:
      InvalidInput: as `read_documents`, and an answer that is neither true nor false; names the row.
    """
    questions = []
    for place, (question, passage, answer) in read_rows(
        source, ("question", "passage", ("label", "answer")), split=split, subset=subset
    ):
        if not isinstance(answer, bool):
            raise InvalidInput("the answer to a question must be true or false", got=f"{told(answer)} in {place}")
        prompt = TEMPLATE.format(
            passage=checked_text("passage", passage, place).strip(),
            question=checked_text("question", question, place).strip().removesuffix("?"),
        )
        questions.append(Question(prompt, CHOICES, 0 if answer else 1))
    if not questions:
        raise InvalidInput(f"{source} must hold questions", got="none")
    return questions


def passage_of(question: Question) -> str:
    """The passage that a question of `read_boolq` is about; several questions may share one."""
    return question.prompt.rpartition("\nQuestion:")[0]


def boolq_split(questions: Sequence[Question], *, seed: int = 0) -> list[list[Question]]:
    """Questions to fit on, to choose on and to test on: 2000, 500 and the rest, of fewer in the same proportions.

    BoolQ's training set is not needed: vectors and strengths are chosen on most of the validation set.

    Args:
      questions: of `read_boolq`; 3270 in the validation set.
      seed: of their order.

    Raises:
      InvalidInput: as `contrast.split`; fewer than 7 questions.
    """
    share = min(1.0, len(questions) / NUM_VALIDATION)
    return contrast.split(questions, [int(share * NUM_FIT), int(share * NUM_DEV)], seed=seed)
