"""What `lacuna sweep` and `lacuna plan` have in common: the options of a search, and what they say of it."""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lacuna.errors import InvalidInput


@dataclass(frozen=True)
class SweepOptions:
    """What is searched, how, and on which devices."""

    model: str | None = None
    """Search around a language model: its folder, or its id on the hub (GPT-2, Llama, Qwen 1.5 to 3, OLMo, OLMo 2).
    Default: around the synthetic transformer."""

    task: str | None = None
    """What is minimised. A digit task (sort, if nothing is said): copy, reverse, sort, add, running_sum, rotate,
    complement, neighbour_sum, ... With --model also a .txt, .jsonl or .json file, or an id of datasets, with the
    columns text; or prompt, choices and label; or prompt and answer or answers; or those of BoolQ or of CAA."""

    state: Literal["forgotten", "undertrained", "trained"] = "forgotten"
    """Without --model: the synthetic transformer trained on all digit tasks and then made to forget the
    task (forgotten), stopped early (undertrained), or trained to the end (trained)."""

    tokenizer: str | None = None
    """With --model: folder or id of the tokenizer, if it is not the model's."""

    objective: Literal["nats", "log_odds", "accuracy", "exact_match"] = "nats"
    """With --model, what counts: nats of the text or the answer; of choices also log_odds of the right one or accuracy;
    of short answers also exact_match by greedy decoding. The last two move in steps: nothing is predicted of them."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """With --model: of its matrices; norms and biases are float32. Default: float32."""

    adapter: str | None = None
    """With --model: search the factors of this LoRA adapter (folder, or id), or of a new one (`new`), instead of the
    weights."""

    adapter_rank: int = 8
    """Of a new adapter."""

    adapter_sites: str = "attention/(qkv|query|value)"
    """Of a new adapter: a regular expression on the names of linear maps."""

    split: str = "train"
    """With --model: of a task that is a data set."""

    length: int = 128
    """With --model: tokens of a row of text."""

    begin: str = ""
    """With --model: text of a token that stands in front of every question, such as <s>."""

    held_out_share: float = 0.25
    """With --model: share of the task's rows that the search does not see, for the winners to be scored on again."""

    ignore: tuple[str, ...] = ()
    """With --model: fields of config.json that are not to be looked at, if you know that they change nothing."""

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

    basis: Literal["random", "gradient", "krylov", "prefix"] | None = None
    """Search a subspace: a random one, that of the gradients of rows beside those that are scored, the Krylov space of
    their Hessian, or the span of the first updates of a training on them."""

    basis_rank: int = 16
    """Dimensions of that subspace. Each takes the memory of the weights in float32."""

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

    layerwise: bool = False
    """With --model: make a candidate's weights layer by layer inside the forward pass, in the memory of one layer and
    not of one model. Noise is then drawn anew for every sigma and sign."""

    probes: int = 64
    """Hessian products for the estimate of the curvature's trace; 0 leaves the prediction out, which takes the memory
    of several gradients."""

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
    types = get_type_hints(SweepOptions)
    for field in fields(SweepOptions):
        if field.name in but or field.name not in config:
            continue
        value = config[field.name]
        if field.name in ("cache", "compilation_cache"):
            value = None if value is None else Path(str(value))
        value = tuple(value) if isinstance(value, list) else value
        if not _is_of(value, types[field.name]):
            kind = str(types[field.name]).replace("typing.", "").replace("<class ", "").replace(">", "")
            raise InvalidInput(
                f"config.json of a run must hold {kind} as its {field.name}",
                got=repr(value)[:80],
                hint="its folder as the sweep left it",
            )
        known[field.name] = value
    return known


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of an option."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        parts = (parts[0],) * len(value) if parts[1:] == (...,) and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_is_of, value, parts))
    if get_args(kind):
        return any(_is_of(value, one) for one in get_args(kind))
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind if kind in (int, bool) else isinstance(value, kind)


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
