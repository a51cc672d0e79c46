"""Folders that are there whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_unfinished: list[tuple[Path, Path]] = []
"""Folders that are being written: the name, and what is beside it."""


def clear_unfinished() -> None:
    """Delete what is half-written, for a process that ends here; what was there before is there again."""
    for folder, beside in list(_unfinished):
        _clear(folder, beside)


def _clear(folder: Path, beside: Path) -> None:
    before = sorted(beside.glob("old*"))
    if before and not os.path.lexists(folder):
        with suppress(OSError):  # another writer's may be there by now
            before[-1].rename(folder)
    if os.path.lexists(folder) or not before:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def whole_folder(folder: Path, *, replace: bool) -> Iterator[Path]:
    """A new folder to write into, which takes its name when all went well.

    Args:
      folder: the name.
      replace: what was there before is put aside until the new one is complete, comes back if that cannot take its
        place, and is deleted at the end. Otherwise only an empty folder may be there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
    unfinished, before = beside / "new", beside / "old"
    _unfinished.append((folder, beside))
    try:
        unfinished.mkdir()  # unlike the folder around it, for whom its owner lets in
        yield unfinished
        while not _took_its_place(unfinished, folder, before if replace else None):
            before = before.with_name(f"{before.name}er")  # another writer was faster; what it wrote is put aside, too
        shutil.rmtree(beside, ignore_errors=True)
    except BaseException:
        _clear(folder, beside)
        raise
    finally:
        _unfinished.remove((folder, beside))


def _took_its_place(unfinished: Path, folder: Path, before: Path | None) -> bool:
    """Give a folder its name; whether it did, for another writer may have come between."""
    try:
        if before is not None and os.path.lexists(folder):
            folder.rename(before)
        unfinished.rename(folder)
    except BaseException as fault:
        if before is not None and os.path.lexists(before) and not os.path.lexists(folder):
            with suppress(OSError):  # another writer's may be there by now
                before.rename(folder)
        between = isinstance(fault, OSError) and fault.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
        if before is not None and between and os.path.lexists(unfinished):
            return False
        raise
    return True
