"""Language modelling from text files to scores, through the same run as every other task."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

import tasks
from runners import evaluate, sweep
from runners.config.run_file import read_run
from runners.config.schema import ConfigError, EvaluateConfig
from runners.process.checkpoint import list_checkpoints
from runners.process.run_directory import RunDirectory, RunRecord
from runners.scoring.splits import split_scorer
from runners.training import experiment as build_module
from runners.training.cost import describe_model
from runners.training.experiment import build, build_model
from runners.training.lengths import mean_lengths

CPU = torch.device("cpu")
CONTEXT = 24

RUN = f"""\
task: {{name: language, corpus: files, files: [FOLDER], tokenizer: bytes,
       context_length: {CONTEXT}, validation_fraction: 0.15, test_fraction: 0.15}}
model: {{architecture: universal, d_model: 24, depth: {{repeats: 2}}, attention: {{num_heads: 2}},
        feed_forward: {{hidden_size: 48}}}}
train: {{steps: 60, batch_size: 16, learning_rate: 0.02, schedule: cosine, warmup_steps: 5,
        checkpoint_interval: 25, log_interval: 10}}
evaluate: {{interval: 20}}
select: best:validation
"""


@pytest.fixture
def text_run(tmp_path, monkeypatch):
    """Return a function that writes a corpus of forty short files and a run on it."""
    monkeypatch.setenv("MOEUT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "text"
    folder.mkdir()
    generator = random.Random(0)
    for number in range(40):
        words = generator.choices(["one", "three", "seven", "eleven"], k=25)
        (folder / f"{number}.txt").write_text(f"{number}: " + " ".join(words) + "\n")

    def make(*overrides, name="run"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(RUN.replace("FOLDER", str(folder)))
        return read_run(file, overrides)

    return make


@pytest.fixture
def make_directory(tmp_path, text_run):
    def make(*overrides, name="run"):
        config = text_run(*overrides, name=name)
        built = build(config)
        digest = config.hash(built.task.data_hash())
        directory = tmp_path / name
        record = RunRecord(sweep="s", variant="universal", seed=0, hash=digest)
        RunDirectory(directory).prepare(config, record)
        return directory

    return make


def read_result(directory):
    return json.loads((directory / "result.json").read_text())


def test_a_run_learns_more_than_how_often_each_byte_comes(make_directory, train, capsys):
    directory = make_directory("evaluate.repeats=[1, 3]")
    assert train(directory) == "done"
    result = read_result(directory)
    task = build(RunDirectory(directory).read_config()).task
    stream = [token for row in range(len(task.splits()["test"])) for token in _window(task, row)]
    counts = Counter(stream)
    entropy = -sum(n / len(stream) * math.log(n / len(stream)) for n in counts.values())
    own = {s["split"]: s["metrics"] for s in result["scores"] if s["is_default_depth"]}
    assert list(own) == ["validation", "test"]
    assert own["test"]["loss"] < 0.5 * entropy
    assert own["test"]["perplexity"] == pytest.approx(math.exp(own["test"]["loss"]))
    assert [s["repeats"] for s in result["scores"] if s["split"] == "test"] == [2, 1, 3]

    # What a reader needs beside the numbers.
    assert result["task"]["context_length"] == CONTEXT
    data = result["task"]["data"]
    assert (
        data["train"]["documents"] + data["validation"]["documents"]
        == 40 - data["test"]["documents"]
    )
    assert {part["duplicates"] for part in data.values()} == {0}
    # Bytes as tokens: each document costs its bytes and the boundary before it (or the last one).
    extra = data["test"]["tokens"] - data["test"]["bytes"]
    assert extra in (data["test"]["documents"], data["test"]["documents"] + 1)
    tokenizer = task.load_tokenizer()
    assert result["task"]["tokenizer"]["sha256"] == tokenizer.sha256()
    assert result["task"]["tokenizer"]["vocabulary_size"] == tokenizer.vocabulary_size
    assert [path.name for path in (directory / "tokenizer").iterdir()]
    assert (directory / "predictions.jsonl").read_text() == ""

    # The best by validation is scored, and best is lowest.
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    seen = {row["step"]: row["metrics"]["bits_per_byte"] for row in rows if "split" in row}
    assert list(seen) == [20, 40, 60]
    assert result["step"] == min(seen, key=seen.__getitem__)
    assert own["validation"]["bits_per_byte"] == pytest.approx(min(seen.values()))

    # Scored again from disk.
    before = sorted((str(p), p.stat().st_mtime_ns) for p in directory.rglob("*"))
    arguments = [str(directory), "--split", "test", "--repeats", "1,2,3", "--json"]
    assert evaluate.main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    expected = {s["repeats"]: s["metrics"] for s in result["scores"] if s["split"] == "test"}
    assert {s["repeats"]: s["metrics"] for s in again} == expected
    assert len({metrics["loss"] for metrics in expected.values()}) == 3
    assert evaluate.main([str(directory), "--rows-per-category", "2"]) == 0
    assert "2 of" in capsys.readouterr().out
    assert sorted((str(p), p.stat().st_mtime_ns) for p in directory.rglob("*")) == before


def forget_tasks():
    """Read the data again, as another process would."""
    build_module._task.cache_clear()
    build_module._objective.cache_clear()


def test_a_run_is_not_scored_on_text_that_has_changed(make_directory, train, tmp_path, capsys):
    directory = make_directory("train.steps=6", "select=final", "evaluate.interval=null")
    assert train(directory) == "done"
    file = tmp_path / "text" / "0.txt"
    text = file.read_text()
    file.write_text(text + "more\n")
    forget_tasks()
    assert evaluate.main([str(directory)]) == 2
    message = capsys.readouterr().err
    assert "step_000006: was trained on data that is no longer what the run's config" in message
    assert message.count("\n") == 1
    file.write_text(text)
    forget_tasks()
    assert evaluate.main([str(directory)]) == 0


def _window(task, row):
    return task.splits()["test"].windows(np.array([row]))[0, 1:].tolist()


@pytest.mark.parametrize("stop_at", [20, 37])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(make_directory, train, stop_at):
    short = ("train.steps=40", "train.log_interval=5", "model.dropout=0.1")
    whole, parts = (make_directory(*short, name=name) for name in ("whole", "parts"))
    assert train(whole) == "done"
    assert train(parts, stop_at=stop_at) == "stopped"
    assert train(parts) == "done"
    assert (whole / "result.json").read_bytes() == (parts / "result.json").read_bytes()
    logs = [RunDirectory(directory).metrics.read_text() for directory in (whole, parts)]
    rows = [[json.loads(line) for line in log.splitlines()] for log in logs]
    for row in (*rows[0], *rows[1]):
        row.pop("speed", None)  # the machine's, not the run's
    assert rows[0] == rows[1]
    last = [list_checkpoints(directory / "checkpoints")[-1] for directory in (whole, parts)]
    assert last[0].name == last[1].name
    for weights in ("model.safetensors", "best.safetensors"):
        assert (last[0] / weights).read_bytes() == (last[1] / weights).read_bytes()


def score_test_split(model, built, config):
    scorer = split_scorer(built.objective)
    return scorer(model=model, built=built, config=config, device=CPU).score("test")


def test_score_is_the_mean_cross_entropy_of_all_windows(text_run):
    """Against log-probabilities taken one window at a time, in float64."""
    config = text_run()
    built = build(config)
    torch.manual_seed(0)
    model = build_model(built.model_config, CPU)
    result = score_test_split(model, built, config.evaluate)
    assert model.training
    double = build_model(built.model_config, CPU).double().eval()
    double.load_state_dict(model.state_dict())
    total = count = 0
    split = built.task.splits()["test"]
    with torch.no_grad():
        for row in range(len(split)):
            targets = torch.tensor(_window(built.task, row))
            tokens = torch.tensor(split.windows([row])[0, :-1])
            log = double(tokens[None]).logits[0].log_softmax(-1)
            total -= float(log[torch.arange(CONTEXT), targets].sum())
            count += CONTEXT
    loss = total / count
    assert result.score.metrics["loss"] == pytest.approx(loss, rel=1e-6)
    bits = loss * split.num_tokens / split.num_bytes / math.log(2)
    assert result.score.metrics["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert list(result.score.by_difficulty) == ["1", "2", "4", "8", "16", str(CONTEXT)]
    assert result.note() is None


def test_some_windows_are_said_to_be_some(text_run):
    built = build(text_run())
    model = build_model(built.model_config, CPU)
    limited = EvaluateConfig(rows_per_category={"test": 3})
    result = score_test_split(model, built, limited)
    total = len(built.task.splits()["test"])
    assert result.score.rows == 3
    assert result.note() == f"test: 3 of {total} windows, evenly spread"


def test_documents_kept_apart_change_the_score(text_run):
    scores = []
    for apart in ("true", "false"):
        config = text_run(f"task.attend_across_documents={apart}")
        built = build(config)
        torch.manual_seed(0)
        model = build_model(built.model_config, CPU)
        result = score_test_split(model, built, config.evaluate)
        scores.append(result.score.metrics["loss"])
    assert scores[0] != pytest.approx(scores[1], rel=1e-6)


def test_sizes_are_those_of_the_window_and_the_tokenizer(text_run):
    built = build(text_run())
    assert mean_lengths(built.objective) == (CONTEXT,)
    assert built.model_config.vocabulary_size == 257
    projections, attention, feed_forward = 4 * 24 * 24, 2 * 24 * CONTEXT, 2 * 24 * 48
    expected = 2 * (projections + attention + feed_forward) + 24 * 257
    assert describe_model(built).macs_per_token == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.context_length=2000", r"task\.context_length=2000: .* tokens"),
        ("match.parameters=9000", r"match\.parameters=9000: .*vocabulary_size 257"),
        ("evaluate.splits=[tset]", r"evaluate\.splits='?tset'?: .*did you mean 'test'"),
        ("select=best:test", "a test split must not choose the weights"),
        ("train.tokens_per_batch=20", "below the longest row of train, 24 tokens"),
    ],
)
def test_bad_input_is_one_line_with_its_place(override, message, text_run):
    overrides = [override]
    if "match.parameters" in override:
        overrides.append("model.feed_forward.hidden_size=512")
    with pytest.raises(ConfigError, match=message) as caught:
        build(text_run(*overrides))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("command line")


def test_learned_positions_reach_the_window(text_run):
    learned = ("model.position=learned", f"model.position.max_length={CONTEXT - 1}")
    with pytest.raises(ConfigError, match=rf"max_length={CONTEXT - 1}: must be at least {CONTEXT}"):
        build(text_run(*learned))
    build(text_run(learned[0], f"model.position.max_length={CONTEXT}"))


def test_a_model_of_another_form_is_refused(text_run):
    with pytest.raises(ConfigError, match="expected one of decoder_lm for a language_modelling"):
        text_run("model.form=encoder_decoder")


def test_tokenizer_is_written_once_and_whole(text_run, tmp_path):
    task = build(text_run()).task
    task.save_files(tmp_path / "out")
    (file,) = (tmp_path / "out" / "tokenizer").iterdir()
    before = file.stat().st_mtime_ns
    task.save_files(tmp_path / "out")
    assert file.stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokenizer"]
    tasks.create("table_lookup").save_files(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_plan_of_a_sweep(text_run, tmp_path, capsys):
    """It writes no run; text that lies here is packed, as the help says."""
    text_run()
    text = (tmp_path / "run.yaml").read_text()
    base = "".join(f"  {line}\n" for line in text.splitlines())
    base = base.replace("architecture: universal, ", "").replace("{hidden_size: 48}", "{}")
    file = tmp_path / "lm.yaml"
    file.write_text(
        f"name: lm\nbase:\n{base}variants:\n"
        "  transformer: {model: {architecture: transformer, feed_forward.hidden_size: 48}}\n"
        "  universal: {model: {architecture: universal}, match: {parameters: 16000}}\n"
    )
    assert sweep.main([str(file), "--dry-run", f"--runs-dir={tmp_path / 'runs'}"]) == 0
    plan = capsys.readouterr().out
    assert "transformer" in plan
    assert "MACs/token" in plan
    assert not (tmp_path / "runs").exists()
