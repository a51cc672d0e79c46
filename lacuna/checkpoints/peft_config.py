"""PEFT's `adapter_config.json`: the rank and strength of each linear map, and what is not plain LoRA and so refused."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacuna.checkpoints import sources
from lacuna.errors import InvalidInput

_CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of the ways to start an adapter that put part of the weight into it, and take that part off the weight."""

_KEEPS_WEIGHTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

_READ = (
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias",
    "init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform",
)  # fmt: skip

_CHANGES_NOTHING = (
    # Where the files came from, and how the adapter was or is to be trained, started or spread over devices.
    "auto_mapping", "revision", "inference_mode", "task_type", "peft_version", "lora_dropout", "runtime_config",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "megatron_config",
    "megatron_core", "layers_pattern", "ensure_weight_tying",
    # PEFT finds the orientation of a weight by itself.
    "fan_in_fan_out",
    # Counts only beside `use_qalora`.
    "qalora_group_size",
)  # fmt: skip


@dataclass(frozen=True)
class PeftConfig:
    """What PEFT says of an adapter. A path is that of a torch module, such as `model.layers.0.mlp.up_proj`.

    Attributes:
      base: name or path of the model that it was trained on; may be empty.
      rslora: the scale is alpha / sqrt(r).
      rank: of the paths that no pattern names.
      alpha: likewise.
      ranks: by pattern.
      alphas: by pattern.
      targets: parts of paths at the end, or an expression for whole paths; None leaves it to PEFT.
      excluded: likewise, what is no target after all.
      layers: that a target must be in if it is not named by its whole path; empty for all.
    """

    base: str
    rslora: bool
    rank: int
    alpha: float
    ranks: dict[str, int]
    alphas: dict[str, float]
    targets: tuple[str, ...] | str | None
    excluded: tuple[str, ...] | str
    layers: tuple[int, ...]

    def rank_of(self, path: str) -> int:
        """Of the linear map at a path."""
        return self.ranks.get(_pattern(self.ranks, path), self.rank)

    def alpha_of(self, path: str) -> float:
        """Of the linear map at a path."""
        return self.alphas.get(_pattern(self.alphas, path), self.alpha)

    def is_target(self, path: str, layer: int) -> bool:
        """Whether PEFT adapts the linear map at a path, in a layer of that number; False throughout without targets."""
        if self.targets is None or _names(self.excluded, path):
            return False
        if isinstance(self.targets, str):
            return self.targets.lower() == "all-linear" or _names(self.targets, path)
        return path in self.targets or (_names(self.targets, path) and (not self.layers or layer in self.layers))


def _pattern(patterns: Mapping[str, Any], path: str) -> str:
    """The first that a path ends with, after a dot or as a whole: PEFT's own rule."""
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path)), path)


def _names(what: tuple[str, ...] | str, path: str) -> bool:
    if isinstance(what, str):
        return bool(re.fullmatch(what, path)) if what else False
    return any(path == one or path.endswith(f".{one}") for one in what)


def read_peft_config(folder: Path, *, ignore: tuple[str, ...] = ()) -> PeftConfig:
    """The `adapter_config.json` of a folder.

    Raises:
      InvalidInput: no such file, a damaged one, or one that asks for more than plain LoRA; names every such field.
    """
    file = folder / sources.ADAPTER_CONFIG
    if not file.is_file():
        raise InvalidInput(
            f"an adapter needs {file.name}, and {folder} has none",
            got=sources.listing(folder),
            hint="the folder that PEFT's save_pretrained wrote",
        )
    said = sources.read_object(file)
    _check_plain(file, said, ignore)
    layers = _checked(file, said, "layers_to_transform", None, _are_layers, "null, an integer or a list of them")
    targets, excluded = (
        _checked(file, said, name, None, _are_paths, "null, an expression or a list of texts")
        for name in ("target_modules", "exclude_modules")
    )
    ranks, alphas = (
        _checked(file, said, name, None, test, "an object of numbers by expression") or {}
        for name, test in (("rank_pattern", _patterns_of(_is_rank)), ("alpha_pattern", _patterns_of(_is_number)))
    )
    return PeftConfig(
        base=_checked(file, said, "base_model_name_or_path", None, lambda x: x is None or isinstance(x, str), "text")
        or "",
        rslora=_checked(file, said, "use_rslora", False, lambda x: isinstance(x, bool), "true or false"),
        rank=_checked(file, said, "r", 8, _is_rank, "an integer of at least 1"),
        alpha=float(_checked(file, said, "lora_alpha", 8, _is_number, "a number")),
        ranks=ranks,
        alphas={pattern: float(alpha) for pattern, alpha in alphas.items()},
        targets=tuple(targets) if isinstance(targets, list) else targets,
        excluded=tuple(excluded) if isinstance(excluded, list) else excluded or "",
        layers=tuple(layers) if isinstance(layers, list) else () if layers is None else (layers,),
    )


def _check_plain(file: Path, said: dict[str, Any], ignore: tuple[str, ...]) -> None:
    """Raise if the adapter is anything else than `scale (x A) B`, added at linear maps of unchanged weights."""
    beyond = {name: said[name] for name in said if name not in (*_READ, *_CHANGES_NOTHING) and said[name]}
    if said.get("peft_type") != "LORA":
        beyond["peft_type"] = said.get("peft_type")
    if said.get("bias", "none") != "none":
        beyond["bias"] = said["bias"]
    start = said.get("init_lora_weights", True)
    if start not in _KEEPS_WEIGHTS:
        beyond["init_lora_weights"] = start
    beyond = {name: value for name, value in beyond.items() if name not in ignore}
    if not beyond:
        return
    got = ", ".join(f"`{name}`: {json.dumps(value):.60}" for name, value in beyond.items())
    hint = 'ignore=("' + '", "'.join(beyond) + '",), if you know that it changes nothing'
    if "init_lora_weights" in beyond and str(start).startswith(_CHANGES_WEIGHTS):
        got += ", a start that takes what it puts into the adapter off the weights"
        hint = "PEFT's save_pretrained with path_initial_model_for_weight_conversion, which makes plain LoRA of it"
    raise InvalidInput(f"{file} must describe plain LoRA, a product of two factors at linear maps", got=got, hint=hint)


def _checked(file: Path, said: dict[str, Any], name: str, default: Any, test: Any, wanted: str) -> Any:
    value = said.get(name, default)
    if not test(value):
        raise InvalidInput(
            f"{file} needs `{name}` as {wanted}",
            got=f"{json.dumps(value):.80}",
            hint="the adapter_config.json that PEFT wrote",
        )
    return value


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # beyond that a scale overflows float32


def _is_expression(value: Any) -> bool:
    try:
        re.compile(value)
    except (TypeError, re.error):
        return False
    return True


def _patterns_of(test: Any) -> Any:
    def are_patterns(value: Any) -> bool:
        if value is None:
            return True
        return isinstance(value, dict) and all(_is_expression(key) and test(value[key]) for key in value)

    return are_patterns


def _are_layers(value: Any) -> bool:
    return value is None or type(value) is int or (isinstance(value, list) and all(type(x) is int for x in value))


def _are_paths(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(path, str) for path in value)
    return value is None or _is_expression(value)


def describe(
    targets: list[str],
    ranks: dict[str, int],
    alphas: dict[str, float],
    *,
    base: str,
    rslora: bool,
    fan_in_fan_out: bool,
) -> dict[str, Any]:
    """An `adapter_config.json`.

    Args:
      targets: ends of paths, or whole ones.
      ranks: of every adapted linear map, by its path.
      alphas: likewise.
      base: name or path of the model.
      rslora: the scale is alpha / sqrt(r).
      fan_in_fan_out: torch keeps the weights as [in, out].
    """
    (rank, rank_pattern), (alpha, alpha_pattern) = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "use_rslora": rslora,
        "use_dora": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": targets,
        "layers_to_transform": None,
        "inference_mode": True,
    }


def _commonest(by_path: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The value that most paths have, and that of the others: PEFT annotates both as integers where they are."""
    whole = {path: int(value) if value == int(value) else value for path, value in by_path.items()}
    ((common, _),) = Counter(whole.values()).most_common(1)
    return common, {path: value for path, value in whole.items() if value != common}
