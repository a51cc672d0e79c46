"""A process that runs a sweep, alone or with others, and says on its output how far it is.

Lines: `done D` after every chunk, then `result SHA256 WINNERS` or `stopped D`. What else is raised ends it.
"""

import argparse
import json
import resource
import sys
from pathlib import Path

import jax
import problems

from lacuna import hosts
from lacuna.search import Sweep, SweepStopped, gaussian, run_sweep


def sweep_of(num_draws: int, chunk: int | None = None) -> Sweep:
    """What every process evaluates, at every length."""
    return Sweep(gaussian(stacked=problems.stacked), (1e-3, 1e-2), num_draws, seed=3, chunk=chunk)


def say(*words: object) -> None:
    """Write one line, on a line of its own whatever Gloo is writing to this output meanwhile."""
    print("\n" + " ".join(map(str, words)), flush=True)


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draws", type=int)
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--process-id", type=int)
    parser.add_argument("--heartbeat", type=int, default=hosts.HEARTBEAT_S)
    parser.add_argument("--largest-file", type=int, help="bytes: a file that grows past them finds the disk full")
    asked = parser.parse_args()

    jax.config.update("jax_num_cpu_devices", asked.devices)
    if asked.coordinator is not None:
        hosts.HEARTBEAT_S = asked.heartbeat
        hosts.start(asked.coordinator, 2, asked.process_id)

    def progress(done: int, of: int) -> None:
        del of
        if asked.largest_file is not None:  # only now, so that compiled programs are cached whole
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked.largest_file, resource.RLIM_INFINITY))
        say("done", done)

    try:
        sweep = sweep_of(asked.draws, asked.chunk)
        result = run_sweep(*problems.transformer(), sweep, out=asked.out, resume=True, progress=progress)
    except SweepStopped as stopped:
        say("stopped", stopped.num_done)
        sys.exit(128 + stopped.signal)
    say("result", result.sha256, json.dumps(result.top_k))


if __name__ == "__main__":
    main()
