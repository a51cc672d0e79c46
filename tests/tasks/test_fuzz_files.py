"""Task files of any bytes: refused in one sentence that names the file, or rows equal to those of another parser."""

import json
import re

import fuzzing
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lacuna.errors import InvalidInput
from lacuna.tasks.task_files import AnswerFile, ChoiceFile, TextFile, read_task

CASES = fuzzing.cases(300)
SUFFIXES = (".txt", ".jsonl", ".json")
FEW = st.text(st.sampled_from('ab \n\r"\\ä\ufeff\u2028\0'), max_size=4)
WORD = st.sampled_from(["a", " b", "c ", "a b", "", " ", "\ud800", "\u2028", "ü"]) | FEW
ENTRY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from([2**70, 1.0, float("nan"), 1e308]) | WORD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=2),
    max_leaves=4,
)
LISTS = st.lists(WORD, min_size=1, max_size=3)


def rows(**columns):
    """A few rows of a form, some entries of which are of another kind, and some left out."""
    rightly = st.fixed_dictionaries(columns)
    wrongly = st.fixed_dictionaries({}, optional={name: ENTRY | good for name, good in columns.items()})
    return st.lists(rightly | rightly | wrongly, max_size=4)


TABLES = st.one_of(
    rows(text=WORD),
    rows(prompt=WORD, choices=st.just([" a", "b"]) | LISTS, label=st.integers(0, 1) | WORD),
    rows(prompt=WORD, answer=WORD),
    rows(prompt=WORD, answers=LISTS),
    rows(question=WORD, passage=WORD, label=st.booleans()),
    rows(
        question=st.just("So? \n (A) yes\n (B) no") | WORD,
        answer_matching_behavior=st.sampled_from(["(A)", " (B)"]) | WORD,
        answer_not_matching_behavior=st.sampled_from(["(B)", "(A) "]) | WORD,
    ),
    st.lists(ENTRY, max_size=3),
)


def told(value, suffix, *, ascii_only=True):
    """A table as a file of a kind has it."""
    if suffix == ".json":
        return json.dumps(value, ensure_ascii=ascii_only)
    return "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in value)


# Another parser, of the bytes: what the file says, or None where nobody should believe it.


def parsed(data, suffix):
    def strict(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    try:
        text = data.decode().removeprefix("\ufeff")
        if suffix == ".txt":
            return text.replace("\r\n", "\n").replace("\r", "\n")
        lines = [text] if suffix == ".json" else [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
        found = [json.loads(line, object_pairs_hook=strict) for line in lines]
        found = found[0] if suffix == ".json" else found
        assert isinstance(found, list)
        assert all(isinstance(row, dict) for row in found)
    except (ValueError, AssertionError):
        return None
    return found


def is_text(entry):
    return isinstance(entry, str) and not any(0xD800 <= ord(c) < 0xE000 for c in entry)


def are_texts(entries):
    return isinstance(entries, list) and all(is_text(entry) and entry.strip() for entry in entries)


def right_place(label, choices):
    if type(label) is int:
        return label if 0 <= label < len(choices) else None
    places = [i for i, choice in enumerate(choices) if isinstance(label, str) and choice.strip() == label.strip()]
    exact = [i for i in places if choices[i] == label]
    return (exact or places)[0] if len(exact or places) == 1 else None


def expected(table, suffix):
    """The kind of a task and its rows, or None."""
    if table is None:
        return None
    if suffix == ".txt":
        return ("text", [table]) if table.strip() else None
    names = {name for row in table for name in row}
    of = {name: [row.get(name) for row in table] for name in names}

    def whole(*columns):
        return all(column in row for row in table for column in columns)

    if "choices" in names:
        if not whole("prompt", "choices", "label") or not are_texts(of["prompt"]):
            return None
        places = []
        for row in table:
            choices = row["choices"]
            fits = are_texts(choices) and len(set(choices)) == len(choices) >= 2
            if not fits or len(choices) != len(table[0]["choices"]) or right_place(row["label"], choices) is None:
                return None
            places.append((row["prompt"], tuple(choices), right_place(row["label"], choices)))
        return "choices", places
    if "passage" in names:
        answers = [row.get("label", row.get("answer")) for row in table]
        fits = all(map(is_text, of["passage"])) and all(map(is_text, of.get("question", [None])))
        if not fits or not all(isinstance(answer, bool) for answer in answers):
            return None
        asked = [
            f"{row['passage'].strip()}\nQuestion: {row['question'].strip().removesuffix('?')}?\nAnswer:"
            for row in table
        ]
        return "choices", [(a, (" yes", " no"), 0 if b else 1) for a, b in zip(asked, answers, strict=True)]
    if "answer_matching_behavior" in names:
        columns = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
        if not whole(*columns) or not all(is_text(row[column]) for row in table for column in columns):
            return None
        kept = []
        for row in table:
            asked, *pair = (row[column].strip() for column in columns)
            if sorted(pair) == ["(A)", "(B)"] == sorted(re.findall(r"^\s*(\([A-Z]\))", asked, re.MULTILINE)):
                prompt = asked.removesuffix("Answer:").rstrip() + "\n\nAnswer:"
                kept.append((prompt, tuple(f" {one}" for one in pair), 0))
        return ("choices", kept) if kept else None
    if "prompt" in names:
        found = []
        for row in table:
            given = row.get("answers", row.get("answer"))
            given = given if isinstance(given, list) else [given]
            if not {"answer", "answers"} & row.keys() or not given or not are_texts([row.get("prompt"), *given]):
                return None
            found.append((row["prompt"], tuple(given)))
        return "answers", found
    if "text" in names and whole("text") and all(map(is_text, of["text"])):
        kept = [text for text in of["text"] if text.strip()]
        return ("text", kept) if kept else None
    return None


def read(file):
    """As `expected` has it."""
    found = read_task(file)
    if isinstance(found, TextFile):
        return "text", found.documents
    if isinstance(found, AnswerFile):
        return "answers", [tuple(answer) for answer in found.answers]
    assert isinstance(found, ChoiceFile)
    return "choices", [tuple(question) for question in found.questions]


def check(folder, data, suffix):
    file = folder / f"task{suffix}"
    file.write_bytes(data)
    wanted = expected(parsed(data, suffix), suffix)
    if wanted is not None:
        assert read(file) == wanted
        return
    with pytest.raises(InvalidInput) as raised:
        read(file)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert f"task{suffix}" in sentence


@CASES
@given(table=TABLES, suffix=st.sampled_from(SUFFIXES), ascii_only=st.booleans(), mark=st.booleans())
@example(table=[{"prompt": "a", "choices": [" a", "b"], "label": True}], suffix=".jsonl", ascii_only=True, mark=True)
@example(table=[{"prompt": "a", "choices": [" a", "b"], "label": 1.0}], suffix=".json", ascii_only=True, mark=False)
@example(table=[{"prompt": "a", "choices": ["a", "b"], "label": 2**70}], suffix=".json", ascii_only=True, mark=False)
@example(table=[{"text": "\ud800"}], suffix=".jsonl", ascii_only=True, mark=False)
@example(table=[{"text": "a\u2028b"}], suffix=".jsonl", ascii_only=False, mark=False)
@example(table=[{"prompt": "a", "answer": "b"}] * 2, suffix=".jsonl", ascii_only=True, mark=False)
def test_a_table_is_read_as_another_parser_reads_it_or_refused(tmp_path, table, suffix, ascii_only, mark):
    text = told(table, suffix, ascii_only=ascii_only)
    assume(not re.search("[\ud800-\udfff]", text))
    check(tmp_path, b"\xef\xbb\xbf" * mark + text.encode(), suffix)


@CASES
@given(table=TABLES, suffix=st.sampled_from(SUFFIXES), data=st.data())
def test_a_damaged_file_is_read_as_another_parser_reads_it_or_refused(tmp_path, table, suffix, data):
    whole = bytearray(told(table, suffix).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    check(tmp_path, bytes(whole[: data.draw(st.integers(0, len(whole)))]), suffix)


@CASES
@given(data=st.binary(max_size=30) | FEW.map(str.encode), suffix=st.sampled_from(SUFFIXES))
@example(data=b'{"text": "a", "text": "b"}', suffix=".jsonl")
@example(data=b'[{"text": "a", "text": "b"}]', suffix=".json")
@example(data=b'{"text": ' + b"[" * 100_000, suffix=".jsonl")
@example(data=b'{"prompt": "a", "answer": "b", "n": ' + b"1" * 5000 + b"}", suffix=".jsonl")
@example(data=b"\xff\xfe", suffix=".txt")
def test_any_bytes_are_read_as_another_parser_reads_them_or_refused(tmp_path, data, suffix):
    try:
        check(tmp_path, data, suffix)
    except RecursionError:  # of the other parser
        with pytest.raises(InvalidInput, match=f"task{suffix}"):
            read(tmp_path / f"task{suffix}")


def test_the_home_is_where_a_path_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "task.txt").write_text("some words")
    (tmp_path / "task.jsonl").write_text('{"prompt": "a", "answer": "b"}')
    assert read("~/task.txt") == ("text", ["some words"])
    assert read("~/task.jsonl") == ("answers", [("a", ("b",))])


@pytest.mark.parametrize("source", ["~nobody-is-here/a.txt", "~/none.jsonl", "a\0b.json", "x" * 300 + ".txt", ".txt"])
def test_a_path_that_leads_to_no_file_is_one_sentence(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="must be a"):
        read(source)
