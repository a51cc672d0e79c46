"""`lacuna plan`: what a sweep takes, or whether a language model fits on a mesh."""

import math
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console

from lacuna.cli import options as sweep_options
from lacuna.cli import points
from lacuna.cli.options import SweepOptions
from lacuna.cli.tables import format_bytes, plain_table
from lacuna.errors import InvalidInput

TRIAL_S = 2.0
"""Seconds that a sweep is tried for."""


OF_A_MODEL = frozenset({"model", "dtype", "ignore", "mesh", "device_gb", "leaves", "cache", "compilation_cache"})
"""Options that a plan of a model heeds, or that change nothing anywhere."""


@dataclass(frozen=True)
class PlanCommand(SweepOptions):
    """What a sweep takes before it runs: operations, memory, candidates a second and time, by a trial of seconds.

    Takes the options of `lacuna sweep`. With --model and no --task: the bytes that a language model needs on each
    device of a mesh, from its config and headers, in the dtype of its files if none is given; no weight is read or
    fetched, neither the devices nor the weights need be there, and activations come on top.
    """

    device_gb: float | None = None
    """Memory of a device in 10^9 bytes. Default: that of the accelerator that is here, if there is one."""

    leaves: bool = False
    """With --model and no --task: list every leaf and how it is split."""


def plan(command: PlanCommand, console: Console) -> None:
    """Run `lacuna plan`."""
    if command.device_gb is not None and not 0 < command.device_gb < math.inf:
        raise InvalidInput("device_gb must be positive and finite", got=command.device_gb, hint="--device-gb 80")
    of_sweep = command.model is None or command.task is not None
    default = PlanCommand()
    given = [one.name for one in fields(PlanCommand) if getattr(command, one.name) != getattr(default, one.name)]
    unheeded = [name for name in given if (name == "leaves" if of_sweep else name not in OF_A_MODEL)]
    if unheeded:
        got = "a plan of a sweep" if of_sweep else "no --task, and so a plan of the model alone"
        hint = f"no --{unheeded[0].replace('_', '-')}"
        raise InvalidInput(f"{unheeded[0]} is an option of a {'model' if of_sweep else 'sweep'}", got=got, hint=hint)
    if command.model is None or of_sweep:
        _plan_sweep(command, console)
    else:
        _plan_model(command, command.model, console)


def _plan_sweep(command: PlanCommand, console: Console) -> None:
    sweep_options.start(command)  # before anything touches a device
    mesh = points.mesh_of(command)
    settings = points.check(command, mesh)

    from lacuna import search

    setup = points.prepare(command, mesh, console)
    settings = points.with_family(settings, command, setup)
    console.print(f"Compiling, and trying it for {TRIAL_S:g} s on {mesh.size} device(s) ...")
    found = search.plan_sweep(setup.task.objective, setup.params, setup.batch, settings, mesh=mesh, trial_s=TRIAL_S)
    table = plain_table("a sweep of", f"{settings.num_candidates:,} draws")
    on_device = found.params_bytes + found.data_bytes + found.working_bytes
    for what, number in {
        "candidates (draws x sigmas x signs)": f"{found.num_evaluations:,}",
        "FLOPs of one": f"{found.flops:.3g}",
        "FLOPs of all": f"{found.flops * found.num_evaluations:.3g}",
        "on each device: parameters": format_bytes(found.params_bytes),
        "    data, and a basis or scales": format_bytes(found.data_bytes),
        "    noise, weights, activations": format_bytes(found.working_bytes),
        "on each host: the table of scores": format_bytes(found.host_bytes),
        "on disk, about": format_bytes(found.disk_bytes),
        "candidates a second": f"{found.rate:,.1f}",
        "FLOPs a second": f"{found.flops * found.rate:.3g}",
        "compilation": f"{found.compile_s:.1f} s",
        "search": _duration(found.eta_s),
    }.items():
        table.add_row(what, number)
    console.print(table)
    limit = 1e9 * command.device_gb if command.device_gb is not None else _accelerator_bytes()
    if limit:
        verdict = "fits" if on_device < limit else "does NOT fit"
        console.print(f"{format_bytes(on_device)} {verdict} into the {limit / 1e9:,.1f} GB of a device.")
    console.print(sweep_options.command_line("sweep", command, SweepOptions), soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _plan_model(command: PlanCommand, model: str, console: Console) -> None:
    from lacuna.checkpoints.plan import plan_hf

    candidates, split = command.mesh or (1, 1)
    options: dict[str, Any] = {"candidates": candidates, "dtype": command.dtype, "ignore": command.ignore}
    found = plan_hf(model, model=split, **options)
    known = "checked against the headers of its weights" if found.checked else "from its config alone"
    console.print(
        f"{found.folder}, {known}: {found.num_parameters:,} parameters, {format_bytes(found.num_bytes)} "
        f"as {found.dtype}; {candidates} model(s), each on {split} device(s).",
        soft_wrap=True,
    )
    unit, scale = ("GB", 1e9) if found.num_bytes > 1e9 else ("MB", 1e6)
    if command.leaves:
        leaves = plain_table("leaf", "shape / devices", unit)
        for leaf in found.leaves:
            shares = (f"{n} / {n // m}" if n != m else str(n) for n, m in zip(leaf.shape, leaf.part, strict=True))
            part = math.prod(leaf.part) * found.dtype.itemsize
            leaves.add_row(leaf.name, " x ".join(shares), f"{part / scale:,.2f}")
        console.print(leaves)
    limit = 1e9 * command.device_gb if command.device_gb is not None else _accelerator_bytes()
    table = plain_table("on each device", unit, *(["of its memory", ""] if limit else []))
    for what, num_bytes in found.needs().items():
        judged = [f"{100 * num_bytes / limit:.0f} %", "fits" if num_bytes < limit else "TOO LARGE"] if limit else []
        table.add_row(what, f"{num_bytes / scale:,.2f}", *judged)
    console.print(table)
    if limit and found.needs()["parameters"] >= limit:
        wider = (split * 2**i for i in range(1, 11))
        fits = (n for n in wider if plan_hf(model, model=n, **options).needs()["parameters"] < limit)
        enough = next(fits, None)
        if enough is None:
            console.print(f"The parameters fit on none of --mesh {candidates} {2 * split}, {4 * split}, ...")
        else:
            console.print(f"The parameters fit on --mesh {candidates} {enough}: {candidates * enough} devices.")
    if found.repeated and split > 1:
        console.print(f"{format_bytes(found.repeated * found.dtype.itemsize)} of it lie whole on every device.")


def _accelerator_bytes() -> float | None:
    """Memory of the first device, where that is not the host's own."""
    import jax

    device = jax.local_devices()[0]
    return None if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit")
