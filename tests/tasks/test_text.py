"""Text as rows: no token is lost, only what should count counts, and nothing held out is in the training text."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna.checkpoints import load_tokenizer
from lacuna.errors import InvalidInput
from lacuna.tasks import check_disjoint, pack, pack_splits, pair_rows, read_documents, text

TEXTS = st.lists(st.text(st.characters(min_codepoint=1, max_codepoint=300), max_size=30), min_size=1, max_size=6)


def encode(string):
    """A token for every character."""
    return [ord(character) for character in string]


def letters(rows):
    """The rows as strings, without padding."""
    return ["".join(map(chr, row[:size])) for row, size in zip(rows.tokens, rows.lengths, strict=True)]


def words(seed, number):
    """Text of five-letter words in which no long run of letters comes twice."""
    drawn = np.random.default_rng(seed).integers(97, 123, (number, 5))
    return " ".join("".join(map(chr, word)) for word in drawn)


@settings(max_examples=60, deadline=None)
@given(documents=TEXTS, length=st.integers(2, 9), end=st.sampled_from([None, 0]))
def test_every_token_is_in_the_windows_once_and_in_order(documents, length, end):
    whole = ("" if end is None else "\0").join(documents)
    num_rows = len(whole) // length
    if num_rows == 0:
        with pytest.raises(InvalidInput, match=f"a row of {length} tokens; got {len(whole)} tokens"):
            pack(documents, encode, length=length, end=end)
        return
    rows = pack(documents, encode, length=length, end=end)
    assert rows.tokens.dtype == np.int32
    assert rows.tokens.shape == rows.answer.shape == (rows.num_rows, length) == (num_rows, length)
    assert "".join(letters(rows)) == whole[: num_rows * length]
    assert not rows.answer[:, 0].any()
    assert rows.answer[:, 1:].all()


PAIR = st.tuples(st.text("abc", min_size=1, max_size=5), st.text("xyz", min_size=1, max_size=5))


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(PAIR, min_size=1, max_size=6), length=st.integers(2, 11), end=st.sampled_from([None, 7]))
def test_a_pair_counts_in_its_answer_and_end_alone(pairs, length, end):
    ending = [] if end is None else [end]
    wanted = [(encode(prompt), encode(answer) + ending) for prompt, answer in pairs]
    fit = [(prompt, answer) for prompt, answer in wanted if len(prompt) + len(answer) <= length]
    if not fit:
        shortest = min(len(prompt) + len(answer) for prompt, answer in wanted)
        with pytest.raises(InvalidInput, match=f"at most {length} tokens; got {len(pairs)} .* shortest of {shortest}"):
            pair_rows(pairs, encode, length=length, end=end)
        return
    rows = pair_rows(pairs, encode, length=length, end=end)
    assert rows.num_rows == len(fit)
    assert rows.num_left_out == len(pairs) - len(fit)
    for tokens, counts, size, (prompt, answer) in zip(rows.tokens, rows.answer, rows.lengths, fit, strict=True):
        room = length - len(prompt) - len(answer)
        assert tokens.tolist() == prompt + answer + [0] * room
        assert counts.tolist() == [False] * len(prompt) + [True] * len(answer) + [False] * room
        assert size == length - room


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pack(["abc"], encode, length=1), "at least 2 tokens.*got length=1"),
        (lambda: pack([], encode, length=2), "got 0 tokens"),
        (lambda: pack(["abc"], lambda _: [3, -5], length=2), "must be an integer in .0, 2.31.; got -5"),
        (lambda: pack(["abc"], encode, length=2, end=-1), "must be an integer in .0, 2.31.; got -1"),
        (lambda: pair_rows([("a", "")], encode, length=4), "the answer of pair 0 has none"),
        (lambda: pair_rows([("a", "b"), ("", "b")], encode, length=4), "the prompt of pair 1 has none"),
        (lambda: pair_rows([], encode, length=4), "got no pair"),
        (lambda: pair_rows([("a", "b")], encode, length=0), "got length=0"),
        (lambda: pack_splits(["abc"], encode, length=2, held_out_share=0.0), "held_out_share.*got 0.0"),
        (lambda: pack_splits(["abc"], encode, length=2, held_out_share=1.0), "held_out_share.*got 1.0"),
        (lambda: pack_splits(["a" * 20], encode, length=2), "held-out text must fill a row of 2 tokens; got 1 tokens"),
        (lambda: pack_splits(["abcd"], encode, length=3, held_out_share=0.9), "text to train on must fill a row of 3"),
    ],
)
def test_what_gives_no_rows_is_refused(build, message):
    with pytest.raises(InvalidInput, match=message):
        build()


def test_the_end_of_a_single_document_is_held_out():
    whole = words(0, 100)
    train, held_out = pack_splits([whole], encode, length=8, held_out_share=0.25)
    cut = int(0.75 * len(whole))
    assert "".join(letters(train)) == whole[: cut // 8 * 8]
    assert "".join(letters(held_out)) == whole[cut:][: (len(whole) - cut) // 8 * 8]


def sides(documents, share):
    """The documents of each side, read back from its rows; a document is a row."""
    train, held_out = pack_splits(documents, encode, length=len(documents[0]), held_out_share=share)
    return letters(train), letters(held_out)


def test_equal_documents_are_on_one_side_and_another_moves_none():
    documents = [words(seed, 4) for seed in range(200)]
    train, held_out = sides(documents, 0.3)
    assert sorted(train + held_out) == sorted(documents)
    assert abs(len(held_out) - 60) < 4 * np.sqrt(200 * 0.3 * 0.7)
    assert sides([*documents[::-1], *documents], 0.3) == (
        [document for document in [*documents[::-1], *documents] if document in train],
        [document for document in [*documents[::-1], *documents] if document in held_out],
    )
    assert set(sides(documents[:100], 0.3)[1]) == set(held_out) & set(documents[:100])


def test_the_digest_is_of_the_content():
    rows = pack([words(0, 10)], encode, length=8)
    assert rows.digest == pack([words(0, 10)], encode, length=8).digest
    assert rows.digest != pack([words(1, 10)], encode, length=8).digest
    pairs = [("ab", "c")]
    assert pair_rows(pairs, encode, length=4).digest != pair_rows([("a", "bc")], encode, length=4).digest


@pytest.mark.parametrize("block", [text._BLOCK, 16])
@settings(max_examples=40, deadline=None)
@given(offset=st.integers(0, 191), length=st.integers(9, 40))
def test_a_planted_row_is_found_at_every_offset(block, offset, length):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK", block)
        whole = words(0, 40)
        train = pack([whole], encode, length=length)
        last = train.tokens.size - length
        planted = whole[min(offset, last) :][:length]
        others = pack([words(1, 40)], encode, length=length)
        check_disjoint(train, others)
        held_out = pack([*letters(others)[:2], planted, *letters(others)[2:], planted], encode, length=length)
        message = f"got 2 of {held_out.num_rows} that do, the first of them row 2"
        with pytest.raises(InvalidInput, match=message):
            check_disjoint(train, held_out)
        almost = pack([planted[:-1] + "!"], encode, length=length)
        check_disjoint(train, almost)


def test_a_text_of_one_row_is_found_in_itself():
    rows = pack(["abcd"], encode, length=4)
    with pytest.raises(InvalidInput, match="got 1 of 1"):
        check_disjoint(rows, rows)


def test_a_hash_that_collides_is_no_overlap(monkeypatch):
    monkeypatch.setattr(text, "_BASE", 1)  # now a hash is the sum of the tokens
    train = pack(["abcdefgh"], encode, length=4)
    check_disjoint(train, pack(["dcba"], encode, length=4))
    with pytest.raises(InvalidInput, match="got 1 of 2"):
        check_disjoint(train, pack(["dcbacdef"], encode, length=4))


def test_held_out_rows_that_repeat_the_training_text_are_left_out():
    whole, again = words(0, 100), words(1, 100)
    cut = len(whole) * 3
    train, held_out = pack_splits(
        [whole * 3 + whole[5:21] + again[:48]], encode, length=8, held_out_share=64 / (cut + 64)
    )
    assert train.num_rows == cut // 8
    assert held_out.num_left_out == 2
    assert "".join(letters(held_out)) == again[:48]
    check_disjoint(train, held_out)
    with pytest.raises(InvalidInput, match=r"some of the held-out text must be new; got 6 rows, all of which occur"):
        pack_splits(["ab" * 100], encode, length=8, held_out_share=0.25)


def test_pairs_are_compared_whole_and_without_their_padding():
    train = pair_rows([("ab", "cd"), ("x", "y")], encode, length=8)
    check_disjoint(train, pair_rows([("b", "c"), ("cd", "xy"), ("x", "z")], encode, length=8))
    for length in (4, 12):
        with pytest.raises(InvalidInput, match="got 1 of 2 that do, the first of them row 1"):
            check_disjoint(train, pair_rows([("b", "c"), ("abc", "d")], encode, length=length))


def test_a_pair_is_looked_for_in_a_text_at_every_offset():
    train = pack([words(0, 40)], encode, length=16)
    quoted = words(0, 40)[13:33]
    with pytest.raises(InvalidInput, match="got 1 of 2 that do, the first of them row 1"):
        check_disjoint(train, pair_rows([("what?", " no"), (quoted[:12], quoted[12:])], encode, length=32))


@pytest.mark.parametrize(("corpus", "num_tokens"), [("tinyshakespeare", 375_679), ("peps_public_domain", 398_133)])
def test_a_real_corpus_gives_all_its_rows_and_none_is_in_both_splits(data, corpus, num_tokens):
    file, folder = data / "corpora" / f"{corpus}.txt", data / "gpt2_ckpt" / "tokenizer"
    if not (file.is_file() and folder.is_dir()):
        pytest.skip(f"no corpus at {file}, or no tokenizer at {folder}")
    tokenizer = load_tokenizer(folder)

    def encode(string):
        return tokenizer(string, add_special_tokens=False, verbose=False).input_ids

    documents = read_documents(file)
    cut = int(0.95 * num_tokens)
    train, held_out = pack_splits(documents, encode, length=129)
    assert train.num_rows == cut // 129
    assert held_out.num_rows == (num_tokens - cut) // 129
    assert documents[0].startswith(tokenizer.decode(train.tokens[:3].reshape(-1)))
    with pytest.raises(InvalidInput, match=re.escape(f"got {held_out.num_rows} of {held_out.num_rows}")):
        check_disjoint(pack(documents, encode, length=2), held_out)
