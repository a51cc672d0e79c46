"""Searches around language models: the rule of the claim, the rows, and the arithmetic of steps of one length."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import search_kept, search_language, search_places, search_steps
from experiments.search_language_judged import Interval, Shape, worth
from lacuna import keys, models, search, trees
from lacuna.checkpoints.configs import spec_from_config
from lacuna.errors import InvalidInput
from lacuna.reports import claims
from lacuna.reports.records import Record

SMALL = search_language.PRESETS["small"]
MODEL = models.causal_lm(spec_from_config({**search_places.RANDOM["random:qwen2"], "vocab_size": 64}))


def searched(**held_out):
    """Five searches over nats and right answers whose held-out gains spread by a tenth around these."""
    usual = {"nats top": 1.0, "nats random": -0.5, "accuracy top": 1.0, "accuracy random": -0.5}
    usual |= {"shuffled labels top": -0.5, "shuffled labels random": -0.5}
    usual |= {f"{objective} winner": 1.0 for objective in ("nats", "accuracy", "shuffled labels")}
    found = []
    for seed, (which, gain) in itertools.product(range(5), (usual | held_out).items()):
        objective, group = which.rsplit(" ", 1)
        where = {"seed": seed, "place": "tiny", "objective": objective, "group": group}
        found += [
            Record("x", "held_out_gain", gain + 0.1 * np.sin(7.0 * seed + len(which)), "nats", where),
            Record("x", "search_gain", 2.0, "nats", where),
        ]
    return found


@pytest.mark.parametrize(
    ("held_out", "verdicts"),
    [
        ({}, [claims.REPRODUCED, claims.REPRODUCED]),
        ({"nats top": 0.05}, [claims.NOT_REPRODUCED, claims.REPRODUCED]),
        ({"nats random": 1.0}, [claims.CONTROL_FAILS, claims.REPRODUCED]),
        ({"accuracy random": 1.1}, [claims.REPRODUCED, claims.CONTROL_FAILS]),
        ({"shuffled labels top": 1.0}, [claims.REPRODUCED, claims.CONTROL_FAILS]),
        ({"accuracy top": float("nan")}, [claims.REPRODUCED, claims.NOT_REPRODUCED]),
    ],
)
def test_the_rule_of_the_search(held_out, verdicts):
    assert [row.verdict for row in search_language.claims(searched(**held_out), SMALL)] == verdicts


def test_an_interval_over_seeds_is_students():
    found = Interval.of([1.0, 1.2, 0.9, 1.1, 1.3])
    # 97.5 % of Student's t with four degrees of freedom, from a table.
    half_width = 2.7764 * np.std([1.0, 1.2, 0.9, 1.1, 1.3], ddof=1) / np.sqrt(5)
    np.testing.assert_allclose([found.low, found.high], [1.1 - half_width, 1.1 + half_width], rtol=1e-4)
    assert Interval.of([1.0]).low == -np.inf


def test_the_share_that_improves_is_that_of_a_quadratic():
    random = np.random.default_rng(0)
    gradient, curvature = random.normal(size=400), random.normal(0.3, 1, size=400)
    z = random.normal(size=(20_000, 400))
    spread = np.sqrt(2 * np.sum(curvature**2))
    shape = Shape(np.linalg.norm(gradient), curvature.sum(), 0.0, 0.0, spread)
    for step in (0.01, 0.1, 0.4):
        found = np.mean(step * z @ gradient + step**2 / 2 * z**2 @ curvature < 0)
        assert shape.improving(step) == pytest.approx(found, abs=0.015)
    assert shape.improving(0.4) < 0.2


def test_draws_for_a_gain_are_those_that_give_it():
    shape = Shape(2.0, 3.0, 0.1, 0.0, 0.0)
    for n in (1, 7, 512):
        assert shape.draws_for(float(shape.gain(n, 0.1)), 0.1) == pytest.approx(n, rel=0.02)
    assert shape.draws_for(100.0, 0.1) == np.inf
    assert shape.draws_for(-100.0, 0.1) == 1


def test_a_family_is_worth_as_many_gaussian_draws_as_gain_as_much():
    shape = Shape(2.0, 3.0, 0.1, 0.0, 0.0)
    records = []
    for seed in range(5):
        where = {"seed": seed, "place": "tiny"}
        records += [Record("x", name, number, "nats", where) for name, number in shape._asdict().items()]
        gain = float(shape.gain(100, 0.1)) * (1 + 0.01 * (seed - 2))
        at = {"family": "better", "radius": 0.1, "n": 8}
        records.append(Record("x", "gain", gain, "nats", where | at))
    found = worth(records, "tiny", "better", 0.1, 8)
    assert found.ratio.mean == pytest.approx(float(shape.gain(100, 0.1) / shape.gain(8, 0.1)), rel=1e-4)
    low, mean, high = found.draws
    assert mean == pytest.approx(100, rel=0.02)
    assert 80 < low < mean < high < 125


def test_held_out_groups_are_whole_and_every_part_has_each_label_as_often():
    groups = [f"event {row // 4}" for row in range(160)]
    labels = (np.arange(160) // 4) % 4 == 0
    every = (jnp.arange(160), jnp.arange(160))
    rows = search_places.split(every, labels, groups, size=16, share=0.4, seed=3)
    held_out = np.concatenate([np.asarray(batch[0]) for batch in rows.held_out])
    others = np.concatenate([np.asarray(rows.others(step)[0]) for step in range(5)])
    scored = np.asarray(rows.scored[0])
    assert len(rows.held_out) == 4
    assert len({*held_out}) == 64
    assert not {groups[i] for i in held_out} & {groups[i] for i in [*scored, *others]}
    assert not {*scored} & {*others}
    assert labels[scored].sum() == labels[held_out[:16]].sum() == 4
    again = search_places.split(every, labels, groups, size=16, share=0.4, seed=4)
    assert {*np.asarray(again.scored[0])} != {*scored}
    with pytest.raises(InvalidInput, match="must be 64 each; got 64, 64 and 32"):
        search_places.split(every, labels, groups, size=64, share=0.4, seed=3)


def test_one_length_of_a_search_is_the_search_of_that_length():
    def loss(params, batch):
        return jnp.sum(batch * params["x"]) + jnp.sum(params["x"] ** 2)

    params, batch = {"x": jnp.zeros(6)}, jnp.arange(6.0)
    several, one = (
        search.run_sweep(loss, params, batch, search.Sweep(search.gaussian(), sigmas, 20, seed=5, top_k=3))
        for sigmas in ((0.01, 0.1), (0.1,))
    )
    part = search_kept.at_length(several, 1)
    assert part.sha256 == one.sha256
    assert part.top_k == one.top_k
    assert part.gain == one.gain
    assert part.sweep == one.sweep


def test_operator_scales_give_every_matrix_one_operator_norm():
    like = {"wide": jnp.zeros((40, 160)), "layers": {"kernel": jnp.zeros((2, 60, 60)), "bias": jnp.zeros((2, 200))}}
    model = SimpleNamespace(stacked=lambda name: name.startswith("layers"))
    scales = search_steps.operator_scales(like, model)
    noise = search.scaled(search.gaussian(stacked=model.stacked), scales).draw(keys.root(0), like)
    norms = [np.linalg.norm(noise["wide"], 2), *(np.linalg.norm(one, 2) for one in noise["layers"]["kernel"])]
    np.testing.assert_allclose([*norms, *np.linalg.norm(noise["layers"]["bias"], axis=1)], 1, atol=0.12)


def test_a_family_is_found_by_its_name():
    """All that need no training to be made."""
    params = MODEL.init(keys.root(0))
    slope = jax.tree.map(jnp.ones_like, params)
    place = SimpleNamespace(model=MODEL, params=params, loss=None, rows=SimpleNamespace(others=None))
    names = [name for name in search_steps.FAMILIES if name not in ("in gradients", "in first updates", "adapter")]
    found = {name: search_steps.family_of(name, place, slope, rank=2) for name in names}
    laws = ["rademacher", "low_rank", "low_rank", *["scaled gaussian"] * 3, "gaussian in random"]
    assert [family.name for family in found.values()] == laws
    assert [found[name].digest for name in ("rank 1", "rank 4")] == ["rank 1", "rank 4"]
    norms = {name: found[name].square_norms(params) for name in names}
    bias = "layers/attention/query/bias"  # zero at the start, and so is its scale
    assert norms["scaled by weights"][bias].tolist() == [0.0]
    assert norms["scaled by gradient"][bias].tolist() == [16.0]
    np.testing.assert_allclose(norms["scaled by weights"]["embedding"], trees.norm(params["embedding"]) ** 2, rtol=1e-4)


@pytest.mark.parametrize("length", [0.01, 3.0])
def test_steps_of_an_adapters_factors_move_the_weights_by_the_length_asked_for(length):
    params = jax.tree.map(jnp.zeros_like, MODEL.init(keys.root(0)))
    spec = models.lora_spec(MODEL, rank=2, sites=".*")
    factors = spec.init(keys.root(1))
    sigma = search_steps.factor_sigma(spec, factors, length)
    family = search.gaussian(stacked=MODEL.stacked)

    def square(index):
        noise = family.draw(keys.candidate(keys.root(2), index), factors)
        return trees.norm(models.merged(params, spec.bind(trees.axpy(sigma, noise, factors)))) ** 2

    found = jnp.sqrt(jnp.mean(jax.lax.map(square, jnp.arange(400, dtype=jnp.uint32))))
    assert float(found) == pytest.approx(length, rel=0.05)


def test_shuffled_labels_are_the_same_labels():
    right = jnp.asarray([0, 0, 0, 1, 1, 0, 1, 0])
    place = SimpleNamespace(rows=SimpleNamespace(scored=search_places.choices.Choices(*[right] * 5)))
    found = search_places.shuffled(place, 0).right
    assert sorted(found.tolist()) == sorted(right.tolist())
    assert found.tolist() != right.tolist()


def test_a_fitted_bias_learns_how_often_each_answer_is_right():
    """A model that knows nothing and always leans to one answer, three quarters of which are the other."""
    leaning = jnp.asarray([1.0, 4.0])

    def nats_at(params, tokens, at, wanted):
        return jnp.broadcast_to(leaning[None, :, None], wanted.shape)

    right = jnp.asarray([1, 1, 1, 0] * 4)
    rows = search_places.choices.Choices(
        tokens=jnp.zeros((16, 1, 3), jnp.int32),
        at=jnp.zeros((16, 1, 1), jnp.int32),
        wanted=jnp.zeros((16, 1, 2, 1), jnp.int32),
        counted=jnp.ones((16, 1, 2, 1), bool),
        right=right,
    )
    place = SimpleNamespace(nats_at=nats_at, params={}, rows=SimpleNamespace(scored=rows, held_out=(rows,)))
    base = np.logaddexp(-1, -4) + np.mean(np.asarray(leaning)[np.asarray(right)])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert search_kept.bias_gain(place) == pytest.approx(base - entropy, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"families": ("rank 3",)}, "families must be of"),
        ({"family_radii": (0.5,)}, "family_radii must be positive, ascending and of radii"),
        ({"top_k": 1000}, "must ascend"),
        ({"places": {"models": ("x",)}}, "tasks must be one of choices, text for each model"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(change, sentence):
    def configured(places=None, **rest):
        return search_language.Config(places=search_places.PlacesSpec(**(places or {})), **rest)

    with pytest.raises(InvalidInput, match=sentence):
        configured(**change)
