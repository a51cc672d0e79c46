"""What every test runs under: eight virtual CPU devices, and types and shapes checked on every call."""

import os
from pathlib import Path

import jax
import jaxtyping
import pytest

# Both must come before the first device is touched and before lacuna is imported.
jax.config.update("jax_num_cpu_devices", 8)
jaxtyping.install_import_hook("lacuna", "beartype.beartype")


@pytest.fixture(autouse=True)
def few_programs_at_a_time():
    """XLA crashes in a process that holds too many compiled programs."""
    yield
    from experiments import programs

    programs.forget_many()


@pytest.fixture(scope="session")
def data():
    """Folder of real text, tokenizers and trained checkpoints: LACUNA_DATA, or beside the checkout. May be absent."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("LACUNA_DATA", beside))
