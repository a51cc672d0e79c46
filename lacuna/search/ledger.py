"""The append-only log of a sweep's scores: nothing that was scored is lost.

One block a chunk: a header (magic, first index, number of draws, checksum of the payload) and the scores,
all little-endian. A block is on disk before the next chunk is read, so a killed run loses at most the chunk
in flight; a torn last block fails its checksum and is cut off at the next start.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lacuna.errors import LacunaError

_HEADER = struct.Struct("<4sIII")
_MAGIC = b"LAC1"


class DamagedLog(LacunaError):
    """A log of scores is damaged before its last block."""


class Ledger:
    """Scores on disk, keyed by the index of the draw.

    Args:
      path: the log; created if absent.
      shape: (sigmas, signs) of one draw's scores.

    Raises:
      DamagedLog: a block that is not the last one fails its checksum; the file is left as it is.
    """

    def __init__(self, path: Path, shape: tuple[int, int]):
        self._path = path
        self._shape = shape
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._end = 0
        for _ in self.blocks():
            pass
        self._file.truncate(self._end)

    def blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "n sigmas signs"]]]:
        """All blocks on disk, in the order they were scored: `(first index, scores)`."""
        self._end = 0
        length = self._path.stat().st_size
        draw_bytes = 4 * self._shape[0] * self._shape[1]
        while self._end < length:
            self._file.seek(self._end)
            header = self._file.read(_HEADER.size)
            whole = len(header) == _HEADER.size
            magic, start, count, checksum = _HEADER.unpack(header) if whole else (b"", 0, 0, 0)
            payload = self._file.read(count * draw_bytes) if magic == _MAGIC else b""
            block_end = self._end + _HEADER.size + count * draw_bytes
            if magic != _MAGIC or zlib.crc32(payload) != checksum or len(payload) != count * draw_bytes:
                if whole and block_end < length:
                    raise DamagedLog(
                        f"the score log {self._path} is damaged at byte {self._end} of {length}",
                        got="a block that fails its checksum before the end",
                        hint="restore the file, or move it away and run the sweep again",
                    )
                return  # torn by a kill while it was written
            self._end = block_end
            yield start, np.frombuffer(payload, "<f4").reshape(count, *self._shape)

    def append(self, start: int, scores: Float[np.ndarray, "n sigmas signs"]) -> None:
        """Write the scores of draws `start, start + 1, ...` and wait until they are on disk."""
        payload = np.ascontiguousarray(scores, "<f4").tobytes()
        self._file.seek(self._end)
        self._file.write(_HEADER.pack(_MAGIC, start, len(scores), zlib.crc32(payload)) + payload)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._end += _HEADER.size + len(payload)

    def close(self) -> None:
        """Close the file; the log stays valid."""
        self._file.close()


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
        {"index": pa.uint32(), "sigma": pa.float64(), "sign": pa.int8(), "score": pa.float32(), "status": pa.string()}
    )
    partial = path.with_name(path.name + ".partial")
    rows_a_group = 1 << 20
    draws_a_group = max(1, rows_a_group // len(of_sigma))
    with pq.ParquetWriter(partial, schema) as writer:
        for start in range(0, len(scores), draws_a_group):
            block = scores[start : start + draws_a_group]
            flat = block.reshape(-1)
            index = np.repeat(np.arange(start, start + len(block), dtype=np.uint32), len(of_sigma))
            status = np.where(np.isfinite(flat), "ok", "nonfinite_loss")
            columns = [index, np.tile(of_sigma, len(block)), np.tile(of_sign, len(block)), flat, status]
            writer.write_table(pa.table([pa.array(c) for c in columns], schema=schema))
    partial.replace(path)
