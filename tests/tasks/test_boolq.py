"""BoolQ from files of its form: every question behind its passage, and a bad row named by its line."""

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lacuna.errors import InvalidInput
from lacuna.tasks import Question, boolq_split, read_boolq
from lacuna.tasks.boolq import TEMPLATE

ROWS = [
    {"question": "is the sky blue", "passage": "Sky -- It is {blue}.", "label": True, "idx": 0},
    {"question": "is grass red?", "passage": "Grass -- It is green. \n", "label": False, "idx": 1},
]
QUESTIONS = [
    Question("Sky -- It is {blue}.\nQuestion: is the sky blue?\nAnswer:", (" yes", " no"), 0),
    Question("Grass -- It is green.\nQuestion: is grass red?\nAnswer:", (" yes", " no"), 1),
]


def written(folder, rows):
    path = folder / "boolq.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_question_comes_behind_its_passage(tmp_path):
    assert read_boolq(written(tmp_path, ROWS)) == QUESTIONS
    answers = [{"answer" if key == "label" else key: value for key, value in row.items()} for row in ROWS]
    assert read_boolq(str(written(tmp_path, answers))) == QUESTIONS


def test_a_data_set_is_read_like_a_file(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "boolq").mkdir()
    for split, rows in (("train", ROWS[:1]), ("validation", ROWS[::-1])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "boolq" / f"{split}.parquet")
    assert read_boolq(tmp_path / "boolq") == QUESTIONS[::-1]
    assert read_boolq(tmp_path / "boolq", split="train") == QUESTIONS[:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 1}, r"must be true or false; got 1 in line 2 of .*boolq\.jsonl"),
        ({"label": "true"}, r'must be true or false; got "true" in line 2'),
        ({"passage": None}, r"column `passage` must hold text; got null in line 2"),
        ({"question": ["is"]}, r'column `question` must hold text; got \["is"\] in line 2'),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, change, message):
    with pytest.raises(InvalidInput, match=message):
        read_boolq(written(tmp_path, [ROWS[0], ROWS[1] | change]))


def test_a_row_that_lacks_a_column_or_a_file_that_lacks_rows_is_refused(tmp_path):
    short = {key: value for key, value in ROWS[0].items() if key != "passage"}
    with pytest.raises(InvalidInput, match=r"line 1 of .* needs a column `passage`; got `question`, `label`, `idx`"):
        read_boolq(written(tmp_path, [short]))
    unlabelled = {"question": "is it", "passage": "It."}
    with pytest.raises(InvalidInput, match=r"needs a column `label` or `answer`"):
        read_boolq(written(tmp_path, [unlabelled]))
    with pytest.raises(InvalidInput, match=r"boolq\.jsonl must hold questions; got none"):
        read_boolq(written(tmp_path, []))


@pytest.mark.parametrize(("num", "sizes"), [(3270, [2000, 500, 770]), (327, [200, 50, 77]), (5000, [2000, 500, 2500])])
def test_a_split_has_the_proportions_of_the_validation_set(num, sizes):
    questions = [Question(str(i), (" yes", " no"), 0) for i in range(num)]
    parts = boolq_split(questions)
    assert [len(part) for part in parts] == sizes
    assert {question for part in parts for question in part} == set(questions)
    assert boolq_split(questions, seed=1) != parts


def test_a_few_questions_cannot_be_split():
    questions = [Question(str(i), (" yes", " no"), 0) for i in range(7)]
    assert [len(part) for part in boolq_split(questions)] == [4, 1, 2]
    with pytest.raises(InvalidInput, match=r"every part needs a question"):
        boolq_split(questions[:6])


def test_the_validation_set(data):
    path = Path(data) / "boolq" / "validation.jsonl"
    if not path.exists():
        pytest.skip(f"BoolQ validation not found at {path}")
    questions = read_boolq(path)
    assert len(questions) == 3270
    assert sum(question.right == 0 for question in questions) == 2033
    pattern = re.compile(re.escape(TEMPLATE).replace(r"\{passage\}", ".+").replace(r"\{question\}", ".+"), re.DOTALL)
    assert all(pattern.fullmatch(question.prompt) for question in questions)
    parts = boolq_split(questions)
    assert [len(part) for part in parts] == [2000, 500, 770]
    assert len({question.prompt for part in parts for question in part}) == 3270
    with pytest.raises(InvalidInput, match=r"line 1 of .* needs a column `passage`"):
        read_boolq(path.with_name("train_questions_only.jsonl"))
