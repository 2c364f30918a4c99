"""The index of a packed corpus."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.base.data_files import DataDamaged
from tasks.language.prepared import Prepared, read_prepared, write_prepared
from tasks.language.shards import Shard


@pytest.fixture
def prepared(tmp_path):
    shard = Shard("train/00000", 10, 2, 7, "aa", "bb")
    splits = {"train": (shard,), "validation": (), "test": ()}
    counts = {"train": 3, "validation": 0, "test": 1}
    return Prepared(tmp_path, np.dtype("<u2"), splits, counts, 4, 5, "cc")


def test_what_is_written_is_read_back(tmp_path, prepared):
    assert read_prepared(tmp_path) is None
    write_prepared(prepared, {"boundary": "token"})
    assert read_prepared(tmp_path) == prepared
    assert prepared.summary() == (
        "train 2 documents (3 duplicates dropped), validation 0 documents (0 duplicates dropped), "
        "test 0 documents (1 duplicates dropped)"
    )


def test_a_damaged_index_is_named(tmp_path):
    (tmp_path / "prepared.json").write_text('{"dtype": "<u2"}')
    with pytest.raises(DataDamaged, match=r"prepared\.json: damaged; remove .* and prepare"):
        read_prepared(tmp_path)
