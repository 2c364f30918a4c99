import json

import pytest
import torch

from moeut.sizing import count_parameters
from runners.bench import __main__ as command
from runners.bench.model import SIZES, Trainee


@pytest.mark.parametrize("name", SIZES)
def test_models_have_as_many_parameters(name):
    counts = [count_parameters(config) for config in SIZES[name].configs().values()]
    assert abs(counts[0] - counts[1]) < 0.01 * counts[0]


def test_a_step_trains():
    size = SIZES["tiny"]
    trainee = Trainee(size.configs()["moeut"], size, torch.device("cpu"))
    losses = [float(trainee.step(trainee.model)) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_run_prints_and_writes(tmp_path, capsys):
    file = tmp_path / "result.json"
    assert command.main(["model", "--repeats", "1", "--json", str(file)]) == 0
    assert "tokens/s" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert [row["model"] for row in result["rows"]] == ["moeut", "transformer"]
    for row in result["rows"]:
        expected = 1e3 * row["tokens"] / row["step_ms"]
        assert row["tokens_per_second"] == pytest.approx(expected, rel=1e-2)
        assert 0 < row["utilisation"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "tinny"], "did you mean 'tiny'"),
        (["--modes", "graph", "--device", "cpu"], "CUDA graphs need a CUDA device"),
        (["--batch", "0"], "--batch 0: expected at least 1"),
    ],
)
def test_bad_option_ends_with_status_2(options, message, capsys):
    assert command.main(["model", *options]) == 2
    assert message in capsys.readouterr().err
