"""What `lacuna sweep` and `lacuna plan` have in common: what is searched, how, and on which devices."""

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from lacuna.errors import InvalidInput

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from lacuna.search import Family, Sweep
    from lacuna.setups import Setup
    from lacuna.types import Params

SEARCH_STEP = 1_000_000
"""Which training batch a sweep scores: one that no training here has seen."""


@dataclass(frozen=True)
class SweepOptions:
    """What is searched, how, and on which devices."""

    state: Literal["forgotten", "undertrained", "trained"] = "forgotten"
    """Starting point: the synthetic transformer trained on all digit tasks and then made to forget the
    task (forgotten), stopped early (undertrained), or trained to the end (trained)."""

    task: str = "sort"
    """Digit task whose loss is minimised: copy, reverse, sort, add, running_sum, rotate, complement,
    neighbour_sum, ..."""

    num_candidates: int = 1024
    """N: independent draws of noise. Each is scored at every sigma and sign."""

    sigmas: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Sizes of the steps, ascending, in the unit below. One draw serves all of them."""

    unit: Literal["sigma", "rms_radius", "exact_radius"] = "sigma"
    """What the sigmas measure: the standard deviation of the noise on each coordinate (sigma), the root mean
    square length of a step (rms_radius), or the length of every step (exact_radius)."""

    noise: Literal["gaussian", "rademacher", "low_rank"] = "gaussian"
    """Law of the noise: standard normals, random signs, or matrices of low rank."""

    rank: int = 1
    """Of low-rank noise."""

    scales: tuple[str, ...] = ()
    """Scales of leaves by regular expression on their names, PATTERN=NUMBER, the first that matches; a leaf that
    none matches is not moved. `layers/attention/.*=1` searches the attention alone."""

    relative: bool = False
    """Scale the noise of every leaf and layer by its root mean square, so that sigma is a relative radius."""

    antithetic: bool = True
    """Score both signs of every draw; needed for the odd/even (F1/F2) split."""

    seed: int = 0
    """Seed of the noise. Draw i depends on (seed, i) alone."""

    setup_seed: int = 0
    """Seed of the model's training and of all data."""

    batch_size: int = 128
    """Rows in the batch that every candidate is scored on (the same one for all)."""

    top_k: int | None = None
    """How many of the best candidates to list and to score again on held-out rows. Default: 16, or all."""

    chunk: int | None = None
    """Draws dispatched at once; sets how often progress is shown and how much a kill can lose. Changes no score.
    Default: about a second's worth."""

    width: int = 1
    """Candidates evaluated side by side on a device. 1 is best on a CPU; try 8 to 64 on a GPU or TPU."""

    probes: int = 64
    """Hessian products for the estimate of the curvature's trace."""

    mesh: tuple[int, int] | None = None
    """Devices on the axes `candidates` (side by side) and `model` (that each candidate is split over); their product
    is the number of devices, of all hosts. Default: all on `candidates`."""

    cache: Path = Path("~/.cache/lacuna")
    """Folder that keeps trained starting points."""

    compilation_cache: Path | None = None
    """Folder that keeps compiled programs, so that the next run starts at once. Nobody else should write to it."""


WHERE = frozenset({"mesh", "chunk", "cache", "compilation_cache"})
"""Options that say where and not what; a command that is to be run again leaves them out."""


def known_options(config: dict[str, Any], *, but: frozenset[str] = WHERE) -> dict[str, Any]:
    """The options that a run folder's `config.json` tells of, without those that say where it ran.

    Raises:
      InvalidInput: one of them is of another type.
    """
    known: dict[str, Any] = {}
    for field in fields(SweepOptions):
        if field.name in but or field.name not in config:
            continue
        value = config[field.name]
        if field.name in ("cache", "compilation_cache"):
            value = None if value is None else Path(str(value))
        value = tuple(value) if isinstance(value, list) else value
        if field.default is not None and not isinstance(value, type(field.default)):
            kind = type(field.default).__name__
            raise InvalidInput(f"config.json of a run must hold a {kind} as its {field.name}", got=repr(value))
        known[field.name] = value
    return known


def check(options: SweepOptions) -> "Sweep":
    """What to evaluate. What can be wrong with the options of the search is found here, before any training."""
    from lacuna import search

    for name, least in (("batch_size", 1), ("probes", 2), ("rank", 1)):
        if getattr(options, name) < least:
            raise InvalidInput(f"{name} must be at least {least}", got=getattr(options, name))
    if options.relative and options.scales:
        raise InvalidInput("relative scales every leaf by its size", got="scales, too", hint="one of the two")
    if options.scales:
        search.scaled(search.gaussian(), _scales(options))
    names = ("num_candidates", "seed", "antithetic", "top_k", "chunk", "width", "unit")
    return search.Sweep(search.gaussian(), options.sigmas, **{name: getattr(options, name) for name in names})


def with_family(sweep: "Sweep", options: SweepOptions, setup: "Setup") -> "Sweep":
    """The sweep with the noise that the options ask for, on the model of the setup."""
    from lacuna import search

    stacked = setup.model.stacked
    family: Family
    if options.noise == "gaussian":
        family = search.gaussian(stacked=stacked)
    elif options.noise == "rademacher":
        family = search.rademacher(stacked=stacked)
    else:
        family = search.low_rank(options.rank, stacked=stacked)
    if options.relative:
        family = search.scaled(family, search.relative_scales(setup.params, stacked=stacked))
    elif options.scales:
        family = search.scaled(family, _scales(options))
    family.check(setup.params)
    return replace(sweep, family=family)


def _scales(options: SweepOptions) -> dict[str, float]:
    found = {}
    for text in options.scales:
        pattern, _, number = text.rpartition("=")
        try:
            found[pattern] = float(number)
        except ValueError as fault:
            raise InvalidInput("scales are PATTERN=NUMBER", got=f"`{text}`", hint="'layers/.*=1'") from fault
    return found


def start(options: SweepOptions) -> None:
    """Say to JAX what must be said before anything touches a device."""
    from lacuna import meshes

    meshes.use_all_cpu_cores()
    keep_programs(options)


def keep_programs(options: SweepOptions) -> None:
    """Turn the cache of compiled programs on, if the options name one."""
    from lacuna import meshes
    from lacuna.reports import rundir

    if options.compilation_cache is not None:
        folder = options.compilation_cache.expanduser()
        rundir.check_folder(folder)
        meshes.keep_compiled(folder)


def mesh_of(options: SweepOptions) -> "Mesh":
    """The mesh that the options ask for, over the devices of all hosts."""
    import jax

    from lacuna import meshes

    if options.mesh is None:
        return meshes.candidate_mesh()
    candidates, model = options.mesh
    num_devices = jax.device_count()
    if min(candidates, model) < 1 or candidates * model != num_devices:
        raise InvalidInput(
            f"mesh must be two numbers whose product is the number of devices, {num_devices}",
            got=f"{candidates} {model}",
            hint=f"--mesh {num_devices} 1",
        )
    return meshes.model_mesh(model)


def prepare(options: SweepOptions, console: Console) -> "Setup":
    """The starting point, with a progress line for each training that has to be run."""
    from contextlib import ExitStack

    from lacuna import setups
    from lacuna.reports.progress import Advance, progress

    with ExitStack() as stack:
        shown: dict[str, Advance] = {}

        def advance(stage: str, step: int, num_steps: int, loss: float) -> None:
            if stage not in shown:
                stack.close()  # the stage before is over
                shown[stage] = stack.enter_context(progress(console, stage, unit="steps"))
            shown[stage](step, num_steps, f"loss {loss:.3f}")

        config = setups.SetupConfig(state=options.state, task=options.task, seed=options.setup_seed)
        return setups.prepare(
            config,
            eval_batch_size=options.batch_size,
            cache=options.cache,
            advance=advance,
            notice=lambda sentence: console.print(sentence, style="yellow", soft_wrap=True),
        )


def placed(options: SweepOptions, params: "Params", mesh: "Mesh") -> "Params":
    """The parameters on the mesh, if it has a second axis that splits them."""
    if options.mesh is None or options.mesh[1] == 1:
        return params
    from lacuna.models import sharding

    return sharding.place(params, mesh)


def command_line(command: str, options: SweepOptions, kind: type) -> str:
    """The shortest command that asks for the same: options that differ from their defaults, less where it runs.

    Args:
      command: its name.
      options: its options.
      kind: the dataclass whose fields count.
    """
    words = ["lacuna", command]
    for field in fields(kind):
        value = getattr(options, field.name)
        if value == field.default or field.name in WHERE:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(str(v) for v in (value if isinstance(value, tuple) else (value,)))]
    return shlex.join(words)
