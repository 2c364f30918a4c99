"""Cross entropy of windows: by hand, by position, whatever the batches."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from runners.scoring.text import choose_windows, loss_by_position, score_windows, windows_at_once
from runners.training.batches import WindowColumns
from runners.training.objective import LanguageObjective

CPU = torch.device("cpu")
VOCABULARY, CONTEXT = 7, 6


class Stream:
    """Windows over tokens in memory; a new document at every token 0."""

    context_length = CONTEXT

    def __init__(self, tokens, num_bytes=100):
        self.tokens = np.asarray(tokens)
        self.num_tokens, self.num_bytes = len(self.tokens), num_bytes

    def __len__(self):
        return (len(self.tokens) - 1) // CONTEXT

    def windows(self, rows):
        starts = np.asarray(rows)[:, None] * CONTEXT
        return self.tokens[starts + np.arange(CONTEXT + 1)].astype(np.int64)

    def documents(self, rows):
        begins = self.windows(rows)[:, :CONTEXT] == 0
        begins[:, 0] = False
        return begins.cumsum(axis=1, dtype=np.int32)


@pytest.fixture
def stream():
    return Stream(np.random.default_rng(0).integers(0, VOCABULARY, 64))


@pytest.fixture
def objective():
    return LanguageObjective(SimpleNamespace(attend_across_documents=True))


TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)).double()


def bigram(tokens, **options):
    """Predict by the last token alone, more surely the further on in the window."""
    certainty = torch.arange(1, tokens.shape[1] + 1).unsqueeze(-1)
    return SimpleNamespace(logits=TABLE[tokens] * certainty, auxiliary_loss=0.0, repeat_shares=None)


def by_hand(stream, rows):
    """Return (context,) summed losses, token by token."""
    sums = [0.0] * CONTEXT
    for row in rows:
        for place in range(CONTEXT):
            here, target = stream.tokens[row * CONTEXT + place : row * CONTEXT + place + 2]
            logits = [float(x) * (place + 1) for x in TABLE[here]]
            sums[place] += math.log(sum(map(math.exp, logits))) - logits[target]
    return sums


@pytest.mark.parametrize("at_once", [1, 3, 10, 100])
def test_losses_are_those_computed_by_hand(stream, objective, at_once):
    assert len(stream) == 10
    columns = objective.columns(stream)
    done = []
    losses = loss_by_position(
        bigram,
        objective,
        columns,
        np.arange(10),
        at_once=at_once,
        device=CPU,
        on_batch=lambda *rows: done.append(rows),
    )
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx(by_hand(stream, range(10)), rel=1e-6)
    assert done == [(first, 10) for first in range(0, 10, at_once)]


def test_training_loss_is_the_same_cross_entropy(stream, objective):
    rows = np.array([4, 0, 7])
    batch = objective.columns(stream).batch(rows, device=CPU)
    loss = objective.loss(bigram, batch)
    assert float(loss.cross_entropy_sum) == pytest.approx(sum(by_hand(stream, rows)), rel=1e-6)
    assert batch.num_targets == batch.num_tokens == 3 * CONTEXT


def test_parts_add_up(stream, objective):
    columns = objective.columns(stream)
    whole, first, second = (
        loss_by_position(bigram, objective, columns, rows, at_once=2, device=CPU)
        for rows in (np.arange(10), np.arange(4), np.arange(4, 10))
    )
    torch.testing.assert_close(first + second, whole, rtol=1e-12, atol=0)


def test_scores_by_hand():
    """Losses of 3 windows: ln 2 a token at position 1, ln 8 at 2 to 4, ln 4 at 5 and 6."""
    bits = torch.tensor([1.0, 3, 3, 3, 2, 2], dtype=torch.float64)
    split = SimpleNamespace(num_tokens=50, num_bytes=200)
    scores = score_windows(3 * math.log(2) * bits, 3, split)
    mean = 14 / 6
    assert scores.metrics == pytest.approx(
        {"loss": mean * math.log(2), "perplexity": 2**mean, "bits_per_byte": mean / 4}
    )
    assert scores.rows == 3
    assert (scores.ceiling, scores.chance, scores.majority) == (None, None, None)
    table = {
        place: (cell["perplexity"], cell["rows"]) for place, cell in scores.by_difficulty.items()
    }
    assert list(table) == ["1", "2", "4", "6"]
    assert list(table.values()) == [
        pytest.approx(cell) for cell in [(2, 3), (8, 3), (8, 6), (4, 6)]
    ]
    assert sum(cell["rows"] for cell in scores.by_difficulty.values()) == 18


def test_a_loss_beyond_every_exponential_stays_a_score():
    split = SimpleNamespace(num_tokens=1, num_bytes=1)
    scores = score_windows(torch.tensor([1e4], dtype=torch.float64), 1, split)
    assert scores.metrics["perplexity"] == math.inf


def test_chosen_windows_are_spread_evenly():
    assert choose_windows(5, None).tolist() == choose_windows(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert choose_windows(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert choose_windows(10, 4).tolist() == [0, 2, 5, 7]
    assert set(np.diff(choose_windows(10**6, 999)).tolist()) == {1001}
    assert set(np.diff(choose_windows(1000, 300)).tolist()) == {3, 4}


def test_batches_hold_as_many_windows_as_their_logits_have_room_for():
    def config(size):
        return SimpleNamespace(vocabulary_size=size)

    assert windows_at_once(config(8000), 1024, CPU) == 2
    assert windows_at_once(config(8000), 256, CPU) == 8
    assert windows_at_once(config(10**6), 1024, CPU) == 1
    assert windows_at_once(config(8000), 1024, torch.device("cuda")) == 16


def test_columns_are_the_stream_cut_up(stream):
    columns = WindowColumns(stream)
    assert len(columns) == 10
    assert columns.shape.tolist() == [[CONTEXT]] * 10
    batch = columns.batch(np.array([9, 2]), device=CPU)
    assert set(batch.tensors) == {"tokens", "targets"}
    for line, row in enumerate((9, 2)):
        begin = row * CONTEXT
        tokens = stream.tokens[begin : begin + CONTEXT + 1].tolist()
        assert batch.tensors["tokens"][line].tolist() == tokens[:-1]
        assert batch.tensors["targets"][line].tolist() == tokens[1:]
    assert batch.tensors["targets"].is_contiguous()


def test_documents_reach_the_model(stream):
    objective = LanguageObjective(SimpleNamespace(attend_across_documents=False))
    batch = objective.columns(stream).batch(np.array([3, 1]), device=CPU)
    seen = {}

    def model(tokens, **options):
        seen.update(options)
        return bigram(tokens)

    objective.forward(model, batch)
    expected = stream.documents(np.array([3, 1]))
    assert seen["document_numbers"].tolist() == expected.tolist()
    assert expected.max() > 0
