"""Where text comes from: a plain file, JSON lines, or whatever the `datasets` library reads."""

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lacuna.errors import InvalidInput

KINDS = "a .txt or .jsonl file, a folder of data files, or a data set that the hub gives"


def read_documents(
    source: str | Path, *, column: str = "text", split: str = "train", subset: str | None = None
) -> list[str]:
    """The documents of a source, in its order; those of white space alone are left out.

    Args:
      source: a `.txt` file, which is one document; a `.jsonl` file, a document in each line; or what
        `datasets.load_dataset` takes: a folder of data files or an id on the hub such as `Salesforce/wikitext`. What
        its cache lacks is fetched, whole, unless the environment says `HF_HUB_OFFLINE=1`.
      column: that holds the text, of JSON lines and data sets.
      split: of a data set.
      subset: of a data set that has several.

    Raises:
      InvalidInput: no such source, split, subset or column; a line that is no JSON object; an entry that is not text;
        a file that is not UTF-8; no text at all.
    """
    path = Path(source)
    documents = [_read(path)] if path.suffix == ".txt" else _columns(source, (column,), split, subset)[0]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise InvalidInput(f"{source} must hold text", got="none")
    return documents


def read_pairs(
    source: str | Path, *, prompt: str, answer: str, split: str = "train", subset: str | None = None
) -> list[tuple[str, str]]:
    """Prompts and their answers, in the order of the source.

    Args:
      source: a `.jsonl` file, or a data set as for `read_documents`.
      prompt: column of the prompts.
      answer: column of the answers.
      split: of a data set.
      subset: of a data set that has several.

    Raises:
      InvalidInput: as `read_documents`.
    """
    pairs = list(zip(*_columns(source, (prompt, answer), split, subset), strict=True))
    if not pairs:
        raise InvalidInput(f"{source} must hold pairs", got="none")
    return pairs


def _columns(source: str | Path, names: Sequence[str], split: str, subset: str | None) -> list[list[str]]:
    """Columns of text."""
    if Path(source).suffix == ".jsonl":
        rows = _objects(Path(source))
        for place, row in rows:
            _check_columns(f"{place} of {source}", names, row)
        return [_texts(name, ((f"{place} of {source}", row[name]) for place, row in rows)) for name in names]
    table = _load(source, split, subset)
    _check_columns(str(source), names, table.column_names)
    return [_texts(name, ((f"row {i} of {source}", entry) for i, entry in enumerate(table[name]))) for name in names]


def _objects(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with the place where it stands."""
    found = []
    for number, line in enumerate(_read(path).split("\n"), start=1):  # splitlines would cut within a JSON string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as fault:  # also a number of thousands of digits
            got = f"line {number}, where there is: {getattr(fault, 'msg', None) or type(fault).__name__}"
            raise InvalidInput(f"every line of {path} must be a JSON object", got=got) from fault
        if not isinstance(row, dict):
            raise InvalidInput(f"every line of {path} must be a JSON object", got=f"{_told(row)} in line {number}")
        found.append((f"line {number}", row))
    return found


def _load(source: str | Path, split: str, subset: str | None) -> Any:
    """A `datasets.Dataset`."""
    name = str(source)
    try:
        if not name or Path(name).is_file():
            raise ValueError("a file of another kind" if name else "an empty name")
        from datasets import load_dataset

        return load_dataset(name, subset, split=split)
    except Exception as fault:  # of the hub, of HTTP, of the readers of many kinds of files
        reason = (str(fault).splitlines() or [""])[0].rstrip(".") or type(fault).__name__
        of_subset = "" if subset is None else f", subset `{subset}`"
        raise InvalidInput(f"`{name}` must be {KINDS}, with split `{split}`{of_subset}", got=reason) from fault


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a mark of the byte order is no text
    except UnicodeDecodeError as fault:
        raise InvalidInput(
            f"{path} must be UTF-8", got=f"{fault.object[fault.start]:#04x} at byte {fault.start}"
        ) from fault
    except OSError as fault:
        raise InvalidInput(f"{path} must be a file that can be read", got=fault.strerror) from fault


def _check_columns(where: str, names: Iterable[str], there: Iterable[str]) -> None:
    columns = list(there)
    for name in names:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1, cutoff=0)
            raise InvalidInput(
                f"{where} needs a column `{name}`",
                got=", ".join(f"`{column}`" for column in columns) or "no column",
                hint=f"`{near[0]}`" if near else "",
            )


def _texts(name: str, entries: Iterable[tuple[str, Any]]) -> list[str]:
    texts = []
    for where, entry in entries:
        if not isinstance(entry, str):
            raise InvalidInput(f"column `{name}` must hold text", got=f"{_told(entry)} in {where}")
        try:
            entry.encode()
        except UnicodeEncodeError as fault:  # JSON can spell what no text holds, and no tokenizer takes it
            raise InvalidInput(f"column `{name}` must hold text", got=f"half a character in {where}") from fault
        texts.append(entry)
    return texts


def _told(value: Any) -> str:
    """A JSON value in an error, short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}…"
