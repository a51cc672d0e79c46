"""Ctrl-C and SIGTERM outside of the search: the process ends at once, with the sentence that says how to go on.

Not by an exception: one that is raised in a callback of the interpreter is lost, and an orderly end while XLA
compiles in a thread of its own can crash. Nothing is half-written: what is scored is in the log, every other file is
replaced whole, and a folder that has not got its name yet is deleted. The search itself has handlers of its own, which
let the chunk in flight end.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

_said: list[tuple[str, Path]] = []


def say_on_interrupt(sentence: str, *, where: Path) -> None:
    """What to add to `Interrupted` from now on, once that file is there."""
    _said[:] = [(sentence, where)]


def onwards() -> str:
    """What there is to add."""
    return next((sentence for sentence, where in _said if where.exists()), "")


def leave_at_once() -> None:
    """From now on a signal ends this process with its sentence and status 128 + its number."""

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h\n")  # a progress bar hides the cursor
        sys.stdout.flush()
        if writer := sys.modules.get("lacuna.checkpoints.whole_folder"):
            writer.clear_unfinished()
        os.write(2, f"Interrupted{onwards()}.\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
