"""A run's file: types, ranges, open sections, includes; each error is one line with its place."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from runners.config.run_file import build, convert, from_yaml, read_run, to_yaml
from runners.config.schema import ConfigError
from runners.config.yaml_nodes import Node, parse
from tasks.base.options import OptionError

RUN = """\
task: {name: toy, size: 5}
model:
  architecture: transformer
  d_model: 32
train:
  steps: 10
  learning_rate: 3e-4
"""


def message(path, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        read_run(path, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("override", ["task.is_classification=true", "model.form=decoder_lm"])
def test_a_depth_of_the_encoder_is_refused_where_no_decoder_is_beside_it(toy, write, override):
    path = write(RUN)
    same = "model.encoder_depth={group: 4, repeats: 1}"  # as model.depth
    assert read_run(path, [same]).model.form == "encoder_decoder"
    assert read_run(path, [override, "model.encoder_depth=null"])
    assert "model.encoder_depth={'group': 4, 'repeats': 1}: has no effect with form=" in message(
        path, override, same
    )


def test_a_run_is_read_with_its_defaults_filled_in(toy, write):
    config = read_run(write(RUN))
    assert config.train.steps == 10
    assert config.train.learning_rate == 3e-4
    assert config.train.batch_size == 128
    assert config.task == {
        "name": "toy",
        "size": 5,
        "noise": 0.0,
        "style": "plain",
        "is_classification": False,
    }
    assert config.model.architecture == "transformer"
    assert config.model.form == "encoder_decoder"
    assert config.model.blueprint.d_model == 32
    assert config.model.blueprint.attention.to_dict() == {
        "kind": "dense",
        "num_heads": 4,
        "head_size": 8,
        "dropout": 0.0,
        "num_key_heads": 4,
        "qk_norm": "none",
        "bias": "none",
        "gates": "none",
        "value_head_size": 8,
    }


def test_form_follows_the_kind_of_task(toy, write):
    path = write(RUN)
    label = read_run(path, ["task.is_classification=true"])
    assert label.model.form == "encoder_classifier"
    assert read_run(path, ["model.form=decoder_lm"]).model.form == "decoder_lm"
    assert "command line: model.form='decoder_lm': expected one of encoder_classifier" in message(
        path, "task.is_classification=true", "model.form=decoder_lm"
    )


def test_written_and_read_back_equal(toy, write):
    config = read_run(write(RUN), ["train.betas=[0.9, 0.95]", "evaluate.repeats=[2, 4]"])
    assert config.train.betas == (0.9, 0.95)
    again = from_yaml(to_yaml(config))
    assert again == config
    assert to_yaml(again) == to_yaml(config)
    assert read_run(write(to_yaml(config), "again.yaml")) == config


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train.stepz: 3", ":8: train.stepz=3: unknown key; expected one of steps, batch_size"),
        ("trian: {}", ":8: trian={}: unknown key; a run takes task, model, train"),
        ("train.batch_size: x", ":8: train.batch_size='x': expected a whole number"),
        ("train.batch_size: 1.5", ":8: train.batch_size=1.5: expected a whole number"),
        ("train.batch_size: true", ":8: train.batch_size=true: expected a whole number"),
        ("train.batch_size: 012", "'012': expected a whole number; did you mean 12?"),
        ("train.batch_size: 1_000", "'1_000': expected a whole number; did you mean 1000?"),
        ("train.compile: yes", "'yes': expected true or false; did you mean true?"),
        ("train.compile: ture", "'ture': expected true or false; did you mean 'true'?"),
        ("train.optimizer: adm", "expected one of adam, adamw, muon; did you mean 'adam'?"),
        ("train.betas: [0.9]", "expected a list of 2"),
        ("train.betas: 0.9", "expected a list"),
        ("train.betas: [0.9, x]", "train.betas[1]='x': expected a number"),
        ("train.betas: [0.9, 1.0]", "train.betas=[0.9, 1.0]: number 2 must be"),
        ("train.clip_norm: big", "expected a number or null"),
        ("train.clip_norm: 0", ":8: train.clip_norm=0.0: must be above 0"),
        ("train.batch_size: 0", ":8: train.batch_size=0: must be at least 1"),
        ("train.accumulate: 200", "train.accumulate=200: must be at most batch_size=128"),
        ("train.schedule: noam", "warmup_steps=0: schedule noam needs at least 1"),
        ("train.warmup_steps: -1", "train.warmup_steps=-1: must be at least 0"),
        ("train.weight_decay: .inf", "train.weight_decay=inf: must be at least 0 and finite"),
        ("train.label_smoothing: 1", "must be at least 0 and below 1"),
        ("evaluate.repeats: [0]", "evaluate.repeats=[0]: each must be at least 1"),
        ("evaluate.splits: [test, test]", "one is given twice"),
        ("evaluate.splits: test", "evaluate.splits='test': expected a list"),
        ("evaluate: 3", ":8: evaluate=3: expected a mapping"),
        ("select: fin", ":8: select='fin': expected final or best:<split>; did you mean 'final'?"),
        ("select: 'best:'", "expected final or best:<split>"),
        ("seed: -1", ":8: seed=-1: must be at least 0"),
        ("train.weight_decay: 1" + "0" * 400, ": expected a number"),
        ("seed: 18446744073709551616", "must be at least 0 and below 2^64"),
        ("seed: null", ":8: seed=null: expected a whole number"),
        ("train.steps: 7", ":8: train.steps: key given twice; first at"),
        ("variants: {}", "that is a sweep's key: python -m runners.sweep"),
    ],
)
def test_bad_values(toy, write, line, expected):
    path = write(RUN + line + "\n")
    text = message(path)
    assert text.startswith(f"{path}:")
    assert expected in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("name: toy", "name: tyo"), ":1: task.name='tyo': expected one of "),
        (("name: toy", "name: toyy"), "; did you mean 'toy'?"),
        (("size: 5", "sise: 5"), ":1: task.sise=5: unknown key; task toy takes size, noise"),
        (("size: 5", "sise: 5"), "; did you mean 'task.size'?"),
        (("size: 5", "size: 0"), ":1: task.size=0: must be at least 1"),
        (("size: 5", "size: five"), ":1: task.size='five': expected a whole number"),
        (("size: 5", "style: fncy"), "expected one of plain, fancy; did you mean 'fancy'?"),
        (
            ("{name: toy, size: 5}", "toy"),
            "task='toy': expected a mapping; write task: {name: toy}",
        ),
        (("name: toy, ", ""), ":1: task.name: missing; expected one of "),
        (("architecture: transformer", "architecture: transfromer"), "did you mean 'transformer'?"),
        (("architecture: transformer", "norm: pre"), ":2: model.architecture: missing (or preset)"),
        (("d_model: 32", "d_modle: 32"), ":4: model.d_modle=32: unknown key; model takes arch"),
        (("d_model: 32", "d_modle: 32"), "; did you mean 'model.d_model'?"),
        (
            ("architecture: transformer", "architectur: transformer"),
            ":3: model.architectur='transformer': unknown key; model takes architecture, preset, "
            "form, d_model, depth",
        ),
        (("d_model: 32", "match_parameters: 9"), "renamed; write match.parameters, in the run's"),
        (("d_model: 32", "depth: {grop: 2}"), "grop=2: unknown; model.depth takes prelude, group"),
        (("d_model: 32", "d_model: 33"), "must divide d_model=33"),
        (("d_model: 32", "d_model: '32'"), ":4: model.d_model='32': expected a whole number"),
        (("d_model: 32", "d_model: 032"), "'032': expected a whole number; did you mean 32?"),
        (("d_model: 32", "tie_embeddings: yes"), "expected true or false; did you mean true?"),
        (
            ("d_model: 32", "feed_forward:\n    kind: dense\n    num_experts: 8"),
            ":6: model.feed_forward.num_experts=8: unknown; kind 'dense' takes hidden_size",
        ),
        (
            ("transformer", "moeut\n  feed_forward:\n    top_k: 9\n    num_experts: 8"),
            ":5: model.feed_forward.top_k=9: must be at most num_experts=8",
        ),
        (("d_model: 32", "attention: swich_head"), "; did you mean 'switch_head'?"),
        (("d_model: 32", "attention: {kind: 3}"), ":4: model.attention.kind=3: expected one of"),
        (("d_model: 32", "attention: {kind: [3]}"), ":4: model.attention.kind=[3]: expected one"),
        (("transformer", "moeut\n  depth.repeats: 0"), ":4: model.depth.repeats=0: must be"),
        (("transformer", "moeut\n  depth: 3"), ":4: model.depth=3: expected a mapping"),
        (("d_model: 32", "dropout: 1.5"), ":4: model.dropout=1.5: must be at least 0 and below 1"),
        (("steps: 10", "steps: 0"), ":6: train.steps=0: must be at least 1"),
        (("steps: 10", "steps: -5"), ":6: train.steps=-5: must be at least 1"),
        (("3e-4", "fast"), ":7: train.learning_rate='fast': expected a number"),
        (("3e-4", ".nan"), ":7: train.learning_rate=nan: must be above 0"),
    ],
)
def test_bad_sections(toy, write, change, expected):
    assert change[0] in RUN
    path = write(RUN.replace(*change, 1))
    text = message(path)
    assert text.startswith(f"{path}:")
    assert expected in text


def test_missing_sections(toy, write):
    path = write("task: {name: toy}\n")
    assert message(path) == f"{path}:1: model: missing; a run needs it"


def test_overrides_win_and_say_so(toy, write):
    path = write(RUN)
    assert read_run(path, ["train.steps=7", "seed=3", "train.steps=8"]).train.steps == 8
    assert read_run(path, ["model={d_model: 64}"]).model.blueprint.d_model == 64
    nested = read_run(path, ["model.feed_forward.hidden_size=7"]).model.blueprint.feed_forward
    assert (nested.kind, nested.hidden_size) == ("dense", 7)
    assert message(path, "train.stepz=3").startswith("command line: train.stepz=3: unknown key")
    assert message(path, "train.stepz=3").endswith("did you mean 'train.steps'?")
    assert message(path, "train.steps=0") == "command line: train.steps=0: must be at least 1"
    assert message(path, "task.size=x").startswith("command line: task.size='x': expected a whole")
    assert message(path, "train=3").startswith("command line: train=3: expected a mapping")


def test_a_base_is_included_beneath(toy, write):
    write(RUN, "base.yaml")
    write("base: base.yaml\ntrain.steps: 20\n", "middle.yaml")
    config = read_run(write("base: middle.yaml\ntask: {size: 9}\n"))
    assert (config.train.steps, config.train.learning_rate) == (20, 3e-4)
    assert config.task["size"] == 9
    sweep = write("name: s\nbase: base.yaml\nvariants: {a: {}}\nseeds: 2\n", "sweep.yaml")
    assert read_run(write(f"base: {sweep.name}\n")).train.steps == 10
    write("base: b.yaml\n", "a.yaml")
    assert "files include each other" in message(write("base: a.yaml\n", "b.yaml"))
    text = message(write("base: bose.yaml\n"))
    assert "config.yaml:1: base='bose.yaml'" in text
    assert "no such file; did you mean 'base.yaml'?" in text
    write(RUN.replace("steps: 10", "steps: 0"), "zero.yaml")
    assert "zero.yaml:6: train.steps=0" in message(write("base: zero.yaml\n"))


# --- values of a declared type ----------------------------------------------------------


def node(text: str) -> Node:
    return parse(f"x: {text}", "f").value["x"]


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("3", float, 3.0),
        ("3", int | float, 3),
        ("0.5", int | float, 0.5),
        ("3", int | tuple[int, int], 3),
        ("[3, 4]", int | tuple[int, int], (3, 4)),
        ("[3, 4]", tuple[float, float], (3.0, 4.0)),
        ("[1, a]", list[Any], [1, "a"]),
        ("null", int | None, None),
        ("{a: 1}", dict[str, int], {"a": 1}),
        ("{a: [1]}", Any, {"a": [1]}),
        ("2", Literal[1, 2], 2),
        ("w", Literal["v", "w"] | None, "w"),
    ],
)
def test_values_of_a_type(text, hint, value):
    found = convert(node(text), hint, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint", "expected"),
    [
        ("true", int, "x=true: expected a whole number"),
        ("1", bool, "x=1: expected true or false"),
        ("3", str, "x=3: expected text"),
        ("true", Literal[1, 2], "x=true: expected one of 1, 2"),
        ("a", int | tuple[int, int], "expected a whole number or a list of 2 (a whole number)"),
        ("{a: b}", dict[str, int], "x.a='b': expected a whole number"),
        ("[1, b]", list[int] | None, "x[1]='b': expected a whole number"),
        ("[1, b]", tuple[int, int], "x[1]='b': expected a whole number"),
        ("[1]", dict[str, int], "expected a mapping"),
        ("null", int, "x=null: expected a whole number"),
        ("w", Literal["a", "b"] | None, "expected one of a, b or null"),
    ],
)
def test_values_of_another_type(text, hint, expected):
    with pytest.raises(ConfigError) as caught:
        convert(node(text), hint, "x")
    assert str(caught.value).startswith("f:1: ")
    assert expected in str(caught.value)


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size % 2 == 0:
            raise OptionError("size", self.size, "must be odd")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)


def test_dataclasses_nest_and_their_checks_get_a_place():
    assert build(Outer, parse("name: a\ninner: {size: 3}", "f"), "") == Outer(
        name="a", inner=Inner(size=3)
    )
    with pytest.raises(ConfigError, match=r"^f:3: inner.size=4: must be odd$"):
        build(Outer, parse("name: a\ninner:\n  size: 4\n", "f"), "")
    with pytest.raises(ConfigError, match=r"^f:1: top.name: missing$"):
        build(Outer, parse("inner: {}", "f"), "top")
