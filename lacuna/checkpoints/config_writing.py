"""Writing a Hugging Face `config.json`: what a family can say of an architecture, if it reads back as the same."""

from dataclasses import asdict
from typing import Any

from lacuna.checkpoints.configs import ACTIVATIONS, FAMILIES, spec_from_config
from lacuna.errors import InvalidInput
from lacuna.models import CausalLMSpec

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
}
"""What transformers calls the model with a head of each family."""


def config_from_spec(spec: CausalLMSpec) -> dict[str, Any]:
    """A `config.json` that describes this architecture: the inverse of `spec_from_config`.

    In the older spelling (`rope_theta`, `use_sliding_window`), which readers of version 5 take as well.

    Raises:
      InvalidInput: no family has this architecture; names the fields in which the nearest one differs.
    """
    nearest: list[str] = list(asdict(spec))
    for family in FAMILIES:
        config = _describe(family, spec)
        try:
            found = asdict(spec_from_config(config))
        except InvalidInput:
            continue
        differ = [name for name, value in asdict(spec).items() if found[name] != value]
        if not differ:
            return config
        nearest = min(nearest, differ, key=len)
    raise InvalidInput("no family of models that others read has this architecture", got=", ".join(nearest))


def _describe(family: str, spec: CausalLMSpec) -> dict[str, Any]:
    """What a config of this family can say of an architecture."""
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == spec.activation)
    said: dict[str, Any] = {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "vocab_size": spec.vocab_size,
        "tie_word_embeddings": spec.tied,
    }
    if family == "gpt2":
        return said | {
            "n_positions": spec.max_positions,
            "n_layer": spec.num_layers,
            "n_embd": spec.width,
            "n_inner": spec.mlp_width,
            "n_head": spec.num_heads,
            "layer_norm_epsilon": spec.norm_eps,
            "activation_function": activation,
            "scale_attn_weights": spec.attention_scale is None,
            "scale_attn_by_inverse_layer_idx": spec.scale_by_layer,
        }
    said |= {
        "max_position_embeddings": spec.max_positions,
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "rope_theta": spec.rotary_base,
        "rope_scaling": None,
        "hidden_act": activation,
    }
    if family == "qwen3" or spec.head_width * spec.num_heads != spec.width:
        said["head_dim"] = spec.head_width  # not every reader knows it, and few models need it
    if family == "olmo":
        said["clip_qkv"] = spec.clip_qkv
    else:
        said["rms_norm_eps"] = spec.norm_eps
    if family != "qwen2":
        said["attention_bias"] = spec.out_bias
    if family == "llama":
        said["mlp_bias"] = spec.mlp_bias
    if family in ("qwen2", "qwen3"):
        said |= _say_windows(spec)
    return said


def _say_windows(spec: CausalLMSpec) -> dict[str, Any]:
    """Qwen's switches, and the list that newer readers take, which can say more."""
    sizes = {window for window in spec.windows if window is not None}
    if not sizes:
        return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": spec.num_layers}
    kinds = ["full_attention" if window is None else "sliding_attention" for window in spec.windows]
    first = kinds.index("sliding_attention")
    return {
        "use_sliding_window": True,
        "sliding_window": min(sizes),
        "max_window_layers": first,
        "layer_types": kinds,
    }
