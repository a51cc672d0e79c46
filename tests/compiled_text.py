"""What a compiled program says of itself: which arrays there are, and what moves between devices."""

import re

COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\(")
"""The result and the kind of each."""

_SHAPE = re.compile(r"\w+\[([\d,]*)\]")


def shapes(text):
    """All shapes that are named, without axes of length one."""
    return {tuple(int(n) for n in found.split(",") if n not in ("", "1")) for found in _SHAPE.findall(text)}


def of_matrices(arrays):
    """Shapes of the leaves and of one layer of each."""
    return {shape[cut:] for shape in arrays for cut in range(len(shape) - 1)}
