"""Where text comes from: a plain file, JSON, or whatever the `datasets` library reads."""

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lacuna.errors import InvalidInput

KINDS = "a .txt, .json or .jsonl file, a folder of data files, or a data set that the hub gives"


class Row(NamedTuple):
    """Entries of a table's row.

    Attributes:
      place: where it stands: `line 3 of FILE`.
      entries: in the order in which their columns were named.
    """

    place: str
    entries: tuple[Any, ...]


def read_documents(
    source: str | Path, *, column: str = "text", split: str = "train", subset: str | None = None
) -> list[str]:
    """The documents of a source, in its order; those of white space alone are left out.

    Args:
      source: a `.txt` file, which is one document; a `.jsonl` file, a document in each line, or a `.json` file, a list
        of them; or what `datasets.load_dataset` takes: a folder of data files or an id on the hub such as
        `Salesforce/wikitext`. What its cache lacks is fetched, whole, unless the environment says `HF_HUB_OFFLINE=1`.
      column: that holds the text, of JSON and data sets.
      split: of a data set.
      subset: of a data set that has several.

    Raises:
      InvalidInput: no such source, split, subset or column; a line that is no JSON object; an entry that is not text;
        a file that is not UTF-8; no text at all.
    """
    if Path(source).suffix == ".txt":
        documents = [_read(Path(source))]
    else:
        rows = read_rows(source, (column,), split=split, subset=subset)
        documents = [checked_text(column, row.entries[0], row.place) for row in rows]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise InvalidInput(f"{source} must hold text", got="none")
    return documents


def read_pairs(
    source: str | Path, *, prompt: str, answer: str, split: str = "train", subset: str | None = None
) -> list[tuple[str, str]]:
    """Prompts and their answers, in the order of the source.

    Args:
      source: a `.jsonl` or `.json` file, or a data set as for `read_documents`.
      prompt: column of the prompts.
      answer: column of the answers.
      split: of a data set.
      subset: of a data set that has several.

    Raises:
      InvalidInput: as `read_documents`.
    """
    columns = prompt, answer
    pairs = []
    for row in read_rows(source, columns, split=split, subset=subset):
        first, second = (checked_text(name, entry, row.place) for name, entry in zip(columns, row.entries, strict=True))
        pairs.append((first, second))
    if not pairs:
        raise InvalidInput(f"{source} must hold pairs", got="none")
    return pairs


def read_rows(
    source: str | Path, columns: Sequence[str | tuple[str, ...]], *, split: str = "train", subset: str | None = None
) -> list[Row]:
    """Columns of a source, row by row, whatever their entries are.

    Args:
      source: a `.jsonl` or `.json` file, or a data set as for `read_documents`.
      columns: names; several for a column that has one of them.
      split: of a data set.
      subset: of a data set that has several.

    Raises:
      InvalidInput: as `read_documents`, but for what the entries are.
    """
    path = Path(source)
    if path.suffix in (".json", ".jsonl"):
        objects = _lines(path) if path.suffix == ".jsonl" else _listed(path)
        return [Row(place, tuple(row[name] for name in _found(place, columns, row))) for place, row in objects]
    table = _load(source, split, subset)
    found = [table[name] for name in _found(str(source), columns, table.column_names)]
    return [Row(f"row {i} of {source}", entries) for i, entries in enumerate(zip(*found, strict=True))]


def column_names(source: str | Path, *, split: str = "train", subset: str | None = None) -> list[str]:
    """The columns of a `.jsonl` or `.json` file, those of any of its rows, or of a data set.

    Raises:
      InvalidInput: as `read_rows`; a file without a row.
    """
    path = Path(source)
    if path.suffix not in (".json", ".jsonl"):
        return list(_load(source, split, subset).column_names)
    rows = _lines(path) if path.suffix == ".jsonl" else _listed(path)
    if not rows:
        raise InvalidInput(f"{path} must hold rows", got="none")
    return list(dict.fromkeys(name for _, row in rows for name in row))


def checked_text(column: str, entry: Any, place: str) -> str:
    """The entry of a column, if it is text.

    Raises:
      InvalidInput: it is not; names the column and the place.
    """
    if not isinstance(entry, str):
        raise InvalidInput(f"column `{column}` must hold text", got=f"{told(entry)} in {place}")
    try:
        entry.encode()
    except UnicodeEncodeError as fault:  # JSON can spell what no text holds, and no tokenizer takes it
        raise InvalidInput(f"column `{column}` must hold text", got=f"half a character in {place}") from fault
    return entry


def told(value: Any) -> str:
    """A JSON value in an error, short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with the place where it stands."""
    found = []
    for number, line in enumerate(_read(path).split("\n"), start=1):  # splitlines would cut within a JSON string
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as fault:  # also a number of thousands of digits
            got = f"line {number}, where there is: {_why(fault)}"
            raise InvalidInput(
                f"every line of {path} must be a JSON object", got=got, hint="one object a line, in braces"
            ) from fault
        if not isinstance(row, dict):
            raise InvalidInput(
                f"every line of {path} must be a JSON object",
                got=f"{told(row)} in line {number}",
                hint="one object a line, in braces",
            )
        found.append((f"line {number} of {path}", row))
    return found


def _listed(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file that is one JSON list, each with the place where it stands."""
    try:
        rows = json.loads(_read(path), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as fault:
        at = f" in line {fault.lineno}" if isinstance(fault, json.JSONDecodeError) else ""
        got = f"{_why(fault)}{at}"
        raise InvalidInput(f"{path} must be a JSON list of objects", got=got) from fault
    if not isinstance(rows, list):
        raise InvalidInput(f"{path} must be a JSON list of objects", got=told(rows), hint=".jsonl for an object a line")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InvalidInput(f"{path} must be a JSON list of objects", got=f"{told(row)} as entry {number}")
    return [(f"entry {number} of {path}", row) for number, row in enumerate(rows, start=1)]


def _why(fault: Exception) -> str:
    """What is wrong with a JSON text, without the place."""
    return getattr(fault, "msg", None) or (str(fault) if isinstance(fault, ValueError) else type(fault).__name__)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # of which JSON would keep the last in silence
        raise ValueError("a name stands in an object twice")
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
        raise InvalidInput(
            f"`{name}` must be {KINDS}, with split `{split}`{of_subset}",
            got=reason,
            hint="a file, or an id that the hub has, with a network or from its cache",
        ) from fault


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")  # a mark of the byte order is no text
    except UnicodeDecodeError as fault:
        raise InvalidInput(
            f"{path} must be UTF-8",
            got=f"{fault.object[fault.start]:#04x} at byte {fault.start}",
            hint="iconv -t utf-8, with the encoding that it has",
        ) from fault
    except OSError as fault:
        raise InvalidInput(
            f"{path!s:.300} must be a file that can be read",
            got=fault.strerror,
            hint="a path from this folder, or a whole one",
        ) from fault
    except (ValueError, RuntimeError) as fault:  # a zero byte in its name, or the home of nobody
        raise InvalidInput(
            f"{path} must be a file that can be read", got=fault, hint="a path from this folder, or a whole one"
        ) from fault


def _found(where: str, columns: Sequence[str | tuple[str, ...]], there: Iterable[str]) -> list[str]:
    """Each column's name there."""
    known, found = list(there), []
    for column in columns:
        names = (column,) if isinstance(column, str) else column
        name = next((name for name in names if name in known), None)
        if name is None:
            near = difflib.get_close_matches(names[0], known, n=1, cutoff=0)
            raise InvalidInput(
                f"{where} needs a column {' or '.join(f'`{name}`' for name in names)}",
                got=", ".join(f"`{column}`" for column in known) or "no column",
                hint=f"`{near[0]}`" if near else "",
            )
        found.append(name)
    return found
