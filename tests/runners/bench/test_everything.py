import json

import pytest

from runners.bench import __main__ as command
from runners.bench import everything
from runners.bench.layers import GPU_SIZES, QUICK_SIZES


def test_all_measures_every_size_of_both(tmp_path):
    parser_options = type("Options", (), {"peer": ["a=b"], "tune": True, "quick": False})
    arguments = [one for _name, one in everything.jobs(parser_options)]
    sizes = [one[one.index("--sizes") + 1 :] for one in arguments if one[0] == "experts"]
    assert sorted(size for group in sizes for size in group) == sorted(GPU_SIZES)
    assert ["small-runs", "--sizes", "steps", "together"] in arguments
    models = {(one[one.index("--sizes") + 1], *one[-1:]) for one in arguments if one[0] == "model"}
    assert models == {
        ("small", "small"),
        *((label, mode) for label in ("44m", "244m", "1b") for mode in ("eager", "compiled")),
    }
    assert all(("--tune" in one) == (one[0] != "small-runs") for one in arguments)
    assert all(("--peer" in one) == (one[0] == "experts") for one in arguments)


def test_a_quick_run_leaves_the_files_of_a_report_and_is_not_run_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEUT_NATIVE", "0")  # attention by PyTorch, as on a GPU
    assert command.main(["all", "--quick", "--output", str(tmp_path)]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {
        *("experts-tiny.json", "model-tiny.json", "small-runs-tiny.json", "report.md"),
    }
    report = (tmp_path / "report.md").read_text()
    machine = json.loads((tmp_path / "model-tiny.json").read_text())["machine"]
    for text in (machine["torch"], machine["cpu"], "python -m runners.bench experts --quick"):
        assert text in report
    lines = [[cell.strip() for cell in line.split("|")] for line in report.splitlines()]
    for size in QUICK_SIZES:
        assert any(cells[1:3] == [size, "ours"] for cells in lines)
    assert any(cells[1:5] == ["tiny", "moeut", "eager", "flash"] for cells in lines)
    assert any(cells[1:4] == ["steps", "ndr", "plain"] for cells in lines)
    monkeypatch.setattr(everything.subprocess, "run", lambda *_, **__: pytest.fail("run again"))
    assert command.main(["all", "--quick", "--output", str(tmp_path)]) == 0


def process(monkeypatch, *statuses):
    """Replace the benchmarks by ones that end with these statuses, one size further each."""
    calls = []

    def run(arguments, *, check, timeout, env):
        file = arguments[arguments.index("--json") + 1]
        calls.append(arguments)
        status = statuses[len(calls) - 1]
        done = list(QUICK_SIZES) if status == 0 else [f"size {len(calls)}"]
        with open(file, "w") as opened:
            done = done if status != 1 else []
            trying = "mlp-tiny, old" if status < 0 else None
            result = {"benchmark": "none", "done": done, "trying": trying, "failures": {}}
            json.dump(result, opened)
        return type("Ended", (), {"returncode": status})

    monkeypatch.setattr(everything.subprocess, "run", run)
    return calls


ARGUMENTS = ["experts", "--sizes", *QUICK_SIZES]


def test_a_failed_device_is_tried_again_behind_what_it_failed_in(tmp_path, monkeypatch):
    calls = process(monkeypatch, 3, -11, 0)
    assert everything._finish(tmp_path / "a.json", ARGUMENTS, None)
    assert len(calls) == 3
    assert all("--resume" in arguments for arguments in calls)


def test_what_killed_a_process_is_named_and_not_tried_again(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    process(monkeypatch, -11, 1)
    kept = []
    monkeypatch.setattr(everything, "write_result", lambda path, result: kept.append(dict(result)))
    assert not everything._finish(file, ARGUMENTS, None)
    assert kept[0]["failures"] == {"mlp-tiny, old": "the process ended by signal 11 in it"}
    assert kept[0]["trying"] is None


@pytest.mark.parametrize("statuses", [(2,), (1, 1), (-15,)])
def test_other_failures_are_not_tried_again(tmp_path, monkeypatch, statuses):
    calls = process(monkeypatch, *statuses)
    assert not everything._finish(tmp_path / "a.json", ARGUMENTS, None)
    assert len(calls) == 1


def test_without_time_the_rest_is_left_for_later(tmp_path, monkeypatch, capsys):
    process(monkeypatch)
    options = ["all", "--quick", "--output", str(tmp_path), "--seconds", "1e-9"]
    assert command.main(options) == 75
    assert "left for the same command to go on with: experts-tiny, model" in capsys.readouterr().out
