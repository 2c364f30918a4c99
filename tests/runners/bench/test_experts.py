import functools
import json

import pytest
import torch

from runners.bench import __main__ as command
from runners.bench import experts
from runners.bench.layers import QUICK_SIZES, SIZES
from runners.bench.results import record_failure
from runners.bench.timing import DeviceFailedError


def test_quick_run_prints_and_writes(tmp_path, capsys):
    file = tmp_path / "result.json"
    options = ["experts", "--quick", "--repeats", "1", "--no-retain-memory", "--json", str(file)]
    assert command.main(options) == 0
    assert "mlp-tiny" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert {row["size"] for row in result["rows"]} == set(QUICK_SIZES)
    assert {"ours", "dense", "loop", "all experts"} <= {row["candidate"] for row in result["rows"]}
    assert all(row["forward_backward_ms"] > 0 for row in result["rows"])
    assert result["machine"]["torch"] == torch.__version__
    assert result["machine"]["cpu"]
    assert result["command"].startswith("python -m runners.bench experts --quick --repeats 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "mlp-44"], "did you mean 'mlp-44m'"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--quick", "--backend", "tritn"], "did you mean 'triton'"),
        (["--quick", "--peer", "cvmm"], "--peer 'cvmm': expected NAME=PATH"),
    ],
)
def test_bad_option_ends_with_status_2(options, message, capsys):
    assert command.main(["experts", *options]) == 2
    assert message in capsys.readouterr().err


def test_autocast_computes_in_bfloat16_from_float32(tmp_path, capsys):
    file = tmp_path / "result.json"
    options = ["--quick", "--repeats", "1", "--dtype", "autocast", "--sizes", "mlp-tiny"]
    assert command.main(["experts", *options, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert {row["candidate"] for row in result["rows"]} == {"ours", "dense"}


def test_roofline_is_the_same_for_all_and_fractions_are_of_it(tmp_path, capsys):
    file = tmp_path / "result.json"
    options = ["--quick", "--repeats", "1", "--sizes", "mlp-tiny", "--json", str(file)]
    assert command.main(["experts", *options]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert len({row["roofline_forward_backward_ms"] for row in rows}) == 1
    for row in rows:
        fraction = row["roofline_forward_backward_ms"] / row["forward_backward_ms"]
        assert row["roofline_forward_backward_fraction"] == pytest.approx(fraction, rel=0.05)


PEER = """
import torch

def expert_mlp(x, w_up, w_down, index, gate):
    hidden = torch.relu(torch.einsum("td,edf->tef", x, w_up))
    y = torch.einsum("tef,efd->ted", hidden, w_down)
    weight = torch.zeros(x.shape[0], w_up.shape[0]).scatter(1, index, gate)
    return torch.einsum("ted,te->td", y, weight)

def expert_linear(x, weight, index, gate, slots_per_input, slots_per_output):
    raise RuntimeError("takes no heads")
"""


def quick(*options):
    return command.main(["experts", "--quick", "--repeats", "1", *map(str, options)])


def test_dispatch_and_router_are_measured_beside_plain_pytorch(tmp_path):
    file = tmp_path / "result.json"
    assert quick("--sizes", "dispatch-tiny", "router-tiny", "--json", file) == 0
    rows = json.loads(file.read_text())["rows"]
    found = {(row["size"], row["candidate"]): row for row in rows}
    assert set(found) == {
        *(("dispatch-tiny", name) for name in ("ours", "torch.sort")),
        *(("router-tiny", name) for name in ("ours", "plain PyTorch", "logits")),
    }
    row = found["dispatch-tiny", "ours"]  # which has no backward
    assert row["roofline_forward_ms"] == row["roofline_forward_backward_ms"] > 0


def test_one_size_that_fails_does_not_cost_the_others(tmp_path, monkeypatch, capsys):
    file = tmp_path / "result.json"
    original = experts.candidates_for

    def failing(size, *rest, **options):
        if size is SIZES["mlp-tiny"]:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")
        return original(size, *rest, **options)

    monkeypatch.setattr(experts, "candidates_for", failing)
    assert quick("--json", file) == 0
    result = json.loads(file.read_text())
    assert result["failures"]["mlp-tiny"] == "OutOfMemoryError: CUDA out of memory."
    assert {row["size"] for row in result["rows"]} == set(QUICK_SIZES) - {"mlp-tiny"}
    assert "mlp-tiny: left out, OutOfMemoryError" in capsys.readouterr().out


def test_a_stopped_run_keeps_its_sizes_and_goes_on(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    measured = []
    original = experts._SizeRun.measure

    def stopping(run):
        measured.append(run.name)
        if measured == ["mlp-tiny", "value-tiny"]:
            raise KeyboardInterrupt
        return original(run)

    monkeypatch.setattr(experts._SizeRun, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        quick("--json", file)
    before = json.loads(file.read_text())
    assert before["done"] == ["mlp-tiny"]
    before["trying"] = "value-tiny, loop"
    record_failure(before, "the process ended in it")
    file.write_text(json.dumps(before))
    assert quick("--json", file, "--resume") == 0
    after = json.loads(file.read_text())
    assert measured[2:] == ["value-tiny", "output-tiny", "dispatch-tiny", "router-tiny"]
    assert after["rows"][: len(before["rows"])] == before["rows"]
    assert after["failures"] == {"value-tiny, loop": "the process ended in it"}
    candidates = {row["candidate"] for row in after["rows"] if row["size"] == "value-tiny"}
    assert "ours" in candidates
    assert "loop" not in candidates


def test_a_device_that_fails_ends_the_run_and_the_next_goes_on_behind(tmp_path, monkeypatch):
    peer, file = tmp_path / "adapter.py", tmp_path / "result.json"
    peer.write_text(PEER)
    options = ("--sizes", "mlp-tiny", "value-tiny", "--peer", f"bad={peer}", "--json", file)
    original = experts._first_step

    def failing(candidate):
        if isinstance(candidate.forward, functools.partial):  # the peer
            raise DeviceFailedError("AcceleratorError: an illegal memory access was encountered")
        return original(candidate)

    monkeypatch.setattr(experts, "_first_step", failing)
    assert quick(*options) == 3
    before = json.loads(file.read_text())
    assert list(before["failures"]) == ["mlp-tiny, bad"]
    assert before["done"] == []
    assert quick(*options, "--resume") == 3
    assert quick(*options, "--resume") == 0
    after = json.loads(file.read_text())
    assert set(after["failures"]) == {"mlp-tiny, bad", "value-tiny, bad"}
    assert {row["size"] for row in after["rows"]} == {"mlp-tiny", "value-tiny"}


def test_resuming_under_other_conditions_is_refused(tmp_path, capsys):
    file = tmp_path / "result.json"
    assert quick("--sizes", "dispatch-tiny", "--json", file) == 0
    assert quick("--json", file, "--resume", "--dtype", "bfloat16") == 2
    assert "has dtype 'float32': expected 'bfloat16'" in capsys.readouterr().err


def test_a_peer_that_computes_something_else_is_left_out(tmp_path):
    peer, file = tmp_path / "adapter.py", tmp_path / "result.json"
    peer.write_text(PEER.replace("return torch.einsum", "return 1.1 * torch.einsum"))
    assert quick("--sizes", "mlp-tiny", "--peer", f"wrong={peer}", "--json", file) == 0
    result = json.loads(file.read_text())
    assert "wrong" not in {row["candidate"] for row in result["rows"]}
    assert result["failures"]["mlp-tiny, wrong"] == (
        "computes something else: 0.100 of the norm away"
    )


def test_peer_is_measured_where_it_takes_the_size(tmp_path, capsys):
    peer, file = tmp_path / "adapter.py", tmp_path / "result.json"
    peer.write_text(PEER)
    options = ["--quick", "--repeats", "1", "--peer", f"mine={peer}", "--json", str(file)]
    assert command.main(["experts", *options]) == 0
    result = json.loads(file.read_text())
    assert [row["size"] for row in result["rows"] if row["candidate"] == "mine"] == ["mlp-tiny"]
    assert result["failures"]["value-tiny, mine"] == "RuntimeError: takes no heads"
    assert "output-tiny, mine: left out" in capsys.readouterr().out
