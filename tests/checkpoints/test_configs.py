"""Every config that is understood is understood in both spellings; every other is refused by the name of its field."""

import json
from pathlib import Path

import jax
import pytest
import tiny_hf

from lacuna import models, trees
from lacuna.checkpoints.configs import spec_from_config
from lacuna.errors import InvalidInput

GOLDEN = Path(__file__).parents[1] / "golden"

# Sizes and switches of released models, in the spelling of their own files.
RELEASED = {
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
    },
    "Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3-0.6B": {
        "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
        "use_sliding_window": False, "vocab_size": 151936,
    },
    "OLMo-1B": {
        "attention_bias": False, "clip_qkv": None, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 2048, "model_type": "olmo", "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "pretraining_tp": 1, "rope_scaling": None,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "vocab_size": 50304,
    },
    "OLMo-2-1B": {
        "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 16, "num_hidden_layers": 16,
        "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000,
        "tie_word_embeddings": False, "vocab_size": 100352,
    },
}  # fmt: skip


def test_released_models_are_what_they_are_known_to_be():
    spec = {name: spec_from_config(config) for name, config in RELEASED.items()}
    gpt2, qwen2, qwen3, olmo, olmo2 = spec.values()
    assert (gpt2.width, gpt2.mlp_width, gpt2.num_layers, gpt2.num_kv_heads, gpt2.tied) == (768, 3072, 12, 12, True)
    assert (gpt2.norm, gpt2.fused_qkv, gpt2.rotary_base, gpt2.activation) == ("layer", True, None, "gelu_tanh")
    assert (qwen2.num_kv_heads, qwen2.head_width, qwen2.rotary_base) == (2, 64, 1e6)
    assert (qwen2.qkv_bias, qwen2.out_bias, qwen2.windows) == (True, False, ())
    assert (qwen3.head_width, qwen3.query_key_norm, qwen3.qkv_bias) == (128, "head", False)
    assert (olmo.norm, olmo.norm_eps, olmo.clip_qkv, olmo.norm_after) == ("layer_plain", 1e-5, None, False)
    assert (olmo2.norm_after, olmo2.query_key_norm, olmo2.rotary_base, olmo2.tied) == (True, "whole", 5e5, False)


def old_spelling(config):
    """As version 4 wrote it."""
    config = dict(config)
    if "rope_parameters" in config:
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    return config


@pytest.mark.parametrize("name", tiny_hf.MODELS)
def test_the_old_spelling_and_the_new_are_one_model(name):
    config = json.loads((GOLDEN / name / "config.json").read_text())
    assert spec_from_config(old_spelling(config)) == spec_from_config(config)


QWEN, GPT2, OLMO = RELEASED["Qwen2.5-0.5B"], RELEASED["gpt2"], RELEASED["OLMo-1B"]


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (QWEN, {"model_type": "mamba"}, "model_type among gpt2, llama, .*; got `mamba`"),
        (QWEN, {"model_type": None}, "got `None`"),
        (QWEN, {"rope_scaling": {"type": "linear", "factor": 4.0}}, "`rope_scaling.type` = 'linear'"),
        (QWEN, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "`rope_parameters.rope_type` = 'yarn'"),
        (QWEN, {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "`rope_parameters.full_attention`"),
        (QWEN, {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` = 0.5"),
        (QWEN, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "`quantization_config` = 'gptq'"),
        (QWEN, {"num_experts": 60}, "`num_experts` = 60"),
        (QWEN, {"use_mrope": True}, "`use_mrope` = True"),
        (QWEN, {"hidden_act": "mish"}, "`hidden_act` = 'mish'. Try: one of gelu_new"),
        (QWEN, {"layer_types": ["full_attention"] * 23 + ["chunked_attention"]}, "`layer_types` = 'chunked_attention'"),
        (QWEN, {"layer_types": ["full_attention"]}, "a layer type for each layer; got 1 for 24"),
        (QWEN, {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": None}, "needs `sliding_window`"),
        (QWEN, {"num_key_value_heads": None}, "needs `num_key_value_heads`"),
        (QWEN, {"hidden_size": None}, "needs `hidden_size`"),
        (QWEN, {"num_attention_heads": 13}, "`num_attention_heads` must divide `hidden_size`; got 13 for 896"),
        (QWEN, {"logits_scaling": 16.0}, r"`logits_scaling` = 16.0. Try: ignore=\(\"logits_scaling\",\)"),
        (GPT2, {"add_cross_attention": True}, "`add_cross_attention` = True"),
        (GPT2, {"activation_function": "tanh"}, "`activation_function` = 'tanh'"),
        (GPT2, {"is_causal": False}, "`is_causal` = False"),
        (QWEN, {"is_causal": False}, "`is_causal` = False"),
        (QWEN, {"model_type": ["qwen2"]}, "model_type among"),
        (QWEN, {"vocab_size": "53"}, "`vocab_size` as an integer from 1 to 16777216; got '53'"),
        (QWEN, {"hidden_size": 896.0}, "`hidden_size` as an integer"),
        (QWEN, {"num_hidden_layers": True}, "`num_hidden_layers` as an integer"),
        (QWEN, {"num_hidden_layers": 10**9}, "`num_hidden_layers` as an integer from 1 to 4096; got 1000000000"),
        (QWEN, {"intermediate_size": 10**15}, "`intermediate_size` as an integer from 1 to"),
        (QWEN, {"num_attention_heads": 0}, "`num_attention_heads` as an integer from 1"),
        (QWEN, {"rms_norm_eps": "1e-6"}, "`rms_norm_eps` as a number; got '1e-6'"),
        (QWEN, {"rms_norm_eps": float("nan")}, "`rms_norm_eps` as a number; got nan"),
        (QWEN, {"rms_norm_eps": 10**400}, "`rms_norm_eps` as a number"),
        (QWEN, {"rope_theta": 10**400}, "`rope_theta` as a number"),
        (QWEN, {"rope_parameters": {"rope_theta": 10**400}}, "`rope_theta` as a positive number"),
        (QWEN, {"rope_theta": "big"}, "`rope_theta` as a number"),
        (QWEN, {"rope_theta": 0}, "`rope_theta` as a positive number"),
        (QWEN, {"rope_scaling": "linear"}, "`rope_scaling` as an object; got 'linear'"),
        (QWEN, {"hidden_act": ["silu"]}, "`hidden_act`"),
        (QWEN, {"tie_word_embeddings": "yes"}, "`tie_word_embeddings` as true or false"),
        (QWEN, {"quantization_config": "awq"}, "`quantization_config` = 'awq'"),
        (QWEN, {"layer_types": ["sliding_attention"] * 24}, "Try: use_sliding_window = true"),
        (QWEN, {"layer_types": 3}, "a layer type for each layer; got 3"),
        (QWEN, {"use_sliding_window": True, "max_window_layers": "1"}, "`max_window_layers` as an integer"),
        (QWEN, {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": "5"}, "`sliding_window` as an"),
        (OLMO, {"clip_qkv": "x"}, "`clip_qkv` as a number"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(config, change, message):
    with pytest.raises(InvalidInput, match=message):
        spec_from_config(config | change)


def test_a_field_that_says_nothing_or_is_vouched_for_is_passed_over():
    nothing = {"new_list": [], "new_switch": False, "new_factor": 1.0, "new_limit": None, "new_text": ""}
    assert spec_from_config(QWEN | nothing) == spec_from_config(QWEN)
    assert spec_from_config(QWEN | {"router_note": "none"}, ignore=("router_note",)) == spec_from_config(QWEN)
    scaled = QWEN | {"rope_scaling": {"rope_type": "linear", "factor": 1.0}}
    assert spec_from_config(scaled, ignore=("rope_scaling",)) == spec_from_config(QWEN)
    with pytest.raises(InvalidInput, match="of a qwen2 model needs `vocab_size`"):
        spec_from_config(QWEN | {"vocab_size": None}, ignore=("model_type",))
    medium = GPT2 | {"n_special": 0, "predict_special_tokens": True}  # in the file of gpt2-medium
    assert spec_from_config(medium) == spec_from_config(GPT2)


def test_windows_by_the_older_switches():
    windows = spec_from_config(QWEN | {"use_sliding_window": True, "max_window_layers": 20}).windows
    assert windows == (None,) * 20 + (32768,) * 4
    absent = QWEN | {"use_sliding_window": True, "max_window_layers": None, "num_hidden_layers": 30}
    assert spec_from_config(absent).windows == (None,) * 28 + (32768,) * 2  # as transformers fills it in


def test_theta_is_where_transformers_looks_for_it():
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}
    for change, theta in (
        (new, 50.0),
        (new | {"rope_theta": 7.0}, 50.0),
        ({"rope_theta": 7.0, "rope_parameters": {"rope_type": "default"}}, 7.0),
        (new | {"rope_scaling": {"rope_type": "default", "rope_theta": 8.0}}, 8.0),
        (new | {"rope_theta": None, "rope_scaling": {"rope_type": "default"}}, 10_000.0),
    ):
        assert spec_from_config(QWEN | change).rotary_base == theta


def test_released_models_have_as_many_parameters_as_they_are_known_to_have():
    known = {"gpt2": 124_439_808, "Qwen2.5-0.5B": 494_032_768, "Qwen3-0.6B": 596_049_920, "OLMo-2-1B": 1_484_916_736}
    for name, num_params in known.items():
        model = models.causal_lm(spec_from_config(RELEASED[name]))
        assert trees.size(jax.eval_shape(model.init, jax.random.key(0))) == num_params, name
