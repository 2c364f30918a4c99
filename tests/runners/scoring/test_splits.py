"""Decoding in batches: rows find their answers, limits cut nothing off, the oracle costs little."""

import types

import pytest
import torch

from moeut.decoding import Decoded
from runners.config.run_file import read_run
from runners.config.schema import EvaluateConfig
from runners.scoring import answers
from runners.scoring.answers import Answerer
from runners.scoring.splits import split_scorer
from runners.training.experiment import build, build_model
from tasks.base.metrics import Answers, measure

CPU = torch.device("cpu")


@pytest.fixture
def built(tmp_path, run_text):
    def make(*overrides, **options):
        file = tmp_path / "run.yaml"
        file.write_text(run_text(**options))
        return build(read_run(file, overrides))

    return make


@pytest.fixture
def decoder(built, monkeypatch):
    """Replace greedy decoding by a function from source words to (answer words, finished)."""
    one = built()
    calls = []

    def use(answer):
        def decode(model, source, mask, *, bos, eos, pad, max_length, suppress_eos, num_repeats):
            calls.append(
                types.SimpleNamespace(
                    rows=len(source), limit=max_length, oracle=suppress_eos, repeats=num_repeats
                )
            )
            found = []
            for ids, length in zip(source.tolist(), mask.sum(dim=1).tolist(), strict=True):
                assert (ids[0], ids[length - 1]) == (bos, eos)
                words = one.objective.source.decode(ids[1 : length - 1])
                found.append(answer(words, suppress_eos))
            encoded = [one.objective.target.encode(words)[:max_length] for words, _ in found]
            width = max(map(len, encoded))
            tokens = [ids + [pad] * (width - len(ids)) for ids in encoded]
            return Decoded(
                torch.tensor(tokens).reshape(len(tokens), width),
                torch.tensor([len(ids) for ids in encoded]),
                torch.tensor([finished for _, finished in found]),
            )

        monkeypatch.setattr(answers, "greedy_decode", decode)
        return one, calls

    return use


def score(one, model, split, config=EvaluateConfig(), on_batch=lambda *_: None, **options):  # noqa: B008
    scorer = split_scorer(one.objective)
    one = scorer(model=model, built=one, config=config, device=CPU, on_batch=on_batch)
    return one.score(split, **options)


def evaluate(one, **options):
    return score(one, torch.nn.Linear(1, 1), "test", EvaluateConfig(batch_size=3), **options)


def test_every_row_gets_its_own_answer(decoder):
    one, calls = decoder(lambda words, oracle: (words[::-1], True))
    result = evaluate(one)
    assert result.score.metrics["exact_match"] == 1.0
    assert [call.rows for call in calls] == [3, 3, 2]
    assert all(
        call.limit > max(len(row.target) for row in result.answers.examples) for call in calls
    )
    assert result.prediction_rows("sequence_to_sequence")[0]["correct"] is True
    assert len({row["source"] for row in result.prediction_rows("sequence_to_sequence")}) > 4


def test_answers_of_other_rows_are_wrong(decoder):
    """The test above could fail: words in their own order are right for palindromes alone."""
    one, _ = decoder(lambda words, oracle: (words, True))
    result = evaluate(one)
    palindromes = sum(row.source == row.source[::-1] for row in result.answers.examples)
    assert result.score.metrics["exact_match"] == palindromes / 8 < 1


def test_oracle_decodes_again_only_what_it_can_change(decoder):
    def stops_early(words, oracle):
        right = words[::-1]
        return (right, True) if oracle or len(words) < 3 else (right[:2], True)

    one, calls = decoder(stops_early)
    result = evaluate(one)
    short = sum(len(row.source) < 3 for row in result.answers.examples)
    assert result.score.metrics["exact_match"] == short / 8
    assert result.score.metrics["eos_oracle_match"] == 1.0
    assert sum(call.rows for call in calls if call.oracle) == 8 - short
    assert sum(call.rows for call in calls if not call.oracle) == 8


def test_oracle_agrees_with_decoding_every_row(built):
    """On a real, untrained model, in both forms that decode."""
    for options in ({"form": "encoder_decoder"}, {"form": "decoder_lm"}):
        one = built(architecture="universal", **options)
        for seed in range(3):
            torch.manual_seed(seed)
            model = build_model(one.model_config, CPU)
            model.head.bias.data[2] += 2.0  # the end token comes early now and then
            result = score(one, model, "train")
            rows = result.answers.examples
            answerer = Answerer(model.eval(), one.objective, device=CPU)
            with torch.inference_mode():
                everything = answerer._in_batches(
                    rows, lambda *batch, a=answerer: a._greedy(*batch, limit=8, suppress_eos=True)
                )
            expected = Answers(rows, result.answers.predictions, everything)
            assert result.score.metrics == measure("sequence_to_sequence", expected)


def test_selected_rows_are_said(decoder):
    one, _ = decoder(lambda words, oracle: (words[::-1], True))
    config = EvaluateConfig(rows_per_category=1)
    result = score(one, torch.nn.Linear(1, 1), "test", config, oracle=False)
    count = len({row.category for row in one.task.split("test")})
    assert result.score.rows == count < 8
    assert result.note() == f"test: {count} of 8 rows, 1 per category chosen by hash"
    assert "eos_oracle_match" not in result.score.metrics


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
