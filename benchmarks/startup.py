"""What one waits for before anything happens: imports, and the help of the command.

    python -m benchmarks startup

Questions: what does `import lacuna` add to `import jax` (goal: 0.3 s), and what do the packages that a search or the
geometry needs? How long does `lacuna --help` take (goal: 1 s)? Every run is a fresh process whose files are in the page
cache and whose bytecode is there; an import is timed inside of it. The floor of the command is an interpreter that does
nothing.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

from benchmarks import harness
from benchmarks.rows import Row, timed

_IMPORT = "import time; import jax; t, c = time.perf_counter(), time.process_time(); {}; "
_IMPORT += "print(time.perf_counter() - t, time.process_time() - c)"
IMPORTS = (
    "import lacuna",
    "import lacuna.geometry",
    "import lacuna.search",
)
COMMAND = "import sys; sys.argv = ['lacuna', '--help']; from lacuna.cli import main; sys.exit(main())"


def importing(statement: str) -> tuple[float, float]:
    """Wall and CPU seconds of an import, jax being there."""
    run = subprocess.run([sys.executable, "-c", _IMPORT.format(statement)], capture_output=True, text=True, check=True)
    wall, cpu = map(float, run.stdout.split())
    return wall, cpu


def running(program: str) -> tuple[float, float]:
    """Wall seconds of a process, twice."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)
    wall = time.perf_counter() - began
    return wall, wall


def measure() -> Iterator[Row]:
    """The rows."""
    measures = [partial(importing, statement) for statement in IMPORTS]
    measures += [partial(running, program) for program in (COMMAND, "import jax", "pass")]
    for once in measures:
        once()  # the bytecode
    *imports, helped, jax_alone, nothing = harness.in_turn(*measures)
    for statement, timing in zip(IMPORTS, imports, strict=True):
        goal = "<= 0.3" if statement == "import lacuna" else ""
        yield timed(f"`{statement}` beyond `import jax`", timing, goal=goal, floor=0)
    floor = float(sorted(nothing.wall_s)[len(nothing.wall_s) // 2])
    yield timed("`lacuna --help`", helped, goal="<= 1", floor=floor)
    yield timed("`import jax`, its whole process", jax_alone, floor=floor)
