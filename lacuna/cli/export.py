"""`lacuna export`: a language model, written anew."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from lacuna.cli.tables import format_bytes
from lacuna.errors import InvalidInput


@dataclass(frozen=True)
class ExportCommand:
    """Write a language model anew: one file or shards, in another precision, out of any form that is read.

    Reads safetensors, shards or flax_model.msgpack, and writes safetensors with config.json and the tokenizer's
    files, for transformers, vLLM and lacuna. The folder is there whole at the end, or not at all.
    """

    source: tyro.conf.Positional[str]
    """Model folder, or an id on the hub: GPT-2, Llama, Qwen 1.5 to 3, OLMo or OLMo 2."""

    to: Path
    """Folder to write; must not be there, or be empty."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the file. Default: as it is."""

    max_shard_gb: float = 5.0
    """Largest file, in 10^9 bytes."""

    ignore: tuple[str, ...] = ()
    """Fields of config.json that are not to be looked at, if you know that they change nothing."""


def export(command: ExportCommand, console: Console) -> None:
    """Run `lacuna export`."""
    from lacuna.checkpoints import export_hf, load_hf
    from lacuna.checkpoints.export import check_new
    from lacuna.checkpoints.sources import find

    if not 0 < command.max_shard_gb < math.inf:
        raise InvalidInput("max_shard_gb must be positive", got=command.max_shard_gb)
    check_new(command.to)  # before a long read
    folder = find(command.source)
    console.print("Reading ...")
    told = partial(console.print, soft_wrap=True)
    model, params = load_hf(folder, dtype=command.dtype, ignore=command.ignore, report=lambda found: told(str(found)))
    most = int(1e9 * command.max_shard_gb)
    console.print("Writing ...")
    out = export_hf(model, params, command.to, like=folder, max_shard_bytes=most, ignore=command.ignore)
    written = sorted(file.name for file in out.iterdir())
    size = sum((out / name).stat().st_size for name in written)
    console.print(f"Wrote {format_bytes(size)} to {out}: {', '.join(written)}", soft_wrap=True)
