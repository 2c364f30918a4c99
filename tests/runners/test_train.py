"""The command line of one run."""

import pytest
import torch

from runners import run as run_module
from runners import train as module
from runners.process.run_directory import RunDirectory


@pytest.fixture
def command(tmp_path, run_text):
    file = tmp_path / "tiny.yaml"
    file.write_text(run_text())
    short = ["train.steps=2", "train.warmup_steps=0", "evaluate.interval=null"]
    return [str(file), *short, f"--runs-dir={tmp_path / 'runs'}"]


def test_command_line_trains_and_finds_the_run_done(command, tmp_path, capsys):
    command.append("evaluate.repeats=[2]")
    assert module.main(command) == 0
    printed = capsys.readouterr()
    assert "exact_match" in printed.out
    assert printed.err.count("evaluate.repeats has no effect on this run: a stack shares no") == 1
    (result,) = (tmp_path / "runs" / "tiny").glob("transformer-*/seed0/result.json")
    before = result.stat().st_mtime_ns
    assert module.main(command) == 0
    assert result.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stepz=3", "train.steps"),
        ("train.steps=0", "at least 1"),
        ("evaluate.splits=[tset]", "did you mean 'test'"),
        ("select=best:test", "must not choose"),
        ("select=best:dev", "needs evaluate.interval"),
        ("model.d_model=15", "must divide"),
        ("train.device=cuda", "command line: train.device='cuda': no CUDA device"),
        ("train.tokens_per_batch=9", "longest row"),
    ],
)
def test_bad_input_ends_with_status_2_and_writes_nothing(
    override, expected, command, tmp_path, capsys
):
    if "cuda" in override and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert module.main([*command, override]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_named_directory_of_another_run_is_refused(command, tmp_path, capsys):
    directory = tmp_path / "mine"
    assert module.main([*command, f"--run-directory={directory}"]) == 0
    assert module.main([*command, "seed=0", "train.steps=3", f"--run-directory={directory}"]) == 2
    assert "-steps: 2; +steps: 3" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_run_whose_record_is_lost_goes_on_from_its_weights(
    command, tmp_path, capsys, caplog, content
):
    directory = tmp_path / "mine"
    command = [*command, f"--run-directory={directory}"]
    assert module.main(command) == 0
    before = (directory / "run.json").read_bytes()
    for name in ("result.json", "run.json", "metrics.jsonl"):
        (directory / name).unlink()
    if content is not None:
        (directory / "run.json").write_text(content)
    assert run_module.main([str(directory)]) == 2
    error = capsys.readouterr().err
    assert "run.json: " in error
    assert "The command that planned the run (runners.sweep or runners.train) writes it" in error
    assert module.main([*command, "train.steps=3"]) == 2
    assert "-steps: 2; +steps: 3" in capsys.readouterr().err
    weights = (directory / "checkpoints" / "step_000002" / "model.safetensors").read_bytes()
    assert module.main(command) == 0
    error = capsys.readouterr().err
    assert "run.json: lost or damaged; written anew" in error
    assert "bytes are lost, and with them rows of the learning curve" in caplog.text
    assert (directory / "run.json").read_bytes() == before
    after = (directory / "checkpoints" / "step_000002" / "model.safetensors").read_bytes()
    assert after == weights


def test_failed_run_is_tried_again_only_on_request(command, tmp_path, capsys):
    directory = tmp_path / "mine"
    assert module.main([*command, f"--run-directory={directory}"]) == 0
    (directory / "result.json").unlink()
    RunDirectory(directory).fail("step 2: loss nan", step=1)
    assert module.main([*command, f"--run-directory={directory}"]) == 1
    assert "step 2: loss nan" in capsys.readouterr().out
    assert module.main([*command, f"--run-directory={directory}", "--retry-failed"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("place", ["file", "command line"])
def test_device_that_is_not_there_is_said_with_its_place(place, tmp_path, run_text, capsys):
    file = tmp_path / "gpu.yaml"
    file.write_text(run_text() + ("train.device: cuda\n" if place == "file" else ""))
    overrides = [] if place == "file" else ["train.device=cuda"]
    assert module.main([str(file), *overrides, f"--run-directory={tmp_path / 'run'}"]) == 2
    line = len(file.read_text().splitlines())
    where = f"{file}:{line}" if place == "file" else "command line"
    expected = f"{where}: train.device='cuda': no CUDA device on this machine; allowed: auto, cpu\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "run").exists()
