"""``--help`` says what the fields' docstrings say."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass

import tasks
from moeut import architectures
from moeut.blocks.attention import ATTENTION
from moeut.blocks.feed_forward import FEED_FORWARD
from moeut.blocks.positions import POSITION
from moeut.design import Blueprint
from moeut.recurrence.controller import HALTING
from moeut.recurrence.injection import INJECTION
from moeut.recurrence.schedule import Depth
from moeut.recurrence.start import START
from moeut.recurrence.state import State
from runners.config.help import describe_fields, run_help, sweep_help
from runners.config.schema import EvaluateConfig, RunConfig, SweepConfig, TrainConfig
from tasks.base.options import describe


@dataclass(frozen=True, kw_only=True)
class Parent:
    width: int = 3
    """How wide;
    in metres."""
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class Child(Parent):
    height: float | None = None
    """How high."""
    width: int = 4


def test_docs_are_read_from_the_source_and_inherited():
    assert describe_fields(Child, indent=0) == (
        "width: a whole number = 4\n    How wide; in metres.\nplain: true or false = false\n"
        "height: a number or null = null\n    How high."
    )


def test_every_field_of_the_config_has_a_docstring():
    for cls in (TrainConfig, EvaluateConfig, RunConfig, SweepConfig):
        assert all(option.doc for option in describe(cls).values()), cls


def test_every_option_of_tasks_and_models_is_listed():
    text = run_help()
    blocks = (ATTENTION, FEED_FORWARD, POSITION, HALTING, INJECTION, START)
    kinds = [cls for block in blocks for cls in block.values()]
    models = (Blueprint, Depth, State, *kinds)
    for cls in (*map(tasks.task_class, tasks.TASKS), *models, TrainConfig):
        for field in dataclasses.fields(cls):
            assert f" {field.name}: " in text, (cls, field.name)
    for cls in kinds:
        assert f" kind: {cls.kind}\n" in text
    for name in tasks.TASKS:
        assert f": {name}\n" in text
    for name in architectures.ARCHITECTURES:
        assert f"    {name}:\n" in text
    assert "  betas: a list of 2 (a number) = [0.9, 0.999]" in text


def test_a_sweeps_help_contains_a_runs():
    text = sweep_help()
    assert "seeds: a list (a whole number) or a whole number = 1" in text
    assert run_help() in text
    assert max(map(len, text.splitlines())) < 400


def test_help_needs_no_torch_and_leaves_the_models_as_they_are():
    code = """
import sys
from runners import train
try:
    train.main(["--help"])
except SystemExit:
    pass
assert not {"torch", "safetensors", "triton"} & set(sys.modules)
import moeut
moeut.build(moeut.architecture("moeut", form="decoder_lm", vocabulary_size=9, d_model=16))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(run_help() + "\n")
