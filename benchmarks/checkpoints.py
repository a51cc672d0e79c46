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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import full_size, harness
from benchmarks.rows import Row, compared, timed
from lacuna import trees
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


def of_model(name: str, scratch: Path) -> Iterator[Row]:
    """The rows of one model."""
    folder = scratch / name
    expected = full_size.MODELS[name](folder)
    file = folder / "model.safetensors"
    model, params = load_hf(folder)
    result, largest = (count(leaf.nbytes for leaf in jax.tree.leaves(params)) for count in (sum, max))
    embedding = max(expected.values(), key=np.size)
    again = load_hf(export_hf(model, params, scratch / f"{name}-again"))[1]
    if not np.array_equal(params["embedding"], embedding) or trees.content_digest(again) != trees.content_digest(
        params
    ):
        raise ValueError(f"{name}: what is loaded, and loaded again from an export, must have the same bits")
    content = np.zeros(result, np.uint8)
    loading, reading = harness.interleave(lambda: load_hf(folder)[1], lambda: read_whole(file))
    exporting, writing = harness.interleave(
        lambda: exported(model, params, scratch), lambda: write_whole(content, scratch / "floor")
    )
    title = f"{TITLES[name]}, {result / 1e6:.0f} MB"
    for what, timing, floor, note in (
        ("load", loading, reading, "floor: the bytes read"),
        ("export", exporting, writing, "floor: the bytes written to the same disk"),
    ):
        yield timed(f"{title}: {what}", timing, floor=float(np.median(floor.wall_s)), note=note)
        yield compared(f"{title}: {what} / floor, wall", harness.ratio(timing.wall_s, floor.wall_s))
    peak = harness.peak_bytes("benchmarks.checkpoints", str(folder))
    note = f"the largest leaf has {largest / 1e6:.0f} MB"
    yield Row(f"{title}: memory of the host beyond the result", (peak - result) / 1e6, "MB", floor=0, note=note)


def measure() -> Iterator[Row]:
    """The rows."""
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        for name in full_size.MODELS:
            yield from of_model(name, Path(scratch).resolve())


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
