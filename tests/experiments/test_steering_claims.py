"""Verdicts on shifts and on steering follow their rules, and what is chosen is chosen on other questions."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest

from experiments import boolq_steering, caa_judged, pushforward_caa, steering_judged
from lacuna.errors import InvalidInput
from lacuna.reports import claims
from lacuna.reports.records import Record
from lacuna.steering import MatchStatus
from lacuna.steering.cosines import READOUTS, SHUFFLED

SHIFTS = replace(pushforward_caa.PRESETS["small"], back=(0, 1))
STEERED = boolq_steering.PRESETS["small"]
PARTS = [("other events", "events"), ("other events", "questions"), ("chosen on", "events"), ("fit", "events")]
PLACES = [(1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
"""Level and token; at the last token level 0 is the same for all prompts, and there is no cosine."""


def seed_of_shifts(seed, *, cosine=0.6, z=9.0, p=0.002, z_together=3.0, p_together=0.003):
    """Level 2 is the best on the questions to choose on; level 1 is, by far, on those that are judged."""
    found = []

    def add(quantity, value, **where):
        at = {"seed": seed, "model": "toy", "contrast": "feelings", **where}
        found.append(Record(pushforward_caa.NAME, quantity, value, "1", at))

    for part, over in PARTS:
        of_part = {"part": part, "over": over}
        for readout in READOUTS:
            for shuffled in SHUFFLED:
                at = {**of_part, "readout": readout, "shuffled": shuffled}
                own_z, own_p = (z, p) if shuffled == "gradient" else (z_together, p_together)
                for back in (0, 1):
                    add("p_of_maximum", own_p, back=back, **at)
                for level, back in PLACES:
                    at |= {"level": level, "back": back}
                    other_z = -2.0 if part == "chosen on" else 40.0
                    add("cosine", cosine if level == 2 else 0.99, **at)
                    add("z", own_z if level == 2 else other_z, **at)
                    null = {"mean": -0.4, "low": -0.6, "high": -0.2, "deviation": 0.1}
                    for quantity, value in {"p": 0.01, **{f"null_{of}": v for of, v in null.items()}}.items():
                        add(quantity, value, **at)
        for level, back in PLACES:
            at = {**of_part, "level": level, "back": back}
            for readout in READOUTS[:2]:
                add("subtracted_cosine", 0.7, readout=readout, **at)
            for of in ("shift", "contrast"):
                add("cosine_to_unembedding", 0.2, of=of, **at)
            add("cosine_without_unembedding", 0.3, **at)
            add("deviation_over_prompts", 0.05, **at)
    for level in range(3):
        for radius in caa_judged.RADII:
            add("linear_error", 100 * radius, radius=radius, level=level)
    for module, share in (("attention", 0.3), ("mlp", 0.7)):
        add("module_share", share, module=module)
    return found


def shifts(num_seeds=5, last=None, **change):
    """Seeds that are alike, but for the last where it has a change of its own."""
    changes = [change] * (num_seeds - 1) + [change | (last or {})]
    return [record for seed, own in enumerate(changes) for record in seed_of_shifts(seed, **own)]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, claims.REPRODUCED),
        ({"num_seeds": 4}, claims.TOO_SMALL),
        ({"p": 0.01}, claims.NOT_REPRODUCED),
        ({"last": {"p": 0.02}}, claims.NOT_REPRODUCED),  # in every seed
        ({"cosine": -0.1}, claims.NOT_REPRODUCED),  # level 1 has 0.99, on the judged questions alone
        ({"z": -9.0}, claims.NOT_REPRODUCED),  # shuffled labels lie further along
        ({"p_together": 0.01}, claims.CONTROL_FAILS),
        ({"z_together": -3.0}, claims.CONTROL_FAILS),
        ({"last": {"p_together": 0.5}}, claims.CONTROL_FAILS),
    ],
)
def test_the_rule_of_the_shift(change, verdict):
    (row,) = pushforward_caa.claims(shifts(**change), SHIFTS)
    assert (row.name, row.verdict) == ("C10", verdict)


def test_the_level_is_that_of_the_questions_to_choose_on_whatever_the_judged_ones_say():
    records = shifts(last={"cosine": 0.1})
    assert caa_judged.chosen_level(records, 0) == 2
    (row,) = pushforward_caa.claims(records, SHIFTS)
    assert row.ours.startswith("cosine 0.5 (0.1 to 0.6) at the level chosen on other questions (2, 2, 2, 2, 2)")
    assert "is told apart from shuffled labels" in row.ours


def test_the_level_has_the_largest_z_of_either_sign():
    assert caa_judged.chosen_level(shifts(num_seeds=1, z=-9.0), 0) == 2
    assert caa_judged.chosen_level(shifts(num_seeds=1, z=1.0), 0) == 1


def test_labels_that_are_not_told_apart_are_said_not_to_be():
    (row,) = pushforward_caa.claims(shifts(last={"p": 0.3}), SHIFTS)
    assert "is not told apart from shuffled labels" in row.ours


GAINS = {"accuracy_gain": 0.02, "balanced_accuracy_gain": 0.05, "auroc_gain": 0.04, "signed_log_odds_gain": 0.3}
STRENGTHS = (-0.5, 0.0, 0.5)


def steered(num_seeds=5, *, low=0.03, auroc_low=0.02, random=0.02, random_auroc=0.01, other=-0.1, status=0):
    """The contrast's gains, and random directions of which half gain nothing and half as much as is given."""
    found = []

    def add(quantity, value, **where):
        at = {"model": "toy", "contrast": "feelings", **where}
        found.append(Record(boolq_steering.NAME, quantity, value, "1", at))

    arms = [("contrast", 0), ("shift of a step", 0), ("step of the weights", 0), *(("random", i) for i in range(16))]
    for seed in range(num_seeds):
        for quantity in ("accuracy", "balanced_accuracy", "auroc", "signed_log_odds", "positive_share", "mass"):
            add(quantity, 0.6, seed=seed, arm="model")
        for name in ("pronouns", "digits"):
            add("other_accuracy", 0.9, seed=seed, arm="model", other=name)
        for target in STEERED.targets:
            for arm, index in arms:
                at = {"seed": seed, "arm": arm, "index": index, "target": target}
                of_random = {"balanced_accuracy_gain": random, "auroc_gain": random_auroc}
                for quantity, value in GAINS.items():
                    lows = {"balanced_accuracy_gain": low, "auroc_gain": auroc_low}
                    gain = value if arm != "random" else of_random.get(quantity, 0.0) * (index >= 8)
                    add(quantity, gain, **at)
                    add(f"{quantity}_low", lows.get(quantity, 0.0) if arm == "contrast" else gain - 0.1, **at)
                    add(f"{quantity}_high", gain + 0.1, **at)
                costs = {"mcnemar_p": 0.2, "mass": 0.5, "nats_gain": 0.1, "kl": target, "strength": -0.3}
                for quantity, value in costs.items():
                    add(quantity, value, **at)
                add("status", float(status), **at)
                if arm != "step of the weights":
                    add("level", 3.0, **at)
                for name, change in (("pronouns", other), ("digits", -0.01)):
                    add("other_accuracy_gain", change, other=name, **at)
        for arm, index in arms:
            for alpha in STRENGTHS if index == 0 else ():
                for mask in ("all", "last"):
                    for quantity in ("accuracy", "balanced_accuracy", "auroc", "signed_log_odds", "mass"):
                        add(f"curve_{quantity}", 0.5 + 0.1 * alpha, seed=seed, arm=arm, alpha=alpha, mask=mask)
    return found


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, claims.REPRODUCED),
        ({"num_seeds": 4}, claims.TOO_SMALL),
        ({"low": 0.02}, claims.NOT_REPRODUCED),  # the gain itself is 0.05
        ({"random": 0.2}, claims.NOT_REPRODUCED),
        ({"auroc_low": 0.01}, claims.CONTROL_FAILS),  # a bias that was moved
        ({"random_auroc": 0.2}, claims.CONTROL_FAILS),
    ],
)
def test_the_rule_of_steering(change, verdict):
    (row,) = boolq_steering.claims(steered(**change), STEERED)
    assert (row.name, row.verdict) == ("C11", verdict)


def test_the_claim_tells_gain_cost_and_how_many_arms_cost_the_same():
    (row,) = boolq_steering.claims(steered(), STEERED)
    assert "balanced accuracy 5, paired interval 3 to 15" in row.ours
    assert "pronouns -10;" in row.ours
    assert "95th percentile 2 points" in row.control
    assert "at equal cost 85 of 85 arms" in row.control
    (row,) = boolq_steering.claims(steered(status=MatchStatus.BEYOND), STEERED)
    assert "at equal cost 0 of 85 arms" in row.control


def test_the_random_level_is_taken_seed_by_seed():
    records = [
        Record("x", "auroc_gain", value + seed, "1", {"arm": "random", "index": i, "seed": seed})
        for seed in range(2)
        for i, value in enumerate(np.linspace(0, 1, 21))
    ]
    np.testing.assert_allclose(steering_judged.random_level(records, "auroc_gain").values, [0.95, 1.95])


def test_the_other_task_that_loses_most_is_named():
    at = {"arm": "contrast", "target": 0.2}
    assert steering_judged.worst_other(steered(), **at)[0] == "pronouns"
    assert steering_judged.worst_other(steered(other=0.1), **at)[0] == "digits"
    assert str(steering_judged.worst_other([], **at)[1]) == "not measured"


@pytest.mark.parametrize(
    ("module", "records", "config"),
    [
        (pushforward_caa, shifts(), SHIFTS),
        (pushforward_caa, shifts(num_seeds=1), SHIFTS),
        (boolq_steering, steered(), STEERED),
        (boolq_steering, steered(num_seeds=1), STEERED),
    ],
    ids=["shifts", "shifts of one seed", "steering", "steering of one seed"],
)
def test_tables_are_whole_and_figures_are_drawn(module, records, config):
    for heading, (head, lines) in module.tables(records, config).items():
        assert lines, heading
        assert {len(line) for line in lines} == {len(head)}, heading
        assert not [cell for line in lines for cell in line if re.search(r"\b(nan|None)\b|-0\b(?!\.)|e-1\d", cell)]
    for figure, caption in module.figures(records, config).values():
        figure.savefig(io.BytesIO())
        assert caption.endswith(".")


def test_modules_stand_by_what_they_share():
    tables = pushforward_caa.tables(shifts(), SHIFTS)
    _, lines = next(found for heading, found in tables.items() if heading.startswith("Which modules"))
    assert [line[0] for line in lines] == ["mlp", "attention"]


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        (SHIFTS, {"back": (1, 2)}, r"back must hold 0, the last token of the prompt, .*; got \(1, 2\)"),
        (SHIFTS, {"back": (0, 0)}, r"back must hold 0"),
        (SHIFTS, {"num_shuffled": 1}, r"num_shuffled must be at least 2 .*; got 1 and 40"),
        (SHIFTS, {"batch_rows": 0}, r"batch_rows at least 1; got 1000 and 0"),
        (STEERED, {"chosen_at": 0.3}, r"chosen_at must be one of targets, which are positive; got 0.3"),
        (STEERED, {"targets": (0.0, 0.2)}, r"targets, which are positive"),
        (STEERED, {"num_random": 0}, r"num_random must be at least 1; got 0"),
        (STEERED, {"num_shuffled_labels": 0}, r"num_shuffled_labels must be at least 1"),
    ],
)
def test_settings_that_cannot_be_judged_are_refused(preset, options, message):
    with pytest.raises(InvalidInput, match=message):
        replace(preset, **options)
