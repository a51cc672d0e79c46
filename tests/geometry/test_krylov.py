"""Krylov bases against float64, and every way in which a Krylov space ends."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from lacuna import geometry
from lacuna.derivatives import hvp
from lacuna.errors import GeometryError
from lacuna.geometry import Status

EPS = np.finfo(np.float32).eps
SHAPES = {"w": (10, 8), "b": [(20,), ()]}  # P = 101


def tree(flat):
    """A vector of 101 numbers on the tree, traceable."""
    return {"w": flat[:80].reshape(10, 8), "b": [flat[80:100], flat[100]]}


def ravel(t):
    return jnp.concatenate([t["w"].ravel(), t["b"][0], t["b"][1][None]])


def operator(matrix):
    matrix = jnp.asarray(matrix, jnp.float32)
    return lambda t: tree(jnp.matmul(matrix, ravel(t), precision="highest"))


def symmetric(eigenvalues, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(101, 101)))[0]
    return (q * eigenvalues) @ q.T, q


def start(seed=1):
    return tree(jnp.asarray(np.random.default_rng(seed).normal(size=101), jnp.float32))


def matrix_of(basis):
    """Rows in the order of `ravel`."""
    return np.asarray(jax.vmap(ravel)(basis.rows), np.float64)


def check_relation(a, basis, info):
    """Orthonormal up to the rank, zero beyond, and `A Q^T = Q^T M + residual e^T`."""
    q, rank = matrix_of(basis), int(basis.rank)
    assert not q[rank:].any()
    q, m = q[:rank], np.asarray(info.matrix, np.float64)[:rank, :rank]
    assert np.linalg.norm(q @ q.T - np.eye(rank), 2) < 10 * EPS
    rest = a @ q.T - q.T @ m
    rest[:, -1] -= np.asarray(ravel(info.residual), np.float64)
    assert np.linalg.norm(rest, 2) < 20 * EPS * np.linalg.norm(a, 2)
    np.testing.assert_allclose(info.residual_norm, np.linalg.norm(ravel(info.residual)), rtol=1e-5, atol=1e-30)
    assert not np.asarray(info.matrix)[rank:].any()
    assert not np.asarray(info.matrix)[:, rank:].any()


INDEFINITE = np.concatenate([np.linspace(-3, 5, 99), [40, -20]])


@pytest.mark.parametrize("kind", ["lanczos", "arnoldi"])
@pytest.mark.parametrize("rank", [1, 2, 12])
def test_a_symmetric_operator(kind, rank):
    a, _ = symmetric(INDEFINITE)
    basis, info = geometry.krylov(operator(a), start(), rank=rank, kind=kind)
    assert (int(basis.rank), int(basis.status), basis.method) == (rank, 0, kind)
    check_relation(a, basis, info)
    known = oracles.krylov_rows(a, np.asarray(ravel(start()), np.float64), rank)
    signs = np.sign(np.sum(known * matrix_of(basis), axis=1))
    np.testing.assert_allclose(matrix_of(basis), signs[:, None] * known, atol=2e-4)
    assert info.num_products == rank


def test_ritz_values_are_those_of_float64_and_negative_ones_are_kept():
    a, _ = symmetric(INDEFINITE)
    for kind in ("lanczos", "arnoldi"):
        _, info = geometry.krylov(operator(a), start(), rank=24, kind=kind)
        ritz = np.sort(np.linalg.eigvals(np.asarray(info.matrix, np.float64)).real)
        np.testing.assert_allclose(ritz[[0, -1]], [-20, 40], rtol=1e-5)
        q = oracles.krylov_rows(a, np.asarray(ravel(start()), np.float64), 24)
        np.testing.assert_allclose(ritz, np.linalg.eigvalsh(q @ a @ q.T), atol=40 * 3e-5)


def test_a_general_operator_takes_arnoldi_and_lanczos_says_so():
    a = np.random.default_rng(3).normal(size=(101, 101)) / 10
    basis, info = geometry.krylov(operator(a), start(), rank=10, kind="arnoldi")
    assert basis.status == 0
    check_relation(a, basis, info)
    basis, info = geometry.krylov(operator(a), start(), rank=10)
    assert basis.status & Status.NONSYMMETRIC
    assert info.symmetry_defect > 0.1


@pytest.mark.parametrize("kind", ["lanczos", "arnoldi"])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_scales_that_square_out_of_float32(kind, scale):
    a, _ = symmetric(INDEFINITE)
    far = jax.tree.map(lambda x: x * jnp.float32(scale), start())
    basis, info = geometry.krylov(
        lambda t: jax.tree.map(lambda x: x * jnp.float32(scale), operator(a)(t)), far, rank=8, kind=kind
    )
    assert (int(basis.rank), int(basis.status)) == (8, 0)
    near, known = geometry.krylov(operator(a), start(), rank=8, kind=kind)
    np.testing.assert_allclose(matrix_of(basis), matrix_of(near), atol=1e-4)
    np.testing.assert_allclose(np.asarray(info.matrix) / scale, known.matrix, atol=1e-3)


@pytest.mark.parametrize("kind", ["lanczos", "arnoldi"])
@pytest.mark.parametrize(
    ("eigenvalues", "rank"),
    [
        (np.ones(101), 1),
        (np.r_[3.0, 2, 1, np.zeros(98)], 4),
        (np.r_[np.full(50, 2.0), np.full(51, -1.0)], 2),
        (np.zeros(101), 1),
    ],
    ids=["identity", "rank 3", "two eigenvalues", "zero"],
)
def test_an_exhausted_space_is_exact_and_says_so(kind, eigenvalues, rank):
    a, _ = symmetric(eigenvalues)
    a = a.astype(np.float32).astype(np.float64)
    basis, info = geometry.krylov(operator(a), start(), rank=8, kind=kind)
    assert (int(basis.rank), int(basis.status)) == (rank, Status.INVARIANT)
    assert info.residual_norm <= 64 * EPS * max(np.linalg.norm(a, 2), EPS)
    q = matrix_of(basis)[:rank]
    assert np.linalg.norm(a @ q.T - q.T @ (q @ a @ q.T), 2) < 100 * EPS * max(np.linalg.norm(a, 2), EPS)


@pytest.mark.parametrize("kind", ["lanczos", "arnoldi"])
def test_an_eigenvector_spans_its_own_space(kind):
    a, q = symmetric(INDEFINITE)
    basis, info = geometry.krylov(operator(a), tree(jnp.asarray(q[:, 7], jnp.float32)), rank=5, kind=kind)
    assert (int(basis.rank), int(basis.status)) == (1, Status.INVARIANT)
    np.testing.assert_allclose(info.matrix[0, 0], INDEFINITE[7], rtol=1e-4)


@pytest.mark.parametrize("kind", ["lanczos", "arnoldi"])
def test_more_rows_than_dimensions(kind):
    basis, info = geometry.krylov(lambda t: {"x": jnp.arange(1.0, 5.0) * t["x"]}, {"x": jnp.ones(4)}, rank=9, kind=kind)
    assert (int(basis.rank), int(basis.status)) == (4, Status.INVARIANT)
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvals(np.asarray(info.matrix)[:4, :4]).real), [1, 2, 3, 4], rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["lanczos", "arnoldi"])
def test_a_zero_start_and_no_rows_at_all(kind):
    a, _ = symmetric(INDEFINITE)
    basis, info = geometry.krylov(operator(a), jax.tree.map(jnp.zeros_like, start()), rank=3, kind=kind)
    assert (int(basis.rank), int(basis.status), int(info.num_products)) == (0, Status.ZERO, 0)
    assert not matrix_of(basis).any()
    basis, info = geometry.krylov(operator(a), start(), rank=0, kind=kind)
    assert (int(basis.rank), info.matrix.shape) == (0, (0, 0))


@pytest.mark.parametrize("kind", ["lanczos", "arnoldi"])
@pytest.mark.parametrize("step", [0, 3])
def test_a_product_that_is_not_finite_ends_the_space_where_it_was(kind, step):
    """The rows whose products are known stay; nothing that came of the bad product does."""
    a, _ = symmetric(INDEFINITE)
    good, known = geometry.krylov(operator(a), start(), rank=8, kind=kind)
    fatal = jnp.asarray(matrix_of(good)[step], jnp.float32)

    def breaks(t):
        there = jnp.abs(jnp.vdot(ravel(t), fatal)) > 0.9
        return jax.tree.map(lambda x: jnp.where(there, jnp.nan, x), operator(a)(t))

    with pytest.raises(GeometryError, match="an operator that returned some that are not"):
        geometry.krylov(breaks, start(), rank=8, kind=kind)
    basis, info = jax.jit(lambda s: geometry.krylov(breaks, s, rank=8, kind=kind))(start())
    assert basis.status & Status.NOT_FINITE
    assert basis.rank == step
    assert not matrix_of(basis)[step:].any()
    assert np.all(np.isfinite(matrix_of(basis)))
    np.testing.assert_allclose(matrix_of(basis)[:step], matrix_of(good)[:step], atol=1e-6)
    np.testing.assert_allclose(np.asarray(info.matrix)[:step, :step], np.asarray(known.matrix)[:step, :step], atol=1e-4)


def test_a_start_that_is_not_finite_is_named():
    a, _ = symmetric(INDEFINITE)
    bad = start()
    bad["b"][0] = bad["b"][0].at[:2].set(jnp.nan)
    with pytest.raises(GeometryError, match="krylov needs finite numbers; got 2 that are not in `b/0`"):
        geometry.krylov(operator(a), bad, rank=3)
    basis, _ = jax.jit(lambda s: geometry.krylov(operator(a), s, rank=3))(bad)
    assert (int(basis.rank), int(basis.status)) == (0, Status.NOT_FINITE)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": -1}, "rank must be a whole number, 0 or more; got -1"),
        ({"start": {"x": jnp.arange(3)}}, "`x` of dtype int32"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, sentence):
    with pytest.raises(GeometryError, match=sentence):
        geometry.krylov(lambda t: t, **({"rank": 2, "start": start()} | options))


def test_an_operator_that_leaves_the_tree_is_refused_by_leaf():
    with pytest.raises(GeometryError, match=r"`b/0` with shape \(20,\) in the first and shape \(2,\) in the second"):
        geometry.krylov(lambda t: {**t, "b": [t["b"][0][:2], t["b"][1]]}, start(), rank=2)


def test_many_spaces_at_once_are_those_of_each():
    a, _ = symmetric(INDEFINITE)
    b, _ = symmetric(np.r_[3.0, 2, 1, np.zeros(98)])
    matrices = jnp.asarray(np.stack([a, b]), jnp.float32)

    def one(matrix, s):
        return geometry.krylov(operator(matrix), s, rank=6)

    starts = jax.tree.map(lambda *x: jnp.stack(x), start(2), start(1))
    bases, infos = jax.jit(jax.vmap(one))(matrices, starts)
    np.testing.assert_array_equal(bases.rank, [6, 4])
    np.testing.assert_array_equal(bases.status, [0, Status.INVARIANT])
    for i, matrix in enumerate((a, b)):
        _, info = geometry.krylov(operator(matrix), start(2 - i), rank=6)
        np.testing.assert_allclose(infos.matrix[i], info.matrix, atol=1e-3)


def test_an_operator_that_changed_since_the_last_call_is_asked_again():
    held = [jnp.arange(1.0, 6.0)]

    def scale(v):
        return held[0] * v

    (first, _), (second, _) = (
        np.linalg.eigvalsh(geometry.krylov(scale, jnp.ones(5), rank=2)[1].matrix) for _ in range(2)
    )
    held[0] = 10 * held[0]
    third = np.linalg.eigvalsh(geometry.krylov(scale, jnp.ones(5), rank=2)[1].matrix)
    assert first == second
    np.testing.assert_allclose(third[0], 10 * first, rtol=1e-5)


def test_a_small_space_beside_an_outlier_says_how_much_is_left():
    scales = jnp.concatenate([jnp.array([1e5]), jnp.linspace(0.1, 1, 199)])
    basis, info = geometry.krylov(lambda v: scales * v, jnp.ones(200), rank=20)
    assert basis.status == Status.INVARIANT
    q = np.asarray(basis.rows, np.float64)[: int(basis.rank)]
    product = np.asarray(scales, np.float64) * q[-1]
    np.testing.assert_allclose(info.residual_norm, np.linalg.norm(product - q.T @ (q @ product)), rtol=0.2)


def test_a_complex_operator_is_refused():
    with pytest.raises(GeometryError, match="complex64"):
        geometry.krylov(lambda v: v * jnp.exp(1j * jnp.arange(5.0)), jnp.ones(5), rank=3)


def test_the_hessian_of_a_loss_is_an_operator_and_another_point_needs_no_compilation():
    def loss(params, batch):
        return jnp.sum(jnp.tanh(params["x"] * batch) ** 2) + jnp.sum(params["x"]) ** 2

    batch = jnp.linspace(0.5, 2, 30)
    with jax.log_compiles(False):
        for shift in (0.1, 0.2):
            params = {"x": jnp.linspace(-1, 1, 30) + shift}
            dense = np.asarray(jax.hessian(lambda x, p=params: loss({"x": x}, batch))(params["x"]), np.float64)
            _, info = geometry.krylov(hvp(loss, params, batch), {"x": jnp.ones(30)}, rank=20)
            top = np.linalg.eigvalsh(np.asarray(info.matrix, np.float64))[-1]
            np.testing.assert_allclose(top, np.linalg.eigvalsh(dense)[-1], rtol=1e-5)


def times_stored(matrix, delta):
    """A product in the matrix's own precision, returned in float32."""
    return {"x": (matrix @ delta["x"].astype(matrix.dtype)).astype(jnp.float32)}


@pytest.mark.parametrize("seed", range(3))
def test_an_operator_in_bfloat16_is_judged_by_its_own_rounding(seed):
    rng = np.random.default_rng(seed)
    start = {"x": jnp.asarray(rng.normal(size=200), jnp.float32)}
    inside = np.linalg.qr(rng.normal(size=(200, 3)))[0]
    projector, full = inside @ inside.T, rng.normal(size=(200, 200)) / 40

    def stored(matrix):
        return jnp.asarray((matrix + matrix.T) / 2, jnp.bfloat16)

    known = jax.tree_util.Partial(times_stored, stored(projector))
    basis, info = geometry.krylov(known, start, rank=6)
    assert (int(basis.rank), int(basis.status)) == (2, Status.INVARIANT)
    assert 0 < info.residual_norm < 0.02
    hidden = stored(projector)
    told, _ = geometry.krylov(lambda d: times_stored(hidden, d), start, rank=6, rounding=2**-7)
    assert (int(told.rank), int(told.status)) == (2, Status.INVARIANT)
    untold, _ = geometry.krylov(lambda d: times_stored(hidden, d), start, rank=6)
    assert untold.rank > 2  # rounding that passes for directions: what the argument is for
    whole, info = geometry.krylov(jax.tree_util.Partial(times_stored, stored(full)), start, rank=6)
    assert (int(whole.rank), int(whole.status)) == (6, 0)
    assert info.symmetry_defect > 0
