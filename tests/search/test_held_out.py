"""What survives of a gain on data that the search did not see."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from lacuna import search
from lacuna.errors import InvalidInput
from lacuna.reports import records
from lacuna.search import Sweep, gaussian, run_sweep

SWEEP = Sweep(gaussian(), (0.1, 0.4), 16, seed=5, top_k=4)
STUDENT = 3.182446305284263  # 97.5 % of Student's t with three degrees of freedom, from a table


def other_batches(batch, num_batches):
    rng = np.random.default_rng(3)
    return [
        jax.tree.map(lambda b: b + 0.3 * rng.normal(size=b.shape).astype(np.float32), batch) for _ in range(num_batches)
    ]


def test_the_winners_stand_beside_draws_that_were_never_searched():
    loss, params, batch = problems.small()
    result = run_sweep(loss, params, batch, SWEEP)
    other = jax.tree.map(lambda b: b[::-1], batch)
    found = search.held_out_records(result, loss, params, batch, other)
    longer = run_sweep(loss, params, batch, dataclasses.replace(SWEEP, num_candidates=20))
    column = SWEEP.sigmas.index(result.best.sigma)
    random = next(r.where["group"] for r in found if "random" in r.where["group"])
    expected = longer.base_score - longer.scores[16:, column, 0].mean()
    np.testing.assert_allclose(records.value(found, "search_gain", group=random), expected, rtol=1e-5)
    np.testing.assert_allclose(records.value(found, "search_gain", group="winner"), result.gain, rtol=1e-6)
    winner = search.candidate(params, SWEEP, *result.best[:3])
    held_out = loss(params, other) - loss(winner, other)
    np.testing.assert_allclose(records.value(found, "held_out_gain", group="winner"), held_out, rtol=1e-5)


def test_a_control_that_is_not_finite_is_left_out_and_the_rest_counted():
    _, params, batch = problems.small()
    wild = dataclasses.replace(SWEEP, sigmas=(0.4,), num_candidates=64, top_k=32)
    result = run_sweep(problems.cracked_loss, params, batch, wild)
    found = search.held_out_records(result, problems.cracked_loss, params, batch, batch)
    gains = [r for r in found if r.quantity in ("search_gain", "held_out_gain")]
    counts = {r.where["group"]: (r.where["num_finite"], r.where["size"], r.value) for r in gains}
    (random,) = (group for group in counts if "random" in group)
    assert 0 < counts[random][0] < counts[random][1] == 32
    assert all(math.isfinite(value) for *_, value in counts.values())


def bounded(params, batch):
    """A linear loss that is NaN beyond the bound of its batch."""
    loss = jnp.vdot(params["w"], batch["w"])
    return jnp.where(jnp.abs(params["w"][0]) < batch["bound"], loss, jnp.nan)


def test_a_candidate_that_is_lost_on_one_held_out_batch_is_left_out_of_all():
    _, params, gradient = problems.small()
    batch, bounds = gradient | {"bound": jnp.float32(np.inf)}, [np.inf, 0.3]
    result = run_sweep(bounded, params, batch, SWEEP)
    batches = [batch | {"bound": jnp.float32(bound)} for bound in bounds]
    (top,) = records.select(
        search.held_out_records(result, bounded, params, batch, batches), "held_out_gain", group="top 4, mean"
    )
    members = [search.candidate(params, SWEEP, *one[:3]) for one in result.top_k]
    inside = [one for one, member in zip(result.top_k, members, strict=True) if abs(member["w"][0]) < bounds[1]]
    assert 0 < len(inside) < 4
    assert top.where["num_finite"] == len(inside)
    np.testing.assert_allclose(top.value, -np.mean([one.score for one in inside]), rtol=1e-5)


def test_shrinkage_is_the_part_of_the_gain_that_is_left_and_its_interval_is_over_batches():
    loss, params, batch = problems.small()
    result = run_sweep(loss, params, batch, SWEEP)
    batches = other_batches(batch, 4)
    found = search.held_out_records(result, loss, params, batch, batches)
    members = [search.candidate(params, SWEEP, *one[:3]) for one in result.top_k]
    gains = np.asarray([np.mean([loss(params, rows) - loss(m, rows) for m in members]) for rows in (batch, *batches)])
    ends = gains[1:].mean() + STUDENT * gains[1:].std(ddof=1) / 2 * np.array([-1, 1])
    for quantity, known in zip(
        ("search_gain", "held_out_gain", "shrinkage", "shrinkage_low", "shrinkage_high"),
        (gains[0], gains[1:].mean(), gains[1:].mean() / gains[0], *(ends / gains[0])),
        strict=True,
    ):
        (record,) = records.select(found, quantity, group="top 4, mean")
        np.testing.assert_allclose(record.value, known, rtol=1e-5, atol=1e-6)
        assert (record.where["size"], record.where["num_finite"], record.where["num_batches"]) == (4, 4, 4)


def worse_everywhere(params, batch):
    """A loss that every step makes larger."""
    return problems.quadratic_loss(params, (jax.tree.map(jnp.zeros_like, batch), jax.tree.map(jnp.abs, batch)))


def test_candidates_that_gained_nothing_have_no_share_to_keep():
    _, params, batch = problems.small()
    result = run_sweep(worse_everywhere, params, batch, SWEEP)
    found = search.held_out_records(result, worse_everywhere, params, batch, other_batches(batch, 3))
    assert all(record.value < 0 for record in records.select(found, "search_gain"))
    assert all(
        math.isnan(record.value) for end in ("", "_low", "_high") for record in records.select(found, f"shrinkage{end}")
    )


def test_one_batch_alone_has_no_interval():
    loss, params, batch = problems.small()
    result = run_sweep(loss, params, batch, SWEEP)
    (rows,) = other_batches(batch, 1)
    alone = search.held_out_records(result, loss, params, batch, rows)
    assert [str(r) for r in alone] == [str(r) for r in search.held_out_records(result, loss, params, batch, [rows])]
    assert all(math.isfinite(r.value) for r in records.select(alone, "shrinkage"))
    assert all(math.isnan(r.value) for end in ("low", "high") for r in records.select(alone, f"shrinkage_{end}"))


def barely_moving(params, batch):
    """A loss of one hundred whose changes are a bit of the last place."""
    return 100 + 3e-6 * problems.linear_loss(params, batch)


def test_a_gain_of_nothing_has_no_shrinkage():
    _, params, batch = problems.small()
    result = run_sweep(barely_moving, params, batch, SWEEP)
    found = search.held_out_records(result, barely_moving, params, batch, other_batches(batch, 2))
    assert all(math.isnan(r.value) for r in found if "shrinkage" in r.quantity)
    assert all(math.isfinite(r.value) for r in found if "gain" in r.quantity)


def padded(batch, size):
    """The same rows with so much behind them that counts for nothing."""
    return {"w": jnp.pad(batch["w"], ((0, 0), (0, size)))}


def test_held_out_batches_may_be_padded_otherwise():
    loss, params, batch = problems.small()
    size = batch["w"].size

    def of_rows(params, batch):
        return loss(params, {"w": batch["w"][0, :size]})

    rows = {"w": batch["w"][None]}
    result = run_sweep(of_rows, params, rows, SWEEP)
    (other,) = other_batches(rows, 1)
    alike, wider = (search.held_out_records(result, of_rows, params, rows, [padded(other, n)]) for n in (0, 3))
    assert [str(r) for r in alike] == [str(r) for r in wider]


@pytest.mark.parametrize(
    "held_out",
    [
        [],
        (),
        [{"v": jnp.zeros(5)}],
        {"v": jnp.zeros(5)},
        jnp.zeros(5),
        {"w": jnp.zeros((2, 5))},
        [{"w": jnp.zeros(())}],
    ],
)
def test_held_out_data_of_another_kind_is_refused(held_out):
    loss, params, batch = problems.small()
    result = run_sweep(loss, params, batch, SWEEP)
    with pytest.raises(InvalidInput, match=r"held_out must be a batch as the one .*\'w\'.*; got "):
        search.held_out_records(result, loss, params, batch, held_out)
