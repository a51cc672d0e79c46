"""Model folders of the true size and layout, with random weights: GPT-2 and Qwen2.5-0.5B as they were released."""

import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "bos_token_id": 50256,
    "eos_token_id": 50256, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
    "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip

QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def gpt2_shapes() -> Shapes:
    """As in the released file: no prefix."""
    for i in range(12):
        for norm in ("ln_1", "ln_2"):
            yield f"h.{i}.{norm}.weight", (768,)
            yield f"h.{i}.{norm}.bias", (768,)
        for name, shape in (
            ("attn.c_attn", (768, 2304)), ("attn.c_proj", (768, 768)), ("mlp.c_fc", (768, 3072)),
            ("mlp.c_proj", (3072, 768)),
        ):  # fmt: skip
            yield f"h.{i}.{name}.weight", shape
            yield f"h.{i}.{name}.bias", shape[1:]
    yield from (
        ("wte.weight", (50257, 768)),
        ("wpe.weight", (1024, 768)),
        ("ln_f.weight", (768,)),
        ("ln_f.bias", (768,)),
    )


def qwen_shapes() -> Shapes:
    """As in the released file: torch's orientation, no head."""
    for i in range(24):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (896,)
        yield f"{layer}.post_attention_layernorm.weight", (896,)
        for name, width in (("q", 896), ("k", 128), ("v", 128)):
            yield f"{layer}.self_attn.{name}_proj.weight", (width, 896)
            yield f"{layer}.self_attn.{name}_proj.bias", (width,)
        yield f"{layer}.self_attn.o_proj.weight", (896, 896)
        yield f"{layer}.mlp.gate_proj.weight", (4864, 896)
        yield f"{layer}.mlp.up_proj.weight", (4864, 896)
        yield f"{layer}.mlp.down_proj.weight", (896, 4864)
    yield from (("model.norm.weight", (896,)), ("model.embed_tokens.weight", (151936, 896)))


def _tensors(shapes: Shapes, dtype: type) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    found = {}
    for name, shape in shapes:
        values = 0.02 * random.standard_normal(shape, np.float32)
        is_scale = name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
        found[name] = (values + is_scale).astype(dtype)
    return found


def make_gpt2(folder: Path) -> dict[str, np.ndarray]:
    """GPT-2 in float32, with the causal masks that the released file holds; returns its parameters by name."""
    tensors = _tensors(gpt2_shapes(), np.float32)
    mask = np.tril(np.ones((1, 1, 1024, 1024), np.float32))
    _write(folder, GPT2, tensors | {f"h.{i}.attn.bias": mask for i in range(12)})
    return tensors


def make_qwen(folder: Path) -> dict[str, np.ndarray]:
    """Qwen2.5-0.5B in bfloat16; returns its parameters by name."""
    tensors = _tensors(qwen_shapes(), ml_dtypes.bfloat16)
    _write(folder, QWEN, tensors)
    return tensors


def _write(folder: Path, config: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


MODELS = {"gpt2": make_gpt2, "qwen": make_qwen}
