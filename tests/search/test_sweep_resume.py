"""A killed run goes on where it stopped, and the bytes on disk tell no difference."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from lacuna import meshes
from lacuna.errors import RunMismatch
from lacuna.search import Sweep, gaussian, run_sweep

SWEEP = Sweep(gaussian(), (0.1, 0.4), 49, seed=5, chunk=8, top_k=7)


def two_devices():
    return meshes.candidate_mesh(jax.devices()[:2])


def kill_after(num_draws):
    """A progress callback that interrupts the run once so many draws are on disk."""

    def progress(done, _):
        if done >= num_draws:
            raise KeyboardInterrupt

    return progress


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return run_sweep(*problems.small(), SWEEP, mesh=two_devices(), out=out), out


@pytest.mark.parametrize("num_draws", [0, 8, 24, 48, 49])
def test_a_run_killed_after_any_chunk_resumes_to_the_same_bytes(tmp_path, whole, num_draws):
    result, folder = whole
    with pytest.raises(KeyboardInterrupt):
        run_sweep(*problems.small(), SWEEP, mesh=two_devices(), out=tmp_path, progress=kill_after(num_draws))
    assert not (tmp_path / "scores.parquet").exists()
    resumed = run_sweep(*problems.small(), SWEEP, mesh=two_devices(), out=tmp_path, resume=True)
    assert resumed.sha256 == result.sha256
    assert resumed.top_k == result.top_k
    assert resumed.num_scored == 49 - num_draws
    assert files(tmp_path) == files(folder)


def test_a_run_killed_on_eight_devices_resumes_on_two_with_another_chunk(tmp_path, problem, sweep, reference):
    on_eight = meshes.candidate_mesh(jax.devices())
    with pytest.raises(KeyboardInterrupt):
        run_sweep(*problem, dataclasses.replace(sweep, chunk=16), mesh=on_eight, out=tmp_path, progress=kill_after(16))
    other = dataclasses.replace(sweep, chunk=12)
    resumed = run_sweep(*problem, other, mesh=two_devices(), out=tmp_path, resume=True)
    assert resumed.num_scored == 24
    assert resumed.sha256 == reference.sha256
    assert resumed.top_k == reference.top_k


def test_a_run_may_be_extended_and_keeps_what_it_had(tmp_path, whole):
    short = dataclasses.replace(SWEEP, num_candidates=21)
    first = run_sweep(*problems.small(), short, mesh=two_devices(), out=tmp_path)
    np.testing.assert_array_equal(first.scores, whole[0].scores[:21])
    longer = run_sweep(*problems.small(), SWEEP, mesh=two_devices(), out=tmp_path, resume=True)
    assert longer.num_scored == 28
    assert longer.sha256 == whole[0].sha256


def test_the_documents_are_those_that_the_scores_were_made_under(tmp_path):
    short = dataclasses.replace(SWEEP, num_candidates=21)
    run_sweep(*problems.small(), short, out=tmp_path, documents={"config.json": {"n": 21}})
    for sweep in (SWEEP, dataclasses.replace(SWEEP, seed=1)):
        with contextlib.suppress(RunMismatch):
            run_sweep(*problems.small(), sweep, out=tmp_path, resume=True, documents={"config.json": {"n": 1}})
        assert json.loads(files(tmp_path)["config.json"]) == {"n": 21}


def test_a_run_that_scored_nothing_binds_nobody(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_sweep(*problems.small(), SWEEP, out=tmp_path, progress=kill_after(0), documents={"config.json": {"n": 1}})
    other = dataclasses.replace(SWEEP, seed=1)
    result = run_sweep(*problems.small(), other, out=tmp_path, documents={"config.json": {"n": 2}})
    assert result.num_scored == 49
    assert json.loads(files(tmp_path)["config.json"]) == {"n": 2}
    assert json.loads(files(tmp_path)["identity.json"])["seed"] == 1


def test_a_run_whose_first_scores_are_nan_resumes(tmp_path):
    def cracked(params, batch):
        return jnp.where(params["w"][0] != 0, jnp.nan, problems.linear_loss(params, batch))

    _, params, batch = problems.small()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(cracked, params, batch, SWEEP, out=tmp_path, progress=kill_after(16))
    resumed = run_sweep(cracked, params, batch, SWEEP, out=tmp_path, resume=True)
    assert resumed.num_nonfinite == SWEEP.num_evaluations


def test_a_run_folder_holds_the_identity_the_log_the_table_and_the_documents(tmp_path):
    out = tmp_path / "deep" / "run"
    run_sweep(*problems.small(), SWEEP, out=str(out), documents={"config.json": {"a": [1, 2]}})
    assert sorted(files(out)) == ["config.json", "environment.json", "identity.json", "scores.log", "scores.parquet"]
    assert json.loads(files(out)["config.json"]) == {"a": [1, 2]}
    identity = json.loads(files(out)["identity.json"])
    assert identity["sigmas"] == [0.1, 0.4]
    assert not {"chunk", "num_candidates", "top_k", "num_devices"} & identity.keys()
