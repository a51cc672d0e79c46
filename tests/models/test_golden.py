"""Our models against numbers that transformers wrote: logits, streams and gradients of tiny models of every family.

Then the same with one mistake made on purpose in our source: each must be seen.
"""

import inspect
import sys
import types
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tiny_hf

from lacuna import models
from lacuna.checkpoints import configs, keymaps, load_hf, matching
from lacuna.models import block

causal_lm = sys.modules["lacuna.models.causal_lm"]  # the function has the same name
GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS, MASK = jnp.asarray(tiny_hf.tokens()), jnp.asarray(tiny_hf.mask())
every_model = pytest.mark.parametrize("name", tiny_hf.MODELS)


def expected(name):
    return np.load(GOLDEN / name / "expected.npz")


def resid_as_theirs(resid, model, params):
    """Theirs ends after the final norm, ours before it."""
    last = block.Norm(model.spec.norm, model.spec.norm_eps).apply({"params": params.get("final_norm", {})}, resid[-1])
    return np.concatenate([resid[:-1], last[None]])


@every_model
def test_logits_and_the_stream_at_every_layer(name):
    model, params = load_hf(GOLDEN / name)
    found, theirs = model.apply(params, TOKENS, taps="all"), expected(name)
    np.testing.assert_allclose(found.logits, theirs["logits"], atol=5e-6)
    np.testing.assert_allclose(resid_as_theirs(found.resid, model, params), theirs["resid"], atol=5e-6)


@every_model
def test_padding_on_the_left(name):
    model, params = load_hf(GOLDEN / name)
    found, kept = model.apply(params, TOKENS, mask=MASK).logits, tiny_hf.mask().astype(bool)
    np.testing.assert_allclose(found[kept], expected(name)["left_padded"][kept], atol=5e-6)
    assert np.isfinite(found).all()


@every_model
def test_the_gradient_by_every_parameter(name):
    model, params = load_hf(GOLDEN / name)
    _, theirs = load_hf(GOLDEN / name / "gradients")
    loss, slope = jax.value_and_grad(lambda p: jnp.mean(models.next_token_nats(model, p, TOKENS)))(params)
    np.testing.assert_allclose(loss, expected(name)["loss"], rtol=1e-6)
    for ours, other in zip(jax.tree.leaves(slope), jax.tree.leaves(theirs), strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(ours, other, atol=1e-5 * np.abs(other).max())


MUTATIONS = {
    "exact gelu": ("gpt2", block, "approximate=True", "approximate=False"),
    "epsilon": ("qwen2", configs, 'read.get("rms_norm_eps", 1e-6)', '100 * read.get("rms_norm_eps", 1e-6)'),
    "epsilon of a layer norm": (
        "gpt2_untied",
        configs,
        'read.get("layer_norm_epsilon", 1e-5)',
        '1e-5 + 0 * read.get("layer_norm_epsilon", 1)',
    ),
    "epsilon of olmo": ("olmo", configs, "norm_eps=1e-5", "norm_eps=1e-4"),
    "theta": ("qwen2", configs, 'new.get("rope_theta") or', ""),
    "interleaved rotation": (
        "llama",
        block,
        "first, second = jnp.split(_wide(x), 2, axis=-1)",
        "first, second = _wide(x)[..., ::2], _wide(x)[..., 1::2]",
    ),
    "rotation the other way": ("llama", block, "first * cos - second * sin", "first * cos + second * sin"),
    "query norm after the rotation": (
        "qwen3",
        block,
        'query, key = self._norm("query")(query), self._norm("key")(key)\n'
        "        query, key = _rotated(query, around.rotation), _rotated(key, around.rotation)",
        "query, key = _rotated(query, around.rotation), _rotated(key, around.rotation)\n"
        '            query, key = self._norm("query")(query), self._norm("key")(key)',
    ),
    "norm of each head for the whole": ("olmo2", configs, 'query_key_norm="whole"', 'query_key_norm="none"'),
    "order of query, key and value": ("gpt2", block, "query, key, value = (part", "key, query, value = (part"),
    "orientation of a square kernel": (
        "gpt2",
        keymaps,
        "bias=True, transpose=False",
        "bias=True, transpose=wide(ours)",
    ),
    "orientation of a linear map": ("qwen2", keymaps, "transpose: bool = True) ->", "transpose: bool = False) ->"),
    "norms of olmo 2 before the branch": ("olmo2", configs, "norm_after=True, query", "query"),
    "clipping": ("olmo", block, "-spec.clip_qkv, spec.clip_qkv", "-1.0, 1.0"),
    "a window one wider": ("qwen2_window", causal_lm, "ago < window", "ago <= window"),
    "the layers of the window": (
        "qwen2_window",
        configs,
        'if kind == "sliding_attention" else None',
        "if True else None",
    ),
    "scale by layer": ("gpt2_untied", causal_lm, "scale / (index + 1)", "scale / (index + 2)"),
    "softmax without the scale": ("llama", block, "* around.scale", "* 1.0"),
    "gate and up": ("llama", keymaps, '("mlp.gate_proj", "mlp/gate"', '("mlp.gate_proj", "mlp/up"'),
    "padding counted by positions": (
        "gpt2",
        causal_lm,
        "jnp.cumsum(mask, axis=1) - 1",
        "jnp.cumsum(mask | True, axis=1) - 1",
    ),
    "padding that is seen": ("qwen2", causal_lm, "allowed & mask[:, None, :]", "allowed"),
    "the wrong key for a query": (
        "qwen2",
        block,
        "query.reshape(*query.shape[:2], num_kv_heads, -1, query.shape[-1])",
        "query.reshape(*query.shape[:2], -1, num_kv_heads, query.shape[-1]).swapaxes(2, 3)",
    ),
    "no mean taken out": ("gpt2", block, 'if self.kind != "rms":', "if False:"),
    "a bias left out": ("qwen2", block, "if self.use_bias:", "if self.use_bias and self.features != 16:"),
    "head of a tied model": (
        "gpt2_untied",
        causal_lm,
        'params["embedding"].T if spec.tied',
        'params["embedding"].T if True',
    ),
}


def mutant(module, old, new):
    """The module with one piece of its source replaced."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{source.count(old)} of {old!r} in {module.__name__}"
    changed = types.ModuleType(f"{module.__name__}_mutant")
    changed.__dict__["wide"] = lambda ours: ours == "attention/out"
    sys.modules[changed.__name__] = changed  # dataclasses look their module up
    exec(compile(source.replace(old, new), f"<{changed.__name__}>", "exec"), changed.__dict__)
    return changed


def table_of(changed, family, spec):
    """The mutant's table, made of the classes that the reader knows."""
    made = changed.KEYMAPS[family](spec)
    rules = tuple(keymaps.Rule(rule.tensor, rule.leaf, rule.transpose) for rule in made.rules)
    return keymaps.Keymap(made.prefix, rules, made.ignored)


def around(changed):
    """A stack of the blocks of a mutant."""
    stack = mutant(causal_lm, "checked_mask(mask, ", "checked_mask(mask, ")
    stack.__dict__.update({name: getattr(changed, name) for name in ("Around", "Block", "Norm")})
    return stack


def load_mutant(monkeypatch, name, module, old, new):
    changed = mutant(module, old, new)
    if module is configs:
        monkeypatch.setattr(matching, "spec_from_config", changed.spec_from_config)
    if module is keymaps:
        tables = {family: partial(table_of, changed, family) for family in keymaps.KEYMAPS}
        monkeypatch.setattr(matching, "KEYMAPS", tables)
    model, params = load_hf(GOLDEN / name)
    if module is block:
        changed = around(changed)
    return (changed.causal_lm(model.spec) if module in (block, causal_lm) else model), params


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mistake_is_seen(monkeypatch, mutation):
    name, *change = MUTATIONS[mutation]
    theirs, kept = expected(name), tiny_hf.mask().astype(bool)
    try:
        model, params = load_mutant(monkeypatch, name, *change)
        found = np.asarray(model.apply(params, TOKENS, mask=MASK).logits)[kept]
        whole = np.asarray(model.apply(params, TOKENS).logits)
    except (matching.BadCheckpoint, AssertionError, KeyError):
        return  # the file does not fit: seen before a number was made
    off = max(np.abs(found - theirs["left_padded"][kept]).max(), np.abs(whole - theirs["logits"]).max())
    assert off > 1e-4, f"{mutation} changes the logits by {off:.1e} only"


def test_the_unmutated_source_passes_the_same_test():
    """A mutant of nothing is right: it is the change that is seen, not the way it is made."""
    model, params = load_hf(GOLDEN / "gpt2")
    same = around(mutant(block, "approximate=True", "approximate=True")).causal_lm(model.spec)
    assert oracles.bits(same.apply(params, TOKENS).logits) == oracles.bits(model.apply(params, TOKENS).logits)
