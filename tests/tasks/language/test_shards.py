"""Shards: what is written is read, and a file that is cut short or changed is noticed."""

from __future__ import annotations

import errno
import hashlib
import os

import numpy as np
import pytest

from tasks.base.data_files import DataDamaged
from tasks.language import shards
from tasks.language.shards import ShardWriter, check_files, map_array, token_type

U2 = np.dtype("<u2")


@pytest.fixture
def shard(tmp_path):
    with ShardWriter(tmp_path, "train/00003", U2, first=[9]) as writer:
        writer.add([1, 2, 9], 5)
        writer.add([], 0)
        writer.add(np.array([65535, 9]), 7)
    return writer.shard


def test_files_are_flat_ids_and_offsets(tmp_path, shard):
    tokens = (tmp_path / "train/00003.tokens").read_bytes()
    assert tokens == np.array([9, 1, 2, 9, 65535, 9], "<u2").tobytes()
    assert (shard.name, shard.tokens, shard.documents, shard.bytes) == ("train/00003", 6, 3, 12)
    assert shard.tokens_sha256 == hashlib.sha256(tokens).hexdigest()
    offsets = map_array(tmp_path / "train/00003.offsets", shards.OFFSET_TYPE, 3)
    assert offsets.tolist() == [1, 4, 4]
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [
        "00003.offsets",
        "00003.tokens",
    ]


def test_two_bytes_hold_65536_ids():
    assert [token_type(size).itemsize for size in (257, 65536, 65537)] == [2, 2, 4]


def test_whole_files_are_read_once(tmp_path, shard):
    assert check_files(tmp_path, [shard], U2) == 2
    assert check_files(tmp_path, [shard], U2) == 0
    assert check_files(tmp_path, [shard], U2, thorough=True) == 2


@pytest.mark.parametrize("keep", [0, 1, 10, 11])
def test_a_file_cut_short_is_named(tmp_path, shard, keep):
    check_files(tmp_path, [shard], U2)
    path = tmp_path / "train/00003.tokens"
    os.truncate(path, keep)
    message = f"00003.tokens: {keep} bytes, expected 12; remove .* and prepare the data again$"
    with pytest.raises(DataDamaged, match=message):
        check_files(tmp_path, [shard], U2)


@pytest.mark.parametrize("name", ["train/00003.tokens", "train/00003.offsets"])
def test_one_changed_bit_is_noticed(tmp_path, shard, name):
    check_files(tmp_path, [shard], U2)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataDamaged, match=f"{name}: changed since it was prepared"):
        check_files(tmp_path, [shard], U2)


def test_a_change_that_keeps_size_and_time_is_noticed_when_asked(tmp_path, shard):
    check_files(tmp_path, [shard], U2)
    path = tmp_path / "train/00003.tokens"
    before = path.stat()
    with open(path, "r+b") as stream:
        stream.write(b"\x08")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check_files(tmp_path, [shard], U2) == 0
    with pytest.raises(DataDamaged, match="changed"):
        check_files(tmp_path, [shard], U2, thorough=True)


def test_a_touched_or_copied_file_is_hashed_again_and_accepted(tmp_path, shard):
    check_files(tmp_path, [shard], U2)
    os.utime(tmp_path / "train/00003.tokens", ns=(1, 1))
    assert check_files(tmp_path, [shard], U2) == 1


def test_a_missing_file_and_a_broken_note(tmp_path, shard):
    check_files(tmp_path, [shard], U2)
    (tmp_path / shards.VERIFIED).write_text("{")
    assert check_files(tmp_path, [shard], U2) == 2
    (tmp_path / "train/00003.offsets").unlink()
    with pytest.raises(DataDamaged, match=r"00003\.offsets: missing"):
        check_files(tmp_path, [shard], U2)


def test_an_error_while_writing_leaves_nothing_behind(tmp_path):
    def write():
        with ShardWriter(tmp_path, "train/00000", U2) as writer:
            writer.add([1, 2], 2)
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert list((tmp_path / "train").iterdir()) == []
