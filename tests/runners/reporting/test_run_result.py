"""What is written is what is read back, and a damaged file says where."""

import json
import math

import pytest

from runners.reporting.run_result import (
    ModelSummary,
    RunResult,
    Score,
    SplitSummary,
    TaskSummary,
    Timings,
    TokenizerSummary,
)

MODEL = ModelSummary(parameters=10, macs_per_token=9, num_layers=4, group_size=2, d_model=8)
TEXT = TaskSummary(
    name="language",
    kind="language_modelling",
    difficulty_name="position",
    headline_split="test",
    context_length=16,
    tokenizer=TokenizerSummary(name="bytes", vocabulary_size=257, sha256="ab"),
    data={"test": SplitSummary(tokens=9, bytes=8, documents=2, duplicates=0, windows=1)},
)


def score(**changes):
    values = {"split": "test", "repeats": 2, "rows": 3, "rows_available": 4, "metrics": {"loss": 1}}
    return Score(**values | changes)


def result(**changes):
    values = {
        "sweep": "s",
        "variant": "moeut",
        "seed": 0,
        "hash": "01234567",
        "parameters": {"train.steps": [1, 2]},
        "select": "final",
        "step": 5,
        "task": TEXT,
        "model": MODEL,
        "tokens_seen": 100,
        "notes": ["a note"],
        "scores": [score(), score(repeats=[2, 8], by_category={"x": {"loss": 0.5, "rows": 1}})],
    }
    return RunResult(**values | changes)


def test_json_and_back():
    written = json.dumps(result().to_json())
    assert RunResult.from_json(json.loads(written)) == result()
    entry = json.loads(written)["scores"][1]
    assert list(entry)[:5] == ["split", "repeats", "is_default_depth", "rows_available", "metrics"]
    assert entry["chance"] is None


def test_what_only_text_has_is_left_out_of_other_tasks():
    task = TaskSummary(
        name="cogs", kind="sequence_to_sequence", difficulty_name="", headline_split=""
    )
    assert list(result(task=task).to_json()["task"]) == [
        "name",
        "kind",
        "difficulty_name",
        "headline_split",
        "in_distribution_split",
    ]


def change(data, *path, value):
    for key in path[:-1]:
        data = data[key]
    if value is ...:
        del data[path[-1]]
    else:
        data[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("step",), ..., "^step: missing$"),
        (("step",), "5", r"^step='5': expected a number$"),
        (("step",), True, r"^step=True: expected a number$"),
        (("task",), [], r"^task=\[\]: expected an object$"),
        (("scores", 1, "rows"), ..., r"^scores\[1\].rows: missing$"),
        (
            ("scores", 0, "metrics", "loss"),
            None,
            r"scores\[0\].metrics.loss=None: expected a number",
        ),
        (("scores", 0, "repeats"), [1, "x"], r"scores\[0\].repeats\[1\]='x': expected a number"),
        (("task", "data", "test", "bytes"), 0.5, r"task.data.test.bytes=0.5: expected a number"),
    ],
)
def test_damage_is_told_with_its_place(path, value, expected):
    data = result().to_json()
    change(data, *path, value=value)
    with pytest.raises(ValueError, match=expected):
        RunResult.from_json(data)


def test_keys_of_a_later_version_are_passed_over():
    assert RunResult.from_json(result().to_json() | {"new": 1}) == result()


def test_depths():
    assert [score(repeats=repeats).depth for repeats in (4, [4, 4], [2, 8], None)] == [
        4,
        4,
        (2, 8),
        None,
    ]
    assert [score(repeats=repeats).shown_repeats for repeats in (4, [4, 4], None)] == [
        "4",
        "4+4",
        "",
    ]


def test_a_value_that_is_not_a_number_is_none():
    assert score(metrics={"loss": math.nan}).value("loss") is None
    assert score().value("accuracy") is None
    assert score().value("loss") == 1.0


def test_timings_and_speed():
    timings = Timings(train_seconds=4.0, tokens_trained=10, starts=2)
    assert timings.to_json()["tokens_per_second"] == 2.5
    assert Timings.from_json(timings.to_json()) == timings
    assert Timings().tokens_per_second == 0.0
