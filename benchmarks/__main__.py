"""`python -m benchmarks [NAME ...]`: measure, and write `benchmarks/results/MACHINE.md`.

Each benchmark runs in a process of its own, and its rows are kept as JSON lines as soon as it ends: interrupted, the
command goes on with `--resume`. The page of the machine is drawn from the rows that are there.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import jax

from benchmarks import rows
from lacuna import meshes
from lacuna.reports import rundir

NAMES = (
    "startup", "kernels", "lanczos", "pipelines", "task_gradients", "adapters", "language_models", "checkpoints",
    "sweeps", "search_peers", "language_sweeps", "steering",
)  # fmt: skip
PEERS = (
    "matfree", "laplax", "scipy", "scikit-learn", "evosax", "torch", "transformers", "steering-vectors",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run benchmarks one after the other and draw the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and write the machine's page.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all of them when none")
    parser.add_argument("--machine", help="name of the page; by default made of the processor and the number of cores")
    parser.add_argument("--resume", action="store_true", help="leave out what has rows already")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--measure", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := {*given.names} - {*NAMES}:
        parser.error(f"no benchmark of the name {', '.join(sorted(unknown))}; try one of {', '.join(NAMES)}")
    if given.measure is not None:
        rows.write(given.measure, _measured(given.names[0]))
        return 0
    environment = rundir.environment(meshes.describe(meshes.candidate_mesh()))
    machine = given.machine or re.sub(r"[^a-z0-9]+", "-", environment["machine"].split(",")[0].lower()).strip("-")
    kept = given.to / machine
    kept.mkdir(parents=True, exist_ok=True)
    failed = [
        name for name in given.names or NAMES if not (given.resume and _file(kept, name).exists()) and _run(name, kept)
    ]
    versions = ", ".join(f"{package} {number}" for package, number in environment["packages"].items())
    peers = ", ".join(f"{package} {_version(package)}" for package in PEERS)
    head = [f"# {environment['machine']}", "", f"{jax.default_backend()}; {versions}. Peers: {peers}.", ""]
    page = given.to / f"{machine}.md"
    page.write_text("\n".join([*head, *drawn(kept)]), encoding="utf-8")
    print(f"{page}" + f"; failed: {', '.join(failed)}" * bool(failed))
    return 1 if failed else 0


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _file(kept: Path, name: str) -> Path:
    return kept / f"{name}.jsonl"


def _run(name: str, kept: Path) -> int:
    """Measure one benchmark in a process of its own; returns its exit status."""
    began, before = time.monotonic(), os.times()
    print(f"{name} ...", flush=True)
    command = [sys.executable, "-m", "benchmarks", name, "--measure", str(_file(kept, name))]
    status = subprocess.run(command, check=False).returncode
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{name}: {time.monotonic() - began:.0f} s, {cpu_s:.0f} s of CPU", flush=True)
    return status


def _measured(name: str) -> list[rows.Row]:
    """All rows of a benchmark, each printed when it is there."""
    found = []
    for row in importlib.import_module(f"benchmarks.{name}").measure():
        found.append(row)
        print("\n".join(rows.table([row])[2:]), flush=True)
    return found


def drawn(kept: Path) -> list[str]:
    """The goals that were not met, then every benchmark that has rows, under its question."""
    found = {name: rows.read(_file(kept, name)) for name in NAMES if _file(kept, name).exists()}
    every = [row for part in found.values() for row in part]
    open_goals = [row for row in every if row.verdict in {"missed", "not certain"}]
    lines = [f"Goals: {rows.verdicts(every)}; met or missed is what the whole of the 90 % interval says.", ""]
    if open_goals:
        lines += ["## Goals missed, or not certain", "", *rows.table(open_goals), ""]
    for name, part in found.items():
        title, _, question = (importlib.import_module(f"benchmarks.{name}").__doc__ or name).partition("\n")
        lines += [f"## {title}", question.rstrip(), "", *rows.table(part), ""]
    return lines


if __name__ == "__main__":
    sys.exit(main())
