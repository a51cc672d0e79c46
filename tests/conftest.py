"""What every test runs under: eight virtual CPU devices, and types and shapes checked on every call."""

import jax
import jaxtyping

# Both must come before the first device is touched and before lacuna is imported.
jax.config.update("jax_num_cpu_devices", 8)
jaxtyping.install_import_hook("lacuna", "beartype.beartype")
