"""`lacuna plan`: whether a language model fits on a mesh."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from lacuna.cli.tables import format_bytes, plain_table
from lacuna.errors import InvalidInput


@dataclass(frozen=True)
class PlanCommand:
    """Bytes that a language model needs on each device of a mesh, from its config and headers: no weight is read.

    Neither the devices nor the weights need be there; activations come on top.
    """

    model: str
    """Model folder, or an id on the hub such as Qwen/Qwen2.5-7B, of which the settings alone are fetched."""

    mesh: tuple[int, int] = (1, 1)
    """Devices on the axes `candidates` (copies of the model) and `model` (that each copy is split over)."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the parameters. Default: that of the files, or of the config."""

    device_gb: float | None = None
    """Memory of a device in 10^9 bytes. Default: that of the accelerator that is here, if there is one."""

    leaves: bool = False
    """List every leaf and how it is split."""

    ignore: tuple[str, ...] = ()
    """Fields of config.json that are not to be looked at, if you know that they change nothing."""


def plan(command: PlanCommand, console: Console) -> None:
    """Run `lacuna plan`."""
    from lacuna.checkpoints.plan import plan_hf

    if command.device_gb is not None and not command.device_gb > 0:
        raise InvalidInput("device_gb must be positive", got=command.device_gb)
    candidates, split = command.mesh
    options: dict[str, Any] = {"candidates": candidates, "dtype": command.dtype, "ignore": command.ignore}
    found = plan_hf(command.model, model=split, **options)
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
        fits = (n for n in wider if plan_hf(command.model, model=n, **options).needs()["parameters"] < limit)
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
