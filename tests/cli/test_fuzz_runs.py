"""Run folders with damaged documents: reported, gone on with and extended as they were, or refused in one sentence."""

import json
import re
import shutil
from dataclasses import asdict

import fuzzing
import problems
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from lacuna import cli
from lacuna.cli import points
from lacuna.cli.options import SweepOptions
from lacuna.reports import rundir
from lacuna.search import Sweep, gaussian, report_run, run_sweep

CASES = fuzzing.cases(16)
DOCUMENTS = ("config.json", "environment.json", "result.json", "records.jsonl", "sha256.json")
VALUES = st.recursive(
    st.none() | st.booleans() | st.sampled_from([-1, 0, 3, 2**40, 10**400, 0.5, float("nan"), "", "a", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "sigma"]), inner, max_size=2),
    max_leaves=3,
)


class Accepted(BaseException):
    """The long work would begin now."""


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The folder of a finished sweep, around a loss that takes no time."""
    out, problem = tmp_path_factory.mktemp("known") / "run", problems.small()
    options = SweepOptions(num_candidates=20, sigmas=(0.1, 0.4), top_k=3, probes=2)
    settings = Sweep(gaussian(), options.sigmas, options.num_candidates, top_k=options.top_k)
    config = {"title": "a run", "command": "lacuna sweep", **json.loads(json.dumps(asdict(options), default=str))}
    result = run_sweep(*problem, settings, out=out, documents={"config.json": config, "environment.json": {}})
    report_run(out, result, *problem, held_out=[problem.batch] * 2, config=config, num_probes=2)
    return out


@pytest.fixture
def run(known, tmp_path, monkeypatch):
    """Gives a new copy of a finished sweep, whose figures are made and not written."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: path.touch())

    def copied():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return shutil.copytree(known, tmp_path / "run")

    return copied


@pytest.fixture
def nothing_long(monkeypatch):
    def accept(*_, **__):
        raise Accepted

    monkeypatch.setattr(points, "prepare", accept)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, arguments):
    """Whether a command is refused as it should be; if not, it goes on or is done."""
    capsys.readouterr()
    try:
        status = cli.run(arguments)
    except Accepted:
        return False
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert status in (0, 2)
    assert status == 0 or re.fullmatch(r"lacuna: [^\n]+[^.]\.\n", err), err[:300]
    return status == 2


@CASES
@given(name=st.sampled_from(DOCUMENTS), place=st.integers(0, 2**20), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_document_of_a_finished_run_is_named_and_nothing_is_drawn(
    run, nothing_long, capsys, name, place, bit, cut
):
    folder = run()
    data = bytearray((folder / name).read_bytes())
    place %= len(data)
    assume(name != "sha256.json" or not data[place : place + 1].isspace())  # which says nothing there
    data[place] ^= 1 << bit
    (folder / name).write_bytes(data[:place] if cut else data)
    before = content(folder)
    for arguments in (["report"], ["sweep", "--resume"], ["sweep", "--num-candidates", "40", "--extend"]):
        assert refused(capsys, [*arguments, str(folder)])
        assert content(folder) == before


def changed(document, data):
    """A document of which a few entries are others, or not there."""
    for name in data.draw(st.lists(st.sampled_from(sorted(document)), min_size=1, max_size=2, unique=True)):
        if data.draw(st.booleans()):
            document[name] = data.draw(VALUES)
        else:
            del document[name]
    return document


@fuzzing.cases(8)
@given(data=st.data(), name=st.sampled_from(["config.json", "environment.json", "result.json"]))
def test_a_document_of_odd_entries_and_no_digest_is_reported_or_refused(run, nothing_long, capsys, data, name):
    folder = run()
    (folder / rundir.SEAL).unlink()
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(changed(document, data)))
    before = (folder / name).read_bytes()
    for arguments in (["report"], ["sweep", "--resume"], ["sweep", "--num-candidates", "40", "--extend"]):
        refused(capsys, [*arguments, str(folder)])
        assert (folder / name).read_bytes() == before


@CASES
@given(data=st.data())
@example(data=None)
def test_records_of_odd_entries_and_no_digest_are_reported_or_refused(run, capsys, data):
    folder = run()
    (folder / rundir.SEAL).unlink()
    lines = (folder / "records.jsonl").read_text().splitlines()
    if data is None:
        lines.append("[" * 100_000)
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(lines) - 1))
            kind = data.draw(st.sampled_from(["change", "change", "drop", "repeat"]))
            if kind == "change":
                lines[at] = json.dumps(changed(json.loads(lines[at]), data))
            else:
                lines[at : at + 1] = [] if kind == "drop" else [lines[at]] * 2
    (folder / "records.jsonl").write_text("\n".join(lines))
    refused(capsys, ["report", str(folder), "--to", str(folder.parent / "elsewhere")])
