"""What the options of a search ask for: a point in a model's parameters, a task there, a law of noise, and a mesh."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lacuna.cli.options import SweepOptions
from lacuna.cli.tables import format_bytes
from lacuna.errors import InvalidInput

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from lacuna.captures.bases import BasisSpec
    from lacuna.search import Family, Sweep
    from lacuna.setups import LanguageSetup, ModelConfig, Setup, SetupConfig, TaskConfig

    Point = Setup | LanguageSetup

DIGIT_TASK = "sort"
"""Of the synthetic transformer, if none is named."""


def check(options: SweepOptions, mesh: "Mesh") -> "Sweep":
    """What to evaluate. What can be wrong with the options of the search is found here, before anything is loaded.

    Args:
      options: of the search.
      mesh: on which.

    Raises:
      InvalidInput: a value outside its domain, options that exclude each other, or a model that does not fit.
    """
    from lacuna import search, trees

    _check_numbers(options)
    if options.probes < 2 and options.probes != 0:
        raise InvalidInput("probes must be at least 2, or 0 for no prediction", got=options.probes, hint="--probes 64")
    if options.relative and options.scales:
        raise InvalidInput("relative scales every leaf by its size", got="scales, too", hint="one of the two")
    if options.basis is not None:
        _basis_spec(options)
        if options.noise != "gaussian":
            raise InvalidInput("noise in a basis is gaussian", got=options.noise, hint="no --noise or no --basis")
    names = ("num_candidates", "seed", "antithetic", "top_k", "chunk", "width", "unit")
    sweep = search.Sweep(search.gaussian(), options.sigmas, **{name: getattr(options, name) for name in names})
    _check_heeded(options)
    like, stacked = _shapes(options)
    trial = _moved(sweep, options, stacked)
    trial.family.check(like)
    if options.basis is None and not options.relative:
        trial.scale(like)  # raises for what moves nothing, or by no float32 number
    size = trees.size(like)
    if options.basis is not None and options.basis_rank > size:
        raise InvalidInput(f"basis_rank must be at most the {size:,} numbers that move", got=options.basis_rank)
    if options.model is not None:
        _check_fits(options, options.model, mesh)
    return sweep


def _check_numbers(options: SweepOptions) -> None:
    """Raise for counts that cannot be, or that no array can have as its size, and for words that are empty."""
    least = {"batch_size": 1, "rank": 1, "basis_rank": 1, "adapter_rank": 1, "length": 2}
    for name in (*least, "probes", "width", "chunk", "top_k"):
        value = getattr(options, name)
        if value is not None and not least.get(name, value) <= value < MOST:
            asked = f"at least {least[name]}" if value < MOST else "below 2^31"
            raise InvalidInput(f"{name} must be {asked}", got=value)
    for name in ("model", "task", "adapter", "tokenizer"):
        if getattr(options, name) == "":
            raise InvalidInput(f"{name} must be a name or a path", got="an empty one", hint=f"no --{name} at all")


def _shapes(options: SweepOptions) -> "tuple[Any, Callable[[str], bool]]":
    """The tree that is searched around, of shapes alone, and which leaves are stacked. No weight is read."""
    import jax

    from lacuna import setups

    key = jax.random.key(0)
    if options.model is None:
        model = setups.digit_model()
        return jax.eval_shape(model.init, key), model.stacked
    own, _ = language_configs(options)
    model, lora, adapter = setups.architecture(own)
    if lora is not None:
        return jax.eval_shape(lora.init, key), model.stacked
    return (jax.eval_shape(model.init, key) if adapter is None else adapter.params), model.stacked


MOST = 2**31
"""What an axis of an array cannot have."""

OF_A_MODEL = ("tokenizer", "objective", "dtype", "adapter", "split", "length", "begin", "held_out_share", "ignore")
"""Options that say nothing without --model."""


def _check_heeded(options: SweepOptions) -> None:
    """Raise for options that would change nothing, or leave nothing to be searched."""
    from lacuna.setups import language_tasks

    if options.model is not None and options.task is None:
        raise InvalidInput("a search around a language model needs a task", got="none", hint="--task FILE")
    given = {field.name for field in fields(SweepOptions) if getattr(options, field.name) != field.default}
    for names, of, got in (
        ((*OF_A_MODEL, "layerwise"), "a language model", "" if options.model else "no --model"),
        (("adapter_rank", "adapter_sites"), "a new adapter", "" if options.adapter == "new" else "no --adapter new"),
        (("basis_rank",), "a search in a basis", "" if options.basis else "no --basis"),
        (("rank",), "low-rank noise", "" if options.noise == "low_rank" else f"--noise {options.noise}"),
        (("state",), "the synthetic transformer", "--model" if options.model else ""),
    ):
        unheeded = [name for name in names if name in given and got]
        if unheeded:
            raise InvalidInput(
                f"{unheeded[0]} is an option of {of}", got=got, hint=f"no --{unheeded[0].replace('_', '-')}"
            )
    whole = {"basis": options.basis, "adapter": options.adapter, "noise": options.noise == "low_rank" and "low_rank"}
    made_otherwise = [f"--{name} {value}" for name, value in whole.items() if value]
    if options.layerwise and made_otherwise:
        raise InvalidInput(
            "layerwise is for noise in full on all weights", got=made_otherwise[0], hint="no --layerwise"
        )
    if options.relative and options.adapter == "new":
        raise InvalidInput("relative would not move a new adapter", got="factors that are zero", hint="no --relative")
    if options.basis not in (None, "random") and options.objective not in language_tasks.SMOOTH:
        asked = f"a {options.basis} basis needs a loss with a gradient"
        raise InvalidInput(asked, got=options.objective, hint="--objective nats")


PREDICTION_BYTES = 24
"""Of each weight, for the slope and the curvature at the base point: about as many as the compiled program asks for."""


def _check_fits(options: SweepOptions, model: str, mesh: "Mesh") -> None:
    """Raise if the weights and what a search adds do not fit into the memory of a device, by the headers alone."""
    from lacuna import meshes
    from lacuna.checkpoints.plan import plan_hf
    from lacuna.setups import language_tasks

    limit = device_bytes(mesh)
    if limit is None:
        return
    predicted = options.adapter is None and options.probes > 0 and options.objective in language_tasks.SMOOTH

    def needed(asked: SweepOptions, split: int) -> int:
        found = plan_hf(model, model=split, dtype=asked.dtype or "float32", ignore=options.ignore)
        needs, held = found.needs(), found.parameters_per_device
        weights = needs["parameters"]
        if options.adapter is not None:
            return weights
        beside = needs["and one layer of a candidate" if asked.layerwise else "and a whole candidate"] - weights
        if options.noise == "low_rank":  # of which no matrix is formed
            beside = 0
        if predicted and asked.probes:
            beside = max(beside, PREDICTION_BYTES * held)
        if options.basis is None:
            return weights + beside
        rows = options.basis_rank * held
        making = (16 if options.basis == "gradient" else 8) * rows  # as `task_basis` says
        return weights + max(making, 4 * rows + beside)

    split = mesh.shape.get(meshes.MODEL, 1)
    asked = needed(options, split)
    if asked < limit:
        return
    tries: dict[str, dict[str, Any]] = {
        "--probes 0": {"probes": 0},
        "--layerwise": {"layerwise": True},
        "--dtype bfloat16": {"dtype": "bfloat16"},
        "--probes 0 --layerwise": {"probes": 0, "layerwise": True},
        "--probes 0 --dtype bfloat16": {"probes": 0, "dtype": "bfloat16"},
        "--probes 0 --dtype bfloat16 --layerwise": {"probes": 0, "dtype": "bfloat16", "layerwise": True},
    }
    fits = [how for how, other in tries.items() if needed(replace(options, **other), split) < limit]
    wider = (n for n in (2, 4, 8, 16, 32, 64) if n > split and needed(options, n) < limit)
    fits += [f"--mesh 1 {n} on {n} devices" for n in wider]
    added = ["a candidate" if options.basis is None else "a basis", *["what is predicted"] * predicted]
    told = " and ".join(["its weights", *(() if options.adapter else added)])
    raise InvalidInput(
        f"{model} must fit: {told} take {format_bytes(asked)} of each device as {options.dtype or 'float32'}, "
        "activations on top",
        got=f"{format_bytes(limit)} there",
        hint=fits[0] if fits else "a smaller model" + ", or a smaller --basis-rank" * (options.basis is not None),
    )


def device_bytes(mesh: "Mesh") -> int | None:
    """Memory of a device of this host; of a CPU device its share of what the host has."""
    local = [device for device in mesh.devices.flat if device.process_index == mesh.local_devices[0].process_index]
    if local[0].platform != "cpu":
        return (local[0].memory_stats() or {}).get("bytes_limit")
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(local)


def mesh_of(options: SweepOptions) -> "Mesh":
    """The mesh that the options ask for, over the devices of all hosts."""
    from lacuna import meshes

    if options.mesh is None:
        return meshes.candidate_mesh()
    candidates, model = options.mesh
    num_devices = len(meshes.all_devices())
    if min(candidates, model) < 1 or candidates * model != num_devices:
        raise InvalidInput(
            f"mesh must be two numbers whose product is the number of devices, {num_devices}",
            got=f"{candidates} {model}",
            hint=f"--mesh {num_devices} 1",
        )
    return meshes.model_mesh(model)


def prepare(options: SweepOptions, mesh: "Mesh", console: Console) -> "Point":
    """The point and the task, the parameters split over the mesh if it has a second axis."""
    import jax

    from lacuna import hosts, setups
    from lacuna.models import sharding

    splits = options.mesh is not None and options.mesh[1] > 1
    if options.model is not None:
        console.print(f"Reading {options.task} and {options.model} ...", soft_wrap=True)
        own, task = language_configs(options)
        return setups.prepare_language(
            own,
            task,
            mesh=mesh if splits else None,
            layerwise=options.layerwise,
            notice=partial(console.print, style="yellow", soft_wrap=True),
        )
    digits = partial(
        prepare_digits, _digits_config(options), console, batch_size=options.batch_size, cache=options.cache
    )
    if jax.process_count() == 1:
        setup = digits()
    else:  # the first host loads or trains it, the others are told
        ready: list[Setup] = []
        hosts.agree(lambda: ready.append(digits()))
        if not ready:
            config = _digits_config(options)
            ready.append(setups.untrained(config, eval_batch_size=options.batch_size))
        params = jax.tree.map(lambda leaf: jax.numpy.asarray(hosts.share(jax.device_get(leaf))), ready[0].params)
        setup = ready[0]._replace(params=params)
    return setup._replace(params=sharding.place(setup.params, mesh)) if splits else setup


def language_configs(options: SweepOptions) -> "tuple[ModelConfig, TaskConfig]":
    """The model and the task that the options name."""
    from lacuna import setups

    assert options.model is not None
    assert options.task is not None
    own = setups.ModelConfig(
        source=options.model,
        tokenizer=options.tokenizer or "",
        dtype=options.dtype or "float32",
        adapter=options.adapter or "",
        adapter_rank=options.adapter_rank,
        adapter_sites=options.adapter_sites,
        ignore=options.ignore,
    )
    task = setups.TaskConfig(
        source=options.task,
        split=options.split,
        objective=options.objective,
        length=options.length,
        batch_size=options.batch_size,
        held_out_share=options.held_out_share,
        begin=options.begin,
        seed=options.setup_seed,
    )
    return own, task


def prepare_digits(config: "SetupConfig", console: Console, *, batch_size: int, cache: Path) -> "Setup":
    """The synthetic model, with a progress line for each training that has to be run.

    Args:
      config: which starting point.
      console: where what is done is said.
      batch_size: rows in a batch of its task.
      cache: folder that keeps what was trained.
    """
    from lacuna import setups
    from lacuna.reports.progress import Advance, progress

    notice = partial(console.print, style="yellow", soft_wrap=True)
    with ExitStack() as stack:
        shown: dict[str, Advance] = {}

        def advance(stage: str, step: int, num_steps: int, loss: float) -> None:
            if stage not in shown:
                stack.close()  # the stage before is over
                shown[stage] = stack.enter_context(progress(console, stage, unit="steps"))
            shown[stage](step, num_steps, f"loss {loss:.3f}" if step else "compiling")

        return setups.prepare(config, eval_batch_size=batch_size, cache=cache, advance=advance, notice=notice)


def _digits_config(options: SweepOptions) -> "SetupConfig":
    from lacuna import setups

    task = DIGIT_TASK if options.task is None else options.task
    return setups.SetupConfig(state=options.state, task=task, seed=options.setup_seed)


def title(options: SweepOptions) -> str:
    """What is searched around, for the head of a report."""
    if options.model is None:
        return f"{options.state} synthetic transformer, task `{options.task or DIGIT_TASK}`"
    what = f"{options.model}, task `{options.task}` ({options.objective})"
    return f"adapter {options.adapter} of {what}" if options.adapter else what


def with_family(sweep: "Sweep", options: SweepOptions, setup: "Point") -> "Sweep":
    """The sweep with the noise that the options ask for, at the point of the setup."""
    from lacuna import search

    stacked = setup.model.stacked
    if options.basis is not None:
        family = _in_basis(options, setup)
        sweep = replace(sweep, family=search.scaled(family, _scales(options)) if options.scales else family)
    else:
        sweep = _moved(sweep, options, stacked)
    if options.relative:
        scales = search.relative_scales(setup.params, stacked=stacked)
        sweep = replace(sweep, family=search.scaled(sweep.family, scales))
    sweep.family.check(setup.params)
    return sweep


def _moved(sweep: "Sweep", options: SweepOptions, stacked: Callable[[str], bool]) -> "Sweep":
    """The sweep with noise of the law that is asked for, not in a basis, and with the scales that are given."""
    from lacuna import search

    family: Family
    if options.noise == "low_rank":
        family = search.low_rank(options.rank, stacked=stacked)
    else:
        family = (search.gaussian if options.noise == "gaussian" else search.rademacher)(stacked=stacked)
    return replace(sweep, family=search.scaled(family, _scales(options)) if options.scales else family)


def _basis_spec(options: SweepOptions) -> "BasisSpec":
    from lacuna.captures.bases import BasisSpec

    assert options.basis is not None
    return BasisSpec(options.basis, rank=options.basis_rank)


def _in_basis(options: SweepOptions, setup: "Point") -> "Family":
    """Noise in a basis of the task at the point, from rows that no candidate is scored on."""
    from lacuna import search
    from lacuna.captures.bases import task_basis

    task = setup.task
    basis = task_basis(_basis_spec(options), task.objective.loss, setup.params, task.train, seed=options.setup_seed)
    return search.in_basis(basis, stacked=setup.model.stacked)


def _scales(options: SweepOptions) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in options.scales:
        pattern, _, number = text.rpartition("=")
        try:
            if pattern in found:
                raise InvalidInput("scales must name a pattern once", got=f"`{pattern}` twice")
            found[pattern] = float(number)
        except ValueError as fault:
            raise InvalidInput("scales are PATTERN=NUMBER", got=f"`{text}`", hint="'layers/.*=1'") from fault
    return found
