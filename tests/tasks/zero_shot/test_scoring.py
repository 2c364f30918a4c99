"""Scores as functions of log-likelihoods, against numbers worked out by hand or by SciPy."""

from __future__ import annotations

import doctest
import math

import numpy
import pytest
import scipy.stats

from tasks.zero_shot import ZERO_SHOT, Likelihood, get, score, scoring
from tasks.zero_shot.benchmark import choices


def likelihoods(*sums: float, tokens: int = 2) -> list[Likelihood]:
    return [Likelihood(value, tokens, False) for value in sums]


def test_examples_of_the_docstring():
    assert doctest.testmod(scoring).failed == 0
    assert doctest.testmod(scoring).attempted > 2


def test_raw_and_normalised_scores_differ_as_they_should():
    # Sums -6 and -8; characters 3 and 8: -2 and -1; tokens 1 and 4: -6 and -2.
    question = choices("context", ["one", "eighteen"], 1)
    values = scoring.choice_values(question, [Likelihood(-6, 1, False), Likelihood(-8, 4, False)])
    assert values == {"acc": 0.0, "acc_norm": 1.0, "acc_token": 1.0}


def test_of_equal_likelihoods_the_first_counts_but_not_for_the_papers_score():
    for answer, right in ((0, 1.0), (1, 0.0)):
        question = choices("", ["aa", "bb"], answer)
        values = scoring.choice_values(question, likelihoods(-3.0, -3.0))
        assert values == {"acc": right, "acc_norm": right, "acc_token": 0.0}


def test_characters_are_counted_without_the_space_before_them():
    # -4 / 1 < -7.5 / 2 though -4 / 2 > -7.5 / 3.
    question = choices("", ["a", "bb"], 1)
    assert question.continuations == (" a", " bb")
    assert scoring.choice_values(question, likelihoods(-4.0, -7.5))["acc_norm"] == 1.0


def test_an_empty_choice_never_wins_the_normalised_scores():
    question = choices("", ["", "bb"], 1)
    assert scoring.choice_values(question, likelihoods(-0.1, -9.0))["acc_norm"] == 1.0


def test_standard_error_is_that_of_the_mean():
    questions = [choices("", ["a", "b"], i % 3 == 0) for i in range(10)]
    answers = [likelihoods(-1.0, -2.0)] * 10
    result = score(get("piqa"), questions, answers)
    values = [float(question.answer == 0) for question in questions]
    assert result.metrics["acc"].value == pytest.approx(0.6)
    assert result.metrics["acc"].standard_error == pytest.approx(scipy.stats.sem(values), rel=1e-12)
    assert result.metrics["acc"].questions == 10


def test_one_question_has_no_standard_error():
    result = score(get("piqa"), [choices("", ["a", "b"], 0)], [likelihoods(-1.0, -2.0)])
    assert result.metrics["acc"] == scoring.Score(1.0, None, 1)


def test_groups_count_the_same_whatever_their_size():
    sizes = {"verbs": (8, 2), "common nouns": (1, 1)}  # right, wrong
    questions, answers = [], []
    for category, (right, wrong) in sizes.items():
        for i in range(right + wrong):
            questions.append(choices("", ["a", "b"], 0, {"category": category}))
            answers.append(likelihoods(-1.0, -2.0) if i < right else likelihoods(-2.0, -1.0))
    result = score(get("cbt"), questions, answers)
    groups = result.groups["category"]
    assert groups["verbs"]["acc_token"].value == pytest.approx(0.8)
    assert result.metrics["acc_token"].value == pytest.approx((0.8 + 0.5) / 2)
    errors = [scipy.stats.sem([1.0] * 8 + [0.0] * 2), scipy.stats.sem([1.0, 0.0])]
    expected = math.hypot(*errors) / 2
    assert result.metrics["acc_token"].standard_error == pytest.approx(expected, rel=1e-12)


def test_perplexities_and_their_standard_error():
    generator = numpy.random.default_rng(3)
    sums = -generator.gamma(2.0, size=400)
    tokens = generator.integers(1, 5, size=400)
    answers = [[Likelihood(float(s), int(n), s > -1)] for s, n in zip(sums, tokens, strict=True)]
    result = score(get("lambada"), [choices("", ["word"], 0)] * 400, answers)
    metrics = result.metrics
    assert metrics["greedy_acc"].value == pytest.approx((sums > -1).mean())
    assert metrics["perplexity"].value == pytest.approx(numpy.exp(-sums.mean()), rel=1e-12)
    per_token = numpy.exp(-(sums / tokens).mean())
    assert metrics["token_perplexity"].value == pytest.approx(per_token, rel=1e-12)
    # The delta method is near what resampling gives, which the harness does.
    draws = generator.choice(sums, size=(2000, 400)).mean(axis=1)
    assert metrics["perplexity"].standard_error == pytest.approx(numpy.exp(-draws).std(), rel=0.1)


def test_a_hopeless_word_has_infinite_perplexity_and_no_crash():
    result = score(get("lambada"), [choices("", ["w"], 0)], [[Likelihood(-1e4, 1, False)]])
    assert result.metrics["perplexity"].value == math.inf
    assert result.chance == {}  # one continuation leaves nothing to guess among


def test_no_questions_and_missing_answers_are_refused():
    with pytest.raises(ValueError, match="piqa: no questions"):
        score(get("piqa"), [], [])
    with pytest.raises(ValueError, match="shorter"):
        score(get("piqa"), [choices("", ["a", "b"], 0)], [])


def test_every_benchmark_names_metrics_that_there_are():
    for name, benchmark in ZERO_SHOT.items():
        assert benchmark.name == name
        assert set(benchmark.metrics) <= set(scoring.AVERAGES)
        assert benchmark.headline in benchmark.metrics
        assert benchmark.averaged_over in (None, *benchmark.groupings)
        assert all(file.path.startswith(f"{name}/") for file in benchmark.files)


def test_unknown_name_has_a_nearest_match():
    with pytest.raises(ValueError, match=r"--task blinp: expected one of .*did you mean 'blimp'"):
        get("blinp")
