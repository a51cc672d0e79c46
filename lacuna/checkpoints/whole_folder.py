"""Folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes its name when all went well.

    What was there before is put aside until then, comes back if the new one cannot take its place, and is deleted at
    the end.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
    unfinished, before = beside / "new", beside / "old"
    try:
        unfinished.mkdir()  # unlike the folder around it, for whom its owner lets in
        yield unfinished
        if os.path.lexists(folder):
            folder.rename(before)
        try:
            unfinished.rename(folder)
        except BaseException:
            if os.path.lexists(before):
                before.rename(folder)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
