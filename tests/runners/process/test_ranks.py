"""Two ranks do what one does: the same loss, gradients, checkpoints, stops and ends.

Ranks are forked, since importing torch takes longer than everything they do here; what it imports
late is imported before that.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo

import moeut
import runners.training.sharding  # noqa: F401
from runners import train as train_module
from runners.process import ranks as distributed
from runners.process.checkpoint import list_checkpoints, load_checkpoint
from runners.process.ranks import World
from runners.process.run_directory import RunDirectory
from runners.scoring.scorer import Scorer
from runners.training import loop, parallel
from runners.training.experiment import build, train_columns
from runners.training.loop import Loop, seed_everything

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Ranks:
    """A function in forked processes, each with the environment that torchrun gives it."""

    def __init__(self, folder: Path, size: int, function) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pids = []
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                self._work(rank, size, port, function)
            self.pids.append(pid)
        self.statuses = [None] * size

    def _work(self, rank, size, port, function):
        try:
            output = os.open(self.output(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            result = function()
            (self.folder / f"result{rank}").write_bytes(pickle.dumps(result))
            os._exit(result if isinstance(result, int) else 0)
        except BaseException:
            import traceback

            traceback.print_exc()
            raise
        finally:
            os._exit(99)

    def output(self, rank=0):
        return self.folder / f"output{rank}"

    def said(self, rank):
        """Return what a rank has written, but for what PyTorch 2.10's own connections say."""
        lines = self.output(rank).read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("[Gloo] "))

    def text(self):
        outputs = [self.output(rank) for rank in range(len(self.pids))]
        return "\n".join(path.read_text() for path in outputs if path.is_file())

    def poll(self):
        for rank, pid in enumerate(self.pids):
            if self.statuses[rank] is None:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
        return self.statuses

    def end(self, seconds=150.0):
        """Return the exit statuses of all ranks, and kill what is left after some time."""
        deadline = time.monotonic() + seconds
        while None in self.poll() and time.monotonic() < deadline:
            time.sleep(0.02)
        is_late = None in self.statuses
        for rank, pid in enumerate(self.pids):
            if self.statuses[rank] is None:
                os.kill(pid, signal.SIGKILL)
                self.statuses[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert not is_late, f"statuses {self.statuses}\n{self.text()}"
        return self.statuses

    def results(self):
        statuses = self.end()
        assert statuses == [0] * len(self.pids), self.text()
        return [
            pickle.loads((self.folder / f"result{rank}").read_bytes())
            for rank in range(len(self.pids))
        ]


@pytest.fixture
def start(tmp_path, capfd):
    """Return a function that forks ranks, which all call one function."""
    started = []

    def fork(function, size=2):
        with capfd.disabled():
            ranks = Ranks(tmp_path / f"ranks{len(started)}", size, function)
        started.append(ranks)
        return ranks

    yield fork
    for ranks in started:
        with contextlib.suppress(AssertionError):
            ranks.end(seconds=0)


# --- one update ---------------------------------------------------------------------------


@pytest.fixture
def first_updates(make_run):
    """Return a function that does two updates in float64 and returns gradients and rows."""

    def make(form, architecture, *overrides, **changes):
        plain = ("model.dropout=0.0", "evaluate.interval=null", *overrides)
        if architecture in ("moeut", "sigma_moe"):
            plain = (
                "model.feed_forward.expert_dropout=0.0",
                "model.feed_forward.balance_loss=0.5",
                *plain,
            )
        directory = make_run("updates", *plain, form=form, architecture=architecture)
        config = RunDirectory(directory).read_config()
        built = build(config)
        columns = train_columns(built.objective)

        def work():
            world = distributed.join()
            seed_everything(0)
            trained = Loop(
                dataclasses.replace(config.train, **changes),
                objective=built.objective,
                model=moeut.build(built.model_config).double(),
                columns=columns,
                seed=0,
                d_model=built.model_config.d_model,
                device=CPU,
                world=world,
            )
            rows = [trained.advance()]
            gradients = {
                name: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).numpy()
                for name, p in trained.model.named_parameters()
            }
            rows.append(trained.advance())
            weights = {n: w.numpy() for n, w in parallel.full_weights(trained.model).items()}
            return rows, gradients, weights

        return work

    return make


def assert_same(found, expected):
    rows, gradients, weights = found
    for row, other in zip(rows, expected[0], strict=True):
        assert row == pytest.approx(other, rel=1e-6)  # the sums of a row are float32
    assert gradients.keys() == expected[1].keys()
    for name, value in expected[1].items():
        np.testing.assert_allclose(gradients[name], value, err_msg=name, **EXACT)
    for name, value in expected[2].items():
        # Adam divides by the gradient's size: what is nearly 0 moves by more than rounding.
        np.testing.assert_allclose(weights[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


UPDATES = [
    ("encoder_decoder", "moeut", "ddp", {}),
    ("decoder_lm", "moeut", "ddp", {"accumulate": 1}),
    ("encoder_classifier", "moeut", "ddp", {"clip_norm": 0.01}),
    ("decoder_lm", "moeut", "ddp", {"tokens_per_batch": 40}),
    ("decoder_lm", "moeut", "fsdp", {"clip_norm": 0.01}),
    ("decoder_lm", "sigma_moe", "fsdp", {}),
    ("decoder_lm", "sigma_moe", "fsdp", {"activation_checkpointing": True}),
    ("encoder_decoder", "moeut", "fsdp", {"accumulate": 1}),
]


@pytest.mark.parametrize(("form", "architecture", "kind", "changes"), UPDATES)
def test_two_ranks_give_the_gradients_of_one(
    form, architecture, kind, changes, first_updates, start
):
    work = first_updates(form, architecture, parallel=kind, **changes)
    expected = work()
    for found in start(work).results():
        assert_same(found, expected)


RECURRENT = {
    "injection": ("model.state={start: zero, injection: linear}", "train.backprop_repeats=1"),
    "random depth": (
        "model.state.injection=add",
        "train.repeats={kind: uniform, low: 1, high: 4}",
        "train.backprop_repeats=2",
    ),
    "halting": ("model.halting={kind: act, loss_weight: 0.5}", "model.depth.prelude=1"),
}


@pytest.mark.parametrize("options", RECURRENT)
@pytest.mark.parametrize(("form", "kind"), [("encoder_decoder", "ddp"), ("decoder_lm", "fsdp")])
def test_two_ranks_recur_as_one(form, kind, options, first_updates, start):
    overrides = ("model.depth.repeats=3", *RECURRENT[options])
    work = first_updates(form, "moeut", *overrides, parallel=kind)
    expected = work()
    for found in start(work).results():
        assert_same(found, expected)


def test_mean_of_the_ranks_means_would_be_seen(first_updates, start, monkeypatch):
    work = first_updates("decoder_lm", "moeut")
    expected = work()
    sum_counts = World.sum_counts

    def naive(world, *counts):
        return [world.size * counts[0], *sum_counts(world, *counts[1:])]

    monkeypatch.setattr(World, "sum_counts", naive)
    found = start(work).results()[0]
    with pytest.raises(AssertionError):
        assert_same(found, expected)


def test_unsent_gradients_would_be_seen(first_updates, start, monkeypatch):
    work = first_updates("decoder_lm", "moeut")
    expected = work()
    monkeypatch.setattr(parallel, "gradients_sent", lambda call, is_last: call.no_sync())
    with pytest.raises(AssertionError):
        assert_same(start(work).results()[0], expected)


def test_pieces_of_a_batch():
    rows = np.arange(12)
    worlds = [World(rank=rank, size=2) for rank in range(2)]
    pieces = [[piece.tolist() for piece in world.pieces(rows, 3)] for world in worlds]
    assert pieces == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]]
    assert [[len(p) for p in world.pieces(rows[:3], 4)] for world in worlds] == [[1, 1], [1, 0]]
    alone = World().pieces(rows[:3], 8)
    assert [piece.tolist() for piece in alone] == [[0], [1], [2]]


def test_ranks_begin_alike_and_draw_dropout_of_their_own(first_updates, make_run, start):
    config = RunDirectory(make_run("dropout", form="decoder_lm")).read_config()
    built = build(config)
    columns = train_columns(built.objective)

    def work():
        world = distributed.join()
        seed_everything(config.seed)
        model = moeut.build(built.model_config)
        before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        Loop(
            config.train,
            objective=built.objective,
            model=model,
            columns=columns,
            seed=config.seed,
            d_model=16,
            device=CPU,
            world=world,
        )
        return before, torch.rand(4).tolist(), np.random.rand()  # noqa: NPY002

    first, second = start(work).results()
    assert all(np.array_equal(value, second[0][name]) for name, value in first[0].items())
    assert first[1] != second[1]
    assert first[2] != second[2]


# --- whole runs ---------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, run_text):
    """Return a function that gives the command line of a small run in a named directory."""
    file = tmp_path / "tiny.yaml"

    def make(name, *overrides, form="decoder_lm", architecture="moeut"):
        file.write_text(run_text(form, architecture))
        arguments = [str(file), *overrides, f"--run-directory={tmp_path / name}"]
        return lambda: train_module.main(arguments)

    return make


def fingerprint(directory):
    """Return everything that must not depend on interruptions."""
    last = list_checkpoints(directory / "checkpoints")[-1]
    found = {
        name: (directory / name).read_bytes()
        for name in ("metrics.jsonl", "predictions.jsonl", "result.json")
    }
    found["weights"] = (last / "model.safetensors").read_bytes()
    state = load_checkpoint(last).state["loop"]
    found["random"] = [each["torch"].numpy().tobytes() for each in state["random_of_ranks"]]
    found["position"] = state["position"]
    return found


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def die_at(step, monkeypatch):
    """Have a rank kill itself, as SIGKILL from outside would, before an update."""
    advance = Loop.advance

    def advance_or_die(loop):
        if loop.position.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(loop)

    monkeypatch.setattr(Loop, "advance", advance_or_die)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_killed_run_goes_on_to_the_same_bits(kind, command, start, tmp_path, monkeypatch):
    options = (f"train.parallel={kind}", "select=best:dev")
    assert start(command("whole", *options)).end() == [0, 0]
    with monkeypatch.context() as patch:
        die_at(8, patch)
        assert start(command("parts", *options)).end() == [-9, -9]
    (checkpoint,) = list_checkpoints(tmp_path / "parts" / "checkpoints")
    assert (checkpoint / "optimizer").is_dir() == (kind == "fsdp")
    assert start(command("parts", *options)).end() == [0, 0]
    assert fingerprint(tmp_path / "parts") == fingerprint(tmp_path / "whole")
    assert [row["step"] for row in rows_of(tmp_path / "whole") if "loss" in row] == [
        2, 4, 6, 8, 10, 12,
    ]  # fmt: skip
    last = list_checkpoints(tmp_path / "whole" / "checkpoints")[-1]
    model = moeut.load(last)
    assert model.config.d_model == 16


@pytest.mark.parametrize(
    ("kind", "other", "sizes"),
    [("ddp", "ddp", (2, 1)), ("fsdp", "fsdp", (2, 1)), ("ddp", "fsdp", (1, 2)),
     ("fsdp", "fsdp", (2, 4))],
)  # fmt: skip
def test_run_goes_on_with_another_number_of_ranks(
    kind, other, sizes, command, start, tmp_path, monkeypatch
):
    plain = ("model.dropout=0.0", "model.feed_forward.expert_dropout=0.0", "train.accumulate=1",
             "evaluate.interval=null", "train.epsilon=0.001")  # fmt: skip
    alone = start(command("whole", *plain), size=1)
    assert alone.end() == [0]
    with monkeypatch.context() as patch:
        die_at(8, patch)
        first = start(command("parts", *plain, f"train.parallel={kind}"), size=sizes[0])
        assert first.end() == [-9] * sizes[0]
    second = start(command("parts", *plain, f"train.parallel={other}"), size=sizes[1])
    assert second.end() == [0] * sizes[1]
    whole, parts = (rows_of(tmp_path / name) for name in ("whole", "parts"))
    assert len(whole) == 6
    for row, expected in zip(parts, whole, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    weights = [
        load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1]).weights()
        for name in ("whole", "parts")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("number", "status", "rank"),
    [(signal.SIGUSR2, 75, 1), (signal.SIGTERM, 75, 0), (signal.SIGINT, 130, 1)],
)
def test_a_signal_to_one_rank_stops_all_at_one_step(number, status, rank, command, start, tmp_path):
    long = ("train.steps=100000", "train.checkpoint_interval=1000000", "evaluate.interval=null")
    ranks = start(command("run", *long))
    deadline = time.monotonic() + 150
    while "step " not in ranks.text():
        assert time.monotonic() < deadline, ranks.text()
        time.sleep(0.02)
    os.kill(ranks.pids[rank], number)
    assert ranks.end() == [status, status]
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert load_checkpoint(checkpoint).step > 0
    assert ranks.text().count("the same command continues") == 1
    assert RunDirectory(tmp_path / "run").status() == "resumable"


def test_rank_that_is_killed_does_not_hang_the_other(command, start, tmp_path, monkeypatch):
    advance = Loop.advance

    def advance_or_die(loop):
        if loop.position.step == 7 and loop.world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return advance(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", advance_or_die)
        ranks = start(command("run"))
        assert ranks.end() == [75, -9]
    assert "lost another rank" in ranks.text()
    assert RunDirectory(tmp_path / "run").status() == "resumable"
    assert start(command("run")).end() == [0, 0]


def test_rank_that_fails_tells_the_others_why(command, start, tmp_path, monkeypatch):
    advance = Loop.advance

    def advance_or_fail(loop):
        if loop.position.step == 7 and loop.world.rank == 1:
            raise OSError("the disk of rank 1 is gone")
        return advance(loop)

    monkeypatch.setattr(Loop, "advance", advance_or_fail)
    ranks = start(command("run"))
    assert ranks.end() == [1, 1]
    assert RunDirectory(tmp_path / "run").failure() == "the disk of rank 1 is gone"


def test_what_is_not_finite_on_one_rank_stops_all(command, start, tmp_path, monkeypatch):
    spread = parallel.spread
    calls = []

    def poisoned(model, config, world, **options):
        call = spread(model, config, world, **options)

        def forward(*arguments, **keywords):
            output = call(*arguments, **keywords)
            calls.append(1)
            factor = float("nan") if world.rank == 1 and len(calls) == 9 else 1.0
            return dataclasses.replace(output, logits=output.logits * factor)

        return forward

    monkeypatch.setattr(loop.parallel, "spread", poisoned)
    ranks = start(command("run", "evaluate.interval=null"))
    assert ranks.end() == [1, 1]
    error = json.loads((tmp_path / "run" / "error.json").read_text())
    assert error["message"].startswith("step 5: loss nan")
    assert error["step"] == 4


def test_stop_while_rank_0_scores(command, start, tmp_path, monkeypatch):
    score = Scorer.score

    def interrupted(scorer, *arguments, **options):
        scorer.agreement.stop.request()
        return score(scorer, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", interrupted)
        assert start(command("run", "evaluate.interval=null")).end() == [75, 75]
    assert start(command("run", "evaluate.interval=null")).end() == [0, 0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("train.batch_size=9", "train.accumulate=1"), "must be divisible by 2, for 2 ranks\n"),
        (("train.batch_size=10",), "must be divisible by 4, for 2 ranks in accumulate=2 parts\n"),
        (("train.stepz=3",), "train.steps"),
        (("train.parallel=dpp",), "did you mean 'ddp'"),
    ],
)
def test_bad_input_is_said_once_and_nothing_written(overrides, expected, command, start, tmp_path):
    ranks = start(command("run", *overrides))
    assert ranks.end() == [2, 2]
    assert expected in ranks.said(0)
    assert ranks.said(0).count("\n") == 1
    assert ranks.said(1) == ""
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_found_done_by_all(command, start, tmp_path):
    assert start(command("run", "train.steps=4", "evaluate.interval=null")).end() == [0, 0]
    again = start(command("run", "train.steps=4", "evaluate.interval=null"))
    assert again.end() == [0, 0]
    assert ": done\n" in again.text()


# --- language models ----------------------------------------------------------------------

TEXT = """\
task: {{name: language, corpus: files, files: [{folder}], tokenizer: bytes, context_length: 24,
       validation_fraction: 0.15, test_fraction: 0.15}}
model: {{architecture: moeut, d_model: 16, depth: {{repeats: 2}},
        attention: {{num_heads: 2, num_experts: 3}},
        feed_forward: {{num_experts: 4, expert_size: 8, top_k: 2}}}}
train: {{steps: 12, batch_size: 8, accumulate: 2, learning_rate: 0.01, schedule: cosine_paper,
        warmup_steps: 3, checkpoint_interval: 5, log_interval: 2, epsilon: 0.001}}
evaluate: {{interval: 4}}
select: best:validation
"""


@pytest.fixture
def text_command(tmp_path, monkeypatch):
    """Return a function that gives the command line of a small language run."""
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "text"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        words = generator.choice(["one", "three", "seven", "eleven"], 25)
        (folder / f"{number}.txt").write_text(f"{number}: " + " ".join(words) + "\n")
    file = tmp_path / "text.yaml"
    file.write_text(TEXT.format(folder=folder))

    def make(name, *overrides):
        arguments = [str(file), *overrides, f"--run-directory={tmp_path / name}"]
        return lambda: train_module.main(arguments)

    return make


def without_speed(directory):
    return [{k: v for k, v in row.items() if k != "speed"} for row in rows_of(directory)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_language_run_on_two_ranks(kind, text_command, start, tmp_path, monkeypatch):
    """Packed by one rank while the other waits, killed, and scored by both."""
    option = f"train.parallel={kind}"
    assert start(text_command("whole", option)).end() == [0, 0]
    whole, parts, alone = (tmp_path / name for name in ("whole", "parts", "alone"))
    if kind == "ddp":
        with monkeypatch.context() as patch:
            die_at(8, patch)
            assert start(text_command("parts", option)).end() == [-9, -9]
        assert start(text_command("parts", option)).end() == [0, 0]
        assert without_speed(parts) == without_speed(whole)
        assert (parts / "result.json").read_bytes() == (whole / "result.json").read_bytes()

    assert start(text_command("alone"), size=1).end() == [0]
    for row, expected in zip(without_speed(whole), without_speed(alone), strict=True):
        assert row.keys() == expected.keys()
        for key in set(row) - {"routing", "metrics", "split"}:
            assert row[key] == pytest.approx(expected[key], rel=1e-4), key
        if "metrics" in row:
            assert row["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    result, expected = (json.loads((d / "result.json").read_text()) for d in (whole, alone))
    assert len(result["scores"]) == 2
    for found, entry in zip(result["scores"], expected["scores"], strict=True):
        assert found["rows"] == entry["rows"]
        assert found["metrics"] == pytest.approx(entry["metrics"], rel=1e-5)

    row = next(row for row in rows_of(whole) if "speed" in row)
    assert row["perplexity"] == pytest.approx(np.exp(row["loss"]))
    assert row["speed"]["tokens_per_second"] > 0
    assert row["speed"]["peak_memory_bytes"] > 0
    assert row["speed"]["model_flops_utilization"] is None
    assert row["routing"]["decoder.0.feed_forward"]["num_experts"] == 4
    assert row["routing"]["decoder.1.attention.value"]["num_experts"] == 6
    assert rows_of(whole)[-2]["tokens_seen"] == 12 * 8 * 24


def test_signal_while_all_ranks_score(text_command, start, tmp_path, monkeypatch):
    score = Scorer.score

    def interrupted(scorer, *arguments, **options):
        if scorer.agreement.world.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        return score(scorer, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", interrupted)
        assert start(text_command("run")).end() == [75, 75]
    assert start(text_command("run")).end() == [0, 0]
