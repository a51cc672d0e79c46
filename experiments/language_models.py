"""The language models of the experiments and the texts that go with them: given, or made on the spot.

Without any file an experiment still runs: its texts are then those of Python's own library, the prose of its language
reference and the source of its modules, and a small GPT-2 is pretrained on them and kept.
"""

import hashlib
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.recoveries import Told
from lacuna import keys, models, setups
from lacuna.checkpoints import load_hf, load_tokenizer, sources
from lacuna.checkpoints.configs import spec_from_config
from lacuna.errors import InvalidInput
from lacuna.tasks import language, mappings, row_streams, text
from lacuna.tasks.documents import read_documents
from lacuna.training import TrainConfig, fit
from lacuna.types import Params

DATA = Path("data")
"""Where files are looked for that no option names."""

MODULES = (
    "argparse", "ast", "asyncio.base_events", "calendar", "collections", "configparser", "csv", "datetime", "decimal",
    "difflib", "doctest", "email.message", "enum", "fractions", "functools", "heapq", "http.client", "inspect",
    "ipaddress", "json.decoder", "locale", "logging", "mailbox", "optparse", "os", "pathlib", "pdb", "pickle",
    "platform", "pydoc", "random", "shutil", "smtplib", "socket", "statistics", "string", "subprocess", "tarfile",
    "tempfile", "textwrap", "threading", "tokenize", "traceback", "turtle", "typing", "unittest.mock", "zipfile",
)  # fmt: skip
"""Of the standard library, about 2.9 MB of source."""


@dataclass(frozen=True)
class LanguageModelSpec:
    """A language model and two texts.

    Attributes:
      model: folder or hub id. None: `data/model` if there is one and no text is named, else one that is pretrained.
      tokenizer: folder or hub id. None: that of the model; of `data/model` it is `data/tokenizer`.
      texts: two sources, of a literary and of a technical text: a .txt, a .jsonl, or an id of `datasets`. None:
        `data/literary.txt` and `data/technical.txt` if one of them is there, else Python's own library.
      column: of a .jsonl or a dataset.
      split: of a dataset.
      vocab_size: tokens of a tokenizer that is trained on the spot.
      width: of a model that is pretrained on the spot, with four times as many hidden units.
      num_layers: of it.
      num_heads: of it.
      pretrain_steps: of it, each of 16 rows of `pretrain_length` tokens; 0 for random weights.
      pretrain_length: tokens of a row.
    """

    model: str = ""
    tokenizer: str = ""
    texts: tuple[str, ...] = ()
    column: str = "text"
    split: str = "train"
    vocab_size: int = 2048
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    pretrain_steps: int = 2500
    pretrain_length: int = 64


class Base(NamedTuple):
    """A frozen language model.

    Attributes:
      name: for tables.
      model: its architecture.
      params: its weights, float32.
      encode: text to tokens, no special ones.
    """

    name: str
    model: models.Model
    params: Params
    encode: Callable[[str], list[int]]


PYTHON = ("python:prose", "python:code")


def _sources(spec: LanguageModelSpec) -> tuple[str, str]:
    """The literary and the technical source."""
    if not spec.texts:
        given = DATA / "literary.txt", DATA / "technical.txt"
        return (str(given[0]), str(given[1])) if any(file.exists() for file in given) else PYTHON
    if len(spec.texts) != 2:
        raise InvalidInput("texts must be two sources", got=f"{len(spec.texts)}", hint="--texts A.txt B.txt")
    return spec.texts[0], spec.texts[1]


def text_names(spec: LanguageModelSpec) -> tuple[str, str]:
    """What the two texts are called in records."""
    return ("prose", "code") if _sources(spec) == PYTHON else ("literary", "technical")


def documents(spec: LanguageModelSpec) -> dict[str, list[str]]:
    """Both texts, by name.

    Raises:
      InvalidInput: one that is not there, or cannot be read; says what was looked for.
    """
    return {name: read_text(source, spec) for name, source in zip(text_names(spec), _sources(spec), strict=True)}


def read_text(source: str, spec: LanguageModelSpec) -> list[str]:
    """The documents of a source, as `LanguageModelSpec.texts` names it."""
    if source == "python:prose":
        from pydoc_data import topics

        return [
            "\n".join(dict.fromkeys(topics.topics[name] for name in sorted(topics.topics)))
        ]  # some stand there twice
    if source == "python:code":
        return [python_code()]
    return read_documents(source, column=spec.column, split=spec.split)


def python_code() -> str:
    """The source of some modules of Python's library, one after the other."""
    library = Path(sysconfig.get_path("stdlib"))
    stems = [library / name.replace(".", "/") for name in MODULES]
    files = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _source(spec: LanguageModelSpec) -> str:
    """Where the model is read from; nowhere if it is pretrained."""
    found = not spec.texts and (DATA / "model").is_dir()
    return spec.model or (str(DATA / "model") if found else "")


def _tokenizer(spec: LanguageModelSpec) -> str:
    """Where the tokenizer of a model that is read lies."""
    source = _source(spec)
    return spec.tokenizer or (str(DATA / "tokenizer") if source == str(DATA / "model") else source)


def resolved(spec: LanguageModelSpec) -> dict[str, str]:
    """What a specification stands for here and now: a run that goes on must mean the same.

    Raises:
      InvalidInput: a text or a model that cannot be read, before anything is written or trained.
    """
    documents(spec)
    if _source(spec):
        sources.read_config(sources.find(_source(spec), weights=False))
        load_tokenizer(_tokenizer(spec))
    return {"model": _source(spec) or "pretrained", "texts": ", ".join(_sources(spec))}


def base(spec: LanguageModelSpec, cache: Path, told: Told) -> Base:
    """The model of a specification: read, or pretrained on the training parts of both texts and kept in the cache."""
    source = _source(spec)
    if source:
        told(f"reading {source}")
        model, params = load_hf(source, dtype=jnp.float32)
        return Base(source, model, params, partial(_encoded, load_tokenizer(_tokenizer(spec))))
    return _pretrained(spec, cache, told)


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)  # or it warns of texts beyond a window


def text_rows(spec: LanguageModelSpec, encode: Callable[[str], Sequence[int]], *, length: int) -> dict[str, Any]:
    """Windows of both texts, by name: (train, held-out), which share no row."""
    return {name: text.pack_splits(found, encode, length=length) for name, found in documents(spec).items()}


def _pretrained(spec: LanguageModelSpec, cache: Path, told: Told) -> Base:
    """A GPT-2 of the specification's size, trained on both texts."""
    cache = cache.expanduser()
    found = documents(spec)
    tokenizer, vocabulary = _trained_tokenizer(found, spec.vocab_size)
    encode = partial(_tokens, tokenizer)
    shape = {"n_embd": spec.width, "n_layer": spec.num_layers, "n_head": spec.num_heads, "n_positions": 256}
    model = models.causal_lm(
        spec_from_config({"model_type": "gpt2", "vocab_size": tokenizer.get_vocab_size(), **shape})
    )
    start = model.init(keys.stream(0, "init"))
    if spec.pretrain_steps == 0:
        return Base("a random GPT-2", model, start, encode)
    config = TrainConfig(spec.pretrain_steps, 3e-3, min(100, spec.pretrain_steps // 2))
    rows = text_rows(spec, encode, length=spec.pretrain_length)
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(train for train, _ in rows.values()))
    recipe = {
        "version": 1,
        "what": "language model",
        "spec": asdict(model.spec),
        "vocabulary": vocabulary,
        "rows": together.digest,
        "train": asdict(config),
    }

    def trained() -> Params:
        told(f"no model was given: a GPT-2 of {sum(x.size for x in jax.tree.leaves(start)):,} parameters is pretrained")
        loss = language.language_loss(jax.tree_util.Partial(partial(models.next_token_nats, model)))
        data = row_streams.row_stream(together, seed=0, batch_size=16, name="pretraining")

        def progress(step: int, num_steps: int, value: float) -> None:
            if step % 250 == 0 or step == num_steps:
                told(f"pretraining: step {step} of {num_steps}, loss {value:.3f}")

        return fit(loss, start, data, config, progress=progress).params

    params = setups.kept(model, recipe, trained, cache=cache, notice=told)
    return Base(f"a GPT-2 of width {spec.width} pretrained here", model, params, encode)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text).ids


def _trained_tokenizer(found: dict[str, list[str]], vocab_size: int) -> tuple[Any, str]:
    """A byte-level BPE of the texts, and the hash of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    whole = [*mappings.NUMERALS, " ->"]  # what a row of a mapping is made of, a token each
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=whole, show_progress=False
    )
    tokenizer.train_from_iterator((one for texts in found.values() for one in texts), trainer)
    return tokenizer, hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
