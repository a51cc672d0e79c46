"""Records: one JSON line for each number, and the only truth that figures, tables and reports are drawn from."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lacuna.errors import InvalidInput
from lacuna.reports import rundir

SCHEMA = 1
"""Version of the line's layout; a reader refuses a newer one."""

RESERVED = frozenset({"schema", "experiment", "quantity", "value", "unit"})
"""Names of a line's own entries."""

Place = str | int | float


@dataclass(frozen=True)
class Record:
    """One measured or predicted number.

    Attributes:
      experiment: what was run, e.g. `sweep`.
      quantity: what the number is, e.g. `measured_gain`.
      value: the number; NaN where there is none.
      unit: its unit, `1` for a pure number.
      where: at which sigma, index, seed, ...

    Raises:
      InvalidInput: a place has the name of another entry of the line.
    """

    experiment: str
    quantity: str
    value: float
    unit: str
    where: dict[str, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := sorted(RESERVED & self.where.keys()):
            raise InvalidInput(
                f"a place may not have a name of the line itself: {', '.join(sorted(RESERVED))}", got=taken
            )

    def to_json(self) -> str:
        """The record as one line of strict JSON (a value that is not finite as a string)."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        head = {"schema": SCHEMA, "experiment": self.experiment, "quantity": self.quantity}
        return json.dumps({**head, "value": value, "unit": self.unit, **self.where}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """The record of a line.

        Raises:
          InvalidInput: the line is not a record, or was written by a newer lacuna.
        """
        try:
            entry = json.loads(line)
            schema, value = entry.pop("schema"), float(entry.pop("value"))
            record = cls(entry.pop("experiment"), entry.pop("quantity"), value, entry.pop("unit"), entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            raise InvalidInput(
                "a record is one JSON object a line", got=repr(line[:80]), hint="the file as the run left it"
            ) from fault
        if schema != SCHEMA:
            raise InvalidInput(f"records of schema {SCHEMA} are read here", got=schema, hint="a newer lacuna")
        return record


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, whole or not at all."""
    with rundir.whole_file(path) as unfinished:
        unfinished.write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")


def read(path: Path) -> list[Record]:
    """All records of a file.

    Raises:
      InvalidInput: there is no such file, or a line of it is not a record.
    """
    if not path.is_file():
        raise InvalidInput(f"{path} must be a file of records", got="no such file", hint="the folder of a finished run")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            found.append(Record.from_json(line))
        except InvalidInput as fault:
            raise InvalidInput(f"line {number} of {path}: {str(fault).rstrip('.')}") from fault
    return found


def select(records: Iterable[Record], quantity: str, **where: Place) -> list[Record]:
    """The records of a quantity whose `where` holds all the given entries, in file order."""
    return [r for r in records if r.quantity == quantity and all(r.where.get(k) == v for k, v in where.items())]


def value(records: Iterable[Record], quantity: str, **where: Place) -> float:
    """The value of the first record that `select` finds, NaN if there is none."""
    found = select(records, quantity, **where)
    return found[0].value if found else math.nan
