"""A score depends on its candidate and on nothing around it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import hosts, meshes, search
from lacuna.errors import InvalidInput, RunMismatch
from lacuna.search import Sweep, gaussian, rescore, run_sweep, table_sha256
from lacuna.types import Objective

SMALL = Sweep(gaussian(), (0.1, 0.4), 50, seed=5, top_k=7)


def mesh_of(num_devices):
    return meshes.candidate_mesh(jax.devices()[:num_devices])


@pytest.mark.parametrize(("num_devices", "chunk"), [(1, 7), (2, 12), (8, 5), (2, 2**40)])
def test_the_table_is_the_same_on_any_number_of_devices_and_for_any_chunk(
    problem, sweep, reference, num_devices, chunk
):
    result = run_sweep(*problem, dataclasses.replace(sweep, chunk=chunk), mesh=mesh_of(num_devices))
    assert result.sha256 == reference.sha256
    assert result.top_k == reference.top_k
    assert result.base_score == reference.base_score


@pytest.mark.parametrize(
    ("sigmas", "antithetic", "column"), [((1e-2,), False, (0, 0)), ((1e-4, 1e-3, 1e-2), True, (2, slice(None)))]
)
def test_a_score_does_not_depend_on_what_else_is_searched(problem, sweep, reference, sigmas, antithetic, column):
    other = dataclasses.replace(sweep, sigmas=sigmas, antithetic=antithetic, num_candidates=24, chunk=1)
    scores = run_sweep(*problem, other).scores
    np.testing.assert_array_equal(scores[:, *column], reference.scores[:24, 1, column[1]])


@pytest.fixture(scope="module")
def wide(problem, sweep):
    return run_sweep(*problem, dataclasses.replace(sweep, width=4, chunk=64, top_k=5))


def test_a_wide_sweep_is_the_same_on_any_number_of_devices(problem, wide):
    on_one = run_sweep(*problem, dataclasses.replace(wide.sweep, chunk=8), mesh=mesh_of(1))
    assert on_one.sha256 == wide.sha256
    assert on_one.top_k == wide.top_k


def test_finalists_of_a_wide_sweep_carry_the_scores_of_a_narrow_one(reference, wide):
    sigmas = reference.sweep.sigmas
    exact = [reference.scores[c.index, sigmas.index(c.sigma), (1 - c.sign) // 2] for c in wide.top_k]
    assert [c.score for c in wide.top_k] == exact
    assert exact == sorted(exact)
    np.testing.assert_allclose(wide.scores, reference.scores, rtol=1e-5)


def test_the_table_and_the_winners_agree(sweep, reference):
    assert [tuple(c) for c in reference.top_k] == oracles.full_sort(reference.scores, sweep.sigmas, sweep.num_top)
    assert reference.best == reference.top_k[0]
    assert reference.gain == reference.base_score - float(reference.scores.min())
    assert reference.num_nonfinite == 0
    assert reference.num_scored == 40


@pytest.fixture(scope="module")
def small():
    return run_sweep(*problems.small(), SMALL)


def test_an_objective_is_scored_as_its_loss_is(small):
    loss, params, batch = problems.small()
    assert run_sweep(Objective(loss), params, batch, SMALL).sha256 == small.sha256


def test_another_seed_gives_other_scores(small):
    other = run_sweep(*problems.small(), dataclasses.replace(SMALL, seed=6))
    assert abs(oracles.correlation(small.scores[:, 0, 0], other.scores[:, 0, 0])) < 5 / np.sqrt(50)


def test_scores_of_a_linear_loss_are_odd_and_proportional_to_sigma(small):
    scores = small.scores
    np.testing.assert_allclose(scores[:, :, 0], -scores[:, :, 1], rtol=1e-6)
    np.testing.assert_allclose(scores[:, 1, 0], 4 * scores[:, 0, 0], rtol=1e-5)


def test_nothing_is_traced_once_the_first_progress_is_shown():
    traces, seen = [], []

    def counted(params, batch):
        traces.append(1)
        return problems.linear_loss(params, batch)

    _, params, batch = problems.small()
    run_sweep(
        counted,
        params,
        batch,
        dataclasses.replace(SMALL, chunk=16),
        progress=lambda done, of: seen.append((done, of, len(traces))),
    )
    assert seen == [(done, 50, len(traces)) for done in (0, 16, 32, 48, 50)]


def cracked(params, batch):
    """Linear, but NaN for large first coordinates and infinite for large second ones."""
    value = problems.linear_loss(params, batch)
    value = jnp.where(params["w"][1] > 0.2, jnp.inf, value)
    return jnp.where(params["w"][0] > 0.2, jnp.nan, value)


@pytest.mark.parametrize("width", [1, 4])
def test_a_candidate_whose_loss_is_not_finite_is_recorded_and_never_wins(small, width):
    _, params, batch = problems.small()
    result = run_sweep(cracked, params, batch, dataclasses.replace(SMALL, width=width))
    finite = np.isfinite(result.scores)
    assert np.isnan(result.scores).any()
    assert np.isposinf(result.scores).any()
    np.testing.assert_allclose(result.scores[finite], small.scores[finite], rtol=1e-5)
    assert result.num_nonfinite == np.sum(~finite)
    assert all(math.isfinite(c.score) for c in result.top_k)
    assert result.best.score == result.scores[finite].min()


@pytest.mark.parametrize("width", [1, 4])
def test_a_sweep_of_nothing_but_nan_has_no_winner(width):
    def hopeless(params, batch):
        return jnp.where(jnp.all(params["w"] == 0), problems.linear_loss(params, batch), jnp.nan)

    _, params, batch = problems.small()
    result = run_sweep(hopeless, params, batch, dataclasses.replace(SMALL, width=width))
    assert result.top_k == ()
    assert result.best is None
    assert math.isnan(result.gain)
    assert result.num_nonfinite == SMALL.num_evaluations


def test_finalists_of_a_wide_sweep_are_four_times_top_k_and_nan_never_wins(monkeypatch):
    def only_the_last(*arguments):
        exact = rescore(*arguments)
        return np.where(np.arange(len(exact)) == len(exact) - 1, exact, np.float32(np.nan))

    monkeypatch.setattr(search.run, "rescore", only_the_last)
    result = run_sweep(*problems.small(), dataclasses.replace(SMALL, width=4))
    last_finalist = oracles.full_sort(result.scores, SMALL.sigmas, 4 * SMALL.top_k)[-1]
    assert [c[:3] for c in result.top_k] == [last_finalist[:3]]


def test_every_nan_has_the_same_sha256():
    table = np.float32([[[1, np.nan]]])
    other = table.view(np.uint32) | np.array([[[0, 0x80000123]]], np.uint32)
    assert np.isnan(other.view(np.float32)[0, 0, 1])
    assert table_sha256(other.view(np.float32)) == table_sha256(table)
    assert table_sha256(np.float32([[[np.nan, 1]]])) != table_sha256(table)
    assert table_sha256(-table) == table_sha256(np.float32([[[-1, np.nan]]]))


def num_compiled(work):
    """How many programs were compiled for it."""
    compiled = []

    def listen(name, duration, **details):
        compiled.extend([name] * name.endswith("backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(compiled)


def test_sweeps_of_a_kind_that_share_their_programs_are_compiled_once(problem, sweep):
    loss, params, batch = problem
    programs = {}

    def search_from(scale, seed, sigmas, **options):
        moved = jax.tree.map(lambda leaf: leaf * scale, params)
        run_sweep(loss, moved, batch, dataclasses.replace(sweep, seed=seed, sigmas=sigmas), **options)

    search_from(1.0, 1, (1e-3, 1e-2, 1e-1), programs=programs)
    assert num_compiled(lambda: search_from(1.5, 2, (2e-3, 2e-2, 2e-1), programs=programs)) == 0
    assert num_compiled(lambda: search_from(1.5, 2, (2e-3, 2e-2), programs=programs)) > 0  # of another shape
    assert num_compiled(lambda: search_from(1.0, 1, (1e-3, 1e-2, 1e-1))) > 0


def test_a_run_on_disk_notices_an_edited_loss_whatever_is_kept(problem, sweep, tmp_path):
    _, params, batch = problem
    factor = [1.0]

    def loss(params, batch):
        return factor[0] * problem[0](params, batch)

    programs = {}
    short = dataclasses.replace(sweep, num_candidates=8)
    run_sweep(loss, params, batch, short, programs=programs)
    run_sweep(loss, params, batch, short, out=tmp_path / "run", programs=programs)
    factor[0] = 2.0
    longer = dataclasses.replace(sweep, num_candidates=16)
    with pytest.raises(RunMismatch, match="scored by another program"):
        run_sweep(loss, params, batch, longer, out=tmp_path / "run", resume=True, programs=programs)


def test_processes_that_read_other_files_are_told(monkeypatch, tmp_path):
    """What the first process says of its weights, on one that has others."""
    loss, params, batch = problems.small()
    agree = hosts.agree

    def others(work):
        said = agree(work)
        return said | {"params_sha256": "other"} if isinstance(said, dict) else said

    monkeypatch.setattr(hosts, "agree", others)
    with pytest.raises(InvalidInput, match=r"every process must search .*; got another params_sha256 here"):
        run_sweep(loss, params, batch, Sweep(gaussian(), (0.1,), 4), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
