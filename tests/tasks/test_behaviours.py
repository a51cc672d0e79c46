"""Behaviours from files of CAA's form: what matches comes first, and both letters come equally often."""

import json
import re

import pytest

from lacuna.errors import InvalidInput
from lacuna.tasks import Question, balanced, read_behaviours

TWO = "Would you?\n\nChoices:\n (A) Yes (C)\n (B) No"
THREE = TWO + "\n (C) Perhaps"


def row(question, matching, other):
    return {"question": question, "answer_matching_behavior": matching, "answer_not_matching_behavior": other}


ROWS = [
    row(TWO, " (A)", " (B)"),
    row(TWO + "\n\nAnswer:", "(B)", " (A) "),
    row(THREE, " (A)", " (B)"),  # offers a third
    row(TWO, " (A)", " (C)"),  # another letter
    row(TWO, " (A)", " (A)"),
    row("Would you?", " (A)", " (B)"),  # no choices at all
]
QUESTIONS = [
    Question(TWO + "\n\nAnswer:", (" (A)", " (B)"), 0),
    Question(TWO + "\n\nAnswer:", (" (B)", " (A)"), 0),
]


def written(folder, rows, name="behaviour.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["behaviour.jsonl", "behaviour.json"])
def test_the_answer_that_matches_comes_first_and_others_than_a_and_b_are_left_out(tmp_path, name):
    assert read_behaviours(written(tmp_path, ROWS, name)) == (QUESTIONS, 4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"must hold questions that offer \(A\) and \(B\); got 0 rows"),
        (ROWS[2:], r"must hold questions that offer \(A\) and \(B\); got 4 rows, none of which does"),
        ([ROWS[0], row(TWO, 3, " (B)")], r"`answer_matching_behavior` must hold text; got 3 in line 2 of"),
        ([{"question": TWO}], r"line 1 of .* needs a column `answer_matching_behavior`; got `question`"),
    ],
)
def test_a_file_that_has_no_such_questions_is_refused(tmp_path, rows, message):
    with pytest.raises(InvalidInput, match=message):
        read_behaviours(written(tmp_path, rows))


def lettered(letters):
    """A question for each letter, which is that of its positive answer."""
    other = {"A": "B", "B": "A"}
    return [Question(f"{i}", (f" ({one})", f" ({other[one]})"), 0) for i, one in enumerate(letters)]


@pytest.mark.parametrize("letters", ["AABAABAA", "BBBBA", "ABAB"])
def test_a_balance_has_both_letters_equally_often_and_in_order(letters):
    questions = lettered(letters)
    kept = balanced(questions)
    each = min(letters.count("A"), letters.count("B"))
    assert [question.choices[0] for question in kept].count(" (A)") == each == len(kept) / 2
    places = [questions.index(question) for question in kept]
    assert places == sorted(set(places))


def test_a_balance_is_chosen_by_its_seed():
    questions = lettered("A" * 30 + "B" * 10)
    one, other = (balanced(questions, seed=seed) for seed in (0, 1))
    assert balanced(questions, seed=0) == one != other
    assert one[10:] == other[10:] == questions[30:]
    with pytest.raises(InvalidInput, match=r"positive answers of both letters; got 3 of \(A\) and 0 of \(B\)"):
        balanced(questions[:3])


@pytest.mark.parametrize(
    ("name", "num_rows", "num_a", "num_b"),
    [
        ("coordinate-other-ais", 410, 205, 205),
        ("corrigible-neutral-HHH", 340, 170, 170),
        ("myopic-reward", 1000, 500, 500),
        ("power-seeking-inclination", 998, 254, 348),
        ("survival-instinct", 953, 493, 213),
    ],
)
def test_published_behaviours(data, name, num_rows, num_a, num_b):
    path = data / "caa" / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"behaviour not found at {path}")
    found = read_behaviours(path)
    letters = [question.choices[0] for question in found.questions]
    assert (letters.count(" (A)"), letters.count(" (B)"), len(letters)) == (num_a, num_b, num_a + num_b)
    assert found.num_left_out == num_rows - num_a - num_b
    pattern = re.compile(r".*\n\s*\(A\).*\n\s*\(B\).*\S\n\nAnswer:", re.DOTALL)
    assert all(pattern.fullmatch(question.prompt) for question in found.questions)
    assert all(question.prompt.count("Answer:") == 1 for question in found.questions)
    assert len(balanced(found.questions)) == 2 * min(num_a, num_b)
