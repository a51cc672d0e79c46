"""Text as rows of tokens: windows of documents or pairs of prompt and answer, and what is held out of them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64

from lacuna import trees
from lacuna.errors import InvalidInput
from lacuna.tasks.task import Encode

_Tokens = Int32[np.ndarray, "_"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "answer"],
    meta_fields=["is_one_text", "num_left_out"],
)
@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of tokens on the host; made by `pack` and `pair_rows`.

    Attributes:
      tokens: n rows of S tokens; behind the last token that counts there is padding.
      answer: true where the token counts; every row has one that does, and its first never does.
      is_one_text: each row goes on where the one before it ends.
      num_left_out: pairs that were too long for a row, or held-out rows that occur in the training rows.
    """

    tokens: Int32[np.ndarray, "n S"]
    answer: Bool[np.ndarray, "n S"]
    is_one_text: bool
    num_left_out: int = 0

    @property
    def num_rows(self) -> int:
        """n."""
        return len(self.tokens)

    @property
    def lengths(self) -> Int64[np.ndarray, "n"]:
        """Tokens of each row without its padding."""
        return self.tokens.shape[1] - np.argmax(self.answer[:, ::-1], axis=1)

    @property
    def digest(self) -> str:
        """SHA-256 of tokens and answers: what a run was made on."""
        return trees.content_digest(self)


class Splits(NamedTuple):
    """Rows to train on, and rows that training does not see.

    Attributes:
      train: those to train on.
      held_out: the others, none of which occurs in the rows to train on.
    """

    train: TokenRows
    held_out: TokenRows


def pack(documents: Iterable[str], encode: Encode, *, length: int, end: int | None = None) -> TokenRows:
    """The tokens of all documents one after the other, cut into rows; every token counts but the first of a row.

    Args:
      documents: texts.
      encode: `encode(text) -> tokens`, without special tokens.
      length: S, tokens in a row; what is left at the end for less than a row is dropped.
      end: token between two documents; None puts nothing there.

    Raises:
      InvalidInput: fewer tokens than a row has, a length below 2, or a negative token.
    """
    _check_length(length)
    return _windows("the text", _joined([_encoded(encode, text) for text in documents], end), length)


def pack_splits(
    documents: Sequence[str], encode: Encode, *, length: int, held_out_share: float = 0.05, end: int | None = None
) -> Splits:
    """`pack` of the documents to train on and of those that are held out, which no training row contains.

    A document is held out by the hash of its content, so equal documents are on one side and one more document
    moves no other. A single document is cut: the last `held_out_share` of its tokens is held out. Real texts repeat
    themselves: held-out rows that occur in the training rows, at any offset, are left out, and counted in
    `num_left_out`.

    Args:
      documents: texts.
      encode: as for `pack`.
      length: S, tokens in a row.
      held_out_share: expected share of the documents, or share of the only one's tokens.
      end: as for `pack`.

    Raises:
      InvalidInput: as `pack` for either side; a share outside (0, 1), or no held-out row that is new.
    """
    _check_length(length)
    if not 0 < held_out_share < 1:
        raise InvalidInput("held_out_share must lie between 0 and 1", got=held_out_share, hint="0.05")
    if len(documents) == 1:
        whole = _encoded(encode, documents[0])
        cut = int((1 - held_out_share) * len(whole))
        train, held_out = whole[:cut], whole[cut:]
    else:
        sides: tuple[list[_Tokens], list[_Tokens]] = ([], [])
        for text in documents:
            sides[uniform(text) < held_out_share].append(_encoded(encode, text))
        train, held_out = (_joined(side, end) for side in sides)
    rows = _windows("the text to train on", train, length, hint="a smaller held_out_share or length")
    others = _windows("the held-out text", held_out, length, hint="a larger held_out_share, or a smaller length")
    repeated = _repeated(rows, others)
    if repeated.all():
        raise InvalidInput(
            "some of the held-out text must be new",
            got=f"{len(repeated)} rows, all of which occur in the rest",
            hint="more text, or another held_out_share",
        )
    tokens, answer = others.tokens[~repeated], others.answer[~repeated]
    return Splits(rows, TokenRows(tokens, answer, not repeated.any(), num_left_out=int(repeated.sum())))


def pair_rows(pairs: Sequence[tuple[str, str]], encode: Encode, *, length: int, end: int | None = None) -> TokenRows:
    """A row for each pair: the prompt's tokens, the answer's, and `end`; answer and end count.

    Prompt and answer are encoded apart, so that where the answer begins does not depend on it. Rows are padded on
    the right with token 0, which does not count and which no token before it sees in a causal model.

    Args:
      pairs: prompts and answers; where words are told apart by a space in front, the answer brings its own.
      encode: as for `pack`.
      length: S, tokens in a row; longer pairs are left out and counted in `num_left_out`.
      end: token behind the answer; None puts nothing there.

    Raises:
      InvalidInput: all pairs are longer than a row, a prompt or an answer without tokens, a length below 2, or a
        negative token.
    """
    _check_length(length)
    ending = [] if end is None else [end]
    kept, shortest = [], None
    for i, (prompt, answer) in enumerate(pairs):
        question, reply = _encoded(encode, prompt), _joined([_encoded(encode, answer), as_tokens(ending)], None)
        if not len(question) or not len(reply):
            part = "answer" if len(question) else "prompt"
            raise InvalidInput(f"every pair needs a prompt and an answer with tokens; the {part} of pair {i} has none")
        size = len(question) + len(reply)
        shortest = size if shortest is None else min(size, shortest)
        if size <= length:
            kept.append((question, reply))
    if not kept:
        got = "no pair" if shortest is None else f"{len(pairs)} pairs, the shortest of {shortest}"
        raise InvalidInput(f"at least one pair must have at most {length} tokens", got=got, hint="a greater length")
    tokens, counts = np.zeros((len(kept), length), np.int32), np.zeros((len(kept), length), bool)
    for row, count, (question, reply) in zip(tokens, counts, kept, strict=True):
        size = len(question) + len(reply)
        row[:size] = np.concatenate([question, reply])
        count[len(question) : size] = True
    return TokenRows(tokens, counts, is_one_text=False, num_left_out=len(pairs) - len(kept))


def check_disjoint(train: TokenRows, held_out: TokenRows) -> None:
    """Raise unless no held-out row, without its padding, occurs in the training rows.

    In windows of a text it is looked for at every offset, also across the seams of the rows; among pairs as a row of
    its own. A 64-bit hash rolls over the text, and what it finds is compared token by token.

    Raises:
      InvalidInput: says how many rows occur, and the first of them.
    """
    repeated = np.flatnonzero(_repeated(train, held_out))
    if len(repeated):
        raise InvalidInput(
            "no held-out row may occur in the training text",
            got=f"{len(repeated)} of {held_out.num_rows} that do, the first of them row {repeated[0]}",
            hint="rows of more tokens, or other text",
        )


def _repeated(train: TokenRows, held_out: TokenRows) -> Bool[np.ndarray, "n"]:
    """Which held-out rows occur in the training rows."""
    wanted = _contents(held_out)
    if train.is_one_text:
        text, lengths = train.tokens.reshape(-1), sorted(set(held_out.lengths.tolist()))
        there = {content for size in lengths for content in _occurring(text, size, set(wanted))}
    else:
        there = set(_contents(train))
    return np.asarray([content in there for content in wanted], bool)


_BLOCK = 2**22
"""Tokens that are hashed at a time: 8 bytes each, several times over."""

_BASE = 0x9E3779B97F4A7C15
"""Odd, so that its powers have inverses modulo 2^64."""


def _occurring(text: _Tokens, size: int, wanted: set[bytes]) -> set[bytes]:
    """Those of the wanted contents that are `size` tokens of the text, at whatever offset."""
    sought = [np.frombuffer(content, np.int32) for content in wanted if len(content) == 4 * size]
    hashes = np.concatenate([_rolling_hashes(row, size) for row in sought])
    found = set()
    for start in range(0, len(text) - size + 1, _BLOCK):
        part = text[start : start + _BLOCK + size - 1]
        for offset in np.flatnonzero(np.isin(_rolling_hashes(part, size), hashes)):
            found.add(part[offset : offset + size].tobytes())
    return found & wanted


def _rolling_hashes(text: _Tokens, size: int) -> UInt64[np.ndarray, "_"]:
    """A hash of every run of `size` tokens: of t, the sum of t_i b^i modulo 2^64.

    The sum over a run is a difference of two prefix sums, and b^-offset makes it a matter of the content alone.
    """
    num_runs = len(text) - size + 1
    sums = np.zeros(len(text) + 1, np.uint64)
    np.cumsum(text.astype(np.uint64) * _powers(_BASE, len(text)), out=sums[1:])
    return (sums[size:] - sums[:num_runs]) * _powers(pow(_BASE, -1, 2**64), num_runs)


def _powers(base: int, number: int) -> UInt64[np.ndarray, "_"]:
    factors = np.full(number, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _contents(rows: TokenRows) -> list[bytes]:
    """The tokens of each row, without its padding."""
    return [row[:size].tobytes() for row, size in zip(rows.tokens, rows.lengths, strict=True)]


def _windows(what: str, tokens: _Tokens, length: int, hint: str = "more text, or a smaller length") -> TokenRows:
    num_rows = len(tokens) // length
    if num_rows == 0:
        raise InvalidInput(f"{what} must fill a row of {length} tokens", got=f"{len(tokens)} tokens", hint=hint)
    rows = tokens[: num_rows * length].reshape(num_rows, length)
    return TokenRows(rows, np.broadcast_to(np.arange(length) > 0, rows.shape), is_one_text=True)


def _joined(parts: Sequence[_Tokens], end: int | None) -> _Tokens:
    between = as_tokens([] if end is None else [end])
    joined = [piece for part in parts for piece in (between, part)][1:]
    return np.concatenate(joined) if joined else as_tokens([])


def _encoded(encode: Encode, text: str) -> _Tokens:
    return as_tokens(encode(text))


def as_tokens(tokens: Sequence[Any]) -> _Tokens:
    """What an encoder gave, as an array.

    Raises:
      InvalidInput: something that is no integer in [0, 2^31).
    """
    array = np.asarray(tokens).reshape(-1)
    if array.size and array.dtype.kind not in "iu":  # a fraction would be cut off in silence
        raise InvalidInput("a token must be an integer", got=f"{array[0]}")
    wrong = (array < 0) | (array > np.iinfo(np.int32).max)
    if np.any(wrong):
        raise InvalidInput("a token must be an integer in [0, 2^31)", got=int(array[wrong][0]))
    return array.astype(np.int32)


def uniform(text: str) -> float:
    """A number in [0, 1) that is a function of the content alone."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:4]) / 2**32


def _check_length(length: int) -> None:
    if length < 2:
        raise InvalidInput("a row needs at least 2 tokens, because nothing predicts the first", got=f"length={length}")
