"""Names of many tensors in one line."""

import re
from collections.abc import Iterable


def told(names: Iterable[str], most: int = 40) -> str:
    """Names of tensors in one line: those that differ in their layer alone stand together, as in `h.{0-3,7}.ln`."""
    layers: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<![^.])\d{1,9}(?![^.])", name)
        pattern = name if number is None else f"{name[: number.start()]}\0{name[number.end() :]}"
        layers.setdefault(pattern, []).extend([] if number is None else [int(number[0])])
    found = [f"`{pattern.replace(chr(0), _ranges(of)) if of else pattern}`" for pattern, of in sorted(layers.items())]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _ranges(numbers: list[int]) -> str:
    """One number as it is, several as `{0-3,7}`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
