"""What every test runs under: virtual CPU devices, types and shapes checked, programs compiled once."""

import os
import shutil
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy comes: its threads wait in a loop, on cores that others need

import jax
import jaxtyping
import pytest
from jax._src import compiler

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


OPTIMISED = {"parity", "search", "test_lowering.py", "test_threefry.py", "test_trees.py"}
"""Folders and files whose programs are compiled as users compile them, beside tests marked `optimised`.

They ask for results to the last bit in whatever program, to a few roundings of others' software, or for the operations
that the compiler left.
"""

QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_llvm_disable_expensive_passes": True,
}
"""Options of XLA that compile all other tests' tiny programs in a quarter of the time."""

if jax.__version_info__ < (0, 11):  # which knows of no other emitters
    QUICKLY["xla_cpu_use_fusion_emitters"] = False

optimised = compiler.get_compile_options


def quickly(*args, env_options_overrides=None, **kwargs):
    return optimised(*args, env_options_overrides=QUICKLY | (env_options_overrides or {}), **kwargs)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compile as the test asks, before the first of its fixtures is made, those of the session among them."""
    marked = item.get_closest_marker("optimised") or OPTIMISED & {item.path.name, item.path.parent.name}
    wanted = optimised if marked else quickly
    if compiler.get_compile_options is not wanted:
        jax.clear_caches()
        compiler.get_compile_options = wanted


def pytest_sessionstart():
    """Search on as many devices as a small machine has cores, and around a model that is soon trained.

    Eight devices on two cores take three times as long; a test of more asks for them.
    """
    from lacuna import meshes
    from lacuna.models import SyntheticSpec
    from lacuna.setups import digit_models

    meshes.all_devices = lambda: jax.devices()[:2]
    sizes = {"num_layers": 2, "width": 32, "num_heads": 2, "mlp_width": 64}
    digit_models.DIGIT_MODEL = SyntheticSpec(digit_models.DIGIT_MODEL.vocab_size, **sizes)


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
