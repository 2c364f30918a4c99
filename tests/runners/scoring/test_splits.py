"""A split is scored at the depth asked for, and the model is left as it was."""

import pytest
import torch

from runners.config.schema import EvaluateConfig
from runners.scoring.splits import Evaluation, split_scorer
from runners.training.experiment import build_model
from tasks.base.metrics import Answers, Prediction

CPU = torch.device("cpu")


def score(one, model, split, config=EvaluateConfig(), on_batch=lambda *_: None, **options):  # noqa: B008
    scorer = split_scorer(one.objective)
    one = scorer(model=model, built=one, config=config, device=CPU, on_batch=on_batch)
    return one.score(split, **options)


def test_selected_rows_are_said(built):
    one = built()
    model = build_model(one.model_config, CPU)
    config = EvaluateConfig(rows_per_category=1)
    result = score(one, model, "test", config, oracle=False)
    count = len({row.category for row in one.task.split("test")})
    assert result.score.rows == count < result.score.rows_available == 8
    assert result.note() == f"test: {count} of 8 rows, 1 per category chosen by hash"
    assert "eos_oracle_match" not in result.score.metrics
    assert score(one, model, "test").note() is None


def test_a_task_may_ask_for_further_answers_at_the_end(built, monkeypatch):
    one = built()
    model = build_model(one.model_config, CPU)
    rows = one.task.split("test")

    def asked_tables(task, answers, ask):
        again = ask([row.source for row in rows[:3]])
        same = [a == p.tokens for a, p in zip(again, answers.predictions, strict=False)]
        return {"again": {"all": {"share": sum(same) / 3, "rows": 3}}}

    monkeypatch.setattr(type(one.task), "asked_tables", asked_tables)
    tables = score(one, model, "test").score.tables
    assert tables["again"] == {"all": {"share": 1.0, "rows": 3}}
    assert "again" not in score(one, model, "test", oracle=False).score.tables


def test_lines_of_predictions_say_which_are_right(built):
    one = built()
    rows = one.task.split("test")
    predictions = [Prediction(row.target, finished=index > 0) for index, row in enumerate(rows)]
    scored = score(one, build_model(one.model_config, CPU), "test").score
    evaluation = Evaluation(score=scored, answers=Answers(rows, predictions), choice="")
    lines = evaluation.prediction_rows("sequence_to_sequence")
    assert [line["correct"] for line in lines] == [False] + [True] * 7
    assert lines[1]["prediction"] == lines[1]["target"] == " ".join(rows[1].target)
    assert {line["split"] for line in lines} == {"test"}


@pytest.mark.parametrize("form", ["encoder_decoder", "decoder_lm", "encoder_classifier"])
def test_depth_is_that_asked_for(form, built):
    one = built(form=form, architecture="universal")
    torch.manual_seed(0)
    model = build_model(one.model_config, CPU).train()
    found = {}
    for number in (2, 5):
        repeats = [number, number] if form == "encoder_decoder" else number
        result = score(one, model, "train", repeats=repeats)
        assert result.score.is_default_depth == (number == 2)
        assert result.score.repeats == repeats
        found[number] = result.answers.predictions
    assert found[2] != found[5]
    assert score(one, model, "train").answers.predictions == found[2]
    assert model.training


def test_scoring_draws_no_random_numbers(built):
    one = built()
    model = build_model(one.model_config, CPU).train()
    before = torch.get_rng_state()
    score(one, model, "dev")
    assert torch.equal(torch.get_rng_state(), before)


def test_callback_can_stop(built):
    one = built()
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done:
            raise KeyError

    model = build_model(one.model_config, CPU)
    with pytest.raises(KeyError):
        score(one, model, "train", EvaluateConfig(batch_size=16), stop)
    assert seen == [(0, 30), (16, 30)]
