"""The folder of a sweep: whose run it holds, and the scores that it has.

`identity.json` says what the scores depend on and makes a folder a run; `scores.log` holds them.
"""

from pathlib import Path
from typing import Any

from lacuna.errors import InvalidInput, RunMismatch
from lacuna.reports import rundir
from lacuna.search.ledger import Ledger

STAMP, LOG, TABLE = "identity.json", "scores.log", "scores.parquet"


def open_run(out: Path, identity: dict[str, Any], *, num_candidates: int, resume: bool) -> Ledger:
    """The score log of the run in `out`, which is made if there is none.

    Args:
      out: the folder.
      identity: all that a score depends on.
      num_candidates: N; the run that is there may have fewer draws, not more.
      resume: whether a run that is there may go on.

    Raises:
      RunMismatch: the folder holds something else, a run of another identity, one with more draws, or this
        one and `resume` is false; nothing in it was touched.
    """
    stamp, log = out / STAMP, out / LOG
    check_vacant(out)
    if log.exists() and log.stat().st_size:
        _check_identity(stamp, identity)
        if not resume:
            raise RunMismatch(f"{out} already holds this run", hint="resume=True, or another folder")
    else:  # a run that ended before it scored anything binds nobody
        if (out / TABLE).exists():
            _check_identity(stamp, identity)
        out.mkdir(parents=True, exist_ok=True)
        rundir.write_json(stamp, identity)
    ledger = Ledger(log, (len(identity["sigmas"]), 2 if identity["antithetic"] else 1))
    if ledger.num_draws > num_candidates:
        ledger.close()
        raise RunMismatch(
            f"{out} holds {ledger.num_draws:,} draws, and a run never gives any back",
            got=f"num_candidates {num_candidates}",
            hint=f"num_candidates {ledger.num_draws} or more, or another --out folder",
        )
    return ledger


def check_vacant(out: Path) -> None:
    """Raise unless a run can be kept in `out`: it is a run already, or empty, or can be made. Writes nothing.

    Raises:
      InvalidInput: it is a file, or may not be written to.
      RunMismatch: it holds something that is no sweep.
    """
    rundir.check_folder(out)
    for name in (STAMP, LOG, TABLE):
        if (out / name).is_dir():
            raise RunMismatch(f"{out / name} must be a file of a sweep", got="a folder", hint="another --out folder")
    if out.exists() and any(p.suffix != ".partial" for p in out.iterdir()) and not (out / STAMP).exists():
        raise RunMismatch(f"{out} is not empty and holds no sweep", hint="another --out folder")


def check_run(out: Path) -> int:
    """How many draws of the sweep in `out` are scored, up to the last one.

    Raises:
      InvalidInput: it holds no sweep.
    """
    identity = rundir.read_json(out / STAMP)
    if not (out / LOG).exists():
        return 0
    try:
        ledger = Ledger(out / LOG, (len(identity["sigmas"]), 2 if identity["antithetic"] else 1), lock=False)
    except (KeyError, TypeError) as fault:
        raise InvalidInput(
            f"{out / STAMP} must be the identity of a sweep", got=f"no {fault}", hint="the folder that a sweep printed"
        ) from fault
    ledger.close()
    return ledger.num_draws


def _check_identity(stamp: Path, identity: dict[str, Any]) -> None:
    try:
        known = rundir.read_json(stamp)
    except InvalidInput as damaged:
        raise RunMismatch(str(damaged), hint="another --out folder") from damaged
    differing = sorted(k for k in known.keys() | identity.keys() if known.get(k) != identity.get(k))
    if differing:
        first = differing[0]
        raise RunMismatch(
            f"{stamp.parent} holds a run of another identity (it differs in {', '.join(differing)}) and was left alone",
            got=f"{first} {identity.get(first)} against {known.get(first)} there",
            hint="another --out folder, or the settings of that run",
        )
