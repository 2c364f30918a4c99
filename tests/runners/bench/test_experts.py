import json

import pytest
import torch

from runners.bench import __main__ as command
from runners.bench.experts import SIZES, candidates_for


@pytest.mark.parametrize("name", ["mlp-tiny", "value-tiny", "output-tiny"])
def test_competitors_compute_the_same(name):
    candidates = candidates_for(SIZES[name], "auto", torch.device("cpu"), torch.float32)
    expected = candidates["ours"].forward()
    for other in ("loop", "all experts"):
        torch.testing.assert_close(candidates[other].forward(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SIZES)
def test_floor_does_as_many_multiplications(name):
    size = SIZES[name]
    candidates = candidates_for(size, "auto", torch.device("cpu"), torch.float32)
    _x, *weights = candidates["dense"].inputs
    assert 2 * size.tokens * sum(weight.numel() for weight in weights) == size.forward_flop


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_floor_by_onednn_equals_the_floor(monkeypatch):
    monkeypatch.setattr("runners.bench.experts.onednn_is_faster", lambda: True)
    candidates = candidates_for(SIZES["mlp-tiny"], "auto", torch.device("cpu"), torch.float32)
    gradients = []
    for name in ("dense", "dense, oneDNN"):
        out = candidates[name].forward()
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        gradients.append([out, *torch.autograd.grad(out, candidates[name].inputs, weight)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_quick_run_prints_and_writes(tmp_path, capsys):
    file = tmp_path / "result.json"
    options = ["experts", "--quick", "--repeats", "1", "--no-retain-memory", "--json", str(file)]
    assert command.main(options) == 0
    assert "mlp-tiny" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert {row["size"] for row in result["rows"]} == {"mlp-tiny", "value-tiny", "output-tiny"}
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
        (["--quick", "--backend", "triton"], "not available in this build"),
    ],
)
def test_bad_option_ends_with_status_2(options, message, capsys):
    assert command.main(["experts", *options]) == 2
    assert message in capsys.readouterr().err
