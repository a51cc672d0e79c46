"""Real processes: a run on several of them, and what is left when one is killed, told to stop, or out of disk."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import oracles
import problems
import pytest
import sweep_process

from lacuna import meshes
from lacuna.search import Sweep, run_sweep, table_sha256
from lacuna.search.ledger import Ledger

SCRIPT = Path(sweep_process.__file__)
N = 2000
RECORD = 4096
"""Bytes of a record of the log, of which a chunk here takes one."""

PATIENCE_S = 120
"""Seconds after which a process that says nothing, or does not end, is taken to hang."""

HEARTBEAT_S = 10
"""Shorter than the library's own, to wait less."""


class Process:
    """A running `sweep_process.py`, and what it says."""

    def __init__(self, *arguments: object, cache: Path):
        environment = os.environ | {
            "PYTHONPATH": str(SCRIPT.parents[1]),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, SCRIPT, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_said, self._read_errors)]
        for reader in self._readers:
            reader.start()
        self.num_done = 0
        self.last_words: list[str] = []

    def _read_said(self) -> None:
        with self._process.stdout as lines:
            for line in lines:
                self._said.put(line)
        self._said.put("")

    def _read_errors(self) -> None:
        with self._process.stderr as lines:
            self._errors.extend(lines)

    def _listen(self, deadline: float) -> bool:
        """Take in one more line; whether there was one."""
        try:
            line = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"the process hangs after {self.num_done} draws") from None
        if not line:
            return False
        words = line.rstrip().split(" ", maxsplit=2)
        if words[0] == "done":
            self.num_done = int(words[1])
        if words[0] in ("done", "result", "stopped"):
            self.last_words = words
        return True

    def wait_for(self, num_draws: int) -> None:
        """Return once so many draws are done, or the process has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while self.num_done < num_draws and self._listen(deadline):
            pass

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Its exit status, once it has ended by itself or by a signal sent before."""
        deadline = time.monotonic() + PATIENCE_S
        while self._listen(deadline):
            pass
        return self._process.wait(max(0.1, deadline - time.monotonic()))

    def close(self) -> str:
        """Kill it if it still runs; all that it wrote as errors."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(10)
        return "".join(self._errors)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, for all processes of this file."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def start(cache):
    """Start a process; none outlives the test, and a test that fails shows their errors."""
    started = []

    def process(out, *, draws=N, **options):
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        started.append(Process(f"--out={out}", f"--draws={draws}", *arguments, cache=cache))
        return started[-1]

    yield process
    for number, one in enumerate(started):
        print(f"process {number} said last: {one.last_words}, and of errors:\n{one.close()}", file=sys.stderr)


@pytest.fixture
def start_two(start, tmp_path):
    """Start two processes as one run with four devices each; the first writes to `tmp_path / "run"`."""

    def processes(*, of_first=None, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        options |= {"devices": 4, "coordinator": coordinator}
        first = start(tmp_path / "run", process_id=0, **options, **(of_first or {}))
        return first, start(tmp_path / "other", process_id=1, **options)

    return processes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, of one process with eight devices, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return run_sweep(*problems.transformer(), sweep_process.sweep_of(N), out=out), out


def result_words(scores, sweep: Sweep) -> list[str]:
    """What a process that ended well has to say last."""
    winners = oracles.full_sort(scores, sweep.sigmas, sweep.num_top)
    return ["result", table_sha256(scores), json.dumps(winners)]


def draws_on_disk(out: Path) -> int:
    """How many draws the log in `out` holds, a first stretch of them without a gap."""
    if not (out / "scores.log").exists():
        return 0
    ledger = Ledger(out / "scores.log", (2, 2))
    known = ledger.read(np.empty((N, 2, 2), np.float32))
    ledger.close()
    assert known[: known.sum()].all()
    return int(known.sum())


def assert_same_files(out: Path, other: Path) -> None:
    """Both hold the same finished run: files of the same names, the same identity, the same table."""
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in other.iterdir())
    for name in ("identity.json", "scores.parquet"):
        assert (out / name).read_bytes() == (other / name).read_bytes()


def assert_completes(out: Path, whole, *, num_known: int) -> list[str]:
    """Resume the run in `out` with a single process: the same bytes as if nothing had been. What it was told."""
    told = []
    resumed = run_sweep(*problems.transformer(), sweep_process.sweep_of(N), out=out, resume=True, notice=told.append)
    assert resumed.num_scored == N - num_known
    assert resumed.sha256 == whole[0].sha256
    assert resumed.top_k == whole[0].top_k
    assert_same_files(out, whole[1])
    return told


def test_one_process_scores_the_same_on_one_device_as_on_eight(whole):
    on_one = run_sweep(*problems.transformer(), whole[0].sweep, mesh=meshes.candidate_mesh(jax.devices()[:1]))
    assert on_one.sha256 == whole[0].sha256
    assert on_one.top_k == whole[0].top_k


def test_two_processes_score_and_extend_as_one_does_and_the_first_alone_writes(start_two, tmp_path, whole):
    for draws in (700, N):
        two = start_two(draws=draws)
        assert [one.end() for one in two] == [0, 0]
        expected = result_words(whole[0].scores[:draws], whole[0].sweep)
        assert [one.last_words for one in two] == [expected, expected]
    assert_same_files(tmp_path / "run", whole[1])
    assert not (tmp_path / "other").exists()


def test_two_processes_finish_what_one_began(start, start_two, tmp_path, whole):
    alone = start(tmp_path / "run", devices=1, chunk=2)
    alone.wait_for(300)
    alone.send(signal.SIGTERM)
    assert alone.end() == 128 + signal.SIGTERM
    two = start_two()
    assert [one.end() for one in two] == [0, 0]
    expected = result_words(whole[0].scores, whole[0].sweep)
    assert [one.last_words for one in two] == [expected, expected]


def test_a_run_killed_twenty_times_at_random_ends_with_the_same_bytes(start, tmp_path, whole):
    rng = np.random.default_rng(11)
    places = [("search", draws) for draws in np.arange(50, N - 200, 125) + rng.integers(125, size=14)]
    for at in (3, 7, 11):
        places.insert(at, ("start", 0))
    known = num_in_search = 0
    for where, draws in [*places, *[("end", N)] * 3]:
        child = start(tmp_path / "run", devices=1, chunk=2)
        if where == "start":
            time.sleep(rng.uniform(0.1, 1.5))
        else:
            child.wait_for(draws)
            time.sleep(rng.uniform(0, 0.005 if where == "search" else 0.3))
        child.send(signal.SIGKILL)
        assert child.end() in ((-signal.SIGKILL, 0) if where == "end" else (-signal.SIGKILL,))
        before, known = known, draws_on_disk(tmp_path / "run")
        assert known >= max(before, child.num_done)
        num_in_search += bool(child.last_words) and known < N
    assert num_in_search >= 12
    child = start(tmp_path / "run", devices=1, chunk=2)
    assert child.end() == 0
    assert child.last_words == result_words(whole[0].scores, whole[0].sweep)
    assert_same_files(tmp_path / "run", whole[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_the_chunk_in_flight(start, tmp_path, whole, number):
    child = start(tmp_path / "run", devices=1, chunk=2)
    child.wait_for(200)
    child.send(number)
    assert child.end() == 128 + number
    assert child.last_words[0] == "stopped"
    assert int(child.last_words[1]) == child.num_done == draws_on_disk(tmp_path / "run") < N
    assert_completes(tmp_path / "run", whole, num_known=child.num_done)


def test_a_signal_to_one_of_two_processes_ends_both_at_the_same_draw(start_two, tmp_path, whole):
    two = start_two(chunk=8)
    two[1].wait_for(200)
    two[1].send(signal.SIGTERM)
    assert [one.end() for one in two] == [128 + signal.SIGTERM] * 2
    assert two[0].last_words == two[1].last_words == ["stopped", str(two[0].num_done)]
    assert draws_on_disk(tmp_path / "run") == two[0].num_done < N
    assert_completes(tmp_path / "run", whole, num_known=two[0].num_done)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_whose_other_is_killed_ends_by_itself(start_two, tmp_path, whole, killed):
    two = start_two(chunk=8, heartbeat=HEARTBEAT_S)
    two[killed].wait_for(200)
    two[killed].send(signal.SIGKILL)
    began = time.monotonic()
    assert two[killed].end() == -signal.SIGKILL
    assert two[1 - killed].end() != 0
    assert time.monotonic() - began < 60
    known = draws_on_disk(tmp_path / "run")
    assert two[0].num_done <= known < N
    assert_completes(tmp_path / "run", whole, num_known=known)


def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(start, tmp_path, whole):
    child = start(tmp_path / "run", devices=1, chunk=2, largest_file=20 * RECORD + 1000)
    assert child.end() == 1
    assert "OSError: [Errno 27]" in child.close()
    assert child.num_done == draws_on_disk(tmp_path / "run") == 40
    told = assert_completes(tmp_path / "run", whole, num_known=40)
    assert "cut off after 1000 of 4096 bytes" in told[0]


def test_a_full_disk_of_the_first_of_two_processes_ends_both(start_two, tmp_path, whole):
    two = start_two(chunk=8, of_first={"largest_file": 20 * RECORD + 1000})
    assert [one.end() for one in two] == [1, 1]
    assert "OSError: [Errno 27]" in two[0].close()
    assert "LacunaError: the first process could not keep what was scored" in two[1].close()
    assert two[0].num_done == draws_on_disk(tmp_path / "run") == 160
    assert_completes(tmp_path / "run", whole, num_known=160)
