"""Metrics: no trick with the end token or with truncation may raise exact match."""

import math

import pytest

from tasks.base.metrics import (
    HEADLINES,
    METRICS,
    Answers,
    Prediction,
    TextLoss,
    headline_metric,
    is_lower_better,
    measure,
    metrics_of,
    perplexity,
    selection_score,
)
from tasks.base.task import EOS, LABELLINGS, UNKNOWN, Example

GOLD = Example(("x",), ("a", "b", "c"))
KINDS = ("sequence_to_sequence", "classification", "language_modelling", *LABELLINGS)


def measure_sequences(*answers) -> dict[str, float]:
    return measure("sequence_to_sequence", Answers(*answers))


def one(tokens: str, finished: bool = True) -> dict[str, float]:
    return measure_sequences([GOLD], [Prediction(tuple(tokens.split()), finished)])


@pytest.mark.parametrize(
    ("tokens", "finished", "exact", "prefix", "token_accuracy"),
    [
        ("a b c", True, 1, 1, 1.0),
        ("a b c", False, 0, 1, 3 / 4),  # right, but it never ended
        ("a b", True, 0, 0, 2 / 4),  # a truncated output is wrong
        ("a b", False, 0, 0, 2 / 4),
        ("a b c d", True, 0, 1, 3 / 4),
        ("a b c a b c", False, 0, 1, 3 / 4),
        (f"a b c {EOS}", False, 0, 1, 1.0),  # an end token that did not stop the decoding
        ("", True, 0, 0, 0.0),
        ("b c", True, 0, 0, 0.0),  # shifted by one: every position is wrong
        (f"a b {UNKNOWN}", True, 0, 0, 3 / 4),
    ],
)
def test_sequence_metrics(tokens, finished, exact, prefix, token_accuracy):
    assert one(tokens, finished) == {
        "exact_match": exact,
        "prefix_match": prefix,
        "token_accuracy": token_accuracy,
    }


def test_oracle_is_cut_to_the_gold_length():
    predictions = [Prediction(("a",), True)]
    right = measure_sequences([GOLD], predictions, [Prediction(tuple("abcxyz"), finished=False)])
    wrong = measure_sequences([GOLD], predictions, [Prediction(tuple("ab"), finished=False)])
    assert right["eos_oracle_match"] == 1
    assert right["exact_match"] == 0
    assert wrong["eos_oracle_match"] == 0
    assert "eos_oracle_match" not in measure_sequences([GOLD], predictions)


def test_token_accuracy_is_over_tokens_of_all_rows():
    rows = [Example(("x",), ("a",) * 9), Example(("y",), ("b",))]
    predictions = [Prediction(("z",) * 9), Prediction(("b",))]
    # 1 end + 2 of 12 gold positions; a mean over rows would be (0.1 + 1) / 2
    assert measure_sequences(rows, predictions)["token_accuracy"] == pytest.approx(3 / 12)


def test_wrong_number_of_predictions_is_refused():
    with pytest.raises(ValueError, match="0 predictions for 1 rows"):
        measure_sequences([GOLD], [])
    with pytest.raises(ValueError, match="2 predictions for 1 rows"):
        measure_sequences([GOLD], [Prediction(())], [Prediction(())] * 2)
    with pytest.raises(ValueError, match="no rows"):
        Answers([], [])


def test_metrics_of_text():
    # 100 tokens of 4 bytes, 2 bits each
    metrics = measure("language_modelling", TextLoss(2 * math.log(2), 100, 400))
    assert list(metrics) == ["loss", "perplexity", "bits_per_byte"]
    assert metrics["perplexity"] == pytest.approx(4)
    assert metrics["bits_per_byte"] == pytest.approx(0.5)


def test_perplexity_of_a_hopeless_model_is_infinite():
    assert perplexity(math.log(50.0)) == pytest.approx(50.0)
    assert perplexity(1000.0) == math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_judged_by_one_of_its_metrics(kind):
    (headline,) = [name for name in metrics_of(kind) if METRICS[name].is_headline]
    assert headline_metric(kind) == headline
    assert headline in HEADLINES


def test_every_metric_is_of_a_known_kind():
    assert {kind for metric in METRICS.values() for kind in metric.kinds} == set(KINDS)


def test_selection_takes_the_lowest_loss_and_the_highest_share():
    assert selection_score("classification", {"accuracy": 0.4}) == 0.4
    assert selection_score("language_modelling", {"bits_per_byte": 1.5}) == -1.5
    assert selection_score("language_modelling", {"bits_per_byte": math.nan}) == -math.inf
    assert [is_lower_better(name) for name in ("loss", "accuracy", "of_nobody")] == [
        True,
        False,
        False,
    ]
