"""Two trained checkpoints: losses, logits and greedy text as transformers gave them."""

import jax.numpy as jnp
import numpy as np
import pytest

from lacuna import models
from lacuna.checkpoints import load_hf, load_tokenizer


@pytest.fixture(scope="module", params=["tiny_ckpt", "gpt2_ckpt"])
def trained(request, data):
    folder = data / request.param
    if not folder.is_dir():
        pytest.skip(f"the trained checkpoint is not at {folder}")
    model, params = load_hf(folder / "hf")
    return request.param, model, params, load_tokenizer(folder / "tokenizer")


# Text, tokens, mean loss in nats, and the first logits after its last token.
SENTENCE = {
    "tiny_ckpt": (
        "Once upon a time, there was a little girl named Lily.",
        [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426],
        0.10014,
        [-3.8517, 4.9812, -3.8526, -3.8520],
    ),
    "gpt2_ckpt": (
        "ROMEO:\nWhat light through yonder window breaks?",
        [1818, 26, 199, 905, 2034, 1175, 328, 3703, 2334, 320, 2386, 83, 31],
        4.12029,
        [-10.06834, 1.41639, -0.04333, -2.99904],
    ),
}
GREEDY = {
    "tiny_ckpt": [
        (
            "",
            "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she "
            "saw a big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go "
            "to the park.\" Lily was sad and didn't know w",
        )
    ],
    "gpt2_ckpt": [
        ("ROMEO:\nWhat", ", is the finger?\n\nNurse:\nAh, a bawd, a bawd"),
        (
            "This PEP proposes",
            " to add a\n``typing`` module.\n\n\nAbstract\n========\n\nThis PEP proposes to",
        ),
    ],
}


def encode(name, tokenizer, text):
    """Tokens of a text; the small Llama-like model wants its start token in front."""
    start = [1] if name == "tiny_ckpt" else []
    return [*start, *(tokenizer(text, add_special_tokens=False).input_ids if text else [])]


def test_a_sentence(trained):
    name, model, params, tokenizer = trained
    text, tokens, nats, logits = SENTENCE[name]
    assert encode(name, tokenizer, text) == tokens
    found = models.next_token_nats(model, params, jnp.asarray([tokens]))
    np.testing.assert_allclose(jnp.mean(found), nats, atol=1e-5)
    np.testing.assert_allclose(model.apply(params, jnp.asarray([tokens])).logits[0, -1, :4], logits, atol=6e-5)


def test_scrambled_words_are_far_less_likely(trained):
    name, model, params, tokenizer = trained
    if name != "tiny_ckpt":
        return
    tokens = encode(name, tokenizer, "Lily girl a named was there upon little time Once a.")
    np.testing.assert_allclose(
        jnp.mean(models.next_token_nats(model, params, jnp.asarray([tokens]))), 7.92236, atol=1e-4
    )


def test_greedy_text(trained):
    name, model, params, tokenizer = trained
    for prompt, text in GREEDY[name]:
        num_tokens = 150 if name == "tiny_ckpt" else 24
        found = models.greedy(model, params, jnp.asarray([encode(name, tokenizer, prompt)]), num_tokens=num_tokens)
        assert tokenizer.decode(np.asarray(found[0])).startswith(text)


@pytest.mark.parametrize(
    ("corpus", "nats"), [("tinyshakespeare", 3.5614), ("peps_public_domain", 4.7015), ("wikitext2_valid", 3.8055)]
)
def test_the_loss_on_held_out_text(trained, data, corpus, nats):
    """The first 40 windows of 129 tokens of the last twentieth of each corpus."""
    name, model, params, tokenizer = trained
    file = data / "corpora" / f"{corpus}.txt"
    if name != "gpt2_ckpt" or not file.is_file():
        pytest.skip(f"{name} was not trained on {file}" if file.is_file() else f"no corpus at {file}")
    tokens = tokenizer(file.read_text(encoding="utf-8")).input_ids
    tail = np.asarray(tokens[int(0.95 * len(tokens)) :][: 40 * 129]).reshape(40, 129)
    np.testing.assert_allclose(jnp.mean(models.next_token_nats(model, params, jnp.asarray(tail))), nats, atol=2e-3)
