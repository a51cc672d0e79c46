"""Several processes as one: how they start, and how the first of them tells the others what it found.

Every process runs the same program in the same order. The first one alone reads and writes run folders, so
hosts need no disk in common; what it reads, and what it refuses, reaches the others from here.
"""

import json
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lacuna.errors import InvalidInput, LacunaError

WAIT_S = 300
"""Seconds that a process waits at its start for the others."""

HEARTBEAT_S = 30
"""Seconds without a sign of life after which a process counts as dead and ends the run."""

SHUTDOWN_S = 60
"""Seconds that a process at its end waits for the others."""


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the processes of a run. Call it before anything touches a device.

    With no argument the cluster says who is who: Cloud TPU, SLURM, MPI and GKE do. Waits at most `WAIT_S` seconds.

    Args:
      coordinator: `host:port` of process 0, as every process reaches it.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      InvalidInput: some but not all of the three, no host:port, numbers out of range, or nobody who
        answers in time.
    """
    given = (coordinator, num_processes, process_id)
    if any(one is None for one in given) and any(one is not None for one in given):
        raise InvalidInput(
            "coordinator, num_processes and process_id go together",
            got=", ".join("none" if one is None else str(one) for one in given),
            hint="--coordinator host:1234 --num-processes 2 --process-id 0 (or 1), or none of them on a cluster",
        )
    if coordinator is not None and not (coordinator.rpartition(":")[0] and coordinator.rpartition(":")[2].isdigit()):
        raise InvalidInput("coordinator must be host:port", got=f"`{coordinator}`", hint="127.0.0.1:1234")
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise InvalidInput(
            "process_id must be in [0, num_processes)", got=f"{process_id} of {num_processes}", hint="--process-id 0"
        )
    # What CPUs need to talk to each other; other platforms pass over it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from everybody else
    join = partial(
        jax.distributed.initialize,
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=WAIT_S + 60,  # at its end the library kills the process with a stack trace
        heartbeat_timeout_seconds=HEARTBEAT_S,
        shutdown_timeout_seconds=SHUTDOWN_S,
    )
    try:
        _beside_signals(join, WAIT_S)
    except (RuntimeError, ValueError) as fault:
        first = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise InvalidInput(
            "the processes of a run must find each other",
            got=first,
            hint="--coordinator host:1234 --num-processes 2 --process-id 0 (or 1) where no cluster says who is who",
        ) from fault


def _beside_signals(work: Callable[[], None], wait_s: float) -> None:
    """Call `work`, which may wait for minutes outside of Python, in a thread, so that Ctrl-C and SIGTERM are heeded.

    Raises:
      RuntimeError: it still waits after `wait_s` seconds.
    """
    faults: list[Exception] = []

    def call() -> None:
        try:
            work()
        except Exception as fault:  # whatever it is, it is raised below
            faults.append(fault)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(wait_s)
    if thread.is_alive():
        raise RuntimeError(f"no answer within {wait_s} s")
    if faults:
        raise faults[0]


def is_first() -> bool:
    """Whether this is the process that reads and writes the run folder."""
    return jax.process_index() == 0


def share(array: np.ndarray) -> np.ndarray:
    """The first process's array, bit for bit, on every process; all have to pass one of its shape and dtype."""
    if jax.process_count() == 1:
        return array
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # a sum over processes would lose -0.0 and NaN
    pieces = [raw[i : i + 2**24] for i in range(0, len(raw), 2**24)]
    told = [np.asarray(multihost_utils.broadcast_one_to_all(piece)) for piece in pieces]
    return np.concatenate([np.zeros(0, np.uint8), *told]).view(array.dtype).reshape(array.shape)


def agree(work: Callable[[], Any]) -> Any:
    """What `work()` returns on the first process, which alone calls it; a JSON value.

    Raises:
      Exception: what the first process raised; a LacunaError of the same sentence on the others.
    """
    if jax.process_count() == 1:
        return work()
    fault: Exception | None = None
    said = b""
    if is_first():
        try:
            said = json.dumps({"value": work()}).encode()
        except Exception as error:  # whatever it is, the others wait to be told
            fault = error
            said = json.dumps({"fault": str(error)}).encode()
    length = share(np.asarray([len(said)], np.int64))
    text = share(np.frombuffer(said, np.uint8) if is_first() else np.zeros(int(length[0]), np.uint8))
    if fault is not None:
        raise fault
    answer = json.loads(text.tobytes())
    if "fault" in answer:
        raise LacunaError(answer["fault"])
    return answer["value"]


def largest(number: int) -> int:
    """The largest of the numbers of all processes."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.asarray(number, np.int32))))
