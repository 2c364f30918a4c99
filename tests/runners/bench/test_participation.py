"""The benchmark of passes in which half of the tokens take no part."""

from __future__ import annotations

import json

import pytest
import torch

from runners.bench import __main__ as command
from runners.bench import participation

SMALL = ["participation", "--batch", "2", "--length", "8", "--repeats", "3", "--rounds", "1"]


def test_who_halts_is_given(monkeypatch, tmp_path):
    monkeypatch.setattr(participation, "CASES", [("act", "dense"), ("exit_rule", "dense")])
    monkeypatch.setattr(participation, "WIDTH", 16)
    applied = []
    seconds = participation.seconds

    def noted(model, tokens, *, learns):
        counts = []
        count = lambda _, inputs: counts.append(inputs[0].shape[:2].numel())  # noqa: E731
        hook = model.decoder.layers[0].register_forward_pre_hook(count)
        spent = seconds(model, tokens, learns=learns)
        hook.remove()
        applied.append(counts)
        return spent

    monkeypatch.setattr(participation, "seconds", noted)
    file, threads = tmp_path / "result.json", torch.get_num_threads()
    try:
        assert command.main([*SMALL, "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    result = json.loads(file.read_text())
    assert result["share"] == pytest.approx(2 / 3)
    assert [(row["way"], row["learns"]) for row in result["rows"]] == [
        ("act", True),
        ("act", False),
        ("exit_rule", False),
    ]
    halts = torch.rand(2, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    left = 16 - int(halts.sum())
    assert applied[::2] == [[16, 16, 16]] * 6  # full and half in turn, two rounds of each case
    assert applied[1::2] == [[16, left, left]] * 6
