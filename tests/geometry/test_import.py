"""The geometry stands alone."""

import subprocess
import sys


def printed(code):
    """What a program prints that runs by itself, as a user's does: without the tests' checks of types."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_geometry_pulls_in_nothing_heavy():
    loaded = printed("import sys, lacuna.geometry; print(sorted({name.split('.')[0] for name in sys.modules}))")
    for heavy in ("flax", "optax", "orbax", "transformers", "datasets", "matplotlib", "pyarrow", "rich", "tyro"):
        assert f"'{heavy}'" not in loaded


CARELESS = """
import jax.numpy as jnp
from lacuna import errors, geometry, keys
rows = {"w": jnp.eye(3, 5)}
for call in (
    lambda: geometry.capture(rows, {"w": jnp.ones(5)}),
    lambda: geometry.random_basis(keys.root(0), {"w": jnp.ones(5)}, rank=2.0),
    lambda: geometry.gradient_basis(rows, rank=2.5),
    lambda: geometry.orthonormalise(jnp.arange(4)),
    lambda: geometry.krylov(lambda v: jnp.ones(2), jnp.ones(5), rank=2),
):
    try:
        call()
    except errors.GeometryError as error:
        print(error)
print(geometry.orthonormalise(rows))
"""


def test_careless_calls_end_in_a_sentence_and_a_basis_is_told_in_a_line():
    assert printed(CARELESS).splitlines() == [
        "this kernel takes a basis; got a dict. Try: orthonormalise(rows).",
        "rank must be a whole number, 0 or more; got 2.0.",
        "rank must be a whole number, 0 or more; got 2.5.",
        "a vector has floating leaves only; got the only leaf of dtype int32. "
        "Try: leave counters and other integer leaves out of the tree.",
        "krylov, for a vector and its product, needs two trees with the same leaves; got the only leaf with shape (5,) "
        "in the first and shape (2,) in the second. "
        "Try: build both on the same parameters (was one made with adapters?).",
        "Basis(orthonormalise, rank 3, status 0, 15 numbers)",
    ]
