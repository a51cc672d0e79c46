"""Adapters in PEFT's form: what PEFT wrote is read as PEFT means it, and written again bit for bit."""

from dataclasses import replace

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracles
import pytest
import tiny_hf
import tiny_peft
from adapter_folders import FOLDER, changed, config_of, model_of, tensors_of
from model_folders import GOLDEN

from lacuna import cli, models, trees
from lacuna.checkpoints import Adapter, adapters, load_adapter, load_hf, save_adapter
from lacuna.errors import InvalidInput

TOKENS = jnp.asarray(tiny_hf.tokens())
every_adapter = pytest.mark.parametrize("name", tiny_peft.ADAPTERS)


def ranks_of(adapter):
    return {site.name: site.ranks for site in adapter.spec.sites}


@every_adapter
def test_logits_are_those_of_peft(name):
    model, params = load_hf(GOLDEN / name)
    adapter = load_adapter(FOLDER / name, model)
    expected = np.load(FOLDER / "expected.npz")[name]
    found = model.apply(params, TOKENS, lora=adapter.lora).logits[tiny_peft.KEPT]
    np.testing.assert_allclose(found, expected, atol=5e-6)
    assert np.abs(found - model.apply(params, TOKENS).logits[tiny_peft.KEPT]).max() > 0.1
    merged = model.apply(models.merged(params, adapter.lora), TOKENS).logits[tiny_peft.KEPT]
    np.testing.assert_allclose(merged, expected, atol=1e-5)


def test_ranks_and_strengths_are_by_site_and_layer():
    adapter = load_adapter(FOLDER / "gpt2", model_of("gpt2"))
    assert adapter.base == "tiny/gpt2"
    assert not adapter.spec.rslora
    assert {site.name: (site.ranks, site.alphas) for site in adapter.spec.sites} == {
        "attention/out": ((2, 2), (5.0, 3.0)),
        "attention/qkv": ((3, 3), (3.0, 3.0)),
        "mlp/down": ((2, 1), (4.0, 4.0)),
        "mlp/up": ((2, 2), (4.0, 4.0)),
    }
    some = load_adapter(FOLDER / "qwen2", model_of("qwen2"))
    assert some.spec.rslora
    assert set(ranks_of(some).values()) == {(0, 2)}
    assert not np.asarray(some.params["layers"]["mlp"]["down"]["A"][0]).any()


@every_adapter
def test_what_is_read_and_written_has_the_same_tensors_bit_for_bit(name, tmp_path):
    model = model_of(name)
    adapter = load_adapter(FOLDER / name, model)
    out = save_adapter(tmp_path / "out", model, adapter)
    theirs, ours = tensors_of(FOLDER / name), tensors_of(out)
    assert {n: x.tobytes() for n, x in ours.items()} == {n: x.tobytes() for n, x in theirs.items()}
    again = load_adapter(out, model)
    assert again.base == adapter.base
    assert again.lora.scale.keys() == adapter.lora.scale.keys()
    assert ranks_of(again) == ranks_of(adapter)
    assert oracles.bits(again.params) == oracles.bits(adapter.params)
    at_work = jax.tree.map(lambda rank, scale: scale * (np.asarray(rank) > 0), ranks_of(adapter), adapter.lora.scale,
                           is_leaf=lambda x: isinstance(x, tuple))  # fmt: skip
    for site, scale in at_work.items():
        np.testing.assert_array_equal(again.lora.scale[site], scale)


def test_the_config_is_what_peft_reads(tmp_path):
    model = model_of("gpt2")
    spec = models.lora_spec(model, rank=2, alpha=3.0, sites=".*")
    out = save_adapter(tmp_path / "out", model, Adapter(spec, spec.init(jax.random.key(0))), base="openai/gpt2")
    assert config_of(out) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "openai/gpt2",
        "r": 2,
        "lora_alpha": 3,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": True,
        "target_modules": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
        "layers_to_transform": None,
        "inference_mode": True,
    }
    llama = model_of("llama")
    spec = models.lora_spec(llama, sites="mlp/up")
    some = replace(spec, sites=(replace(spec.sites[0], ranks=(0, 8)),))
    out = save_adapter(tmp_path / "some", llama, Adapter(some, some.init(jax.random.key(0))))
    assert config_of(out)["target_modules"] == ["model.layers.1.mlp.up_proj"]
    assert not config_of(out)["fan_in_fan_out"]
    assert config_of(out)["base_model_name_or_path"] is None


def test_layers_with_numbers_of_two_digits_are_not_mistaken(tmp_path):
    """An expression that names layer 1 must not name layer 11."""
    model = models.causal_lm(replace(model_of("llama").spec, num_layers=12))
    spec = models.lora_spec(model, sites="mlp/up|attention/query")
    numbers = range(12)
    sites = tuple(
        replace(site, ranks=tuple(1 + (i + shift) % 5 for i in numbers), alphas=tuple(1.5 * i + shift for i in numbers))
        for shift, site in enumerate(spec.sites)
    )
    sites = (sites[0], replace(sites[1], ranks=(*sites[1].ranks[:11], 0)))
    spec = models.LoraSpec(sites)
    adapter = Adapter(spec, spec.init(jax.random.key(1)))
    again = load_adapter(save_adapter(tmp_path / "out", model, adapter), model)
    assert ranks_of(again) == ranks_of(adapter)
    assert again.spec.sites[0].alphas == sites[0].alphas
    assert again.spec.sites[1].alphas[:11] == sites[1].alphas[:11]
    assert oracles.bits(again.params) == oracles.bits(adapter.params)


def test_what_lies_beyond_the_rank_of_a_layer_is_not_written(tmp_path):
    model = model_of("gpt2")
    adapter = load_adapter(FOLDER / "gpt2", model)
    noisy = trees.map_named(lambda name, x: x, adapter.params)
    down = noisy["layers"]["mlp"]["down"]  # of rank 2 and 1
    noisy["layers"]["mlp"]["down"] = {"A": down["A"].at[1, :, 1].set(7.0), "B": down["B"].at[1, 1].set(7.0)}
    out = save_adapter(tmp_path / "out", model, Adapter(adapter.spec, noisy))
    assert tensors_of(out)["base_model.model.transformer.h.1.mlp.c_proj.lora_A.weight"].shape == (1, 64)
    assert oracles.bits(load_adapter(out, model).params) == oracles.bits(adapter.params)


def test_the_dtype_is_that_of_the_factors(tmp_path):
    model = model_of("llama")
    half = changed(tmp_path / "half", "llama", lambda t: {n: x.astype(ml_dtypes.bfloat16) for n, x in t.items()})
    adapter = load_adapter(half, model)
    assert {x.dtype for x in jax.tree.leaves(adapter.params)} == {jnp.dtype(jnp.bfloat16)}
    out = save_adapter(tmp_path / "out", model, adapter)
    assert {x.dtype for x in tensors_of(out).values()} == {np.dtype(ml_dtypes.bfloat16)}
    first = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    mixed = changed(tmp_path / "mixed", "llama", lambda t: t | {first: t[first].astype(np.float16)})
    assert {x.dtype for x in jax.tree.leaves(load_adapter(mixed, model).params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".weight", ".default.weight"),  # what a state dict has in memory
        ("base_model.model.transformer.", "base_model.model."),  # of the model without its head
    ],
)
def test_names_in_other_spellings_are_read(tmp_path, old, new):
    model = model_of("gpt2")
    patterns = {"alpha_pattern": {"^(transformer.)?h.0.attn.c_proj": 5, "mlp.c_.*": 4}}
    targets = {"target_modules": ["c_attn", "c_proj", "c_fc"]}
    folder = changed(
        tmp_path / "x", "gpt2", lambda t: {n.replace(old, new): x for n, x in t.items()}, **patterns, **targets
    )
    found, known = load_adapter(folder, model), load_adapter(FOLDER / "gpt2", model)
    assert found.spec == known.spec
    assert oracles.bits(found.params) == oracles.bits(known.params)


def test_targets_that_are_not_said_are_the_tensors(tmp_path):
    model = model_of("qwen2")
    folder = changed(tmp_path / "x", "qwen2", target_modules=None, layers_to_transform=None)
    assert load_adapter(folder, model).spec == load_adapter(FOLDER / "qwen2", model).spec


def test_a_target_named_by_its_whole_path_is_one_in_any_layer(tmp_path):
    model = model_of("qwen2")
    paths = [f"model.layers.1.{path}" for path in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")]
    folder = changed(tmp_path / "x", "qwen2", target_modules=paths, layers_to_transform=[0])
    assert load_adapter(folder, model).spec == load_adapter(FOLDER / "qwen2", model).spec


def test_every_linear_map_is_what_all_linear_says(tmp_path):
    model = model_of("llama")
    folder = changed(tmp_path / "x", "llama", target_modules="all-linear", layers_to_transform=None)
    assert load_adapter(folder, model).spec == load_adapter(FOLDER / "llama", model).spec


def test_the_first_expression_that_names_the_end_of_a_path_counts(tmp_path):
    model = model_of("gpt2")
    more = {"attn": 9, "h.0": 9, "_attn": 9, "c_attn": 3, "h.1.mlp.c_proj": 1, ".*c_attn": 9, "mlp.*c_proj": 2}
    folder = changed(tmp_path / "x", "gpt2", rank_pattern=more)
    assert load_adapter(folder, model).spec == load_adapter(FOLDER / "gpt2", model).spec


def test_an_adapter_on_the_hub_is_fetched_by_its_two_files(monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(FOLDER / "gpt2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = model_of("gpt2")
    found = load_adapter("somebody/adapter", model, revision="main")
    assert (asked["name"], asked["revision"]) == ("somebody/adapter", "main")
    assert asked["allow_patterns"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert found.spec == load_adapter(FOLDER / "gpt2", model).spec


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_an_adapter_is_written_whole_or_not_at_all(tmp_path, monkeypatch, fault):
    model = model_of("gpt2")
    adapter = load_adapter(FOLDER / "gpt2", model)
    with pytest.raises(InvalidInput, match="written to a new folder"):
        save_adapter(FOLDER / "gpt2", model, adapter)

    def write(*given):
        real(*given)
        raise fault

    real = adapters.write
    monkeypatch.setattr(adapters, "write", write)
    with pytest.raises(fault):
        save_adapter(tmp_path / "out", model, adapter)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_command_merges_and_rounds_once(tmp_path, capsys, dtype):
    arguments = ["export", str(GOLDEN / "qwen2"), "--adapter", str(FOLDER / "qwen2"), "--to", str(tmp_path / "out")]
    assert cli.run(arguments + (["--dtype", dtype] if dtype else [])) == 0
    assert "Merging an adapter of tiny/qwen2, at attention/query" in capsys.readouterr().out
    model, params = load_hf(GOLDEN / "qwen2")
    merged = models.merged(params, load_adapter(FOLDER / "qwen2", model).lora)
    expected = jax.tree.map(lambda x: x.astype(dtype or "float32"), merged)
    assert oracles.bits(load_hf(tmp_path / "out")[1]) == oracles.bits(expected)
    assert oracles.bits(expected) != oracles.bits(jax.tree.map(lambda x: x.astype(dtype or "float32"), params))


def test_the_command_refuses_what_does_not_fit(tmp_path, capsys, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "identity.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(GOLDEN / "gpt2"))
    for source, adapter, message in (
        (str(tmp_path / "run"), "gpt2", "run, a run of a sweep"),
        (str(GOLDEN / "gpt2"), "qwen2", "must hold an adapter of this model (it names `tiny/qwen2` as its base)"),
        ("somebody/gpt3", "gpt2", "must be of `somebody/gpt3`; got one of `tiny/gpt2`"),
    ):
        arguments = ["export", source, "--adapter", str(FOLDER / adapter), "--to", str(tmp_path / "out")]
        assert cli.run(arguments) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
        assert not (tmp_path / "out").exists()
