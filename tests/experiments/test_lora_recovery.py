"""Recoveries of adapters: the rule and its control, the two answers, and what belongs to which site and layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language_models, lora_judged, lora_recovery, lora_starts
from experiments.language_models import LanguageModelSpec
from experiments.lora_recovery import Config, parts_of
from experiments.lora_starts import LoraStartSpec
from lacuna import models
from lacuna.errors import InvalidInput
from lacuna.reports import claims
from lacuna.reports.records import Record

POINT = {"model": "toy", "pair": "mappings"}
RUN = {**POINT, "optimiser": "sgd"}


def everywhere(quantity, value, **where):
    return [Record(lora_recovery.NAME, quantity, value, "1", {"seed": seed, **where}) for seed in range(5)]


def records(plain=0.7, held_out=0.5, static=0.2, remainder=0.3, later=0.1, end=1.0):
    """Five seeds that forgot from 0.5 to 3 nats and recovered to `end`."""
    found = []
    for quantity, value in (("plain", plain), ("held_out", held_out), ("remainder", remainder)):
        found += everywhere(quantity, value, m=16, **RUN)
    for quantity in ("functional", "own_drop"):
        found += everywhere(quantity, 0.9, m=16, **RUN)
    found += everywhere("plain", 0.8, m=32, **RUN)
    found += everywhere("static", static, basis="Krylov", **RUN)
    found += everywhere("static", 0.99, basis="the forgetting itself", **RUN)
    found += everywhere("static_of_remainder", later, basis="Krylov", **RUN)
    found += everywhere("static_of_remainder", 0.99, basis="the forgetting itself", **RUN)
    found += everywhere("nats", 0.5, point="learnt", **POINT) + everywhere("start_loss", 3.0, **RUN)
    found += everywhere("end_loss", end, **RUN)
    for quantity, value in (("with_start", 0.1), ("split_half", 0.5), ("random_level", 0.001)):
        found += everywhere(f"drift_{quantity}", value, step=100, **POINT)
    for scaling in ("raw", "normalised"):
        at = {"point": "forgotten", "scaling": scaling, **POINT}
        found += everywhere("participation_ratio", 2.0, **at) + everywhere("p_value", 0.005, **at)
    return found


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, claims.REPRODUCED),
        ({"plain": 0.59}, claims.NOT_REPRODUCED),
        ({"static": 0.26}, claims.CONTROL_FAILS),
        ({"end": 1.8}, claims.CONTROL_FAILS),  # less than half of what was forgotten is back
    ],
)
def test_the_rule_and_its_control(change, verdict):
    found = lora_recovery.claims(records(**change), Config())
    assert [claim.name for claim in found] == ["C12", "C3", "C1", "C1"]
    assert found[0].verdict == verdict
    assert "0.77" in found[0].paper
    assert f"norm {(change.get('plain', 0.7)) ** 0.5:.3g}" in found[0].ours
    assert [claim.verdict for claim in found[1:]] == [claims.REPRODUCED] * 3


def test_two_texts_are_not_asked_for_their_rank():
    of_domains = [Record(r.experiment, r.quantity, r.value, r.unit, {**r.where, "pair": "domains"}) for r in records()]
    assert [claim.name for claim in lora_recovery.claims(of_domains, Config())] == ["C12", "C3"]


@pytest.mark.parametrize(
    ("change", "most", "beyond"),
    [
        (
            {},
            "yes: mass 0.70, norm 0.84",
            "yes: they hold 0.50 of another run, 2.5 times the best static basis (Krylov)",
        ),
        ({"plain": 0.5, "remainder": 0.1}, "no: mass 0.50", "in part: they hold 0.50"),
        ({"held_out": 0.3, "later": 0.2}, "yes", "no: they hold 0.30"),
    ],
)
def test_the_two_answers(change, most, beyond):
    ((*run, first, second),) = lora_judged.answers(records(**change), Config())
    assert run == ["toy", "mappings", "sgd"]
    assert first.startswith(most)
    assert second.startswith(beyond)


def test_what_was_regained_is_measured_seed_by_seed():
    np.testing.assert_allclose(lora_judged.regained(records(end=1.0), RUN).values, [0.8] * 5)


def test_parts_are_the_factors_of_each_site_and_of_each_layer():
    shapes = {"A": (2, 3, 1), "B": (2, 1, 5)}
    site = {name: jnp.arange(float(np.prod(shape))).reshape(shape) for name, shape in shapes.items()}
    tree = {"layers": {"attention": {"qkv": site}, "mlp": {"up": jax.tree.map(lambda x: -x, site)}}}
    found = parts_of(tree)
    assert list(found) == ["attention/qkv", "mlp/up", "layer 1", "layer 2"]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, found["attention/qkv"], site))
    assert jax.tree.all(jax.tree.map(lambda x, y: jnp.array_equal(x, y[1]), found["layer 2"], tree))
    rows = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), tree)
    several = parts_of(rows, rows=True)
    assert list(several) == list(found)
    for name, part in found.items():
        assert jax.tree.all(jax.tree.map(lambda x, y: jnp.array_equal(x[1], 2 * y), several[name], part))


def test_every_purpose_has_rows_of_its_own(tmp_path):
    """Learning, the recovery, the other one and the gradients take steps that follow one another."""
    base = language_models.base(lora_recovery.PRESETS["smoke"].base, tmp_path, print)
    spec = LoraStartSpec(2, sites="attention/qkv", learn_steps=3, forget_steps=2, recovery_steps=5, num_questions=4)
    start, fresh, tasks = lora_starts.lora_start(spec, "mappings", base, LanguageModelSpec(), 0, print)
    assert tuple(start.stretches) == (3, 8, 13)
    assert spec.interfering not in start.streams
    assert len(tasks) == 8
    changed = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), fresh, start.params)
    assert all(jax.tree.leaves(changed))
    assert models.linear_sites(start.model)["attention/qkv"] == (16, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 64}, r"2 <= rank <= max_rank <= recovery_steps must hold; got 64, 32, 100"),
        ({"extrapolated": (8, 64)}, r"extrapolated must be from 2 to max_rank, 32; got \(8, 64\)"),
        ({"drift_steps": (0, 500)}, r"drift_steps must ascend from 0 to 100 at most"),
        ({"drift_steps": (5, 10)}, r"drift_steps must ascend from 0"),
        ({"num_batches": 1}, r"num_batches must be 2 or more"),
        ({"pairs": ()}, r"an optimiser, a pair, a model and a task vector must be named"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        Config(**options)


def test_an_adapter_that_would_forget_nothing_is_refused():
    with pytest.raises(InvalidInput, match="mapping and interfering must differ"):
        LoraStartSpec(mapping="sort", interfering="sort")
    with pytest.raises(InvalidInput, match="learn_steps must be at least 1; got 0"):
        LoraStartSpec(learn_steps=0)


def test_texts_that_are_not_there_are_told_before_anything_is_written(tmp_path, monkeypatch, capsys):
    from experiments import commands as command

    monkeypatch.chdir(tmp_path)
    wanted = ["lora-recovery:smoke", "--texts", "novels.txt", "manuals.txt", "--cache", str(tmp_path / "cache")]
    assert command.run(wanted) == 2
    assert "novels.txt" in capsys.readouterr().err
    assert command.run(["lora-recovery:smoke", "--texts", "novels.txt", "--cache", str(tmp_path / "cache")]) == 2
    assert "texts must be two sources; got 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_stands_for_defaults_is_part_of_what_a_run_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = LanguageModelSpec()
    assert language_models.resolved(spec) == {"model": "pretrained", "texts": "python:prose, python:code"}
    (tmp_path / "data").mkdir()
    for name in ("literary", "technical"):
        (tmp_path / "data" / f"{name}.txt").write_text("words " * 9)
    assert language_models.resolved(spec)["texts"] == "data/literary.txt, data/technical.txt"
    assert language_models.text_names(spec) == ("literary", "technical")
