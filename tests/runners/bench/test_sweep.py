"""The benchmark of large sweeps: its commands end as they should, and every run gets a result."""

import json

import pytest

from runners.bench import __main__ as command
from runners.bench import sweep, sweep_worker
from runners.bench.sweep import copy_results, overheads
from runners.config.grid import expand, read_sweep
from runners.process.run_directory import RunDirectory
from runners.reporting.results import load
from runners.sweeping import engines
from runners.sweeping.executor import Job
from tasks.base.storage import write_json


def test_what_was_measured_is_shown_and_written(tmp_path, monkeypatch, capsys):
    rows = [{"what": "planning", "seconds": 12.34, "cpu_seconds": 5.67, "mib": 389.4}]
    beside = [{"what": "a run", "runs": 100, "median": 0.123, "quartiles": [0.1, 0.2]}]
    monkeypatch.setattr(sweep, "measure_sweep", lambda folder, **sizes: (rows, beside))
    file = tmp_path / "out.json"
    assert command.main(["sweep", "--settings", "8", "--seeds", "3", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert (result["settings"], result["seeds"]) == (8, 3)
    assert (result["rows"], result["run"]) == (rows, beside)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("12.3", "5.7", "389", "0.12", "0.10 to 0.20"))


def test_the_sweep_has_as_many_settings_and_seeds_as_asked_for(tmp_path):
    file = tmp_path / "large.yaml"
    file.write_text(sweep.sweep_text(8, 3))
    planned = expand(read_sweep(file, []), data_hash=lambda section: "")
    assert len({run.hash for run in planned}) == 8
    assert len(planned) == 24


def test_a_driver_whose_runs_nobody_executes(tmp_path, monkeypatch, capsys):
    file = tmp_path / "large.yaml"
    file.write_text(sweep.sweep_text(4, 1))
    words = ["worker", "nobody", str(file), f"--runs-dir={tmp_path}", "--no-figures"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(engines, "EXECUTORS", dict(engines.EXECUTORS))
    assert sweep_worker.main() == 75
    assert len(list(tmp_path.glob("large/*/seed0/config.yaml"))) == 4
    assert "4 runs: 4 new" in capsys.readouterr().out


def test_a_command_is_measured_and_its_failure_said():
    measured = sweep.measure("tasks.show", "--help")
    assert measured["seconds"] > 0
    assert 5 < measured["mib"] < 2000
    with pytest.raises(RuntimeError, match="no-such"):
        sweep.measure("tasks.show", "no-such")


def test_a_copied_result_is_of_its_own_run(make_sweep):
    directory = make_sweep(a=[0.5, 0.7])
    second = RunDirectory(next(directory.glob("a-*/seed1")))
    second.result.unlink()
    first = second.path.parent / "seed0"
    for name in ("timings.json", "env.json", "predictions.jsonl"):
        first.joinpath(name).write_text("{}\n")
    for seed, files in enumerate((RunDirectory(first), second)):
        write_json(files.record, {"sweep": "s", "variant": "a", "seed": seed, "hash": "x"})
    copy_results(directory)
    values = [run.result.seed for run in load(directory).runs]
    assert values == [0, 1]


def test_as_many_runs_of_each_variant_are_executed(make_sweep):
    directory = make_sweep(a=[0.5, 0.7, 0.9], bb=[0.5, 0.7])
    for path in directory.glob("*/seed*"):
        record = {"sweep": "s", "variant": path.parent.name[:-9], "seed": 0, "hash": "x"}
        write_json(RunDirectory(path).record, record)
    jobs = [Job(path, 1, uses_gpu=False, steps=1) for path in sorted(directory.glob("*/seed*"))]
    chosen = sweep_worker.evenly(jobs, 2)
    assert [job.directory.parent.name[:-9] for job in chosen] == ["a", "bb"]
    assert len(sweep_worker.evenly(jobs, 100)) == 5


def test_overhead_is_what_neither_training_nor_scoring_took(tmp_path):
    write_json(tmp_path / "timings.json", {"train_seconds": 2.0, "evaluate_seconds": 0.5})
    assert overheads({str(tmp_path): 3.0}) == [0.5]


@pytest.mark.parametrize("word", ["--settings", "--runs"])
def test_refuses_counts_that_do_not_divide(word, capsys):
    assert command.main(["sweep", word, "5"]) == 2
    assert "multiple of 4" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--settings", "--seeds", "--runs"])
def test_refuses_counts_below_one(word, capsys):
    assert command.main(["sweep", word, "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
