"""What rounding leaves of a step, against numpy: all of it in float32, and hardly any where bfloat16 is near 1."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import geometry, keys
from lacuna.errors import InvalidInput
from lacuna.reports import records
from lacuna.search import Sweep, draws, gaussian, in_basis, realised, realised_records, report_run, run_sweep, scaled

HALF = jnp.bfloat16


def stacked(name):
    return name.startswith("layers/")


def point(dtype=HALF, vectors=HALF, seed=0):
    random = np.random.default_rng(seed)
    return {
        "embedding": jnp.asarray(0.02 * random.normal(size=(40, 30)), dtype),
        "layers": {
            "kernel": jnp.asarray(0.02 * random.normal(size=(3, 20, 25)), dtype),
            "scale": jnp.asarray(1 + 0.05 * random.normal(size=(3, 200)), vectors),
        },
        "count": jnp.arange(3),
    }


SWEEP = Sweep(gaussian(stacked=stacked), (1e-3, 1e-2), 8, seed=3)


def by_numpy(params, sweep, num_draws):
    """`{leaves: [sigma, 3]}` in float64 from whole draws, by the definitions."""
    draw = jax.jit(lambda index: draws.draw(sweep.family, params, keys.root(sweep.seed), index))
    flat = {"embedding": ("matrices", params["embedding"]), "kernel": ("matrices", params["layers"]["kernel"])}
    flat |= {"scale": ("vectors", params["layers"]["scale"])}
    steps, moves = ({kind: {"matrices": [], "vectors": []} for kind in sweep.sigmas} for _ in range(2))
    for index in range(num_draws):
        noise = jax.tree.map(np.asarray, draw(jnp.uint32(index)))
        noise = {"embedding": noise["embedding"]} | noise["layers"]
        length = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in noise.values()))
        for sigma in sweep.sigmas:
            size = np.float32(sigma / length if sweep.unit == "exact_radius" else sigma * sweep.scale(params))
            for name, (kind, leaf) in flat.items():
                step, old = size * noise[name], np.asarray(leaf).astype(np.float32)
                new = (old + step).astype(leaf.dtype).astype(np.float64)
                steps[sigma][kind].append(np.float64(step).ravel())
                moves[sigma][kind].append((new - old).ravel())
    found = {}
    for leaves in ("all", "matrices", "vectors"):
        kinds = ("matrices", "vectors") if leaves == "all" else (leaves,)
        found[leaves] = []
        for sigma in sweep.sigmas:
            s, d = (np.concatenate([x for kind in kinds for x in of[sigma][kind]]) for of in (steps, moves))
            asked = s != 0
            if not asked.any():
                found[leaves].append([np.nan] * 3)
                continue
            share = d @ s / (s @ s)
            found[leaves].append([share, np.linalg.norm(d - share * s) / np.linalg.norm(s), np.mean(d[asked] == 0)])
    return found


FAMILIES = {
    "gaussian": SWEEP.family,
    "some leaves alone": scaled(SWEEP.family, {"embedding": 2.0, "layers/scale": jnp.asarray([1.0, 0.0, 3.0])}),
    "no vectors": scaled(SWEEP.family, {".*kernel": 1.0}),
}


@pytest.mark.parametrize(
    ("family", "unit"),
    [("gaussian", "exact_radius"), ("some leaves alone", "sigma"), ("no vectors", "rms_radius")],
)
def test_shares_noise_and_unmoved_weights_are_those_of_numpy(family, unit):
    sigmas = SWEEP.sigmas if unit == "sigma" else (0.05, 0.5)
    sweep, params = replace(SWEEP, family=FAMILIES[family], unit=unit, sigmas=sigmas), point()
    found, expected = realised(params, sweep, num_draws=3), by_numpy(params, sweep, 3)
    assert [one.sigma for one in found] == list(sigmas)
    for leaves, rows in expected.items():
        # Sums of float32 over hundreds of numbers; a step's last bit decides of a weight now and then.
        np.testing.assert_allclose([getattr(one, leaves) for one in found], rows, rtol=2e-4, atol=1e-6)


def test_a_draw_in_a_basis_is_measured_as_the_sweep_forms_it():
    params = point()
    moved = {name: leaf for name, leaf in params.items() if name != "count"}
    basis = geometry.random_basis(keys.root(1), moved, rank=6)
    sweep = replace(SWEEP, family=in_basis(basis, block=4, stacked=stacked), sigmas=(1.0,))
    rows = by_numpy(moved, sweep, 2)
    for leaves, expected in rows.items():
        np.testing.assert_allclose(getattr(realised(moved, sweep, num_draws=2)[0], leaves), expected[0], rtol=2e-4)


def test_nothing_is_lost_in_float32():
    params = {name: leaf for name, leaf in point(jnp.float32, jnp.float32).items() if name != "embedding"}
    for one in realised(params, SWEEP):
        for rounding in (one.all, one.matrices, one.vectors):
            np.testing.assert_allclose(rounding.realised_share, 1, atol=1e-5)
            assert rounding.rounding_noise < 1e-4
            assert rounding.unmoved < 1e-3


def test_half_a_last_place_of_bfloat16_at_two_hundredths_is_a_thirtieth_of_a_step_of_a_thousandth():
    random = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(random.uniform(2**-6, 2**-5, (200, 200)), HALF)}
    (one,) = realised(params, Sweep(gaussian(), (1e-3,), 4))
    last_place = 2.0 ** (-6 - 7)  # rounding errors are uniform within half of it
    np.testing.assert_allclose(one.all.rounding_noise, last_place / 12**0.5 / 1e-3, rtol=0.05)
    np.testing.assert_allclose(one.all.realised_share, 1, atol=2e-3)
    assert one.matrices == one.all
    assert np.isnan(one.vectors.unmoved)


def test_a_norm_scale_in_bfloat16_hardly_moves_and_one_in_float32_does():
    points = ({"layers": point(HALF, vectors)["layers"]} for vectors in (HALF, jnp.float32))
    lost, kept = (realised(params, SWEEP)[0] for params in points)
    assert lost.vectors.unmoved > 0.9
    assert lost.vectors.realised_share < 0.6
    assert lost.vectors.rounding_noise > 0.5
    assert kept.vectors.unmoved < 1e-2
    np.testing.assert_allclose(kept.vectors.realised_share, 1, atol=1e-4)
    assert kept.matrices == lost.matrices


def test_the_model_is_never_copied_and_noise_is_there_for_one_layer_at_a_time():
    # In float32, because on a CPU every loop over layers of bfloat16 keeps a copy of them in float32.
    params = {"layers/kernel": jnp.zeros((32, 64, 64))}
    sweep = Sweep(gaussian(stacked=stacked), (1e-3, 1e-2), 8)
    arguments = (False, sweep.family, params, keys.root(0), np.arange(4, dtype=np.uint32), np.float32(sweep.sigmas))
    program = sys.modules[realised.__module__]._sums.lower(*arguments).compile()
    assert program.memory_analysis().temp_size_in_bytes < params["layers/kernel"].nbytes / 3


def test_a_draw_at_least_is_needed():
    with pytest.raises(InvalidInput, match="num_draws must be at least 1; got 0"):
        realised(point(), SWEEP, num_draws=0)


def test_records_name_the_leaves_and_leave_out_what_is_not_there():
    found = realised_records(realised({"w": jnp.ones((4, 4), HALF)}, replace(SWEEP, family=gaussian())))
    assert {r.quantity for r in found} == {"realised_share", "rounding_noise", "unmoved"}
    assert {(r.where["sigma"], r.where["leaves"]) for r in found} == {
        (sigma, leaves) for sigma in SWEEP.sigmas for leaves in ("all", "matrices")
    }
    assert len(found) == 12


def square(params, batch):
    rest = sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(params))
    return rest + batch["x"].sum()


@pytest.mark.parametrize(("dtype", "patterns"), [(HALF, {".*": 1.0}), (jnp.float32, {".*": 1.0}), (HALF, {"b": 1.0})])
def test_a_report_tells_what_rounding_left_where_a_moved_leaf_is_narrow(tmp_path, dtype, patterns):
    params = {"w": jnp.full((8, 6), 0.02, dtype), "b": jnp.full(5, 0.5)}
    batch = {"x": jnp.zeros(1)}
    sweep = Sweep(scaled(gaussian(), patterns), (1e-3, 1e-2), 4, top_k=2)
    result = run_sweep(square, params, batch, sweep, out=tmp_path)
    report, found = report_run(tmp_path, result, square, params, batch, num_probes=2)
    told = dtype == HALF and "b" not in patterns
    shares = records.select(found, "realised_share", leaves="matrices")
    assert [r.where["sigma"] for r in shares] == (list(sweep.sigmas) if told else [])
    assert ("## What rounding left of each step" in report.read_text()) == told
