"""Labels are read where their tokens stand, by both forms, and endless rows come in order."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tasks
from runners.config.repeats import RepeatsConfig
from runners.config.schema import TrainConfig
from runners.training.batches import IGNORE, BatchOrder
from runners.training.depth import depth_of_step
from runners.training.position_objective import POSITION_OBJECTIVES, StreamOrder
from tasks.base.metrics import measure
from tasks.base.positions import STRETCH
from tasks.base.task import UNSCORED, Example

CPU = torch.device("cpu")
FORMS = list(POSITION_OBJECTIVES["position_labelling"])


def objective(form, **options):
    task = tasks.create("prefix_sums", **{"train_lengths": [1, 6], "test_lengths": [9]} | options)
    return POSITION_OBJECTIVES[task.kind][form](task)


@pytest.mark.parametrize("form", FORMS)
def test_ids(form):
    one = objective(form)
    rows = [Example(("1", "0", "1"), (UNSCORED, "1", "0")), Example(("1",), ("1",))]
    batch = one.columns(rows).batch(np.array([0, 1]), device=CPU)
    # bits 4 and 5 of the vocabulary, 1 begin, 0 padding
    assert batch.tensors["tokens"].tolist() == [[1, 5, 4, 5], [1, 5, 0, 0]]
    assert batch.tensors["tokens_mask"].tolist() == [[True] * 4, [True, True, False, False]]
    first = 4 if form == "decoder_lm" else 0  # a class, or a word of the vocabulary
    assert batch.tensors["targets"].tolist() == [
        [IGNORE, IGNORE, first + 1, first],
        [IGNORE, first + 1, IGNORE, IGNORE],
    ]
    assert (batch.num_targets, batch.num_tokens) == (3, 6)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_knows_every_prefix_is_right_and_one_a_place_late_is_not(form):
    one = objective(form)
    examples = list(one.task.split("longer"))[:8]

    def answers(shift):
        def model(tokens, **masks):
            parity = (tokens == 5).cumsum(dim=1).roll(shift, dims=1) % 2
            ids = parity + (4 if form == "decoder_lm" else 0)
            return SimpleNamespace(logits=torch.nn.functional.one_hot(ids, 6).float())

        found = one.label(model, examples, device=CPU, batch_size=3)
        return measure("position_labelling", found)

    assert answers(0) == {
        "sequence_accuracy": 1.0,
        "label_accuracy": 1.0,
        "mean_over_lengths": 1.0,
    }
    assert answers(1)["sequence_accuracy"] < 0.2


def test_endless_rows_come_one_after_the_other():
    columns = objective("decoder_lm").columns(objective("decoder_lm").task.split("train"))
    order = columns.order(batch_size=4, tokens_per_batch=None, seed=0)
    assert isinstance(order, StreamOrder)
    assert order.rows(3).tolist() == [12, 13, 14, 15]
    assert StreamOrder(4, seed=2).rows(0).tolist() == [2 * STRETCH + i for i in range(4)]
    budget = columns.order(batch_size=4, tokens_per_batch=28, seed=0)
    assert len(budget.rows(0)) == 4  # of at most six bits and the begin
    whole = columns.batch(np.arange(8), device=CPU).tensors["tokens"]
    part = columns.batch(np.arange(4, 8), device=CPU).tensors["tokens"]
    assert torch.equal(whole[4:, : part.shape[1]], part)  # a rank's share is of the same rows


def test_a_fixed_set_is_visited_in_epochs():
    one = objective("encoder_labeller", train_rows=12)
    columns = one.columns(one.task.split("train"))
    order = columns.order(batch_size=4, tokens_per_batch=None, seed=0)
    assert isinstance(order, BatchOrder)
    assert sorted(row for step in range(3) for row in order.rows(step)) == list(range(12))


def test_loops_follow_the_length_of_rows():
    task = tasks.create("looped", problem="multi", train_lengths=[1, 6], test_lengths=[9])
    one = POSITION_OBJECTIVES[task.kind]["encoder_labeller"](task)
    columns = one.columns(task.split("train"))
    rows = np.arange(20)
    loops = columns.loops(rows)
    assert loops.tolist() == (2 * task.split("train").lengths(rows)).tolist()
    for per, expected in (("batch", loops.max()), ("sequence", loops)):
        config = TrainConfig(steps=1, repeats=RepeatsConfig(kind="length", per=per))
        depth = depth_of_step(config, seed=0, step=0, rows=20, loops=loops)
        assert depth.call["num_repeats"] == loops.max()
        if per == "sequence":
            assert depth.rows.tolist() == expected.tolist()
    cut = RepeatsConfig(kind="length", per="sequence", longest=5)
    depth = depth_of_step(TrainConfig(steps=1, repeats=cut), seed=0, step=0, rows=20, loops=loops)
    assert depth.rows.tolist() == np.minimum(loops, 5).tolist()
