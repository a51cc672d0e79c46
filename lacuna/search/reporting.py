"""The report of a finished run: what its scores say beside what was predicted, written into its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lacuna import hosts
from lacuna.reports import records as record_files
from lacuna.reports import rundir, sweep_report
from lacuna.reports.records import Record
from lacuna.search.analysis import EXPERIMENT, sweep_records
from lacuna.search.held_out import held_out_records
from lacuna.search.landscape import landscape, unmeasured
from lacuna.search.realised import is_rounded, realised, realised_records
from lacuna.search.sweep import Progress, SweepResult, config_of
from lacuna.types import Batch, Loss, Objective, Params


def report_run(
    out: Path | str,
    result: SweepResult,
    loss: Loss | Objective,
    params: Params,
    batch: Batch,
    *,
    held_out: Batch | Sequence[Batch] | None = None,
    records: Sequence[Record] = (),
    config: Mapping[str, Any] | None = None,
    num_probes: int = 64,
    progress: Progress | None = None,
) -> tuple[Path, list[Record]]:
    """Predict, score the winners again, and write `records.jsonl`, the figures and `report.md` of a run.

    Where weights are kept in fewer bits than float32, what rounding left of the steps is measured, too, but for noise
    whose factors stood beside them: that was not rounded. An interrupted call leaves the report that was there. Every
    host calls it, the first one writes.

    Args:
      out: folder of the run.
      result: of `run_sweep` with this `out`.
      loss: its loss; twice differentiable, for the prediction.
      params: its base point.
      batch: what it scored.
      held_out: batches of the same kind that it did not see, for what survives of the gain and how well that is
        known; or one alone, and then there is no interval.
      records: others to keep and to show, of the quantity `metric`.
      config: what `config.json` is to say besides the settings: `title`, and the `command` that runs it again.
      num_probes: Hessian products for the estimate of the curvature's trace; at 0 nothing is predicted, and so it is
        for an `Objective` that is not smooth.
      progress: told after each of these of how many are done, and of how many.

    Returns:
      The path of `report.md`, and all records.
    """
    out = Path(out)
    smooth = not isinstance(loss, Objective) or loss.smooth
    if smooth and num_probes:
        around = landscape(loss, params, batch, result.sweep, num_probes=num_probes, progress=progress)
    else:
        around = unmeasured(params, result.sweep)
    found = sweep_records(result, around)
    if held_out is not None:
        found += held_out_records(result, loss, params, batch, held_out)
    beside = isinstance(loss, Objective) and loss.noisy_loss is not None and result.sweep.family.factored
    if is_rounded(params, result.sweep.family) and not beside:
        found += realised_records(realised(params, result.sweep))
    found += [Record(EXPERIMENT, "is_smooth", float(smooth), "1"), *records]

    def write() -> str:
        # Only now: an interrupted extension leaves the report of what was finished as it was.
        known = rundir.read_json(out / "config.json")
        kept = {name: known[name] for name in ("title", "command") if name in known}
        rundir.write_json(out / "config.json", known | config_of(result.sweep) | kept | dict(config or {}))
        rundir.write_json(out / "environment.json", _environment(out, result))
        rundir.write_json(out / "result.json", {"scores_sha256": result.sha256})
        record_files.write(out / "records.jsonl", found)
        rundir.seal(out)
        return str(sweep_report.write_report(out))

    return Path(hosts.agree(write)), found


def _environment(out: Path, result: SweepResult) -> dict[str, Any]:
    """What the scores were made with: of this call if it scored any, and of earlier ones that did it otherwise."""
    before = rundir.read_json(out / "environment.json")
    if not result.num_scored:
        return before
    now = rundir.environment(result.machine)
    told = ("commit", "dirty", "machine", "num_devices", "device_kind")
    known = before.get("earlier")
    earlier = [*(known if isinstance(known, list) else []), {name: before.get(name, "") for name in told}]
    return now | {"earlier": [one for one in earlier if one != {name: now[name] for name in told}]}
