"""Folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    try:
        unfinished.mkdir()  # unlike the folder around it, for whom its owner lets in
        yield unfinished
        try:
            if replace and os.path.lexists(folder):
                folder.rename(before)
            unfinished.rename(folder)
        except BaseException:
            if os.path.lexists(before) and not os.path.lexists(folder):
                before.rename(folder)
            raise
    finally:
        if os.path.lexists(folder) or not os.path.lexists(before):
            shutil.rmtree(beside, ignore_errors=True)
