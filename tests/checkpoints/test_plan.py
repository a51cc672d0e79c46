"""What a model needs, from headers alone: as much as loading it takes, and for models that no disk here would hold."""

import json

import jax
import pytest
from model_folders import GOLDEN, bare, sharded

from lacuna import meshes
from lacuna.checkpoints import BadCheckpoint, load_hf
from lacuna.checkpoints.plan import plan_hf
from lacuna.errors import InvalidInput

QWEN_7B = {
    "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072,
    "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1e6, "sliding_window": 131072,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip


def tensors_of_qwen_7b():
    """Names and shapes as the released model has them."""
    for i in range(28):
        yield f"model.layers.{i}.input_layernorm.weight", [3584]
        yield f"model.layers.{i}.post_attention_layernorm.weight", [3584]
        for name, width in (("q", 3584), ("k", 512), ("v", 512)):
            yield f"model.layers.{i}.self_attn.{name}_proj.weight", [width, 3584]
            yield f"model.layers.{i}.self_attn.{name}_proj.bias", [width]
        yield f"model.layers.{i}.self_attn.o_proj.weight", [3584, 3584]
        for name in ("gate", "up"):
            yield f"model.layers.{i}.mlp.{name}_proj.weight", [18944, 3584]
        yield f"model.layers.{i}.mlp.down_proj.weight", [3584, 18944]
    yield "model.norm.weight", [3584]
    yield "model.embed_tokens.weight", [152064, 3584]
    yield "lm_head.weight", [152064, 3584]


@pytest.fixture(scope="module")
def qwen_7b(tmp_path_factory):
    """Four shards of the true size, of which the headers alone take room on the disk."""
    folder = tmp_path_factory.mktemp("models") / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN_7B))
    tensors, where = list(tensors_of_qwen_7b()), {}
    for shard in range(4):
        header, end = {}, 0
        for name, shape in tensors[shard::4]:
            start, end = end, end + 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            where[name] = f"model-0000{shard + 1}-of-00004.safetensors"
        text = json.dumps(header).encode()
        with (folder / f"model-0000{shard + 1}-of-00004.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_seven_billion_parameters_are_planned_from_headers(qwen_7b):
    whole, split = plan_hf(qwen_7b), plan_hf(qwen_7b, candidates=2, model=4)
    assert whole.checked
    assert whole.num_parameters == split.num_parameters == 7_615_616_512
    assert whole.needs()["parameters"] == whole.num_bytes == 15_231_233_024
    assert split.mesh == {"candidates": 2, "model": 4}
    # All but the norms is split, and they are small.
    assert split.repeated == 57 * 3584
    assert split.needs()["parameters"] == 2 * ((7_615_616_512 - 57 * 3584) // 4 + 57 * 3584)
    assert split.needs()["and a float32 gradient"] == 3 * split.needs()["parameters"]
    assert plan_hf(qwen_7b, dtype="float32").num_bytes == 2 * whole.num_bytes


def test_a_config_alone_is_enough(qwen_7b, tmp_path):
    (tmp_path / "config.json").write_text((qwen_7b / "config.json").read_text())
    found = plan_hf(tmp_path, model=4)
    assert not found.checked
    assert (found.leaves, found.dtype) == (plan_hf(qwen_7b, model=4).leaves, plan_hf(qwen_7b).dtype)


def test_a_plan_refuses_what_loading_would(tmp_path):
    folder = sharded(tmp_path / "model", "llama")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"model-00002-of-00003.safetensors is missing"):
        plan_hf(folder)
    for dtype in ("nonsense", "int8"):
        with pytest.raises(InvalidInput, match=r"dtype must be float32, bfloat16, float16 or float64"):
            plan_hf(bare(tmp_path / dtype, "gpt2"), dtype=dtype)
    with pytest.raises(InvalidInput, match=r"at least 1 device on each axis, and fewer than 2\^31; got 1 and 0"):
        plan_hf(GOLDEN / "gpt2", model=0)
    with pytest.raises(InvalidInput, match=r"`vocab_size` as an integer"):
        plan_hf(bare(tmp_path / "absurd", "gpt2", vocab_size=10**30))


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "olmo2"])
def test_a_plan_is_what_loading_does(name):
    found = plan_hf(GOLDEN / name, candidates=2, model=4)
    params = load_hf(GOLDEN / name, mesh=meshes.model_mesh(4, jax.devices()))[1]
    for device in jax.devices():
        held = sum(
            s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards if s.device == device
        )
        assert held == found.needs()["parameters"]
