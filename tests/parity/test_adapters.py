"""Adapters beside PEFT, live: needs the parity extra, and is skipped without it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf
import tiny_peft

# Both take gigabytes, so they are an extra; without them the golden folders that PEFT wrote are read instead
# (tests/checkpoints/test_adapters.py).
torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'lacuna[parity]'")
peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lacuna[parity]'")

from lacuna import cli, models  # noqa: E402  (only with torch)
from lacuna.checkpoints import Adapter, BadCheckpoint, load_adapter, load_hf, save_adapter  # noqa: E402
from lacuna.errors import InvalidInput  # noqa: E402

TOKENS = jnp.asarray(tiny_hf.tokens())
every_model = pytest.mark.parametrize("name", tiny_peft.ADAPTERS)
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Could not find a config file in tiny/"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """`base(name)`: the folder of the model without an adapter."""
    folder = tmp_path_factory.mktemp("base")

    def save(name):
        if not (folder / name).exists():
            tiny_hf.make(name).save_pretrained(folder / name)
        return folder / name

    return save


def peer_of(name, folder):
    """PEFT's own reading of a folder; whatever it passes over or finds missing is an error."""
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    peer = peft.PeftModel.from_pretrained(tiny_hf.make(name), folder).eval()
    result = set_peft_model_state_dict(peer, load_peft_weights(str(folder), device="cpu"))
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    return peer


WAYS = {
    "as the golden ones": {},
    "every linear map": {
        "target_modules": "all-linear",
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
        "exclude_modules": None,
    },
    "one layer and a whole path": {
        "target_modules": {"gpt2": ["c_fc", "c_proj", "transformer.h.1.attn.c_attn"]},
        "layers_to_transform": 0,
        "rank_pattern": {"c_proj": 3},
        "alpha_pattern": {"down_proj": 7, "mlp.c_proj": 7},
        "exclude_modules": None,
        "use_rslora": True,
    },
}


@pytest.mark.parametrize("way", WAYS)
@every_model
def test_peft_to_ours_and_back(name, way, base, tmp_path):
    changes = dict(WAYS[way])
    if isinstance(changes.get("target_modules"), dict):
        default = ["o_proj", "down_proj", "model.layers.1.mlp.up_proj"]
        changes["target_modules"] = changes["target_modules"].get(name, default)
    peer = tiny_peft.adapted(name, **changes)
    theirs = tiny_hf.forward(peer)["logits"]
    model, params = load_hf(base(name))
    adapter = load_adapter(tiny_peft.save(peer, tmp_path / "theirs", name), model)
    ours = model.apply(params, TOKENS, lora=adapter.lora).logits
    np.testing.assert_allclose(ours, theirs, atol=5e-6)
    assert np.abs(ours - model.apply(params, TOKENS).logits).max() > 0.1
    again = peer_of(name, save_adapter(tmp_path / "ours", model, adapter))
    np.testing.assert_array_equal(tiny_hf.forward(again)["logits"], theirs)


@every_model
def test_an_adapter_of_ours_is_read_by_peft_and_merged_for_transformers(name, base, tmp_path, capsys):
    """Of ranks and strengths that differ by site and by layer, with layers left out."""
    from transformers import AutoModelForCausalLM

    model, params = load_hf(base(name))
    spec = models.lora_spec(model, sites=".*", rslora=name == "llama")
    sites = tuple(
        replace(site, ranks=(i % 3, 1 + i % 4), alphas=(1.5 + i, 2.0 - i / 4)) for i, site in enumerate(spec.sites)
    )
    spec = replace(spec, sites=sites)
    drawn = spec.init(jax.random.key(0))
    factors = jax.tree.map(lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), drawn)
    adapter = Adapter(spec, factors, f"tiny/{name}")
    ours = model.apply(params, TOKENS, lora=adapter.lora).logits
    folder = save_adapter(tmp_path / "adapter", model, adapter)
    np.testing.assert_allclose(tiny_hf.forward(peer_of(name, folder))["logits"], ours, atol=5e-6)
    assert np.abs(ours - model.apply(params, TOKENS).logits).max() > 0.1
    export = ["export", str(base(name)), "--adapter", str(folder), "--to", str(tmp_path / "merged")]
    assert cli.run(export) == 0
    capsys.readouterr()
    merged = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", attn_implementation="eager", local_files_only=True
    ).eval()
    np.testing.assert_allclose(tiny_hf.forward(merged)["logits"], ours, atol=5e-6)


CLASSES = [
    ("gpt2", {"use_dora": True}, r"`use_dora`: true"),
    ("llama", {"modules_to_save": ["lm_head"]}, r"`modules_to_save`"),
    ("llama", {"bias": "lora_only", "target_modules": ["q_proj"]}, r"`bias`"),
    ("llama", {"lora_bias": True}, r"`lora_bias`"),
    ("gpt2", {"alora_invocation_tokens": [3]}, r"`alora_invocation_tokens`"),
    ("qwen2", {"trainable_token_indices": [3]}, r"`trainable_token_indices`"),
    ("llama", {"target_modules": ["lm_head", "q_proj"]}, r"lm_head.*not built here"),
    ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, r"embed_tokens.*not built here"),
    ("gpt2", {"target_modules": ["lm_head", "wte", "c_attn"]}, r"lm_head.*of this model the head is the embedding"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "changes", "message"), CLASSES)
def test_what_peft_makes_of_other_features_is_refused(name, changes, message, base, tmp_path):
    plain = {"rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None, "exclude_modules": None}
    peer = tiny_peft.adapted(name, **(plain | changes))
    folder = tiny_peft.save(peer, tmp_path / "theirs", name)
    with pytest.raises((InvalidInput, BadCheckpoint), match=message):
        load_adapter(folder, load_hf(base(name))[0])


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_weights_is_refused(start, base, tmp_path):
    peer = peft.get_peft_model(
        tiny_hf.make("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)
    )
    folder = tiny_peft.save(peer, tmp_path / "theirs", "llama")
    with pytest.raises(InvalidInput, match="off the weights"):
        load_adapter(folder, load_hf(base("llama"))[0])
