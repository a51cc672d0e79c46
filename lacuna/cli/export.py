"""`lacuna export`: a language model, or a candidate of a sweep, written anew."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from lacuna.cli.export_candidate import export_candidate
from lacuna.cli.tables import format_bytes
from lacuna.errors import InvalidInput


@dataclass(frozen=True)
class ExportCommand:
    """Write the weights of a sweep's winner, or a language model anew: in shards, or in another precision.

    Of a sweep's run folder: the candidate in the given place is made again from its integers, and its loss compared
    with the recorded one before anything is written and after it was read again. A language model becomes a Hugging
    Face folder, an adapter a folder of PEFT's, the synthetic model an Orbax checkpoint for
    lacuna.checkpoints.native.load.

    Of a language model: reads safetensors, shards or flax_model.msgpack, and writes safetensors with config.json and
    the tokenizer's files, for transformers, vLLM and lacuna. With --adapter, a LoRA adapter that PEFT wrote is added
    to the weights first. The folder is there whole at the end, or not at all.
    """

    source: tyro.conf.Positional[str]
    """Run folder of a sweep; or model folder, or an id on the hub: GPT-2, Llama, Qwen 1.5 to 3, OLMo or OLMo 2."""

    to: Path
    """Folder to write; must not be there, or be empty."""

    adapter: str | None = None
    """Folder of a LoRA adapter of the model, or its id on the hub: merged into the weights, which are rounded once."""

    place: int = 1
    """Which candidate of a sweep: 1 is the winner, as in its report."""

    cache: Path = Path("~/.cache/lacuna")
    """Folder that keeps trained starting points, of which a sweep's is one."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the file. Default: as it is."""

    max_shard_gb: float = 5.0
    """Largest file, in 10^9 bytes."""

    ignore: tuple[str, ...] = ()
    """Fields of config.json or adapter_config.json not to be looked at, if you know that they change nothing."""


def export(command: ExportCommand, console: Console) -> None:
    """Run `lacuna export`."""
    from lacuna.checkpoints import export_hf, load_hf
    from lacuna.checkpoints.export import check_new
    from lacuna.checkpoints.sources import find
    from lacuna.models import merged

    if not 1e-9 <= command.max_shard_gb < math.inf:
        raise InvalidInput(
            "max_shard_gb must be positive, 1e-9 (a byte) or more", got=command.max_shard_gb, hint="--max-shard-gb 5"
        )
    check_new(command.to)  # before a long read
    for name in ("source", "adapter"):
        if getattr(command, name) == "":
            raise InvalidInput(f"{name} must be a folder or an id", got="an empty one")
    run = _run_of(command.source)
    if run is not None:
        if command.adapter is not None:
            raise InvalidInput(
                "an adapter is merged into a language model",
                got=f"{command.source}, a run of a sweep",
                hint="no --adapter",
            )
        if command.ignore:
            raise InvalidInput(
                "ignore is an option of a language model", got=f"{command.source}, a run of a sweep", hint="no --ignore"
            )
        export_candidate(
            run,
            command.to,
            console,
            place=command.place,
            cache=command.cache,
            dtype=command.dtype,
            max_shard_bytes=int(1e9 * command.max_shard_gb),
        )
        return
    if command.place != 1:
        raise InvalidInput("place is an option of a run of a sweep", got=f"{command.source}, which is none")
    folder = find(command.source)
    told = partial(console.print, soft_wrap=True)
    adapter = None if command.adapter is None else _adapter(command.adapter, command, folder)
    # An adapter is added before the weights become narrower, or after they became wider: rounded once.
    read_as = command.dtype if adapter is None or command.dtype is None else "float32"
    console.print("Reading ...")
    model, params = load_hf(folder, dtype=read_as, ignore=command.ignore, report=lambda found: told(str(found)))
    if adapter is not None:
        sites = ", ".join(site.name for site in adapter.spec.sites)
        told(f"Merging an adapter of {adapter.base or 'a model that it does not name'}, at {sites} ...")
        params = merged(params, adapter.lora)
    most = int(1e9 * command.max_shard_gb)
    console.print("Writing ...")
    out = export_hf(
        model, params, command.to, like=folder, dtype=command.dtype, max_shard_bytes=most, ignore=command.ignore
    )
    written = sorted(file.name for file in out.iterdir())
    size = sum((out / name).stat().st_size for name in written)
    told(f"Wrote {format_bytes(size)} to {out}: {', '.join(written)}")


def _run_of(source: str) -> Path | None:
    """The folder, if it is that of a sweep."""
    try:
        folder = Path(source).expanduser()
        return folder if (folder / "identity.json").exists() else None
    except (OSError, RuntimeError):  # too long a name, or the home of nobody: `find` says so
        return None


def _adapter(source: str, command: ExportCommand, folder: Path) -> Any:
    """The adapter, checked against the config of the model alone: before a long read."""
    from lacuna.checkpoints import load_adapter
    from lacuna.checkpoints.configs import spec_from_config
    from lacuna.checkpoints.sources import read_config
    from lacuna.models import causal_lm

    model = causal_lm(spec_from_config(read_config(folder), ignore=command.ignore))
    # A folder may have any name; an id is compared with the one in the adapter.
    base = None if folder == Path(command.source).expanduser() else command.source
    return load_adapter(source, model, base=base, ignore=command.ignore)
