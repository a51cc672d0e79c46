"""Reading a Hugging Face `config.json`: one small function a family, and a refusal of all that is not honoured.

A field that changes the forward pass and is not understood would give a model that runs and is another one. So
each field is read, known to be harmless, or refused by name.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from lacuna.errors import InvalidInput
from lacuna.models import CausalLMSpec

Config = Mapping[str, Any]

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
"""Theirs for ours, in the order in which they are preferred on the way out."""

_HARMLESS = frozenset(
    """
    _name_or_path _attn_implementation_autoset architectures attention_dropout attn_implementation attn_pdrop
    auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    id2label initializer_range is_decoder is_encoder_decoder keys_to_ignore_at_inference label2id length_penalty
    max_length max_position_embeddings min_length model_type n_ctx n_special no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_attentions output_hidden_states output_past output_scores pad_token_id
    predict_special_tokens prefix pretraining_tp problem_type remove_invalid_values reorder_and_upcast_attn
    repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p unk_token_id use_bfloat16 use_cache summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    """.split()  # noqa: SIM905  (a name a line would be three pages)
)
"""What a file says of itself, and of how it was trained, saved or is decoded."""


MAX_SIZE, MAX_LAYERS = 2**24, 2**12
"""More than any model has; beyond them a file is damaged, or meant to take all memory."""


MAX_NUMBER = sys.float_info.max
"""Integers may be larger, and are then no number."""


class _Reader:
    """Fields of one config, each asked for by name and kind; what nobody has asked for is refused at the end."""

    def __init__(self, family: str, config: Config) -> None:
        self.family = family
        self.config = config
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or the default where it is absent or null."""
        self.asked.add(name)
        value = self.config.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """A number of things; refused where it is absent and has no default."""
        value = self.get(name, default)
        if value is None:
            raise InvalidInput(
                f"config.json of a {self.family} model needs `{name}`",
                got="none",
                hint="the config.json that came with the weights",
            )
        if type(value) is not int or not 1 <= value <= most:
            raise InvalidInput(f"config.json must give `{name}` as an integer from 1 to {most}", got=_short(value))
        return value

    def number(self, name: str, default: float | None) -> Any:
        """A number that is finite and not negative; None where that is the default."""
        value = self.get(name, default)
        if value is None:
            return None
        if not _is_number(value) or not 0 <= value <= MAX_NUMBER:
            raise InvalidInput(f"config.json must give `{name}` as a number", got=_short(value))
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise InvalidInput(f"config.json must give `{name}` as true or false", got=_short(value))
        return value

    def table(self, name: str) -> dict[str, Any]:
        """An object; an absent one is empty."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise InvalidInput(f"config.json must give `{name}` as an object", got=_short(value))
        return value

    def activation(self, name: str, default: str) -> str:
        """Ours for theirs."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise _not_honoured(name, value, hint=f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def must_be(self, name: str, allowed: Any) -> None:
        """Refuse any other value; an absent field is allowed."""
        value = self.get(name, allowed)
        if value != allowed:
            raise _not_honoured(name, value)

    def finish(self) -> None:
        """Refuse what was not read and is not known to be harmless, unless it says nothing."""
        for name, value in self.config.items():
            if name in self.asked or name in _HARMLESS:
                continue
            nothing = value in (None, "", [], {}) or value is False
            neutral = not isinstance(value, bool) and value in (0, 1)  # a factor of one, a limit of none
            if not (nothing or neutral):
                raise _not_honoured(name, value, hint=f'ignore=("{name}",) if it does not change the forward pass')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return f"{value!r:.60}"


def _not_honoured(name: str, value: Any, hint: str = "") -> InvalidInput:
    return InvalidInput("config.json asks for what is not built here", got=f"`{name}` = {value!r:.200}", hint=hint)


def _rotary_base(read: _Reader) -> float:
    """Theta, in the old spelling (`rope_theta`, `rope_scaling`) and in the new (`rope_parameters`).

    As in transformers: where both tables are there the old one counts, and theta stands in it or outside.
    """
    old, new = read.table("rope_scaling"), read.table("rope_parameters")
    for name, settings in (("rope_scaling", old), ("rope_parameters", new)):
        for key, value in settings.items():
            plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}.get(key)
            if not (key == "rope_theta" or value is None or value == plain):
                raise _not_honoured(f"{name}.{key}", value, hint="plain rotary positions")
    read.must_be("partial_rotary_factor", 1)
    outside = read.number("rope_theta", 10_000.0)
    theta = (old or new).get("rope_theta")
    theta = outside if theta is None else theta
    if not _is_number(theta) or not 0 < theta <= MAX_NUMBER:
        raise InvalidInput("config.json must give `rope_theta` as a positive number", got=_short(theta))
    return float(theta)


def _windows(read: _Reader, num_layers: int) -> tuple[int | None, ...]:
    """How far each layer sees, from `layer_types` where it is there and from Qwen's older switches otherwise."""
    used = read.flag("use_sliding_window", False)
    window = read.get("sliding_window")
    first = read.get("max_window_layers", 28)  # the default of transformers, whatever the number of layers
    types = read.get("layer_types")
    if types is None:
        if not _is_number(first):
            raise InvalidInput("config.json must give `max_window_layers` as an integer", got=_short(first))
        types = ["sliding_attention" if used and layer >= first else "full_attention" for layer in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers:
        got = f"{len(types)} for {num_layers}" if isinstance(types, list) else _short(types)
        raise InvalidInput("config.json needs a layer type for each layer", got=got)
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise _not_honoured("layer_types", kind, hint="full_attention or sliding_attention")
    if "sliding_attention" not in types:
        return ()
    if not used:  # transformers then has no window to apply
        raise _not_honoured("layer_types", "sliding_attention", hint="use_sliding_window = true")
    if window is None:
        raise InvalidInput("config.json asks for sliding attention, so it needs `sliding_window`", got="none")
    window = read.size("sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _gpt2(read: _Reader) -> CausalLMSpec:
    width, num_heads = read.size("n_embd"), read.size("n_head")
    _heads_divide(width, num_heads, "n_head", "n_embd")
    read.must_be("add_cross_attention", False)
    return CausalLMSpec(
        vocab_size=read.size("vocab_size"),
        max_positions=read.size("n_positions"),
        num_layers=read.size("n_layer", most=MAX_LAYERS),
        width=width,
        mlp_width=read.size("n_inner", 4 * width),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=width // num_heads,
        norm="layer",
        norm_eps=read.number("layer_norm_epsilon", 1e-5),
        rotary_base=None,
        fused_qkv=True,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        activation=read.activation("activation_function", "gelu_new"),
        gated=False,
        attention_scale=None if read.flag("scale_attn_weights", True) else 1.0,
        scale_by_layer=read.flag("scale_attn_by_inverse_layer_idx", False),
        tied=read.flag("tie_word_embeddings", True),
    )


def _heads_divide(width: int, num_heads: int, heads_name: str, width_name: str) -> None:
    if width % num_heads:
        raise InvalidInput(f"`{heads_name}` must divide `{width_name}`", got=f"{num_heads} for {width}")


def _like_llama(read: _Reader, **different: Any) -> CausalLMSpec:
    """What Llama, Qwen and OLMo have in common: RMS norm first, rotary positions, a gated MLP."""
    width, num_heads = read.size("hidden_size"), read.size("num_attention_heads")
    if read.get("head_dim") is None:
        _heads_divide(width, num_heads, "num_attention_heads", "hidden_size")
    bias = read.flag("attention_bias", False)
    common: dict[str, Any] = {
        "vocab_size": read.size("vocab_size"),
        "max_positions": read.size("max_position_embeddings", 2048),
        "num_layers": read.size("num_hidden_layers", most=MAX_LAYERS),
        "width": width,
        "mlp_width": read.size("intermediate_size"),
        "num_heads": num_heads,
        "num_kv_heads": read.size("num_key_value_heads", num_heads),
        "head_width": read.size("head_dim", width // num_heads),
        "norm": "rms",
        "norm_eps": read.number("rms_norm_eps", 1e-6),
        "rotary_base": _rotary_base(read),
        "qkv_bias": bias,
        "out_bias": bias,
        "activation": read.activation("hidden_act", "silu"),
        "tied": read.flag("tie_word_embeddings", False),
    }
    return CausalLMSpec(**common | different)


def _llama(read: _Reader) -> CausalLMSpec:
    return _like_llama(read, mlp_bias=read.flag("mlp_bias", False))


def _qwen2(read: _Reader) -> CausalLMSpec:
    read.size("num_key_value_heads")  # its default is 32, whatever the number of heads
    windows = _windows(read, read.size("num_hidden_layers", most=MAX_LAYERS))
    return _like_llama(read, qkv_bias=True, out_bias=False, windows=windows)  # wired into its code, not in its config


def _qwen3(read: _Reader) -> CausalLMSpec:
    read.size("num_key_value_heads")
    read.size("head_dim")  # its default is 128, whatever the width
    windows = _windows(read, read.size("num_hidden_layers", most=MAX_LAYERS))
    return _like_llama(read, query_key_norm="head", windows=windows)


def _olmo(read: _Reader) -> CausalLMSpec:
    return _like_llama(read, norm="layer_plain", norm_eps=1e-5, clip_qkv=read.number("clip_qkv", None))


def _olmo2(read: _Reader) -> CausalLMSpec:
    return _like_llama(read, norm_after=True, query_key_norm="whole", norm_eps=read.number("rms_norm_eps", 1e-5))


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
    if not isinstance(family, str) or family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InvalidInput(
            f"config.json must be of a model_type among {known}",
            got=f"`{family!s:.60}`",
            hint="a model of one of these families",
        )
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", quantised) if isinstance(quantised, dict) else quantised
        raise _not_honoured("quantization_config", method, hint="the weights before they were quantised")
    read = _Reader(family, {name: value for name, value in config.items() if name not in ignore})
    read.must_be("is_causal", True)
    spec = FAMILIES[family](read)
    read.finish()
    return spec
