"""Text from plain files, JSON lines and data sets; a source that gives none says why in one sentence."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from lacuna.errors import InvalidInput
from lacuna.tasks import read_documents, read_pairs
from lacuna.tasks.documents import read_rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set of two splits in a folder; the library's cache is the test's own, and the hub is out of reach."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split, texts in (("train", ["a", "", "b"]), ("test", ["c"])):
        table = {"text": texts, "title": [text.upper() for text in texts], "label": list(range(len(texts)))}
        pyarrow.parquet.write_table(pyarrow.table(table), folder / f"{split}.parquet")
    return folder


def refused(message, read, *arguments, **options):
    """Whether the reading is refused in one sentence that says so."""
    with pytest.raises(InvalidInput) as caught:
        read(*arguments, **options)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def written(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_plain_file_is_one_document(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("Grüße\n\nworld", encoding="utf-8")
    assert read_documents(path) == read_documents(str(path)) == ["Grüße\n\nworld"]


def test_every_json_line_is_a_document(tmp_path):
    rows = [{"text": "a\u2028b"}, {"text": " "}, {"text": "c\n", "more": 1}]  # U+2028 would end a line elsewhere
    path = written(tmp_path, json.dumps(rows[0], ensure_ascii=False), " ", *map(json.dumps, rows[1:]))
    assert read_documents(path) == ["a\u2028b", "c\n"]


def test_a_folder_is_a_data_set_with_splits_and_columns(folder):
    assert read_documents(folder) == ["a", "b"]
    assert read_documents(str(folder), split="test", column="title") == ["C"]


def test_pairs_keep_their_order_and_their_sides(tmp_path, folder):
    path = written(tmp_path, *(json.dumps({"q": f"{i}+1=", "a": f" {i + 1}"}) for i in range(3)))
    assert read_pairs(path, prompt="q", answer="a") == [("0+1=", " 1"), ("1+1=", " 2"), ("2+1=", " 3")]
    assert read_pairs(folder, prompt="title", answer="text") == [("A", "a"), ("", ""), ("B", "b")]


def test_a_json_list_is_read_like_json_lines(tmp_path):
    path = tmp_path / "rows.json"
    rows = [{"text": "a\nb", "title": "A"}, {"text": "c", "title": None}]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    assert read_documents(path) == ["a\nb", "c"]
    refused(r"`title` must hold text; got null in entry 2 of", read_documents, path, column="title")
    for text, message in (
        ('[{"text": "a"}, 3]', r"a JSON list of objects; got 3 as entry 2"),
        ('{"text": "a"}', r'a JSON list of objects; got {"text": "a"}\. Try: \.jsonl'),
        ('[{"text": "a"},\n', r"a JSON list of objects; got Expecting value in line 2"),
        ("[" * 100_000, r"a JSON list of objects; got RecursionError"),
        ('[{"title": "a"}]', r"entry 1 of .* needs a column `text`; got `title`"),
    ):
        path.write_text(text, encoding="utf-8")
        refused(message, read_documents, path)


def test_a_column_may_have_one_of_several_names(tmp_path, folder):
    path = written(tmp_path, '{"q": "a", "label": true}', '{"answer": 3, "q": "b"}')
    assert read_rows(path, ["q", ("label", "answer")]) == [
        (f"line 1 of {path}", ("a", True)),
        (f"line 2 of {path}", ("b", 3)),
    ]
    assert read_rows(folder, [("answer", "label"), "text"], split="test") == [(f"row 0 of {folder}", (0, "c"))]
    refused(r"line 1 of .* a column `answers` or `right`; got `q`, `label`", read_rows, path, [("answers", "right")])


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path, folder):
    path = written(tmp_path, '{"text": "a"}', '{"texts": "b", "id": 1}')
    refused(r"line 2 of .*rows.jsonl needs a column `text`; got `texts`, `id`\. Try: `texts`", read_documents, path)
    refused(r"column `tittle`; got `text`, `title`, `label`\. Try: `title`", read_documents, folder, column="tittle")
    refused(r"column `answer`; got", read_pairs, folder, prompt="title", answer="answer")


def test_a_line_that_is_no_json_object_is_named_by_its_number(tmp_path):
    refused(r"JSON object; got \[1\] in line 3", read_documents, written(tmp_path, '{"text": "a"}', "", "[1]"))
    refused(r"JSON object; got line 2", read_documents, written(tmp_path, '{"text": "a"}', '{"text": "b'))


def test_an_entry_that_is_not_text_is_refused(tmp_path, folder):
    refused(r"`text` must hold text; got null in line 1", read_documents, written(tmp_path, '{"text": null}'))
    refused(r"`label` must hold text; got 0 in row 0", read_documents, folder, column="label")
    refused(r"must hold text; got half a character in line 1", read_documents, written(tmp_path, '{"text": "\\ud800"}'))
    huge = '{"text": "a", "number": ' + "9" * 5000 + "}"
    refused(r"must be a JSON object; got line 1", read_documents, written(tmp_path, huge))
    refused(r"must be a JSON object; got line 1", read_documents, written(tmp_path, "[" * 100_000))


def test_a_mark_of_the_byte_order_is_no_text(tmp_path):
    path = tmp_path / "marked.txt"
    path.write_bytes(b"\xef\xbb\xbfwords")
    assert read_documents(path) == ["words"]
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b'\xef\xbb\xbf{"text": "words"}')
    assert read_documents(marked) == ["words"]


@pytest.mark.parametrize("name", ["absent.txt", "absent.jsonl"])
def test_a_file_that_is_not_there(tmp_path, name):
    refused(rf"{name} must be a file that can be read; got No such file", read_documents, tmp_path / name)


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Grüße".encode("latin-1"))
    refused(r"must be UTF-8; got 0xfc at byte 2", read_documents, path)


def test_a_file_of_another_kind(folder):
    refused(r"a \.txt, \.json or \.jsonl file.*got a file of another kind", read_documents, folder / "train.parquet")


def test_a_source_without_text(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    refused(r"must hold text; got none", read_documents, tmp_path / "empty.txt")
    refused(r"must hold text; got none", read_documents, written(tmp_path, '{"text": ""}'))
    refused(r"must hold pairs; got none", read_pairs, written(tmp_path, ""), prompt="q", answer="a")


def test_a_split_or_subset_that_is_not_there(folder):
    refused(r"split `dev`; got .*\['train', 'test'\]", read_documents, folder, split="dev")
    refused(r"subset `small`; got .*default", read_documents, folder, subset="small")


@pytest.mark.parametrize("name", ["nobody/no-such-data-set", "no-such-data-set"])
def test_a_hub_that_does_not_answer(folder, name):
    refused(rf"`{name}` must be .* the hub gives, with split `train`; got .*Hub", read_documents, name)


def test_a_folder_that_is_not_there(folder):
    refused(r"parquet/absent` must be", read_documents, folder / "absent")
    refused(r"got an empty name", read_documents, "")
