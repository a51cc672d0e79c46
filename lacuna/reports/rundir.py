"""The folder of a run: where it lies, and what is kept in it besides the results."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lacuna.errors import InvalidInput

PACKAGES = ("lacuna", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that tell one configuration from another."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def new_run(root: Path, experiment: str, config: Mapping[str, Any]) -> Path:
    """The path `root/<experiment>/<time>-<config hash>` of a new run; nothing is made yet."""
    return root / experiment / f"{time.strftime('%Y%m%d-%H%M%S')}-{config_hash(config)}"


def check_folder(path: Path) -> None:
    """Raise unless `path` is a folder that may be written to, or can be made. Nothing is made yet.

    Long work calls this first: a mistyped folder should not be found out after the training.

    Raises:
      InvalidInput: it is a file, lies below one, or may not be written to.
    """
    nearest = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))  # a dangling link counts
    if not nearest.is_dir():
        raise InvalidInput(f"{path} must be a folder", got=f"the file {nearest}", hint="another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InvalidInput(f"{path} must be a folder that can be written to", got=f"{nearest}", hint="another folder")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON document of a run.

    Raises:
      InvalidInput: it is absent or damaged, or no object.
    """
    if not path.exists():
        raise InvalidInput(
            f"{path.parent} must be the folder of a run",
            got=f"no {path.name} in it",
            hint="the folder that the command printed",
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise InvalidInput(
            f"{path} must be a JSON document of a run", got=fault, hint="the folder as the run left it, or a new run"
        ) from fault
    if not isinstance(document, dict):
        raise InvalidInput(
            f"{path} must be a JSON document of a run",
            got=f"a {type(document).__name__}",
            hint="the folder as the run left it, or a new run",
        )
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def environment(devices: Mapping[str, Any]) -> dict[str, Any]:
    """What a result was made with: versions, commit, machine, and the devices as described by the caller."""
    commit, dirty = _commit()
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "machine": f"{_processor()}, {platform.system()} {platform.machine()}",
        "commit": commit,
        "dirty": dirty,
        **devices,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    if not names:
        return platform.processor() or "unknown processor"
    return f"{len(names)} x {names[0].split(':', 1)[1].strip()}"


def _commit() -> tuple[str, bool]:
    """The commit of the source tree this package runs from, and whether it has changes; empty outside of git."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if not git("ls-files", __file__):  # installed into an environment that lies inside a foreign checkout
            return "", False
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False
