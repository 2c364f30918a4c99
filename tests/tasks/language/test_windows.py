"""Windows over shards against the plain array of all tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.language.shards import ShardWriter, token_type
from tasks.language.windows import TokenSplit

BOUNDARY = 9

documents = st.lists(st.integers(0, 8), max_size=7)


def make(root, shards, context_length, with_boundary=True, vocabulary_size=10):
    """Write documents, given by shard, as packing does; return the split."""
    dtype = token_type(vocabulary_size)
    written = []
    for number, texts in enumerate(shards):
        first = [BOUNDARY] if with_boundary and number == 0 else []
        with ShardWriter(root, f"train/{number:05d}", dtype, first) as writer:
            for text in texts:
                writer.add([*text, BOUNDARY] if with_boundary else text, len(text))
        written.append(writer.shard)
    boundary = BOUNDARY if with_boundary else None
    return TokenSplit(root, "train", written, dtype, context_length, boundary)


def naive(shards, with_boundary=True):
    """Return the stream, and for each token the number of its document."""
    stream, owners = ([BOUNDARY] if with_boundary else []), []
    flat = [text for texts in shards for text in texts]
    for number, text in enumerate(flat):
        stream += [*text, BOUNDARY] if with_boundary else text
        # With a boundary: the one before the document is its own.
        owners += [number] * (len(text) + with_boundary)
    return np.array(stream), np.array([*owners, len(flat)] if with_boundary else owners)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(documents, max_size=4), max_size=4), st.integers(1, 13), st.booleans())
def test_windows_equal_those_of_the_plain_stream(tmp_path_factory, shards, context, with_boundary):
    split = make(tmp_path_factory.mktemp("split"), shards, context, with_boundary)
    stream, owners = naive(shards, with_boundary)
    assert split.num_tokens == len(stream) - (with_boundary and not shards)
    assert split.num_documents == sum(map(len, shards))
    assert split.num_bytes == sum(len(text) for texts in shards for text in texts)
    assert len(split) == max(split.num_tokens - 1, 0) // context
    rows = np.arange(len(split))[::-1]
    windows, numbers = split.windows(rows), split.documents(rows)
    assert (windows.dtype, numbers.dtype) == (np.int64, np.int32)
    for row, window, number in zip(rows, windows, numbers, strict=True):
        begin = row * context
        assert window.tolist() == stream[begin : begin + context + 1].tolist()
        # Consecutive numbers from 0, also where a document without tokens lies between.
        expected = np.unique(owners[begin : begin + context], return_inverse=True)[1]
        assert number.tolist() == expected.tolist()


def test_a_worked_example(tmp_path):
    split = make(tmp_path, [[[1, 2]], [[], [3]], [[4, 5, 6]]], context_length=4)
    # stream: 9 1 2 9 | 9 3 9 4 | 5 6 9
    assert split.windows(np.array([0, 1])).tolist() == [[9, 1, 2, 9, 9], [9, 3, 9, 4, 5]]
    assert split.documents(np.array([0, 1])).tolist() == [[0, 0, 0, 1], [0, 0, 1, 1]]


def test_every_token_but_the_first_is_a_target_once(tmp_path):
    split = make(tmp_path, [[list(range(8)), [1]], [[2, 3, 4]]], context_length=3)
    targets = split.windows(np.arange(len(split)))[:, 1:].ravel()
    stream, _ = naive([[list(range(8)), [1]], [[2, 3, 4]]])
    assert targets.tolist() == stream[1 : 1 + len(targets)].tolist()
    assert len(stream) - 1 - len(targets) < 3


def test_four_byte_ids_are_read_as_they_were(tmp_path):
    split = make(tmp_path, [[[70_000, 1, 2**31]]], 2, vocabulary_size=2**32)
    assert split.windows(np.array([1])).tolist() == [[1, 2**31, BOUNDARY]]


@pytest.mark.parametrize("rows", [[-1], [0, 3]])
def test_a_row_that_there_is_not(tmp_path, rows):
    split = make(tmp_path, [[[1, 2, 3, 4, 5]]], context_length=2)
    assert len(split) == 3
    assert split.windows(np.array([], dtype=np.int64)).shape == (0, 3)
    with pytest.raises(IndexError, match="'train' has windows 0 to 2"):
        split.windows(np.array(rows))
