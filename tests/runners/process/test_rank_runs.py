"""A run on two ranks: checkpoints, stops, failures and ends."""

import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
import torch._dynamo

import moeut
import runners.training.sharding  # noqa: F401
from runners import train as train_module
from runners.process.checkpoint import list_checkpoints, load_checkpoint
from runners.process.run_directory import RunDirectory
from runners.scoring.scorer import Scorer
from runners.training import loop, parallel
from runners.training.loop import Loop

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def command(tmp_path, run_text):
    """Return a function that gives the command line of a small run in a named directory."""
    file = tmp_path / "tiny.yaml"

    def make(name, *overrides, form="decoder_lm", architecture="moeut"):
        file.write_text(run_text(form, architecture))
        arguments = [str(file), *overrides, f"--run-directory={tmp_path / name}"]
        return lambda: train_module.main(arguments)

    return make


def fingerprint(directory):
    """Return everything that must not depend on interruptions."""
    last = list_checkpoints(directory / "checkpoints")[-1]
    found = {
        name: (directory / name).read_bytes()
        for name in ("metrics.jsonl", "predictions.jsonl", "result.json")
    }
    found["weights"] = [path.read_bytes() for path in sorted(last.glob("*.safetensors"))]
    state = load_checkpoint(last).state["loop"]
    found["random"] = [each["torch"].numpy().tobytes() for each in state["random_of_ranks"]]
    found["position"] = state["position"]
    return found


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def die_at(step, monkeypatch):
    """Have a rank kill itself, as SIGKILL from outside would, before an update."""
    advance = Loop.advance

    def advance_or_die(loop):
        if loop.position.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(loop)

    monkeypatch.setattr(Loop, "advance", advance_or_die)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_killed_run_goes_on_to_the_same_bits(kind, command, start, tmp_path, monkeypatch):
    options = (f"train.parallel={kind}", "select=best:dev", "train.optimizer=muon", "train.ema=0.9")
    assert start(command("whole", *options)).end() == [0, 0]
    with monkeypatch.context() as patch:
        die_at(8, patch)
        assert start(command("parts", *options)).end() == [-9, -9]
    (checkpoint,) = list_checkpoints(tmp_path / "parts" / "checkpoints")
    assert (checkpoint / "optimizer").is_dir() == (kind == "fsdp")
    assert start(command("parts", *options)).end() == [0, 0]
    assert fingerprint(tmp_path / "parts") == fingerprint(tmp_path / "whole")
    assert [row["step"] for row in rows_of(tmp_path / "whole") if "loss" in row] == [
        2, 4, 6, 8, 10, 12,
    ]  # fmt: skip
    last = list_checkpoints(tmp_path / "whole" / "checkpoints")[-1]
    model = moeut.load(last)
    assert model.config.d_model == 16


@pytest.mark.parametrize(
    ("kind", "other", "sizes"),
    [("ddp", "ddp", (2, 1)), ("fsdp", "fsdp", (2, 1)), ("ddp", "fsdp", (1, 2)),
     ("fsdp", "fsdp", (2, 4))],
)  # fmt: skip
def test_run_goes_on_with_another_number_of_ranks(
    kind, other, sizes, command, start, tmp_path, monkeypatch
):
    plain = ("model.dropout=0.0", "model.feed_forward.expert_dropout=0.0", "train.accumulate=1",
             "evaluate.interval=null", "train.epsilon=0.001", "train.shared_rate=root",
             "train.ema=0.9")  # fmt: skip
    alone = start(command("whole", *plain), size=1)
    assert alone.end() == [0]
    with monkeypatch.context() as patch:
        die_at(8, patch)
        first = start(command("parts", *plain, f"train.parallel={kind}"), size=sizes[0])
        assert first.end() == [-9] * sizes[0]
    second = start(command("parts", *plain, f"train.parallel={other}"), size=sizes[1])
    assert second.end() == [0] * sizes[1]
    whole, parts = (rows_of(tmp_path / name) for name in ("whole", "parts"))
    assert len(whole) == 6
    for row, expected in zip(parts, whole, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    last, found = (
        load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1])
        for name in ("whole", "parts")
    )
    for kept in ("model", "ema"):
        weights = found.weights(kept)
        for name, value in last.weights(kept).items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("number", "status", "rank"),
    [(signal.SIGUSR2, 75, 1), (signal.SIGTERM, 75, 0), (signal.SIGINT, 130, 1)],
)
def test_a_signal_to_one_rank_stops_all_at_one_step(number, status, rank, command, start, tmp_path):
    long = ("train.steps=100000", "train.checkpoint_interval=1000000", "evaluate.interval=null")
    ranks = start(command("run", *long))
    deadline = time.monotonic() + 150
    while "step " not in ranks.text():
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.02)
    os.kill(ranks.pids[rank], number)
    assert ranks.end() == [status, status]
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert load_checkpoint(checkpoint).step > 0
    assert ranks.text().count("the same command continues") == 1
    assert RunDirectory(tmp_path / "run").status() == "resumable"


def test_rank_that_is_killed_does_not_hang_the_other(command, start, tmp_path, monkeypatch):
    advance = Loop.advance

    def advance_or_die(loop):
        if loop.position.step == 7 and loop.world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", advance_or_die)
        ranks = start(command("run"))
        assert ranks.end() == [75, -9]
    assert "lost another rank" in ranks.text()
    assert RunDirectory(tmp_path / "run").status() == "resumable"
    assert start(command("run")).end() == [0, 0]


def test_rank_that_fails_tells_the_others_why(command, start, tmp_path, monkeypatch):
    advance = Loop.advance

    def advance_or_fail(loop):
        if loop.position.step == 7 and loop.world.rank == 1:
            raise OSError("the disk of rank 1 is gone")
        return advance(loop)

    monkeypatch.setattr(Loop, "advance", advance_or_fail)
    ranks = start(command("run"))
    assert ranks.end() == [1, 1]
    assert RunDirectory(tmp_path / "run").failure() == "the disk of rank 1 is gone"


def test_what_is_not_finite_on_one_rank_stops_all(command, start, tmp_path, monkeypatch):
    spread = parallel.spread
    calls = []

    def poisoned(model, config, world, **options):
        call = spread(model, config, world, **options)

        def forward(*arguments, **keywords):
            output = call(*arguments, **keywords)
            calls.append(1)
            factor = float("nan") if world.rank == 1 and len(calls) == 9 else 1.0
            return dataclasses.replace(output, logits=output.logits * factor)

        return forward

    monkeypatch.setattr(loop.parallel, "spread", poisoned)
    ranks = start(command("run", "evaluate.interval=null"))
    assert ranks.end() == [1, 1]
    error = json.loads((tmp_path / "run" / "error.json").read_text())
    assert error["message"].startswith("step 5: loss nan")
    assert error["step"] == 4


def test_stop_while_rank_0_scores(command, start, tmp_path, monkeypatch):
    score = Scorer.score

    def interrupted(scorer, *arguments, **options):
        scorer.agreement.stop.request()
        return score(scorer, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", interrupted)
        assert start(command("run", "evaluate.interval=null")).end() == [75, 75]
    assert start(command("run", "evaluate.interval=null")).end() == [0, 0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("train.batch_size=9", "train.accumulate=1"), "must be divisible by 2, for 2 ranks\n"),
        (("train.batch_size=10",), "must be divisible by 4, for 2 ranks in accumulate=2 parts\n"),
        (("train.stepz=3",), "train.steps"),
        (("train.parallel=dpp",), "did you mean 'ddp'"),
    ],
)
def test_bad_input_is_said_once_and_nothing_written(overrides, expected, command, start, tmp_path):
    ranks = start(command("run", *overrides))
    assert ranks.end() == [2, 2]
    assert expected in ranks.said(0)
    assert ranks.said(0).count("\n") == 1
    assert ranks.said(1) == ""
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_found_done_by_all(command, start, tmp_path):
    assert start(command("run", "train.steps=4", "evaluate.interval=null")).end() == [0, 0]
    again = start(command("run", "train.steps=4", "evaluate.interval=null"))
    assert again.end() == [0, 0]
    assert ": done\n" in again.text()


# --- language models ----------------------------------------------------------------------

TEXT = """\
task: {{name: language, corpus: files, files: [{folder}], tokenizer: bytes, context_length: 24,
       validation_fraction: 0.15, test_fraction: 0.15}}
model: {{architecture: moeut, d_model: 16, depth: {{repeats: 2}},
        attention: {{num_heads: 2, num_experts: 3}},
        feed_forward: {{num_experts: 4, expert_size: 8, top_k: 2}}}}
train: {{steps: 12, batch_size: 8, accumulate: 2, learning_rate: 0.01, schedule: cosine_paper,
        warmup_steps: 3, checkpoint_interval: 5, log_interval: 2, epsilon: 0.001}}
evaluate: {{interval: 4}}
select: best:validation
"""


@pytest.fixture
def text_command(tmp_path, monkeypatch):
    """Return a function that gives the command line of a small language run."""
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "text"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        words = generator.choice(["one", "three", "seven", "eleven"], 25)
        (folder / f"{number}.txt").write_text(f"{number}: " + " ".join(words) + "\n")
    file = tmp_path / "text.yaml"
    file.write_text(TEXT.format(folder=folder))

    def make(name, *overrides):
        arguments = [str(file), *overrides, f"--run-directory={tmp_path / name}"]
        return lambda: train_module.main(arguments)

    return make


def without_speed(directory):
    return [{k: v for k, v in row.items() if k != "speed"} for row in rows_of(directory)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_language_run_on_two_ranks(kind, text_command, start, tmp_path, monkeypatch):
    """Packed by one rank while the other waits, killed, and scored by both."""
    option = f"train.parallel={kind}"
    assert start(text_command("whole", option)).end() == [0, 0]
    whole, parts, alone = (tmp_path / name for name in ("whole", "parts", "alone"))
    if kind == "ddp":
        with monkeypatch.context() as patch:
            die_at(8, patch)
            assert start(text_command("parts", option)).end() == [-9, -9]
        assert start(text_command("parts", option)).end() == [0, 0]
        assert without_speed(parts) == without_speed(whole)
        assert (parts / "result.json").read_bytes() == (whole / "result.json").read_bytes()

    assert start(text_command("alone"), size=1).end() == [0]
    for row, expected in zip(without_speed(whole), without_speed(alone), strict=True):
        assert row.keys() == expected.keys()
        for key in set(row) - {"routing", "metrics", "split"}:
            assert row[key] == pytest.approx(expected[key], rel=1e-4), key
        if "metrics" in row:
            assert row["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    result, expected = (json.loads((d / "result.json").read_text()) for d in (whole, alone))
    assert [score["is_default_depth"] for score in result["scores"]].count(True) == 2
    for found, entry in zip(result["scores"], expected["scores"], strict=True):
        assert found["rows"] == entry["rows"]
        assert found["metrics"] == pytest.approx(entry["metrics"], rel=1e-5)

    row = next(row for row in rows_of(whole) if "speed" in row)
    assert row["perplexity"] == pytest.approx(np.exp(row["loss"]))
    assert row["speed"]["tokens_per_second"] > 0
    assert row["speed"]["peak_memory_bytes"] > 0
    assert row["speed"]["model_flops_utilization"] is None
    assert row["routing"]["decoder.0.feed_forward"]["num_experts"] == 4
    assert row["routing"]["decoder.1.attention.value"]["num_experts"] == 6
    assert rows_of(whole)[-2]["tokens_seen"] == 12 * 8 * 24


def test_signal_while_all_ranks_score(text_command, start, tmp_path, monkeypatch):
    score = Scorer.score

    def interrupted(scorer, *arguments, **options):
        if scorer.agreement.world.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        return score(scorer, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", interrupted)
        assert start(text_command("run")).end() == [75, 75]
    assert start(text_command("run")).end() == [0, 0]
