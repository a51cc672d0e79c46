"""A sweep answers five questions, whatever was searched and however it ended."""

import math

import pytest
import sweeps

from lacuna.reports import sweep_outcome
from lacuna.reports.records import Record

NAN = math.nan
THEOREM = Record("sweep", "is_predicted", 0.0, "1")


def answer(question, *more, **kind):
    return sweep_outcome.answers([*sweeps.sweep_records(**kind), *more])[question]


def test_the_summary_is_the_answers_one_a_line():
    found = sweeps.sweep_records(next_sigma=(0.03, "rising"))
    questions = [line.split(":")[0] for line in sweep_outcome.summary(found).splitlines()]
    assert questions == list(sweep_outcome.answers(found)) == ["Predicted", "Found", "Linear up to", "Survives", "Next"]


def test_records_without_a_next_sigma_leave_that_question_out():
    assert "Next" not in sweep_outcome.answers(sweeps.sweep_records())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            {"predicted": (1.1, 1.4), "shares": (0.99, 0.5)},
            "gains 1.1 at σ = 0.001, with a 99 % band from 0.5 to 2.",
        ),
        ({"predicted": (1.1, 1.4), "shares": (0.99, 0.95)}, "gains 1.4 at σ = 0.01,"),
        ({"predicted": (1.1, 1.4), "sign": "+"}, "gains 1.4 at σ = 0.01, with a 99 % band from 0.5 to 2."),
        (
            {"shares": (0.5, 0.1)},
            "the loss linear and the step above rounding, so the theory is not tested",
        ),
    ],
)
def test_the_prediction_is_that_of_the_best_linear_sigma(kind, said):
    assert said in answer("Predicted", **kind)
    assert ("not tested" in answer("Predicted", **kind)) == ("not tested" in said)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            {"shares": (0.99, 0.95)},
            "At 1 of the 2 sigmas with an F1 share above 0.9 (of the same draws)",
        ),
        ({"shares": (0.99, 0.5)}, "At 1 of the 1 sigmas with an F1 share above 0.9"),
        ({"sign": "+"}, "At 1 of the 2 searched sigmas (of the same draws)"),
        ({"sign": "+", "measured": (1.0, NAN)}, "At 1 of the 1 searched sigmas"),
        ({"shares": (0.5, 0.1)}, "a gain of 1."),
        (sweeps.NOTHING_FINITE, "No candidate had a finite loss."),
    ],
)
def test_what_was_found_is_the_winner_and_the_sigmas_in_their_band(kind, said):
    assert answer("Found", **kind).removesuffix(" the measured gain lies in the band.").endswith(said)
    assert "takes the loss from 3 to 2, a gain of 1." in answer("Found", **kind) or kind is sweeps.NOTHING_FINITE


def test_a_step_that_is_lost_in_rounding_is_not_judged():
    lost = Record("sweep", "f1_resolved", 0.0, "1", {"sigma": 1e-3})
    found = [*sweeps.sweep_records(measured=(9.0, 1.0), shares=(0.99, 0.95)), lost]
    assert [row.verdict for row in sweep_outcome.sigma_rows(found)] == ["lost in rounding", "in band"]
    assert "At 1 of the 1 sigmas" in sweep_outcome.answers(found)["Found"]
    assert "at σ = 0.01" in sweep_outcome.answers(found)["Predicted"]


def test_without_a_finite_prediction_nothing_is_judged():
    kind = {"low": NAN, "high": NAN, "predicted": (NAN, NAN)}
    assert answer("Predicted", **kind).startswith("Nothing: slope or curvature at the base point")
    assert answer("Found", **kind).endswith("a gain of 1.")
    verdicts = {row.verdict for row in sweep_outcome.sigma_rows(sweeps.sweep_records(**kind))}
    assert verdicts == {"no prediction"}


def test_noise_that_the_theorem_is_not_about_is_only_compared():
    assert "theorem is not about this noise" in answer("Predicted", THEOREM)
    assert answer("Found", THEOREM).endswith("a gain of 1.")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ({}, "σ* = 0.001 among the searched sigmas."),
        ({"sigma_star": 1e-2}, "σ* = 0.01 among the searched sigmas, the largest; it may reach farther."),
        ({"sigma_star": NAN, "sign": "+"}, "Not known: it takes both signs of every draw."),
        ({"sigma_star": NAN, "shares": (NAN, NAN)}, "Not known: it takes two draws or more with finite losses"),
        ({"sigma_star": NAN, "shares": (0.5, NAN)}, "No searched sigma: the F1 share is at most 0.50, at σ = 0.001."),
        ({"sigma_star": NAN, "shares": (0.99, 0.5)}, "No σ* found: where the F1 share is high"),
    ],
)
def test_the_end_of_the_linear_regime_or_why_there_is_none(kind, said):
    assert answer("Linear up to", **kind).startswith(said)


def test_the_end_that_was_foretold_stands_beside_the_measured_one():
    foretold = Record("sweep", "predicted_sigma_star", 0.00123, "1")
    said = "σ* = 0.001 among the searched sigmas. Slope and curvature at the base point foretell 0.0012."
    assert answer("Linear up to", foretold) == said
    assert "foretell" not in answer("Linear up to", Record("sweep", "predicted_sigma_star", math.inf, "1"))


WINNER, TOP, RANDOM = (2.0, 1.0, (0.5, 0.4, 0.6)), (1.5, 1.2, (0.8, 0.7, 0.9)), (-1.0, -0.9, (0.9, 0.8, 1.0))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            {"left": (WINNER, TOP, RANDOM)},
            "Left of the gain on held-out data, with 95 % intervals: 50 % [40, 60] (winner), 80 % [70, 90] "
            "(top 4), 90 % [80, 100] (4 random draws at the winner's σ). Nobody selected random draws.",
        ),
        ({"left": [(2.0, 1.0, (0.5, NAN, NAN))]}, "Left of the gain on held-out data: 50 % (winner)."),
        ({"left": [(2.0, 1.0, None)]}, "Left of the gain on held-out data: 1 where the search batch gave 2 (winner)."),
        ({"left": [(-2.0, -1.0, (0.5, 0.4, 0.6))]}, "There is no gain to survive."),
        ({"left": [(NAN, NAN, None)]}, "Not known: no candidate had a finite loss on all held-out data."),
        ({"left": [(NAN, NAN, None), TOP]}, "Left of the gain on held-out data, with 95 % intervals: 80 % [70, 90]"),
        ({}, "Not known: no held-out data was given."),
        (sweeps.NOTHING_FINITE, "Nothing: no candidate had a finite loss."),
    ],
)
def test_what_survives_is_a_share_with_its_interval_as_far_as_it_is_known(kind, said):
    assert answer("Survives", **kind).startswith(said)


def test_the_next_sigma_comes_with_its_reason():
    from lacuna.search.next_sigma import Reason

    said = {word: answer("Next", next_sigma=(0.0312, word)) for word in Reason.__args__}
    assert all(sentence.startswith("Search σ = 0.031: ") for sentence in said.values())
    assert len(set(said.values())) == len(said) == len(sweep_outcome.REASONS)
