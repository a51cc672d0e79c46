"""What cannot be asked is refused in one sentence, and nothing on disk is touched."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import problems
import pytest

from lacuna.errors import InvalidInput, LacunaError, NotFinite, RunMismatch
from lacuna.search import Sweep, gaussian, run_sweep

SWEEP = Sweep(gaussian(), (0.1, 0.4), 16, seed=5, top_k=7)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_sentence(error: LacunaError, *words: str) -> None:
    """One line that ends in a full stop and says what was asked and what came."""
    sentence = str(error)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert not sentence.endswith("..")
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sigmas", ()),
        *[("sigmas", (bad,)) for bad in (0.0, -0.1, math.nan, math.inf, 1e-50, 1e39)],
        *[("sigmas", bad) for bad in ((0.4, 0.1), (0.1, 0.1), (0.1, 0.1 + 1e-12), (0.1, math.nan))],
        ("num_candidates", 0),
        ("num_candidates", 2**32 + 1),
        ("top_k", 0),
        ("top_k", 65),
        ("chunk", 0),
        ("width", 0),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_a_field_outside_its_domain_is_refused_by_name(field, value):
    with pytest.raises(InvalidInput) as raised:
        dataclasses.replace(SWEEP, **{field: value})
    check_sentence(raised.value, field, f"got {value}")


def test_the_largest_values_are_allowed():
    dataclasses.replace(SWEEP, num_candidates=2**32, seed=2**32 - 1, top_k=64)


@pytest.mark.parametrize(
    "shape",
    [lambda p, b: p["w"], lambda p, b: (p["w"][0], 0.0), lambda p, b: jnp.argmax(p["w"]), lambda p, b: {}],
    ids=["vector", "pair", "integer", "nothing"],
)
def test_a_loss_that_is_not_one_number_is_refused(shape):
    _, params, batch = problems.small()
    with pytest.raises(InvalidInput) as raised:
        run_sweep(shape, params, batch, SWEEP)
    check_sentence(raised.value, "one floating-point scalar", "got")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_base_point_without_a_finite_loss_is_refused_and_nothing_is_written(tmp_path, value):
    _, params, batch = problems.small()
    out = tmp_path / "run"
    with pytest.raises(NotFinite) as raised:
        run_sweep(lambda p, b: problems.linear_loss(p, b) + value, params, batch, SWEEP, out=out)
    check_sentence(raised.value, "base point", f"got {value}", "Try: ")
    assert not out.exists()


def test_leaves_that_would_share_their_noise_are_refused():
    params = {"plumless": jnp.zeros(2), "buckeroo": jnp.zeros(2)}
    with pytest.raises(InvalidInput) as raised:
        run_sweep(problems.linear_loss, params, jax.tree.map(jnp.ones_like, params), SWEEP)
    check_sentence(raised.value, "CRC-32", "`buckeroo` and `plumless`", "Try: rename")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    run_sweep(*problems.small(), SWEEP, out=out)
    return out


def with_tree(problem, field, change):
    return problem._replace(**{field: jax.tree.map(change, getattr(problem, field))})


SMALL = problems.small()
LAST_BIT = jnp.finfo(jnp.float32).smallest_normal
OTHER_RUNS = {
    "seed": (SMALL, dataclasses.replace(SWEEP, seed=6)),
    "sigmas": (SMALL, dataclasses.replace(SWEEP, sigmas=(0.1, 0.5))),
    "antithetic": (SMALL, dataclasses.replace(SWEEP, antithetic=False)),
    "width": (SMALL, dataclasses.replace(SWEEP, width=2)),
    "family": (SMALL, dataclasses.replace(SWEEP, family=dataclasses.replace(gaussian(), name="other"))),
    "family_digest": (SMALL, dataclasses.replace(SWEEP, family=dataclasses.replace(gaussian(), digest="x"))),
    "stacked_sha256": (SMALL, dataclasses.replace(SWEEP, family=gaussian(stacked=lambda name: name == "w"))),
    "params_sha256": (with_tree(SMALL, "params", lambda p: p.at[0].add(LAST_BIT)), SWEEP),
    "batch_sha256": (with_tree(SMALL, "batch", lambda b: b * (1 + 1e-6)), SWEEP),
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("differing", OTHER_RUNS)
def test_a_folder_with_a_run_of_another_identity_is_refused_and_left_alone(run_folder, differing, resume):
    before = files(run_folder)
    problem, sweep = OTHER_RUNS[differing]
    with pytest.raises(RunMismatch) as raised:
        run_sweep(*problem, sweep, out=run_folder, resume=resume)
    check_sentence(raised.value, str(run_folder), f"differs in {differing})", f"got {differing} ", "Try: ")
    assert files(run_folder) == before


def test_the_same_run_again_without_resume_is_refused_and_left_alone(run_folder):
    before = files(run_folder)
    with pytest.raises(RunMismatch) as raised:
        run_sweep(*SMALL, SWEEP, out=run_folder)
    check_sentence(raised.value, f"{run_folder} already holds this run", "Try: resume=True")
    assert files(run_folder) == before


def test_an_edited_loss_is_found_out_on_resume_and_the_folder_is_left_alone(run_folder):
    before = files(run_folder)
    with pytest.raises(RunMismatch, match=r"by another program: .* bit for bit; got .* now against .* Try: ") as raised:
        run_sweep(lambda p, b: problems.linear_loss(p, b) * (1 + 1e-6), *SMALL[1:], SWEEP, out=run_folder, resume=True)
    check_sentence(raised.value)
    assert files(run_folder) == before


def test_a_run_with_more_draws_is_refused_and_left_alone(run_folder):
    before = files(run_folder)
    with pytest.raises(RunMismatch) as raised:
        run_sweep(*SMALL, dataclasses.replace(SWEEP, num_candidates=15), out=run_folder, resume=True)
    check_sentence(raised.value, str(run_folder), "holds 16 draws", "got num_candidates 15", "Try: num_candidates 16")
    assert files(run_folder) == before


def test_a_file_where_the_folder_should_be_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis").write_text("precious")
    for out in (tmp_path / "thesis", tmp_path / "thesis" / "run"):
        with pytest.raises(InvalidInput, match="must be a folder; got the file") as raised:
            run_sweep(*SMALL, SWEEP, out=out)
        check_sentence(raised.value, str(out), "Try: ")
    assert files(tmp_path) == {"thesis": b"precious"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, resume):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunMismatch, match="is not empty and holds no sweep") as raised:
        run_sweep(*SMALL, SWEEP, out=tmp_path, resume=resume)
    check_sentence(raised.value, str(tmp_path), "Try: ")
    assert files(tmp_path) == {"thesis.txt": b"precious"}


@pytest.mark.parametrize("damaged", [b'{"seed": ', b"[1, 2]", b"\xff\xfe", b""])
def test_a_damaged_identity_is_refused_and_left_alone(tmp_path, run_folder, damaged):
    (tmp_path / "scores.log").write_bytes(files(run_folder)["scores.log"])
    (tmp_path / "identity.json").write_bytes(damaged)
    before = files(tmp_path)
    with pytest.raises(RunMismatch, match=re.escape("must be a JSON document of a run; got")) as raised:
        run_sweep(*SMALL, SWEEP, out=tmp_path, resume=True)
    check_sentence(raised.value, str(tmp_path / "identity.json"), "Try: ")
    assert files(tmp_path) == before
