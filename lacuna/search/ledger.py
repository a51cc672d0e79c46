"""The log of a sweep's scores: nothing that was scored is lost, and nothing damaged is believed.

Records of one size, each with the index range of its draws and a checksum, in no particular order. A chunk
is on disk before the next one is read, so a killed run loses at most the chunk in flight. A record that
fails its checksum, or was cut off, is as if it had never been: its draws are scored again, and its place is
the next to be written to.
"""

import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from lacuna.errors import RunMismatch
from lacuna.reports import rundir

_HEADER = struct.Struct("<4sIII")  # magic, first index, number of draws, checksum of those two and the payload
_MAGIC = b"LAC2"

RECORD_BYTES = 4096
"""About the size of a record: a page."""

Range = tuple[int, int]
"""Draws from the first index up to, and without, the second."""


def _checksum(start: int, count: int, payload: bytes) -> int:
    """CRC-32 of a record, its place included: scores at a wrong index would be worse than none."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<II", start, count)))


class Ledger:
    """Scores on disk, keyed by the index of the draw.

    Args:
      path: the log; created if absent.
      shape: (sigmas, signs) of one draw's scores.
      lock: keep other processes away from it for as long as it is open.

    Attributes:
      num_draws: one more than the largest index on disk when the log was opened.
      damage: what was wrong with it then, a few words each; empty if nothing was.

    Raises:
      RunMismatch: another process is at it.
    """

    def __init__(self, path: Path, shape: tuple[int, int], *, lock: bool = True):
        self._shape = shape
        draw_bytes = 4 * shape[0] * shape[1]
        self._draws = max(1, (RECORD_BYTES - _HEADER.size) // draw_bytes)
        self._size = _HEADER.size + self._draws * draw_bytes
        self._file = path.open(("r+b" if path.exists() else "w+b") if lock else "rb", buffering=0)
        if lock:
            self._keep_others_away(path)
        self._free: deque[int] = deque()
        self.damage: tuple[str, ...] = ()
        self.num_draws = 0
        damage = []
        for number, record in self._records():
            if record is None:
                damage.append(f"record {number + 1} (at byte {number * self._size}) fails its checksum")
                self._free.append(number)
            else:
                self.num_draws = max(self.num_draws, record[0] + len(record[1]))
        self._end, rest = divmod(os.fstat(self._file.fileno()).st_size, self._size)
        if rest:
            damage.append(f"its last record was cut off after {rest} of {self._size} bytes")
        self.damage = tuple(damage)

    def _keep_others_away(self, path: Path) -> None:
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            self._file.close()
            raise RunMismatch(
                f"one process at a time may write to {path}", got="another one at it", hint="wait for it, or end it"
            ) from taken
        except OSError:  # a file system without locks
            return

    def _records(self) -> Iterator[tuple[int, tuple[int, Float[np.ndarray, "n sigmas signs"]] | None]]:
        """All whole records: their number, and `(first index, scores)`, or None for one that is damaged."""
        self._file.seek(0)
        number = 0
        while len(raw := self._file.read(self._size)) == self._size:
            magic, start, count, checksum = _HEADER.unpack_from(raw)
            payload = raw[_HEADER.size :]
            whole = magic == _MAGIC and 0 < count <= self._draws and checksum == _checksum(start, count, payload)
            scores = np.frombuffer(payload, "<f4").reshape(self._draws, *self._shape)
            yield number, (start, scores[:count]) if whole else None
            number += 1

    def read(self, scores: Float[np.ndarray, "N sigmas signs"]) -> Bool[np.ndarray, "N"]:
        """Fill in the scores that are on disk; which draws they are."""
        known = np.zeros(len(scores), bool)
        for _, record in self._records():
            if record is not None:
                start, block = record
                scores[start : start + len(block)] = block[: max(0, len(scores) - start)]
                known[start : start + len(block)] = True
        return known

    def append(self, start: int, scores: Float[np.ndarray, "n sigmas signs"]) -> None:
        """Write the scores of draws `start, start + 1, ...` and wait until they are on disk.

        Raises:
          OSError: the disk is full, or gone; what was on it before is whole.
        """
        at_end = []
        for first in range(0, len(scores), self._draws):
            block = np.ascontiguousarray(scores[first : first + self._draws], "<f4")
            payload = block.tobytes().ljust(self._size - _HEADER.size, b"\0")
            checksum = _checksum(start + first, len(block), payload)
            record = _HEADER.pack(_MAGIC, start + first, len(block), checksum) + payload
            if self._free:
                self._write(self._free[0], record)
                self._free.popleft()
            else:
                at_end.append(record)
        self._write(self._end, b"".join(at_end))
        self._end += len(at_end)
        os.fsync(self._file.fileno())

    def _write(self, number: int, records: bytes) -> None:
        self._file.seek(number * self._size)
        left = memoryview(records)
        while left:  # a nearly full disk takes a part
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file; the log stays valid."""
        self._file.close()


def missing_ranges(known: Bool[np.ndarray, "N"]) -> list[Range]:
    """The draws that are not known, as ranges in ascending order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], known, [True]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def write_table(path: Path, sigmas: tuple[float, ...], scores: Float[np.ndarray, "N sigmas signs"]) -> None:
    """Write the score table as Parquet, one row for each candidate, whole or not at all.

    Columns: `index` uint32, `sigma` float64, `sign` int8, `score` float32, `status` (`ok`, or `nonfinite_loss`
    where the score is not a finite number).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_signs = scores.shape[2]
    of_sigma = np.repeat(np.asarray(sigmas), num_signs)
    of_sign = np.tile(np.asarray([1, -1], np.int8)[:num_signs], len(sigmas))
    schema = pa.schema(
        {
            "index": pa.uint32(),
            "sigma": pa.float64(),
            "sign": pa.int8(),
            "score": pa.float32(),
            "status": pa.string(),
        }
    )
    rows_a_group = 1 << 20
    draws_a_group = max(1, rows_a_group // len(of_sigma))
    with rundir.whole_file(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for start in range(0, len(scores), draws_a_group):
            block = scores[start : start + draws_a_group]
            flat = block.reshape(-1)
            index = np.repeat(np.arange(start, start + len(block), dtype=np.uint32), len(of_sigma))
            status = np.where(np.isfinite(flat), "ok", "nonfinite_loss")
            columns = [index, np.tile(of_sigma, len(block)), np.tile(of_sign, len(block)), flat, status]
            writer.write_table(pa.table([pa.array(c) for c in columns], schema=schema))
