"""A log of scores with anything in it: what is damaged is scored again or refused, and the table has the same bits."""

import dataclasses
import json
import shutil

import fuzzing
import numpy as np
import problems
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacuna.errors import RunMismatch
from lacuna.search import Sweep, gaussian, run_sweep
from lacuna.search.ledger import Ledger, missing_ranges
from lacuna.search.run_folder import open_run

SHAPE = (2, 2)
DRAWS_A_RECORD = (4096 - 16) // 16
RECORD = 16 + 16 * DRAWS_A_RECORD
N = 4 * DRAWS_A_RECORD + 40
"""Five records, the last of them not full."""


SCORES = np.random.default_rng(0).normal(size=(N, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The bytes of a whole log."""
    path = tmp_path_factory.mktemp("log") / "log"
    ledger = Ledger(path, SHAPE)
    ledger.append(0, SCORES)
    ledger.close()
    return path.read_bytes()


def flipped(data, place, bit):
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


@st.composite
def damages(draw, size=RECORD, most=5):
    """A few changes of a log, each a function of its bytes."""

    def flip(data):
        return flipped(data, place % len(data), bit) if data else data

    def records(data):
        return [data[i : i + size] for i in range(0, len(data), size)]

    def swap(data):
        found = records(data)
        if found:
            i, j = place % len(found), other % len(found)
            found[i], found[j] = found[j], found[i]
        return b"".join(found)

    def repeat(data):
        found = records(data)
        return b"".join([*found, *found[place % max(1, len(found)) :][:1]])

    def overwrite(data):
        found = records(data)
        if found:
            found[place % len(found)] = found[other % len(found)]
        return b"".join(found)

    def drop(data):
        found = records(data)
        return b"".join(found[: place % max(1, len(found))] + found[place % max(1, len(found)) + 1 :])

    def cut(data):
        return data[: place % (len(data) + 1)]

    def insert(data):
        return data[: place % (len(data) + 1)] + junk + data[place % (len(data) + 1) :]

    def blank(data):
        at = place % (len(data) + 1)
        return data[:at] + bytes(len(data[at : at + 600])) + data[at + 600 :]

    kind = draw(st.sampled_from([flip, flip, swap, repeat, overwrite, drop, cut, insert, blank]))
    place, other, bit = draw(st.integers(0, 2**20)), draw(st.integers(0, most)), draw(st.integers(0, 7))
    junk = draw(st.binary(min_size=1, max_size=40))
    return kind


def read(ledger):
    scores = np.full((N, *SHAPE), np.nan, np.float32)
    return scores, ledger.read(scores)


@fuzzing.cases(150)
@given(changes=st.lists(damages(), min_size=1, max_size=4))
def test_what_a_damaged_log_still_says_is_right_and_the_rest_is_scored_again(tmp_path, log, changes):
    path, data = tmp_path / "log", log
    for change in changes:
        data = change(data)
    path.write_bytes(data)
    ledger = Ledger(path, SHAPE)
    scores, known = read(ledger)
    assert scores[known].tobytes() == SCORES[known].tobytes()
    assert ledger.num_draws <= N
    for start, stop in missing_ranges(known):
        ledger.append(start, SCORES[start:stop])
    ledger.close()
    again = Ledger(path, SHAPE)
    scores, known = read(again)
    again.close()
    assert known.all()
    assert scores.tobytes() == SCORES.tobytes()


@fuzzing.cases(60)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 40) | st.integers(RECORD - 1, 2 * RECORD + 1))
def test_any_bytes_are_a_log_of_nothing(tmp_path, seed, size):
    (tmp_path / "log").write_bytes(np.random.default_rng(seed).bytes(size))
    ledger = Ledger(tmp_path / "log", SHAPE)
    assert not read(ledger)[1].any()
    ledger.append(0, SCORES)
    ledger.close()
    again = Ledger(tmp_path / "log", SHAPE)
    assert read(again)[0].tobytes() == SCORES.tobytes()
    again.close()


SWEEP = Sweep(gaussian(), (0.1, 0.4), 600, seed=5, top_k=7)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undamaged run and its folder."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run_sweep(*problems.small(), SWEEP, out=out), out


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@fuzzing.cases(6)
@given(changes=st.lists(damages(most=2), min_size=1, max_size=2), longer=st.booleans())
def test_a_run_with_a_damaged_log_ends_with_the_same_table(tmp_path, whole, changes, longer):
    result, folder = whole
    out = tmp_path / "run"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    data = (out / "scores.log").read_bytes()
    for change in changes:
        data = change(data)
    (out / "scores.log").write_bytes(data)
    sweep = dataclasses.replace(SWEEP, num_candidates=SWEEP.num_candidates + longer)
    found = run_sweep(*problems.small(), sweep, out=out, resume=True, notice=lambda sentence: None)
    assert found.scores[: SWEEP.num_candidates].tobytes() == result.scores.tobytes()
    if not longer:
        assert found.sha256 == result.sha256
        assert (out / "scores.parquet").read_bytes() == (folder / "scores.parquet").read_bytes()


@fuzzing.cases(100)
@given(place=st.integers(0, 2**20), bit=st.integers(0, 7), kept=st.integers(0, 2**20) | st.none())
def test_a_run_of_a_damaged_identity_is_left_alone_unless_it_says_the_same(tmp_path, whole, place, bit, kept):
    stamp = whole[1] / "identity.json"
    identity = json.loads(stamp.read_text())
    raw = flipped(stamp.read_bytes(), place % stamp.stat().st_size, bit)
    raw = raw if kept is None else raw[: kept % (len(raw) + 1)]
    out = tmp_path / "run"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(whole[1], out)
    (out / "identity.json").write_bytes(raw)
    before = files(out)
    try:
        same = json.loads(raw) == identity
    except ValueError:
        same = False
    if same:
        open_run(out, identity, num_candidates=SWEEP.num_candidates, resume=True).close()
    else:
        with pytest.raises(RunMismatch) as raised:
            open_run(out, identity, num_candidates=SWEEP.num_candidates, resume=True)
        assert "\n" not in str(raised.value)
    assert files(out) == before


@pytest.mark.parametrize("damaged", [b"[" * 100_000, b"\xff", b"", b"[]", b"{}"])
def test_a_run_whose_identity_is_none_is_left_alone(tmp_path, whole, damaged):
    out = shutil.copytree(whole[1], tmp_path / "run")
    (out / "identity.json").write_bytes(damaged)
    with pytest.raises(RunMismatch, match=r"identity.json|another identity"):
        open_run(out, {"seed": 5}, num_candidates=SWEEP.num_candidates, resume=True)
