"""The geometry stands alone."""

import subprocess
import sys


def test_importing_the_geometry_pulls_in_nothing_heavy():
    code = "import sys, lacuna.geometry; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("flax", "optax", "orbax", "transformers", "datasets", "matplotlib", "pyarrow", "rich", "tyro"):
        assert f"'{heavy}'" not in loaded
