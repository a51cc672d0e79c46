"""What every test runs under: eight virtual CPU devices, and types and shapes checked on every call."""

import tempfile
from pathlib import Path

import jax
import jaxtyping

# Both must come before the first device is touched and before lacuna is imported.
jax.config.update("jax_num_cpu_devices", 8)
jaxtyping.install_import_hook("lacuna", "beartype.beartype")
# Many tests compile the same programs behind different function objects.
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "lacuna-tests-xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
