"""Every kernel on every awkward input: right to float64, refused, or said so in the status; never a plausible lie.

A case makes `rows` and a `delta`; a kernel has an oracle that sees the same numbers in float64. Scalar leaves,
empty leaves and a P that nothing divides are in every case: they are in the tree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import problems
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lacuna import geometry
from lacuna.errors import GeometryError
from lacuna.geometry import Status

EPS = np.finfo(np.float32).eps
OTHER = geometry.orthonormalise(problems.odd_rows(3, seed=20))


def tiny(k, seed=0):
    """Rows on a tree of three parameters."""
    rng = np.random.default_rng(seed)
    return {"scalar": jnp.asarray(rng.normal(size=k), jnp.float32), "two": jnp.asarray(rng.normal(size=(k, 2)), "f4")}


def placed(tree, leading):
    """Leaves sharded over four devices, each along another axis."""
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def put(name, x):
        axis = {"wide": 0, "tall": 1}[name] + leading
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[None] * axis, "model")))

    return {name: put(name, x) for name, x in tree.items()}


def sharded(k, seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=(k, 8, 12)), jnp.float32) for name in ("wide", "tall")}


def one(rows):
    return jax.tree.map(lambda x: x[0], rows)


def repeated(rows):
    return jax.tree.map(lambda x: x.at[2].set(x[0]).at[3].set(x[1] - 2 * x[0]), rows)


def times(tree, scale):
    return jax.tree.map(lambda x: x * jnp.float32(scale), tree)


ROWS, DELTA = problems.odd_rows(4), problems.odd_vector(seed=7)
ZEROS = jax.tree.map(jnp.zeros_like, ROWS)
INSIDE = jax.tree.map(lambda x: x[0] - 3 * x[2], ROWS)

CASES = {
    "in general position": (ROWS, DELTA),
    "zero vector": (ROWS, one(ZEROS)),
    "zero rows": (ZEROS, DELTA),
    "all zero": (ZEROS, one(ZEROS)),
    "one zero row": (jax.tree.map(lambda x: x.at[1].set(0), ROWS), DELTA),
    "repeated rows": (repeated(ROWS), DELTA),
    "vector in the span": (ROWS, INSIDE),
    "scale 1e-20": (times(ROWS, 1e-20), times(DELTA, 1e-20)),
    "scale 1e20": (times(ROWS, 1e20), times(DELTA, 1e20)),
    "rows of mixed scale": (jax.tree.map(lambda x: x.at[1].multiply(1e-12), ROWS), DELTA),
    "bfloat16": (problems.odd_rows(4, dtype=jnp.bfloat16), problems.odd_vector(seed=7, dtype=jnp.bfloat16)),
    "float16": (problems.odd_rows(4, dtype=jnp.float16), problems.odd_vector(seed=7, dtype=jnp.float16)),
    "more rows than parameters": (tiny(5), one(tiny(1, seed=3))),
    "no rows": (jax.tree.map(lambda x: x[:0], ROWS), DELTA),
    "one scalar": (jnp.asarray([2.0, -3.0]), jnp.float32(5)),
    "sharded on different axes": (placed(sharded(4, 0), 1), placed(one(sharded(1, 5)), 0)),
}


def span(matrix):
    """float64 orthonormal rows, in order; a row that lies in the span of those before is left out at any scale."""
    sizes = np.linalg.norm(matrix, axis=1, keepdims=True)
    return oracles.gram_schmidt(np.divide(matrix, sizes, out=np.zeros_like(matrix), where=sizes > 0))


def assert_basis(basis, q):
    """The basis is orthonormal and spans the rows of q; what is beyond its rank is zero."""
    found = oracles.flat_rows(basis.rows)
    rank = int(basis.rank)
    assert rank == len(q)
    assert not found[rank:].any()
    assert np.linalg.norm(found[:rank] @ found[:rank].T - np.eye(rank), 2) < 10 * EPS
    assert np.linalg.norm(found[:rank] - found[:rank] @ q.T @ q, 2) < 1e-5
    assert bool(basis.status & Status.DEPENDENT) == (rank < basis.capacity)


def assert_spanned(kernel):
    """The kernel's basis spans all rows."""

    def check(rows, delta):
        matrix = oracles.flat_rows(rows)
        basis = kernel(rows)
        assert_basis(basis, span(matrix))
        assert bool(basis.status & Status.ZERO) == (not np.abs(matrix).sum(1).all())

    return check


def leading(matrix, rank):
    """Leading right singular directions."""
    matrix = matrix / max(np.abs(matrix).max(initial=0), 1e-300)
    _, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return vt[:rank][s[:rank] > 1e-5 * s[:1]] if s.any() else vt[:0]


def check_gradient_basis(rows, delta):
    matrix = oracles.flat_rows(rows)
    rank = min(2, len(matrix))
    assert_basis(geometry.gradient_basis(rows, rank=rank), leading(matrix, rank))


def check_append(rows, delta):
    q = span(oracles.flat_rows(rows))
    basis = geometry.orthonormalise(jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), rows))
    grown = geometry.append(basis, delta)
    d = oracles.flat(delta)
    new = span(np.concatenate([q, d[None]]))
    room = len(q) < basis.capacity
    np.testing.assert_equal(int(grown.basis.rank), len(new) if room else len(q))
    if room:
        np.testing.assert_allclose(
            np.asarray(grown.coefficients, np.float64) @ oracles.flat_rows(grown.basis.rows),
            d if len(new) > len(q) else (d @ q.T) @ q,
            atol=5 * EPS * max(np.linalg.norm(d), 1e-30),
        )
    assert bool(grown.status & Status.ZERO) == (not d.any())


def mass(q, d):
    return np.sum((q @ d) ** 2) / (d @ d) if d.any() else 0.0


def check_capture(rows, delta):
    q, d = span(oracles.flat_rows(rows)), oracles.flat(delta)
    found = geometry.capture(geometry.orthonormalise(rows), delta)
    np.testing.assert_allclose(found.mass, mass(q, d), atol=2e-6)
    np.testing.assert_allclose(found.norm, np.sqrt(mass(q, d)), atol=2e-3)
    np.testing.assert_allclose(found.lost, 1 - mass(q, d) if d.any() else 0, atol=2e-6)
    assert found.status == (0 if d.any() else Status.ZERO)


def check_project(rows, delta):
    q, d = span(oracles.flat_rows(rows)), oracles.flat(delta)
    found = oracles.flat(geometry.project(geometry.orthonormalise(rows), delta))
    np.testing.assert_allclose(found, (d @ q.T) @ q, atol=2e-6 * max(np.linalg.norm(d), 1e-30))


def check_signal(rows, delta):
    q, d = span(oracles.flat_rows(rows)), oracles.flat(delta)
    found = geometry.signal(geometry.orthonormalise(rows), delta)
    inside = np.linalg.norm(q @ d)
    np.testing.assert_allclose(found.norm, inside, rtol=1e-5, atol=1e-30)
    with np.errstate(over="ignore"):
        expected = np.float32(inside**2), np.float32(inside**2 / max(1, len(q)))
    np.testing.assert_allclose((found.mass, found.density), expected, rtol=1e-4, atol=1e-37)


def check_prefix_captures(rows, delta):
    matrix, d = oracles.flat_rows(rows), oracles.flat(delta)
    expected = [mass(span(matrix[: j + 1]), d) for j in range(len(matrix))]
    np.testing.assert_allclose(geometry.prefix_captures(rows, delta), expected, atol=2e-6)


def check_remainder_captures(rows, delta):
    matrix, d = oracles.flat_rows(rows), oracles.flat(delta)
    left = [d - matrix[: j + 1].sum(0) for j in range(len(matrix))]
    expected = [mass(span(matrix[: j + 1]), rest) for j, rest in enumerate(left)]
    np.testing.assert_allclose(geometry.remainder_captures(rows, delta), expected, atol=1e-5)


def check_spectrum(rows, delta):
    matrix = oracles.flat_rows(rows)
    found = geometry.spectrum(rows)
    if not len(matrix):
        assert found.singular_values.shape == (0,)
        return
    s = np.linalg.svd(matrix, compute_uv=False)
    s = np.concatenate([s, np.zeros(len(matrix) - len(s))])
    np.testing.assert_allclose(found.singular_values, s, atol=max(64 * EPS * s[0], 1e-40))
    if not s.any():
        assert found.participation_ratio == found.effective_rank == found.stable_rank == 0
        return
    p = s**2 / np.sum(s**2)
    np.testing.assert_allclose(found.participation_ratio, 1 / np.sum(p**2), rtol=1e-5)
    np.testing.assert_allclose(found.effective_rank, np.exp(-np.sum(p * np.log(np.maximum(p, 1e-300)))), rtol=1e-4)
    np.testing.assert_allclose(found.stable_rank, np.sum(s**2) / s[0] ** 2, rtol=1e-5)


def check_gram(rows, delta):
    matrix = oracles.flat_rows(rows)
    with np.errstate(over="ignore"):
        expected = (matrix @ matrix.T).astype(np.float32)
    size = np.abs(np.diag(expected)).max(initial=0)
    found = np.asarray(geometry.gram(rows))
    # Beyond the range of float32 a product is infinite or zero, as the docstring says.
    np.testing.assert_array_equal(np.isfinite(found).all(), np.isfinite(size))
    if np.isfinite(size):
        np.testing.assert_allclose(found, expected, atol=max(3e-6 * size, 1e-37))


def check_angles(rows, delta):
    basis = geometry.orthonormalise(rows)
    first = basis if jax.tree.structure(rows) != jax.tree.structure(ROWS) else OTHER
    q, r = span(oracles.flat_rows(rows)), oracles.flat_rows(first.rows)[: int(first.rank)]
    cosines = np.linalg.svd(r @ q.T, compute_uv=False) if len(q) else np.zeros(0)
    moved = geometry.drift(first, basis)
    np.testing.assert_array_equal(moved.angles, geometry.principal_angles(first, basis))
    told = np.asarray(moved.angles)
    assert np.isnan(told[len(cosines) :]).all()
    np.testing.assert_allclose(np.cos(told[: len(cosines)].astype(np.float64)), np.minimum(cosines, 1), atol=2e-6)
    if len(q):
        np.testing.assert_allclose(moved.overlap, np.sum(cosines**2) / min(len(q), len(r)), atol=2e-6)
        size = q.shape[1]
        np.testing.assert_allclose(moved.random_overlap, max(len(q), len(r)) / size, rtol=1e-6)
    else:
        assert np.isnan(moved.overlap)


def check_blocks(rows, delta):
    basis = geometry.block_orthonormalise(rows)
    blocks = [
        (oracles.flat_rows(r), oracles.flat(d)) for r, d in zip(*map(jax.tree.leaves, (rows, delta)), strict=True)
    ]
    spans = [span(matrix) for matrix, _ in blocks]
    for leaf, rank, q in zip(*map(jax.tree.leaves, (basis.rows, basis.ranks)), spans, strict=True):
        found = oracles.flat_rows(leaf)
        assert int(rank) == len(q)
        np.testing.assert_allclose(found.T @ found, q.T @ q, atol=1e-5)
    found = geometry.block_capture(basis, delta)
    total = sum(d @ d for _, d in blocks)
    inside = sum(np.sum((q @ d) ** 2) for q, (_, d) in zip(spans, blocks, strict=True))
    level = sum(d @ d * len(q) / max(1, d.size) for q, (_, d) in zip(spans, blocks, strict=True))
    expected = (inside / total, level / total) if total else (0, 0)
    np.testing.assert_allclose((found.mass, found.random_mass), expected, atol=2e-6)
    assert found.rank == sum(map(len, spans))


def check_random(rows, delta):
    rank = max(1, jax.tree.leaves(rows)[0].shape[0])
    size = oracles.flat(delta).size
    basis = geometry.random_basis(jax.random.key(1), delta, rank=rank)
    q = oracles.flat_rows(basis.rows)
    assert_basis(basis, span(q[: int(basis.rank)]))
    assert basis.rank == min(rank, size)
    blocks = geometry.random_block_basis(jax.random.key(1), delta, rank=rank)
    for leaf, many, like in zip(*map(jax.tree.leaves, (blocks.rows, blocks.ranks, delta)), strict=True):
        assert int(many) == min(rank, like.size)
        found = oracles.flat_rows(leaf)[: int(many)]
        np.testing.assert_allclose(found @ found.T, np.eye(int(many)), atol=10 * EPS)


def check_functional_recovery(rows, delta):
    start = jax.tree.map(jnp.zeros_like, delta)

    def loss(point):
        left = jax.tree.map(lambda p, d: jnp.sum((p - d).astype(jnp.float32) ** 2), point, delta)
        return sum(jax.tree.leaves(left))

    found = geometry.functional_recovery(loss, start, delta, geometry.orthonormalise(rows))
    q, d = span(oracles.flat_rows(rows)), oracles.flat(delta)
    if not 1e-15 < np.linalg.norm(d) < 1e15:  # no loss to recover, or none that float32 holds
        assert np.isnan(found)
    else:
        np.testing.assert_allclose(found, mass(q, d), atol=2e-2 if delta_is_narrow(delta) else 1e-5)


def delta_is_narrow(delta):
    return any(x.dtype.itemsize < 4 for x in jax.tree.leaves(delta))


def check_sketch(rows, delta):
    sketch = geometry.Sketch(jax.random.key(3), 64)
    both = jax.tree.map(lambda x: x.astype(jnp.float32) * 3, delta)
    d = oracles.flat(delta)
    found = np.asarray(sketch(delta), np.float64)
    np.testing.assert_allclose(sketch(both), 3 * found, rtol=1e-5, atol=1e-5 * np.linalg.norm(d))
    assert found.any() == d.any()
    assert abs(np.abs(found).sum()) <= np.abs(d).sum() * (1 + 1e-5)


KERNELS = {
    "orthonormalise": assert_spanned(geometry.orthonormalise),
    "task_vector_basis": assert_spanned(geometry.task_vector_basis),
    "trajectory_prefix": assert_spanned(
        lambda rows: geometry.trajectory_prefix(rows, rank=jax.tree.leaves(rows)[0].shape[0])
    ),
    "gradient_basis": check_gradient_basis,
    "append": check_append,
    "capture": check_capture,
    "project": check_project,
    "signal": check_signal,
    "prefix_captures": check_prefix_captures,
    "remainder_captures": check_remainder_captures,
    "spectrum": check_spectrum,
    "gram": check_gram,
    "angles, overlap and drift": check_angles,
    "block bases": check_blocks,
    "random bases": check_random,
    "functional_recovery": check_functional_recovery,
    "sketch": check_sketch,
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_on_every_case(case, kernel):
    KERNELS[kernel](*CASES[case])


ROW_KERNELS = {
    "orthonormalise": geometry.orthonormalise,
    "task_vector_basis": geometry.task_vector_basis,
    "trajectory_prefix": lambda rows: geometry.trajectory_prefix(rows, rank=3),
    "gradient_basis": lambda rows: geometry.gradient_basis(rows, rank=2),
    "block_orthonormalise": geometry.block_orthonormalise,
    "spectrum": geometry.spectrum,
}
VECTOR_KERNELS = {
    "append": geometry.append,
    "capture": geometry.capture,
    "signal": geometry.signal,
    "block_capture": lambda basis, d: geometry.block_capture(geometry.block_orthonormalise(ROWS), d),
}
SHARE_KERNELS = {
    "prefix_captures": lambda rows, d: geometry.prefix_captures(rows, d),
    "remainder_captures": lambda rows, d: geometry.remainder_captures(rows, d),
    "project": lambda rows, d: geometry.project(geometry.orthonormalise(rows), d),
    "overlap": lambda rows, d: geometry.overlap(geometry.orthonormalise(rows), OTHER),
    "angles": lambda rows, d: geometry.principal_angles(geometry.orthonormalise(rows), OTHER),
}


def spoiled(tree, bad):
    return tree | {"stacked": tree["stacked"].at[..., 2, 1, 0].set(bad)}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kernel", [*ROW_KERNELS, *VECTOR_KERNELS])
def test_what_is_not_finite_is_named_or_flagged(kernel, bad):
    if kernel in ROW_KERNELS:
        function, arguments = ROW_KERNELS[kernel], (spoiled(ROWS, bad),)
    else:
        basis = geometry.orthonormalise(jax.tree.map(lambda x: jnp.concatenate([x, 0 * x[:1]]), ROWS))
        function, arguments = VECTOR_KERNELS[kernel], (basis, spoiled(DELTA, bad))
    with pytest.raises(GeometryError, match=r"needs finite numbers; got [14] that are not in `.*stacked`"):
        function(*arguments)
    found = jax.jit(function)(*arguments)
    assert found.status & Status.NOT_FINITE
    if kernel in ROW_KERNELS and kernel not in ("block_orthonormalise", "spectrum"):
        assert found.rank == 0
        assert not oracles.flat_rows(found.rows).any()
    for share in ("mass", "participation_ratio", "density"):
        assert np.isnan(getattr(found, share, np.nan))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kernel", SHARE_KERNELS)
def test_a_number_made_of_what_is_not_finite_is_none(kernel, bad):
    found = jax.jit(SHARE_KERNELS[kernel])(spoiled(ROWS, bad), DELTA)
    assert not np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(found) if x.size])).any()


WHOLE = {**ROWS, "count": jnp.zeros((4, 2), jnp.int32)}
WHOLE_DELTA = {**DELTA, "count": jnp.zeros(2, jnp.int32)}


@pytest.mark.parametrize(
    "call",
    [
        *(lambda f=f: f(WHOLE) for f in ROW_KERNELS.values()),
        *(lambda f=f: f(geometry.orthonormalise(ROWS), WHOLE_DELTA) for f in VECTOR_KERNELS.values()),
        *(lambda f=f: f(WHOLE, WHOLE_DELTA) for f in list(SHARE_KERNELS.values())[:2]),
        lambda: geometry.gram(WHOLE),
        lambda: geometry.krylov(lambda d: d, WHOLE_DELTA, rank=2),
        lambda: geometry.random_basis(jax.random.key(0), WHOLE_DELTA, rank=2),
        lambda: geometry.random_block_basis(jax.random.key(0), WHOLE_DELTA, rank=2),
        lambda: geometry.empty(WHOLE_DELTA, capacity=2),
        lambda: geometry.Sketch(jax.random.key(0), 4)(WHOLE_DELTA),
    ],
)
def test_an_integer_leaf_is_refused_by_name(call):
    with pytest.raises(GeometryError, match="floating leaves only; got `count` of dtype int32"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometry.empty({}, capacity=2), "at least one leaf; got an empty tree"),
        (lambda: geometry.krylov(lambda d: d, {}, rank=2), "at least one leaf; got an empty tree"),
        (lambda: geometry.Sketch(jax.random.key(0), 4)({}), "at least one leaf"),
        (lambda: geometry.Sketch(jax.random.key(0), 0)(DELTA), "size of at least 1; got 0"),
        (lambda: geometry.krylov(lambda d: d, DELTA, rank=2, rounding=1.0), r"rounding must be in \[0, 1\); got 1.0"),
        (
            lambda: geometry.block_orthonormalise(ROWS, stacked=lambda name: name == "b/0"),
            r"needs an axis of layers; got `b/0` of shape \(\)",
        ),
        (
            lambda: geometry.random_block_basis(jax.random.key(0), DELTA, rank=1, stacked=lambda name: name == "b/0"),
            r"needs an axis of layers; got `b/0` of shape \(\)",
        ),
    ],
)
def test_what_is_no_vector_is_refused(call, message):
    with pytest.raises(GeometryError, match=message):
        call()


@pytest.mark.parametrize("kind", ["lanczos", "arnoldi"])
@pytest.mark.parametrize("case", ["float32", "bfloat16", "float16", "scale 1e-20", "scale 1e20", "sharded"])
def test_a_krylov_space_on_awkward_trees(case, kind):
    """A diagonal operator, so that float64 knows the space; scalar and empty leaves are in the tree."""
    if case == "sharded":
        start, diagonal = (placed(one(sharded(1, seed)), 0) for seed in (5, 6))
    else:
        dtype = getattr(jnp, case, jnp.float32)
        scale = float(case.removeprefix("scale ")) if case.startswith("scale") else 1.0
        start = times(problems.odd_vector(seed=7), scale)
        start = jax.tree.map(lambda x: x.astype(dtype), start)
        diagonal = problems.odd_vector(seed=8)
    operator = jax.tree_util.Partial(lambda d, v: jax.tree.map(jnp.multiply, d, v), diagonal)
    basis, info = geometry.krylov(operator, start, rank=5, kind=kind)
    g, values = oracles.flat(start), oracles.flat(diagonal)
    q = oracles.krylov_rows(np.diag(values), g / np.linalg.norm(g), 5)
    assert_basis(basis, q)
    assert basis.status == 0
    np.testing.assert_allclose(
        np.linalg.eigvals(np.asarray(info.matrix, np.float64)).real.max(),
        np.linalg.eigvalsh(q @ np.diag(values) @ q.T).max(),
        rtol=1e-5,
    )
