"""A sweep is a reconcile: the same command does what is left to do, and nothing twice."""

import errno
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from runners import report, sweep
from runners.process import signals
from runners.process.messages import Ended, Started
from runners.process.run_directory import RunDirectory
from runners.reporting.drawer import Drawer
from runners.reporting.html import contents
from runners.reporting.results import load
from runners.sweeping import engines
from tasks.base.lease import Lease


@pytest.fixture
def command(tmp_path, run_text, monkeypatch):
    """Return the command line of a sweep of two variants and two seeds."""
    text = "".join(f"  {line}\n" for line in run_text().strip().splitlines())
    text = text.replace("architecture: transformer,", "").replace("{hidden_size: 16}", "{}")
    file = tmp_path / "pair.yaml"
    file.write_text(
        f"base:\n{text}"
        "variants:\n"
        "  transformer: {model.architecture: transformer, model.feed_forward.hidden_size: 16}\n"
        "  universal: {model.architecture: universal, model.feed_forward.hidden_size: 8}\n"
        "seeds: 2\n"
    )
    short = ["train.steps=4", "train.warmup_steps=0", "evaluate.interval=null"]
    return [str(file), *short, f"--runs-dir={tmp_path / 'runs'}", "--workers=1", "--no-figures"]


def results(tmp_path):
    return sorted((tmp_path / "runs" / "pair").glob("*/seed*/result.json"))


def shown_commands(tmp_path):
    return contents.commands(load(tmp_path / "runs" / "pair"))


def times(paths):
    return [path.stat().st_mtime_ns for path in paths]


def test_reconcile(command, tmp_path, capsys):
    """One story, since each command starts a worker."""
    assert sweep.main([*command, "--only=universal"]) == 0
    first = results(tmp_path)
    assert [path.parts[-3][:9] for path in first] == ["universal", "universal"]
    before = times(first)

    assert f"{command[0]} train.steps=4" in shown_commands(tmp_path)[-2]
    assert shown_commands(tmp_path)[-2].endswith("--only universal")

    assert sweep.main(command) == 0  # the rest
    assert len(results(tmp_path)) == 4
    assert shown_commands(tmp_path)[-2:] == [
        f"python -m runners.sweep {' '.join(command[:4])}",
        "python -m runners.report runs/pair",
    ]
    assert times(first) == before
    output = capsys.readouterr().out
    assert "4 runs: 2 done, 2 new" in output
    assert "universal" in output.split("every seed")[1]  # the comparison is printed
    csv = (tmp_path / "runs" / "pair" / "results.csv").read_bytes()

    assert sweep.main(command) == 0  # nothing
    assert "4 runs: 4 done" in capsys.readouterr().out
    assert (tmp_path / "runs" / "pair" / "results.csv").read_bytes() == csv

    lost = results(tmp_path)[0]
    lost.unlink()
    RunDirectory(lost.parent).fail("step 3: loss nan", step=2)
    assert sweep.main(command) == 1  # a failed run is listed and left alone
    assert "has failed: step 3: loss nan" in capsys.readouterr().out
    assert not lost.exists()
    assert sweep.main([*command, "--retry-failed"]) == 0
    assert (tmp_path / "runs" / "pair" / "results.csv").read_bytes() == csv

    (tmp_path / "runs").rename(tmp_path / "elsewhere")  # a sweep that has moved goes on there
    lost = tmp_path / "elsewhere" / lost.relative_to(tmp_path / "runs")
    lost.unlink()
    capsys.readouterr()
    assert sweep.main([*command, f"--runs-dir={tmp_path / 'elsewhere'}"]) == 0
    assert "4 runs: 3 done, 1 resumable" in capsys.readouterr().out
    moved = tmp_path / "elsewhere" / "pair" / "results.csv"
    assert moved.read_bytes() == csv
    assert not (tmp_path / "runs").exists()
    moved.unlink()
    assert report.main([str(moved.parent), "--no-figures"]) == 0
    assert moved.read_bytes() == csv


def test_second_driver_is_told_and_changes_nothing(command, tmp_path, capsys):
    directory = tmp_path / "runs" / "pair"
    directory.mkdir(parents=True)
    pid = os.fork()
    read = tmp_path / "held"
    if pid == 0:
        try:
            with Lease(directory):
                read.write_text("")
                signal.pause()
        finally:
            os._exit(0)
    while not read.exists():
        pass
    try:
        assert sweep.main(command) == 75
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert f"in use by process {pid}" in capsys.readouterr().err
    assert [path.name for path in directory.iterdir()] == [".lease"]


def test_dry_run_writes_nothing(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("runners.sweeping.dry_run.MEASURE_SECONDS", 0.01)
    monkeypatch.setattr("runners.sweeping.dry_run.MEASURE_LIMIT", 1)
    assert sweep.main([*command, "--dry-run", "evaluate.repeats=[2, 3]"]) == 0
    output, notices = capsys.readouterr()
    assert notices.startswith("evaluate.repeats has no effect on transformer, universal: a stack ")
    assert notices.count("\n") == 1
    assert "4 runs, 0 of them done" in output
    assert "with 1 at a time" in output
    assert "each of 1 settings" in output
    assert "~" in output
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line.strip()}
    from runners.config.grid import expand, read_sweep
    from runners.training.cost import describe_model
    from runners.training.experiment import build

    for run in expand(read_sweep(command[0], command[1:4])):
        model = describe_model(build(run.config))
        assert f"{model.parameters:,}" in rows[run.variant]
        assert f"{model.macs_per_token:,}" in rows[run.variant]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("train.stepz=3", "train.steps"),
        ("model.d_model=15", "must divide"),
        ("evaluate.splits=[tset]", "did you mean 'test'"),
        ("task.test=nowhere.tsv", "command line: task.test='nowhere.tsv': no such file"),
        ("--only=univresal", "did you mean 'universal'"),
        ("--workers=0", "must be at least 1"),
        ("headline.metric=accuracy", "headline.metric='accuracy': expected one of exact_match"),
        ("train.steps=-1", "at least 1"),
    ],
)
def test_bad_input_ends_with_status_2_and_writes_nothing(
    argument, expected, command, tmp_path, capsys
):
    assert sweep.main([*command, argument]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("seconds", "expected"), [(-1.0, [3]), (60.0, [])])
def test_a_long_sweep_prepares_its_report_once_a_worker_is_out_of_jobs(
    seconds, expected, command, monkeypatch
):
    ended, prepared = [], []

    class TwoAtATime:
        num_workers = 2

        def run(self, jobs, *, stop, on_message):
            for job in jobs:
                on_message(job.directory, Started())
                ended.append(job)
                on_message(job.directory, Ended("failed"))

    monkeypatch.setitem(engines.EXECUTORS, "two", engines.here(lambda *_: TwoAtATime()))
    monkeypatch.setattr(sweep, "LONG_SECONDS", seconds)
    monkeypatch.setattr(Drawer, "prepare", lambda self, **_: prepared.append(len(ended)))
    assert sweep.main([*command, "--executor=two"]) == 1
    assert (len(ended), prepared) == (4, expected)


def test_wrong_arguments_are_one_line(command, capsys):
    with pytest.raises(SystemExit) as caught:
        sweep.main([*command, "--workers=two"])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "invalid int value: 'two'" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("where", ["write_plan", "_report"])
def test_full_disk_of_the_driver_is_one_line(where, command, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sweep, where, full)
    monkeypatch.setattr(sweep, "reconcile", lambda *arguments, **options: Counter())
    assert sweep.main(command) == 1
    message = capsys.readouterr().err
    assert "No space left on device; make room, and the same command continues" in message
    assert message.count("\n") == 1


FULL = "make room, and the same command continues"
READ_ONLY = "it may not be written to: name another place, for runs by --runs-dir"
STALE = "enter it anew by cd or mount it again, and the same command continues"


@pytest.mark.parametrize(
    ("call", "number", "remedy"),
    [
        ("mkdir", errno.EROFS, READ_ONLY),
        ("mkdir", errno.ESTALE, STALE),
        ("replace", errno.EDQUOT, FULL),
        ("fsync", errno.EDQUOT, FULL),
        ("fsync", errno.ESTALE, STALE),
    ],
)
def test_a_file_system_that_refuses_the_driver_is_one_line(
    call, number, remedy, command, capsys, monkeypatch
):
    at_work = getattr(os, call)

    def refuse(target, *arguments, **options):
        # Only where runs are laid out; fsync is told no path, so the plan is left out.
        if call == "fsync" or "seed0" in str(target):
            raise OSError(number, os.strerror(number), None if call == "fsync" else str(target))
        return at_work(target, *arguments, **options)

    monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr(sweep, "write_plan", lambda *arguments: None)
    assert sweep.main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "/runs/pair: " in line
    assert os.strerror(number) in line
    assert remedy in line


@pytest.mark.parametrize(
    ("counts", "number", "status"),
    [
        ({"done": 3}, None, 0),
        ({"done": 3, "failed": 1}, None, 1),
        ({"done": 3, "refused": 1}, None, 1),
        ({"done": 3, "busy": 1}, None, 75),
        ({"done": 3, "stopped": 1}, None, 75),
        ({"stopped": 3, "failed": 1}, 2, 130),
        ({"stopped": 3}, 15, 75),
    ],
)
def test_exit_status(counts, number, status):
    stop = signals.Stop()
    if number is not None:
        stop._handle(number, None)
    assert sweep.sweep_status(Counter(counts), stop) == status


def test_workers_are_no_part_of_a_run(command, tmp_path):
    """The number of workers decides neither threads nor identity."""
    from runners.config.grid import expand, read_sweep

    planned = expand(read_sweep(command[0]), root=Path("runs"))
    assert {run.config.train.num_threads for run in planned} == {1}
    assert "workers" not in json.dumps(planned[0].config.to_dict()["train"])


def test_a_plan_shows_the_values_of_the_grid_as_they_are(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("runners.sweeping.dry_run.MEASURE_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[").mkdir()
    names = ["[a-m].tsv", "[/x].tsv", ":cat:.tsv"]
    lines = (tmp_path / "train.tsv").read_text().splitlines(keepends=True)
    for count, name in enumerate(names, start=20):
        (tmp_path / name).write_text("".join(lines[:count]))
    file = tmp_path / "pair.yaml"
    values = ", ".join(f"'{name}'" for name in names)
    file.write_text(f"{file.read_text()}parameters:\n  task.train: {{values: [{values}]}}\n")
    assert sweep.main([*command, "--dry-run", "--only=universal"]) == 0
    shown = capsys.readouterr().out
    for name in names:
        assert f"universal task.train={name} " in shown


def test_dry_run_times_large_models_by_fewer_rows_or_not_at_all(command, capsys, monkeypatch):
    monkeypatch.setattr("runners.sweeping.dry_run.MEASURE_SECONDS", 0.01)
    timed = []

    def seconds_per_step(config, built, *, seconds):
        timed.append(config.train.batch_size)
        return float(config.train.batch_size)

    monkeypatch.setattr("runners.sweeping.dry_run.seconds_per_step", seconds_per_step)
    assert sweep.main([*command, "--dry-run"]) == 0
    full = set(timed)
    whole = capsys.readouterr().out
    assert "too large" not in whole
    monkeypatch.setattr("runners.sweeping.dry_run.MEASURE_FLOPS", 1.0)
    timed.clear()
    assert sweep.main([*command, "--dry-run"]) == 0
    assert not timed
    assert "2 settings are too large to be timed on this CPU" in capsys.readouterr().out
    for flops in (1e4, 1e5, 1e6, 1e7):
        monkeypatch.setattr("runners.sweeping.dry_run.MEASURE_FLOPS", flops)
        assert sweep.main([*command, "--dry-run"]) == 0
        capsys.readouterr()
    assert any(0 < rows < min(full) for rows in timed)
