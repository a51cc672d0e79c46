"""One program makes a score, whoever asks for it: the sweep, a candidate alone, or another driver."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest

from lacuna import keys, trees
from lacuna.search import Sweep, candidate, gaussian, rescore, run_sweep, score
from lacuna.search.evaluate import local_scores, program_of, signed_scales
from lacuna.search.select import Candidate


def every(sweep, scores):
    """All candidates of a score table."""
    places = np.ndindex(scores.shape)
    return [Candidate(i, sweep.sigmas[s], (1, -1)[z], float(scores[i, s, z])) for i, s, z in places]


def test_a_candidate_made_again_scores_the_recorded_bits(problem, sweep, reference):
    loss, params, batch = problem
    again = np.empty_like(reference.scores)
    for place, c in zip(np.ndindex(again.shape), every(sweep, again), strict=True):
        again[place] = score(loss, candidate(params, sweep, c.index, c.sigma, c.sign), batch)
    np.testing.assert_array_equal(again, reference.scores)


def test_rescored_candidates_have_the_recorded_bits(problem, sweep, reference):
    everything = tuple(every(sweep, reference.scores))
    again = rescore(*problem, sweep, everything)
    np.testing.assert_array_equal(again, [c.score for c in everything])


def test_one_candidate_rescored_alone_has_the_recorded_bits(problem, sweep, reference):
    np.testing.assert_array_equal(rescore(*problem, sweep, reference.top_k[:1]), [reference.best.score])
    assert rescore(*problem, sweep, ()).size == 0


def test_a_sweep_does_not_touch_the_point():
    loss, params, batch = problems.linear(50)
    params = jax.tree.map(lambda p: p + 0.1, params)
    before, buffers = oracles.bits(params), [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)]
    run_sweep(loss, params, batch, Sweep(gaussian(), (0.5,), 40, seed=1))
    assert oracles.bits(params) == before
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)] == buffers


def test_a_candidate_is_the_point_plus_sigma_times_its_draw(problem, sweep):
    noise = jax.jit(sweep.family.draw)(keys.candidate(keys.root(sweep.seed), 7), problem.params)
    for sigma, sign in [(1e-2, 1), (3e-3, -1)]:
        made = candidate(problem.params, sweep, 7, sigma, sign)
        assert oracles.bits(made) == oracles.bits(oracles.axpy(sign * np.float32(sigma), noise, problem.params))


def test_bfloat16_candidates_score_the_recorded_bits():
    loss, params, batch = problems.bfloat16()
    sweep = Sweep(gaussian(), (1e-2,), 16, antithetic=False)
    result = run_sweep(loss, params, batch, sweep)
    alone = [score(loss, candidate(params, sweep, i, 1e-2), batch) for i in range(16)]
    np.testing.assert_array_equal(np.float32(alone), result.scores[:, 0, 0])
    np.testing.assert_array_equal(rescore(loss, params, batch, sweep, result.top_k), [c.score for c in result.top_k])


def test_pmap_over_the_same_step_gives_the_same_bits(problem, sweep, reference):
    of_device = partial(local_scores, program_of(problem.loss, sweep.family), sweep.family, capacity=5)
    over_devices = jax.pmap(of_device, in_axes=(None,) * 4 + (0, None))
    scales = signed_scales(sweep.sigmas, sweep.antithetic)
    firsts = jnp.arange(0, 40, 5, dtype=jnp.uint32)
    scores = over_devices(problem.params, problem.batch, keys.root(sweep.seed), scales, firsts, jnp.int32(5))
    np.testing.assert_array_equal(np.asarray(scores).reshape(reference.scores.shape), reference.scores)


def test_the_base_point_scores_what_a_candidate_of_no_size_does(problem, reference):
    assert np.float32(reference.base_score) == score(problem.loss, problem.params, problem.batch)
    np.testing.assert_allclose(reference.base_score, problem.loss(problem.params, problem.batch), rtol=1e-6)


@pytest.mark.parametrize(
    ("sigmas", "antithetic", "scales"),
    [((0.5, 2.0), True, [0.5, -0.5, 2, -2]), ((0.5,), True, [0.5, -0.5]), ((0.5,), False, [0.5, 0])],
)
def test_signed_scales_are_told_with_their_number_as_data(sigmas, antithetic, scales):
    values, count = signed_scales(sigmas, antithetic)
    np.testing.assert_array_equal(values, np.float32(scales))
    assert count == np.count_nonzero(scales)


def test_the_problem_tells_programs_apart(problem, sweep, reference):
    """Otherwise bit equality above would be no news: a plain jit of the loss has other last bits somewhere."""
    assert 20_000 < trees.size(problem.params) < 50_000
    plain = jax.jit(problem.loss)
    points = [candidate(problem.params, sweep, i, 1e-2) for i in range(40)]
    others = np.float32([plain(point, problem.batch) for point in points])
    assert np.any(others != reference.scores[:, 1, 0])
