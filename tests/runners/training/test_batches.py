"""The order of rows is a function of (seed, epoch, index), and batches are cut to their rows."""

import threading

import numpy as np
import pytest
import torch

from runners.training.batches import IGNORE, BatchOrder, PaddedColumns, Prefetch, pad

CPU = torch.device("cpu")


@pytest.fixture
def shape():
    generator = np.random.default_rng(0)
    return np.stack([generator.integers(1, 9, 100), generator.integers(1, 40, 100)], axis=1)


def order(shape, **options):
    return BatchOrder(shape, **{"batch_size": 7, "seed": 3} | options)


OPTIONS = [{}, {"tokens_per_batch": 200}]


@pytest.mark.parametrize("options", OPTIONS)
def test_any_step_can_be_asked_for_alone(shape, options):
    """A resumed run begins in the middle."""
    one = order(shape, **options)
    rows = [one.rows(step) for step in range(60)]
    for step in (59, 0, 31, 58):
        assert np.array_equal(order(shape, **options).rows(step), rows[step])
        assert np.array_equal(one.rows(step), rows[step])


@pytest.mark.parametrize("options", OPTIONS)
def test_every_row_comes_once_in_each_epoch(shape, options):
    one = order(shape, **options)
    pool = one._pool_rows
    # Pools follow the stream of epochs: their rows, sorted or not, are whole epochs and a rest.
    seen = np.zeros(100, dtype=int)
    total = step = 0
    while total < 5 * pool:
        rows = one.rows(step)
        np.add.at(seen, rows, 1)
        total += len(rows)
        step += 1
    assert total == 5 * pool
    assert seen.min() == total // 100
    assert seen.max() <= total // 100 + 1


def test_batches_have_the_size_asked_for_also_across_epochs(shape):
    assert {len(order(shape).rows(step)) for step in range(100)} == {7}
    assert len(order(shape, batch_size=250).rows(0)) == 250


def test_token_budget_holds_and_is_used(shape):
    one = order(shape, tokens_per_batch=200)
    sizes = [int(shape[rows].max(axis=0).sum()) * len(rows) for rows in map(one.rows, range(80))]
    assert max(sizes) <= 200
    assert np.mean(sizes) > 0.7 * 200


def test_row_above_the_budget_stands_alone(shape):
    one = order(shape, tokens_per_batch=30)
    batches = [one.rows(step) for step in range(300)]
    assert min(map(len, batches)) == 1
    assert all(len(rows) == 1 for rows in batches if shape[rows].sum(axis=1).max() > 30)


def test_rows_of_a_batch_have_similar_lengths(shape):
    def padding(batches):
        """Return padding tokens over real tokens."""
        sizes = [int(shape[rows].max(axis=0).sum()) * len(rows) for rows in batches]
        return sum(sizes) / sum(int(shape[rows].sum()) for rows in batches) - 1

    one = order(shape)
    batches = [one.rows(step) for step in range(70)]
    mixed = np.random.default_rng(1).permutation(np.concatenate(batches)).reshape(-1, 7)
    # The two lengths of these rows have nothing to do with each other: half of what can be saved.
    assert padding(batches) < 0.25
    assert padding(mixed) > 0.6


def test_seeds_and_epochs_differ(shape):
    one = order(shape)
    assert not np.array_equal(one.rows(0), order(shape, seed=4).rows(0))
    assert not np.array_equal(one._permutation(0), one._permutation(1))
    lengths = [int(shape[one.rows(step)].sum()) for step in range(14)]
    assert lengths != sorted(lengths)  # batches of a pool come in random order


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="has no rows"):
        order(np.zeros((0, 2)))


def test_pad():
    array, lengths = pad([[5, 6, 7], [], [8]], 9)
    assert array.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert lengths.tolist() == [3, 0, 1]


def test_batch_is_cut_to_the_longest_row_and_counts():
    source, source_lengths = pad([[1, 4, 2], [1, 4, 5, 6, 2], [1, 2]], 0)
    targets, lengths = pad([[7, 2], [7, 8, 2], [IGNORE, 2]], IGNORE)
    columns = PaddedColumns(
        {"source": source, "targets": targets, "prefix": np.array([3, 5, 2])},
        {"source": source_lengths, "targets": lengths},
    )
    batch = columns.batch(np.array([2, 0]), device=CPU)
    assert batch.tensors["source"].tolist() == [[1, 2, 0], [1, 4, 2]]
    assert batch.tensors["source_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch.tensors["targets"].tolist() == [[IGNORE, 2], [7, 2]]
    assert batch.tensors["prefix"].tolist() == [2, 3]
    assert batch.tensors["source"].dtype == torch.int64
    assert (batch.num_targets, batch.num_tokens) == (3, 5)
    assert columns.shape.tolist() == [[3], [5], [2]]  # what is predicted is not read


def test_the_next_is_made_while_this_one_is_used():
    made, next_made = [], threading.Event()

    def make(step):
        made.append(step)
        if step == 4:
            next_made.set()
        return step * 10

    ahead = Prefetch(make, num_steps=6)
    assert ahead.get(3) == 30
    assert next_made.wait(10)  # nobody has asked for it
    assert [ahead.get(4), ahead.get(5)] == [40, 50]
    assert made == [3, 4, 5]  # nothing twice, nothing past the last step


def test_any_step_can_be_asked_for():
    ahead = Prefetch(lambda step: step, num_steps=100)
    assert [ahead.get(step) for step in (0, 7, 7, 2, 200)] == [0, 7, 7, 2, 200]


def test_an_error_comes_with_its_step():
    def make(step):
        if step == 1:
            raise OSError("a token file is cut short")
        return step

    ahead = Prefetch(make, num_steps=3)
    assert ahead.get(0) == 0
    with pytest.raises(OSError, match="cut short"):
        ahead.get(1)
