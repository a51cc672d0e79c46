"""A language model and its adapter, each given by a folder or an id, as a point that can be searched around."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lacuna import keys, models
from lacuna.checkpoints import Adapter, load_adapter, load_hf, sources
from lacuna.checkpoints.configs import spec_from_config
from lacuna.models import LoraSpec
from lacuna.models.lora import DEFAULT_SITES
from lacuna.models.model import Model
from lacuna.types import Params

NEW = "new"
"""An adapter that is made on the spot."""


@dataclass(frozen=True)
class ModelConfig:
    """A language model, or an adapter of one.

    Attributes:
      source: folder or hub id.
      tokenizer: folder or hub id. Empty: that of the model.
      dtype: of matrices; vectors (norms and biases) are float32 in either case.
      adapter: folder or hub id of a LoRA adapter, or `new` for a fresh one: its factors are what is searched, float32,
        and the weights stay as they are. Empty: all weights are searched.
      adapter_rank: of a new one.
      adapter_sites: of a new one: a regular expression on the names of linear maps.
      ignore: fields of the config not to be looked at.
    """

    source: str
    tokenizer: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    adapter: str = ""
    adapter_rank: int = 8
    adapter_sites: str = DEFAULT_SITES
    ignore: tuple[str, ...] = ()


class LanguageModel(NamedTuple):
    """A language model whose weights, or whose adapter's factors, are the point.

    Attributes:
      model: its architecture.
      params: the point: the weights, or the factors of the adapter.
      base: the weights under an adapter; None where they are the point.
      adapter: that the factors are of; None without one.
      folder: where the weights were read.
    """

    model: Model
    params: Params
    base: Params | None
    adapter: Adapter | None
    folder: Path

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(model, params, tokens, ...)` as a function of the point, `f(params, tokens, ...)`."""
        if self.adapter is None:
            return partial(function, self.model)
        return models.over_adapter(function, self.model, self.base, self.adapter.spec)


class Architecture(NamedTuple):
    """A model and its adapter by their settings, of which no weight is read.

    Attributes:
      model: what its config describes.
      lora: what a new adapter adapts; None without one.
      adapter: one that was read; None without one.
    """

    model: Model
    lora: LoraSpec | None
    adapter: Adapter | None


def architecture(config: ModelConfig) -> Architecture:
    """What can be known of a point before a long read; all that is wrong with the settings is found here.

    Raises:
      InvalidInput: what is there is no such model or adapter.
    """
    folder = sources.find(config.source, weights=False)
    model = models.causal_lm(spec_from_config(sources.read_config(folder), ignore=config.ignore))
    if not config.adapter:
        return Architecture(model, None, None)
    if config.adapter == NEW:
        spec = models.lora_spec(model, rank=config.adapter_rank, sites=config.adapter_sites)
        return Architecture(model, spec, None)
    base = None if folder == Path(config.source).expanduser() else config.source
    return Architecture(model, None, load_adapter(config.adapter, model, base=base, ignore=config.ignore))


def open_model(config: ModelConfig, *, mesh: Any = None) -> LanguageModel:
    """Read a language model and its adapter, the adapter first: what is wrong with it is told before a long read.

    Args:
      config: which.
      mesh: where the weights are to lie; none for the first device.

    Raises:
      InvalidInput: what is there is no such model or adapter.
    """
    _, lora, adapter = architecture(config)
    folder = sources.find(config.source)
    # What is to be float32 is read as that: no second copy, and files of several dtypes are as good.
    as_read = "float32" if config.dtype == "float32" else None
    model, params = load_hf(folder, dtype=as_read, mesh=mesh, ignore=config.ignore)
    params = models.narrowed(params, config.dtype, stacked=model.stacked)
    if lora is not None:
        adapter = Adapter(lora, lora.init(keys.stream(0, "adapter")))
    if adapter is None:
        return LanguageModel(model, params, None, None, folder)
    factors = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), adapter.params)
    return LanguageModel(model, factors, params, adapter, folder)
