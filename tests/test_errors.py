"""An error is one sentence: what was asked, what came, what to do."""

import pytest

from lacuna import errors


def test_an_error_says_asked_got_and_hint_in_one_line():
    error = errors.InvalidInput("sigmas must be positive", got=(-1.0,), hint="sigmas 1e-3 3e-3")
    assert str(error) == "sigmas must be positive; got (-1.0,). Try: sigmas 1e-3 3e-3."


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({}, "a thing is wrong."),
        ({"got": 0}, "a thing is wrong; got 0."),
        ({"hint": "another."}, "a thing is wrong. Try: another."),
    ],
)
def test_parts_that_are_not_given_leave_no_trace(parts, sentence):
    assert str(errors.LacunaError("a thing is wrong", **parts)) == sentence


def test_every_error_is_caught_as_a_lacuna_error():
    kinds = [errors.InvalidInput, errors.TreeMismatch, errors.RunMismatch, errors.NotFinite]
    assert all(issubclass(kind, errors.LacunaError) for kind in kinds)
