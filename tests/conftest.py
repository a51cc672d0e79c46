"""What every test runs under: virtual CPU devices, types and shapes checked, programs compiled once."""

import os
import shutil
from pathlib import Path

import jax
import jaxtyping
import pytest

# Both must come before the first device is touched and before lacuna is imported.
jax.config.update("jax_num_cpu_devices", 8)
jaxtyping.install_import_hook("lacuna", "beartype.beartype")

MOST_BYTES = 2**30
"""Of compiled programs that are kept for the next run of the tests."""


def pytest_configure(config):
    """Compile a program once, for all files, all workers, the processes that tests start, and the next run.

    Most of the suite's time goes to the compiler: commands in one process are handed new models, and compile anew.
    """
    if not config.pluginmanager.has_plugin("cacheprovider"):
        return
    folder = config.cache.mkdir("programs")
    if not hasattr(config, "workerinput") and sum(file.stat().st_size for file in folder.iterdir()) > MOST_BYTES:
        shutil.rmtree(folder)
    for name, value in {"compilation_cache_dir": str(folder), "persistent_cache_min_compile_time_secs": 0.05}.items():
        os.environ[f"JAX_{name.upper()}"] = str(value)
        jax.config.update(f"jax_{name}", value)


QUICKLY_COMPILED = {"captures", "checkpoints", "cli", "experiments", "reports", "tasks"}
QUICKLY_COMPILED |= {"test_readme.py", "test_setups.py", "test_setups_language.py"}
"""Tests that leave the compiler's expensive passes out: half of its time, and of no use to tiny programs.

They ask what is read, written, said and refused. The numbers behind it, to the last bit or a few roundings, are tested
in the other folders (search, models, geometry, ...) as users run them.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compile as the test's folder says, before the first of its fixtures is made, those of the session among them."""
    quickly = item.path.relative_to(Path(__file__).parent).parts[0] in QUICKLY_COMPILED
    if jax.config.read("jax_disable_most_optimizations") != quickly:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture(autouse=True, scope="session")
def searched_on_two_devices():
    """As many as a small machine has cores: eight on two take three times as long. A test of more asks for them."""
    from lacuna import meshes

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(meshes, "all_devices", lambda: jax.devices()[:2])
        yield


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
