"""Low-rank adapters on disk, as PEFT keeps them: one table of names with the weights, read in both directions.

A file has for each linear map A as [r, in] and B as [out, r], whatever the orientation of the weight; here they are
[in, r] and [r, out], and the layers share one array.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lacuna import keys
from lacuna.checkpoints import sources
from lacuna.checkpoints.config_writing import config_from_spec
from lacuna.checkpoints.export import check_new
from lacuna.checkpoints.hf import nested
from lacuna.checkpoints.keymaps import KEYMAPS, leaf_of
from lacuna.checkpoints.naming import told
from lacuna.checkpoints.peft_config import PeftConfig, describe, read_peft_config
from lacuna.checkpoints.precision import floating, is_floating
from lacuna.checkpoints.safetensors_file import BadCheckpoint, MappedFile, write
from lacuna.checkpoints.whole_folder import whole_folder
from lacuna.errors import InvalidInput
from lacuna.models import CausalLMSpec, Lora, LoraSite, LoraSpec, Model, linear_sites
from lacuna.types import Params

_PREFIX = "base_model.model."

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(\.[^.]+)?\.weight")
"""Path of the linear map, which factor, and the adapter's name, which PEFT leaves out of its files."""


@dataclass(frozen=True)
class Adapter:
    """An adapter of a language model.

    Attributes:
      spec: what is adapted, and how strongly.
      params: its factors; see `models.Lora`.
      base: name or path of the model that it was trained on; may be empty.
    """

    spec: LoraSpec
    params: Params
    base: str = ""

    @property
    def lora(self) -> Lora:
        """To be given to `apply` as `lora=`, or to `models.merged`."""
        return self.spec.bind(self.params)


@dataclass(frozen=True)
class _Paths:
    """Where torch has the linear maps of a model.

    Attributes:
      places: site and layer by the path of the module.
      vocabulary: paths of the head, of the embedding and of the positions.
      fan_in_fan_out: torch keeps the weights as [in, out].
    """

    places: dict[str, tuple[str, int]]
    vocabulary: tuple[str, ...]
    fan_in_fan_out: bool


def _paths(spec: CausalLMSpec, *, prefix: bool = True) -> _Paths:
    """From the table of the weights; without the prefix if PEFT was given the model without its head."""
    keymap = KEYMAPS[config_from_spec(spec)["model_type"]](spec)
    places: dict[str, tuple[str, int]] = {}
    vocabulary: list[str] = []
    orientations: set[bool] = set()
    for leaf, rule in keymap.by_leaf(tied=False).items():
        paths = [name.removesuffix(".weight") for name in rule.tensors(keymap.prefix * prefix, spec.num_layers)]
        if leaf.startswith("layers/") and leaf.endswith("/kernel"):
            site = leaf.removeprefix("layers/").removesuffix("/kernel")
            places |= {path: (site, layer) for layer, path in enumerate(paths)}
            orientations.add(rule.transpose)
        elif leaf in ("embedding", "positions", "head/kernel"):
            vocabulary += paths
    return _Paths(places, tuple(vocabulary), orientations == {False})


def load_adapter(
    source: str | Path,
    model: Model,
    *,
    base: str | Path | None = None,
    ignore: tuple[str, ...] = (),
    revision: str | None = None,
) -> Adapter:
    """A LoRA adapter that PEFT wrote: `adapter_config.json` and `adapter_model.safetensors`.

    Ranks and alphas may differ by site and by layer; a layer that is not adapted has rank 0. Every tensor is used
    exactly once. The factors keep the dtype of the file, or get the narrowest that holds them all if they have several.

    Args:
      source: a folder, or an id on the hub, of which the cache is asked first.
      model: of `causal_lm`, the one that the adapter is for.
      base: name or path of that model: the adapter must then name one that ends in the same word.
      ignore: fields of the config that are not to be looked at, if you know that they change nothing.
      revision: branch, tag or commit on the hub.

    Raises:
      InvalidInput: no such folder, file or id; a damaged config, or one that asks for more than plain LoRA; an adapter
        of the head or of the embedding, or of another base.
      BadCheckpoint: tensors that are missing, left over, of another shape or rank, or not floating: one error names
        all.
    """
    folder = sources.find_adapter(source, revision=revision)
    config = read_peft_config(folder, ignore=ignore)
    if base is not None and config.base and _last_word(config.base) != _last_word(base):
        raise InvalidInput(
            f"the adapter in {folder} must be of `{base}`",
            got=f"one of `{config.base}`",
            hint="leave `base` out, or give the model as a folder, if you know that they are one",
        )
    tensors = _opened(folder).tensors
    spec: CausalLMSpec = model.spec
    paths = _paths(spec)
    if not any(name.startswith(f"{_PREFIX}{path}.") for name in tensors for path in paths.places):
        bare = _paths(spec, prefix=False)
        if any(name.startswith(f"{_PREFIX}{path}.") for name in tensors for path in bare.places):
            paths = bare
    _check_vocabulary(folder, tensors, paths, config, spec)
    factors, wrong = _matched(tensors, paths, config, model)
    if wrong:
        of = f" (it names `{config.base}` as its base)" if config.base else ""
        raise BadCheckpoint(
            f"{folder} must hold an adapter of this model{of}",
            got="; ".join(wrong),
            hint="the model that it was trained on",
        )
    return Adapter(*_stacked(factors, paths, config, model), config.base)


def _last_word(base: str | Path) -> str:
    return str(base).rstrip("/").rpartition("/")[2]


def _opened(folder: Path) -> MappedFile:
    file = folder / sources.ADAPTER
    if file.is_file():
        return MappedFile(file)
    pickle = folder / "adapter_model.bin"
    if pickle.is_file():
        raise InvalidInput(
            "an adapter is not read from a pickle, which may run any code",
            got=str(pickle),
            hint="python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('adapter_model.bin', "
            "weights_only=True), 'adapter_model.safetensors')\" there",
        )
    raise InvalidInput(
        f"an adapter needs {file.name}, and {folder} has none",
        got=sources.listing(folder),
        hint="the folder that PEFT's save_pretrained wrote",
    )


def _check_vocabulary(
    folder: Path, tensors: dict[str, np.ndarray], paths: _Paths, config: PeftConfig, spec: CausalLMSpec
) -> None:
    """Raise if anything is adapted or kept beside the blocks, or the config says so."""
    found = [name for name in tensors if any(name.startswith(f"{_PREFIX}{path}.") for path in paths.vocabulary)]
    if isinstance(config.targets, tuple):
        modules = [path for path in paths.vocabulary if any(f".{path}".endswith(f".{t}") for t in config.targets)]
        found += [path for path in modules if not any(name.startswith(f"{_PREFIX}{path}.") for name in found)]
    if not found:
        return
    # PEFT adapts one of the two, or each by itself, and merges what it did to both (peft#2018).
    reason = (
        ", but of this model the head is the embedding, and one cannot be adapted without the other"
        if spec.tied
        else ", which is not built here"
    )
    raise InvalidInput(
        f"{folder} must adapt the linear maps of the blocks alone",
        got=f"{told(found)}{reason}",
        hint="merge it with PEFT and load the merged model" if not spec.tied else "",
    )


def _matched(
    tensors: dict[str, np.ndarray], paths: _Paths, config: PeftConfig, model: Model
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """A and B by path, as they are in the file, and all that is wrong with the tensors."""
    wrong: dict[str, list[str]] = defaultdict(list)
    names = _by_path(tensors, paths, model.spec.num_layers, wrong)
    factors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    widths = linear_sites(model)
    for path, (a, b) in names.items():
        width_in, width_out = widths[paths.places[path][0]]
        rank = config.rank_of(path)
        for name, shape in ((a, (rank, width_in)), (b, (width_out, rank))):
            if name not in tensors:
                wrong["missing"].append(name)
            elif tensors[name].shape != shape:
                fault = f"of shape {list(tensors[name].shape)} instead of {list(shape)} by the rank in the config"
                wrong[fault].append(name)
            elif not is_floating(tensors[name].dtype):
                wrong[f"of {tensors[name].dtype}"].append(name)
        if a in tensors and b in tensors:
            factors[path] = (tensors[a], tensors[b])
    for path, (_, layer) in paths.places.items():
        if config.targets is not None and (path in names) != config.is_target(path, layer):
            wrong["not among target_modules" if path in names else "among target_modules, but missing"].append(path)
    told_at_once = [f"{told(of)}: {fault}" for fault, of in wrong.items()]
    return factors, told_at_once or ([] if factors else ["no factors"])


def _by_path(
    tensors: dict[str, np.ndarray], paths: _Paths, num_layers: int, wrong: dict[str, list[str]]
) -> dict[str, tuple[str, str]]:
    """The names of A and B, there or not, of every linear map that has one of them."""
    names: dict[str, dict[str, str]] = {}
    for name in tensors:
        match = _FACTOR.fullmatch(name)
        path, factor = (match[1], match[2]) if match else ("", "")
        if match is None:
            wrong["of no factor of a linear map"].append(name)
        elif path in paths.places:
            found = names.setdefault(path, {})
            if factor in found:
                wrong["of a second adapter in one file"].append(name)
            found[factor] = name
        elif re.sub(r"(?<![^.])\d+(?=\.)", "0", path, count=1) in paths.places:
            wrong[f"of layers beyond the {num_layers} of this model"].append(name)
        else:
            wrong[f"of no linear map of this model, which has {told(paths.places)}"].append(name)

    def name_of(path: str, factor: str) -> str:
        return names[path].get(factor, f"{_PREFIX}{path}.lora_{factor}.weight")

    return {path: (name_of(path, "A"), name_of(path, "B")) for path in names}


def _stacked(
    factors: dict[str, tuple[np.ndarray, np.ndarray]], paths: _Paths, config: PeftConfig, model: Model
) -> tuple[LoraSpec, Params]:
    """The factors as a model takes them: of a lower rank than another layer's, they are padded with zeros."""
    dtypes = {jax.dtypes.canonicalize_dtype(tensor.dtype) for pair in factors.values() for tensor in pair}
    dtype = np.dtype(reduce(jnp.promote_types, dtypes))
    widths, num_layers = linear_sites(model), model.spec.num_layers
    sites: list[LoraSite] = []
    leaves: dict[str, Array] = {}
    for site in sorted({paths.places[path][0] for path in factors}):
        own = [path for path, (of, _) in paths.places.items() if of == site]  # in the order of the layers
        ranks = tuple(config.rank_of(path) if path in factors else 0 for path in own)
        width_in, width_out = widths[site]
        a = np.zeros((num_layers, width_in, max(ranks)), dtype)
        b = np.zeros((num_layers, max(ranks), width_out), dtype)
        for layer, (path, rank) in enumerate(zip(own, ranks, strict=True)):
            if rank:
                a[layer, :, :rank], b[layer, :rank] = (tensor.T for tensor in factors[path])
        sites.append(LoraSite(site, width_in, width_out, ranks, tuple(map(config.alpha_of, own))))
        leaves |= {f"layers/{site}/A": jnp.asarray(a), f"layers/{site}/B": jnp.asarray(b)}
    return LoraSpec(tuple(sites), config.rslora), nested(leaves)


def save_adapter(folder: str | Path, model: Model, adapter: Adapter, *, base: str | None = None) -> Path:
    """Write an adapter as PEFT does, whole or not at all, in the dtype of its factors.

    Each layer's factors are cut to its own rank; a layer of rank 0 is no target.

    Args:
      folder: made anew; refused if it is there and not empty.
      model: of `causal_lm`, the one that the adapter is for.
      adapter: its spec and factors.
      base: name or path of that model, from which PEFT's `AutoPeftModel` loads it; None keeps the adapter's.

    Returns:
      The folder.

    Raises:
      InvalidInput: a folder that is not empty, an adapter that does not fit the model or adapts nothing, or one whose
        dtype is not floating.
      TreeMismatch: factors that are not those of the spec.
    """
    folder = check_new(folder)
    _check_fits(model, adapter)
    paths = _paths(model.spec)
    by_name = {site.name: site for site in adapter.spec.sites}
    adapted = {path: place for path, place in paths.places.items() if place[0] in by_name}
    ranks = {path: by_name[site].ranks[layer] for path, (site, layer) in adapted.items() if by_name[site].ranks[layer]}
    alphas = {path: by_name[site].alphas[layer] for path, (site, layer) in adapted.items() if path in ranks}
    if not ranks:
        raise InvalidInput(
            "an adapter must adapt a layer at least", got="ranks of 0 throughout", hint="a rank of 1 or more"
        )
    tensors: dict[str, np.ndarray] = {}
    for path, rank in ranks.items():
        site, layer = adapted[path]
        pair = leaf_of(adapter.params, f"layers/{site}")
        a, b = np.asarray(pair["A"][layer, :, :rank]), np.asarray(pair["B"][layer, :rank])
        tensors |= {f"{_PREFIX}{path}.lora_A.weight": a.T, f"{_PREFIX}{path}.lora_B.weight": b.T}
    config = describe(
        _targets(adapted, ranks),
        ranks,
        alphas,
        base=adapter.base if base is None else base,
        rslora=adapter.spec.rslora,
        fan_in_fan_out=paths.fan_in_fan_out,
    )
    with whole_folder(folder, replace=False) as unfinished:
        shapes = {name: (floating(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
        write(unfinished / sources.ADAPTER, shapes, lambda name: [tensors[name]])
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (unfinished / sources.ADAPTER_CONFIG).write_text(text, encoding="utf-8")
    return folder


def _targets(adapted: dict[str, tuple[str, int]], ranks: dict[str, int]) -> list[str]:
    """The ends of the paths of a site that is adapted in every layer, else the whole paths.

    Not their last words alone: GPT-2 has two different `c_proj` in a block.
    """
    in_some_layers = {site for path, (site, _) in adapted.items() if path not in ranks}
    layer = re.compile(r".*?\.\d+\.")
    return sorted({path if adapted[path][0] in in_some_layers else layer.sub("", path, count=1) for path in ranks})


def _check_fits(model: Model, adapter: Adapter) -> None:
    """Raise unless spec, factors and model are of one another."""
    widths, num_layers = linear_sites(model), model.spec.num_layers
    for site in adapter.spec.sites:
        given = (site.width_in, site.width_out)
        numbers = (len(site.ranks), len(site.alphas)) == (num_layers,) * 2 and np.isfinite(site.alphas).all()
        if given != widths.get(site.name) or not numbers:
            known = ", ".join(f"{name} {list(shape)}" for name, shape in widths.items())
            raise InvalidInput(
                f"an adapter of this model has ranks and alphas of {num_layers} layers at {known}", got=str(site)
            )
    like = jax.eval_shape(model.init, keys.root(0))
    adapter.lora.check_sites(like["layers"])
