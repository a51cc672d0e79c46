"""Ctrl-C and SIGTERM outside of the search: the process ends at once, with the sentence that says how to go on.

Not by an exception: one that is raised in a callback of the interpreter is lost, and an orderly end while XLA
compiles in a thread of its own can crash. Nothing is half-written: what is scored is in the log, and every other file
is replaced whole. The search itself has handlers of its own, which let the chunk in flight end.
"""

import os
import signal
import sys
from types import FrameType

_onwards = [""]


def say_on_interrupt(sentence: str) -> None:
    """What to add to `Interrupted` from now on."""
    _onwards[0] = sentence


def onwards() -> str:
    """What was last said."""
    return _onwards[0]


def leave_at_once() -> None:
    """From now on a signal ends this process with its sentence and status 128 + its number."""

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h\n")  # a progress bar hides the cursor
        sys.stdout.flush()
        os.write(2, f"Interrupted{onwards()}.\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
