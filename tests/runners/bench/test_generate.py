"""The benchmark of decoding: what it counts, that its rates follow from its times."""

from __future__ import annotations

import json

import pytest
import torch

import moeut
from runners.bench import __main__ as command
from runners.bench.generate import continue_once
from runners.bench.trainee import SIZES

SMALL = ["generate", "--sizes", "tiny", "--prompts", "3", "7", "--tokens", "4", "--batch", "2"]


def test_run_prints_and_writes(tmp_path, capsys):
    file = tmp_path / "result.json"
    threads = torch.get_num_threads()
    try:
        assert command.main([*SMALL, "--repeats", "1", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "evaluations" in capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    assert [(row["model"], row["prompt"], row["way"]) for row in rows] == [
        (model, length, way)
        for model in ("moeut", "transformer")
        for length in (3, 7)
        for way in ("cache", "reread")
    ]
    for row in rows:
        # Three tokens after the first: one evaluation each, of one token or of all before it.
        assert row["evaluations"] == 3
        assert row["read"] == (3 if row["way"] == "cache" else 3 * row["prompt"] + 1 + 2 + 3)
        assert row["tokens_per_second"] == pytest.approx(2 * 1e3 / row["next_ms"], rel=1e-2)
        assert row["same_tokens"] == 1.0


@pytest.mark.parametrize("use_cache", [True, False])
def test_first_and_later_tokens_are_timed_apart(use_cache, monkeypatch):
    """The clock ticks only when the model is called: once for the first token, once for each."""
    clock = 0.0
    monkeypatch.setattr("runners.bench.generate.time.perf_counter", lambda: clock)
    model = moeut.build(SIZES["tiny"].configs()["moeut"]).eval()

    def tick(module, inputs):
        nonlocal clock
        clock += 100.0 if clock == 0.0 else 1.0

    model.register_forward_pre_hook(tick)
    done = continue_once(model, torch.ones(1, 5, dtype=torch.int64), 6, use_cache=use_cache)
    assert (done.first, done.later) == (100.0, 5.0)
    assert done.tokens.shape == (1, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "tinny"], "did you mean 'tiny'"),
        (["--tokens", "1"], "--tokens 1: expected at least 2"),
        (["--prompts", "4", "0"], "--prompts 0: expected at least 1"),
        (["--batch", "0"], "--batch 0: expected at least 1"),
    ],
)
def test_bad_option_ends_with_status_2(options, message, capsys):
    assert command.main(["generate", *options]) == 2
    assert message in capsys.readouterr().err
