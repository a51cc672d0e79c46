"""Ours beside transformers on torch, live: needs the parity extra, and is skipped without it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'lacuna[parity]'")

from lacuna import cli, models, trees  # noqa: E402  (only with torch)
from lacuna.checkpoints import export_hf, load_hf, verify  # noqa: E402

TOKENS, MASK = jnp.asarray(tiny_hf.tokens()), jnp.asarray(tiny_hf.mask())
every_model = pytest.mark.parametrize("name", tiny_hf.MODELS)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(name)`: the torch model and the folder that it was saved to."""
    folder, made = tmp_path_factory.mktemp("saved"), {}

    def save(name):
        if name not in made:
            made[name] = tiny_hf.make(name)
            made[name].save_pretrained(folder / name)
        return made[name], folder / name

    return save


@every_model
def test_logits_stream_padding_and_gradients(name, saved):
    peer, folder = saved(name)
    model, params = load_hf(folder)
    theirs, left, slopes = tiny_hf.forward(peer), tiny_hf.padded(peer), tiny_hf.gradients(peer)
    ours = model.apply(params, TOKENS, taps="all")
    np.testing.assert_allclose(ours.logits, theirs["logits"], atol=5e-6)
    np.testing.assert_allclose(ours.resid[:-1], theirs["resid"][:-1], atol=5e-6)
    kept = tiny_hf.mask().astype(bool)
    np.testing.assert_allclose(
        np.asarray(model.apply(params, TOKENS, mask=MASK).logits)[kept], left["logits"][kept], atol=5e-6
    )
    loss = jnp.mean(models.next_token_nats(model, params, TOKENS))
    np.testing.assert_allclose(loss, slopes["loss"], rtol=1e-6)


@every_model
def test_a_steer_is_a_hook_that_adds_to_the_output_of_a_block(name, saved):
    peer, folder = saved(name)
    model, params = load_hf(folder)
    added = np.random.default_rng(1).normal(size=model.spec.width).astype(np.float32)
    blocks = peer.transformer.h if name.startswith("gpt2") else peer.model.layers

    def add(module, inputs, output):
        if isinstance(output, tuple):
            return (output[0] + torch.from_numpy(added), *output[1:])
        return output + torch.from_numpy(added)

    hook = blocks[0].register_forward_hook(add)
    theirs = tiny_hf.forward(peer)["logits"]
    hook.remove()
    steer = jnp.zeros((model.spec.num_layers + 1, model.spec.width)).at[1].set(added)
    found = model.apply(params, TOKENS, steer=steer).logits
    np.testing.assert_allclose(found, theirs, atol=5e-6)
    assert np.abs(found - model.apply(params, TOKENS).logits).max() > 0.1


@every_model
def test_bfloat16_by_divergence_and_first_choice(name, saved):
    _, folder = saved(name)
    peer = tiny_hf.make(name, "bfloat16")
    theirs = jax.nn.log_softmax(tiny_hf.forward(peer)["logits"])
    model, params = load_hf(folder, dtype=jnp.bfloat16)
    ours = jax.nn.log_softmax(model.apply(params, TOKENS).logits)
    divergence = jnp.mean(jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1))
    assert divergence < 1e-3
    agreed = jnp.argmax(ours, -1) == jnp.argmax(theirs, -1)
    # 24 positions: a tie to the last bit of bfloat16 may fall either way.
    assert jnp.sum(~agreed) <= 1


def test_gpt2_in_float64_to_the_last_digits(saved):
    """In a process of its own, for float64 is a switch of the whole of JAX."""
    _, folder = saved("gpt2")
    peer = tiny_hf.make("gpt2", "float64")
    with torch.no_grad():
        theirs = peer(torch.from_numpy(tiny_hf.tokens())).logits.numpy()
    code = (
        "import sys, jax, numpy as np\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "import tiny_hf\n"
        "from lacuna.checkpoints import load_hf\n"
        "model, params = load_hf(sys.argv[1], dtype='float64')\n"
        "np.save(sys.argv[2], model.apply(params, jax.numpy.asarray(tiny_hf.tokens())).logits)\n"
    )
    out = folder.parent / "logits.npy"
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(out)], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    ours = np.load(out)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@every_model
def test_verify_hf_passes(name, saved, capsys):
    _, folder = saved(name)
    assert cli.run(["verify-hf", str(folder), "--length", "20"]) == 0
    told = capsys.readouterr().out
    assert "agrees with transformers on 34 tokens" in told
    assert all(f"after block {i}" in told for i in (1, 2))


def test_verify_hf_sees_another_model(saved, capsys, monkeypatch):
    _, folder = saved("qwen2")
    right = verify.load_hf

    def wrong(*args, **kwargs):
        model, params = right(*args, **kwargs)
        params["layers"]["mlp"]["up"]["kernel"] = params["layers"]["mlp"]["up"]["kernel"].at[1, 0, 0].add(1e-2)
        return model, params

    monkeypatch.setattr(verify, "load_hf", wrong)
    assert cli.run(["verify-hf", str(folder)]) == cli.DISAGREED
    told = capsys.readouterr().out
    assert "DIFFERS from transformers" in told
    (first,), (second,) = ([line for line in told.splitlines() if f"after block {i}" in line] for i in (1, 2))
    assert "DIFFERS" not in first
    assert "DIFFERS" in second


@every_model
@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
def test_what_was_perturbed_and_exported_is_loaded_by_transformers(name, saved, tmp_path, max_shard_bytes):
    from transformers import AutoModelForCausalLM

    _, folder = saved(name)
    model, params = load_hf(folder)
    noise = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    moved = trees.axpy(0.05, noise, params)
    for like in (None, folder):
        out = export_hf(model, moved, tmp_path / f"out{like is None}", like=like, max_shard_bytes=max_shard_bytes)
        peer, info = AutoModelForCausalLM.from_pretrained(
            out, attn_implementation="eager", local_files_only=True, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]
        theirs = tiny_hf.forward(peer.eval())["logits"]
        ours = model.apply(moved, TOKENS).logits
        np.testing.assert_allclose(ours, theirs, atol=5e-6)
        assert np.abs(theirs - np.asarray(model.apply(params, TOKENS).logits)).max() > 0.1
        assert verify.verify_hf(out, tiny_hf.tokens(), tiny_hf.mask()).passed


@every_model
def test_a_bfloat16_export_keeps_every_bit_through_transformers(name, saved, tmp_path):
    from transformers import AutoModelForCausalLM

    _, folder = saved(name)
    model, params = load_hf(folder, dtype=jnp.bfloat16)
    out = export_hf(model, params, tmp_path / "ours")
    peer = AutoModelForCausalLM.from_pretrained(out, dtype="auto", local_files_only=True)
    assert peer.dtype == torch.bfloat16
    peer.save_pretrained(tmp_path / "theirs")
    assert trees.content_digest(load_hf(tmp_path / "theirs")[1]) == trees.content_digest(params)
