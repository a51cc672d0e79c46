"""The weights of a sweep's candidate, written for others to load, its loss scored again from the files."""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lacuna.cli import points
from lacuna.cli.options import SweepOptions, known_options, start
from lacuna.errors import InvalidInput

if TYPE_CHECKING:
    from lacuna.cli.points import Point
    from lacuna.reports.records import Record
    from lacuna.setups import LanguageSetup
    from lacuna.types import Params

TOLERANCE = 1e-5
"""Relative: how far the loss of the same weights may be from the recorded one on another machine."""


def export_candidate(
    run: Path, to: Path, console: Console, *, place: int, cache: Path, dtype: str | None, max_shard_bytes: int
) -> None:
    """Write one of the best candidates of a sweep, after its loss came out as it was recorded.

    A language model is written as a Hugging Face folder, the factors of an adapter as PEFT's, the synthetic model as an
    Orbax checkpoint. What was written is read again and scored.

    Args:
      run: folder of the sweep.
      to: folder to write.
      console: where to print.
      place: 1 is the winner, as in the report.
      cache: folder of trained starting points.
      dtype: of the file; None keeps what was searched.
      max_shard_bytes: of a file.

    Raises:
      InvalidInput: no finished sweep, no such place, or weights that do not score as recorded; nothing is left behind.
    """
    from lacuna.reports import rundir

    config, identity = rundir.read_json(run / "config.json"), rundir.read_json(run / "identity.json")
    record = _recorded(run, place)
    if "state" not in config:
        raise InvalidInput(
            f"{run} must be a run of `lacuna sweep`",
            got="one around weights that this command does not know",
            hint="lacuna.search.candidate(params, sweep, index, sigma, sign) makes them again",
        )
    options = SweepOptions(**known_options(config), cache=cache)
    if dtype is not None and (options.model is None or options.adapter is not None):
        raise InvalidInput(
            "dtype is of a language model's weights", got=f"a run around {points.title(options)}", hint="no --dtype"
        )
    start(options)  # before anything touches a device

    from lacuna import search, trees
    from lacuna.search.objectives import with_data

    mesh = points.mesh_of(options)
    settings = points.check(options, mesh)
    setup = points.prepare(options, mesh, console)
    if trees.content_digest(setup.params) != identity["params_sha256"]:
        changed = "the files of that run" if options.model else "the --cache folder of that run"
        got = "other files" if options.model else "others, trained on another machine or by another version"
        raise InvalidInput(f"the weights that {run} was searched around must be there", got=got, hint=changed)
    scored_on = with_data(setup.task.objective, setup.batch)[1]  # of an adapter the weights below it, too
    if trees.content_digest(scored_on) != identity["batch_sha256"]:
        below = " with the weights below its adapter" * bool(options.adapter)
        raise InvalidInput(
            f"the rows that {run} was scored on must be there{below}",
            got=f"others in {options.task}",
            hint="the files and data sets of that run",
        )
    sweep = points.with_family(settings, options, setup)
    index, sigma, sign = (record.where[name] for name in ("index", "sigma", "sign"))
    chosen = search.Candidate(int(index), float(sigma), int(sign), record.value)
    scored = float(search.rescore(setup.task.objective, setup.params, setup.batch, sweep, (chosen,))[0])
    if not _close(scored, record.value):
        raise InvalidInput(
            f"candidate {index} of {run} must have its recorded loss {record.value:.9g}",
            got=f"{scored:.9g}",
            hint="the machine and the versions of that run",
        )
    same = "bit for bit" if scored == record.value else "to rounding"
    console.print(f"Draw {index} at σ = {sigma:g}, sign {sign:+d}: {record.value:.6g}, as recorded {same}.")
    winner = search.candidate(setup.params, sweep, chosen.index, chosen.sigma, chosen.sign)
    recipe = {"run": str(run), "place": place, "index": index, "sigma": sigma, "sign": sign, "loss": scored}
    _write(setup, winner, to, options=options, dtype=dtype, max_shard_bytes=max_shard_bytes, recipe=recipe)
    again = _score_of_files(setup, to, options)
    rounded = sweep.family.factored and search.is_rounded(setup.params, sweep.family)
    if rounded:
        told = "The noise stood beside narrow weights, in factors, and is now added to them: that is a rounding."
        console.print(told, soft_wrap=True)
    if not _close(again, record.value) and dtype is None and not rounded:
        _remove(to)
        raise InvalidInput(
            f"what was written must score as the sweep recorded, {record.value:.9g}",
            got=f"{again:.9g}; it was removed",
            hint="the machine and the versions of that run",
        )
    apart = "bit for bit the same" if again == record.value else f"{again - record.value:+.2g} beside the recorded one"
    console.print(f"Wrote it to {to}; read from there its loss is {again:.6g}, {apart}.", soft_wrap=True)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _recorded(run: Path, place: int) -> "Record":
    """The record of a candidate."""
    from lacuna.reports import records

    if not (run / "records.jsonl").exists():
        onwards = f"lacuna sweep --resume {shlex.quote(str(run))}"
        raise InvalidInput(f"{run} must be a finished sweep", got="one that was interrupted", hint=onwards)
    found = records.select(records.read(run / "records.jsonl"), "top_score")
    if not 1 <= place <= len(found):
        raise InvalidInput(f"place must be one of the {len(found)} in the report of {run}", got=place, hint="--place 1")
    return found[place - 1]


def _write(
    setup: "Point",
    winner: "Params",
    to: Path,
    *,
    options: SweepOptions,
    dtype: str | None,
    max_shard_bytes: int,
    recipe: dict[str, Any],
) -> None:
    from lacuna import setups
    from lacuna.checkpoints import Adapter, export_hf, load_tokenizer, native, save_adapter

    if not isinstance(setup, setups.LanguageSetup):
        native.save(to, winner, {"recipe": {**recipe, "seed": options.seed, "unit": options.unit}})
        return
    opened = setup.language_model
    if opened.adapter is not None:
        save_adapter(to, setup.model, Adapter(opened.adapter.spec, winner), base=options.model)
        return
    like = opened.folder
    export_hf(setup.model, winner, to, like=like, dtype=dtype, max_shard_bytes=max_shard_bytes, ignore=options.ignore)
    if options.tokenizer:  # the model's own folder may have none
        load_tokenizer(options.tokenizer).save_pretrained(to)


def _score_of_files(setup: "Point", to: Path, options: SweepOptions) -> float:
    """The loss of what was written, read anew, on the batch of the sweep."""
    import jax

    from lacuna import search, setups
    from lacuna.checkpoints import load_adapter, native

    if not isinstance(setup, setups.LanguageSetup):
        params = native.load(to, jax.eval_shape(lambda: setup.params))
    elif setup.language_model.adapter is not None:
        params = load_adapter(to, setup.model).params
    else:
        params = _read_as_searched(setup, to, options)
    return float(search.score(setup.task.objective, params, setup.batch))


def _read_as_searched(setup: "LanguageSetup", to: Path, options: SweepOptions) -> "Params":
    """The weights of the folder, each leaf in the dtype that it was searched in."""
    import jax

    from lacuna.checkpoints import load_hf

    read = load_hf(to, dtype="float32", ignore=options.ignore)[1]
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), read, setup.params)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
