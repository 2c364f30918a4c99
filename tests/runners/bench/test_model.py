import contextlib
import json
import types

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from moeut.sizing import count_parameters
from runners.bench import __main__ as command
from runners.bench.model import default_modes
from runners.bench.trainee import SIZES, Trainee


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


def test_parts_of_a_step_add_up_to_the_whole():
    size = SIZES["tiny"]
    config = size.configs()["moeut"]
    gradients = []
    for parts in (1, 2):
        trainee = Trainee(config, size, torch.device("cpu"), parts=parts)
        kept = {}
        trainee.optimizer.step = lambda trainee=trainee, kept=kept: kept.update(
            {name: p.grad.clone() for name, p in trainee.model.named_parameters()}
        )
        trainee.step(trainee.model)
        gradients.append(kept)
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-3, atol=1e-5)


@pytest.fixture
def no_native(monkeypatch):
    """Leave attention to PyTorch, as on a GPU; on some CPUs there is an operation of ours."""
    monkeypatch.setattr("moeut.ops.native.why_not", lambda: "as on a GPU")


@pytest.mark.usefixtures("no_native")
def test_both_models_take_flash_attention():
    size = SIZES["tiny"]
    for config in size.configs().values():
        trainee = Trainee(config, size, torch.device("cpu"))
        assert trainee.attention_kernels() == ["flash"]


@pytest.mark.usefixtures("no_native")
def test_no_model_hands_attention_a_mask(monkeypatch):
    """With a mask of its own, attention on a GPU could not take the flash kernel."""
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, mask, dropout, is_causal):
        seen.append((mask, dropout, is_causal))
        return attention(query, key, value, mask, dropout, is_causal)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    for name in ("tiny", "small"):
        for config in SIZES[name].configs().values():
            trainee = Trainee(config, SIZES[name], torch.device("cpu"))
            trainee.forward(trainee.model, trainee.parts[0][:1, :-1])
    assert set(seen) == {(None, 0.0, True)}


def test_attention_by_products_is_seen_not_to_be_flash():
    trainee = Trainee(SIZES["tiny"].configs()["transformer"], SIZES["tiny"], torch.device("cpu"))
    with sdpa_kernel(SDPBackend.MATH):
        assert trainee.attention_kernels() != ["flash"]


def test_a_mode_that_fails_is_left_out_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    file = tmp_path / "result.json"
    original = Trainee.runner

    def failing(trainee, mode):
        if mode == "compiled":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return original(trainee, mode)

    monkeypatch.setattr(Trainee, "runner", failing)
    options = ["--repeats", "1", "--modes", "compiled", "eager", "--json", str(file)]
    assert command.main(["model", *options]) == 0
    result = json.loads(file.read_text())
    assert {row["mode"] for row in result["rows"]} == {"eager"}
    assert "tiny, moeut, compiled: left out, RuntimeError: CUDA error" in capsys.readouterr().out


def test_a_graph_is_captured_from_a_step_that_has_run_before(monkeypatch):
    """On stand-ins for CUDA's: what runs on the side stream, what in the capture, what after."""
    events = []

    class Stream:
        def wait_stream(self, other):
            events.append("wait")

    @contextlib.contextmanager
    def inside(name):
        events.append(f"enter {name}")
        yield
        events.append(f"leave {name}")

    graph = types.SimpleNamespace(replay=lambda: events.append("replay"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: inside("side"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda one: inside("capture"))
    monkeypatch.setattr(Trainee, "step", lambda trainee, call: events.append("step"))
    trainee = Trainee(SIZES["tiny"].configs()["moeut"], SIZES["tiny"], torch.device("cpu"))
    run = trainee.runner("graph")
    assert events == [
        *("wait", "enter side", "step", "step", "step", "leave side", "wait"),
        *("enter capture", "step", "leave capture"),
    ]
    run()
    assert events[-1] == "replay"


def test_small_models_are_measured_against_graphs_of_their_steps():
    gpu = torch.device("cuda")
    assert default_modes("small", gpu) == ["eager", "compiled", "graph", "compiled-graph"]
    assert default_modes("1b", gpu) == ["eager", "compiled"]


def test_a_step_that_does_not_fit_is_taken_in_parts_by_both_models(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    original = Trainee.forward

    def small(trainee, call, tokens):
        if tokens.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(trainee, call, tokens)

    monkeypatch.setattr(Trainee, "forward", small)
    assert command.main(["model", "--repeats", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert [(row["model"], row["parts"]) for row in result["rows"]] == [
        ("moeut", 2),
        ("transformer", 2),
    ]
    assert result["failures"] == {}


def test_low_precision_weights_and_autocast(tmp_path):
    for weights in ("float32", "bfloat16"):
        trainee = Trainee(
            *(SIZES["tiny"].configs()["moeut"], SIZES["tiny"], torch.device("cpu")),
            weights_dtype=getattr(torch, weights),
            compute_dtype=torch.bfloat16,
        )
        logits = trainee.forward(trainee.model, trainee.parts[0][:, :-1]).logits
        assert logits.dtype == torch.bfloat16
        assert {p.dtype for p in trainee.model.parameters()} == {getattr(torch, weights)}
        assert torch.isfinite(trainee.step(trainee.model))


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
