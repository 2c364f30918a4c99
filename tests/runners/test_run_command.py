"""What the commands of one run leave, say and end with."""

from runners import run as module
from runners import train as train_command
from runners.process.run_directory import RunDirectory
from tasks.base.lease import Lease

SHORT = ("train.steps=4", "evaluate.interval=null")


def records(directory):
    return {name: (directory / name).read_bytes() for name in ("config.yaml", "run.json")}


def test_command_executes_what_was_laid_out_and_leaves_its_record(make_run, capsys):
    directory = make_run("run", *SHORT)
    before = records(directory)
    assert module.main([str(directory)]) == 0
    output = capsys.readouterr().out
    assert f"{directory}: new" in output
    assert "exact_match" in output
    assert records(directory) == before
    written = (directory / "result.json").stat().st_mtime_ns
    assert module.main([str(directory)]) == 0  # done, and said again
    assert "exact_match" in capsys.readouterr().out
    assert (directory / "result.json").stat().st_mtime_ns == written


def test_train_on_a_directory_of_a_sweep_leaves_its_record(make_run, capsys):
    directory = make_run("run", *SHORT)
    before = records(directory)
    config = str(directory / "config.yaml")
    assert train_command.main([config, f"--run-directory={directory}"]) == 0
    assert records(directory) == before
    (directory / "result.json").unlink()
    # What is no part of the identity may change on the way; the seed may not.
    again = [config, f"--run-directory={directory}", "train.log_interval=1"]
    assert train_command.main(again) == 0
    assert (directory / "run.json").read_bytes() == before["run.json"]
    assert "log_interval: 1" in (directory / "config.yaml").read_text()
    capsys.readouterr()
    assert train_command.main([*again, "seed=3"]) == 2
    assert "-seed: 0; +seed: 3" in capsys.readouterr().err


def test_command_ends_with_75_while_another_process_works_there(make_run, capsys, monkeypatch):
    monkeypatch.setattr("runners.process.ranks.WAIT_SECONDS", 0.1)
    directory = make_run("run", *SHORT)
    with Lease(directory):
        assert module.main([str(directory)]) == 75
    assert f"{directory}: in use by process " in capsys.readouterr().err
    assert not (directory / "env.json").exists()


def test_command_tells_failure_from_bad_input(make_run, tmp_path, capsys):
    assert module.main([str(tmp_path)]) == 2
    assert "config.yaml: no such file; the directory holds no run" in capsys.readouterr().err
    directory = make_run("run", *SHORT)
    RunDirectory(directory).fail("step 2: loss nan", step=1)
    assert module.main([str(directory)]) == 1
    assert "has failed: step 2: loss nan" in capsys.readouterr().out
    assert module.main([str(directory), "--retry-failed"]) == 0
    (directory / "run.json").write_text("{")
    assert module.main([str(directory)]) == 2


def test_directory_that_cannot_be_written_is_one_line(make_run, run_text, tmp_path, capsys):
    directory = make_run("run", *SHORT)
    (directory / ".lease").write_text("a file in the way")
    assert module.main([str(directory)]) == 1
    message = capsys.readouterr().err
    assert f"{directory}: cannot be written: " in message
    assert message.count("\n") == 1
    (tmp_path / "taken").write_text("")
    config = str(directory / "config.yaml")
    assert train_command.main([config, f"--run-directory={tmp_path / 'taken' / 'run'}"]) == 1
    message = capsys.readouterr().err
    assert "cannot be written: " in message
    assert message.count("\n") == 1
