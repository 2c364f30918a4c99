"""A run that was interrupted is bitwise the run that was not, and a bad one stops with a reason."""

import errno
import json
import os

import pytest
import torch

from runners.process.checkpoint import list_checkpoints, load_checkpoint
from runners.process.messages import Notice
from runners.process.run_directory import RunDirectory
from runners.scoring.finished_run import load_finished_run, score_finished_run
from runners.training import snapshots
from runners.training.loop import Loop, Position
from tasks.base.owner import Owner

FORMS = {
    "encoder_decoder": ("encoder_decoder", "moeut"),
    "decoder_lm": ("decoder_lm", "universal"),
    "classifier": ("encoder_classifier", "transformer"),
}
RESULTS = ("metrics.jsonl", "predictions.jsonl", "result.json")


def fingerprint(directory):
    """Return everything that must not depend on interruptions."""
    last = list_checkpoints(directory / "checkpoints")[-1]
    found = {name: (directory / name).read_bytes() for name in RESULTS}
    found["weights"] = (last / "model.safetensors").read_bytes()
    loop = load_checkpoint(last).state["loop"]
    found["position"] = json.dumps(loop["position"]).encode()
    found["random"] = loop["random"]["torch"].numpy().tobytes()
    found["optimizer"] = b"".join(
        value.numpy().tobytes()
        for optimizer in kept_by(loop["optimizer"])
        for _, state in sorted(optimizer["state"].items())
        for value in state.values()
    )
    if (last / "ema.safetensors").exists():
        found["ema"] = (last / "ema.safetensors").read_bytes()
    return found


def kept_by(optimizer):
    """Return the states of the optimisers that step as one."""
    return [optimizer] if "state" in optimizer else list(optimizer.values())


def differences(one, other):
    return [name for name in one if one[name] != other[name]]


def test_the_largest_seed_trains(make_run, train):
    directory = make_run("run", f"seed={2**64 - 1}", "train.steps=4", "evaluate.interval=null")
    assert train(directory, stop_at=2) == "stopped"
    assert train(directory) == "done"


@pytest.mark.parametrize("kind", FORMS)
def test_stopped_and_resumed_run_is_bitwise_the_same(kind, make_run, train):
    form, architecture = FORMS[kind]
    whole = make_run("whole", form=form, architecture=architecture)
    assert train(whole) == "done"
    parts = make_run("parts", form=form, architecture=architecture)
    # 30 rows in batches of 8: steps 3 and 7 are in the middle of an epoch.
    for step in (0, 3, 7):
        assert train(parts, stop_at=step) == "stopped"
    assert train(parts) == "done"
    assert differences(fingerprint(whole), fingerprint(parts)) == []
    assert json.loads((parts / "timings.json").read_text())["starts"] == 4


RECURRENT = {
    "random depth": (
        "model.state={start: noise, injection: linear}",
        "train.repeats={kind: poisson_lognormal, mean: 2}",
        "train.backprop_repeats=2",
    ),
    "halting": ("model.halting=act", "model.depth={prelude: 1, coda: 1}"),
    "a bias that balances depths": (
        "model.halting={kind: token_choice, balancing: bias}",
        "model.own={norms: true, routers: true}",
        "model.shared_keys=first",
    ),
    "depths of sequences": (
        "model.state={start: {kind: noise, shape: unit}, injection: diagonal}",
        "model.conditioning=film",
        "train.repeats={kind: poisson, mean: 2, longest: 3, per: sequence, grow_steps: 6}",
        "train.backprop_repeats=1",
        "train.static_depth=true",
    ),
    "rates of shared layers": (
        "model.own={norms: true}",
        "train.shared_rate=root",
        "train.schedule=stable",
        "train.decay_steps=4",
    ),
    "muon and an average": (
        "train.optimizer=muon",
        "train.weight_decay=0.1",
        "train.shared_rate=root",
        "train.ema=0.8",
    ),
}


@pytest.mark.parametrize("options", RECURRENT)
@pytest.mark.parametrize("form", ["encoder_decoder", "decoder_lm", "encoder_classifier"])
def test_recurrence_is_resumed_bitwise(form, options, make_run, train):
    overrides = ("model.depth.repeats=2", *RECURRENT[options])
    runs = [make_run(n, *overrides, form=form, architecture="moeut") for n in ("whole", "parts")]
    assert train(runs[0]) == "done"
    for step in (2, 7):
        assert train(runs[1], stop_at=step) == "stopped"
    assert train(runs[1]) == "done"
    assert differences(*map(fingerprint, runs)) == []


@pytest.mark.parametrize("architecture", ["trm", "hrm"])
def test_a_carried_state_is_resumed_bitwise(architecture, make_run, train):
    """With the rows that go on, and how far each of them is."""
    overrides = (
        "model.depth.repeats=2",
        "model.recursion.low_cycles=1",
        "model.carry.steps=4",
        "train.objective={kind: deep_supervision, exploration: 0.5}",
        "train.learning_rate=0.01",
    )
    options = {"form": "encoder_classifier", "architecture": architecture}
    runs = [make_run(name, *overrides, **options) for name in ("whole", "parts")]
    assert train(runs[0]) == "done"
    for step in (2, 7):
        assert train(runs[1], stop_at=step) == "stopped"
    assert train(runs[1]) == "done"
    assert differences(*map(fingerprint, runs)) == []


def test_stop_after_every_single_step(make_run, train):
    whole, parts = make_run("whole"), make_run("parts")
    assert train(whole) == "done"
    for step in range(1, 13):
        assert train(parts, stop_at=step) == "stopped"
        assert load_checkpoint(list_checkpoints(parts / "checkpoints")[-1]).step == step
    assert train(parts) == "done"
    assert differences(fingerprint(whole), fingerprint(parts)) == []


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved."""


def test_killed_run_cuts_the_rows_past_its_checkpoint(make_run, train, monkeypatch):
    whole, parts = make_run("whole"), make_run("parts")
    assert train(whole) == "done"
    for killed_at in (4, 9):
        with monkeypatch.context() as patch:
            advance = Loop.advance

            def advance_or_die(loop, advance=advance, killed_at=killed_at):
                if loop.position.step == killed_at:
                    raise Killed
                return advance(loop)

            patch.setattr(Loop, "advance", advance_or_die)
            with pytest.raises(Killed):
                train(parts)
    rows = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) > 5  # past the checkpoint of step 5
    assert train(parts) == "done"
    assert differences(fingerprint(whole), fingerprint(parts)) == []


def drop_optimizer(state):
    state["loop"]["optimizer"]["state"] = {}


def drop_step(state):
    state["loop"]["position"]["step"] = 0


def drop_random(state):
    state["loop"]["random"]["torch"] = torch.Generator().manual_seed(1).get_state()


def drop_log_sums(state):
    state["loop"]["position"] |= {"steps_since_row": 0, "loss_sum": 0.0, "auxiliary_sum": 0.0}


def drop_tokens(state):
    state["loop"]["position"]["tokens_seen"] = 0


def drop_metrics_size(state):
    state["metrics_bytes"] = 0


@pytest.mark.parametrize(
    "drop",
    [drop_optimizer, drop_step, drop_random, drop_log_sums, drop_tokens, drop_metrics_size, None],
)
def test_every_part_of_the_state_is_needed(drop, make_run, train, monkeypatch):
    whole, parts = make_run("whole"), make_run("parts")
    train(whole)
    train(parts, stop_at=7)
    load = snapshots.load_latest

    def load_without(folder, **options):
        checkpoint = load(folder, **options)
        if drop is None:
            monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        else:
            drop(checkpoint.state)
        return checkpoint

    monkeypatch.setattr(snapshots, "load_latest", load_without)
    assert train(parts) == "done"
    assert differences(fingerprint(whole), fingerprint(parts)) != []


def test_run_that_lost_its_lease_writes_nothing_more(make_run, train, monkeypatch):
    directory = make_run()
    monkeypatch.setattr("tasks.base.lease.CHECK_SECONDS", 0.0)
    save, advance = snapshots.Snapshots.save, Loop.advance

    def save_and_wait(self, *arguments, **options):  # so that no checkpoint is half written below
        save(self, *arguments, **options)
        self.wait()

    def advance_after_a_pause(loop):
        if loop.position.step == 7:  # in which another process took over
            owner = Owner.here().to_dict() | {"host": "elsewhere"}
            (directory / ".lease" / "2").write_text(json.dumps(owner))
            before.update({path: path.read_bytes() for path in files(directory)})
        return advance(loop)

    def files(directory):
        return [path for path in directory.rglob("*") if path.is_file()]

    before = {}
    monkeypatch.setattr(snapshots.Snapshots, "save", save_and_wait)
    monkeypatch.setattr(Loop, "advance", advance_after_a_pause)
    assert train(directory) == "stopped"
    assert {path: path.read_bytes() for path in files(directory)} == before
    assert [path.name for path in list_checkpoints(directory / "checkpoints")] == ["step_000005"]


def test_error_of_a_run_that_lost_its_lease_is_not_the_run_s(make_run, train, monkeypatch):
    directory = make_run()

    def fail(loop):
        (directory / ".lease" / "2").write_text("")
        raise OSError("a file that the other process has removed")

    monkeypatch.setattr(Loop, "advance", fail)
    assert train(directory) == "stopped"
    assert not (directory / "error.json").exists()


def test_best_weights_survive_an_interruption(make_run, train):
    options = ("select=best:dev", "train.learning_rate=0.05")
    whole, parts = make_run("whole", *options), make_run("parts", *options)
    train(whole)
    for step in (5, 9, 12):
        train(parts, stop_at=step)
    assert train(parts) == "done"
    assert differences(fingerprint(whole), fingerprint(parts)) == []
    result = json.loads((whole / "result.json").read_text())
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["metrics"]["exact_match"] for row in rows if "split" in row}
    best = max(scores.values())
    assert result["step"] == max(step for step, score in scores.items() if score == best)
    dev = next(entry for entry in result["scores"] if entry["split"] == "dev")
    assert dev["metrics"]["exact_match"] == best


@pytest.mark.parametrize("select", ["final", "best:dev"])
def test_the_average_is_scored_and_training_is_as_without_it(select, make_run, train):
    options = ("evaluate.interval=12", f"select={select}", "train.learning_rate=0.05")
    plain, averaged = make_run("plain", *options), make_run("averaged", *options, "train.ema=0.7")
    assert train(plain) == train(averaged) == "done"
    last, other = (list_checkpoints(each / "checkpoints")[-1] for each in (averaged, plain))
    assert (last / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    results = [json.loads((each / "result.json").read_text()) for each in (averaged, plain)]
    assert results[0]["ema"] == 0.7
    assert "ema" not in results[1]
    assert results[0]["scores"] != results[1]["scores"]
    if select != "final":  # the only evaluation on the way was the last one
        best = (last / "best.safetensors").read_bytes()
        assert best == (last / "ema.safetensors").read_bytes()
    run = load_finished_run(averaged)
    average = load_checkpoint(last).weights("ema")
    assert all(torch.equal(value, average[n]) for n, value in run.model.state_dict().items())
    scores = [score.metrics for score in score_finished_run(run)]
    assert scores == [score["metrics"] for score in results[0]["scores"]]
    rows = [json.loads(line) for line in (averaged / "metrics.jsonl").read_text().splitlines()]
    (on_the_way,) = (row["metrics"] for row in rows if row.get("split") == "dev")
    at_the_end = {score["split"]: score["metrics"] for score in results[0]["scores"]}
    assert on_the_way.items() <= at_the_end["dev"].items()


def test_damaged_checkpoint_is_reported_and_the_one_before_used(make_run, train, caplog):
    whole, parts = make_run("whole"), make_run("parts")
    train(whole)
    train(parts, stop_at=8)
    first, last = list_checkpoints(parts / "checkpoints")
    assert (first.name, last.name) == ("step_000005", "step_000008")
    weights = bytearray((last / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (last / "model.safetensors").write_bytes(weights)
    messages = []
    assert train(parts, on_progress=messages.append) == "done"
    assert f"{last / 'model.safetensors'}: damaged" in caplog.text
    notices = [each.text for each in messages if isinstance(each, Notice)]
    assert [f"{last / 'model.safetensors'}: damaged" in each for each in notices] == [True]
    assert differences(fingerprint(whole), fingerprint(parts)) == []


def test_non_finite_loss_stops_before_the_update(make_run, train, monkeypatch):
    directory = make_run()
    from runners.training import loop as loop_module

    norm = loop_module.gradient_norm
    steps = []

    def poisoned(parameters):
        steps.append(1)
        return norm(parameters) * (float("nan") if len(steps) == 7 else 1.0)

    monkeypatch.setattr(loop_module, "gradient_norm", poisoned)
    assert train(directory) == "failed"
    error = json.loads((directory / "error.json").read_text())
    assert error["status"] == "failed"
    assert error["step"] == 6
    assert error["message"].startswith("step 7: loss ")
    assert "gradient norm nan" in error["message"]
    assert "learning rate 0.00" in error["message"]
    assert "rows of the train split: " in error["message"]
    weights = load_checkpoint(list_checkpoints(directory / "checkpoints")[-1]).weights()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert RunDirectory(directory).status() == "failed"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "bytes needed"),
        (errno.EDQUOT, "bytes needed"),
        (errno.EROFS, "Read-only file system: '"),
        (errno.ESTALE, "Stale file handle: '"),
    ],
)
def test_a_file_system_that_fails_keeps_the_checkpoint(make_run, train, monkeypatch, number, said):
    directory = make_run()
    replace = os.replace

    def refuse(source, goal):
        if "step_000010" in str(goal):
            raise OSError(number, os.strerror(number), str(goal))
        replace(source, goal)

    monkeypatch.setattr(os, "replace", refuse)
    assert train(directory) == "failed"
    message = json.loads((directory / "error.json").read_text())["message"]
    assert said in message
    assert "step_000010" in message
    assert "\n" not in message
    names = [path.name for path in (directory / "checkpoints").iterdir()]
    assert names == ["step_000005"]
    assert load_checkpoint(directory / "checkpoints" / "step_000005").step == 5


def test_result_holds_what_a_report_needs(make_run, train):
    directory = make_run("run", "evaluate.repeats=[1, 3]", architecture="universal")
    assert train(directory) == "done"
    result = json.loads((directory / "result.json").read_text())
    assert result["model"]["num_layers"] == 2
    assert result["model"]["group_size"] == 1
    depths = [(s["split"], s["repeats"], s["is_default_depth"]) for s in result["scores"]]
    assert depths == [
        (split, [number, number], number == 2) for split in ("dev", "test") for number in (2, 1, 3)
    ]
    assert all(entry["rows"] == entry["rows_available"] == 8 for entry in result["scores"])
    assert "eos_oracle_match" in result["scores"][0]["metrics"]
    predictions = (directory / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 16
    assert set(json.loads(predictions[0])) >= {"source", "target", "prediction", "correct"}
    environment = json.loads((directory / "env.json").read_text())
    assert environment["num_threads"] == 1
    assert environment["packages"]["torch"] == torch.__version__


def test_position_is_all_plain_numbers():
    """Otherwise ``torch.load(weights_only=True)`` would refuse the state."""
    assert all(value is None or type(value) in (int, float) for value in vars(Position()).values())


# --- the command ------------------------------------------------------------------------
