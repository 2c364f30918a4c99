"""Decoding in batches: rows find their answers, limits cut nothing off, the oracle costs little."""

import types

import pytest
import torch

from moeut.decoding import Decoded
from runners.scoring import answers as module
from runners.scoring.answers import Answerer
from runners.training.experiment import build_model
from tasks.base.metrics import Answers, measure

CPU = torch.device("cpu")


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

        monkeypatch.setattr(module, "greedy_decode", decode)
        return one, calls

    return use


def answer(one):
    answerer = Answerer(torch.nn.Linear(1, 1), one.objective, device=CPU, batch_size=3)
    answers = answerer.answer(one.task.split("test"))
    return answers, measure("sequence_to_sequence", answers)


def test_every_row_gets_its_own_answer(decoder):
    one, calls = decoder(lambda words, oracle: (words[::-1], True))
    answers, metrics = answer(one)
    assert metrics["exact_match"] == 1.0
    assert [call.rows for call in calls] == [3, 3, 2]
    assert all(call.limit > max(len(row.target) for row in answers.examples) for call in calls)


def test_answers_of_other_rows_are_wrong(decoder):
    """The test above could fail: words in their own order are right for palindromes alone."""
    one, _ = decoder(lambda words, oracle: (words, True))
    answers, metrics = answer(one)
    palindromes = sum(row.source == row.source[::-1] for row in answers.examples)
    assert metrics["exact_match"] == palindromes / 8 < 1


def test_oracle_decodes_again_only_what_it_can_change(decoder):
    def stops_early(words, oracle):
        right = words[::-1]
        return (right, True) if oracle or len(words) < 3 else (right[:2], True)

    one, calls = decoder(stops_early)
    answers, metrics = answer(one)
    short = sum(len(row.source) < 3 for row in answers.examples)
    assert metrics["exact_match"] == short / 8
    assert metrics["eos_oracle_match"] == 1.0
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
            answerer = Answerer(model.eval(), one.objective, device=CPU)
            rows = one.task.split("train")
            answers = answerer.answer(rows)
            everything = answerer._in_batches(
                rows, lambda *batch, a=answerer: a._greedy(*batch, limit=8, suppress_eos=True)
            )
            expected = measure(
                "sequence_to_sequence", Answers(rows, answers.predictions, everything)
            )
            assert measure("sequence_to_sequence", answers) == expected
