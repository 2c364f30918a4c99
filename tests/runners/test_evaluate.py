"""Scoring a finished run again."""

import json
import shutil

import pytest
import torch

from runners import evaluate


@pytest.fixture
def finished(make_run, train):
    def make(*overrides, **options):
        directory = make_run("run", *overrides, **options)
        assert train(directory) == "done"
        return directory

    return make


def test_scores_are_those_of_the_result(finished, capsys):
    directory = finished("evaluate.repeats=[1, 4]", "select=best:dev", architecture="universal")
    result = json.loads((directory / "result.json").read_text())
    before = sorted((str(p), p.stat().st_mtime_ns) for p in directory.rglob("*"))
    assert evaluate.main([str(directory), "--repeats", "2,1,4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result["scores"]
    assert sorted((str(p), p.stat().st_mtime_ns) for p in directory.rglob("*")) == before
    assert evaluate.main([str(directory), "--split", "train", "--repeats", "3"]) == 0
    table = capsys.readouterr().out
    assert "train" in table
    assert "3+3" in table
    assert "exact match" in table


def test_weights_are_rounded_where_asked(finished, monkeypatch):
    directory = finished("train.steps=4", "evaluate.interval=null")
    seen = []
    real = evaluate.score_finished_run

    def score_finished_run(run, **options):
        seen.append([one.clone() for one in run.model.parameters() if one.dim() > 1])
        return real(run, **options)

    monkeypatch.setattr(evaluate, "score_finished_run", score_finished_run)
    for weights in ("float32", "bfloat16"):
        assert evaluate.main([str(directory), "--weights", weights]) == 0
    for whole, rounded in zip(*seen, strict=True):
        assert torch.equal(rounded, whole.bfloat16().float())
        assert not torch.equal(rounded, whole)


def test_tokens_leave_by_a_rule(finished, capsys):
    directory = finished("train.steps=4", "evaluate.interval=null", architecture="universal")
    used = {}
    for rule in ("cosine=9", "cosine=0", "cosine=0.02"):
        assert evaluate.main([str(directory), "--repeats", "6", "--exit", rule, "--json"]) == 0
        used[rule] = [one["metrics"] for one in json.loads(capsys.readouterr().out)]
    assert evaluate.main([str(directory), "--repeats", "6", "--json"]) == 0
    whole = [one["metrics"] for one in json.loads(capsys.readouterr().out)]
    assert {one["repeats_used"] for one in used["cosine=9"]} == {1.0}
    # A rule by which nobody leaves is the model itself.
    for one, plain in zip(used["cosine=0"], whole, strict=True):
        cost = one.pop("macs_per_token_used")
        assert one == plain | {"repeats_used": 6.0}
        assert cost > max(row["macs_per_token_used"] for row in used["cosine=0.02"])
    assert all(1 < one["repeats_used"] < 6 for one in used["cosine=0.02"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--split", "tset"],
            "--split tset: expected one of train, dev, test; did you mean 'test'",
        ),
        (["--repeats", "4"], "its depth is fixed"),
        (["--rows-per-category", "0"], "must be at least 1"),
        (["--exit", "kl"], "--exit kl: no layer is repeated (depth.repeats=1)"),
    ],
)
def test_bad_input_ends_with_status_2(arguments, expected, finished, capsys):
    directory = finished("train.steps=4", "evaluate.interval=null")
    assert evaluate.main([str(directory), *arguments]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1


def test_damaged_checkpoint_is_refused(finished, capsys):
    directory = finished("train.steps=6", "evaluate.interval=null")
    file = directory / "checkpoints" / "step_000006" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)
    assert evaluate.main([str(directory)]) == 2
    assert f"{file}: damaged" in capsys.readouterr().err


def test_checkpoint_of_another_model_is_refused(finished, make_run, train, capsys):
    directory = finished("train.steps=6", "evaluate.interval=null")
    other = make_run("other", "train.steps=6", "evaluate.interval=null", "model.d_model=24")
    assert train(other) == "done"
    place = directory / "checkpoints" / "step_000006"
    shutil.rmtree(place)
    shutil.copytree(other / "checkpoints" / "step_000006", place)
    assert evaluate.main([str(directory)]) == 2
    message = capsys.readouterr().err
    assert f"{place}: a checkpoint of the run " in message
    assert message.count("\n") == 1


def test_unfinished_run_is_refused(make_run, train, capsys):
    directory = make_run()
    train(directory, stop_at=3)
    assert evaluate.main([str(directory)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
