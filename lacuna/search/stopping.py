"""Ctrl-C and SIGTERM end a sweep between two chunks, with everything on disk."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SweepStopped(KeyboardInterrupt):
    """A sweep that was asked to end; what was scored is kept.

    Attributes:
      signal: number of the signal, on any of the hosts.
      num_done: draws that are scored.
      num_candidates: N.
    """

    def __init__(self, signal: int, num_done: int, num_candidates: int):
        self.signal, self.num_done, self.num_candidates = signal, num_done, num_candidates
        super().__init__(f" after {num_done:,} of {num_candidates:,} draws")


@contextmanager
def stop_asked() -> Iterator[Callable[[], int]]:
    """A function that gives the number of the signal that asked to stop, 0 if none has.

    A second Ctrl-C interrupts at once. Outside of the main thread, where Python takes no signals, nothing is caught.
    """
    asked = [0]

    def note(number: int, frame: FrameType | None) -> None:
        if asked[0] and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked[0] = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: asked[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
