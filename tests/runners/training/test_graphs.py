"""Steps that are recorded and replayed equal plain ones to the bit; who cannot have it, and why."""

from __future__ import annotations

import copy
from contextlib import nullcontext as nothing

import pytest
import torch
from recorder import NoHostReads, Recorder
from torch.utils._pytree import tree_flatten

import moeut
from moeut.architectures import ARCHITECTURES, architecture
from moeut.ops import backend, native
from runners.config.schema import ConfigError, TrainConfig
from runners.process import environment
from runners.process.generators import seed_everything
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory
from runners.training import graphs
from runners.training.experiment import build
from runners.training.loop import NonFinite
from tasks.base.options import OptionError

DROPOUT = ("model.dropout=0.2", "evaluate.interval=null")
RANDOM = ("train.repeats={kind: poisson, mean: 2, longest: 2}", "model.state.injection=linear")

CASES = {
    "experts": ("encoder_decoder", "moeut", ("train.clip_norm=0.1",)),
    "parts": ("decoder_lm", "moeut", ("train.accumulate=2", "train.weight_decay=0.1")),
    "depths": ("decoder_lm", "universal", (*RANDOM, "train.backprop_repeats=1")),
    "own": ("encoder_classifier", "universal", (RANDOM[0], "model.own.norms=true")),
    "rates": ("encoder_decoder", "universal", ("train.shared_rate=root", "train.optimizer=adam")),
    "muon": ("encoder_classifier", "universal", ("train.optimizer=muon", "train.ema=0.9")),
    "progressive": (
        *("decoder_lm", "universal"),
        ("model.state.injection=linear", "train.objective={kind: progressive, alpha: 0.5}"),
    ),
    "weights": (
        *("decoder_lm", "universal"),
        (*RANDOM, "train.backprop_repeats=2", "train.objective={kind: last, weights: gradient}"),
    ),
    "gate": (
        *("decoder_lm", "universal"),
        ("model.halting=exit_gate", "train.objective={kind: last, gate_steps: 6}"),
    ),
    "every": ("encoder_classifier", "universal", ("train.objective={kind: every, last: 2}",)),
}


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Compute as on a GPU: by PyTorch alone, and without looking at values."""
    monkeypatch.setattr(native, "why_not", lambda: "as on a GPU")
    monkeypatch.setattr(backend, "can_look", lambda tensor: False)


@pytest.fixture
def make_loop(make_run, loop_of):
    def make(name, **options):
        form, named, overrides = CASES[name]
        directory = make_run(name, *DROPOUT, *overrides, form=form, architecture=named)
        return loop_of(directory, dtype=torch.float32, **options)

    return make


STEPS = 12


def train(loop):
    """Return the rows of some steps, and then every tensor that decides how training goes on."""
    seed_everything(1)  # of dropout
    rows = [loop.advance() for _ in range(STEPS)]
    state = loop.optimizer.state_dict()
    return rows, [p.detach().clone() for p in loop.model.parameters()], state


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("name", CASES)
def test_replayed_steps_are_plain_ones_to_the_bit(name, make_loop):
    recorder = Recorder()
    plain, replayed = make_loop(name), make_loop(name, capture=recorder)
    rows, weights, state = train(plain)
    other_rows, other_weights, other_state = train(replayed)
    assert rows == other_rows
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
    (kept, shape), (other_kept, other_shape) = tree_flatten(state), tree_flatten(other_state)
    assert shape == other_shape
    for one, other in zip(kept, other_kept, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    graphs_of_a_step = 1 if name == "muon" else 2  # gradients, and the update of Adam
    assert recorder.num_recorded == graphs_of_a_step * replayed._replays.num_recorded
    assert recorder.num_replayed >= 4
    if name == "depths":
        assert replayed._replays.num_recorded > 1
    if name == "own":  # a parameter that a step has not used is left alone by its update
        assert len({int(moments["step"]) for moments in state["state"].values()}) > 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_cuda_graphs_are_plain_steps_to_the_bit(name, make_loop):
    device = torch.device("cuda")
    environment.prepare_process(TrainConfig(), device)
    try:
        plain = make_loop(name, device=device)
        replayed = make_loop(name, device=device, capture=graphs.CudaCapture(device))
        rows, weights, _ = train(plain)
        other_rows, other_weights, _ = train(replayed)
        assert rows == other_rows
        assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
        assert replayed._replays.num_recorded
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("like_a_gpu")
def test_what_is_not_finite_is_found_before_the_update(make_loop):
    loop = make_loop("every", capture=Recorder())
    while loop._replays._current is None:  # until a step was replayed
        loop.advance()
    with torch.no_grad():
        next(loop.model.parameters()).fill_(torch.inf)
    before = [p.detach().clone() for p in loop.model.parameters()]
    moments = [m["exp_avg"].clone() for m in loop.optimizer.state_dict()["state"].values()]
    with pytest.raises(NonFinite, match="loss nan"):
        loop.advance()
    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))
    after = [m["exp_avg"] for m in loop.optimizer.state_dict()["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


@pytest.mark.usefixtures("like_a_gpu")
def test_steps_beyond_the_most_recordings_are_plain(make_loop, monkeypatch):
    recorder = Recorder()
    loop = make_loop("depths", capture=recorder)
    loop._replays._most = 1
    rows, _, _ = train(loop)
    assert loop._replays.num_recorded == 1
    assert rows == train(make_loop("depths"))[0]


@pytest.mark.usefixtures("like_a_gpu")
def test_a_loaded_optimiser_is_recorded_anew(make_loop):
    """Its tensors are others than those that a recording would update."""
    loop, other = make_loop("every", capture=Recorder()), make_loop("every", capture=Recorder())
    train(loop)
    state = copy.deepcopy(loop.state_dict())
    train(other)
    other.load_state_dict(state)
    other.model.load_state_dict(loop.model.state_dict())
    assert train(loop)[0] == train(other)[0]


FORMS = {
    "decoder_lm": {},
    "encoder_decoder": {"source_vocabulary_size": 9},
    "encoder_classifier": {"num_classes": 3},
}


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_host_reads_no_tensor_but_of_models_that_are_refused(name):
    """In forward and backward of a padded batch; deep supervision is refused for its loss."""
    told = {"input_position": {"digits": [3, 4], "source_digits": [5]}} if name == "abacus" else {}
    recursive = name in ("trm", "hrm", "urm")
    for form in ("encoder_classifier",) if recursive else FORMS:
        sizes = {"vocabulary_size": 11, "d_model": 16, **FORMS[form]}
        config = architecture(name, form=form, **sizes, **told)
        reason = graphs.refused(TrainConfig(), config)
        model = moeut.build(config).train()
        tokens = torch.randint(1, 9, (2, 6))
        mask = torch.arange(6) < torch.tensor([[6], [4]])
        reads = reason is not None and not recursive
        with pytest.raises(RuntimeError, match="the host reads") if reads else nothing():
            _forward_and_backward(model, form, tokens, mask)


def _forward_and_backward(model, form, tokens, mask):
    with NoHostReads():
        if form == "encoder_decoder":
            output = model(tokens, tokens, source_mask=mask, target_mask=mask)
        elif form == "decoder_lm":
            output = model(tokens, padding_mask=mask)
        else:
            output = model(tokens, source_mask=mask)
        (output.logits.square().sum() + output.auxiliary_loss).backward()


REFUSED = {
    "model.halting.kind=act": ("universal", ("model.halting={kind: act}",)),
    "generator": ("universal", ("train.activation_checkpointing=true",)),
    "depths of their own": (
        "universal",
        ("train.repeats={kind: poisson, mean: 2, per: sequence}",),
    ),
    "device cpu": ("universal", ("train.device=cpu",)),
}


@pytest.mark.parametrize("expected", REFUSED)
def test_what_cannot_be_replayed_is_refused_by_name(expected, make_run):
    named, overrides = REFUSED[expected]

    def prepare():
        options = ("train.cuda_graph=true", *DROPOUT, *overrides)
        build(RunDirectory(make_run("refused", *options, architecture=named)).read_config())

    with pytest.raises(ConfigError, match=f"train.cuda_graph=true: .*{expected}"):
        prepare()


def test_a_cpu_is_refused_and_auto_does_without():
    wanted = TrainConfig(cuda_graph=True)
    with pytest.raises(OptionError, match="no CUDA device on this machine; allowed: auto, false"):
        environment.choose_device(wanted)
    with pytest.raises(OptionError, match="several processes share a batch"):
        environment.choose_device(wanted, local_rank=1)
    config = architecture("moeut", form="decoder_lm", vocabulary_size=11, d_model=16)
    arguments = (moeut.build(config), torch.device("cpu"), World())
    assert graphs.capture_of(TrainConfig(cuda_graph="auto"), *arguments, macs_per_step=1) is None
    with pytest.raises(OptionError, match="CUDA graphs need a CUDA device"):
        graphs.capture_of(wanted, *arguments, macs_per_step=1)
