"""`lacuna verify-hf`: a language model, read by us and by transformers."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from lacuna.cli.tables import plain_table
from lacuna.errors import InvalidInput


@dataclass(frozen=True)
class VerifyCommand:
    """Compare our reading of a Hugging Face model with transformers, layer by layer, in float32.

    Needs torch (pip install 'lacuna[parity]'). Exit status 0 if all levels agree, 1 if one does not.
    """

    source: tyro.conf.Positional[str]
    """Model folder, or an id on the hub: GPT-2, Llama, Qwen 1.5 to 3, OLMo or OLMo 2."""

    text: str | None = None
    """What both read; needs a tokenizer. Random tokens, some rows padded on the left, if it is not given."""

    tokenizer: Path | None = None
    """Folder of the tokenizer, if it is not the model's."""

    length: int = 64
    """Random tokens in a row."""

    ignore: tuple[str, ...] = ()
    """Fields of config.json that are not to be looked at, if you know that they change nothing."""


def verify_hf(command: VerifyCommand, console: Console) -> bool:
    """Run `lacuna verify-hf`; whether all levels agree."""
    import numpy as np

    from lacuna.checkpoints import verify
    from lacuna.checkpoints.configs import spec_from_config
    from lacuna.checkpoints.hf import load_tokenizer
    from lacuna.checkpoints.sources import find, read_config

    if command.length < 2:
        raise InvalidInput("length must be at least 2", got=command.length, hint="--length 64")
    if command.text is None and command.tokenizer is not None:
        raise InvalidInput("tokenizer is an option of a text", got="no --text", hint="no --tokenizer")
    if command.text is not None and command.length != VerifyCommand.length:
        raise InvalidInput("length is that of random tokens", got="--text", hint="no --length")
    folder = find(command.source)
    spec = spec_from_config(read_config(folder), ignore=command.ignore)
    if command.text is None:
        tokens, mask = verify.sample_tokens(spec.vocab_size, min(command.length, spec.max_positions))
    else:
        if command.text != command.text.encode(errors="replace").decode():
            raise InvalidInput("text must be of whole characters", got=f"`{command.text}`")
        ids = load_tokenizer(command.tokenizer or folder)(command.text).input_ids
        if not ids:
            raise InvalidInput(
                "text must hold at least one token", got=f"`{command.text}`", hint="--text with a word in it, or none"
            )
        tokens = np.asarray([ids], np.int64)
        mask = np.ones_like(tokens)
    found = verify.verify_hf(folder, tokens, mask, ignore=command.ignore)
    table = plain_table("level", "largest\ndifference", "largest\nvalue", "relative", "", text=(0, 4))
    for level in found.levels:
        verdict = "" if level.passed else "DIFFERS"
        table.add_row(level.name, f"{level.difference:.2e}", f"{level.size:.3g}", f"{level.relative:.1e}", verdict)
    console.print(table)
    verdict = "agrees with" if found.passed else "DIFFERS from"
    console.print(
        f"lacuna {verdict} transformers on {found.num_tokens} tokens (limit {verify.LIMIT:g} of each level's largest "
        f"value): same first choice at {100 * found.same_top:.1f} %, KL {found.divergence_nats:.1e} nats.",
        soft_wrap=True,
    )
    return found.passed
