"""Tiny random models of every family, made by transformers and torch, and what these say of them.

`python tests/tiny_hf.py tests/golden` writes the golden files again (needs the parity extra): for each model its
folder as transformers saves it, the gradients of its loss in a folder of the same form, and `expected.npz`.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"vocab_size": 53, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 53, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2_untied": (
        "GPT2",
        GPT2
        | {"activation_function": "relu", "n_inner": 24, "tie_word_embeddings": False}
        | {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3},
    ),
    "llama": (
        "Llama",
        SIZES | HEADS | {"attention_bias": True, "mlp_bias": True, "head_dim": 6, "tie_word_embeddings": False},
    ),
    "qwen2": ("Qwen2", SIZES | HEADS | {"tie_word_embeddings": True, "rope_theta": 1e3}),
    "qwen2_window": ("Qwen2", SIZES | HEADS | WINDOW | {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", SIZES | HEADS | {"head_dim": 6, "tie_word_embeddings": True}),
    "olmo": ("Olmo", SIZES | HEADS | {"clip_qkv": 0.5, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", SIZES | HEADS | {"tie_word_embeddings": False, "rms_norm_eps": 1e-3}),
}
"""Sizes are unlike each other wherever they may be, so that no two axes can be mistaken."""

SEED = {name: seed for seed, name in enumerate(MODELS)}


def make(name: str, dtype: str = "float32") -> Any:
    """The torch model, with weights so large that every tensor and every constant matters."""
    import torch
    import transformers

    family, sizes = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**sizes, pad_token_id=None)
    config._attn_implementation = "eager"
    head = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    model = getattr(transformers, head)(config).eval()
    random = torch.Generator().manual_seed(SEED[name])
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            is_scale = parameter.ndim == 1 and parameter_name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_scale else 0.2 * noise)
    return model.to(getattr(torch, dtype))


def tokens() -> np.ndarray:
    """Two rows of twelve."""
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 12))


def mask() -> np.ndarray:
    """The first row has four tokens of padding on the left."""
    kept = np.ones((2, 12), int)
    kept[0, :4] = 0
    return kept


def forward(model: Any, **options: Any) -> dict[str, np.ndarray]:
    """Logits, and the stream at the embedding and after each block; the last of these is after the final norm."""
    import torch

    given = {name: torch.from_numpy(np.asarray(value)) for name, value in options.items()}
    with torch.no_grad():
        out = model(torch.from_numpy(tokens()), output_hidden_states=True, **given)
    resid = np.stack([state.float().numpy() for state in out.hidden_states])
    return {"logits": out.logits.float().numpy(), "resid": resid}


def padded(model: Any) -> dict[str, np.ndarray]:
    """`forward` with padding on the left; the positions are given, for transformers would count the padding."""
    positions = np.maximum(np.cumsum(mask(), 1) - 1, 0)
    return forward(model, attention_mask=mask(), position_ids=positions)


def gradients(model: Any) -> dict[str, Any]:
    """Gradients of the mean cross-entropy of the next token, by the names of the parameters, and the loss."""
    import torch

    model.zero_grad()
    given = torch.from_numpy(tokens())
    logits = model(given).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), given[:, 1:].reshape(-1))
    loss.backward()
    return {"loss": loss.item()} | {name: p.grad.clone() for name, p in model.named_parameters()}


def write_golden(folder: Path) -> None:
    """All golden files."""
    from safetensors.torch import save_file

    for name in MODELS:
        model = make(name)
        model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        found = gradients(model)
        loss = found.pop("loss")
        (folder / name / "gradients").mkdir(exist_ok=True)
        shutil.copy(folder / name / "config.json", folder / name / "gradients")
        save_file(found, folder / name / "gradients" / "model.safetensors", {"format": "pt"})
        whole, left = forward(model), padded(model)
        np.savez(folder / name / "expected.npz", loss=loss, left_padded=left["logits"], **whole)


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
