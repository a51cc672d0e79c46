"""How a benchmark is measured: interleaved pairs, ratios with their spread, and the floor of the machine.

Shared machines are noisy, so two programs are never timed one after the other but in alternation, and what
is reported is the ratio within each pair. CPU time is what a shared core cannot inflate; wall time is what a
user waits for; both are given.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NUM_PAIRS, LEAST_PAIRS, PATIENCE_S = 9, 3, 10.0
"""Programs run nine times each; where that takes too long, three times at least."""


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs of one program.

    Attributes:
      wall_s: on the clock.
      cpu_s: over all cores.
    """

    wall_s: np.ndarray
    cpu_s: np.ndarray

    def __str__(self) -> str:
        return f"{np.median(self.wall_s):.3g} s ({self.wall_s.min():.3g} to {self.wall_s.max():.3g})"


@dataclass(frozen=True)
class Ratio:
    """Ratios of paired runs, first over second.

    Attributes:
      median: of the pairs.
      low: lower end of the 90 % interval of the median, from order statistics.
      high: its upper end.
      smallest: of the pairs.
      largest: of the pairs.
      num_pairs: how many there are.
    """

    median: float
    low: float
    high: float
    smallest: float
    largest: float
    num_pairs: int

    def __str__(self) -> str:
        spread = f"90 % interval {self.low:.3f} to {self.high:.3f}, all pairs {self.smallest:.3f} to {self.largest:.3f}"
        return f"{self.median:.3f} ({spread})"


def once(program: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of one run, its result waited for and dropped."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(program())
    return time.perf_counter() - wall, time.process_time() - cpu


def interleave(*programs: Callable[[], Any]) -> list[Timing]:
    """Run the programs in turn after one warm-up each, as often as `in_turn` does; one `Timing` for each."""
    for program in programs:
        jax.block_until_ready(program())
    return in_turn(*(partial(once, program) for program in programs))


def in_turn(*measures: Callable[[], tuple[float, float]]) -> list[Timing]:
    """As `interleave`, for programs that measure the wall and CPU seconds of a part of themselves; no warm-up."""
    each = np.asarray(repeated(lambda: [measure() for measure in measures]))
    return [Timing(each[:, i, 0], each[:, i, 1]) for i in range(len(measures))]


def repeated(measure: Callable[[], Any]) -> list[Any]:
    """What a measurement gives `NUM_PAIRS` times, or until patience ends."""
    found, began = [], time.monotonic()
    while len(found) < NUM_PAIRS and (len(found) < LEAST_PAIRS or time.monotonic() - began < PATIENCE_S):
        found.append(measure())
    return found


def median_of(numbers: np.ndarray) -> tuple[float, float, float]:
    """Median, and the ends of its 90 % interval, which assumes nothing of the noise."""
    each = np.sort(numbers)
    # How many lie below the median is Binomial(n, 1/2): 90 % of it lies between these two.
    draws = np.random.default_rng(0).binomial(len(each), 0.5, 100_000)
    low, high = np.quantile(draws, [0.05, 0.95], method="nearest")
    return float(np.median(each)), float(each[max(low - 1, 0)]), float(each[min(high, len(each) - 1)])


def ratio(first: np.ndarray, second: np.ndarray) -> Ratio:
    """The ratio of paired seconds."""
    each = first / second
    return Ratio(*median_of(each), float(each.min()), float(each.max()), len(each))


@dataclass(frozen=True)
class Rates:
    """The most that this machine does in a second.

    Attributes:
      read: bytes.
      gemm: floating point operations of a square float32 product.
    """

    read: float
    gemm: float

    def floor_s(self, *, num_bytes: float = 0, flop: float = 0) -> float:
        """The least seconds of what reads so many bytes and does so many operations."""
        return max(num_bytes / self.read, flop / self.gemm)

    def __str__(self) -> str:
        return f"{self.read / 1e9:.1f} GB/s read, {self.gemm / 1e9:.0f} GFLOP/s in a square product"


def rates() -> Rates:
    """Of this process, with the cores that it has."""
    return Rates(read_rate(), gemm_rate())


def largest(numbers: np.ndarray) -> float:
    """The largest absolute value."""
    return float(np.max(np.abs(numbers)))


def check_same(
    what: str,
    found: Any,
    expected: Any,
    *,
    tolerance: float,
    size: Callable[[np.ndarray], Any] = largest,
) -> str:
    """How far two answers are apart relative to the size of the second, for the note of a row.

    Raises:
      ValueError: by more than the tolerance: what gives another answer is not timed.
    """
    one, other = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    apart = float(size(one - other) / max(size(other), np.finfo(np.float64).tiny))
    if not apart <= tolerance:
        raise ValueError(f"{what}: answers must agree to {tolerance:.0e} before they are timed, got {apart:.1e}")
    return f"answers {apart:.0e} apart"


def reading(num_bytes: int = 2**28) -> tuple[Callable[[], Any], int]:
    """A program that reads two arrays in `<x, y>`, and the bytes of both: the floor of whatever is bound by memory.

    Nothing is written: on a CPU a triad into fresh pages runs at a fraction of this, and would pass for a floor
    that programs then beat.
    """
    x = jnp.ones(num_bytes // 4, jnp.float32)
    y = x + 1
    product = jax.jit(lambda x, y: jnp.sum(x * y))
    jax.block_until_ready(product(x, y))
    return lambda: product(x, y), 2 * num_bytes


def multiplying(size: int = 2048) -> tuple[Callable[[], Any], int]:
    """A square float32 matrix product, and its operations: the floor of whatever computes."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    return lambda: product(x, x), 2 * size**3


def read_rate() -> float:
    """Bytes a second that this machine reads, at best."""
    program, num_bytes = reading()
    return num_bytes / min(once(program)[0] for _ in range(9))


def gemm_rate() -> float:
    """Floating point operations a second of a square float32 matrix product, at best."""
    program, flop = multiplying()
    return flop / min(once(program)[0] for _ in range(9))


def peak_bytes(module: str, *arguments: str) -> int:
    """Resident memory that one run of a program adds to a process which has imported and set up everything.

    Runs `python -m module --memory ...`, which must call `print_peak` around the program. It runs twice, and the
    second time finds what the first has compiled: a compiler takes some 100 MiB, whatever it compiles.
    """
    command = [sys.executable, "-m", module, "--memory", *arguments]
    with compiled_once() as environment:
        for _ in range(2):
            run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(run.stdout.split()[-1])


@contextmanager
def compiled_once() -> Iterator[dict[str, str]]:
    """The environment of processes each of which finds what those before it have compiled."""
    with tempfile.TemporaryDirectory() as cache:
        kept = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        yield os.environ | kept


def print_peak(program: Callable[[], Any]) -> None:
    """Print by how many bytes one run raises the largest resident memory. Linux only."""
    before = memory_bytes("VmHWM")
    jax.block_until_ready(program())
    print(memory_bytes("VmHWM") - before)


def memory_bytes(kind: str) -> int:
    """Resident memory of this process: `VmRSS`, now, or `VmHWM`, the most that it ever was. Linux only."""
    # Not getrusage: what it reports is inherited from the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])
