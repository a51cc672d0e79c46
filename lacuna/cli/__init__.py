"""The command line: `lacuna sweep`, `capture`, `report`, `plan`, `export` and `verify-hf`.

A thin skin: options in, one library call, a table out. Heavy imports happen inside the commands, so that
`lacuna --help` answers at once, and all others inside `run`, so that Ctrl-C is heeded from the first moment. Bad input
is one sentence on standard error and exit status 2; status 1 says that a comparison failed or that another process of
the run died, 130 and 143 that a signal ended it. The README lists every sentence with its cure.
"""

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from lacuna.cli.interrupt import leave_at_once, onwards
from lacuna.errors import LacunaError

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as a shell reports it; 143 after SIGTERM."""

CRASHED = 1
"""Exit status where a process of several has died, or fails."""

DISAGREED = 1
"""Exit status of a comparison that was made and failed."""


def main() -> None:
    """Entry point of the `lacuna` command."""
    leave_at_once()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may hold what the terminal cannot show
    try:
        status = run(sys.argv[1:])
    except Exception:
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        status = CRASHED
    if status == CRASHED and _is_one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # an orderly end would wait for the other processes, and they for this one
    sys.exit(status)


def _is_one_of_several() -> bool:
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    from rich.console import Console

    from lacuna.cli.capture import CaptureCommand, capture
    from lacuna.cli.commands import parse
    from lacuna.cli.export import ExportCommand, export
    from lacuna.cli.plan import PlanCommand, plan
    from lacuna.cli.report import report
    from lacuna.cli.sweep import SweepCommand, sweep
    from lacuna.cli.verify import VerifyCommand, verify_hf

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # where rich would end the process with status 1
            raise BrokenPipeError

    # Nothing printed here is markup: a folder may be called [red].
    console, complaints = (Plain(stderr=stderr, markup=False, highlight=False) for stderr in (False, True))

    def complain(sentence: str, status: int) -> int:
        complaints.print(sentence, style="red", soft_wrap=True)
        return status

    command = None
    try:
        command = parse(arguments)
        if isinstance(command, SweepCommand):
            sweep(command, console, again=lambda defaults: parse(arguments, default=defaults))
        elif isinstance(command, CaptureCommand):
            capture(command, console)
        elif isinstance(command, VerifyCommand):
            return 0 if verify_hf(command, console) else DISAGREED
        elif isinstance(command, PlanCommand):
            plan(command, console)
        elif isinstance(command, ExportCommand):
            export(command, console)
        else:
            report(command, console)
    except KeyboardInterrupt as stop:
        return complain(f"Interrupted{stop}.", 128 + getattr(stop, "signal", signal.SIGINT))
    except LacunaError as error:
        return complain(f"lacuna: {error}", 2)
    except BrokenPipeError:  # whoever read what is printed has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CRASHED if _is_one_of_several() else 128 + signal.SIGPIPE
    except OSError as error:
        given = f"{error.strerror}: {error.filename!s:.300}" if error.strerror and error.filename else error
        asked = LacunaError(
            "what is read must be there, and what is written must have a place to go",
            got=given,
            hint="another path, or room on its disk",
        )
        return complain(f"lacuna: {asked}", 2)
    except (MemoryError, RuntimeError) as error:  # JAX reports a full device as a RuntimeError
        first = (str(error).splitlines() or ["no more memory"])[0].rstrip(".")
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            if not _is_one_of_several():
                raise
            return complain(f"lacuna: all processes of a run must live to its end; got {first}{onwards()}.", CRASHED)
        if not isinstance(command, SweepCommand):
            return complain(f"lacuna: this must fit into memory; got {first}.", 2)
        smaller = "--num-candidates" if isinstance(error, MemoryError) else "--batch-size or --width"
        return complain(f"lacuna: the sweep must fit into memory; got {first}. Try: a smaller {smaller}.", 2)
    return 0
