"""What every test runs under: eight virtual CPU devices, and types and shapes checked on every call."""

import os
import tempfile
from pathlib import Path

import jax
import jaxtyping
import pytest

# Both must come before the first device is touched and before lacuna is imported.
jax.config.update("jax_num_cpu_devices", 8)
jaxtyping.install_import_hook("lacuna", "beartype.beartype")
# Many tests compile the same programs behind different function objects.
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "lacuna-tests-xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="session")
def data():
    """Folder of real text, tokenizers and trained checkpoints: LACUNA_DATA, or beside the checkout. May be absent."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("LACUNA_DATA", beside))
