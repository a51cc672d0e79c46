"""The compiled programs of a long process, kept within what Linux grants one process."""

from pathlib import Path

import jax

MAPS = Path("/proc/self/maps")
"""One line for each memory map of this process, where there is such a file."""


def forget_many(most: int = 20_000) -> None:
    """Forget all compiled programs if they take more memory maps than this.

    Every program takes several, and past the 65,530 that Linux grants a process XLA crashes.
    """
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > most:
        jax.clear_caches()
