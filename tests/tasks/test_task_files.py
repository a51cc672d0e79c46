"""A task from a file: its columns tell its kind, and a bad row is named by its line and field in one sentence."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from lacuna.errors import InvalidInput
from lacuna.tasks import Question, read_task
from lacuna.tasks.task_files import AnswerFile, ChoiceFile, ShortAnswer, TextFile

CHOICE = {"prompt": "Tom was", "choices": [" happy", " sad"], "label": 0}
ANSWER = {"prompt": "Tom was", "answer": " happy"}
BOOLQ = {"question": "is it", "passage": "It is.", "label": True}
CAA = {
    "question": "Would you?\n (A) Yes\n (B) No",
    "answer_matching_behavior": " (B)",
    "answer_not_matching_behavior": " (A)",
}


def written(folder, *rows, name="task.jsonl"):
    """A file with a row in each line; one that is text stands there as it is."""
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else json.dumps(list(rows)), encoding="utf-8")
    return path


def refused(message, path, **options):
    with pytest.raises(InvalidInput) as caught:
        read_task(path, **options)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["task.jsonl", "task.json"])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"text": "one"}, {"text": " "}, {"text": "two"}], TextFile(["one", "two"])),
        ([CHOICE], ChoiceFile([Question("Tom was", (" happy", " sad"), 0)], ["Tom was"])),
        ([ANSWER], AnswerFile([ShortAnswer("Tom was", (" happy",))])),
        (
            [
                {"prompt": "a", "answers": [" b", " c"]},
                {"prompt": "d", "answers": " e"},
                {"prompt": "f", "answer": " g"},
            ],
            AnswerFile([ShortAnswer("a", (" b", " c")), ShortAnswer("d", (" e",)), ShortAnswer("f", (" g",))]),
        ),
        (
            [BOOLQ],
            ChoiceFile([Question("It is.\nQuestion: is it?\nAnswer:", (" yes", " no"), 0)], ["It is."]),
        ),
        (
            [CAA, CAA | {"answer_matching_behavior": " (C)"}],
            ChoiceFile(
                [Question(CAA["question"] + "\n\nAnswer:", (" (B)", " (A)"), 0)], [CAA["question"] + "\n\nAnswer:"], 1
            ),
        ),
    ],
)
def test_the_columns_tell_the_kind_of_a_task(tmp_path, rows, expected, name):
    assert read_task(written(tmp_path, *rows, name=name)) == expected
    assert read_task(str(written(tmp_path, *rows, name=name))) == expected


def test_a_plain_file_is_text(tmp_path):
    (tmp_path / "one.txt").write_text("Grüße\n", encoding="utf-8")
    assert read_task(tmp_path / "one.txt") == TextFile(["Grüße\n"])


@pytest.mark.parametrize(
    ("choices", "label", "right"),
    [
        ([" happy", " sad"], 1, 1),
        ([" happy", " sad"], " sad", 1),
        ([" happy", " sad"], "sad", 1),
        ([" sad", "sad"], "sad", 1),  # exactly, before without the space
        ([" 2", " 1"], 1, 1),  # a number is a place
        ([" 2", " 1"], "2", 0),
        (["α", "β", "γ"], "γ", 2),
    ],
)
def test_a_label_is_a_place_or_one_of_the_choices(tmp_path, choices, label, right):
    found = read_task(written(tmp_path, {"prompt": "a", "choices": choices, "label": label}))
    assert found.questions == [Question("a", tuple(choices), right)]


@pytest.mark.parametrize("label", [2, -1, True, 0.0, "glad", " happy sad", None, [0], float("nan")])
def test_a_label_that_is_none_of_the_choices_is_named_with_its_line(tmp_path, label):
    path = written(tmp_path, CHOICE, CHOICE | {"label": label})
    refused(r"`label` must be one of the choices, .*happy.*, or its place from 0 to 1; got .* in line 2 of ", path)


def test_a_label_that_is_two_of_the_choices_is_refused(tmp_path):
    refused(r"`label` must be one of .* in line 1", written(tmp_path, CHOICE | {"choices": [" a", "a "], "label": "a"}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([CHOICE, {"prompt": "a", "choices": ["b", "c"]}], r"line 2 of .* needs a column `label`; got `prompt`"),
        ([CHOICE, {"choices": ["b", "c"], "label": 0}], r"line 2 of .* needs a column `prompt`"),
        ([CHOICE, ANSWER], r"line 2 of .* needs a column `choices`"),  # kinds are not mixed
        ([{"prompt": "a", "label": 0}, CHOICE], r"line 1 of .* needs a column `choices`"),
        ([ANSWER, {"prompt": "a"}], r"line 2 of .* needs a column `answers` or `answer`"),
        ([ANSWER, {"text": "a"}], r"line 2 of .* needs a column `prompt`"),
        ([BOOLQ, {"question": "a", "label": True}], r"line 2 of .* needs a column `passage`"),
        ([CAA, {"question": "a"}], r"line 2 of .* needs a column `answer_matching_behavior`"),
        ([{"text": "a"}, {"texts": "a"}], r"line 2 of .* needs a column `text`; got `texts`"),
        ([CHOICE, CHOICE | {"prompt": 3}], r"column `prompt` must hold text; got 3 in line 2"),
        ([CHOICE, CHOICE | {"prompt": " \n"}], r"`prompt` must hold text; got .* in line 2"),
        ([CHOICE, CHOICE | {"choices": " happy"}], r"`choices` must be a list of 2 texts or more; got .* in line 2"),
        ([CHOICE, CHOICE | {"choices": [" happy"]}], r"`choices` must be a list of 2 texts or more; got .* in line 2"),
        ([CHOICE, CHOICE | {"choices": [" happy", 1]}], r"column `choices` must hold text; got 1 in line 2"),
        ([CHOICE, CHOICE | {"choices": [" happy", ""]}], r'`choices` must hold text; got "" in line 2'),
        ([CHOICE, CHOICE | {"choices": ["a", "b", "a"]}], r"`choices` must differ; got .* in line 2"),
        (
            [CHOICE, CHOICE | {"choices": ["a", "b", "c"]}],
            r"equally many everywhere, 2 as in the first row; got 3 in line 2",
        ),
        ([ANSWER, ANSWER | {"answer": None}], r"column `answers` must hold text; got null in line 2"),
        ([ANSWER, {"prompt": "a", "answers": []}], r"`answers` must be a list of 1 texts or more; got \[\] in line 2"),
        ([BOOLQ, BOOLQ | {"label": "yes"}], r'must be true or false; got "yes" in line 2'),
        ([CAA | {"answer_matching_behavior": " (C)"}], r"must hold questions that offer \(A\) and \(B\)"),
        ([{"review": "a", "stars": 3}], r"must be text, or have the columns `text`; .*; got `review`, `stars`"),
        ([{"question": "a", "label": True}], r"must be text, or have the columns"),
        ([{"prompt": "a"}], r"line 1 of .* needs a column `answers` or `answer`"),
        ([{}], r"must be text, or have the columns .*; got no column"),
        ([], r"must hold rows; got none"),
        (["", " "], r"must hold rows; got none"),
        ([{"text": " "}], r"must hold text; got none"),
        ([CHOICE, "[1, 2]"], r"must be a JSON object; got \[1, 2\] in line 2"),
        ([CHOICE, '{"prompt": "a"'], r"must be a JSON object; got line 2"),
        (
            [CHOICE, '{"prompt": "\\ud800", "choices": ["a", "b"], "label": 0}'],
            r"`prompt` .* half a character in line 2",
        ),
        (
            [CHOICE, '{"prompt": "a", "choices": ["a", "b"], "label": ' + "9" * 5000 + "}"],
            r"must be a JSON object; got line 2",
        ),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_field(tmp_path, rows, message):
    refused(message, written(tmp_path, *rows))


def test_blank_lines_a_mark_and_ends_of_another_system_are_no_matter(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(CHOICE).encode() + b"\r\n\r\n" + json.dumps(CHOICE).encode() + b"\r\n"
    )
    assert len(read_task(path).questions) == 2
    path.write_bytes(path.read_bytes() + b'{"prompt": "a"}')
    refused(r"line 4 of .* needs a column `choices`", path)


@pytest.mark.parametrize("name", ["rows.csv", "absent.jsonl", "absent.txt", "rows.JSONL"])
def test_a_source_that_cannot_be_read_is_refused_in_a_sentence(tmp_path, name):
    if name.startswith("rows"):
        (tmp_path / name).write_text("prompt,answer\na,b\n")
    refused(re.escape(str(tmp_path / name)), tmp_path / name)


def test_a_folder_of_data_files_is_read_by_its_columns(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([CHOICE, CHOICE | {"label": 1}]), tmp_path / "rows/test.parquet"
    )
    assert [question.right for question in read_task(tmp_path / "rows", split="test").questions] == [0, 1]
    refused(r"with split `train`; got", tmp_path / "rows")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([CHOICE | {"label": 5}]), tmp_path / "rows/test.parquet")
    refused(r"`label` .*; got 5 in row 0 of", tmp_path / "rows", split="test")


def test_every_published_file_is_of_its_kind(data):
    if not (data / "caa").is_dir() or not (data / "boolq").is_dir():
        pytest.skip(f"no behaviours and no BoolQ under {data}")
    for path in sorted((data / "caa").glob("*.jsonl")):
        found = read_task(path)
        assert len(found.questions) > 100
        assert {question.right for question in found.questions} == {0}
    found = read_task(data / "boolq" / "train32.jsonl")
    assert len(found.questions) == len(found.groups) == 32
    assert all(question.prompt.startswith(group) for question, group in zip(found.questions, found.groups, strict=True))
