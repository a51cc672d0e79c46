"""What every test runs under: eight virtual CPU devices, and types and shapes checked on every call."""

import os
from pathlib import Path

import jax
import jaxtyping
import pytest

# Both must come before the first device is touched and before lacuna is imported.
jax.config.update("jax_num_cpu_devices", 8)
jaxtyping.install_import_hook("lacuna", "beartype.beartype")

MAPS = Path("/proc/self/maps")
"""One line for each memory map of this process, where there is such a file."""


@pytest.fixture(autouse=True, scope="module")
def few_programs_at_a_time():
    """Every compiled program takes several memory maps; past the 65,530 that Linux grants a process, XLA crashes."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def data():
    """Folder of real text, tokenizers and trained checkpoints: LACUNA_DATA, or beside the checkout. May be absent."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("LACUNA_DATA", beside))
