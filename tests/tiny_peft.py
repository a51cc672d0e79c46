"""Random adapters of the tiny models, made by PEFT, and what these say with them.

`python tests/tiny_peft.py tests/golden_adapters` writes the golden adapters again (needs the parity extra): the
folder of each as PEFT saves it, and `expected.npz` with their logits.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tiny_hf

ADAPTERS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": "all-linear",
        "rank_pattern": {"c_attn": 3, "h.1.mlp.c_proj": 1},
        "alpha_pattern": {"^transformer.h.0.attn.c_proj": 5, "mlp.c_.*": 4},
    },
    "llama": {"r": 1, "lora_alpha": 2, "target_modules": "all-linear"},
    "qwen2": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "v_proj", "mlp.down_proj"],
        "layers_to_transform": [1],
        "use_rslora": True,
    },
    "qwen3": {"r": 2, "lora_alpha": 1, "target_modules": r".*\.0\.self_attn\.[kv]_proj|.*\.up_proj"},
    "olmo2": {
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["o_proj", "gate_proj", "model.layers.0.mlp.down_proj"],
        "exclude_modules": ["layers.1.mlp.gate_proj"],
        "rank_pattern": {"layers.1.self_attn.o_proj": 4},
        "use_rslora": True,
    },
}
"""Ranks, strengths and targets in every way that PEFT has of saying them, by the model of `tiny_hf`."""

KEPT = np.s_[:, ::4]
"""The positions whose logits the golden file keeps."""


def adapted(name: str, **changes: Any) -> Any:
    """The torch model with an adapter, both factors of which are random."""
    import peft
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it found out fan_in_fan_out by itself
        config = peft.LoraConfig(task_type="CAUSAL_LM", **(ADAPTERS[name] | changes))
        model = peft.get_peft_model(tiny_hf.make(name), config).eval()
    random = torch.Generator().manual_seed(tiny_hf.SEED[name])
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return model


def save(model: Any, folder: Path, name: str) -> Path:
    """As PEFT saves it, with the name of its base."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": f"tiny/{name}"}
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT keeps a set
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def write_golden(folder: Path) -> None:
    """All golden adapters."""
    logits = {}
    for name in ADAPTERS:
        model = adapted(name)
        save(model, folder / name, name)
        logits[name] = tiny_hf.forward(model)["logits"][KEPT]
    np.savez(folder / "expected.npz", **logits)


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
