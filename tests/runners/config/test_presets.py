"""A model section by preset is the section with the preset's options spelled out."""

import json

import pytest

import moeut
from moeut import architectures
from moeut.presets import PRESETS
from runners.config.run_file import read_run, to_yaml
from runners.config.schema import ConfigError
from runners.config.yaml_nodes import dump

TASK = "task: {name: toy}\n"


def config_of(section, parameters=None):
    return architectures.configure(
        section.blueprint,
        form="decoder_lm",
        match_parameters=parameters,
        vocabulary_size=8000,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_in_a_file_is_the_models_config(toy, write, name):
    run = read_run(write(f"{TASK}model: {{preset: {name}, form: decoder_lm}}\n"))
    assert run.model.architecture == name.partition("-")[0]
    assert "preset" not in run.model.to_dict()
    assert config_of(run.model) == moeut.preset(name)


def test_a_preset_and_its_options_spelled_out_are_the_same_run(toy, write):
    by_name = read_run(write(TASK + "model: {preset: moeut-44m, feed_forward.top_k: 8}\n"))
    options = dict(PRESETS["moeut-44m"])
    options["feed_forward"] = options["feed_forward"] | {"top_k": 8}
    spelled = read_run(write(TASK + dump({"model": options}), "spelled.yaml"))
    assert by_name == spelled
    assert by_name.hash("d") == spelled.hash("d")
    other = read_run(write(TASK + "model: {preset: moeut-44m}\n", "other.yaml"))
    assert other.hash("d") != by_name.hash("d")
    again = write(to_yaml(by_name), "again.yaml")
    assert json.dumps(read_run(again).to_dict()) == json.dumps(by_name.to_dict())


def test_a_budget_takes_the_place_of_the_presets_width(toy, write):
    budget = "match: {parameters: 40000000}\n"
    path = write(TASK + budget + "model: {preset: moeut-44m, form: decoder_lm}")
    run = read_run(path)
    assert config_of(run.model, run.match.parameters).feed_forward.num_experts < 155
    wide = read_run(path, ["match.parameters=null"])
    assert wide.model.blueprint.feed_forward.num_experts == 155
    again = write(to_yaml(read_run(path)), "again.yaml")
    assert read_run(again) == read_run(path)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{preset: moeut-45m}", ":2: model.preset='moeut-45m': expected one of moeut-44m, "),
        ("{preset: moeut-45m}", "; did you mean 'moeut-44m'?"),
        ("{preset: 44}", ":2: model.preset=44: expected one of"),
        (
            "\n  preset: moeut-44m\n  architecture: universal",
            ":4: model.architecture='universal': expected either architecture or preset, which is "
            "'moeut-44m'",
        ),
        (
            "\n  preset: universal-44m\n  feed_forward: {top_k: 3}",
            ":4: model.feed_forward.top_k=3: unknown; kind 'dense' takes hidden_size, ",
        ),
        (
            "\n  preset: moeut-44m\n  feed_forward.num_experts: 3\nmatch: {parameters: 40000000}",
            ":4: model.feed_forward.num_experts=3: has no effect with a budget of parameters",
        ),
        # What the preset itself says is found where the preset is named.
        ("\n  preset: moeut-44m\n  dropout: 1", ":4: model.dropout=1.0: must be"),
        (
            "\n  # a comment\n  preset: moeut-44m\n  d_model: 400\n  attention.num_experts: 1",
            ":6: model.attention.top_k=2: must be at most num_experts=1",
        ),
    ],
)
def test_bad_presets_are_one_line(toy, write, section, expected):
    path = write(f"{TASK}model: {section}\n")
    with pytest.raises(ConfigError) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}:")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
