"""Contrast vectors: how the stream differs between two kinds of prompts, or between two answers to the same one.

Source: Rimsky et al. (2024) and arXiv 2606.10929.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Float32, Float64

from lacuna import trees
from lacuna.checkpoints.safetensors_file import MappedFile, write
from lacuna.errors import InvalidInput
from lacuna.models import Model
from lacuna.reports import rundir
from lacuna.steering.activations import LABEL, LAST_PROMPT, Read, read_stream
from lacuna.tasks.contrast import Prompts, Spans
from lacuna.types import Params

Kind = Literal["statement", "paired"]
Normalise = Literal["none", "unit", "stream"]

SCHEMA = "1"
"""Version of the file's layout."""

_SCHEMA_KEY = "lacuna_steering_vectors"


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """A vector for each level and each place read, and how it was made.

    Attributes:
      vectors: level 0 of the embedding output, l of the stream after block l, before the final norm.
      norms: mean norm of the stream at the places read, over all rows: strengths are fractions of it.
      kind: `statement` or `paired`: the function of that name made it.
      read: at which tokens.
      normalise: `none`; `unit` norm; or the norm of the `stream` at the level, above. A zero vector stays zero.
      num_positive: rows on the positive side.
      num_negative: rows on the other.
      dtype: of the stream that was read.
      template: the text that the prompts were made with, as the caller gave it; empty where it did not.
      tokenizer: name or digest of the tokenizer, likewise.
      model_name: likewise.
    """

    vectors: Float32[np.ndarray, "levels Q D"]
    norms: Float32[np.ndarray, "levels"]
    kind: Kind
    read: Read
    normalise: Normalise
    num_positive: int
    num_negative: int
    dtype: str
    template: str = ""
    tokenizer: str = ""
    model_name: str = ""

    @property
    def template_digest(self) -> str:
        """SHA-256 of the template: what a record carries in its place."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    def at(self, level: int, place: int = 0) -> Float32[np.ndarray, "D"]:
        """The vector of a level, at one of the places of `read.back`.

        Raises:
          InvalidInput: there is no such level or place; names those there are.
        """
        for name, asked, number in zip(("level", "place"), (level, place), self.vectors.shape, strict=False):
            if not 0 <= asked < number:
                raise InvalidInput(f"{name} must be one of 0 to {number - 1}", got=asked)
        return self.vectors[level, place]


def statement(
    model: Model,
    params: Params,
    prompts: Prompts,
    *,
    read: Read = LAST_PROMPT,
    normalise: Normalise = "none",
    batch_size: int = 32,
    template: str = "",
    tokenizer: str = "",
    model_name: str = "",
    **options: Any,
) -> SteeringVectors:
    """Mean of the stream over the prompts whose right answer is the positive one, minus that over the others.

    The answer is never seen. All levels and places come from one forward pass a batch, and the means are float64 on
    the host.

    Args:
      model: one that reports its stream.
      params: its parameters.
      prompts: of both labels.
      read: at which tokens.
      normalise: see `SteeringVectors`.
      batch_size: rows in a forward pass; it changes the last bits alone.
      template: kept beside the vectors, as the next two.
      tokenizer: its name or digest.
      model_name: whose parameters these are.
      options: others of the model's `apply`: steer, lora.

    Raises:
      InvalidInput: prompts of one label alone, a row without the token to read, or a stream that is not finite; names
        the row.

    Source: arXiv 2606.10929, whose exact contrast is not available to us: this one is our default.
    """
    positive = prompts.positive
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        raise InvalidInput(
            "a contrast needs prompts of both labels", got=f"{num_positive} positive and {num_negative} others"
        )
    _check(normalise, batch_size)
    total: Any = 0.0
    other_total: Any = 0.0
    norms: Any = 0.0
    start = 0
    for rows in _streams(model, params, prompts.spans, read, batch_size, options):
        side = positive[start : start + rows.shape[1]]
        start += rows.shape[1]
        # Sums, divided once at the end: where all rows are equal, so are the means, to the last bit.
        total = total + rows[:, side].sum(1)
        other_total = other_total + rows[:, ~side].sum(1)
        norms = norms + _norms(rows)
    norms /= len(positive)
    contrast = total / num_positive - other_total / num_negative
    return SteeringVectors(
        _scaled(contrast, norms, normalise),
        norms.astype(np.float32),
        kind="statement",
        read=read,
        normalise=normalise,
        num_positive=num_positive,
        num_negative=num_negative,
        dtype=_dtype(model, params, prompts.tokens, options),
        template=template,
        tokenizer=tokenizer,
        model_name=model_name,
    )


def paired(
    model: Model,
    params: Params,
    positive: Spans,
    negative: Spans,
    *,
    read: Read = LABEL,
    normalise: Normalise = "none",
    batch_size: int = 32,
    template: str = "",
    tokenizer: str = "",
    model_name: str = "",
    **options: Any,
) -> SteeringVectors:
    """Mean over questions of the stream with the positive answer minus that with the other.

    Read at the answer itself, level 0 is the difference of two embeddings: balance which answer is the positive one,
    or the vector is for the letter and not for what it stands for.

    Args:
      model: one that reports its stream.
      params: its parameters.
      positive: of `pair_spans`, a row for each question.
      negative: the same questions.
      read: at which tokens, on either side. The published vectors are those of `Read("index", index=-2)`.
      normalise: see `SteeringVectors`.
      batch_size: questions in a forward pass.
      template: kept beside the vectors, as the next two.
      tokenizer: its name or digest.
      model_name: whose parameters these are.
      options: others of the model's `apply`: steer, lora.

    Raises:
      InvalidInput: other numbers of rows on the two sides, a row without the token to read, or a stream that is not
        finite; names the row.

    Source: Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition" (2024).
    """
    sides = (positive, negative)
    num_questions, num_others = (len(side.tokens) for side in sides)
    if num_questions != num_others or not num_questions:
        raise InvalidInput(
            "a pair needs a row with either answer", got=f"{num_questions} positive and {num_others} others"
        )
    _check(normalise, batch_size)
    total: Any = 0.0
    norms: Any = 0.0
    # As wide as the wider side, so that one program reads both.
    length = max(side.tokens.shape[1] for side in sides)
    streams = (_streams(model, params, _widened(side, length), read, batch_size, options) for side in sides)
    for rows, other_rows in zip(*streams, strict=True):
        total = total + (rows - other_rows).sum(1)
        norms = norms + (_norms(rows) + _norms(other_rows)) / 2
    norms /= num_questions
    return SteeringVectors(
        _scaled(total / num_questions, norms, normalise),
        norms.astype(np.float32),
        kind="paired",
        read=read,
        normalise=normalise,
        num_positive=num_questions,
        num_negative=num_questions,
        dtype=_dtype(model, params, positive.tokens, options),
        template=template,
        tokenizer=tokenizer,
        model_name=model_name,
    )


def save_vectors(path: str | Path, vectors: SteeringVectors) -> Path:
    """Write vectors as a safetensors file, whole or not at all; one that was there is replaced.

    Tensors `vectors` and `norms`; everything else is JSON in the file's metadata, and a digest of all of it.
    """
    path = Path(path).expanduser()
    about = {field.name: getattr(vectors, field.name) for field in fields(vectors) if field.name not in _TENSORS}
    text = json.dumps(about | {"read": asdict(vectors.read), "template_digest": vectors.template_digest})
    tensors = {name: np.asarray(getattr(vectors, name)) for name in _TENSORS}
    metadata = {_SCHEMA_KEY: SCHEMA, "about": text, "digest": _digest(text, tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with rundir.whole_file(path) as unfinished:
        write(unfinished, shapes, lambda name: [tensors[name]], metadata=metadata)
    return path


def load_vectors(path: str | Path) -> SteeringVectors:
    """The vectors of a file, to the bit as they were saved.

    Raises:
      InvalidInput: there is no such file, it holds something else or a newer layout, or its content is not what was
        written.
      BadCheckpoint: the file is cut, or no safetensors file at all.
    """
    path = Path(path).expanduser()
    asked = f"{path} must be a file of steering vectors"
    if not path.is_file():
        raise InvalidInput(asked, got="no such file", hint="one that `save_vectors` wrote")
    file = MappedFile(path)
    schema, text = file.metadata.get(_SCHEMA_KEY), file.metadata.get("about", "")
    if schema is None:
        names = ", ".join(f"`{name}`" for name in list(file.tensors)[:3])
        raise InvalidInput(asked, got=f"one of {names or 'nothing'}", hint="one that `save_vectors` wrote")
    if schema != SCHEMA:
        raise InvalidInput(f"{asked} of schema {SCHEMA}", got=schema, hint="a newer lacuna")
    tensors = {name: np.array(tensor) for name, tensor in file.tensors.items()}
    if file.metadata.get("digest") != _digest(text, tensors):
        raise InvalidInput(f"{asked} as it was written", got="another content than its digest is of", hint="a copy")
    given: dict[str, Any] = tensors | json.loads(text)
    del given["template_digest"]
    rule = given.pop("read")
    return SteeringVectors(read=Read(rule["where"], rule["index"], tuple(rule["back"])), **given)


_TENSORS = ("vectors", "norms")


def _digest(about: str, tensors: dict[str, np.ndarray]) -> str:
    return trees.content_digest({**tensors, "about": np.frombuffer(about.encode(errors="surrogatepass"), np.uint8)})


def _check(normalise: str, batch_size: int) -> None:
    if normalise not in get_args(Normalise):
        raise InvalidInput(f"normalise must be one of {', '.join(get_args(Normalise))}", got=f"`{normalise}`")
    if batch_size < 1:
        raise InvalidInput("a batch needs at least one row", got=f"batch_size={batch_size}")


def _norms(rows: Float64[np.ndarray, "levels B Q D"]) -> Float64[np.ndarray, "levels"]:
    """Norms, their mean over the places, summed over the rows."""
    return np.linalg.norm(rows, axis=-1).mean(-1).sum(-1)


def _scaled(
    contrast: Float64[np.ndarray, "levels Q D"], norms: Float64[np.ndarray, "levels"], normalise: Normalise
) -> Float32[np.ndarray, "levels Q D"]:
    if normalise != "none":
        length = np.linalg.norm(contrast, axis=-1, keepdims=True)
        contrast = np.divide(contrast, length, out=np.zeros_like(contrast), where=length > 0)
    if normalise == "stream":
        contrast = contrast * norms[:, None, None]
    return contrast.astype(np.float32)


def _widened(spans: Spans, length: int) -> Spans:
    return spans._replace(tokens=np.pad(spans.tokens, ((0, 0), (0, length - spans.tokens.shape[1]))))


_read = jax.jit(read_stream, static_argnames="model")


def _streams(
    model: Model, params: Params, spans: Spans, read: Read, batch_size: int, options: dict[str, Any]
) -> Iterator[Float64[np.ndarray, "levels B Q D"]]:
    """The stream at the places read, a batch of rows at a time."""
    num_rows = len(spans.tokens)
    weights = read.weights(spans)
    starts = range(0, num_rows, width := min(batch_size, num_rows))
    # The last batch is filled up with its last row, so that all are of one shape.
    batches = (np.minimum(np.arange(start, start + width), num_rows - 1) for start in starts)
    found = (_read(model, params, spans.tokens[rows], weights=weights[rows], **options) for rows in batches)
    # The next batch is on its way before one waits for this one.
    for start, (now, _) in zip(starts, itertools.pairwise(itertools.chain(found, [None])), strict=True):
        rows = np.asarray(now, np.float64)[:, : num_rows - start]
        if not np.isfinite(rows).all():
            level, row = np.argwhere(~np.isfinite(rows))[0, :2].tolist()
            raise InvalidInput(
                f"the stream must be finite at the places read; that of row {start + row} is not at level {level}",
                hint="tokens of this model's vocabulary, or parameters that are finite",
            )
        yield rows


def _dtype(model: Model, params: Params, tokens: np.ndarray, options: dict[str, Any]) -> str:
    """Of the stream."""
    resid: Any = jax.eval_shape(partial(model.apply, taps="all", **options), params, tokens[:1]).resid
    return str(resid.dtype)
