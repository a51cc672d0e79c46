"""The log keeps every whole record, and what is damaged is named and its draws are missing again."""

import errno

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lacuna.errors import RunMismatch
from lacuna.search.ledger import Ledger, missing_ranges, write_table

SHAPE = (2, 2)
DRAWS_A_RECORD = (4096 - 16) // 16
RECORD = 16 + 16 * DRAWS_A_RECORD
N = 2 * DRAWS_A_RECORD + 40
"""Three records, the last of them not full."""


def some_scores(num_draws=N, seed=0):
    return np.random.default_rng(seed).normal(size=(num_draws, *SHAPE)).astype(np.float32)


def write(path, chunks):
    """Append chunks `(start, stop)` of the scores of all draws."""
    ledger = Ledger(path, SHAPE)
    for start, stop in chunks:
        ledger.append(start, some_scores()[start:stop])
    ledger.close()


def read(path, num_draws=N):
    """`(scores, known, damage)` as the log has them."""
    ledger, scores = Ledger(path, SHAPE, lock=False), np.full((num_draws, *SHAPE), np.nan, np.float32)
    known = ledger.read(scores)
    ledger.close()
    return scores, known, ledger.damage


@pytest.mark.parametrize("chunks", [[(0, N)], [(0, 3), (3, 4), (4, 300), (300, N)], [(400, N), (0, 1), (1, 400)]])
def test_scores_survive_closing_and_reopening_in_any_chunks_and_order(tmp_path, chunks):
    write(tmp_path / "log", chunks)
    scores, known, damage = read(tmp_path / "log")
    assert known.all()
    assert damage == ()
    np.testing.assert_array_equal(scores, some_scores())
    assert (tmp_path / "log").stat().st_size % RECORD == 0


def test_a_chunk_is_on_disk_before_append_returns(tmp_path):
    ledger = Ledger(tmp_path / "log", SHAPE)
    ledger.append(5, some_scores()[5:8])
    assert missing_ranges(read(tmp_path / "log", 10)[1]) == [(0, 5), (8, 10)]
    ledger.close()


def test_two_writers_at_a_time_are_refused(tmp_path):
    first = Ledger(tmp_path / "log", SHAPE)
    with pytest.raises(RunMismatch, match=r"one process at a time may write to .*log; got another one at it. Try: "):
        Ledger(tmp_path / "log", SHAPE)
    first.close()
    Ledger(tmp_path / "log", SHAPE).close()


def test_the_ranges_that_are_missing_are_told_in_order():
    assert missing_ranges(np.zeros(0, bool)) == []
    assert missing_ranges(np.ones(3, bool)) == []
    assert missing_ranges(np.array([0, 1, 1, 0, 0, 1, 0], bool)) == [(0, 1), (3, 5), (6, 7)]


def test_not_finite_scores_keep_their_bits(tmp_path):
    scores = np.float32([np.nan, np.inf, -np.inf, -0.0]).reshape(1, *SHAPE)
    ledger = Ledger(tmp_path / "log", SHAPE)
    ledger.append(0, scores)
    ledger.close()
    assert read(tmp_path / "log", 1)[0].tobytes() == scores.tobytes()


@pytest.mark.parametrize("kept", [0, 1, 15, 16, 17, 2000, RECORD - 1])
def test_a_log_cut_off_in_its_last_record_is_told_and_mended_to_the_same_bytes(tmp_path, kept):
    path = tmp_path / "log"
    write(path, [(0, N)])
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * RECORD + kept])
    _, known, damage = read(path)
    assert missing_ranges(known) == [(2 * DRAWS_A_RECORD, N)]
    assert damage == ((f"its last record was cut off after {kept} of {RECORD} bytes",) if kept else ())
    write(path, [(2 * DRAWS_A_RECORD, N)])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("place", [*range(18), 300, RECORD - 1])
@pytest.mark.parametrize("number", [0, 2])
def test_a_flipped_bit_anywhere_in_a_record_is_told_and_mended_to_the_same_bytes(tmp_path, place, number):
    """Every byte counts: the magic, the index of the first draw, the number of draws, the checksum, the scores."""
    path = tmp_path / "log"
    write(path, [(0, N)])
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[number * RECORD + place] ^= 0x40
    path.write_bytes(damaged)
    _, known, damage = read(path)
    lost = (number * DRAWS_A_RECORD, min(N, (number + 1) * DRAWS_A_RECORD))
    assert missing_ranges(known) == [lost]
    assert damage == (f"record {number + 1} (at byte {number * RECORD}) fails its checksum",)
    assert path.read_bytes() == damaged  # who looks does not touch
    write(path, [lost])
    assert path.read_bytes() == whole


def test_a_tail_of_zeros_is_damage_too(tmp_path):
    """What a file system leaves when the power fails after the length was written and before the data."""
    path = tmp_path / "log"
    write(path, [(0, 10)])
    path.write_bytes(path.read_bytes() + bytes(RECORD))
    assert missing_ranges(read(path)[1]) == [(10, N)]


def test_a_file_of_something_else_holds_no_score(tmp_path):
    (tmp_path / "log").write_bytes(b"precious " * 1000)
    assert not read(tmp_path / "log")[1].any()


@pytest.mark.parametrize("room", [0, 1, 100, RECORD, RECORD + 7])
def test_a_disk_that_fills_up_keeps_what_was_there_and_takes_the_rest_later(tmp_path, room):
    path = tmp_path / "log"
    write(path, [(0, 10)])

    class FullDisk:
        """The log's own file, on a disk with `room` bytes left."""

        def __init__(self, file):
            self._file, self._room = file, room

        def write(self, raw):
            if not self._room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self._file.write(raw[: self._room])
            self._room -= written
            return written

        def __getattr__(self, name):
            return getattr(self._file, name)

    ledger = Ledger(path, SHAPE)
    ledger._file = FullDisk(ledger._file)
    with pytest.raises(OSError, match="No space left"):
        ledger.append(10, some_scores()[10:])
    ledger.close()
    _, known, _ = read(path)
    assert known[:10].all()
    write(path, missing_ranges(known))
    np.testing.assert_array_equal(read(path)[0], some_scores())


def test_the_table_has_one_row_for_each_candidate_with_its_status(tmp_path):
    scores = some_scores(3)
    scores[1, 0, 1], scores[2, 1, 0] = np.nan, np.inf
    write_table(tmp_path / "scores.parquet", (0.1, 0.2), scores)
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.schema.names == ["index", "sigma", "sign", "score", "status"]
    assert table.schema.types == [pa.uint32(), pa.float64(), pa.int8(), pa.float32(), pa.string()]
    columns = {name: table[name].to_numpy() for name in table.schema.names}
    np.testing.assert_array_equal(columns["index"], np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(columns["sigma"], np.tile([0.1, 0.1, 0.2, 0.2], 3))
    np.testing.assert_array_equal(columns["sign"], np.tile([1, -1], 6))
    np.testing.assert_array_equal(columns["score"], scores.reshape(-1))
    status = np.full(scores.shape, "ok", object)
    status[1, 0, 1] = status[2, 1, 0] = "nonfinite_loss"
    np.testing.assert_array_equal(columns["status"], status.reshape(-1))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
