"""The report as a whole: files, bytes, exit status."""

import os
import subprocess
import sys

import pytest

from runners.report import main
from tasks.base.metrics import METRICS, Metric

STEADY = [0.81, 0.80, 0.82, 0.79, 0.83]


@pytest.fixture
def directory(make_sweep):
    return make_sweep(transformer=STEADY, moeut=[0.9, "loss is nan", None, 0.7, 0.8])


def test_the_command(directory, capsys):
    assert main([str(directory), "--no-figures"]) == 0
    out = capsys.readouterr().out
    assert "| transformer |" in out
    assert "\x1b" not in out
    named = out.splitlines()[-1].removeprefix(f"written to {directory}: ").split(", ")
    written = {path.name for path in directory.iterdir() if path.is_file()}
    assert sorted(named) == sorted(written - {"sweep.json"})
    assert main([str(directory), "--no-figures", "--baseline", "moeut", "--split", "test"]) == 0
    assert "p against moeut" in capsys.readouterr().out
    assert not (directory / "figures").exists()


def test_a_new_metric_is_shown_as_its_entry_says(make_sweep, monkeypatch, capsys):
    entry = Metric(
        kinds=("sequence_to_sequence",),
        compute=lambda answers: 0.0,
        meaning="tokens by which outputs miss the length of their targets",
        lower_is_better=True,
        decimals=1,
    )
    monkeypatch.setitem(METRICS, "length_error", entry)

    def measure(variant, seed, data):
        data["scores"][1]["metrics"]["length_error"] = 2.25

    directory = make_sweep(a=[0.5], result=measure)
    assert main([str(directory), "--no-figures", "--metric", "length_error"]) == 0
    table = capsys.readouterr().out
    assert "gen length_error ↓" in table
    assert "| 2.2 " in table
    assert "length_error: lower is better." in table


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{}x"], "no such directory; did you mean 'demo'?"),
        (["{}", "--baseline", "moeu"], "command line: --baseline='moeu': expected one of"),
        (["{}", "--split", "gne"], "did you mean 'gen'?"),
        (["{}", "--metric", "exact"], "did you mean 'exact_match'?"),
    ],
)
def test_bad_input_is_one_line_and_status_2(directory, capsys, arguments, expected):
    assert main([argument.format(directory) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert not (directory / "results.csv").exists()


def test_missing_matplotlib_does_not_stop_the_tables(directory, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(directory)]) == 0
    assert capsys.readouterr().err.count("pip install") == 1
    assert (directory / "summary.md").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_report_is_printed_in_any_encoding(directory, encoding):
    ended = subprocess.run(
        [sys.executable, "-m", "runners.report", str(directory), "--no-figures"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert "0.810 ± 0.016".encode(encoding, errors="replace") in ended.stdout
    assert "0.810 ± 0.016" in (directory / "summary.md").read_text(encoding="utf-8")


def test_a_narrow_terminal_is_shown_every_number(directory, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    assert main([str(directory), "--no-figures"]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    for number in ("0.810 ± 0.016", "0.800 ± 0.100", "0.810 0.800 0.820 0.790 0.830", "1 min 04 s"):
        assert number in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80


def test_a_report_needs_no_torch():
    code = "import sys, runners.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
