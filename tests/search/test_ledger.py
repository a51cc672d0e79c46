"""The log keeps every whole block, cuts a torn tail, and refuses damage."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lacuna.search.ledger import DamagedLog, Ledger, write_table

SHAPE = (2, 2)
HEADER_BYTES = 16


def block(seed, num_draws=3):
    return np.random.default_rng(seed).normal(size=(num_draws, *SHAPE)).astype(np.float32)


def write(path, blocks):
    """Append blocks one after the other, from the draw 0 on; where each begins in the file."""
    ledger, start, places = Ledger(path, SHAPE), 0, []
    for scores in blocks:
        places.append(path.stat().st_size)
        ledger.append(start, scores)
        start += len(scores)
    ledger.close()
    return places


def read(path):
    ledger = Ledger(path, SHAPE)
    found = list(ledger.blocks())
    ledger.close()
    return found


def test_records_survive_closing_and_reopening(tmp_path):
    blocks = [block(0), block(1, 1), block(2, 5)]
    write(tmp_path / "log", blocks)
    found = read(tmp_path / "log")
    assert [start for start, _ in found] == [0, 3, 4]
    for (_, scores), written in zip(found, blocks, strict=True):
        np.testing.assert_array_equal(scores, written)


def test_a_block_is_on_disk_before_append_returns(tmp_path):
    ledger = Ledger(tmp_path / "log", SHAPE)
    ledger.append(0, block(0))
    np.testing.assert_array_equal(read(tmp_path / "log")[0][1], block(0))
    ledger.close()


def test_not_finite_scores_keep_their_bits(tmp_path):
    scores = np.float32([np.nan, np.inf, -np.inf, -0.0]).reshape(1, *SHAPE)
    write(tmp_path / "log", [scores])
    assert read(tmp_path / "log")[0][1].tobytes() == scores.tobytes()


def test_a_log_torn_at_any_byte_of_its_last_block_resumes_to_the_same_bytes(tmp_path):
    path, blocks = tmp_path / "log", [block(0), block(1), block(2)]
    last = write(path, blocks)[-1]
    whole = path.read_bytes()
    for length in range(last, len(whole)):
        path.write_bytes(whole[:length])
        ledger = Ledger(path, SHAPE)
        assert [start for start, _ in ledger.blocks()] == [0, 3]
        assert path.stat().st_size == last
        ledger.append(6, blocks[-1])
        ledger.close()
        assert path.read_bytes() == whole


def test_a_tail_of_zeros_is_torn_too(tmp_path):
    """What a file system leaves when the power fails after the length was written and before the data."""
    path = tmp_path / "log"
    last = write(path, [block(0), block(1)])[-1]
    path.write_bytes(path.read_bytes()[:last] + bytes(100))
    assert [start for start, _ in read(path)] == [0]
    assert path.stat().st_size == last


@pytest.mark.parametrize("place", range(HEADER_BYTES + 5))
def test_a_damaged_middle_block_is_refused_and_left_alone(tmp_path, place):
    """Every byte counts: the magic, the index of the first draw, the number of draws, the checksum, the scores."""
    path = tmp_path / "log"
    middle = write(path, [block(0), block(1), block(2)])[1]
    damaged = bytearray(path.read_bytes())
    damaged[middle + place] ^= 0x40
    path.write_bytes(damaged)
    with pytest.raises(DamagedLog, match=f"damaged at byte {middle} of {len(damaged)}; got a block .* Try: restore"):
        Ledger(path, SHAPE)
    assert path.read_bytes() == damaged


def test_the_table_has_one_row_for_each_candidate_with_its_status(tmp_path):
    scores = block(0)
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
