"""Adapters that are not plain LoRA of this model's blocks, or are damaged, are refused in words that name the fault."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_folders import FOLDER, changed, model_of
from model_folders import GOLDEN

from lacuna import models
from lacuna.checkpoints import Adapter, BadCheckpoint, load_adapter, load_hf, save_adapter
from lacuna.errors import InvalidInput, LacunaError, TreeMismatch


@pytest.mark.parametrize("target", ["lm_head", "wte"])
def test_a_config_that_aims_at_the_vocabulary_is_refused_without_its_tensors(tmp_path, target):
    model = load_hf(GOLDEN / "gpt2")[0]
    before = json.loads((FOLDER / "gpt2" / "adapter_config.json").read_text())["target_modules"]
    folder = changed(tmp_path / "x", "gpt2", target_modules=[*before, target])
    with pytest.raises(InvalidInput, match=rf"of the blocks alone; got .*{target}.*the head is the embedding"):
        load_adapter(folder, model)


PLAIN = r"must describe plain LoRA"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, PLAIN + r'.*; got `peft_type`: "IA3"'),
        ({"peft_type": None}, PLAIN + r".*; got `peft_type`: null"),
        ({"use_dora": True}, PLAIN + r".*`use_dora`: true"),
        ({"bias": "all"}, PLAIN + r'.*`bias`: "all"'),
        ({"modules_to_save": ["lm_head"]}, PLAIN + r'.*`modules_to_save`: \["lm_head"\]'),
        ({"lora_bias": True}, PLAIN + r".*`lora_bias`"),
        ({"alora_invocation_tokens": [5]}, PLAIN + r".*`alora_invocation_tokens`"),
        ({"trainable_token_indices": [5]}, PLAIN + r".*`trainable_token_indices`"),
        ({"layer_replication": [[0, 2]]}, PLAIN + r".*`layer_replication`"),
        ({"target_parameters": ["x"]}, PLAIN + r".*`target_parameters`"),
        ({"use_qalora": True, "kasa_config": {"a": 1}}, PLAIN + r".*`(kasa_config|use_qalora)`: .*`(use_q|kasa_c)"),
        ({"an_idea_of_next_year": 1}, PLAIN + r".*`an_idea_of_next_year`: 1.* Try: ignore=\(\"an_idea_of_next_year\""),
        ({"init_lora_weights": "pissa_niter_16"}, r"takes what it puts into the adapter off .* Try: PEFT's save_pre"),
        ({"init_lora_weights": "olora"}, r"takes what it puts into the adapter off"),
        ({"init_lora_weights": "loftq"}, r"takes what it puts into the adapter off"),
        ({"init_lora_weights": "corda"}, r"takes what it puts into the adapter off"),
        ({"init_lora_weights": "unheard_of"}, PLAIN + r'.*`init_lora_weights`: "unheard_of"'),
        ({"r": 0}, r"needs `r` as an integer of at least 1; got 0"),
        ({"r": True}, r"needs `r` as an integer"),
        ({"lora_alpha": "8"}, r'needs `lora_alpha` as a number; got "8"'),
        ({"lora_alpha": float("nan")}, r"needs `lora_alpha` as a number; got NaN"),
        ({"use_rslora": 1}, r"needs `use_rslora` as true or false"),
        ({"rank_pattern": {"(": 3}}, r"needs `rank_pattern` as an object of numbers by expression"),
        ({"rank_pattern": {"c_attn": 3.5}}, r"needs `rank_pattern`"),
        ({"alpha_pattern": [1]}, r"needs `alpha_pattern`"),
        ({"target_modules": "("}, r"needs `target_modules` as null, an expression or a list of texts"),
        ({"target_modules": [1]}, r"needs `target_modules`"),
        ({"exclude_modules": 3}, r"needs `exclude_modules`"),
        ({"layers_to_transform": "1"}, r"needs `layers_to_transform`"),
        ({"base_model_name_or_path": 3}, r"needs `base_model_name_or_path` as text"),
    ],
)
def test_a_config_that_asks_for_more_or_is_damaged_is_refused(tmp_path, config, message):
    folder = changed(tmp_path / "x", "gpt2", **config)
    with pytest.raises(InvalidInput, match=message):
        load_adapter(folder, model_of("gpt2"))


def test_what_changes_nothing_is_read(tmp_path):
    model = model_of("gpt2")
    known = load_adapter(FOLDER / "gpt2", model).spec
    for i, config in enumerate(
        (
            {"fan_in_fan_out": False, "lora_dropout": 0.1, "megatron_config": {"a": 1}, "peft_version": "9.9"},
            {"init_lora_weights": "gaussian", "loftq_config": {"loftq_bits": 4}},
            {"init_lora_weights": False, "velora_config": {"rank": 1}},
            {"rank_pattern": None, "alpha_pattern": None, "r": 3},
        )
    ):
        folder = changed(tmp_path / str(i), "gpt2", **config)
        if config.get("r") == 3:
            with pytest.raises(BadCheckpoint, match="of shape"):
                load_adapter(folder, model)
        else:
            assert load_adapter(folder, model).spec == known
    dora = changed(tmp_path / "dora", "gpt2", use_dora=True)
    assert load_adapter(dora, model, ignore=("use_dora",)).spec == known


QKV = "base_model.model.transformer.h.{}.attn.c_attn.lora_{}.weight"
VOCABULARY = r"must adapt the linear maps of the blocks alone; got "


def without(*names):
    return lambda tensors: {name: x for name, x in tensors.items() if name not in names}


def more(name, shape=(2, 16), dtype=np.float32):
    return lambda tensors: tensors | {name: np.ones(shape, dtype)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(QKV.format(0, "B"), QKV.format(1, "B")), r"h\.\{0-1\}\.attn\.c_attn\.lora_B\.weight`: missing"),
        (
            without(QKV.format(1, "A"), QKV.format(1, "B")),
            r"`transformer\.h\.1\.attn\.c_attn`: among target_modules, but missing",
        ),
        (more(QKV.format(0, "A")), r"c_attn\.lora_A\.weight`: of shape \[2, 16\] instead of \[3, 16\] by the rank"),
        (more(QKV.format(0, "A"), (3, 16), np.int32), r"c_attn\.lora_A\.weight`: of int32"),
        (more(QKV.format(0, "A"), (16, 3)), r"of shape \[16, 3\] instead of \[3, 16\]"),
        (more(QKV.format(0, "B"), (3, 48)), r"of shape \[3, 48\] instead of \[48, 3\]"),
        (more(QKV.format(0, "A").replace(".weight", ".b.weight"), (3, 16)), r"of a second adapter in one file"),
        (more(QKV.format(2, "A")), r"h\.2\.attn\.c_attn\.lora_A\.weight`: of layers beyond the 2 of this model"),
        (
            more(QKV.format(0, "A").replace("c_attn", "q_attn")),
            r"q_attn.*: of no linear map of this model, which has `transformer\.h\.\{0-1\}\.attn\.c_attn`, ",
        ),
        (more("base_model.model.transformer.h.0.attn.c_attn.bias"), r"c_attn\.bias`: of no factor of a linear map"),
        (more("base_model.model.transformer.h.0.attn.c_attn.lora_magnitude_vector"), r"vector`: of no factor"),
        (lambda tensors: {}, r"c_attn`.*: among target_modules, but missing"),
    ],
)
def test_tensors_that_do_not_fit_are_told_by_name(tmp_path, change, message):
    folder = changed(tmp_path / "x", "gpt2", change)
    with pytest.raises(BadCheckpoint, match=message) as told:
        load_adapter(folder, model_of("gpt2"))
    assert "must hold an adapter of this model (it names `tiny/gpt2` as its base); got " in str(told.value)


def test_all_faults_are_told_at_once(tmp_path):
    def change(tensors):
        return without(QKV.format(0, "B"))(tensors) | {QKV.format(1, "A"): np.ones((1, 16)), "x": np.ones(1)}

    with pytest.raises(BadCheckpoint) as told:
        load_adapter(changed(tmp_path / "x", "gpt2", change), model_of("gpt2"))
    for part in ("lora_B.weight`: missing", "of shape [1, 16]", "`x`: of no factor"):
        assert part in str(told.value)
    assert str(told.value).count("; got") == 1


def test_a_tensor_that_peft_would_pass_over_is_refused(tmp_path):
    folder = changed(tmp_path / "x", "gpt2", target_modules=["c_attn", "attn.c_proj", "mlp.c_proj"])
    with pytest.raises(BadCheckpoint, match=r"got `transformer\.h\.\{0-1\}\.mlp\.c_fc`: not among target_modules"):
        load_adapter(folder, model_of("gpt2"))
    empty = changed(tmp_path / "y", "gpt2", lambda tensors: {}, target_modules=[])
    with pytest.raises(BadCheckpoint, match=r"; got no factors"):
        load_adapter(empty, model_of("gpt2"))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("gpt2", "lm_head.lora_A.weight", r"`base_model\.model\.lm_head.*of this model the head is the embedding"),
        ("gpt2", "transformer.wte.lora_embedding_A", r"wte\.lora_embedding_A`, but of this model the head is the"),
        ("qwen2", "model.embed_tokens.weight", r"embed_tokens\.weight`, but of this model the head is the embedding"),
        ("qwen2", "lm_head.base_layer.weight", r"lm_head\.base_layer\.weight`, but of this model the head"),
        ("llama", "lm_head.lora_B.weight", r"`base_model\.model\.lm_head\.lora_B\.weight`, which is not built here"),
        ("llama", "model.embed_tokens.lora_embedding_B", r"lora_embedding_B`, which is not built here. Try: merge it"),
    ],
)
def test_the_head_and_the_embedding_are_not_adapted(tmp_path, name, tensor, message):
    folder = changed(tmp_path / "x", name, more(f"base_model.model.{tensor}"))
    with pytest.raises(InvalidInput, match=VOCABULARY + ".*" + message):
        load_adapter(folder, model_of(name))


def test_an_adapter_of_another_model_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"names `tiny/gpt2` as its base\); got .*of no linear map of this model"):
        load_adapter(FOLDER / "gpt2", model_of("qwen2"))
    narrow = models.causal_lm(replace(model_of("llama").spec, mlp_width=20))
    with pytest.raises(BadCheckpoint, match=r"mlp\.(gate|up)_proj.*of shape \[24, 1\] instead of \[20, 1\]"):
        load_adapter(FOLDER / "llama", narrow)
    model = model_of("gpt2")
    for base in ("tiny/gpt2", "other/gpt2", Path("/somewhere/gpt2"), "gpt2/"):
        assert load_adapter(FOLDER / "gpt2", model, base=base).base == "tiny/gpt2"
    for base in ("tiny/gpt2-large", "gpt2/tiny"):
        with pytest.raises(InvalidInput, match=rf"must be of `{base}`; got one of `tiny/gpt2`"):
            load_adapter(FOLDER / "gpt2", model, base=base)
    nameless = changed(tmp_path / "x", "gpt2", base_model_name_or_path=None)
    assert load_adapter(nameless, model, base="anything").base == ""


def test_files_that_are_not_there_or_damaged_are_refused(tmp_path):
    model = model_of("gpt2")
    with pytest.raises(InvalidInput, match=r"an adapter is read from a folder or by its id"):
        load_adapter(tmp_path / "nowhere", model)
    folder = changed(tmp_path / "x", "gpt2")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidInput, match=r"not read from a pickle, which may run any code; got .*adapter_model\.bin"):
        load_adapter(folder, model)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(InvalidInput, match=r"needs adapter_model\.safetensors, .* has none; got adapter_config\.json"):
        load_adapter(folder, model)
    (folder / "adapter_model.safetensors").write_bytes(b"1234")
    with pytest.raises(BadCheckpoint, match=r"4 bytes, which hold no header"):
        load_adapter(folder, model)
    for text, message in (("{", "is no JSON"), ("[1]", "must hold an object")):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(InvalidInput, match=message):
            load_adapter(folder, model)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(InvalidInput, match=r"needs adapter_config\.json, .* has none; got adapter_model\.safetensors"):
        load_adapter(folder, model)


def site_of(adapter, **changes):
    return Adapter(replace(adapter.spec, sites=(replace(adapter.spec.sites[0], **changes),)), adapter.params)


def test_an_adapter_that_does_not_fit_is_not_written(tmp_path):
    model = model_of("gpt2")
    spec = models.lora_spec(model, rank=2)
    whole = Adapter(spec, spec.init(jax.random.key(0)))
    nothing = site_of(whole, ranks=(0, 0))
    none = nothing.spec.init(jax.random.key(0))
    for adapter, message in (
        (site_of(whole, name="attention/query"), r"ranks and alphas of 2 layers at attention/out \[16, 16\], "),
        (site_of(whole, width_out=47), r"ranks and alphas of 2 layers at"),
        (site_of(whole, ranks=(2, 2, 2)), r"ranks and alphas of 2 layers at"),
        (site_of(whole, alphas=(1.0,)), r"ranks and alphas of 2 layers at"),
        (site_of(whole, alphas=(1.0, float("inf"))), r"ranks and alphas of 2 layers at"),
        (site_of(whole, ranks=(1, 1)), r"`layers/attention/qkv/A` with shape \(2, 16, 1\) in the first"),
        (site_of(whole, ranks=(0, 0)), r"`layers/attention/qkv/A` with shape \(2, 16, 0\) in the first"),
        (Adapter(models.LoraSpec(()), whole.params), r"`layers/attention/qkv/A` with no such leaf in the first"),
        (Adapter(spec, {"layers": {}}), r"with shape .* in the first and no such leaf in the second"),
        (Adapter(nothing.spec, none), r"must adapt a layer at least"),
        (Adapter(spec, jax.tree.map(lambda x: x.astype(jnp.int32), whole.params)), r"dtype must be float32"),
    ):
        with pytest.raises((InvalidInput, TreeMismatch), match=message):
            save_adapter(tmp_path / "out", model, adapter)
    assert not list(tmp_path.iterdir())


def test_every_refusal_is_an_error_of_ours():
    assert issubclass(BadCheckpoint, LacunaError)
