"""The append-only log of a sweep's scores: nothing that was scored is lost.

One block a chunk: a header (magic, first index, number of draws, checksum of the rest) and the scores, all
little-endian. A block is on disk before the next chunk is read, so a killed run loses at most the chunk
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


def _checksum(start: int, count: int, payload: bytes) -> int:
    """CRC-32 of a block, its place included: a block at a wrong index would be worse than none."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<II", start, count)))


class DamagedLog(LacunaError):
    """A log of scores is damaged before its last block."""


class Ledger:
    """Scores on disk, keyed by the index of the draw.

    Args:
      path: the log; created if absent.
      shape: (sigmas, signs) of one draw's scores.

    Attributes:
      num_draws: one more than the largest index on disk when the log was opened.

    Raises:
      DamagedLog: a block that is not the last one fails its checksum; the file is left as it is.
    """

    def __init__(self, path: Path, shape: tuple[int, int]):
        self._path = path
        self._shape = shape
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._end = 0
        self.num_draws = 0
        try:
            for start, scores in self.blocks():
                self.num_draws = start + len(scores)
        except DamagedLog:
            self._file.close()
            raise
        self._file.truncate(self._end)

    def blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "n sigmas signs"]]]:
        """All blocks on disk, in the order they were scored: `(first index, scores)`."""
        self._end = 0
        length = self._path.stat().st_size
        while self._end < length:
            block = self._whole_block(self._end)
            if block is None:
                if self._whole_block_after(self._end):
                    raise DamagedLog(
                        f"the score log {self._path} is damaged at byte {self._end} of {length}",
                        got="a block that fails its checksum before the end",
                        hint="restore the file, or move it away and run the sweep again",
                    )
                return  # torn by a kill while it was written
            start, count, payload = block
            self._end += _HEADER.size + len(payload)
            yield start, np.frombuffer(payload, "<f4").reshape(count, *self._shape)

    def _whole_block(self, at: int) -> tuple[int, int, bytes] | None:
        """`(first index, number of draws, payload)` of the block that begins at this byte, if a whole one does."""
        self._file.seek(at)
        header = self._file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            return None
        _, start, count, checksum = _HEADER.unpack(header)
        payload = self._file.read(4 * count * self._shape[0] * self._shape[1])
        return (start, count, payload) if _checksum(start, count, payload) == checksum else None

    def _whole_block_after(self, at: int) -> bool:
        """Whether a whole block begins anywhere after this byte: the length in a damaged header means nothing."""
        self._file.seek(at)
        rest = self._file.read()
        place = rest.find(_MAGIC, 1)
        while place >= 0:
            if self._whole_block(at + place) is not None:
                return True
            place = rest.find(_MAGIC, place + 1)
        return False

    def append(self, start: int, scores: Float[np.ndarray, "n sigmas signs"]) -> None:
        """Write the scores of draws `start, start + 1, ...` and wait until they are on disk."""
        payload = np.ascontiguousarray(scores, "<f4").tobytes()
        self._file.seek(self._end)
        checksum = _checksum(start, len(scores), payload)
        self._file.write(_HEADER.pack(_MAGIC, start, len(scores), checksum) + payload)
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
        {
            "index": pa.uint32(),
            "sigma": pa.float64(),
            "sign": pa.int8(),
            "score": pa.float32(),
            "status": pa.string(),
        }
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
