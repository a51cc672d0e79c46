"""Loading and exporting GPT-2 (498 MB, float32) and Qwen2.5-0.5B (988 MB, bfloat16) at full size.

    python -m benchmarks checkpoints

Questions: how long does it take from a folder in the page cache to parameters on the device, beside reading the same
bytes into memory, which is the floor? How much memory does the host need beyond the result? How long does an export
take beside writing the same bytes to the same disk? Random weights in the layout of the released files. Qwen's
matrices are turned on their way in and out, GPT-2's are not.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import full_size, harness
from lacuna.checkpoints import export_hf, load_hf

TITLES = {"gpt2": "GPT-2", "qwen": "Qwen2.5-0.5B"}


def read_whole(file: Path) -> np.ndarray:
    """The floor of loading: the file's bytes in memory that is there already."""
    room = read_whole.__dict__.setdefault(str(file), np.zeros(file.stat().st_size, np.uint8))
    with file.open("rb", buffering=0) as stream:
        view, got = memoryview(room), 0
        while got < len(room):
            got += stream.readinto(view[got:])
    return room


def write_whole(content: np.ndarray, file: Path) -> None:
    """The floor of exporting: as many bytes, through to the disk."""
    with file.open("wb") as stream:
        stream.write(content.data)
        stream.flush()
        os.fsync(stream.fileno())
    file.unlink()


def exported(model: Any, params: Any, scratch: Path) -> None:
    """Export, and make room again."""
    folder = export_hf(model, params, scratch / "out")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def rows(name: str, scratch: Path) -> list[str]:
    """The lines of one model."""
    folder = scratch / name
    full_size.MODELS[name](folder)
    file = folder / "model.safetensors"
    model, params = load_hf(folder)
    result = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    content = np.zeros(result, np.uint8)
    loading, reading, exporting, writing = harness.interleave(
        lambda: load_hf(folder)[1],
        lambda: read_whole(file),
        lambda: exported(model, params, scratch),
        lambda: write_whole(content, scratch / "floor"),
    )
    peak = harness.peak_bytes("benchmarks.checkpoints", str(folder))
    beyond = f"{(peak - result) / 1e6:.0f} MB = {(peak - result) / largest:.2f} of the largest leaf"
    return [
        f"| {TITLES[name]}, {result / 1e6:.0f} MB | load | {loading} | {reading} | "
        f"{harness.ratio(loading.wall_s, reading.wall_s)} | result + {beyond} ({largest / 1e6:.0f} MB) |",
        f"| | export | {exporting} | {writing} | {harness.ratio(exporting.wall_s, writing.wall_s)} | |",
    ]


def report() -> list[str]:
    """The lines of the report."""
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        lines = [line for name in full_size.MODELS for line in rows(name, Path(scratch).resolve())]
    head = [
        "| model | what | time | floor: the bytes alone | ratio | peak memory of the host |",
        "|---|---|---|---|---|---|",
    ]
    return [*head, *lines, ""]


def main() -> None:
    """Print the memory that one load adds to a process that has loaded a small model before."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", action="store_true", required=True)
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    load_hf(folder, only=lambda name: name.endswith("norm/scale"))
    harness.print_peak(lambda: load_hf(folder)[1])


if __name__ == "__main__":
    main()
