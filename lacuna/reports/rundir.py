"""The folder of a run: where it lies, and what is kept in it besides the results."""

import glob
import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as fault:  # too long a name, one with a zero byte, or below what cannot be entered
        got = getattr(fault, "strerror", None) or fault
        raise InvalidInput(f"{path!s:.300} must be a folder", got=got, hint="another folder") from fault
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
    except (OSError, ValueError, RecursionError) as fault:
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


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file to write, which takes the name of `path` when all went well; of several writers the last one wins.

    What a writer that was killed on this machine left unfinished is removed.
    """
    mine = f"{path.name}.{platform.node()}"
    for left in path.parent.glob(f"{glob.escape(mine)}.*.*.partial"):
        process = left.name.removeprefix(f"{mine}.").split(".")[0]
        if process.isdigit() and not _is_alive(int(process)):
            left.unlink(missing_ok=True)
    unfinished = path.with_name(f"{mine}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


SEAL = "sha256.json"
"""Digests of the documents of a finished run."""

SEALED = ("config.json", "environment.json", "result.json", "records.jsonl")


def seal(run: Path) -> None:
    """Write down the digests of a run's documents, so that damage is told from what was measured."""
    write_json(run / SEAL, {name: _digest(run / name) for name in SEALED if (run / name).exists()})


def copy_sealed(run: Path, to: Path) -> None:
    """Copy the documents of a finished run, as they were written, beside what is drawn of them."""
    (to / SEAL).unlink(missing_ok=True)  # a copy that is interrupted must not be taken for damage
    for name in (name for name in (*SEALED, SEAL) if (run / name).exists()):
        with whole_file(to / name) as unfinished:
            shutil.copyfile(run / name, unfinished)


def check_seal(run: Path) -> bool:
    """Whether there are digests of a run's documents; an unfinished run has none.

    Raises:
      InvalidInput: a document is not as it was written; names it.
    """
    if not (run / SEAL).exists():
        return False
    known = read_json(run / SEAL)
    for name in {*known, *(name for name in SEALED if (run / name).exists())}:
        found = _digest(run / name) if (run / name).is_file() else None
        if found is None or found != known.get(name):
            got = "other bytes" if found else "no such file"
            hint = "a copy of it, or the command that made the run, in another folder"
            raise InvalidInput(f"{run / name} must be as it was written", got=got, hint=hint)
    return True


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def as_written(run: Path) -> Iterator[None]:
    """What is done inside reads the documents of a run: they are as they were written, or that is said.

    Raises:
      InvalidInput: a document is not as it was written; or there are no digests, and what is inside fails on them.
    """
    sealed = check_seal(run)
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as fault:
        if sealed:
            raise
        got = f"{type(fault).__name__} {fault}".splitlines()[0][:120]
        raise InvalidInput(f"{run} must hold the records and documents of a finished run", got=got) from fault


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
