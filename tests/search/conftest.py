"""One sweep of the small transformer, on two devices, that other sweeps are compared with."""

import problems
import pytest

from lacuna.search import Sweep, gaussian, run_sweep

SWEEP = Sweep(gaussian(stacked=problems.stacked), (1e-3, 1e-2), num_candidates=40, seed=3)


@pytest.fixture(scope="session")
def problem():
    """The small transformer."""
    return problems.transformer()


@pytest.fixture(scope="session")
def sweep():
    """Forty draws at two sigmas and both signs."""
    return SWEEP


@pytest.fixture(scope="session")
def reference(problem):
    """The scores of `sweep`."""
    return run_sweep(*problem, SWEEP)
