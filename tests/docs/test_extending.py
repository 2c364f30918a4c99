"""The recipes of docs/extending.md, word for word: each block is put where it says, and used."""

from __future__ import annotations

import doctest
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moeut
import runners.sweep
import tasks
from moeut.blocks.attention import ATTENTION
from moeut.recurrence.controller import HALTING
from runners import train
from runners.analysis.catalogue import ANALYSES
from runners.analysis.traces import trace
from runners.sweeping import engines
from runners.training.objective import OBJECTIVES
from tasks import menu
from tasks.base import metrics
from tasks.table_lookup import TableLookup

BOOK = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")


def block(head: str, language: str = "python") -> str:
    """Return the one block of the book that begins with ``head``."""
    found = [
        code
        for kind, code in re.findall(r"^```(\w+)\n(.*?)^```$", BOOK, re.DOTALL | re.MULTILINE)
        if kind == language and code.startswith(head)
    ]
    assert len(found) == 1, head
    return found[0]


def module(path: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Return the module that the block for ``path`` makes, importable while the test runs."""
    name = path.removesuffix(".py").replace("/", ".")
    made = types.ModuleType(name)
    made.__file__ = path
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(block(f"# {path}\n"), path, "exec"), made.__dict__)
    return made


def entry(name: str, registry: Any, scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter what the book enters under ``name``."""
    made = eval("{" + block(f'"{name}":') + "}", scope)
    monkeypatch.setitem(registry, name, made[name])


def test_task_of_any_length(monkeypatch):
    made = module("tasks/last_bit.py", monkeypatch)
    monkeypatch.setitem(tasks.TASKS, "last_bit", made.LastBit)
    (example,) = doctest.DocTestFinder().find(made.LastBit, "LastBit", made)[:1]
    assert doctest.DocTestRunner().run(example) == (0, 2)
    rows = np.arange(500)
    train_rows = tasks.create("last_bit").split("train").arrays(rows)
    last = train_rows.lengths - 1
    assert (train_rows.target[rows, last] == train_rows.source[:, 0]).all()


def test_task(tmp_path, monkeypatch):
    made = module("tasks/reverse.py", monkeypatch)
    entry("reverse", tasks.TASKS, vars(tasks), monkeypatch)
    (example,) = doctest.DocTestFinder().find(made.Reverse, "Reverse", made)[:1]
    result = doctest.DocTestRunner().run(example)
    assert (result.attempted, result.failed) == (2, 0)
    with pytest.raises(tasks.OptionError, match=r"^task\.rows=5: must be at least 10$"):
        tasks.create("reverse", rows=5)
    assert "rows: a whole number; default 1000\n" in menu.describe_tasks()
    words = [row.source for rows in tasks.create("reverse").splits().values() for row in rows]
    assert len(words) == len(set(words)) == 1200

    config = tmp_path / "reverse.yaml"
    config.write_text(block("task: {name: reverse", "yaml"))
    assert train.main([str(config), f"--run-directory={tmp_path / 'run'}"]) == 0
    scores = json.loads((tmp_path / "run" / "result.json").read_text())["scores"]
    assert {score["split"]: score["rows"] for score in scores} == {"valid": 5, "test": 5}


def test_attention(tmp_path, monkeypatch):
    made = module("moeut/blocks/attention/temperature.py", monkeypatch)
    entry("temperature", ATTENTION, vars(made), monkeypatch)
    options = {"form": "decoder_lm", "vocabulary_size": 9, "d_model": 16}
    with pytest.raises(moeut.OptionError, match=r"attention\.strat=1.*did you mean 'start'"):
        moeut.architecture("moeut", **options, attention={"kind": "temperature", "strat": 1})
    config = moeut.architecture("moeut", **options, attention="temperature")
    model = moeut.build(config).eval()
    layer = model.decoder.layers[0]
    assert layer.attention.factor.item() == 2.0
    tokens = torch.arange(5)[None]
    logits = model(tokens).logits
    model.save(tmp_path)
    assert torch.equal(moeut.load(tmp_path)(tokens).logits, logits)
    cache = model.new_cache()
    steps = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(5)]
    assert torch.allclose(torch.cat(steps, dim=1), logits, atol=1e-5)
    with torch.no_grad():
        layer.attention.factor.zero_()
    assert not torch.allclose(model(tokens).logits, logits, atol=1e-5)


def test_controller(monkeypatch):
    made = module("moeut/recurrence/steady.py", monkeypatch)
    entry("steady", HALTING, vars(made), monkeypatch)

    def build(tolerance: float) -> moeut.Model:
        torch.manual_seed(0)
        halting = {"kind": "steady", "tolerance": tolerance}
        options = {"form": "decoder_lm", "vocabulary_size": 9, "d_model": 16, "halting": halting}
        return moeut.build(moeut.architecture("moeut", **options, depth={"repeats": 4})).eval()

    tokens = torch.arange(5)[None]
    plain = moeut.architecture("moeut", form="decoder_lm", vocabulary_size=9, d_model=16)
    never, at_once = build(0.0), build(1e9)
    repeats = [model(tokens).decisions["decoder"]["halting.repeats"] for model in (never, at_once)]
    assert repeats[0].tolist() == [[4] * 5]
    assert repeats[1].tolist() == [[1] * 5]
    assert plain.halting.kind == "none"
    # Halted after one repeat, a model is the one that is applied once.
    logits = at_once(tokens).logits
    assert torch.equal(logits, never(tokens, num_repeats=1).logits)
    assert not torch.allclose(logits, never(tokens).logits, atol=1e-3)
    some = build(0.1)
    cache = some.new_cache()
    steps = [some(tokens[:, i : i + 1], cache=cache).logits for i in range(5)]
    assert torch.allclose(torch.cat(steps, dim=1), some(tokens).logits, atol=1e-5)
    traced = some(tokens, trace=True)
    taken = traced.decisions["decoder"]["halting.repeats"]
    assert 1 <= taken.min() < taken.max() <= 4
    for application, record in enumerate(traced.trace["decoder"]):
        for router in record.routers.values():
            works = (router.selection >= 0).flatten(2).any(-1)
            assert torch.equal(works, taken > application // 2)


def test_controller_with_parameters_and_a_loss(monkeypatch):
    made = module("moeut/recurrence/brake.py", monkeypatch)
    entry("brake", HALTING, vars(made), monkeypatch)
    options = {"form": "decoder_lm", "vocabulary_size": 9, "d_model": 16, "depth": {"repeats": 3}}
    plain = moeut.architecture("universal", **options)
    config = moeut.architecture("universal", **options, halting={"kind": "brake"})
    assert moeut.count_parameters(config) == moeut.count_parameters(plain) + 16
    macs = [moeut.macs_per_token(one, sequence_length=5) for one in (plain, config)]
    assert macs[1] - macs[0] == 3 * 16

    torch.manual_seed(0)
    model = moeut.build(config).double()
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
    real = tokens > 0
    output = model(tokens, padding_mask=real)
    way = output.decisions["decoder"]["halting.way"]
    assert 0 < way.min() < way.max() < 3
    wanted = 0.01 * torch.stack([way[0].mean(), way[1, :2].mean()]).mean()
    assert output.auxiliary_loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    rows = [model(tokens[i : i + 1], padding_mask=real[i : i + 1]) for i in range(2)]
    parts = sum(row.auxiliary_loss for row in rows) / 2  # parts of a batch add up
    assert parts.item() == pytest.approx(output.auxiliary_loss.item(), abs=1e-12)
    output.auxiliary_loss.backward()
    assert model.decoder.controllers["halting"].weight.grad.abs().sum() > 0
    assert model.eval()(tokens, padding_mask=real).auxiliary_loss == 0


def test_metric(tmp_path, monkeypatch):
    exec(block("# tasks/base/metrics.py\n"), scope := dict(vars(metrics)))
    entry("right_length", metrics.METRICS, scope, monkeypatch)
    module("tasks/reverse.py", monkeypatch)
    entry("reverse", tasks.TASKS, vars(tasks), monkeypatch)
    config = tmp_path / "reverse.yaml"
    config.write_text(block("task: {name: reverse", "yaml"))
    assert train.main([str(config), f"--run-directory={tmp_path / 'run'}"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert all(0 <= score["metrics"]["right_length"] <= 1 for score in result["scores"])


def test_analysis(monkeypatch):
    made = module("runners/analysis/norms.py", monkeypatch)
    entry("norm", ANALYSES, {"state_norm": made.state_norm}, monkeypatch)
    sizes = {"train_rows": 200, "iid_rows": 20, "valid_rows": 0, "test_rows": 20}
    task = TableLookup(train_depths=(2, 4), test_depths=(5, 6), reserved_chains=0, **sizes)
    objective = OBJECTIVES[task.kind]["encoder_classifier"](task)
    sizes = {"attention": {"num_heads": 2}, "depth": {"repeats": 3}, **objective.sizes()}
    model = moeut.build(
        moeut.architecture("universal", form="encoder_classifier", d_model=16, **sizes)
    )
    traces = trace(model, objective, task.split("iid"), rows=20)
    (finding,) = ANALYSES["norm"](traces)
    (known,) = ANALYSES["states"](traces)
    norms = [row["norm"] for row in known.rows]
    assert [row["norm"] for row in finding.rows] == pytest.approx(norms, rel=1e-5)
    assert finding.draw.plan == {"kind": "curves", "x": "application", "y": ["norm"], "group": []}


def test_executor(tmp_path, monkeypatch):
    made = module("runners/sweeping/serial.py", monkeypatch)
    scope = {**vars(made), "here": engines.here}
    entry("serial", engines.EXECUTORS, scope, monkeypatch)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "name: serial\n"
        "base:\n"
        "  task: {name: table_lookup, bits: 2, train_rows: 40, test_rows: 10, valid_rows: 0}\n"
        "  model: {architecture: universal, d_model: 16}\n"
        "  train: {steps: 2, batch_size: 8}\n"
    )
    command = [str(sweep), "--executor=serial", f"--runs-dir={tmp_path}"]
    assert runners.sweep.main(command) == 0
    (result,) = tmp_path.glob("serial/*/seed0/result.json")
    assert json.loads(result.read_text())["scores"]
