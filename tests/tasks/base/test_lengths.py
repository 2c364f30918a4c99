"""The protocol of length generalisation: which row has which length, and which rows there are."""

import numpy as np
import pytest

import tasks
from tasks.base.lengths import ENDLESS
from tasks.base.options import OptionError
from tasks.base.positions import STRETCH
from tasks.base.task import UNSCORED


def make(**options):
    return tasks.create(
        "prefix_sums", **{"train_lengths": [2, 9], "test_lengths": [12, 20]} | options
    )


def test_a_row_is_a_function_of_seed_and_number():
    train = make().split("train")
    together = train.arrays(np.array([5, 10**9, 7]))
    for place, row in enumerate([5, 10**9, 7]):
        alone = train.arrays(np.array([row]))
        length = alone.lengths[0]
        assert (together.source[place, :length] == alone.source[0]).all()
        assert together.lengths[place] == length
    assert train[5].source == make().split("train")[5].source
    other = make(seed=1).split("train")
    assert [train[i].source for i in range(9)] != [other[i].source for i in range(9)]
    assert make().data_hash() == make().data_hash() != make(seed=1).data_hash()


def test_splits_and_lengths():
    task = make(valid_lengths=[10, 11], rows_per_test_length=3, iid_rows=16)
    splits = task.splits()
    assert list(splits) == ["train", "valid_longer", "iid", "longer"]
    assert len(splits["train"]) == ENDLESS
    assert [len(row.source) for row in splits["longer"]] == [12, 20] * 3
    assert [len(row.source) for row in splits["iid"]] == list(range(2, 10)) * 2
    assert task.selection_splits == ("valid_longer",)
    assert make().selection_splits == ()
    lengths = splits["train"].lengths(np.arange(8000))
    counts = np.bincount(lengths, minlength=10)
    assert counts[:2].sum() == 0
    assert (abs(counts[2:] - 1000) < 120).all()
    assert task.max_source_length() == 20


def test_curriculum_raises_the_bound():
    task = make(curriculum_start=3, curriculum_rows=100)
    lengths = task.split("train").lengths(np.arange(1000))
    bounds = [lengths[first : first + 100].max() for first in range(0, 1000, 100)]
    assert bounds == [3, 4, 5, 6, 7, 8, 9, 9, 9, 9]
    # Every run of a stream begins with the short rows.
    later = task.split("train").lengths(3 * STRETCH + np.arange(100))
    assert later.max() == 3


def test_rows_in_a_row_share_a_length():
    lengths = make(rows_per_length=8).split("train").lengths(np.arange(80)).reshape(10, 8)
    assert (lengths == lengths[:, :1]).all()
    assert len(set(lengths[:, 0])) > 3


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"test_lengths": [9, 12]}, "task.test_lengths"),
        ({"valid_lengths": [4]}, "task.valid_lengths"),
        ({"valid_lengths": [12]}, "task.valid_lengths"),
        ({"test_lengths": []}, "task.test_lengths"),
        ({"train_lengths": [0, 4]}, "task.train_lengths"),
        ({"curriculum_start": 10}, "task.curriculum_start"),
        ({"train_rows": 0}, "task.train_rows"),
    ],
)
def test_wrong_options_are_refused(options, option):
    with pytest.raises(OptionError) as error:
        make(**options)
    assert error.value.option == option


def test_rows_as_numbers_and_as_tokens_are_the_same():
    task = make()
    rows = np.array([0, 4, 9])
    split = task.split("longer")
    made, again = split.arrays(rows), task.numbers(split.examples(rows))
    assert (made.source == again.source).all()
    assert (made.target == again.target).all()
    assert UNSCORED not in split[0].target
