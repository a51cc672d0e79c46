"""What is measured of a displacement: laws that hold for any basis, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from lacuna import captures, geometry, trees
from lacuna.captures import BasisSpec, TaskAt, measurement
from lacuna.errors import GeometryError, InvalidInput, TreeMismatch
from lacuna.reports.records import select, value

RNG = np.random.default_rng(0)
SHAPES = {
    "embedding": (7, 4),
    "layers": {"mlp": {"up": {"bias": (3, 5), "kernel": (3, 4, 5)}}, "norm": {"scale": (3, 4)}},
    "head": {"kernel": (4, 2)},
}
SIZES = {"embedding": 28, "layers/mlp/up/bias": 5, "layers/mlp/up/kernel": 20, "layers/norm/scale": 4, "head/kernel": 8}
P = 28 + 3 * 29 + 8
LAWS = ("random signs", "random entries")


def tree(scale=1.0):
    draw = lambda shape: jnp.asarray(scale * RNG.normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, SHAPES, is_leaf=lambda shape: isinstance(shape, tuple))


START, TARGET = tree(), tree()
DELTA = jax.tree.map(lambda x, y: 0.3 * x + 0.1 * y, tree(), TARGET)
BLOCKS = [  # leaf, layer, kind
    ("embedding", "embedding", "embedding"),
    ("head/kernel", "head", "head"),
    *(("layers/mlp/up/bias", layer, "mlp/up") for layer in range(3)),
    *(("layers/mlp/up/kernel", layer, "mlp/up") for layer in range(3)),
    *(("layers/norm/scale", layer, "norm") for layer in range(3)),
]


def stacked(name):
    return name.startswith("layers/")


def batches(step):
    """Targets that differ from step to step."""
    return jax.tree.map(lambda x: x * (1 + 0.1 * jnp.sin(step + jnp.arange(x.size).reshape(x.shape))), TARGET)


def loss(params, batch):
    return trees.dot(*(jax.tree.map(jnp.subtract, params, batch),) * 2) / 2


def measured(*specs, **options):
    return captures.measure(START, DELTA, specs, stacked=stacked, num_draws=3, **options)


def blocks_of(rows, leaf, layer):
    """Rows of a block as a matrix [k, P_b]."""
    values = dict(trees.named_leaves(rows))[leaf]
    values = values[:, layer] if stacked(leaf) else values
    return np.asarray(values, np.float64).reshape(len(values), -1)


def in_block(rows, leaf, layer):
    """Capture of the displacement within a block, its random level and its squared norm, by a QR of the rows there."""
    d = blocks_of(jax.tree.map(lambda x: x[None], DELTA), leaf, layer)[0]
    matrix = blocks_of(rows, leaf, layer)
    rank = min(matrix.shape)
    q = np.linalg.qr(matrix.T)[0][:, :rank]
    return np.sum((q.T @ d) ** 2) / (d @ d), rank / d.size, d @ d


TASK = TaskAt(loss, batches)
OWN = {"basis": "gradient", "task": "own"}


@pytest.fixture(scope="module")
def basis():
    return captures.task_basis(BasisSpec("gradient", rank=3), loss, START, batches)


@pytest.fixture(scope="module")
def found():
    held_out = [batches(50), batches(51)]
    return measured(BasisSpec("gradient", rank=3), task=TASK, control=TASK, held_out=held_out)


def test_capture_stands_beside_its_random_level(basis, found):
    q, d = oracles.flat_rows(basis.rows), oracles.flat(DELTA)
    mass = np.sum((q @ d) ** 2) / (d @ d)
    assert value(found, "capture_mass", **OWN) == pytest.approx(mass, rel=1e-5)
    assert value(found, "capture_norm", **OWN) == pytest.approx(mass**0.5, rel=1e-5)
    assert value(found, "random_mass", **OWN) == pytest.approx(3 / P)
    assert value(found, "random_low", **OWN) < 3 / P < value(found, "random_high", **OWN)
    assert {record.where["rank"] for record in select(found, "capture_mass")} == {3}


def test_a_random_basis_is_measured_unasked_and_lies_in_its_interval(found):
    mass = value(found, "capture_mass", basis="random")
    assert value(found, "random_low", basis="random") < mass < value(found, "random_high", basis="random")


def test_the_same_task_as_a_control_is_the_same_basis(found):
    masses = {record.where["task"]: record.value for record in select(found, "capture_mass", basis="gradient")}
    assert masses["own"] == masses["control"]


def test_every_block_has_the_capture_of_the_rows_cut_to_it(basis, found):
    for leaf, layer, kind in BLOCKS:
        mass, level, _ = in_block(basis.rows, leaf, layer)
        at = {**OWN, "by": "leaf", "leaf": leaf, "layer": layer, "kind": kind}
        assert value(found, "block_capture", **at) == pytest.approx(mass, rel=1e-3)
        assert value(found, "block_random", **at) == pytest.approx(level, rel=1e-6)


@pytest.mark.parametrize(("by", "index"), [("layer", 1), ("kind", 2)])
def test_groups_of_blocks_are_means_weighted_by_where_the_displacement_is(basis, found, by, index):
    whole = sum(in_block(basis.rows, *block[:2])[2] for block in BLOCKS)
    for place in {block[index] for block in BLOCKS}:
        inside = np.asarray([in_block(basis.rows, *block[:2]) for block in BLOCKS if block[index] == place])
        mass, level, _ = np.average(inside, axis=0, weights=inside[:, 2])
        assert value(found, "block_capture", **OWN, **{"by": by, by: place}) == pytest.approx(mass, rel=1e-3)
        assert value(found, "block_random", **OWN, **{"by": by, by: place}) == pytest.approx(level, rel=1e-5)
        share = value(found, "block_mass_share", **{"by": by, by: place})
        assert share == pytest.approx(inside[:, 2].sum() / whole, rel=1e-5)


def test_blocks_together_are_the_block_capture_of_geometry(basis, found):
    whole = geometry.block_capture(geometry.block_orthonormalise(basis.rows, stacked=stacked), DELTA)
    assert value(found, "block_capture", **OWN, by="all") == pytest.approx(float(whole.mass), rel=1e-4)
    assert value(found, "block_random", **OWN, by="all") == pytest.approx(float(whole.random_mass), rel=1e-5)


def test_the_radius_is_relative_to_the_weights_of_the_same_place(found):
    norms = [
        np.sqrt(sum(float(np.sum(np.square(np.asarray(x[1], np.float64)))) for x in jax.tree.leaves(point["layers"])))
        for point in (DELTA, START)
    ]
    assert value(found, "relative_radius", by="layer", layer=1) == pytest.approx(norms[0] / norms[1], rel=1e-5)
    assert value(found, "displacement_norm") == pytest.approx(np.linalg.norm(oracles.flat(DELTA)), rel=1e-5)


def test_a_basis_of_the_displacement_itself_holds_all_of_it_and_none_of_its_controls():
    # From the start, one gradient step of this loss is along the target minus the start: let that be the displacement.
    delta = jax.tree.map(jnp.subtract, batches(0), START)
    spec = BasisSpec("prefix", rank=1, optimiser="sgd", learning_rate=0.01)
    found = captures.measure(START, delta, [spec], task=TASK, stacked=stacked, held_out=[batches(0)], num_draws=20)
    own = {"basis": "prefix", "task": "own"}
    assert value(found, "capture_mass", **own) == pytest.approx(1, abs=1e-5)
    assert value(found, "functional_recovery", **own) == pytest.approx(1, abs=1e-4)
    assert value(found, "block_capture", **own, by="all") == pytest.approx(1, abs=1e-5)
    for law in LAWS:
        masses = [record.value for record in select(found, "control_mass", **own, law=law)]
        assert len(set(masses)) == 20
        assert 0 < np.mean(masses) < 6 / P


@pytest.mark.parametrize("law", LAWS)
def test_random_displacements_are_as_long_as_the_real_one_in_every_block(law):
    named = tuple(name for name in trees.leaf_names(DELTA) if stacked(name))
    one, other = (measurement._as_long(jax.random.key(seed), DELTA, law=law, stacked=named) for seed in (0, 1))
    for name, drawn, real in zip(trees.leaf_names(DELTA), *map(jax.tree.leaves, (one, DELTA)), strict=True):
        rows = (1 if not stacked(name) else 3, -1)
        norms = [np.linalg.norm(np.asarray(x, np.float64).reshape(rows), axis=1) for x in (drawn, real)]
        np.testing.assert_allclose(*norms, rtol=1e-6)
    d, e = oracles.flat(one), oracles.flat(other)
    assert abs(d @ e) < 0.5 * (d @ d)
    if law == "random signs":
        np.testing.assert_array_equal(np.abs(d), np.abs(oracles.flat(DELTA)))


def test_functional_recovery_is_that_of_geometry(basis, found):
    def mean_loss(params):
        return (loss(params, batches(50)) + loss(params, batches(51))) / 2

    expected = geometry.functional_recovery(mean_loss, START, DELTA, basis)
    assert value(found, "functional_recovery", **OWN) == pytest.approx(float(expected), rel=1e-3)
    drop = float(mean_loss(START) - mean_loss(trees.axpy(1.0, DELTA, START)))
    assert value(found, "loss_drop") == pytest.approx(drop, rel=1e-4)


def test_where_the_loss_does_not_drop_nothing_is_recovered():
    away = jax.tree.map(jnp.subtract, START, TARGET)
    found = captures.measure(START, away, [BasisSpec("krylov", 2)], task=TASK, held_out=[batches(0)], num_draws=1)
    assert value(found, "loss_drop") < 0
    assert not select(found, "functional_recovery")


def test_a_displacement_is_in_float32_whatever_the_weights_are_in():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), START)
    delta = captures.displacement(half, START)
    expected = oracles.flat(START) - oracles.flat(half)
    np.testing.assert_array_equal(oracles.flat(delta), expected.astype(np.float32))


def test_what_is_no_displacement_is_refused():
    with pytest.raises(InvalidInput, match="two whose weights are all equal"):
        captures.displacement(START, START)
    with pytest.raises(TreeMismatch, match=r"`head/kernel` with shape \(4, 2\) in the first and shape \(4, 3\)"):
        captures.displacement(START, {**START, "head": {"kernel": jnp.zeros((4, 3))}})
    spoiled = {**START, "embedding": START["embedding"].at[0, :2].set(jnp.nan)}
    with pytest.raises(GeometryError, match="end of a displacement must be finite; got 2 not so in `embedding`"):
        captures.displacement(START, spoiled)
    with pytest.raises(GeometryError, match="`step` of int32"):
        captures.displacement({"step": jnp.int32(1)}, {"step": jnp.int32(2)})


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InvalidInput, match="a gradient basis needs a task"):
        measured(BasisSpec("gradient"))
    with pytest.raises(InvalidInput, match="num_draws must be at least 1"):
        captures.measure(START, DELTA, [], num_draws=0)
