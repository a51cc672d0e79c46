"""Reading a Hugging Face `config.json`: one small function a family, and a refusal of all that is not honoured.

A field that changes the forward pass and is not understood would give a model that runs and is another one. So
each field is read, known to be harmless, or refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lacuna.errors import InvalidInput
from lacuna.models import CausalLMSpec

Config = Mapping[str, Any]

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}

_HARMLESS = frozenset(
    """
    _name_or_path _attn_implementation_autoset architectures attention_dropout attn_implementation attn_pdrop
    auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label initializer_range is_decoder is_encoder_decoder keys_to_ignore_at_inference
    label2id length_penalty max_length max_position_embeddings min_length model_type n_ctx no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_past
    output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values reorder_and_upcast_attn
    repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p unk_token_id use_bfloat16 use_cache summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    """.split()  # noqa: SIM905  (a name a line would be three pages)
)
"""What a file says of itself, and of how it was trained, saved or is decoded."""


class _Reader:
    """Fields of one config, each asked for by name; what nobody has asked for is refused at the end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.asked: set[str] = set()

    def get(self, name: str, default: Any) -> Any:
        """The field, or the default where it is absent or null."""
        self.asked.add(name)
        value = self.config.get(name)
        return default if value is None else value

    def need(self, name: str) -> Any:
        """The field; refused where it is absent or null."""
        value = self.get(name, None)
        if value is None:
            raise InvalidInput(f"config.json of a {self.config['model_type']} model needs `{name}`", got="none")
        return value

    def activation(self, name: str, default: str) -> str:
        """Ours for theirs."""
        value = self.get(name, default)
        if value not in _ACTIVATIONS:
            raise _not_honoured(name, value, hint=f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def must_be(self, name: str, *allowed: Any) -> None:
        """Refuse any other value; an absent field is allowed."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise _not_honoured(name, value)

    def finish(self, ignored: tuple[str, ...]) -> None:
        """Refuse what was not read and is not known to be harmless, unless it says nothing."""
        for name, value in self.config.items():
            if name in self.asked or name in _HARMLESS or name in ignored:
                continue
            nothing = value in (None, "", [], {}) or value is False
            neutral = not isinstance(value, bool) and value in (0, 1)  # a factor of one, a limit of none
            if not (nothing or neutral):
                raise _not_honoured(name, value, hint=f'ignore=("{name}",) if it does not change the forward pass')


def _not_honoured(name: str, value: Any, hint: str = "") -> InvalidInput:
    return InvalidInput("config.json asks for what is not built here", got=f"`{name}` = {value!r}", hint=hint)


def _rotary_base(read: _Reader) -> float:
    """Theta, in the old spelling (`rope_theta`, `rope_scaling`) and in the new (`rope_parameters`)."""
    new = read.get("rope_parameters", {})
    scaling = read.get("rope_scaling", {})
    for name, settings in (("rope_parameters", new), ("rope_scaling", scaling)):
        for key, value in settings.items():
            plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}.get(key)
            if not (key == "rope_theta" or value is None or value == plain):
                raise _not_honoured(f"{name}.{key}", value, hint="plain rotary positions")
    read.must_be("partial_rotary_factor", 1, 1.0)
    return float(new.get("rope_theta") or scaling.get("rope_theta") or read.get("rope_theta", 10_000.0))


def _windows(read: _Reader, num_layers: int) -> tuple[int | None, ...]:
    """How far each layer sees, from `layer_types` where it is there and from Qwen's older switches otherwise."""
    used = read.get("use_sliding_window", False)
    window, first = read.get("sliding_window", None), read.get("max_window_layers", num_layers)
    types = read.get("layer_types", None)
    if types is None:
        types = ["sliding_attention" if used and layer >= first else "full_attention" for layer in range(num_layers)]
    if len(types) != num_layers:
        raise InvalidInput("config.json needs a layer type for each layer", got=f"{len(types)} for {num_layers}")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise _not_honoured("layer_types", kind, hint="full_attention or sliding_attention")
    if "sliding_attention" not in types:
        return ()
    if window is None:
        raise InvalidInput("config.json asks for sliding attention, so it needs `sliding_window`", got="none")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _gpt2(read: _Reader) -> CausalLMSpec:
    width, num_heads = read.need("n_embd"), read.need("n_head")
    _heads_divide(width, num_heads, "n_head", "n_embd")
    read.must_be("add_cross_attention", False)
    return CausalLMSpec(
        vocab_size=read.need("vocab_size"),
        max_positions=read.need("n_positions"),
        num_layers=read.need("n_layer"),
        width=width,
        mlp_width=read.get("n_inner", 4 * width),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=width // num_heads,
        norm="layer",
        norm_eps=read.get("layer_norm_epsilon", 1e-5),
        rotary_base=None,
        fused_qkv=True,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        activation=read.activation("activation_function", "gelu_new"),
        gated=False,
        attention_scale=None if read.get("scale_attn_weights", True) else 1.0,
        scale_by_layer=read.get("scale_attn_by_inverse_layer_idx", False),
        tied=read.get("tie_word_embeddings", True),
    )


def _heads_divide(width: int, num_heads: int, heads_name: str, width_name: str) -> None:
    if width % num_heads:
        raise InvalidInput(f"`{heads_name}` must divide `{width_name}`", got=f"{num_heads} for {width}")


def _like_llama(read: _Reader, **different: Any) -> CausalLMSpec:
    """What Llama, Qwen and OLMo have in common: RMS norm first, rotary positions, a gated MLP."""
    width, num_heads, num_layers = (
        read.need(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    head_width = read.get("head_dim", None)
    if head_width is None:
        _heads_divide(width, num_heads, "num_attention_heads", "hidden_size")
        head_width = width // num_heads
    bias = read.get("attention_bias", False)
    common: dict[str, Any] = {
        "vocab_size": read.need("vocab_size"),
        "max_positions": read.get("max_position_embeddings", 2048),
        "num_layers": num_layers,
        "width": width,
        "mlp_width": read.need("intermediate_size"),
        "num_heads": num_heads,
        "num_kv_heads": read.get("num_key_value_heads", num_heads),
        "head_width": head_width,
        "norm": "rms",
        "norm_eps": read.get("rms_norm_eps", 1e-6),
        "rotary_base": _rotary_base(read),
        "qkv_bias": bias,
        "out_bias": bias,
        "activation": read.activation("hidden_act", "silu"),
        "tied": read.get("tie_word_embeddings", False),
    }
    return CausalLMSpec(**common | different)


def _llama(read: _Reader) -> CausalLMSpec:
    return _like_llama(read, mlp_bias=read.get("mlp_bias", False))


def _qwen2(read: _Reader) -> CausalLMSpec:
    read.need("num_key_value_heads")  # its default is 32, whatever the number of heads
    windows = _windows(read, read.need("num_hidden_layers"))
    return _like_llama(read, qkv_bias=True, out_bias=False, windows=windows)  # wired into its code, not in its config


def _qwen3(read: _Reader) -> CausalLMSpec:
    read.need("num_key_value_heads")
    read.need("head_dim")  # its default is 128, whatever the width
    return _like_llama(read, query_key_norm="head", windows=_windows(read, read.need("num_hidden_layers")))


def _olmo(read: _Reader) -> CausalLMSpec:
    return _like_llama(read, norm="layer_plain", norm_eps=1e-5, clip_qkv=read.get("clip_qkv", None))


def _olmo2(read: _Reader) -> CausalLMSpec:
    return _like_llama(read, norm_after=True, query_key_norm="whole", norm_eps=read.get("rms_norm_eps", 1e-5))


FAMILIES: dict[str, Callable[[_Reader], CausalLMSpec]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "olmo": _olmo,
    "olmo2": _olmo2,
}
"""Every `model_type` that is understood."""


def spec_from_config(config: Config, *, ignore: tuple[str, ...] = ()) -> CausalLMSpec:
    """The architecture that a `config.json` describes, in the old spelling of its fields or the new.

    Args:
      config: the parsed file.
      ignore: fields that are not to be looked at, by one who knows that they do not change the forward pass.

    Raises:
      InvalidInput: a family, a field or a value that is not honoured; names it.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InvalidInput(f"config.json must be of a model_type among {known}", got=f"`{family}`")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", config["quantization_config"])
        raise _not_honoured("quantization_config", method, hint="the weights before they were quantised")
    read = _Reader(config)
    spec = FAMILIES[family](read)
    read.finish(ignore)
    return spec
